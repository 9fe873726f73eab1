"""A phase begins when the one before has a verified decision that passed; what begins without says why everywhere."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rune import config as configs
from rune.cli.main import main
from rune.errors import ConfigError, PhaseError
from rune.reporting import tracking
from rune.runs import store
from rune.runs.store import RunDir
from rune.study import admission, combine, config, creation, phases, reading
from rune.types import ModelRef
from tests.pipeline.experiment import settings, write
from tests.report import runs

REASON = 'the gate is under review: "points" – not proof'
CONFIG = Path(__file__).parents[2] / "configs" / "phase1-0.5b.toml"


def decided(root: Path, lift: float) -> Path:
    """A run folder without a model, sealed, scored and decided."""
    arms = ("vanilla", "hypernet", "wrong_trajectory")
    made = runs.build(
        root,
        name="gate",
        held_out=20,
        n=2,
        arms=arms,
        lift={"hypernet": lift},
        extras=False,
        simulations=100,
        resamples=200,
    )
    assert main(["gate", str(made.path)]) in (0, 10)
    return made.path


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A gate that passed and one that failed."""
    root = tmp_path_factory.mktemp("gates")
    found = {"passed": decided(root / "passed", 0.35), "failed": decided(root / "failed", -0.2)}
    for name, path in found.items():
        assert json.loads((path / "decision.json").read_text(encoding="utf-8"))["passed"] is (name == "passed")
    return found


@pytest.fixture
def passed(gates: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(gates["passed"], tmp_path / "before" / gates["passed"].name))


def digest(run: Path) -> str:
    return store.sha256_file(run / "decision.json")


def wanting(root: Path, model: ModelRef, **phase: Any) -> config.Loaded:
    """A tiny config of a phase."""
    return config.load(write(root, settings(root, model, phase=phase)))


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")


def test_a_config_without_a_phase_is_of_phase_1_and_has_the_digest_that_it_always_had() -> None:
    read = config.load(CONFIG).settings
    assert read.phase == phases.Config(number=1) and "phase" not in configs.plain(read)
    assert configs.digest(read) == "2070bfee5a697da2ccfb0ba41b70b6f3c0146bfe16b9c22f0a801842f18b7266"
    assert configs.plain(config.load(CONFIG, ["phase.number=2"]).settings)["phase"]["number"] == 2


@pytest.mark.parametrize("number", [2, 4])
def test_a_later_phase_is_refused_without_a_decision_of_the_one_before(
    tmp_path: Path, tiny_model: ModelRef, number: int
) -> None:
    loaded = wanting(tmp_path, tiny_model, number=number)
    with pytest.raises(
        PhaseError,
        match=rf"phase {number} \(.*\) waits for a passed decision of phase {number - 1}: none is named; set \[phase\] "
        "after .* or give --override REASON",
    ):
        creation.create(loaded, resume=False)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("path", sorted(CONFIG.parent.glob("phase[2-9]*.toml")), ids=lambda path: path.stem)
def test_a_config_that_is_called_by_a_later_phase_is_of_it_and_refuses_without_a_decision(path: Path) -> None:
    loaded = config.load(path, ["phase.after=''", "phase.decision=''"])
    number = int(path.name.removeprefix("phase")[0])
    assert loaded.settings.phase.number == number
    with pytest.raises(PhaseError, match=rf"phase {number} .* waits for a passed decision of phase {number - 1}: none"):
        admission.demand(loaded.settings, loaded.base)


def test_the_shipped_config_of_phase_2_names_the_decision_that_is_committed() -> None:
    """A decision that is made again has another digest; `admission.verify` of this run takes minutes."""
    loaded = config.load(CONFIG.with_name("phase2-0.5b.toml"))
    before = RunDir.open(loaded.base / loaded.settings.phase.after)
    assert loaded.settings.phase.decision == combine.digest_of(before)
    assert reading.decision(before).passed


def test_a_passed_decision_named_by_its_digest_opens_the_phase_and_stands_in_the_manifest(
    tmp_path: Path, tiny_model: ModelRef, passed: Path
) -> None:
    after = f"before/{passed.name}"  # relative to the config
    made = creation.create(wanting(tmp_path, tiny_model, number=2, after=after, decision=digest(passed)), resume=False)
    found = made.folder.manifest()["phase"]
    assert found["number"] == 2 and found["title"] == phases.TITLES[2] and "overrides" not in found
    assert found["after"]["run"] == passed.name and found["after"]["decision"] == digest(passed)
    assert found["after"]["answer"] == "Gate PASSED"
    promised = json.loads((made.folder / "preregistration.json").read_text(encoding="utf-8"))
    assert promised["phase"] == {"number": 2, "after": after, "decision": digest(passed), "override": ""}


