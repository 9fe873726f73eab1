"""Every correction between some two dozen programs by its name, and the whole report of a mixed corpus."""

from __future__ import annotations

from rune.corpus import summary
from rune.types import Attempt, Outcome, Trajectory

PROGRAMS = {
    "plain": "def f(x):\n    if x < 2:\n        return x\n    return x + 2\n",
    "bound": "def f(x):\n    if x <= 2:\n        return x\n    return x + 2\n",
    "number": "def f(x):\n    if x < 3:\n        return x\n    return x + 2\n",
    "float": "def f(x):\n    if x < 2.5:\n        return x\n    return x + 2\n",
    "both": "def f(x):\n    if x < 2 and x:\n        return x\n    return x + 2\n",
    "minus": "def f(x):\n    if x < 2:\n        return x\n    return x - 2\n",
    "more": "def f(x):\n    if x < 2:\n        return x\n    return x + 2 + 1\n",
    "call": "def f(x):\n    if x < 2:\n        return x\n    return abs(x + 2)\n",
    "while": "def f(x):\n    while x < 2:\n        x = x + 1\n    return x + 2\n",
    "while less": "def f(x):\n    while x < 2:\n        x = x - 1\n    return x + 2\n",
    "while by two": "def f(x):\n    while x < 2:\n        x = x + 2\n    return x + 2\n",
    "while by one more": "def f(x):\n    while x < 2:\n        x = x + 1 + 1\n    return x + 2\n",
    "while true": "def f(x):\n    while True:\n        x = x + 1\n    return x + 2\n",
    "text": "def f(x):\n    y = 'a'\n    return y.join(x)\n",
    "other text": "def f(x):\n    y = 'b'\n    return y.join(x)\n",
    "method": "def f(x):\n    y = 'a'\n    z = y.strip()\n    return z.join(x)\n",
    "other method": "def f(x):\n    y = 'a'\n    z = y.lower()\n    return z.join(x)\n",
    "name": "def f(x):\n    y = 'a'\n    z = x.lower()\n    return z.join(x)\n",
    "either": "def f(x):\n    y = 1 if x else 2\n    return y\n",
    "neither": "def f(x):\n    y = 1 if not x else 2\n    return y\n",
    "minus one": "def f(x):\n    y = x\n    return y[:-1]\n",
    "imported": "import math\n\ndef f(x):\n    y = x\n    return y[:-1]\n",
    "two lines": "def f(x):\n    y = x\n    print(y, 3)\n    return y[:-1]\n",
    "broken": "def f(x:\n",
    "nested": "def f(x):\n    if g(lambda y: (y if y else 1)):\n        return [x for _ in range(3) if x > 1]\n",
    "nested more": "def f(x):\n    if g(lambda y: (y if y else 2)):\n        return [x for _ in range(3) if x > 2]\n",
}


LETTERS = {
    "rewritten": "-", "unchanged": "=", "several": "+", "syntax": "x", "import": "i", "constant": "1",
    "off by one": "2", "operator": "o", "condition": "c", "return": "r", "call": "f", "name": "n",
}  # fmt: skip


def row(name: str) -> str:
    """What turns this program into each of the others, a letter each."""
    return "".join(LETTERS[summary.correction(PROGRAMS[name], after)] for after in PROGRAMS.values())


TABLE = """
=c21co2r+++++----------x-c plain
c=ccccc+cccc+----------x-c bound
2c=1c+2r+++++----------x-- number
1c1=c++r+++++----------x-- float
cccc=cc++++++----------x-- both
oc++c=+r++++-----------x-c minus
2c2+c+=r+++++----------x-- more
r+rr+rr=++++-----------x-+ call
+c++++++=o22c----------x-- while
+c++++++o=++c----------x-- while less
+c++++++2+=+c----------x-- while by two
+c++++++2++=c----------x-- while by one more
+++++-++cccc=-----r----x-- while true
-------------=1rrrrrrr-x-- text
-------------1=rrrrrrr-x-- other text
-------------rr=f+-----x-- method
-------------rrf=n-----x-- other method
-------------rr+n=-----x-- name
------------r-----=crrrx-- either
------------------c=rrrx-- neither
------------------rr=i+x-- minus one
------------------rri=+x-- imported
------------------rr++=x-- two lines
xxxxxxxxxxxxxxxxxxxxxxxxxx broken
-----------------------x=2 nested
cc---c-+---------------x2= nested more
"""


