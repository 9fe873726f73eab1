"""One fold after another: what each trains on, where it begins, what it draws, and where all of it is put."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from test_crossfit_decide import settings, trajectory

from rune import config, store
from rune.engines import scripted
from rune.errors import AdapterError, ConfigError, ContaminationError
from rune.stages import collect, crossfit, score
from rune.stages._context import Context
from rune.stages._crossfit_folder import CORPUS, DONE, Place, drawn_at, place, temperatures
from rune.stages.pipeline import RunConfig
from rune.types import (
    Attempt,
    Completion,
    ModelRef,
    Outcome,
    Problem,
    Request,
    Sample,
    Split,
    Trajectory,
    Treatment,
)

# --------------------------------------------------------------------------- places


def test_every_seed_fold_and_temperature_has_a_folder_of_its_own(tmp_path: Path) -> None:
    folder = store.RunDir(tmp_path)
    every = [
        place(folder, seed, fold) / drawn_at(temperature)
        for seed, fold, temperature in itertools.product((1, 11), (0, 1, 11), (0.0, 0.2, 0.25, 0.8, 1.0))
    ]
    assert len(set(every)) == len(every)
    assert place(folder, 3, 1) / drawn_at(0.8) == tmp_path / "seed-3" / "fold-1" / "t0.8"  # as committed runs have it


def test_temperatures_are_the_crossfits_or_else_the_samplings() -> None:
    assert temperatures(settings()) == (0.8, 0.2)
    alone = dataclasses.replace(settings(), crossfit=dataclasses.replace(settings().crossfit, temperatures=()))
    assert temperatures(alone) == (0.8,)


def test_what_is_left_is_every_seed_and_fold_that_did_not_end(tmp_path: Path) -> None:
    folder = store.RunDir(tmp_path)
    assert crossfit.pending(folder, settings()) == [Place(7, 0), Place(7, 1), Place(3, 0), Place(3, 1)]
    (place(folder, 7, 1) / "t0.8").mkdir(parents=True)  # begun is not done
    store.write_json(place(folder, 3, 0) / DONE, {})
    assert crossfit.pending(folder, settings()) == [Place(7, 0), Place(7, 1), Place(3, 1)]


def test_corpora_of_ended_folds_become_ids_and_no_trajectory_stands_twice(tmp_path: Path) -> None:
    folder = store.RunDir(tmp_path)
    a, b, c, d = (trajectory(name, f"other/{name}") for name in "abcd")
    corpora = {(7, 0): [b, a], (7, 1): [a, c], (3, 0): [c, b], (3, 1): [d]}
    for (seed, fold), corpus in corpora.items():
        store.write_jsonl(place(folder, seed, fold) / "trajectories.jsonl", corpus)
        if (seed, fold) != (3, 1):
            store.write_json(place(folder, seed, fold) / DONE, {})
    for _ in range(2):  # again after an interruption: the same
        crossfit.settle(folder, settings())
        assert store.read_jsonl(folder / CORPUS, Trajectory) == [b, a, c]
        for (seed, fold), corpus in list(corpora.items())[:3]:
            assert store.read_json(place(folder, seed, fold) / "corpus.json") == [t.trajectory_id for t in corpus]
            assert not (place(folder, seed, fold) / "trajectories.jsonl").exists()
    # One that is still at work keeps its file.
    assert store.read_jsonl(place(folder, 3, 1) / "trajectories.jsonl", Trajectory) == [d]
    assert not (place(folder, 3, 1) / "corpus.json").exists()


# --------------------------------------------------------------------------- a fold's corpus

CODE = "def f{0}(x):\n    return x + {0}\n"


def task(number: int, *, family: str = "") -> Problem:
    return Problem(
        task_id=f"T/{number}",
        benchmark="t",
        prompt=f"def f{number}(x):\n    '''Add {number} to x.'''\n",
        entry_point=f"f{number}",
        test=f"def check(candidate):\n    for x in range(3):\n        assert candidate(x) == x + {number}\n",
        reference=CODE.format(number),
        split=Split.HELD_OUT,
        family=family,
    )


def tried(name: str, number: int, failures: int = 1) -> Trajectory:
    """A trajectory of a task that failed so often first."""
    wrong = [Attempt(code=f"def f(x):\n    return {name!r}, {i}\n", outcome=Outcome.FAILED) for i in range(failures)]
    right = CODE.format(number) + f"# {name}\n"
    return Trajectory(
        trajectory_id=name, task_id=f"T/{number}", benchmark="t", prompt=task(number).prompt,
        attempts=(*wrong, Attempt(code=right, outcome=Outcome.PASSED)), solution=right,
    )  # fmt: skip


TASKS = [task(i) for i in range(4)]
PARTS = [["T/0", "T/2"], ["T/1", "T/3"]]


def experiment(folder: Path, rule: RunConfig, context: Any = None) -> crossfit.Experiment:
    return crossfit.Experiment(store.RunDir(folder), rule, context, TASKS, parts=PARTS)


def keeping(**changes: Any) -> RunConfig:
    return dataclasses.replace(settings(), collect=dataclasses.replace(settings().collect, **changes))


def test_a_fold_trains_on_the_other_folds_trajectories_and_all_imports(tmp_path: Path) -> None:
    own = [tried(f"a{i}", i) for i in range(4)] + [tried(f"b{i}", i, failures=2) for i in range(4)]
    imported = [trajectory("import", "other/1"), trajectory("lesson", "fam/1", family="fam")]
    for fold, others in enumerate(((1, 3), (0, 2))):
        held_out = [p for p in TASKS if p.task_id in PARTS[fold]]
        one = experiment(tmp_path, keeping(keep_per_task=1)).corpus(held_out, own, imported)
        assert [t.trajectory_id for t in one] == [f"a{i}" for i in others] + ["import", "lesson"]
        two = experiment(tmp_path, keeping(keep_per_task=2)).corpus(held_out, own, imported)
        assert [t.trajectory_id for t in two[:4]] == [f"{c}{i}" for c in "ab" for i in others]
        # The limit is of the loop's own: imports are all there.
        few = experiment(tmp_path, keeping(keep_per_task=2, keep=1)).corpus(held_out, own, imported)
        assert [t.task_id in PARTS[1 - fold] for t in few] == [True, False, False]


def test_an_import_of_a_held_out_task_stops_the_fold(tmp_path: Path) -> None:
    own = [tried(f"a{i}", i) for i in range(4)]
    bad = dataclasses.replace(trajectory("bad", "other/1"), task_id="T/2")
    held_out = [p for p in TASKS if p.task_id in PARTS[0]]
    with pytest.raises(ContaminationError, match="trajectory bad: evaluation task: T/2 is held out"):
        experiment(tmp_path, settings()).corpus(held_out, own, [bad])
    held_out = [p for p in TASKS if p.task_id in PARTS[1]]
    assert bad in experiment(tmp_path, settings()).corpus(held_out, own, [bad])


def test_all_tasks_are_worked_on_and_imports_lose_what_any_of_them_forbids(tmp_path: Path) -> None:
    """Every chain is done already, so nothing is drawn; an import may not train any fold if one holds its task out."""
    rule = keeping(imports=(str(tmp_path / "imports.jsonl"),))
    bad = [dataclasses.replace(trajectory(f"bad{i}", "other/1"), task_id=f"T/{i}") for i in range(4)]
    good = trajectory("good", "other/1")
    store.write_jsonl(tmp_path / "imports.jsonl", [*bad[:2], good, *bad[2:]])
    done = [
        collect.Step(task_id=p.task_id, chain=0, step=0, attempt=Attempt(code=p.reference, outcome=Outcome.PASSED))
        for p in TASKS
    ]
    store.write_jsonl(tmp_path / "run" / "attempts.jsonl", done)

    def none() -> Any:
        raise AssertionError("nothing is left to do")

    context = Context(
        seed=0, model=lambda: ModelRef(name="m", path="", digest="", source="local"), device="cpu", dtype="float32",
        engine=none, sandbox=none, cache=tmp_path,
    )  # fmt: skip
    own, imported = experiment(tmp_path / "run", rule, context)._corpus()
    assert sorted(t.task_id for t in own) == [p.task_id for p in TASKS] and all(t.solved for t in own)
    assert imported == [good]
    report = store.read_json(tmp_path / "run" / "imports.json")
    assert (report["examined"], report["kept"], report["dropped"]) == (5, 1, {"evaluation task": 4})


def asked(**benchmark: Any) -> RunConfig:
    return dataclasses.replace(settings(), benchmark=dataclasses.replace(settings().benchmark, **benchmark))


def test_every_task_of_a_benchmark_is_held_out_in_its_turn() -> None:
    every = crossfit.tasks(asked(folds=6))
    assert len(every) == 164 and {p.split for p in every} == {Split.HELD_OUT}
    parts = crossfit._parts(asked(folds=6), every)
    assert len(parts) == 6 and sorted(t for part in parts for t in part) == sorted(p.task_id for p in every)
    assert len(crossfit.tasks(asked(limit=12))) == 12


def test_a_benchmark_with_evaluation_tasks_of_its_own_is_not_cross_fitted(data_dir: Path) -> None:
    with pytest.raises(ConfigError, match="mbpp marks its own evaluation tasks, so they cannot train in turn"):
        crossfit.tasks(asked(name="mbpp", settings={"path": str(data_dir)}))


# --------------------------------------------------------------------------- whole folds of two seeds


class Listening(scripted.ScriptedEngine):
    """The scripted engine, with what it was asked."""

    def __init__(self, model: ModelRef) -> None:
        answers = {p.prompt.strip(): (p.reference, "def wrong():\n    pass\n") for p in TASKS}
        super().__init__(scripted.Config(answers=answers), model)
        self.asked: list[Request] = []

    def complete(self, requests: Sequence[Request]) -> Iterator[Completion]:
        self.asked += requests
        return super().complete(requests)


class Folds(NamedTuple):
    folder: store.RunDir
    rule: RunConfig
    starts: dict[int, Path]
    asked: dict[int, list[Request]]  # by seed
    made: crossfit.Experiment


def starting(
    folder: Path, model: ModelRef, rule: RunConfig, *, seed: int, trained_on: Sequence[str], spread: float = 0.05
) -> Path:
    """A hypernetwork's folder with random weights: nothing in it is zero, no two seeds share a number."""
    import torch

    from rune.hypernet import base as bases
    from rune.hypernet import checkpoint, trainer
    from rune.hypernet.lora import StaticLora

    base = bases.load(model, device="cpu", dtype="float32")
    lora, hypernet = rule.train.lora, rule.train.hypernet
    layout = base.layout(lora.modules)
    both = trainer.Both(StaticLora(layout, rank=lora.rank, alpha=lora.alpha), trainer.new_hypernet(layout, hypernet))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in both.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    checkpoint.save_hypernet(folder, both, layout, lora, hypernet, model, trained_on=trained_on)
    base.hooks.remove()
    return folder


