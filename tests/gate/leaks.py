"""A leakage check and the splits of a small benchmark, whole, as plain data.

python -m tests.gate.leaks      writes leaks.json anew: only when a finding or a split is meant to change
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from rune.analysis import leakage
from rune.corpus import exclusion, overlap, splits
from rune.types import Attempt, Outcome, Problem, Split, Trajectory, Treatment

FILE = Path(__file__).with_name("leaks.json")


def words(stem: str, count: int, start: int = 0) -> str:
    return " ".join(f"{stem}{i}" for i in range(start, start + count))


def chain(name: str, steps: int, start: int = 0) -> str:
    """A program whose lines differ."""
    return f"def f({name}):\n" + "".join(f"    {name} = {name} * {i} + {i + 1}\n" for i in range(start, start + steps))


def task(number: int, **changes: Any) -> Problem:
    record = Problem(
        task_id=f"T/{number}", benchmark="t", prompt=words(f"ask{number}x", 24), entry_point=f"f{number}",
        test=f"assert f{number}(1) == {number}\n" + chain(f"t{number}", 6, 90 * number), split=Split.HELD_OUT,
        reference=f"def f{number}(x):\n" + chain("x", 9, 50 * number).partition("\n")[2],
    )  # fmt: skip
    return dataclasses.replace(record, **changes)


def story(number: int, task_id: str, prompt: str, *codes: str, solved: bool = True, domain: str = "") -> Trajectory:
    attempts = tuple(Attempt(code=code, outcome=Outcome.FAILED) for code in codes)
    return Trajectory(
        trajectory_id=f"s{number}", task_id=task_id, benchmark="t", prompt=prompt, attempts=attempts, domain=domain,
        solution=codes[-1] if solved and codes else "",
    )  # fmt: skip


TASKS = [
    task(0), task(1), task(2), task(3), task(4), task(5), task(6, domain="shop"), task(7, domain="bank"),
    task(8, reference="return a"), task(9), task(10), task(11, prompt="add"),
]  # fmt: skip
CORPUS = [
    story(0, "T/1", "else"),  # the task itself
    story(1, "C/1", words("ask2x", 14) + " " + words("own", 9), "x = 1"),  # some of a prompt
    story(2, "C/2", words("ask3x", 21), chain("z", 3)),  # most of one
    story(3, "C/3", "other", TASKS[4].reference.replace("f4", "g").replace("x", "value")),  # the same tree
    story(4, "C/4", "other still", TASKS[5].reference + "\nx = 2\n", "def f9(): pass"),  # the code, and a name
    story(5, "C/5", "a shop", "y = 2", domain="shop"),
    story(6, "C/6", "words of a bank", TASKS[7].reference, domain="street"),
    story(7, "C/7", "none", "def broken(:\n", "return a", solved=False),
    story(8, "T/10", words("ask10x", 24)),
]  # fmt: skip
SHOWN = [story(20, "T/9", "shown"), story(21, "T/0", "shown too")]
TREATMENTS = [
    Treatment(task_id="T/0", condition="rag", context=TASKS[0].test, trajectory_ids=("s1",)),
    Treatment(task_id="T/2", condition="rag", context="nothing of it", trajectory_ids=("s0", "s8")),
    Treatment(task_id="T/3", condition="hypernet", trajectory_ids=("gone",)),
    Treatment(task_id="T/5", condition="hypernet", trajectory_ids=("s20",)),
    Treatment(task_id="T/9", condition="hypernet", trajectory_ids=("s20",)),
    Treatment(task_id="T/7", condition="rag", context=TASKS[7].reference[:90]),
    Treatment(task_id="T/6", condition="rag", context="see " + TASKS[6].reference),
    Treatment(task_id="T/11", condition="vanilla"),
]


def found() -> dict[str, Any]:
    """Name → what is found or made."""
    rows = leakage.rows(TASKS, CORPUS, TREATMENTS, shown=SHOWN)
    treated, base = [5, 5, 4, 2, 3, 1, 0, 5, 2, 4, 4, 1], [0, 1, 3, 2, 4, 0, 0, 1, 2, 1, 0, 1]
    many = [
        dataclasses.replace(task(i), category="abc"[i % 3] if i % 5 else "d", domain=f"d{i % 7}") for i in range(41)
    ]
    frame = [words("frame", 12) + " " + words(f"own{i}x", 6) for i in range(44)]
    framed = [task(i, prompt=text) for i, text in enumerate(frame)]
    plain = [dataclasses.replace(p, domain="") for p in many]
    near = [*plain, task(50, reference=plain[3].reference), task(51, prompt=plain[4].prompt), task(50, category="z")]
    near[-1] = dataclasses.replace(near[-1], task_id="T/3", reference="")
    near_train = [dataclasses.replace(p, split=Split.TRAIN) for p in near]
    many_train = [dataclasses.replace(p, split=Split.TRAIN) for p in many]
    code = 'def f(a):\n    "doc"\n    return a + 1 - a * 22 # c\n'
    train = [dataclasses.replace(p, split=Split.TRAIN) for p in plain]
    marked = [dataclasses.replace(p, split=Split.HELD_OUT if i < 9 else Split.TRAIN) for i, p in enumerate(many)]

    def held(problems: list[Problem]) -> str:
        return " ".join(p.task_id[2:] for p in problems if p.split is Split.HELD_OUT) + f" of {len(problems)}"

    return {
        "leakage": leakage.assess(rows, len(CORPUS), treated, base, 5),
        "nothing left": leakage.consequences(rows[1:2], [3], [1], 5),
        "a part of the corpus": [r.why for r in leakage.rows(TASKS, CORPUS, TREATMENTS, compared=CORPUS[:2])],
        "a frame": [
            (r.prompt_share, r.suspicious)
            for r in leakage.rows(framed[:4], [story(i, f"C/{i}", t) for i, t in enumerate(frame[4:])], [])
        ],
        "split": {
            f"{count} by seed {seed}": held(splits.split(train, held_out=count, seed=seed))
            for count in (1, 7, 40) for seed in (0, 5)
        },
        "of near ones": held(splits.split(near_train, held_out=30, seed=1)),
        "marked": held(splits.split(marked, held_out=4, seed=2)),
        "as marked": held(splits.split(marked, held_out=0, seed=2)),
        "by domain": held(splits.split(many_train, held_out=2, seed=3, by="domain")),
        "marked, by domain": held(splits.split(marked, held_out=3, seed=3, by="domain")),
        "deal": splits.deal(near, k=4, seed=6),
        "deal by domain": splits.deal(many, k=3, seed=6, by="domain"),
        "fold": held(splits.hold_out_fold(plain, fold=1, folds=3, seed=2)),
        "quotas": [splits._quotas(plain, total) for total in (0, 1, 10, 41)],
        "relatives": [group for group in exclusion.relatives(near) if len(group) > 1],
        "code shingles": sorted(" ".join(s) for s in exclusion.code_shingles(code)),
        "of broken code": len(exclusion.code_shingles("def f(:\n" + words("w", 12))),
        "sizes of shapes": [made and made.size for made in map(overlap.shape, (
            "", "import a\nx = 1",
            'class A:\n    "doc"\n    async def f(self, *a: int, k: str = "s", **o) -> int:\n        return k',
            "y: int = max(x)", "x = (",
        ))],
        "functions": [sorted(overlap.functions(code)) for code in (
            "def a(): pass\nasync def b(): pass", "x = (\n  def c(x)\nasync def d(")],
        "tokens": overlap.tokens("Ab_1 += 22.5e3 # é\n\t'x'"),
    }  # fmt: skip


if __name__ == "__main__":
    FILE.write_text(
        json.dumps(found(), indent=1, default=dataclasses.asdict, ensure_ascii=False) + "\n", encoding="utf-8"
    )
