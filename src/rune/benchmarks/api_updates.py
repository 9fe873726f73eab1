"""Updates of standard-library functions that nobody made: a seeded generator in the form of CodeUpdateArena.

A domain is an update: a function gets a new argument, another default, another return, a new name, a new error, or two
of these. Its tasks want the updated function and never say what changed; a trajectory of a sibling shows it. Every task
is kept only if its reference passes with the update and fails without it, what someone who knows the old function would
write fails, and the reference of one update fails under every other update of the same function. The check is an
execution, here while generating and in the sandbox by `verify`.

Functions of math, numpy, re, itertools and sympy are never changed: CodeUpdateArena holds updates of these out.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Literal, NamedTuple

from rune import config as settings
from rune.benchmarks import _updates
from rune.benchmarks._api_functions import EFFECTS, ERRORS, EXTRAS, FUNCTIONS, KEYS, RENAMES, SUBJECTS, Effect, Function
from rune.benchmarks._families_trajectories import run_here
from rune.benchmarks._updates import Update
from rune.errors import DataError
from rune.types import Attempt, Outcome, Problem, Sandbox, Split, Trajectory

NAME = "api_updates"
FORBIDDEN = frozenset({"math", "numpy", "re", "itertools", "sympy"})
KINDS = {  # how often each is drawn
    "new-argument": 6,
    "changed-default": 1,
    "changed-return": 4,
    "new-name": 2,
    "new-error": 2,
    "combined": 3,
}
CASES = 4  # tests a task, at least


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What to generate. The same settings give the same tasks under the same version of Python."""

    seed: int = 0
    updates: int = 1000
    tasks: int = 4  # per update
    held_out: int = 0  # functions, not updates: all that change one of these are held out
    names: Literal["plain", "open"] = "open"
    # plain: arguments, keys and new names from a few hundred, which a reader can learn by heart.
    # open: from millions (one or two of 2,000 words), so that only copying them from the trajectory helps.

    def __post_init__(self) -> None:
        if self.updates < 1 or not 4 <= self.tasks <= len(_SHAPES):
            raise ValueError(f"updates = {self.updates}, tasks = {self.tasks}; expected ≥ 1 and 4 to {len(_SHAPES)}")
        if not 0 <= self.held_out < len(FUNCTIONS):
            raise ValueError(f"held_out = {self.held_out} of {len(FUNCTIONS)} functions")


@dataclass(frozen=True, slots=True)
class ApiUpdates:
    """The benchmark: `problems()` in the order of generation."""

    config: Config

    def problems(self) -> list[Problem]:
        return [task.problem for task in generate(self.config)]


def build(config: Config) -> ApiUpdates:
    return ApiUpdates(config)


class Task(NamedTuple):
    """A problem and what its proof and its trajectories are made of."""

    problem: Problem
    update: Update
    habits: tuple[str, ...]  # programs of someone who knows the old function, or guesses at the new one


class _Use(NamedTuple):
    """How a task's solution calls the function: an expression of the input, and what stands before it."""

    expression: Callable[[str], str]  # source of the input → source of the result
    helper: str = ""  # source above the solution
    asks: str = ""  # what the task says of it
    parameter: str = ""  # "name: type" if the task takes the argument's value
    given: tuple[Any, ...] = ()  # the values of that parameter in tests


class _Change(NamedTuple):
    """One update, and how it is used rightly and wrongly."""

    update: Update
    right: Callable[[random.Random], _Use]
    wrong: tuple[Callable[[str], str], ...]  # expressions


# --------------------------------------------------------------------------- generating


