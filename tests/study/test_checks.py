"""What a config asks for that this machine, or this config, does not have is said at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rune.errors import ConfigError
from rune.study import checks, config

CONFIG = Path(__file__).parents[2] / "configs" / "phase1-0.5b.toml"


def test_a_gpu_is_used_where_there_is_one_and_refused_where_there_is_none() -> None:
    present = torch.cuda.is_available()

    def device(wanted: str) -> str:
        return checks.device(config.load(CONFIG, [f"model.device={wanted}"]).settings)

    assert device("cpu") == "cpu"
    assert device("auto") == ("cuda" if present else "cpu")
    if present:
        assert device("cuda") == "cuda"
    else:
        with pytest.raises(ConfigError, match=r"torch sees no GPU; use --set model\.device=cpu"):
            device("cuda")


@pytest.mark.parametrize("role", ["treatment", "baseline"])
def test_an_arm_that_the_gate_compares_is_one_of_the_run(role: str) -> None:
    read = config.load(CONFIG, [f"gate.{role}=oracle"]).settings
    assert "oracle" not in read.adapt.arms
    with pytest.raises(ConfigError, match=rf"\[gate\] {role} = 'oracle' is not among adapt.arms"):
        checks.arms(read)
    checks.arms(config.load(CONFIG).settings)


@pytest.mark.parametrize("name", ["code_update_arena", "api_updates"])
def test_a_benchmark_that_run_would_judge_by_less_than_it_asks_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} counts UPass, and `rune run` would count plain passes"):
        config.load(CONFIG, [f"benchmark.name={name}"])
