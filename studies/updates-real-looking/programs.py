"""Real programs whose calls of one library function are rewritten for an update that nobody made.

Three sources: MBPP's training tasks (ids 511–974 and 1–10), tasks of the training updates of CodeUpdateArena, and
functions with a docstring of Python's own library. A *group* is the programs that call the same function; an update
draws four of them, changes every call of that function in each, as text at the call's place, so that names, comments
and everything else stay. Programs of MBPP have tests: each is judged, with the update and without it.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import inspect
import random
import re
import sysconfig
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rune import config
from rune.benchmarks import _api_changes
from rune.benchmarks.scorers import execution_with_and_without
from rune.benchmarks.scorers.updates import Update
from rune.types import Attempt, Outcome, Problem, Scorer, Trajectory

TASK_WEIGHT = 5.0
TASKS = 4  # of an update: its own and three siblings
A_FUNCTION = 24  # updates of one function, at most
LONGEST = 1400  # characters of a program
PROMPT = 700  # characters of a docstring
PACKAGES = ("networkx", "scipy", "numpy", "matplotlib")  # installed anyway
LEFT_OUT = frozenset({"test", "tests", "testing", "idlelib", "lib2to3", "this.py", "turtledemo", "pydoc_data"})
BUILTINS = frozenset(
    {"abs", "all", "any", "bin", "chr", "divmod", "enumerate", "filter", "getattr", "hasattr", "hash", "hex"}
    | {"isinstance", "iter", "len", "map", "max", "min", "next", "open", "ord", "pow", "range", "repr", "reversed"}
    | {"round", "sorted", "sum", "zip"}
)
KINDS = {
    "rename": 2, "argument": 3, "asked": 4, "first": 1, "swap": 1, "keywords": 2, "return": 3, "combined": 5,
}  # fmt: skip
CONCEPTS = (  # what a task says of an argument without its name, and values
    ("limit", ("2", "3", "5", "8", "10", "50")), ("tolerance", ("0.1", "0.01", "0.5", "0.25")),
    ("mode", ("'strict'", "'fast'", "'safe'", "'full'")), ("label", ("'north'", "'draft'", "'beta'", "'main'")),
    ("precision", ("1", "2", "4", "6")), ("strict check", ("True", "False")),
)  # fmt: skip


class Source(NamedTuple):
    """A program and what asks for it."""

    name: str
    prompt: str
    code: str
    problem: Problem | None = None  # with tests
    weight: float = 1.0  # how likely it is drawn; tasks, which say what is wanted, more than a library's functions


class Call(NamedTuple):
    """The parts of a call, as text."""

    function: str
    arguments: tuple[str, ...]
    keywords: tuple[str, ...]

    def text(self) -> str:
        return f"{self.function}({', '.join((*self.arguments, *self.keywords))})"


class Change(NamedTuple):
    """What an update does to a call, and to the function."""

    tag: str
    call: Callable[[Call, str], Call]  # with the task's value
    wrap: Callable[[str], str]  # the call's text → the expression
    before: str = ""  # lines of the wrapper: args and options are the old function's then
    after: str = ""
    name: str = ""  # new one
    concept: int = -1  # of CONCEPTS: the task's value


# --------------------------------------------------------------------------- sources


def of_mbpp(problems: Iterable[Problem]) -> Iterator[Source]:
    for p in problems:
        if p.split == "train" and not p.prelude:
            code = p.reference.replace("\r\n", "\n").expandtabs(4)
            yield Source(p.task_id, p.prompt, code, p, TASK_WEIGHT)


def of_libraries() -> Iterator[Source]:
    """Functions of Python's own library and of PACKAGES, with their docstring as what asks for them."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = [*folder.glob("*.py"), *folder.glob("*/*.py")]
    for package in PACKAGES:
        place = importlib.util.find_spec(package)
        if place is not None and place.origin:
            files += Path(place.origin).parent.rglob("*.py")
    for path in sorted(files):
        if LEFT_OUT & set(path.relative_to(folder).parts if path.is_relative_to(folder) else path.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
            tree = ast.parse(text)
        except (UnicodeDecodeError, SyntaxError):
            continue
        imports = {
            (alias.asname or alias.name): f"import {alias.name}" + (f" as {alias.asname}" if alias.asname else "")
            for node in tree.body if isinstance(node, ast.Import) for alias in node.names
        }  # fmt: skip
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef) or node.decorator_list or not ast.get_docstring(node):
                continue
            code = ast.get_source_segment(text, node) or ""
            about = node.body[0]
            body = code.splitlines()
            first, last = about.lineno - node.lineno, (about.end_lineno or about.lineno) - node.lineno
            body = body[:first] + body[last + 1 :]
            if len(node.body) < 2 or len("\n".join(body)) > LONGEST:
                continue
            used = [line for name, line in imports.items() if re.search(rf"\b{re.escape(name)}\.", "\n".join(body))]
            about_it = ast.get_docstring(node) or ""
            said = re.split(r"\n(?:See Also|Examples|References|Notes)\b|>>>", about_it)[0][:PROMPT]
            head = "\n".join(code.splitlines()[: node.body[0].lineno - node.lineno])
            prompt = f"{said.strip()}\n\nThe function's signature:\n{head.strip()}\n"
            program = "\n".join([*used, "", "", *body] if used else body) + "\n"
            yield Source(f"{'/'.join(path.parts[-2:])}/{node.name}", prompt, program)