def generate(config: Config) -> list[Task]:
    """All tasks, update by update. Raises DataError if the tables are too small for the settings."""
    rng = random.Random(f"{NAME}/{config.seed}")
    held = {f.path for f in rng.sample(FUNCTIONS, config.held_out)}
    found: dict[str, list[list[Task]]] = {f.path: [] for f in FUNCTIONS}
    names: set[str] = set()
    kinds = rng.choices(list(KINDS), weights=list(KINDS.values()), k=20 * config.updates + 1000)
    tasks: list[Task] = []
    for kind in kinds:
        function = rng.choice(FUNCTIONS)
        change = _MAKERS[kind](_Draw(rng, config.names), function)
        if change is None or change.update.domain in names:
            continue
        split = Split.HELD_OUT if function.path in held else Split.TRAIN
        made = _tasks(rng, function, change, split, config.tasks)
        if not made or any(_agree(made, other) or _agree(other, made) for other in found[function.path]):
            continue
        names.add(change.update.domain)
        found[function.path].append(made)
        tasks += made
        if len(names) == config.updates:
            return tasks
    raise DataError(f"{NAME}: found {len(names)} of {config.updates} distinct updates; ask for fewer")


def _agree(one: Sequence[Task], other: Sequence[Task]) -> bool:
    """Whether a solution of one update does under another."""
    return passes(other[0].update, one[0].problem.reference, one[0].problem)


def _tasks(rng: random.Random, function: Function, change: _Change, split: Split, count: int) -> list[Task]:
    """The update's tasks, or [] if too few of them prove it."""
    made: list[Task] = []
    for shape in rng.sample(_SHAPES, len(_SHAPES)):
        task = _task(rng, function, change, shape, split, len(made))
        if task is not None:
            made.append(task)
            if len(made) == count:
                return made
    return []


def _task(
    rng: random.Random, function: Function, change: _Change, shape: _Shape, split: Split, number: int
) -> Task | None:
    kind, words, draw = SUBJECTS[function.subject]
    use = change.right(rng)
    name = _name(rng, function, shape)
    reference = _program(function, name, shape, use)
    habits = [_program(function, name, shape, _Use(wrong, parameter=use.parameter)) for wrong in change.wrong]
    rows: list[tuple[tuple[Any, ...], Any]] = []
    for _ in range(4 * CASES):
        arguments: tuple[Any, ...] = (shape.arguments(rng, draw),)
        if use.parameter:
            arguments += (rng.choice(use.given),)
        if any(arguments == row[0] for row in rows):
            continue
        got = run(change.update, reference, name, arguments)
        if not isinstance(got, _Raised) and _plain(got):
            rows.append((arguments, got))
        if len(rows) == CASES + 1:
            break
    if len(rows) < CASES:
        return None
    problem = Problem(
        task_id=f"{NAME}/{change.update.domain}/{number}",
        benchmark=NAME,
        prompt=_prompt(rng, function, shape, use, name, kind, words),
        entry_point=name,
        test=_test(rows),
        reference=reference,
        category=change.update.package,
        split=split,
        prelude=_updates.prelude(change.update),
        family=change.update.domain,
    )
    failing = [code for code in habits if not passes(change.update, code, problem)]
    if passes(None, reference, problem) or len(failing) < len(habits):
        return None
    return Task(problem, change.update, tuple(dict.fromkeys(failing)))


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    if isinstance(value, dict):
        return all(map(_plain, value)) and all(map(_plain, value.values()))
    return value is None or type(value) in (bool, int, float, str)


def _test(rows: Sequence[tuple[tuple[Any, ...], Any]]) -> str:
    cases = "".join(f"    ({arguments!r}, {expected!r}),\n" for arguments, expected in rows)
    return (
        f"CASES = [\n{cases}]\n\n\ndef check(candidate):\n    for arguments, expected in CASES:\n"
        "        assert candidate(*arguments) == expected\n"
    )


# --------------------------------------------------------------------------- changes


class _Draw(NamedTuple):
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
    return tuple(resources.files("rune.benchmarks").joinpath("api_words.txt").read_text().split())


