"""What adapters are measured on, and what makes two measurements comparable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rune import config
from rune.errors import DataError
from rune.study import cells, measuring, memory
from rune.study.config import BenchmarkSection
from rune.types import ModelRef, Problem

FAMILIES = {"families": 4, "held_out": 0, "tasks": 4, "seed": 5}


@pytest.fixture(scope="module")
def raw(tiny_model: ModelRef) -> dict[str, Any]:
    return {
        "model": {"name": tiny_model.path, "device": "cpu", "dtype": "float32"},
        "benchmark": {"name": "families", "settings": FAMILIES},
        "engine": {"name": "scripted", "settings": {"default": ["pass"]}},
        "sample": {"n": 2, "temperature": 0.8, "max_new_tokens": 40, "top_p": 1.0, "top_k": 0},
        "score": {},
        "evolve": {"project": "shop", "seed": 1, "budget": 1000, "inside": 2, "outside": 3},
    }


@pytest.fixture(scope="module")
def problems() -> dict[str, Problem]:
    return {p.task_id: p for p in cells.problems(BenchmarkSection(name="families", settings=FAMILIES))}


def evaluator(raw: dict[str, Any], **changes: Any) -> measuring.EngineEvaluator:
    """`section__key`: the value to put in its place."""
    sets = [
        f"{name.replace('__', '.')}={config.dump_toml({'v': value})[4:].strip()}" for name, value in changes.items()
    ]
    return measuring.EngineEvaluator(config.build(memory.MemoryConfig, config.override(raw, sets)), Path("nowhere"))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"sample__temperature": 0.2}, False),
        ({"sample__n": 3}, False),
        ({"sample__top_p": 0.9}, False),
        ({"engine__settings__default": ["other"]}, False),
        ({"score__settings__cpu_seconds": 1.0}, False),
        ({"benchmark__settings__seed": 6}, False),
        ({"evolve__seed": 2}, False),
        ({"evolve__inside": 1}, False),
        ({"evolve__outside": 2}, False),
        ({"evolve__budget": 5}, True),
        ({"evolve__alpha": 0.2}, True),
        ({"evolve__project": "bank"}, True),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_the_protocol_is_all_that_a_pass_depends_on_but_the_adapter(
    raw: dict[str, Any], change: dict[str, Any], same: bool
) -> None:
    assert (evaluator(raw, **change).protocol == evaluator(raw).protocol) is same


def test_an_adapter_is_measured_on_its_own_domains_and_on_others_and_the_two_do_not_overlap(
    raw: dict[str, Any], problems: dict[str, Problem]
) -> None:
    one = evaluator(raw, evolve__outside=100)
    domains = sorted({p.domain for p in problems.values()})
    for chosen in (domains[:1], domains[1:3]):
        inside, outside = one.tasks(chosen)
        assert {problems[t].domain for t in inside} == set(chosen) and len(inside) == 2 * len(chosen)
        assert {problems[t].domain for t in outside} == set(domains) - set(chosen)
        assert len(outside) == len(set(outside)) == 2 * (4 - len(chosen))
        few = evaluator(raw).tasks(chosen)
        assert few.outside == outside[:3] and few.inside == inside  # the same ones for every adapter
    # Tasks named apart may hold more of the same domain: those are none of another.
    apart = evaluator({**raw, "elsewhere": raw["benchmark"]}, evolve__outside=100).tasks(domains[:1])
    assert {problems[t].domain for t in apart.outside} == set(domains[1:]) and len(apart.outside) == 4 * 3
    with pytest.raises(DataError, match="no domain with held-out tasks named 'nothing'"):
        one.tasks(["nothing"])


def test_paths_in_the_config_are_relative_to_it_wherever_they_stand(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("here/base", "here/tasks", "home"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "home" / "others.jsonl").touch()
    changed = {
        **raw,
        "model": {**raw["model"], "name": "base"},
        "benchmark": {"name": "mbpp", "settings": {"path": "tasks"}},
        "elsewhere": {"name": "mbpp", "settings": {"path": "~/others.jsonl"}},
        "evolve": {**raw["evolve"], "checkpoint": "net", "trajectories": ["a.jsonl", "~/b.jsonl"]},
    }
    (tmp_path / "here" / "memory.toml").write_text(config.dump_toml(changed))
    found = memory.load(tmp_path / "here" / "memory.toml")
    here, home = tmp_path / "here", tmp_path / "home"
    assert found.model.name == str(here / "base")
    assert found.benchmark.settings["path"] == str(here / "tasks")
    assert found.elsewhere is not None and found.elsewhere.settings["path"] == str(home / "others.jsonl")
    assert found.evolve.checkpoint == str(here / "net")
    assert found.evolve.trajectories == (str(here / "a.jsonl"), str(home / "b.jsonl"))
    # What is no path there is a name: of a model, of data on the hub.
    named = {**changed, "model": {**raw["model"], "name": "qwen2.5-coder-0.5b-instruct"}, "elsewhere": raw["benchmark"]}
    (here / "memory.toml").write_text(config.dump_toml(named))
    assert memory.load(here / "memory.toml").model.name == "qwen2.5-coder-0.5b-instruct"


def test_engine_and_sandbox_end_with_the_block(raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[measuring.EngineEvaluator] = []
    monkeypatch.setattr(measuring.EngineEvaluator, "close", lambda self: ended.append(self))
    found = config.build(memory.MemoryConfig, raw)
    with pytest.raises(KeyboardInterrupt), measuring.opened(found, Path("nowhere")) as one:
        assert ended == []
        raise KeyboardInterrupt
    assert ended == [one]
