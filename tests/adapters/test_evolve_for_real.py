"""`rune adapters evolve` with real parts: trajectories, a trained hypernetwork, an engine, the sandbox."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from rune import config
from rune.adapters import merging, peft
from rune.adapters.merge_settings import Settings as MergeSettings
from rune.adapters.registry import intake
from rune.adapters.registry.records import MadeFrom, Place, Status
from rune.adapters.registry.registry import Registry
from rune.cli.main import main
from rune.runs import store
from rune.stages.context import Context
from rune.study import measuring, memory
from rune.types import ModelRef, Outcome, Problem, Sample, Trajectory, Verdict

DRAWS = 2
SVD = "evolve.methods=[{method = 'svd'}]"
SETTINGS = {"families": 12, "held_out": 3, "tasks": 3, "seed": 5, "split": "atom"}  # of the fixture `corpus`


class World(NamedTuple):
    root: Path
    raw: dict[str, Any]
    domains: tuple[str, str]
    scored: dict[str, Problem]  # domain → its scored task
    ids: dict[str, list[str]]  # domain → its adapters

    @property
    def registry(self) -> Registry:
        return Registry(self.root / "memory")

    def config(self, **evolve: Any) -> Path:
        path = self.root / "memory.toml"
        path.write_text(config.dump_toml({**self.raw, "evolve": {**self.raw["evolve"], **evolve}}))
        return path

    def answer(self, adapter: str, domain: str, *, passes: int) -> None:
        """From now on the engine solves a domain's scored task under an adapter in so many of the draws."""
        problem = self.scored[domain]
        texts = [f"{problem.reference}\n```\n"] * passes + ["pass\n```\n"] * (DRAWS - passes)
        self.raw["engine"]["settings"]["answers"][f"{adapter}:{problem.prompt.strip()}"] = texts


