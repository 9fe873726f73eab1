"""Counts if, with the answer's edits, the tests pass that failed before (FAIL_TO_PASS) and those that passed still do.

What SWE-bench counts (Jimenez et al. 2024, arXiv 2310.06770), run here without Docker: the files of a commit, the edits
and the tests in a folder of the sandbox, the repository's own test command, no network. Where a task does not say
which tests must pass, they are found by running the command without edits. Tests may not be edited: an answer that
tries has failed. What is not covered: the tests share a process with the code, so an answer could forge their report.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rune import editing
from rune.benchmarks.formats import checkout
from rune.benchmarks.scorers import swebench
from rune.benchmarks.scorers.judging import Check, Item, Trial
from rune.errors import DataError, SandboxError
from rune.models import resolve
from rune.types import Command, Execution, FailureKind, Finished, Outcome, Problem, Sandbox

SHOWN = 3000  # characters of a command's output that stand in a message to the model
WHOLE = "the test command"  # the name of the only test, where the command's output names none


@dataclass(frozen=True, kw_only=True)
class Task:
    """`Problem.test` of a repository's task, as JSON."""

    repository: str  # a folder with a git repository
    commit: str
    command: str  # as a shell would read it; no shell reads it
    fail_to_pass: tuple[str, ...] = ()  # (): those that fail without edits
    pass_to_pass: tuple[str, ...] = ()  # (): those that pass without edits
    tests: Mapping[str, str] = field(default_factory=dict)  # path → text of tests that the commit does not hold yet
    python: str = ""
    seconds: float = 120.0
    instance: Mapping[str, Any] = field(default_factory=dict)  # judged by the swebench package; {}: here

    @property
    def name(self) -> str:
        return f"{Path(self.repository).name}@{self.commit[:10]}"

    @functools.cached_property
    def archive(self) -> Path:
        return checkout.archive(Path(self.repository), self.commit, resolve.default_cache())

    @functools.cached_property
    def files(self) -> dict[str, str]:
        return checkout.files(self.archive)

    def run(self, key: str, changed: Mapping[str, str]) -> Command:
        return Command(
            key=key,
            argv=tuple(shlex.split(self.command)),
            archive=str(self.archive),
            files={**changed, **self.tests},
            python=self.python,
            seconds=self.seconds,
        )


def written(task: Task) -> str:
    """A task as `Problem.test` holds it."""
    return json.dumps({name: getattr(task, name) for name in Task.__dataclass_fields__}, sort_keys=True)


@functools.lru_cache(maxsize=64)
def read(text: str) -> Task:
    """The way back. Raises DataError."""
    try:
        raw = json.loads(text)
        return Task(**{**raw, **{k: tuple(raw[k]) for k in ("fail_to_pass", "pass_to_pass")}})
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"field 'test' is no task of a repository: {error}") from None


# --------------------------------------------------------------------------- which tests there are, and how they ended

_PYTEST = re.compile(
    r"^(PASSED|FAILED|ERROR|XFAIL|XPASS) ([^\s\[(][^\s\[]*(?:\[.*?\](?= - |$))?)(?: - .*)?$", re.MULTILINE
)
_UNITTEST = re.compile(r"^(test\w*) \(([\w.]+)\)(?:\n.*?)? \.\.\. (ok|FAIL|ERROR|expected failure)$", re.MULTILINE)
_GOOD = ("PASSED", "XFAIL", "ok", "expected failure")
_NOTHING = re.compile(
    r"^(?:=+ )?(?:no tests ran|collected 0 items|Ran 0 tests|NO TESTS RAN)|no tests collected", re.MULTILINE
)
_NETWORK = re.compile(
    r"Temporary failure in name resolution|Name or service not known|Network is unreachable|nodename nor servname"
    r"|Could not resolve host|Failed to establish a new connection"
)
_MISSING = re.compile(r"(?:ModuleNotFoundError|ImportError): (No module named .*|cannot import name .*)")


def results(finished: Finished) -> dict[str, bool]:
    """Test → whether it passed, from what pytest (with -rA) or unittest (with -v) printed; else the whole command."""
    found = {m[2]: m[1] in _GOOD for m in _PYTEST.finditer(finished.output)}
    if not found:
        found = {_unittest(m): m[3] in _GOOD for m in _UNITTEST.finditer(finished.output)}
    return found or {WHOLE: finished.code == 0}


def _unittest(match: re.Match[str]) -> str:
    """One name whatever the version of Python: since 3.11 the method stands in the brackets too."""
    name, place = match[1], match[2]
    return f"{name} ({place.removesuffix(f'.{name}')})"


@dataclass(frozen=True)
class Baseline:
    """A repository without edits."""

    failing: tuple[str, ...]
    passing: tuple[str, ...]


_KNOWN: dict[str, Baseline] = {}  # by `Problem.test`: a loop asks for the same one at every attempt


def baseline(sandbox: Sandbox, problem: Problem) -> Baseline:
    """Which of its tests must pass with an answer, and which must stay so.

    Raises DataError for a repository without tests, a command that needs the network or a package that is not there,
    and where nothing fails that could be mended.
    """
    if problem.test not in _KNOWN:
        _KNOWN[problem.test] = _baseline(sandbox, read(problem.test))
    return _KNOWN[problem.test]