def test_what_turned_one_program_into_another_is_named_as_it_was() -> None:
    assert [f"{row(name)} {name}" for name in PROGRAMS] == TABLE.strip().split("\n")


def corpus() -> list[Trajectory]:
    """Seven tasks: two solved at once, two exhausted, one dominating failure."""
    kinds = [
        ("",),
        (),
        ("KeyError", "WrongAnswer"),
        ("TabError",),
        ("WrongAnswer",),
        ("WrongAnswer",) * 4,
        ("Timeout",),
    ]
    made = []
    for number, failures in enumerate(kinds):
        attempts = [
            Attempt(code=PROGRAMS["plain"], outcome=Outcome.FAILED, error_kind=kind, error="x") for kind in failures
        ]
        solved = number < 5
        if solved:
            attempts.append(Attempt(code=PROGRAMS["bound"], outcome=Outcome.PASSED))
        made.append(
            Trajectory(
                trajectory_id=str(number), task_id=f"t/{number}", benchmark="t", prompt="p", attempts=tuple(attempts),
                solution=PROGRAMS["bound"] if solved else "", category="" if number == 2 else "ab"[number % 2],
                source="" if number == 3 else "imported:x.jsonl",
            )
        )  # fmt: skip
    return made


TEXT = """
corpus: 7 trajectories, 5 solved (1 at the first try), 2 exhausted; 15 attempts

categories  n  share
──────────  ─  ─────
a           3  43 %
b           3  43 %
none        1  14 %

sources   n  share
────────  ─  ─────
imported  6  86 %
unknown   1  14 %

failures      n  share
────────────  ─  ─────
wrong answer  6  60 %
unknown       1  10 %
KeyError      1  10 %
syntax        1  10 %
timeout       1  10 %

corrections  n  share
───────────  ─  ─────
condition    4  100 %
warning: 7 trajectories; 50 to 100 are wanted
"""


def test_the_report_of_a_mixed_corpus_is_the_frozen_one() -> None:
    assert summary.text(summary.summarise(corpus())) == TEXT.strip()


def test_a_warning_begins_above_the_share_and_with_five() -> None:
    """Six of ten are not more than 60 %, seven are; of four nothing is said."""

    def warnings(alike: int, of: int) -> list[str]:
        counts = {"a": alike, "b": of - alike}
        report = summary.Report(
            trajectories=60, solved=60, first_try=0, exhausted=0, attempts=60,
            categories={k: n for k, n in counts.items() if n},
        )  # fmt: skip
        return summary._warnings(report)

    assert warnings(6, 10) == [] and warnings(4, 4) == []
    assert warnings(7, 10) == ["'a' makes up 70 % of categories (7 of 10)"]
    assert warnings(5, 5) == ["'a' makes up 100 % of categories (5 of 5)"]
    for number in (49, 101):
        report = summary.Report(trajectories=number, solved=0, first_try=0, exhausted=0, attempts=0)
        assert summary._warnings(report) == [f"{number} trajectories; 50 to 100 are wanted"]
    for number in (50, 100):
        assert not summary._warnings(
            summary.Report(trajectories=number, solved=0, first_try=0, exhausted=0, attempts=0)
        )
    tired = summary.Report(trajectories=50, solved=20, first_try=0, exhausted=30, attempts=50)
    assert summary._warnings(tired) == []
    tired = summary.Report(trajectories=50, solved=19, first_try=0, exhausted=31, attempts=50)
    assert summary._warnings(tired) == ["31 of 50 trajectories are exhausted: few corrections to learn"]