EDITS: dict[str, tuple[Callable[[Path], None], str]] = {
    "decision.json's effect": (
        lambda run: edit(run / "decision.json", lambda d: {**d, "effect_points": d["effect_points"] + 1}),
        "its decision was edited \\(effect_points is .* its verdicts give",
    ),
    "decision.json's words": (
        lambda run: edit(run / "decision.json", lambda d: {**d, "evidence": "it worked"}),
        "its decision was edited after it was made",
    ),
    "an arm's passes": (
        lambda run: edit(
            run / "decision.json",
            lambda d: {**d, "arms": [{**d["arms"][0], "num_passed": 1}, *d["arms"][1:]]},
        ),
        "its decision was edited \\(.*: num_passed is 1, its verdicts give",
    ),
    "a verdict": (
        lambda run: (run / "verdicts.jsonl").write_text(
            (run / "verdicts.jsonl").read_text(encoding="utf-8").replace('"failed"', '"passed"', 1)
        ),
        "changed since pre-registration: verdicts.jsonl: 1 of .* edited|changed since pre-registration: verdicts.jsonl",
    ),
    "the rule": (
        lambda run: (run / "config.toml").write_text(
            (run / "config.toml").read_text(encoding="utf-8").replace("simulations = 100", "simulations = 101")
        ),
        "changed since pre-registration: config.toml",
    ),
    "no decision": (lambda run: (run / "decision.json").unlink(), "is not decided; run `rune gate"),
    "no run": (lambda run: shutil.rmtree(run), "no run folder"),
}


@pytest.mark.parametrize("what", EDITS)
def test_a_decision_that_was_edited_opens_nothing(
    tmp_path: Path, tiny_model: ModelRef, passed: Path, what: str
) -> None:
    named = digest(passed)
    change, words = EDITS[what]
    change(passed)
    if what.startswith(("decision.json", "an arm")):
        named = digest(passed)  # whoever edits the decision names the edited one
    with pytest.raises(PhaseError, match=words):
        creation.create(wanting(tmp_path, tiny_model, number=2, after=str(passed), decision=named), resume=False)


def test_a_forged_decision_with_its_digest_in_the_manifest_is_still_not_what_the_verdicts_give(
    tmp_path: Path, gates: dict[str, Path]
) -> None:
    forged = Path(shutil.copytree(gates["failed"], tmp_path / "forged"))
    edit(forged / "decision.json", lambda d: {**d, "passed": True, "answer": "Gate PASSED"})
    change = RunDir(forged).manifest()
    change["stages"]["gate"]["decision"] = digest(forged)
    store.write_json(forged / "manifest.json", change)
    with pytest.raises(PhaseError, match="passed is True, its verdicts give False"):
        admission.verify(forged, number=1)


def test_a_failed_decision_another_digest_and_another_phase_open_nothing(
    tmp_path: Path, tiny_model: ModelRef, passed: Path, gates: dict[str, Path]
) -> None:
    def refused(words: str, **phase: Any) -> None:
        with pytest.raises(PhaseError, match=words):
            creation.create(wanting(tmp_path, tiny_model, **phase), resume=False)

    failed = gates["failed"]
    refused("did not pass: Gate FAILED", number=2, after=str(failed), decision=digest(failed))
    refused(
        f"its decision is {digest(passed)[:12]}…, .* names 000000000000", number=2, after=str(passed), decision="0" * 64
    )
    refused(f'does not name it; set it to "{digest(passed)}"', number=2, after=str(passed))
    refused("is of phase 1, not of phase 3", number=4, after=str(passed), decision=digest(passed))
    refused("needs no override", number=2, after=str(passed), decision=digest(passed), override="for fun")


def test_a_phase_that_there_is_not_and_settings_that_phase_1_has_no_use_for_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[phase\] there is no phase 7; number is one of 1 \(the gate"):
        config.load(CONFIG, ["phase.number=7"])
    for name in ("after", "decision", "override"):
        with pytest.raises(ConfigError, match=rf"\[phase\] {name}: phase 1 waits for nothing"):
            config.load(CONFIG, [f"phase.{name}=x"])
    with pytest.raises(ConfigError, match=r"phase.number cannot differ between variants"):
        creation.create(config.load(CONFIG, ['design.grid={"phase.number" = [2, 3]}']), resume=False)


def test_an_override_needs_a_reason_and_a_new_run(tmp_path: Path, passed: Path, capsys: Any) -> None:
    assert main(["run", str(CONFIG), "--override", "  "]) == 2
    assert "--override needs the reason in words" in capsys.readouterr().err
    assert main(["run", str(passed), "--resume", "--override", "why not"]) == 2
    assert "--override cannot change the config" in capsys.readouterr().err
    assert main(["run", str(CONFIG), "--override", "why not"]) == 2
    assert "override: phase 1 waits for nothing" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [["model.quantize=nf4"], ["sample.quantize=nf4"]])
