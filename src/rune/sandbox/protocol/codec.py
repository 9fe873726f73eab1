"""Plain data over a socket: typed, bounded, and never executable.

What crosses the wall of the box is one of these values, whoever wrote the bytes: None, bool, int, float,
complex, str, bytes, bytearray, list, tuple, set, frozenset, dict, Ellipsis; a handful of standard-library
values rebuilt from plain parts (deque, range, Decimal, Fraction, Counter, OrderedDict, defaultdict, date and
time values); arrays of numpy with a numeric dtype, widened to 64 bits; a built-in type by name; or a handle, a bare
number that stands for an object which stays on the other side. Numbers, truth values and dates of lent packages
cross as Python's own (`foreign`). Decoding calls no code that the sender chose. Size, nesting, number of values
and the length of numbers are capped on both sides, so neither cycles nor bombs get through; the way into the box has
more room than the way out, so that a test can always pass on what it was given.
"""

from __future__ import annotations

import builtins
import collections
import datetime
import decimal
import fractions
import marshal
import re
import struct
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from rune.sandbox.protocol import foreign

MAX_BYTES = 64 << 20  # of one message
MAX_DEPTH = 100
MAX_VALUES = 8_000_000  # MBPP+/255 asks for 6.4 million at once, HumanEval+/130 for a million
MAX_BITS = 1 << 22  # of an integer; the answer to HumanEval+/83 has 3.3 million, to 139 0.9 million


class Caps(NamedTuple):
    """What one message may hold."""

    size: int = MAX_BYTES
    depth: int = MAX_DEPTH
    values: int = MAX_VALUES
    bits: int = MAX_BITS
    fraction_bits: int = 1 << 16  # of numerator and of denominator: reducing takes time that grows with the square
    digits: int = 10_000  # of a Decimal
    exponent: int = 100_000  # of a Decimal: int() of Decimal("1e999999") takes twenty seconds


OUT = Caps()  # from a program
# To a program: what came out of one fits several times over, in the containers that a test puts around it.
IN = Caps(*(8 * cap for cap in OUT))._replace(depth=MAX_DEPTH + 30)
# Memory that one takes beyond what its parts do, counted in values; see the test of the memory that a message can take.
WEIGHTS = {"set": 4, "deque": 14, "Counter": 6, "OrderedDict": 6, "defaultdict": 6, "array": 8, "handle": 4}

I64 = struct.Struct("<q")
F64 = struct.Struct("<d")
LEN = struct.Struct("<I")
_MIN, _MAX = -(1 << 63), (1 << 63) - 1
DTYPE = re.compile(r"[<>|=]?[?biufc](?:1|2|4|8|16|32)?\Z")
TYPES = {
    name: value
    for name, value in vars(builtins).items()
    if isinstance(value, type) and not issubclass(value, BaseException)
}

_WIDE: dict[str, Callable[[Any], object]] = {"b": bool, "i": int, "u": int, "f": float, "c": complex}
_DATES = (datetime.datetime, datetime.date, datetime.time)
_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))


class CodecError(ValueError):
    """A value too large, too deep or of no plain kind; or bytes that are no encoding."""


class Handle(NamedTuple):
    """Stands for an object on the other side. Equal to nothing but itself."""

    number: int
    kind: str  # "iterator", "callable", "class" or "object"
    label: str  # its type's name, for messages


Register = Callable[[object], Handle]


def check_decimal(value: decimal.Decimal, caps: Caps) -> None:
    """Raises CodecError for one on which arithmetic takes long."""
    _, digits, exponent = decimal.Decimal.as_tuple(value)
    if len(digits) > caps.digits or (isinstance(exponent, int) and abs(exponent + len(digits)) > caps.exponent):
        raise CodecError(f"a Decimal of more than {caps.digits} digits, or with an exponent beyond {caps.exponent}")


