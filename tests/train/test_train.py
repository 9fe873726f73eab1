"""The train stage: it learns, resumes to the same curve, and refuses what it must not see."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rune.errors import AdapterError, ContaminationError, DataError
from rune.hypernet import checkpoint, trainer
from rune.hypernet import data as hypernet_data
from rune.runs import store
from rune.stages import train
from rune.stages.context import Context
from rune.types import ModelRef, Problem, Split, Trajectory
from tests.train.train_setup import make_context, make_run, settings

Corpus = tuple[list[Problem], list[Trajectory]]


def curve(folder: store.RunDir) -> list[tuple[str, int, float, float]]:
    rows = [row for _, row in store.read_lines(folder / "checkpoints" / "metrics.jsonl")]
    return [(r["phase"], r["step"], r["loss"], r["gradient_norm"]) for r in rows]


def test_every_step_of_both_phases_is_in_the_curve_with_every_term(trained: tuple[store.RunDir, Context]) -> None:
    rows = [row for _, row in store.read_lines(trained[0] / "checkpoints" / "metrics.jsonl")]
    assert [(r["phase"], r["step"]) for r in rows] == [("lora", i) for i in range(6)] + [
        ("hypernet", i) for i in range(8)
    ]
    terms = {"cross_entropy", "target_contrast", "source_contrast", "kl_base", "norm", "variance"}
    assert terms <= set(rows[-1]) and {"learning_rate", "gradient_norm", "tokens_per_second"} <= set(rows[-1])
    assert any(r.get("kl_base", 0) > 0 for r in rows)


def test_the_loss_of_the_static_lora_falls_on_a_small_corpus(
    tmp_path: Path, tiny_model: ModelRef, corpus: Corpus
) -> None:
    folder = make_run(tmp_path, corpus)
    config = settings(lora_steps=30, steps=1)
    quick = dataclasses.replace(config.lora.schedule, learning_rate=1e-2)
    config = dataclasses.replace(config, lora=dataclasses.replace(config.lora, schedule=quick))
    train.run(folder, config, make_context(tiny_model, tmp_path / "cache"))
    losses = [row[2] for row in curve(folder) if row[0] == "lora"]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_gradient_reaches_every_part_of_the_hypernetwork(trained: tuple[store.RunDir, Context], corpus: Corpus) -> None:
    """After a few steps nothing is where it began: encoder, queries, every head, and the static part."""
    folder, context = trained
    config = settings()
    stored = checkpoint.load(folder / "checkpoints" / "hypernet", context.model(), device="cpu")
    assert stored.both is not None
    with trainer._seeded(trainer.derive_seed(context.seed, "hypernet")):
        fresh = trainer.new_hypernet(stored.layout, config.hypernet)
    before = dict(fresh.named_parameters())
    still = [n for n, p in stored.both.hypernet.named_parameters() if torch.equal(p, before[n])]
    assert still == []
    lora = checkpoint.load(folder / "checkpoints" / "lora", context.model(), device="cpu").static
    assert not any(torch.equal(a, b) for a, b in zip(lora.parameters(), stored.static.parameters(), strict=True))


@pytest.mark.parametrize("stop", [("lora", 4), ("hypernet", 5)])
def test_a_run_stopped_between_checkpoints_resumes_to_the_same_curve_and_weights(
    tmp_path: Path,
    trained: tuple[store.RunDir, Context],
    corpus: Corpus,
    monkeypatch: pytest.MonkeyPatch,
    stop: tuple[str, int],
) -> None:
    whole, context = trained
    folder = make_run(tmp_path, corpus)
    phase, last = stop
    real = trainer.fit

    def killed(*args: object, take: object = None, **kwargs: object) -> None:
        args_list = list(args)
        original = args_list[3]

        def until(step: int) -> trainer.Step:
            if kwargs["phase"] == phase and step == last:
                raise KeyboardInterrupt
            return original(step)  # type: ignore[operator,no-any-return]

        args_list[3] = until
        real(*args_list, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        train.run(folder, settings(), context)
    monkeypatch.setattr(trainer, "fit", real)
    train.run(folder, settings(), context)
    assert curve(folder) == curve(whole)
    name = "checkpoints/hypernet/model.safetensors"
    ours, theirs = load_file(folder / name), load_file(whole / name)
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_a_sigkill_loses_at_most_the_steps_since_the_last_checkpoint(
    tmp_path: Path, trained: tuple[store.RunDir, Context], tiny_model: ModelRef, corpus: Corpus
) -> None:
    whole, context = trained
    folder = make_run(tmp_path, corpus)
    script = textwrap.dedent(f"""
        from pathlib import Path
        from rune.runs import store
        from rune.stages import train
        from rune.types import ModelRef
        from tests.train.train_setup import make_context, settings
        assert store.__file__ == {store.__file__!r}  # the code under test, not an installed copy of it
        model = ModelRef(name="tiny", path={tiny_model.path!r}, digest={tiny_model.digest!r}, source="local")
        train.run(store.RunDir(Path({str(folder.path)!r})), settings(), make_context(model, Path({str(tmp_path)!r})))
    """)
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    log = tmp_path / "child.log"
    with log.open("w") as said:
        child = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}, stderr=said)
    state = folder / "checkpoints" / "hypernet" / "state.safetensors"
    while not state.exists() and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert state.exists(), f"the child ended before its first checkpoint: {log.read_text()[-2000:]}"
    train.run(folder, settings(), context)
    assert [row[:2] for row in curve(folder)] == [row[:2] for row in curve(whole)]
    # Another process may split its sums over another number of threads: equal up to rounding.
    assert [row[2] for row in curve(folder)] == pytest.approx([row[2] for row in curve(whole)], rel=1e-4)


def test_a_finished_train_stage_does_nothing_again(trained: tuple[store.RunDir, Context]) -> None:
    folder, context = trained
    before = {p: p.stat().st_mtime_ns for p in folder.path.rglob("*.safetensors")}
    train.run(folder, settings(), context)
    assert {p: p.stat().st_mtime_ns for p in folder.path.rglob("*.safetensors")} == before


def test_a_held_out_task_in_the_corpus_is_refused_before_the_model_is_loaded(tmp_path: Path, corpus: Corpus) -> None:
    folder = make_run(tmp_path, corpus)
    problems, trajectories = corpus
    held_out = {p.task_id for p in problems if p.split is Split.HELD_OUT}
    leaked = next(t for t in trajectories if t.task_id in held_out)
    kept = store.read_jsonl(folder / "trajectories.jsonl", Trajectory)
    store.write_jsonl(folder / "trajectories.jsonl", [*kept, leaked])

    def never() -> ModelRef:
        raise AssertionError("the model was asked for")

    context = dataclasses.replace(make_context(None, tmp_path), model=never)  # type: ignore[arg-type]
    with pytest.raises(ContaminationError, match=leaked.domain):
        train.run(folder, settings(), context)


def test_phase_a_never_sees_a_spared_task_and_retrieved_pairs_see_nothing_else(
    tmp_path: Path, tiny_model: ModelRef, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Families share their conventions and are not spared; what is depends on the seed alone, not on the corpus."""
    run = make_run(tmp_path, corpus)
    own = store.read_jsonl(run / "trajectories.jsonl", Trajectory)
    plain = [dataclasses.replace(t, domain="", benchmark="plain") for t in own[: len(own) // 2]]
    store.write_jsonl(run / "trajectories.jsonl", [*plain, *own[len(plain) :]])
    seen: dict[str, set[str]] = {"lora": set(), "retrieved": set()}
    solutions, group = hypernet_data.Corpus.solutions, hypernet_data.Corpus._group

    def drawn(self: hypernet_data.Corpus, *given: Any) -> list[int]:
        numbers = solutions(self, *given)
        seen["lora"] |= {self.trajectories[i].task_id for i in numbers}
        return numbers

    def grouped(self: hypernet_data.Corpus, rng: Any, first: int, kind: str, *given: Any) -> hypernet_data.Group:
        if kind == "retrieved":
            seen["retrieved"].add(self.trajectories[first].task_id)
        return group(self, rng, first, kind, *given)

    monkeypatch.setattr(hypernet_data.Corpus, "solutions", drawn)
    monkeypatch.setattr(hypernet_data.Corpus, "_group", grouped)
    plan = dataclasses.replace(settings(lora_steps=30), spare=0.4)
    context = make_context(tiny_model, tmp_path)
    train.run(run, plan, context)
    spared = train.spared(plain + own[len(plain) :], 0.4, seed=context.seed)
    assert spared == train.spared(plain, 0.4, seed=context.seed)
    assert 0 < len(spared) < len({t.task_id for t in plain})
    assert seen["lora"] == {t.task_id for t in own if t.solved} - spared
    assert seen["retrieved"] and seen["retrieved"] <= spared
    assert train.spared(plain, 0.4, seed=context.seed + 1) != spared


def test_a_corpus_without_any_solution_is_one_clear_error(tmp_path: Path, tiny_model: ModelRef, corpus: Corpus) -> None:
    folder = make_run(tmp_path, corpus)
    kept = store.read_jsonl(folder / "trajectories.jsonl", Trajectory)
    store.write_jsonl(folder / "trajectories.jsonl", [dataclasses.replace(t, solution="") for t in kept])
    with pytest.raises(DataError, match="none of 27 trajectories has a solution"):
        train.run(folder, settings(), make_context(tiny_model, tmp_path))


def test_a_checkpoint_of_another_base_model_is_refused(
    trained: tuple[store.RunDir, Context], tiny_model: ModelRef
) -> None:
    other = dataclasses.replace(tiny_model, name="other", digest="0" * 64)
    with pytest.raises(AdapterError, match="made for base model tiny"):
        checkpoint.load(trained[0] / "checkpoints" / "lora", other, device="cpu")


def test_a_checkpoint_in_half_precision_is_half_the_size_and_loads(
    trained: tuple[store.RunDir, Context], tmp_path: Path
) -> None:
    folder, context = trained
    config = settings()
    stored = checkpoint.load(folder / "checkpoints" / "hypernet", context.model(), device="cpu")
    assert stored.both is not None
    checkpoint.save_hypernet(
        tmp_path, stored.both, stored.layout, config.lora, config.hypernet, context.model(), precision="float16"
    )
    full = (folder / "checkpoints" / "hypernet" / checkpoint.WEIGHTS).stat().st_size
    assert (tmp_path / checkpoint.WEIGHTS).stat().st_size < 0.6 * full
    again = checkpoint.load(tmp_path, context.model(), device="cpu")
    assert again.both is not None
    before = stored.both.inference_state_dict()
    for name, tensor in again.both.inference_state_dict().items():
        assert tensor.dtype is before[name].dtype and torch.allclose(tensor, before[name], rtol=1e-3, atol=1e-3)
    assert not any(name.startswith("guess") for name in load_file(tmp_path / checkpoint.WEIGHTS))
