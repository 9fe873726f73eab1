"""SWE-smith's trajectories: chats with their instance (`messages`, `instance_id`, `resolved`, `patch`, `traj_id`).

On the hub the messages are JSON text; the `xml` split holds calls as `<function=…>`, the `tool` split as
`tool_calls`, the `ticks` split as bash blocks. Its `.traj` files are SWE-agent's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rune.corpus import dataset_row
from rune.corpus.session import Session

NAME = "SWE-smith JSONL"


def claims(record: Any) -> bool:
    """Messages of an instance, without what SWE-Gym, mini-swe-agent or OpenHands add."""
    if not isinstance(record, dict) or not {"messages", "instance_id"} <= set(record):
        return False
    return not {"run_id", "test_result", "info", "response", "trajectory", "history", "trajectory_format"} & set(record)


def read(record: Any, where: str, name: str) -> Sequence[Session]:
    """Raises DataError naming the field."""
    return [dataset_row.session(record, where, turns="messages")]
