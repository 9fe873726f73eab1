"""The statistics, the design's power and a whole decision give the numbers that they gave when they were frozen.

The tests beside this one say why the numbers are right; this one says that none of them changes unseen.
"""

from __future__ import annotations

import json

import pytest

from tests.stats import frozen


@pytest.mark.parametrize("part", ["numbers", "designs", "decisions"])
def test_every_number_is_the_frozen_one(part: str) -> None:
    then = json.loads(frozen.FILE.read_text(encoding="utf-8"))[part]
    now = json.loads(json.dumps(frozen.PARTS[part](), default=frozen.asdict))
    assert frozen.differences(then, now) == []


def test_a_changed_number_is_seen() -> None:
    then = {"a": [1.0, {"b": "x"}], "n": float("nan")}
    assert frozen.differences(then, {"a": [1.0 + 1e-12, {"b": "x"}], "n": float("nan")}) == []
    for now in ({"a": [1.001, {"b": "x"}]}, {"a": [1.0, {"b": "y"}]}, {"a": [1.0]}, {}):
        assert frozen.differences({"a": then["a"]}, now)
