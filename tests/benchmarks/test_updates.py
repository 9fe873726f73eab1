"""Updates: installed and removed again; tasks that count only with them; nothing of a held-out function in training."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections import Counter

import pytest

from rune import plugins
from rune.benchmarks import _api_tasks, api_updates, code_update_arena
from rune.benchmarks._api_functions import FUNCTIONS
from rune.benchmarks.scorers import execution_with_and_without as with_and_without
from rune.benchmarks.scorers import updates as _updates
from rune.benchmarks.scorers.judging import Item
from rune.corpus import exclusion
from rune.errors import ContaminationError, DataError
from rune.types import Execution, Outcome, Problem, Split, Trajectory


@pytest.fixture(scope="module")
def sandbox():
    module = plugins.load("sandbox", "fork")
    found = module.build(module.Config(workers=1, cpu_seconds=10.0))
    yield found
    found.close()


@pytest.fixture(scope="module")
def generated():
    return api_updates.generate(api_updates.Config(seed=3, updates=30))


@pytest.fixture(scope="module")
def arena(data_dir):
    return code_update_arena.build(code_update_arena.Config(path=str(data_dir), fold=1))


# --------------------------------------------------------------------------- with and without


UPDATE = _updates.Update(
    domain="statistics.mean:new-argument:scale",
    function="statistics.mean",
    setup="import statistics\nold_mean = statistics.mean",
    implementation="def mean(data, scale=1):\n    return old_mean(data) * scale\n",
    name="mean",
    signature="statistics.mean(data, scale=1)",
    documentation="",
)


def problem(after: str = ""):
    return Problem(
        task_id="x/0",
        benchmark="api_updates",
        prompt="",
        entry_point="f",
        test="def check(candidate):\n    assert candidate([1, 3]) == 6\n",
        prelude=_updates.prelude(UPDATE, after=after),
        domain=UPDATE.domain,
    )


USES = "import statistics\ndef f(x):\n    return statistics.mean(x, scale=3)\n"
BY_HAND = "def f(x):\n    return sum(x) / len(x) * 3\n"
WRONG = "import statistics\ndef f(x):\n    return statistics.mean(x)\n"


def test_only_a_program_that_needs_the_update_counts(sandbox):
    codes = {"uses": USES, "by hand": BY_HAND, "wrong": WRONG}
    found = {e.key: e for e in with_and_without.judge(sandbox, [Item(k, problem(), c) for k, c in codes.items()])}
    assert {k: e.error_kind for k, e in found.items()} == {"uses": "", "by hand": "NotNeeded", "wrong": "WrongAnswer"}
    assert [k for k, e in found.items() if e.outcome is Outcome.PASSED] == ["uses"]
    assert {k for k, e in found.items() if with_and_without.passes_with(e)} == {"uses", "by hand"}


class Said:
    """A sandbox whose verdicts are written beforehand: with the update, and without it."""

    def __init__(self, *outcomes):
        self.outcomes, self.preludes = list(outcomes), []

    def judge(self, programs):
        for program in programs:
            self.preludes.append(program.prelude)
            yield Execution(key=program.key, outcome=self.outcomes.pop(0))

    def close(self): ...


@pytest.mark.parametrize(
    ("outcomes", "used"),
    [
        ((Outcome.PASSED, Outcome.FAILED), True),
        ((Outcome.PASSED, Outcome.TIMED_OUT), True),  # without the update it does not end: it needs it
        ((Outcome.PASSED, Outcome.PASSED), False),
        ((Outcome.FAILED,), False),
        ((Outcome.TIMED_OUT,), False),
    ],
)
def test_used_is_passed_with_the_update_and_not_passed_without(outcomes, used):
    said = Said(*outcomes)
    (found,) = with_and_without.judge(said, [Item("k", problem("extra = 1\n"), USES)])
    assert (found.outcome is Outcome.PASSED) is used
    assert ["scale=1" in p for p in said.preludes] == [True, False][: len(outcomes)]  # the update's own argument
    assert all("extra = 1" in p for p in said.preludes)


@pytest.mark.parametrize(
    ("program", "names"),
    [
        ("import statistics\nx = statistics.middle([1])\n", True),
        ("from statistics import middle as m\n", True),
        ("def f(middle):\n    return middle\n", True),  # by name alone: what it is bound to is not followed
        ("import statistics\nx = statistics.mean([1])  # middle\n", False),
        ("x = 'statistics.middle([1])'\n", False),
        ("x = middle(\n", True),  # no syntax of ours: searched as text
    ],
)
def test_a_program_names_the_function_as_it_is_called_after_the_update(program, names):
    update = _updates.Update(
        domain="statistics.mean:new-name:middle", function="statistics.mean", setup="", implementation="",
        name="middle", signature="", documentation="",
    )  # fmt: skip
    asked = Problem(task_id="a/0", benchmark="a", prompt="", entry_point="f", test="", prelude=_updates.prelude(update))
    assert _updates.names_function(program, asked) is names
    untold = dataclasses.replace(asked, prelude=with_and_without.prelude("pass\n"))
    assert _updates.names_function(program, untold) is None


def test_the_judge_keeps_its_own_library(sandbox):
    """The prelude is executed by the judge too; there it must do nothing, or one task's update would meet the next."""
    strange = dataclasses.replace(
        problem(),
        test="import statistics\ndef check(candidate):\n    candidate([1])\n    statistics.mean([1], scale=2)\n",
    )
    (found,) = with_and_without.judge(sandbox, [Item("k", strange, USES)])
    assert found.outcome is Outcome.FAILED and "scale" in found.error


