"""What is decided over several cells: each number from its own seed and variant, each leak where it is.

Folders are written by hand, in the layout of version 1, whose temperatures are variants now.
Two seeds, two folds, two temperatures, and passes that differ in all of them.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rune.errors import GateError
from rune.runs import store
from rune.study import combine, version1
from rune.types import Attempt, Outcome, Problem, Split, Trajectory, Treatment, Verdict

SEEDS, FOLDS, TEMPERATURES, DRAWS = (7, 3), (0, 1), (0.8, 0.2), 2
ARMS = ("vanilla", "hypernet", "wrong_trajectory")
TASKS = {0: [f"T/{i}" for i in (0, 2, 4, 6)], 1: [f"T/{i}" for i in (1, 3, 5, 7)]}
EVERY = [*TASKS[0], *TASKS[1]]


def settings(**gate: Any) -> dict[str, Any]:
    schedule = {"steps": 1, "learning_rate": 1e-3, "checkpoint_every": 1}
    return {
        "run": {"name": "byhand", "seed": 0},
        "model": {"name": "none", "device": "cpu"},
        "benchmark": {"folds": len(FOLDS)},
        "crossfit": {"seeds": list(SEEDS), "temperatures": list(TEMPERATURES)},
        "collect": {"tasks": 0, "chains": 1, "max_attempts": 1, "temperature": 0.8, "max_new_tokens": 9},
        "retrieve": {"top_k": 1},
        "train": {
            "lora": {"schedule": schedule, "rank": 2, "alpha": 2.0, "rows": 2, "max_tokens": 99},
            "hypernet": {
                "schedule": schedule, "rank": 2, "alpha": 2.0, "groups": 2, "targets": 1, "max_tokens": 99,
                "pairs": {"recall": 1.0, "max_sources": 1}, "weights": {"cross_entropy": 1.0},
            },
        },
        "adapt": {"arms": list(ARMS)},
        "sample": {"n": DRAWS, "temperature": 0.8, "max_new_tokens": 9, "top_p": 1.0, "top_k": 0},
        "score": {},
        "gate": {"n": DRAWS, "resamples": 100, "simulations": 100, **gate},
    }  # fmt: skip


def problem(task: str) -> Problem:
    number = int(task.partition("/")[2])
    words = " ".join(f"word{number}{c}" for c in "abcdefghijklmnopqrst")
    body = "\n".join(f"    x{number} = x{number} * {i} + {number}" for i in range(6))
    return Problem(
        task_id=task,
        benchmark="t",
        prompt=f"Task number {number}: {words}.",
        entry_point=f"f{number}",
        test=f"def check(candidate):\n    assert candidate({number}) == '{words}'\n",
        reference=f"def f{number}(x{number}):\n{body}\n    return x{number}\n",
        split=Split.HELD_OUT,
    )


def trajectory(name: str, task: str, *, code: str = "", domain: str = "") -> Trajectory:
    code = code or f"def {name}():\n    return '{name}'\n"
    return Trajectory(
        trajectory_id=name, task_id=task, benchmark="t", prompt=f"Do {name}.",
        attempts=(Attempt(code=code, outcome=Outcome.PASSED),), solution=code, domain=domain,
    )  # fmt: skip


def place(folder: store.RunDir, seed: int, fold: int) -> Path:
    return folder / f"seed-{seed}" / f"fold-{fold}"


def drawn_at(temperature: float) -> str:
    return f"t{temperature:g}"


def decide(folder: store.RunDir) -> dict[str, Any]:
    """result.json, by temperature."""
    combine.decide(version1.source(folder))
    found = store.read_json(folder / "result.json")
    by_heat = {name.removeprefix("temperature-"): variant for name, variant in found["variants"].items()}
    return {**found, "temperatures": by_heat, "diagnostics": by_heat["0.8"]["diagnostics"]}


def passes(seed: int, temperature: float, arm: str, task: str) -> int:
    """0 to 2 of two draws, drawn once for all; no two of the eight (seed, temperature, gated arm) agree throughout."""
    return random.Random(f"{seed} {temperature} {arm} {task}").randint(0, DRAWS)


Corpora = Mapping[tuple[int, int], list[Trajectory]]
Edit = Callable[[int, int, float, list[Treatment]], list[Treatment]]


def unchanged(seed: int, fold: int, temperature: float, treatments: list[Treatment]) -> list[Treatment]:
    return treatments


def write(root: Path, rule: dict[str, Any], *, more: Corpora | None = None, edit: Edit = unchanged) -> store.RunDir:
    """A scored run. Every fold's corpus: its own trajectory of each task of the other fold."""
    folder = store.RunDir.create(root, "byhand-crossfit", rule, extra={"device": "an old device"}, resume=False)
    folder.update(
        schema_version=1,
        model={"name": "m", "sha256": "ab" * 32},
        stages={"collect": {"status": "done", "seconds": 11.0}},
    )
    store.write_jsonl(folder / "problems.jsonl", [problem(t) for t in sorted(EVERY)])
    own = {t: trajectory(f"own{t[2:]}", t) for t in EVERY}
    added = [t for some in (more or {}).values() for t in some]
    store.write_jsonl(folder / "corpus.jsonl", {t.trajectory_id: t for t in [*own.values(), *added]}.values())
    for (i, seed), fold in itertools.product(enumerate(SEEDS), FOLDS):
        where = place(folder, seed, fold)
        store.write_jsonl(where / "problems.jsonl", [problem(t) for t in TASKS[fold]])
        corpus = [own[t] for t in TASKS[1 - fold]] + list((more or {}).get((seed, fold), ()))
        store.write_json(where / "corpus.json", [t.trajectory_id for t in corpus])
        swap = {"mean_lead": 4.0 + fold} if seed == SEEDS[0] else {}
        store.write_json(where / "diagnostics.json", {"arms": diagnostics(i, fold), "swap": {"hypernet": swap}})
        store.write_json(where / "done.json", {"seconds": 100.0 * seed + fold, "device": "a device"})
        for temperature in TEMPERATURES:
            there = where / drawn_at(temperature)
            source = corpus[0].trajectory_id
            treatments = [
                Treatment(task_id=t, condition=a, trajectory_ids=() if a == "vanilla" else (source,))
                for a, t in itertools.product(ARMS, TASKS[fold])
            ]
            store.write_jsonl(there / "treatments.jsonl", edit(seed, fold, temperature, treatments))
            verdicts = [
                Verdict(task_id=t, condition=a, draw=d, outcome=Outcome.PASSED if d < c else Outcome.FAILED)
                for a, t in itertools.product(ARMS, TASKS[fold])
                for c in [passes(seed, temperature, a, t)]
                for d in range(DRAWS)
            ]
            store.write_jsonl(there / "verdicts.jsonl", verdicts)
    return folder


