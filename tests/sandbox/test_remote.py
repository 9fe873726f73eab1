"""What a test sees of a program, whatever a child answers: plain data, or objects that can do little."""

from __future__ import annotations

import socket
from collections import OrderedDict, deque
from collections.abc import Iterator
from fractions import Fraction

import pytest

from rune.sandbox.protocol import connection, remote
from rune.sandbox.protocol.remote import Candidate, Remote
from rune.types import FailureKind
from tests.sandbox.talk import Shelved, answering

# ---------------------------------------------------------------- iterators


def test_an_iterator_at_its_end_is_not_asked_again_and_hides_no_finding() -> None:
    """Whatever the child would say next: one that starts again would end a second loop otherwise than the first."""
    link, asked = answering(Shelved("iterator"), (7,), (), (8,), 9)
    it = link.operate("call", "f", 1)
    assert [next(it), next(it, "the end")] == [7, "the end"]
    assert [next(it, "the end"), next(it, "the end")] == ["the end", "the end"]
    assert [operation for operation, *_ in asked] == ["call", "next", "next"] and link.finding is None
    link.stop(FailureKind.CRASH, "gone")
    with pytest.raises(connection.Stop) as caught:
        next(it, "the end")
    assert caught.value is link.finding


def test_each_iterator_has_an_end_of_its_own() -> None:
    link, _ = answering(Shelved("iterator", 0), Shelved("iterator", 1), (), (7,), ())
    first, second = link.operate("call", "f", 1), link.operate("call", "f", 2)
    assert (list(first), list(second), list(first), list(second)) == ([], [7], [], [])


@pytest.mark.parametrize("element", [None, [7], (7, 8), 7])
def test_an_element_is_one_value_or_the_end(element: object) -> None:
    link, _ = answering(Shelved("iterator"), element)
    it = link.operate("call", "f", 1)
    with pytest.raises(connection.Stop, match="an element that is none"):
        next(it, "the end")
    assert link.finding is not None and link.finding.kind is FailureKind.PROTOCOL


def test_a_program_that_is_gone_before_it_is_asked_has_crashed() -> None:
    link, _ = answering(7)
    assert link.operate("call", "f", 1) == 7
    link._sock.shutdown(socket.SHUT_WR)  # every attempt to send fails from here on
    with pytest.raises(connection.Stop, match="process ended before it answered"):
        link.operate("call", "f", "x" * 100_000)
    assert link.finding is not None and link.finding.kind is FailureKind.CRASH


# ---------------------------------------------------------------- objects


def test_what_a_program_returns_is_called_or_walked_only_as_what_it_is_and_asked_for_nothing() -> None:
    kinds = ("object", "class", "callable", "iterator")
    link, asked = answering(*(Shelved(kind, number) for number, kind in enumerate(kinds)), 5)
    thing, kind, function, walk = (link.operate("call", "f") for _ in range(4))
    for value in (thing, kind, walk):
        with pytest.raises(TypeError, match="'A' object that the program returned is not called"):
            value()
    for value in (thing, kind, function):
        with pytest.raises(TypeError, match="'A' object is not plain data"):
            iter(value)
        with pytest.raises(TypeError, match="'A' object is not an iterator"):
            next(value)
    for value in (thing, kind, function, walk):
        with pytest.raises(AttributeError, match="is asked for no 'size'"):
            value.size  # noqa: B018
        with pytest.raises(AttributeError, match="is asked for no 'size'"):
            value.size = 1
        assert bool(value) is True and repr(value) == "<A object>"
    assert iter(walk) is walk
    assert len(asked) == 4  # nothing of this reached the program
    assert function(1, key=2) == 5
    assert asked[4][0] == "call" and asked[4][2:] == ((1,), {"key": 2})


