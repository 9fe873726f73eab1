"""More training updates, more passes: what a generator of outer products lacks on CodeUpdateArena. Plan: README.md.

    cd studies/updates-scaled
    python scaled.py corpus --out CORPUS                                            here: generated updates
    python scaled.py draw --data DATA --lessons FOLDER --corpus CORPUS --out OUT    there: train and draw
    python scaled.py judge --data DATA --corpus CORPUS --out OUT --follow           there, beside it
    python scaled.py tell --data DATA --lessons FOLDER --corpus CORPUS --out OUT    here: the numbers

FOLDER holds real-*.jsonl of results/updates-exploration/records.tar.xz. Parts of updates, training step and scoring
are the distilled study's. What is done is not done again; what time cuts off is the end.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

for beside in ("updates-exploration", "updates-oracle", "updates-distilled"):
    sys.path.insert(0, str(Path(__file__).parents[1] / beside))

import distilled
import numpy as np
import torch
import updates
import updates_oracle
from distilled import Example, choose
from safetensors.torch import load_file, save_file
from updates_oracle import Job

from rune import config, console, prompts
from rune.adapters.factors import Adapters, Factors, select, to_dtype
from rune.benchmarks import api_updates
from rune.benchmarks.scorers.updates import names_function
from rune.corpus import exclusion
from rune.errors import DataError
from rune.hypernet import loop, outer_products, side_by_side
from rune.hypernet.base import Text
from rune.hypernet.outer_products import OuterProducts
from rune.hypernet.settings import Schedule
from rune.runs import store
from rune.types import Problem, Trajectory

SEED = 23  # of weights, examples and draws; parts and siblings are those of the distilled study (20)
DRAWS, CHOICE_DRAWS = 5, 3
GENERATED, FEWER = 1000, 300  # generated updates that are trained on
WITHHELD_FUNCTIONS = 14  # of the 94 that generated updates change
WITHHELD = 150  # updates of these, at most
SHOWN = 40  # of them are drawn on, one task each
REAL_SHARE = 0.25  # of a step's examples, where generated updates are among them
RECALL = 0.15  # share of examples whose target is among the trajectories read
STEPS, RATE = 10, 5e-4  # a fine-tuned LoRA: 10 × 1
DOSES = (1, 2, 4)  # gradient steps beside STEPS; the rate makes steps × rate the same
DOSE_STRENGTHS = (0.5, 1.0)
REAL_TOGETHER, TOGETHER = 12, 32  # LoRAs fine-tuned in one batch
LEAST, MOST = 100, 400  # training steps
RESERVE = 60  # seconds that a last part of the second half wants for its draws
FILES = ("validation", "withheld", "held", "phase4")


class Variant(NamedTuple):
    """A generator: what it is trained on and how it reads."""

    name: str
    generated: int = GENERATED
    passes: int = 1
    gradient: bool = False
    cost: float = 1.0  # of a training step, roughly


CURVE = (Variant("real+1000"), Variant("real", 0), Variant("real+300", FEWER))
MORE = (
    Variant("gradient", gradient=True, cost=1.6), Variant("two passes", passes=2, cost=1.4),
    Variant("two gradient", passes=2, gradient=True, cost=2.4), Variant("four passes", passes=4, cost=2.2),
    Variant("four gradient", passes=4, gradient=True, cost=4.0),
)  # fmt: skip
HELD_CONTRASTS = (
    ("generated", "generated_wrong"), ("generated", "vanilla"), ("generated", "context_sibling1"),
    ("generated", "untrained"), ("generated", "oracle"), ("generated_wrong", "vanilla"), ("own", "generated_wrong"),
    ("oracle", "oracle_wrong"), ("oracle", "vanilla"), ("oracle", "context_sibling1"), ("oracle_wrong", "vanilla"),
    ("untrained", "untrained_wrong"), ("stepped", "stepped_wrong"), ("stepped", "vanilla"), ("stepped", "oracle"),
    ("stepped", "generated"), ("stepped", "context_sibling1"), ("stepped_wrong", "vanilla"),
    ("context_sibling1", "vanilla"),
)  # fmt: skip


def main() -> int:
    args = arguments(__doc__, ("corpus", "draw", "judge", "tell"))
    {"corpus": corpus, "draw": draw, "judge": judge, "tell": tell}[args.do](args)
    return 0


def arguments(description: str | None, verbs: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=verbs)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="the folder of public data sets")
    parser.add_argument("--lessons", type=Path, help="real-*.jsonl of the exploration")
    parser.add_argument("--corpus", type=Path, help="what `corpus` wrote")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--train-seconds", type=float, default=50, help="of a variant of one pass")
    parser.add_argument("--seconds", type=float, default=1e9, help="no new part begins that would end later")
    parser.add_argument("--memory", type=float, default=0.0, help="share of the GPU's memory that may be taken")
    parser.add_argument("--follow", action="store_true", help="judge: go on until OUT/end is there")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: checks the path, claims nothing")
    args = parser.parse_args()
    if args.smoke:
        updates_oracle.MAX_TOKENS = 4000  # a tiny model's tokens are short
        globals().update(GENERATED=12, FEWER=6, WITHHELD=4, SHOWN=3, STEPS=2, TOGETHER=4, REAL_TOGETHER=2)
    return args


def corpus(args: argparse.Namespace) -> None:
    """open.jsonl: generated updates as trajectories; problems.jsonl: the tasks of the withheld functions."""
    made = api_updates.generate(api_updates.Config(seed=updates.SEED, updates=60 if args.smoke else 1500, names="open"))
    withheld = withheld_functions({task.update.function for task in made})
    kept = [task for task in made if task.update.function in withheld]
    store.write_jsonl(args.out / "problems.jsonl", [task.problem for task in kept])
    store.write_jsonl(args.out / "updates.jsonl", [task.update for task in kept if task.problem.task_id[-2:] == "/0"])
    store.write_jsonl(args.out / "open.jsonl", list(api_updates.trajectories(made, seed=updates.SEED)))


def withheld_functions(functions: set[str]) -> set[str]:
    return set(random.Random(f"withheld/{SEED}").sample(sorted(functions), WITHHELD_FUNCTIONS))


# --------------------------------------------------------------------------- who learns from whom


class Jobs(NamedTuple):
    """One LoRA each, by what it is for; no function is in two of them."""

    train: list[Job]  # real updates
    validation: list[Job]
    held: list[Job]
    generated: list[Job]  # trained on, in the order that takes the first so many
    withheld: list[Job]  # generated updates of functions that no other one changes


def generated_jobs(lessons: Sequence[Trajectory], problems: Sequence[Problem]) -> tuple[list[Job], list[Job]]:
    """Generated updates to train on and withheld ones: one task each, its three siblings the lessons."""
    by_update: dict[str, list[Trajectory]] = defaultdict(list)
    for lesson in lessons:
        by_update[lesson.domain].append(lesson)
    known = {p.task_id: p for p in problems}
    withheld = {updates._function(p.domain) for p in problems}
    names = sorted(by_update)
    random.Random(f"generated/{SEED}").shuffle(names)
    train, kept = [], []
    for name in names:
        own, *siblings = by_update[name]
        problem = known.get(own.task_id) or Problem(
            task_id=own.task_id, benchmark=own.benchmark, prompt=own.prompt, entry_point="", test="",
            reference=own.solution, category=own.category, domain=own.domain,
        )  # fmt: skip
        job = Job("oracle", updates.Case(problem, own, tuple(siblings), ()), tuple(siblings))
        (kept if updates._function(name) in withheld else train).append(job)
    return train[:GENERATED], kept[:WITHHELD]


def strangers(jobs: Sequence[Job]) -> list[tuple[Job, Job]]:
    """Each job with its wrong donor: a task of another function, of the same package where there is one."""
    found = []
    for job in jobs:
        mine = job.case.problem
        far = [j for j in jobs if updates._function(j.case.problem.domain) != updates._function(mine.domain)]
        near = [j for j in far if j.case.problem.category == mine.category]
        found.append((job, random.Random(f"{SEED}/{mine.task_id}").choice(near or far)))
    return found


class Lane(distilled.Lane):
    """The distilled study's, with LoRAs of one common start that are kept on disk."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._texts: dict[str, Text] = {}
        super().__init__(args)
        lessons = store.read_jsonl(args.corpus / "open.jsonl", Trajectory)
        train, withheld = generated_jobs(lessons, store.read_jsonl(args.corpus / "problems.jsonl", Problem))
        real = [self.jobs(part) for part in self.parts]
        self.all = Jobs(*real, train, withheld)
        self.shown = withheld[:SHOWN]
        trained = [c.own for c in self.parts.train] + [t for j in train for t in (j.case.own, *j.lessons)]
        exclusion.check_corpus(trained, [c.problem for c in (*self.parts.validation, *self.parts.held)])
        functions = [{updates._function(j.case.problem.domain) for j in jobs} for jobs in self.all]
        if sum(map(len, functions)) != len(set().union(*functions)):
            raise ValueError("a function is in two parts")
        self.made: dict[str, dict[str, Factors]] = {}

    def encode(self, lesson: Trajectory) -> Text:
        if lesson.task_id not in self._texts:
            self._texts[lesson.task_id] = super().encode(lesson)
        return self._texts[lesson.task_id]

    def left(self) -> float:
        return float(self.args.seconds - (time.monotonic() - self.began))

    def finished(self, part: str) -> bool:
        """Whether an earlier start of the lane has done it."""
        return (self.args.out / "done" / part).exists()

    def finish(self, part: str) -> None:
        store.write_atomic(self.args.out / "done" / part, "")
        self.done(part)

    def tune(
        self, jobs: Sequence[Job], steps: int, part: str, *, together: int, under: dict[str, Adapters] | None = None
    ) -> dict[str, dict[str, Factors]]:
        """A LoRA a job, all from the same initial weights; with `under` on top of an adapter each."""
        schedule = Schedule(steps=steps, learning_rate=RATE * STEPS / steps, checkpoint_every=steps)
        made: dict[str, dict[str, Factors]] = {}
        with store.Appender(self.args.out / "tuned.jsonl") as log:
            for start in range(0, len(jobs), together):
                some, mark = jobs[start : start + together], time.monotonic()
                lessons = [side_by_side.Lesson(j.key, tuple(map(self.encode, j.lessons))) for j in some]
                below = join([under[j.key] for j in some]) if under else None
                whole, curve = side_by_side.train(
                    self.base, lessons, schedule, rank=updates_oracle.RANK, alpha=updates_oracle.ALPHA,
                    rows=updates_oracle.ROWS, seed=SEED, start="common",
                    under={m: Factors(*(t.float() for t in f)) for m, f in below.items()} if below else None,
                )  # fmt: skip
                whole = to_dtype(whole, self.dtype)
                made |= {job.key: select(whole, slice(n, n + 1)) for n, job in enumerate(some)}
                log.write({
                    "part": part, "steps": steps, "keys": [j.key for j in some],
                    "loss": [[round(c[at], 4) for c in zip(*curve, strict=True)] for at in (0, -1)],
                    "seconds": round(time.monotonic() - mark, 2),
                })  # fmt: skip
        return made

    def teachers(self, part: str, jobs: Sequence[Job]) -> dict[str, dict[str, Factors]]:
        """The fine-tuned LoRAs of a part, made once and kept in OUT/teachers."""
        together = TOGETHER if part in ("generated", "withheld") else REAL_TOGETHER
        for start in range(0, len(jobs), together):
            some = jobs[start : start + together]
            path = self.args.out / "teachers" / f"{part}-{start:04}.safetensors"
            if not path.exists():
                made = join(list(self.tune(some, STEPS, part, together=together).values()))
                path.parent.mkdir(exist_ok=True)
                flat = {f"{m}.{n}": t.cpu().contiguous() for m, f in made.items() for n, t in enumerate(f)}
                save_file(flat, path.with_suffix(".part"))
                path.with_suffix(".part").rename(path)
            else:
                flat = load_file(path)
                names = {name.partition(".")[0] for name in flat}
                made = {m: Factors(*(flat[f"{m}.{n}"].to(self.base.device) for n in (0, 1))) for m in names}
            self.made |= {job.key: select(made, slice(n, n + 1)) for n, job in enumerate(some)}
        self.done(f"teachers {part}")
        return {job.key: self.made[job.key] for job in jobs}

    def draw_with_wrong(
        self, file: str, label: str, jobs: Sequence[Job], made: dict[str, Any], draws: int, *,
        strength: float = 1.0, wrong: bool = True,
    ) -> None:  # fmt: skip
        """Draw `label`, and with `wrong` the same adapters on the tasks of other functions."""
        worn = {j.key: self.wear(f"{file}/{label}/{j.key}", made[j.key], strength) for j in jobs}
        wanted: list[Any] = []
        for job, donor in strangers(jobs):
            wanted.append((label, job.case.problem, "", worn[job.key]))
            if wrong:
                wanted.append((f"{label}_wrong", job.case.problem, "", worn[donor.key]))
        self.sample(f"{file}.jsonl", wanted, draws)
        self.take_off(list(worn.values()))

    def sample(self, file: str, wanted: Sequence[Any], draws: int) -> None:
        count = 1 if self.args.smoke else draws
        updates._draw(self.args, self.machine, self.engine, self.args.out / file, wanted, count, drawn_by=SEED)

    def written(self, model: OuterProducts, jobs: Sequence[Job]) -> dict[str, dict[str, Factors]]:
        return dict(zip((j.key for j in jobs), self.write(model, [j.lessons for j in jobs]), strict=True))


