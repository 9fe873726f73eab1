"""SWE-bench instances (SWE-bench, Lite, Verified, SWE-Gym, SWE-bench-extra): an issue and its verified patch.

No attempts are in it: the patch is the one attempt, and it passed, since the benchmark ran its tests. An instance
that says otherwise (`resolved` false) is kept as a patch that nobody verified.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rune.corpus.session import Session, instance_of, proved, text_field
from rune.errors import DataError

NAME = "SWE-bench instances"
_FILE = re.compile(r"^\[start of (?P<path>[^\]\n]+)\]\n(?P<text>.*?)\n?^\[end of (?P=path)\]", re.DOTALL | re.MULTILINE)


def claims(record: Any) -> bool:
    """An issue and a patch, without anything that an agent did."""
    if not isinstance(record, dict) or {"messages", "trajectory", "history", "response"} & set(record):
        return False
    return "problem_statement" in record and bool({"patch", "base_commit", "test_patch", "instance_id"} & set(record))


def read(record: Any, where: str, name: str) -> Sequence[Session]:
    """Raises DataError naming the field."""
    task, prompt, patch = (_required(record, field, where) for field in ("instance_id", "problem_statement", "patch"))
    if patch == record.get("test_patch"):
        raise DataError(f"{where}: field 'patch' is the instance's test_patch; a solution is a change of the code")
    resolved = proved(record, "resolved", where=where) if record.get("resolved") is not None else True
    repo, texts = instance_of(record, where=where), _texts(record, where)
    return [Session(task=task, prompt=prompt, steps=(), patch=patch, resolved=resolved, repo=repo, texts=texts)]


def _texts(record: dict[str, Any], where: str) -> dict[str, str]:
    """The files that SWE-bench_oracle and _bm25 put into `text`, their lines numbered from 1."""
    _, text = text_field(record, "text", where=where)
    return {match["path"]: _unnumbered(match["text"].split("\n")) for match in _FILE.finditer(text)}


def _unnumbered(lines: list[str]) -> str:
    numbered = all(line == str(n) or line.startswith(f"{n} ") for n, line in enumerate(lines, start=1))
    return "\n".join(line.partition(" ")[2] for line in lines) if numbered else "\n".join(lines)


def _required(record: dict[str, Any], field: str, where: str) -> str:
    if field not in record:
        raise DataError(f"{where}: field '{field}' is missing")
    _, text = text_field(record, field, where=where)
    if not text:
        raise DataError(f"{where}: field '{field}' is empty")
    return text
