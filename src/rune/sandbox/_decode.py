"""Bytes from a program → plain data; see `_codec`. Decoding calls no code that the sender chose."""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import marshal
import struct
from collections.abc import Callable
from typing import Any

from rune.sandbox._codec import DTYPE, F64, I64, LEN, MAX_DEPTH, MAX_VALUES, TYPES, CodecError, Handle

Resolve = Callable[[Handle], object]
_SHORT = {b"N": None, b"T": True, b"F": False}
_TEXT = 10_000  # characters of a Decimal or a date


def decode_trusted(data: bytes, resolve: Resolve) -> Any:
    """What `encode_trusted` made."""
    if data[:1] == b"M":
        return marshal.loads(data[1:])
    return decode(data, resolve)


def decode(data: bytes, resolve: Resolve) -> Any:
    """The value in `data`. Handles go through `resolve`. Raises CodecError for anything else than one encoding."""
    if len(data) == 1 and data in _SHORT:
        return _SHORT[data]
    decoder = _Decoder(data, resolve)
    try:
        value = decoder.get(0)
    except CodecError:
        raise
    except (struct.error, IndexError, KeyError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise CodecError(f"not an encoding: {type(error).__name__}") from None
    if decoder.at != len(data):
        raise CodecError("not an encoding: bytes are left over")
    return value


class _Decoder:
    def __init__(self, data: bytes, resolve: Resolve) -> None:
        self.data = data
        self.at = 0
        self.resolve = resolve
        self.left = MAX_VALUES

    def get(self, depth: int) -> Any:
        tag = self.data[self.at]
        self.at += 1
        if tag == 105:  # i
            return self._number(I64)
        if tag == 115:  # s
            return self._bytes().decode("utf-8", "surrogatepass")
        if tag == 78:  # N
            return None
        if tag == 84:  # T
            return True
        if tag == 70:  # F
            return False
        if tag == 102:  # f
            return self._number(F64)
        if tag == 108:  # l
            return self._items(depth)
        if tag == 116:  # t
            return tuple(self._items(depth))
        if tag == 100:  # d
            return self._dict(depth)
        if tag == 81 or tag == 113:  # Q, q
            numbers = self._packed("q", depth)
            return list(numbers) if tag == 81 else numbers
        if tag == 87 or tag == 119:  # W, w
            numbers = self._packed("d", depth)
            return list(numbers) if tag == 87 else numbers
        return self._rare(bytes((tag,)), depth)

    def _packed(self, form: str, depth: int) -> tuple[Any, ...]:
        data = self._bytes()
        return struct.unpack(f"<{self._spend(len(data) // 8, depth)}{form}", data)

    def _number(self, form: struct.Struct) -> Any:
        (value,) = form.unpack_from(self.data, self.at)
        self.at += 8
        return value

    def _bytes(self) -> bytes:
        (size,) = LEN.unpack_from(self.data, self.at)
        start = self.at + 4
        self.at = start + size
        if self.at > len(self.data):
            raise CodecError("not an encoding: cut short")
        return self.data[start : self.at]

    def _spend(self, count: int, depth: int) -> int:
        self.left -= count
        if self.left < 0 or depth >= MAX_DEPTH:
            raise CodecError("too many values or too deep")
        return count

    def _items(self, depth: int) -> list[Any]:
        (count,) = LEN.unpack_from(self.data, self.at)
        self.at += 4
        self._spend(count, depth)
        return [self.get(depth + 1) for _ in range(count)]

    def _dict(self, depth: int) -> dict[Any, Any]:
        (count,) = LEN.unpack_from(self.data, self.at)
        self.at += 4
        self._spend(2 * count, depth)
        # One insertion at a time, so that a flood of colliding keys can be interrupted.
        result = {}
        for _ in range(count):
            key = self.get(depth + 1)
            result[key] = self.get(depth + 1)
        return result

    def _rare(self, tag: bytes, depth: int) -> Any:
        if tag == b"I":
            return int.from_bytes(self._bytes(), "little", signed=True)
        if tag in (b"S", b"Z"):
            unique = set()
            for item in self._items(depth):
                unique.add(item)
            return unique if tag == b"S" else frozenset(unique)
        if tag == b"b":
            return self._bytes()
        if tag == b"y":
            return bytearray(self._bytes())
        if tag == b"c":
            return complex(self._number(F64), self._number(F64))
        if tag == b"E":
            return Ellipsis
        if tag == b"X":
            return TYPES[self._bytes().decode()]
        if tag == b"H":
            number = self._number(I64)
            kind, label = self._label(), self._label()
            return self.resolve(Handle(number, kind, label))
        if tag == b"k":
            name = self._bytes().decode()
            self._spend(1, depth)
            return _rebuild(name, self.get(depth + 1))
        if tag == b"n":
            return _numpy_get(self)
        raise CodecError("not an encoding: unknown tag")

    def _label(self) -> str:
        if self.data[self.at : self.at + 1] != b"s":
            raise CodecError("not an encoding: a handle without its label")
        self.at += 1
        return self._bytes().decode("utf-8", "replace")


def _rebuild(name: str, parts: Any) -> Any:
    if name == "range":
        start, stop, step = (_want(part, int) for part in parts)
        return range(start, stop, step)
    if name == "Fraction":
        numerator, denominator = (_want(part, int) for part in parts)
        return fractions.Fraction(numerator, denominator)
    if name == "timedelta":
        days, seconds, microseconds = (_want(part, int) for part in parts)
        return datetime.timedelta(days, seconds, microseconds)
    if name == "deque":
        return collections.deque(_want(parts, list))
    if name == "Counter":
        counter: collections.Counter[Any] = collections.Counter()
        dict.update(counter, _want(parts, dict))
        return counter
    if name == "OrderedDict":
        return collections.OrderedDict(_want(parts, dict))
    if name == "defaultdict":
        return collections.defaultdict(None, _want(parts, dict))
    if name == "dict_keys":
        return dict.fromkeys(_want(parts, list)).keys()
    if name == "dict_values":
        return dict(enumerate(_want(parts, list))).values()
    if name == "dict_items":
        return {key: item for key, item in _want(parts, list)}.items()  # noqa: C416 — see _dict
    text = _want(parts, str)
    if len(text) > _TEXT:
        raise CodecError("text too long")
    if name == "Decimal":
        return decimal.Decimal(text)
    if name in ("date", "time", "datetime"):
        return getattr(datetime, name).fromisoformat(text)
    raise CodecError("not an encoding: unknown kind")


def _want(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise CodecError("not an encoding: a part of the wrong type")
    return value


def _numpy_get(decoder: _Decoder) -> Any:
    dtype = decoder._bytes().decode("ascii", "replace")
    shape = decoder.get(MAX_DEPTH - 1)
    raw = decoder.get(MAX_DEPTH - 1)
    if not DTYPE.match(dtype) or type(raw) is not bytes:
        raise CodecError("not an encoding: no numeric array")
    try:
        import numpy
    except ImportError:
        raise CodecError("an array, and this interpreter has no numpy") from None
    flat = numpy.frombuffer(raw, dtype=numpy.dtype(dtype))
    if shape is None:
        return flat[0]
    return flat.reshape(tuple(_want(n, int) for n in _want(shape, tuple))).copy()
