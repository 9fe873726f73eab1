"""The page of generation-speed: what was asked and predicted is judged by the records that are there, and no others."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "studies" / "generation-speed"


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("generation_speed_quiet", FOLDER / "quiet.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def one(rate: float, p95: float = 500.0) -> dict[str, Any]:
    return {"rate": rate, "first_token_ms": {"p50": p95 / 2, "p95": p95}}


def records() -> dict[str, Any]:
    ours = {0: 40_000, 1: 39_000, 10: 36_000, 100: 33_000, 1000: 31_000}
    theirs = {0: 20_000, 1: 18_000, 10: 17_000, 100: 15_000}
    behind = {
        "parts": {
            f"{system}-164": {
                "adapters": 164, "requests_per_second": rate, "tokens_per_second": 128 * rate,
                "first_token_ms": {"p50": 100, "p95": p95}, "whole_ms": {"p50": 900, "p95": 1200},
            }
            for system, rate, p95 in (("torch", 90.0, 300), ("vllm", 100.0, 200), ("rune-vllm", 95.0, 900))
        }
        | {"texts": {"equal_greedy_texts": {"torch and vllm": 0.5, "vllm and rune-vllm": 1.0}}},
        "systems": {"torch": {"failed": None}, "vllm": {"failed": "with 8 adapters: no answer"}},
    }  # fmt: skip
    return {
        **{f"session_{count}": one(rate) for count, rate in ours.items()},
        **{f"vllm_session_{count}": one(rate) for count, rate in theirs.items()},
        "vllm_session_1000": one(8_000) | {"note": "stopped after 60 s; of what was drawn by then"},
        "session_1000-again": one(29_000), "session_1000-no-prefix": one(32_000),
        "ours_164": one(95_000), "vllm_164": one(30_000) | {"unseeded": one(31_000)},
        "peft_swap": {"rate": 40.0, "swap_ms": 25.0},
        "serve-beside": behind,
    }  # fmt: skip


def test_each_line_is_judged_by_its_records(quiet: ModuleType) -> None:
    told = quiet.came_out(records())
    assert (
        "With 1,000 adapters 78 % of the tokens/s with none; 60 % were asked: reached; 75 % aimed at: reached" in told
    )
    assert "| 1,000 | 31,000 | 0.78 | 250 | 500 | 29,000 | 8,000 (cut) | 250 | 500 | 3.88 |" in told
    assert "own load: 3.17** (3.06 where vLLM draws without seeds); at least 1 asked: reached" in told
    assert "| 164 | 95,000 | – | 30,000 | 31,000 | 3.17 | 4.5 (2.5 to 7) | kept |" in told
    assert "without, 1,000 registered: 0.97, at least 0.9 predicted: kept" in told
    assert "measured again differs by at most 6 %, 10 predicted: kept" in told
    assert "served with 10 is 900 times as fast" in told
    assert (
        "| 164 | `rune serve`, torch | 90.0 | 11,520 | 100 | 300 | 900 | 1200 | 0.90 | 1 (0.5 to 1.8) | kept |" in told
    )
    assert (
        "| 164 | `rune serve`, vLLM | 95.0 | 12,160 | 100 | 900 | 900 | 1200 | 0.95 | 0.5 (0.2 to 0.9) | missed |"
        in told
    )
    assert "vllm was not measured to its end: with 8 adapters: no answer." in told

    worse = quiet.came_out({**records(), "session_1000": one(23_500, 950), "ours_164": one(30_500)})
    assert "59 % of the tokens/s with none; 60 % were asked: missed; 75 % aimed at: missed" in worse
    assert "after 950 ms, at most 900 predicted: missed" in worse
    assert "own load: 1.02** (0.98 where vLLM draws without seeds); at least 1 asked: missed" in worse
    assert "measured again differs by at most 23 %, 10 predicted: missed" in worse


def test_a_run_that_was_cut_is_told_as_far_as_it_came(quiet: ModuleType) -> None:
    every = records()
    for missing in every:  # whatever is lost, the rest is told
        assert quiet.came_out({name: part for name, part in every.items() if name != missing})
    told = quiet.came_out({})
    assert "Nothing to judge yet" in told and "not judged" in told and "reached" not in told
