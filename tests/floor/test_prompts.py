"""What is said to the model, and which program is taken from what it answers."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rune import editing, prompts
from rune.types import Answer, Attempt, Outcome, Trajectory

PROMPT = 'def add(a, b):\n    """Add."""\n'
CODE = "def add(a, b):\n    return a + b\n"


def _taken(completion: str, entry_point: str = "add") -> str:
    return prompts.extract(completion, prompt=PROMPT, entry_point=entry_point)


def _runs(code: str) -> int:
    scope: dict[str, object] = {}
    exec(code, scope)
    return scope["add"](1, 2)  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize(
    "completion",
    [
        CODE,
        CODE + "```\nThis adds two numbers.",
        CODE + "\nprint(add(1, 2))\nassert add(1, 2) == 4\n```",
        CODE + "\nif __name__ == '__main__':\n    add()\n",
        "    return a + b\n",
        "Sure, here it is:\n```python\n" + CODE + "```\nDone.",
        "x = (\n```\nLet me try again:\n```py\n" + CODE + "```",
        CODE + "\ndef broken(:\n    pass",
        CODE.replace("\n", "\r\n"),
        "import math\n\n\ndef helper(x):\n    return math.floor(x)\n\n\ndef add(a, b):\n    return helper(a + b)\n",
        "add = lambda a, b: a + b\n",
        "BASE = 0\n\n\ndef add(a, b):\n    return BASE + a + b\n\n\ntotal = add(1, 'x')\n",
    ],
)
def test_the_program_is_found_wherever_the_model_put_it(completion: str) -> None:
    assert _runs(_taken(completion)) == 3


def test_demo_calls_and_tests_after_the_program_are_left_out() -> None:
    taken = _taken(CODE + "\nprint(add(1, 2))\nassert add(1, 2) == 4\nadd('x')\n")
    assert taken == CODE


def test_decorators_and_the_globals_a_function_reads_stay() -> None:
    source = (
        "import functools\nLIMIT = 3\n\n\ndef twice(f):\n    return f\n\n\n"
        "@twice\n@functools.lru_cache\ndef add(a, b):\n    return a + b + LIMIT * 0\n"
    )
    taken = _taken(source)
    assert "@twice\n@functools.lru_cache\ndef add" in taken and "LIMIT = 3" in taken and "def twice" in taken
    assert _runs(taken) == 3


def test_what_defines_nothing_is_scored_as_it_is_and_not_repaired() -> None:
    assert _taken("I cannot do that.") == "I cannot do that."
    assert _taken("") == ""


@given(st.text(max_size=200))
def test_extraction_never_raises_and_never_invents_code(text: str) -> None:
    taken = _taken(text)
    if taken.strip():
        assert all(line.strip() in PROMPT + text.replace("\r\n", "\n") for line in taken.splitlines())


@given(st.integers(min_value=0, max_value=len(CODE)))
def test_a_completion_cut_anywhere_gives_valid_python_or_its_own_text(cut: int) -> None:
    text = CODE[:cut]
    taken = _taken(text)
    if taken != text:
        ast.parse(taken)


# --------------------------------------------------------------------------- truncation


@given(st.text(max_size=400), st.integers(min_value=60, max_value=200))
def test_truncation_keeps_both_ends_says_what_it_left_out_and_holds_the_limit(text: str, limit: int) -> None:
    short = prompts.truncate(text, limit)
    assert len(short) <= limit
    if len(text) <= limit:
        assert short == text
    else:
        head, _, tail = short.partition("\n… ")
        assert text.startswith(head) and text.endswith(tail.partition("…\n")[2])
        assert "characters left out" in short


# --------------------------------------------------------------------------- what the model reads


def _trajectory(attempts: int) -> Trajectory:
    failed = [
        Attempt(code=f"code {i}", outcome=Outcome.FAILED, error_kind="WrongAnswer", error=f"error {i}")
        for i in range(attempts)
    ]
    passed = Attempt(code="solution code", outcome=Outcome.PASSED)
    return Trajectory(
        trajectory_id="i",
        task_id="T/1",
        benchmark="b",
        prompt="the prompt",
        attempts=(*failed, passed),
        solution="solution code",
    )


def test_a_rendered_trajectory_shows_task_failures_errors_and_solution_in_order() -> None:
    text = prompts.render_trajectory(_trajectory(2))
    places = [text.index(part) for part in ("the prompt", "code 0", "error 0", "code 1", "error 1", "solution code")]
    assert places == sorted(places)
    assert text.count("solution code") == 1


def test_only_the_last_failures_are_rendered_and_an_exhausted_one_has_no_solution() -> None:
    text = prompts.render_trajectory(_trajectory(4), max_attempts=2)
    assert "code 1" not in text and "code 2" in text and "code 3" in text
    exhausted = Trajectory(
        trajectory_id="i", task_id="T/1", benchmark="b", prompt="p", attempts=_trajectory(1).attempts[:1]
    )
    assert "Passing" not in prompts.render_trajectory(exhausted)


def test_context_stands_before_the_task_and_without_it_nothing_does() -> None:
    bare, full = prompts.task("the task"), prompts.task("the task", "the context")
    assert full.prefill == bare.prefill
    *_, (role, text) = full.messages
    assert role == "user" and text == "the context\n\n" + bare.messages[-1][1]


def test_a_retry_is_the_whole_history_in_order() -> None:
    attempts = _trajectory(3).attempts[:3]
    chat = prompts.retry("the task", attempts, limit=2)
    roles = [role for role, _ in chat.messages]
    assert roles[-5:] == ["user", "assistant", "user", "assistant", "user"]
    text = "".join(content for _, content in chat.messages)
    assert "code 0" not in text and text.index("code 1") < text.index("error 1") < text.index("code 2")


def test_what_a_task_itself_holds_ends_no_answer() -> None:
    """MBPP's prompt is a docstring with an assert; an answer that repeats it was cut inside the docstring."""
    mbpp = '"""\nWrite a function to add.\nassert add(1, 2) == 3\n"""\n'
    assert "\nassert " in prompts.stop("def add(a, b):\n") and "\nassert " not in prompts.stop(mbpp)
    assert set(prompts.STOP) - set(prompts.stop(mbpp)) == {"\nassert "}


