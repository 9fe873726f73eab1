"""Counts if the answer is a Python value equal to the expected one; both are read, and nothing is executed.

An answer is a literal: numbers, texts, None, True, False, and lists, tuples, sets and dictionaries of them. Anything
else, a call or a computation that would give the right value included, is no value. Types count, so True is not 1 and
1.0 is not 1; the order in sets and dictionaries does not.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from rune.benchmarks.scorers.judging import Check, Item, Trial
from rune.errors import SandboxError
from rune.types import Execution, FailureKind, Outcome, Problem, Program, Sandbox

MOST_CHARS = 100_000  # of an answer; a longer one is not read


class NoValue(ValueError):
    """A text that is no literal."""


def parse(text: str) -> Any:
    """The value that a literal stands for. Raises NoValue with the reason."""
    if len(text) > MOST_CHARS:
        raise NoValue(f"{len(text)} characters, at most {MOST_CHARS} are read")
    try:
        with warnings.catch_warnings():  # of odd escapes in texts
            warnings.simplefilter("ignore")
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise NoValue(f"no Python literal ({type(error).__name__})") from None


def same(one: Any, other: Any) -> bool:
    """Equal in value and in type, at every depth."""
    return bool(_canonical(one) == _canonical(other))


def _canonical(value: Any) -> tuple[str, Any]:
    """A value with its types written out, hashable."""
    name = type(value).__name__
    if isinstance(value, dict):
        return name, frozenset((_canonical(k), _canonical(v)) for k, v in value.items())
    if isinstance(value, (set, frozenset)):
        return name, frozenset(map(_canonical, value))
    if isinstance(value, (list, tuple)):
        return name, tuple(map(_canonical, value))
    return name, value


def judge(sandbox: Sandbox, items: Iterable[Item]) -> Iterator[Execution]:
    """In order; the sandbox is not asked. Raises SandboxError for a task whose expected value is none."""
    for item in items:
        try:
            expected = parse(item.problem.test)
        except NoValue as error:
            reason = f"the expected value is {error}"
            raise SandboxError(f"{item.problem.task_id}: {reason}", key=item.key, reason=reason) from None
        try:
            right = same(parse(item.code), expected)
        except NoValue as error:
            yield _failed(item.key, FailureKind.BAD_VALUE, f"the answer is {error}")
            continue
        if right:
            yield Execution(key=item.key, outcome=Outcome.PASSED)
        else:
            # Not the expected value: who tries again would only repeat it.
            yield _failed(item.key, FailureKind.WRONG_ANSWER, "the answer is another value than the expected one")


def _failed(key: str, kind: FailureKind, error: str) -> Execution:
    return Execution(key=key, outcome=Outcome.FAILED, error_kind=kind, error=error)


STUBS = {"empty": "", "no value": "pass", "name": "answer"}
CHEATS = {  # {value}: the expected one
    "a computation": "(lambda: {value})()",
    "a call": "eval({text})",
    "an effect beside the value": "[__import__('os').getpid(), {value}][1]",
    "a statement before the value": "import os\n{value}",
    "an assignment": "answer = {value}",
    "a choice": "{value} if True else None",
    "the value twice": "{value}; {value}",
    "the value inside another": "[{value}]",
    "always-equal object": "type('Same', (), {{'__eq__': lambda one, other: True}})()",
    "a text of the value": "{text}",
}


def trials(problem: Problem, *, forged: bool) -> Iterator[Trial]:
    """The reference passes; what is no value, and what would only compute the right one, fails."""
    if problem.reference:
        yield Trial("reference answer", problem, problem.reference, True)
    for what, text in STUBS.items():
        yield Trial(f"stub '{what}'", problem, text, False)
    if forged:
        value = problem.test.strip()
        for what, text in CHEATS.items():
            yield Trial(f"forgery '{what}'", problem, text.format(value=value, text=repr(value)), False)


def checks(key: str, code: str, problem: Problem) -> tuple[Check, ...]:
    """What only reads here is executed there: the answer's text as an expression gives the expected value."""
    test = (
        f"EXPECTED = {problem.test.strip()}\n\n\ndef check(candidate):\n    found = candidate()\n"
        "    assert type(found) is type(EXPECTED) and found == EXPECTED\n"
    )
    answer = f"def answer():\n    return (\n{code}\n    )\n"
    return (Check(Program(key=key, code=answer, test=test, entry_point="answer"), True),)