def join(adapters: Sequence[Adapters]) -> dict[str, Factors]:
    """Several adapters of one rank as one of so many N."""
    return {m: Factors(*(torch.cat([a[m][n] for a in adapters], 1) for n in (0, 1))) for m in adapters[0]}


# --------------------------------------------------------------------------- the generator


def examples(real: Sequence[Job], generated: Sequence[Job], lane: Lane) -> Callable[[np.random.Generator], list[Any]]:
    """A step's examples: adapters from one to three of a job's lessons, its teacher the LoRA fine-tuned on all three.

    The target is the job's own task, which the teacher has not learned, or for RECALL of them one of the texts read.
    """
    longest = updates_oracle.MAX_TOKENS if lane.args.smoke else distilled.EXAMPLE_TOKENS

    def known(jobs: Sequence[Job]) -> list[tuple[Job, list[Text], Text]]:
        found = [(j, [lane.encode(t) for t in j.lessons], lane.encode(j.case.own)) for j in jobs]
        return [one for one in found if len(one[2].ids) <= longest]

    pools = known(real), known(generated)
    count = 4 if lane.args.smoke else distilled.EXAMPLES

    def draw(rng: np.random.Generator) -> list[Any]:
        shares = (round(REAL_SHARE * count), count - round(REAL_SHARE * count)) if pools[1] else (count, 0)
        found = []
        for pool, share in zip(pools, shares, strict=True):
            for number in rng.choice(len(pool), size=share, replace=share > len(pool)) if share else ():
                job, texts, own = pool[int(number)]
                read = [texts[i] for i in rng.permutation(len(texts))[: int(rng.integers(1, updates.SIBLINGS + 1))]]
                short = [t for t in read if len(t.ids) <= longest]
                target = short[0] if short and rng.random() < RECALL else own
                found.append(Example(tuple(read), target, job.case.problem.domain, job.key))
        return found

    return draw


