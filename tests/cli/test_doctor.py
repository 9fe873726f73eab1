"""`rune doctor` tells what is here; a dry run resolves everything and loads nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

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
        "rows": 16,
        "collect_tokens": 1e5,
        "collect_prompts": 1e4,
        "sample_tokens": 2e5,
        "sample_prompts": 2e4,
        "train_tokens": 1e5,
        "read_tokens": 1e5,
        "memory": {"sample": {"weights": 2**30}},
    }
    return _estimate.Plan(**{**base, **changes})  # type: ignore[arg-type]


def test_time_grows_with_work_and_shrinks_with_the_machine() -> None:
    slow, fast = _estimate.Probe(5e10, 1e10), _estimate.Probe(1e11, 2e10)
    times = _estimate.times(plan(), slow)
    assert times["sample"] == pytest.approx(2 * times["collect"])
    assert times["in all"] == pytest.approx(times["collect"] + times["train"] + times["sample"])
    for stage, seconds in _estimate.times(plan(), fast).items():
        assert seconds == pytest.approx(times[stage] / 2)


def test_decoding_is_bound_by_bandwidth_for_few_rows_and_by_arithmetic_for_many() -> None:
    probe = _estimate.Probe(flops=1e12, bandwidth=1e11)
    few = _estimate.times(plan(rows=1, sample_prompts=0), probe)["sample"]
    many = _estimate.times(plan(rows=1000, sample_prompts=0), probe)["sample"]
    assert few == pytest.approx(2e5 * 494_032_768 * 4 / 1e11)
    assert many == pytest.approx(2e5 * 2 * 494_032_768 / 1e12)


def test_a_prompt_is_read_once_for_all_its_samples() -> None:
    settings = config.load(CONFIGS / "phase1-demo.toml").settings
    more = replace(settings, sample=replace(settings.sample, n=8 * settings.sample.n))
    few, many = (_estimate.plan(s, held_out=10, train=100, folder=None) for s in (settings, more))
    assert few.sample_prompts == many.sample_prompts == 10 * len(settings.adapt.arms) * _estimate.PROMPT_TOKENS
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
