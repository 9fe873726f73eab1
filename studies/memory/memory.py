"""Does an evolved memory serve better than none, than the newest adapter, than one LoRA of everything? Plan: README.md.

    cd studies/memory
    python memory.py corpus --out OUT       here: releases of updated functions, their lessons and tasks
    python memory.py check --out OUT        there: tasks whose reference does not count under that Python are left out
    python memory.py add --out OUT          there: an adapter a lesson into the registry
    python memory.py beside --out OUT       there: one LoRA of all lessons, two ranks and two doses
    rune adapters evolve --config OUT/memory.toml …      there: see lane.sh
    python memory.py learned --out OUT      there: sums of a release's lessons, weights learned on its later lessons
    python memory.py test --out OUT         there: every adapter of a release on tasks that the evolution never saw
    python memory.py judge --out OUT        here: what a test that was cut off has drawn
    python memory.py bare --out OUT         the bare model on the evolution's own tasks, for the limit on harm
    python memory.py harm --out OUT         there: the test's arms on 40 HumanEval tasks
    python memory.py weights --out OUT --to FOLDER      there: a few adapters in bfloat16, small enough to carry
    python memory.py tell --out OUT         here: the numbers

OUT/registry is the registry, OUT/tests a folder in the shape of a run; arms-after.json
there is what was selected once merges and forgetting were done. What is done is not done again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rune import console
from rune.adapters.registry import operations
from rune.adapters.registry.objects import Objects
from rune.adapters.registry.records import Entry, Level, MadeFrom, Place, Source
from rune.adapters.registry.registry import Registry, View
from rune.benchmarks import api_updates
from rune.runs import store
from rune.stages import score
from rune.stages.context import Context
from rune.study import cells, measuring, memory
from rune.study.machines import Machines
from rune.types import AdapterRef, Outcome, Problem, Split, Trajectory, Treatment

SEED = 47
RELEASES, UPDATES = 16, 3  # releases of a library, functions that each changes
LESSONS, LATER, SCORED = 2, 1, 2  # of an update's eight tasks; the other three are the test
PROJECT, BESIDE = "releases", "beside"  # the memory's project, and that of what it is compared with
ROWS = 2  # of an adapter of one lesson
ALL_RANKS, ALL_ROWS = (8, 64), 24  # one LoRA of all lessons, the later ones too
ALL_STEPS = {"all in one": 225, "all in one, equal dose": 120}  # each lesson 37 and 20 times; consolidated: 20
LEARNED, LEARNED_STEPS, LEARNED_RATE = "learned sum of the lessons", 30, 0.05
HARM_TASKS, HARM_ARMS = 40, ("vanilla", "selected", "consolidated", "updated")
CARRIED = 6  # adapters that `weights` writes, 8.8 MB each
DO = ("check", "add", "beside", "learned", "test", "judge", "bare", "harm", "weights")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("corpus", *DO, "tell"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--to", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="section.key=value")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: checks the path, claims nothing")
    args = parser.parse_args()
    if args.smoke:
        globals().update(
            RELEASES=3, ALL_STEPS=dict(zip(ALL_STEPS, (3, 2), strict=True)), ALL_ROWS=2, ALL_RANKS=(4, 8), HARM_TASKS=2
        )
    if args.do == "tell":
        import memory_told

        memory_told.tell(args.out)
    else:
        globals()[args.do](args)
    return 0


# --------------------------------------------------------------------------- here: releases


def corpus(args: argparse.Namespace) -> None:
    """OUT/corpus: problems.jsonl (scored in evolution), tests.jsonl, lessons.jsonl, later.jsonl; OUT/memory.toml."""
    made = api_updates.generate(api_updates.Config(seed=SEED, updates=240, tasks=8))
    first: dict[str, list[api_updates.Task]] = {}  # function → the tasks of its first update
    domains: dict[str, str] = {}
    for task in made:
        if domains.setdefault(task.update.function, task.update.domain) == task.update.domain:
            first.setdefault(task.update.function, []).append(task)
    functions = sorted(first)
    chance = random.Random(f"memory/{SEED}")
    chance.shuffle(functions)
    problems, tests, lessons, later = [], [], [], []
    for number in range(RELEASES):
        name = f"release-{number:02}"
        for function in functions[number * UPDATES : (number + 1) * UPDATES]:
            tasks = chance.sample(first[function], len(first[function]))
            lessons += [(turn, name, t) for turn, t in enumerate(tasks[:LESSONS])]
            later += [(0, name, t) for t in tasks[LESSONS : LESSONS + LATER]]
            rest = [replace(t.problem, domain=name) for t in tasks[LESSONS + LATER :]]
            problems += [replace(p, split=Split.HELD_OUT) for p in rest[:SCORED]]
            tests += [replace(p, split=Split.HELD_OUT) for p in rest[SCORED:]]
    folder = args.out / "corpus"
    store.write_jsonl(folder / "problems.jsonl", problems)
    store.write_jsonl(folder / "tests.jsonl", tests)
    for file, some in (("lessons", lessons), ("later", later)):
        some.sort(key=lambda lesson: lesson[0])  # as they arrive: every update once, then again
        told = api_updates.trajectories([t for _, _, t in some], seed=SEED)
        store.write_jsonl(
            folder / f"{file}.jsonl", [replace(t, domain=name) for (_, name, _), t in zip(some, told, strict=True)]
        )
    shutil.copy(Path(__file__).parent / "memory.toml", args.out / "memory.toml")


def check(args: argparse.Namespace) -> None:
    """A task's expected values are those of the Python that made it; another one's library may answer otherwise."""
    from rune.benchmarks.scorers import execution_with_and_without
    from rune.benchmarks.scorers.judging import Item
    from rune.models import resolve

    left_out = []
    with contextlib.closing(score.build_sandbox(settings_of(args).score, cache=resolve.default_cache())) as sandbox:
        for file in ("problems", "tests"):
            path = args.out / "corpus" / f"{file}.jsonl"
            problems = store.read_jsonl(path, Problem)
            judged = execution_with_and_without.judge(sandbox, [Item(p.task_id, p, p.reference) for p in problems])
            counts = {found.key for found in judged if found.outcome is Outcome.PASSED}
            left_out += [p.task_id for p in problems if p.task_id not in counts]
            store.write_jsonl(path, [p for p in problems if p.task_id in counts])
    known = args.out / "left-out.json"
    store.write_json(known, [*(store.read_json(known) if known.exists() else []), *left_out])


# --------------------------------------------------------------------------- there: adapters


def settings_of(args: argparse.Namespace) -> memory.MemoryConfig:
    return memory.load(args.out / "memory.toml", args.settings)


def add(args: argparse.Namespace) -> None:
    """An adapter of every lesson at the level of its task, in order of arrival."""
    settings = settings_of(args)
    registry = Registry(args.out / "registry", create=True)
    lessons, sources = sources_of(args, "lessons")
    places = [Place(project=PROJECT, domain=t.domain, task=t.task_id) for t in lessons]
    maker = tuned(settings, registry, rows=ROWS, together=min(24, 3 * tune_of(settings).together))
    if not registry.page(View(project=PROJECT), limit=1):
        insert(registry, maker.make_all([[s] for s in sources]), places, [[s] for s in sources], "fine-tuned")


def beside(args: argparse.Namespace) -> None:
    """One LoRA of all lessons, the later ones too, of each rank and dose; no part of the memory."""
    settings = settings_of(args)
    registry = Registry(args.out / "registry", create=True)
    sources = [*sources_of(args, "lessons")[1], *sources_of(args, "later")[1]]
    for name, steps in ALL_STEPS.items():
        for rank in ALL_RANKS:
            place = Place(project=BESIDE, domain=f"{name}, rank {rank}")
            if not at(registry, place):
                maker = tuned(settings, registry, rank=rank, alpha=2.0 * rank, steps=steps, rows=ALL_ROWS)
                insert(registry, maker.make_all([sources]), [place], [sources], "fine-tuned")


def learned(args: argparse.Namespace) -> None:
    """Of each release's lessons' adapters a sum with learned weights a module, from its three later lessons; and the
    plain sums, which take a minute to write.
    """
    from rune.adapters import composition
    from rune.adapters.registry import intake
    from rune.hypernet import base as bases
    from rune.hypernet import composition_weights

    settings = settings_of(args)
    registry = Registry(args.out / "registry")
    evaluator = measuring.EngineEvaluator(settings, registry.folder)
    base = None
    later, lessons = sources_of(args, "later")[0], registry.page(View(project=PROJECT, status=None), limit=1_000_000)
    for domain in sorted({t.domain for t in later}):
        place = Place(project=BESIDE, domain=f"{LEARNED} {domain}")
        if at(registry, place):
            continue
        base = base or bases.load(evaluator.model, device=evaluator.device, dtype=evaluator.dtype)
        entries = [e for e in lessons if e.place.domain == domain and e.place.level is Level.TASK]
        adapters = intake.load_all(registry, entries)
        asked = [t for t in later if t.domain == domain]
        found = composition_weights.learn(base, adapters, asked, steps=LEARNED_STEPS, learning_rate=LEARNED_RATE)
        console.out(f"{domain}: {found.losses[0]:.3f} to {found.losses[-1]:.3f} nats a token")
        sources = [Source(trajectory_id=t.trajectory_id, task_id=t.task_id) for t in asked]
        means = [sum(w.values()) / len(w) for w in found.weights]
        parents = tuple((e.id, mean) for e, mean in zip(entries, means, strict=True))
        insert(registry, [composition.compose(adapters, found.weights)], [place], [sources], "composed", parents)
    some = arms(registry, sorted({t.domain for t in later}))
    composed(registry, {arm: of for arm, of in some.items() if arm.startswith("lesson-")})  # what the test also wants


def sources_of(args: argparse.Namespace, name: str) -> tuple[list[Trajectory], list[Source]]:
    some = store.read_jsonl(args.out / "corpus" / f"{name}.jsonl", Trajectory)
    return some, [Source(trajectory_id=t.trajectory_id, task_id=t.task_id) for t in some]


def tune_of(settings: memory.MemoryConfig) -> Any:
    return settings.evolve.tune


def tuned(settings: memory.MemoryConfig, registry: Registry, **changes: Any) -> measuring.FineTuning:
    """The memory's own fine-tuning with another dose."""
    corpus = Path(settings.evolve.trajectories[0]).parent
    files = tuple(str(corpus / f"{name}.jsonl") for name in ("lessons", "later"))
    tune = replace(tune_of(settings), **changes)
    other = replace(settings, evolve=replace(settings.evolve, tune=tune, trajectories=files))
    maker = measuring.generator(other, measuring.EngineEvaluator(other, registry.folder))
    assert isinstance(maker, measuring.FineTuning)
    return maker