def resting(root: Path, starts: Sequence[Path] = ()) -> RunConfig:
    """One step of each phase at a rate of almost nothing: weights stay what they were when they came in."""
    raw = config.plain(settings(n=1))
    schedule = {"steps": 1, "learning_rate": 1e-9, "checkpoint_every": 1}
    raw["train"]["lora"] |= {"schedule": schedule, "max_tokens": 300}
    raw["train"]["hypernet"] |= {"schedule": schedule, "max_tokens": 300, "taps": [0, 1], "groups": 16}
    raw["train"]["hypernet"] |= {"encoder": "mean_pool", "encoder_settings": {"width": 16, "latents": 2}}
    raw["adapt"] |= {"arms": ["vanilla", "rag", "hypernet"], "swap_tasks": 0}
    raw["sample"] |= {"n": 2}
    raw["score"] |= {"cache": False}
    raw["crossfit"] |= {"start_from": [str(s) for s in starts]}
    return config.build(RunConfig, raw)


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory, tiny_model: ModelRef) -> Iterator[Folds]:
    """Fold 0 of both seeds, each from a checkpoint of its own."""
    root = tmp_path_factory.mktemp("folds")
    seeds = settings().crossfit.seeds
    starts = {
        seed: starting(root / f"start-{seed}", tiny_model, resting(root), seed=seed, trained_on=["other/9"])
        for seed in seeds
    }
    rule = resting(root, list(starts.values()))
    engine, sandbox = Listening(tiny_model), score.build_sandbox(rule.score, cache=root / "cache")
    context = Context(
        seed=rule.run.seed,
        model=lambda: tiny_model,
        device="cpu",
        dtype="float32",
        engine=lambda: engine,
        sandbox=lambda: sandbox,
        cache=root / "cache",
    )
    folder = store.RunDir.create(root / "runs", "folds", rule, extra={}, resume=False)
    made = experiment(folder.path, rule, context)
    asked = {}
    try:
        for seed in seeds:
            engine.asked = []
            made.fold(Place(seed, 0), [tried(f"a{i}", i) for i in range(4)], [])
            asked[seed] = engine.asked
        yield Folds(folder, rule, starts, asked, made)
    finally:
        sandbox.close()


