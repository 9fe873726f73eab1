"""A test made ready, and what is said when it fails: in this process, with a program of straw."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest

from rune.sandbox.protocol import tests
from rune.sandbox.protocol.connection import Link
from rune.sandbox.protocol.remote import NOTHING, short


class Straw:
    """In the place of a `Link`: answers by a function, and notes what it is asked."""

    def __init__(self, answer: Callable[..., object]) -> None:
        self.answer = answer
        self.asked: list[tuple[object, ...]] = []
        self.last_call: Any = None
        self.last_result: object = NOTHING
        self._loading = False

    story = Link.story

    def operate(self, operation: str, target: object, /, *args: object, **options: object) -> Any:
        self.asked.append((operation, target, args, options))
        found = self.answer(*args, **options)
        return (found, args, options) if operation == "observe" else found

    def construct(self, operation: str, target: object, /, *args: object, **options: object) -> Any:
        self.asked.append((operation, target, args, options))
        return f"<{operation}>"


def told(body: str, answer: Callable[..., object] = lambda *a, **k: 3, head: str = "") -> str:
    """What is said of `check`, whose body this is."""
    source = f"{head}def check(candidate):\n" + "".join(f"    {line}\n" for line in body.split("\n"))
    test = tests.prepare(source, "f")
    link = Straw(answer)
    try:
        tests.run(test, link, None, "f")
    except Exception as error:
        return tests.explain(test, link, error)  # type: ignore[arg-type]
    return "passed"


def refuses(*_: object) -> object:
    raise KeyError("gone")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("assert candidate(1) == 3", "passed"),
        ("assert candidate(1, key=[2]) == 4", "check: f(1, key=[2]) returned 3, expected 4"),
        ("assert candidate(1) is None", "check: f(1) returned 3, expected None"),
        ("x = [1, 2]\nassert candidate(1) == x", "check: f(1) returned 3, expected [1, 2]"),
        ("assert candidate(1) == sorted([2])", "check: f(1) returned 3, expected 'sorted([2])'"),
        ("assert candidate(1) == (y := 2)", "check: f(1) returned 3, expected '(y := 2)'"),
        (
            "assert candidate(1) == gone",
            "check: f(1) returned 3, expected <rune.sandbox.protocol.tests._Foreign object at",
        ),
        ("assert candidate(1) < 2", "check: f(1) returned 3; failed: assert 'candidate(1) < 2'"),
        ("assert 1 < candidate(1) == 2", "check: f(1) returned 3; failed: assert '1 < candidate(1) == 2'"),
        ("assert not candidate(1)", "check: f(1) returned 3; failed: assert 'not candidate(1)'"),
        ("assert candidate(1) == 4, 'four it is'", "check: f(1) returned 3, expected 4 (four it is)"),
        ("assert candidate(1) < 2, [1, 'a']", "check: f(1) returned 3; failed: assert 'candidate(1) < 2' ([1, 'a'])"),
        ("assert candidate(1) < 2, ''", "check: f(1) returned 3; failed: assert 'candidate(1) < 2'"),
        ("assert False", "check: assert 'False'"),
        ("raise AssertionError", "check: an assertion failed"),
        ("raise AssertionError('a', 1)", "check: an assertion failed (('a', 1))"),
        ("candidate(1)\nraise AssertionError", "check: f(1) returned 3"),
        ("candidate(1)\nassert 1 == 2", "check: f(1) returned 3, expected 2"),
        ("1 / 0", "check: the test raised ZeroDivisionError: division by zero"),
        ("candidate(2)\n{}['a']", "check: f(2) returned 3; the test then raised KeyError: 'a'"),
        ("raise ValueError('x' * 2000)", "check: the test raised ValueError: " + "x" * 500 + " … " + "x" * 334),
        ("raise ValueError('x' * 900, 'y' * 80)", "check: the test raised ValueError: ("),
        ("assert (\n    candidate(1)\n    ==\n    4\n)", "check: f(1) returned 3, expected 4"),
        ("if True:\n    assert 0, 'no'\nassert candidate(1) == 4", "check: assert '0' (no)"),
    ],
)
def test_a_failure_is_told_by_the_call_and_by_what_was_expected(body: str, said: str) -> None:
    found = told(body)
    assert found == said or (said.endswith(("(", " at")) and found.startswith(said)), found


def test_the_last_assertion_of_the_test_s_own_source_is_the_one_that_is_told() -> None:
    helper = "def same(a, b):\n    assert a == b, 'differ'\n\n\n"
    assert told("same(candidate(1), 4)", head=helper) == "check: f(1) returned 3, expected 4 (differ)"
    assert told("same(candidate(1), 4)", refuses, head=helper) == "check: f(1); the test then raised KeyError: 'gone'"


def test_a_test_that_runs_deep_or_speaks_at_length_is_told_all_the_same() -> None:
    long = told(f"assert candidate(1) == {list(range(400))}")
    assert long.startswith("check: f(1) returned 3, expected [0, 1, 2") and len(long) < 400
    message = told("assert candidate(1) == 4, 'm' * 3000")
    assert message == f"check: f(1) returned 3, expected 4 ({'m' * 500} … {'m' * 334})"
    value = told("assert candidate(1) == 4, ['m' * 3000]")
    assert value.endswith("…>)") or " … " in value


def test_a_call_whose_result_is_dropped_is_after_what_it_does_to_its_arguments() -> None:
    test = tests.prepare("def check(candidate):\n    x = [1]\n    candidate(x)\n    f(x)\n    y = candidate(x)\n", "f")
    link = Straw(lambda *_: 3)
    tests.run(test, link, None, "f")
    assert [operation for operation, *_ in link.asked] == ["observe", "observe", "call"]
    assert {target for _, target, *_ in link.asked} == {"f"}


def test_no_assertion_fails_while_calls_are_foreseen() -> None:
    test = tests.prepare(
        "def check(candidate):\n    assert candidate(1) == 4\n    assert candidate(2) == 5, 'no'\n", "f"
    )
    link = Straw(lambda *_: 3)
    tests.run(test, link, None, "f", foreseeing=True)
    assert [args for _, _, args, _ in link.asked] == [(1,), (2,)]
    with pytest.raises(AssertionError):
        tests.run(test, Straw(lambda *_: 3), None, "f")


SOURCE = """
import json as j
from os import path
import re

