"""What adapters are measured on, and what makes two measurements comparable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rune import config
from rune.errors import DataError
from rune.study import measuring, memory
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
    from rune.study.config import BenchmarkSection

    return {p.task_id: p for p in measuring.problems(BenchmarkSection(name="families", settings=FAMILIES))}


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
