"""Mutate and repair: break a right program, run it, keep what really fails, with the error it really gave.

A mutant differs from the reference in one place (two for the second attempt of a chain), so that the correction
is small and the failure is the program's own. Mutants that pass, or that fail like another mutant of the same
task already did, are dropped. The result reads like a recorded session: one or two failures, then the reference.
"""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rune import prompts
from rune.benchmarks.scorers import judging
from rune.benchmarks.scorers.judging import Item
from rune.config import derive_seed, digest
from rune.types import Attempt, Execution, Outcome, Problem, Sandbox, Trajectory

SOURCE = "mutate-and-repair"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is made of one reference program."""

    seed: int
    mutants: int = 12  # programs tried per task
    per_task: int = 1  # trajectories kept per task
    failures: int = 2  # failing attempts before the reference, at most
    error_chars: int = 1000  # error text kept of an attempt


class Mutant(NamedTuple):
    """A broken program and the name of what was done to it."""

    kind: str
    code: str


def trajectories(
    problems: Sequence[Problem], settings: Settings, *, sandbox: Sandbox, wave: int = 64
) -> Iterator[Trajectory]:
    """Trajectories for every problem with a reference, `wave` problems judged at a time, in order.

    Raises SandboxError. A reference that does not pass its own test gives nothing: it has no right ending.
    """
    for start in range(0, len(problems), wave):
        part = [p for p in problems[start : start + wave] if p.reference]
        mutants = {p.task_id: list(mutate(p.reference, settings.mutants, seed=_seed(settings, p))) for p in part}
        items = [Item(f"{p.task_id}#reference", p, p.reference) for p in part]
        items += [Item(f"{p.task_id}#{i}", p, m.code) for p in part for i, m in enumerate(mutants[p.task_id])]
        found = {e.key: e for e in judging.judge(sandbox, items)}
        for problem in part:
            if found[f"{problem.task_id}#reference"].outcome is Outcome.PASSED:
                yield from _assemble(problem, mutants[problem.task_id], found, settings)


def _assemble(
    problem: Problem, mutants: Sequence[Mutant], found: dict[str, Execution], settings: Settings
) -> Iterator[Trajectory]:
    failures: list[Attempt] = []
    said: set[tuple[str, str]] = set()
    for number, mutant in enumerate(mutants):
        execution = found[f"{problem.task_id}#{number}"]
        signature = (execution.label, execution.error)
        if execution.outcome is Outcome.PASSED or signature in said:
            continue
        said.add(signature)
        failures.append(
            Attempt(
                code=mutant.code,
                outcome=execution.outcome,
                error_kind=execution.label,
                error=prompts.truncate(execution.error, settings.error_chars),
            )
        )
    ending = Attempt(code=problem.reference, outcome=Outcome.PASSED)
    rng = random.Random(_seed(settings, problem))
    failures = _interleaved(failures, rng)
    start = 0
    for _ in range(settings.per_task):
        # Between one and `failures` of them, so that a corpus holds chains of different lengths.
        chosen = failures[start : start + rng.randint(1, settings.failures)]
        if not chosen:
            return
        start += len(chosen)
        attempts = (*chosen, ending)
        yield Trajectory(
            trajectory_id=digest([problem.task_id, SOURCE, attempts])[:16],
            task_id=problem.task_id,
            benchmark=problem.benchmark,
            prompt=problem.prompt,
            attempts=attempts,
            solution=problem.reference,
            category=problem.category,
            domain=problem.domain,
            source=SOURCE,
            answer=problem.scorer.answer,
        )


def _interleaved(failures: Sequence[Attempt], rng: random.Random) -> list[Attempt]:
    """One of each error kind in turn: most mutants give a wrong answer, and a corpus of those alone is one-sided."""
    kinds: dict[str, list[Attempt]] = {}
    for attempt in failures:
        kinds.setdefault(attempt.error_kind, []).append(attempt)
    queues = list(kinds.values())
    rng.shuffle(queues)
    return [queue[i] for i in range(max(map(len, queues), default=0)) for queue in queues if i < len(queue)]


def _seed(settings: Settings, problem: Problem) -> int:
    return derive_seed(settings.seed, SOURCE, problem.task_id)


# --------------------------------------------------------------------------- mutation


def mutate(code: str, count: int, *, seed: int) -> Iterator[Mutant]:
    """Up to `count` different programs, each one edit away from `code`, kinds taken in turn, by a seeded order."""
    tree = ast.parse(code)
    original = ast.unparse(tree)
    rng = random.Random(seed)
    queues: dict[str, list[tuple[int, Edit]]] = {}
    for index, node in enumerate(ast.walk(tree)):
        for kind, edit in _edits(node):
            queues.setdefault(kind, []).append((index, edit))
    for queue in queues.values():
        rng.shuffle(queue)
    kinds = sorted(queues)
    rng.shuffle(kinds)
    seen = {original}
    made = 0
    while made < count and any(queues.values()):
        for kind in kinds:
            if made < count and queues[kind]:
                index, edit = queues[kind].pop()
                broken = _apply(tree, index, edit)
                if broken and broken not in seen:
                    seen.add(broken)
                    made += 1
                    yield Mutant(kind, broken)
    if made < count:
        yield Mutant("syntax", _without_colon(original))


Edit = Callable[[ast.AST], None]


def _apply(tree: ast.Module, index: int, edit: Edit) -> str:
    """The program with one edit. "" if the result is no program (an emptied block, say)."""
    changed = copy.deepcopy(tree)
    node = next(n for i, n in enumerate(ast.walk(changed)) if i == index)
    edit(node)
    try:
        text = ast.unparse(ast.fix_missing_locations(changed))
        ast.parse(text)
    except (SyntaxError, ValueError, AttributeError):
        return ""
    return text + "\n"


_SWAPS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt,),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt,),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Add,),
    ast.FloorDiv: (ast.Div,),
    ast.Div: (ast.FloorDiv,),
    ast.Mod: (ast.FloorDiv,),
}
_CALLS = {"min": "max", "max": "min", "sorted": "list", "any": "all", "all": "any", "set": "list", "range": "reversed"}
_METHODS = {
    "append": "add",
    "lower": "upper",
    "upper": "lower",
    "add": "append",
    "items": "keys",
    "startswith": "endswith",
}


def _edits(node: ast.AST) -> Iterator[tuple[str, Edit]]:
    """(kind, edit) of everything that can go wrong at one node."""
    if isinstance(node, ast.Compare):
        for new in _SWAPS.get(type(node.ops[0]), ()):
            yield "condition", _set_first_op(new)
    if isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)):
        kind = "condition" if isinstance(node, ast.BoolOp) else "operator"
        for new in _SWAPS.get(type(node.op), ()):
            yield kind, _set("op", new)
    if isinstance(node, ast.Constant) and type(node.value) is int and abs(node.value) < 1000:
        for step in (1, -1):
            yield "off by one", _set_value(node.value + step)
    if isinstance(node, ast.Return) and node.value is not None:
        yield "return", _drop_return
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS:
        yield "call", _rename_call(_CALLS[node.func.id])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _METHODS:
        yield "call", _rename_method(_METHODS[node.func.attr])
    if isinstance(node, ast.If):
        yield "condition", _negate
    if isinstance(node, (ast.For, ast.While, ast.If, ast.FunctionDef)):
        for position, statement in enumerate(node.body):
            if isinstance(statement, (ast.Assign, ast.AugAssign, ast.If)) and len(node.body) > 1:
                yield "missing statement", _delete(position)
    if isinstance(node, ast.Module) and any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in node.body):
        yield "import", _drop_imports


def _set_first_op(new: type[ast.AST]) -> Edit:
    def edit(node: ast.AST) -> None:
        assert isinstance(node, ast.Compare)
        node.ops = [new(), *node.ops[1:]]  # type: ignore[list-item]

    return edit


def _set(name: str, new: type[ast.AST]) -> Edit:
    return lambda node: setattr(node, name, new())


def _set_value(value: int) -> Edit:
    return lambda node: setattr(node, "value", value)


def _rename_call(name: str) -> Edit:
    return lambda node: setattr(node, "func", ast.Name(name, ast.Load()))


def _rename_method(name: str) -> Edit:
    def edit(node: ast.AST) -> None:
        assert isinstance(node, ast.Call)
        assert isinstance(node.func, ast.Attribute)
        node.func.attr = name

    return edit


def _drop_return(node: ast.AST) -> None:
    assert isinstance(node, ast.Return)
    node.value = None


def _negate(node: ast.AST) -> None:
    assert isinstance(node, ast.If)
    node.test = ast.UnaryOp(ast.Not(), node.test)


def _delete(position: int) -> Edit:
    def edit(node: ast.AST) -> None:
        node.body.pop(position)  # type: ignore[attr-defined]

    return edit


def _drop_imports(node: ast.AST) -> None:
    assert isinstance(node, ast.Module)
    node.body = [n for n in node.body if not isinstance(n, (ast.Import, ast.ImportFrom))]


def _without_colon(code: str) -> str:
    """The commonest slip there is."""
    return code.replace(":\n", "\n", 1) + "\n"