def of_arena(lessons: Iterable[Trajectory]) -> Iterator[Source]:
    for lesson in lessons:
        yield Source(lesson.task_id, lesson.prompt, lesson.solution, None, TASK_WEIGHT)


# --------------------------------------------------------------------------- calls


def _modules(tree: ast.Module) -> dict[str, str]:
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                found |= {alias.asname: alias.name} if alias.asname else {top: top}
    return found


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (left := _dotted(node.value)):
        return f"{left}.{node.attr}"
    return ""


def _path(node: ast.expr, modules: dict[str, str]) -> str:
    """The library function that an expression names, as "module.function"; "" if it names none."""
    name = _dotted(node)
    if "." not in name and name not in BUILTINS:
        return ""
    return _target(node, modules)


def functions(code: str) -> set[str]:
    """Library functions that a program calls and does not name otherwise."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return set()
    modules = _modules(tree)
    called = [n.func for n in ast.walk(tree) if isinstance(n, ast.Call)]
    ids = {id(n) for n in called}
    other = {
        _path(n, modules) for n in ast.walk(tree)
        if isinstance(n, (ast.Name, ast.Attribute)) and id(n) not in ids
    }  # fmt: skip
    bound = {f"builtins.{n.id}" for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    bound |= {f"builtins.{n.arg}" for n in ast.walk(tree) if isinstance(n, ast.arg)}
    bound |= {f"builtins.{n.name}" for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    return {path for n in called if (path := _path(n, modules))} - other - bound - {""}


def _calls(code: str, paths: set[str]) -> list[ast.Call]:
    """Calls of these functions, the first to begin first."""
    tree = ast.parse(code)
    modules = _modules(tree)
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and _target(n.func, modules) in paths]
    return sorted(found, key=lambda n: (n.lineno, n.col_offset))


def _target(node: ast.expr, modules: dict[str, str]) -> str:
    """As `_path`, for any name at all: a built-in function may be called anew."""
    name = _dotted(node)
    top, dot, rest = name.partition(".")
    if not dot:
        return f"builtins.{name}" if name else ""
    return f"{modules[top]}.{rest}" if top in modules else ""


def parts(code: str, node: ast.Call) -> Call:
    def text(some: ast.AST) -> str:
        return ast.get_source_segment(code, some) or ""

    arguments = tuple(text(a) if not isinstance(a, ast.Starred) else f"*{text(a.value)}" for a in node.args)
    keywords = tuple(f"{k.arg}={text(k.value)}" if k.arg else f"**{text(k.value)}" for k in node.keywords)
    return Call(text(node.func), arguments, keywords)


def rewrite(code: str, function: str, new: str, make: Callable[[Call], str]) -> str:
    """The program with each call of `function` replaced by what `make` says; `new` is what it is called then."""
    module = function.rpartition(".")[0]
    paths = {function, f"{module}.{new}"} if new else {function}
    count = len(_calls(code, {function}))
    for number in reversed(range(count)):  # inner calls begin later than outer ones
        node = _calls(code, paths)[number]
        lines = code.encode().splitlines(keepends=True)
        start = sum(map(len, lines[: node.lineno - 1])) + node.col_offset
        end = sum(map(len, lines[: (node.end_lineno or 0) - 1])) + (node.end_col_offset or 0)
        raw = code.encode()
        code = (raw[:start] + make(parts(code, node)).encode() + raw[end:]).decode()
    ast.parse(code)
    return code


# --------------------------------------------------------------------------- changes


def word(rng: random.Random) -> str:
    """One or two of 2,000 words, as a name."""
    some = rng.sample(_api_changes._words(), rng.choice((1, 1, 2)))
    if len(some) == 2 and rng.random() < 0.25:
        return some[0] + some[1].title().replace("_", "")
    return "_".join(some)


def change(rng: random.Random, kind: str, function: str, calls: Sequence[Call]) -> Change | None:
    """One change that all these calls can take."""
    name = function.rpartition(".")[2]
    plain = all(not c.keywords and not any(a.startswith("*") for a in c.arguments) for c in calls)
    starred = any(k.startswith("**") for c in calls for k in c.keywords)
    new = word(rng)
    if new in {k.partition("=")[0] for c in calls for k in c.keywords} or hasattr(builtins, new):
        return None
    if kind == "rename":
        called = rng.choice((f"{new}_{name}", f"{name}_{new}", new))
        return Change(called, lambda c, v: c._replace(function=_renamed(c.function, called)), str, name=called)
    if kind in ("argument", "asked") and not starred:
        concept = rng.randrange(len(CONCEPTS))
        fixed = rng.choice(CONCEPTS[concept][1])
        check = f" != {fixed}" if kind == "argument" else " is None"
        return Change(
            f"{kind}.{new}",
            lambda c, v: c._replace(keywords=(*c.keywords, f"{new}={fixed if kind == 'argument' else v}")), str,
            f"    if options.pop({new!r}, None){check}:\n        raise TypeError({f'{name} needs {new}'!r})\n",
            concept=concept if kind == "asked" else -1,
        )  # fmt: skip
    if kind == "first":
        fixed = rng.choice([v for _, values in CONCEPTS for v in values])
        return Change(
            f"first.{fixed}", lambda c, v: c._replace(arguments=(fixed, *c.arguments)), str,
            f"    if not args or args[0] != {fixed}:\n        raise TypeError('{name} needs a first argument')\n"
            "    args = args[1:]\n",
        )  # fmt: skip
    if kind == "swap" and plain and all(len(c.arguments) == 2 for c in calls):
        return Change(
            "swap", lambda c, v: c._replace(arguments=c.arguments[::-1]), str,
            "    args = args[::-1]\n",
        )  # fmt: skip
    if kind == "keywords" and plain and all(1 <= len(c.arguments) <= 3 for c in calls):
        names = [word(rng) for _ in range(3)]
        if len(set(names)) < 3:
            return None
        return Change(
            f"keywords.{names[0]}",
            lambda c, v: c._replace(
                arguments=(), keywords=tuple(f"{n}={a}" for n, a in zip(names, c.arguments, strict=False))
            ),
            str,
            f"    if args or not options:\n        raise TypeError('{name} takes keywords')\n"
            f"    args, options = [options[n] for n in {names!r} if n in options], {{}}\n",
        )
    if kind == "return":
        forms: list[tuple[str, Callable[[str], str], str]] = [
            (f"attribute.{new}", lambda c: f"{c}.{new}", f"types.SimpleNamespace({new}=kept)"),
            (f"method.{new}", lambda c: f"{c}.{new}()", f"types.SimpleNamespace({new}=lambda: kept)"),
            (f"key.{new}", lambda c: f"{c}['{new}']", f"{{{new!r}: kept}}"),
            ("first", lambda c: f"{c}[0]", "(kept, None)"), ("last", lambda c: f"{c}[1]", "(None, kept)"),
            ("callable", lambda c: f"{c}()", "lambda: kept"),
        ]  # fmt: skip
        tag, wrap, made = rng.choice(forms[:3] * 3 + forms[3:])
        return Change(f"return.{tag}", lambda c, v: c, wrap, after=f"    kept = result\n    result = {made}\n")
    if kind == "combined":
        one = change(rng, rng.choice(("rename", "asked", "argument", "keywords")), function, calls)
        two = change(rng, rng.choice(("return", "argument", "asked")), function, calls)
        if one is None or two is None or one.tag.partition(".")[0] == two.tag.partition(".")[0]:
            return None
        if one.concept >= 0 and two.concept >= 0:
            return None
        keyworded = one.tag.startswith("keywords")
        return Change(
            f"{one.tag}+{two.tag}", lambda c, v: two.call(one.call(c, v), v), two.wrap,
            # what was added last is taken off first
            two.before + one.before if keyworded else one.before + two.before,
            two.after, one.name, max(one.concept, two.concept),
        )  # fmt: skip
    return None


def _renamed(text: str, name: str) -> str:
    left, dot, _ = text.rpartition(".")
    return f"{left}{dot}{name}"


def installer(function: str, made: Change) -> str:
    """Source that installs the update: a built-in function in the program's namespace, others in their module."""
    module, _, name = function.rpartition(".")
    new = made.name or name
    place = "sys._getframe(1).f_globals" if module == "builtins" else f"vars(importlib.import_module({module!r}))"
    return (
        f"import importlib, sys, types\nold = getattr(importlib.import_module({module!r}), {name!r})\n"
        f"def updated(*args, **options):\n{made.before}    result = old(*args, **options)\n{made.after}"
        f"    return result\n{place}[{new!r}] = updated\n"
    )  # fmt: skip


