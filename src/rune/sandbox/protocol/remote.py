"""What a test sees of a program: a candidate that looks like a function, and objects that stay on the other side."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection, Iterable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from rune.sandbox.protocol import codec

if TYPE_CHECKING:
    from rune.sandbox.protocol.connection import Link
NOTHING = object()  # no result yet


class Remote:
    """An object on the candidate's side: a class, an iterator, a function, an instance. Equal only to itself.

    Attributes are read and set on objects alone that the test itself makes, of classes it names (`own`): what a
    program *returns* could answer anything through its methods (a `count` that says 1000).
    """

    __slots__ = ("_handle", "_link", "_own")

    def __init__(self, link: Link, handle: codec.Handle, *, own: bool) -> None:
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_handle", handle)
        object.__setattr__(self, "_own", own)

    def __call__(self, /, *args: object, **options: object) -> Any:
        if self._own:
            return self._link.construct("call", self, *args, **options)
        if self._handle.kind != "callable":
            raise TypeError(f"'{self._handle.label}' object that the program returned is not called")
        return self._link.operate("call", self, *args, **options)

    def __iter__(self) -> Any:
        # Only what can be walked once is walked remotely. An object with both a length and elements could lie
        # about one of them; it has neither here.
        if self._handle.kind != "iterator":
            raise TypeError(f"'{self._handle.label}' object is not plain data")
        return self

    def __next__(self) -> Any:
        if self._handle.kind != "iterator":
            raise TypeError(f"'{self._handle.label}' object is not an iterator")
        return self._link.walk(self)

    def __getattr__(self, name: str) -> Any:
        return self._link.construct("getattr", self, self._public(name))

    def __setattr__(self, name: str, value: object) -> None:
        self._link.construct("setattr", self, self._public(name), value)

    def _public(self, name: str) -> str:
        if not self._own:
            raise AttributeError(f"'{self._handle.label}' object that the program returned is asked for no '{name}'")
        return public(name)

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

    def __call__(self, /, *args: object, **options: object) -> Any:
        self._note(args, options)
        result = self._link.last_result = self._link.operate("call", self.__name__, *args, **options)
        return result

    def observed(self, /, *args: Any, **options: Any) -> None:
        """A call whose result the test drops: it can only be after what happens to the arguments."""
        self._note(args, options)
        reply = self._link.operate("observe", self.__name__, *args, **options)
        if not (type(reply) is tuple and len(reply) == 3 and type(reply[1]) is tuple and type(reply[2]) is dict):
            raise self._link.protocol("no result with its arguments")
        if len(reply[1]) != len(args):
            raise self._link.protocol("another number of arguments")
        self._link.last_result = reply[0]
        for before, after in zip(args, reply[1], strict=True):
            become(before, after)
        for key, before in options.items():
            become(before, reply[2].get(key, before))

    def _note(self, args: tuple[object, ...], options: dict[str, object]) -> None:
        self._link.last_call = (self.__name__, args, options)
        self._link.last_result = NOTHING


def public(name: str) -> str:
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


_WHOLE = 20_000  # characters, about, up to which a value is written out in full before it is shortened


def short(value: object, limit: int = 300) -> str:
    """`repr`, shortened from the middle, whatever the value is and however large. Asks nothing of a program."""
    try:
        text = repr(value) if weight(value, _WHOLE) < _WHOLE else _beginning(value, limit)
    except Exception:
        text = f"<{type(value).__name__}>"
    return cut(text, limit)


def cut(text: str, limit: int) -> str:
    """At most about `limit` characters, the beginning and the end."""
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 3 :]}"


def weight(value: Any, limit: int) -> int:
    """About how many characters its `repr` has; `limit` or more as soon as that is clear."""
    kind = type(value)
    if kind in (str, bytes, bytearray):
        return len(value)
    if kind is int:
        return value.bit_length() // 3
    if kind is Fraction:
        return weight((value.numerator, value.denominator), limit)
    if isinstance(value, dict):
        parts: Iterable[Any] = itertools.chain.from_iterable(dict.items(value))
    elif isinstance(value, _CONTAINERS):
        parts = value
    else:
        return 10
    total = 2
    for part in parts:
        total += 2 + weight(part, limit - total)
        if total >= limit:
            break
    return total


_VIEWS: tuple[type[Collection[Any]], ...] = (type({}.keys()), type({}.values()), type({}.items()))
_CONTAINERS: tuple[type[Collection[Any]], ...] = (list, tuple, set, frozenset, deque, *_VIEWS)


def _beginning(value: Any, limit: int) -> str:
    """The first characters of the `repr` of something large, and that there is more."""
    if isinstance(value, (str, bytes, bytearray)):
        return f"{value[:limit]!r} … ({len(value)} in all)"
    if isinstance(value, dict):
        items = [f"{short(k, 60)}: {short(v, 60)}" for k, v in itertools.islice(dict.items(value), 8)]
    elif isinstance(value, _CONTAINERS):
        items = [short(item, 60) for item in itertools.islice(value, 8)]
    else:
        return f"<{type(value).__name__}>"
    return f"<{type(value).__name__} of {len(value)}: {', '.join(items)}, …>"
