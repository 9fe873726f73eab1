"""Real-looking generated updates: does a generator of outer products carry a real update if it is trained on real
programs? Plan, rule and predictions: README.md.

    cd studies/updates-real-looking
    python real_looking.py corpus --data DATA --lessons FOLDER --corpus CORPUS --out CORPUS     here
    python real_looking.py draw --data DATA --lessons FOLDER --corpus CORPUS --out OUT --worker N    there, several
    python real_looking.py judge --data DATA --corpus CORPUS --out OUT --follow                 there, beside it
    python real_looking.py tell --data DATA --lessons FOLDER --corpus CORPUS --out OUT          here

FOLDER holds real-*.jsonl of results/updates-exploration/records.tar.xz. Workers of one OUT share the parts: who makes
the mark CLAIMS/PART does it. Training step, parts of the real updates and scoring are those of the studies before.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

for beside in ("updates-exploration", "updates-oracle", "updates-distilled", "updates-scaled"):
    sys.path.insert(0, str(Path(__file__).parents[1] / beside))

import distilled
import numpy as np
import programs
import scaled
import torch
import updates
import updates_oracle
from distilled import Example, choose
from programs import Made, Source
from safetensors.torch import load_file, save_file
from scaled import join
from updates_oracle import Job

from rune import config, console, prompts
from rune.adapters.factors import Adapters, Factors, select
from rune.benchmarks import families, humaneval, mbpp
from rune.benchmarks.scorers import judging
from rune.benchmarks.scorers.judging import Item
from rune.benchmarks.scorers.updates import names_function
from rune.corpus import exclusion
from rune.errors import DataError
from rune.hypernet import loop, outer_products
from rune.hypernet.outer_products import OuterProducts
from rune.hypernet.settings import Schedule
from rune.runs import store
from rune.types import Outcome, Problem, Split, Trajectory

SEED = 24  # of what is made and drawn here; parts of the real updates are those of the studies before
# Updates that are trained on, by source; conventions by what is to ship alone.
COUNTS = {"old": 700, "looking": 1000, "renamed": 600, "conventions": 300}
LARGER_COUNTS = {"old": 300, "looking": 500, "renamed": 300, "conventions": 200}  # on the other size
REAL_SHARE, RECALL = 0.25, 0.25
DOSE, COMPARED = 4, 10  # gradient steps of teachers and of the oracle; the dose of the studies before
WITHHELD_FUNCTIONS = 6  # of MBPP's groups: no real-looking update of these is trained on
SHOWN = 40  # withheld updates that are drawn on, one task each
LEAST, MOST = 150, 1000  # training steps
ROUNDS = 2  # variants that a worker is to have time for
LARGER_ROUNDS = 1.6  # its second variant begins later
RESERVE = 110  # seconds that a variant's draws want
DRAWS, CHOICE_DRAWS = 5, 3
BLOCK = 32  # tasks whose adapters are worn at once
TOGETHER = 8  # LoRAs fine-tuned in one batch: 30 GB for the longest texts; half as many on the other size
HARM_DRAWS = 1


class Variant(NamedTuple):
    """A generator: what it is trained on and how it reads."""

    name: str
    sources: tuple[str, ...]  # of COUNTS
    passes: int = 4
    gradient: bool = False
    tokens: int = distilled.RANK  # a pass
    seed: int = SEED
    cost: float = 1.0  # of a training step, beside that of four passes


EVERY = ("old", "looking", "renamed")
VARIANTS = (
    Variant("four all", EVERY), Variant("four old", ("old",)), Variant("four looking", ("looking",)),
    Variant("two all", EVERY, passes=2, cost=0.7), Variant("four renamed", ("renamed",)),
    Variant("four all and conventions", (*EVERY, "conventions")),
    Variant("one of 256 all", EVERY, passes=1, tokens=256, cost=0.6),
    Variant("two gradient all", EVERY, passes=2, gradient=True, cost=1.3),
    Variant("four all again", EVERY, seed=SEED + 1),
)  # fmt: skip
LARGER = (
    Variant("four all", EVERY), Variant("four old", ("old",)),
    Variant("four all and conventions", (*EVERY, "conventions")),
)  # fmt: skip
# The rule chooses among these.
FORWARD = tuple(v.name for v in VARIANTS if not v.gradient and v.seed == SEED and "conventions" not in v.sources)
PARTS = ("held", "validation", "looking", "withheld", "combinations", "habits", "humaneval")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("corpus", "draw", "judge", "tell"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="the folder of public data sets")
    parser.add_argument("--lessons", type=Path, help="real-*.jsonl of the exploration")
    parser.add_argument("--corpus", type=Path, help="what `corpus` wrote")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--larger", action="store_true", help="the other size: fewer updates, its own variants")
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--first", choices=("variants", "controls"), default="variants")
    parser.add_argument("--judges", type=int, default=0, help="judge: so many processors at most")
    parser.add_argument("--seconds", type=float, default=1e9, help="no new part begins that would end later")
    parser.add_argument("--memory", type=float, default=0.0, help="share of the GPU's memory that may be taken")
    parser.add_argument("--follow", action="store_true", help="judge: go on until OUT/end is there")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: checks the path, claims nothing")
    args = parser.parse_args()
    if args.smoke:
        updates_oracle.MAX_TOKENS = 4000  # a tiny model's tokens are short
        scaled.GENERATED = scaled.WITHHELD = 4
        small = dict.fromkeys(COUNTS, 4)
        globals().update(COUNTS=small, LARGER_COUNTS=small, SHOWN=2, TOGETHER=4, DOSE=2, COMPARED=3)
    else:
        scaled.GENERATED, scaled.WITHHELD = COUNTS["old"], SHOWN
    {"corpus": corpus, "draw": draw, "judge": judge, "tell": tell}[args.do](args)
    return 0


# --------------------------------------------------------------------------- what is trained on


def corpus(args: argparse.Namespace) -> None:
    """Generated updates of the study before (once), real-looking ones, the withheld of them, renamed real ones."""
    if not (args.out / "open.jsonl").exists():
        scaled.corpus(args)
    parts = distilled.parts_of(updates._benchmark(args, fold=0).problems(), updates._read_real(args.lessons))
    evaluated = {updates._function(c.problem.domain) for c in (*parts.validation, *parts.held)}
    evaluated |= {
        updates._function(p.domain) for p in store.read_jsonl(args.out / "problems.jsonl", Problem)
    }  # the withheld functions of the old grammar
    tasks = mbpp.build(mbpp.Config(path=str(args.data / "mbpp"))).problems()
    with_tests = list(programs.of_mbpp(tasks))
    others = [*programs.of_libraries(), *programs.of_arena([c.own for c in parts.train])]
    rng = random.Random(f"real-looking/{SEED}")
    apart = {f: g for f, g in programs.groups(with_tests).items() if _may_be_withheld(f, g, parts)}
    apart = {f: apart[f] for f in sorted(rng.sample(sorted(apart), WITHHELD_FUNCTIONS))}
    kept = _verified(programs.updates_of(rng, apart, 4 * SHOWN, "looking_withheld"), "withheld")
    rng.shuffle(kept)
    kept = kept[:SHOWN]
    seen = {m.lesson.source.partition(",")[0] for made in kept for m in made}
    pool = programs.groups([s for s in (*with_tests, *others) if s.name not in seen])
    pool = {f: g for f, g in pool.items() if f not in evaluated and f not in apart}
    made = _verified(programs.updates_of(rng, pool, round(1.25 * COUNTS["looking"]), "looking"), "looking")
    real = updates._benchmark(args, fold=0).updates()
    by_update: dict[str, list[Trajectory]] = defaultdict(list)
    for case in parts.train:
        by_update[case.problem.domain].append(case.own)
    again: list[list[Made]] = []
    for _ in range(60):
        for domain in sorted(by_update):
            some = programs.renamed(rng, real[domain], by_update[domain], "renamed")
            again += [some] if some else []
    rng.shuffle(again)
    for name, found in (("looking", made), ("renamed", again), ("looking_withheld", kept)):
        store.write_jsonl(args.out / f"{name}.jsonl", [m.lesson for some in found for m in some])
        functions = {updates._function(some[0].lesson.domain) for some in found}
        sources = {m.lesson.source for some in found for m in some}
        console.out(f"{name}: {len(found)} updates of {len(functions)} functions, {len(sources)} programs")
    store.write_jsonl(args.out / "looking_problems.jsonl", [some[0].problem for some in kept])
    conventions(args.out)


def conventions(out: Path) -> None:
    """Private conventions of four tasks each. Withheld: new combinations of known habits, and those with a new one."""
    count = COUNTS["conventions"] + SHOWN
    made = families.generate(families.Config(seed=SEED, families=count + SHOWN, held_out=SHOWN, tasks=4, split="atom"))
    names = list(dict.fromkeys(p.domain for p in made if p.split is Split.TRAIN))
    sides = {
        "conventions": names[: COUNTS["conventions"]], "combinations_withheld": names[COUNTS["conventions"] :],
        "habits_withheld": sorted({p.domain for p in made if p.split is Split.HELD_OUT}),
    }  # fmt: skip
    for name, domains in sides.items():
        some = [p for p in made if p.domain in domains]
        store.write_jsonl(out / f"{name}.jsonl", families.trajectories(some, None, seed=SEED))
        if name != "conventions":
            store.write_jsonl(out / f"{name.replace('withheld', 'problems')}.jsonl", some)


def _may_be_withheld(function: str, group: Sequence[Source], parts: distilled.Parts) -> bool:
    real = {updates._function(c.problem.domain) for some in parts for c in some}
    return function not in real | {"builtins.len", "builtins.range"} and len(group) >= programs.TASKS + 1


def _verified(found: Sequence[list[Made]], what: str) -> list[list[Made]]:
    """Those whose programs with tests pass with the update and do not without it."""
    problems = [m.problem for made in found for m in made if m.problem is not None]
    sandbox = updates._sandbox()
    right = {e.key for e in judging.judge(sandbox, (Item(p.task_id, p, p.reference) for p in problems))
             if e.outcome is Outcome.PASSED}  # fmt: skip
    sandbox.close()
    kept = [made for made in found if all(m.problem is None or m.problem.task_id in right for m in made)]
    tested = sum(any(m.problem for m in made) for made in found)
    console.out(f"{what}: {len(right)} of {len(problems)} programs with tests count; {len(kept)} of {len(found)} "
                f"updates are kept, {tested} have such a program")  # fmt: skip
    return kept


# --------------------------------------------------------------------------- who learns from whom


def jobs_of(lessons: Sequence[Trajectory], problems: Sequence[Problem], seed: str) -> list[Job]:
    """An update each: its first task, the others its lessons; shuffled, so that the first so many are any."""
    by_update: dict[str, list[Trajectory]] = defaultdict(list)
    for lesson in lessons:
        by_update[lesson.domain].append(lesson)
    known = {p.task_id: p for p in problems}
    names = sorted(by_update)
    random.Random(seed).shuffle(names)
    found = []
    for name in names:
        own, *siblings = by_update[name]
        problem = known.get(own.task_id) or Problem(
            task_id=own.task_id, benchmark=own.benchmark, prompt=own.prompt, entry_point="", test="",
            reference=own.solution, category=own.category, domain=own.domain,
        )  # fmt: skip
        found.append(Job("oracle", updates.Case(problem, own, tuple(siblings), ()), tuple(siblings)))
    return found


class OnHost(dict[str, dict[str, Factors]]):
    """Fine-tuned LoRAs, which together do not fit the GPU: one is moved there when it is asked for."""

    device: Any = "cpu"

    def __getitem__(self, key: str) -> dict[str, Factors]:
        return {
            m: Factors(*(t.to(self.device, non_blocking=True) for t in f)) for m, f in super().__getitem__(key).items()
        }


class Lane(scaled.Lane):
    """The scaled study's, with further sources of updates and files of each worker's own."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._texts = {}
        self.shared = args.out  # parts of all workers; args.out is this one's from now on
        args.out = args.out / f"worker-{args.worker}"
        args.out.mkdir(parents=True, exist_ok=True)
        self._free_claims_of(args.worker)
        distilled.Lane.__init__(self, args)
        old = store.read_jsonl(args.corpus / "open.jsonl", Trajectory)
        train, withheld = scaled.generated_jobs(old, store.read_jsonl(args.corpus / "problems.jsonl", Problem))
        counts = LARGER_COUNTS if args.larger else COUNTS
        self.sources = {"old": train[: counts["old"]]}
        for name in ("looking", "renamed", "conventions"):
            found = jobs_of(store.read_jsonl(args.corpus / f"{name}.jsonl", Trajectory), (), f"{name}/{SEED}")
            self.sources[name] = self._short(found[: round(1.1 * counts[name])])[: counts[name]]
        apart = {}
        for name in ("looking", "combinations", "habits"):
            lessons = store.read_jsonl(args.corpus / f"{name}_withheld.jsonl", Trajectory)
            problems = store.read_jsonl(args.corpus / f"{name}_problems.jsonl", Problem)
            apart[name] = jobs_of(lessons, problems, "shown")[:SHOWN]
        self.shown = {
            "held": self.jobs(self.parts.held), "validation": self.jobs(self.parts.validation),
            "withheld": withheld[:SHOWN], **apart,
        }  # fmt: skip
        self.real = self.jobs(self.parts.train)
        learned = [*self.real, *(j for some in self.sources.values() for j in some)]
        trained = [c.own for c in self.parts.train] + [t for j in learned for t in (j.case.own, *j.lessons)]
        exclusion.check_corpus(trained, [j.case.problem for some in self.shown.values() for j in some])
        functions = {updates._function(t.domain) for t in trained}
        shown = {updates._function(j.case.problem.domain) for some in self.shown.values() for j in some}
        if functions & shown:
            raise ValueError(f"trained on and drawn on: {sorted(functions & shown)}")
        self.together = TOGETHER // 2 if args.larger else TOGETHER
        self.made = OnHost()
        self.made.device = self.base.device

    def _short(self, jobs: Sequence[Job]) -> list[Job]:
        """Those whose texts fit; a job without a text that fits is left out."""
        found = []
        for job in jobs:
            lessons = tuple(t for t in job.lessons if len(self.encode(t).ids) <= updates_oracle.MAX_TOKENS)
            if lessons and len(self.encode(job.case.own).ids) <= updates_oracle.MAX_TOKENS:
                found.append(job._replace(lessons=lessons))
        return found

    def claim(self, part: str) -> bool:
        """Whether this worker is the one that does it."""
        mark = self.shared / "claims" / part.replace(" ", "-")
        mark.parent.mkdir(parents=True, exist_ok=True)
        try:
            with mark.open("x") as file:
                file.write(str(self.args.worker))
        except FileExistsError:
            return False
        return True

    def finish(self, part: str) -> None:
        store.write_atomic(self.shared / "done" / part.replace(" ", "-"), "")

    def _free_claims_of(self, worker: int) -> None:
        """What an earlier start of a worker took up and did not end is free again."""
        for mark in (self.shared / "claims").glob("*"):
            if mark.read_text() == str(worker) and not (self.shared / "done" / mark.name).exists():
                mark.unlink()

    def all_teachers(self, *, load: bool = True) -> None:
        """Fine-tuned LoRAs of everything that is trained on, shared among the workers; with `load` read then."""
        parts = {"real": self.real, **self.sources}
        sizes = {name: self.together * (2 if name == "old" else 1) for name in parts}  # its texts are short
        chunks = [(name, at, jobs[at : at + sizes[name]]) for name, jobs in parts.items()
                  for at in range(0, len(jobs), sizes[name])]  # fmt: skip
        folder = self.shared / "teachers"
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{name}-{at:04}.safetensors" for name, at, _ in chunks]
        for (name, at, some), path in zip(chunks, paths, strict=True):
            if not path.exists() and self.claim(f"teachers-{name}-{at:04}"):
                made = self.tuned(some, DOSE, name, together=len(some))
                whole = join([made[j.key] for j in some])
                flat = {f"{m}.{n}": t.cpu().contiguous() for m, f in whole.items() for n, t in enumerate(f)}
                save_file(flat, path.with_suffix(f".{self.args.worker}"))
                path.with_suffix(f".{self.args.worker}").rename(path)
                self.finish(f"teachers-{name}-{at:04}")
        self.rest()
        if not load:
            return
        for (_, _, some), path in zip(chunks, paths, strict=True):
            while not path.exists():  # another worker is at it
                if self.left() < RESERVE:
                    raise DataError(f"{path.name} is not there and the time is over")
                time.sleep(0.2)
            flat = load_file(path)
            names = {name.partition(".")[0] for name in flat}
            whole = {m: Factors(flat[f"{m}.0"], flat[f"{m}.1"]) for m in names}
            for n, job in enumerate(some):
                self.made[job.key] = select(whole, slice(n, n + 1))
        self.done("teachers")

    def tuned(self, jobs: Sequence[Job], steps: int, part: str, *, together: int) -> dict[str, dict[str, Factors]]:
        """A LoRA a job; where memory does not hold so many together, a quarter as many, down to one."""
        while True:
            try:
                return self.tune(jobs, steps, part, together=together)
            except torch.OutOfMemoryError:
                if together == 1:
                    raise
            # Not within `except`: the error holds the frames, and they hold the tensors that did not fit.
            together = max(1, together // 4)
            self.rest()

    def show(self, part: str, label: str, made: dict[str, Any], *, wrong: bool = True) -> None:
        """Draw adapters on a part, into a file of this label alone."""
        count = DRAWS if part == "held" else CHOICE_DRAWS
        pairs = scaled.strangers(self.shown[part])
        block = BLOCK // 2 if self.args.larger else BLOCK  # adapters of four passes are large
        for start in range(0, len(pairs), block):
            some = pairs[start : start + block]
            keys = {job.key for pair in some for job in (pair if wrong else pair[:1])}
            worn = {key: self.wear(f"{part}/{label}/{key}", made[key]) for key in sorted(keys)}
            wanted: list[Any] = []
            for job, donor in some:
                wanted.append((label, job.case.problem, "", worn[job.key]))
                if wrong:
                    wanted.append((f"{label}_wrong", job.case.problem, "", worn[donor.key]))
            self.put(part, label, wanted, count)
            self.take_off(list(worn.values()))

    def put(self, part: str, label: str, wanted: Sequence[Any], draws: int) -> None:
        count = 1 if self.args.smoke else draws
        path = self.shared / "samples" / part / f"{label.replace(' ', '-')}.jsonl"
        updates._draw(self.args, self.machine, self.engine, path, wanted, count, drawn_by=SEED)

    def adapters(self, model: OuterProducts, sets: Sequence[Sequence[Trajectory]], tokens: int) -> list[Adapters]:
        found: list[Adapters] = []
        with torch.no_grad():
            for start in range(0, len(sets), 8):
                some = [[self.encode(t) for t in one] for one in sets[start : start + 8]]
                whole = outer_products.write(self.base, model, some, tokens=tokens)
                whole = {m: Factors(*(t.cpu() for t in f)) for m, f in whole.items()}
                found += [select(whole, slice(n, n + 1)) for n in range(len(some))]
        return found


# --------------------------------------------------------------------------- the generator


def examples(lane: Lane, variant: Variant) -> Callable[[np.random.Generator], list[Any]]:
    """A step's examples: a quarter real, the others from the variant's sources in equal shares; as in scaled.py."""
    longest = updates_oracle.MAX_TOKENS if lane.args.smoke else distilled.EXAMPLE_TOKENS
    pools = []
    for jobs in (lane.real, *(lane.sources[s] for s in variant.sources)):
        texts = [(j, [lane.encode(t) for t in j.lessons], lane.encode(j.case.own)) for j in jobs]
        pools.append([one for one in texts if len(one[2].ids) <= longest])
    real = round(REAL_SHARE * distilled.EXAMPLES)
    shares = [real, *([(distilled.EXAMPLES - real) // len(variant.sources)] * len(variant.sources))]

    def draw(rng: np.random.Generator) -> list[Any]:
        found = []
        for pool, share in zip(pools, shares, strict=True):
            for number in rng.choice(len(pool), size=share, replace=share > len(pool)):
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
        torch.manual_seed(config.derive_seed(variant.seed, "outer products"))
        model = OuterProducts(
            lane.base.layout(outer_products.MODULES), passes=variant.passes, gradient=variant.gradient
        ).to(lane.base.device)
    sets = [e.sources for e in drawn(np.random.default_rng(variant.seed))]
    seen = outer_products.observe(lane.base, sets, tokens=variant.tokens, gradient=variant.gradient)
    model.calibrate(lane.base, seen)
    return model


def step_of(lane: Lane, variant: Variant, model: OuterProducts, drawn: Any) -> Any:
    distilled.RANK = variant.tokens  # what its step reads a pass
    # Variants of the same sources and seed see the same examples.
    return distilled.training_step(lane, model, drawn, lane.made, 1.0, f"{variant.sources}/{variant.seed}")


def pace(lane: Lane, variant: Variant, drawn: Any) -> int:
    """Steps of all variants: as many as leave each worker ROUNDS of them, by the first worker's pace, taken twice."""
    path = lane.shared / "pace.json"
    if path.exists():
        return int(store.read_json(path)["steps"])
    folder = lane.args.out / "pace"
    probe, marks = fresh(lane, variant, drawn), []
    short = Schedule(steps=40, learning_rate=1e-6, checkpoint_every=100)
    for stop in (1, 2, 3) if lane.args.smoke else (8, 20, 32):
        loop.fit(probe, distilled.rates(probe), short, step_of(lane, variant, probe, drawn), folder=folder,
                 metrics=folder / "speed.jsonl", phase="speed", stop_after=stop)  # fmt: skip
        marks.append(time.monotonic())
    each = 1 if lane.args.smoke else 12
    taken = [(b - a) / each / variant.cost for a, b in itertools.pairwise(marks)]
    lane.done("pace")
    if lane.args.worker % 10 == 0:
        rounds = LARGER_ROUNDS if lane.args.larger else ROUNDS
        budget = lane.left() / rounds - RESERVE
        steps = 3 if lane.args.smoke else max(LEAST, min(MOST, int(budget / (1.05 * min(taken)))))
        store.write_json(path, {"steps": steps, "seconds_a_step": [round(t, 3) for t in taken]})
    while not path.exists() and lane.left() > RESERVE:
        time.sleep(0.2)
    return int(store.read_json(path)["steps"])


def variant_part(lane: Lane, variant: Variant) -> None:
    """Train it and draw it; one that fails is told and left out, so that what follows does not fall with it."""
    folder = lane.shared / variant.name.replace(" ", "-")
    drawn = examples(lane, variant)
    steps = pace(lane, variant, drawn)
    model = fresh(lane, variant, drawn)
    if (folder / "model.safetensors").exists():
        model.load_state_dict({n: t.float() for n, t in load_file(folder / "model.safetensors").items()})
    else:
        schedule = Schedule(steps=steps, learning_rate=distilled.RATE, checkpoint_every=100)
        loop.fit(model, distilled.rates(model), schedule, step_of(lane, variant, model, drawn), folder=folder,
                 metrics=folder / "metrics.jsonl", phase=variant.name)  # fmt: skip
        half = {n: t.detach().to("cpu", torch.float16).contiguous() for n, t in model.state_dict().items()}
        save_file(half, folder / "model.safetensors")
    model.to(lane.base.device).eval()
    lane.done(f"train {variant.name}")
    parts = ("held", "looking", "withheld") if lane.args.larger else ("validation", "looking", "held", "withheld")
    for part in (*parts, "combinations", "habits") if "conventions" in variant.sources else parts:
        jobs = lane.shown[part]
        written = lane.adapters(model, [j.lessons for j in jobs], variant.tokens)
        made = dict(zip((j.key for j in jobs), written, strict=True))
        lane.show(part, variant.name, made)
        if part == "held" and variant.name == "four all":
            own = lane.adapters(model, [(j.case.own,) for j in jobs], variant.tokens)
            lane.show(part, f"{variant.name} own", dict(zip(made, own, strict=True)), wrong=False)
            harm(lane, variant.name, made)
    lane.rest()
    lane.done(f"draw {variant.name}")


def harm(lane: Lane, label: str, made: dict[str, Any]) -> None:
    """HumanEval's tasks, each under the adapter of some reported update, and bare."""
    problems = _humaneval(lane.args)[: 3 if lane.args.smoke else None]
    keys = random.Random(f"harm/{SEED}").choices(sorted(made), k=len(problems))
    lane.put("humaneval", label, [("vanilla", p, "", None) for p in problems], HARM_DRAWS)
    for start in range(0, len(problems), BLOCK):
        some = list(zip(problems[start : start + BLOCK], keys[start : start + BLOCK], strict=True))
        worn = {key: lane.wear(f"harm/{label}/{key}", made[key]) for key in sorted({k for _, k in some})}
        lane.put("humaneval", label, [(label, p, "", worn[key]) for p, key in some], HARM_DRAWS)
        lane.take_off(list(worn.values()))


# --------------------------------------------------------------------------- the lane


def draw(args: argparse.Namespace) -> None:
    """Controls by one worker; teachers by all; then variants, the next one to whoever is free."""
    lane = Lane(args)
    if args.first == "controls":
        if not args.larger:
            lane.all_teachers(load=False)
        if lane.claim("controls"):
            controls(lane)
        if not args.larger:
            lane.done("end")
            return
    lane.all_teachers()
    variants = LARGER if args.larger else VARIANTS
    for variant in variants:
        path = lane.shared / "pace.json"
        if path.exists():
            known = store.read_json(path)
            needs = variant.cost * known["steps"] * min(known["seconds_a_step"]) + RESERVE / 2
            if lane.left() < needs:
                print(f"{variant.name}: wants {needs:.0f} s, {lane.left():.0f} s are left", flush=True)
                continue
        if lane.claim(variant.name):
            try:
                variant_part(lane, variant)
            except (RuntimeError, DataError) as error:  # out of memory, or a loss that is no number
                print(f"{variant.name} failed: {error}", flush=True)
                lane.rest()
            lane.finish(variant.name)
    if lane.claim("controls"):
        controls(lane)
    lane.done("end")


def controls(lane: Lane) -> None:
    """Bare, in context, and fine-tuned on the siblings."""
    parts = ("held", "looking", "combinations", "habits") if lane.args.larger else PARTS[:-1]
    for part in parts:
        count = DRAWS if part == "held" else CHOICE_DRAWS
        longest = 300 if lane.args.smoke else None  # a tiny model's window is small
        lane.put(part, "without", without_adapters(lane.shown[part], longest), count)
    lane.rest()
    lane.done("without")
    for steps in (DOSE, COMPARED):
        for part in parts:
            jobs = lane.shown[part]
            lane.show(part, f"tuned {steps}", lane.tuned(jobs, steps, f"{part} {steps}", together=lane.together))
            lane.rest()
        lane.done(f"tuned {steps}")
    if not lane.args.larger:
        variant = VARIANTS[0]
        model = fresh(lane, variant, examples(lane, variant)).eval()
        for part in ("held", "validation"):
            jobs = lane.shown[part]
            made = lane.adapters(model, [j.lessons for j in jobs], variant.tokens)
            lane.show(part, "untrained", dict(zip((j.key for j in jobs), made, strict=True)))
        lane.done("untrained")
    lane.finish("controls")


def without_adapters(jobs: Sequence[Job], longest: int | None) -> list[Any]:
    """Bare, one and all siblings in context; `longest`: so many characters of each at most."""
    wanted: list[Any] = []
    for job in jobs:
        shown = [prompts.render_trajectory(t)[:longest] for t in job.lessons]
        wanted += [("vanilla", job.case.problem, "", None), ("context_sibling1", job.case.problem, shown[0], None)]
        wanted.append(("context_siblings", job.case.problem, "\n\n".join(shown), None))
    return wanted


# --------------------------------------------------------------------------- numbers


def judge(args: argparse.Namespace) -> None:
    """Score what is drawn; with --follow whatever is drawn until OUT/end is there."""
    if args.judges:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[-args.judges :])
    problems = _problems(args)
    sizes: dict[Path, int] = {}
    while True:
        last = not args.follow or (args.out / "end").exists()
        for path in sorted(args.out.glob("samples/*/*.jsonl")):
            size = path.stat().st_size
            if sizes.get(path) != size:
                updates._score(problems, path, args.out / "verdicts" / path.parent.name / path.name)
                sizes[path] = size
        if last:
            return
        time.sleep(1)


def _problems(args: argparse.Namespace) -> list[Problem]:
    found = [*updates._benchmark(args, fold=0).problems(), *_humaneval(args)]
    for name in ("problems", "looking_problems", "combinations_problems", "habits_problems"):
        found += store.read_jsonl(args.corpus / f"{name}.jsonl", Problem)
    return found


def _humaneval(args: argparse.Namespace) -> list[Problem]:
    folder = args.data / "humaneval"  # where it is carried; else the package's file
    return humaneval.build(humaneval.Config(path=str(folder) if folder.exists() else "")).problems()


def tell(args: argparse.Namespace) -> None:
    """Judge the rest; result.json, result.md and, with reported updates, figure.svg."""
    args.follow = False
    judge(args)
    problems = {p.task_id: p for p in _problems(args)}
    rows = {part: _rows(args.out, part, problems) for part in PARTS}
    result: dict[str, Any] = {"choice": choice(rows["validation"])} if rows["validation"] else {}
    for part in PARTS:
        if rows[part]:
            result[part] = numbers(rows[part])
    paces = args.out / "pace.json"
    result["pace"] = store.read_json(paces) if paces.exists() else {}
    result["seconds"] = {p.parent.name: store.read_json(p) for p in sorted(args.out.glob("worker-*/seconds.json"))}
    trained = LARGER if args.larger else VARIANTS
    result["losses"] = {v.name: scaled.first_and_last(args.out / v.name.replace(" ", "-")) for v in trained}
    store.write_json(args.out / "result.json", result)
    store.write_atomic(args.out / "result.md", table(result))
    if "held" in result:
        figure(args.out / "figure.svg", result)
    console.out(table(result))


def _rows(out: Path, part: str, problems: dict[str, Problem]) -> list[dict[str, Any]]:
    """Verdicts of a part, each with whether its program names the function, its tokens and how it ended."""
    found = []
    for path in sorted(out.glob(f"verdicts/{part}/*.jsonl")):
        drawn = {(s["condition"], s["task_id"], s["draw"]): s
                 for _, s in store.read_lines(out / "samples" / part / path.name)}  # fmt: skip
        for _, v in store.read_lines(path):
            one = drawn[v["arm"], v["task"], v["draw"]]
            names = names_function(one["program"], problems[v["task"]]) is not False  # None: there is none to name
            alone = part == "humaneval"  # each task is a domain of its own
            found.append({
                **v, "task": f"{v['task']}/0" if alone else v["task"],
                "function": v["task"] if alone else updates._function(problems[v["task"]].domain),
                "names": names, "named": v["used"] and names, "tokens": one["num_tokens"],
                "cut": one["finish_reason"] == "length",
            })  # fmt: skip
    return found


def choice(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rule: of the forward variants, the highest 2 · right − wrong by programs that name the function."""
    judged = {r["arm"] for r in rows}
    arms = [(name, name, f"{name}_wrong") for name in FORWARD if {name, f"{name}_wrong"} <= judged]
    chosen, scores = choose([{**r, "used": r["named"]} for r in rows], arms) if arms else (None, {})
    return {"chosen": chosen, "scores": scores}


def numbers(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares of each arm and contrasts, intervals over updates and over functions."""
    arms = sorted({r["arm"] for r in rows})
    bases = ("vanilla", "context_sibling1", "context_siblings", f"tuned {DOSE}", f"tuned {COMPARED}")
    pairs = [(a, b) for a in arms if f"{a}_wrong" in arms for b in (f"{a}_wrong", *bases) if b in arms and b != a]
    pairs += [(a, "vanilla") for a in arms if (a.endswith("_wrong") or a.startswith("context")) and "vanilla" in arms]
    if "vanilla" in arms and len(arms) == 2:  # HumanEval
        pairs = [(next(a for a in arms if a != "vanilla"), "vanilla")]
    found: dict[str, Any] = {m: updates._numbers(rows, m, pairs) for m in ("used", "named", "plain")}
    found["updates"] = len({r["task"].rpartition("/")[0] for r in rows})
    by_function = [{**r, "task": f"{r['function'].replace('/', ' ')}/{r['task'].replace('/', ' ')}"} for r in rows]
    found["functions"] = len({r["task"].partition("/")[0] for r in by_function})
    found["over functions"] = {m: updates._numbers(by_function, m, pairs)["contrasts"] for m in ("used", "named")}
    found["of each"] = {
        a: {
            "draws": len(some), "names it": 100 * float(np.mean([r["names"] for r in some])),
            "tokens": float(np.mean([r["tokens"] for r in some])),
            "cut": 100 * float(np.mean([r["cut"] for r in some])),
        }
        for a in arms if (some := [r for r in rows if r["arm"] == a])
    }  # fmt: skip
    found["leads"] = leads(rows)
    return found


LEADS = (
    ("four all", "four old"), ("four looking", "four old"), ("four renamed", "four old"), ("four all", "untrained"),
    ("four all", "two all"), ("four all", "one of 256 all"), ("two gradient all", "two all"),
    ("four all again", "four all"), ("four all and conventions", "four all"), (f"tuned {DOSE}", "four all"),
    (f"tuned {COMPARED}", f"tuned {DOSE}"),
)  # fmt: skip


def leads(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Differences of right − wrong between two settings, paired by task, interval over updates."""
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    arms = {r["arm"] for r in rows}
    whole = {a for a in arms if f"{a}_wrong" in arms}
    for metric in ("used", "named"):
        by_task: dict[tuple[str, str], list[float]] = defaultdict(list)
        for r in rows:
            right = r["arm"].removesuffix("_wrong")
            if right in whole:
                by_task[right, r["task"]].append(float(r[metric]) * (1 if r["arm"] == right else -1))
        # Right and wrong have as many draws each, so twice the mean of both is right − wrong.
        shaped = [{"arm": a, "task": t, "used": 2 * float(np.mean(hits))} for (a, t), hits in by_task.items()]
        pairs = [pair for pair in LEADS if set(pair) <= whole]
        found[metric] = dict(updates._numbers(shaped, "used", pairs)["contrasts"]) if pairs else {}
    return found


TITLES = {
    "held": "Reported updates", "validation": "Validation updates", "looking": "Withheld real-looking updates",
    "withheld": "Withheld updates of the old grammar", "combinations": "Withheld private conventions of known habits",
    "habits": "Withheld private conventions with a habit that training never shows",
    "humaneval": "HumanEval, adapters of reported updates",
}  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """Everything as Markdown."""
    lines: list[str] = []
    for part, title in TITLES.items():
        if part not in result:
            continue
        one = result[part]
        used, plain, named = one["used"], one["plain"], one["named"]
        lines += [
            f"## {title}", "",
            f"{used['tasks']} tasks of {one['updates']} updates of {one['functions']} functions, "
            f"T = {updates.TEMPERATURE}", "",
            "| arm | UPass | by programs that name the function | plain pass | programs that name it, % | draws "
            "| tokens, mean | cut off, % |", "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]  # fmt: skip
        for arm, value in used["arms"].items():
            each = one["of each"][arm]
            lines.append(
                f"| {arm} | {value:.1f} | {named['arms'][arm]:.1f} | {plain['arms'][arm]:.1f} | {each['names it']:.0f} "
                f"| {each['draws']} | {each['tokens']:.0f} | {each['cut']:.0f} |"
            )
        lines += ["", "| contrast, points, 95 % over updates | UPass | UPass, over functions "
                  "| by programs that name the function | the same, over functions | plain pass |",
                  "|---|---:|---:|---:|---:|---:|"]  # fmt: skip
        for name, value in used["contrasts"].items():
            over = one["over functions"]
            cells = (value, over["used"][name], named["contrasts"][name], over["named"][name], plain["contrasts"][name])
            lines.append(f"| {name} | " + " | ".join(map(scaled._interval, cells)) + " |")
        if one["leads"]["used"]:
            lines += ["", "| lead in right − wrong, points, 95 % over updates | UPass "
                      "| by programs that name the function |", "|---|---:|---:|"]  # fmt: skip
            lines += [f"| {name} | {scaled._interval(value)} | {scaled._interval(one['leads']['named'][name])} |"
                      for name, value in one["leads"]["used"].items()]  # fmt: skip
        lines.append("")
    if result.get("choice"):
        lines += [f"Chosen on validation updates: {result['choice']['chosen']} {result['choice']['scores']}.", ""]
    if result["pace"]:
        steps, seconds = result["pace"]["steps"], result["pace"]["seconds_a_step"]
        lines += [f"{steps} steps each; {seconds} s a step of four passes.", ""]
    lines += ["| trained | KL to the fine-tuned, nats a token, first → last tenth | KL to the bare model, stranger |"]
    lines.append("|---|---:|---:|")
    for name, terms in result["losses"].items():
        if terms:
            cells = [f"{terms[t][0]:.3f} → {terms[t][1]:.3f}" for t in ("kl_oracle", "kl_foreign")]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def figure(path: Path, result: dict[str, Any]) -> None:
    """UPass by programs that name the function, reported updates: settings with their wrong donors."""
    part = {**result["held"], "used": result["held"]["named"]}
    arms = part["used"]["arms"]
    names = {"vanilla": "bare model", "context_sibling1": "one sibling in context",
             "context_siblings": "three siblings in context"}  # fmt: skip
    for label in ("untrained", *(v.name for v in VARIANTS), f"tuned {DOSE}", f"tuned {COMPARED}"):
        names |= {f"{label}_wrong": f"{label}, another update", label: f"{label}, the update's siblings"}
    names = {arm: name for arm, name in names.items() if arm in arms}
    distilled.bars(path, part, names, size=(5.2, 0.6 + 0.27 * len(names)), salt="real-looking")


if __name__ == "__main__":
    sys.exit(main())