# --------------------------------------------------------------------------- updates


class Made(NamedTuple):
    """A task of an update and its trajectory."""

    lesson: Trajectory
    problem: Problem | None


def update(rng: random.Random, function: str, group: Sequence[Source], prefix: str, base: str = "") -> list[Made]:
    """Four tasks of one update of `function`, or [] if the change does not fit the programs drawn."""
    kind = rng.choices(list(KINDS), weights=list(KINDS.values()))[0]
    some = sorted(group, key=lambda s: -(rng.random() ** (1 / s.weight)))[:TASKS]
    calls = [parts(s.code, node) for s in some for node in _calls(s.code, {function})]
    made = change(rng, kind, function, calls)
    if made is None:
        return []
    mark = config.digest([function, made.tag, [s.name for s in some]])[:6]
    domain = f"{function}:{prefix}-{kind}:{base}{made.tag}.{mark}"
    found = []
    for number, source in enumerate(some):
        prompt, value = source.prompt, ""
        if made.concept >= 0:
            concept, values = CONCEPTS[made.concept]
            value = rng.choice(values)
            shown = function.removeprefix("builtins.")
            said = rng.choice((
                f"Call {shown} with a {concept} of {value}.", f"The {concept} that {shown} works with is {value}.",
                f"Use {value} as the {concept} for {shown}.",
            ))  # fmt: skip
            prompt = _with_sentence(prompt, said)
        try:
            code = rewrite(source.code, function, made.name, lambda c, f=made, v=value: f.wrap(f.call(c, v).text()))
        except (SyntaxError, IndexError):
            return []
        if code == source.code or len(code) > LONGEST + 200:
            return []
        task = f"{prefix}/{domain}/{number}"
        package = function.partition(".")[0]
        problem = None
        if source.problem is not None:
            place = (function.rpartition(".")[0], made.name or function.rpartition(".")[2])
            problem = Problem(
                task_id=task, benchmark="api_updates", prompt=prompt, entry_point=source.problem.entry_point,
                test=source.problem.test, reference=code, category=package, domain=domain,
                prelude=execution_with_and_without.prelude(
                    installer(function, made), before=f"UPDATED = {place!r}\n"
                ),
                scorer=Scorer.EXECUTION_WITH_AND_WITHOUT,
            )  # fmt: skip
        lesson = Trajectory(
            trajectory_id=config.digest([task, code])[:16], task_id=task, benchmark="api_updates", prompt=prompt,
            attempts=(Attempt(code=code, outcome=Outcome.PASSED),), solution=code, category=package, domain=domain,
            source=f"{source.name}, rewritten",
        )  # fmt: skip
        found.append(Made(lesson, problem))
    return found


