"""What a process holds while it does cells: machinery that fits each cell's settings, and the same for like ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rune.errors import ModelError
from rune.runs.store import RunDir
from rune.study import cells, config, creation, executor, folders
from rune.types import ModelRef
from tests.pipeline.experiment import settings, write


def test_an_engine_serves_the_cells_whose_model_engine_and_scorer_are_the_same(
    tmp_path: Path, tiny_model: ModelRef
) -> None:
    read = config.load(write(tmp_path, settings(tmp_path, tiny_model))).settings
    runner = executor.Runner(folders.Experiment(RunDir(tmp_path / "run"), read, tmp_path))

    def engine(seed: int = 3, **changes: object) -> Any:
        own = config.changed(read, {path.replace("__", "."): value for path, value in changes.items()})
        context = runner.context(own, cells.Cell(cells.MAIN, seed, -1))
        assert context.seed == seed
        return context.engine()

    first = engine()
    assert engine(seed=4) is first and engine(sample__n=9) is first
    other = engine(engine__settings__default=["another answer"])
    assert other is not first and other.config.default == ("another answer",)
    last = engine()
    assert last is not other and engine(score__settings__cpu_seconds=1.0) is not last
    runner.close()


@pytest.mark.parametrize("stage", ["train", "adapt", "sample"])
def test_a_run_does_not_go_on_with_another_model(
    stage: str, tmp_path: Path, tiny_model: ModelRef, data_dir: Path
) -> None:
    made = creation.create(config.load(write(tmp_path, settings(tmp_path, tiny_model))), resume=False)
    made.folder.update(model={"name": "the first", "sha256": "0" * 64, "source": "local"})
    with pytest.raises(
        ModelError, match=r"begun with the first \(sha256 000000000000…\), but that is now .*put the model"
    ):
        executor.run_one(made, stage)
