"""Bytes that a program made up: plain data or a refusal, in bounded time and memory, and nothing else."""

from __future__ import annotations

import contextlib
import datetime
import random
import signal
import struct
import time
import tracemalloc
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from rune.sandbox.protocol import codec, decode
from rune.sandbox.protocol.codec import LEN, Caps, CodecError, Handle

EXAMPLES: list[object] = [
    None, True, 7, -(2**63), 2**70, -(2**400), 1.5, float("nan"), 2j, "text", "é\ud800", b"bytes", bytearray(b"ab"),
    ..., int, [1, 2, 3], [1] * 20, [0.5] * 20, (1, "a", None), {1, 2}, frozenset({"a"}), {"a": [1], 2: {3: 4}},
    range(3, 9, 2), deque([1, 2]), Counter("aab"), OrderedDict([(2, 1)]), defaultdict(list, {1: [2]}), Decimal("1.50"),
    Fraction(3, 7),
    {1: 2}.keys(), {1: 2}.values(), {1: 2}.items(), datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC),
    datetime.date(2026, 1, 2), datetime.time(1, 2), datetime.timedelta(3, 4, 5), np.arange(6).reshape(2, 3),
    np.array([1.5, 2]), np.array([True]), np.zeros((0, 3), np.complex64), np.float16(2), object(),
    [object(), {1: object()}],
]  # fmt: skip
PLAIN = {
    type(None), bool, int, float, complex, str, bytes, bytearray, type(...), type, list, tuple, set, frozenset, dict,
    range, deque, Counter, OrderedDict, defaultdict, Decimal, Fraction, type({}.keys()), type({}.values()),
    type({}.items()), datetime.datetime, datetime.date, datetime.time, datetime.timedelta, np.ndarray, Handle,
}  # fmt: skip
SMALL = Caps(size=1 << 16, depth=20, values=2000, bits=1 << 12, fraction_bits=1 << 10, digits=100, exponent=1000)
HEADS = ((1 << 32) - 1, 1 << 31, 1 << 24, 65536, 255, 9, 8, 7, 1, 0)  # lengths and counts that lie


def kept(value: object) -> Handle:
    return Handle(random.getrandbits(8), "object", type(value).__name__)


def assert_plain(value: object) -> None:
    todo = [value]
    while todo:
        item = todo.pop()
        assert type(item) in PLAIN, type(item)
        if isinstance(item, dict):
            todo += item.keys()
            todo += item.values()
        elif isinstance(item, (list, tuple, set, frozenset, deque)) and not isinstance(item, Handle):
            todo += item
        elif isinstance(item, np.ndarray):
            assert item.dtype in (np.bool_, np.int64, np.uint64, np.float64, np.complex128) and item.flags.writeable


def mutated(rng: random.Random, parts: list[bytes]) -> bytes:
    """A real encoding with one to four changes: a byte, a length or count, a piece cut, doubled or of another one."""
    data = bytearray(rng.choice(parts))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        what = rng.randrange(8)
        if what == 0 and data:
            data[at % len(data)] = rng.randrange(256)
        elif what == 1 and data:
            data[at % len(data)] = rng.choice(b"NTFisfltdQqWwISZbycEXHkn")
        elif what == 2:
            data[at : at + 4] = LEN.pack(rng.choice(HEADS))
        elif what == 3:
            data[at : at + rng.randint(1, 12)] = b""
        elif what == 4:
            data[at:at] = data[at : at + rng.randint(1, 30)]
        elif what == 5:
            data[at:at] = rng.choice(parts)
        elif what == 6:
            name = rng.choice([*decode._REBUILD, "range", "Fraction", "Decimal", "nonsense"]).encode()
            data[:0] = b"k" + LEN.pack(len(name)) + name
        else:
            inner = rng.choice(parts)
            data[at:] = rng.choice([b"l", b"t", b"S", b"Z"]) + LEN.pack(2) + data[at:] + inner
        del data[4000:]
    return bytes(data)


@pytest.mark.parametrize("seed", range(4))
def test_a_mutated_encoding_is_plain_data_or_refused(seed: int) -> None:
    rng = random.Random(seed)
    parts = [codec.encode(value, kept) for value in EXAMPLES]
    outcomes: Counter[str] = Counter()
    while outcomes.total() < 8000:
        data = mutated(rng, parts)
        began = time.process_time()
        try:
            value = decode.decode(data, lambda handle: handle)
        except CodecError as error:
            outcomes["refused"] += 1
            assert len(str(error)) < 200
            continue
        finally:
            assert time.process_time() - began < 2.0, data  # CPU time of this process, whoever else is busy
        outcomes["data"] += 1
        if len(data) < 200:
            parts.append(data)  # what got through is changed again
            del parts[: max(0, len(parts) - 500)]
        assert_plain(value)
        request = ("call", "f", (value,), {})
        codec.encode_trusted(request, lambda v: v if isinstance(v, Handle) else pytest.fail(repr(v)))
    assert min(outcomes.values()) > 400, outcomes  # both happen, or nothing was tested


