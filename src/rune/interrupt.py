"""A Ctrl-C that is never lost.

Python raises KeyboardInterrupt between any two bytecodes of the main thread. Inside an import that is a hazard: numpy
answers with a RecursionError, scipy's `exec` makes the process die of the signal at its exit, and C code that imports
may clear the error, so that a run goes on to its end. Here an import is let finish first; whatever else swallowed or
disguised the exception, the next step of a progress bar raises it again. A second Ctrl-C waits for nothing.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

AGAIN_SECONDS = 0.05  # until an interrupt that met an import is tried again
IMPORT = "<frozen importlib._bootstrap>"

_asked = False


def check() -> None:
    """Raises KeyboardInterrupt if one was asked for within `heard` and the caller still runs; for the main thread."""
    if _asked and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """SIGINT ends the body with KeyboardInterrupt, and with nothing else.

    Does nothing outside the main thread, or where somebody else handles or ignores the signal.
    """
    global _asked
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    _asked = False
    signal.signal(signal.SIGINT, _ask)
    alarm = signal.signal(signal.SIGALRM, _raise_outside_imports)
    try:
        yield
    except Exception as error:
        if _asked:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _asked = False


def _ask(number: int, frame: FrameType | None) -> None:
    global _asked
    if _asked:
        raise KeyboardInterrupt
    _asked = True
    _raise_outside_imports(number, frame)


def _raise_outside_imports(_: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename == IMPORT:
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
            return
        frame = frame.f_back
    raise KeyboardInterrupt