def fresh(lane: Lane, variant: Variant, drawn: Callable[[np.random.Generator], list[Any]]) -> OuterProducts:
    """The variant before training."""
    with torch.random.fork_rng():
        torch.manual_seed(config.derive_seed(SEED, "outer products"))
        model = OuterProducts(
            lane.base.layout(outer_products.MODULES), passes=variant.passes, gradient=variant.gradient
        ).to(lane.base.device)
    sets = [e.sources for e in drawn(np.random.default_rng(SEED))]
    model.calibrate(
        lane.base, outer_products.observe(lane.base, sets, tokens=distilled.RANK, gradient=variant.gradient)
    )
    return model


def teach(lane: Lane, variant: Variant) -> OuterProducts:
    """Train a variant, or read it where it is trained. All take the same number of steps, by the pace of the first."""
    folder = lane.args.out / variant.name.replace(" ", "-")
    drawn = examples(lane.all.train, lane.all.generated[: variant.generated], lane)
    model = fresh(lane, variant, drawn)
    if (folder / "model.safetensors").exists():
        model.load_state_dict({n: t.float() for n, t in load_file(folder / "model.safetensors").items()})
        return model.to(lane.base.device).eval()

    def step_of(some: OuterProducts) -> Any:
        name = f"scaled {variant.generated}"  # variants of the same updates see the same examples
        return distilled.training_step(lane, some, drawn, lane.made, 1.0, name)

    pace = lane.args.out / "pace.json"
    if not pace.exists():
        probe, marks = fresh(lane, variant, drawn), []
        short = Schedule(steps=20, learning_rate=1e-6, checkpoint_every=100)
        for stop in (1, 2) if lane.args.smoke else (6, 20):
            loop.fit(probe, distilled.rates(probe), short, step_of(probe), folder=folder / "speed",
                     metrics=folder / "speed.jsonl", phase="speed", stop_after=stop)  # fmt: skip
            marks.append(time.monotonic())
        seconds = (marks[1] - marks[0]) / (1 if lane.args.smoke else 14)
        steps = 3 if lane.args.smoke else max(LEAST, min(MOST, int(lane.args.train_seconds / seconds)))
        store.write_json(pace, {"steps": steps, "seconds_a_step": round(seconds, 3)})
    schedule = Schedule(steps=store.read_json(pace)["steps"], learning_rate=distilled.RATE, checkpoint_every=1000)
    loop.fit(model, distilled.rates(model), schedule, step_of(model), folder=folder,
             metrics=folder / "metrics.jsonl", phase=variant.name)  # fmt: skip
    half = {n: t.detach().to("cpu", torch.float16).contiguous() for n, t in model.state_dict().items()}
    save_file(half, folder / "model.safetensors")
    return model.eval()