def _baseline(sandbox: Sandbox, task: Task) -> Baseline:
    (finished,) = sandbox.run([task.run(task.name, {})])
    where = f"{task.name}: `{task.command}`"
    if finished.timed_out:
        raise DataError(f"{where} does not end within {task.seconds:g} s; name fewer tests, or raise seconds")
    if finished.code in (126, 127):
        raise DataError(f"{where} cannot be started: {_last(finished.output)}; name the program that runs its tests")
    found = results(finished)
    named = [*task.fail_to_pass, *task.pass_to_pass]
    if _NOTHING.search(finished.output) or (finished.code == 5 and found == {WHOLE: False}):
        raise DataError(f"{where} finds no tests; give a repository with tests, or the command that runs them")
    if match := _NETWORK.search(finished.output):
        raise DataError(f"{where} needs the network ({match[0]}), and there is none; name a command that runs offline")
    if match := _MISSING.search(finished.output):
        raise DataError(
            f"{where} cannot run here: {match[1]}; install it for {task.python or 'this Python'}, or name an "
            "interpreter that has it: benchmark.settings.python"
        )
    if finished.code and found == {WHOLE: False} and _is_pytest(task) and finished.code != 1:
        raise DataError(f"{where} cannot run here (exit code {finished.code}): {_last(finished.output)}")
    failing = tuple(task.fail_to_pass or (name for name, passed in found.items() if not passed))
    kept = (name for name, passed in found.items() if passed and name not in failing)
    passing = tuple(task.pass_to_pass or (() if task.fail_to_pass else kept))
    if not [name for name in failing if not found.get(name, False)]:
        what = "the tests that must fail" if task.fail_to_pass else f"all {len(found)} tests"
        raise DataError(
            f"{where}: nothing is to be mended: {what} pass without any edit; name another commit, or add the failing "
            "test"
        )
    if broken := [name for name in named if name in task.pass_to_pass and found.get(name) is False]:
        raise DataError(f"{where}: {broken[0]} fails without any edit, and is said to pass; leave it out")
    return Baseline(failing, passing)


def _is_pytest(task: Task) -> bool:
    return "pytest" in task.command


def _last(output: str) -> str:
    return next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "it said nothing")[:300]


# --------------------------------------------------------------------------- judging


def is_test(path: str) -> bool:
    """Whether a file is one of the tests, or decides how they run."""
    *folders, name = path.lower().split("/")
    return (
        bool({"test", "tests", "testing"} & set(folders))
        or name.startswith(("test_", "conftest."))
        or name.endswith("_test.py")
        or name in ("pytest.ini", "tox.ini", "setup.cfg", "pyproject.toml", "sitecustomize.py", "usercustomize.py")
    )


def judge(sandbox: Sandbox, items: Iterable[Item]) -> Iterator[Execution]:
    """Edits are checked, then the tests run with them. Raises SandboxError, and DataError as `baseline` does."""
    waiting: dict[str, tuple[Task, Baseline]] = {}
    commands = []
    demand(sandbox)
    for item in items:
        task = read(item.problem.test)
        before = Baseline((), ()) if task.instance else baseline(sandbox, item.problem)
        try:
            edits = editing.parse(item.code)
            if touched := next((e.path for e in edits if is_test(e.path) or e.path in task.tests), None):
                raise editing.BadEdit(f"{touched} is one of the tests or decides how they run; edit the code instead")
            changed = editing.apply(edits, task.files)
        except editing.BadEdit as error:
            yield Execution(key=item.key, outcome=Outcome.FAILED, error_kind=FailureKind.BAD_EDIT, error=str(error))
            continue
        if task.instance:
            yield swebench.judge(item.key, task.instance, editing.patch(task.files, changed))
            continue
        waiting[item.key] = task, before
        commands.append(task.run(item.key, changed))
    for finished in sandbox.run(commands) if commands else ():
        yield _verdict(finished, *waiting[finished.key])


def _verdict(finished: Finished, task: Task, before: Baseline) -> Execution:
    ended = Execution(key=finished.key, outcome=Outcome.PASSED, wall_seconds=finished.wall_seconds)
    if finished.timed_out:
        error = f"the tests did not end within {task.seconds:g} s"
        return replace(ended, outcome=Outcome.TIMED_OUT, error_kind=FailureKind.TIMEOUT, error=error, settled=False)
    found = results(finished)
    failing = [name for name in before.failing if not found.get(name, False)]
    broken = [name for name in before.passing if not found.get(name, False)]
    if not failing and not broken:
        return ended
    lines = [f"still failing: {', '.join(failing[:5])}"] if failing else []
    lines += [f"failing now, and not before: {', '.join(broken[:5])}"] if broken else []
    text = "\n".join([*lines, "", finished.output[-SHOWN:].strip()])
    return replace(ended, outcome=Outcome.FAILED, error_kind=FailureKind.WRONG_ANSWER, error=text)


STUBS = {
    "no edit": "",
    "half a block": "a.py\n<<<<<<< SEARCH\n",
    "an edit outside": "../a.py\n<<<<<<< SEARCH\n=======\nx = 1\n>>>>>>> REPLACE",
}


def trials(problem: Problem, *, forged: bool) -> Iterator[Trial]:
    """The reference passes if there is one; what is no edit, one outside and one of the tests fail."""
    if problem.reference:
        yield Trial("reference edits", problem, problem.reference, True)
    for what, text in STUBS.items():
        yield Trial(f"stub '{what}'", problem, text, False)
    if forged:
        made = "conftest.py\n<<<<<<< SEARCH\n=======\ncollect_ignore_glob = ['*']\n>>>>>>> REPLACE"
        yield Trial("forgery 'tests that are not collected'", problem, made, False)


def checks(key: str, code: str, problem: Problem) -> tuple[Check, ...]:
    """None: no other path here runs a repository's tests."""
    return ()


def demand(sandbox: Sandbox) -> None:
    """Raises SandboxError for a sandbox that runs no commands."""
    if not hasattr(sandbox, "run"):
        raise SandboxError(
            "this sandbox runs programs alone, and a repository's tests are commands; use score.backend=fork"
        )
