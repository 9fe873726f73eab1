"""Files that come with Rune: configs by name, trained hypernetworks by their base. In a wheel as in a checkout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

_PACKAGE = Path(__file__).resolve().parent


class Hypernet(NamedTuple):
    """A trained hypernetwork that ships."""

    base: str  # digest of the base model's weights
    base_name: str
    folder: Path


def root() -> Path:
    """The folder with `configs/` and `results/`: inside an installed wheel, else the checkout."""
    inside = _PACKAGE / "_shipped"
    return inside if inside.is_dir() else _PACKAGE.parents[1]


def config(name: str) -> Path | None:
    """The config that is called so ("phase1-demo"), or None. A name has no suffix and no folder."""
    path = root() / "configs" / f"{name}.toml"
    return path if Path(name).name == name and path.is_file() else None


def config_names() -> list[str]:
    """Names that `config` knows, sorted."""
    return sorted(path.stem for path in (root() / "configs").glob("*.toml"))


def hypernets() -> list[Hypernet]:
    """One a base model, as `results/hypernets.json` says: digest → base (its name), folder (beside that file)."""
    results = root() / "results"
    index = json.loads((results / "hypernets.json").read_text(encoding="utf-8"))
    return [Hypernet(base, one["base"], results / one["folder"]) for base, one in index.items()]
