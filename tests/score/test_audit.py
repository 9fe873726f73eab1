"""The second opinion: what it confirms, what it doubts, and which doubts an experiment explains."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rune import config, plugins
from rune.cli.main import main
from rune.errors import ConfigError, DataError, SandboxError
from rune.runs import integrity, store
from rune.runs.store import RunDir
from rune.sandbox import fork
from rune.sandbox.isolation import fork_server, seccomp
from rune.sandbox.judging import one_process
from rune.sandbox.judging.second_opinion import SecondOpinion
from rune.scoring import audit
from rune.stages import score
from rune.study import config as study_config
from rune.study import creation
from rune.types import Outcome, Problem, Program, Sample, Scorer, Split, Verdict
from tests.hostile import suite

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the fork backend is Linux's")
CONFIG = Path(__file__).parents[2] / "configs" / "phase1-0.5b.toml"
DOUBLE = Problem(
    task_id="T/1",
    benchmark="t",
    prompt="def double(x):\n",
    entry_point="double",
    test="def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\n",
    reference="def double(x):\n    return 2 * x\n",
)
BACKENDS = {
    "fork": ("fork", {}),
    "without-namespaces": ("fork", {"without": ("namespaces",)}),
    "bubblewrap": ("bubblewrap", {}),
    "subprocess": ("subprocess", {"allow_weak": True}),
}


def program(code: str, test: str = DOUBLE.test, entry_point: str = "double") -> Program:
    return Program(key="T/1", code=code, test=test, entry_point=entry_point)


@pytest.fixture
def second() -> Iterator[SecondOpinion]:
    with fork.second(fork.Config(workers=1)) as found:
        yield found


# --------------------------------------------------------------------------- one program


@pytest.mark.parametrize("name", BACKENDS)
def test_each_backend_has_a_second_path_that_tells_right_from_wrong_and_holds_the_program(name: str) -> None:
    backend, settings = BACKENDS[name]
    if backend == "bubblewrap" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    module = plugins.load("sandbox", backend)
    peek = "def double(x):\n    open('/etc/hostname').read()\n    return 2 * x\n"
    leave = "def double(x):\n    open('left', 'w').write('x')\n    return 2 * x\n"
    find = "import os\n\ndef double(x):\n    assert not os.path.exists('left')\n    return 2 * x\n"
    with module.second(module.Config(**settings)) as found:
        assert found.judge(program(DOUBLE.reference)).outcome is Outcome.PASSED
        assert found.judge(program("def double(x):\n    return x\n")).outcome is Outcome.FAILED
        assert found.judge(program(peek)).outcome is (Outcome.PASSED if backend == "subprocess" else Outcome.FAILED)
        found.judge(program(leave))
        assert found.judge(program(find)).outcome is Outcome.PASSED


def test_a_weak_backend_is_refused_without_the_users_word() -> None:
    module = plugins.load("sandbox", "subprocess")
    with pytest.raises(SandboxError, match=r"cannot hold untrusted code.*--allow-weak-sandbox"):
        module.second(module.Config())


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise type('', (Exception,), {})()\n", ""),
        ("raise SystemExit(0)\n", "SystemExit"),
        ("import os\n\ndef double(x):\n    os._exit(0)\n", "its process ended before the test did"),
        ("import os\n\ndef double(x):\n    os.kill(os.getpid(), 9)\n", "its process ended before the test did"),
        ("def triple(x):\n    return 3 * x\n", "NameError: name 'double' is not defined"),
        ("def double(x:\n", "SyntaxError"),
        ("def double(x):\n    raise ValueError('\\ud800' * 9999)\n", "ValueError"),
    ],
)
def test_a_program_that_does_not_get_through_its_test_fails_whatever_it_says(
    second: SecondOpinion, code: str, words: str
) -> None:
    opinion = second.judge(program(code))
    assert opinion.outcome is Outcome.FAILED
    assert words in opinion.why
    assert len(opinion.why) < 2000


def test_a_program_that_says_passed_and_breaks_off_has_not_passed(second: SecondOpinion) -> None:
    forged = (
        "import os\n\nfor number in range(3, 64):\n    try:\n"
        '        os.write(number, b\'{"passed": true, "error": ""}\')\n'
        "    except OSError:\n        pass\nos._exit(3)\n"
    )
    opinion = second.judge(program(forged))
    assert opinion.outcome is Outcome.FAILED and "wait status" in opinion.why


def test_an_endless_and_a_sleeping_program_are_timed_out(second: SecondOpinion) -> None:
    second._options |= {"cpu_seconds": 0.5, "wall_seconds": 60.0}
    assert second.judge(program("def double(x):\n    while True: pass\n")).outcome is Outcome.TIMED_OUT
    second._options |= {"cpu_seconds": 30.0, "wall_seconds": 1.0}
    slow = "import time\n\ndef double(x):\n    time.sleep(600)\n"
    assert second.judge(program(slow)).outcome is Outcome.TIMED_OUT


def test_no_program_runs_behind_fewer_walls_than_the_probe_had(second: SecondOpinion) -> None:
    second._options["demand"] = [*second._options["demand"], "a wall that is not there"]
    with pytest.raises(SandboxError, match=r"T/1: no second opinion in 3 tries: .*without a wall that is not there"):
        second.judge(program(DOUBLE.reference))


@pytest.mark.check  # half a minute; tests/hostile runs the suite on every submission
@pytest.mark.parametrize("name", ["fork", "without-namespaces"])
def test_no_program_of_the_hostile_suite_stops_the_audit_or_is_felt_by_the_next(name: str) -> None:
    """In a shared process some of them do pass; that is why this path never makes a pass."""
    backend, settings = BACKENDS[name]
    module = plugins.load("sandbox", backend)
    marker = (
        random.SystemRandom().randrange(10**3, 10**4) * 1000
    )  # an option that says nothing here, to know our processes by
    looks = "os.listdir('.')" if name == "fork" else "[]"
    honest = f"import os\n\ndef solve(x):\n    found = {looks}\n    return sorted(x) + found\n"
    with module.second(module.Config(memory_mb=512, **settings)) as found:
        found._options |= {"cpu_seconds": 0.5, "wall_seconds": 2.0, "work_mb": 16, "output_kb": marker}
        for case in suite.chosen(weak=False, brief=True):
            one = Program(key=case.name, code=case.code, test=suite.TESTS[case.test], entry_point="solve")
            assert len(found.judge(one).why) < 2000
            after = Program(key=f"after {case.name}", code=honest, test=suite.TEST, entry_point="solve")
            assert found.judge(after).outcome is Outcome.PASSED, case.name
        assert any(str(marker) in line for line in _command_lines())
    deadline = time.monotonic() + 120
    while any(str(marker) in line for line in _command_lines()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not list(Path("/tmp").glob("rune-escaped*"))


# --------------------------------------------------------------------------- explanations

FIRST = random.Random(config.derive_seed(0, "audit", "T/1")).random()
EXPLAINED = {
    audit.EXPLANATIONS[one_process.NAMES]: program(
        "def twice(x):\n    return 2 * x\n\ndef double(x):\n    return twice(x)\n",
        "def twice(x):\n    return 'of the test'\n\n" + DOUBLE.test,
    ),
    audit.EXPLANATIONS[one_process.COPIES]: program(
        "def double(x):\n    x.extend(x)\n    return x\n",
        "def check(candidate):\n    x = [1]\n    assert candidate(x) == [1, 1]\n    assert candidate(x) == [1, 1]\n",
    ),
    audit.EXPLANATIONS[one_process.PLAIN]: program(
        "class Items(list):\n    pass\n\ndef double(x):\n    return Items(x * 2)\n",
        "def check(candidate):\n    assert type(candidate([1])) is list\n    assert candidate([1]) == [1, 1]\n",
    ),
    audit.CHANCE: program(f"import random\n\ndef double(x):\n    return 2 * x if random.random() != {FIRST} else 0\n"),
}


@pytest.mark.parametrize("reason", EXPLAINED)
def test_an_honest_difference_is_found_and_named(second: SecondOpinion, reason: str) -> None:
    one = EXPLAINED[reason]
    with fork.build(fork.Config(workers=1)) as judge:
        assert [e.outcome for e in judge.judge([one])] == [Outcome.PASSED]
    found = audit._doubt(second, one, 0)
    assert found is not None
    assert found[1] == reason


def test_two_honest_differences_at_once_are_explained_together(second: SecondOpinion) -> None:
    names, copies = (EXPLAINED[audit.EXPLANATIONS[key]] for key in (one_process.NAMES, one_process.COPIES))
    grow = copies.code.replace("def double", "def grow")
    code = f"{names.code}\n{grow}\n\ndef both(x):\n    twice(1)\n    return grow(x)\n"
    test = "def twice(x):\n    raise ValueError\n\n" + copies.test
    found = audit._doubt(second, program(code, test, "both"), 0)
    assert found is not None
    assert found[1] == audit.TOGETHER


@pytest.mark.parametrize("code", ["def double(x):\n    return 3 * x\n", "raise type('', (Exception,), {})()\n", ""])
def test_nothing_explains_a_wrong_program(second: SecondOpinion, code: str) -> None:
    found = audit._doubt(second, program(code), 0)
    assert found is not None
    assert found[1] == ""


# --------------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    given = [f"run.folder={root}", "design.scored=2", "model.device=cpu", "score.settings.workers=1"]
    folder = creation.create(study_config.load(CONFIG, given), resume=False).folder
    tasks = [p for p in store.read_jsonl(folder / "problems.jsonl", Problem) if p.split is Split.HELD_OUT]
    samples = [
        Sample(
            task_id=p.task_id,
            condition=arm,
            draw=draw,
            seed=draw,
            completion="",
            program=f"{p.reference}\n# {draw}\n" if draw else f"def {p.entry_point}(*args):\n    return 'wrong'\n",
            num_tokens=1,
            finish_reason="stop",
        )
        for p in tasks
        for arm in ("vanilla", "hypernet")
        for draw in range(4)
    ]
    with folder.stage("sample"):
        store.write_jsonl(folder / "samples.jsonl", samples)
        integrity.seal(folder, "sample")
    assert main(["score", str(folder.path), "--no-cache"]) == 0
    return folder.path


@pytest.fixture
def run(scored: Path, tmp_path: Path) -> RunDir:
    shutil.copytree(scored, tmp_path / "run")
    return RunDir(tmp_path / "run")


def test_an_honest_run_is_confirmed_and_identical_programs_are_judged_once(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(run.path), "--audit", "all"]) == 0
    assert "12 of 12 passes judged again (6 programs): 12 agree, 0 differ" in capsys.readouterr().out
    written = store.read_json(run / "audit.json")
    assert (written["audited"], written["agree"], written["seed"], written["disagreements"]) == (12, 12, 0, [])
    assert integrity.verify(run) == []


def test_a_pass_that_is_none_is_named_by_task_arm_and_draw(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    verdicts = store.read_jsonl(run / "verdicts.jsonl", Verdict)
    forged = [dataclasses.replace(v, outcome=Outcome.PASSED, error_kind="") for v in verdicts]
    store.write_jsonl(run / "verdicts.jsonl", forged)
    assert main(["score", str(run.path), "--audit", "all"]) == audit.DISAGREES
    told = capsys.readouterr()
    assert "16 of 16 passes judged again (8 programs): 12 agree, 0 differ and are explained, 4 are not" in told.out
    named = store.read_json(run / "audit.json")["disagreements"]
    wrong = [v for v in verdicts if v.outcome is not Outcome.PASSED]
    assert {(d["task_id"], s) for d in named for s in d["samples"]} == {
        (v.task_id, f"{v.condition} draw {v.draw}") for v in wrong
    }
    assert all(d["explanation"] == "" and d["first"] == "passed" and d["second"] == "failed" for d in named)
    for verdict in wrong:
        assert f"{verdict.task_id} (" in told.err and f"{verdict.condition} draw {verdict.draw}" in told.err
    assert told.err.count("NOT EXPLAINED") == 2


def test_a_pass_that_no_other_path_can_judge_is_not_called_confirmed() -> None:
    mended = dataclasses.replace(DOUBLE, scorer=Scorer.REPOSITORY)
    passes = [audit.Pass("a draw 0", "", mended)]
    with pytest.raises(DataError, match=r"T/1: no other path judges answers of the scorer 'repository'"):
        audit.run(passes, None, seed=0, config=score.Config())


def test_an_interrupted_audit_leaves_no_process_and_no_file(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = random.SystemRandom().randrange(10**6, 10**7)  # a memory limit that no other process was told
    seen = []

    def stop(*_: object, **__: object) -> None:
        seen.append(any(str(marker) in line for line in _command_lines()))
        raise KeyboardInterrupt

    monkeypatch.setattr("rune.console.Progress.advance", stop)
    assert main(["score", str(run.path), "--audit", "3"]) == 130
    assert not (run / "audit.json").exists()
    # The first program ends and is the one that is interrupted; the others sleep on meanwhile.
    sleepy = [audit.Pass(f"{n}", f"import time\ntime.sleep(300)\n# {n}\n", DOUBLE) for n in range(4)]
    passes = [audit.Pass("", DOUBLE.reference, DOUBLE), *sleepy]
    settings = score.Config(settings={"workers": 3, "memory_mb": marker - 1024})
    with pytest.raises(KeyboardInterrupt):
        audit.run(passes, None, seed=0, config=settings)
    assert seen == [False, True]
    deadline = time.monotonic() + 120
    while any(str(marker) in line for line in _command_lines()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("asks", ["judge", "nobody"])
@pytest.mark.parametrize("process", ["that makes the walls", "behind them"])
def test_a_program_whose_judge_died_before_it_began_never_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asks: str, process: str
) -> None:
    """Killed between a process's fork and its wish to die with its parent, the judge would leave it behind."""
    ours, theirs = os.pipe()
    marker = tmp_path / "began"
    doors = fork_server.Doors(layers=[], steps=[], clean=None, leave=None)
    monkeypatch.setattr(fork_server, "shut", lambda _: doors)
    monkeypatch.setattr(seccomp, "die_with_parent", lambda: None)
    code = f"open({str(marker)!r}, 'w')\ndef f(): pass\n"
    job = {"code": code, "test": "def check(f): f()", "entry_point": "f", "prelude": "", "relaxed": [], "seed": 0}
    if asks == "nobody":
        os.close(ours)
    pid = os.fork()
    if pid == 0:
        if process == "behind them":
            one_process._begin(theirs, job, doors)
        one_process._one(job, {"demand": [], "wall_seconds": 60.0, "cpu_seconds": 60.0}, theirs)
    os.waitpid(pid, 0)
    os.close(theirs)
    if asks == "judge":
        os.close(ours)
    assert marker.exists() == (asks == "judge")


