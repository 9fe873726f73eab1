"""Counts if the program passes its test in the sandbox: the scorer of most benchmarks.

Whether it did is the sandbox's finding alone (docs/scoring.md); this file says what the sandbox is given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from rune.benchmarks import humaneval
from rune.benchmarks.scorers.judging import Check, Item, Trial
from rune.types import Execution, Problem, Program, Sandbox

STUBS = {
    "pass": "def {name}(*args, **kwargs):\n    pass\n",
    "empty": "",
}
CHEATS = {
    "always-equal object": (
        "class Same:\n    def __eq__(self, other):\n        return True\n    def __bool__(self):\n        return True\n"
        "    __hash__ = None\n\ndef {name}(*args, **kwargs):\n    return Same()\n"
    ),
    "exit with success": "import os\n\ndef {name}(*args, **kwargs):\n    os._exit(0)\n",
    "exit at import": "raise SystemExit(0)\n",
    "patched assertions": (
        "import builtins\nbuiltins.AssertionError = type('Quiet', (Exception,), {{}})\nbuiltins.all = lambda x: True\n"
        "\ndef {name}(*args, **kwargs):\n    return None\n"
    ),
    "own check": "def check(candidate):\n    pass\n\ndef {name}(*args, **kwargs):\n    return None\n",
    "end of iteration": "def {name}(*args, **kwargs):\n    raise StopIteration\n",
    "nameless exception at import": "raise type('', (Exception,), {{}})()\n",
    "nameless exception in a call": "def {name}(*args, **kwargs):\n    raise type('', (Exception,), {{}})()\n",
    "exception that computes its name": (
        "class Nameless(type):\n    __name__ = property(lambda self: '')\n"
        "class Failed(Exception, metaclass=Nameless):\n    pass\nraise Failed\n"
    ),
    "object that answers every question": (
        "class Yes:\n    def __getattr__(self, name):\n        return lambda *args, **kwargs: True\n"
        "\ndef {name}(*args, **kwargs):\n    return Yes()\n"
    ),
}
ENTRY = "rune_entry_point"


def judge(sandbox: Sandbox, items: Iterable[Item]) -> Iterator[Execution]:
    """The sandbox's own findings."""
    yield from sandbox.judge(program(item.key, item.code, item.problem) for item in items)


def trials(problem: Problem, *, forged: bool) -> Iterator[Trial]:
    """The reference passes; stubs and forgeries fail."""
    if problem.reference:
        yield Trial("reference solution", problem, problem.reference, True)
    name = problem.entry_point if problem.entry_point.isidentifier() else ENTRY
    named = dataclasses.replace(problem, entry_point=name)
    for what, text in STUBS.items():
        yield Trial(f"stub '{what}'", named, text.format(name=name), False)
    if forged:
        for what, text in CHEATS.items():
            yield Trial(f"forgery '{what}'", named, text.format(name=name), False)


def checks(key: str, code: str, problem: Problem) -> tuple[Check, ...]:
    """The same program passes again."""
    return (Check(program(key, code, problem), True),)


def program(key: str, code: str, problem: Problem) -> Program:
    """What the sandbox is given for one piece of code.

    It calls a name: an entry point that is an expression or a coroutine function gets one of ours.
    """
    entry = problem.entry_point
    if humaneval.AWAITS in problem.test:
        code += f"\n\nimport asyncio\n\n\ndef {ENTRY}(*args, **options):\n"
        code += f"    return asyncio.run({entry}(*args, **options))\n"
        entry = ENTRY
    elif humaneval.BUILDS in problem.test or not entry.isidentifier():
        code += f"\n\n{ENTRY} = {entry}\n"
        entry = ENTRY
    return Program(key=key, code=code, test=problem.test, entry_point=entry, prelude=problem.prelude)
