"""`rune doctor` tells what is here; a dry run resolves everything and loads nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rune import plugins
from rune.cli import _estimate
from rune.cli.main import main
from rune.models import memory
from rune.study import config

CONFIGS = Path(__file__).parents[2] / "configs"


def test_doctor_names_device_memory_sandbox_models_and_extras(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("processors", "memory", "disk", "gpu", "seccomp", "verdict", "qwen2.5-coder-0.5b-instruct", "mlflow"):
        assert word in out


def test_a_dry_run_of_the_reference_model_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(CONFIGS / "phase1-7b.toml"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "25 held out, 139 for trajectories" in out
    assert "weights 14.19" in out  # 7,615,616,512 parameters in bfloat16
    assert "an estimate" in out
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_model_in_a_config_is_caught_by_the_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(CONFIGS / "phase1-0.5b.toml")
    assert main(["doctor", "--config", config, "--set", "model.name=qwen2.5-coder-0.5b"]) == 2
    assert "did you mean 'qwen2.5-coder-0.5b-instruct'" in capsys.readouterr().err


def plan(**changes: object) -> _estimate.Plan:
    base: dict[str, object] = {
        "shape": memory.PUBLISHED["qwen2.5-coder-0.5b-instruct"],
        "device": "cpu",
        "dtype": "float32",
        "collect_rows": 16,
        "sample_rows": 16,
        "collect_tokens": 1e5,
        "collect_prompts": 1e4,
        "sample_tokens": 2e5,
        "sample_prompts": 2e4,
        "train_tokens": 1e5,
        "read_tokens": 1e5,
        "adapt_tokens": 1e4,
        "memory": {"sample": {"weights": 2**30}},
    }
    return _estimate.Plan(**{**base, **changes})  # type: ignore[arg-type]


def test_time_grows_with_work_and_shrinks_with_the_machine() -> None:
    slow, fast = _estimate.Probe(5e10, 1e10), _estimate.Probe(1e11, 2e10)
    times = _estimate.times(plan(), slow)
    assert times["in all"] == pytest.approx(sum(seconds for stage, seconds in times.items() if stage != "in all"))
    assert set(times) == {"collect", "train", "adapt", "sample", "in all"}
    for stage, seconds in _estimate.times(plan(), fast).items():
        assert seconds == pytest.approx(times[stage] / 2)


def test_decoding_is_bound_by_bandwidth_for_few_rows_and_by_arithmetic_for_many() -> None:
    probe = _estimate.Probe(flops=1e12, bandwidth=1e11)
    few = _estimate.times(plan(sample_rows=1, sample_prompts=0), probe)["sample"]
    many = _estimate.times(plan(sample_rows=1000, sample_prompts=0), probe)["sample"]
    reading, arithmetic = 494_032_768 * 4 / 1e11, 2 * 494_032_768 / 1e12
    assert few == pytest.approx(2e5 * (reading + arithmetic))
    assert many == pytest.approx(2e5 * (reading / 1000 + arithmetic))


def test_few_chains_do_not_share_a_step_with_as_many_rows_as_sampling_has() -> None:
    """The demo's loop works on two tasks: its steps read all weights for two tokens."""
    settings = config.load(CONFIGS / "phase1-demo.toml").settings
    found = _estimate.plan(settings, held_out=5, train=139, folder=None)
    assert (found.collect_rows, found.sample_rows) == (2, 50)
    probe = _estimate.Probe(flops=1e15, bandwidth=1e10)
    a_step = found.shape.parameters * 4 / 1e10
    seconds = _estimate.times(replace(found, collect_prompts=0), probe)["collect"]
    assert seconds == pytest.approx((found.collect_tokens / 2 + _estimate.LOAD_PASSES) * a_step, rel=0.01)


def test_adapting_counts_every_adapter_its_trajectories_and_the_swaps() -> None:
    settings = config.load(CONFIGS / "phase1-demo.toml").settings

    def tokens(**changes: object) -> float:
        adapt = replace(settings.adapt, settings={}, **changes)  # type: ignore[arg-type]
        return _estimate.plan(replace(settings, adapt=adapt), held_out=5, train=139, folder=None).adapt_tokens

    assert tokens(arms=("vanilla", "rag")) == 0
    one = tokens(arms=("vanilla", "lora"), swap_tasks=0)
    assert one == 2 * _estimate.PROBE_TOKENS == tokens(arms=("vanilla", "lora"), swap_tasks=2)
    lower = max(settings.train.hypernet.taps) / 24
    five = tokens(arms=("vanilla", "hypernet"), swap_tasks=0)
    assert five == pytest.approx(5 * (one + settings.retrieve.top_k * _estimate.TRAJECTORY_TOKENS * lower))
    swapped = tokens(arms=("vanilla", "hypernet"), swap_tasks=2) - five
    assert swapped == 2 * 2 * (_estimate.PROMPT_TOKENS + _estimate.ANSWER_TOKENS)
    tuned = tokens(arms=("vanilla", "oracle"), swap_tasks=0)
    assert tuned == pytest.approx(5 * (one + 30 * 4 * 1024))
    reads = 5 * settings.retrieve.top_k * _estimate.TRAJECTORY_TOKENS * lower
    assert tokens(arms=("vanilla", "hypernet_mean"), swap_tasks=2) == pytest.approx(one + reads)
    assert tokens(arms=("vanilla", "tuned"), swap_tasks=0) == 5 * (one + 40 * 1024)
    assert tokens(arms=("vanilla", "tuned_mean"), swap_tasks=2) == one + 5 * 40 * 1024
    together = tokens(arms=("vanilla", "tuned", "tuned_wrong", "tuned_mean"), swap_tasks=0)
    assert together == 11 * one + 5 * 40 * 1024  # fine-tuned once for all three


