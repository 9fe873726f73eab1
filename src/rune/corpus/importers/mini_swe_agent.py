"""mini-swe-agent's .traj.json: v1 (bash blocks in the text), v2 (`tool_calls`, `extra.actions`, Responses API items).

Both write `info` (submission, exit_status, the agent's config with the template of the first message) and
`messages`. The first versions wrote the messages alone: those are read as a list of messages (`chat`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rune.corpus import conversation, statement
from rune.corpus.session import Session, instance_of, proved, text_field

NAME = "mini-swe-agent .traj.json (v1, v2)"


def claims(record: Any) -> bool:
    """`messages` beside mini-swe-agent's `info` or its format's name."""
    if not isinstance(record, dict) or "messages" not in record or {"trajectory", "response"} & set(record):
        return False
    return isinstance(record.get("info"), Mapping) or str(record.get("trajectory_format", "")).startswith("mini")


def read(record: Any, where: str, name: str) -> Sequence[Session]:
    """Raises DataError naming the field."""
    messages = conversation.messages_of(record, "messages", where)
    steps = conversation.steps(messages, where)
    field, patch = text_field(record, "info.submission", where=where)
    if not patch and messages and isinstance(messages[-1], Mapping) and messages[-1].get("role") == "exit":
        field, patch = text_field(messages[-1], "extra.submission", where=f"{where}: messages[{len(messages) - 1}]")
    _, template = text_field(record, "info.config.agent.instance_template", where=where)
    info = record["info"] if isinstance(record.get("info"), Mapping) else {}
    task = next((v for v in (record.get("instance_id"), info.get("instance_id")) if isinstance(v, str) and v), name)
    return [
        Session(
            task=task,
            prompt=statement.find(conversation.first_request(messages), template),
            steps=tuple(steps),
            patch=patch,
            patch_field=field or "info.submission",
            resolved=proved(record, "resolved", "info.resolved", where=where),
            repo=instance_of(record, where=where),
        )
    ]