def _command_lines() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            state = (path.parent / "stat").read_text().rsplit(")", 1)[1].split()[0]
            line = path.read_text(errors="replace")
        except OSError:
            continue
        if state not in "ZX":
            yield line


def test_the_seed_alone_says_which_passes(run: RunDir) -> None:
    passes = audit.of_run(run.path)
    assert len(passes) == 12
    chosen = audit.choose(passes, 5, 0)
    assert len(set(chosen)) == 5
    assert audit.choose(passes[::-1], 5, 0) == chosen
    assert any(audit.choose(passes, 5, seed) != chosen for seed in range(1, 5))
    assert sorted(audit.choose(passes, 99, 0)) == sorted(passes) == sorted(audit.choose(passes, None, 3))


@pytest.mark.parametrize(
    "places",
    [
        {"seed-0/fold-1/t0.8": "seed-0/fold-1/t0.8", "seed-1/fold-0/t0.2": "seed-1/fold-0/t0.2"},
        {"cells/main.seed-0.held-out": "main.seed-0.held-out", "cells/main.seed-1.held-out": "main.seed-1.held-out"},
    ],
    ids=["version 1", "cells"],
)
def test_passes_of_several_cells_are_named_by_their_cell(run: RunDir, tmp_path: Path, places: dict[str, str]) -> None:
    for cell in places:
        place = tmp_path / "cross" / cell
        place.mkdir(parents=True)
        for name in ("samples.jsonl", "verdicts.jsonl", "problems.jsonl"):
            shutil.copy(run / name, place / name)
    names = [p.name for p in audit.of_run(tmp_path / "cross")]
    assert len(names) == 24
    assert all(f"{label} hypernet draw 3" in names for label in places.values())


