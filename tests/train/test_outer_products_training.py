"""`rune train` with kind "outer_products": it learns to imitate its teachers, resumes to the same weights, refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rune.adapters.factors import select
from rune.config import build
from rune.errors import ConfigError, DataError
from rune.hypernet import base as bases
from rune.hypernet import checkpoint, losses, outer_products_training, side_by_side
from rune.hypernet import parallel as processes
from rune.hypernet.base import Base
from rune.hypernet.outer_products import MODULES, OuterProducts, write
from rune.hypernet.settings import OuterProductsConfig, OuterProductsTraining, Schedule, TeacherConfig
from rune.runs import store
from rune.stages import adapt, train
from rune.stages.context import Context
from rune.types import ModelRef, Problem, Split, Trajectory
from tests.train.train_setup import make_context, make_run, settings

Corpus = tuple[list[Problem], list[Trajectory]]
STEPS = 24
WORDS = ("blorp", "snurg", "zibble", "quont", "frell", "marv", "tipz", "gwock")


def solved(number: int, domain: str, *, benchmark: str = "T", word: str = "blorp", lines: int = 1) -> Trajectory:
    code = f"def f(x):\n    return {word}(x, {number})\n" + "x = 1\n" * (lines - 1)
    return Trajectory(
        trajectory_id=f"t{number}", task_id=f"T/{number}", benchmark=benchmark, prompt=f"Write f{number}.",
        attempts=(), solution=code, domain=domain,
    )  # fmt: skip


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Eight domains, each with a word of its own in all three of its solutions; one task of another is held out."""
    trajectories = [solved(3 * n + k, word, word=word, lines=k + 1) for n, word in enumerate(WORDS) for k in range(3)]
    held_out = Problem(
        task_id="T/held-out", benchmark="T", prompt="Write g.", entry_point="g", test="", split=Split.HELD_OUT,
        domain="other",
    )  # fmt: skip
    return [held_out], trajectories


def recipe(**changes: Any) -> OuterProductsTraining:
    """Seconds on a CPU; teachers of so many steps that a random model has something to imitate."""
    plain = OuterProductsTraining(
        schedule=Schedule(steps=STEPS, learning_rate=2e-2, checkpoint_every=7),
        groups=4,
        generator=OuterProductsConfig(passes=2, tokens=16, correction=8, rank=8, max_tokens=700),
        teacher=TeacherConfig(steps=10, learning_rate=5e-3, rank=4, alpha=8.0, together=8),
        max_sources=2,
        max_tokens=700,
        withheld=0.3,
    )
    return dataclasses.replace(plain, **changes)


def config(**changes: Any) -> train.Config:
    return dataclasses.replace(settings(), kind="outer_products", outer_products=recipe(**changes))


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: ModelRef, corpus: Corpus
) -> tuple[store.RunDir, Context]:
    """A run whose train stage is done. Tests must not change it."""
    root = tmp_path_factory.mktemp("outer-products")
    folder, context = make_run(root, corpus), make_context(tiny_model, root / "cache")
    train.run(folder, config(), context)
    return folder, context


def rows(folder: store.RunDir, phase: str) -> list[dict[str, Any]]:
    return [row for _, row in store.read_lines(folder / "checkpoints" / "metrics.jsonl") if row["phase"] == phase]


@pytest.fixture
def base(tiny_model: ModelRef) -> Any:
    loaded = bases.load(tiny_model, device="cpu", dtype="float32")
    yield loaded
    loaded.hooks.remove()


# --------------------------------------------------------------------------- it learns


def test_the_held_out_loss_falls_and_is_in_the_diagnostics(whole: tuple[store.RunDir, Context]) -> None:
    folder, _ = whole
    before, after = rows(folder, "held_out")
    assert (before["step"], after["step"]) == (0, STEPS)
    assert after["loss"] < 0.9 * before["loss"] and after["kl_teacher"] < 0.75 * before["kl_teacher"]
    assert before["loss"] == pytest.approx(before["kl_teacher"] + before["kl_stranger"])
    told = adapt._training(folder / "checkpoints" / "metrics.jsonl")
    assert (told["held_out"]["first"], told["held_out"]["last"]) == (before["loss"], after["loss"])


def test_every_step_is_in_the_curve_with_every_term(whole: tuple[store.RunDir, Context]) -> None:
    found = rows(whole[0], "hypernet")
    assert [row["step"] for row in found] == list(range(STEPS))
    for row in found:
        assert row["loss"] == pytest.approx(row["kl_teacher"] + row["kl_stranger"], rel=1e-4)
        assert row["cross_entropy"] > 0 and row["learning_rate"] > 0 and row["tokens_per_second"] > 0