def _update(
    function: Function, kind: str, detail: str, *, parameters: str = "", body: str, name: str = "", about: str,
    setup: str = "",
) -> Update:  # fmt: skip
    """`body` are the lines that make `result` of the old function's `result`; `parameters` are new keyword ones."""
    new = name or function.name
    old = f"old_{function.name}"
    extra = f", {parameters}" if parameters else ""
    return Update(
        domain=_updates.domain(function.path, kind, detail),
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


def _new_argument(draw: _Draw, function: Function) -> _Change:
    effect, argument, body, about = _argument(draw, function)
    update = _update(function, "new-argument", f"{argument}.{_tag(effect.code)}", parameters=f"{argument}=None",
                     body=body, about=f"The function takes a new argument '{argument}': {about}.")  # fmt: skip
    others = [n for n in effect.names if n != argument]
    guess = draw.choice(others)
    value = effect.values[0]
    return _Change(
        update,
        lambda r: _argued(r, function, effect, argument),
        (
            lambda x: _call(function, x),
            lambda x: _call(function, x, f"{guess}={value}"),
        ),
    )


def _argument(draw: _Draw, function: Function) -> tuple[Effect, str, str, str]:
    effect = draw.choice(EFFECTS[function.gives])
    if len(effect.values) == 1:  # the argument takes a word
        old, new = effect.values[0], repr(draw.word((eval(effect.values[0]),)))
        effect = effect._replace(
            code=effect.code.replace(old, new), means=effect.means.replace(old, new), values=(new,)
        )
    argument = draw.word(effect.names)
    code = effect.code.replace("{a}", argument)
    return effect, argument, f"    if {argument} is not None:\n        result = {code}\n", effect.means


def _argued(rng: random.Random, function: Function, effect: Effect, argument: str, **more: Any) -> _Use:
    """With a value of the task's own, or with one that the task takes as its second parameter."""
    wrap: Callable[[str], str] = more.pop("wrap", lambda call: call)
    if len(effect.values) > 1 and rng.random() < 0.35:
        values = tuple(eval(v) for v in effect.values)  # our own literals
        return _Use(
            lambda x: wrap(_call(function, x, f"{argument}=choice", **more)),
            asks=effect.asks.replace("{v}", "the second argument"),
            parameter=f"choice: {type(values[0]).__name__}",
            given=values,
        )
    value = rng.choice(effect.values)
    return _Use(
        lambda x: wrap(_call(function, x, f"{argument}={value}", **more)), asks=effect.asks.replace("{v}", value)
    )


def _changed_default(draw: _Draw, function: Function) -> _Change | None:
    if not function.defaults:
        return None
    argument, old, values = draw.choice(function.defaults)
    value = draw.choice(values)
    update = _update(function, "changed-default", f"{argument}.{_tag(value)}", body="",
                     about=f"The default of '{argument}' is now {value}; it was {old}.")  # fmt: skip
    body = update.implementation.replace("    result =", f"    options.setdefault({argument!r}, {value})\n    result =")
    update = replace(update, implementation=body, signature=f"{function.path}(..., {argument}={value})")
    return _Change(
        update,
        lambda r: _Use(lambda x: _call(function, x), asks=f"with the function's default for '{argument}'"),
        (lambda x: _call(function, x, f"{argument}={old}"),),
    )


class _Return(NamedTuple):
    tag: str
    body: str
    unwrap: Callable[[str], str]
    means: str


def _return(draw: _Draw) -> _Return:
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


def _changed_return(draw: _Draw, function: Function) -> _Change:
    form = _return(draw)
    update = _update(function, "changed-return", form.tag, body=form.body, about=f"The function returns {form.means}.")
    return _Change(
        update,
        lambda r: _Use(lambda x: form.unwrap(_call(function, x))),
        (lambda x: _call(function, x),),
    )


def _renamed(draw: _Draw, function: Function) -> tuple[str, str]:
    new = draw.choice(RENAMES).replace("{n}", function.name)
    if draw.open():
        new = draw.choice((f"{draw.word(())}_{function.name}", f"{function.name}_{draw.word(())}", draw.word(())))
    return new, f"del {function.path}\n"


def _new_name(draw: _Draw, function: Function) -> _Change:
    new, setup = _renamed(draw, function)
    update = _update(function, "new-name", new, name=new, body="", setup=setup,
                     about=f"The function is now called {function.module}.{new}; the old name is gone.")  # fmt: skip
    other = next(n for n in (f"{function.name}_new", f"{function.name}ed") if n != new)
    return _Change(
        update,
        lambda r: _Use(lambda x: _call(function, x, name=new)),
        (lambda x: _call(function, x), lambda x: _call(function, x, name=other)),
    )


def _new_error(draw: _Draw, function: Function) -> _Change | None:
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
    return _Change(
        update,
        lambda r: _Use(lambda x: f"attempt({x})", helper, f"but {fallback} where the function refuses its input"),
        (lambda x: _call(function, x),),
    )


def _old(function: Function, value: Any) -> Any:
    scope: dict[str, Any] = {"x": value}
    exec(f"import {function.module}\nresult = {_call(function, 'x')}", scope)
    return scope["result"]


def _combined(draw: _Draw, function: Function) -> _Change:
    """Two changes at once: a new name with a new argument or return, or an argument with a return."""
    new, setup = _renamed(draw, function) if draw.rng.random() < 0.6 else ("", "")
    form = _return(draw) if not new or draw.rng.random() < 0.5 else None
    if new and form is not None:
        update = _update(function, "combined", f"{new}.{form.tag}", name=new, setup=setup, body=form.body,
                         about=f"The function is now called {function.module}.{new}, the old name is gone; "
                         f"it returns {form.means}.")  # fmt: skip
        unwrap = form.unwrap
        return _Change(
            update,
            lambda r: _Use(lambda x: unwrap(_call(function, x, name=new))),
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
    return _Change(
        update,
        lambda r: _argued(r, function, effect, argument, wrap=unwrap, name=new),
        (lambda x: _call(function, x), lambda x: _call(function, x, f"{argument}={effect.values[0]}") if new
         else unwrap(_call(function, x))),
    )  # fmt: skip


_MAKERS: dict[str, Callable[[_Draw, Function], _Change | None]] = {
    "new-argument": _new_argument,
    "changed-default": _changed_default,
    "changed-return": _changed_return,
    "new-name": _new_name,
    "new-error": _new_error,
    "combined": _combined,
}


def _tag(code: str) -> str:
    return settings.digest(code)[:6]


# --------------------------------------------------------------------------- tasks


class _Shape(NamedTuple):
    """What a task does with the function."""

    name: str  # in the task's name
    argument: str
    type: str  # of the argument, {t} the subject's
    body: str  # {x}: the call's input is put in by splitting at CALL(…)
    says: str  # {one}: the result in words; {many}: the input in words, plural
    subject: str  # how the input is called in the result's phrase
    arguments: Callable[[random.Random, Callable[[random.Random], Any]], Any]


def _several(low: int, high: int) -> Callable[[random.Random, Callable[[random.Random], Any]], Any]:
    return lambda rng, draw: [draw(rng) for _ in range(rng.randint(low, high))]


def _named(rng: random.Random, draw: Callable[[random.Random], Any]) -> dict[str, Any]:
    return {key: draw(rng) for key in rng.sample(["north", "south", "east", "west", "home", "away"], rng.randint(2, 3))}


_SHAPES = (
    _Shape("one", "{n}", "{t}", "    return CALL({n})\n", "Given {words}, return {one}{asks}.", "it",
           lambda rng, draw: draw(rng)),
    _Shape("each", "items", "list[{t}]", "    return [CALL(item) for item in items]\n",
           "Given a list, each element of it {words}, return a list with {one} for each{asks}.", "the element",
           _several(1, 3)),
    _Shape("table", "table", "dict[str, {t}]", "    return {key: CALL(value) for key, value in table.items()}\n",
           "Given a dictionary whose values are each {words}, return a dictionary with the same keys and {one} "
           "for each{asks}.", "the value", _named),
    _Shape("pairs", "items", "list[{t}]",
           "    pairs = []\n    for item in items:\n        pairs.append((item, CALL(item)))\n    return pairs\n",
           "Given a list, each element of it {words}, return pairs of the element and {one}{asks}.", "the element",
           _several(1, 3)),
    _Shape("last", "items", "list[{t}]",
           "    if not items:\n        return None\n    return CALL(items[-1])\n",
           "Given a list, each element of it {words}, return {one} for the last of them{asks}; None if the list is "
           "empty.", "the element", _several(1, 3)),
    _Shape("report", "{n}", "{t}", "    outcome = CALL({n})\n    return f\"result: {outcome}\"\n",
           "Given {words}, return the text 'result: ' followed by {one}{asks}.", "it", lambda rng, draw: draw(rng)),
    _Shape("nested", "groups", "list[list[{t}]]",
           "    return [[CALL(item) for item in group] for group in groups]\n",
           "Given a list of groups, each a list whose elements are each {words}, return the groups with {one} in the "
           "place of each{asks}.", "the element",
           lambda rng, draw: [[draw(rng) for _ in range(rng.randint(1, 2))] for _ in range(2)]),
    _Shape("record", "{n}", "{t}",
           "    record = {\"input\": {n}}\n    record[\"output\"] = CALL({n})\n    return record\n",
           "Given {words}, return a dictionary with it under 'input' and {one} under 'output'{asks}.", "it",
           lambda rng, draw: draw(rng)),
)  # fmt: skip
_VERBS = ("build", "make", "collect", "compute", "prepare", "derive", "produce", "obtain", "form", "gather")
_ROLES = (
    "A librarian", "A teacher", "An engineer at a small firm", "A data analyst", "A journalist", "A researcher",
    "A student", "A shop owner", "A web developer", "A museum curator", "A weather station", "A bookkeeper",
)  # fmt: skip
_NEEDS = (
    "wants this done many times a day.", "is cleaning up a script.", "has a large archive to go through.",
    "must hand in a report tonight.", "needs it for a nightly job.", "is replacing an old tool.",
    "keeps doing this by hand.", "wants one function for it.",
)  # fmt: skip


def _name(rng: random.Random, function: Function, shape: _Shape) -> str:
    return f"{rng.choice(_VERBS)}_{function.name.lower()}_{shape.name}"


def _program(function: Function, name: str, shape: _Shape, use: _Use) -> str:
    argument = shape.argument.replace("{n}", "data")
    body = shape.body.replace("{n}", "data")
    while "CALL(" in body:
        before, _, rest = body.partition("CALL(")
        inner, _, after = rest.partition(")")
        body = f"{before}{use.expression(inner)}{after}"
    second = f", {use.parameter.partition(':')[0]}" if use.parameter else ""
    helper = f"{use.helper}\n\n" if use.helper else ""
    return f"import {function.module}\n\n\n{helper}def {name}({argument}{second}):\n{body}"


def _prompt(rng: random.Random, function: Function, shape: _Shape, use: _Use, name: str, kind: str, words: str) -> str:
    one = function.says.replace("{x}", shape.subject)
    asks = f", {use.asks}" if use.asks else ""
    what = shape.says.replace("{words}", words).replace("{one}", one).replace("{asks}", asks)
    hint = f" Use {function.module} for it." if rng.random() < 0.5 else ""
    argument = shape.argument.replace("{n}", "data")
    second = f", {use.parameter}" if use.parameter else ""
    signature = f"def {name}({argument}: {shape.type.replace('{t}', kind)}{second}):"
    return f"{rng.choice(_ROLES)} {rng.choice(_NEEDS)}\n{what}{hint}\n\nThe function's signature:\n{signature}\n"


# --------------------------------------------------------------------------- running our own programs


class _Raised(NamedTuple):
    name: str


def run(update: Update | None, code: str, name: str, arguments: tuple[Any, ...]) -> Any:
    """What our own program gives in this process, with the update or without; the library is restored behind it."""
    scope: dict[str, Any] = {}
    with _updates.restored([update.function] if update else []):
        try:
            if update:
                exec(_updates.prelude(update), scope)
            exec(code, scope)
            return scope[name](*copy_of(arguments))
        except Exception as error:
            return _Raised(type(error).__name__)


copy_of = copy.deepcopy  # bound now: the module's own function is one of those that are changed


def passes(update: Update | None, code: str, problem: Problem) -> bool:
    judge: dict[str, Any] = {}
    exec(problem.test, judge)
    return all(run(update, code, problem.entry_point, arguments) == expected for arguments, expected in judge["CASES"])


# --------------------------------------------------------------------------- trajectories


def trajectories(tasks: Sequence[Task], *, seed: int = 0) -> Iterator[Trajectory]:
    """One per task: what someone with the old habit tries, its real errors, then the reference."""
    for task in tasks:
        rng = random.Random(f"{seed}/{task.problem.task_id}")
        tried = rng.sample(task.habits, rng.randint(1, len(task.habits)))
        attempts = []
        for code in (*tried, task.problem.reference):
            with _updates.restored([task.update.function]):
                found = run_here(_updates.program("", task.problem, code))
            if (found.outcome is Outcome.PASSED) != (code == task.problem.reference):
                raise DataError(f"{NAME}: {task.problem.task_id}: {found.outcome.value} {found.error}")
            attempts.append(Attempt(code=code, outcome=found.outcome, error_kind=found.error_kind, error=found.error))
        yield Trajectory(
            trajectory_id=settings.digest([task.problem.task_id, attempts])[:16],
            task_id=task.problem.task_id,
            benchmark=NAME,
            prompt=task.problem.prompt,
            attempts=tuple(attempts),
            solution=task.problem.reference,
            category=task.problem.category,
            family=task.problem.family,
            source=NAME,
        )


# --------------------------------------------------------------------------- proof


def verify(tasks: Sequence[Task], sandbox: Sandbox) -> dict[str, int]:
    """Run the proof in the sandbox: each reference counts (passes with, fails without), each habit fails, and no
    reference passes under another update of its function. Raises DataError naming the first offender.
    """
    first: dict[str, dict[str, Task]] = {}
    for task in tasks:
        first.setdefault(task.update.function, {}).setdefault(task.update.domain, task)
    programs = [(f"{t.problem.task_id}#reference", t.problem, t.problem.reference) for t in tasks]
    programs += [(f"{t.problem.task_id}#habit {i}", t.problem, code) for t in tasks for i, code in enumerate(t.habits)]
    for members in first.values():
        for one in members.values():
            for other in members.values():
                if one is not other:
                    strange = replace(one.problem, prelude=other.problem.prelude)
                    key = f"{one.problem.task_id}#under {other.update.domain}"
                    programs.append((key, strange, one.problem.reference))
    counts: Counter[str] = Counter(updates=sum(map(len, first.values())), functions=len(first))
    for graded in _updates.judge(sandbox, programs):
        task_id, _, role = graded.key.partition("#")
        passed = graded.used if role == "reference" else graded.plain.outcome is Outcome.PASSED
        if passed != (role == "reference"):
            found = graded.plain
            raise DataError(f"{NAME}: {task_id}: {role}: {found.outcome.value} {found.error_kind} {found.error}")
        counts[
            {"reference": "references_count", "habit": "habits_fail", "under": "strangers_fail"}[role.split()[0]]
        ] += 1
    return dict(counts)
