"""What benchmarks of API updates share: installing an update in the box, judging with it and without it, documentation.

An *update* changes one function of a library. A program counts as having used it (UPass, Liu et al. 2024) if its tests
pass with the update installed and do not pass without it: many of the tasks can also be solved by hand.

A problem's prelude holds the update; `without` takes it out again. The prelude acts in the box alone: the judge's own
process, which also executes preludes, says `__name__ == "__test__"` and must keep its modules as they are.
"""

from __future__ import annotations

import importlib
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

from rune.types import Execution, Outcome, Problem, Program, Sandbox

BENCHMARKS = ("code_update_arena", "api_updates")  # whose domains are named by `domain`


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One change of one function; `domain` names it in problems and trajectories."""

    domain: str  # "statistics.mean:new-argument:limit": function, kind, what tells it from others
    function: str  # dotted path, "statistics.mean"
    setup: str  # source that runs first: imports, the old function under another name
    implementation: str  # source that defines the function of that name
    name: str  # what the implementation calls it: another name where the update renames
    signature: str
    documentation: str

    @property
    def package(self) -> str:
        return self.function.partition(".")[0]

    def text(self) -> str:
        """The update as a changelog shows it."""
        return f"{self.signature}\n{self.documentation}".strip()


def domain(function: str, kind: str, detail: str) -> str:
    return f"{function}:{kind}:{detail}"


def function_of(benchmark: str, name: str) -> str:
    """The function that a domain's name begins with; "" for benchmarks whose domains are no updates."""
    return name.partition(":")[0] if benchmark in BENCHMARKS else ""


# --------------------------------------------------------------------------- installing

_ONLY_THERE = "if __name__ != '__test__':\n"
_BEGIN, _END = "# Here the update begins.\n", "# Here the update ends.\n"


def prelude(update: Update, *, before: str = "", after: str = "") -> str:
    """A problem's prelude: `before` and `after` run with and without the update, in the program's own namespace."""
    parts = [before, f"{_BEGIN}{_install(update)}{_END}", after]
    return _ONLY_THERE + "".join(textwrap.indent(part, "    ") for part in parts if part)


def without(problem: Problem) -> Problem:
    """The same problem in an environment without the update."""
    before, _, rest = problem.prelude.partition(textwrap.indent(_BEGIN, "    "))
    after = rest.partition(textwrap.indent(_END, "    "))[2]
    return replace(problem, prelude=f"{before}{after}    pass\n")


def _install(update: Update) -> str:
    """Source that installs the update in the process that runs it, its names kept out of the program's."""
    module = update.function.rpartition(".")[0]
    return (
        "_scope = {'__name__': 'update'}\n"
        f"exec({update.setup!r}, _scope)\n"
        f"exec({update.implementation!r}, _scope)\n"
        "import importlib as _importlib\n"
        f"setattr(_importlib.import_module({module!r}), {update.name!r}, _scope[{update.name!r}])\n"
        f"UPDATED = {{{update.name!r}: _scope[{update.name!r}]}}\n"
        "del _scope, _importlib\n"
    )


@contextmanager
def restored(functions: Iterable[str]) -> Iterator[None]:
    """What is installed inside is gone outside: for our own programs, which run in this process."""
    places = [(importlib.import_module(path.rpartition(".")[0]), path.rpartition(".")[2]) for path in functions]
    before = [dict(vars(module)) for module, _ in places]
    try:
        yield
    finally:
        for (module, _), kept in zip(places, before, strict=True):
            for name in set(vars(module)) - set(kept):
                delattr(module, name)
            vars(module).update(kept)


# --------------------------------------------------------------------------- judging


class Graded(NamedTuple):
    """One program in both environments."""

    key: str
    used: bool  # UPass: passed with the update and did not pass without it
    plain: Execution  # with the update
    without: Execution | None  # only run where `plain` passed


def judge(sandbox: Sandbox, programs: Iterable[tuple[str, Problem, str]]) -> Iterator[Graded]:
    """(key, problem, code) → verdicts, in any order. The second run is made only for what passed the first."""
    items = {key: (problem, code) for key, problem, code in programs}
    passed: dict[str, Execution] = {}
    for found in sandbox.judge(program(key, problem, code) for key, (problem, code) in items.items()):
        if found.outcome is Outcome.PASSED:
            passed[found.key] = found
        else:
            yield Graded(found.key, False, found, None)
    again = (program(key, without(items[key][0]), items[key][1]) for key in passed)
    for found in sandbox.judge(again):
        yield Graded(found.key, found.outcome is not Outcome.PASSED, passed[found.key], found)


def program(key: str, problem: Problem, code: str) -> Program:
    return Program(key=key, code=code, test=problem.test, entry_point=problem.entry_point, prelude=problem.prelude)
