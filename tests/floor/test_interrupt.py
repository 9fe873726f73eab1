"""A Ctrl-C ends a verb wherever it strikes, also where libraries swallow or disguise it."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rune import console, interrupt


@pytest.fixture(autouse=True)
def plain_python() -> Iterator[None]:
    """What a shell in the background does (SIGINT ignored) must not turn these tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def strike() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> str:
    (tmp_path / f"{name}.py").write_text(f"import os, signal\n{text}")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return name


def test_an_import_is_let_finish_and_then_the_interrupt_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "try:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    pass\nDONE = True\n"
    name = module(tmp_path, monkeypatch, "swallows_an_interrupt", text)
    finished = False
    with pytest.raises(KeyboardInterrupt), interrupt.heard():
        finished = importlib.import_module(name).DONE
        time.sleep(30)  # the retry ends this long before
    assert finished


def test_the_same_import_loses_it_in_plain_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twin of the test above: it could fail."""
    text = "try:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    pass\nDONE = True\n"
    name = module(tmp_path, monkeypatch, "swallows_an_interrupt_too", text)
    assert importlib.import_module(name).DONE
    time.sleep(2 * interrupt.AGAIN_SECONDS)


def test_a_second_interrupt_does_not_wait_for_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "os.kill(os.getpid(), signal.SIGINT)\nHALF = True\nos.kill(os.getpid(), signal.SIGINT)\nraise ValueError\n"
    name = module(tmp_path, monkeypatch, "is_struck_twice", text)
    with pytest.raises(KeyboardInterrupt), interrupt.heard():
        importlib.import_module(name)


def test_one_that_a_finaliser_swallowed_comes_with_the_next_step_of_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    swallowed = []
    monkeypatch.setattr(sys, "unraisablehook", swallowed.append)

    class Finaliser:
        def __del__(self) -> None:
            strike()
            time.sleep(0)

    steps = 0
    with pytest.raises(KeyboardInterrupt), interrupt.heard(), console.Progress("work", 3) as bar:
        thing = Finaliser()
        del thing
        for _ in range(3):
            steps += 1
            bar.advance()
    assert steps == 1 and len(swallowed) == 1


def test_one_that_came_back_as_another_error_is_still_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt) as found, interrupt.heard():
        try:
            strike()
            time.sleep(0)
        except KeyboardInterrupt:
            raise RecursionError("maximum recursion depth exceeded") from None
    assert isinstance(found.value.__cause__, RecursionError)


def test_errors_and_handlers_are_as_before_where_nobody_interrupts() -> None:
    with pytest.raises(ValueError, match="ours"), interrupt.heard():
        raise ValueError("ours")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    interrupt.check()


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupt.heard():
        strike()
        time.sleep(0)
        interrupt.check()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
