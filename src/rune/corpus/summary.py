"""What a corpus is made of: categories, failure modes, corrections; and a warning where one kind dominates.

A *failure mode* is counted per failed attempt: syntax, wrong answer, timeout, or the exception's name. A
*correction* is counted per solved trajectory with a failure: what changed between the last failing program and
the passing one, by comparing their syntax trees node by node.
"""

from __future__ import annotations

import ast
import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rune import console
from rune.types import Attempt, Outcome, Trajectory

DOMINANT = 0.6  # share above which one kind makes a corpus one-sided
WANTED = range(50, 101)  # trajectories, as Phase 1 specifies
REWRITTEN = 0.5  # similarity of the two trees' node sequences below which nothing was "changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A corpus in numbers; JSON-ready."""

    trajectories: int
    solved: int
    first_try: int  # solved without a failure: they show no correction
    exhausted: int
    attempts: int
    categories: Mapping[str, int] = field(default_factory=dict)
    sources: Mapping[str, int] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)
    corrections: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def summarise(trajectories: Sequence[Trajectory]) -> Report:
    """Count a corpus. Pure."""
    failed = [a for t in trajectories for a in t.attempts if a.outcome is not Outcome.PASSED]
    corrected = [t for t in trajectories if t.solved and len(t.attempts) > 1]
    report = Report(
        trajectories=len(trajectories),
        solved=sum(t.solved for t in trajectories),
        first_try=sum(t.solved and len(t.attempts) == 1 for t in trajectories),
        exhausted=sum(not t.solved for t in trajectories),
        attempts=sum(len(t.attempts) for t in trajectories),
        categories=_counted(t.category or "none" for t in trajectories),
        sources=_counted(t.source.partition(":")[0] or "unknown" for t in trajectories),
        failures=_counted(failure_mode(a) for a in failed),
        corrections=_counted(correction(t.attempts[-2].code, t.solution) for t in corrected),
    )
    return replace(report, warnings=tuple(_warnings(report)))


def text(report: Report) -> str:
    """The report for a terminal."""
    lines = [
        f"corpus: {report.trajectories} trajectories, {report.solved} solved ({report.first_try} at the first try), "
        f"{report.exhausted} exhausted; {report.attempts} attempts"
    ]
    for title in ("categories", "sources", "failures", "corrections"):
        counts: Mapping[str, int] = getattr(report, title)
        total = sum(counts.values())
        if total:
            rows: list[tuple[object, ...]] = [(k, n, f"{100 * n / total:.0f} %") for k, n in counts.items()]
            lines += ["", console.table(rows, (title, "n", "share"))]
    return "\n".join([*lines, *(f"warning: {w}" for w in report.warnings)])


def failure_mode(attempt: Attempt) -> str:
    """syntax, wrong answer, timeout, or the name of the exception."""
    if attempt.outcome is Outcome.TIMED_OUT:
        return "timeout"
    kind = attempt.error_kind
    if kind in ("SyntaxError", "IndentationError", "TabError"):
        return "syntax"
    return {"WrongAnswer": "wrong answer", "AssertionError": "wrong answer", "Timeout": "timeout"}.get(
        kind, kind or "unknown"
    )


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def _warnings(report: Report) -> list[str]:
    found = []
    if report.trajectories not in WANTED:
        found.append(f"{report.trajectories} trajectories; {WANTED[0]} to {WANTED[-1]} are wanted")
    for title in ("categories", "failures", "corrections"):
        counts: Mapping[str, int] = getattr(report, title)
        total = sum(counts.values())
        if total >= 5:
            name, most = max(counts.items(), key=lambda kv: kv[1])
            if most / total > DOMINANT:
                found.append(f"'{name}' makes up {100 * most / total:.0f} % of {title} ({most} of {total})")
    if report.trajectories and report.exhausted / report.trajectories > DOMINANT:
        found.append(
            f"{report.exhausted} of {report.trajectories} trajectories are exhausted: few corrections to learn"
        )
    return found


