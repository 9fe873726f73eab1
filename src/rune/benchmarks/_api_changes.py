"""What `api_updates` does to a function: each maker draws one change, and how it is used rightly and wrongly."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from rune import config as settings
from rune.benchmarks._api_functions import EFFECTS, ERRORS, EXTRAS, KEYS, RENAMES, SUBJECTS, Effect, Function
from rune.benchmarks.scorers import updates
from rune.benchmarks.scorers.updates import Update


class Use(NamedTuple):
    """How a task's solution calls the function: an expression of the input, and what stands before it."""

    expression: Callable[[str], str]  # source of the input → source of the result
    helper: str = ""  # source above the solution
    asks: str = ""  # what the task says of it
    parameter: str = ""  # "name: type" if the task takes the argument's value
    given: tuple[Any, ...] = ()  # the values of that parameter in tests


class Change(NamedTuple):
    """One update, and how it is used rightly and wrongly."""

    update: Update
    right: Callable[[random.Random], Use]
    wrong: tuple[Callable[[str], str], ...]  # expressions


class Draw(NamedTuple):
    """Choices, and names for what is new."""

    rng: random.Random
    names: str

    def choice(self, items: Sequence[Any]) -> Any:
        return self.rng.choice(items)

    def open(self) -> bool:
        return self.names == "open" and self.rng.random() < 0.8

    def word(self, plain: Sequence[str]) -> str:
        """One of the plain ones, or one or two of all words."""
        if plain and not self.open():
            return str(self.rng.choice(plain))
        return "_".join(self.rng.sample(_words(), self.rng.choice((1, 1, 2))))


@cache
def _words() -> tuple[str, ...]:
    """Parts of names that occur in four modules or more of Python's library, keywords and built-ins left out."""
    return tuple(resources.files("rune.benchmarks").joinpath("api_words.txt").read_text(encoding="utf-8").split())


def _update(
    function: Function, kind: str, detail: str, *, parameters: str = "", body: str, name: str = "", about: str,
    setup: str = "",
) -> Update:  # fmt: skip
    """`body` are the lines that make `result` of the old function's `result`; `parameters` are new keyword ones."""
    new = name or function.name
    old = f"old_{function.name}"
    extra = f", {parameters}" if parameters else ""
    return Update(
        domain=updates.domain(function.path, kind, detail),
        function=function.path,
        setup=f"import {function.module}\n{old} = {function.path}\n{setup}",
        implementation=f"def {new}(*args{extra}, **options):\n    result = {old}(*args, **options)\n{body}"
        "    return result\n",
        name=new,
        signature=f"{function.module}.{new}(...{extra})",
        documentation=about,
    )


def _call(function: Function, x: str, extra: str = "", name: str = "") -> str:
    arguments = function.call.replace("{x}", x)
    return f"{function.module}.{name or function.name}({arguments}{f', {extra}' if extra else ''})"


def _new_argument(draw: Draw, function: Function) -> Change:
    effect, argument, body, about = _argument(draw, function)
    update = _update(function, "new-argument", f"{argument}.{_tag(effect.code)}", parameters=f"{argument}=None",
                     body=body, about=f"The function takes a new argument '{argument}': {about}.")  # fmt: skip
    others = [n for n in effect.names if n != argument]
    guess = draw.choice(others)
    value = effect.values[0]
    return Change(
        update,
        lambda r: _argued(r, function, effect, argument),
        (
            lambda x: _call(function, x),
            lambda x: _call(function, x, f"{guess}={value}"),
        ),
    )


def _argument(draw: Draw, function: Function) -> tuple[Effect, str, str, str]:
    effect = draw.choice(EFFECTS[function.gives])
    if len(effect.values) == 1:  # the argument takes a word
        old, new = effect.values[0], repr(draw.word((eval(effect.values[0]),)))
        effect = effect._replace(
            code=effect.code.replace(old, new), means=effect.means.replace(old, new), values=(new,)
        )
    argument = draw.word(effect.names)
    code = effect.code.replace("{a}", argument)
    return effect, argument, f"    if {argument} is not None:\n        result = {code}\n", effect.means