def insert(
    registry: Registry, adapters: Sequence[Any], places: Sequence[Place], sources: Sequence[Sequence[Source]], how: str,
    parents: tuple[tuple[str, float], ...] = (),
) -> None:  # fmt: skip
    from rune.adapters.registry import intake

    for adapter, place, some in zip(adapters, places, sources, strict=True):
        about = MadeFrom(sources=tuple(some), how=how, parents=parents)
        ready = intake.prepare(adapter, place, about, max_rank=registry.max_rank)
        registry.insert(ready.draft, ready.config, ready.weights)


def at(registry: Registry, place: Place) -> list[Entry]:
    """All entries of a place itself, archived ones too, in order of arrival."""
    view = View(project=place.project, domain=place.domain, status=None)
    return [e for e in registry.page(view, limit=1_000_000) if e.place == place]


# --------------------------------------------------------------------------- there: the test


def arms(registry: Registry, domains: Sequence[str]) -> dict[str, dict[str, str]]:
    """Arm → release → adapter id ("" is the bare model)."""
    from rune.adapters.registry import selection

    found: dict[str, dict[str, str]] = {"vanilla": dict.fromkeys(domains, "")}
    entries = registry.page(View(project=PROJECT, status=None), limit=1_000_000)
    base = entries[0].base
    lessons = [e for e in entries if e.place.level is Level.TASK]
    by_domain: dict[str, list[Entry]] = defaultdict(list)
    for entry in lessons:
        by_domain[entry.place.domain].append(entry)
    for domain in domains:
        for number, entry in enumerate(by_domain[domain]):
            found.setdefault(f"lesson-{number}", {})[domain] = entry.id
        # A task that nobody has seen: what its release has, else what the project has.
        chosen = selection.select(registry, Place(project=PROJECT, domain=domain), base=base).chosen
        found.setdefault("selected", {})[domain] = chosen.id if chosen else ""
    for operation in operations.listed(registry):
        if operation.kind in ("consolidate", "update"):
            made = registry.get(operation.result)
            found.setdefault(f"{operation.kind}d", {})[made.place.domain] = made.id
    found["newest of the release"] = {d: by_domain[d][-1].id for d in domains}
    found["newest of all"] = dict.fromkeys(domains, lessons[-1].id)
    for name in ALL_STEPS:
        for rank in ALL_RANKS:
            arm = f"{name}, rank {rank}"
            if there := at(registry, Place(project=BESIDE, domain=arm)):
                found[arm] = dict.fromkeys(domains, there[0].id)
    there_too = {d: at(registry, Place(project=BESIDE, domain=f"{LEARNED} {d}")) for d in domains}
    if some := {d: entries[0].id for d, entries in there_too.items() if entries}:
        found[LEARNED] = some
    whole = found.get("consolidated", {})
    if whole:
        order = sorted(whole)
        found["another release's"] = {d: whole[order[(n + 1) % len(order)]] for n, d in enumerate(order)}
    return found


