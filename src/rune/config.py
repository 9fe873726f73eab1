"""TOML → frozen dataclasses. Pure: text in, records out; the only reader of settings.

A stage or part declares its settings as a frozen, keyword-only dataclass; `build` fills it from a plain
mapping and refuses unknown keys (with a near miss), missing ones and wrong types before anything heavy
is loaded. A dataclass checks its own ranges in `__post_init__` by raising ValueError.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import tomllib
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, TypeVar

from rune import strict
from rune.errors import ConfigError

T = TypeVar("T")


def parse(text: str, *, where: str) -> dict[str, Any]:
    """TOML text → plain dict. `where` names the file in the error."""
    try:
        return tomllib.loads(text)
    except ValueError as error:  # a number of thousands of digits is one too
        raise ConfigError(f"{where}: not valid TOML: {error}") from None


def override(raw: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Apply `--set a.b=value` strings. The value is read as TOML, or else taken as a string."""
    result: dict[str, Any] = json.loads(json.dumps(raw))
    for setting in settings:
        path, equals, value = setting.partition("=")
        if not equals or not path.strip():
            raise ConfigError(f"--set {setting!r}: expected section.key=value, for example --set sample.n=5")
        try:
            parsed = tomllib.loads(f"v = {value}")["v"]
        except ValueError:
            parsed = value
        node = result
        *parents, leaf = path.strip().split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--set {setting!r}: '{parent}' is a value, not a section")
        node[leaf] = parsed
    return result


def build(cls: type[T], raw: Mapping[str, Any], *, where: str = "") -> T:
    """Fill dataclass `cls` from `raw`. `where` is the section's dotted name for messages.

    Raises ConfigError for an unknown or missing key, a wrong type, or a range the class refuses.
    """
    assert dataclasses.is_dataclass(cls)
    label = f"[{where}] " if where else ""
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    hints = typing.get_type_hints(cls)
    for key in raw:
        if key not in fields:
            close = difflib.get_close_matches(key, list(fields), n=1)
            hint = f"; did you mean '{close[0]}'?" if close else "."
            raise ConfigError(f"{label}unknown key '{key}'{hint} Known: {', '.join(fields)}")
    values: dict[str, Any] = {}
    for name, spec in fields.items():
        path = f"{where}.{name}" if where else name
        if name in raw:
            values[name] = strict.value(hints[name], raw[name], path, _SETTINGS)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{label}missing key '{name}'; add it to the config or pass --set {path}=…")
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{label}{error}") from None


def _short(value: Any) -> str:
    """A value as a message shows it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits
        return "something too long to show"
    return text if len(text) <= 120 else f"{text[:117]}…"


_SETTINGS = strict.Dialect(
    ConfigError, "a section", _short, finite=True, record=lambda cls, raw, where: build(cls, raw, where=where)
)


def plain(value: Any) -> Any:
    """A dataclass (or anything in one) as JSON-ready dicts, lists and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def digest(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of `value`: equal settings, equal digest."""
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def derive_seed(seed: int, *parts: object) -> int:
    """A seed in 0 … 2³¹−1 for one purpose, so that no two purposes share a random stream."""
    text = json.dumps([seed, *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def dump_toml(value: Any) -> str:
    """A config as TOML text that `parse` reads back to the same mapping (None is left out)."""
    import tomli_w

    return tomli_w.dumps(_without_none(plain(value)))


def _without_none(section: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _without_none(v) if isinstance(v, Mapping) else v for k, v in section.items() if v is not None}