def watch(lane: Lane, label: str, model: OuterProducts) -> None:
    """Draw a generator on validation updates and on withheld generated ones."""
    for file, jobs in (("validation", lane.all.validation), ("withheld", lane.shown)):
        lane.draw_with_wrong(file, label, jobs, lane.written(model, jobs), CHOICE_DRAWS)
    lane.rest()


def variant_part(lane: Lane, variant: Variant) -> None:
    """Train it and draw it; one that fails is told and left out, so that what follows does not fall with it."""
    if lane.finished(variant.name):
        return
    try:
        model = teach(lane, variant)
    except (RuntimeError, DataError) as error:  # out of memory, or a loss that is no number
        print(f"{variant.name} failed: {error}", flush=True)
        lane.rest()
        return
    lane.done(f"train {variant.name}")
    if variant == CURVE[0]:
        watch(lane, "untrained", fresh(lane, variant, examples(lane.all.train, lane.all.generated, lane)).eval())
    watch(lane, variant.name, model)
    lane.finish(variant.name)


# --------------------------------------------------------------------------- the lane


def draw(args: argparse.Namespace) -> None:
    """All parts, most wanted first."""
    lane = Lane(args)
    bare(lane)
    lane.teachers("train", lane.all.train)
    lane.teachers("generated", lane.all.generated)
    for variant in CURVE:
        variant_part(lane, variant)
    tuned(lane)
    held(lane)
    doses(lane)
    pace = store.read_json(args.out / "pace.json")
    for variant in MORE:
        if lane.left() > variant.cost * pace["steps"] * pace["seconds_a_step"] + RESERVE:
            variant_part(lane, variant)
            if variant is MORE[1]:
                hybrid(lane)
    stepped(lane)
    lane.done("end")


