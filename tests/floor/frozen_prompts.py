"""What is said to a model, and what is taken from completions of every shape that was met, as plain data.

python -m tests.floor.frozen_prompts      writes prompts.json anew: only when a word or a rule is meant to change
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rune import prompts
from rune.types import Answer, Attempt, FailureKind, Outcome, Trajectory

FILE = Path(__file__).with_name("prompts.json")
PROMPT = 'def add(a, b):\n    """Sum of two.\n\n    assert add(1, 2) == 3\n    """\n'
GOOD = "def add(a, b):\n    return a + b\n"
OTHER = "def sub(a, b):\n    return a - b\n"
BODY = "    return a + b\n"
FENCED = "```python\n" + GOOD + "```\n"
COMPLETIONS = {
    "the program": GOOD,
    "the program and its fence": GOOD + "```\nThat is all.\n```python\nadd(1, 2)\n```\n",
    "windows lines": FENCED.replace("\n", "\r\n"),
    "old lines": GOOD.replace("\n", "\r") + "```",
    "words before a block": "Here it is:\n\n" + FENCED,
    "two blocks": FENCED + "or\n```python\ndef add(x, y):\n    return y + x\n```\n",
    "the second is cut": FENCED + "or\n```python\ndef add(x, y):\n    return (y +\n```\n",
    "only the second defines it": "```python\n" + OTHER + "```\n" + FENCED,
    "the last only uses it": FENCED + "```python\nfrom solution import add\nprint(add(1, 2))\n```\n",
    "only an import": "```python\nfrom solution import add\n```\n",
    "a longer fence": "````python\n" + GOOD + "```\n" + OTHER + "````\n",
    "tildes": "~~~\n" + GOOD + "~~~\nend",
    "an indented block": "1. so:\n   ```python\n   def add(a, b):\n       return a + b\n   ```\n",
    "a closing too far in": "```python\n" + GOOD + "        ```\n" + OTHER + "```\n",
    "a closing a little in": "```python\n" + GOOD + "   ```\n" + "x = (\n```\n",
    "a block that is not closed": "```python\n" + GOOD + OTHER,
    "a fence in a docstring": '```python\ndef add(a, b):\n    """\n```\nx\n```\n    """\n    return a + b\n```\nend',
    "a body": BODY,
    "a body in a block": "```python\n" + BODY + "```\n",
    "a thought": "<think>\nadd(1, 2)? `def add(a, b): return 0`\n</think>\n" + FENCED,
    "a thought begun in the prompt": "so I add them.\n</think>\n" + GOOD,
    "a thought that does not end": GOOD + "<reasoning>\ndef add(a, b): pass\n",
    "a thought of which a string speaks": 'def add(a, b):\n    print("</think>")\n    return a + b\n',
    "helpers, globals and a main block": (
        "import math\nimport os\nONE = 1\nTWO = 2\n\ndef helper(x):\n    return x * ONE\n\n@staticmethod\n" + GOOD
        + "    \nif __name__ == '__main__':\n    add = None\n    print(add(1, 2))\n"
    ),
    "tests after it": GOOD + "assert add(1, 2) == 3\nprint(add(2, 2))\n",
    "a broken end": GOOD + "\ndef more(:\n    pass\nx = 1\n",
    "a broken beginning": "x = = 1\n" + GOOD,
    "a lambda": "add = lambda a, b: a + b\n",
    "nothing": "",
    "words": "I cannot do that.",
    "words and a fence": "I cannot do that.\n```\nreally\n```\n",
    "ten fences": "\n".join(["```", "x = ("] * 9) + "\n```\n" + FENCED,
}  # fmt: skip
VALUES = {
    "a literal": "8\n```\nbecause\n", "in a block": "so\n```python\n[1, 2]\n```\n",
    "a later block": "f(2)\n```\n```\n{'a': 1}\n```",
    "a comparison": "f(2) == 8", "an assertion": "assert f(2) == [8, (9,)]\n```", "an assignment": "answer = -8",
    "a label": "Answer: 8.", "a label in words": "The result is: `'ab'`", "a label alone": "Answer: ",
    "after a comment": "# three of them\nf(3) == 9", "after words": "I think\nf(3) == 9",
    "a literal after words": "I think\n9",
    "a stated one after words": "I think\nAnswer: 9.", "a program": "x = 1\ny = 2", "a comment": "# 8",
    "in a step": "  8",
    "after a step": "if x:\n  8", "two statements": "8; 9", "unequal": "f(2) != 8", "a chain": "1 < f(2) == 8",
    "to an attribute": "a.b = 8", "a call": "f(8)", "a thought": "<think>8</think>9", "nothing": "", "a full stop": ".",
    "assert without a value": "assert f(2)", "windows": "8\r\n```", "a literal and an end": "8.",
    "a name": "f(2) == g(8)",
    "a comment behind a label": "Answer: # 8",
}  # fmt: skip
EDITED = (
    "I mend it:\n```\na/b.py\n<<<<<<< SEARCH\nx = 1\n=======\nx = 2\n>>>>>>> REPLACE\n```\nand\n```\nc.py\n"
    "<<<<<<< SEARCH\ny\n=======\nz\n>>>>>>> REPLACE\n```\n"
)
FAILED = Attempt(
    code=GOOD + "\n",
    outcome=Outcome.FAILED,
    error_kind=FailureKind.RAISED,
    error="  ValueError: no\n",
    reflection=" r \n",
)


def said() -> dict[str, Any]:
    """Every word to a model, by occasion."""
    silent = replace(FAILED, error=" \n", reflection="", outcome=Outcome.TIMED_OUT, error_kind=FailureKind.TIMEOUT)
    passed = replace(FAILED, outcome=Outcome.PASSED, error="", error_kind=FailureKind.NONE)
    story = Trajectory(
        trajectory_id="t",
        task_id="T/1",
        benchmark="t",
        prompt="\n" + PROMPT,
        attempts=(FAILED, silent, FAILED, passed),
        solution=GOOD,
    )
    open_end = "What is it?\nassert f(2) ==\n"
    found: dict[str, Any] = {}
    for answer in Answer:
        found[f"task, {answer}"] = [prompts.task(PROMPT, context, answer) for context in ("", "Look:\n\n")]
        found[f"task left open, {answer}"] = prompts.task(open_end, "", answer)
        found[f"feedback, {answer}"] = [prompts.feedback(a, answer) for a in (FAILED, silent)]
        found[f"retry, {answer}"] = [
            prompts.retry(PROMPT, [FAILED, silent, FAILED], answer=answer),
            prompts.retry(PROMPT, [FAILED, silent], limit=1, answer=answer),
            prompts.retry(PROMPT, [], answer=answer),
        ]
        found[f"stop, {answer}"] = [
            prompts.stop(p, answer) for p in (PROMPT, open_end, "x\nassert f(2) ==\n\n ", "```\nx\n```")
        ]
    found["open"] = [prompts.open_assertion(p) for p in (open_end, "assert f(2) == 3", "assert x", "x ==", "")]
    found["reflect"] = prompts.reflect(PROMPT, FAILED)
    found["trajectory"] = [prompts.render_trajectory(story, max_attempts=n) for n in (1, 2, 9)]
    found["unsolved"] = prompts.render_trajectory(replace(story, solution="", attempts=story.attempts[:1]))
    found["truncate"] = [
        prompts.truncate("".join(map(str, range(60))), limit) for limit in (200, 110, 109, 50, 40, 5, 0)
    ]
    return found


def taken() -> dict[str, Any]:
    """Completion → what is taken of it."""
    found: dict[str, Any] = {}
    for name, completion in COMPLETIONS.items():
        found[f"program: {name}"] = prompts.extract(completion, prompt=PROMPT, entry_point="add")
    found["program: a method"] = prompts.extract(FENCED, prompt=PROMPT, entry_point="add.sub")
    for name, completion in VALUES.items():
        found[f"value: {name}"] = prompts.extract(completion, prompt="", entry_point="", answer=Answer.VALUE)
    for name, completion in {"two": EDITED, "windows": EDITED.replace("\n", "\r\n"), "none": "no\n```\nx"}.items():
        found[f"edits: {name}"] = prompts.extract(completion, prompt="", entry_point="", answer=Answer.EDITS)
    return found


if __name__ == "__main__":
    FILE.write_text(
        json.dumps({"said": said(), "taken": taken()}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
