"""What a test sees of a program: a candidate that looks like a function, and objects that stay on the other side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rune.sandbox import _codec
from rune.types import FailureKind

if TYPE_CHECKING:
    from rune.sandbox._link import Link
NOTHING = object()  # no result yet


class Remote:
    """An object on the candidate's side: a class, an iterator, a function, an instance. Equal only to itself."""

    __slots__ = ("_handle", "_link")

    def __init__(self, link: Link, handle: _codec.Handle) -> None:
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_handle", handle)

    def __call__(self, *args: object, **options: object) -> Any:
        return self._link.operate("call", self, *args, **options)

    def __iter__(self) -> Any:
        # Only what can be walked once is walked remotely. An object with both a length and elements could lie
        # about one of them; it has neither here.
        if self._handle.kind != "iterator":
            raise TypeError(f"'{self._handle.label}' object is not plain data")
        return self

    def __next__(self) -> Any:
        item = self._link.operate("next", self)
        if type(item) is not tuple or len(item) != 1:
            raise StopIteration
        return item[0]

    def __getattr__(self, name: str) -> Any:
        return self._link.operate("getattr", self, _public(name))

    def __setattr__(self, name: str, value: object) -> None:
        self._link.operate("setattr", self, name, value)

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Remote) and self._link is other._link and self._handle.number == other._handle.number
        )

    def __hash__(self) -> int:
        return hash(self._handle.number)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<{self._handle.label} object>"


class Candidate:
    """A name of the program, called like the function it is. Values that come back are plain data."""

    def __init__(self, link: Link, name: str) -> None:
        self._link = link
        self.__name__ = name

    def __call__(self, *args: object, **options: object) -> Any:
        self._note(args, options)
        result = self._link.last_result = self._link.operate("call", self.__name__, *args, **options)
        return result

    def observed(self, *args: Any, **options: Any) -> None:
        """A call whose result the test drops: it can only be after what happens to the arguments."""
        self._note(args, options)
        reply = self._link.operate("observe", self.__name__, *args, **options)
        if not (type(reply) is tuple and len(reply) == 3 and type(reply[1]) is tuple and type(reply[2]) is dict):
            raise self._link._stop(FailureKind.PROTOCOL, "the program answered something that is no answer")
        self._link.last_result = reply[0]
        for before, after in zip(args, reply[1], strict=False):
            become(before, after)
        for key, before in options.items():
            become(before, reply[2].get(key, before))

    def _note(self, args: tuple[object, ...], options: dict[str, object]) -> None:
        self._link.last_call = (self.__name__, args, options)
        self._link.last_result = NOTHING

    def __getattr__(self, name: str) -> Any:
        return self._link.operate("getattr", self._link.operate("value", self.__name__), _public(name))


def _public(name: str) -> str:
    """Raises AttributeError for `__x__`, promises to an interpreter that only this process's own objects may make.

    numpy, for one, reads memory wherever an `__array_interface__` says.
    """
    if name.startswith("__") and name.endswith("__"):
        raise AttributeError(f"{name} of the program's objects cannot be asked for from outside")
    return name


def become(before: Any, after: Any) -> None:
    """Give a container of the test the content that the candidate left in its copy."""
    if type(before) is not type(after):
        return
    if isinstance(before, (list, bytearray)):
        before[:] = after
    elif isinstance(before, (dict, set)):
        before.clear()
        before.update(after)
    elif isinstance(before, tuple) and len(before) == len(after):
        for left, right in zip(before, after, strict=True):
            become(left, right)


def short(value: object, limit: int = 300) -> str:
    """`repr`, shortened from the middle, whatever the value is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError, MemoryError):
        text = f"<{type(value).__name__}>"
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 3 :]}"