def bare(lane: Lane) -> None:
    """Arms without adapters on the updates that choose."""
    if lane.finished("bare"):
        return
    for file, jobs in (("validation", lane.all.validation), ("withheld", lane.shown)):
        lane.sample(f"{file}.jsonl", without_adapters(jobs), CHOICE_DRAWS)
    lane.rest()
    lane.finish("bare")


def without_adapters(jobs: Sequence[Job]) -> list[Any]:
    wanted: list[Any] = []
    for job in jobs:
        shown = prompts.render_trajectory(job.lessons[0])
        wanted += [("vanilla", job.case.problem, "", None), ("context_sibling1", job.case.problem, shown, None)]
    return wanted


def tuned(lane: Lane) -> None:
    """What the teachers' dose is worth, on the updates that choose."""
    if lane.finished("tuned"):
        return
    for part, jobs, shown in (
        ("validation", lane.all.validation, lane.all.validation),
        ("withheld", lane.all.withheld, lane.shown),
    ):
        lane.draw_with_wrong(part, f"tuned {STEPS}", shown, lane.teachers(part, jobs), CHOICE_DRAWS)
    lane.rest()
    lane.finish("tuned")


def doses(lane: Lane) -> None:
    """Fewer and larger gradient steps."""
    if lane.finished("doses"):
        return
    jobs = lane.all.validation
    for steps in DOSES:
        made = lane.tune(jobs, steps, "dose", together=REAL_TOGETHER)
        for strength in DOSE_STRENGTHS:
            label = f"tuned {steps}" + (f" × {strength}" if strength != 1 else "")
            lane.draw_with_wrong("validation", label, jobs, made, CHOICE_DRAWS, strength=strength)
    lane.rest()
    lane.finish("doses")


def hybrid(lane: Lane) -> None:
    """Two gradient steps from where the chosen generator's pass ends."""
    if lane.finished("hybrid"):
        return
    jobs = lane.all.validation
    model = teach(lane, named(decide(lane, "generated", trained(lane, CURVE))))
    made = lane.tune(jobs, 2, "hybrid", together=REAL_TOGETHER, under=lane.written(model, jobs))
    lane.draw_with_wrong("validation", "pass + 2 steps", jobs, made, CHOICE_DRAWS)
    lane.rest()
    lane.finish("hybrid")


def held(lane: Lane) -> None:
    """The reported updates, drawn once: what the curve's rule chose, and its controls."""
    if lane.finished("held"):
        return
    jobs = lane.all.held
    lane.sample("held.jsonl", without_adapters(jobs), DRAWS)
    first = fresh(lane, CURVE[0], examples(lane.all.train, lane.all.generated, lane)).eval()
    model = teach(lane, named(decide(lane, "generated", trained(lane, CURVE))))
    lane.draw_with_wrong("held", "generated", jobs, lane.written(model, jobs), DRAWS)
    own = dict(zip((j.key for j in jobs), lane.write(model, [(j.case.own,) for j in jobs]), strict=True))
    lane.draw_with_wrong("held", "own", jobs, own, DRAWS, wrong=False)
    lane.draw_with_wrong("held", "untrained", jobs, lane.written(first, jobs), DRAWS)
    lane.rest()
    lane.draw_with_wrong("held", "oracle", jobs, lane.teachers("held", jobs), DRAWS)
    lane.rest()
    lane.finish("held")


def stepped(lane: Lane) -> None:
    """The reported updates under what the rule chose of the generators with more passes or true gradients."""
    there = trained(lane, MORE)
    if not there or lane.finished("stepped"):
        return
    model = teach(lane, named(decide(lane, "stepped", there)))
    lane.draw_with_wrong("held", "stepped", lane.all.held, lane.written(model, lane.all.held), DRAWS)
    lane.rest()
    lane.finish("stepped")


def trained(lane: Lane, variants: Sequence[Variant]) -> list[Variant]:
    return [v for v in variants if lane.finished(v.name)]


def named(name: str) -> Variant:
    return next(v for v in (*CURVE, *MORE) if v.name == name)


