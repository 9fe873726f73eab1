"""Plain data survives the wall; nothing else gets through it."""

from __future__ import annotations

import contextlib
import math
import pickle
import struct
from collections import Counter, OrderedDict, deque
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rune.sandbox.protocol import codec, decode
from rune.sandbox.protocol.codec import Caps, CodecError, Handle


def refuse(value: object) -> Handle:
    raise CodecError(type(value).__name__)


def there_and_back(value: object) -> object:
    return decode.decode(codec.encode(value, refuse), lambda handle: handle)


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()) | st.binary()
    | st.complex_numbers(allow_nan=False)
)  # fmt: skip
keys = st.integers() | st.text() | st.booleans() | st.tuples(st.integers(), st.text())
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(keys, inner)
        | st.sets(keys)
        | st.frozensets(keys)
    ),
    max_leaves=30,
)


@settings(max_examples=200, deadline=None)
@given(values)
def test_plain_data_comes_back_equal_and_of_the_same_type(value: object) -> None:
    back = there_and_back(value)
    assert back == value
    assert repr(back) == repr(value) or isinstance(value, (set, frozenset, dict, list, tuple))


@pytest.mark.parametrize(
    "value",
    [
        [1] * 100, [1.5] * 100, (1,) * 100, (1.5,) * 100, (2**63, *range(9)), list(range(-50, 50)), [2**63, *range(9)],
        [True] * 10, (1, 1.0) * 10, -(2**63), 10**400, float("inf"), -0.0,
        "\ud800\x00", deque([1, 2]), range(3, 9, 2), Decimal("1.50"), Fraction(3, 7), Counter("aab"),
        OrderedDict([(2, 1), (1, 2)]), date(2026, 1, 2), timedelta(days=3), ..., int, str, list, {},
    ],
    ids=repr,
)  # fmt: skip
def test_these_come_back_as_they_were(value: object) -> None:
    back = there_and_back(value)
    assert type(back) is type(value)
    assert back == value
    assert repr(back) == repr(value)


def test_nan_and_numbers_of_numpy() -> None:
    assert math.isnan(there_and_back(float("nan")))  # type: ignore[arg-type]
    for value, plain in (
        (np.int64(5), 5), (np.uint64(2**64 - 1), 2**64 - 1), (np.int8(-1), -1), (np.float32(0.5), 0.5),
        (np.float64(-0.0), -0.0), (np.longdouble(0.25), 0.25), (np.bool_(True), True), (np.complex64(1j), 1j),
        (np.clongdouble(2), 2 + 0j), (np.str_("a"), "a"), (np.bytes_(b"a"), b"a"),
    ):  # fmt: skip
        back = there_and_back(value)
        assert type(back) is type(plain) and repr(back) == repr(plain)
    array = there_and_back(np.arange(6.0).reshape(2, 3))
    assert isinstance(array, np.ndarray) and array.shape == (2, 3) and array[1, 2] == 5


def test_no_number_of_numpy_makes_an_expected_value_rounder() -> None:
    """`np.float16("inf") == 70000` and `np.float16(0.1) == 0.1` are true: numpy rounds the other side too."""
    short = np.float16("inf")
    with np.errstate(over="ignore"):
        assert short == 70000 and there_and_back(short) != 70000
    assert there_and_back(np.float32(0.1)) != 0.1
    for dtype in "?bBhHiIlLqQefdgFDG":
        back = there_and_back(np.array([0, 1], dtype=dtype))
        assert isinstance(back, np.ndarray)
        assert back.dtype == {"b": bool, "i": np.int64, "u": np.uint64, "f": float, "c": complex}[np.dtype(dtype).kind]
        assert back.tolist() == [0, 1]
        empty = there_and_back(np.zeros((0, 3), dtype=dtype))
        assert isinstance(empty, np.ndarray) and empty.shape == (0, 3)
    assert not (there_and_back(np.array([np.inf], dtype=np.float16)) == [70000]).any()  # type: ignore[attr-defined]


def test_a_subclass_crosses_as_its_plain_content() -> None:
    class Liar(list):  # type: ignore[type-arg]
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    back = there_and_back(Liar([1]))
    assert type(back) is list and back == [1] and back != [2]


def test_a_class_of_the_program_is_asked_about_and_a_builtin_is_itself() -> None:
    class Own:
        pass

    asked: list[object] = []

    def shelve(value: object) -> Handle:
        asked.append(value)
        return Handle(7, "class", "type")

    got = decode.decode(codec.encode((Own, int), shelve), lambda handle: handle)
    assert got == (Handle(7, "class", "type"), int) and asked == [Own]