def test_the_checkpoint_is_of_its_kind_and_writes_adapters(
    whole: tuple[store.RunDir, Context], tmp_path: Path, corpus: Corpus
) -> None:
    folder, context = whole
    place, model = folder / "checkpoints" / "hypernet", context.model()
    stored = checkpoint.load(place, model, device="cpu")
    trained = store.read_jsonl(folder / "trajectories.jsonl", Trajectory)
    assert stored.kind == "outer_products" and stored.config.outer_products == recipe().generator
    assert stored.settings["trained_on"] == sorted({t.task_id for t in trained})
    assert stored.settings["trained_on_domains"] == {
        trained[0].benchmark: sorted({t.domain for t in trained if t.domain})
    }
    assert not (folder / "checkpoints" / "lora").exists()
    ref = adapt.one([t for t in trained if t.solved][:2], tmp_path / "adapter", place, model, strength=1.0)
    assert ref.rank == recipe().generator.rank
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_every_part_learned(whole: tuple[store.RunDir, Context], base: Base) -> None:
    folder, context = whole
    trained = store.read_jsonl(folder / "trajectories.jsonl", Trajectory)
    chosen, withheld = outer_products_training.withhold(
        outer_products_training.jobs_of(base, trained, recipe()), recipe(), context.seed
    )
    teachers = outer_products_training.Teachers(base, [], recipe(), context.seed, folder / "nowhere")
    objective = outer_products_training.Objective(base, chosen, withheld, teachers, recipe(), context.seed)
    before = dict(objective.untrained().named_parameters())
    after = checkpoint.load(folder / "checkpoints" / "hypernet", context.model(), device="cpu").module
    assert [name for name, p in after.named_parameters() if torch.equal(p, before[name])] == []


# --------------------------------------------------------------------------- it resumes


def stopping(monkeypatch: pytest.MonkeyPatch, target: Any, name: str, after: int) -> None:
    """`target.name` raises KeyboardInterrupt when it is called after so many times."""
    real: Callable[..., Any] = getattr(target, name)
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(target, name, counted)


@pytest.mark.parametrize(
    ("target", "name", "after"),
    [
        pytest.param(side_by_side, "train", 2, marks=pytest.mark.check),  # between teachers
        pytest.param(outer_products_training, "_record", 0, marks=pytest.mark.check),  # before the first step
        (outer_products_training.Objective, "terms", 15),  # between checkpoints
        pytest.param(outer_products_training, "_record", 1, marks=pytest.mark.check),  # after the last step
    ],
)
def test_a_second_start_goes_on_to_the_same_curve_and_weights(
    tmp_path: Path, whole: tuple[store.RunDir, Context], corpus: Corpus, monkeypatch: pytest.MonkeyPatch,
    target: Any, name: str, after: int,
) -> None:  # fmt: skip
    done, context = whole
    folder = make_run(tmp_path, corpus)
    with monkeypatch.context() as patch:
        stopping(patch, target, name, after)
        with pytest.raises(KeyboardInterrupt):
            train.run(folder, config(), context)
    assert not checkpoint.done(folder / "checkpoints" / "hypernet")
    kept = {p: p.stat().st_mtime_ns for p in (folder / "checkpoints" / "teachers").iterdir()}
    assert kept
    train.run(folder, config(), context)
    assert all(p.stat().st_mtime_ns == written for p, written in kept.items())  # made once
    for phase in ("hypernet", "held_out"):
        ours, theirs = rows(folder, phase), rows(done, phase)
        assert [(r["step"], r["loss"]) for r in ours] == [(r["step"], r["loss"]) for r in theirs]
    one, other = (load_file(f / "checkpoints" / "hypernet" / "model.safetensors") for f in (folder, done))
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_what_is_done_is_not_done_again(whole: tuple[store.RunDir, Context], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, context = whole
    stopping(monkeypatch, outer_products_training, "train", 0)
    train.run(folder, config(), context)


def test_a_damaged_file_of_teachers_is_named(
    tmp_path: Path, whole: tuple[store.RunDir, Context], corpus: Corpus
) -> None:
    folder = make_run(tmp_path, corpus)
    place = folder / "checkpoints" / "teachers"
    place.mkdir(parents=True)
    for path in (whole[0] / "checkpoints" / "teachers").iterdir():
        (place / path.name).write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"teachers/\d{4}-\w{16}\.safetensors: not readable .*delete it, and `rune"):
        train.run(folder, config(), whole[1])


