"""Nebius' data sets: SWE-agent-trajectories and SWE-rebench-openhands-trajectories.

The first keeps turns as {role: system | user | ai, text, system_prompt}, the command in the last code block of a
turn, the verdict in `target` and the patch in `generated_patch`; the second keeps OpenHands' messages in
`trajectory`, the verdict in `resolved` (0 or 1) and the patch in `model_patch`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rune.corpus import conversation, dataset_row
from rune.corpus.session import Session
from rune.errors import DataError

NAME = "Nebius (SWE-agent, SWE-rebench) JSONL"


def claims(record: Any) -> bool:
    """`trajectory` as turns with roles, or beside the fields that only these sets have."""
    if not isinstance(record, dict) or "trajectory" not in record or "messages" in record:
        return False
    turns = record["trajectory"]
    first = turns[0] if isinstance(turns, list) and turns else None
    return (
        bool({"generated_patch", "model_patch", "target"} & set(record))
        or isinstance(turns, str)
        or (isinstance(first, Mapping) and "role" in first)
    )


def read(record: Any, where: str, name: str) -> Sequence[Session]:
    """Raises DataError naming the field."""
    turns = conversation.messages_of(record, "trajectory", where)
    messages, spoken = [], False
    for number, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise DataError(f"{where}: field 'trajectory[{number}]': expected a turn, found {type(turn).__name__}")
        if "text" in turn and "content" not in turn:
            spoken = True
            messages.append({"role": turn.get("role"), "content": turn["text"] or turn.get("system_prompt") or ""})
        else:
            messages.append(dict(turn))
    verdicts = ("target", *dataset_row.VERDICTS)
    return [
        dataset_row.session(record, where, turns="trajectory", messages=messages, verdicts=verdicts, any_block=spoken)
    ]