@pytest.fixture
def world(
    trained: tuple[store.RunDir, Context],
    tiny_model: ModelRef,
    corpus: tuple[list[Problem], list[Trajectory]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> World:
    """Two domains, two adapters each, each made by `rune adapt` from one trajectory of a task that is not scored."""
    monkeypatch.setenv("RUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RUNE_REGISTRY", str(tmp_path / "memory"))
    monkeypatch.chdir(tmp_path)
    problems, trajectories = corpus
    by_domain: dict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in trajectories:
        by_domain[trajectory.domain].append(trajectory)
    checkpoint = trained[0] / "checkpoints" / "hypernet"
    raw: dict[str, Any] = {
        "model": {"name": tiny_model.path, "device": "cpu", "dtype": "float32"},
        "benchmark": {"name": "families", "settings": SETTINGS},
        "engine": {"name": "scripted", "settings": {"answers": {}, "default": ["pass\n```\n"], "read_adapters": True}},
        "sample": {"n": DRAWS, "temperature": 0.8, "max_new_tokens": 400, "top_p": 1.0, "top_k": 0},
        "score": {"settings": {"workers": 1}},
        "evolve": {"project": "shop", "seed": 1, "budget": 1000, "inside": 1, "outside": 3, "alpha": 1.0},
    }
    (tmp_path / "memory.toml").write_text(config.dump_toml(raw))
    with measuring.opened(memory.load(tmp_path / "memory.toml"), tmp_path / "memory") as evaluator:
        # Two tasks may have the same words in two domains; the engine here goes by words.
        prompts: set[str] = set()
        scored = {}
        for domain in by_domain:
            (task,) = evaluator.tasks([domain]).inside
            problem = next(p for p in problems if p.task_id == task)
            if problem.prompt not in prompts:
                prompts.add(problem.prompt)
                scored[domain] = problem
    first, second = list(scored)[:2]
    store.write_jsonl(tmp_path / "corpus.jsonl", trajectories)
    ids: dict[str, list[str]] = defaultdict(list)
    for domain in (first, second):
        usable = [t for t in by_domain[domain] if t.task_id != scored[domain].task_id]
        for number, trajectory in enumerate(usable[:2]):
            name = f"{len(ids)}-{number}"
            store.write_jsonl(tmp_path / f"{name}.jsonl", [trajectory])
            made = ["--checkpoint", str(checkpoint), "--model", tiny_model.path]
            assert main(["adapt", "--trajectory", f"{name}.jsonl", "-o", name, *made]) == 0
            capsys.readouterr()
            place = ["--project", "shop", "--domain", domain, "--task", f"task {number}"]
            assert main(["adapters", "add", name, *place, "--json"]) == 0
            ids[domain].append(json.loads(capsys.readouterr().out)[0]["id"])
    raw["evolve"] |= {"trajectories": ["corpus.jsonl"], "checkpoint": str(checkpoint)}
    return World(tmp_path, raw, (first, second), scored, dict(ids))


def evolve(world: World, capsys: pytest.CaptureFixture[str], *args: str, **settings: Any) -> Any:
    capsys.readouterr()
    assert main(["adapters", "evolve", "--config", str(world.config(**settings)), "--json", *args]) == 0
    return json.loads(capsys.readouterr().out)


def test_adapters_are_drawn_judged_consolidated_and_merged(
    world: World, capsys: pytest.CaptureFixture[str], trained: tuple[store.RunDir, Context]
) -> None:
    registry, (first, second) = world.registry, world.domains
    a, b = world.ids[first]
    world.answer(a, first, passes=2)
    world.answer(b, first, passes=1)

    plan = evolve(world, capsys, "--dry-run")
    assert len(plan["measure"]) == 4 and plan["draws"] == 4 * 4 * DRAWS and plan["budget_left"] == 1000
    assert plan["scored"] == {d: [world.scored[d].task_id] for d in sorted(world.domains)}
    assert not (world.root / "memory" / "measurements").exists()

    found = evolve(world, capsys)
    assert found["draws"] == 4 * 4 * DRAWS and len(found["measured"]) == 4
    assert registry.get(a).fitness == 1.0 and registry.get(b).fitness == 0.5
    assert registry.get(world.ids[second][0]).fitness == 0.0
    # Everything that was drawn and judged is there to be read.
    (batch,) = (world.root / "memory" / "measurements").glob("*/*")
    assert len(store.read_jsonl(batch / "samples.jsonl", Sample)) == 4 * 4 * DRAWS
    passed = [v for v in store.read_jsonl(batch / "verdicts.jsonl", Verdict) if v.outcome is Outcome.PASSED]
    assert sorted(v.condition for v in passed) == sorted([a, a, b])

    # Both are consolidated into one of the domain, which the engine lets pass always.
    settings = memory.load(world.config(consolidate=2))
    with measuring.opened(settings, registry.folder) as evaluator:
        generator = measuring.Hypernetwork(settings, evaluator.model)
        whole = memory.Memory(registry, settings.evolve, evaluator, base=evaluator.model.digest, generator=generator)
        wanted = {s.place.domain: whole.remake(s).draft.id for s in whole.consolidations()}
    assert set(wanted) == {first, second}
    world.answer(wanted[first], first, passes=2)
    # The engine's answers are part of the protocol: with others, everything is measured anew.
    found = evolve(world, capsys, consolidate=2)
    done = {o["result"]: o for o in found["operations"]}
    assert {o["kind"] for o in done.values()} == {"consolidate"} and set(done) == set(wanted.values())
    consolidated = registry.get(wanted[first])
    assert consolidated.status is Status.ACTIVE and consolidated.place == Place(project="shop", domain=first)
    assert {s.trajectory_id for s in registry.sources(consolidated.id)} == {
        s.trajectory_id for parent in (a, b) for s in registry.sources(parent)
    }
    assert consolidated.hypernet == store.sha256_file(trained[0] / "checkpoints" / "hypernet" / "model.safetensors")
    again = evolve(world, capsys, consolidate=2)
    assert again["operations"] == [] and again["draws"] == 0
    number = done[consolidated.id]["number"]
    assert evolve(world, capsys, "--replay", str(number)) == {"operation": number, "result": consolidated.id}

    # The two domains' adapters are merged, measured on both domains, and archived: one task each proves nothing.
    pair = [registry.get(wanted[d]) for d in (first, second)]
    parts = sorted(pair, key=lambda e: e.number)
    merged = merging.merge([intake.load(registry, e) for e in parts], [0.5, 0.5], MergeSettings(method="svd"))
    child = intake.prepare(
        merged, Place(project="shop"), MadeFrom(), base_name=parts[0].base_name, max_rank=256
    ).draft.id
    found = evolve(world, capsys, "--set", SVD, merges=1, order="alike", across=True)
    (operation,) = found["operations"]
    assert operation["result"] == child and not operation["kept"]
    assert operation["numbers"]["result"]["value"] == 0.0 and -1 <= operation["numbers"]["cosine"] <= 1
    assert {k: n["value"] for k, n in operation["numbers"]["inputs"].items()} == {pair[0].id: 0.5, pair[1].id: 0.0}
    assert registry.get(child).status is Status.ARCHIVED and registry.get(child).place == Place(project="shop")
    assert registry.verify() == []


def test_an_evolution_makes_from_a_trajectory_the_adapter_that_rune_adapt_makes_from_it(world: World) -> None:
    """In the same precision too: where the processor multiplies bfloat16 itself, trajectories are read in it."""
    settings = memory.load(world.config())
    with measuring.opened(settings, world.registry.folder) as evaluator:
        generator = measuring.Hypernetwork(settings, evaluator.model)
    for adapter in (one for ids in world.ids.values() for one in ids):
        assert peft.content_id(generator.make(world.registry.sources(adapter))) == adapter


TUNE = {"rank": 4, "alpha": 8.0, "steps": 2, "rows": 2, "together": 2, "max_tokens": 4000}


def test_an_evolution_can_make_its_adapters_by_fine_tuning(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    registry, (first, _) = world.registry, world.domains
    found = evolve(world, capsys, consolidate=2, checkpoint="", tune=TUNE)
    done = {registry.get(o["result"]).place.domain: o for o in found["operations"]}
    assert set(done) == set(world.domains)
    made = registry.get(done[first]["result"])
    assert made.rank == 4 and made.how == "consolidate"
    assert {s.trajectory_id for i in world.ids[first] for s in registry.sources(i)} == {
        s.trajectory_id for s in registry.sources(made.id)
    }
    # Two of one domain and two of another, one by one or in a batch: each the same; and all begin at the same A.
    settings = memory.load(world.config(consolidate=2, checkpoint="", tune=TUNE))
    with measuring.opened(settings, registry.folder) as evaluator:
        maker = measuring.generator(settings, evaluator)
        assert isinstance(maker, measuring.FineTuning)
        sets = [registry.sources(i) for i in world.ids[first]]
        together = maker.make_all(sets)
        for sources, one in zip(sets, together, strict=True):
            alone = maker.make(sources)
            for name, pair in one.pairs.items():
                torch.testing.assert_close(pair.a, alone.pairs[name].a, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(pair.b, alone.pairs[name].b, rtol=1e-3, atol=1e-5)
        name = next(iter(together[0].pairs))
        assert float((together[0].pairs[name].a - together[1].pairs[name].a).abs().max()) < 0.01
        assert not torch.equal(together[0].pairs[name].b, together[1].pairs[name].b)
    # Done again it gives the same bytes, and another dose is another maker.
    number = str(done[first]["number"])
    capsys.readouterr()
    again = ["adapters", "evolve", "--config", str(world.config(checkpoint="", tune=TUNE)), "--replay", number]
    assert main(again) == 0 and capsys.readouterr().out.strip() == made.id
    other = ["adapters", "evolve", "--config", str(world.config(checkpoint="", tune={**TUNE, "steps": 3}))]
    assert main([*other, "--replay", number]) == 2
    assert "another maker of adapters" in capsys.readouterr().err
    capsys.readouterr()
    both = ["adapters", "evolve", "--config", str(world.config(tune=TUNE))]
    assert main(both) == 2 and "leave one out" in capsys.readouterr().err


def test_an_evolution_leaves_the_trackers_table_if_its_config_has_a_tracker(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    evolve(world, capsys)
    assert not (world.registry.folder / "tracking").exists()
    world.raw["track"] = {"enabled": False}
    evolve(world, capsys)
    (table,) = (world.registry.folder / "tracking").glob("*.json")
    rows = store.read_json(table)["rows"]
    assert {row["adapter_id"] for row in rows} == {i for ids in world.ids.values() for i in ids}


def test_what_was_drawn_before_a_stop_is_not_drawn_again(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rune.stages import score

    judge = score.run

    def stopped(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(score, "run", stopped)
    assert main(["adapters", "evolve", "--config", str(world.config())]) == 130
    (batch,) = (world.root / "memory" / "measurements").glob("*/*")
    drawn = (batch / "samples.jsonl").read_bytes()
    assert len(drawn.splitlines()) == 4 * 4 * DRAWS and not (batch / "verdicts.jsonl").exists()
    monkeypatch.setattr(score, "run", judge)
    assert len(evolve(world, capsys)["measured"]) == 4
    assert (batch / "samples.jsonl").read_bytes() == drawn


def test_bad_configs_are_one_line(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*args: str, **settings: Any) -> str:
        capsys.readouterr()
        assert main(["adapters", "evolve", "--config", str(world.config(**settings)), *args]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1, err
        return err

    assert "[evolve] alpha is a share, 0 to 1 (the specified one is 0.7); found 1.5" in said(alpha=1.5)
    assert "[evolve] forget_below is compared with φ, which is 0 to 1; found 45" in said(forget_below=45.0)
    assert "no active adapter of project 'bank'" in said("--dry-run", project="bank")
    assert "no active adapter of project 'bank'" in said(project="bank")
    assert "no engine named 'torhc'; did you mean 'torch'?" in said("--set", "engine.name=torhc")
    assert "no benchmark named 'familys'" in said("--set", "benchmark.name=familys")
    assert "no operation 7" in said("--replay", "7")
    assert "no merge method named 'tees'; did you mean 'ties'?" in said(
        "--set", SVD.replace("svd", "tees"), merges=1, order="alike"
    )
    assert "order: 'near' is not one of alike, apart" in said("--set", SVD, merges=1, order="near")
    # An adapter of a domain that the benchmark does not have; one that was made from a task that is scored.
    entry = world.registry.get(world.ids[world.domains[0]][0])
    nowhere = Place(project="shop", domain="nowhere")
    adapter = intake.load(world.registry, entry)
    other = type(adapter)(pairs=adapter.pairs, scale=adapter.scale * 2, base_model=adapter.base_model)
    ready = intake.prepare(other, nowhere, MadeFrom(), max_rank=256)
    world.registry.insert(ready.draft, ready.config, ready.weights)
    assert "no domain with held-out tasks named 'nowhere'" in said()
    assert "is scored; make it from other tasks" in said("--set", "evolve.seed=4", "--set", "evolve.inside=3")


def test_a_config_loads_no_torch(world: World) -> None:
    import subprocess
    import sys

    code = "import sys; from pathlib import Path; from rune.study import memory\n"
    code += f"memory.load(Path({str(world.config())!r})); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
