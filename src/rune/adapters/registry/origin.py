"""made_from.json: what an adapter was made from, written beside it by whoever makes it and read when it is added."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rune.adapters.registry.records import MadeFrom, Source
from rune.errors import DataError
from rune.runs import store

FILE = "made_from.json"


def write(folder: Path, made_from: MadeFrom) -> None:
    """Into an adapter's PEFT folder; PEFT and vLLM pass it over."""
    trajectories = [{"trajectory_id": s.trajectory_id, "task_id": s.task_id} for s in made_from.sources]
    raw = {"how": made_from.how, "hypernet": made_from.hypernet, "trajectories": trajectories}
    parents = [list(parent) for parent in made_from.parents]
    store.write_json(folder / FILE, {**raw, **({"parents": parents} if parents else {})})


def read(folder: Path) -> MadeFrom:
    """Of a PEFT folder; "imported" where it does not say. Raises DataError for a file that is not ours."""
    path = folder / FILE
    if not path.is_file():
        return MadeFrom(how="imported")
    raw = store.read_json(path)
    try:
        sources: Sequence[Source] = [
            Source(trajectory_id=str(t["trajectory_id"]), task_id=str(t["task_id"])) for t in raw["trajectories"]
        ]
        parents = tuple((str(parent), float(weight)) for parent, weight in raw.get("parents", ()))
        return MadeFrom(sources=tuple(sources), hypernet=str(raw["hypernet"]), how=str(raw["how"]), parents=parents)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not what rune writes ({error!r}); remove it, or make the adapter again") from None
