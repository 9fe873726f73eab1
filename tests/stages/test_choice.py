"""Which tasks are worked on, which trajectories are kept, which draws are still missing."""

from __future__ import annotations

from rune.stages import collect, sample
from rune.types import Attempt, Outcome, Problem, Trajectory


def problem(i: int, category: str) -> Problem:
    return Problem(task_id=f"t/{i}", benchmark="t", prompt="", entry_point="f", test="", category=category)


def trajectory(task: int, name: str, outcomes: str) -> Trajectory:
    attempts = tuple(Attempt(code=name, outcome=Outcome.PASSED if o == "p" else Outcome.FAILED) for o in outcomes)
    return Trajectory(
        trajectory_id=name,
        task_id=f"t/{task}",
        benchmark="t",
        prompt="",
        attempts=attempts,
        solution=name if outcomes.endswith("p") else "",
    )


def test_chosen_tasks_are_even_over_categories() -> None:
    tasks = [problem(i, "abc"[min(i // 10, 2)]) for i in range(60)]  # 10 a, 10 b, 40 c
    chosen = collect.choose(tasks, 9, seed=1)
    assert sorted(p.category for p in chosen) == list("aaabbbccc")
    assert chosen == collect.choose(tasks[::-1], 9, seed=1)
    assert {p.task_id for p in chosen} != {p.task_id for p in collect.choose(tasks, 9, seed=2)}


def test_a_small_category_gives_what_it_has_and_zero_means_all() -> None:
    tasks = [problem(0, "a"), *(problem(i, "b") for i in range(1, 9))]
    assert len(collect.choose(tasks, 6, seed=0)) == 6
    assert len(collect.choose(tasks, 0, seed=0)) == 9


def test_a_corrected_failure_is_kept_before_a_first_try_pass_before_an_exhausted_chain() -> None:
    made = [trajectory(1, "exhausted", "fff"), trajectory(1, "first", "p"), trajectory(1, "corrected", "ffp")]
    assert [t.trajectory_id for t in collect.keep(made, limit=9, per_task=1)] == ["corrected"]
    assert [t.trajectory_id for t in collect.keep(made, limit=9, per_task=2)] == ["first", "corrected"]


def test_exhausted_chains_are_kept_where_nothing_better_exists() -> None:
    made = [trajectory(1, "a", "fff"), trajectory(2, "b", "p")]
    kept = collect.keep(made, limit=9, per_task=1)
    assert [(t.trajectory_id, t.solved) for t in kept] == [("a", False), ("b", True)]


def test_the_limit_keeps_corrections_and_drops_the_others_whatever_their_end() -> None:
    made = [trajectory(i, f"{i:02}", "f" if i % 2 else "p") for i in range(10)] + [trajectory(99, "zz", "fp")]
    kept = collect.keep(made, limit=5, per_task=1)
    assert [t.trajectory_id for t in kept] == ["00", "01", "02", "03", "zz"]


def test_missing_draws_become_runs() -> None:
    assert sample._runs([0, 1, 2, 3, 4]) == [(0, 5)]
    assert sample._runs([1, 3, 4]) == [(1, 1), (3, 2)]
    assert sample._runs([]) == []
