"""Every word that Rune says to a model, and how code is taken from what it answers. Pure text in, text out.

The instruction, the fenced prefill and the stop strings follow EvalPlus (Liu et al. 2023), so that the bare
model is measured as its authors measured it. There is no system message of ours: the chat template, which
belongs to the model (`models/chat.py` renders it), puts in the one the model was trained with.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rune import editing, slicing
from rune.types import Answer, Attempt, Trajectory

INSTRUCTION = (
    "Please provide a self-contained Python script that solves the following problem in a markdown code block:"
)
PREFILL = (
    "Below is a Python script with a self-contained function that solves the problem "
    "and passes corresponding tests:\n```python\n"
)
# A literal is shown and a call named: without that, most answers of the 1.5B repeated the call (studies/pbb).
VALUE_INSTRUCTION = (
    "Please answer the following question with the value itself, written as one Python literal in a markdown code "
    "block. A literal is for example -3, 'ab', [1, 2] or {'a': 1}; neither a call nor an assertion:"
)
ASSERTION_INSTRUCTION = (
    "Please complete the assertion with the value itself, written as one Python literal, in a markdown code block:"
)
EDITS_INSTRUCTION = (
    "Please mend the repository below. Answer in a markdown code block with one or more edits, each in this form, "
    "where the search part repeats whole lines of the file that stand there once:\n"
    f"{{path}}\n{editing.SEARCH}\nlines of the file\n{editing.MIDDLE}\nnew lines\n{editing.REPLACE}\n"
)
EDITS_PREFILL = "Below are the edits that mend it and pass its tests:\n```\n"
VALUE_PREFILL = "The value is written as a Python literal:\n```python\n"
REFLECTION = "The mistake is"
FENCE = "\n```"
ENDS = (FENCE, "<|endoftext|>", "<|im_end|>")  # of any answer
# What comes after the function: EvalPlus' list, and the demo tests that the instruct models append.
STOP = (
    *ENDS,
    "\nif __name__",
    "\ndef main(",
    "\nprint(",
    "\nassert ",
    "\n# Test cases",
    "\n# Example usage",
)


class Chat(NamedTuple):
    """A conversation to render: messages in order, and the start of the answer."""

    messages: tuple[tuple[str, str], ...]  # (role, text)
    prefill: str


def task(prompt: str, context: str = "", answer: Answer = Answer.PROGRAM) -> Chat:
    """The question every arm asks; `context` is what RAG (or the teacher) puts before it."""
    lead = f"{context.rstrip()}\n\n" if context else ""
    if answer is Answer.EDITS:  # its files are shown without fences, so that a fence can end the answer
        # A path that is there: small models wrote "path/to/file.py" back (results/repository-0.5b).
        instruction = EDITS_INSTRUCTION.format(path=editing.first_shown(prompt) or "path/to/file.py")
        return Chat(messages=(("user", f"{lead}{instruction}\n{prompt.strip()}\n"),), prefill=EDITS_PREFILL)
    instruction, prefill = INSTRUCTION, PREFILL
    if answer is Answer.VALUE:
        begun = open_assertion(prompt)
        instruction = ASSERTION_INSTRUCTION if begun else VALUE_INSTRUCTION
        prefill = f"```python\n{begun}" if begun else VALUE_PREFILL
    return Chat(messages=(("user", f"{lead}{instruction}\n```\n{prompt.strip()}\n```\n"),), prefill=prefill)


def open_assertion(prompt: str) -> str:
    """The last line of a question if it is an assertion whose value is left open (`assert f(2) ==`), else ""."""
    last = prompt.rstrip().rpartition("\n")[2]
    return last if last.startswith("assert ") and last.endswith("==") else ""


def retry(prompt: str, attempts: Sequence[Attempt], *, limit: int = 2, answer: Answer = Answer.PROGRAM) -> Chat:
    """The same question after failures: a linear history of the last `limit` attempts with their errors."""
    first = task(prompt, answer=answer)
    messages = list(first.messages)
    for attempt in attempts[-limit:]:
        messages.append(("assistant", f"{first.prefill}{attempt.code.strip()}{FENCE}"))
        thought = f"{attempt.reflection.strip()}\n" if attempt.reflection else ""
        messages.append(("user", f"{thought}{feedback(attempt, answer)}"))
    return Chat(messages=tuple(messages), prefill=first.prefill)


def feedback(attempt: Attempt, answer: Answer = Answer.PROGRAM) -> str:
    """What the loop tells the model about a failed attempt."""
    if answer is Answer.VALUE:
        return (
            f"This is not right:\n```\n{attempt.error.strip() or attempt.error_kind}\n```\n"
            "Find the mistake and provide the right Python literal in a markdown code block."
        )
    if answer is Answer.EDITS:
        what = "the tests did not finish in time" if attempt.outcome == "timed_out" else "it is not mended"
        return (
            f"With these edits {what}:\n```\n{attempt.error.strip() or attempt.error_kind}\n```\n"
            "Find the mistake and provide all edits again, to the files as they were shown, in a markdown code block."
        )
    what = "did not finish in time" if attempt.outcome == "timed_out" else "failed its tests"
    return (
        f"The script {what}:\n```\n{attempt.error.strip() or attempt.error_kind}\n```\n"
        "Find the mistake and provide the corrected self-contained Python script in a markdown code block."
    )


def reflect(prompt: str, attempt: Attempt) -> Chat:
    """Ask, in one sentence, what went wrong (the loop's reflect step)."""
    question = (
        f"This script was meant to solve a problem:\n```\n{prompt.strip()}\n```\n"
        f"It reads:\n```python\n{attempt.code.strip()}\n```\nRunning it gave:\n```\n{attempt.error.strip()}\n```\n"
        "In one sentence: what is the mistake and how is it corrected?"
    )
    return Chat(messages=(("user", question),), prefill=REFLECTION)


def render_trajectory(trajectory: Trajectory, *, max_attempts: int = 2) -> str:
    """A trajectory as text for a context window: task, last failures with errors, passing code."""
    parts = [f"Task:\n```\n{trajectory.prompt.strip()}\n```"]
    failed = [a for a in trajectory.attempts if a.outcome != "passed"]
    for attempt in failed[-max_attempts:]:
        parts.append(f"Attempt:\n```python\n{attempt.code.strip()}\n```")
        parts.append(f"Error ({attempt.error_kind}):\n```\n{attempt.error.strip()}\n```")
    if trajectory.solution:
        parts.append(f"Passing solution:\n```python\n{trajectory.solution.strip()}\n```")
    return "\n".join(parts)


def truncate(text: str, limit: int) -> str:
    """At most `limit` characters: the head and the tail, with the number of characters left out between."""
    if len(text) <= limit:
        return text
    marker = f"\n… {len(text) - limit} characters left out …\n"
    keep = max(limit - len(marker), 2)
    head = keep // 3
    return text[:head] + marker + text[-(keep - head) :]


# --------------------------------------------------------------------------- code extraction

_FENCE_LINE = re.compile(r"^(?P<indent>[ \t]*)(?P<mark>`{3,}|~{3,})(?P<info>[^`\n]*)$", re.MULTILINE)
_THOUGHT = re.compile(r"^[ \t]*<(think|thinking|thought|reasoning)>.*?(?:</\1>|\Z)", re.DOTALL | re.MULTILINE)
_THOUGHT_ENDS = re.compile(r"(?<![\"'`])</(?:think|thinking|thought|reasoning)>(?![\"'`])")
_LABEL = re.compile(r"^(?:the )?(?:answer|value|result|output)(?: is|:| is:)\s+", re.IGNORECASE)
_CLOSINGS = 8  # a docstring may hold fences of its own: so many are tried as the end of a block


def stop(prompt: str, answer: Answer = Answer.PROGRAM) -> tuple[str, ...]:
    """Where an answer to this task ends. What the task's own text holds is no end: an answer may repeat it.

    MBPP's prompts are a docstring with an assert in it; cut there, a fifth of the 0.5B's failures were half docstrings.
    """
    if answer is Answer.VALUE and open_assertion(prompt):
        return (*ENDS, "\n")  # behind its value further assertions would follow
    ends = STOP if answer is Answer.PROGRAM else ENDS
    return tuple(text for text in ends if text not in prompt)


def value(completion: str) -> str:
    """The literal in a completion that followed `VALUE_PREFILL`, as it was written.

    It stands before the closing fence; the first fenced block that is a literal is taken where that is none, else what
    the last line states. What stands there is taken, not corrected: whether it is a literal, and the right one, is the
    scorer's to say.
    """
    text = _without_thoughts(completion.replace("\r\n", "\n").replace("\r", "\n"))
    blocks = [block.strip() for block in _blocks(text)]
    before = text.partition(FENCE)[0].strip()
    return next((block for block in blocks if _literal(block)), "") or _stated(before) or before


def _stated(text: str) -> str:
    """The literal that the last line is, or states: `f(2) == 8`, `assert f(2) == 8`, `answer = 8`, `Answer: 8.`

    Whatever stands before a line that is a literal; before one that states it, comments only: the last line of a
    program is no answer. "" if there is none.
    """
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines or lines[-1] != lines[-1].lstrip() or lines[-1].startswith("#"):
        return ""
    last = _LABEL.sub("", lines[-1].rstrip()).rstrip(".").strip("`")
    if _literal(last):
        return last if last == lines[-1].rstrip() or _comments(lines[:-1]) else ""
    if not _comments(lines[:-1]) or not _parses(last):
        return ""
    body = ast.parse(last).body
    if len(body) != 1:  # none is left of a full stop, or of a comment behind a label
        return ""
    (statement,) = body
    found: ast.expr | None = None
    said = statement.test if isinstance(statement, ast.Assert) else getattr(statement, "value", None)
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        found = statement.value
    elif isinstance(said, ast.Compare) and [type(op) for op in said.ops] == [ast.Eq]:
        found = said.comparators[0]
    stated = (found is not None and ast.get_source_segment(last, found)) or ""
    return stated if _literal(stated) else ""


def _comments(lines: Sequence[str]) -> bool:
    return all(line.startswith("#") for line in lines)


def _literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return False
    return True


def extract(completion: str, *, prompt: str, entry_point: str, answer: Answer = Answer.PROGRAM) -> str:
    """The program in a completion that followed `PREFILL`, or the literal or the edits that were asked for.

    The answer continues inside an open fence, so the code is what stands before the closing one, or a fenced block
    after it: the last one that defines `entry_point` and parses as a whole, else the last that does once its
    trailing lines are dropped. What is thought aloud (`<think>`) is no answer. If no block defines it and the text is
    a function body, it is read as the continuation of `prompt` (HumanEval's completion format). Of the program, what
    the answer needs is kept (`slicing`).
    """
    if answer is Answer.VALUE:
        return value(completion)
    if answer is Answer.EDITS:
        text = _without_thoughts(completion.replace("\r\n", "\n").replace("\r", "\n"))
        return editing.taken(text) or text.partition(FENCE)[0].strip()
    name = re.split(r"\W", entry_point, maxsplit=1)[0]
    text = _without_thoughts(completion.replace("\r\n", "\n").replace("\r", "\n"))
    if _binds(_longest_parsable(text), name) and _parses(text):
        return slicing.needed(_longest_parsable(text), name)
    blocks = list(_blocks(text))
    whole = [block for block in blocks if _parses(block)]
    for candidates in (whole, blocks):
        programs = [code for block in candidates if _binds(code := _longest_parsable(block), name)]
        if programs:
            defining = [code for code in programs if _defines(code, name)]
            return slicing.needed((defining or programs)[-1], name)
    for block in blocks:
        joined = _longest_parsable(prompt + block)
        if _binds(joined, name) and len(joined) > len(prompt.rstrip()):
            return slicing.needed(joined, name)
    return text.partition(FENCE)[0]


def _without_thoughts(text: str) -> str:
    """What follows the last thought; the opening mark may have stood in the prompt."""
    ends = list(_THOUGHT_ENDS.finditer(text))
    if ends and not _parses(text):
        text = text[ends[-1].end() :]
    return text if _parses(text) else _THOUGHT.sub("", text)


def _blocks(text: str) -> Iterator[str]:
    """What may be code, in order: the text before the first fence, and what each fence line may open.

    A fence is closed by one of its kind and at least its length; a block loses the indentation of its fence.
    """
    lines = text.split("\n")
    fences = [(i, m) for i, line in enumerate(lines) if (m := _FENCE_LINE.match(line))]
    ends = [i for i, m in fences if not m["info"].strip()][:_CLOSINGS] or [len(lines)]
    heads = ["\n".join(lines[:i]) for i in ends]
    yield next((head for head in heads if _parses(head)), "\n".join(lines[: fences[0][0]] if fences else lines))
    end = 0
    for place, (start, opening) in enumerate(fences):
        if start < end:
            continue
        mark, indent = opening["mark"], opening["indent"]
        closings = [
            i
            for i, m in fences[place + 1 :]
            if m["mark"].startswith(mark) and not m["info"].strip() and len(m["indent"]) <= len(indent) + 3
        ]
        whole = ((i, code) for i in closings[:_CLOSINGS] if _parses(code := _inside(lines[start + 1 : i], indent)))
        first = closings[0] if closings else len(lines)
        after, code = next(whole, (first, _inside(lines[start + 1 : first], indent)))
        yield code
        # What a fence with a language opens is read; a bare one may as well have closed a block.
        end = after if opening["info"].strip() else 0


def _inside(lines: Sequence[str], indent: str) -> str:
    """Lines without the indentation of their fence, as far as they have it."""
    return "\n".join(line[len(indent) :] if line.startswith(indent) else line.lstrip() for line in lines)


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _longest_parsable(text: str) -> str:
    """`text` cut after the last line that leaves valid Python; "" if there is none."""
    lines = text.rstrip().split("\n")
    while lines:
        code = "\n".join(lines)
        try:
            ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            number = getattr(error, "lineno", None) or len(lines)
            # Cutting below the error cannot repair it: jump to its line, or drop one.
            lines = lines[: min(number, len(lines) - 1)]
            continue
        return code
    return ""


def _binds(code: str, name: str) -> bool:
    """Whether running `code` gives `name` a value."""
    if not code.strip():
        return False
    return any(name in slicing.names_bound(n) for n in ast.parse(code).body if not slicing.is_main_block(n))


def _defines(code: str, name: str) -> bool:
    """The same, and not by an import alone: `from solution import add` is how an answer is used."""
    body = [n for n in ast.parse(code).body if not isinstance(n, (ast.Import, ast.ImportFrom))]
    return any(name in slicing.names_bound(n) for n in body if not slicing.is_main_block(n))
