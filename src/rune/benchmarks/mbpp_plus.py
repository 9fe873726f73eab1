"""MBPP+ (Liu et al. 2023, EvalPlus MBPP+ v0.2.0): 378 of MBPP's tasks with many more tests.

Its tasks are MBPP's: the 224 with ids 11–510 are for evaluation, the other 154 lie in MBPP's training part. Reads
MbppPlus-OriginFmt.jsonl.gz, whose tests hold the expected values. Three things are mended, no task is left out: numpy
is replaced as in HumanEval+; the checker of Mbpp/737, 787 and 794, which compares and then drops the result, so that
every program that does not raise passes, asserts what it found, as EvalPlus' own evaluator does for these three; and
of the inputs of Mbpp/255 the one goes whose answer has 130 million values (a gigabyte on either side of the wall).
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import Any

from rune.benchmarks import _categories, mbpp
from rune.benchmarks._evalplus import without_numpy
from rune.benchmarks.formats import data
from rune.errors import DataError
from rune.types import Problem

FILE = "mbpp_plus/MbppPlus-OriginFmt.jsonl.gz"
SHA256 = {"MbppPlus-OriginFmt.jsonl.gz": "7a5aec547b134fa297ee6c45f829298aa3f58de02547b8d8a5c3d85d9cb10efc"}
HUB = data.OnHub("evalplus/mbppplus", "", 378)
_UNCHECKED = "        exact_match = exp == (out is not None)\n"
_TOO_LARGE = "[['Dog', 'Cat', 'CatBird', 'Bird', 'Fish'], 77], "
_CHECKED = f'{_UNCHECKED}    assert exact_match, f"out: {{out}}, exp: {{exp}}"\n'


@dataclass(frozen=True, kw_only=True)
class Config:
    """`[benchmark.settings]`."""

    path: str = ""  # the file or its folder; "" = from RUNE_DATA; "hub"
    verify: bool = True  # refuse a file that is not the official one


@dataclass(frozen=True, slots=True)
class MbppPlus:
    config: Config

    def problems(self) -> list[Problem]:
        """All tasks in the file's order, ids "Mbpp/N" as in MBPP. Raises DataError."""
        return self.read(None)

    def read(self, unreadable: list[data.Unreadable] | None) -> list[Problem]:
        """The same; a malformed task is no error but goes to `unreadable`, if that is given."""
        return data.load_problems(
            self.config.path,
            FILE,
            SHA256,
            _problem,
            hub=HUB,
            verify=self.config.verify,
            unreadable=unreadable,
        )


def build(config: Config) -> MbppPlus:
    return MbppPlus(config)


def _problem(record: dict[str, Any], where: str) -> Problem:
    number = mbpp.number_of(record, where)
    code, text, test = data.texts(record, "code", "prompt", "test", where=where)
    tests = mbpp.list_of(record, "test_list", where)
    data.parse(test, f"{where}: field 'test'")
    entry = mbpp.entry_point(code, tests, task=where)
    return Problem(
        task_id=f"Mbpp/{number}",
        benchmark="mbpp_plus",
        prompt=f'"""\n{text.strip()}\n{tests[0].strip()}\n"""\n',
        entry_point=entry,
        test=_in_check(test, entry, where),
        reference=f"{code.strip()}\n",
        category=_categories.categorise(reference=code, entry_point=entry, test="\n".join(tests)),
        split=mbpp.split_of(number),
    )


def _in_check(test: str, entry: str, task: str) -> str:
    """Helpers and data stay where they are; the closing loop over them becomes the body of `check`."""
    loop = list(re.finditer(r"^for i, .*:\n(?:[ \t]+.*\n?)+", test, re.MULTILINE))
    if not loop:
        raise DataError(f"{task}: field 'test' does not end in a loop over inputs")
    head, body = test[: loop[-1].start()], mbpp.ask_candidate(loop[-1].group(), entry)
    head = without_numpy(head.replace(_UNCHECKED, _CHECKED).replace(_TOO_LARGE, ""))
    return f"{head}\n\ndef check(candidate):\n{textwrap.indent(body, '    ')}\n"
