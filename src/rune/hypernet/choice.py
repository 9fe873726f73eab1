"""Which of the hypernetworks that ship is a base model's own. Loads no torch."""

from __future__ import annotations

from pathlib import Path

from rune import shipped
from rune.errors import ConfigError
from rune.types import ModelRef


def for_base(model: ModelRef) -> Path:
    """The folder of the one that was trained for this base. Raises ConfigError, naming the bases that have one."""
    known = shipped.hypernets()
    for one in known:
        if one.base == model.digest:
            return one.folder
    names = ", ".join(f"{one.base_name} ({one.base[:12]})" for one in known)
    raise ConfigError(f"no hypernetwork ships for base model {model.name} ({model.digest[:12]}), only for {names}")