def test_what_is_not_plain_is_asked_about() -> None:
    with pytest.raises(CodecError, match="object"):
        there_and_back(object())
    data = codec.encode([object()], lambda value: Handle(7, "object", "thing"))
    assert decode.decode(data, lambda handle: handle.number) == [7]


def test_cycles_depth_and_bombs_are_refused_on_the_way_out() -> None:
    cycle: list[object] = []
    cycle.append(cycle)
    bomb: object = [1]
    for _ in range(50):
        bomb = [bomb, bomb]
    for value in (cycle, bomb, "x" * (codec.MAX_BYTES + 1)):
        with pytest.raises(CodecError):
            there_and_back(value)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_decode_to_anything_but_data_or_a_refusal(data: bytes) -> None:
    with contextlib.suppress(CodecError):
        decode.decode(data, lambda handle: handle)


def test_hostile_encodings_are_refused() -> None:
    deep = b"l\x01\x00\x00\x00" * 1000 + b"N"
    many = b"l" + struct.pack("<I", 2**32 - 1)
    array_of_objects = b"n" + struct.pack("<I", 1) + b"O" + b"N" + b"b" + struct.pack("<I", 8) + b"\0" * 8
    unhashable = b"S" + struct.pack("<I", 1) + b"l\x00\x00\x00\x00"
    for data in (b"", b"?", deep, many, array_of_objects, unhashable, pickle.dumps(print), b"NN", b"I\xff\xff\xff\xff"):
        with pytest.raises(CodecError):
            decode.decode(data, lambda handle: handle)


def test_numbers_are_as_long_as_honest_answers_are_and_no_longer() -> None:
    for value in (
        -(1 << 3_400_000),  # HumanEval+/83 asks for 10 ** 999_998
        Fraction(10**19_000, 3**12_000), Decimal(7) ** -50_000, Decimal("0E-99999"), Decimal("Infinity"),
        range(7, -8_000_000, -2),
    ):  # fmt: skip
        assert there_and_back(value) == value
    long = 1 << codec.OUT.fraction_bits
    for value in (
        1 << 5_000_000, 1 << codec.MAX_BITS + 10, Fraction(long, 3), Fraction(3, long), [Fraction(long - 1, 2)] * 600,
        Decimal("1E100001"), Decimal("1E-100002"), Decimal("1" * 10_001), range(8_000_001), range(0, -16_000_002, -2),
    ):  # fmt: skip
        with pytest.raises(CodecError):
            there_and_back(value)
        data = codec.encode(value, refuse, codec.IN)  # a program may write its own encoder
        with pytest.raises(CodecError):
            decode.decode(data, lambda handle: handle)


def nest(kind: str, depth: int) -> object:
    """`depth` containers of a kind, one in the other."""
    value: object = 1
    for _ in range(depth):
        if kind == "dict value":
            value = {1: value}
        elif kind == "deque":
            value = deque([value])
        elif kind == "dict_values":
            value = {1: value}.values()
        else:
            value = {"list": list, "tuple": tuple, "frozenset": frozenset}[kind]([value])
    return value


@pytest.mark.parametrize("kind", ["list", "tuple", "dict value", "frozenset", "deque", "dict_values"])
def test_what_the_decoder_accepts_can_be_sent_back_in_a_call(kind: str) -> None:
    """MBPP/601 passes on what it was given: 97 lists in each other were more than a call could hold."""
    deepest = None
    for depth in range(40, 120):
        try:
            value = there_and_back(nest(kind, depth))
        except CodecError:
            break
        deepest = depth
        request = ("call", "f", ([[value, value]], value), {"key": {"x": [value]}})
        back = decode.decode_trusted(codec.encode_trusted(request, refuse), lambda handle: handle)
        assert type(back) is tuple and len(back) == 4
    assert deepest is not None and deepest < 110


def test_the_way_in_holds_several_of_the_largest_that_come_out() -> None:
    """Widened arrays, and numbers that were sent in fewer bytes than ours are."""
    small = Caps(size=1 << 16, values=8000)
    inside = Caps(*(8 * cap for cap in small))
    assert Caps(*(8 * cap for cap in Caps()))._replace(depth=codec.IN.depth) == codec.IN
    array = codec.encode(np.zeros(7900, np.int8), refuse)
    halves = codec.encode(np.zeros(7900, np.complex64), refuse)
    ones = b"t" + struct.pack("<I", 7999) + (b"I" + struct.pack("<I", 1) + b"\x01") * 7999
    for data in (array, halves, ones):
        value = decode.decode(data, refuse, small)
        assert len(value) >= 7900
        assert codec.encode((value, value, [value]), refuse, inside)
