"""CodeUpdateArena (Liu, Pandit, Ye, Choi & Durrett 2024, arXiv 2407.06249): tasks that want an updated function.

A domain is an update; its tasks share nothing but the updated function, and no prompt says what changed. Scored by
UPass (`execution_with_and_without`): passes with the update installed and not without it. Folds are by function, so
that all updates of a function are on one side.

The tests build arrays and symbolic expressions of the same library, with the update in force, and these do not cross
as plain data; so each unit test runs in the box, in the program's process, and only whether it ended or what it raised
comes out. A result that equals anything is refused; a program that wanted to deceive could find another way: for
models' samples, not for adversaries.
"""

from __future__ import annotations

import ast
import difflib
import random
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rune.benchmarks.formats import data
from rune.benchmarks.scorers import updates as _updates
from rune.benchmarks.scorers.updates import Update
from rune.errors import DataError
from rune.types import Problem, Scorer, Split

NAME = "code_update_arena"
FILE = "code_update_arena/arena.jsonl.gz"
SHA256 = {"arena.jsonl.gz": "d58b04e03c9dadfa773bf990d0afbdb271fc625da1d71c01050b1878f7cc6648"}
# What the tasks' tests import, where it is installed; the second line is pytest and what it needs.
LENT = (
    *("numpy", "scipy", "sympy", "mpmath"),
    *("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments", "py"),
)
HUB = data.OnHub("leo-liuzy/CodeUpdateArena", "", 0)


@dataclass(frozen=True, kw_only=True)
class Config:
    """`[benchmark.settings]`."""

    path: str = ""  # the file or its folder; "" = from RUNE_DATA
    verify: bool = True  # refuse a file that is not the pinned selection
    folds: int = 5  # of functions
    fold: int = -1  # this one is held out; -1: no task is marked, so that [design] splits
    seed: int = 0  # of the folds
    leave_out: tuple[str, ...] = ()  # ids of tasks whose references do not count here (docs/updates.md)

    def __post_init__(self) -> None:
        if self.folds < 2 or not -1 <= self.fold < self.folds:
            raise ValueError(f"fold = {self.fold} of {self.folds}; expected folds >= 2 and -1 <= fold < folds")


@dataclass(frozen=True, slots=True)
class CodeUpdateArena:
    """The benchmark: `problems()` in the file's order."""

    config: Config

    def problems(self) -> list[Problem]:
        """All tasks but those left out, their split by the fold. Raises DataError."""
        records, path = self._records()
        updates = [_update(record, path) for record in records]
        held = self._held_out(updates)
        found = [
            _problem(update, number, task, Split.HELD_OUT if update.function in held else Split.TRAIN, path)
            for update, record in zip(updates, records, strict=True)
            for number, task in enumerate(record["prog_syn_examples"])
        ]
        left_out = set(self.config.leave_out)
        if unknown := sorted(left_out - {p.task_id for p in found}):
            near = difflib.get_close_matches(unknown[0], [p.task_id for p in found], n=1)
            raise DataError(
                f"[benchmark.settings] leave_out: {path} has no task '{unknown[0]}'"
                + (f"; did you mean '{near[0]}'?" if near else "")
            )
        return [p for p in found if p.task_id not in left_out]

    def updates(self) -> dict[str, Update]:
        """Domain → update, its documentation in it."""
        records, path = self._records()
        return {update.domain: update for update in (_update(record, path) for record in records)}

    def _records(self) -> tuple[list[dict[str, Any]], Path]:
        return data.load(self.config.path, FILE, SHA256, hub=HUB, verify=self.config.verify)

    def _held_out(self, updates: Sequence[Update]) -> set[str]:
        if self.config.fold < 0:
            return set()
        return set(folds(updates, self.config.folds, self.config.seed)[self.config.fold])


def build(config: Config) -> CodeUpdateArena:
    return CodeUpdateArena(config)


def folds(updates: Sequence[Update], count: int, seed: int) -> list[list[str]]:
    """Functions in `count` groups, each package spread evenly and the numbers of updates alike."""
    sizes: dict[str, int] = {}
    for update in updates:
        sizes[update.function] = sizes.get(update.function, 0) + 1
    order = sorted(sizes)
    random.Random(f"{NAME}/{seed}").shuffle(order)
    groups: list[list[str]] = [[] for _ in range(count)]
    for function in sorted(order, key=lambda f: (f.partition(".")[0], -sizes[f])):
        package = function.partition(".")[0]

        def load(group: list[str], package: str = package) -> tuple[int, int]:
            return sum(sizes[f] for f in group if f.startswith(f"{package}.")), sum(sizes[f] for f in group)

        min(groups, key=load).append(function)
    return groups