# --------------------------------------------------------------------------- what a step is


def test_a_task_is_taught_by_its_siblings_and_never_by_itself(base: Base) -> None:
    some = [
        solved(0, "a"),
        solved(1, "a"),
        solved(2, "b"),
        solved(3, "b"),
        solved(4, "b"),
        solved(5, ""),
        solved(6, "c"),
    ]
    jobs = outer_products_training.jobs_of(base, some, recipe())
    assert [(j.task_id, len(j.lessons)) for j in jobs] == [
        ("T/0", 1), ("T/1", 1), ("T/2", 2), ("T/3", 2), ("T/4", 2),
    ]  # fmt: skip
    texts = {t.task_id: base.encode(t.prompt, t.solution) for t in some}
    for job in jobs:
        assert job.targets == (texts[job.task_id],) and texts[job.task_id] not in job.lessons
        assert set(job.lessons) <= {texts[t.task_id] for t in some if t.domain == job.domain}


def test_a_long_solution_is_read_and_not_trained_on(base: Base) -> None:
    some = [solved(0, "a"), solved(1, "a", lines=60), solved(2, "b"), solved(3, "b")]
    short = max(len(base.encode(t.prompt, t.solution).ids) for t in some if t.task_id != "T/1")
    jobs = outer_products_training.jobs_of(base, some, recipe(max_tokens=short))
    assert [j.task_id for j in jobs] == ["T/0", "T/2", "T/3"]
    rng = np.random.default_rng(0)
    example = outer_products_training.example(jobs[0], rng, recipe(max_tokens=short), recall=1.0)
    assert example.sources == jobs[0].lessons and example.target == jobs[0].targets[0]


def test_recall_asks_for_one_of_those_read_and_else_for_one_that_is_not(base: Base) -> None:
    jobs = outer_products_training.jobs_of(base, [solved(n, "a") for n in range(5)], recipe())
    counts = set()
    for number in range(40):
        rng = np.random.default_rng(number)
        known = outer_products_training.example(jobs[0], rng, recipe(max_sources=3), recall=1.0)
        other = outer_products_training.example(jobs[0], rng, recipe(max_sources=3), recall=0.0)
        assert known.target in known.sources and other.target not in other.sources
        counts.add(len(known.sources))
    assert counts == {1, 2, 3}


def test_sets_of_a_step_are_of_different_domains_by_the_shares(base: Base) -> None:
    some = [solved(n, f"d{n // 2}", benchmark="T" if n < 12 else "U") for n in range(24)]
    jobs = outer_products_training.jobs_of(base, some, recipe())
    drawn = outer_products_training.Examples(jobs, recipe(groups=6, shares={"T": 1.0, "U": 3.0}))
    found = [e for n in range(100) for e in drawn.draw(np.random.default_rng(n))]
    for start in range(0, len(found), 6):
        assert len({e.job.domain for e in found[start : start + 6]}) == 6
    assert 0.65 < np.mean([e.job.benchmark == "U" for e in found]) < 0.8
    alone = outer_products_training.Examples(jobs, recipe(groups=6, shares={"U": 1.0}))
    assert {e.job.benchmark for e in alone.draw(np.random.default_rng(0))} == {"U"}
    with pytest.raises(DataError, match=r"shares: there is no task of V to train on; there are tasks of: T, U"):
        outer_products_training.Examples(jobs, recipe(shares={"V": 1.0}))


def test_withheld_domains_train_nothing_and_too_few_are_refused(base: Base) -> None:
    jobs = outer_products_training.jobs_of(base, [solved(n, f"d{n // 2}") for n in range(20)], recipe())
    chosen, withheld = outer_products_training.withhold(jobs, recipe(withheld=0.3), 0)
    assert not {j.domain for j in chosen} & {j.domain for j in withheld}
    assert len({j.domain for j in withheld}) == 3 and len(chosen) + len(withheld) == len(jobs)
    assert {j.domain for j in outer_products_training.withhold(jobs, recipe(withheld=0.3), 1)[1]} != {
        j.domain for j in withheld
    }
    assert outer_products_training.withhold(jobs, recipe(withheld=0.0), 0) == (jobs, [])
    two = [j for j in jobs if j.domain in ("d0", "d1")]
    outer_products_training.withhold(two, recipe(stranger=0.0), 0)
    with pytest.raises(DataError, match="2 domains have two solved tasks that fit, 1 of them withheld, and a gener"):
        outer_products_training.withhold(two, recipe(), 0)


