"""Parts by file name: `engines/vllm.py` is the engine "vllm". No registry, no import side effect.

A part's file has a frozen, keyword-only `Config` and a `build(config, …)`. Names that start with an
underscore are helpers, not parts.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from types import ModuleType

from rune.errors import ConfigError

SINGULAR = {
    "engines": "engine",
    "encoders": "encoder",
    "benchmarks": "benchmark",
    "conditions": "condition",
    "retrievers": "retriever",
    "sandbox": "sandbox backend",
    "benchmarks.scorers": "scorer",
}


def available(folder: str) -> list[str]:
    """Names of all parts in `rune/<folder>/`, sorted; nothing in it is imported."""
    package = importlib.import_module(f"rune.{folder}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.ispkg and not m.name.startswith("_"))


def load(folder: str, name: str) -> ModuleType:
    """The module of one part. Raises ConfigError with a near miss if there is no such file."""
    names = available(folder)
    if name not in names:
        raise ConfigError(unknown(SINGULAR.get(folder, folder), name, names))
    return importlib.import_module(f"rune.{folder}.{name}")


def unknown(kind: str, name: str, names: list[str]) -> str:
    """The one line every unknown name gets."""
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else "."
    return f"no {kind} named '{name}'{hint} Available: {', '.join(names)}"
