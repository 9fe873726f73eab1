"""MBPP (Austin et al. 2021): 974 tasks, or the 427 that its authors checked by hand ("sanitized").

Ids 11–510 are for evaluation and come marked HELD_OUT; 511–974 and 1–10 may give trajectories. The prompt is
EvalPlus': the text and the first test as a docstring, so that the function's name is known. The tests run in
the official order, setup before asserts, and may name what the program defines besides its entry point (three
tasks build the program's own classes).
"""

from __future__ import annotations

import ast
import json
import sys
import textwrap
from ast import literal_eval
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rune import slicing
from rune.benchmarks import _categories
from rune.benchmarks.formats import data
from rune.errors import DataError
from rune.types import Problem, Split

EVALUATION = range(11, 511)  # ids 1–10 are the few-shot prompts, 511–974 validation and training
VALIDATION = range(511, 601)
FILES = {"full": "mbpp/mbpp.jsonl", "sanitized": "mbpp/sanitized-mbpp.json"}
HUB = {
    "full": data.OnHub("google-research-datasets/mbpp", "full", 974),
    "sanitized": data.OnHub("google-research-datasets/mbpp", "sanitized", 427),
}
SHA256 = {
    "mbpp.jsonl": "ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f",
    "sanitized-mbpp.json": "ca95deaa9a01ef0a6f439f88bcf0dd3db3563d22f22aad6cae04ebb9a8d8c8e9",
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """`[benchmark.settings]`."""

    variant: Literal["full", "sanitized"] = "full"
    path: str = ""  # the file or its folder; "" = from RUNE_DATA; "hub"
    verify: bool = True  # refuse a file that is not the official one
    only: Literal["", "validation"] = ""  # "validation": ids 511–600, held out; to choose recipes on, not to gate


@dataclass(frozen=True, slots=True)
class Mbpp:
    config: Config

    def problems(self) -> list[Problem]:
        """All tasks of the variant in the file's order, ids "Mbpp/N". Raises DataError."""
        return self.read(None)

    def read(self, unreadable: list[data.Unreadable] | None) -> list[Problem]:
        """The same; a malformed task is no error but goes to `unreadable`, if that is given."""
        variant = self.config.variant
        found = data.load_problems(
            self.config.path,
            FILES[variant],
            SHA256,
            _problem,
            hub=HUB[variant],
            verify=self.config.verify,
            unreadable=unreadable,
        )
        if self.config.only:
            wanted = {f"Mbpp/{n}" for n in VALIDATION}
            found = [replace(p, split=Split.HELD_OUT) for p in found if p.task_id in wanted]
        return found


def build(config: Config) -> Mbpp:
    return Mbpp(config)


def split_of(number: int) -> Split:
    return Split.HELD_OUT if number in EVALUATION else Split.TRAIN


def near_duplicates(path: str = "") -> Mapping[str, Sequence[str]]:
    """Evaluation task id → training tasks too like it, as listed beside the data; empty if no list is there."""
    try:
        file = data.locate(path, "mbpp/near_duplicates.json", hub="no public data set")
    except DataError:
        return {}
    found: dict[str, list[str]] = {}
    for test, train, _share in json.loads(file.read_text(encoding="utf-8"))["pairs_test_train_share"]:
        found.setdefault(f"Mbpp/{test}", []).append(f"Mbpp/{train}")
    return found


def _problem(record: dict[str, Any], where: str) -> Problem:
    number = number_of(record, where)
    (code,) = data.texts(record, "code", where=where)
    tests = list_of(record, "test_list", where)
    (text,) = data.texts(record, "text" if "text" in record else "prompt", where=where)
    entry = entry_point(code, tests, task=where)
    named = list_of(record, "test_imports", where) if record.get("test_imports") else []
    (setup,) = data.texts({"test_setup_code": "", **record}, "test_setup_code", where=where)
    test = _test([*named, *_modules(tests)], setup, [ask_candidate(t, entry) for t in tests])
    data.parse(test, f"{where}: field 'test_setup_code'")
    return Problem(
        task_id=f"Mbpp/{number}",
        benchmark="mbpp",
        prompt=f'"""\n{text.strip()}\n{tests[0].strip()}\n"""\n',
        entry_point=entry,
        test=test,
        reference=f"{code.strip()}\n",
        category=_categories.categorise(reference=code, entry_point=entry, test=test),
        split=split_of(number),
    )


def number_of(record: dict[str, Any], where: str) -> int:
    """A task's number, from 11, "11" or "Mbpp/11". Raises DataError."""
    (value,) = data.need(record, "task_id", where=where)
    text = str(value).rpartition("/")[2] if isinstance(value, (int, str)) else ""
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise DataError(f"{where}: field 'task_id': expected a number, as 11 or 'Mbpp/11', found {str(value)[:40]!r}")
    return int(text)


def list_of(record: dict[str, Any], field: str, where: str) -> list[str]:
    """A list of sources, or one written as text. Raises DataError that names the field."""
    (value,) = data.need(record, field, where=where)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            try:
                value = literal_eval(value)
            except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
                raise DataError(f"{where}: field '{field}': a text that is no list") from None
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise DataError(f"{where}: field '{field}': expected a list of texts")
    for place, source in enumerate(value):
        data.parse(source.strip(), f"{where}: field '{field}[{place}]'")
    return list(value)


def entry_point(code: str, tests: Sequence[str], *, task: str) -> str:
    """The function that the first test calls, among those the reference defines. Raises DataError if none is."""
    bound = [(n, name) for n in data.parse(code, f"{task}: field 'code'").body for name in slicing.names_bound(n)]
    defined = [name for n, name in bound if not isinstance(n, (ast.Import, ast.ImportFrom, ast.ClassDef))]
    called = [
        n.func.id for n in ast.walk(ast.parse(tests[0])) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    ]
    for name in called:
        if name in defined:
            return name
    raise DataError(f"{task}: field 'test_list': the tests call none of the functions its code defines")


def ask_candidate(source: str, entry: str) -> str:
    """`source` with the entry point's name replaced by `candidate`, all else as written.

    Four tasks call theirs `check`, which is the name of the test itself here.
    """
    lines = [line.encode() for line in source.strip().split("\n")]
    names = [n for n in ast.walk(ast.parse("\n".join(map(bytes.decode, lines)))) if isinstance(n, ast.Name)]
    for node in sorted(names, key=lambda n: (n.lineno, n.col_offset), reverse=True):
        if node.id == entry:
            line = lines[node.lineno - 1]
            lines[node.lineno - 1] = line[: node.col_offset] + b"candidate" + line[node.end_col_offset :]
    return "\n".join(map(bytes.decode, lines))


def _modules(tests: Sequence[str]) -> list[str]:
    """Standard modules that the tests name without importing them."""
    used = {
        n.value.id
        for test in tests
        for n in ast.walk(ast.parse(test))
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)
    }
    return [f"import {name}" for name in sorted(used) if name in sys.stdlib_module_names]


def _test(imports: Sequence[str], setup: str, tests: Sequence[str]) -> str:
    head = "\n".join(dict.fromkeys(imports))
    body = "\n".join([*([setup.strip()] if setup.strip() else []), *(t.strip() for t in tests)])
    return f"{head}\n\n\ndef check(candidate):\n{textwrap.indent(body, '    ')}\n".lstrip("\n")