def _update(record: Mapping[str, Any], path: Path) -> Update:
    (raw,) = data.need(record, "update", where=path)
    function, name, kind, imports, code, text, about, signature = data.need(
        raw, "function_path", "update_id", "update_type", "imports", "implementation", "docstring", "description",
        "signature", where=path,
    )  # fmt: skip
    number = str(name).rpartition("update-")[2].strip("]")
    return Update(
        domain=_updates.domain(function, kind, number),
        function=function,
        setup="\n".join(imports),
        implementation=code,
        name=_defined(code, function.rpartition(".")[2]),
        signature=signature,
        documentation=f"{about.strip()}\n{text.strip()}",
    )


def _defined(code: str, name: str) -> str:
    """The function that takes the place: of the old name, or the last one where the update renames."""
    names = [node.name for node in ast.parse(code).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return name if name in names or not names else names[-1]


def _problem(update: Update, number: int, task: Mapping[str, Any], split: Split, path: Path) -> Problem:
    scenario, question, signature, tests, reference = data.need(
        task, "scenario", "problem", "solution_signature", "unit_tests", "ref_solution", where=path
    )
    entry = _entry_point(signature, f"{path}: {update.domain}: task {number}")
    prompt = f"{scenario.strip()}\n{question.strip()}\n\nThe function's signature:\n{signature.strip()}\n"
    return Problem(
        task_id=f"CodeUpdateArena/{update.domain}/{number}",
        benchmark=NAME,
        prompt=prompt,
        entry_point=entry,
        test=f"def check(candidate):\n    for number in range({len(tests)}):\n        run_unit_test(number)\n",
        reference=reference,
        category=update.package,
        split=split,
        prelude=_updates.prelude(update, before=f"{_given(signature)}{update.setup}\n", after=_runner(tests, entry)),
        domain=update.domain,
        scorer=Scorer.EXECUTION_WITH_AND_WITHOUT,
    )


def _entry_point(signature: str, where: str) -> str:
    """The name before the first parenthesis: some signatures begin with `function`, or with nothing, not with `def`."""
    found = re.search(r"([A-Za-z_]\w*)\s*\(", signature)
    if not found:
        raise DataError(f"{where}: field 'solution_signature' is no function's signature: {signature!r}")
    return found[1]


def _given(signature: str) -> str:
    """Imports of what the signature itself names: who repeats it must not fail for `List`."""
    names = set(re.findall(r"[A-Za-z_]\w*", signature))
    lines = [f"from typing import {name}" for name in sorted(names & set(typing.__all__))]
    modules = {"re": "import re", "numpy": "import numpy", "np": "import numpy as np", "sympy": "import sympy"}
    lines += [line for name, line in modules.items() if f"{name}." in signature]
    return "".join(f"{line}\n" for line in lines)


def _runner(tests: Sequence[str], entry: str) -> str:
    """Source that defines run_unit_test(number) beside the program, which the tests see as if they stood below it.

    They see one function otherwise, the one that is asked for: what equals whatever it is compared with is no result.
    """
    return f"_UNIT_TESTS, _ENTRY = {list(tests)!r}, {entry!r}\n{_RUNNER}"


_RUNNER = """
def run_unit_test(number):
    import importlib, sys
    scope = {}
    for name in ("math", "re", "itertools", "numpy", "sympy"):
        if name in sys.modules or any(name in text for text in _UNIT_TESTS):
            try:
                scope[name] = importlib.import_module(name)
            except ImportError:
                pass
    if "numpy" in scope:
        scope["np"] = scope["numpy"]
    module, name = UPDATED
    if hasattr(importlib.import_module(module), name):  # some tests name the function without its module
        scope[name] = getattr(importlib.import_module(module), name)
    scope.update(globals())
    if callable(scope.get(_ENTRY)) and not isinstance(scope[_ENTRY], type):
        scope[_ENTRY] = _honest(scope[_ENTRY])
    text = _UNIT_TESTS[number]
    exec(compile(text, "<unit test>", "exec"), scope)
    for name in [n for n in scope if n.startswith("test") and f"def {n}(" in text]:
        try:
            scope[name]()
        except AssertionError as error:
            raise AssertionError(_explain(name, text, error)) from None


def _honest(function):
    import functools

    @functools.wraps(function)
    def call(*arguments, **options):
        result = function(*arguments, **options)
        if _equals_anything(result):
            raise TypeError("the result equals whatever it is compared with")
        return result

    return call


def _equals_anything(value):
    try:
        if type(value) in (list, tuple, set, frozenset):
            return any(map(_equals_anything, value))
        if type(value) is dict:
            return any(map(_equals_anything, value.values()))
        return (value == object()) is True
    except Exception:
        return False


def _explain(name, text, error):
    frame = error.__traceback__
    while frame.tb_next is not None and frame.tb_next.tb_frame.f_code.co_filename == "<unit test>":
        frame = frame.tb_next
    line = text.splitlines()[frame.tb_lineno - 1].strip()
    values = [
        f"{key} = {value!r:.80}"
        for key, value in frame.tb_frame.f_locals.items()
        if key in line and not callable(value) and not hasattr(value, "__file__")
    ]
    said = f"{name}: {line}" + (f", where {', '.join(values)}" if values else "")
    return said
""".lstrip("\n")