def _argued(rng: random.Random, function: Function, effect: Effect, argument: str, **more: Any) -> Use:
    """With a value of the task's own, or with one that the task takes as its second parameter."""
    wrap: Callable[[str], str] = more.pop("wrap", lambda call: call)
    if len(effect.values) > 1 and rng.random() < 0.35:
        values = tuple(eval(v) for v in effect.values)  # our own literals
        return Use(
            lambda x: wrap(_call(function, x, f"{argument}=choice", **more)),
            asks=effect.asks.replace("{v}", "the second argument"),
            parameter=f"choice: {type(values[0]).__name__}",
            given=values,
        )
    value = rng.choice(effect.values)
    return Use(
        lambda x: wrap(_call(function, x, f"{argument}={value}", **more)), asks=effect.asks.replace("{v}", value)
    )


def _changed_default(draw: Draw, function: Function) -> Change | None:
    if not function.defaults:
        return None
    argument, old, values = draw.choice(function.defaults)
    value = draw.choice(values)
    update = _update(function, "changed-default", f"{argument}.{_tag(value)}", body="",
                     about=f"The default of '{argument}' is now {value}; it was {old}.")  # fmt: skip
    body = update.implementation.replace("    result =", f"    options.setdefault({argument!r}, {value})\n    result =")
    update = replace(update, implementation=body, signature=f"{function.path}(..., {argument}={value})")
    return Change(
        update,
        lambda r: Use(lambda x: _call(function, x), asks=f"with the function's default for '{argument}'"),
        (lambda x: _call(function, x, f"{argument}={old}"),),
    )


class _Return(NamedTuple):
    tag: str
    body: str
    unwrap: Callable[[str], str]
    means: str


def _return(draw: Draw) -> _Return:
    key, extra = draw.word(KEYS), draw.choice(EXTRAS)
    return draw.choice((
        _Return(f"dict.{key}", f"    result = {{{key!r}: result, 'extra': {extra}}}\n", lambda c: f"{c}[{key!r}]",
                f"a dictionary; the former result stands under {key!r}"),
        _Return(f"dict.{key}", f"    result = {{{key!r}: result, 'extra': {extra}}}\n", lambda c: f"{c}[{key!r}]",
                f"a dictionary; the former result stands under {key!r}"),
        _Return(f"object.{key}", f"    import types\n    result = types.SimpleNamespace({key}=result)\n",
                lambda c: f"{c}.{key}", f"an object; the former result is its attribute '{key}'"),
        _Return(f"method.{key}",
                f"    import types\n    kept = result\n    result = types.SimpleNamespace({key}=lambda: kept)\n",
                lambda c: f"{c}.{key}()", f"an object; its method '{key}()' gives the former result"),
        _Return("first", f"    result = (result, {extra})\n", lambda c: f"{c}[0]",
                "a pair; the former result stands first"),
        _Return("last", f"    result = ({extra}, result)\n", lambda c: f"{c}[1]",
                "a pair; the former result stands second"),
        _Return("third", f"    result = ({extra}, None, result)\n", lambda c: f"{c}[2]",
                "a triple; the former result stands third"),
        _Return("callable", "    kept = result\n    result = lambda: kept\n", lambda c: f"{c}()",
                "a function without arguments that gives the former result"),
        _Return("iterator", "    result = iter([result])\n", lambda c: f"next({c})",
                "an iterator that yields the former result"),
    ))  # fmt: skip


def _changed_return(draw: Draw, function: Function) -> Change:
    form = _return(draw)
    update = _update(function, "changed-return", form.tag, body=form.body, about=f"The function returns {form.means}.")
    return Change(
        update,
        lambda r: Use(lambda x: form.unwrap(_call(function, x))),
        (lambda x: _call(function, x),),
    )


def _renamed(draw: Draw, function: Function) -> tuple[str, str]:
    new = draw.choice(RENAMES).replace("{n}", function.name)
    if draw.open():
        new = draw.choice((f"{draw.word(())}_{function.name}", f"{function.name}_{draw.word(())}", draw.word(())))
    return new, f"del {function.path}\n"


