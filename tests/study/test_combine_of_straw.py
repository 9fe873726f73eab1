"""What a study writes down and from which cells: decisions are told by whom they are about, folders are real."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rune import config
from rune.analysis import gate as rule
from rune.analysis import relative
from rune.errors import GateError
from rune.runs import store
from rune.runs.records import Records
from rune.runs.store import RunDir
from rune.stages import report
from rune.study import combine
from rune.study.cells import Cell
from rune.study.combine import Done, Source
from rune.types import Decision, Interval, Problem, Split
from tests.gate import test_gate as gates

DECISION = gates.decide(gates.both(gates.FIVE, gates.BASE), settings=rule.Config(resamples=200, simulations=100))
CELLS = [(v, s, f) for s in (7, 3) for f in (0, 1) for v in ("a", "b")]
Asked = list[list[tuple[str, int, int]]]


def nothing(_: str) -> Any:
    return {}


def problem(task: str, domain: str = "") -> Problem:
    return Problem(
        task_id=task, benchmark="t", prompt="", entry_point="f", test="", split=Split.HELD_OUT, domain=domain
    )


def source(tmp_path: Path, cells: Sequence[tuple[str, int, int]] = CELLS, **changes: Any) -> Source:
    folder = RunDir(tmp_path / "study-abc")
    folder.path.mkdir(exist_ok=True)
    manifest = {"name": "study-crossfit", "model": {"name": "m"}, "dtype": "float32", "stages": {}}
    store.write_json(folder.manifest_path, {**manifest, **changes.pop("manifest", {})})
    found = Source(
        folder=folder, gate=rule.Config(resamples=200, simulations=100), report=report.Config(),
        problems=[problem("T/0", "x"), problem("T/1", "y")],
        variants={v: {"key": v} for v in dict.fromkeys(v for v, _, _ in cells)},
        cells=[Done(Cell(*c), Records(nothing), "a card", 10.0 * i) for i, c in enumerate(cells)],
        verify=lambda: None, seconds={"once": 5.0},
    )  # fmt: skip
    return found._replace(**changes)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Each decision over cells says which they were."""
    heard: Asked = []

    def over(source: Source, cells: Sequence[Done]) -> tuple[Decision, dict[str, Any]]:
        heard.append([tuple(done.cell) for done in cells])  # type: ignore[misc]
        name = " ".join(done.cell.name for done in cells)
        return replace(DECISION, evidence=name), {"suspicious": [f"of {name}"], "checked": len(cells)}

    monkeypatch.setattr(combine, "over", over)
    monkeypatch.setattr(combine.tables, "page", lambda result: f"page of {result['name']}")
    return heard


def names(variant: str, *seeds: int) -> str:
    return " ".join(Cell(variant, s, f).name for s in seeds for f in (0, 1))


def test_each_variant_is_decided_once_over_all_seeds_and_once_a_seed(tmp_path: Path, asked: Asked) -> None:
    study = source(tmp_path)
    decision = combine.decide(study)
    assert decision.evidence == names("a", 7, 3)
    assert len(asked) == 6 and len({tuple(cells) for cells in asked}) == 6
    result = store.read_json(study.folder / "result.json")
    for variant in "ab":
        found = result["variants"][variant]
        assert found["settings"] == {"key": variant}
        assert found["pooled"]["decision"]["evidence"] == names(variant, 7, 3)
        assert found["pooled"]["suspicious"] == [f"of {names(variant, 7, 3)}"]
        assert list(found["seeds"]) == ["7", "3"] and found["diagnostics"] == {}
        for seed in (7, 3):
            assert found["seeds"][str(seed)]["decision"]["evidence"] == names(variant, seed)
            assert found["seeds"][str(seed)]["suspicious"] == [f"of {names(variant, seed)}"]
    assert store.read_json(study.folder / "decision.json") == config.plain(decision)
    assert store.read_json(study.folder / "leakage.json")["checked"] == 4
    assert (study.folder / "result.md").read_text() == "page of study-abc"
    assert not {"losses", "most_loss", "answer"} & result.keys()
    assert combine.made_again(study) == decision


def test_a_run_of_one_cell_has_its_decision_alone(tmp_path: Path, asked: Asked) -> None:
    study = source(tmp_path, [("main", 3, -1)])
    assert study.single and not source(tmp_path).single
    combine.decide(study)
    assert {p.name for p in study.folder.path.iterdir()} == {"manifest.json", "decision.json", "leakage.json"}
    assert asked == [[("main", 3, -1)]]


