"""An end of iteration that a candidate raises ends no loop of the test: that sees a failure, not a shorter list."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rune.sandbox import fork
from rune.types import Outcome, Program, Sandbox

# Each loop asks the candidate for x + 1. An end of iteration out of the candidate would pass for the loop's own.
LOOPS = {
    "map": "for x, got in zip(range(3), map(candidate, range(3))):\n        assert got == x + 1",
    "map behind": "for got, x in zip(map(candidate, range(3)), range(3)):\n        assert got == x + 1",
    "starmap": "import itertools\n    for got in itertools.starmap(candidate, [(0,)]):\n        assert got == 1",
    "until a sentinel": "for got in iter(lambda: candidate(0), 1):\n        assert False, got",
    "next with a default": "assert next(map(candidate, [0]), 1) == 1",
    "all": "assert all(map(lambda x: candidate(x) == x + 1, range(3)))",
    "not any": "assert not any(map(lambda x: candidate(x) != x + 1, range(3)))",
    "filter": "assert not list(filter(lambda x: candidate(x) != x + 1, range(3)))",
    "an iterator of its own": (
        "class Results:\n        def __iter__(self): return self\n        def __next__(self): return candidate(0)\n"
        "    for got, _ in zip(Results(), range(2)):\n        assert got == 1"
    ),
    "generator": "assert all(candidate(x) == x + 1 for x in range(3))",
    "comprehension": "assert [candidate(x) for x in range(3)] == [1, 2, 3]",
}
RAISED = {
    "StopIteration": "raise StopIteration",
    "with a value": "raise StopIteration(x + 1)",
    "a child of it": "raise type('Over', (StopIteration,), {})(1)",
    "under a builtin's name": "raise type('ValueError', (StopIteration,), {})()",
    "next of nothing": "return next(iter(()))",
    "StopAsyncIteration": "raise StopAsyncIteration",
    "GeneratorExit": "raise GeneratorExit",
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    made = fork.build(fork.Config(workers=1))
    yield made
    made.close()


def judged(sandbox: Sandbox, bodies: dict[str, str]) -> dict[str, Outcome]:
    """`bodies` of f(x) under every loop: "loop / body" → outcome."""
    programs = [
        Program(
            key=f"{loop} / {name}",
            code=f"def f(x):\n    {body}\n",
            test=f"def check(candidate):\n    {text}\n",
            entry_point="f",
        )
        for loop, text in LOOPS.items()
        for name, body in bodies.items()
    ]
    found = {e.key: e.outcome for e in sandbox.judge(programs)}
    assert len(found) == len(programs)
    return found


def test_a_candidate_that_raises_an_end_of_iteration_passes_no_loop(sandbox: Sandbox) -> None:
    found = judged(sandbox, RAISED)
    assert [key for key, outcome in found.items() if outcome is not Outcome.FAILED] == []


def test_the_same_loops_pass_what_is_right_and_fail_what_is_wrong(sandbox: Sandbox) -> None:
    found = judged(sandbox, {"right": "return x + 1", "wrong": "return x + 2", "raises": "raise ValueError"})
    assert {key for key, outcome in found.items() if outcome is Outcome.PASSED} == {f"{loop} / right" for loop in LOOPS}


def test_an_iterator_that_a_candidate_returns_ends_where_it_ends(sandbox: Sandbox) -> None:
    text = "found = []\n    for got in candidate(3):\n        found.append(got)\n    assert found == [0, 1, 2]"
    codes = {
        "a generator": ("def f(n):\n    yield from range(n)\n", Outcome.PASSED),
        "a list": ("def f(n):\n    return list(range(n))\n", Outcome.PASSED),
        "one that ends early": ("def f(n):\n    yield 0\n", Outcome.FAILED),
        "one that raises": ("def f(n):\n    yield 0\n    raise ValueError\n", Outcome.FAILED),
        "one that raises its end": ("def f(n):\n    yield from [0, 1, 2]\n    raise StopIteration\n", Outcome.FAILED),
    }
    programs = [
        Program(key=key, code=code, test=f"def check(candidate):\n    {text}\n", entry_point="f")
        for key, (code, _) in codes.items()
    ]
    assert {e.key: e.outcome for e in sandbox.judge(programs)} == {key: outcome for key, (_, outcome) in codes.items()}
