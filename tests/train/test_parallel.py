"""One training by two processes: the curve and the weights of one, and files from the first alone."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file

from rune.errors import ConfigError
from rune.hypernet.parallel import Processes, join
from rune.hypernet.settings import EncoderConfig, Schedule
from rune.runs import store
from rune.stages import train
from rune.stages.context import Context
from rune.types import ModelRef, Problem, Trajectory
from tests.pipeline import experiment
from tests.train.train_setup import make_context, make_run, settings

Corpus = tuple[list[Problem], list[Trajectory]]

# Sums over rows are made in another order, so values agree to float32's rounding, carried on by the steps. Adam divides
# a gradient by its own size: where that is all rounding (biases that began at zero) it shows, but in no sum of weights.
CURVE = 1e-4  # of a loss, a term or a gradient's norm
LEAD = 1e-3  # nats: a lead is the difference of two sums of some hundred nats
WEIGHTS, TENSOR = 1e-3, 3e-2  # of the norm of all weights together, and of each tensor's

MORE = {"kl_teacher": 0.1, "lesson": 0.1}


def together(processes: int, folder: store.RunDir, model: ModelRef, *, stop: int = 0, every_term: bool = False) -> None:
    """Train in `folder` by so many processes; each ends before step `stop` of phase B."""
    script = folder / f"train-{processes}-{stop}.py"
    script.write_text(
        textwrap.dedent(f"""
        import dataclasses
        from pathlib import Path
        from rune.hypernet import trainer
        from rune.runs import store
        from rune.stages import train
        from rune.types import ModelRef
        from tests.train.test_parallel import every
        from tests.train.train_setup import make_context, settings
        real = trainer.fit
        def fit(module, rates, schedule, take, **how):
            def until(step):
                if {stop} and how["phase"] == "hypernet" and step == {stop}:
                    raise SystemExit(0)
                return take(step)
            real(module, rates, schedule, until, **how)
        trainer.fit = fit
        model = ModelRef(name="tiny", path={model.path!r}, digest={model.digest!r}, source="local")
        config = every(settings()) if {every_term} else settings()
        context = make_context(model, Path({str(folder.path)!r}) / "cache")
        train.run(store.RunDir(Path({str(folder.path)!r})), config, context)
        """)
    )
    launch(*TORCHRUN, "--nproc-per-node", str(processes), str(script))


def every(config: train.Config) -> train.Config:
    """With the terms that `settings` leaves out, and the phase that teaches the encoder alone."""
    hypernet = config.hypernet
    first = EncoderConfig(schedule=Schedule(steps=2, learning_rate=1e-3, checkpoint_every=2), groups=3)
    weights = dataclasses.replace(hypernet.weights, **MORE)
    return dataclasses.replace(config, hypernet=dataclasses.replace(hypernet, weights=weights, encoder_first=first))


TORCHRUN = ("torch.distributed.run", "--standalone")
# As users start it; "multi_gpu" means several processes here, the run's config says which device.
ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no")


def launch(*command: str) -> str:
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", *command],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def rows(folder: store.RunDir) -> list[dict[str, float]]:
    return [row for _, row in store.read_lines(folder / "checkpoints" / "metrics.jsonl")]


def same(ours: store.RunDir, theirs: store.RunDir) -> None:
    """Curve, every term, and the weights, to rounding."""
    assert len(rows(ours)) == len(rows(theirs))
    for mine, other in zip(rows(ours), rows(theirs), strict=True):
        assert mine.keys() == other.keys()
        assert mine["phase"] == other["phase"]
        for name in mine.keys() - {"phase", "tokens_per_second"}:
            close = pytest.approx(other[name], rel=CURVE, abs=LEAD if name.endswith("_lead") else 1e-6)
            assert mine[name] == close, (mine["phase"], mine["step"], name)
    for kind in ("lora", "hypernet"):
        name = f"checkpoints/{kind}/model.safetensors"
        found, expected = load_file(ours / name), load_file(theirs / name)
        assert found.keys() == expected.keys()
        apart = {key: float((found[key].float() - tensor.float()).norm()) for key, tensor in expected.items()}
        norm = {key: float(tensor.float().norm()) for key, tensor in expected.items()}
        assert math.hypot(*apart.values()) < WEIGHTS * math.hypot(*norm.values())
        for key in expected:
            assert apart[key] <= TENSOR * norm[key], (kind, key, apart[key] / norm[key])


@pytest.mark.check
def test_two_processes_draw_the_curve_of_one_and_end_with_its_weights(
    tmp_path: Path, trained: tuple[store.RunDir, Context], tiny_model: ModelRef, corpus: Corpus
) -> None:
    folder = make_run(tmp_path, corpus)
    together(2, folder, tiny_model)
    same(folder, trained[0])
    found = {str(f.relative_to(folder.path)) for f in (folder / "checkpoints").rglob("*") if f.is_file()}
    assert found == {
        str(f.relative_to(trained[0].path)) for f in (trained[0] / "checkpoints").rglob("*") if f.is_file()
    }


@pytest.mark.check
def test_so_they_do_with_every_term_and_the_encoders_own_phase(
    tmp_path: Path, tiny_model: ModelRef, corpus: Corpus
) -> None:
    """Three groups by two processes: unequal shares."""
    one, two = make_run(tmp_path / "one", corpus), make_run(tmp_path / "two", corpus)
    train.run(one, every(settings()), make_context(tiny_model, tmp_path / "cache"))
    together(2, two, tiny_model, every_term=True)
    assert MORE.keys() <= rows(one)[-1].keys() and any(row.get("kl_teacher", 0) > 0 for row in rows(one))
    same(two, one)


@pytest.mark.check
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on_with_the_training(
    tmp_path: Path,
    trained: tuple[store.RunDir, Context],
    tiny_model: ModelRef,
    corpus: Corpus,
    before: int,
    after: int,
) -> None:
    folder = make_run(tmp_path, corpus)
    together(before, folder, tiny_model, stop=5)
    state = folder / "checkpoints" / "hypernet" / "state.safetensors"
    assert state.is_file() and not (folder / "checkpoints" / "hypernet" / "model.safetensors").exists()
    together(after, folder, tiny_model)
    same(folder, trained[0])


@pytest.mark.check
def test_the_command_line_trains_a_run_by_two_processes_and_the_run_goes_on(
    tmp_path: Path, tiny_model: ModelRef
) -> None:
    folders = []
    for name in ("one", "two"):
        root = tmp_path / name
        root.mkdir()
        config = experiment.write(root, experiment.settings(root, tiny_model))
        run("collect", str(config))
        (folder,) = (root / "runs").iterdir()
        folders.append(store.RunDir(folder))
    one, two = folders
    run("train", str(one.path))
    said = launch(*ACCELERATE, "--num_processes", "2", "-m", "rune", "train", str(two.path))
    assert said.splitlines() == [str(two / "checkpoints")]  # once
    same(two, one)
    assert two.stage_done("train") and two.manifest()["stages"].keys() == one.manifest()["stages"].keys()
    run("run", str(two.path), "--resume")
    assert json.loads((two / "decision.json").read_text())["answer"]


@pytest.mark.parametrize("verb", ["sample", "run"])
def test_several_processes_of_another_verb_are_one_clear_line(
    verb: str, tmp_path: Path, tiny_model: ModelRef, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rune.cli.main import main

    config = experiment.write(tmp_path, experiment.settings(tmp_path, tiny_model))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([verb, str(config)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"start `rune {verb}` without them" in said


def test_several_processes_train_in_a_folder_that_is_there(
    tmp_path: Path, tiny_model: ModelRef, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a config each would make a folder."""
    from rune.cli.main import main

    config = experiment.write(tmp_path, experiment.settings(tmp_path, tiny_model))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", str(config)]) == 2
    assert "run `rune collect` first" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def run(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", "rune", *command], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 10), done.stderr[-2000:]


def test_shares_are_whole_in_order_and_none_is_empty() -> None:
    for total in (2, 3, 7, 8):
        for count in range(1, total + 1):
            shares = [range(total)[Processes(rank, count).share(total, "x")] for rank in range(count)]
            assert [i for share in shares for i in share] == list(range(total))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1 and all(shares)


def test_more_processes_than_groups_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"4 processes share 3 \(train\.hypernet\.groups\)"):
        Processes(0, 4).share(3, "train.hypernet.groups")


def test_a_process_alone_changes_no_value_and_no_gradient() -> None:
    alone = Processes()
    value = torch.ones(3, requires_grad=True)
    assert alone.gather(value, [3]) is value and alone.add(value) is value and alone.once(value) is value
    assert alone.agree("x") == "x" and alone.share(5, "x") == slice(0, 5)


def test_what_every_process_has_counted_gives_a_share_of_the_gradient() -> None:
    value = torch.tensor([3.0], requires_grad=True)
    shared = Processes(1, 4).once(value * 2)
    shared.sum().backward()
    assert float(shared) == 6.0 and value.grad is not None and float(value.grad) == 0.5


def test_a_number_of_processes_that_nobody_started_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Job systems set WORLD_SIZE too."""
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "")
    assert join.__wrapped__("cpu").count == 1
    for count in ("2", "many"):
        monkeypatch.setenv("WORLD_SIZE", count)
        with pytest.raises(ConfigError, match=f"WORLD_SIZE is {count}, .*accelerate launch.*unset") as caught:
            join.__wrapped__("cpu")
        assert "\n" not in str(caught.value)
        PartialState._reset_state()  # accelerate's, which others of this process share