def decide(lane: Lane, what: str, among: Sequence[Variant]) -> str:
    """By the rule on validation updates, of equals the first; the first also if they are not judged in time."""
    record = lane.args.out / "choice.json"
    known = store.read_json(record) if record.exists() else {}
    if what not in known:
        arms = [(v.name, v.name, f"{v.name}_wrong") for v in among]
        path, patience = lane.args.out / "validation_verdicts.jsonl", time.monotonic() + 60
        wanted = len({(s["condition"], s["task_id"], s["draw"]) for _, s in _lines(lane.args.out / "validation.jsonl")
                      if s["condition"] in {a for arm in arms for a in arm[1:]}})  # fmt: skip
        while True:
            verdicts = [v for _, v in _lines(path) if v["arm"] in {a for arm in arms for a in arm[1:]}]
            if len(verdicts) >= wanted or time.monotonic() > patience:
                break
            time.sleep(1)
        chosen, scores = choose(verdicts, arms)
        complete = len(verdicts) >= wanted and chosen is not None
        known[what] = {"chosen": chosen if complete else among[0].name, "by_rule": complete, "scores": scores}
        store.write_json(record, known)
        print(f"{what}: {known[what]}", flush=True)
    return str(known[what]["chosen"])


def _lines(path: Path) -> list[Any]:
    return list(store.read_lines(path)) if path.exists() else []


def judge(args: argparse.Namespace) -> None:
    """Score what is drawn; with --follow whatever is drawn until OUT/end is there."""
    if args.follow:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[len(cores) // 2 :])
    problems = _problems(args)
    while True:
        last = not args.follow or (args.out / "end").exists()
        for file in FILES:
            if (args.out / f"{file}.jsonl").exists():
                updates._score(problems, args.out / f"{file}.jsonl", args.out / f"{file}_verdicts.jsonl")
        if last:
            return
        time.sleep(1)


def _problems(args: argparse.Namespace) -> list[Problem]:
    generated = store.read_jsonl(args.corpus / "problems.jsonl", Problem)
    return [*updates._benchmark(args, fold=0).problems(), *generated]


# --------------------------------------------------------------------------- numbers


def tell(args: argparse.Namespace) -> None:
    """Judge the rest; result.json, result.md, curve.svg and, with reported updates, figure.svg."""
    out = args.out
    args.follow = False
    judge(args)
    problems = {p.task_id: p for p in _problems(args)}
    result: dict[str, Any] = {"choice": store.read_json(out / "choice.json") if (out / "choice.json").exists() else {}}
    for part in FILES[:3]:
        verdicts = [v for _, v in _lines(out / f"{part}_verdicts.jsonl")]
        if not verdicts:
            continue
        pairs = HELD_CONTRASTS if part == "held" else _pairs({v["arm"] for v in verdicts})
        result[part] = {metric: updates._numbers(verdicts, metric, pairs) for metric in ("used", "plain")}
        result[part]["updates"] = len({v["task"].rpartition("/")[0] for v in verdicts})
        drawn = {(s["condition"], s["task_id"], s["draw"]): s for _, s in _lines(out / f"{part}.jsonl")}
        named = [{**v, "named": v["used"] and names_function(_drawn(drawn, v)["program"], problems[v["task"]])}
                 for v in verdicts]  # fmt: skip
        result[part]["named"] = updates._numbers(named, "named", pairs)
        functions = [{**v, "task": f"{updates._function(problems[v['task']].domain)}/{v['task'].replace('/', ' ')}"}
                     for v in verdicts]  # fmt: skip
        result[part]["functions"] = len({v["task"].partition("/")[0] for v in functions})
        result[part]["over functions"] = updates._numbers(functions, "used", pairs)["contrasts"]
        result[part]["ignores"] = ignores(named)
        result[part]["lengths"] = lengths(verdicts, drawn)
        if part != "held":
            result[part]["leads"] = leads(verdicts)
    result["seconds"] = store.read_json(out / "seconds.json")
    result["pace"] = store.read_json(out / "pace.json") if (out / "pace.json").exists() else {}
    if result["pace"]:
        result["examples"] = seen(result["pace"]["steps"])
    result["losses"] = {v.name: first_and_last(out / v.name.replace(" ", "-")) for v in (*CURVE, *MORE)}
    store.write_json(out / "result.json", result)
    store.write_atomic(out / "result.md", table(result))
    curve_figure(out / "curve.svg", result)
    if "held" in result:
        figure(out / "figure.svg", result["held"], result["choice"])
    console.out(table(result))


def _pairs(arms: set[str]) -> list[tuple[str, str]]:
    """Right − wrong of every arm that has a wrong one, then right − bare."""
    both = [arm for arm in sorted(arms) if f"{arm}_wrong" in arms]
    return [(arm, f"{arm}_wrong") for arm in both] + [(arm, "vanilla") for arm in both]


def leads(verdicts: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float, float]]:
    """Differences of right − wrong between two settings, paired by task, interval over updates: what the rules ask."""
    rows: dict[tuple[str, str], list[float]] = defaultdict(list)
    for v in verdicts:
        arm, wrong = v["arm"].removesuffix("_wrong"), v["arm"].endswith("_wrong")
        rows[arm, v["task"]].append(-float(v["used"]) if wrong else float(v["used"]))
    wanted = [("real+1000", "real"), ("real+300", "real"), ("real+1000", "untrained"), ("gradient", "real+1000"),
              ("two passes", "real+1000"), ("four passes", "real+1000"), ("two gradient", "gradient"),
              ("four gradient", "gradient"), (f"tuned {STEPS}", "real+1000"), (f"tuned {STEPS}", "gradient"),
              *((f"tuned {STEPS}", more) for more in ("two passes", "two gradient", "four passes", "four gradient")),
              ("four passes", "two passes"), ("four gradient", "two gradient"), (f"tuned {STEPS}", "tuned 4"),
              ("tuned 2", "tuned 1"), (f"tuned {STEPS}", "tuned 1"), ("pass + 2 steps", "tuned 2")]  # fmt: skip
    arms = {arm for arm, _ in rows}
    # Right and wrong have as many draws each, so twice the mean of both is right − wrong.
    shaped = [{"arm": a, "task": t, "used": 2 * float(np.mean(hits))} for (a, t), hits in rows.items()]
    found = updates._numbers(shaped, "used", [pair for pair in wanted if set(pair) <= arms])
    return dict(found["contrasts"])


