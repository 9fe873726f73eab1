"""Libraries that nobody made: real programs in which modules and attributes have other names, as in BeatNum and Monkey.

A *library* is a handful of programs that use one attribute in common, its anchor. Every name that several of them have
after a dot, and most modules that they import, get a new name, the same in all of them; a task is the beginning of such
a program and what follows. Nothing is run: such a module is nowhere. What holds is that the names put back give the
program that somebody wrote, character by character (`restored`).

No program names numpy or pandas, no name that BeatNum or Monkey rename is renamed, and none of their names is given.
"""

from __future__ import annotations

import ast
import builtins
import io
import itertools
import keyword
import random
import re
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from rune import config
from rune.benchmarks import _api_changes
from rune.types import Attempt, Outcome, Trajectory

PROGRAMS = (4, 10)  # of a library, at least and at most
OWN = 3  # tasks of a library that become targets, at most
SIBLINGS = 3
COMMENT = 240  # characters of what a task says
LONGEST = 1200  # characters of a program
CUT = 0.5  # share of tasks that end in the middle of a statement, as those of the benchmarks do
HELD_OUT = re.compile(r"\b(?:numpy|np|pandas|pd|beatnum|bn|monkey|mk)\b", re.IGNORECASE)


class Source(NamedTuple):
    """One function in a program of imports and itself, and what asks for it."""

    name: str
    asked: str  # in plain words
    code: str


class Renamed(NamedTuple):
    """A program of a library."""

    source: Source
    code: str
    names: frozenset[str]  # of its attributes and modules, those that are called otherwise


# --------------------------------------------------------------------------- programs


def sources(programs: Iterable[tuple[str, str, str]]) -> list[Source]:
    """(name, prompt, code) → those that are imports and one function, and that name nothing held out."""
    found = []
    for name, prompt, code in programs:
        if len(code) > LONGEST or HELD_OUT.search(code) or HELD_OUT.search(prompt):
            continue
        try:
            tree = ast.parse(code)
        except SyntaxError:
            continue
        functions = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
        rest = [n for n in tree.body if not isinstance(n, (ast.FunctionDef, ast.Import))]
        if len(functions) != 1 or rest or ast.get_docstring(functions[0]) or functions[0] is not tree.body[-1]:
            continue
        found.append(Source(name, _asked(prompt), code.strip("\n") + "\n"))
    return found


def _asked(prompt: str) -> str:
    """The first sentences of a prompt, in one line."""
    text = prompt.strip().strip('"').strip()
    text = re.split(r"\n\s*assert |\n\n|\nThe function's signature:", text)[0]
    return " ".join(text.split())[:COMMENT]


def attributes(code: str) -> list[str]:
    """Names that stand behind a dot, in order."""
    tokens = list(tokenize.generate_tokens(io.StringIO(code).readline))
    return [
        after.string
        for before, after in itertools.pairwise(tokens)
        if before.string == "." and after.type == tokenize.NAME
    ]


def modules(code: str) -> dict[str, str]:
    """What a program's plain imports bind → the first part of the module's name."""
    found = {}
    for node in ast.parse(code).body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                found[alias.asname or top] = top
    return found


# --------------------------------------------------------------------------- new names


class Names:
    """New names, none of which is forbidden or given twice."""

    def __init__(self, rng: random.Random, forbidden: Iterable[str]) -> None:
        self._rng = rng
        self._taken = {*forbidden, *dir(builtins), *keyword.kwlist, *keyword.softkwlist}

    def draw(self, old: str) -> str:
        """One or two of 2,000 words, or the old name dressed up, as half of BeatNum's are."""
        while True:
            name = self._dressed(old) if self._rng.random() < 0.3 else self._words()
            if old[:1].isupper():
                name = "".join(part.title() for part in name.split("_"))
            if name not in self._taken and name.isidentifier():
                self._taken.add(name)
                return name

    def _words(self) -> str:
        return "_".join(self._rng.sample(_api_changes._words(), self._rng.choice((1, 2, 2))))

    def _dressed(self, old: str) -> str:
        word = self._rng.choice(_api_changes._words())
        return self._rng.choice((f"{old}_{word}", f"{word}_{old}", f"{old}ing", f"do_{old}"))