def test_nothing_is_decided_over_what_changed_under_seal(tmp_path: Path, asked: Asked) -> None:
    def verify() -> None:
        raise GateError("a cell changed")

    study = source(tmp_path, verify=verify)
    with pytest.raises(GateError, match="a cell changed"):
        combine.decide(study)
    assert asked == [] and [p.name for p in study.folder.path.iterdir()] == ["manifest.json"]


def test_the_head_says_what_was_run_on_what_and_how_long(tmp_path: Path, asked: Asked) -> None:
    study = source(tmp_path)
    combine.decide(study)
    head = store.read_json(study.folder / "result.json")
    del head["variants"]
    seconds = {"once": 5.0} | {Cell(*c).name: 10.0 * i for i, c in enumerate(CELLS)}
    assert head == {
        "name": "study-abc", "run": "study", "model": {"name": "m"}, "dtype": "float32", "device": "a card",
        "folds": 2, "seeds": [7, 3], "seconds": seconds,
    }  # fmt: skip
    other = source(tmp_path, manifest={"dtype": None, "phase": {"number": 2}})
    told = combine._head(other)
    assert "dtype" not in told and told["phase"] == {"number": 2}
    for phase in ({"number": 1}, {}):
        assert "phase" not in combine._head(source(tmp_path, manifest={"phase": phase}))


def test_devices_are_named_with_how_many_cells_each_did() -> None:
    def cells(*devices: str) -> list[Done]:
        return [Done(Cell("a", i, 0), Records(nothing), device, 0.0) for i, device in enumerate(devices)]

    assert combine._devices(cells("cpu", "cpu")) == "cpu"
    assert combine._devices(cells("cpu", "card", "card")) == "card (2 of the cells), cpu (1 of the cells)"


def test_the_leakage_check_made_again_is_of_the_first_variant(tmp_path: Path, asked: Asked) -> None:
    study = source(tmp_path)
    found = combine.leaks(study)
    assert asked == [[("a", s, f) for s in (7, 3) for f in (0, 1)]]
    assert found["checked"] == 4 and store.read_json(study.folder / "leakage.json") == found


def test_cells_come_seed_by_seed_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    study = source(tmp_path)
    assert [tuple(d.cell) for d in study.of("b", 3, 7)] == [("b", s, f) for s in (3, 7) for f in (0, 1)]
    assert [tuple(d.cell) for d in study.of("b", 3)] == [("b", 3, 0), ("b", 3, 1)]
    assert [tuple(d.cell) for d in study.of("b")] == [("b", s, f) for s in (7, 3) for f in (0, 1)]
    assert (study.seeds, study.folds, study.phase) == ([7, 3], 2, {})


def test_what_a_report_shows_is_the_first_variants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []
    monkeypatch.setattr(combine.records, "together", lambda problems, parts: (len(problems), list(parts)))
    monkeypatch.setattr(combine.report, "run", lambda *given: heard.append(given) or Path("report.html"))
    study = source(tmp_path)
    first = [d.records for d in study.of("a")]
    assert combine.pooled(study) == (2, first)  # type: ignore[comparison-overlap]
    assert combine.report_on(study, {"r": 1}) == Path("report.html")
    assert heard == [(study.folder, study.report, (2, first), {"r": 1})]
    single = source(tmp_path, [("main", 3, -1)])
    assert combine.pooled(single) is single.cells[0].records


def test_a_readme_gets_the_block_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []
    monkeypatch.setattr(combine.report, "write_readme", lambda *given: heard.append(given))
    monkeypatch.setattr(combine.store, "replace_block", lambda *given: heard.append(given))
    monkeypatch.setattr(combine.tables, "brief", lambda result: f"brief of {result['run']}")
    path = tmp_path / "README.md"
    single = source(tmp_path, [("main", 3, -1)])
    combine.readme(single, path)
    study = source(tmp_path)
    store.write_json(study.folder / "result.json", {"run": "demo"})
    combine.readme(study, path)
    assert heard == [
        (single.folder, single.report, path, single.cells[0].records), (path, "demo", "brief of demo"),
    ]  # fmt: skip


