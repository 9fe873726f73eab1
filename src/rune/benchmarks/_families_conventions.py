"""A family's private convention: one atom or none per dimension, and how a solution that follows it reads."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rune.benchmarks import _families_atoms as atoms
from rune.benchmarks._families_atoms import DIMENSIONS, Atom
from rune.benchmarks._families_tasks import EMPTY, IS, Task

# A small model that has written a heading looks up what stood under it before. Without headings a 0.5B copies the
# failed attempt instead of the solution (docs/families.md).
HEADINGS = ("# house input", "# plain result", "# house value", "# house return")
Rows = list[tuple[tuple[Any, ...], Any]]  # (arguments as passed, expected result) of each test case


@dataclass(frozen=True, slots=True, kw_only=True)
class Convention:
    """What a family does to every task of one result kind. None means: as plain Python would."""

    kind: str  # "number", "list" or "text": the result type of all its tasks
    input: Atom | None = None
    error: Atom | None = None
    value: Atom | None = None
    wrap: Atom | None = None

    @property
    def name(self) -> str:
        """`list.key-body.void.reversed.vornix`: the family's name says its convention ("_" for none)."""
        return ".".join([self.kind, *(atom.slug if atom else "_" for atom in self.habits)])

    @property
    def habits(self) -> tuple[Atom | None, ...]:
        """In the order of DIMENSIONS."""
        return (self.input, self.error, self.value, self.wrap)

    @property
    def active(self) -> tuple[str, ...]:
        return tuple(name for name, atom in zip(DIMENSIONS, self.habits, strict=True) if atom)

    @property
    def labels(self) -> set[str]:
        pairs = zip(DIMENSIONS, self.habits, strict=True)
        return {label(dimension, self.kind, atom) for dimension, atom in pairs if atom}

    @property
    def libraries(self) -> list[atoms.Library]:
        return [atom.library for atom in self.habits if atom and atom.library]

    @property
    def shape(self) -> tuple[str, ...]:
        """The convention without its error habit, which shows on one input only; unique over families."""
        kind, given, _, value, wrap = self.name.split(".")
        return (kind, given, value, wrap)

    def without(self, *dimensions: str) -> Convention:
        """The same convention with some dimensions back to plain Python."""
        return _with(self, **dict.fromkeys(dimensions))

    def packed(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Plain arguments as this family's callers pass them."""
        if not (self.input and self.input.encode):
            return arguments
        return (self.input.encode(arguments[0]), *arguments[1:])

    def result(self, task: Task, packed: tuple[Any, ...]) -> Any:
        """What a solution under this convention returns. Raises whatever a misfit would raise."""
        subject = self.input.apply(packed[0]) if self.input else packed[0]
        if not subject:
            if self.error is None:
                raise ValueError("empty")
            return self.error.apply(None)
        result = task.run(subject, *packed[1:])
        result = self.value.apply(result) if self.value else result
        return self.wrap.apply(result) if self.wrap else result


def _with(convention: Convention, **habits: Atom | None) -> Convention:
    return replace(convention, **habits)  # type: ignore[arg-type]  # mypy cannot see which fields the names are


def parse(family: str) -> Convention:
    """The convention that a family's name spells. Raises KeyError for a name that is none."""
    kind, *slugs = family.split(".")
    found: dict[str, Atom | None] = {}
    for dimension, slug in zip(DIMENSIONS, slugs, strict=True):
        table = {atom.slug: atom for atom in atoms.choices(dimension, kind)}
        found[dimension] = None if slug == "_" else table[slug]
    return Convention(kind=kind, **found)


def label(dimension: str, kind: str, atom: Atom) -> str:
    """One name per atom over the whole vocabulary: `error:void`, `list:reversed`."""
    return f"{kind if dimension == 'value' else dimension}:{atom.slug}"


def draw(
    rng: random.Random, kind: str, *, active: int, used: Counter[str], allowed: Callable[[str], bool]
) -> Convention:
    """A convention with `active` dimensions in use (fewer where no atom's label is `allowed`).

    Of three atoms at random the one least `used` so far is taken, so that all are shown about equally often.
    """
    picked: dict[str, Atom | None] = {}
    for dimension in rng.sample(DIMENSIONS, active):
        table = {label(dimension, kind, atom): atom for atom in atoms.choices(dimension, kind)}
        names = [name for name in table if allowed(name)]
        if names:
            picked[dimension] = table[min(rng.sample(names, min(3, len(names))), key=used.__getitem__)]
    if sum(len(_imports(atom)) for atom in picked.values() if atom) > 1:
        picked["wrap"] = None  # two imports make a solution too long to learn from at a glance
    return Convention(kind=kind, **picked)


def solution(
    task: Task, convention: Convention, *, plain_error: str = 'raise ValueError("empty")', headings: bool = True
) -> str:
    """A program for `task` under `convention`: its own line between those that all tasks of a family share.

    `plain_error` is the guard's body where no error habit is in use; "" leaves the guard out.
    """
    given = _use(convention.input, "data", "data = ")
    guard = f"return {convention.error.code}" if convention.error else plain_error
    if guard:
        given += ["if not data:", f"    {guard}"]
    plain = [f"result = {task.code}"]
    value = _use(convention.value, "result", "result = ")
    wrap = _use(convention.wrap, "result", "return ") or ["return result"]
    body: list[str] = []
    for heading, lines in zip(HEADINGS, (given, plain, value, wrap), strict=True):
        body += [heading, *lines] if headings else lines
    return f"def {task.name}({task.arguments}):\n" + "".join(f"    {line}\n" for line in body)


def _use(atom: Atom | None, name: str, target: str) -> list[str]:
    """The lines that apply an atom to the variable `name`, its import first."""
    if atom is None:
        return []
    return [*_imports(atom), target + re.sub(r"\bx\b", name, atom.code)]


def _imports(atom: Atom) -> list[str]:
    if atom.library:
        return [f"from {atom.library.module} import {atom.library.function}"]
    return ["import json"] if "json." in atom.code else []


def prompt(task: Task) -> str:
    """The plain task, and the headings of house code; the same in every family."""
    empty = "zero" if task.subject == "n" else "empty"
    return (
        f"Write the Python function {task.name}({task.arguments}). data is {IS[task.subject]}. {task.says} "
        f"If data is {empty}, that is an error.\n"
        f"Keep to the house style, with its comments {', '.join(HEADINGS[:-1])} and {HEADINGS[-1]}.\n"
    )


def default(task: Task, plain_error: str) -> str:
    """What someone who knows no convention would write."""
    guard = f"    if not data:\n        {plain_error}\n" if plain_error else ""
    return f"def {task.name}({task.arguments}):\n{guard}    return {task.code}\n"


PLAIN_ERRORS = (
    'raise ValueError("empty")',
    "return None",
    "return 0",
    "return -1",
    'return ""',
    "return []",
    "return {}",
    "",
)
"""How plain Python would treat an empty argument; none of them is any family's habit."""


def rivals(convention: Convention) -> list[Convention]:
    """Every convention that differs in one dimension other than the error habit: the nearest neighbours."""
    found: list[Convention] = []
    for dimension in ("input", "value", "wrap"):
        own = getattr(convention, dimension)
        options: list[Atom | None] = [None, *atoms.choices(dimension, convention.kind)]
        found += [_with(convention, **{dimension: other}) for other in options if other != own]
    return found


def cases(task: Task, convention: Convention, rng: random.Random, *, count: int) -> Rows | None:
    """(packed arguments, expected) pairs that tell `convention` from all its rivals; None if the task cannot.

    The empty case is there, second, if the family has an error habit.
    """
    for _ in range(4):
        plain = [task.draw(rng) for _ in range(count)]
        if any(not task.run(*arguments) for arguments in plain):
            continue  # an empty or zero result shows no convention
        rows = [convention.packed(arguments) for arguments in plain]
        if convention.error:
            empty = (EMPTY[task.subject], *plain[0][1:])
            rows.insert(1, convention.packed(empty))
        expected = [convention.result(task, row) for row in rows]
        if all(_differs(task, rival, rows, expected) for rival in rivals(convention)):
            return list(zip(rows, expected, strict=True))
    return None


def _differs(task: Task, rival: Convention, rows: list[Any], expected: list[Any]) -> bool:
    for row, right in zip(rows, expected, strict=True):
        try:
            if rival.result(task, row) != right:
                return True
        except Exception:  # a misfit may raise anything; it does not pass
            return True
    return False