def renamed(code: str, attribute: Mapping[str, str], module: Mapping[str, str]) -> str:
    """The program with other names: `attribute` behind a dot, `module` where an import or what it binds stands.

    Comments and strings stay. A module's alias, if it has one, is a name of `module` like any other.
    """
    return _replaced(code, attribute, module)


def restored(code: str, attribute: Mapping[str, str], module: Mapping[str, str]) -> str:
    """The opposite."""
    return _replaced(code, {new: old for old, new in attribute.items()}, {new: old for old, new in module.items()})


def _replaced(code: str, attribute: Mapping[str, str], module: Mapping[str, str]) -> str:
    lines = code.splitlines(keepends=True)
    tokens = list(tokenize.generate_tokens(io.StringIO(code).readline))
    for at in range(len(tokens) - 1, -1, -1):
        token = tokens[at]
        if token.type != tokenize.NAME:
            continue
        behind = at > 0 and tokens[at - 1].string == "."
        keyword_argument = at + 1 < len(tokens) and tokens[at + 1].string == "=" and tokens[at - 1].string in "(,"
        new = attribute.get(token.string) if behind else module.get(token.string)
        if new is None or (not behind and keyword_argument):
            continue
        (row, start), (_, end) = token.start, token.end
        line = lines[row - 1]
        lines[row - 1] = line[:start] + new + line[end:]
    return "".join(lines)


# --------------------------------------------------------------------------- libraries


def library(
    rng: random.Random, anchor: str, using: Sequence[Source], forbidden: frozenset[str]
) -> tuple[list[Renamed], dict[str, str]]:
    """Programs that all have `anchor` behind a dot, under new names; and old name → new. [] where they do not fit."""
    some = rng.sample(list(using), min(len(using), rng.randint(*PROGRAMS)))
    uses = Counter(name for s in some for name in set(attributes(s.code)))
    old = [n for n, count in sorted(uses.items()) if (count > 1 or rng.random() < 0.5) and _may_change(n, forbidden)]
    bound = {b: top for s in some for b, top in modules(s.code).items()}
    tops = [t for t in sorted({*bound, *bound.values()}) if _may_change(t, forbidden) and rng.random() < 0.7]
    text = " ".join(s.code for s in some)
    names = Names(rng, {*forbidden, *re.findall(r"\w+", text)})
    attribute, module = {n: names.draw(n) for n in old}, {t: names.draw(t) for t in tops}
    if anchor not in attribute:
        return [], {}
    found = []
    for source in some:
        code = renamed(source.code, attribute, module)
        try:
            ast.parse(code)
        except SyntaxError:
            return [], {}
        if restored(code, attribute, module) != source.code:
            continue  # a name of the program itself is one of a module's
        used = {n for n in attributes(source.code) if n in attribute} | (set(modules(source.code)) & set(module))
        found.append(Renamed(source, code, frozenset(used)))
    return (found, attribute | module) if len(found) >= PROGRAMS[0] else ([], {})


def _may_change(name: str, forbidden: frozenset[str]) -> bool:
    return name not in forbidden and not name.startswith("_") and len(name) > 1


