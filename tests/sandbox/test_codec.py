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

from rune.sandbox import _codec, _decode
from rune.sandbox._codec import CodecError, Handle


def refuse(value: object) -> Handle:
    raise CodecError(type(value).__name__)


def there_and_back(value: object) -> object:
    return _decode.decode(_codec.encode(value, refuse), lambda handle: handle)


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
    for value in (np.int64(5), np.float32(0.5), np.bool_(True)):
        back = there_and_back(value)
        assert type(back) is type(value) and back == value
    array = there_and_back(np.arange(6.0).reshape(2, 3))
    assert isinstance(array, np.ndarray) and array.shape == (2, 3) and array[1, 2] == 5


def test_a_subclass_crosses_as_its_plain_content() -> None:
    class Liar(list):  # type: ignore[type-arg]
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    back = there_and_back(Liar([1]))
    assert type(back) is list and back == [1] and back != [2]


def test_what_is_not_plain_is_asked_about() -> None:
    with pytest.raises(CodecError, match="object"):
        there_and_back(object())
    data = _codec.encode([object()], lambda value: Handle(7, "object", "thing"))
    assert _decode.decode(data, lambda handle: handle.number) == [7]


def test_cycles_depth_and_bombs_are_refused_on_the_way_out() -> None:
    cycle: list[object] = []
    cycle.append(cycle)
    bomb: object = [1]
    for _ in range(50):
        bomb = [bomb, bomb]
    for value in (cycle, bomb, "x" * (_codec.MAX_BYTES + 1)):
        with pytest.raises(CodecError):
            there_and_back(value)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_decode_to_anything_but_data_or_a_refusal(data: bytes) -> None:
    with contextlib.suppress(CodecError):
        _decode.decode(data, lambda handle: handle)


def test_hostile_encodings_are_refused() -> None:
    deep = b"l\x01\x00\x00\x00" * 1000 + b"N"
    many = b"l" + struct.pack("<I", 2**32 - 1)
    array_of_objects = b"n" + struct.pack("<I", 1) + b"O" + b"N" + b"b" + struct.pack("<I", 8) + b"\0" * 8
    unhashable = b"S" + struct.pack("<I", 1) + b"l\x00\x00\x00\x00"
    for data in (b"", b"?", deep, many, array_of_objects, unhashable, pickle.dumps(print), b"NN", b"I\xff\xff\xff\xff"):
        with pytest.raises(CodecError):
            _decode.decode(data, lambda handle: handle)