def test_each_seed_goes_on_from_its_own_checkpoint(folds: Folds) -> None:
    from safetensors.torch import load_file

    begun = {seed: load_file(start / "model.safetensors") for seed, start in folds.starts.items()}
    names = [n for n in next(iter(begun.values())) if n.startswith(("hypernet.up.", "static.up_YRO"))]
    assert names
    for seed in folds.starts:
        ended = load_file(place(folds.folder, seed, 0) / "checkpoints" / "hypernet" / "model.safetensors")
        nearest = {
            other: max(float((ended[n] - tensors[n]).abs().max()) for n in names) for other, tensors in begun.items()
        }
        assert nearest.pop(seed) < 1e-4 and min(nearest.values()) > 0.05


def test_a_checkpoint_trained_on_a_held_out_task_starts_no_fold(
    folds: Folds, tmp_path: Path, tiny_model: ModelRef
) -> None:
    bad = starting(tmp_path / "bad", tiny_model, folds.rule, seed=1, trained_on=["other/9", "T/2"])
    rule = resting(tmp_path, [folds.starts[7], bad])
    made = experiment(tmp_path / "runs", rule, folds.made.context)
    with pytest.raises(ContaminationError, match="trained on T/2, which is held out here"):
        made.fold(Place(3, 0), [tried(f"a{i}", i) for i in range(4)], [])


