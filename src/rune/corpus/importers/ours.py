"""Rune's own trajectories, as `collect` writes them: one JSON object a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rune.runs import store
from rune.types import Trajectory

NAME = "Rune's JSONL"

_ALIEN = ("trajectory", "messages", "history", "instance_id")


def claims(record: Any) -> bool:
    """An object with attempts or a trajectory_id, and no field of an agent's format."""
    return (
        isinstance(record, dict) and bool({"attempts", "trajectory_id"} & set(record)) and not set(_ALIEN) & set(record)
    )


def read(record: Any, where: str, name: str) -> Sequence[Trajectory]:
    """The record. Raises DataError naming the field."""
    return [store.decode(Trajectory, record, where=where)]