def test_what_was_decided_is_known_by_its_digest(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    (tmp_path / "result.json").write_text("an older version's")
    older = store.sha256_file(tmp_path / "result.json")
    assert combine.digest_of(folder) == older
    (tmp_path / "decision.json").write_text("this one's")
    assert combine.digest_of(folder) == store.sha256_file(tmp_path / "decision.json") != older


# --------------------------------------------------------------------------- variants that may lose so much


def test_a_rule_on_losses_decides_over_the_other_variants(
    tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = relative.Loss(
        variant="b", condition="hypernet", reference_pass_at_1=0.5, pass_at_1=0.4, percent=1.5,
        interval=Interval(low=-1.0, high=5.0, level=0.95, over="tasks"),
    )  # fmt: skip
    monkeypatch.setattr(combine, "losses", lambda source, decide_on: [lost])
    study = source(tmp_path, gate=rule.Config(resamples=200, simulations=100, most_loss=2.0))
    decision = combine.decide(study)
    result = store.read_json(study.folder / "result.json")
    assert (result["most_loss"], result["answer"], decision.answer) == (2.0, "Gate PASSED", "Gate PASSED")
    assert result["losses"] == [config.plain(lost)] == decision.details["losses"]
    assert len(asked) == 6  # none was made twice
    with pytest.raises(GateError, match="there is one alone"):
        combine.decide(source(tmp_path, [("a", 7, 0), ("a", 3, 0)], gate=study.gate))


def test_losses_are_of_each_other_variant_over_its_own_trainings(
    tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[Any] = []

    def table(pooled: Decision, each: Sequence[Decision]) -> Any:
        return types.SimpleNamespace(tasks=("T/1", "T/0"), of=(pooled.evidence, [d.evidence for d in each]))

    def losses(reference: Any, other: Any, **how: Any) -> list[Any]:
        compared.append((reference.of, other.of, how))
        return [how["variant"], len(compared)]

    monkeypatch.setattr(combine.relative, "table", table)
    monkeypatch.setattr(combine.relative, "losses", losses)
    three = [(v, s, f) for s in (7, 3) for f in (0, 1) for v in "abc"]
    study = source(tmp_path, three, gate=rule.Config(level=0.9, resamples=210, simulations=100, seed=5))
    assert combine.losses(study, combine._once(study)) == ["b", 1, "c", 2]  # type: ignore[comparison-overlap]
    how = {"level": 0.9, "resamples": 210, "seed": 5, "clusters": []}

    def of(variant: str) -> tuple[str, list[str]]:
        return names(variant, 7, 3), [names(variant, 7), names(variant, 3)]

    assert compared == [(of("a"), of(v), {**how, "variant": v}) for v in "bc"]
    combine.losses(study._replace(by="domain"), combine._once(study))
    assert [c[2]["clusters"] for c in compared[2:]] == [["y", "x"]] * 2  # each task's, in the table's order


# --------------------------------------------------------------------------- decisions that say their phase


@pytest.mark.parametrize("overridden", [False, True])
def test_a_decision_and_its_leakage_check_say_the_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overridden: bool
) -> None:
    given: list[Any] = []

    def over(problems: Any, cells: Any, settings: Any, **how: Any) -> tuple[Decision, dict[str, Any]]:
        given.append((len(problems), len(cells), how))
        return DECISION, {"suspicious": []}

    monkeypatch.setattr(combine.rule, "over", over)
    said = [{"phase": 2, "instead_of": "none", "reason": "a try"}] if overridden else []
    study = source(tmp_path, manifest={"phase": {"number": 2, "overrides": said}}, by="domain")
    decision, found = combine.over(study, study.of("b"))
    assert given == [(2, 4, {"seeds": [7, 7, 3, 3], "by": "domain"})]
    words = ["Phase 2 began without a passed decision of phase 1 (none), by override: a try"] if overridden else []
    assert found == {"suspicious": [], **({"overrides": words} if overridden else {})}
    assert decision.details["phase"]["number"] == 2 and decision.reasons == (*words, *DECISION.reasons)


# --------------------------------------------------------------------------- experiments on disk


def test_a_run_by_itself_is_one_cell_of_its_own_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunDir(tmp_path / "run")
    folder.path.mkdir()
    store.write_json(folder.manifest_path, {"device": "a card", "stages": {}})
    store.write_jsonl(folder / "problems.jsonl", [problem("T/0")])
    demanded: list[Any] = []
    monkeypatch.setattr(combine.gate, "demand", demanded.append)
    raw = {"run": {"seed": 9}, "gate": {"n": 7}, "design": {"by": "domain"}}
    study = combine.of_one_cell(folder, raw)
    ((cell, _, device, seconds),) = study.cells
    assert (tuple(cell), device, seconds, study.by, study.gate.n) == (("main", 9, -1), "a card", 0.0, "domain", 7)
    assert [p.task_id for p in study.problems] == ["T/0"] and study.variants == {"main": {}} and study.seconds == {}
    study.verify()
    assert demanded == [folder]
    store.write_json(folder.manifest_path, {"stages": {}})
    bare = combine.of_one_cell(folder, {})
    assert (bare.cells[0].cell.seed, bare.cells[0].device, bare.by) == (0, "unknown", "task")


def test_an_experiments_cells_say_their_device_and_seconds_and_are_all_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunDir(tmp_path / "all")
    folder.path.mkdir()
    store.write_jsonl(folder / "problems.jsonl", [problem("T/0"), problem("T/1")])
    places = []
    for name, manifest in (
        ("x", {"device": "a card", "stages": {"train": {"seconds": 1.5}, "score": {"seconds": 2.25}, "adapt": {}}}),
        ("y", {}),
        ("z", None),
    ):
        where = RunDir(folder / "cells" / name)
        where.path.mkdir(parents=True)
        if manifest is not None:
            store.write_json(where.manifest_path, manifest)
        places.append(types.SimpleNamespace(cell=Cell(name, 0, -1), folder=where))
    design = types.SimpleNamespace(by="domain")
    settings = types.SimpleNamespace(gate="[gate]", report="[report]", design=design)
    experiment: Any = types.SimpleNamespace(
        folder=folder, single=False, settings=settings, places=lambda: places, base=tmp_path
    )
    heard: list[Any] = []
    monkeypatch.setattr(combine, "variants", lambda design: {"x": {"by": design.by}})
    monkeypatch.setattr(combine.gate, "demand_promise", lambda f: heard.append(("promise", f.path.name)))
    monkeypatch.setattr(combine, "check_promises", lambda e: heard.append("cells' promises"))
    monkeypatch.setattr(combine.gate, "demand", lambda f: heard.append(("all", f.path.name)))
    study = combine.of_experiment(experiment)
    assert [(d.cell.variant, d.device, d.seconds) for d in study.cells] == [
        ("x", "a card", 3.75), ("y", "unknown", 0.0), ("z", "unknown", 0.0),
    ]  # fmt: skip
    said: tuple[Any, ...] = (study.gate, study.report, study.by, study.variants)
    assert said == ("[gate]", "[report]", "domain", {"x": {"by": "domain"}})
    assert len(study.problems) == 2 and study.seconds == {} and heard == []
    study.verify()
    assert heard == [("promise", "all"), "cells' promises", *(("all", n) for n in "xyz")]


def test_adapters_are_told_of_cells_that_have_them(tmp_path: Path) -> None:
    def done(arms: dict[str, Any], swap: dict[str, Any]) -> Done:
        told: dict[str, Any] = {"diagnostics": {"arms": arms, "swap": swap} if arms or swap else {}}
        return Done(Cell("a", 0, 0), Records(lambda name: told[name]), "cpu", 0.0)

    def arm(n: float) -> dict[str, Any]:
        return {
            "cosine_raw": {"mean_off_diagonal": n}, "cosine_centred": {"mean_off_diagonal": -n},
            "effective_rank": 10 * n, "delta_w_norm_mean": 2 * n, "ratio": {"q_proj": [n, 3 * n], "v_proj": [n]},
        }  # fmt: skip

    cells = [
        done({"h": arm(1.0), "o": arm(90.0)}, {"h": {"mean_lead": 4.0}, "o": {"mean_lead": 50.0}}),
        done({"h": arm(3.0)}, {"h": {}}),
        done({}, {}),
        done({"o": arm(70.0)}, {"h": {"mean_lead": 6.0}}),
    ]
    assert combine._adapters(cells, "h") == {
        "cosine_raw": 2.0, "cosine_centred": -2.0, "effective_rank": 20.0, "delta_w_norm": 4.0,
        "ratio": {"q_proj": 4.0, "v_proj": 2.0}, "swap_mean_lead_nats": 5.0,
    }  # fmt: skip
    assert combine._adapters(cells, "absent") == {} == combine._adapters([], "h")