def diagnostics(seed: int, fold: int) -> dict[str, Any]:
    def arm(shift: float) -> dict[str, Any]:
        number = 10.0 * seed + fold + shift
        return {
            "cosine_raw": {"mean_off_diagonal": 0.5 + number / 100},
            "cosine_centred": {"mean_off_diagonal": None if fold else -number / 100},
            "effective_rank": number,
            "delta_w_norm_mean": 2 * number,
            "ratio": {"q_proj": [number / 1000, number / 500]},
        }

    return {"hypernet": arm(1.0), "wrong_trajectory": arm(50.0)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> store.RunDir:
    return write(tmp_path_factory.mktemp("decide"), settings())


@pytest.fixture(scope="module")
def result(run: store.RunDir) -> dict[str, Any]:
    return decide(run)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_each_seed_and_temperature_is_decided_on_its_own_verdicts(result: dict[str, Any], temperature: float) -> None:
    found = result["temperatures"][f"{temperature:g}"]
    assert list(found["seeds"]) == [str(s) for s in SEEDS]
    for seed in SEEDS:
        details = found["seeds"][str(seed)]["decision"]["details"]
        assert (details["n"], details["tasks"]) == (DRAWS, sorted(EVERY))
        for arm in ARMS:
            assert details["passes"][arm] == [passes(seed, temperature, arm, t) for t in sorted(EVERY)]


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_all_seeds_together_are_the_draws_of_all_seeds_task_by_task(result: dict[str, Any], temperature: float) -> None:
    found = result["temperatures"][f"{temperature:g}"]
    decision = found["pooled"]["decision"]
    assert decision["details"]["n"] == DRAWS * len(SEEDS)
    for arm in ARMS:
        expected = [sum(passes(s, temperature, arm, t) for s in SEEDS) for t in sorted(EVERY)]
        assert decision["details"]["passes"][arm] == expected
    assert decision["details"]["power"]["design"] == {
        "num_tasks": len(EVERY), "k": DRAWS, "seeds": len(SEEDS)
    }  # fmt: skip
    each = [s["decision"]["effect_points"] for s in found["seeds"].values()]
    assert decision["effect_points"] == pytest.approx(sum(each) / len(each)) and each[0] != each[1]


def test_the_inputs_of_these_tests_differ_wherever_a_mix_up_could_hide() -> None:
    gated = itertools.product(SEEDS, TEMPERATURES, ("vanilla", "hypernet"))
    rows = [tuple(passes(*key, t) for t in EVERY) for key in gated]
    assert len(set(rows)) == len(rows) == 8


def test_a_clean_run_is_clean_in_every_decision(result: dict[str, Any]) -> None:
    assert set(result["temperatures"]) == {"0.8", "0.2"}
    for found in result["temperatures"].values():
        for one in (found["pooled"], *found["seeds"].values()):
            assert (one["suspicious"], one["decision"]["leakage_check"]) == ([], "clean")


def test_diagnostics_are_the_treatments_mean_over_folds_seed_by_seed(result: dict[str, Any]) -> None:
    for i, seed in enumerate(SEEDS):
        found = result["diagnostics"][str(seed)]
        mean = 10.0 * i + 1.5
        assert found["effective_rank"] == pytest.approx(mean) and found["delta_w_norm"] == pytest.approx(2 * mean)
        assert found["cosine_raw"] == pytest.approx(0.5 + mean / 100)
        assert found["cosine_centred"] == pytest.approx(-(10.0 * i + 1) / 100)  # of the folds that have one
        assert found["ratio"] == {"q_proj": pytest.approx(1.5 * mean / 1000)}
    assert [result["diagnostics"][str(s)]["swap_mean_lead_nats"] for s in SEEDS] == [4.5, None]


def test_seconds_device_and_seeds_are_those_of_the_run(result: dict[str, Any]) -> None:
    cells = [f"temperature-{t:g}.seed-{s}.fold-{f}" for s in SEEDS for f in FOLDS for t in TEMPERATURES]
    assert result["seconds"] == {"collect": 11.0} | {
        name: (100.0 * s + f) / 2
        for name, (s, f, _) in zip(cells, itertools.product(SEEDS, FOLDS, TEMPERATURES), strict=True)
    }
    assert (result["device"], result["seeds"], result["folds"]) == ("a device", list(SEEDS), len(FOLDS))


def test_the_page_shows_each_temperatures_own_numbers(run: store.RunDir, result: dict[str, Any]) -> None:
    page = (run / "result.md").read_text()
    parts = page.split("## Temperature ")[1:]
    assert [p.split("\n")[0] for p in parts] == ["0.8", "0.2"]
    for temperature, part in zip(("0.8", "0.2"), parts, strict=True):
        found = result["temperatures"][temperature]
        assert f"**{found['pooled']['decision']['answer']}** over all seeds together." in part
        for seed in SEEDS:
            row = next(line for line in part.splitlines() if line.startswith(f"| {seed} "))
            effect = found["seeds"][str(seed)]["decision"]["effect_points"]
            assert found["seeds"][str(seed)]["decision"]["answer"] in row
            assert f"{effect:+.1f}".replace("-", "−") in row


def test_the_page_shows_each_seeds_adapters_under_their_heads(run: store.RunDir, result: dict[str, Any]) -> None:
    table = (run / "result.md").read_text().split("### Adapters\n\n")[1].splitlines()
    heads = [cell.strip() for cell in table[0].strip("|").split("|")]
    for seed, line in zip(SEEDS, table[2:4], strict=True):
        row = dict(zip(heads, (cell.strip() for cell in line.strip("|").split("|")), strict=True))
        found = result["diagnostics"][str(seed)]
        lead = found["swap_mean_lead_nats"]
        assert row == {
            "seed": str(seed),
            "mean cosine of ΔW": f"{found['cosine_raw']:.4f}",
            "mean-centred": f"{found['cosine_centred']:.4f}",
            "effective rank": f"{found['effective_rank']:.1f}",
            "‖ΔW‖_F": f"{found['delta_w_norm']:.2f}",
            "own − swapped, nats": "–" if lead is None else f"{lead:.2f}",
        }


def test_a_draw_that_one_seed_lacks_leaves_all_undecided(tmp_path: Path) -> None:
    folder = write(tmp_path, settings())
    path = place(folder, SEEDS[1], 1) / drawn_at(0.2) / "verdicts.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(GateError, match=r"1 verdicts missing, first wrong_trajectory, T/7, draw 1"):
        decide(folder)


def test_more_draws_than_were_promised_are_demanded_of_every_seed(tmp_path: Path) -> None:
    """`gate.n` is a seed's share: together they must have so many times the number of seeds."""
    strict = settings(n=DRAWS)
    folder = write(tmp_path, strict)
    for fold in FOLDS:
        path = place(folder, SEEDS[0], fold) / drawn_at(0.8) / "verdicts.jsonl"
        kept = [v for v in store.read_jsonl(path, Verdict) if v.draw < DRAWS - 1]
        store.write_jsonl(path, kept)
    with pytest.raises(GateError, match=r"needs 2 samples per task, arm '\w+' has 1"):
        decide(folder)


# --------------------------------------------------------------------------- leaks


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Each task with a number below 4 leaks in a way and a place of its own; T/4 stands beside what is harmless."""
    copied = trajectory("copied", "other/1", code=problem("T/2").reference)
    convention = trajectory("convention", "fam/1", domain="fam")

    def edit(seed: int, fold: int, temperature: float, treatments: list[Treatment]) -> list[Treatment]:
        changed = []
        for t in treatments:
            context, sources = t.context, t.trajectory_ids
            if (seed, temperature, t.task_id, t.condition) == (3, 0.2, "T/1", "wrong_trajectory"):
                context = f"You may need this:\n{problem('T/1').test}"
            if (seed, temperature, t.task_id, t.condition) == (7, 0.8, "T/0", "hypernet"):
                sources = ("own0",)  # another fold may train on it, its own must not
            if (t.task_id, t.condition) == ("T/4", "hypernet"):
                sources = ("convention",)
            changed.append(Treatment(task_id=t.task_id, condition=t.condition, context=context, trajectory_ids=sources))
        return changed

    # The copied solution is in one fold of one seed; a trajectory of a domain is a known source.
    more = {(7, 0): [convention], (3, 0): [copied, convention]}
    root = tmp_path_factory.mktemp("leaky")
    return decide(write(root, settings(), more=more, edit=edit))


@pytest.mark.parametrize(
    ("temperature", "seed", "suspicious"),
    [
        ("0.8", "7", ["T/0"]),  # made from its own trajectory
        ("0.8", "3", ["T/2"]),  # its solution is in the corpus of its fold
        ("0.8", "pooled", ["T/0", "T/2"]),
        ("0.2", "7", []),
        ("0.2", "3", ["T/1", "T/2"]),  # its test stands in a context, at this temperature alone
        ("0.2", "pooled", ["T/1", "T/2"]),
    ],
)
def test_a_leak_is_found_where_it_is_and_a_task_is_as_suspicious_as_in_its_worst_seed(
    leaky: dict[str, Any], temperature: str, seed: str, suspicious: list[str]
) -> None:
    found = leaky["temperatures"][temperature]
    one = found["pooled"] if seed == "pooled" else found["seeds"][seed]
    assert one["suspicious"] == suspicious
    assert one["decision"]["leakage_check"] == ("suspicious" if suspicious else "clean")


def test_the_effect_without_suspicious_tasks_is_over_the_others(leaky: dict[str, Any]) -> None:
    for temperature in TEMPERATURES:
        one = leaky["temperatures"][f"{temperature:g}"]["pooled"]
        kept = [t for t in EVERY if t not in one["suspicious"]]
        gain = [
            sum(passes(s, temperature, "hypernet", t) - passes(s, temperature, "vanilla", t) for s in SEEDS)
            for t in kept
        ]
        without = 100 * sum(gain) / (DRAWS * len(SEEDS) * len(kept))
        said = f"without them the effect is {without:+.1f} points".replace("-", "−")
        assert said in " ".join(one["decision"]["reasons"])


def test_the_check_says_how_many_trajectories_the_fullest_fold_was_looked_through_for(tmp_path: Path) -> None:
    """Two folds of four trajectories each; one of them has three more in one seed."""
    more = {(7, 1): [trajectory(f"more{i}", f"other/{i}") for i in range(3)]}
    source = version1.source(write(tmp_path, settings(), more=more))
    counted = {seed: combine.over(source, source.of("temperature-0.8", seed))[1]["items"] for seed in SEEDS}
    assert counted == {7: 7, 3: 4}


def test_a_cell_of_version_1_has_the_curves_of_its_fold_and_the_records_of_its_temperature(tmp_path: Path) -> None:
    folder = write(tmp_path, settings())
    for name in ("hypernet", "lora"):
        (place(folder, 3, 1) / "checkpoints" / name).mkdir(parents=True)
        (place(folder, 3, 1) / "checkpoints" / name / "metrics.jsonl").touch()
    source = version1.source(folder)
    (first, second) = source.of("temperature-0.2", 3)
    found = [p.relative_to(place(folder, 3, 1)).as_posix() for p in second.records.metrics]
    assert found == ["checkpoints/hypernet/metrics.jsonl", "checkpoints/lora/metrics.jsonl"]
    assert first.records.metrics == () == first.records.changes and second.records.changes == ()
    assert [t.task_id for t in second.records.trajectories] == TASKS[0]
    assert {p.task_id for p in second.records.problems} == set(TASKS[1])
    assert (first.device, first.seconds, second.seconds) == ("a device", 150.0, 150.5)
    store.write_json(place(folder, 3, 1) / "done.json", {})
    bare = version1.source(folder).of("temperature-0.2", 3)[1]
    assert (bare.device, bare.seconds) == ("an old device", 0.0)
    folder.update(stages={})
    assert version1.source(folder).seconds == {"collect": 0.0}
