"""A leakage check on every kind of leak, and what is held out by which seed: the same as when they were frozen.

The tests beside this one say why; this one says that nothing of it changes unseen.
"""

from __future__ import annotations

import dataclasses
import json

from tests.gate import leaks
from tests.stats.frozen import differences


def test_findings_and_splits_are_the_frozen_ones() -> None:
    then = json.loads(leaks.FILE.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(leaks.found(), default=dataclasses.asdict))
    assert differences(then, now) == []


def test_each_leak_is_found_for_what_it_is() -> None:
    rows = {row["task_id"]: row for row in json.loads(leaks.FILE.read_text(encoding="utf-8"))["leakage"]["rows"]}
    whys = {
        "T/0": "its own tests or solution were shown to an arm",
        "T/1": "the task itself is in the corpus",
        "T/2": "its treatment was made from a held-out task's trajectory",
        "T/4": "a training program has the reference's syntax tree",
        "T/6": "its domain is in the corpus",
        "T/7": "",
        "T/11": "",
    }
    for name, why in whys.items():
        assert why in rows[name]["why"] and rows[name]["suspicious"] is bool(rows[name]["why"]), name
        assert bool(why) is rows[name]["suspicious"], name
    assert "stands in a training prompt" in rows["T/3"]["why"] and "not in the corpus" in rows["T/3"]["why"]
    assert "stands in a training program" in rows["T/5"]["why"] and rows["T/9"]["same_name"]
    assert "own trajectory" in rows["T/9"]["why"] or "held-out" in rows["T/9"]["why"]