def test_what_a_test_makes_itself_is_called_asked_and_set() -> None:
    link, asked = answering(Shelved("object"), Shelved("object", 1), 3, None, 5)
    made = link.construct("call", "A")
    part = made.part
    assert isinstance(part, Remote) and part.size == 3  # what comes of one's own is one's own
    part.size = 4
    assert made(1) == 5
    operations = [(operation, *args) for operation, _, args, _ in asked]
    assert operations == [("call",), ("getattr", "part"), ("getattr", "size"), ("setattr", "size", 4), ("call", 1)]
    for name in ("__array_interface__", "__len__", "__x__"):
        with pytest.raises(AttributeError, match="cannot be asked for from outside"):
            getattr(made, name)
    assert len(asked) == 5
    assert [remote.public(name) for name in ("__private", "dunder__", "_x_")] == ["__private", "dunder__", "_x_"]


def test_an_object_is_equal_to_itself_under_every_handle_and_to_nothing_else() -> None:
    link, _ = answering(Shelved("object", 3), Shelved("object", 3), Shelved("object", 4))
    one, same, other = (link.operate("call", "f") for _ in range(3))
    stranger = answering(Shelved("object", 3))[0].operate("call", "f")
    assert one == one and one == same and hash(one) == hash(same) and len({one, same, other}) == 2
    for value in (other, stranger, 3, None, "<A object>"):
        assert one != value and value != one


@pytest.mark.parametrize(
    "odd", [Shelved("nonsense"), Shelved(""), Shelved("object", -1), Shelved("object", 10_000), Shelved("module", -1)]
)
def test_an_object_of_no_known_kind_or_number_is_a_finding(odd: Shelved) -> None:
    link, _ = answering(Shelved("class", 9_999, "L" * 1000), odd)
    assert repr(link.operate("call", "f")) == f"<{'L' * 60} object>"
    with pytest.raises(connection.Stop, match="an object of no known kind"):
        link.operate("call", "f")
    assert link.finding is not None and link.finding.kind is FailureKind.PROTOCOL


# ---------------------------------------------------------------- calls


def test_a_call_is_told_with_its_result_and_only_with_its_own() -> None:
    link, _ = answering(7)
    candidate = Candidate(link, "f")
    assert link.story() == ""
    assert candidate(1, key="a") == 7
    assert link.story() == "f(1, key='a') returned 7"
    candidate._note((2,), {})
    assert link.story() == "f(2)"


def test_a_call_for_its_effect_leaves_what_it_did_to_the_arguments() -> None:
    after: tuple[object, ...] = ([1, 2], {"a": 1}, (1, [3]), bytearray(b"x"), 5, [9])
    link, asked = answering((8, after, {"rest": {4}}))
    before: list[object] = [[], {"b": 2}, (1, []), bytearray(), 4, (9,)]
    rest = {3}
    kept = {"other": [1]}
    Candidate(link, "f").observed(*before, rest=rest, **kept)
    # In place, whatever can be changed in place; what has another type now stays as it was.
    assert before == [[1, 2], {"a": 1}, (1, [3]), bytearray(b"x"), 4, (9,)]
    assert rest == {4} and kept == {"other": [1]}
    assert asked[0][0] == "observe" and link.story().endswith("returned 8")


def test_data_that_cannot_cross_is_the_test_s_fault_until_the_program_has_answered() -> None:
    deep: list[object] = []
    for _ in range(500):
        deep = [deep]
    link, asked = answering(1)
    with pytest.raises(connection.Broken, match="the test passes a value that cannot cross"):
        Candidate(link, "f")(deep)
    assert not asked and isinstance(link.finding, connection.Broken)
    link, asked = answering(1)
    assert Candidate(link, "f")(0) == 1
    with pytest.raises(connection.Stop, match="the program returned something that cannot be passed on"):
        Candidate(link, "f")(deep)
    assert len(asked) == 1 and link.finding is not None and link.finding.kind is FailureKind.BAD_VALUE


