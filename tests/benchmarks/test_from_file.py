"""Tasks that a user brings in a file of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from rune.benchmarks import from_file
from rune.errors import DataError
from rune.runs import store
from rune.types import Problem, Split


def task(number: int) -> Problem:
    return Problem(
        task_id=f"own/{number}",
        benchmark="own",
        prompt="Write f().",
        entry_point="f",
        test="def check(f):\n    assert f() == 1\n",
        reference="def f():\n    return 1\n",
        split=Split.HELD_OUT if number % 2 else Split.TRAIN,
        domain=f"house {number // 2}",
    )


def read(path: Path) -> list[Problem]:
    return from_file.build(from_file.Config(path=str(path))).problems()


def test_tasks_come_as_they_stand_there(tmp_path: Path) -> None:
    problems = [task(n) for n in (3, 1, 2)]
    store.write_jsonl(tmp_path / "own.jsonl", problems)
    assert read(tmp_path / "own.jsonl") == problems


def test_what_is_no_file_of_tasks_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; give"):
        read(tmp_path / "missing.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="no problem in it"):
        read(tmp_path / "empty.jsonl")
    store.write_jsonl(tmp_path / "twice.jsonl", [task(1), task(2), task(1)])
    with pytest.raises(DataError, match="'own/1' stands there twice"):
        read(tmp_path / "twice.jsonl")
    (tmp_path / "damaged.jsonl").write_text('{"task_id": "own/1"\n{}\n')
    with pytest.raises(DataError, match="damaged"):
        read(tmp_path / "damaged.jsonl")
