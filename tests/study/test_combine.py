"""What a study's cells say together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rune.analysis.relative import Loss
from rune.config import plain
from rune.errors import StoreError
from rune.runs import records
from rune.runs.store import RunDir
from rune.study import combine, config, folders, tables, version1
from rune.types import Interval, ModelRef
from tests.pipeline.experiment import settings, write
from tests.report import runs
from tests.stages import test_crossfit_decide as byhand


def test_a_mean_over_cells_is_over_those_that_have_a_value() -> None:
    assert tables.mean([1.0, None, 4.0, 7.0]) == 4.0
    assert tables.mean([-1.0, 1.0]) == 0.0
    assert tables.mean([None]) is None and tables.mean([]) is None


def test_a_study_by_domain_is_decided_over_domains(tmp_path: Path) -> None:
    source = version1.source(byhand.write(tmp_path, byhand.settings()))
    grouped = [replace(p, domain=f"d{i // 2}") for i, p in enumerate(source.problems)]
    cells = source.of("temperature-0.8")
    by_task, _ = combine.over(source._replace(problems=grouped), cells)
    by_domain, _ = combine.over(source._replace(problems=grouped, by="domain"), cells)
    assert {a.interval.over for a in by_task.arms} == {c.interval.over for c in by_task.contrasts}
    assert by_task.contrasts[0].interval.over == "tasks and trainings"
    assert {i.interval.over for i in (*by_domain.arms, *by_domain.contrasts)} == {"domains and trainings"}
    one_seed, _ = combine.over(source._replace(problems=grouped, by="domain"), source.of("temperature-0.8", 7))
    assert {i.interval.over for i in (*one_seed.arms, *one_seed.contrasts)} == {"domains, one training"}


def test_what_the_design_splits_by_is_read_from_a_runs_config(tmp_path: Path, tiny_model: ModelRef) -> None:
    folder = runs.build(tmp_path / "one", extras=False)
    assert combine.of_one_cell(folder, {"design": {"by": "domain"}}).by == "domain"
    assert combine.of_one_cell(folder, {}).by == "task"
    raw = settings(tmp_path, tiny_model, design={"seeds": [1, 2], "by": "domain"})
    read = config.load(write(tmp_path, raw)).settings
    experiment = folders.Experiment(RunDir(tmp_path / "several"), read, tmp_path)
    assert combine.of_experiment(experiment).by == "domain"


def test_what_the_seals_of_any_cell_found_is_shown_of_all() -> None:
    def cell(*changes: str) -> records.Records:
        return records.Records(lambda name: changes if name == "changes" else [])

    whole = records.together([], [cell(), cell("samples.jsonl: line 3 edited"), cell("config.toml is gone")])
    assert whole.changes == ("samples.jsonl: line 3 edited", "config.toml is gone")


def test_a_run_of_version_1_whose_config_was_edited_is_not_decided_again(tmp_path: Path) -> None:
    folder = byhand.write(tmp_path, byhand.settings())
    folder.update(seals={"config.toml": "0" * 64})
    with pytest.raises(StoreError, match=r"config\.toml: edited after the run was made"):
        combine.decide(version1.source(folder))


def test_the_losses_say_the_level_of_their_interval() -> None:
    interval = Interval(low=-1.0, high=5.0, level=0.9, over="tasks and trainings")
    loss = Loss(
        variant="nf4", condition="hypernet", reference_pass_at_1=0.5, pass_at_1=0.49, percent=2.0, interval=interval
    )
    table = tables._losses({"variants": {"bf16": {}, "nf4": {}}, "losses": [plain(loss)]})
    assert table.header[-1] == "90 % interval over tasks and trainings"
    assert table.rows == (("hypernet", "nf4", "50.0", "49.0", "+2.0", "[−1.0, +5.0]"),)
