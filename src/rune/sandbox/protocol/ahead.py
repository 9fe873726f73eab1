"""Which calls a test makes whatever the answers are: the only ones that may be sent along with a program.

The test runs once with a candidate that answers nothing: each call returns a `_Blank`, which agrees with whatever is
asked of it and holds no data. What a test then asks cannot depend on an answer of any program, earlier or later,
since there was none; a test that hands a blank on (`candidate(candidate(3))`), builds the program's objects or looks
at what a call did to its arguments is foreseen up to there. Failing assertions are passed over, so that the path is
that of a program that passes. A path foreseen wrongly costs time (the program starts again, call by call), never a
verdict.
"""

from __future__ import annotations

import contextlib
from types import CodeType
from typing import Any, NoReturn

from rune.sandbox.protocol import codec, tests

_MOST_BYTES = 1 << 17  # of calls that are sent with a program
_MOST_CALLS = 10_000


class Enough(BaseException):
    """Nothing more can be foreseen."""


class Script:
    """The calls that can be sent with each program of one task."""

    def __init__(self) -> None:
        self.calls: list[bytes] = []
        self._strikes = 0

    def held(self) -> None:
        """A program was judged with it."""
        self._strikes = 0

    def diverged(self, at: int) -> None:
        """The test asked otherwise from call `at` on: once may be the program's doing, twice running is the test's."""
        self._strikes += 1
        if self._strikes > 1:
            self.calls = self.calls[:at]
            self._strikes = 0


def foresee(script: Script, test: tests.Test, prelude: CodeType | None, entry_point: str) -> None:
    """Put into `script` the first calls of `test` as `Link.load` sends them, those that no answer can change.

    They stand also where it ends with an exception: `Enough`, or what a test raises that cannot do with blanks.
    """
    tests.run(test, _Recorder(script.calls), prelude, entry_point, foreseeing=True)


class _Recorder:
    """In the place of a `Link`: notes the calls instead of sending them."""

    def __init__(self, calls: list[bytes]) -> None:
        self.calls = calls
        self.last_call: object = None
        self.last_result: object = None
        self._left = _MOST_BYTES
        self._over = False

    def operate(self, operation: str, target: object, /, *args: object, **options: object) -> _Blank:
        request = b""
        if not self._over and operation == "call" and isinstance(target, str):
            with contextlib.suppress(codec.CodecError):
                request = codec.encode_trusted((operation, target, args, options), _refuse)
        self._left -= len(request)
        if not request or self._left < 0 or len(self.calls) >= _MOST_CALLS:
            self.end()
        self.calls.append(request)
        return _Blank()

    def construct(self, /, *_: object, **__: object) -> NoReturn:
        self.end()

    def end(self) -> NoReturn:
        self._over = True  # also for a test that catches everything
        raise Enough


def _refuse(value: object) -> codec.Handle:
    raise codec.CodecError(f"a {type(value).__name__} is no plain data")


class _Blank:
    """An answer that nobody gave."""

    def _yes(self, _: object = None) -> bool:
        return True

    def _same(self, *_: object, **__: object) -> _Blank:
        return self

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __bool__ = _yes
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _same
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = __neg__ = __abs__ = __round__ = _same
    __getitem__ = __call__ = _same

    def __hash__(self) -> int:
        return 0

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Any:
        return iter(())

    def __float__(self) -> float:
        return 0.0

    def __int__(self) -> int:
        return 0

    def __getattr__(self, name: str) -> _Blank:
        if name.startswith("__"):
            raise AttributeError(name)
        return self
