"""Rune's own trajectories, as `collect` writes them: one JSON object a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rune.corpus.importers import swe_agent
from rune.runs import store
from rune.types import Trajectory

NAME = "Rune's JSONL"

_ALIEN = ("trajectory", "messages", "history", "instance_id")


def claims(record: Any) -> bool:
    """An object with attempts or a trajectory_id, and no field of an agent's format."""
    if not isinstance(record, dict) or not {"attempts", "trajectory_id"} & set(record) or set(_ALIEN) & set(record):
        return False
    # Tries of SWE-agent's retrying agent hold a trajectory each.
    return "trajectory_id" in record or not swe_agent.tries(record)


def read(record: Any, where: str, name: str) -> Sequence[Trajectory]:
    """The record. Raises DataError naming the field."""
    return [store.decode(Trajectory, record, where=where)]