def test_a_generator_of_outer_products_is_estimated_by_its_own_section() -> None:
    changes = [
        "train.kind=outer_products",
        "train.outer_products.schedule={steps = 100, learning_rate = 1e-3}",
        "train.outer_products.groups=8",
        "train.outer_products.withheld=0",
    ]
    settings = config.load(CONFIGS / "phase1-0.5b.toml", changes).settings

    def found(*more: str) -> _estimate.Plan:
        some = config.load(CONFIGS / "phase1-0.5b.toml", [*changes, *more]).settings
        return _estimate.plan(some, held_out=5, train=139, folder=None)

    one, twice = found(), found("train.outer_products.schedule.steps=200")
    assert "lora" not in one.memory and {"teachers", "hypernet"} <= set(one.memory)
    # Of an adapter two rows learned, and half as much for two without and for two sources in each of four passes.
    assert twice.train_tokens - one.train_tokens == 100 * 8 * 448 * (2 + (2 + 4 * 2) / 2) / 2
    tuned = found("train.outer_products.teacher.steps=8").train_tokens - one.train_tokens
    texts = min(settings.collect.keep, 139 * settings.collect.chains)
    assert tuned == pytest.approx(texts * 4 * 2 * 448 / 2)
    assert one.read_tokens == 0 and found("train.use=net").train_tokens == 0
    assert found("train.outer_products.generator.passes=8").adapt_tokens > one.adapt_tokens


def test_every_arm_has_a_class_in_the_estimate() -> None:
    classes = (_estimate.NO_ADAPTER, _estimate.ONE_A_TASK, _estimate.ONE_FOR_ALL)
    assert sorted(arm for some in classes for arm in some) == plugins.available("conditions")
    assert {*_estimate.READS, *_estimate.TUNES} <= {*_estimate.ONE_A_TASK, *_estimate.ONE_FOR_ALL}


def test_what_an_arm_puts_before_a_task_is_read_too() -> None:
    settings = config.load(CONFIGS / "phase1-demo.toml").settings

    def prompts(*arms: str) -> float:
        adapt = replace(settings.adapt, arms=("vanilla", *arms), settings={})
        found = _estimate.plan(replace(settings, adapt=adapt), held_out=5, train=139, folder=None)
        return found.sample_prompts - 5 * (1 + len(arms)) * _estimate.PROMPT_TOKENS

    assert prompts() == 0
    assert prompts("rag") == pytest.approx(5 * 2400 / _estimate.CHARS_PER_TOKEN)
    assert prompts("teacher") == 5 * settings.retrieve.top_k * _estimate.TRAJECTORY_TOKENS


@pytest.mark.parametrize("flops", [1.3e11, 1.7e11, 2.2e11])
@pytest.mark.parametrize("bandwidth", [1e10, 1.5e10])
def test_the_estimate_of_the_demo_is_within_half_of_what_it_took(flops: float, bandwidth: float) -> None:
    """354 s on two cores (studies/demo-on-a-laptop); such a machine has rates about these."""
    loaded = config.load(CONFIGS / "phase1-demo.toml")
    settings = config.located(loaded.settings, loaded.base, seed=0, fold=-1)
    found = _estimate.times(
        _estimate.plan(settings, held_out=5, train=139, folder=None), _estimate.Probe(flops, bandwidth)
    )
    assert 354 / 1.5 < found["in all"] < 354 * 1.5
    for stage, took in {"collect": 71, "train": 92, "sample": 146}.items():
        assert took / 2 < found[stage] < took * 2, stage


def test_a_prompt_is_read_once_for_all_its_samples() -> None:
    settings = config.load(CONFIGS / "phase1-demo.toml").settings
    more = replace(settings, sample=replace(settings.sample, n=8 * settings.sample.n))
    few, many = (_estimate.plan(s, held_out=10, train=100, folder=None) for s in (settings, more))
    assert few.sample_prompts == many.sample_prompts >= 10 * len(settings.adapt.arms) * _estimate.PROMPT_TOKENS
    assert many.sample_tokens == 8 * few.sample_tokens
    probe = _estimate.Probe(flops=1e12, bandwidth=1e15)
    reading = _estimate.times(few, probe)["sample"] - _estimate.times(replace(few, sample_prompts=0), probe)["sample"]
    assert reading == pytest.approx(few.sample_prompts * 2 * few.shape.parameters / 1e12)


def test_imported_trajectories_are_read_too(tmp_path: Path) -> None:
    settings = config.load(CONFIGS / "phase1-demo.toml").settings
    file = tmp_path / "imported.jsonl"
    file.write_bytes(b"x" * 240_000)
    more, none = (replace(settings, collect=replace(settings.collect, imports=i)) for i in ((str(file),), ()))
    many, few = (_estimate.plan(s, held_out=10, train=100, folder=None) for s in (more, none))
    share = max(settings.train.hypernet.taps) / few.shape.layers
    assert many.read_tokens - few.read_tokens == pytest.approx(240_000 / _estimate.BYTES_PER_TOKEN * share)
    probe = _estimate.Probe(flops=1e12, bandwidth=1e11)
    assert _estimate.times(many, probe)["train"] > _estimate.times(few, probe)["train"]


def test_training_counts_the_engine_that_stays_loaded_beside_it() -> None:
    settings = config.load(CONFIGS / "phase1-demo.toml").settings
    served = replace(settings, engine=replace(settings.engine, name="openai"))
    here, there = (_estimate.plan(s, held_out=10, train=100, folder=None).memory["lora"] for s in (settings, served))
    assert sum(here.values()) - sum(there.values()) == here["weights"]


def test_the_probe_measures_something() -> None:
    probe = _estimate.measure("cpu", "float32")
    assert probe.flops > 1e8
    assert probe.bandwidth > 1e7
