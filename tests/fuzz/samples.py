"""Damaged sample files and problem files, given to `rune score --benchmark NAME FILE --problems FILE`."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.fuzz.damage import damage, refused, run, spoil

HEAD = "def add(a, b):\n"
HUMANEVAL: list[dict[str, Any]] = [
    {
        "task_id": f"Mine/{n}",
        "prompt": HEAD,
        "canonical_solution": "    return a + b\n",
        "entry_point": "add",
        "test": f"def check(candidate):\n    assert candidate({n}, 2) == {n + 2}\n",
    }
    for n in range(3)
]
MBPP: list[dict[str, Any]] = [
    {
        "task_id": 600 + n,
        "text": "Write a function to add.",
        "code": f"{HEAD}    return a + b\n",
        "test_list": [f"assert add({n}, 2) == {n + 2}", "assert add(1, 2) == 3"],
        "test_setup_code": "",
        "challenge_test_list": [],
    }
    for n in range(3)
]
PROBLEMS = {"humaneval": HUMANEVAL, "mbpp": MBPP}
GOOD = {"humaneval": "    return a + b\n", "mbpp": f"{HEAD}    return a + b\n"}
BAD = {"humaneval": "    return a - b\n", "mbpp": f"{HEAD}    return a - b\n"}
IDS = {"humaneval": "Mine/{}", "mbpp": "Mbpp/{}"}


def _lines(rows: Sequence[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode("utf-8", "surrogatepass")


def _id(benchmark: str, n: int) -> str:
    return IDS[benchmark].format(n if benchmark == "humaneval" else 600 + n)


def _rows(benchmark: str, rng: random.Random) -> list[Any]:
    """Samples that are as they should be: three tasks, one or two draws each."""
    rows: list[Any] = []
    for n in range(3):
        for _ in range(rng.choice((1, 2))):
            text = (GOOD if rng.random() < 0.5 else BAD)[benchmark]
            whole = HEAD + text if benchmark == "humaneval" else text
            rows.append(
                {"task_id": _id(benchmark, n)} | ({"completion": text} if rng.random() < 0.7 else {"solution": whole})
            )
    return rows


def _container(rows: Any, rng: random.Random) -> bytes:
    if not isinstance(rows, list) or rng.random() < 0.2:
        return json.dumps(rows).encode("utf-8", "surrogatepass")
    return _lines(rows)


def make(kind: str, number: int) -> tuple[str, dict[str, bytes]]:
    """(benchmark, files by name) of one input; `kind` is the file that is damaged: "samples" or "problems"."""
    rng = random.Random(number)
    benchmark = rng.choice(list(PROBLEMS))
    rows: Any = _rows(benchmark, rng)
    tasks: Any = PROBLEMS[benchmark]
    if kind == "samples":
        fields = ("task_id", "completion", "solution", "result", "passed")
        return benchmark, {"s.jsonl": spoil(_container(damage(rows, rng, fields), rng), rng), "p.jsonl": _lines(tasks)}
    fields = tuple(tasks[0])
    return benchmark, {"s.jsonl": _lines(rows), "p.jsonl": spoil(_container(damage(tasks, rng, fields), rng), rng)}


def judge(kind: str, number: int, folder: Path) -> str:
    """What became of one input: "scored", "in part" or "refused". Raises AssertionError if it is none of these."""
    benchmark, files = make(kind, number)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    samples, results = folder / "s.jsonl", folder / "s.jsonl_results.jsonl"
    command = ["score", "--benchmark", benchmark, str(samples), "--problems", str(folder / "p.jsonl")]
    code, out, err = run(*command, "--ignore_incomplete", "--workers", "1", "--timeout", "2")
    left = {p.name for p in folder.iterdir()} - set(files)
    try:
        assert code in (0, 2), err
        if not left:
            said = "".join(
                line for line in err.splitlines(keepends=True) if not line.startswith(("warning: ", "score"))
            )
            refused(code, out, said)
            return "refused"
        assert left == {results.name}, left
        rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
        lacking = {row["task_id"] for row in rows if row["passed"] is None}
        for row in rows:
            assert row["passed"] is None or (row["passed"] is (row["result"] == "passed")), row
            assert row["passed"] is not None or row["result"].startswith("not scored: "), row
            if kind == "problems" and row["passed"] is not None:
                # Whatever became of the others, this task was still the addition: its verdict is known.
                assert row["passed"] == (" + " in (row.get("completion") or row["solution"])), row
        if code == 2:
            assert lacking and f"not scored: {len(lacking)} task" in out and "pass@" not in out, (out, err)
            assert err.count("warning: not scored: ") == len(lacking), err
            return "in part"
        assert not lacking
        by_task: dict[str, list[bool]] = {}
        for row in rows:
            by_task.setdefault(row["task_id"], []).append(row["passed"])
        expected = sum(sum(found) / len(found) for found in by_task.values()) / len(by_task)
        assert f"pass@1: {expected:.4f}\n" in out, (out, expected)
        return "scored"
    finally:
        for file in folder.iterdir():
            file.unlink()
