"""SWE-Gym's OpenHands-Sampled-Trajectories: `messages` with `tool_calls`, `instance_id`, `run_id`, `resolved`.

Null fields of a message are the data set's columns, not the message's; the patch, where it is there, stands in
`test_result.git_patch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rune.corpus import dataset_row
from rune.corpus.session import Session

NAME = "SWE-Gym (OpenHands) JSONL"


def claims(record: Any) -> bool:
    """Messages of an instance with the run or the test result that SWE-Gym keeps."""
    if not isinstance(record, dict) or not {"messages", "instance_id"} <= set(record):
        return False
    return bool({"run_id", "test_result"} & set(record)) and not {"info", "response", "trajectory", "history"} & set(
        record
    )


def read(record: Any, where: str, name: str) -> Sequence[Session]:
    """Raises DataError naming the field."""
    return [dataset_row.session(record, where, turns="messages")]
