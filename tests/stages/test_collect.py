"""collect: what goes into a corpus besides the loop's own trajectories, and what may not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from rune.errors import ContaminationError
from rune.runs import store
from rune.stages import collect
from rune.stages.context import Context
from rune.types import Attempt, ModelRef, Outcome, Problem, Split, Trajectory

CONFIG = collect.Config(tasks=0, chains=1, max_attempts=1, temperature=0.8, max_new_tokens=9)


def problem(name: str, split: Split, domain: str) -> Problem:
    return Problem(
        task_id=f"t/{name}",
        benchmark="t",
        prompt=f"Write {name}.",
        entry_point=name,
        test="",
        split=split,
        domain=domain,
    )


def trajectory(task: str, domain: str) -> Trajectory:
    code = f"def f():\n    return {task!r}\n"
    return Trajectory(
        trajectory_id=f"of {task}", task_id=task, benchmark="t", prompt=f"About {task}.",
        attempts=(Attempt(code=code, outcome=Outcome.PASSED),), solution=code, domain=domain,
    )  # fmt: skip


def run(
    root: Path,
    train_domain: str,
    imported: Trajectory,
    *,
    where: str = "imports",
    asked: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """A run of one held-out and one training task, which the loop has worked on already, and an imported trajectory."""
    folder = store.RunDir(root / "run")
    store.write_jsonl(
        folder / "problems.jsonl",
        [problem("asked", Split.HELD_OUT, "dates"), problem("known", Split.TRAIN, train_domain)],
    )
    attempt = Attempt(code="def known():\n    return 1\n", outcome=Outcome.PASSED)
    store.write_jsonl(folder / "attempts.jsonl", [collect.Step(task_id="t/known", chain=0, step=0, attempt=attempt)])
    store.write_jsonl(root / "more.jsonl", [imported])

    def none() -> None:
        raise AssertionError("there is nothing left to try")

    context = Context(
        seed=0, model=lambda: ModelRef(name="none", path="", digest="", source="local"), device="cpu", dtype="float32",
        engine=none, sandbox=none, cache=root,  # type: ignore[arg-type, return-value]
    )  # fmt: skip
    config = collect.Config(**{**_plain(CONFIG), where: (str(root / "more.jsonl"),)})
    return [t.task_id for t in collect.run(folder, config, context, asked=asked or {})]


def _plain(config: collect.Config) -> dict[str, object]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def test_imports_are_held_to_what_the_split_keeps_whole(tmp_path: Path) -> None:
    """Where tasks of one domain stand on both sides, an import of it may train; where none does, it may not."""
    imported = trajectory("t/third", "dates")
    assert run(tmp_path / "by task", "dates", imported) == ["t/known", "t/third"]
    with pytest.raises(ContaminationError, match=r"more\.jsonl:1: .* held-out domain: dates"):
        run(tmp_path / "by domain", "money", imported)


@pytest.mark.parametrize("where", ["imports", "shown"])
def test_a_call_whose_value_is_asked_for_stands_in_no_trajectory(tmp_path: Path, where: str) -> None:
    """In whatever part of it and layout; other inputs, other functions and what train tasks ask for may stand there."""
    asked = {"t/asked": ["zib([1, 2], 'a b')"], "t/known": ["tog(1)"]}
    fine = replace(trajectory("t/third", "money"), prompt="assert zib([1, 2], 'a') == 3\nassert tog(1) == 2")
    kept = ["t/known", "t/third"] if where == "imports" else ["t/known"]
    assert run(tmp_path / "fine", "money", fine, where=where, asked=asked) == kept
    last, call = fine.attempts[0], "zib([1, 2], 'a b')"
    failed = Attempt(code="x = 1", outcome=Outcome.FAILED, error_kind="WrongAnswer", error="no")
    leaking = {
        "prompt": replace(fine, prompt="so that\nassert zib( [1,2],\n 'a b') == 3"),
        "solution": replace(fine, attempts=(replace(last, code=f"x = {call}"),), solution=f"x = {call}"),
        "code": replace(fine, attempts=(replace(failed, code=f"x = {call}"), last)),
        "error": replace(fine, attempts=(replace(failed, error=f"{call} is None, not 3"), last)),
        "reflection": replace(fine, attempts=(replace(failed, reflection=f"{call} is 3."), last)),
    }
    for part, one in leaking.items():
        words = r"more\.jsonl:1: trajectory .* shows zib\(\[1, 2\], 'a b'\), whose value t/asked asks for; remove it"
        with pytest.raises(ContaminationError, match=words):
            run(tmp_path / part, "money", one, where=where, asked=asked)


def test_a_held_out_task_is_never_imported(tmp_path: Path) -> None:
    with pytest.raises(ContaminationError, match="evaluation task: t/asked is held out"):
        run(tmp_path, "dates", trajectory("t/asked", "dates"))