def test_phase_1_takes_no_quantised_base_when_it_runs(changes: list[str]) -> None:
    loaded = config.load(CONFIG, changes)
    with pytest.raises(PhaseError, match=r"quantize = 'nf4': phase 1 \(.*\) does not take a quantised base"):
        admission.demand(loaded.settings, loaded.base)
    variant = config.load(CONFIG, [f'design.variants={{"four" = {{"{changes[0].partition("=")[0]}" = "nf4"}}}}'])
    with pytest.raises(PhaseError, match="does not take a quantised base"):
        admission.demand(variant.settings, variant.base)


def test_what_was_overridden_before_stands_in_what_stands_on_it(
    tmp_path: Path, tiny_model: ModelRef, passed: Path
) -> None:
    before = {"phase": 1, "reason": "an older doubt", "instead_of": "none"}
    RunDir(passed).update(phase={"number": 1, "title": "", "overrides": [before]})
    assert main(["gate", str(passed)]) == 0
    phase = {"number": 2, "after": str(passed)}
    opened = admission.demand(wanting(tmp_path, tiny_model, **phase, decision=digest(passed)).settings, tmp_path)
    assert opened["overrides"] == [before] and "overrides" not in opened["after"]
    forced = admission.demand(wanting(tmp_path, tiny_model, **phase, override="now").settings, tmp_path)
    assert [o["reason"] for o in forced["overrides"]] == ["an older doubt", "now"]


@pytest.fixture(scope="module")
def overridden(tmp_path_factory: pytest.TempPathFactory, tiny_model: ModelRef) -> Path:
    """An experiment of phase 2 in two cells, begun without phase 1's decision."""
    root = tmp_path_factory.mktemp("overridden")
    raw = settings(
        root,
        tiny_model,
        phase={"number": 2},
        design={"held_out": 4, "scored": 2, "tasks": 8, "seeds": [3, 4]},
        collect={"tasks": 4},
        adapt={"arms": ["vanilla", "hypernet"]},
        sample={"n": 2},
        gate={"n": 2, "simulations": 100, "resamples": 100, "floor": 0.0, "ceiling": 1.0},
        track={"enabled": True},
    )
    assert main(["run", str(write(root, raw)), "--override", REASON]) in (0, 10)
    (folder,) = (p for p in (root / "runs").iterdir() if p.is_dir() and p.name != "mlartifacts")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        *("manifest.json", "preregistration.json", "decision.json", "leakage.json", "result.json", "mlflow.json"),
        *("mlflow.csv", "tracking.json", "result.md", "report.md", "assessment.md", "report.html", "config.toml"),
    ],
)
def test_every_record_and_page_of_an_overridden_run_carries_the_reason(overridden: Path, name: str) -> None:
    text = (overridden / name).read_text(encoding="utf-8")
    assert REASON in html.unescape(text).replace('\\"', '"').replace('""', '"')


def test_every_cell_of_an_overridden_run_carries_the_reason_and_so_does_the_corpus(overridden: Path) -> None:
    cells = sorted((overridden / "cells").iterdir())
    assert len(cells) == 2
    for cell in cells:
        assert RunDir(cell).manifest()["phase"]["overrides"][0]["reason"] == REASON
        for name in ("corpus.json", "diagnostics.json"):
            assert any(REASON in line for line in json.loads((cell / name).read_text(encoding="utf-8"))["overrides"]), (
                name
            )
        weights = {path.parent for path in cell.rglob("*.safetensors")}
        assert {path.relative_to(cell).parts[0] for path in weights} == {"adapters", "checkpoints"}
        for place in weights:
            assert REASON in json.loads((place / "overrides.json").read_text(encoding="utf-8"))["overrides"][0]


def test_the_tracker_names_the_phase_and_the_reason_in_every_run_and_in_its_note(overridden: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{overridden.parent / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "rune"]
    found = client.search_runs([experiment.experiment_id])
    assert {r.data.tags["phase"] for r in found} == {"2: experiment", "2: vanilla", "2: hypernet"}
    for run in found:
        assert REASON in run.data.tags["rune.override"]
        assert run.data.tags["mlflow.note.content"].startswith("Phase 2: Gate ")
        assert REASON in run.data.tags["mlflow.note.content"]
    assert {row["phase"] for row in tracking.table(overridden)} == {"2: vanilla", "2: hypernet"}


def test_show_names_a_runs_phase_and_what_every_phase_waits_for(overridden: Path, passed: Path, capsys: Any) -> None:
    assert main(["show", str(overridden)]) == 0
    one = capsys.readouterr().out
    assert f"phase   Phase 2 ({phases.TITLES[2]})" in one and REASON in one and "weights, computed in" in one
    assert main(["show", str(overridden.parent)]) == 0
    here = capsys.readouterr().out
    assert f"phase 2  {phases.TITLES[2]}: waits for a passed decision of phase 1: none of these runs" in here
    assert main(["show", str(passed.parent)]) == 0
    there = capsys.readouterr().out
    assert f"phase 2  {phases.TITLES[2]}: phase 1 passed in {passed.name}" in there
    assert f"phase 3  {phases.TITLES[3]}: waits for a passed decision of phase 2" in there