def test_a_tuple_of_another_length_is_not_filled_in() -> None:
    inner: list[int] = []
    remote.become((inner, 1), ([7],))
    remote.become((inner,), ([7], 1))
    assert inner == []
    remote.become((inner, 1), ([7], 1))
    assert inner == [7]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (None, "no result with its arguments"),
        ([0, ([1],), {}], "no result with its arguments"),
        ((0, ([1],)), "no result with its arguments"),
        ((0, ([1],), {}, 0), "no result with its arguments"),
        ((0, [[1]], {}), "no result with its arguments"),
        ((0, ([1],), [("key", [2])]), "no result with its arguments"),
        ((0, (), {}), "another number of arguments"),
        ((0, ([1], [2]), {}), "another number of arguments"),
    ],
)
def test_an_odd_answer_to_a_call_for_its_effect_is_a_finding(reply: object, words: str) -> None:
    link, _ = answering(reply)
    argument: list[int] = []
    with pytest.raises(connection.Stop, match=words):
        Candidate(link, "f").observed(argument, key=argument)
    assert link.finding is not None and link.finding.kind is FailureKind.PROTOCOL
    assert argument == []


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    "value",
    ["a" * 40, 12345, [1, [2, "x"]], (1, {2: 3}), {"a": [1.5]}, {1, 2}, frozenset({3}), deque([1]), {}.keys(), None,
     Fraction(1, 3), OrderedDict(a=1)],
)  # fmt: skip
def test_a_short_value_is_shown_whole(value: object) -> None:
    assert remote.short(value) == repr(value)


@pytest.mark.parametrize(
    ("value", "beginning"),
    [
        ("a" * 100_000, f"'{'a' * 100}"),
        (b"a" * 100_000, f"b'{'a' * 100}"),
        (list(range(100_000)), "<list of 100000: 0, 1, 2, 3, 4, 5, 6, 7, …>"),
        ({i: -i for i in range(100_000)}, "<dict of 100000: 0: 0, 1: -1, 2: -2"),
        (tuple("ab" * 50_000), "<tuple of 100000: 'a', 'b'"),
        (dict.fromkeys(range(100_000)).keys(), "<dict_keys of 100000: 0, 1"),
        (10**100_000, "<int>"),
        (Fraction(1, 10**100_000), "<Fraction>"),
        ([["b" * 100_000]], "<list of 1: <list of 1: 'bbb"),
    ],
    ids=["str", "bytes", "list", "dict", "tuple", "keys", "int", "Fraction", "nested"],
)
def test_a_large_value_is_shown_by_its_beginning(value: object, beginning: str) -> None:
    text = remote.short(value)
    assert text.startswith(beginning) and len(text) <= 330
    assert remote.short(value, 60).startswith(beginning[:20]) and len(remote.short(value, 60)) <= 70


def test_a_text_is_cut_in_its_middle_and_only_where_it_is_too_long() -> None:
    assert remote.cut("0123456789", 10) == "0123456789"
    assert remote.cut("0123456789", 9) == "0123 … 789"
    assert remote.short("x" * 298) == repr("x" * 298)  # 300 with its quotes
    assert len(remote.short("x" * 299)) < 300 and " … " in remote.short("x" * 299)


def test_a_value_s_weight_is_about_its_text_and_is_no_longer_counted_than_it_must_be() -> None:
    for value in ("a" * 500, 10**90, list(range(200)), [["x" * 9] * 9] * 9, dict.fromkeys(range(50), "y" * 30)):
        assert 0.5 < remote.weight(value, 10**9) / len(repr(value)) < 2.5
    nested: list[object] = ["z"]
    for _ in range(60):  # 2 ** 60 texts
        nested = [nested, nested]
    assert remote.weight(nested, 20_000) >= 20_000


def test_a_value_is_looked_at_only_until_it_is_clear_that_it_is_too_long() -> None:
    looked: list[int] = []

    class Counted(list):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[int]:
            for number in range(1000):
                looked.append(number)
                yield number

    assert remote.weight(["x" * 90, Counted()], 100) >= 100
    assert len(looked) < 5, "what came before it counts"
    looked.clear()
    assert remote.weight([Counted()], 100) >= 100 and 20 < len(looked) < 60


def test_an_object_of_one_program_is_not_handed_to_another() -> None:
    here, _ = answering(Shelved("object"))
    there, asked = answering(1)
    stranger = here.operate("call", "f")
    with pytest.raises(connection.Broken, match="a Remote is no plain data"):
        there.operate("call", "f", stranger)
    assert asked == []