def test_every_byte_of_every_real_encoding_can_be_anything() -> None:
    for value in EXAMPLES:
        data = bytearray(codec.encode(value, kept))
        for at in range(len(data)):
            old = data[at]
            for byte in (*b"NTFisfltdQqWwISZbycEXHkn", 0, 1, 127, 128, 255, old ^ 1, old ^ 128):
                data[at] = byte
                with contextlib.suppress(CodecError):
                    assert_plain(decode.decode(bytes(data), lambda handle: handle, SMALL))
            data[at] = old


def many(tag: bytes, item: bytes, caps: Caps) -> bytes:
    """A list of as many of `item` as fit."""
    count = min(caps.values, (caps.size - 5) // len(item))
    return tag + LEN.pack(count) + item * count


def kind(name: str, parts: bytes) -> bytes:
    return b"k" + LEN.pack(len(name)) + name.encode() + parts


def integer(digits: bytes) -> bytes:
    return b"I" + LEN.pack(len(digits)) + digits


ONE = b"i" + struct.pack("<q", 10**6)
WIDE = "\U0001f600".encode()
BOMBS = {
    "lists": b"l" + LEN.pack(0),
    "tuples": b"t" + LEN.pack(1) + b"N",
    "dicts": b"d" + LEN.pack(1) + b"NN",
    "sets": b"S" + LEN.pack(0),
    "frozensets": b"Z" + LEN.pack(1) + b"N",
    "deques": kind("deque", b"l" + LEN.pack(0)),
    "counters": kind("Counter", b"d" + LEN.pack(0)),
    "ordered": kind("OrderedDict", b"d" + LEN.pack(1) + b"NN"),
    "defaultdicts": kind("defaultdict", b"d" + LEN.pack(1) + b"NN"),
    "views": kind("dict_values", b"l" + LEN.pack(0)),
    "keys": kind("dict_keys", b"l" + LEN.pack(1) + b"N"),
    "decimals": kind("Decimal", b"s" + LEN.pack(1) + b"1"),
    "fractions": kind("Fraction", b"t" + LEN.pack(2) + 2 * (b"I" + LEN.pack(2) + b"\x01\x02")),
    "dates": kind("time", b"s" + LEN.pack(2) + b"01"),
    "ranges": kind("range", b"t" + LEN.pack(3) + 3 * (b"I" + LEN.pack(2) + b"\x01\x02")),
    "arrays": b"n" + LEN.pack(3) + b"|i1" + b"t" + LEN.pack(0) + b"b" + LEN.pack(1) + b"\x01",
    "empty arrays": b"n" + LEN.pack(3) + b"|i1" + b"t" + LEN.pack(1) + b"I" + LEN.pack(0) + b"b" + LEN.pack(0),
    "handles": b"H" + bytes(8) + b"s" + LEN.pack(0) + b"s" + LEN.pack(0),
    "integers": b"I" + LEN.pack(2) + b"\x01\x02",
    "text": b"s" + LEN.pack(4) + WIDE,
    "bytes": b"b" + LEN.pack(2) + b"ab",
    "bytearrays": b"y" + LEN.pack(0),
    "complex": b"c" + bytes(16),
}
FEW = 200
LONG_FRACTION = kind("Fraction", b"t" + LEN.pack(2) + integer(b"\x55" * 8192) + integer(b"\x33" * 8192))
TENTH = Caps(size=codec.MAX_BYTES // 100, values=codec.MAX_VALUES // 100)


@pytest.mark.parametrize("name", [*BOMBS, "one array", "one text", "packed integers", "set of integers"])
def test_no_message_takes_more_than_a_gigabyte(name: str) -> None:
    """At a hundredth of the caps: each kind of value as often as it fits."""
    if name in BOMBS:
        data = many(b"l", BOMBS[name], TENTH)
    elif name == "one array":
        data = b"n" + LEN.pack(3) + b"|i1t" + LEN.pack(1) + b"i" + struct.pack("<q", 79_000)
        data += b"b" + LEN.pack(79_000) + bytes(79_000)
    elif name == "one text":
        data = b"s" + LEN.pack(600_000) + b"a" * 599_996 + WIDE
    elif name == "packed integers":
        data = b"Q" + LEN.pack(8 * 79_000) + b"\xff\xff\xff\x7f\0\0\0\0" * 79_000
    else:
        data = b"S" + LEN.pack(70_000) + b"".join(b"I" + LEN.pack(3) + n.to_bytes(3, "little") for n in range(70_000))
    assert len(data) <= TENTH.size
    tracemalloc.start()
    try:
        value = None
        try:
            value = decode.decode(data, lambda handle: handle, TENTH)
        except CodecError:
            assert name in BOMBS  # some are refused for what they would take
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (1 << 30) // 100, f"{100 * peak >> 20} MiB"
    if name not in BOMBS:
        assert value is not None and len(value) >= 70_000  # type: ignore[arg-type]
    # A tenth of it is no bomb, and comes through.
    few = many(b"l", BOMBS.get(name, b"N"), TENTH._replace(values=codec.MAX_VALUES // 3000))
    assert len(decode.decode(few, lambda handle: handle, TENTH)) > 100


@pytest.mark.parametrize(
    "data",
    [
        kind("Fraction", b"t" + LEN.pack(2) + 2 * integer(b"\x55" * 1_000_000)),
        b"l" + LEN.pack(FEW) + FEW * LONG_FRACTION,
        b"l" + LEN.pack(100) + 100 * integer(b"\x55" * 600_000),
        kind("Decimal", b"s" + LEN.pack(9_000_000) + b"9" * 9_000_000),
        kind("datetime", b"s" + LEN.pack(9_000_000) + b"2" * 9_000_000),
        kind("range", b"t" + LEN.pack(3) + ONE + integer(b"\x55" * 500_000) + ONE),
        b"n" + LEN.pack(3) + b"|i1t" + LEN.pack(2) + integer(b"") + integer(b"\x55" * 20) + b"b" + LEN.pack(0),
    ],
    ids=["fraction", "fractions", "integers", "decimal", "date", "range", "array"],
)  # fmt: skip
def test_no_number_takes_minutes(data: bytes) -> None:
    """A Fraction of eight million bits was reduced for minutes, in one call that nothing interrupts."""
    began = time.process_time()
    with contextlib.suppress(CodecError):
        decode.decode(data, lambda handle: handle)
    assert time.process_time() - began < 10.0


@pytest.mark.parametrize(("dtype", "size"), [("|i1", 1), ("<f8", 8)])
def test_an_array_counts_for_as_many_values_as_it_has(dtype: str, size: int) -> None:
    def array(count: int) -> bytes:
        data = b"n" + LEN.pack(3) + dtype.encode() + b"t" + LEN.pack(1) + b"i" + struct.pack("<q", count)
        return data + b"b" + LEN.pack(count * size) + bytes(count * size)

    caps = Caps(values=1000)
    assert len(decode.decode(array(800), lambda handle: handle, caps)) == 800
    for data in (array(1001), b"l" + LEN.pack(2) + array(600) + array(600)):
        with pytest.raises(CodecError):
            decode.decode(data, lambda handle: handle, caps)


@pytest.mark.parametrize("dtype", [b"garbage", b"|O", b"|V8", b"<U3", b"<M8[s]", b""])
def test_an_array_of_what_is_no_number_is_none(dtype: bytes) -> None:
    data = b"n" + LEN.pack(len(dtype)) + dtype + b"t" + LEN.pack(1) + b"i" + struct.pack("<q", 1)
    with pytest.raises(CodecError, match="no numeric array"):
        decode.decode(data + b"b" + LEN.pack(8) + bytes(8), lambda handle: handle)


def test_a_decimal_may_be_written_with_twice_its_digits_and_no_more() -> None:
    """`0000000001.50` is a number of three digits; a text is measured before it is read."""
    most = 2 * Caps().digits
    text = b"0" * (most - 3) + b"1.5"
    assert decode.decode(kind("Decimal", b"s" + LEN.pack(most) + text), lambda handle: handle) == Decimal("1.5")
    with pytest.raises(CodecError, match="too many characters"):
        decode.decode(kind("Decimal", b"s" + LEN.pack(most + 1) + b"0" + text), lambda handle: handle)


class Heard(Exception):
    """The lane's clock."""


@pytest.mark.parametrize("name", ["dict", "set", "Counter", "OrderedDict", "dict_keys", "dict_items"])
def test_a_flood_of_colliding_keys_can_be_interrupted(name: str) -> None:
    """Every container is filled by steps of the interpreter, between which the lane's clock is heard."""
    count = 60_000
    keys = [b"I" + LEN.pack(10) + ((2**61 - 1) * n).to_bytes(10, "little") for n in range(count)]
    assert {hash((2**61 - 1) * n) for n in range(count)} == {0}
    if name == "dict_keys":
        data = kind(name, b"l" + LEN.pack(count) + b"".join(keys))
    elif name == "dict_items":
        data = kind(name, b"l" + LEN.pack(count) + b"".join(b"t" + LEN.pack(2) + key + b"N" for key in keys))
    elif name == "set":
        data = b"S" + LEN.pack(count) + b"".join(keys)
    else:
        data = b"d" + LEN.pack(count) + b"".join(key + b"N" for key in keys)
        data = data if name == "dict" else kind(name, data)

    def hear(*_: object) -> None:
        raise Heard

    before = signal.signal(signal.SIGPROF, hear)
    began = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, 0.5)
    try:
        with pytest.raises(Heard):
            decode.decode(data, lambda handle: handle)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    assert time.process_time() - began < 1.5
