"""Two rules that no linter knows: private names stay in their folder, and retired words stay away.

    .venv/bin/python tools/lint_names.py          # exit code 1 and one line a fault

A private module (`_x.py`) or name (`_x`) of one folder of `src/rune` is imported by that folder only. A retired word
was this project's own metaphor for something that has a name in the field (docs/glossary.md).
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RETIRED = {  # word: what it is called now
    "Bank": "FeatureTable or AdapterPool",
    "Both": "HypernetWithStatic",
    "Desk": "TrainingSession",
    "Ears": "EncoderPretraining",
    "Feed": "FeedForward",
    "Flight": "PendingBurst",
    "Hands": "AdapterStore",
    "Layout": "LoraTargets or BatchPlan",
    "Maker": "AdapterGenerator",
    "Stranger": "UnsolvedTask",
    "Workshop": "ArmInputs",
    "lore": "conventions",
    "state_to_ship": "inference_state_dict",
    "workshop": "arm_inputs",
    "worn": "applied",
}


def private_imports(text: str, folder: str) -> Iterator[tuple[int, str]]:
    """(line, name) of each private module or name of another folder that `text`, a file of `folder`, imports."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ImportFrom | ast.Import):
            continue
        names = [a.name for a in node.names]
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name}" for name in names]
        for name in names:
            parts = name.split(".")
            private = next((i for i, part in enumerate(parts) if part.startswith("_") and part[1:2] != "_"), None)
            if parts[0] == "rune" and private is not None:
                # A private module of this folder, or a private name in a module of this folder.
                in_folder = (ROOT / "src").joinpath(*parts[:private]).is_dir()
                if folder != ".".join(parts[: private if in_folder else private - 1]):
                    yield node.lineno, name


def retired_words(text: str) -> Iterator[tuple[int, str]]:
    """(line, word) of each identifier that is a retired word."""
    for node in ast.walk(ast.parse(text)):
        name = getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "arg", None)
        name = name or (node.name if isinstance(node, ast.ClassDef | ast.FunctionDef) else None)
        if name in RETIRED:
            yield getattr(node, "lineno", 0), name


def main() -> int:
    faults = []
    for path in sorted((ROOT / "src" / "rune").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        here = path.relative_to(ROOT).as_posix()
        folder = ".".join(path.parent.relative_to(ROOT / "src").parts)
        for line, name in private_imports(text, folder):
            faults.append(f"{here}:{line}: imports {name}, which is private to its folder; give it a public name")
        for line, word in retired_words(text):
            faults.append(f"{here}:{line}: '{word}' is retired; say {RETIRED[word]}")
    print("\n".join(faults) if faults else "names: no private import across folders, no retired word")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
