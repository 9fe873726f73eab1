"""Families: deterministic, silent prompts, conventions that show, and a proof that can fail."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator

import pytest

from rune import config, plugins
from rune.benchmarks import families
from rune.benchmarks._families_atoms import DIMENSIONS, choices
from rune.benchmarks._families_conventions import label, parse
from rune.benchmarks._families_tasks import TASKS
from rune.benchmarks._families_trajectories import run_here
from rune.errors import DataError
from rune.types import Execution, Outcome, Problem, Program, Sandbox, Split


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    module = plugins.load("sandbox", "fork")
    box = module.build(module.Config())
    yield box
    box.close()


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return families.build(families.Config()).problems()


def test_the_default_is_320_families_of_6_tasks_over_40_plain_functions(problems: list[Problem]) -> None:
    sizes = Counter(p.domain for p in problems)
    assert len(sizes) == 320
    assert set(sizes.values()) == {6}
    assert len({p.task_id for p in problems}) == 1920
    assert len({p.entry_point for p in problems}) >= 40
    assert len(TASKS) == len({t.name for t in TASKS})


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    small = families.Config(families=12, held_out=2)
    first = families.generate(small)
    assert first == families.generate(small)
    assert first != families.generate(families.Config(families=12, held_out=2, seed=1))


def test_a_family_is_on_one_side_and_siblings_are_different_tasks(problems: list[Problem]) -> None:
    sides: dict[str, set[Split]] = defaultdict(set)
    names: dict[str, set[str]] = defaultdict(set)
    for p in problems:
        sides[p.domain].add(p.split)
        names[p.domain].add(p.entry_point)
    assert all(len(side) == 1 for side in sides.values())
    assert all(len(name) == 6 for name in names.values())
    assert sum(side == {Split.HELD_OUT} for side in sides.values()) == 64


def test_a_prompt_names_no_family_and_is_the_same_in_all_of_them(problems: list[Problem]) -> None:
    by_task: dict[str, set[str]] = defaultdict(set)
    for p in problems:
        by_task[p.entry_point].add(p.prompt)
    assert all(len(prompts) == 1 for prompts in by_task.values())


def test_every_atom_of_a_held_out_family_is_shown_by_training_families(problems: list[Problem]) -> None:
    shown = set().union(*(parse(p.domain).labels for p in problems if p.split is Split.TRAIN))
    assert all(parse(p.domain).labels <= shown for p in problems if p.split is Split.HELD_OUT)


def test_training_families_show_every_atom_of_the_vocabulary_at_least_four_times(problems: list[Problem]) -> None:
    names = {p.domain for p in problems if p.split is Split.TRAIN}
    shown = Counter(atom for name in names for atom in parse(name).labels)
    vocabulary = {label(d, kind, atom) for kind in families.KINDS for d in DIMENSIONS for atom in choices(d, kind)}
    assert set(shown) == vocabulary
    assert min(shown.values()) >= 4


def test_the_atom_split_holds_out_atoms_that_no_training_family_shows() -> None:
    hard = families.generate(families.Config(families=60, held_out=12, split="atom"))
    shown = set().union(*(parse(p.domain).labels for p in hard if p.split is Split.TRAIN))
    held = [p for p in hard if p.split is Split.HELD_OUT]
    assert len({p.domain for p in held}) == 12
    assert all(parse(p.domain).labels - shown for p in held)


@pytest.mark.parametrize("seed", range(3))
def test_the_atom_split_holds_out_as_many_families_as_are_asked_for(seed: int) -> None:
    hard = families.generate(families.Config(seed=seed, tasks=1, split="atom"))
    train, held = ([p for p in hard if p.split is split] for split in (Split.TRAIN, Split.HELD_OUT))
    shown = set().union(*(parse(p.domain).labels for p in train))
    novel = Counter(atom for p in held for atom in parse(p.domain).labels - shown)
    assert len(held) == 64
    assert all(parse(p.domain).labels - shown for p in held)
    vocabulary = {
        label(d, kind, atom): atom for kind in families.KINDS for d in DIMENSIONS for atom in choices(d, kind)
    }
    assert set(novel) == set(vocabulary) - shown  # each that is kept is asked for, and of each dimension there are some
    assert {name.partition(":")[0] for name in novel} == {"input", "error", "wrap", *families.KINDS}
    assert min(novel.values()) >= 2
    written = "\n".join(p.reference for p in train)
    for name in novel:
        code = re.sub(r"\bx\b", "(data|result)", re.escape(vocabulary[name].code))
        line = {"input": f"data = {code}", "error": f"return {code}", "wrap": f"return {code}"}
        assert not re.search(rf"{line.get(name.partition(':')[0], f'result = {code}')}$", written, re.MULTILINE)


def test_no_two_families_share_a_convention_whatever_the_error_habit(problems: list[Problem]) -> None:
    names = {p.domain for p in problems}
    assert len({parse(name).shape for name in names}) == len(names) == 320
    assert all(parse(name).name == name for name in names)


def test_solutions_are_short(problems: list[Problem]) -> None:
    assert max(len(p.reference.splitlines()) for p in problems) <= 12


def test_references_pass_defaults_and_near_misses_fail(problems: list[Problem], sandbox: Sandbox) -> None:
    sample = problems[::97]
    proof = families.verify(sample, sandbox)
    assert proof.references_passed == len(sample)
    assert proof.defaults_failed == 9 * len(sample)
    assert proof.near_misses_failed >= 3 * len(sample)


def test_the_atom_split_is_proved_as_the_other_is(sandbox: Sandbox) -> None:
    hard = families.generate(families.Config(families=60, held_out=24, tasks=1, split="atom"))
    sample = [p for p in hard if p.split is Split.HELD_OUT][::4]
    proof = families.verify(sample, sandbox)
    assert (proof.references_passed, proof.defaults_failed) == (6, 54)
    assert proof.near_misses_failed >= 18


@pytest.mark.slow
def test_the_whole_benchmark_is_proved_in_the_sandbox(problems: list[Problem], sandbox: Sandbox) -> None:
    proof = families.verify(problems, sandbox)
    assert proof.families == 320
    assert proof.references_passed == 1920
    assert proof.defaults_failed == 9 * 1920


def test_errors_written_here_and_by_the_sandbox_read_the_same(problems: list[Problem], sandbox: Sandbox) -> None:
    sample = problems[::41]
    assert families.trajectories(sample, None, variants=2) == families.trajectories(sample, sandbox, variants=2)


def test_siblings_of_another_family_fail_with_this_familys_habits(problems: list[Problem]) -> None:
    by_task: dict[str, list[Problem]] = defaultdict(list)
    for p in problems:
        by_task[p.entry_point].append(p)
    for group in list(by_task.values())[:20]:
        one, other = group[0], group[1]
        crossed = Program(key="", code=other.reference, test=one.test, entry_point=one.entry_point, prelude=one.prelude)
        assert run_here(crossed).outcome is Outcome.FAILED, (one.domain, other.domain)


def test_verify_refuses_a_reference_that_fails_and_a_default_that_passes(
    problems: list[Problem], sandbox: Sandbox
) -> None:
    broken = config.build(Problem, {**config.plain(problems[0]), "reference": families.defaults(problems[0])[0]})
    with pytest.raises(DataError, match="the reference failed"):
        families.verify([broken], sandbox)
    lax = config.build(Problem, {**config.plain(problems[0]), "test": "def check(candidate):\n    pass\n"})
    with pytest.raises(DataError, match=r"the (default \d|near miss .+) passed"):
        families.verify([lax], sandbox)


def test_a_trajectory_fails_first_with_the_expected_result_in_its_error_and_ends_passing(
    problems: list[Problem],
) -> None:
    sample = problems[::29]
    told = families.trajectories(sample, None, seed=3, variants=2)
    assert len(told) == 2 * len(sample)
    assert len({t.trajectory_id for t in told}) > 1.5 * len(sample)
    for problem, trajectory in zip([p for p in sample for _ in range(2)], told, strict=True):
        assert trajectory.task_id == problem.task_id and trajectory.domain == problem.domain
        *failed, last = trajectory.attempts
        assert failed and all(a.outcome is Outcome.FAILED and a.error for a in failed)
        assert last.outcome is Outcome.PASSED and last.code == trajectory.solution == problem.reference
    assert told == families.trajectories(sample, None, seed=3, variants=2)
    assert any(len(t.attempts) == 3 for t in told) and any(len(t.attempts) == 2 for t in told)


def test_an_attempt_that_passes_too_early_is_an_error(problems: list[Problem]) -> None:
    class Agreeable:  # a scorer that lost its mind
        def judge(self, programs):  # type: ignore[no-untyped-def]
            for program in programs:
                yield Execution(key=program.key, outcome=Outcome.PASSED)

        def close(self) -> None: ...

    with pytest.raises(DataError, match="attempt 0 passed"):
        families.trajectories(problems[:1], Agreeable())


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"held_out": 320}, "leave some to train on"), ({"tasks": 11}, "1 to 10"), ({"min_active": 1}, "2 ≤ min")],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        families.Config(**settings)
