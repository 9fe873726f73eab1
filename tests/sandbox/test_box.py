"""The judge's side of a box: what it says of one that does not answer, and of a program that died."""

from __future__ import annotations

import signal
import sys

import pytest

from rune.sandbox.judging import test_worker

SILENT = [sys.executable, "-c", "import os, sys; os.read(int(sys.argv[1]), 1)", "{control}"]  # until it is left alone


def test_a_box_that_says_nothing_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_worker, "_START_SECONDS", 0.2)
    with pytest.raises(test_worker.Broken, match="the box does not answer: timed out"):
        test_worker._Box(SILENT)


@pytest.mark.parametrize("core", [0, 0x80], ids=["no core", "core written"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGXCPU])
def test_the_signal_that_killed_a_program_is_named(number: signal.Signals, core: int) -> None:
    assert test_worker._crash(number | core) == f"the program's process was killed by {number.name}"


def test_a_signal_without_a_name_has_its_number_and_an_exit_its_code() -> None:
    assert test_worker._crash(100).endswith("was killed by signal 100")
    assert "(exit code 3) before the test was over" in test_worker._crash(3 << 8)