def test_a_fold_whose_adapters_do_nothing_is_not_sampled(folds: Folds, tmp_path: Path, tiny_model: ModelRef) -> None:
    dead = starting(tmp_path / "dead", tiny_model, folds.rule, seed=1, trained_on=["other/9"], spread=0.0)
    made = experiment(tmp_path / "runs", resting(tmp_path, [folds.starts[7], dead]), folds.made.context)
    with pytest.raises(AdapterError, match=r"hypernet: the adapter .* is dead"):
        made.fold(Place(3, 0), [tried(f"a{i}", i) for i in range(4)], [])
    assert not list((tmp_path / "runs").rglob("samples.jsonl"))


def test_every_temperature_is_drawn_at_its_own_with_the_same_seeds_and_adapters(folds: Folds) -> None:
    for asked in folds.asked.values():
        by_temperature = {
            t: [dataclasses.replace(r, sampling=asked[0].sampling) for r in asked if r.sampling.temperature == t]
            for t in (0.8, 0.2)
        }
        assert len(by_temperature[0.8]) == 3 * len(PARTS[0]) and by_temperature[0.8] == by_temperature[0.2]


def test_a_task_has_one_seed_in_all_arms_and_another_in_every_training_seed(folds: Folds) -> None:
    drawn: dict[str, list[set[int]]] = {}
    for seed in folds.starts:
        samples = store.read_jsonl(place(folds.folder, seed, 0) / drawn_at(0.8) / "samples.jsonl", Sample)
        assert {s.task_id for s in samples} == set(PARTS[0]) and len(samples) == 2 * 3 * 2
        for one in PARTS[0]:
            arms = {s.condition for s in samples}
            by_arm = [[s.seed for s in samples if (s.task_id, s.condition) == (one, arm)] for arm in sorted(arms)]
            assert len(by_arm) == 3 and by_arm[0] == by_arm[1] == by_arm[2]
            drawn.setdefault(one, []).append(set(by_arm[0]))
    everything = list(itertools.chain.from_iterable(drawn.values()))
    assert len(set.union(*everything)) == sum(len(s) for s in everything) == 2 * 2 * 2


def test_a_fold_holds_its_own_tasks_and_gives_them_the_other_folds_trajectories(folds: Folds) -> None:
    for seed in folds.starts:
        where = place(folds.folder, seed, 0)
        assert [p.task_id for p in store.read_jsonl(where / "problems.jsonl", Problem)] == PARTS[0]
        assert store.read_json(where / DONE)["tasks"] == PARTS[0]
        treatments = store.read_jsonl(where / drawn_at(0.2) / "treatments.jsonl", Treatment)
        given = {(t.condition, t.task_id): t.trajectory_ids for t in treatments}
        assert {i for ids in given.values() for i in ids} <= {"a1", "a3"}
        for one in PARTS[0]:
            assert given["rag", one] == given["hypernet", one] != ()
        trained = store.read_json(where / "checkpoints" / "hypernet" / "settings.json")["trained_on"]
        assert trained == ["T/1", "T/3", "other/9"]