# --------------------------------------------------------------------------- corrections


def correction(before: str, after: str) -> str:
    """What turned a failing program into the passing one.

    syntax · unchanged · import · constant · off by one · operator · condition · return · call · name · rewritten ·
    several
    """
    try:
        old, new = ast.parse(before), ast.parse(after)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "syntax"
    if ast.dump(old) == ast.dump(new):
        return "unchanged"
    if _without_imports(old) == _without_imports(new):
        return "import"
    a, b = _leaves(old), _leaves(new)
    if difflib.SequenceMatcher(None, [x for x, _ in a], [x for x, _ in b], autojunk=False).ratio() < REWRITTEN:
        return "rewritten"
    places: set[str] = set()
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    for tag, i, j, k, m in matcher.get_opcodes():
        if tag != "equal":
            places |= _kinds(a[i:j], b[k:m])
    return next(iter(places)) if len(places) == 1 else _most_telling(places)


def _most_telling(places: set[str]) -> str:
    """Several kinds of change in one place (a new condition brings names and constants) are named by the outermost."""
    outer = [p for p in ("condition", "return") if p in places]
    return outer[0] if len(outer) == 1 else "several"


def _kinds(old: list[tuple[str, str]], new: list[tuple[str, str]]) -> set[str]:
    """Kinds of one changed run. A leaf is (what it is, the outermost condition or return it stands in)."""
    if len(old) == len(new) == 1 and old[0][0].startswith("num:") and new[0][0].startswith("num:"):
        return {"off by one" if abs(float(old[0][0][4:]) - float(new[0][0][4:])) == 1 else "constant"}
    if all(x.startswith("op:") for x, _ in [*old, *new]):
        return {"condition" if any(x in _COMPARISONS for x, _ in [*old, *new]) else "operator"}
    # `x` → `x + 1` and back: an operator and a one, nothing else.
    changed = sorted(x for x, _ in [*old, *new])
    if changed in (["num:1", "op:Add"], ["num:1", "op:Sub"]):
        return {"off by one"}
    places = {place for _, place in [*old, *new]}
    if places in ({"condition"}, {"return"}):
        return places
    heads = {x.partition(":")[0] for x, _ in [*old, *new]}
    simple = {"num": "constant", "text": "constant", "name": "name", "attr": "call", "call": "call"}
    return {simple.get(head, "several") for head in heads}


_COMPARISONS = {f"op:{name}" for name in ("Lt", "LtE", "Gt", "GtE", "Eq", "NotEq", "In", "NotIn", "Is", "IsNot", "Not")}
_COMPARISONS |= {"op:And", "op:Or"}


def _leaves(tree: ast.AST) -> list[tuple[str, str]]:
    """The program as a sequence of telling nodes in source order, each with its place."""
    found: list[tuple[str, str]] = []

    def visit(node: ast.AST, place: str) -> None:
        if label := _label(node):
            found.append((label, place))
        for name, value in ast.iter_fields(node):
            inner = place
            if isinstance(node, (ast.If, ast.While, ast.IfExp)) and name == "test":
                inner = place or "condition"
            elif isinstance(node, ast.Return):
                inner = place or "return"
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child, inner)

    visit(tree, "")
    return found


def _label(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        number = isinstance(node.value, (int, float)) and not isinstance(node.value, bool)
        return f"num:{node.value!r}" if number else f"text:{node.value!r}"
    if isinstance(node, ast.Name):
        return f"name:{node.id}"
    if isinstance(node, ast.Attribute):
        return f"attr:{node.attr}"
    if isinstance(node, ast.Call):
        return "call:"
    if isinstance(node, (ast.operator, ast.cmpop, ast.boolop, ast.unaryop)):
        return f"op:{type(node).__name__}"
    if isinstance(node, ast.stmt):
        return f"stmt:{type(node).__name__}"
    return ""


def _without_imports(tree: ast.Module) -> list[str]:
    return [ast.dump(n) for n in tree.body if not isinstance(n, (ast.Import, ast.ImportFrom))]