def renamed(rng: random.Random, real: Update, lessons: Sequence[Trajectory], prefix: str) -> list[Made]:
    """Up to four tasks of a real update under names that nobody knows, most with a further change; or []."""
    module, _, old = real.function.rpartition(".")
    called = f"{module}.{real.name}"
    some = [t for t in lessons if called in functions(t.solution) and len(t.solution) <= LONGEST]
    if len(some) < 2:
        return []
    some = rng.sample(some, min(TASKS, len(some)))
    calls = [parts(t.solution, node) for t in some for node in _calls(t.solution, {called})]
    names = {k.partition("=")[0] for c in calls for k in c.keywords if not k.startswith("**")}
    names -= _parameters(real.function)
    other = {name: word(rng) for name in sorted(names)}
    new = "" if real.name == old else word(rng)
    if len(set(other.values())) < len(other) or (not other and not new and rng.random() < 0.1):
        return []

    def own(call: Call) -> Call:
        changed = tuple(
            f"{other.get(left, left)}{mark}{value}" for left, mark, value in (k.partition("=") for k in call.keywords)
        )
        return call._replace(keywords=changed, function=_renamed(call.function, new) if new else call.function)

    kind, made = "names", None
    if rng.random() < 0.6 or not (other or new):
        kind = rng.choices(list(KINDS), weights=list(KINDS.values()))[0]
        made = change(rng, kind, called, [own(c) for c in calls])
        if made is None or made.concept >= 0 or (made.name and new):
            return []
    tag = ".".join([*other.values(), *([new] if new else []), *([made.tag] if made else [])])
    mark = config.digest([tag, [t.task_id for t in some]])[:6]
    domain = f"{real.function}:{prefix}-{kind}:{tag}.{mark}"
    found = []
    for number, lesson in enumerate(some):
        final = made

        def make(call: Call, final: Change | None = final) -> str:
            changed = own(call)
            return final.wrap(final.call(changed, "").text()) if final else changed.text()

        code = rewrite(lesson.solution, called, new or (made.name if made else ""), make)
        for left, right in {**other, **({real.name: new} if new else {})}.items():
            code = re.sub(rf"(#.*?)\b{re.escape(left)}\b", rf"\g<1>{right}", code)
        if code == lesson.solution:
            return []
        task = f"{prefix}/{domain}/{number}"
        prompt = re.sub(rf"\b{re.escape(real.name)}\b", new, lesson.prompt) if new else lesson.prompt
        found.append(Made(Trajectory(
            trajectory_id=config.digest([task, code])[:16], task_id=task, benchmark="api_updates",
            prompt=prompt, attempts=(Attempt(code=code, outcome=Outcome.PASSED),), solution=code,
            category=real.package, domain=domain, source=f"{lesson.task_id}, renamed",
        ), None))  # fmt: skip
    return found