def test_the_terms_are_what_they_say(base: Base, tmp_path: Path) -> None:
    """Against both divergences counted one example at a time; the stranger of the same domain is left out."""
    some = [solved(0, "a"), solved(1, "a"), solved(2, "b"), solved(3, "b", lines=4)]
    jobs = outer_products_training.jobs_of(base, some, recipe())
    teachers = outer_products_training.Teachers(base, jobs, recipe(), 0, tmp_path)
    teachers.make()
    objective = outer_products_training.Objective(base, jobs, [], teachers, recipe(stranger=0.5), 0)
    module = objective.untrained()
    examples = [
        outer_products_training.example(job, np.random.default_rng(n), recipe(), recall=0.0)
        for n, job in enumerate(jobs)
    ]
    terms, tokens = objective.terms(module, examples)
    with torch.no_grad():
        made = write(base, module, [e.sources for e in examples], tokens=16)
        teacher = teachers.of(examples)
        close, still = [], []
        for n, example in enumerate(examples):
            one, target = slice(n, n + 1), base.rows([example.target])
            close.append((len(target.label_P), losses.kl(
                base.logits(target, select(teacher, one)), base.logits(target, select(made, one))
            )))  # fmt: skip
            if n in (0, 2):  # those whose neighbour before is of the other domain
                strange = base.rows([examples[n - 1].target])
                still.append((len(strange.label_P), losses.kl(
                    base.logits(strange, None), base.logits(strange, select(made, one))
                )))  # fmt: skip
    for name, parts in (("kl_teacher", close), ("kl_stranger", still)):
        expected = sum(count * float(value) for count, value in parts) / sum(count for count, _ in parts)
        assert terms[name].item() == pytest.approx(expected, rel=1e-3)
    assert objective.loss(terms).item() == pytest.approx(
        terms["kl_teacher"].item() + 0.5 * terms["kl_stranger"].item(), rel=1e-5
    )
    # The gradient of the stranger's term goes round by way of the adapters; it must be the plain one.
    parameter = module.log_gain_SY["down_proj"]
    (round_about,) = torch.autograd.grad(terms["kl_stranger"], parameter, retain_graph=True)
    fresh = write(base, module, [e.sources for e in examples], tokens=16)
    rows = base.rows([examples[n - 1].target for n in (0, 2)])
    plain = losses.kl(base.logits(rows, None), base.logits(rows, select(fresh, torch.tensor([0, 2]))))
    torch.testing.assert_close(round_about, torch.autograd.grad(plain, parameter)[0], rtol=1e-3, atol=1e-6)
    assert tokens > 0


def test_a_generator_without_a_correction_and_with_true_gradients_trains(
    tmp_path: Path, tiny_model: ModelRef, corpus: Corpus
) -> None:
    folder = make_run(tmp_path, corpus)
    generator = OuterProductsConfig(passes=1, tokens=8, correction=0, gradient=True, rank=0, max_tokens=700)
    schedule = Schedule(steps=2, learning_rate=1e-3)
    changed = config(generator=generator, schedule=schedule, stranger=0.0, withheld=0.0)
    train.run(folder, changed, make_context(tiny_model, tmp_path / "cache"))
    module = checkpoint.load(folder / "checkpoints" / "hypernet", tiny_model, device="cpu").module
    assert isinstance(module, OuterProducts) and module.gradient and not module.read_YWK
    assert set(module.log_gain_SY) == set(MODULES)
    assert not rows(folder, "held_out") and "kl_stranger" not in rows(folder, "hypernet")[0]


# --------------------------------------------------------------------------- what it refuses


def test_several_processes_are_refused_in_one_line(
    tmp_path: Path, tiny_model: ModelRef, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(tmp_path, corpus)
    monkeypatch.setattr(processes, "join", lambda device: processes.Processes(0, 2))
    with pytest.raises(ConfigError, match=r"trains in one process, and 2 were started; start `rune train` without"):
        train.run(folder, config(), make_context(tiny_model, tmp_path / "cache"))
    assert not (folder / "checkpoints").exists()


def test_the_section_is_built_from_a_config_and_misspelt_settings_are_refused() -> None:
    raw = {"schedule": {"steps": 5, "learning_rate": 1e-3}, "groups": 4, "teacher": {"steps": 8}}
    assert build(OuterProductsTraining, raw).teacher.steps == 8
    with pytest.raises(ConfigError, match=r"unknown key 'recal'; did you mean 'recall'"):
        build(OuterProductsTraining, {**raw, "recal": 0.5})