def composed(registry: Registry, found: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Sums of adapters, made once: of a release's lessons, of all releases, of project and release."""
    from rune.adapters import composition
    from rune.adapters.registry import intake

    made: dict[str, dict[str, str]] = {}
    lessons = [ids for arm, ids in found.items() if arm.startswith("lesson-")]
    whole = found.get("consolidated", {})
    everything = found.get(f"all in one, rank {ALL_RANKS[0]}", {})
    wanted: dict[str, dict[str, list[tuple[str, float]]]] = {
        "mean of the lessons": {d: [(ids[d], 1 / len(lessons)) for ids in lessons] for d in lessons[0]},
        "sum of the lessons": {d: [(ids[d], 1.0) for ids in lessons] for d in lessons[0]},
        "all in one + release": {d: [(everything[d], 1.0), (whole[d], 1.0)] for d in whole},
        "mean of all releases": {d: [(i, 1 / len(whole)) for i in whole.values()] for d in lessons[0]} if whole else {},
    }
    known: dict[str, str] = {}
    for arm, of in wanted.items():
        for domain, parts in of.items():
            key = json.dumps(parts)
            if key not in known:
                place = Place(project=BESIDE, domain=f"{arm} {domain}")
                if not at(registry, place):
                    entries = [registry.get(digest) for digest, _ in parts]
                    sum_of = composition.compose(intake.load_all(registry, entries), [w for _, w in parts])
                    insert(registry, [sum_of], [place], [[]], "composed", tuple(parts))
                known[key] = at(registry, place)[0].id
            made.setdefault(arm, {})[domain] = known[key]
    return made


def outside(settings: memory.MemoryConfig, registry: Registry, domain: str, *, more: int = 0) -> list[Problem]:
    """The tasks outside of every release that the evolution draws all adapters on; with `more`, so many that follow."""
    assert settings.elsewhere is not None
    first = settings.evolve.outside
    wider = replace(settings, evolve=replace(settings.evolve, outside=first + more))
    found = measuring.EngineEvaluator(wider, registry.folder).tasks([domain]).outside
    wanted = found[first:] if more else found
    return [p for p in cells.problems(settings.elsewhere) if p.task_id in wanted]


def test(args: argparse.Namespace) -> None:
    """OUT/tests: draws and verdicts of every adapter above on its release's test tasks; arms.json says what is what.

    All but the adapters of one lesson are drawn on the tasks outside too.
    """
    settings = settings_of(args)
    registry = Registry(args.out / "registry")
    problems = store.read_jsonl(args.out / "corpus" / "tests.jsonl", Problem)
    if args.smoke:
        problems = problems[::5]
    found = arms(registry, sorted({p.domain for p in problems}))
    found |= composed(registry, found)
    folder = store.RunDir(args.out / "tests")
    folder.path.mkdir(parents=True, exist_ok=True)
    before = store.read_jsonl(folder / "treatments.jsonl", Treatment)
    store.write_json(folder / ("arms-after.json" if before else "arms.json"), found)
    treatments = {(t.condition, t.task_id): t for t in before}
    elsewhere = outside(settings, registry, problems[0].domain)
    for arm, ids in found.items():
        wanted = [(ids[p.domain], p) for p in problems if p.domain in ids]
        if not arm.startswith("lesson-"):
            wanted += [(digest, p) for digest in dict.fromkeys(ids.values()) for p in elsewhere]
        for digest, problem in wanted:
            one = treatment(registry, digest, problem)
            treatments.setdefault((one.condition, problem.task_id), one)
    draw(args, folder, [*problems, *elsewhere], list(treatments.values()))


def treatment(registry: Registry, digest: str, problem: Problem) -> Treatment:
    """A task under an adapter, whose id is the condition; "" is the bare model."""
    if not digest:
        return Treatment(task_id=problem.task_id, condition="vanilla")
    entry = registry.get(digest)
    ref = AdapterRef(adapter_id=digest, base_model=entry.base, rank=entry.rank, delta_w_norm=entry.delta_w_norm)
    return Treatment(task_id=problem.task_id, condition=digest, adapter=ref)


def harm(args: argparse.Namespace) -> None:
    """OUT/harm: draws and verdicts of what the test compares, on HumanEval tasks that the evolution never drew."""
    settings = settings_of(args)
    registry = Registry(args.out / "registry")
    domains = sorted({p.domain for p in store.read_jsonl(args.out / "corpus" / "tests.jsonl", Problem)})
    problems = outside(settings, registry, domains[0], more=HARM_TASKS)
    found = store.read_json(args.out / "tests" / "arms.json")
    wanted = [arm for arm in found if arm in HARM_ARMS or arm.startswith("all in one,")]
    ids = dict.fromkeys(digest for arm in wanted for digest in found[arm].values())
    folder = store.RunDir(args.out / "harm")
    folder.path.mkdir(parents=True, exist_ok=True)
    draw(args, folder, problems, [treatment(registry, digest, p) for digest in ids for p in problems])


def bare(args: argparse.Namespace) -> None:
    """OUT/bare: draws and verdicts without an adapter on all tasks that the evolution scored."""
    settings = settings_of(args)
    inside = store.read_jsonl(args.out / "corpus" / "problems.jsonl", Problem)
    problems = [*inside, *outside(settings, Registry(args.out / "registry"), inside[0].domain)]
    folder = store.RunDir(args.out / "bare")
    folder.path.mkdir(parents=True, exist_ok=True)
    draw(args, folder, problems, [Treatment(task_id=p.task_id, condition="vanilla") for p in problems])


def draw(
    args: argparse.Namespace, folder: store.RunDir, problems: Sequence[Problem], treatments: Sequence[Treatment]
) -> None:
    """Draws and verdicts of all treatments, with the evolution's own sampling."""
    from rune.stages import sample

    settings = settings_of(args)
    store.write_jsonl(folder / "problems.jsonl", problems)
    store.write_jsonl(folder / "treatments.jsonl", treatments)
    with working(args, folder) as context:
        sample.run(folder, settings.sample, context)
        score.run(folder, settings.score, context)


def judge(args: argparse.Namespace) -> None:
    """Verdicts of what was drawn of the test, and nothing else."""
    folder = store.RunDir(args.out / "tests")
    with working(args, folder) as context:
        score.run(folder, settings_of(args).score, context)


def weights(args: argparse.Namespace) -> None:
    """TO/ID: PEFT folders in bfloat16 of what can be looked into afterwards without a GPU.

    One LoRA of all lessons, the first pair that was merged and its merge by `svd`, then what is selected of the first
    releases.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from rune.adapters.registry import export

    registry = Registry(args.out / "registry")
    wanted = [e.id for e in at(registry, Place(project=BESIDE, domain=f"all in one, equal dose, rank {ALL_RANKS[0]}"))]
    merges = [o for o in operations.listed(registry) if o.kind == "merge"]
    if merges:
        wanted += merges[0].inputs
        wanted += [o.result for o in merges if o.inputs == merges[0].inputs and o.arguments["merge"]["method"] == "svd"]
    arms_file = args.out / "tests" / "arms.json"
    if arms_file.exists():
        wanted += filter(None, store.read_json(arms_file)["selected"].values())
    for digest in list(dict.fromkeys(wanted))[:CARRIED]:
        folder = args.to / digest
        export.one(registry, registry.get(digest), folder)
        file = folder / "adapter_model.safetensors"
        save_file({name: w.to(torch.bfloat16) for name, w in load_file(file).items()}, file)


@contextlib.contextmanager
def working(args: argparse.Namespace, folder: store.RunDir) -> Iterator[Context]:
    """Engine and sandbox of the memory's config, over the registry's adapters."""
    machines = Machines(settings_of(args), "memory", together=1, adapters=Objects(args.out / "registry" / "objects"))
    try:
        with folder.lock():
            yield machines.context(SEED)
    finally:
        machines.close()


if __name__ == "__main__":
    sys.exit(main())