LIMIT = 3

class Own:
    kind = unbound_in_class

def helper(a, *b, c=default_of_helper, **d):
    global made
    made = a
    return a, b, c, d, math.pi, Node(1), [e for e in range(3)], __file__

def check(candidate):
    local = 1
    def inner():
        nonlocal local
        local = Pair
        return local, LIMIT, free_inside
    lambda z: (z, string.digits)
    return inner, made, f, candidate, j, path, re, Own, print, len, check, helper
"""


def test_names_that_a_test_does_not_define_are_modules_or_the_program_s() -> None:
    test = tests.prepare(SOURCE, "f")
    assert test.modules == ("math", "string")
    assert test.foreign == ("Node", "Pair", "default_of_helper", "free_inside", "unbound_in_class")
    assert tests.prepare("def check(candidate):\n    return math\n", "math").modules == ()


def test_a_name_of_the_program_is_asked_for_as_what_it_is() -> None:
    source = "def check(candidate):\n    return math.floor(2.5), Node(1, k=2), Node.kind\n"
    link = Straw(lambda *_: 3)
    tests.run(tests.prepare(source, "f"), link, None, "f")
    assert link.asked == [
        ("call", "Node", (1,), {"k": 2}), ("value", "Node", (), {}), ("getattr", "<value>", ("kind",), {}),
    ]  # fmt: skip
    with pytest.raises(AttributeError):
        tests.run(
            tests.prepare("def check(candidate):\n    Node.__class__\n    Node.__array__\n", "f"), link, None, "f"
        )


def test_what_stands_before_a_test_is_there_for_it_and_does_not_take_the_candidate_s_place() -> None:
    before = compile("KNOWN = 4\ndef f(x): return 'no'\ndef Node(x): return x\n", "<prelude>", "exec")
    link = Straw(lambda *_: 3)
    source = "def check(candidate):\n    assert f(1) == 3 and KNOWN == 4 and Node(5) == 5\n"
    tests.run(tests.prepare(source, "f"), link, before, "f")
    assert [target for _, target, *_ in link.asked] == ["f"]


@pytest.mark.parametrize("source", ["def check(:\n", "\0", "def check(candidate):\n    nonlocal x\n"])
def test_a_test_that_does_not_compile_is_refused(source: str) -> None:
    with pytest.raises((SyntaxError, ValueError)):
        tests.prepare(source, "f")


def test_a_story_is_the_last_call_and_its_result_once_there_is_one() -> None:
    def story(call: Any, result: object, loading: bool = False) -> str:
        link: Any = types.SimpleNamespace(last_call=call, last_result=result, _loading=loading)
        return Link.story(link)

    assert story(None, 3) == "" and story(("f", (), {}), 3, loading=True) == ""
    assert story(("f", (), {}), NOTHING) == "f()" and story(("f", (1, "a"), {"k": None}), None) == (
        "f(1, 'a', k=None) returned None"
    )
    assert story(("f", ("x" * 900,), {}), [1] * 900) == f"f({short('x' * 900)}) returned {short([1] * 900)}"
