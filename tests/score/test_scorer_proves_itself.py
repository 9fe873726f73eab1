"""Before a verdict counts, the scorer passes the references, fails stubs and forgeries; else nothing is scored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rune import plugins
from rune.benchmarks.scorers import execution
from rune.errors import SandboxError
from rune.runs import store
from rune.sandbox.judging.verdict_cache import Cached
from rune.stages import score
from rune.stages.context import Context
from rune.types import Execution, FailureKind, Outcome, Problem, Program, Sample, Sandbox, Split, Verdict

PROBLEM = Problem(
    task_id="T/1",
    benchmark="t",
    prompt="def double(x):\n",
    entry_point="double",
    test="def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\n",
    reference="def double(x):\n    return 2 * x\n",
    split=Split.HELD_OUT,
)
LAX = replace(PROBLEM, task_id="T/2", test="def check(candidate):\n    pass\n")
UNSOLVED = replace(PROBLEM, task_id="T/3", reference="def double(x):\n    return x\n")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    module = plugins.load("sandbox", "fork")
    box = module.build(module.Config())
    yield box
    box.close()


def _sample(code: str, *, draw: int = 0, task_id: str = "T/1") -> Sample:
    return Sample(
        task_id=task_id,
        condition="vanilla",
        draw=draw,
        seed=draw,
        completion=code,
        program=code,
        num_tokens=1,
        finish_reason="stop",
    )


def _folder(path: Path, problems: list[Problem], samples: list[Sample]) -> store.RunDir:
    store.write_jsonl(path / "problems.jsonl", problems)
    store.write_jsonl(path / "samples.jsonl", samples)
    return store.RunDir(path)


def _context(sandbox: Sandbox, cache: Path) -> Context:
    def none() -> object:
        raise AssertionError("scoring needs no model and no engine")

    return Context(seed=0, model=none, device="cpu", dtype="float32", engine=none, sandbox=lambda: sandbox, cache=cache)  # type: ignore[arg-type]


def test_a_sound_scorer_tries_references_stubs_and_forgeries(sandbox: Sandbox) -> None:
    assert score.self_check(sandbox, [PROBLEM]) == 1 + len(execution.STUBS) + len(execution.CHEATS)


def test_a_reference_that_fails_stops_everything(sandbox: Sandbox) -> None:
    with pytest.raises(SandboxError, match=r"nothing is scored: the reference solution of T/3 fails \(WrongAnswer"):
        score.self_check(sandbox, [PROBLEM, UNSOLVED])


def test_a_test_that_passes_stubs_stops_everything(sandbox: Sandbox) -> None:
    with pytest.raises(SandboxError, match=r"the stub 'pass' of T/2 passes; and \d+ more"):
        score.self_check(sandbox, [LAX])


def test_nothing_is_scored_where_the_check_fails(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = _folder(tmp_path, [LAX], [_sample(LAX.reference, task_id="T/2")])
    with pytest.raises(SandboxError, match="the scorer failed its own check"):
        score.run(folder, score.Config(), _context(sandbox, tmp_path))
    assert not store.read_jsonl(tmp_path / "verdicts.jsonl", Verdict)


def test_every_sample_gets_its_own_verdict_once_and_a_second_run_adds_none(sandbox: Sandbox, tmp_path: Path) -> None:
    wrong, endless = "def double(x):\n    return 3 * x\n", "def double(x):\n    while True:\n        pass\n"
    samples = [_sample(PROBLEM.reference), _sample(wrong, draw=1), _sample(endless, draw=2), _sample("x = (", draw=3)]
    folder = _folder(tmp_path, [PROBLEM], samples)
    assert score.run(folder, score.Config(), _context(sandbox, tmp_path)) == 4
    verdicts = {v.draw: v for v in store.read_jsonl(tmp_path / "verdicts.jsonl", Verdict)}
    outcomes = [verdicts[draw].outcome for draw in range(4)]
    assert outcomes == [Outcome.PASSED, Outcome.FAILED, Outcome.TIMED_OUT, Outcome.FAILED]
    assert (verdicts[3].error_kind, verdicts[3].raised) == ("Raised", "SyntaxError")
    assert score.run(folder, score.Config(), _context(sandbox, tmp_path)) == 0


def test_a_known_verdict_is_not_judged_again_but_another_test_is(sandbox: Sandbox, tmp_path: Path) -> None:
    one = execution.program("a", PROBLEM.reference, PROBLEM)
    other = replace(one, key="b", test="def check(candidate):\n    assert candidate(2) == 5\n")
    strict = replace(one, key="c", prelude="raise_me = 1\n")
    for round_, hits in ((0, 0), (1, 3)):
        cached = Cached(_Kept(sandbox), tmp_path, backend="fork", settings={})
        outcomes = {e.key: e.outcome for e in cached.judge([one, other, strict])}
        cached.close()
        assert outcomes == {"a": Outcome.PASSED, "b": Outcome.FAILED, "c": Outcome.PASSED}, round_
        assert cached.hits == hits


def test_the_scorer_of_today_proves_itself_whatever_the_cache_knows(sandbox: Sandbox, tmp_path: Path) -> None:
    """An older scorer's word on a reference is in the cache; today's judges it otherwise."""
    program = score.program("a", UNSOLVED.reference, replace(UNSOLVED, test="def check(candidate):\n    pass\n"))
    lax = replace(UNSOLVED, test=program.test)
    filled = Cached(_Kept(sandbox), tmp_path, backend="fork", settings={})
    assert [e.outcome for e in filled.judge([program])] == [Outcome.PASSED]
    filled.close()
    today = Cached(_Strict(), tmp_path, backend="fork", settings={})
    assert [e.outcome for e in today.judge([program])] == [Outcome.PASSED]
    with pytest.raises(SandboxError, match=r"the reference solution of T/3 fails"):
        score.self_check(today, [lax])
    today.close()


class _Strict:
    """A scorer that passes nothing."""

    def judge(self, programs: Iterable[Program]) -> Iterator[Execution]:
        for program in programs:
            yield Execution(key=program.key, outcome=Outcome.FAILED, error_kind=FailureKind.WRONG_ANSWER)

    def close(self) -> None: ...


class _Kept:
    """The module's sandbox, left open when a cache in front of it closes."""

    def __init__(self, inner: Sandbox) -> None:
        self._inner = inner
        self.judge = inner.judge

    def close(self) -> None: ...


