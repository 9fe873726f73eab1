"""Every word that Rune says to a model, and how code is taken from what it answers. Pure text in, text out.

The instruction, the fenced prefill and the stop strings follow EvalPlus (Liu et al. 2023), so that the bare
model is measured as its authors measured it. There is no system message of ours: the chat template, which
belongs to the model (`models/chat.py` renders it), puts in the one the model was trained with.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import NamedTuple

from rune.types import Attempt, Trajectory

INSTRUCTION = (
    "Please provide a self-contained Python script that solves the following problem in a markdown code block:"
)
PREFILL = (
    "Below is a Python script with a self-contained function that solves the problem "
    "and passes corresponding tests:\n```python\n"
)
REFLECTION = "The mistake is"
FENCE = "\n```"
# What comes after the function: EvalPlus' list, and the demo tests that the instruct models append.
STOP = (
    FENCE,
    "<|endoftext|>",
    "<|im_end|>",
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


def task(prompt: str, context: str = "") -> Chat:
    """The question every arm asks; `context` is what RAG (or the teacher) puts before it."""
    lead = f"{context.rstrip()}\n\n" if context else ""
    question = f"{lead}{INSTRUCTION}\n```\n{prompt.strip()}\n```\n"
    return Chat(messages=(("user", question),), prefill=PREFILL)


def retry(prompt: str, attempts: Sequence[Attempt], *, limit: int = 2) -> Chat:
    """The same question after failures: a linear history of the last `limit` attempts with their errors."""
    first = task(prompt)
    messages = list(first.messages)
    for attempt in attempts[-limit:]:
        messages.append(("assistant", f"{PREFILL}{attempt.code.strip()}{FENCE}"))
        thought = f"{attempt.reflection.strip()}\n" if attempt.reflection else ""
        messages.append(("user", f"{thought}{feedback(attempt)}"))
    return Chat(messages=tuple(messages), prefill=PREFILL)


def feedback(attempt: Attempt) -> str:
    """What the loop tells the model about a failed attempt."""
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

_BLOCK = re.compile(r"```(?:python|py)?[^\n]*\n(.*?)(?:\n```|\Z)", re.DOTALL)


def stop(prompt: str) -> tuple[str, ...]:
    """Where an answer to this task ends. What the task's own text holds is no end: an answer may repeat it.

    MBPP's prompts are a docstring with an assert in it; cut there, a fifth of the 0.5B's failures were half docstrings.
    """
    return tuple(text for text in STOP if text not in prompt)


def extract(completion: str, *, prompt: str, entry_point: str) -> str:
    """The program in a completion that followed `PREFILL`.

    The answer continues inside an open fence, so the code is what stands before the closing one. If that
    code does not define `entry_point`, a later fenced block that does is taken; if none does and the text
    is a function body, it is read as the continuation of `prompt` (HumanEval's completion format).
    Trailing lines are dropped until the rest parses; unused top-level statements are left out.
    """
    head, _, rest = completion.partition(FENCE)
    # A block may open at the first fence (prose came first) or at the next one (the first closed the answer).
    candidates = [head, *(m.group(1) for text in (completion, rest) for m in _BLOCK.finditer(text))]
    for candidate in candidates:
        code = _longest_parsable(candidate)
        if _defines(code, entry_point):
            return sanitize(code, entry_point)
    joined = _longest_parsable(prompt + head)
    if _defines(joined, entry_point) and len(joined) > len(prompt.rstrip()):
        return sanitize(joined, entry_point)
    return head


def _longest_parsable(text: str) -> str:
    """`text` cut after the last line that leaves valid Python; "" if there is none."""
    lines = text.replace("\r\n", "\n").rstrip().split("\n")
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


def _defines(code: str, name: str) -> bool:
    if not code.strip():
        return False
    return any(name in _names_bound(node) for node in ast.parse(code).body)


def _names_bound(node: ast.stmt) -> set[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {(a.asname or a.name).split(".")[0] for a in node.names}
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def sanitize(code: str, entry_point: str) -> str:
    """Keep imports and the definitions that `entry_point` reaches; drop demo calls, prints and tests.

    Source text of what is kept stays as written (comments between kept statements are lost).
    """
    body = ast.parse(code).body
    binders: dict[str, list[ast.stmt]] = {}
    for node in body:
        for name in _names_bound(node):
            binders.setdefault(name, []).append(node)
    wanted: set[int] = set()
    queue = [entry_point]
    seen: set[str] = set()
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in binders.get(name, []):
            wanted.add(id(node))
            queue += [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
    lines = code.split("\n")
    kept: list[str] = []
    for node in body:
        star = isinstance(node, (ast.Import, ast.ImportFrom))
        if star or id(node) in wanted:
            decorators = getattr(node, "decorator_list", [])
            start = min([node.lineno, *(d.lineno for d in decorators)])
            kept.append("\n".join(lines[start - 1 : node.end_lineno]))
    return "\n".join(kept) + "\n"