def check_range(value: range, caps: Caps) -> None:
    """Raises CodecError for one longer than any list: `max` of it would not come back."""
    if value and abs((value[-1] - value[0]) // value.step) >= caps.values:
        raise CodecError(f"a range of more than {caps.values} values")


def check_fraction(numerator: int, denominator: int, caps: Caps) -> int:
    """Its length in bytes, to be spent as values: many that are long take as long as one that is longer.

    Raises CodecError for one whose reduction takes long.
    """
    bits = max(numerator.bit_length(), denominator.bit_length())
    if bits > caps.fraction_bits:
        raise CodecError(f"a Fraction with a number of {bits} bits; at most {caps.fraction_bits} fit")
    return bits // 4


def encode(value: object, register: Register, caps: Caps = OUT) -> bytes:
    """`value` as bytes. `register` turns what is not plain into a Handle, or raises CodecError."""
    if value is None or value is True or value is False:  # most answers are as short as that
        return b"N" if value is None else b"T" if value else b"F"
    out: list[bytes] = []
    _Encoder(out, register, caps).put(value, 0)
    data = b"".join(out)
    if len(data) > caps.size:
        raise CodecError(f"a value of {len(data)} bytes; at most {caps.size} fit")
    return data


class _Encoder:
    def __init__(self, out: list[bytes], register: Register, caps: Caps) -> None:
        self.add = out.append
        self.register = register
        self.caps = caps
        self.left = caps.values

    def put(self, value: Any, depth: int) -> None:
        kind = type(value)
        if kind is int:
            self._int(value)
        elif kind is str:
            self._sized(b"s", value.encode("utf-8", "surrogatepass"))
        elif value is None:
            self.add(b"N")
        elif kind is bool:
            self.add(b"T" if value else b"F")
        elif kind is float:
            self.add(b"f" + F64.pack(value))
        elif kind is list:
            self._sequence(value, b"lQW", depth)
        elif kind is tuple:
            self._sequence(value, b"tqw", depth)
        elif kind is dict:
            self._dict(value, depth)
        else:
            self._rare(value, depth)

    def _int(self, value: int) -> None:
        if _MIN <= value <= _MAX:
            self.add(b"i" + I64.pack(value))
        else:
            bits = value.bit_length()
            if bits > self.caps.bits:
                raise CodecError(f"an integer of {bits} bits; at most {self.caps.bits} fit")
            self._sized(b"I", value.to_bytes(bits // 8 + 1, "little", signed=True))

    def _sized(self, tag: bytes, data: bytes) -> None:
        if len(data) > self.caps.size:
            raise CodecError(f"a value of {len(data)} bytes; at most {self.caps.size} fit")
        self.add(tag + LEN.pack(len(data)))
        self.add(data)

    def _sequence(self, value: list[Any] | tuple[Any, ...], tags: bytes, depth: int) -> None:
        """Numbers of one kind are packed, which is ten times as fast. `tags`: any items, integers, floats."""
        if len(value) > 8:
            kinds = set(map(type, value))
            if kinds == {int} or kinds == {float}:
                tag, form = (tags[1:2], "q") if kinds == {int} else (tags[2:], "d")
                self._spend(len(value), depth)
                try:
                    self._sized(tag, struct.pack(f"<{len(value)}{form}", *value))
                    return
                except struct.error:  # an integer of more than 64 bits
                    self.left += len(value)
        self._many(tags[:1], value, len(value), depth)

    def _many(self, tag: bytes, items: Any, count: int, depth: int) -> None:
        self._spend(count, depth)
        self.add(tag + LEN.pack(count))
        for item in items:
            self.put(item, depth + 1)

    def _dict(self, value: dict[Any, Any], depth: int) -> None:
        self._spend(2 * len(value), depth)
        self.add(b"d" + LEN.pack(len(value)))
        for key, item in list(dict.items(value)):
            self.put(key, depth + 1)
            self.put(item, depth + 1)

    def _spend(self, count: int, depth: int) -> None:
        self.left -= count
        if depth >= self.caps.depth:
            raise CodecError(f"data nested deeper than {self.caps.depth}, or cyclic")
        if self.left < 0:
            raise CodecError(f"more than {self.caps.values} values")

    def _rare(self, value: Any, depth: int) -> None:
        kind = type(value)
        if kind.__module__ == "numpy" and self._numpy(value, depth):
            return
        if kind is complex:
            self.add(b"c" + F64.pack(value.real) + F64.pack(value.imag))
        elif value is Ellipsis:
            self.add(b"E")
        elif isinstance(value, type):
            if TYPES.get(kind_name := value.__name__) is value:
                self._sized(b"X", kind_name.encode())
            else:
                self._handle(value)
        elif isinstance(value, Handle):
            self._spend(WEIGHTS["handle"], depth)
            self.add(b"H" + I64.pack(value.number))
            self._sized(b"s", value.kind.encode())
            self._sized(b"s", value.label[:200].encode("utf-8", "replace"))
        elif isinstance(value, range):
            check_range(value, self.caps)
            self._tagged("range", (value.start, value.stop, value.step), depth)
        elif isinstance(value, decimal.Decimal):
            check_decimal(value, self.caps)
            self._tagged("Decimal", decimal.Decimal.__str__(value), depth)
        elif isinstance(value, fractions.Fraction):
            self._spend(check_fraction(value.numerator, value.denominator, self.caps), depth)
            self._tagged("Fraction", (value.numerator, value.denominator), depth)
        elif isinstance(value, collections.deque):
            self._tagged("deque", list(collections.deque.__iter__(value)), depth)
        elif kind in _VIEWS:
            self._tagged(kind.__name__, list(value), depth)
        elif kind in _DATES:
            self._tagged(kind.__name__, value.isoformat(), depth)
        elif kind is datetime.timedelta:
            self._tagged("timedelta", (value.days, value.seconds, value.microseconds), depth)
        else:
            self._subclass(value, depth)

    def _subclass(self, value: Any, depth: int) -> None:
        # A subclass of a plain type crosses as its plain content: an overridden __eq__ stays behind.
        if isinstance(value, str):
            self._sized(b"s", str.encode(value, "utf-8", "surrogatepass"))
        elif isinstance(value, int):
            self._int(int.__pos__(value))
        elif isinstance(value, float):
            self.add(b"f" + F64.pack(float.__pos__(value)))
        elif isinstance(value, bytes):
            self._sized(b"b", bytes.__add__(value, b""))
        elif isinstance(value, bytearray):
            self._sized(b"y", bytes(bytearray.__add__(value, b"")))
        elif isinstance(value, list):
            self._many(b"l", list.__iter__(value), list.__len__(value), depth)
        elif isinstance(value, tuple):
            self._many(b"t", tuple.__iter__(value), tuple.__len__(value), depth)
        elif isinstance(value, set):
            self._set(b"S", set.__iter__(value), set.__len__(value), depth)
        elif isinstance(value, frozenset):
            self._set(b"Z", frozenset.__iter__(value), frozenset.__len__(value), depth)
        elif isinstance(value, dict):
            name = type(value).__name__
            if name in ("Counter", "OrderedDict", "defaultdict"):
                self._tagged(name, dict(dict.items(value)), depth)
            else:
                self._dict(dict(dict.items(value)), depth)
        elif (plain := foreign.plain(value)) is not foreign.NONE:
            self.put(plain, depth)
        else:
            self._handle(value)

    def _set(self, tag: bytes, items: Any, count: int, depth: int) -> None:
        self._spend(WEIGHTS["set"], depth)
        self._many(tag, items, count, depth)

    def _numpy(self, value: Any, depth: int) -> bool:
        """A number of numpy as Python's own, an array as its bytes. Whether it was either."""
        numpy = sys.modules.get("numpy")
        if numpy is None or not isinstance(value, (numpy.ndarray, numpy.generic)) or not DTYPE.match(value.dtype.str):
            return False
        if isinstance(value, numpy.generic):
            self.put(_WIDE[value.dtype.kind](value), depth)
            return True
        self._spend(WEIGHTS["array"] + int(value.size), depth)
        self._sized(b"n", value.dtype.str.encode())
        self._many(b"t", tuple(int(n) for n in value.shape), value.ndim, depth)
        self._sized(b"b", value.tobytes())
        return True

    def _tagged(self, name: str, parts: object, depth: int) -> None:
        self._spend(WEIGHTS.get(name, 1), depth)
        self._sized(b"k", name.encode())
        self.put(parts, depth + 1)

    def _handle(self, value: object) -> None:
        handle = self.register(value)
        self._rare(handle, 0)


# --------------------------------------------------------------------------- from us to the program

_PLAIN = frozenset({int, str, float, bool, type(None), bytes, complex})


def encode_trusted(value: Any, register: Register) -> bytes:
    """For the way into the box, whose sender is ours: marshal where it is exact, which is ten times as fast.

    Never the other way: marshal must not read what a program sent. The same value gives the same bytes.
    """
    if _marshals(value, IN.depth):
        return b"M" + marshal.dumps(value, 2)
    return encode(value, register, IN)


def _marshals(value: Any, depth: int) -> bool:
    kind = type(value)
    if kind in _PLAIN:
        return True
    if not depth:
        return False
    if kind is list or kind is tuple:
        return all(type(item) in _PLAIN or _marshals(item, depth - 1) for item in value)
    if kind is dict:
        return all(_marshals(k, depth - 1) and _marshals(v, depth - 1) for k, v in value.items())
    return False  # sets too: their order is not part of their value
