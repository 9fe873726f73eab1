"""What each kind of value looks like on the wire, and what it costs of what one message may hold: exactly, both ways.

The form is frozen (the judge and the box are two interpreters); the prices bound the memory that a message can take.
"""

from __future__ import annotations

import bisect
import datetime
import json
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from rune.sandbox.protocol import codec, decode
from rune.sandbox.protocol.codec import Caps, CodecError, Handle

FILE = Path(__file__).with_name("codec_prices.json")


def hold(value: object) -> Handle:
    return Handle(7, "object", "thing" * 50)


VALUES: dict[str, object] = {
    "none": None, "true": True, "false": False, "small integer": -2, "text": "aä\ud800", "float": -0.5,
    "largest packed integer": (1 << 63) - 1, "smallest packed integer": -(1 << 63), "first long integer": 1 << 63,
    "first long negative integer": -(1 << 63) - 1, "long integer": 1 << 135, "complex": 1.5 - 2j, "ellipsis": ...,
    "a type": int, "bytes": b"ab\0", "bytearray": bytearray(b"ab"), "empty list": [], "empty tuple": (),
    "list of eight": list(range(8)), "packed list": list(range(9)), "packed tuple": tuple(range(9)),
    "packed floats": [0.5] * 9, "packed tuple of floats": (0.5,) * 9, "mixed list": [1, 2.0] * 5,
    "too long to pack": [1 << 70, *range(9)], "truth values": [True] * 9, "nested": [[(1, [2])], {"a": [3]}],
    "dict": {1: "a", "b": (2,)}, "set": {3}, "frozenset": frozenset({3}), "deque": deque([1, 2]),
    "range": range(3, 9, 2), "Decimal": Decimal("-1.50"), "Fraction": Fraction(1 << 40, 3), "Counter": Counter("a"),
    "OrderedDict": OrderedDict([(2, 1)]), "defaultdict": defaultdict(int, {2: 1}), "keys": {1: 2, 3: 4}.keys(),
    "dict values": {1: 2, 3: 4}.values(), "items": {1: 2}.items(), "date": datetime.date(2026, 1, 2),
    "time": datetime.time(1, 2, 3), "datetime": datetime.datetime(2026, 1, 2, 3), "object": object(),
    "timedelta": datetime.timedelta(days=1, seconds=2, microseconds=3), "handle": Handle(-1, "class", "é" * 201),
    "array": np.arange(6, dtype=np.int16).reshape(2, 3), "number of numpy": np.float32(0.1),
    "empty array": np.zeros((0, 2)), "list of a subclass": type("L", (list,), {})([1, 2]),
    "two in a list": [Fraction(1, 3), np.arange(2)],
}  # fmt: skip


def least(raises: Callable[[int], object]) -> int:
    """The smallest cap with which it does not raise."""

    def fits(cap: int) -> bool:
        try:
            raises(cap)
        except CodecError:
            return False
        return True

    return bisect.bisect_left(range(1 << 12), True, key=fits)


def prices(name: str) -> dict[str, object]:
    value = VALUES[name]
    data = codec.encode(value, hold)
    found: dict[str, object] = {"bytes": data.hex()}
    for cap in ("values", "depth", "size", "bits", "fraction_bits", "digits", "exponent"):
        out = least(lambda n: codec.encode(value, hold, Caps()._replace(**{cap: n})))  # noqa: B023
        back = least(lambda n: decode.decode(data, lambda h: h, Caps()._replace(**{cap: n})))  # noqa: B023
        if out or back:
            found[cap] = [out, back]
    return found


@pytest.mark.parametrize("name", sorted(VALUES))
def test_a_value_looks_and_costs_as_it_did(name: str) -> None:
    assert prices(name) == json.loads(FILE.read_text())[name]


def test_what_is_refused_says_what_it_was_and_how_much_fits() -> None:
    small = Caps(size=20, depth=2, values=5, bits=70, fraction_bits=8, digits=3, exponent=9)
    for value, words in (
        ("x" * 21, "a value of 21 bytes; at most 20 fit"), (["x" * 9] * 2, "a value of 33 bytes; at most 20 fit"),
        ([[[]]], "data nested deeper than 2, or cyclic"), ([0] * 6, "more than 5 values"),
        (1 << 70, "an integer of 71 bits; at most 70 fit"),
        (Fraction(1, 257), "a Fraction with a number of 9 bits; at most 8 fit"),
        (Decimal("1.001"), "a Decimal of more than 3 digits, or with an exponent beyond 9"),
        (range(7), "a range of more than 5 values"),
    ):  # fmt: skip
        with pytest.raises(CodecError) as told:
            codec.encode(value, hold, small)
        assert str(told.value) == words


def test_a_trusted_value_is_marshalled_only_where_that_is_exact() -> None:
    """A set has no order and a subclass more than its content; both cross in our own form, in more room than out."""
    deepest: object = 1
    for _ in range(codec.IN.depth):
        deepest = [deepest]
    plain = (None, True, 3, 0.5, "a", b"b", 1j, [1, [2]], {"k": (1, {2: 3})})
    for value, tag in (
        (plain, b"M"), (deepest, b"M"), ({1: {2}}, b"d"), ({(1, frozenset()): 1}, b"d"), ([{1}], b"l"),
        ((object(),), b"t"), (Counter("a"), b"k"),
    ):  # fmt: skip
        data = codec.encode_trusted(value, hold)
        assert data[:1] == tag
        back = decode.decode_trusted(data, lambda handle: handle)
        assert type(back) is type(value)
        assert back == value or value == (object(),) or tag == b"t"
    with pytest.raises(CodecError):
        codec.encode_trusted([deepest], hold)


if __name__ == "__main__":  # python -m tests.sandbox.test_codec_prices: the table anew, when a form or a price changes
    json.dump({name: prices(name) for name in sorted(VALUES)}, FILE.open("w"), indent=1)
    sys.exit()