def _drawn(drawn: dict[tuple[str, str, int], dict[str, Any]], v: dict[str, Any]) -> dict[str, Any]:
    return drawn[v["arm"], v["task"], v["draw"]]


def ignores(verdicts: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    """Of an arm's counted programs, how many never name the updated function: [so many, of so many]."""
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for v in verdicts:
        found[v["arm"]][0] += v["used"] and not v["named"]
        found[v["arm"]][1] += v["used"]
    return dict(found)


def lengths(
    verdicts: Sequence[dict[str, Any]], drawn: dict[tuple[str, str, int], dict[str, Any]]
) -> dict[str, tuple[float, float]]:
    """Of an arm's draws: mean tokens, and the share in % that ends at the limit of tokens."""
    found: dict[str, list[tuple[int, bool]]] = defaultdict(list)
    for v in verdicts:
        one = _drawn(drawn, v)
        found[v["arm"]].append((one["num_tokens"], one["finish_reason"] == "length"))
    means = {arm: np.mean(some, axis=0) for arm, some in found.items()}
    return {arm: (float(tokens), 100 * float(share)) for arm, (tokens, share) in means.items()}


def seen(steps: int) -> dict[str, dict[str, int]]:
    """Examples that the curve's variants are trained on, by where their updates are from."""
    found = {}
    for variant in CURVE:
        real = round((REAL_SHARE if variant.generated else 1) * distilled.EXAMPLES)
        found[variant.name] = {"real": steps * real, "generated": steps * (distilled.EXAMPLES - real)}
    return found


def first_and_last(folder: Path) -> dict[str, list[float]]:
    """Mean of each loss term over the first and the last tenth of the steps."""
    rows = [r for _, r in _lines(folder / "metrics.jsonl")]
    tenth = max(1, len(rows) // 10)
    return {
        term: [round(float(np.mean([r[term] for r in some])), 4) for some in (rows[:tenth], rows[-tenth:])]
        for term in ("kl_oracle", "kl_foreign", "cross_entropy", "reconstruction")
        if rows and term in rows[0]
    }


TITLES = {"validation": "Validation updates", "withheld": "Withheld generated updates", "held": "Reported updates"}


def table(result: dict[str, Any]) -> str:
    """Everything as Markdown."""
    lines: list[str] = []
    for part in ("held", "validation", "withheld"):
        if part not in result:
            continue
        one = result[part]
        used, plain, named = one["used"], one["plain"], one["named"]
        lines += [
            f"## {TITLES[part]}", "",
            f"{used['tasks']} tasks of {one['updates']} updates of {one['functions']} functions, "
            f"T = {updates.TEMPERATURE}, {result['seconds']['device']}", "",
            "| arm | UPass | of these, by programs that name the function | plain pass "
            "| counted, never names the function | tokens, mean | cut off, % |", "|---|---:|---:|---:|---:|---:|---:|",
        ]  # fmt: skip
        for arm, value in used["arms"].items():
            never, of = one["ignores"][arm]
            lines.append(
                f"| {arm} | {value:.1f} | {named['arms'][arm]:.1f} | {plain['arms'][arm]:.1f} "
                f"| {never} of {of} | {one['lengths'][arm][0]:.0f} | {one['lengths'][arm][1]:.0f} |"
            )
        lines += ["", "| contrast, points, 95 % over updates | UPass | UPass, 95 % over functions "
                  "| by programs that name the function | plain pass |", "|---|---:|---:|---:|---:|"]  # fmt: skip
        for name, value in used["contrasts"].items():
            cells = (value, one["over functions"][name], named["contrasts"][name], plain["contrasts"][name])
            lines.append(f"| {name} | " + " | ".join(map(_interval, cells)) + " |")
        lines.append("")
        if result[part].get("leads"):
            lines += ["| lead in right − wrong | UPass, points, 95 % over updates |", "|---|---:|"]
            lines += [f"| {name} | {_interval(value)} |" for name, value in result[part]["leads"].items()]
            lines.append("")
    for what, one in result["choice"].items():
        how = "by the rule" if one["by_rule"] else "not judged in time: the first"
        lines += [f"Chosen, {what}: {one['chosen']} ({how}).", ""]
    if "examples" in result:
        counts = "; ".join(f"{n}: {e['real']:,} of real updates, {e['generated']:,} of generated ones"
                           for n, e in result["examples"].items())  # fmt: skip
        lines += [f"{result['pace']['steps']} steps each. Examples: {counts}.", ""]
    lines += ["| trained | KL to the fine-tuned, nats a token, first → last tenth | KL to the bare model, stranger |"]
    lines.append("|---|---:|---:|")
    for name, terms in result["losses"].items():
        if terms:
            cells = [f"{terms[t][0]:.3f} → {terms[t][1]:.3f}" for t in ("kl_oracle", "kl_foreign")]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _interval(value: Sequence[float]) -> str:
    points, low, high = value
    return f"{points:+.1f} [{low:+.1f}, {high:+.1f}]"


def curve_figure(path: Path, result: dict[str, Any]) -> None:
    """UPass with the right and the wrong donor, over training updates and over passes or steps; dotted: bare model."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    parts = [part for part in ("validation", "withheld") if part in result]
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "scaled", "axes.spines.top": False}):
        drawing = Figure(figsize=(5.2, 5.6 * len(parts)), layout="constrained")  # one below the other: read on a phone
        all_axes = drawing.subplots(2 * len(parts), 1)
        for left, right, part in zip(all_axes[::2], all_axes[1::2], parts, strict=True):
            arms = result[part]["used"]["arms"]
            _lines_of(left, arms, {"generator": ["untrained", "real", "real+300", "real+1000"]})
            left.set_xticks(range(4), ["0", "30", "330", "1,030"])
            left.set_xlabel("training updates")
            left.set_title(TITLES[part], fontsize=11)
            settings = {
                "forward only": ["real+1000", "two passes", "four passes", None],
                "true gradient": ["gradient", "two gradient", "four gradient", None],
                "fine-tuning": ["tuned 1", "tuned 2", "tuned 4", f"tuned {STEPS}"],
            }  # fmt: skip
            _lines_of(right, arms, settings)
            right.set_xticks(range(4), ["1", "2", "4", str(STEPS)])
            right.set_xlabel("passes, or gradient steps")
            for axes in (left, right):
                axes.axhline(arms["vanilla"], color="#777777", linewidth=0.8, linestyle=":")
                axes.spines["right"].set_visible(False)
                axes.set_ylabel("UPass in %")
                axes.set_ylim(0, 1.08 * max(arms.values()))
                axes.margins(x=0.04)
                axes.legend(fontsize=9, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)
        drawing.savefig(path, format="svg", metadata={"Date": None})


def _lines_of(axes: Any, arms: dict[str, float], settings: dict[str, list[str | None]]) -> None:
    """One solid line (right donor) and one dashed (wrong donor) for each kind of setting that was drawn."""
    colours = ("#1f5fbf", "#2e7d32", "#b26a00")
    for colour, (name, labels) in zip(colours, settings.items(), strict=False):
        for suffix, style, what in (("", "o-", "right donor"), ("_wrong", "x--", "wrong donor")):
            at = [n for n, label in enumerate(labels) if label and f"{label}{suffix}" in arms]
            if at:
                values = [arms[f"{labels[n]}{suffix}"] for n in at]
                axes.plot(at, values, style, color=colour, linewidth=1.3, markersize=4, label=f"{name}, {what}")


NAMES = {
    "vanilla": "bare model", "context_sibling1": "a sibling's trajectory in context",
    "untrained_wrong": "untrained, another update", "untrained": "untrained, the update's siblings",
    "generated_wrong": "generated from another update", "generated": "generated from the update's siblings",
    "stepped_wrong": "{stepped}, another update", "stepped": "{stepped}, the update's siblings",
    "oracle_wrong": "fine-tuned on another update", "oracle": "fine-tuned on the update's siblings",
}  # fmt: skip


def figure(path: Path, part: dict[str, Any], choice: dict[str, Any]) -> None:
    """UPass of the arms on reported updates."""
    stepped = choice.get("stepped", {}).get("chosen", "").replace("gradient", "true gradients")
    drawn = {arm: name.format(stepped=stepped) for arm, name in NAMES.items() if arm in part["used"]["arms"]}
    distilled.bars(path, part, drawn, size=(5.2, 0.6 + 0.33 * len(drawn)), salt="scaled")


if __name__ == "__main__":
    sys.exit(main())
