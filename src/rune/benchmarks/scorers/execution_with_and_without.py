"""Counts if the program passes with a change installed and does not pass without it (UPass, Liu et al. 2024).

The change stands in the problem's prelude between two marks (`prelude`); `without` takes it out again. Many tasks can
also be solved by hand: such a program passes in both environments and does not count. The second run is made only for
what passed the first, under the same limits, each run cached by itself. A program that times out without the change
has not passed without it.

Both findings are the sandbox's. What a program can learn in the box is which environment it is in: one that looks for
the change and fails on purpose where it is absent would count. That is not covered; the marks are comments, no name is
there in one environment alone, and a program that brings or replaces what changed passes in both.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import replace

from rune.benchmarks.scorers import execution
from rune.benchmarks.scorers.judging import Check, Item, Trial
from rune.errors import DataError
from rune.types import Execution, FailureKind, Outcome, Problem, Sandbox

# The judge's own process executes preludes too: it says `__name__ == "__test__"` and must keep its modules as they are.
_ONLY_THERE = "if __name__ != '__test__':\n"
_BEGIN, _END = "# Here the change begins.\n", "# Here the change ends.\n"
_INDENT = "    "
NOT_NEEDED = "check: it passes, and it passes as well without what has changed, so it does not use the change"


def prelude(change: str, *, before: str = "", after: str = "") -> str:
    """A problem's prelude that installs `change` (source); `before` and `after` run in both environments.

    All three run in the box alone; the change in a namespace of its own, the others in the program's.
    """
    parts = [before, f"{_BEGIN}exec({change!r}, {{'__name__': 'change'}})\n{_END}", after]
    return _ONLY_THERE + "".join(textwrap.indent(part, _INDENT) for part in parts if part)


def without(problem: Problem) -> Problem:
    """The same problem in an environment without the change. Raises DataError if its prelude installs none."""
    before, _, after = _parts(problem)
    return replace(problem, prelude=f"{before}{after}{_INDENT}pass\n")


def _parts(problem: Problem) -> tuple[str, str, str]:
    """A prelude before, in and after the change."""
    before, begin, rest = problem.prelude.partition(_INDENT + _BEGIN)
    change, end, after = rest.partition(_INDENT + _END)
    if not begin or not end:
        raise DataError(
            f"{problem.task_id}: field 'prelude' installs no change, and {problem.scorer} judges without it; "
            "make the prelude with execution_with_and_without.prelude"
        )
    return before, change, after


def judge(sandbox: Sandbox, items: Iterable[Item]) -> Iterator[Execution]:
    """`passed` counts: with the change and not without it. What passes in both has failed, as `NotNeeded`."""
    waiting = {item.key: item for item in items}
    passed: dict[str, Execution] = {}
    for found in sandbox.judge(execution.program(i.key, i.code, i.problem) for i in waiting.values()):
        if found.outcome is Outcome.PASSED:
            passed[found.key] = found
        else:
            yield found
    again = (execution.program(key, waiting[key].code, without(waiting[key].problem)) for key in passed)
    for bare in sandbox.judge(again):
        found = passed[bare.key]
        both = replace(
            found,
            settled=found.settled and bare.settled,
            cpu_seconds=found.cpu_seconds + bare.cpu_seconds,
            wall_seconds=found.wall_seconds + bare.wall_seconds,
        )
        if bare.outcome is Outcome.PASSED:
            both = replace(both, outcome=Outcome.FAILED, error_kind=FailureKind.NOT_NEEDED, error=NOT_NEEDED)
        yield both


def passes_with(found: Execution) -> bool:
    """Whether it passed with the change, whatever it does without."""
    return found.outcome is Outcome.PASSED or found.error_kind is FailureKind.NOT_NEEDED


CHEATS = {  # {change}: the source that installs it, {reference}: a program that counts
    "its own copy of the change": "{change}\n{reference}",
    "a look at the mark of the change, then its own copy": "UPDATED\n{change}\n{reference}",
    "unit tests of its own": "def run_unit_test(*args):\n    pass\n\ndef {name}(*args, **kwargs):\n    return None\n",
}


def trials(problem: Problem, *, forged: bool) -> Iterator[Trial]:
    """As for execution; besides, programs that bring what changed, and so do not need it."""
    yield from execution.trials(problem, forged=forged)
    if forged and problem.reference:
        change = textwrap.dedent(_parts(problem)[1])
        values = {"change": change, "reference": problem.reference, "name": problem.entry_point}
        for what, text in CHEATS.items():
            yield Trial(f"forgery '{what}'", problem, text.format(**values), False)


def checks(key: str, code: str, problem: Problem) -> tuple[Check, ...]:
    """The same program passes again, and does not pass without the change."""
    there, bare = (execution.program(key, code, p) for p in (problem, without(problem)))
    return Check(there, True), Check(bare, False)
