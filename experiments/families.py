"""Recall and family transfer on held-out families: does the right trajectory, through the weights, solve the task?

One command, resumable, everything on disk under --out as soon as it exists:

    python experiments/families.py --out runs/families --train-seconds 420

  corpus      problems.jsonl, trajectories.jsonl (training families), lessons.jsonl (held-out families: sources only)
  (with --set also=[FILE] other trajectories train too: MBPP's, say, so that the checkpoint serves `train.start_from`)
  train       checkpoints/lora, checkpoints/hypernet; the number of steps is measured to fit --train-seconds
  watch       watch.jsonl: log-probability of held-out solutions under own, sibling, wrong and static adapters
  sample      samples.jsonl: every arm × held-out task × draw, by the torch engine, adapters handed over as tensors
  score       verdicts.jsonl, by the sandbox
  decide      result.json: pass@1 of every arm, the contrasts of claims (a) and (b) with intervals; diagnostics.json
              shipped/: the weights in float16 with settings.json and manifest.json, for results/hypernet-0.5b

Arms: vanilla · static (constant part) · own (the task's own trajectory) · sibling (other tasks of its family) · wrong
(another family of the same kind) · empty · teacher_own, teacher_sibling (the same trajectories in context).
Held-out families take no part in training; `--smoke` runs all of it on a tiny random model in about a minute.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import platform
import random
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Batches differ in length from step to step; without this the allocator's leftovers fill the GPU.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch

from rune import __version__, config, console, plugins, prompts
from rune.adapters import convert
from rune.adapters.factors import Adapters, Factors, concatenate, select, to_dtype
from rune.analysis import stats
from rune.benchmarks import families
from rune.corpus import exclusion, reading
from rune.hypernet import base as bases
from rune.hypernet import checkpoint, diagnostics, export, losses, trainer
from rune.hypernet.data import Corpus
from rune.hypernet.features import FeatureTable, Reader
from rune.hypernet.settings import HypernetConfig, LoraConfig, PairMix, Schedule, Weights
from rune.models import chat, resolve
from rune.runs import provenance, store
from rune.stages import train as train_stage
from rune.types import (
    Completion,
    Execution,
    ModelRef,
    Outcome,
    Problem,
    Program,
    Request,
    Sample,
    Sampling,
    Split,
    Trajectory,
    Verdict,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides the numbers; kept as settings.json."""

    lora: LoraConfig
    hypernet: HypernetConfig
    families: int = 1800
    held_out: int = 64
    tasks: int = 6  # per family
    scored: int = 2  # tasks of each held-out family that are sampled; the others are their siblings
    sampled: int = 0  # of those tasks, from the first; 0: all. A CPU draws one every ten seconds
    siblings: int = 3  # trajectories in a sibling set
    draws: int = 5
    temperature: float = 0.2
    max_new_tokens: int = 256
    seed: int = 0
    strength: float = 1.0
    also: tuple[str, ...] = ()  # files of other verified trajectories to train on; shares say how often


DEFAULTS = Settings(
    lora=LoraConfig(
        schedule=Schedule(steps=300, learning_rate=5e-4, checkpoint_every=150),
        rank=8,
        alpha=16.0,
        rows=64,
        max_tokens=384,
    ),
    hypernet=HypernetConfig(
        schedule=Schedule(steps=3000, learning_rate=5e-4, checkpoint_every=500),
        rank=8,
        alpha=16.0,
        groups=24,
        targets=2,
        pairs=PairMix(recall=0.4, family=0.6, max_sources=3),
        weights=Weights(target_contrast=0.1, kl_base=0.02, lesson=0.3),
        max_tokens=384,
        encoder_rate=2.0,
        drop_tokens=0.1,
    ),
)
SMOKE = {
    "families": 24, "held_out": 6, "scored": 1, "draws": 1, "max_new_tokens": 16,
    "lora": {"rank": 2, "rows": 4, "max_tokens": 700, "schedule": {"steps": 4}},
    "hypernet": {
        "rank": 2, "groups": 4, "max_tokens": 700, "taps": [0, 1], "schedule": {"steps": 6},
        "encoder_settings": {"width": 32, "latents": 4, "hidden": 64},
    },
}  # fmt: skip
CORPUS = ("problems", "trajectories", "lessons")
ARMS = ("vanilla", "static", "own", "sibling", "wrong", "empty", "teacher_own", "teacher_sibling")
CONTRASTS = (("sibling", "wrong"), ("own", "wrong"), ("sibling", "static"), ("own", "static"), ("sibling", "empty"),
             ("sibling", "vanilla"), ("own", "vanilla"))  # fmt: skip


