"""The corpus report: what is in it, what was corrected, and a warning when one kind dominates."""

from __future__ import annotations

import pytest

from rune.corpus import summary
from rune.types import Attempt, Outcome, Trajectory

TEMPLATE = """def f(xs, n):
    total = 0
    for i in range({end}):
        if xs[i] {compare} n:
            total {op}= xs[i]
    return {result}
"""
PLAIN = {"end": "n", "compare": "<", "op": "+", "result": "total"}
BEFORE = TEMPLATE.format(**PLAIN)


def changed(**parts: str) -> str:
    return TEMPLATE.format(**{**PLAIN, **parts})


@pytest.mark.parametrize(
    ("after", "kind"),
    [
        (changed(end="n + 1"), "off by one"),
        (changed(end="n - 1"), "off by one"),
        (changed(compare="<="), "condition"),
        (BEFORE.replace("if xs[i] <", "if max(i, 3) <"), "condition"),
        (BEFORE.replace("total += xs[i]", "total += max(i, 3)"), "several"),  # below a condition is not in it
        (changed(op="-"), "operator"),
        (changed(result="total / n"), "return"),
        (changed(result="max(total, 0)"), "return"),
        ("import math\n" + BEFORE, "import"),
        (BEFORE.replace("total = 0", "total = 7"), "constant"),
        (BEFORE.replace("range(n)", "range(total)"), "name"),
        (BEFORE.replace("    total = 0\n", "    total = 0\n    n = int(n)\n    xs = list(xs)\n"), "several"),
        ("def f(xs, n):\n    return sum(x for x in xs if x < n)\n", "rewritten"),
        (BEFORE, "unchanged"),
    ],
)
def test_corrections_are_named_by_what_changed(after: str, kind: str) -> None:
    assert summary.correction(BEFORE, after) == kind


def test_a_program_that_did_not_parse_was_a_syntax_correction() -> None:
    assert summary.correction("def f(:\n", BEFORE) == "syntax"


def make(number: int, *, kinds: tuple[str, ...], solved: bool = True, category: str = "arithmetic") -> Trajectory:
    attempts = [Attempt(code=changed(end="n + 1"), outcome=Outcome.FAILED, error_kind=k, error="x") for k in kinds]
    if solved:
        attempts.append(Attempt(code=BEFORE, outcome=Outcome.PASSED))
    return Trajectory(
        trajectory_id=str(number),
        task_id=f"t/{number}",
        benchmark="t",
        prompt="p",
        attempts=tuple(attempts),
        solution=BEFORE if solved else "",
        category=category,
        source="imported:x.jsonl",
    )


def test_counts_add_up() -> None:
    corpus = [
        make(0, kinds=()),
        make(1, kinds=("SyntaxError", "WrongAnswer"), category="algorithms"),
        make(2, kinds=("NameError",)),
        make(3, kinds=("IndentationError",), solved=False),
    ]
    report = summary.summarise(corpus)
    assert (report.trajectories, report.solved, report.first_try, report.exhausted) == (4, 3, 1, 1)
    assert report.attempts == 7
    assert report.categories == {"arithmetic": 3, "algorithms": 1}
    assert report.failures == {"syntax": 2, "wrong answer": 1, "NameError": 1}
    assert report.corrections == {"off by one": 2}
    assert report.sources == {"imported": 4}


def test_a_timeout_is_a_timeout_whatever_it_is_called() -> None:
    assert summary.failure_mode(Attempt(code="", outcome=Outcome.TIMED_OUT, error_kind="")) == "timeout"
    assert summary.failure_mode(Attempt(code="", outcome=Outcome.FAILED, error_kind="AssertionError")) == "wrong answer"


def test_one_dominating_kind_is_warned_of_and_a_mixed_corpus_is_not() -> None:
    one_sided = [make(i, kinds=("WrongAnswer",)) for i in range(60)]
    warnings = summary.summarise(one_sided).warnings
    assert any("'wrong answer' makes up 100 % of failures" in w for w in warnings)
    assert any("'arithmetic' makes up 100 % of categories" in w for w in warnings)
    kinds = ("WrongAnswer", "NameError", "SyntaxError")
    mixed = [make(i, kinds=(kinds[i % 3],), category=str(i % 2)) for i in range(60)]
    assert [w for w in summary.summarise(mixed).warnings if "corrections" not in w] == []


def test_a_small_and_an_exhausted_corpus_are_warned_of() -> None:
    warnings = summary.summarise([make(i, kinds=("NameError",), solved=False) for i in range(10)]).warnings
    assert any("50 to 100 are wanted" in w for w in warnings)
    assert any("10 of 10 trajectories are exhausted" in w for w in warnings)


def test_the_text_shows_every_count() -> None:
    text = summary.text(summary.summarise([make(1, kinds=("KeyError",))]))
    for word in ("1 trajectories", "arithmetic", "KeyError", "off by one", "100 %", "warning:"):
        assert word in text


def test_an_empty_corpus_is_no_crash() -> None:
    assert "0 trajectories" in summary.text(summary.summarise([]))
