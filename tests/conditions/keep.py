"""Where an arm's adapters go, for arms that make none."""

from __future__ import annotations

from typing import Any

from rune.types import AdapterRef


def no_adapters(arm: str, key: str, made: Any, layout: Any) -> AdapterRef:
    raise AssertionError(f"{arm} makes no adapter")
