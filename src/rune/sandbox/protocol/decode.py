"""Bytes from a program → plain data; see `codec`. Decoding calls no code that the sender chose."""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import marshal
import struct
from collections.abc import Callable
from typing import Any

from rune.sandbox.protocol import codec
from rune.sandbox.protocol.codec import DTYPE, F64, I64, IN, LEN, OUT, TYPES, WEIGHTS, Caps, CodecError, Handle

Resolve = Callable[[Handle], object]
_SHORT = {b"N": None, b"T": True, b"F": False}
_DATE_CHARS = 100
_WIDE = {"b": "?", "i": "i8", "u": "u8", "f": "f8", "c": "c16"}  # a kind of dtype → what an array of it becomes


def decode_trusted(data: bytes, resolve: Resolve) -> Any:
    """What `encode_trusted` made."""
    if data[:1] == b"M":
        return marshal.loads(data[1:])
    return decode(data, resolve, IN)


def decode(data: bytes, resolve: Resolve, caps: Caps = OUT) -> Any:
    """The value in `data`. Handles go through `resolve`. Raises CodecError for anything else than one encoding."""
    if len(data) == 1 and data in _SHORT:
        return _SHORT[data]
    decoder = _Decoder(data, resolve, caps)
    try:
        value = decoder.get(0)
    except CodecError:
        raise
    except (struct.error, IndexError, KeyError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise CodecError(f"not an encoding: {type(error).__name__}") from None
    except MemoryError:
        raise CodecError("more than there is memory for") from None
    if decoder.at != len(data):
        raise CodecError("not an encoding: bytes are left over")
    return value


class _Decoder:
    def __init__(self, data: bytes, resolve: Resolve, caps: Caps) -> None:
        self.data = data
        self.at = 0
        self.resolve = resolve
        self.caps = caps
        self.left = caps.values

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
        if self.left < 0 or depth >= self.caps.depth:
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
            return self._integer()
        if tag in (b"S", b"Z"):
            self._spend(WEIGHTS["set"], depth)
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
            self._spend(WEIGHTS["handle"], depth)
            number = self._number(I64)
            kind, label = self._label(), self._label()
            return self.resolve(Handle(number, kind, label))
        if tag == b"k":
            name = self._bytes().decode()
            self._spend(WEIGHTS.get(name, 1), depth)
            return self._rebuild(name, self.get(depth + 1), depth)
        if tag == b"n":
            return self._array(depth)
        raise CodecError("not an encoding: unknown tag")

    def _integer(self) -> int:
        data = self._bytes()
        if len(data) > self.caps.bits // 8 + 1:
            raise CodecError(f"an integer of more than {self.caps.bits} bits")
        return int.from_bytes(data, "little", signed=True)

    def _label(self) -> str:
        if self.data[self.at : self.at + 1] != b"s":
            raise CodecError("not an encoding: a handle without its label")
        self.at += 1
        return self._bytes().decode("utf-8", "replace")

    def _rebuild(self, name: str, parts: Any, depth: int) -> Any:
        if name in _REBUILD:
            return _REBUILD[name](parts)
        if name == "range":
            found = range(*_three(parts))
            codec.check_range(found, self.caps)
            return found
        if name == "Fraction":
            numerator, denominator = (_want(part, int) for part in parts)
            self._spend(codec.check_fraction(numerator, denominator, self.caps), depth)
            return fractions.Fraction(numerator, denominator)
        if name == "Decimal":
            if len(_want(parts, str)) > 2 * self.caps.digits:
                raise CodecError("a Decimal of too many characters")
            number = decimal.Decimal(parts)
            codec.check_decimal(number, self.caps)
            return number
        raise CodecError("not an encoding: unknown kind")

    def _array(self, depth: int) -> Any:
        dtype, shape, raw = self._bytes().decode("ascii", "replace"), self.get(depth), self.get(depth)
        if not DTYPE.match(dtype) or type(raw) is not bytes:
            raise CodecError("not an encoding: no numeric array")
        try:
            import numpy
        except ImportError:
            raise CodecError("an array, and this interpreter has no numpy") from None
        exact = numpy.dtype(dtype)
        if exact.kind not in _WIDE:
            raise CodecError("not an encoding: no numeric array")
        self._spend(WEIGHTS["array"] + len(raw) // exact.itemsize, depth)
        # In the widest form of its kind: a number beside a short one of numpy would be rounded to be as short.
        with numpy.errstate(all="ignore"):
            wide = numpy.frombuffer(raw, exact).astype(_WIDE[exact.kind])
        return wide.reshape(tuple(_want(n, int) for n in _want(shape, tuple)))


def _three(parts: Any) -> tuple[int, int, int]:
    first, second, third = (_want(part, int) for part in parts)
    return first, second, third


def _keys(parts: Any) -> Any:
    unique: dict[Any, None] = {}
    for key in _want(parts, list):  # one at a time: see _dict
        unique[key] = None
    return unique.keys()


def _counter(parts: Any) -> collections.Counter[Any]:
    counter: collections.Counter[Any] = collections.Counter()
    dict.update(counter, _want(parts, dict))
    return counter


_REBUILD: dict[str, Callable[[Any], Any]] = {
    "Counter": _counter,
    "OrderedDict": lambda parts: collections.OrderedDict(_want(parts, dict)),
    "defaultdict": lambda parts: collections.defaultdict(None, _want(parts, dict)),
    "deque": lambda parts: collections.deque(_want(parts, list)),
    "dict_keys": _keys,
    "dict_values": lambda parts: dict(enumerate(_want(parts, list))).values(),
    "dict_items": lambda parts: {key: item for key, item in _want(parts, list)}.items(),  # noqa: C416 — see _dict
    "timedelta": lambda parts: datetime.timedelta(*_three(parts)),
    "date": lambda parts: datetime.date.fromisoformat(_date(parts)),
    "time": lambda parts: datetime.time.fromisoformat(_date(parts)),
    "datetime": lambda parts: datetime.datetime.fromisoformat(_date(parts)),
}


def _date(parts: Any) -> str:
    text: str = _want(parts, str)
    if len(text) > _DATE_CHARS:
        raise CodecError("a date of too many characters")
    return text


def _want(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise CodecError("not an encoding: a part of the wrong type")
    return value
