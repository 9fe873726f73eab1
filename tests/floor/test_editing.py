"""Search/replace blocks: what they change is what they say, or nothing is changed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rune import editing, prompts
from rune.editing import BadEdit, Edit
from rune.types import Answer, Attempt, Outcome

FILE = "a = 1\nb = 2\na = 1\nc = 3\n"


def block(path: str, old: str, new: str) -> str:
    return f"{path}\n{editing.SEARCH}\n{old}{editing.MIDDLE}\n{new}{editing.REPLACE}"


def test_a_block_replaces_lines_that_stand_there_once_and_makes_files() -> None:
    two = (block("`x.py`", "b = 2\n", "b = 5\n"), block("./n/y.py", "", "z = 0\n"))
    edits = editing.parse("First this:\n" + "\nthen\n".join(two))
    assert edits == [Edit("x.py", "b = 2\n", "b = 5\n"), Edit("n/y.py", "", "z = 0\n")]
    assert editing.apply(edits, {"x.py": FILE}) == {"x.py": FILE.replace("b = 2", "b = 5"), "n/y.py": "z = 0\n"}
    assert editing.apply([Edit("x.py", "c = 3\n", "")], {"x.py": FILE.rstrip()}) == {"x.py": "a = 1\nb = 2\na = 1\n"}


def test_blocks_follow_each_other_on_what_the_ones_before_left() -> None:
    edits = [Edit("x", "b = 2\n", "b = 3\n"), Edit("x", "b = 3\n", "b = 4\n")]
    assert editing.apply(edits, {"x": FILE})["x"] == FILE.replace("b = 2", "b = 4")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (Edit("x", "a = 1\n", "d\n"), "stands 2 times in the file"),
        (Edit("x", "a = 9\n", "d\n"), "stands nowhere in the file"),
        (Edit("x", " = 2\n", "d\n"), "stands nowhere in the file"),
        (Edit("y", "a = 1\n", "d\n"), "there is no such file"),
        (Edit("x", "", "d\n"), "the file exists"),
        (Edit("x", "b = 2\n", "b = 2\n"), "replaces lines by themselves"),
        (Edit("/etc/passwd", "", "d\n"), "outside of the repository"),
        (Edit("a/../../x", "", "d\n"), "outside of the repository"),
        (Edit(".git/hooks/x", "", "d\n"), "outside of the repository"),
    ],
)
def test_a_block_that_does_not_fit_changes_nothing_and_says_why(edit: Edit, words: str) -> None:
    with pytest.raises(BadEdit, match=words):
        editing.apply([edit], {"x": FILE})


def test_no_block_and_half_a_block_are_refused() -> None:
    with pytest.raises(BadEdit, match="there is no complete block"):
        editing.parse("nothing")
    with pytest.raises(BadEdit, match="2 blocks begin and 1 are complete"):
        editing.parse(block("x", "a\n", "b\n") + f"\ny\n{editing.SEARCH}\nc\n")


LINES = st.lists(st.sampled_from(["a\n", "b\n", "c\n", "\n", "    d\n"]), min_size=1, max_size=30).map("".join)


@given(LINES, LINES)
def test_blocks_between_two_texts_make_the_second_of_the_first(old: str, new: str) -> None:
    text = editing.between({"f": old}, {"f": new})
    assert (editing.apply(editing.parse(text), {"f": old})["f"] if text else old) == new


def test_the_same_change_as_a_diff_is_one_that_git_applies(tmp_path: Path) -> None:
    before, after = {"x.py": FILE}, {"x.py": FILE.replace("b = 2", "b = 5"), "n.py": "z\n"}
    (tmp_path / "x.py").write_text(FILE)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=editing.patch(before, after), text=True, check=True)
    assert {p: (tmp_path / p).read_text() for p in after} == after


def test_a_model_is_asked_for_edits_and_they_are_taken_from_what_it_says() -> None:
    asked = prompts.task("Issue\n\n=== x.py\na = 1", answer=Answer.EDITS)
    assert editing.SEARCH in asked.messages[0][1] and asked.prefill == prompts.EDITS_PREFILL
    said = block("x.py", "a = 1\n", "a = 2\n") + "\n```\nThat should do."
    taken = prompts.extract(said, prompt="", entry_point="", answer=Answer.EDITS)
    assert taken == block("x.py", "a = 1\n", "a = 2\n")
    assert prompts.extract("no idea\n```\nsorry", prompt="", entry_point="", answer=Answer.EDITS) == "no idea"
    failed = Attempt(code=taken, outcome=Outcome.FAILED, error_kind="WrongAnswer", error="still failing: t")
    again = prompts.retry("Issue", [failed], answer=Answer.EDITS)
    assert "still failing: t" in again.messages[-1][1] and "it is not mended" in again.messages[-1][1]
    assert again.messages[1][1] == f"{prompts.EDITS_PREFILL}{taken}{prompts.FENCE}"
    assert prompts.FENCE in prompts.stop("Issue", Answer.EDITS) and "\nprint(" not in prompts.stop("", Answer.EDITS)