def task(rng: random.Random, made: Renamed, changed: Mapping[str, str]) -> tuple[str, str]:
    """(the beginning of the program that is given, the whole program); the anchor's line is never given."""
    code = made.code
    tree = ast.parse(code)
    function = tree.body[-1]
    assert isinstance(function, ast.FunctionDef)
    lines = code.splitlines(keepends=True)
    first = function.body[0].lineno - 1
    indent = re.match(r"\s*", lines[first])[0]  # type: ignore[index]
    comment = "".join(f"{indent}# {part}\n" for part in _wrapped(made.source.asked))
    if rng.random() < CUT:
        new = {changed[n] for n in made.names}
        fitting = [
            n for n in function.body
            if isinstance(n, (ast.Assign, ast.Return)) and n.value is not None
            and new & set(attributes(ast.get_source_segment(code, n.value) or ""))
            and n.value.lineno == n.lineno and n.value.end_lineno is not None
        ]  # fmt: skip
        if fitting:
            value = rng.choice(fitting).value
            assert value is not None and value.end_lineno is not None and value.end_col_offset is not None
            at, end = _offset(lines, value.lineno, value.col_offset), value.end_lineno
            stop = _offset(lines, end, value.end_col_offset)
            start = sum(map(len, lines[:first]))
            given = code[:start] + comment + code[start:at].rstrip(" ")
            return given, f"{given} {code[at:stop]}\n"
    start = sum(map(len, lines[:first]))
    given = code[:start] + comment
    return given, given + code[start:]


def _wrapped(text: str) -> Iterator[str]:
    words: list[str] = []
    for word in text.split():
        if len(" ".join([*words, word])) > 90:
            yield " ".join(words)
            words = []
        words.append(word)
    yield " ".join(words)


def _offset(lines: Sequence[str], row: int, column: int) -> int:
    """Characters before a place that Python tells in bytes of its line."""
    return sum(map(len, lines[: row - 1])) + len(lines[row - 1].encode()[:column].decode())


class Made(NamedTuple):
    """A task to learn from and the tasks of its library that show most of its names."""

    own: Trajectory
    siblings: tuple[Trajectory, ...]


def libraries(
    rng: random.Random, found: Sequence[Source], count: int, forbidden: Iterable[str], prefix: str
) -> list[list[Made]]:
    """`count` libraries, their anchors in turn over the attributes that enough programs have; or all there are."""
    kept_out = frozenset(forbidden)
    using: dict[str, list[Source]] = defaultdict(list)
    for source in found:
        for name in sorted(set(attributes(source.code))):
            if _may_change(name, kept_out):
                using[name].append(source)
    anchors = sorted(name for name, some in using.items() if len(some) >= PROGRAMS[0])
    made: list[list[Made]] = []
    for _ in range(20):
        rng.shuffle(anchors)
        for anchor in anchors:
            if len(made) == count:
                return made
            programs, changed = library(rng, anchor, using[anchor], kept_out)
            if programs:
                mark = config.digest([anchor, changed, [p.source.name for p in programs]])[:8]
                made.append(_jobs(rng, programs, changed, f"{prefix}:{anchor}.{mark}"))
    return made


def _jobs(rng: random.Random, programs: Sequence[Renamed], changed: Mapping[str, str], domain: str) -> list[Made]:
    texts = [_trajectory(rng, p, changed, domain, n) for n, p in enumerate(programs)]
    found = []
    for at in rng.sample(range(len(programs)), min(OWN, len(programs))):
        own = programs[at].names
        others = [n for n in range(len(programs)) if n != at]
        rng.shuffle(others)
        others.sort(key=lambda n: -len(own & programs[n].names))
        found.append(Made(texts[at], tuple(texts[n] for n in others[:SIBLINGS])))
    return found


def _trajectory(rng: random.Random, made: Renamed, changed: Mapping[str, str], domain: str, number: int) -> Trajectory:
    prompt, code = task(rng, made, changed)
    name = f"{domain}/{number}"
    return Trajectory(
        trajectory_id=config.digest([name, code])[:16], task_id=name, benchmark="libraries", prompt=prompt,
        attempts=(Attempt(code=code, outcome=Outcome.PASSED),), solution=code, category="libraries", domain=domain,
        source=f"{made.source.name}, renamed",
    )  # fmt: skip
