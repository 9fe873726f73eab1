"""Settings and records are read by one decoder: what fits one fits the other."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from rune import config
from rune.errors import ConfigError, DataError
from rune.runs import store
from rune.types import Split


@dataclass(frozen=True, kw_only=True)
class Part:
    steps: int


@dataclass(frozen=True, kw_only=True)
class Whole:
    name: str = ""
    on: bool = False
    count: int = 0
    rate: float = 0.0
    limit: int | None = None
    either: int | str = 0
    split: Split = Split.TRAIN
    device: Literal["cpu", "cuda"] = "cpu"
    arms: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    part: Part | None = None
    table: Mapping[str, float] = field(default_factory=dict)
    anything: Any = None


FITS: list[dict[str, Any]] = [
    {"name": "a", "on": True, "count": 3, "rate": 0.5, "limit": 4, "split": "held_out", "device": "cuda"},
    {"rate": 2, "either": "x", "limit": None, "arms": ["a", "b"], "anything": [{"x": 1}]},
    {"either": 5, "parts": [{"steps": 1}, {"steps": 2}], "part": {"steps": 3}, "table": {"a": 1, "b": 2.5}},
]
DOES_NOT: list[tuple[dict[str, Any], str]] = [
    ({"name": 1}, "expected str, found 1"),
    ({"on": 1}, "expected bool, found 1"),
    ({"count": True}, "expected int, found"),
    ({"count": 1.0}, "expected int, found 1.0"),
    ({"rate": True}, "expected float, found"),
    ({"rate": 10**400}, "expected a finite number"),
    ({"limit": "4"}, "expected int, found"),
    ({"either": 1.5}, "expected str, found 1.5"),
    ({"split": "test"}, "is not one of train, held_out"),
    ({"split": ["train"]}, "is not one of train, held_out"),
    ({"device": "cdua"}, "is not one of cpu, cuda; did you mean 'cuda'?"),
    ({"arms": "ab"}, "expected a list, found"),
    ({"arms": ["a", 1]}, "expected str, found 1"),
    ({"parts": [{"steps": 1}, {"steps": "2"}]}, "expected int, found"),
    ({"parts": [3]}, "found 3"),
    ({"part": {"step": 3}}, "step"),
    ({"part": {}}, "steps"),
    ({"table": {"a": "b"}}, "expected float, found"),
    ({"table": [1]}, "expected a"),
    ({"nmae": "a"}, "nmae"),
]


@pytest.mark.parametrize("raw", FITS)
def test_what_fits_a_setting_fits_a_record(raw: dict[str, Any]) -> None:
    found = config.build(Whole, raw)
    assert found == store.decode(Whole, json.loads(json.dumps(raw)), where="f:1")
    assert config.build(Whole, json.loads(store.encode(found))) == found


@pytest.mark.parametrize(("raw", "words"), DOES_NOT, ids=[str(raw)[:40] for raw, _ in DOES_NOT])
def test_what_does_not_fit_is_refused_by_both_with_the_place_and_what_would(raw: dict[str, Any], words: str) -> None:
    for error, read in (
        (ConfigError, lambda: config.build(Whole, raw)),
        (DataError, lambda: store.decode(Whole, raw, where="f:1")),
    ):
        with pytest.raises(error) as caught:
            read()
        assert words in str(caught.value) and next(iter(raw)) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_measured_number_may_be_infinite_and_a_setting_may_not() -> None:
    assert math.isinf(store.decode(Whole, {"rate": math.inf}, where="f:1").rate)
    with pytest.raises(ConfigError, match="expected a finite number, found inf"):
        config.build(Whole, {"rate": math.inf})
