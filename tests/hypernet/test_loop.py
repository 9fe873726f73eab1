"""The training loop on a module of a few numbers: rates, schedule, clipping, decay, no step twice in a curve."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save
from torch import nn

from rune import console
from rune.errors import DataError
from rune.hypernet import loop
from rune.hypernet.loop import Rate, Step, fit, learning_rate
from rune.hypernet.settings import Schedule
from rune.runs import store


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor([3.0, -4.0]))
        self.second = nn.Parameter(torch.tensor([1.0, 2.0]))


def pull(module: Two, scale: float = 1.0) -> Callable[[int], Step]:
    """A loss whose gradient changes with the step, so that no two curves are alike by chance."""

    def take(step: int) -> Step:
        goal = math.sin(step)
        loss = scale * ((module.first - goal).square().sum() + (module.second + goal).square().sum())
        return Step(loss, {"term": 2.0 * loss.detach()}, 10)

    return take


def train(
    folder: Path,
    schedule: Schedule,
    *,
    factors: tuple[float, float] = (1.0, 1.0),
    scale: float = 1.0,
    phase: str = "hypernet",
    stop_after: int | None = None,
    killed_at: int | None = None,
) -> Two:
    module = Two()
    take = pull(module, scale)

    def until(step: int) -> Step:
        if step == killed_at:
            raise KeyboardInterrupt
        return take(step)

    rates = [Rate([module.first], factors[0]), Rate([module.second], factors[1])]
    metrics = folder / "metrics.jsonl"
    fit(module, rates, schedule, until, folder=folder / phase, metrics=metrics, phase=phase, stop_after=stop_after)
    return module


def lines(folder: Path, phase: str = "hypernet") -> list[Mapping[str, float]]:
    every = [line for _, line in store.read_lines(folder / "metrics.jsonl")]
    return [{k: v for k, v in x.items() if k != "tokens_per_second"} for x in every if x["phase"] == phase]


def test_each_share_of_the_weights_moves_by_its_own_factor(tmp_path: Path) -> None:
    """Adam's first step is the learning rate, whatever the gradient; a factor of 0 freezes."""
    before = Two()
    for factors in ((1.0, 0.1), (0.0, 1.0), (0.5, 2.0)):
        schedule = Schedule(steps=1, learning_rate=1e-2, warmup=0.0, weight_decay=0.0)
        after = train(tmp_path / str(factors), schedule, factors=factors)
        for name, factor in zip(("first", "second"), factors, strict=True):
            moved = (getattr(after, name) - getattr(before, name)).abs()
            assert moved.tolist() == pytest.approx([1e-2 * factor] * 2, rel=1e-3, abs=1e-9)


def test_the_rate_of_every_step_is_the_schedules_and_stands_in_the_curve(tmp_path: Path) -> None:
    """Linear to the peak, then half a cosine down to a tenth."""
    schedule = Schedule(steps=50, learning_rate=0.02, warmup=0.2, weight_decay=0.0)
    train(tmp_path, schedule)
    warm = [0.02 * (i + 1) / 10 for i in range(10)]
    fall = [0.02 * (0.1 + 0.9 * math.cos(math.pi * i / 80) ** 2) for i in range(40)]
    assert [line["learning_rate"] for line in lines(tmp_path)] == pytest.approx([*warm, *fall])


def test_without_warm_up_the_first_step_has_the_whole_rate() -> None:
    schedule = Schedule(steps=1000, learning_rate=1.0, warmup=0.0)
    assert learning_rate(schedule, 0) == 1.0
    assert learning_rate(schedule, 500) == pytest.approx(0.55, abs=1e-3)
    assert learning_rate(schedule, 999) == pytest.approx(0.1, abs=1e-4)


@pytest.mark.parametrize(("scale", "clipped"), [(10.0, True), (1e-3, False)])
def test_a_gradient_over_the_limit_is_scaled_to_it_and_written_down_as_it_was(
    tmp_path: Path, scale: float, clipped: bool
) -> None:
    """Adam's first moment is a tenth of the gradient it was given."""
    train(tmp_path, Schedule(steps=1, learning_rate=1e-3, clip=0.5), scale=scale)
    state = load_file(tmp_path / "hypernet" / "state.safetensors")
    given = 10 * torch.cat([state["adam.0.exp_avg"], state["adam.1.exp_avg"]]).norm()
    own = scale * 2 * torch.cat([Two().first, Two().second]).norm()
    assert float(given) == pytest.approx(0.5 if clipped else float(own), rel=1e-4)
    assert lines(tmp_path)[0]["gradient_norm"] == pytest.approx(float(own), rel=1e-5)