def _new_name(draw: Draw, function: Function) -> Change:
    new, setup = _renamed(draw, function)
    update = _update(function, "new-name", new, name=new, body="", setup=setup,
                     about=f"The function is now called {function.module}.{new}; the old name is gone.")  # fmt: skip
    other = next(n for n in (f"{function.name}_new", f"{function.name}ed") if n != new)
    return Change(
        update,
        lambda r: Use(lambda x: _call(function, x, name=new)),
        (lambda x: _call(function, x), lambda x: _call(function, x, name=other)),
    )


def _new_error(draw: Draw, function: Function) -> Change | None:
    _, _, sample = SUBJECTS[function.subject]
    error, fallback = draw.choice(ERRORS), draw.choice(("-1", "None", "'refused'", "0", "'n/a'"))
    results = [_old(function, sample(draw.rng)) for _ in range(40)]
    if function.gives == "number":
        bound: Any = sorted(results)[20]
        condition, words = f"result > {bound!r}", f"the result is above {bound!r}"
    elif function.gives in ("text", "list"):
        bound = sorted(len(r) for r in results)[20]
        condition, words = (
            f"len(result) > {bound}",
            f"the result has more than {bound} " + ("characters" if function.gives == "text" else "elements"),
        )
    else:
        condition, words = "not result", "the answer is no"
    update = _update(function, "new-error", f"{error}.{_tag(condition)}",
                     body=f"    if {condition}:\n        raise {error}({words!r})\n",
                     about=f"The function raises {error} if {words}.")  # fmt: skip
    helper = (
        f"def attempt(item):\n    try:\n        return {_call(function, 'item')}\n"
        f"    except {error}:\n        return {fallback}\n"
    )
    return Change(
        update,
        lambda r: Use(lambda x: f"attempt({x})", helper, f"but {fallback} where the function refuses its input"),
        (lambda x: _call(function, x),),
    )


def _old(function: Function, value: Any) -> Any:
    scope: dict[str, Any] = {"x": value}
    exec(f"import {function.module}\nresult = {_call(function, 'x')}", scope)
    return scope["result"]


def _combined(draw: Draw, function: Function) -> Change:
    """Two changes at once: a new name with a new argument or return, or an argument with a return."""
    new, setup = _renamed(draw, function) if draw.rng.random() < 0.6 else ("", "")
    form = _return(draw) if not new or draw.rng.random() < 0.5 else None
    if new and form is not None:
        update = _update(function, "combined", f"{new}.{form.tag}", name=new, setup=setup, body=form.body,
                         about=f"The function is now called {function.module}.{new}, the old name is gone; "
                         f"it returns {form.means}.")  # fmt: skip
        unwrap = form.unwrap
        return Change(
            update,
            lambda r: Use(lambda x: unwrap(_call(function, x, name=new))),
            (lambda x: _call(function, x), lambda x: _call(function, x, name=new)),
        )
    effect, argument, body, about = _argument(draw, function)
    unwrap = form.unwrap if form is not None else lambda call: call
    parts = [f"The function takes a new argument '{argument}': {about}"]
    parts += [f"it is now called {function.module}.{new}, the old name is gone"] if new else []
    parts += [f"it returns {form.means}"] if form is not None else []
    update = _update(
        function, "combined", f"{new or (form.tag if form else '')}.{argument}.{_tag(effect.code)}", name=new,
        setup=setup, parameters=f"{argument}=None", body=body + (form.body if form else ""),
        about="; ".join(parts) + ".",
    )  # fmt: skip
    return Change(
        update,
        lambda r: _argued(r, function, effect, argument, wrap=unwrap, name=new),
        (lambda x: _call(function, x), lambda x: _call(function, x, f"{argument}={effect.values[0]}") if new
         else unwrap(_call(function, x))),
    )  # fmt: skip


MAKERS: dict[str, Callable[[Draw, Function], Change | None]] = {
    "new-argument": _new_argument,
    "changed-default": _changed_default,
    "changed-return": _changed_return,
    "new-name": _new_name,
    "new-error": _new_error,
    "combined": _combined,
}


def _tag(code: str) -> str:
    return settings.digest(code)[:6]