def test_what_stays_without_the_update_is_kept():
    kept = with_and_without.without(problem(after="kept = 1\n")).prelude
    scope: dict[str, object] = {}
    exec(kept, scope)
    assert scope["kept"] == 1 and "scale" not in kept


def test_our_own_programs_leave_the_library_as_it_was():
    before = statistics.mean
    assert _api_tasks.run(UPDATE, USES, "f", ([1, 3],)) == 6
    assert statistics.mean is before


# --------------------------------------------------------------------------- generated updates


def test_generated_updates_prove_themselves_in_the_sandbox(generated, sandbox):
    counts = api_updates.verify(generated, sandbox)
    assert counts["updates"] == 30
    assert counts["references_count"] == len(generated) == 120
    assert counts["habits_fail"] == sum(len(t.habits) for t in generated) >= 120


def test_verify_finds_a_reference_that_does_not_need_the_update(generated, sandbox):
    task = generated[0]
    plain = dataclasses.replace(task.problem, prelude="")
    with pytest.raises(DataError, match="reference"):
        api_updates.verify([task._replace(problem=plain)], sandbox)


def test_every_task_has_four_tests_or_more_and_does_not_name_what_changed(generated):
    for task in generated:
        scope: dict[str, list[object]] = {}
        exec(task.problem.test, scope)
        assert len(scope["CASES"]) >= 4
        _, kind, detail = task.update.domain.split(":")
        if kind == "new-argument":
            assert f" {detail.split('.')[0]}=" not in task.problem.prompt


def test_the_same_settings_give_the_same_tasks(generated):
    again = api_updates.generate(api_updates.Config(seed=3, updates=30))
    assert [t.problem for t in again] == [t.problem for t in generated]


def test_no_solution_of_one_update_does_under_another_of_its_function_whichever_was_made_first():
    """Among these twenty an earlier one's solution would do under a later one, and not the other way round."""
    tasks = api_updates.generate(api_updates.Config(seed=12, updates=20, names="plain"))
    first = {}
    for task in tasks:
        first.setdefault(task.update.function, {}).setdefault(task.update.domain, task)
    pairs = [(a, b) for members in first.values() for a in members.values() for b in members.values() if a is not b]
    assert pairs
    for one, other in pairs:
        assert not _api_tasks.passes(other.update, one.problem.reference, one.problem)


def test_all_kinds_of_update_are_made(generated):
    some = api_updates.generate(api_updates.Config(seed=5, updates=150))
    assert set(api_updates.KINDS) == {t.update.domain.split(":")[1] for t in some}
    assert Counter(t.problem.domain for t in some) == {t.problem.domain: 4 for t in some}