def test_weights_without_a_gradient_only_decay(tmp_path: Path) -> None:
    after = train(tmp_path, Schedule(steps=1, learning_rate=0.1, warmup=0.0, weight_decay=0.5), scale=0.0)
    assert after.first.tolist() == pytest.approx([3.0 * 0.95, -4.0 * 0.95])


def test_the_bar_goes_on_by_the_steps_that_were_made_and_tells_the_last_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, str]] = []
    advance = console.Progress.advance

    def watch(bar: console.Progress, count: int = 1, **words: str) -> None:
        told.append((count, words["loss"]))
        advance(bar, count, **words)

    monkeypatch.setattr(console.Progress, "advance", watch)
    train(tmp_path, Schedule(steps=23, learning_rate=1e-3))
    assert sum(count for count, _ in told) == 23
    assert told[-1][1] == f"{lines(tmp_path)[-1]['loss']:.3f}"


def test_the_curve_holds_loss_and_terms_of_each_step(tmp_path: Path) -> None:
    train(tmp_path, Schedule(steps=13, learning_rate=1e-2))
    found = lines(tmp_path)
    assert [line["step"] for line in found] == list(range(13))
    assert all(line["term"] == pytest.approx(2 * line["loss"]) for line in found)
    assert found[0]["loss"] == pytest.approx(float(Two().first.square().sum() + Two().second.square().sum()))


@pytest.mark.parametrize("killed_at", [5, 15, 37, 58])
def test_a_curve_goes_on_from_the_checkpoint_and_no_step_stands_in_it_twice(tmp_path: Path, killed_at: int) -> None:
    """Lines are written every few steps, checkpoints seldom: what lies past the last one is written again, once."""
    schedule = Schedule(steps=60, learning_rate=1e-2, checkpoint_every=20)
    whole = train(tmp_path / "whole", schedule)
    train(tmp_path, Schedule(steps=4, learning_rate=1e-2), phase="lora")
    before = lines(tmp_path, "lora")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, schedule, killed_at=killed_at)
    written = len(lines(tmp_path))
    assert written == killed_at // 10 * 10  # more than the checkpoint holds, or the test shows nothing
    again = train(tmp_path, schedule)
    assert lines(tmp_path) == lines(tmp_path / "whole")
    assert lines(tmp_path, "lora") == before
    assert torch.equal(again.first, whole.first) and torch.equal(again.second, whole.second)


def test_a_torn_last_line_of_the_curve_is_written_again(tmp_path: Path) -> None:
    schedule = Schedule(steps=30, learning_rate=1e-2, checkpoint_every=20)
    train(tmp_path / "whole", schedule)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, schedule, killed_at=25)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "hypernet", "st')
    train(tmp_path, schedule)
    assert lines(tmp_path) == lines(tmp_path / "whole")


def test_a_run_stopped_early_keeps_its_schedule_and_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    schedule = Schedule(steps=30, learning_rate=1e-2, checkpoint_every=8)
    whole = train(tmp_path / "whole", schedule)
    train(tmp_path, schedule, stop_after=11)
    assert [line["step"] for line in lines(tmp_path)] == list(range(11))
    again = train(tmp_path, schedule)
    assert lines(tmp_path) == lines(tmp_path / "whole")
    assert torch.equal(again.first, whole.first)


def test_a_checkpoint_stands_after_as_many_steps_as_asked(tmp_path: Path) -> None:
    schedule = Schedule(steps=30, learning_rate=1e-2, checkpoint_every=7)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, schedule, killed_at=20)
    state = tmp_path / "hypernet" / "state.safetensors"
    done = train(tmp_path / "fourteen", schedule, stop_after=14)
    assert torch.equal(load_file(state)["module.first"], done.first.detach())


def test_a_loss_that_is_not_finite_stops_the_training_and_names_the_step(tmp_path: Path) -> None:
    module = Two()
    take = pull(module)

    def broken(step: int) -> Step:
        done = take(step)
        return done._replace(loss=done.loss * (math.nan if step == 3 else 1.0))

    rates = [Rate(list(module.parameters()), 1.0)]
    schedule = Schedule(steps=6, learning_rate=1e-2)
    with pytest.raises(DataError, match="hypernet: the loss is nan at step 3; lower the learning rate"):
        fit(module, rates, schedule, broken, folder=tmp_path, metrics=tmp_path / "metrics.jsonl", phase="hypernet")
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2]