def test_other_limits_make_the_cache_forget(sandbox: Sandbox, tmp_path: Path) -> None:
    program: Program = execution.program("a", PROBLEM.reference, PROBLEM)
    for seconds, hits in ((1, 0), (1, 1), (2, 0)):
        cached = Cached(_Kept(sandbox), tmp_path, backend="fork", settings={"cpu_seconds": seconds})
        assert [e.outcome for e in cached.judge([program])] == [Outcome.PASSED]
        cached.close()
        assert cached.hits == hits


def test_a_test_that_catches_everything_cannot_hide_a_dead_program(sandbox: Sandbox) -> None:
    forgiving = (
        "def check(candidate):\n    try:\n        assert candidate(2) == 4\n    except BaseException:\n        pass\n"
    )
    problem = replace(PROBLEM, test=forgiving)
    codes = {
        "exits": "import os\n\ndef double(x):\n    os._exit(0)\n",
        "loops": "def double(x):\n    while True:\n        pass\n",
        "right": PROBLEM.reference,
    }
    programs = [execution.program(key, code, problem) for key, code in codes.items()]
    outcomes = {e.key: e.outcome for e in sandbox.judge(programs)}
    assert outcomes == {"exits": Outcome.FAILED, "loops": Outcome.TIMED_OUT, "right": Outcome.PASSED}