class Case(NamedTuple):
    """One held-out task and what its arms are made from."""

    problem: Problem
    own: Trajectory
    siblings: tuple[Trajectory, ...]
    wrong: tuple[Trajectory, ...]

    def source(self, arm: str) -> tuple[Trajectory, ...]:
        return {"own": (self.own,), "sibling": self.siblings, "wrong": self.wrong, "empty": ()}[arm]


class Machine(NamedTuple):
    model: ModelRef
    device: str
    dtype: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--model", default="qwen2.5-coder-0.5b-instruct", help="a name of `rune models list`, or a folder"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU, else float32")
    parser.add_argument("--train-seconds", type=float, help="choose the hypernetwork's steps to fit; else as set")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="a.b=c", help="any of Settings")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: checks the path, claims nothing")
    parser.add_argument("--cache", type=Path, help="default: $RUNE_CACHE, or ~/.cache/rune")
    parser.add_argument("--tell", action="store_true", help="only print the result of a finished study again")
    args = parser.parse_args()
    if args.tell:
        tell(args.out, store.read_json(args.out / "result.json"))
        return 0
    clock = Clock(args.out / "seconds.json")
    machine = _machine(args.model, args.cache, args.dtype)
    settings = _settings(args)
    cases, trained = corpus(args.out, settings)
    clock.mark("corpus")
    settings = train(args.out, settings, machine, cases, trained, seconds=args.train_seconds)
    clock.mark("train")
    cases = cases[: settings.sampled or None]
    sample(args.out, settings, machine, cases)
    clock.mark("sample")
    score(args.out, cases)
    clock.mark("score")
    decide(args.out, settings, cases)
    clock.mark("decide")
    sign(args.out, settings, machine)
    return 0


class Clock:
    """Seconds of each stage, over all calls."""

    def __init__(self, path: Path) -> None:
        self._path, self._last = path, time.monotonic()

    def mark(self, stage: str) -> None:
        spent = store.read_json(self._path) if self._path.exists() else {}
        now = time.monotonic()
        spent[stage] = round(spent.get(stage, 0.0) + now - self._last, 2)
        self._last = now
        store.write_json(self._path, spent)


def _machine(name: str, cache: Path | None, dtype: str | None) -> Machine:
    cuda = torch.cuda.is_available()
    if cuda:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    model = resolve.resolve(name, sources=resolve.SOURCES, cache=cache)
    return Machine(model, "cuda" if cuda else "cpu", dtype or ("bfloat16" if cuda else "float32"))


def _settings(args: argparse.Namespace) -> Settings:
    path = args.out / "settings.json"
    if path.exists():
        return config.build(Settings, store.read_json(path), where=str(path))
    raw = _merge(config.plain(DEFAULTS), SMOKE if args.smoke else {})
    settings = config.build(Settings, config.override(raw, args.settings))
    store.write_json(path, settings)
    return settings


