"""SWE-bench instances (SWE-bench, Lite, Verified, SWE-Gym, SWE-bench-extra): an issue and its verified patch.

No attempts are in it: the patch is the one attempt, and it passed, since the benchmark ran its tests. An instance
that says otherwise (`resolved` false) is kept as a patch that nobody verified.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rune.corpus.session import Session, proved, text_field
from rune.errors import DataError

NAME = "SWE-bench instances"


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
    _, repo = text_field(record, "repo", where=where)
    resolved = proved(record, "resolved", where=where) if record.get("resolved") is not None else True
    return [Session(task=task, prompt=prompt, steps=(), patch=patch, resolved=resolved, repo=repo)]


def _required(record: dict[str, Any], field: str, where: str) -> str:
    if field not in record:
        raise DataError(f"{where}: field '{field}' is missing")
    _, text = text_field(record, field, where=where)
    if not text:
        raise DataError(f"{where}: field '{field}' is empty")
    return text
