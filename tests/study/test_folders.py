"""The folders of an experiment: what its manifest names, and what one cell takes over from another."""

from __future__ import annotations

from pathlib import Path

from rune.study import config, creation, takeover
from rune.types import ModelRef
from tests.pipeline.experiment import settings, write


def test_the_manifest_of_an_experiment_names_its_cells_and_each_has_a_promise(
    tmp_path: Path, tiny_model: ModelRef, data_dir: Path
) -> None:
    loaded = config.load(write(tmp_path, settings(tmp_path, tiny_model, design={"seeds": [3, 4]})))
    made = creation.create(loaded, resume=False)
    names = [place.cell.name for place in made.places()]
    assert len(names) == 2 and made.folder.manifest()["cells"] == names
    assert all(place.folder.manifest()["preregistration"] for place in made.places())


def test_weights_taken_over_have_a_second_name_and_all_else_is_copied(tmp_path: Path) -> None:
    for name, shared in (("model.safetensors", True), ("settings.json", False)):
        source, target = tmp_path / name, tmp_path / f"taken-{name}"
        source.write_bytes(b"content")
        target.write_bytes(b"left by a run that was stopped")
        takeover._link(str(source), str(target))
        assert target.read_bytes() == b"content" and target.samefile(source) is shared