def test_verdicts_without_their_samples_are_refused(run: RunDir) -> None:
    samples = store.read_jsonl(run / "samples.jsonl", Sample)
    store.write_jsonl(run / "samples.jsonl", samples[1:])
    with pytest.raises(DataError, match=rf"verdict on {samples[0].task_id} vanilla draw 0 without its sample"):
        audit.of_run(run.path)
    (run / "verdicts.jsonl").unlink()
    with pytest.raises(DataError, match=r"no passes in verdicts.jsonl; run `rune score"):
        audit.of_run(run.path)


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5", "All"])
def test_a_number_of_passes_that_is_none_is_refused(number: str) -> None:
    with pytest.raises(ConfigError, match=r"--audit '.*': expected how many passes, for example --audit 100"):
        audit.parse(number)


def test_what_does_not_go_with_an_audit_is_one_line(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    for args in (
        [str(run.path), "--audit", "3", "--again"],
        [str(CONFIG), "--audit", "3"],
        [str(run.path), "--audit", "x"],
    ):
        assert main(["score", *args]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "--audit" in err


# --------------------------------------------------------------------------- a samples file


def test_a_samples_file_is_audited_and_a_forged_cache_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RUNE_CACHE", str(tmp_path / "cache"))
    tasks, file = tmp_path / "tasks.jsonl", tmp_path / "samples.jsonl"
    row = {"task_id": "T/0", "prompt": DOUBLE.prompt, "entry_point": "double", "test": DOUBLE.test}
    tasks.write_text(json.dumps({**row, "canonical_solution": "    return 2 * x\n"}) + "\n")
    bodies = ("    return 2 * x\n", "    return 3 * x\n", "    return x + x\n")
    file.write_text("".join(json.dumps({"task_id": "T/0", "completion": body}) + "\n" for body in bodies))
    command = ["score", "--benchmark", "humaneval", str(file), "--problems", str(tasks), "--audit", "all"]
    assert main(command) == 0
    assert "2 of 2 passes judged again (2 programs): 2 agree" in capsys.readouterr().out
    assert store.read_json(tmp_path / "samples.jsonl_audit.json")["agree"] == 2
    cache = tmp_path / "cache" / "verdicts" / "verdicts.jsonl"
    lines = [json.loads(line) for line in cache.read_text().splitlines()]
    assert sorted(line["outcome"] for line in lines) == ["failed", "passed", "passed"]
    cache.write_text("".join(json.dumps({**line, "outcome": "passed"}) + "\n" for line in lines))
    assert main(command) == audit.DISAGREES
    told = capsys.readouterr()
    assert "3 of 3 passes judged again (3 programs): 2 agree, 0 differ and are explained, 1 are not" in told.out
    assert "T/0 (line 2): passed, but failed together with its test: AssertionError" in told.err
