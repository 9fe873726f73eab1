"""Settings: what does not fit is refused at once, in one line that says what would."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from rune import config
from rune.errors import ConfigError
from rune.types import Split


@dataclass(frozen=True, kw_only=True)
class Inner:
    steps: int
    rate: float = 0.1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, found {self.steps}")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: Inner
    arms: tuple[str, ...] = ()
    split: Split = Split.TRAIN
    device: Literal["auto", "cpu", "cuda"] = "auto"
    limit: int | None = None
    extra: Mapping[str, int] = field(default_factory=dict)


RAW: dict[str, Any] = {"name": "a", "inner": {"steps": 3}}


def test_a_full_mapping_becomes_the_record() -> None:
    raw = {
        "name": "a",
        "inner": {"steps": 3, "rate": 1},
        "arms": ["x", "y"],
        "split": "held_out",
        "limit": 4,
        "extra": {"k": 1},
    }
    expected = Outer(
        name="a", inner=Inner(steps=3, rate=1.0), arms=("x", "y"), split=Split.HELD_OUT, limit=4, extra={"k": 1}
    )
    assert config.build(Outer, raw) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nmae": "b"}, r"unknown key 'nmae'; did you mean 'name'\? Known: name, inner"),
        ({"inner": {"steps": 3, "stesp": 1}}, r"\[inner\] unknown key 'stesp'; did you mean 'steps'\?"),
        ({"inner": {}}, r"\[inner\] missing key 'steps'; add it to the config or pass --set inner.steps="),
        ({"inner": {"steps": "3"}}, r"inner.steps: expected int, found '3'"),
        ({"inner": {"steps": True}}, r"inner.steps: expected int, found True"),
        ({"inner": {"steps": 0}}, r"\[inner\] steps must be at least 1, found 0"),
        ({"inner": 3}, r"inner: expected a section, found 3"),
        ({"device": "cdua"}, r"device: 'cdua' is not one of auto, cpu, cuda; did you mean 'cuda'\?"),
        ({"split": "test"}, r"split: 'test' is not one of train, held_out"),
        ({"arms": "x"}, r"arms: expected a list, found 'x'"),
        ({"arms": ["x", 1]}, r"arms\[1\]: expected str, found 1"),
        ({"extra": {"k": "v"}}, r"extra.k: expected int, found 'v'"),
    ],
)
def test_what_does_not_fit_is_one_line_with_what_would(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config.build(Outer, {**RAW, **change})
    assert "\n" not in str(caught.value)


def test_set_overrides_values_and_makes_sections() -> None:
    raw = config.override(RAW, ["inner.steps=7", "device=cpu", 'arms=["a"]', "inner.rate=1e-3"])
    built = config.build(Outer, raw)
    assert (built.inner.steps, built.inner.rate, built.device, built.arms) == (7, 1e-3, "cpu", ("a",))
    assert RAW == {"name": "a", "inner": {"steps": 3}}


@pytest.mark.parametrize("setting", ["inner.steps", "=3", "name.x=1"])
def test_a_setting_that_is_none_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        config.override(RAW, [setting])


def test_broken_toml_names_its_file() -> None:
    with pytest.raises(ConfigError, match=r"a\.toml: not valid TOML"):
        config.parse("name = ", where="a.toml")


def test_a_dumped_config_reads_back_to_the_same_record_and_digest() -> None:
    value = Outer(name='qu"o\\te\n', inner=Inner(steps=3), arms=("ü", "b"), extra={"two words": 2})
    again = config.build(Outer, config.parse(config.dump_toml(value), where="dump"))
    assert again == value
    assert config.digest(again) == config.digest(value)


def test_the_digest_sees_every_value_and_not_the_order_of_keys() -> None:
    assert config.digest({"a": 1, "b": (2, 3)}) == config.digest({"b": [2, 3], "a": 1})
    assert config.digest({"a": 1}) != config.digest({"a": 2})
    assert config.digest({"a": 1}) != config.digest({"a": "1"})


def test_derived_seeds_are_stable_apart_and_fit_in_63_bits() -> None:
    seeds = [config.derive_seed(0, "sample", f"task/{i}") for i in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [config.derive_seed(0, "sample", f"task/{i}") for i in range(1000)]
    assert config.derive_seed(1, "sample", "task/0") != seeds[0]
    assert config.derive_seed(0, "ab", "c") != config.derive_seed(0, "a", "bc")
