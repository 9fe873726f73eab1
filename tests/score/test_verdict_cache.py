"""A cache is only a cache: damage in it costs a warning, never a run, and it never decides what it could not know."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from rune.errors import SandboxError
from rune.runs import store
from rune.sandbox.judging import verdict_cache
from rune.sandbox.judging.verdict_cache import Cached
from rune.types import Execution, FailureKind, Outcome, Program

LINES = ("", "null", "[1]", "3", '{"key":"cut he', "\x00\x00\x00", '"text"', "{'key': 1}")


class Recorded:
    """Answers by the program's text, in reverse order; remembers what it was asked."""

    def __init__(self, outcomes: dict[str, Execution] | None = None) -> None:
        self.asked: list[Program] = []
        self._outcomes = outcomes or {}

    def judge(self, programs: Iterable[Program]) -> Iterator[Execution]:
        mine = list(programs)
        self.asked += mine
        for program in reversed(mine):
            passed = Execution(key="", outcome=Outcome.PASSED)
            yield dataclasses.replace(self._outcomes.get(program.code, passed), key=program.key)

    def close(self) -> None: ...


def program(code: str, key: str = "k") -> Program:
    return Program(key=key, code=code, test="def check(f):\n    f()\n", entry_point="f")


def cached(folder: Path, inner: Recorded) -> Cached:
    return Cached(inner, folder, backend="fork", settings={})


def filled(folder: Path, codes: Iterable[str]) -> Path:
    first = cached(folder, Recorded())
    assert all(e.outcome is Outcome.PASSED for e in first.judge([program(c, c) for c in codes]))
    first.close()
    return folder / "verdicts.jsonl"


@pytest.mark.parametrize("damage", LINES)
def test_a_damaged_line_is_left_out_with_one_warning_that_names_the_file(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = filled(tmp_path, "abc")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], f"{damage}\n", *lines[1:]]))
    inner = Recorded()
    again = cached(tmp_path, inner)
    assert {e.key for e in again.judge([program(c, c) for c in "abcd"])} == set("abcd")
    again.close()
    assert (again.hits, [p.code for p in inner.asked]) == (3, ["d"])
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"warning: {path}: line 2 is damaged and left out" in err
    assert "--no-cache" in err


def test_many_damaged_lines_are_one_warning_and_undamaged_bytes_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = filled(tmp_path, "ab")
    before = path.read_bytes()
    path.write_bytes(b"\xff\xfe broken\n" * 7 + before)
    again = cached(tmp_path, Recorded())
    assert len(list(again.judge([program(c, c) for c in "ab"]))) == again.hits == 2
    again.close()
    assert path.read_bytes().endswith(before)
    err = capsys.readouterr().err
    assert err.count("warning") == 1
    assert "7 lines, the first 1, are damaged" in err


def test_a_torn_tail_and_another_versions_lines_are_no_damage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = filled(tmp_path, "ab")
    other = {"key": "x", "outcome": "passed", "error_kind": "NameError", "a field of later": 1}
    path.write_text(json.dumps(other) + "\n" + path.read_text() + '{"key":"torn by a ki')
    again = cached(tmp_path, Recorded())
    assert len(list(again.judge([program(c, c) for c in "ab"]))) == again.hits == 2
    again.close()
    assert capsys.readouterr().err == ""
    assert path.read_bytes().endswith(b"\n")


def test_what_is_not_settled_is_told_and_not_kept(tmp_path: Path) -> None:
    late = Execution(key="", outcome=Outcome.TIMED_OUT, error_kind=FailureKind.TIMEOUT, settled=False)
    sure = dataclasses.replace(late, settled=True)
    for hits in (0, 1):
        inner = Recorded({"late": late, "sure": sure})
        one = cached(tmp_path, inner)
        assert [e.outcome for e in one.judge([program("late", "1"), program("sure", "2")])] == [Outcome.TIMED_OUT] * 2
        one.close()
        assert one.hits == hits
        assert "late" in [p.code for p in inner.asked]


def test_programs_with_one_key_get_a_verdict_each(tmp_path: Path) -> None:
    failed = Execution(key="", outcome=Outcome.FAILED, error_kind=FailureKind.WRONG_ANSWER)
    codes = ["right", "wrong", "right", "wrong", "wrong"]
    for hits in (0, 5):
        one = cached(tmp_path, Recorded({"wrong": failed}))
        found = list(one.judge([program(code, "same") for code in codes]))
        one.close()
        assert [e.key for e in found] == ["same"] * 5
        assert sum(e.outcome is Outcome.PASSED for e in found) == 2
        assert one.hits == hits
    lines = store.read_jsonl(tmp_path / "verdicts.jsonl", Execution)
    assert sorted(e.outcome for e in lines) == ["failed", "passed"]


def test_an_error_of_the_machine_names_the_callers_key(tmp_path: Path) -> None:
    class Broken(Recorded):
        def judge(self, programs: Iterable[Program]) -> Iterator[Execution]:
            raise SandboxError(f"{next(iter(programs)).key}: could not be judged")
            yield

    with pytest.raises(SandboxError, match=r"^HumanEval/3: could not"):
        list(cached(tmp_path, Broken()).judge([program("a", "HumanEval/3")]))


@pytest.mark.parametrize("what", ["a package", "walls"])
def test_what_a_program_finds_around_it_is_part_of_the_key(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that failed for want of numpy, or of a folder to write to, is judged again where there is one."""

    def asked(version: str, layers: tuple[str, ...]) -> int:
        monkeypatch.setattr(verdict_cache.metadata, "version", lambda _: version)
        inner = Recorded()
        inner.layers = layers  # type: ignore[attr-defined]
        sandbox = Cached(inner, tmp_path, backend="fork", settings={"packages": ["numpy"]})
        list(sandbox.judge([program("import numpy")]))
        sandbox.close()
        return len(inner.asked)

    first, other = ("1", ("namespaces",)), ("2", ("namespaces",)) if what == "a package" else ("1", ("landlock",))
    assert [asked(*first), asked(*first), asked(*other), asked(*other)] == [1, 0, 1, 0]
