"""Rows of trajectory data sets on the hub: an instance, a conversation, the agent's patch, the tests' verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rune.corpus import conversation, statement
from rune.corpus.session import Session, instance_of, proved, text_field
from rune.errors import DataError

# Where rows keep the agent's own patch. The benchmark's answer, if it is there, is under `instance`.
PATCHES = ("patch", "model_patch", "generated_patch", "git_patch", "test_result.git_patch")
VERDICTS = ("resolved", "test_result.resolved", "test_result.report.resolved", "report.resolved")


def session(
    record: Mapping[str, Any],
    where: str,
    *,
    turns: str,
    messages: Sequence[Any] | None = None,
    verdicts: Sequence[str] = VERDICTS,
    any_block: bool = False,
) -> Session:
    """A row as a session; `turns` names the field of the conversation. Raises DataError naming the field."""
    task = record.get("instance_id")
    if not isinstance(task, str) or not task.strip():
        raise DataError(f"{where}: field 'instance_id' is missing or no text")
    found = conversation.messages_of(record, turns, where) if messages is None else messages
    field, patch = text_field(record, *PATCHES, where=where)
    _, given = text_field(record, "problem_statement", where=where)
    return Session(
        task=task,
        prompt=given or statement.find(conversation.first_request(found)),
        steps=tuple(conversation.steps(found, where, turns, any_block=any_block)),
        patch=patch,
        patch_field=field or "patch",
        resolved=proved(record, *verdicts, where=where),
        repo=instance_of(record, where=where),
    )
