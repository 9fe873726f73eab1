"""The promise as a whole, for each design, and every kind of change between two promises in words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rune.errors import GateError
from rune.runs import preregistration as promise
from rune.types import Problem, Scorer, Split

FILE = Path(__file__).with_name("promises.json")
PROBLEMS = [
    Problem(
        task_id=f"T/{i}", benchmark="t", prompt="ask", entry_point="f", test="x", reference="y", category="c",
        split=Split.HELD_OUT if i < 2 else Split.TRAIN, domain="ab"[i % 2],
    )
    for i in range(5)
]  # fmt: skip
RAW: dict[str, Any] = {
    "run": {"seed": 7},
    "model": {"name": "m"},
    "adapt": {"arms": ["vanilla", "rag"], "controls": ["static"]},
    "sample": {"n": 5, "temperature": 0.8},
    "gate": {"threshold_points": 4.5, "seed": 3, "treatment": "rag", "baseline": "vanilla"},
    "benchmark": {"split_seed": 11},
}


def promises() -> dict[str, Any]:
    """Name → what `freeze` gives: version 1's configs, each design, other scorers, a rule of losses."""
    design = {"by": "task", "seeds": [1], "split_seed": 12}
    exact = [replace(p, scorer=Scorer.EXACT_VALUE) for p in PROBLEMS]
    new = {**RAW, "design": design, "phase": {"number": 2}}
    return {
        "version 1": promise.freeze(RAW, PROBLEMS),
        "nothing said": promise.freeze({}, PROBLEMS[2:]),
        "tasks": promise.freeze(new, PROBLEMS),
        "domains": promise.freeze({**new, "design": {**design, "by": "domain"}}, PROBLEMS),
        "trainings": promise.freeze({**new, "design": {**design, "seeds": [1, 2]}}, PROBLEMS),
        "domains and trainings": promise.freeze({**new, "design": {"by": "domain", "seeds": [1, 2]}}, PROBLEMS),
        "values": promise.freeze({**new, "gate": {**RAW["gate"], "most_loss": 2.5}}, exact),
    }


def test_a_promise_says_what_it_said() -> None:
    """Runs that were promised are held to the very digest: another is another promise."""
    found, then = promises(), json.loads(FILE.read_text(encoding="utf-8"))
    assert found.keys() == then.keys()
    for name, frozen in found.items():
        assert json.loads(json.dumps(frozen)) == then[name], name
        assert frozen["digest"] == promise.digest(frozen)


def test_an_analysis_that_is_not_computed_any_more_is_refused_with_those_that_are() -> None:
    for raw, known, unknown in (
        (RAW, 1, 2), ({"design": {"by": "domain"}}, 2, 1), ({"design": {"seeds": [1, 2]}}, 2, 3),
        ({"design": {"by": "domain", "seeds": [1, 2]}}, 2, 1),
    ):  # fmt: skip
        assert promise.freeze(raw, PROBLEMS, version=known)["analysis"]["version"] == known
        with pytest.raises(GateError, match=f"analysis version {unknown} was promised, and {known} is what"):
            promise.freeze(raw, PROBLEMS, version=unknown)
    for odd in (None, [], {}, {"analysis": None}, {"analysis": {}}, {"analysis": {"version": "1"}}):
        assert promise.version_in(odd) is None
    assert promise.version_in({"analysis": {"version": 2}}) == 2


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 2.5}, ["a: 1 → 2.5"]),
        ({"a": 1}, {}, ["a: 1 → nothing"]),
        ({}, {"a": None, "b": 0}, ["b: nothing → 0"]),
        ({"r": {"x": {"y": 1}}}, {"r": {"x": {"y": 2}}}, ["r.x.y: 1 → 2"]),
        ({"r": {"digest": 1}}, {"r": {"digest": 2}}, ["r.digest: 1 → 2"]),
        ({"digest": 1, "gate_digest": 1}, {"digest": 2, "gate_digest": 2}, []),
        ({"config_digest": 1}, {"config_digest": 2}, ["config: a setting outside the analysis changed"]),
        ({"config_digest": 1, "a": 1}, {"config_digest": 2, "a": 2}, ["a: 1 → 2"]),
        ({"r": {"config_digest": 1}}, {"r": {"config_digest": 2}}, ["r.config_digest: 1 → 2"]),
        ({"t": ["a", "b"]}, {"t": ["b", "a"]}, ["t: order changed"]),
        ({"t": list("abcde")}, {"t": ["a", *"fghij"]}, ["t: − b, − c, − d, + f, + g, + h"]),
        ({"t": ["a"]}, {"t": ["a", "b"]}, ["t: + b"]),
        ({"t": ["a"]}, {"t": "a"}, ["t: ['a'] → a"]),
        ({"t": {"a": 1}}, {"t": 1}, ["t: {'a': 1} → 1"]),
        ({"t": "x" * 24}, {"t": "y" * 25}, [f"t: {'x' * 24} → {'y' * 12}…"]),
        ({"b": 1, "a": 1}, {"c": 1, "a": 2}, ["b: 1 → nothing", "a: 1 → 2", "c: nothing → 1"]),
    ],
)
def test_a_change_is_named_by_its_field_and_both_values(before: Any, now: Any, said: list[str]) -> None:
    assert promise.differences(before, now) == said


if __name__ == "__main__":  # python -m tests.gate.test_promise_words: anew, for promises that are meant to change
    FILE.write_text(json.dumps(promises(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