def _merge(first: dict[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    nested = {
        k: _merge(first[k], v) for k, v in second.items() if isinstance(v, Mapping) and isinstance(first.get(k), dict)
    }
    return {**first, **second, **nested}


# --------------------------------------------------------------------------- corpus


def corpus(out: Path, settings: Settings) -> tuple[list[Case], list[Trajectory]]:
    """Held-out cases and the training trajectories; generated once, then read."""
    if not all((out / f"{name}.jsonl").exists() for name in CORPUS):
        asked = families.Config(
            seed=settings.seed, families=settings.families, held_out=settings.held_out, tasks=settings.tasks
        )
        problems = families.generate(asked)
        held = {p.task_id for p in problems if p.split is Split.HELD_OUT}
        everything = families.trajectories(problems, None, seed=settings.seed)
        store.write_jsonl(out / "problems.jsonl", [p for p in problems if p.task_id in held])
        store.write_jsonl(out / "trajectories.jsonl", [t for t in everything if t.task_id not in held])
        store.write_jsonl(out / "lessons.jsonl", [t for t in everything if t.task_id in held])
    problems = store.read_jsonl(out / "problems.jsonl", Problem)
    trained = store.read_jsonl(out / "trajectories.jsonl", Trajectory)
    trained += reading.read_all([Path(file) for file in settings.also]).trajectories
    exclusion.check_corpus(trained, problems)
    lessons = store.read_jsonl(out / "lessons.jsonl", Trajectory)
    return _cases(problems, lessons, settings), trained


def _cases(problems: Sequence[Problem], lessons: Sequence[Trajectory], settings: Settings) -> list[Case]:
    by_family: dict[str, list[Trajectory]] = {}
    for lesson in lessons:
        by_family.setdefault(lesson.domain, []).append(lesson)
    rng = random.Random(config.derive_seed(settings.seed, "cases"))
    cases: list[Case] = []
    for family, own_lessons in by_family.items():
        members = [p for p in problems if p.domain == family]
        for problem in members[: settings.scored]:
            own = next(t for t in own_lessons if t.task_id == problem.task_id)
            siblings = rng.sample(
                [t for t in own_lessons if t is not own], min(settings.siblings, len(own_lessons) - 1)
            )
            # Same kind (number, list, text): a wrong lesson that could have been the right one.
            unsolved_tasks = [f for f, ts in by_family.items() if f != family and ts[0].category == own.category]
            other = by_family[rng.choice(unsolved_tasks or [f for f in by_family if f != family])]
            cases.append(Case(problem, own, tuple(siblings), tuple(rng.sample(other, len(siblings)))))
    return cases


# --------------------------------------------------------------------------- train


def train(
    out: Path,
    settings: Settings,
    machine: Machine,
    cases: Sequence[Case],
    trained: list[Trajectory],
    *,
    seconds: float | None,
) -> Settings:
    """Both phases, unless done. Returns the settings with the steps that were run."""
    folder = out / "checkpoints"
    if checkpoint.done(folder / "hypernet"):
        return settings
    base = bases.load(machine.model, device=machine.device, dtype=machine.dtype)
    layout = base.layout(settings.lora.modules)
    near = train_stage.neighbours(trained, train_stage.Config(lora=settings.lora, hypernet=settings.hypernet))
    lessons = Corpus(base, trained, max_tokens=settings.hypernet.max_tokens, retrieved=near)
    if lessons.too_long:
        console.warn(f"{lessons.too_long} solutions over {settings.hypernet.max_tokens} tokens are not trained on")
    metrics = folder / "metrics.jsonl"
    tasks = sorted({t.task_id for t in trained})
    if not checkpoint.done(folder / "lora"):
        lora = trainer.train_lora(
            base, lessons, settings.lora, seed=settings.seed, folder=folder / "lora", metrics=metrics
        )
        checkpoint.save_lora(folder / "lora", lora, layout, settings.lora, machine.model, trained_on=tasks)

    def static() -> Any:
        return checkpoint.load(folder / "lora", machine.model, device=machine.device).static.train()

    started = time.monotonic()
    reader = Reader(base.model, base.tokenizer, taps=settings.hypernet.taps, digest=machine.model.digest, folder=None)
    table = FeatureTable(reader.read(lessons.trajectories))
    console.note(
        f"features: {len(table.features_XSD):,} tokens, {table.features_XSD.nbytes / 1e9:.1f} GB, "
        f"{time.monotonic() - started:.1f} s"
    )
    if seconds and not (out / "steps.json").exists():
        steps = _affordable(base, lessons, table, static(), settings, seconds, out)
        store.write_json(out / "steps.json", {"steps": steps})
    if (out / "steps.json").exists():
        steps = store.read_json(out / "steps.json")["steps"]
        schedule = dataclasses.replace(settings.hypernet.schedule, steps=steps)
        settings = dataclasses.replace(settings, hypernet=dataclasses.replace(settings.hypernet, schedule=schedule))
        store.write_json(out / "settings.json", settings)
    watcher = Watcher(base, reader, cases, out / "watch.jsonl")
    steps = settings.hypernet.schedule.steps
    for share in (0.1, 0.25, 0.5, 0.75, 1.0):
        stop = max(1, round(share * steps))
        both = trainer.train_hypernet(
            base, lessons, table, static(), settings.hypernet,
            seed=settings.seed, folder=folder / "hypernet", metrics=metrics, stop_after=stop,
        )  # fmt: skip
        watcher.look(both, stop)
    for place, dtype in ((folder / "hypernet", torch.float32), (out / "shipped", torch.float16)):
        checkpoint.save_hypernet(
            place, both, layout, settings.lora, settings.hypernet, machine.model, trained_on=tasks, dtype=dtype
        )
    base.hooks.remove()
    return settings


def _affordable(
    base: bases.Base, lessons: Corpus, table: FeatureTable, static: Any, settings: Settings, seconds: float, out: Path
) -> int:
    """Steps that fit: the mean of steps 6–25 of a run that is thrown away."""
    probe = out / "speed"
    schedule = dataclasses.replace(settings.hypernet.schedule, steps=30)
    short = dataclasses.replace(settings.hypernet, schedule=schedule, encoder_first=None)
    marks = []
    for stop in (5, 30):
        trainer.train_hypernet(
            base, lessons, table, static, short, seed=1, folder=probe, metrics=probe / "metrics.jsonl", stop_after=stop
        )
        marks.append(time.monotonic())
    pace = (marks[1] - marks[0]) / 25
    shutil.rmtree(probe)
    steps = max(30, int(seconds / pace))
    console.note(f"{1 / pace:.1f} steps/s: {steps} steps in {seconds:.0f} s")
    return steps


class Watcher:
    """Held-out families while training goes on: nats, and whether every token of the solution is the likeliest."""

    def __init__(self, base: bases.Base, reader: Reader, cases: Sequence[Case], path: Path) -> None:
        self._base, self._cases, self._path = base, list(cases)[:64], path
        texts = [base.encode(c.problem.prompt, c.own.solution) for c in self._cases]
        self._batches = [(s, base.rows(texts[s : s + 16])) for s in range(0, len(texts), 16)]
        self._banks = {}
        for arm in ("own", "sibling", "wrong"):
            sets = [case.source(arm) for case in self._cases]
            table = FeatureTable(reader.read([t for one in sets for t in one]))
            numbers = iter(range(sum(map(len, sets))))
            self._banks[arm] = (table, [[next(numbers) for _ in one] for one in sets])

    @torch.no_grad()
    def look(self, both: trainer.HypernetWithStatic, step: int) -> None:
        dtype = next(self._base.model.parameters()).dtype
        record: dict[str, Any] = {"step": step, "tasks": len(self._cases)}
        fixed = {m: Factors(*(t.to(dtype) for t in f)) for m, f in both.static.factors().items()}
        for arm in ("static", *self._banks):
            nats, exact = [], []
            for start, rows in self._batches:
                count = len(rows.ids_BT)
                worn: Adapters = fixed
                if arm != "static":
                    table, sets = self._banks[arm]
                    with torch.autocast(str(self._base.device.type), torch.bfloat16, enabled=dtype is torch.bfloat16):
                        made = both.hypernet(table.batch(sets[start : start + count]))
                    worn = to_dtype(concatenate(both.static.factors(), made.factors), dtype)
                logits_PV = self._base.logits(rows, worn).float()
                log_prob_P = logits_PV.log_softmax(-1).gather(-1, rows.label_P[:, None])[:, 0]
                nats += losses.sequence_log_prob(log_prob_P, rows.row_P, count).tolist()
                missed_P = (logits_PV.argmax(-1) != rows.label_P).float()
                exact += (losses.sequence_log_prob(missed_P, rows.row_P, count) == 0).float().tolist()
            record[arm] = {"log_prob": round(sum(nats) / len(nats), 3), "exact": round(sum(exact) / len(exact), 3)}
        with store.Appender(self._path) as log:
            log.write(record)
        console.note(
            f"held-out at step {step}: " + json.dumps({k: v for k, v in record.items() if k not in ("step", "tasks")})
        )


# --------------------------------------------------------------------------- sample


def sample(out: Path, settings: Settings, machine: Machine, cases: Sequence[Case]) -> None:
    """Draw what is missing. All arms go to the engine together; draw i has the same seed in every arm."""
    path = out / "samples.jsonl"
    have = {(s.condition, s.task_id, s.draw) for s in store.read_jsonl(path, Sample)}
    wanted = [(arm, case) for case in cases for arm in ARMS]
    missing = {
        (arm, case.problem.task_id): [d for d in range(settings.draws) if (arm, case.problem.task_id, d) not in have]
        for arm, case in wanted
    }
    if not any(missing.values()):
        return
    if machine.device == "cuda":
        # The engine plans its batches by what is free.
        gc.collect()
        torch.cuda.empty_cache()
    made = adapters(out, settings, machine, cases)
    module = plugins.load("engines", "torch")
    engine = module.build(module.Config(), model=machine.model, device=machine.device, dtype=machine.dtype)
    refs = {key: engine.put_adapter("/".join(key), adapter) for key, adapter in made}
    sampling = Sampling(temperature=settings.temperature, max_new_tokens=settings.max_new_tokens)
    requests, meaning = [], {}
    for arm, case in wanted:
        task = case.problem.task_id
        seed = config.derive_seed(settings.seed, "sample", task)
        context = ""
        if arm.startswith("teacher"):
            shown = case.source(arm.removeprefix("teacher_"))
            context = "\n\n".join(prompts.render_trajectory(t) for t in shown)
        text = chat.render(machine.model, prompts.task(case.problem.prompt, context))
        for draw in missing[arm, task]:
            key = f"{arm}\t{task}\t{draw}"
            meaning[key] = (arm, case.problem, draw)
            worn = refs.get((arm, task)) or refs.get((arm, "all"))
            asked = dataclasses.replace(sampling, stop=prompts.stop(case.problem.prompt))
            requests.append(Request(key=key, prompt=text, sampling=asked, seed=seed + draw, adapter=worn))
    with store.Appender(path) as log, console.Progress("sample", len(requests), unit="sample") as bar:
        for completion in engine.complete(requests):
            log.write(_sample(completion, *meaning[completion.key]))
            bar.advance()
    engine.close()


def _sample(completion: Completion, arm: str, problem: Problem, draw: int) -> Sample:
    return Sample(
        task_id=problem.task_id,
        condition=arm,
        draw=draw,
        seed=completion.seed,
        completion=completion.text,
        program=prompts.extract(completion.text, prompt=problem.prompt, entry_point=problem.entry_point),
        num_tokens=completion.num_tokens,
        finish_reason=completion.finish_reason,
    )


def adapters(
    out: Path, settings: Settings, machine: Machine, cases: Sequence[Case]
) -> Iterator[tuple[tuple[str, str], Any]]:
    """((arm, task or "all"), adapter) of every adapter arm; writes diagnostics.json on the way."""
    started = time.monotonic()
    source = export.AdapterGenerator(
        out / "checkpoints" / "hypernet", machine.model, device=machine.device, dtype=machine.dtype, cache=None
    )
    layout, dtype = source.stored.layout, getattr(torch, machine.dtype)

    def ready(made: Adapters) -> Any:
        return convert.to_adapter(made, layout, base_model=machine.model.digest, dtype=dtype)

    norms = _base_norms(machine, layout)
    described, count = {}, 0
    for arm in ("own", "sibling", "wrong"):
        parts = [source.make([c.source(arm) for c in cases[s : s + 16]], strength=settings.strength)
                 for s in range(0, len(cases), 16)]  # fmt: skip
        whole = {
            m: Factors(*(torch.cat(side, 1).to(dtype) for side in zip(*(p[m] for p in parts), strict=True)))
            for m in parts[0]
        }

        def layer(module: str, y: int, whole: Adapters = whole) -> tuple[torch.Tensor, torch.Tensor]:
            return whole[module].down_YNRI[y].float(), whole[module].up_YNRO[y].float()

        described[arm] = diagnostics.describe(
            [c.problem.task_id for c in cases], diagnostics.profile(layer, layout.layers, norms)
        )
        for n, case in enumerate(cases):
            count += 1
            yield (arm, case.problem.task_id), ready(select(whole, slice(n, n + 1)))
    yield ("empty", "all"), ready(source.make([()], strength=settings.strength))
    yield ("static", "all"), ready(source.static())
    seconds = time.monotonic() - started
    metrics = [row for _, row in store.read_lines(out / "checkpoints" / "metrics.jsonl")]
    training = {
        phase: diagnostics.convergence(r["loss"] for r in metrics if r["phase"] == phase)
        for phase in ("lora", "hypernet")
    }
    store.write_json(
        out / "diagnostics.json", {"arms": described, "training": training, "adapters": count, "seconds": seconds}
    )


def _base_norms(machine: Machine, layout: Any) -> dict[str, list[float]]:
    from safetensors import safe_open

    norms: dict[str, list[float]] = {m: [] for m in layout.sizes}
    where = {}
    for file in sorted(Path(machine.model.path).glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            where |= dict.fromkeys(handle.keys(), file)
    for module, path in layout.paths.items():
        for y in range(layout.layers):
            name = f"{path.format(y)}.weight"
            with safe_open(where[name], framework="pt", device=machine.device) as handle:
                norms[module].append(float(handle.get_tensor(name).float().norm()))
    return norms


# --------------------------------------------------------------------------- score and decide


def score(out: Path, cases: Sequence[Case]) -> None:
    """Judge what is not judged; a machine's failure raises and is judged again next time."""
    path = out / "verdicts.jsonl"
    problems = {c.problem.task_id: c.problem for c in cases}
    done = {(v.condition, v.task_id, v.draw) for v in store.read_jsonl(path, Verdict)}
    samples = [
        s
        for s in store.read_jsonl(out / "samples.jsonl", Sample)
        if s.task_id in problems and (s.condition, s.task_id, s.draw) not in done
    ]
    if not samples:
        return
    module = plugins.load("sandbox", "fork")
    sandbox = module.build(module.Config())
    self_check(sandbox, list(problems.values()))
    by_key = {f"{s.condition}\t{s.task_id}\t{s.draw}": s for s in samples}
    with store.Appender(path) as log, console.Progress("score", len(samples), unit="sample") as bar:
        for found in sandbox.judge(_program(problems[s.task_id], key, s.program) for key, s in by_key.items()):
            s = by_key[found.key]
            log.write(_verdict(s, found))
            bar.advance()
    sandbox.close()


def self_check(sandbox: Any, problems: Sequence[Problem]) -> None:
    """Every reference passes, every plausible default fails, or nothing is scored."""
    proof = families.verify(problems, sandbox)
    console.note(f"scorer: {proof.references_passed} references pass, {proof.defaults_failed} defaults fail")


def _program(problem: Problem, key: str, code: str) -> Program:
    return Program(key=key, code=code, test=problem.test, entry_point=problem.entry_point, prelude=problem.prelude)


def _verdict(sample: Sample, found: Execution) -> Verdict:
    return Verdict(
        task_id=sample.task_id,
        condition=sample.condition,
        draw=sample.draw,
        outcome=found.outcome,
        error_kind=found.error_kind,
        raised=found.raised,
        error=found.error,
        cpu_seconds=found.cpu_seconds,
        wall_seconds=found.wall_seconds,
    )


def decide(out: Path, settings: Settings, cases: Sequence[Case]) -> None:
    """pass@1 of each arm and the contrasts, with task-bootstrap intervals → result.json and the terminal."""
    passes = {arm: dict.fromkeys((c.problem.task_id for c in cases), 0) for arm in ARMS}
    for verdict in store.read_jsonl(out / "verdicts.jsonl", Verdict):
        if verdict.task_id not in passes["vanilla"]:
            continue
        passes[verdict.condition][verdict.task_id] += verdict.outcome is Outcome.PASSED
    n, tasks = settings.draws, [c.problem.task_id for c in cases]
    weights = stats.task_weights(len(tasks), 10_000, settings.seed)

    def interval(values: list[float], low: float) -> dict[str, Any]:
        found: dict[str, Any] = config.plain(stats.task_interval(values, weights, level=0.95, low=low, high=100.0))
        return found

    arms = {
        arm: {
            "pass_at_1": sum(counts.values()) / (n * len(tasks)),
            "interval": interval([100 * counts[t] / n for t in tasks], 0.0),
        }
        for arm, counts in passes.items()
    }
    contrasts = {}
    for right, wrong in CONTRASTS:
        differences = [passes[right][t] - passes[wrong][t] for t in tasks]
        contrasts[f"{right} − {wrong}"] = {
            "points": 100 * sum(differences) / (n * len(tasks)),
            "interval": interval([100 * d / n for d in differences], -100.0),
            "p_value": stats.sign_flip(differences).two_sided,
        }

    def ratio(arm: str, teacher: str) -> float | None:
        top = arms[teacher]["pass_at_1"]
        return arms[arm]["pass_at_1"] / top if top else None

    result = {
        "tasks": len(tasks),
        "draws": n,
        "arms": arms,
        "contrasts": contrasts,
        "recall_own_over_teacher_own": ratio("own", "teacher_own"),
        "sibling_over_teacher_sibling": ratio("sibling", "teacher_sibling"),
        "steps": settings.hypernet.schedule.steps,
    }
    store.write_json(out / "result.json", result)
    tell(out, result)


def sign(out: Path, settings: Settings, machine: Machine) -> None:
    """shipped/manifest.json: what the weights were made from, by what, on what, and what they were measured to do."""
    folder = out / "shipped"
    files = [folder / "model.safetensors", folder / "settings.json", *(out / f"{n}.jsonl" for n in CORPUS)]
    manifest = {
        "made_by": "experiments/families.py",
        "rune": __version__,
        "environment": provenance.environment(),
        "device": torch.cuda.get_device_name() if machine.device == "cuda" else platform.processor() or "cpu",
        "model": dataclasses.asdict(machine.model),
        "dtype": machine.dtype,
        "settings": settings,
        "seconds": store.read_json(out / "seconds.json"),
        "sha256": {str(file.relative_to(out)): store.sha256_file(file) for file in files},
        "result": store.read_json(out / "result.json"),
    }
    manifest["model"].pop("path")
    store.write_json(folder / "manifest.json", manifest)


def tell(out: Path, result: Mapping[str, Any]) -> None:
    """The result as a table, for the terminal and as result.md."""
    lines = [
        f"{result['tasks']} tasks of held-out families × {result['draws']} draws, after {result['steps']} steps:",
        "",
        "| arm | pass@1 | 95 % interval |",
        "|---|---:|---:|",
    ]
    for arm, v in result["arms"].items():
        low, high = v["interval"]["low"], v["interval"]["high"]
        lines.append(f"| {arm} | {100 * v['pass_at_1']:.1f} | {low:.1f} … {high:.1f} |")
    lines += ["", "| contrast | points | 95 % interval |", "|---|---:|---:|"]
    for name, v in result["contrasts"].items():
        low, high = v["interval"]["low"], v["interval"]["high"]
        lines.append(f"| {name} | {v['points']:+.1f} | {low:+.1f} … {high:+.1f} |")
    recall = result["recall_own_over_teacher_own"]
    told = "undefined" if recall is None else f"{recall:.2f}"
    lines += ["", f"Recall, own adapter over own trajectory in context: {told} (asked: at least 0.80)"]
    text = "\n".join(lines) + "\n"
    store.write_atomic(out / "result.md", text)
    console.out(text)


if __name__ == "__main__":
    sys.exit(main())
