"""Every bound of every setting, at its edge: the last value that is taken, and the first that is not.

And the defaults: what a config leaves out is part of what a committed run means, so none changes by accident.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rune
from rune.adapters.merge_settings import Settings as MergeSettings
from rune.analysis import gate
from rune.benchmarks import api_updates, code_update_arena, families, pbb, pbb_cruxeval, puzzles, repositories
from rune.benchmarks._pbb_functions import EASY_SOURCES
from rune.conditions import hypernet_centred, hypernet_mean, tuned
from rune.encoders import hierarchical, perceiver, recurrent
from rune.engines import openai, ray, torch, vllm
from rune.hypernet.settings import (
    EncoderConfig,
    HypernetConfig,
    LoraConfig,
    OuterProductsConfig,
    OuterProductsTraining,
    PairMix,
    Schedule,
    TeacherConfig,
    Weights,
)
from rune.retrievers import bm25
from rune.sandbox import fork
from rune.stages import adapt, collect, report, retrieve, sample, train
from rune.study import phases
from rune.study.config import MOST_FOLDS, Design, RunSection
from rune.study.memory import Evolve

SOURCE = Path(rune.__file__).parent
DEFAULTS = Path(__file__).parents[1] / "golden" / "defaults.json"
MOST = 10**6
TINY = 1e-9

_SCHEDULE = Schedule(steps=1, learning_rate=1.0)
_LORA = {"schedule": _SCHEDULE, "rank": 1, "alpha": 1.0, "rows": 1}
_PAIRS = PairMix(retrieved=1.0)
_HYPERNET: dict[str, Any] = {
    "schedule": _SCHEDULE, "rank": 1, "alpha": 1.0, "groups": 2, "targets": 1, "pairs": _PAIRS, "weights": Weights(),
}  # fmt: skip
_TRAIN: dict[str, Any] = {"lora": LoraConfig(**_LORA), "hypernet": HypernetConfig(**_HYPERNET)}
_FIRST = HypernetConfig(**_HYPERNET, encoder_first=EncoderConfig(schedule=_SCHEDULE, groups=2))
_OUTER = {"schedule": _SCHEDULE, "groups": 2}
_EVOLVE = {"project": "p", "seed": 0, "budget": 0, "inside": 0, "outside": 0}
_MERGE = MergeSettings(method="svd")
_MAKES: dict[str, Any] = {"trajectories": ("t.jsonl",), "checkpoint": "c"}

# class, what it needs, then setting → values that are taken, values that are not
BOUNDS: list[tuple[type, dict[str, Any], dict[str, tuple[list[Any], list[Any]]]]] = [
    (fork.Config, {}, {
        "cpu_seconds": ([TINY], [0, -1.0]), "wall_seconds": ([TINY], [0]), "memory_mb": ([1], [0]),
        "work_mb": ([1], [0]), "output_kb": ([1], [0]), "workers": ([0, 1], [-1]),
        "without": ([(), ("namespaces", "landlock", "seccomp", "rlimits")], [("walls",)]),
    }),
    (sample.Config, {"n": 1, "temperature": 1.0, "max_new_tokens": 1, "top_p": 1.0, "top_k": 0}, {
        "n": ([1], [0]), "temperature": ([0, 5.0], [-TINY]), "top_p": ([TINY, 1], [0, 1.0001]), "top_k": ([0], [-1]),
    }),
    (retrieve.Config, {"top_k": 1}, {"top_k": ([1], [0]), "per_task": ([0], [-1])}),
    (report.Config, {}, {
        "programs_per_arm": ([1], [0]), "most_programs": ([1], [0]), "leakage_rows": ([1], [0]),
    }),
    (collect.Config, {"tasks": 0, "chains": 1, "max_attempts": 1, "temperature": 0.0, "max_new_tokens": 1}, {
        "tasks": ([0], [-1]), "chains": ([1], [0]), "max_attempts": ([1], [0]), "max_new_tokens": ([1], [0]),
        "keep": ([1], [0]), "keep_per_task": ([1], [0]), "wave": ([1], [0]), "temperature": ([0], [-TINY]),
    }),
    (adapt.Config, {"arms": ("a", "b")}, {
        "arms": ([("a",)], [(), ("a", "a")]), "settings": ([{"a": {}}, {"b": {}}], [{"c": {}}]),
        "swap_tasks": ([0], [-1]), "rank_tasks": ([0], [-1]),
    }),
    (train.Config, _TRAIN, {
        "per_task": ([0], [-1]), "spare": ([0, 0.999], [-TINY, 1.0]), "start_static": ([True], [False]),
    }),
    (train.Config, {**_TRAIN, "outer_products": OuterProductsTraining(**_OUTER)}, {
        "kind": (["hypernet", "outer_products"], []),
    }),
    (train.Config, {**_TRAIN, "kind": "outer_products"}, {
        "outer_products": ([OuterProductsTraining(**_OUTER)], [None]),
    }),
    (train.Config, {**_TRAIN, "kind": "outer_products", "outer_products": OuterProductsTraining(**_OUTER)}, {
        "start_from": ([""], ["x"]),
    }),
    (TeacherConfig, {}, {
        "steps": ([1], [0]), "learning_rate": ([TINY], [0]), "rank": ([1], [0]), "alpha": ([TINY], [0]),
        "rows": ([1], [0]), "together": ([1], [0]), "modules": ([("o_proj",)], [(), ("o",)]),
    }),
    (OuterProductsTraining, _OUTER, {
        "groups": ([2], [0, 1]), "recall": ([0, 1], [-TINY, 1.0001]), "max_sources": ([1], [0]),
        "stranger": ([0], [-TINY]), "max_tokens": ([1], [0]), "shares": ([{}, {"a": 1}], [{"a": 0}, {"a": -1, "b": 1}]),
        "withheld": ([0, 0.999], [-TINY, 1]),
    }),
    (OuterProductsTraining, {**_OUTER, "stranger": 0}, {"groups": ([1], [0])}),
    (train.Config, {**_TRAIN, "use": "x"}, {"start_from": ([""], ["y"])}),
    (train.Config, {**_TRAIN, "start_from": "x"}, {"start_static": ([True, False], []), "hypernet": ([], [_FIRST])}),
    (train.Config, {**_TRAIN, "hypernet": HypernetConfig(**{**_HYPERNET, "pairs": PairMix(recall=1.0)})}, {
        "spare": ([0], [0.1]),
    }),
    (torch.Config, {}, {
        "max_rows": ([0], [-1]), "prefill_tokens": ([0], [-1]), "burst": ([0], [-1]), "max_adapters": ([1], [0]),
        "memory_fraction": ([TINY, 1], [0, 1.0001]),
    }),
    (
        ray.Config,
        {"actors": 1},
        {
            "actors": ([0, 1], [-1]),
            "restarts": ([0], [-1]),
            "slack": ([0], [-1]),
            "start_seconds": ([0.1], [0.0]),
            "engine": (["torch"], ["ray"]),
        },
    ),
    (openai.Config, {"url": "http://a"}, {
        "concurrency": ([1], [0]), "tries": ([1], [0]), "max_adapters": ([1], [0]), "timeout_seconds": ([TINY], [0]),
        "pause_seconds": ([0], [-TINY]), "url": (["https://a", "http://b"], ["ftp://a", "a"]),
    }),
    (vllm.Config, {}, {
        "max_lora_rank": ([1], [0]), "max_model_len": ([1], [0]), "tensor_parallel_size": ([1], [0]),
        "chunk": ([1], [0]), "max_loras": ([1], [0]),
    }),
    (vllm.Config, {"max_loras": 4}, {"max_cpu_loras": ([4], [3])}),
    (bm25.Config, {"chunk_lines": 5}, {"overlap_lines": ([0, 4], [-1, 5])}),
    (Schedule, {"steps": 1, "learning_rate": 1.0}, {
        "steps": ([1], [0]), "checkpoint_every": ([1], [0]), "learning_rate": ([TINY], [0]),
        "warmup": ([0, 0.999], [-TINY, 1]),
    }),
    (Weights, {}, {f.name: ([0, TINY], [-TINY]) for f in dataclasses.fields(Weights)}),
    (LoraConfig, _LORA, {
        "rank": ([1], [0]), "alpha": ([TINY], [0]), "rows": ([1], [0]), "modules": ([("q_proj",)], [(), ("w_proj",)]),
        "shares": ([{}, {"a": 0, "b": TINY}], [{"a": -TINY, "b": 1}, {"a": 0}]),
    }),
    (pbb_cruxeval.Config, {}, {"inputs": ([1], [0]), "held_out": ([0, 99], [-1, 100])}),
    (hypernet_mean.Config, {}, {"mean_rank": ([1], [0])}),
    (hypernet_centred.Config, {}, {"mean_rank": ([1], [0])}),
    (OuterProductsConfig, {}, {
        "passes": ([1], [0]), "tokens": ([1], [0]), "correction": ([0], [-1]), "rank": ([0], [-1]),
        "max_tokens": ([1], [0]),
    }),
    (PairMix, {"recall": 1.0}, {
        "recall": ([TINY], [0, -TINY]), "family": ([0], [-TINY]), "retrieved": ([0], [-TINY]),
        "max_sources": ([1], [0]), "shares": ([{"a": 1}], [{"a": 0}]),
    }),
    (EncoderConfig, {"schedule": _SCHEDULE, "groups": 2}, {"groups": ([2], [1])}),
    (HypernetConfig, _HYPERNET, {
        "rank": ([1], [0]), "alpha": ([TINY], [0]), "groups": ([2], [1]), "targets": ([1], [0]),
        "taps": ([(0,), (0, 3)], [(), (2, 1), (1, 1), (-1, 0)]), "weights": ([], [Weights(reconstruction=TINY)]),
    }),
    (HypernetConfig, {**_HYPERNET, "reconstruct_from": "x"}, {"weights": ([Weights(reconstruction=1.0)], [])}),
    (puzzles.Config, {}, {"per_problem": ([1], [0])}),
    (code_update_arena.Config, {"folds": 2}, {"folds": ([2], [1]), "fold": ([-1, 0, 1], [-2, 2])}),
    (families.Config, {"families": 3, "held_out": 0}, {
        "held_out": ([0, 2], [-1, 3]), "tasks": ([1, 10], [0, 11]),
    }),
    (families.Config, {"min_active": 2, "max_active": 4}, {"min_active": ([2, 4], [1, 5]), "max_active": ([2], [5])}),
    (api_updates.Config, {}, {
        "updates": ([1], [0]), "tasks": ([4, len(api_updates.SHAPES)], [3, len(api_updates.SHAPES) + 1]),
        "held_out": ([0, len(api_updates.FUNCTIONS) - 1], [-1, len(api_updates.FUNCTIONS)]),
    }),
    (pbb.Config, {"held_out": 1}, {
        "functions": ([2, len(pbb.SOURCES)], [1, len(pbb.SOURCES) + 1]), "inputs": ([1], [0]),
        "compositions": ([0], [-1]), "tier": (["full", "easy"], ["hard"]), "assertion": ([True], []),
    }),
    (pbb.Config, {"held_out": 1, "tier": "easy"}, {
        "functions": ([2, len(EASY_SOURCES)], [1, len(EASY_SOURCES) + 1]),
    }),
    (pbb.Config, {"reason": True}, {"assertion": ([False], [True])}),
    (pbb.Config, {"functions": 3}, {"held_out": ([0, 2], [-1, 3])}),
    (repositories.Config, {}, {"seconds": ([TINY], [0]), "max_chars": ([200], [199])}),
    (phases.Config, {}, {"number": ([1, 2], [0, 9])}),
    (phases.Config, {"number": 2}, {"override": (["", "why"], ["  "])}),
    (phases.Config, {"number": 1}, {"after": ([""], ["r"]), "decision": ([""], ["d"]), "override": ([""], ["why"])}),
    *[(e.Config, {"width": 8, "heads": 4}, {"heads": ([1, 8], [3])}) for e in (hierarchical, perceiver, recurrent)],
    (gate.Config, {}, {
        "n": ([1], [0]), "resamples": ([100], [99]), "simulations": ([100], [99]), "floor": ([0, 0.94], [-TINY, 0.95]),
        "ceiling": ([1, 0.021], [1.0001, 0.02]), "level": ([TINY, 0.999], [0, 1]), "alpha": ([TINY, 0.999], [0, 1]),
        "seed": ([0], [-1]), "threshold_points": ([TINY], [0]), "treatment": (["lora"], ["vanilla"]),
    }),
    (MergeSettings, {"method": "ties", "density": 0.5}, {
        "density": ([TINY, 1], [0, 1.0001, None]), "sign": (["total", "frequency"], ["both"]), "rank": ([0], [-1]),
        "device": (["cpu", "cuda"], ["tpu"]), "method": (["dare_ties"], ["svd", "cat", "linear", "mean"]),
    }),
    (RunSection, {"name": "a", "seed": 0}, {"name": (["b-1"], ["", "a b", "a/b", "a\\b", "a\n"])}),
    (Design, {"folds": 3}, {
        "folds": ([0, 2, MOST_FOLDS], [-1, 1, MOST_FOLDS + 1]), "fold": ([-1, 0, 2], [-2, 3]), "held_out": ([0], [-1]),
        "tasks": ([0], [-1]), "scored": ([0], [-1]), "seeds": ([(), (0, 1)], [(1, 1)]),
        "temperatures": ([(), (0, 0.8)], [(0.8, 0.8), (-TINY,)]), "grid": ([{"a.b": (1,)}], [{"a.b": ()}]),
    }),
    (Evolve, _EVOLVE, {
        "alpha": ([0, 1], [-TINY, 1.0001]), "budget": ([0], [-1]), "inside": ([0], [-1]), "outside": ([0], [-1]),
        "consolidate": ([0], [-1, 2]), "merges": ([0], [-1, 1]), "update": ([False], [True]),
        "parent_weight": ([TINY, 1], [0, -1, math.inf, math.nan]),
    }),
    (Evolve, {**_EVOLVE, **_MAKES}, {"consolidate": ([2], [1]), "update": ([True], [])}),
    (Evolve, {**_EVOLVE, **_MAKES}, {"tune": ([None], [tuned.Config()])}),
    (Evolve, {**_EVOLVE, "trajectories": ("t",), "tune": tuned.Config()}, {"update": ([True], [])}),
    (Evolve, {**_EVOLVE, "trajectories": ("t",)}, {"update": ([], [True])}),
    (Evolve, {**_EVOLVE, "merges": 1, "order": "alike"}, {"methods": ([(_MERGE,)], [()])}),
    (Evolve, {**_EVOLVE, "merges": 1, "methods": (_MERGE,)}, {"order": (["apart"], [None])}),
]  # fmt: skip


def _cases(taken: bool) -> Iterator[Any]:
    for made, needs, settings in BOUNDS:
        for name, values in settings.items():
            for value in values[not taken]:
                label = f"{made.__module__.removeprefix('rune.')}.{made.__name__} {name}={value!r}"[:100]
                yield pytest.param(made, {**needs, name: value}, id=label)


@pytest.mark.parametrize(("made", "settings"), _cases(taken=True))
def test_the_edge_is_inside(made: Any, settings: dict[str, Any]) -> None:
    built = made(**settings)
    assert all(getattr(built, name) == value for name, value in settings.items())


@pytest.mark.parametrize(("made", "settings"), _cases(taken=False))
def test_beyond_the_edge_is_refused(made: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        made(**settings)


PARTS = ("benchmarks", "conditions", "encoders", "engines", "retrievers", "sandbox", "stages")
OTHERS = (
    "adapters.merge_settings", "analysis.gate", "hypernet.settings", "reporting.tracking", "study.config",
    "study.phases",
)  # fmt: skip


def _settings() -> Iterator[type]:
    """Every dataclass that a section of a config file is read into."""
    names = [f"{folder}.{m.name}" for folder in PARTS for m in pkgutil.iter_modules([str(SOURCE / folder)])]
    for name in [*names, *OTHERS, "study.memory"]:
        if name.rpartition(".")[2].startswith("_"):
            continue
        module = importlib.import_module(f"rune.{name}")
        for made in vars(module).values():
            if not isinstance(made, type) or not dataclasses.is_dataclass(made) or made.__module__ != module.__name__:
                continue
            if "Config" in made.__name__ or "__post_init__" in vars(made) or made.__name__.endswith("Section"):
                yield made


def defaults() -> dict[str, dict[str, Any]]:
    """Class → setting → its default as JSON has it. What must be given, and parts of a section, are left out."""
    found: dict[str, dict[str, Any]] = {}
    for made in _settings():
        values = {}
        for each in dataclasses.fields(made):
            value = each.default_factory() if each.default_factory is not dataclasses.MISSING else each.default
            if value is not dataclasses.MISSING and not dataclasses.is_dataclass(value):
                values[each.name] = value
        if values:
            found[f"{made.__module__}.{made.__name__}"] = values
    plain: dict[str, dict[str, Any]] = json.loads(json.dumps(found, default=str, sort_keys=True))
    return plain


def test_no_default_changes_by_accident() -> None:
    """After a change that is meant: python -m tests.floor.test_bounds"""
    assert defaults() == json.loads(DEFAULTS.read_text(encoding="utf-8"))


def test_the_table_of_bounds_holds_every_class_that_has_any() -> None:
    checked = tuple({made for made, _, _ in BOUNDS})
    lacking = [made for made in _settings() if "__post_init__" in vars(made) and not issubclass(made, checked)]
    assert lacking == []


if __name__ == "__main__":
    DEFAULTS.write_text(json.dumps(defaults(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
