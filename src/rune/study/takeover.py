"""A stage that another cell has done with the same inputs is taken over: its files are copied, the manifest says so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from rune.runs import integrity
from rune.stages import collect
from rune.study.folders import CellFolder


def adopt(source: CellFolder, target: CellFolder, name: str) -> None:
    """Take over a stage that another cell has done with the same inputs."""
    began = source.folder.manifest()
    with target.folder.stage(name) as entry:
        entry.update(by=began["stages"][name].get("by", {}), same_as=source.cell.name)
        target.folder.update(**{k: began[k] for k in ("model", "device", "dtype") if k in began})
        for file in OUTPUTS[name]:
            here, there = source.folder / file, target.folder / file
            if here.is_dir():
                shutil.copytree(here, there, copy_function=_link, dirs_exist_ok=True)
            elif here.exists():
                shutil.copyfile(here, there)
        integrity.seal(target.folder, name)


OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "collect": ("trajectories.jsonl", collect.SHOWN, "corpus.json"),
    "train": ("checkpoints",),
    "adapt": ("treatments.jsonl", "diagnostics.json"),
    "sample": ("samples.jsonl",),
    "score": ("verdicts.jsonl",),
}


def _link(source: str, target: str) -> None:
    """Weights are large and never changed: a second name for the file, or a copy where there is no such thing."""
    if Path(source).suffix != ".safetensors":
        shutil.copyfile(source, target)
        return
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
