"""Files that come with Rune: configs by name, the trained hypernetwork. In a wheel as in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


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