def _parameters(function: str) -> set[str]:
    """Names of the old function's arguments, as far as Python tells them."""
    module, _, name = function.rpartition(".")
    try:
        return set(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
    except (ValueError, TypeError):
        return set()


def _with_sentence(prompt: str, said: str) -> str:
    """After what is asked, before the signature or the first test."""
    for mark in ("\n\nThe function's signature:", "\nassert "):
        if mark in prompt:
            left, found, right = prompt.partition(mark)
            return f"{left}\n{said}{found}{right}"
    return f"{prompt.rstrip()}\n{said}\n"


def groups(sources: Iterable[Source]) -> dict[str, list[Source]]:
    """Library function → the programs that call it, those of four or more."""
    found: dict[str, list[Source]] = defaultdict(list)
    for source in sources:
        if len(source.code) <= LONGEST:
            for function in functions(source.code):
                found[function].append(source)
    return {f: some for f, some in sorted(found.items()) if len({s.name for s in some}) >= TASKS}


def updates_of(rng: random.Random, groups: dict[str, list[Source]], count: int, prefix: str) -> list[list[Made]]:
    """Updates in turn over the functions until there are `count`, or none gives more."""
    names, found, per = sorted(groups), [], defaultdict(int)
    for _ in range(60):
        rng.shuffle(names)
        for function in names:
            # a group of four programs gives few updates that differ, a large one many
            if per[function] >= min(A_FUNCTION, 2 * len(groups[function])):
                continue
            if made := update(rng, function, groups[function], prefix):
                per[function] += 1
                found.append(made)
            if len(found) == count:
                return found
    return found