def test_held_out_functions_are_on_one_side():
    some = api_updates.generate(api_updates.Config(seed=5, updates=60, held_out=30))
    sides: dict[str, set[Split]] = {}
    for task in some:
        sides.setdefault(task.update.function, set()).add(task.problem.split)
    assert all(len(side) == 1 for side in sides.values())
    assert {next(iter(side)) for side in sides.values()} == set(Split)


def test_no_function_of_a_package_that_code_update_arena_updates(arena):
    packages = {update.package for update in arena.updates().values()}
    assert packages == api_updates.FORBIDDEN
    assert not [f.path for f in FUNCTIONS if f.path.partition(".")[0] in packages]


def test_trajectories_hold_the_old_habit_and_its_error(generated):
    found = list(api_updates.trajectories(generated[:8]))
    for trajectory, task in zip(found, generated, strict=False):
        *failed, last = trajectory.attempts
        assert last.code == trajectory.solution == task.problem.reference and last.outcome is Outcome.PASSED
        assert failed and all(a.outcome is Outcome.FAILED and a.error and a.code in task.habits for a in failed)
        assert task.update.documentation not in json.dumps(dataclasses.asdict(trajectory))


# --------------------------------------------------------------------------- CodeUpdateArena


def test_references_count_with_their_update_alone(arena, sandbox):
    some = [p for p in arena.problems() if p.category == "re"][:12]
    found = list(with_and_without.judge(sandbox, (Item(p.task_id, p, p.reference) for p in some)))
    assert len(found) == 12 and [e.key for e in found if e.outcome is not Outcome.PASSED] == []


def test_a_failing_unit_test_says_what_it_saw(arena, sandbox):
    task = next(p for p in arena.problems() if p.task_id == "CodeUpdateArena/math.degrees:add-argument-semantics:0/0")
    constant = f"def {task.entry_point}(measurement):\n    return 5\n"
    (found,) = with_and_without.judge(sandbox, [Item("k", task, constant)])
    assert found.outcome is Outcome.FAILED
    assert "result = 5" in found.error and "expected_result = 57.29" in found.error


def test_all_updates_of_a_function_are_on_one_side(arena):
    updates = list(arena.updates().values())
    groups = code_update_arena.folds(updates, 5, 0)
    assert sorted(function for group in groups for function in group) == sorted({u.function for u in updates})
    sizes = [sum(u.function in group for u in updates) for group in groups]
    assert sum(sizes) == len(updates) and max(sizes) - min(sizes) <= 2
    sides: dict[str, set[Split]] = {}
    for p in arena.problems():
        sides.setdefault(p.domain.partition(":")[0], set()).add(p.split)
    assert all(len(side) == 1 for side in sides.values())


def test_another_file_is_refused(tmp_path):
    file = tmp_path / "arena.jsonl"
    file.write_text('{"update": {}}\n')
    with pytest.raises(DataError, match="sha256"):
        code_update_arena.build(code_update_arena.Config(path=str(file))).problems()
    with pytest.raises(DataError, match="function_path"):
        code_update_arena.build(code_update_arena.Config(path=str(file), verify=False)).problems()


# --------------------------------------------------------------------------- leakage


def trajectory(domain: str, benchmark: str = "api_updates") -> Trajectory:
    return Trajectory(
        trajectory_id="t", task_id="x/1", benchmark=benchmark, prompt="", attempts=(), solution="x = 1", domain=domain
    )


def test_a_held_out_function_in_a_training_corpus_is_refused(arena):
    held = [p for p in arena.problems() if p.split is Split.HELD_OUT]
    free = next(p for p in arena.problems() if p.split is Split.TRAIN)
    function = held[0].domain.partition(":")[0]
    exclusion.check_corpus([trajectory(free.domain, "code_update_arena")], held)
    for name in ("api_updates", "code_update_arena"):
        # Another update of the same function is no less forbidden.
        with pytest.raises(ContaminationError, match=f"held-out function: {function}"):
            exclusion.check_corpus([trajectory(f"{function}:new-argument:other", name)], held)


def test_tasks_of_one_function_are_relatives_whatever_the_update(arena):
    problems = [p for p in arena.problems() if p.category == "re"]
    groups = exclusion.relatives(problems)
    found = [{problems[i].domain.partition(":")[0] for i in group} for group in groups]
    assert all(len(functions) == 1 for functions in found)
    assert len(found) == len({f for functions in found for f in functions})
