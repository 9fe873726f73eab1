"""A child that speaks arbitrary frames: no wrong program passes, and the fuzzer would see one that did."""

from __future__ import annotations

import sys

import pytest
from tests.hostile import frame_fuzz

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox's backends are Linux's")


def test_no_frames_make_a_wrong_program_pass_or_the_judge_die_or_hang() -> None:
    found = frame_fuzz.run(7, 1500)
    assert found["finds"] == []
    assert found["judged"] == 1500 and found["wrong_programs_passed"] == 0
    assert found["right_programs_passed"] == 5 * len(frame_fuzz.TASKS)  # each 500, and after each lane
    # Frames were changed in every way, and the judge's answers are of every kind that a program can bring about.
    assert set(found["changes"]) == {*frame_fuzz.OPERATIONS, "octets"}
    assert {"Protocol", "WrongAnswer", "Raised", "BadValue", "Crash", "MemoryLimit"} <= set(found["verdicts"])


@pytest.mark.parametrize(("plant", "task"), [("nameless", "secret first"), ("ending", "loops over calls")])
def test_a_judge_with_an_old_flaw_is_found(plant: str, task: str) -> None:
    """An exception without a name meant passed; an end of iteration raised in a program ended a test's loop."""
    found = frame_fuzz.run(7, 4000, plant=plant, only=task)
    assert found["wrong_programs_passed"] > 0
    assert {find["what"] for find in found["finds"]} == {"a wrong program passed"}
    # One of them again, alone, and not with the judge as it is.
    number = found["finds"][0]["sequence"]
    assert frame_fuzz.run(7, 1, plant=plant, only=task, first=number)["wrong_programs_passed"] == 1
    assert frame_fuzz.run(7, 1, only=task, first=number)["finds"] == []
