# ruff: noqa: E501 - a table of small files
"""Samples and problem files that others wrote: scored as the original scores them, or one line and exit code 2."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rune.cli.main import main
from rune.errors import NotEnoughSamples, RuneError
from rune.scoring import samples_file

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the fork backend is Linux's")
HEAD = "def add(a, b):\n"
BODY = "    return a + b\n"
TASK = {
    "task_id": "Mine/0",
    "prompt": HEAD,
    "canonical_solution": BODY,
    "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
}
LAMBDA = {**TASK, "task_id": "Mine/1", "test": "def check(candidate):\n    assert candidate(abs, lambda x: x)\n"}
STACK = (
    "class Stack:\n    def __init__(self):\n        self.all = []\n    def push(self, x):\n        self.all.append(x)\n"
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNE_CACHE", str(tmp_path / "cache"))


def _score(tasks: object, samples: object, *more: str, name: str = "s.jsonl", benchmark: str = "humaneval") -> int:
    Path("p.jsonl").write_text(tasks if isinstance(tasks, str) else _jsonl(tasks), encoding="utf-8")
    if samples is not None:
        Path(name).write_text(samples if isinstance(samples, str) else _jsonl(samples), encoding="utf-8")
    return main(["score", "--benchmark", benchmark, name, "--problems", "p.jsonl", *more])


def _jsonl(rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _sample(completion: str = BODY, task: object = "Mine/0", field: str = "completion") -> dict[str, object]:
    return {"task_id": task, field: completion}


@pytest.mark.parametrize(
    ("change", "completion"),
    [
        ({"prompt": "def add(a, b):\n\t'''Sum.'''\n", "canonical_solution": "\treturn a + b\n"}, "\treturn a + b\n"),
        ({"prompt": "def add(a, b):\n    for _ in 'x':\n        if a:\n", "canonical_solution": "            return a + b\n"}, "            return a + b\n"),
        ({"prompt": "async def add(a, b):\n", "test": "import asyncio\ndef check(candidate):\n    assert asyncio.run(candidate(1, 2)) == 3\n"}, BODY),
        ({"prompt": "class Sums:\n    @staticmethod\n    def add(a, b):\n", "canonical_solution": "        return a + b\n", "entry_point": "Sums.add"}, "        return a + b\n"),
        ({"prompt": "class Sums:\n    def add(self, a, b):\n", "canonical_solution": "        return a + b\n", "entry_point": "Sums().add"}, "        return a + b\n"),
        ({"prompt": "add = ", "canonical_solution": "lambda a, b: a + b\n"}, "lambda *x: sum(x)\n"),
        ({"test": "import math\nfrom itertools import chain\ndef check(candidate):\n    assert candidate(1, 2) == math.floor(3.5)\n"}, BODY),
        ({"canonical_solution": None}, BODY),
        ({"prompt": STACK, "canonical_solution": "    def top(self):\n        return self.all[-1]\n", "entry_point": "Stack", "test": "def check(candidate):\n    s = candidate()\n    s.push(3)\n    assert s.top() == 3\n"}, "    def top(self):\n        return self.all[-1]\n"),
    ],
    ids=["tabs", "open blocks", "async", "static method", "method", "expression", "imports", "no reference", "class"],
)  # fmt: skip
def test_what_the_original_scores_is_scored(
    change: dict[str, object], completion: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _score([{**TASK, **change}], [_sample(completion), _sample(completion + "    x = (\n")]) == 0, (
        capsys.readouterr().err
    )
    assert "pass@1: 0.5000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ("[1]\n", "p.jsonl:1: expected a task as an object"),
        ('{"task_id": "x"}\n', "field 'prompt' is missing"),
        (_jsonl([{**TASK, "entry_point": None}]), "task Mine/0: field 'entry_point' is null"),
        (_jsonl([{**TASK, "entry_point": "add("}]), "field 'entry_point': 'add(' is no name"),
        (_jsonl([{**TASK, "entry_point": "sub"}]), "field 'entry_point': the reference defines no 'sub'"),
        (_jsonl([{**TASK, "test": "def check(:"}]), "field 'test': not Python 3"),
        (_jsonl([{**TASK, "test": "assert add(1, 2) == 3\n"}]), "field 'test' defines no check(candidate)"),
        (_jsonl([{**TASK, "canonical_solution": "return (\n"}]), "field 'canonical_solution': not Python 3"),
        (_jsonl([{**TASK, "prompt": "Add two.\n"}]), "field 'prompt': not Python 3"),
        (_jsonl([{**TASK, "canonical_solution": "    return a\n"}]), "the reference solution fails (WrongAnswer"),
        (_jsonl([TASK])[:-30], "p.jsonl:1: not valid JSON"),
        ("", "p.jsonl: no tasks"),
        (_jsonl([TASK, TASK]).replace("\n", "\n", 1), None),
    ],
)
def test_a_task_that_cannot_be_judged_is_named_with_file_line_and_field(
    tasks: str, words: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _score(tasks, [_sample()]) == 2
    error = capsys.readouterr().err
    if words:
        assert words in error and error.count("\n") == 1


def test_the_others_are_scored_and_no_pass_at_k_is_told_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    samples = [_sample(), _sample(task="Mine/1"), _sample("    return 0\n")]
    assert _score([TASK, LAMBDA], samples) == 2
    out, error = capsys.readouterr()
    assert "not scored: 1 task" in out and "pass@" not in out
    assert "p.jsonl: task Mine/1: field 'test'" in error
    lines = [json.loads(line) for line in Path("s.jsonl_results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["passed"] for row in lines] == [True, None, False]
    assert _score([TASK, LAMBDA], samples, "--skip-broken") == 0
    assert capsys.readouterr().out.splitlines() == ["pass@1: 0.5000", "pass@2: 1.0000", "not scored: 1 task"]


def test_without_a_reference_the_test_shows_only_with_the_samples_that_it_cannot_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lonely = {k: v for k, v in LAMBDA.items() if k != "canonical_solution"}
    assert _score([TASK, lonely], [_sample(task="Mine/1"), _sample()], "--skip-broken") == 0
    assert capsys.readouterr().out.splitlines() == ["pass@1: 1.0000", "not scored: 1 task"]


@pytest.mark.parametrize(
    "samples",
    [
        _jsonl([_sample(task=0), _sample(HEAD + BODY, field="solution")]),
        _jsonl([_sample(task="0"), _sample(task="Mine_0")]),
        json.dumps([_sample(), _sample()], indent=1),
        json.dumps([[HEAD + BODY, HEAD + BODY]], indent=1),
        "\ufeff" + _jsonl([_sample(), _sample()]).replace("\n", "\r\n"),
    ],
    ids=["bare number and solution", "prefixes", "list", "list of lists", "BOM and CRLF"],
)
def test_samples_of_other_tools_are_read(samples: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _score([TASK], samples) == 0
    assert "pass@2: 1.0000" in capsys.readouterr().out


def test_a_folder_of_samples_and_a_gzipped_file_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    for number, code in enumerate([HEAD + BODY, HEAD + "    return 0\n"]):
        Path("all/Mine_0").mkdir(parents=True, exist_ok=True)
        Path(f"all/Mine_0/{number}.py").write_text(code, encoding="utf-8")
    assert _score([TASK], None, name="all") == 0
    assert "pass@1: 0.5000" in capsys.readouterr().out and Path("all_results.jsonl").is_file()
    Path("s.jsonl.gz").write_bytes(gzip.compress(_jsonl([_sample()]).encode()))
    assert _score([TASK], None, name="s.jsonl.gz") == 0


@pytest.mark.parametrize(
    "samples",
    [
        _jsonl([_sample()]) + '{"task_id": "Mi',
        "hello",
        _jsonl([_sample()])[:-3],
        "\x00",
        _jsonl([_sample()]) + "[",
        "nul",
    ],
)
def test_a_torn_line_is_an_error_in_a_users_file(samples: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _score([TASK], samples) == 2
    assert "not valid JSON" in capsys.readouterr().err and not Path("s.jsonl_results.jsonl").exists()


def test_a_k_above_n_is_left_out_with_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert _score([TASK], [_sample(), _sample()], "--k", "1,2,10") == 0
    out, error = capsys.readouterr()
    assert out.splitlines() == ["pass@1: 1.0000", "pass@2: 1.0000"] and "pass@10 is left out" in error


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "def f(:", "add", HEAD, "\ud800", "[]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*TASK, "solution"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def _damaged(row: dict[str, object]) -> st.SearchStrategy[object]:
    changed = st.dictionaries(st.sampled_from(list(row)), _JSON, max_size=3).map(lambda c: {**row, **c})
    return st.one_of(changed, _JSON)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    tasks=st.lists(st.just(TASK) | _damaged(TASK), max_size=3),
    samples=st.lists(st.just(_sample()) | _damaged(_sample()), max_size=3),
    cut=st.integers(0, 40),
    benchmark=st.sampled_from(["humaneval", "humaneval_plus", "mbpp", "mbpp_plus"]),
)
def test_whatever_the_files_hold_reading_them_ends_well_or_in_one_line(
    tasks: list[object], samples: list[object], cut: int, benchmark: str
) -> None:
    Path("p.jsonl").write_text(_jsonl(tasks), encoding="utf-8")
    text = _jsonl(samples)
    Path("s.jsonl").write_text(text[: len(text) - cut] if cut % 3 == 0 else text, encoding="utf-8")
    try:
        found = samples_file.problems(benchmark, "p.jsonl")
        read = samples_file.read(Path("s.jsonl"), found, ignore_incomplete=True)
    except RuneError as error:
        assert "\n" not in str(error) and ("p.jsonl" in str(error) or "s.jsonl" in str(error))
    else:
        assert all(row["task_id"] in {**found.problems, **found.broken} for row in read)


def test_pass_at_k_is_possible_for_as_many_samples_as_every_task_has(capsys: pytest.CaptureFixture[str]) -> None:
    samples = [{"task_id": t} for t, count in (("a", 10), ("b", 12)) for _ in range(count)]
    assert samples_file.possible(samples, [1, 10, 11]) == [1, 10]
    assert "pass@11 is left out: it needs 11 samples per task, a has 10" in capsys.readouterr().err
    assert samples_file.possible(samples, [10]) == [10]
    with pytest.raises(NotEnoughSamples, match="pass@11 needs 11 samples per task, a has 10"):
        samples_file.possible(samples, [11])