def test_what_is_frozen_takes_no_part_in_the_gradient_and_keeps_no_state(tmp_path: Path) -> None:
    train(tmp_path, Schedule(steps=2, learning_rate=1e-2), factors=(0.0, 1.0))
    own = 2 * Two().second.norm()
    assert lines(tmp_path)[0]["gradient_norm"] == pytest.approx(float(own), rel=1e-5)
    assert {n.split(".")[1] for n in load_file(tmp_path / "hypernet" / "state.safetensors") if n[:4] == "adam"} == {"0"}


def test_weights_that_a_step_does_not_reach_stay_as_they_are_in_it(tmp_path: Path) -> None:
    """Neither momentum nor decay moves what was not in use."""
    module = Two()
    seen: list[list[float]] = []

    def take(step: int) -> Step:
        seen.append(module.second.tolist())
        loss = module.first.square().sum() + (module.second.square().sum() if step % 2 else 0.0)
        return Step(loss, {}, 1)

    rates = [Rate(list(module.parameters()), 1.0)]
    schedule = Schedule(steps=5, learning_rate=1e-2, warmup=0.0)
    fit(module, rates, schedule, take, folder=tmp_path, metrics=tmp_path / "metrics.jsonl", phase="hypernet")
    assert seen[0] == seen[1] and seen[1] != seen[2] and seen[2] == seen[3] and seen[3] != seen[4]


def test_the_speed_is_that_of_the_tokens_since_the_last_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 104.0, 104.5, 104.5])
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(loop.console, "Progress", Bar)
    Bar.told.clear()
    train(tmp_path, Schedule(steps=23, learning_rate=1e-3))  # ten steps, ten and three, of ten tokens each
    every = [line for _, line in store.read_lines(tmp_path / "metrics.jsonl")]
    speeds = [25.0] * 10 + [200.0] * 10 + [30 / 1e-9] * 3
    assert [line["tokens_per_second"] for line in every] == pytest.approx(speeds)
    assert Bar.told == [("train hypernet", 23, 0), (10, "25"), (10, "200"), (3, "30000000000")]
    assert all("peak_bytes" not in line for line in every)  # there is no GPU


class Bar:
    """Notes what it is told, and looks at no clock."""

    told: ClassVar[list[Any]] = []

    def __init__(self, title: str, total: int, *, unit: str, initial: int) -> None:
        assert unit == "step"
        Bar.told.append((title, total, initial))

    def advance(self, count: int, *, loss: str, tokens_per_s: str) -> None:
        Bar.told.append((count, tokens_per_s))

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None: ...


def test_a_state_that_is_none_or_of_other_settings_is_one_line(tmp_path: Path) -> None:
    state = tmp_path / "hypernet" / "state.safetensors"
    state.parent.mkdir()
    state.write_bytes(b"no state")
    with pytest.raises(
        DataError, match=r"state.safetensors: not a training state \(.*delete it to train from the start"
    ):
        train(tmp_path, Schedule(steps=2, learning_rate=1e-2))
    for tensors, metadata in (({"module.first": torch.zeros(2)}, {"step": "1"}), ({}, None), ({}, {"step": "x"})):
        state.write_bytes(save(tensors, metadata=metadata))
        words = "made with other settings" if tensors else "not a training state"
        with pytest.raises(DataError, match=f"state.safetensors: {words}.*; delete it to train from the start"):
            train(tmp_path, Schedule(steps=2, learning_rate=1e-2))


def test_processes_add_their_gradients_wait_for_each_other_and_the_first_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Any] = []

    class Processes:
        main = True

        def wait(self) -> None:
            heard.append("wait")

        def add_gradients(self, parameters: list[nn.Parameter]) -> None:
            heard.append(len(parameters))
            for p in parameters:
                assert p.grad is not None
                p.grad.mul_(2)  # as if another process had found the same

    monkeypatch.setattr(loop, "join", lambda device: heard.append(device) or Processes())
    train(tmp_path / "first", Schedule(steps=3, learning_rate=1e-2))
    assert heard == ["cpu", "wait", 2, 2, 2]
    own = 2 * torch.cat([Two().first, Two().second]).norm()
    assert lines(tmp_path / "first")[0]["gradient_norm"] == pytest.approx(2 * float(own), rel=1e-5)
    monkeypatch.setattr(Processes, "main", False)
    after = train(tmp_path / "other", Schedule(steps=3, learning_rate=1e-2))
    assert not (tmp_path / "other").exists() and after.first.tolist() != Two().first.tolist()
