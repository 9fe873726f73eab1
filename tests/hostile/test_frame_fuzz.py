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


@pytest.mark.parametrize(
    ("plant", "sequences", "task", "how"),
    [
        ("nameless", 1500, "secret first", "a wrong program passed"),
        pytest.param("ending", 4000, "loops over calls", "a wrong program passed", marks=pytest.mark.check),
        pytest.param("unasked", 4000, "random", "a right program passed with other answers", marks=pytest.mark.check),
    ],
)
def test_a_judge_with_a_flaw_is_found(plant: str, sequences: int, task: str, how: str) -> None:
    """An exception without a name meant passed; an end of iteration raised in a program ended a test's loop; answers
    that nobody asked for are passed over."""
    found = frame_fuzz.run(7, sequences, plant=plant, only=task)
    passed = [find["sequence"] for find in found["finds"] if find["what"] == how]
    assert passed and found["wrong_programs_passed"] >= len(passed)
    # One of them again, and not with the judge as it is. What is sent ahead hangs on the sequences before, and those on
    # the moment at which a speaker went: on a busy machine not every one comes out the same a second time.
    repeated = next(
        number
        for number in sorted(passed)
        if [find["what"] for find in frame_fuzz.again(7, number, plant=plant, only=task)] == [how]
    )
    assert frame_fuzz.again(7, repeated, only=task) == []
