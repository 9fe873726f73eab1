"""Training that goes on from a checkpoint, and what may not come in by that door."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from rune.corpus import exclusion
from rune.errors import ConfigError, ContaminationError, DataError
from rune.hypernet.settings import EncoderConfig, Schedule
from rune.runs import store
from rune.stages import train
from rune.stages.context import Context
from rune.study import checks
from rune.types import ModelRef, Problem, Split, Trajectory
from tests.train.train_setup import make_context, make_run, settings

Corpus = tuple[list[Problem], list[Trajectory]]


def test_a_checkpoint_trained_on_a_held_out_task_starts_no_run() -> None:
    held_out = [Problem(task_id="HumanEval/7", benchmark="humaneval", prompt="", entry_point="f", test="")]
    exclusion.check_ids(["HumanEval/8", "Mbpp/600"], held_out, where="x")
    with pytest.raises(ContaminationError, match="trained on HumanEvalFix/7, which is held out"):
        exclusion.check_ids(["HumanEval/8", "HumanEvalFix/7"], held_out, where="x")


@pytest.mark.parametrize("place", ["checkpoints", "checkpoints/hypernet"])
def test_a_checkpoint_trained_on_another_task_of_a_held_out_domain_starts_no_run(
    trained: tuple[store.RunDir, Context], tmp_path: Path, tiny_model: ModelRef, corpus: Corpus, place: str
) -> None:
    """Its ids tell nothing: the task is one that it never saw."""
    seen = next(p for p in corpus[0] if p.split is Split.TRAIN)
    own = [p for p in corpus[0] if p.domain != seen.domain and p.split is Split.TRAIN]
    new = dataclasses.replace(seen, task_id=f"{seen.task_id}-new", split=Split.HELD_OUT)
    trajectories = [t for t in corpus[1] if t.domain in {p.domain for p in own}]
    config = dataclasses.replace(still(), start_from=str(trained[0] / place))
    folder = make_run(tmp_path / "by-domain", ([*own, new], trajectories))
    with pytest.raises(ContaminationError, match=rf"was trained on tasks of {re.escape(seen.domain)}, which is held"):
        train.run(folder, config, make_context(tiny_model, tmp_path / "cache"))
    train.check_start(Path(config.start_from), [new], by="task")  # there a domain may stand on both sides


def test_a_checkpoint_that_does_not_say_its_domains_starts_no_run_that_holds_domains_out(
    trained: tuple[store.RunDir, Context], tmp_path: Path, tiny_model: ModelRef, corpus: Corpus
) -> None:
    """Nor does what goes on from it: what it was made of is unknown too."""
    held_out = [p for p in corpus[0] if p.split is Split.HELD_OUT]
    train.check_start(trained[0] / "checkpoints" / "hypernet", held_out, by="domain")
    old = tmp_path / "old"
    shutil.copytree(trained[0] / "checkpoints" / "hypernet", old)
    settings = store.read_json(old / "settings.json")
    assert settings.pop("trained_on_domains")["families"] and settings.pop("settings_sha256")
    store.write_json(old / "settings.json", settings)
    with pytest.raises(DataError, match="does not say of which domains it has seen tasks"):
        train.check_start(old, held_out, by="domain")
    plain = [dataclasses.replace(p, domain="") for p in held_out]
    train.check_start(old, plain, by="domain")
    training = [p for p in corpus[0] if p.split is Split.TRAIN]
    new = dataclasses.replace(training[0], task_id=f"{training[0].task_id}-new", split=Split.HELD_OUT)
    folder = make_run(
        tmp_path / "on", ([*training, new], [t for t in corpus[1] if t.task_id in {p.task_id for p in training}])
    )
    train.run(folder, dataclasses.replace(still(), start_from=str(old)), make_context(tiny_model, tmp_path / "cache"))
    assert "trained_on_domains" not in store.read_json(folder / "checkpoints" / "hypernet" / "settings.json")


def test_another_update_of_a_held_out_function_is_a_held_out_domain() -> None:
    held_out = [
        Problem(
            task_id="x/0", benchmark="api_updates", prompt="", entry_point="f", test="", domain="statistics.mean:a:b"
        )
    ]
    exclusion.check_domains(
        {"api_updates": ["statistics.mode:a:b"], "families": ["statistics.mean:x"]}, held_out, where="x"
    )
    with pytest.raises(ContaminationError, match=r"trained on tasks of statistics\.mean:new-name:c"):
        exclusion.check_domains({"code_update_arena": ["statistics.mean:new-name:c"]}, held_out, where="x")


def trained_on(folder: Path, **tasks: list[str]) -> Path:
    """Checkpoints by the settings that they left: kind → the tasks that shaped it."""
    for kind, names in tasks.items():
        store.write_json(folder / kind / "settings.json", {"trained_on": names})
    return folder


def test_neither_of_the_checkpoints_that_a_run_starts_from_may_know_a_held_out_task(tmp_path: Path) -> None:
    held_out = [Problem(task_id="HumanEval/7", benchmark="humaneval", prompt="", entry_point="f", test="")]
    train.check_start(trained_on(tmp_path / "clean", lora=["Mbpp/600"], hypernet=["Mbpp/601"]), held_out, by="task")
    for number, (lora, hypernet) in enumerate(((["Python/7"], ["Mbpp/601"]), (["Mbpp/600"], ["Python/7"]))):
        folder = trained_on(tmp_path / str(number), lora=lora, hypernet=hypernet)
        with pytest.raises(ContaminationError, match="was trained on Python/7, which is held out here"):
            train.check_start(folder, held_out, by="task")
    alone = trained_on(tmp_path, hypernet=["Python/7"]) / "hypernet"
    with pytest.raises(ContaminationError, match="Python/7"):
        train.check_start(alone, held_out, by="task")
    with pytest.raises(DataError, match="does not say which tasks it was trained on"):
        train.check_start(trained_on(tmp_path / "unsaid", lora=["Mbpp/600"], hypernet=[]), held_out, by="task")


@pytest.mark.parametrize("known", ["HumanEval/7", {"HumanEval/7": 1}, [7], 7, None])
def test_tasks_that_are_no_list_of_names_hide_no_held_out_one(tmp_path: Path, known: Any) -> None:
    held_out = [
        Problem(task_id="HumanEval/7", benchmark="humaneval", prompt="", entry_point="f", test="", domain="shapes")
    ]
    with pytest.raises(DataError, match="does not say which tasks it was trained on"):
        train.check_start(trained_on(tmp_path, lora=known, hypernet=known), held_out, by="task")
    for domains in ("shapes", ["shapes"], {"families": "shapes"}, 7):
        for kind in ("lora", "hypernet"):
            said = {"trained_on": ["Mbpp/600"], "trained_on_domains": domains}
            store.write_json(tmp_path / kind / "settings.json", said)
        with pytest.raises(DataError, match="does not say of which domains it has seen tasks"):
            train.check_start(tmp_path, held_out, by="domain")


def test_a_checkpoint_says_of_every_training_before_it_which_tasks_it_knew(tmp_path: Path, corpus: Corpus) -> None:
    some = corpus[1][:2]
    own = {t.task_id for t in some}
    assert train._tasks(some, None) == sorted(own)
    both = train._begin(trained_on(tmp_path, lora=["a/1", "a/2"], hypernet=["a/2", "a/3"]))
    assert train._tasks(some, both) == sorted({*own, "a/1", "a/2", "a/3"})
    assert train._tasks(some, train._begin(tmp_path / "hypernet")) == sorted({*own, "a/2", "a/3"})


def test_a_checkpoint_says_of_every_training_before_it_which_domains_it_knew(tmp_path: Path, corpus: Corpus) -> None:
    some = corpus[1][:2]
    own = exclusion.domains_of(some)
    assert train._domains(some, None) == own
    for kind, domains in (("lora", {"b": ["x", "y"]}), ("hypernet", {"b": ["y", "z"], "c": ["w"]})):
        store.write_json(tmp_path / kind / "settings.json", {"trained_on": [], "trained_on_domains": domains})
    assert train._domains(some, train._begin(tmp_path)) == {**own, "b": ["x", "y", "z"], "c": ["w"]}
    store.write_json(tmp_path / "lora" / "settings.json", {"trained_on": []})
    assert train._domains(some, train._begin(tmp_path)) is None


def still() -> train.Config:
    """One step of each phase at a rate of almost nothing: weights stay what they were when they came in."""
    config, schedule = settings(), Schedule(steps=1, learning_rate=1e-9)
    return dataclasses.replace(
        config,
        lora=dataclasses.replace(config.lora, schedule=schedule),
        hypernet=dataclasses.replace(config.hypernet, schedule=schedule),
    )


@pytest.mark.parametrize("place", ["checkpoints", "checkpoints/hypernet"])
def test_training_goes_on_from_a_runs_checkpoints_and_from_one_hypernetworks_folder(
    trained: tuple[store.RunDir, Context], tmp_path: Path, tiny_model: ModelRef, corpus: Corpus, place: str
) -> None:
    """Without a start they are new."""
    before = load_file(trained[0] / "checkpoints" / "hypernet" / "model.safetensors")
    # The static part of a run's checkpoints is that of phase A, of a hypernetwork's folder its own.
    static = load_file(trained[0] / "checkpoints" / "lora" / "model.safetensors")
    begun = {f"static.{name}": tensor for name, tensor in static.items()} if place == "checkpoints" else before
    config = still()
    for start in (str(trained[0] / place), ""):
        folder = make_run(tmp_path / (start and "on"), corpus)
        train.run(folder, dataclasses.replace(config, start_from=start), make_context(tiny_model, tmp_path / "cache"))
        after = load_file(folder / "checkpoints" / "hypernet" / "model.safetensors")
        weights = [n for n in before if n.endswith(("weight", "up_YRO")) or ".up." in n]
        same = [
            bool((after[n] - (begun if n.startswith("static.") else before)[n]).abs().max() < 1e-5) for n in weights
        ]
        assert weights and (all(same) if start else not all(same))


def test_the_static_part_of_a_checkpoint_can_be_left_out(
    trained: tuple[store.RunDir, Context], tmp_path: Path, tiny_model: ModelRef, corpus: Corpus
) -> None:
    before = load_file(trained[0] / "checkpoints" / "hypernet" / "model.safetensors")
    start = str(trained[0] / "checkpoints" / "hypernet")
    config = dataclasses.replace(still(), start_from=start, start_static=False)
    folder = make_run(tmp_path, corpus)
    train.run(folder, config, make_context(tiny_model, tmp_path / "cache"))
    after = load_file(folder / "checkpoints" / "hypernet" / "model.safetensors")
    heads = [n for n in before if n.startswith("hypernet.up.")]
    assert heads and all((after[n] - before[n]).abs().max() < 1e-5 for n in heads)
    ups = [n for n in before if n.startswith("static.up_YRO")]
    assert ups and all(before[n].abs().max() > 1e-4 and after[n].abs().max() < 1e-5 for n in ups)
    with pytest.raises(ValueError, match="start_static = false leaves a part of start_from out, and there is none"):
        dataclasses.replace(config, start_from="")


def test_a_checkpoint_of_another_shape_is_one_line_before_anything_is_loaded(
    trained: tuple[store.RunDir, Context],
) -> None:
    folder, config = str(trained[0] / "checkpoints"), settings()
    checks.start(folder, "train.start_from", config)
    for part, change in (("lora", {"rank": 3}), ("hypernet", {"alpha": 8.0}), ("hypernet", {"taps": (0, 2)})):
        other = dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **change)})
        (name,) = change
        with pytest.raises(ConfigError, match=rf"was made with {part}\.{name} = .*; set train\.{part}\.{name} to it"):
            checks.start(folder, "train.start_from", other)


def test_an_encoder_that_comes_from_a_checkpoint_is_not_taught_from_the_beginning() -> None:
    first = EncoderConfig(groups=2, schedule=Schedule(steps=1, learning_rate=1e-3))
    with pytest.raises(ValueError, match="encoder_first is for an encoder that knows nothing"):
        dataclasses.replace(settings(encoder_first=first), start_from="somewhere")
