"""Exploration for CodeUpdateArena: does an adapter made from a sibling's trajectory beat a wrong donor's on updates
that training never saw? Plan and rule: README.md beside this file.

    cd studies/updates-exploration
    python updates.py corpus --data DATA --out CORPUS                   here: what is trained on
    python updates.py queue --data DATA --corpus CORPUS --out OUT       there: everything, on all GPUs

`queue` starts, one process a GPU: `real` (trajectories of real updates by the loop with the documentation in sight,
and the arms in context, a share of the tasks each), then `study` (one variant each: train, likelihood of held-out
solutions under every donor, sample, judge by UPass). Everything goes on where it was left; results are small files.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import numpy as np
import torch

from rune import config, console, plugins, prompts
from rune.adapters import convert
from rune.adapters.factors import Factors, concatenate, select, to_dtype
from rune.agent import loop
from rune.benchmarks import api_updates, code_update_arena, families
from rune.benchmarks.scorers import execution_with_and_without, judging, updates
from rune.benchmarks.scorers.judging import Item
from rune.corpus import exclusion
from rune.hypernet import base as bases
from rune.hypernet import checkpoint, export, losses, trainer
from rune.hypernet.data import Corpus
from rune.hypernet.features import FeatureTable, Reader
from rune.hypernet.settings import EncoderConfig, HypernetConfig, LoraConfig, PairMix, Schedule, Weights
from rune.models import chat, resolve
from rune.runs import store
from rune.types import Attempt, FailureKind, ModelRef, Outcome, Problem, Request, Sample, Sampling, Trajectory

SEED = 20
DRAWS = 3
TEMPERATURE = 0.2
NEW_TOKENS = 384
SIBLINGS = 3  # trajectories a set holds at most
BLOCK = 384  # programs whose verdicts are written together
CHAINS, ATTEMPTS = 3, 3  # of the loop that makes a real trajectory
ADAPTER_ARMS = ("sibling", "wrong", "static", "own", "sibling1", "empty")
CONTEXT_ARMS = ("vanilla", "documentation", "context_sibling1", "context_sibling", "context_wrong", "context_own")
CONTRASTS = (
    ("sibling", "wrong"), ("sibling", "static"), ("sibling", "vanilla"), ("sibling", "context_sibling"),
    ("sibling1", "context_sibling1"), ("own", "wrong"), ("own", "context_own"), ("static", "vanilla"),
    ("context_sibling", "context_wrong"), ("context_sibling", "vanilla"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """What one process trains."""

    generated: str = "open"  # which corpus of generated updates
    shares: dict[str, float]  # benchmark → share of the training groups
    fold: int = -1  # of two, by function: this one is held out; -1: no real update is trained on
    lora: dict[str, Any] = dataclasses.field(default_factory=dict)
    hypernet: dict[str, Any] = dataclasses.field(default_factory=dict)


WITHOUT_REAL = {"api_updates": 0.7, "families": 0.3}
WITH_REAL = {"api_updates": 0.5, "families": 0.2, "code_update_arena": 0.3}
SHORT = {"groups": 32}  # generated tasks are half as long as real ones
LONG = {"groups": 16}
VARIANTS = {
    "open": Variant(shares=WITHOUT_REAL, hypernet=SHORT),
    "mixture-0": Variant(shares=WITH_REAL, fold=0, lora={"rows": 32}, hypernet=LONG),
    "mixture-1": Variant(shares=WITH_REAL, fold=1, lora={"rows": 32}, hypernet=LONG),
    "plain": Variant(shares=WITHOUT_REAL, generated="plain", hypernet=SHORT),
}
LORA = LoraConfig(
    schedule=Schedule(steps=120, learning_rate=5e-4, checkpoint_every=120),
    rank=8,
    alpha=16.0,
    rows=48,
    max_tokens=576,
)
HYPERNET = HypernetConfig(
    schedule=Schedule(steps=1000, learning_rate=8e-4, checkpoint_every=500),
    rank=8,
    alpha=16.0,
    groups=24,
    targets=2,
    pairs=PairMix(recall=0.4, family=0.6, max_sources=SIBLINGS),
    weights=Weights(kl_base=0.02, lesson=0.1),
    max_tokens=576,
    encoder_rate=0.5,
    drop_tokens=0.1,
    encoder_first=EncoderConfig(schedule=Schedule(steps=500, learning_rate=1e-3, checkpoint_every=500), groups=64),
)


class Case(NamedTuple):
    """One held-out task and what its arms are made from."""

    problem: Problem
    own: Trajectory
    siblings: tuple[Trajectory, ...]
    wrong: tuple[Trajectory, ...]

    def sources(self, arm: str) -> tuple[Trajectory, ...]:
        return {
            "own": (self.own,),
            "sibling1": self.siblings[:1],
            "sibling": self.siblings,
            "wrong": self.wrong,
        }[arm]


def _function(update: str) -> str:
    return updates.function_of(code_update_arena.NAME, update)


class Machine(NamedTuple):
    model: ModelRef
    device: str
    dtype: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("corpus", "queue", "real", "context-score", "study", "tell"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="the folder of public data sets")
    parser.add_argument("--corpus", type=Path, help="what `corpus` wrote")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--shard", default="0/1", help="real: which share of the tasks")
    parser.add_argument("--variant", choices=tuple(VARIANTS))
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), help="queue: one a GPU, in order")
    parser.add_argument("--train-seconds", type=float, default=700)
    parser.add_argument("--seconds", type=float, default=1320, help="queue: everything is over after so many")
    parser.add_argument("--gpus", type=int, default=0, help="queue: default all")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: checks the path, claims nothing")
    args = parser.parse_args()
    {
        "corpus": make_corpus, "queue": queue, "real": real, "context-score": score_context, "study": study,
        "tell": tell,
    }[args.do](args)  # fmt: skip
    return 0


def _machine(args: argparse.Namespace) -> Machine:
    cuda = torch.cuda.is_available()
    if cuda:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    model = resolve.resolve(args.model, sources=resolve.SOURCES, cache=args.cache)
    return Machine(model, "cuda" if cuda else "cpu", "bfloat16" if cuda else "float32")


def _sandbox() -> Any:
    module = plugins.load("sandbox", "fork")
    return module.build(module.Config(cpu_seconds=10.0, wall_seconds=20.0, packages=code_update_arena.LENT))


def _engine(machine: Machine, **settings: Any) -> Any:
    gc.collect()
    if machine.device == "cuda":
        torch.cuda.empty_cache()  # the engine plans its batches by what is free
    module = plugins.load("engines", "torch")
    return module.build(module.Config(**settings), model=machine.model, device=machine.device, dtype=machine.dtype)


# --------------------------------------------------------------------------- what is trained on


def make_corpus(args: argparse.Namespace) -> None:
    """Generated updates (both vocabularies) and conventions, as trajectories."""
    count, conventions = (24, 12) if args.smoke else (2000, 500)
    for names in ("open", "plain"):
        tasks = api_updates.generate(api_updates.Config(seed=SEED, updates=count, names=names))
        store.write_jsonl(args.out / f"{names}.jsonl", list(api_updates.trajectories(tasks, seed=SEED)))
    problems = families.generate(families.Config(seed=SEED, families=conventions, held_out=0))
    store.write_jsonl(args.out / "conventions.jsonl", families.trajectories(problems, None, seed=SEED))


def _benchmark(args: argparse.Namespace, fold: int = -1) -> code_update_arena.CodeUpdateArena:
    settings = code_update_arena.Config(path=str(args.data), folds=2, fold=fold)
    return code_update_arena.build(settings)


# --------------------------------------------------------------------------- real trajectories, arms in context


def real(args: argparse.Namespace) -> None:
    """This shard's trajectories; when all shards are there, this shard's samples in context."""
    index, count = map(int, args.shard.split("/"))
    machine = _machine(args)
    benchmark = _benchmark(args)
    problems = benchmark.problems()
    if args.smoke:
        keep = sorted({p.domain for p in problems if p.category in ("math", "re")})[:12]
        problems = [p for p in problems if p.domain in keep]
    mine = problems[index::count]
    engine, sandbox = _engine(machine), _sandbox()
    path = args.out / f"real-{index}.jsonl"
    if not path.exists():
        notes = {domain: update.text() for domain, update in benchmark.updates().items()}
        found, counts = _work(mine, notes, machine, engine, sandbox, args.smoke)
        store.write_json(args.out / f"real-{index}.json", counts)
        store.write_jsonl(path, found)
    patience = time.monotonic() + 120  # a shard that failed twice must not hold the others
    while not all((args.out / f"real-{i}.jsonl").exists() for i in range(count)) and time.monotonic() < patience:
        time.sleep(0.5)
    cases = _cases(problems, _read_real(args.out))
    _sample_context(args, machine, engine, [c for c in cases if c.problem.task_id in {p.task_id for p in mine}], index)
    engine.close()
    sandbox.close()


def _work(
    problems: Sequence[Problem], notes: dict[str, str], machine: Machine, engine: Any, sandbox: Any, smoke: bool
) -> tuple[list[Trajectory], dict[str, int]]:
    """One trajectory a task whose reference counts here. The documentation is shown and is no part of it."""
    references = judging.judge(sandbox, (Item(p.task_id, p, p.reference) for p in problems))
    count = {e.key for e in references if e.outcome is Outcome.PASSED}
    kept = [p for p in problems if p.task_id in count]
    shown = [
        dataclasses.replace(p, prompt=f"{p.prompt.strip()}\n\nThe library was updated:\n{notes[p.domain]}\n")
        for p in kept
    ]
    chains = [loop.Chain(p, n) for p in shown for n in range(1 if smoke else CHAINS)]
    settings = loop.Settings(
        max_attempts=1 if smoke else ATTEMPTS,
        sampling=Sampling(temperature=0.8, max_new_tokens=16 if smoke else NEW_TOKENS, top_p=0.95),
        reflect=False, history=1, restart=2, error_chars=600, seed=SEED,
    )  # fmt: skip
    loop.work(
        chains, settings, engine=engine, sandbox=sandbox, render=lambda c: chat.render(machine.model, c),
        on_attempt=lambda chain, attempt: None,
    )  # fmt: skip
    # Passing alone does not show the update, as many tasks can be solved by hand: such an attempt has failed.
    used = {c.key for c in chains if c.attempts[-1].outcome is Outcome.PASSED}
    by_hand = sum(c.attempts[-1].error_kind == FailureKind.NOT_NEEDED for c in chains)
    trajectories, counts = [], defaultdict(int)
    counts |= {
        "tasks": len(problems),
        "references_count": len(kept),
        "chains": len(chains),
        "passed": len(used) + by_hand,
    }
    counts["used_the_update"] = len(used)
    for problem in kept:
        own = [c for c in chains if c.problem.task_id == problem.task_id]
        best = next((c for c in own if c.key in used), own[0])
        failed = [a for a in best.attempts if a.outcome is not Outcome.PASSED]
        solution, source = problem.reference, f"{problem.benchmark}:reference"
        if best.key in used:
            solution, source = best.attempts[-1].code, machine.model.name
        counts["ends_with_reference" if best.key not in used else "ends_with_own"] += 1
        counts["failed_attempts"] += len(failed)
        attempts = (*failed, Attempt(code=solution, outcome=Outcome.PASSED))
        trajectories.append(
            Trajectory(
                trajectory_id=config.digest([problem.task_id, attempts])[:16], task_id=problem.task_id,
                benchmark=problem.benchmark, prompt=problem.prompt, attempts=attempts, solution=solution,
                category=problem.category, domain=problem.domain, source=source,
            )
        )  # fmt: skip
    return trajectories, dict(counts)


def _read_real(out: Path) -> list[Trajectory]:
    found = [t for path in sorted(out.glob("real-*.jsonl")) for t in store.read_jsonl(path, Trajectory)]
    return sorted(found, key=lambda t: t.task_id)


def _cases(problems: Iterable[Problem], lessons: Sequence[Trajectory]) -> list[Case]:
    """Tasks with a sibling; the wrong donor is another update of the same package, of another function if there is."""
    tasks = {p.task_id: p for p in problems}
    by_update: dict[str, list[Trajectory]] = defaultdict(list)
    for lesson in lessons:
        if lesson.task_id in tasks:
            by_update[lesson.domain].append(lesson)
    cases = []
    for update, own_lessons in sorted(by_update.items()):
        for own in own_lessons:
            rng = random.Random(f"{SEED}/{own.task_id}")
            others = [t for t in own_lessons if t is not own]
            siblings = rng.sample(others, min(SIBLINGS, len(others)))
            if not siblings:
                continue
            package = [u for u in by_update if u != update and by_update[u][0].category == own.category]
            far = [u for u in package if _function(u) != _function(update)]
            donors = [u for u in by_update if u != update]
            donor = by_update[rng.choice(sorted(far or package or donors))]
            wrong = rng.sample(donor, min(len(siblings), len(donor)))
            cases.append(Case(tasks[own.task_id], own, tuple(siblings), tuple(wrong)))
    return cases


def _sample_context(args: argparse.Namespace, machine: Machine, engine: Any, cases: Sequence[Case], index: int) -> None:
    path = args.out / f"context-{index}.jsonl"
    notes = {domain: update.text() for domain, update in _benchmark(args).updates().items()}
    wanted = []
    for case in cases:
        for arm in CONTEXT_ARMS:
            if arm == "vanilla":
                context = ""
            elif arm == "documentation":
                context = f"The library was updated:\n{notes[case.problem.domain]}"
            else:
                shown = case.sources(arm.removeprefix("context_"))
                context = "\n\n".join(prompts.render_trajectory(t) for t in shown)
            wanted.append((arm, case.problem, context, None))
    _draw(args, machine, engine, path, wanted)


def _draw(
    args: argparse.Namespace, machine: Machine, engine: Any, path: Path, wanted: Sequence[Any], draws: int = DRAWS,
    drawn_by: int = SEED,
) -> None:  # fmt: skip
    """Draw what is missing: draw i of a task has the same seed in every arm."""
    have = {(s.condition, s.task_id, s.draw) for s in store.read_jsonl(path, Sample)}
    sampling = Sampling(temperature=TEMPERATURE, max_new_tokens=16 if args.smoke else NEW_TOKENS, top_k=0)
    requests, meaning = [], {}
    for arm, problem, context, worn in wanted:
        text = chat.render(machine.model, prompts.task(problem.prompt, context))
        seed = config.derive_seed(drawn_by, "sample", problem.task_id)
        for draw in range(draws):
            if (arm, problem.task_id, draw) in have:
                continue
            key = f"{arm}\t{problem.task_id}\t{draw}"
            meaning[key] = (arm, problem, draw)
            asked = dataclasses.replace(sampling, stop=prompts.stop(problem.prompt))
            requests.append(Request(key=key, prompt=text, sampling=asked, seed=seed + draw, adapter=worn))
    with store.Appender(path) as log, console.Progress("sample", len(requests), unit="sample") as bar:
        for completion in engine.complete(requests):
            arm, problem, draw = meaning[completion.key]
            code = prompts.extract(completion.text, prompt=problem.prompt, entry_point=problem.entry_point)
            log.write(
                Sample(
                    task_id=problem.task_id, condition=arm, draw=draw, seed=completion.seed,
                    completion=completion.text, program=code, num_tokens=completion.num_tokens,
                    finish_reason=completion.finish_reason,
                )
            )  # fmt: skip
            bar.advance()


def _score(problems: Iterable[Problem], samples: Path, verdicts: Path) -> None:
    tasks = {p.task_id: p for p in problems}
    done = {(v["arm"], v["task"], v["draw"]) for _, v in store.read_lines(verdicts)} if verdicts.exists() else set()
    drawn = {
        f"{s.condition}\t{s.task_id}\t{s.draw}": s
        for s in store.read_jsonl(samples, Sample)
        if (s.condition, s.task_id, s.draw) not in done
    }
    if not drawn:
        return
    sandbox = _sandbox()
    items = [Item(k, tasks[s.task_id], s.program) for k, s in drawn.items()]
    with store.Appender(verdicts) as log, console.Progress("score", len(drawn), unit="sample") as bar:
        for at in range(0, len(items), BLOCK):
            # Failures are known before passes: a block is written whole, so that a judge cut off leaves no bias.
            for e in list(judging.judge(sandbox, items[at : at + BLOCK])):
                s = drawn[e.key]
                log.write({
                    "arm": s.condition, "task": s.task_id, "draw": s.draw, "used": e.outcome is Outcome.PASSED,
                    "plain": execution_with_and_without.passes_with(e), "kind": e.label, "error": e.error[:200],
                })  # fmt: skip
                bar.advance()
    sandbox.close()


def score_context(args: argparse.Namespace) -> None:
    problems = _benchmark(args).problems()
    for path in sorted(args.out.glob("context-*.jsonl")):
        _score(problems, path, args.out / path.name.replace("context-", "context_verdicts-"))


# --------------------------------------------------------------------------- one variant


def study(args: argparse.Namespace) -> None:
    """Train, look, sample, judge; results under --out/VARIANT."""
    variant = VARIANTS[args.variant]
    machine = _machine(args)
    out = args.out / args.variant
    problems = _benchmark(args, variant.fold).problems()
    lessons = _read_real(args.out)
    held = [p for p in problems if variant.fold < 0 or p.split == "held_out"]
    cases = _cases(held, lessons)
    trained = store.read_jsonl(args.corpus / f"{variant.generated}.jsonl", Trajectory)
    trained += store.read_jsonl(args.corpus / "conventions.jsonl", Trajectory)
    held_ids = {p.task_id for p in held}
    trained += [t for t in lessons if t.task_id not in held_ids]
    exclusion.check_corpus(trained, held)
    lora, hypernet = _recipe(variant, args.smoke)
    store.write_json(out / "settings.json", {"variant": variant, "lora": lora, "hypernet": hypernet})
    train(out, machine, lora, hypernet, cases, trained, args)
    gc.collect()
    sample(out, machine, cases, args)
    _score(problems, out / "samples.jsonl", out / "verdicts.jsonl")
    tell(args)


def _recipe(variant: Variant, smoke: bool) -> tuple[LoraConfig, HypernetConfig]:
    lora = {**config.plain(LORA), **variant.lora, "shares": variant.shares}
    hypernet = {**config.plain(HYPERNET), **variant.hypernet}
    hypernet["pairs"] = {**hypernet["pairs"], "shares": variant.shares}
    if smoke:
        lora |= {"rank": 2, "rows": 4, "max_tokens": 2000, "schedule": {"steps": 3, "learning_rate": 1e-3}}
        hypernet |= {
            "rank": 2, "groups": 4, "max_tokens": 2000, "taps": [0, 1],
            "schedule": {"steps": 5, "learning_rate": 1e-3},
            "encoder_settings": {"width": 32, "latents": 4, "hidden": 64},
            "encoder_first": {"groups": 4, "schedule": {"steps": 3, "learning_rate": 1e-3}},
        }  # fmt: skip
    return config.build(LoraConfig, lora), config.build(HypernetConfig, hypernet)


def train(
    out: Path, machine: Machine, lora: LoraConfig, hypernet: HypernetConfig, cases: Sequence[Case],
    trained: Sequence[Trajectory], args: argparse.Namespace,
) -> None:  # fmt: skip
    folder = out / "checkpoints"
    if checkpoint.done(folder / "hypernet"):
        return
    began = time.monotonic()
    base = bases.load(machine.model, device=machine.device, dtype=machine.dtype)
    layout = base.layout(lora.modules)
    corpus = Corpus(base, trained, max_tokens=hypernet.max_tokens)
    console.note(f"{len(trained)} trajectories, {corpus.too_long} solutions too long")
    metrics, tasks = folder / "metrics.jsonl", sorted({t.task_id for t in trained})
    if not checkpoint.done(folder / "lora"):
        static = trainer.train_lora(base, corpus, lora, seed=SEED, folder=folder / "lora", metrics=metrics)
        checkpoint.save_lora(folder / "lora", static, layout, lora, machine.model, trained_on=tasks)

    def fresh() -> Any:
        return checkpoint.load(folder / "lora", machine.model, device=machine.device).static.train()

    reader = Reader(base.model, base.tokenizer, taps=hypernet.taps, digest=machine.model.digest, folder=None)
    table = FeatureTable(reader.read(corpus.trajectories))
    console.note(f"features: {table.features_XSD.nbytes / 1e9:.1f} GB; {time.monotonic() - began:.0f} s so far")
    if not args.smoke:
        if not (out / "steps.json").exists():
            steps = _affordable(base, corpus, table, fresh(), hypernet, args.train_seconds, began, out)
            store.write_json(out / "steps.json", {"steps": steps})
        steps = store.read_json(out / "steps.json")["steps"]
        hypernet = dataclasses.replace(hypernet, schedule=dataclasses.replace(hypernet.schedule, steps=steps))
    watched = Donors(base, reader, cases, limit=6 if args.smoke else 32)
    steps = hypernet.schedule.steps
    for share in (0.2, 0.4, 0.7, 1.0):
        both = trainer.train_hypernet(
            base, corpus, table, fresh(), hypernet, seed=SEED, folder=folder / "hypernet", metrics=metrics,
            stop_after=max(1, round(share * steps)),
        )  # fmt: skip
        with store.Appender(out / "watch.jsonl") as log:
            log.write({"step": round(share * steps), "seconds": time.monotonic() - began, **watched.look(both)[0]})
    for place, precision in ((folder / "hypernet", "float32"), (out / "shipped", "float16")):
        checkpoint.save_hypernet(
            place, both, layout, lora, hypernet, machine.model, trained_on=tasks, precision=precision
        )
    record, matrix = Donors(base, reader, cases, limit=6 if args.smoke else 0).look(both)
    store.write_json(out / "donors.json", {**record, "matrix": [[round(v, 2) for v in row] for row in matrix]})
    base.hooks.remove()
    store.write_json(out / "seconds.json", {"train": time.monotonic() - began, "steps": steps})


def _affordable(
    base: Any, corpus: Corpus, table: FeatureTable, static: Any, hypernet: HypernetConfig, seconds: float, began: float,
    out: Path,
) -> int:  # fmt: skip
    """Steps that fit what is left of the seconds, from steps 6–20 of a run that is thrown away."""
    probe, marks = out / "speed", []
    short = dataclasses.replace(hypernet, schedule=dataclasses.replace(hypernet.schedule, steps=20), encoder_first=None)
    for stop in (5, 20):
        trainer.train_hypernet(
            base, corpus, table, static, short, seed=1, folder=probe, metrics=probe / "metrics.jsonl", stop_after=stop
        )
        marks.append(time.monotonic())
    pace = (marks[1] - marks[0]) / 15
    left = seconds - (time.monotonic() - began) - 110  # the encoder's own phase, looks and checkpoints
    steps = max(50, int(left / pace))
    console.note(f"{pace:.2f} s a step: {steps} steps in {left:.0f} s")
    return steps


class Donors:
    """Held-out solutions under the adapter of every held-out update: which donor makes the right one likeliest?

    One target an update; its right donor are its siblings, never itself. `limit` updates at most; 0: all.
    """

    def __init__(self, base: Any, reader: Reader, cases: Sequence[Case], limit: int) -> None:
        first: dict[str, Case] = {}
        for case in cases:
            first.setdefault(case.problem.domain, case)
        chosen = list(first.values())
        if limit:
            chosen = random.Random(SEED).sample(chosen, min(limit, len(chosen)))
        self._base = base
        self._cases = chosen
        self._texts = [base.encode(c.problem.prompt, c.problem.reference) for c in chosen]
        flat = [t for c in chosen for t in c.siblings]
        self._bank = FeatureTable(reader.read(flat))
        numbers = iter(range(len(flat)))
        self._sets = [[next(numbers) for _ in c.siblings] for c in chosen]

    @torch.no_grad()
    def look(self, both: trainer.HypernetWithStatic) -> tuple[dict[str, Any], list[list[float]]]:
        """(summary, matrix of log-probabilities [donor][target], the last two rows static and bare), nats."""
        dtype = next(self._base.model.parameters()).dtype
        static = both.static.factors()
        both.eval()
        rows: list[list[float]] = []
        for start in range(0, len(self._sets), 16):
            with torch.autocast(str(self._base.device.type), torch.bfloat16, enabled=dtype is torch.bfloat16):
                made = both.hypernet(self._bank.batch(self._sets[start : start + 16]))
            whole = to_dtype(concatenate(static, made.factors), dtype)
            count = len(self._sets[start : start + 16])
            rows += [self._under(select(whole, slice(n, n + 1))) for n in range(count)]
        rows.append(self._under({m: Factors(*(t.to(dtype) for t in f)) for m, f in static.items()}))
        rows.append(self._under(None))
        matrix = np.array(rows)
        n = len(self._cases)
        ranks, package_ranks, right, wrong = [], [], [], []
        for t, case in enumerate(self._cases):
            mine = matrix[t, t]
            near = [
                d for d, other in enumerate(self._cases)
                if d != t and other.problem.category == case.problem.category
                and _function(other.problem.domain) != _function(case.problem.domain)
            ]  # fmt: skip
            ranks.append(1 + int((np.delete(matrix[:n, t], t) > mine).sum()))
            package_ranks.append((1 + int((matrix[near, t] > mine).sum()), len(near) + 1))
            right.append(mine)
            wrong.append(matrix[near, t].mean() if near else matrix[:n, t].mean())
        summary = {
            "updates": n, "mean_rank": float(np.mean(ranks)), "chance": (n + 1) / 2,
            "mean_package_rank_share": float(np.mean([(r - 0.5) / c for r, c in package_ranks])),  # chance 0.5
            "sibling": float(np.mean(right)), "wrong_same_package": float(np.mean(wrong)),
            "static": float(matrix[n].mean()), "vanilla": float(matrix[n + 1].mean()),
            "targets": [c.problem.task_id for c in self._cases],
        }  # fmt: skip
        short = {k: v for k, v in summary.items() if k != "targets"}
        console.note(f"donors: {json.dumps({k: round(v, 2) for k, v in short.items()})}")
        return summary, matrix.tolist()

    def _under(self, worn: Any) -> list[float]:
        found: list[float] = []
        for start in range(0, len(self._texts), 32):
            rows = self._base.rows(self._texts[start : start + 32])
            log_prob_P = self._base.log_prob(rows, worn)
            found += losses.sequence_log_prob(log_prob_P, rows.row_P, len(rows.ids_BT)).tolist()
        return found


def sample(out: Path, machine: Machine, cases: Sequence[Case], args: argparse.Namespace) -> None:
    """Every adapter arm × held-out task × draw."""
    path = out / "samples.jsonl"
    have = {(s.condition, s.task_id, s.draw) for s in store.read_jsonl(path, Sample)}
    if len(have) == len(ADAPTER_ARMS) * len(cases) * DRAWS:
        return
    source = export.AdapterGenerator(
        out / "checkpoints" / "hypernet", machine.model, device=machine.device, dtype=machine.dtype
    )
    layout, dtype = source.stored.layout, getattr(torch, machine.dtype)

    def ready(made: Any) -> Any:
        return convert.to_adapter(made, layout, base_model=machine.model.digest, dtype=dtype)

    engine = _engine(machine)
    for arm in ADAPTER_ARMS:  # one arm after the other: an adapter takes 20 MB
        worn = {}
        if arm in ("static", "empty"):
            made = source.static() if arm == "static" else source.generate([()])
            worn = dict.fromkeys((c.problem.task_id for c in cases), engine.put_adapter(arm, ready(made)))
        for start in range(0, len(cases), 16) if not worn else ():
            some = cases[start : start + 16]
            made = source.generate([c.sources(arm) for c in some])
            for n, case in enumerate(some):
                task = case.problem.task_id
                worn[task] = engine.put_adapter(f"{arm}/{task}", ready(select(made, slice(n, n + 1))))
        _draw(args, machine, engine, path, [(arm, c.problem, "", worn[c.problem.task_id]) for c in cases])
        for adapter in {ref.adapter_id for ref in worn.values()}:
            engine.drop_adapter(adapter)
    engine.close()


# --------------------------------------------------------------------------- numbers


def tell(args: argparse.Namespace) -> None:
    """result.json of every variant, and of the two folds of the mixture together."""
    context = [v for path in sorted(args.out.glob("context_verdicts-*.jsonl")) for _, v in store.read_lines(path)]
    results: dict[str, Any] = {}
    found = {
        name: [v for _, v in store.read_lines(args.out / name / "verdicts.jsonl")]
        for name in VARIANTS
        if (args.out / name / "verdicts.jsonl").exists()
    }
    if {"mixture-0", "mixture-1"} <= set(found):
        found["mixture"] = found["mixture-0"] + found["mixture-1"]
    for name, verdicts in found.items():
        tasks = {v["task"] for v in verdicts}
        results[name] = {
            metric: _numbers([*verdicts, *(v for v in context if v["task"] in tasks)], metric)
            for metric in ("used", "plain")
        }
    store.write_json(args.out / "result.json", results)
    lines = ["| variant | arm | UPass | plain pass |", "|---|---|---:|---:|"]
    for name, result in results.items():
        for arm, value in result["used"]["arms"].items():
            lines.append(f"| {name} | {arm} | {value:.1f} | {result['plain']['arms'][arm]:.1f} |")
    lines += ["", "| variant | contrast (UPass) | points | 95 % over domains |", "|---|---|---:|---:|"]
    for name, result in results.items():
        for contrast, (points, low, high) in result["used"]["contrasts"].items():
            lines.append(f"| {name} | {contrast} | {points:+.1f} | {low:+.1f} … {high:+.1f} |")
    store.write_atomic(args.out / "result.md", "\n".join(lines) + "\n")
    console.out("\n".join(lines))


def _numbers(
    verdicts: Sequence[dict[str, Any]], metric: str, wanted: Sequence[tuple[str, str]] = CONTRASTS
) -> dict[str, Any]:
    """Shares in points over the tasks, and contrasts with a bootstrap over domains."""
    cells: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for v in verdicts:
        cells[v["arm"]][v["task"]].append(float(v[metric]))
    means = {arm: {task: 100 * float(np.mean(hits)) for task, hits in tasks.items()} for arm, tasks in cells.items()}
    contrasts = {}
    for one, other in wanted:
        if one not in means or other not in means:
            continue
        tasks = sorted(set(means[one]) & set(means[other]))
        by_domain: dict[str, list[float]] = defaultdict(list)
        for task in tasks:
            by_domain[task.rpartition("/")[0]].append(means[one][task] - means[other][task])
        sums = np.array([sum(d) for d in by_domain.values()])
        sizes = np.array([len(d) for d in by_domain.values()])
        if not len(sums):
            continue
        picks = np.random.default_rng(SEED).integers(0, len(sums), (5000, len(sums)))
        low, high = np.percentile(sums[picks].sum(1) / sizes[picks].sum(1), [2.5, 97.5])
        contrasts[f"{one} − {other}"] = (float(sums.sum() / sizes.sum()), float(low), float(high))
    return {
        "tasks": len({v["task"] for v in verdicts}),
        "arms": {arm: float(np.mean(list(tasks.values()))) for arm, tasks in means.items()},
        "contrasts": contrasts,
    }


# --------------------------------------------------------------------------- the queue


def queue(args: argparse.Namespace) -> None:
    """Everything, one process a GPU. A process that fails is started once more."""
    began = time.monotonic()
    gpus = args.gpus or max(1, torch.cuda.device_count())
    cores = sorted(os.sched_getaffinity(0))
    args.out.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        print(f"== {time.monotonic() - began:4.0f} s: {text}", flush=True)

    def start(what: list[str], gpu: int, name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, __file__, *what, "--out", str(args.out), "--data", str(args.data)]
        command += ["--corpus", str(args.corpus), "--model", args.model, *(["--smoke"] if args.smoke else [])]
        command += ["--cache", str(args.cache)] if args.cache else []
        with (args.out / f"{name}.log").open("ab") as log:
            visible = {**os.environ, "CUDA_VISIBLE_DEVICES": str(gpu)}
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=visible)
        os.sched_setaffinity(process.pid, cores[gpu::gpus] or cores)
        return process

    def all_of(jobs: dict[str, tuple[list[str], int]]) -> None:
        running = {name: (start(what, gpu, name), 1) for name, (what, gpu) in jobs.items()}
        while running:
            for name, (process, tries) in list(running.items()):
                if (code := process.poll()) is None:
                    continue
                del running[name]
                say(f"{name}: {code}")
                if code and tries == 1:
                    running[name] = (start(*jobs[name], name), 2)
            time.sleep(0.3)

    say(f"start on {gpus}")
    all_of({f"real-{i}": (["real", "--shard", f"{i}/{gpus}"], i) for i in range(gpus)})
    left = args.seconds - (time.monotonic() - began)
    train_seconds = str(max(60.0, left - 330))
    say(f"training for {train_seconds} s")
    jobs = {
        n: (["study", "--variant", n, "--train-seconds", train_seconds], i % gpus) for i, n in enumerate(args.variants)
    }
    all_of({"context-score": (["context-score"], gpus - 1), **jobs})
    tell(args)
    say("end")


if __name__ == "__main__":
    sys.exit(main())