@pytest.mark.parametrize(
    ("completion", "taken"),
    [
        ("8", "8"),
        ("8\n```\nbecause", "8"),
        ("assert zib(2) == 8\n```", "8"),
        ("zib(2) == {'a': [1, 2]}\n```", "{'a': [1, 2]}"),
        ("answer = 'a b'\n```", "'a b'"),
        ("Answer: 8.\n```", "8"),
        ("The answer is `[1, 2]`.\n```", "[1, 2]"),
        ("# first 1\n# then 8\nzib(2) == -8\n```", "-8"),
        ("total = 3\nprint(total)\n8\n```", "8"),
    ],
)
def test_a_literal_that_the_last_line_is_or_states_is_taken(completion: str, taken: str) -> None:
    assert prompts.extract(completion, prompt="", entry_point="", answer=Answer.VALUE) == taken


@pytest.mark.parametrize(
    "text",
    [
        "zib(2)",
        "zib(2) == g(8)",
        "assert zib(2) >= 8",
        "answer = zib(2); 8",
        "1 == x == 8",
        "# it is 8",
        "total = 0\nfor i in xs:\n    8",  # a program's last line
        "xs = [1]\ntotal = 8",
        "def zib(n):\n    return 8",
        "What is zib(2)?",
        ".",
        "Answer: # 8",
        "abc",
        "",
    ],
)
def test_what_states_no_literal_is_left_as_it_was_written(text: str) -> None:
    assert prompts.extract(f"{text}\n```\n", prompt="", entry_point="", answer=Answer.VALUE) == text


@given(st.text(max_size=200))
def test_an_answer_that_is_a_value_never_raises_and_never_invents(text: str) -> None:
    taken = prompts.extract(text, prompt="", entry_point="", answer=Answer.VALUE)
    assert taken in text.replace("\r\n", "\n").replace("\r", "\n")


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.TIMED_OUT])
def test_a_retry_says_whether_time_ran_out_or_the_answer_was_wrong(outcome: Outcome) -> None:
    attempt = Attempt(code="x", outcome=outcome, error_kind="WrongAnswer", error="what was seen")
    late = outcome is Outcome.TIMED_OUT
    told = {answer: prompts.feedback(attempt, answer) for answer in Answer}
    for answer, wrong in {Answer.PROGRAM: "failed its tests", Answer.EDITS: "is not mended"}.items():
        assert ("did not finish in time" in told[answer], wrong in told[answer]) == (late, not late)
    assert all("what was seen" in text for text in told.values())


def test_the_example_of_an_edit_names_a_file_that_is_shown() -> None:
    """Small models write the example's path back."""
    for shown, path in {
        "It fails.\n\n=== shop/prices.py\nx = 1\n\n=== shop/names.py\ny = 1": "shop/prices.py",
        "It fails.\n\n=== long file.py (parts of it)\n… 3 lines …": "long file.py",
        "It fails at\n======= 1\nand nothing is shown": "path/to/file.py",
    }.items():
        ((_, text),) = prompts.task(shown, answer=Answer.EDITS).messages
        assert f"\n{path}\n{editing.SEARCH}\n" in text and text.count(editing.SEARCH) == 1
        assert ("path/to" in text) is (path == "path/to/file.py")
