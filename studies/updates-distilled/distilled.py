"""The oracle's dose, and adapters written by one forward pass, on CodeUpdateArena. Plan and rules: README.md.

    cd studies/updates-distilled
    python distilled.py corpus --out CORPUS                                      here: generated updates
    python distilled.py draw --data DATA --lessons FOLDER --corpus CORPUS --out OUT
                                                                 there: dose, training, held-out draws
    python distilled.py larger --model NAME --choice OUT/choice.json …           there: the same on another size
    python distilled.py tell --data DATA --lessons FOLDER --out OUT              here: judge, numbers, figure

FOLDER holds real-*.jsonl of results/updates-exploration/records.tar.xz. Cases, draws and scoring are the exploration's,
the LoRAs fine-tuned side by side the oracle study's. What is drawn is not drawn again; what time cuts off is the end.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

for beside in ("updates-exploration", "updates-oracle"):
    sys.path.insert(0, str(Path(__file__).parents[1] / beside))

import numpy as np
import torch
import torch.nn.functional as F
import updates
import updates_oracle
from safetensors.torch import save
from updates_oracle import Job

from rune import config, console, prompts
from rune.adapters import convert
from rune.adapters.factors import Adapters, Factors, select
from rune.benchmarks import api_updates
from rune.corpus import exclusion
from rune.hypernet import base as bases
from rune.hypernet import loop, losses, outer_products
from rune.hypernet.base import Text
from rune.hypernet.loop import Rate, Step
from rune.hypernet.outer_products import OuterProducts, observe
from rune.hypernet.settings import Schedule
from rune.runs import store
from rune.types import Problem, Trajectory

# Shapes: N adapters = examples of a step · B = 2·N rows · P solution tokens of all rows · V vocabulary

SEED = updates.SEED
DRAWS, DOSE_DRAWS = 5, 3
VALIDATION = 14  # updates of the training half that choose; whole functions
DOSES = (10, 20, 40)
STRENGTHS = (0.3, 0.5, 1.0)
GENERATED_STRENGTHS = (0.5, 1.0, 2.0, 3.0)
FALLBACK = {"dose": [40, 0.5], "generator": ["answers", 1.0]}  # where nothing could be judged in time
RANK = 64  # solution tokens that an adapter keeps
EXAMPLES = 12  # adapters a step
EXAMPLE_TOKENS = 448  # of prompt and solution, at most
TOGETHER = 12  # LoRAs fine-tuned in one batch
LARGER_TASKS = 60  # held-out tasks of the other size
RECALL = 0.15  # share of examples whose target is among the trajectories read
FOREIGN = 1.0  # weight of the KL that another update's adapter must not move the bare model
GENERATED_TEACHERS = 60
RATE = 2e-3
VARIANT_BEFORE = 0.45  # of the seconds: the second variant begins before, or not at all
VARIANTS = ("answers", "oracle")  # what is learned from: solutions, or the oracle's distribution over them
CONTRASTS = (
    ("generated", "generated_wrong"), ("generated", "vanilla"), ("generated", "context_sibling1"),
    ("generated_wrong", "vanilla"), ("generated1", "context_sibling1"), ("generated", "oracle"),
    ("own", "generated_wrong"), ("generated1", "generated_wrong"),
    ("oracle", "oracle_wrong"), ("oracle", "vanilla"), ("oracle_wrong", "vanilla"), ("oracle", "context_sibling1"),
    ("untrained", "untrained_wrong"), ("generated", "untrained"), ("other", "other_wrong"),
    ("twice", "twice_wrong"), ("twice", "generated"),
    ("context_sibling1", "vanilla"),
)  # fmt: skip


class Example(NamedTuple):
    """Solved tasks that an adapter is made from, and the solution that it should make likely."""

    sources: tuple[Text, ...]
    target: Text
    domain: str
    teacher: str = ""  # key of a fine-tuned LoRA


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("corpus", "draw", "larger", "judge", "tell"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="the folder of public data sets")
    parser.add_argument("--lessons", type=Path, help="real-*.jsonl of the exploration")
    parser.add_argument("--corpus", type=Path, help="what `corpus` wrote")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--choice", type=Path, help="larger: choice.json of the first size")
    parser.add_argument("--train-seconds", type=float, default=150, help="of each variant")
    parser.add_argument("--seconds", type=float, default=1e9, help="no new part begins after so many")
    parser.add_argument("--memory", type=float, default=0.0, help="share of the GPU's memory that may be taken")
    parser.add_argument("--part", choices=("dose", "variants", "held"), help="judge: which samples")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: checks the path, claims nothing")
    args = parser.parse_args()
    if args.smoke:
        updates_oracle.MAX_TOKENS = 1200  # a tiny model's tokens are short
        globals().update(DOSES=(10, 20), STRENGTHS=(0.5,), GENERATED_STRENGTHS=(1.0, 2.0), EXAMPLES=2)
    {"corpus": corpus, "draw": draw, "larger": larger, "judge": judge, "tell": tell}[args.do](args)
    return 0


def corpus(args: argparse.Namespace) -> None:
    """The exploration's generated updates, names from millions."""
    made = api_updates.generate(api_updates.Config(seed=SEED, updates=24 if args.smoke else 1500, names="open"))
    store.write_jsonl(args.out / "open.jsonl", list(api_updates.trajectories(made, seed=SEED)))


# --------------------------------------------------------------------------- parts


class Parts(NamedTuple):
    """Updates by what they are for; no function is in two."""

    train: list[updates.Case]
    validation: list[updates.Case]
    held: list[updates.Case]


def parts_of(problems: Sequence[Problem], lessons: Sequence[Trajectory]) -> Parts:
    """`problems` with the fold's split. Validation functions are drawn by the seed until they have enough updates."""
    train = [p for p in problems if p.split == "train"]
    by_function: dict[str, set[str]] = defaultdict(set)
    for p in train:
        by_function[updates._function(p.domain)].add(p.domain)
    order = sorted(by_function)
    random.Random(f"validation/{SEED}").shuffle(order)
    chosen: set[str] = set()
    for function in order:
        if len(chosen) < VALIDATION:
            chosen |= by_function[function]
    return Parts(
        updates._cases([p for p in train if p.domain not in chosen], lessons),
        updates._cases([p for p in train if p.domain in chosen], lessons),
        updates._cases([p for p in problems if p.split == "held_out"], lessons),
    )


class Lane:
    """What all parts share: model, cases, engine, clock."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.began = args, time.monotonic()
        if args.memory and torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(args.memory)
        self.machine = updates._machine(args)
        self.problems = updates._benchmark(args, fold=0).problems()
        self.parts = parts_of(self.problems, updates._read_real(args.lessons))
        self.base = bases.load(self.machine.model, device=self.machine.device, dtype=self.machine.dtype)
        self.dtype = getattr(torch, self.machine.dtype)
        self._engine: Any = None
        known = args.out / "seconds.json"
        self.seconds: dict[str, Any] = store.read_json(known) if known.exists() else {}
        self._mark = self.began
        self.done("load")

    def done(self, part: str) -> None:
        now = time.monotonic()
        self.seconds[part] = round(now - self._mark, 1)
        self._mark = now
        store.write_json(self.args.out / "seconds.json", {**self.seconds, "device": updates_oracle._device()})
        print(f"{now - self.began:.0f} s: {part} took {self.seconds[part]:.0f} s", flush=True)

    @property
    def engine(self) -> Any:
        if self._engine is None:
            rows = 16 if self.args.smoke else 512
            self._engine = updates._engine(self.machine, memory_fraction=0.2, max_rows=rows)
        return self._engine

    def rest(self) -> None:
        """Give the engine's memory back: to training, or to adapters of another shape."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def late(self) -> bool:
        return time.monotonic() - self.began > self.args.seconds

    def jobs(self, cases: Sequence[updates.Case]) -> list[Job]:
        found = [j for j in updates_oracle.jobs_of(cases, self.base) if j.arm == "oracle"]
        return found[:: max(1, len(found) // 3)] if self.args.smoke else found

    def encode(self, lesson: Trajectory) -> Text:
        return self.base.encode(lesson.prompt, lesson.solution)

    def fine_tune(self, jobs: Sequence[Job], steps: int, name: str) -> dict[str, dict[str, Factors]]:
        """A LoRA a job, `TOGETHER` at once; where memory does not hold them, half as many."""
        schedule = Schedule(
            steps=min(steps, 2) if self.args.smoke else steps, learning_rate=5e-4, checkpoint_every=steps
        )
        together, start = TOGETHER, 0
        made: dict[str, dict[str, Factors]] = {}
        with store.Appender(self.args.out / "training.jsonl") as log:
            while start < len(jobs):
                some, mark = jobs[start : start + together], time.monotonic()
                try:
                    whole, curve = updates_oracle.train(self.base, some, schedule)
                except torch.OutOfMemoryError:
                    if together == 1:
                        raise
                    together //= 2
                    torch.cuda.empty_cache()
                    continue
                for n, job in enumerate(some):
                    made[job.key] = select(whole, slice(n, n + 1))
                    log.write({
                        "part": name, "steps": steps, "key": job.key, "lessons": [t.task_id for t in job.lessons],
                        "loss": [round(curve[0][n], 4), round(curve[-1][n], 4)],
                        "seconds": round((time.monotonic() - mark) / len(some), 3),
                    })  # fmt: skip
                start += together
        return made

    def wear(self, name: str, made: Adapters, strength: float = 1.0) -> Any:
        scaled = {m: Factors(f.down_YNRI, strength * f.up_YNRO) for m, f in made.items()}
        layout = self.base.layout(tuple(scaled))
        adapter = convert.to_adapter(scaled, layout, base_model=self.machine.model.digest, dtype=self.dtype)
        return self.engine.put_adapter(name, adapter)

    def sample(self, file: str, wanted: Sequence[Any], draws: int) -> None:
        updates._draw(
            self.args, self.machine, self.engine, self.args.out / file, wanted, 1 if self.args.smoke else draws
        )

    def take_off(self, worn: Sequence[Any]) -> None:
        for adapter in {ref.adapter_id for ref in worn}:
            self.engine.drop_adapter(adapter)

    @torch.no_grad()
    def write(
        self, model: OuterProducts, sets: Sequence[Sequence[Trajectory]], *, strength: float = 1.0, passes: int = 0
    ) -> list[dict[str, Factors]]:
        """One adapter a set of trajectories; `passes`: so many in place of the model's own."""
        found = []
        for start in range(0, len(sets), 8):
            some = [[self.encode(t) for t in one] for one in sets[start : start + 8]]
            whole = outer_products.write(self.base, model, some, tokens=RANK, strength=strength, passes=passes)
            found += [select(whole, slice(n, n + 1)) for n in range(len(some))]
        return found

    def judging(self, part: str) -> subprocess.Popen[bytes]:
        """Score the part's samples beside what the GPU does."""
        command = [sys.executable, __file__, "judge", "--part", part, "--out", str(self.args.out)]
        command += ["--data", str(self.args.data)]
        with (self.args.out / f"judge-{part}.log").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def judge(args: argparse.Namespace) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[-8:])
    problems = updates._benchmark(args, fold=0).problems()
    updates._score(problems, args.out / f"{args.part}.jsonl", args.out / f"{args.part}_verdicts.jsonl")


# --------------------------------------------------------------------------- the rules


def utility(verdicts: Sequence[dict[str, Any]], right: str, wrong: str) -> float:
    """2 · UPass(right) − UPass(wrong), points: a gain counts, and what is due to the trajectory counts again."""
    return 2 * _upass(verdicts, right) - _upass(verdicts, wrong)


def _upass(verdicts: Sequence[dict[str, Any]], arm: str) -> float:
    hits = [v["used"] for v in verdicts if v["arm"] == arm]
    return 100.0 * sum(hits) / len(hits) if hits else float("nan")


def choose(verdicts: Sequence[dict[str, Any]], arms: Sequence[tuple[Any, str, str]]) -> tuple[Any, dict[str, float]]:
    """The setting of the highest utility, the earlier one of two alike; None if a setting was not judged."""
    scores = {right: round(utility(verdicts, right, wrong), 3) for _, right, wrong in arms}
    if any(score != score for score in scores.values()):
        return None, scores
    return max(arms, key=lambda arm: scores[arm[1]])[0], scores


def _wait(lane: Lane, process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(900 if lane.args.smoke else 120)
    except subprocess.TimeoutExpired:
        process.kill()


def _decide(lane: Lane, what: str, process: subprocess.Popen[bytes], arms: Sequence[tuple[Any, str, str]]) -> Any:
    """By the rule, if the judge ends within its time; the fallback otherwise, and choice.json says which."""
    part = {"dose": "dose", "generator": "variants"}[what]
    _wait(lane, process)
    path = lane.args.out / f"{part}_verdicts.jsonl"
    verdicts = [v for _, v in store.read_lines(path)] if path.exists() else []
    chosen, scores = choose(verdicts, arms)
    record = lane.args.out / "choice.json"
    known = store.read_json(record) if record.exists() else {}
    known[what] = {
        "chosen": FALLBACK[what] if chosen is None else chosen,
        "by_rule": chosen is not None,
        "scores": scores,
    }
    store.write_json(record, known)
    print(f"{what}: {known[what]}", flush=True)
    return known[what]["chosen"]


# --------------------------------------------------------------------------- 1: the oracle's dose


def dose_arms() -> list[tuple[list[float], str, str]]:
    """(steps, strength) with its two arms, the weakest first."""
    arms = [([steps, s], f"oracle {steps} × {s}", f"wrong {steps} × {s}") for steps in DOSES for s in STRENGTHS]
    return sorted(arms, key=lambda arm: arm[0][0] * arm[0][1])


def dose(lane: Lane) -> None:
    """dose.jsonl: every dose with its wrong donor, bare and in context, on validation updates."""
    jobs = lane.jobs(lane.parts.validation)
    pairs = updates_oracle.partners(jobs)
    wanted: list[Any] = []
    for job, _ in pairs:
        shown = prompts.render_trajectory(job.case.siblings[0])
        wanted += [("vanilla", job.case.problem, "", None), ("context_sibling1", job.case.problem, shown, None)]
    lane.sample("dose.jsonl", wanted, DOSE_DRAWS)
    lane.rest()
    for steps in DOSES:
        made = lane.fine_tune(jobs, steps, "dose")
        for strength in STRENGTHS:
            worn = {j.key: lane.wear(f"{steps}/{strength}/{j.key}", made[j.key], strength) for j in jobs}
            wanted = []
            for job, donor in pairs:
                wanted.append((f"oracle {steps} × {strength}", job.case.problem, "", worn[job.key]))
                wanted.append((f"wrong {steps} × {strength}", job.case.problem, "", worn[donor.key]))
            lane.sample("dose.jsonl", wanted, DOSE_DRAWS)
            lane.take_off(list(worn.values()))
        lane.rest()


# --------------------------------------------------------------------------- 2: the generator


class Pool:
    """Training updates as texts, and the draw of examples."""

    def __init__(self, lane: Lane, lessons: Sequence[Trajectory]) -> None:
        self.domains: dict[str, list[Text]] = defaultdict(list)
        for lesson in lessons:
            text = lane.encode(lesson)
            if len(text.ids) <= (updates_oracle.MAX_TOKENS if lane.args.smoke else EXAMPLE_TOKENS):
                self.domains[lesson.domain].append(text)
        self.names = sorted(d for d, texts in self.domains.items() if len(texts) > 1)

    def draw(self, rng: np.random.Generator, count: int) -> list[Example]:
        """Examples of different updates as far as there are so many."""
        found = []
        for number in rng.choice(len(self.names), size=count, replace=count > len(self.names)):
            name = self.names[int(number)]
            texts = [self.domains[name][i] for i in rng.permutation(len(self.domains[name]))]
            size = int(rng.integers(1, updates.SIBLINGS + 1))
            target, others = texts[0], texts[1 : 1 + size]
            if rng.random() < RECALL:
                others = [target, *others[1:]]
            found.append(Example(tuple(others), target, name))
        return found


def answers(real: Pool, generated: Pool, count: int) -> Callable[[np.random.Generator], list[Example]]:
    """Half of a step's examples are real training updates, half generated ones; neighbours are alike."""
    return lambda rng: [*real.draw(rng, count // 2), *generated.draw(rng, count - count // 2)]


def taught(jobs: Sequence[Job], lane: Lane, count: int) -> Callable[[np.random.Generator], list[Example]]:
    """Examples whose fine-tuned LoRA is known."""
    known = [
        Example(tuple(map(lane.encode, j.lessons)), lane.encode(j.case.own), j.case.problem.domain, j.key) for j in jobs
    ]
    known = [e for e in known if lane.args.smoke or len(e.target.ids) <= EXAMPLE_TOKENS]

    def draw(rng: np.random.Generator) -> list[Example]:
        return [known[i] for i in sorted(rng.choice(len(known), size=count, replace=count > len(known)))]

    return draw


def training_step(
    lane: Lane, model: OuterProducts, draw: Callable[[np.random.Generator], list[Example]], teachers: dict[str, Any],
    strength: float, name: str,
) -> Callable[[int], Step]:  # fmt: skip
    """Each adapter wears two rows: its own target and, unchanged from the bare model, the target of the one before it.

    Without teachers the first row counts by cross-entropy, with them by KL to the base model that wears the teacher.
    """
    base = lane.base

    def take(step: int) -> Step:
        rng = np.random.default_rng([config.derive_seed(SEED, "distilled", name), step])
        examples = draw(rng)
        count = len(examples)
        made = outer_products.write(base, model, [e.sources for e in examples], tokens=RANK)
        strangers = [examples[n - 1] for n in range(count)]
        rows = base.rows([t for e, s in zip(examples, strangers, strict=True) for t in (e.target, s.target)])
        logits_PV = base.logits(rows, made)
        right_P = rows.row_P % 2 == 0
        differs = torch.tensor([e.domain != s.domain for e, s in zip(examples, strangers, strict=True)])
        foreign_P = ~right_P & differs.to(base.device)[rows.row_P // 2]
        with torch.no_grad():
            alone = base.rows([s.target for s in strangers])
            counted_P = differs.to(base.device)[alone.row_P]
            bare_PV = base.logits(alone, None)[counted_P]
            bare = F.cross_entropy(bare_PV.float(), alone.label_P[counted_P])
        own_PV = logits_PV[right_P]
        log_prob_P = -F.cross_entropy(own_PV.float(), rows.label_P[right_P], reduction="none")
        terms = {"cross_entropy": -log_prob_P.mean(), "kl_foreign": losses.kl(bare_PV, logits_PV[foreign_P])}
        terms["bare_cross_entropy"] = bare  # of the same solutions, for the curve
        first = terms["cross_entropy"]
        if teachers:
            worn = [teachers[e.teacher] for e in examples]
            whole = {
                m: Factors(
                    torch.cat([w[m].down_YNRI for w in worn], 1), strength * torch.cat([w[m].up_YNRO for w in worn], 1)
                )
                for m in worn[0]
            }
            with torch.no_grad():
                teacher_PV = base.logits(base.rows([e.target for e in examples]), whole)
            first = terms["kl_oracle"] = losses.kl(teacher_PV, own_PV)
        return Step(first + FOREIGN * terms["kl_foreign"], terms, rows.ids_BT.numel())

    return take


def rates(model: OuterProducts) -> list[Rate]:
    """Sizes of steps and inputs move freely, directions slowly; a step of the gate adds up over the whole state."""
    free = [
        Rate(list(model.log_gain_SY.parameters()), 10.0),
        Rate(list(model.scale_YI.parameters()), 5.0),
        Rate([*model.read_YWK.parameters(), *model.write_YKW.parameters()], 0.25),
        Rate(list(model.gate.parameters()), 0.02),
    ]
    assert sum(len(rate.parameters) for rate in free) == len(list(model.parameters()))
    return free


def train(
    lane: Lane, name: str, fresh: Callable[[], OuterProducts],
    steps_of: Callable[[OuterProducts], Callable[[int], Step]],
) -> OuterProducts:  # fmt: skip
    """As many steps as fit the seconds, by the pace of a few that are thrown away."""
    folder = lane.args.out / name
    if not (folder / "steps.json").exists():
        probe, marks = fresh(), []
        short = Schedule(steps=12, learning_rate=1e-6, checkpoint_every=100)
        for stop in (1, 2) if lane.args.smoke else (3, 12):
            loop.fit(probe, rates(probe), short, steps_of(probe), folder=folder / "speed",
                     metrics=folder / "speed.jsonl", phase="speed", stop_after=stop)  # fmt: skip
            marks.append(time.monotonic())
        pace = (marks[1] - marks[0]) / 9
        steps = 3 if lane.args.smoke else max(40, min(800, int(lane.args.train_seconds / pace)))
        store.write_json(folder / "steps.json", {"steps": steps, "seconds_a_step": round(pace, 3)})
    steps = store.read_json(folder / "steps.json")["steps"]
    model = fresh()
    schedule = Schedule(steps=steps, learning_rate=RATE, checkpoint_every=1000)
    loop.fit(
        model, rates(model), schedule, steps_of(model), folder=folder, metrics=folder / "metrics.jsonl", phase=name
    )
    half = {n: t.detach().to(torch.float16).contiguous() for n, t in model.state_dict().items()}
    store.write_atomic(folder / "model.safetensors", save({n: t.cpu() for n, t in half.items()}))
    return model.eval()


def variant_arms() -> list[tuple[list[Any], str, str]]:
    return [([v, s], f"{v} × {s}", f"{v} wrong × {s}") for v in VARIANTS for s in GENERATED_STRENGTHS]


def watch(lane: Lane, name: str, model: OuterProducts) -> None:
    """variants.jsonl: the variant on validation updates, at each strength, with its wrong donors."""
    jobs = lane.jobs(lane.parts.validation)
    made = dict(zip((j.key for j in jobs), lane.write(model, [j.lessons for j in jobs]), strict=True))
    for strength in GENERATED_STRENGTHS:
        worn = {key: lane.wear(f"{name}/{strength}/{key}", one, strength) for key, one in made.items()}
        wanted: list[Any] = []
        for job, donor in updates_oracle.partners(jobs):
            wanted.append((f"{name} × {strength}", job.case.problem, "", worn[job.key]))
            wanted.append((f"{name} wrong × {strength}", job.case.problem, "", worn[donor.key]))
        lane.sample("variants.jsonl", wanted, DOSE_DRAWS)
        lane.take_off(list(worn.values()))
    lane.rest()


def generated_jobs(lessons: Sequence[Trajectory], count: int) -> list[Job]:
    """Generated updates as jobs of the oracle: one task each, its three siblings the lessons."""
    by_update: dict[str, list[Trajectory]] = defaultdict(list)
    for lesson in lessons:
        by_update[lesson.domain].append(lesson)
    names = sorted(by_update)
    jobs = []
    for name in random.Random(f"teachers/{SEED}").sample(names, min(count, len(names))):
        own, *siblings = by_update[name]
        problem = Problem(task_id=own.task_id, benchmark=own.benchmark, prompt=own.prompt, entry_point="", test="",
                          reference=own.solution, category=own.category, domain=own.domain)  # fmt: skip
        jobs.append(Job("oracle", updates.Case(problem, own, tuple(siblings), ()), tuple(siblings)))
    return jobs


# --------------------------------------------------------------------------- 3: held-out updates


class Held:
    """held.jsonl: the arms on held-out updates; donors.json: whose adapter makes a solution likeliest."""

    def __init__(self, lane: Lane, limit: int = 0) -> None:
        self.lane = lane
        self.jobs = lane.jobs(lane.parts.held)[: limit or None]
        self.pairs = updates_oracle.partners(self.jobs)
        self.donors: dict[str, Any] = {}

    def _with_wrong(self, label: str, made: Sequence[Adapters], strength: float, *, wrong: bool = True) -> None:
        """Draw `label`, and with `wrong` the same adapters on tasks of other updates."""
        lane = self.lane
        worn = {j.key: lane.wear(f"{label}/{j.key}", m, strength) for j, m in zip(self.jobs, made, strict=True)}
        wanted: list[Any] = []
        for job, donor in self.pairs:
            wanted.append((label, job.case.problem, "", worn[job.key]))
            if wrong:
                wanted.append((f"{label}_wrong", job.case.problem, "", worn[donor.key]))
        lane.sample("held.jsonl", wanted, DRAWS)
        lane.take_off(list(worn.values()))

    def _rank(self, label: str, made: Sequence[Adapters], strength: float) -> None:
        self.donors[label] = ranks(self.lane, self.jobs, made, strength)
        store.write_json(self.lane.args.out / "donors.json", self.donors)

    def without_generator(self, steps: int, strength: float) -> None:
        """Bare, in context, fine-tuned."""
        lane = self.lane
        wanted: list[Any] = []
        for job, _ in self.pairs:
            shown = prompts.render_trajectory(job.case.siblings[0])
            wanted += [("vanilla", job.case.problem, "", None), ("context_sibling1", job.case.problem, shown, None)]
        lane.sample("held.jsonl", wanted, DRAWS)
        lane.rest()
        made = lane.fine_tune(self.jobs, steps, "held")
        tuned = [made[j.key] for j in self.jobs]
        self._with_wrong("oracle", tuned, strength)
        lane.rest()
        self._rank("oracle", tuned, strength)
        lane.done("held oracle")

    def generated(self, name: str, strength: float, models: dict[str, OuterProducts]) -> None:
        """The chosen variant, from its own trajectory too; then, while there is time, what it is compared with."""
        lane, siblings = self.lane, [j.lessons for j in self.jobs]
        made = lane.write(models[name], siblings)
        self._with_wrong("generated", made, strength)
        self._rank("generated", made, strength)
        lane.done("held generated")
        self._with_wrong("own", lane.write(models[name], [(j.case.own,) for j in self.jobs]), strength, wrong=False)
        self._with_wrong("generated1", lane.write(models[name], [s[:1] for s in siblings]), strength, wrong=False)
        lane.done("held own")
        for label, other in (("untrained", "untrained"), *(("other", v) for v in VARIANTS if v != name)):
            if other in models and not lane.late():
                self._with_wrong(label, lane.write(models[other], siblings), strength if label == "other" else 1.0)
                lane.done(f"held {label}")
        if not lane.late():
            self._with_wrong("twice", lane.write(models[name], siblings, strength=strength, passes=2), 1.0)
            lane.done("held twice")


@torch.no_grad()
def ranks(lane: Lane, jobs: Sequence[Job], made: Sequence[Adapters], strength: float) -> dict[str, Any]:
    """Log-probability of one solution an update under the adapter of one task of every update, nats [donor][target]."""
    first: dict[str, int] = {}
    for n, job in enumerate(jobs):
        first.setdefault(job.case.problem.domain, n)
    chosen = list(first.values())
    rows = lane.base.rows([lane.encode(jobs[n].case.own) for n in chosen])
    matrix = []
    for n in chosen:
        worn = {m: Factors(f.down_YNRI.to(lane.dtype), strength * f.up_YNRO.to(lane.dtype)) for m, f in made[n].items()}
        log_prob_P = lane.base.log_prob(rows, worn)
        matrix.append([round(v, 2) for v in losses.sequence_log_prob(log_prob_P, rows.row_P, len(chosen)).tolist()])
    return {"targets": [jobs[n].case.problem.task_id for n in chosen], "nats": matrix}


# --------------------------------------------------------------------------- the lane


def draw(args: argparse.Namespace) -> None:
    """All parts, most wanted first. Verdicts that choose are found beside what the GPU does next."""
    lane = Lane(args)
    dose(lane)
    lane.done("dose")
    process = lane.judging("dose")
    generated = store.read_jsonl(args.corpus / "open.jsonl", Trajectory)
    models = teach(lane, "answers", generated, {}, 1.0)
    steps, strength = _decide(lane, "dose", process, dose_arms())
    process = lane.judging("variants")
    if time.monotonic() - lane.began < VARIANT_BEFORE * args.seconds:
        jobs = [*lane.jobs(lane.parts.train), *generated_jobs(generated, 2 if args.smoke else GENERATED_TEACHERS)]
        teachers = lane.fine_tune(jobs, int(steps), "teachers")
        lane.done("teachers")
        try:
            models |= teach(lane, "oracle", generated, teachers, strength, jobs)
        except RuntimeError as error:  # the held-out part must not fall with it
            print(f"oracle: {error}", flush=True)
        _wait(lane, process)
        process = lane.judging("variants")
    held = Held(lane)
    held.without_generator(int(steps), strength)
    name, power = _decide(lane, "generator", process, [arm for arm in variant_arms() if arm[0][0] in models])
    held.generated(name, power, models)
    lane.rest()
    lane.done("end")


def teach(
    lane: Lane, name: str, generated: Sequence[Trajectory], teachers: dict[str, Any], strength: float,
    jobs: Sequence[Job] = (),
) -> dict[str, OuterProducts]:  # fmt: skip
    """Train one variant and draw it on validation; beside it the untrained generator."""
    real = [c.own for c in lane.parts.train]
    exclusion.check_corpus([*generated, *real], [c.problem for c in (*lane.parts.validation, *lane.parts.held)])
    pools = Pool(lane, real), Pool(lane, generated)
    count = EXAMPLES
    seen = observe(
        lane.base,
        [e.sources for e in pools[0].draw(np.random.default_rng(SEED), 2 if lane.args.smoke else 16)],
        tokens=RANK,
    )

    def fresh() -> OuterProducts:
        with torch.random.fork_rng():
            torch.manual_seed(config.derive_seed(SEED, "outer products"))
            model = OuterProducts(lane.base.layout(outer_products.MODULES)).to(lane.base.device)
        model.calibrate(lane.base, seen)
        return model

    while True:
        drawn = taught(jobs, lane, count) if teachers else answers(*pools, count)
        try:
            model = train(
                lane, name, fresh, lambda m, drawn=drawn: training_step(lane, m, drawn, teachers, strength, name)
            )
            break
        except torch.OutOfMemoryError:
            if count < 4:
                raise
            count //= 2
            print(f"{name}: out of memory, {count} examples a step", flush=True)
        shutil.rmtree(lane.args.out / name, ignore_errors=True)
        torch.cuda.empty_cache()
    lane.done(f"train {name}")
    watch(lane, name, model)
    lane.done(f"watch {name}")
    return {name: model, "untrained": fresh().eval()}


def larger(args: argparse.Namespace) -> None:
    """Another size, with what the first one chose: train on solutions, then the held-out updates."""
    lane = Lane(args)
    choice = store.read_json(args.choice) if args.choice and args.choice.exists() else {}
    steps, strength = choice.get("dose", {}).get("chosen", FALLBACK["dose"])
    chosen = choice.get("generator", {}).get("chosen", FALLBACK["generator"])
    models = teach(lane, "answers", store.read_jsonl(args.corpus / "open.jsonl", Trajectory), {}, 1.0)
    held = Held(lane, LARGER_TASKS)
    held.generated("answers", float(chosen[1]), models)
    lane.rest()
    held.without_generator(int(steps), float(strength))
    lane.rest()
    lane.done("end")


# --------------------------------------------------------------------------- numbers


def tell(args: argparse.Namespace) -> None:
    """Judge what is not judged; result.json, result.md, figure.svg; examples.md where an update was carried."""
    out = args.out
    problems = updates._benchmark(args, fold=0).problems()
    result: dict[str, Any] = {"choice": store.read_json(out / "choice.json") if (out / "choice.json").exists() else {}}
    for part in ("dose", "variants", "held"):
        if (out / f"{part}.jsonl").exists():
            updates._score(problems, out / f"{part}.jsonl", out / f"{part}_verdicts.jsonl")
            verdicts = [v for _, v in store.read_lines(out / f"{part}_verdicts.jsonl")]
            result[part] = {m: updates._numbers(verdicts, m, _contrasts(part)) for m in ("used", "plain")}
            result[part]["updates"] = len({v["task"].rpartition("/")[0] for v in verdicts})
            result[part] |= _by_donor(part, problems, out, verdicts)
    if "held" in result and args.lessons:
        lessons = updates._read_real(args.lessons)
        result["likeness"] = _by_likeness(lessons, out, verdicts)
        low = result["held"]["used"]["contrasts"].get("generated − generated_wrong", (0.0, 0.0))[1]
        if low > 0:  # where nothing was carried, the greatest gains are the greatest luck
            samples = [s for _, s in store.read_lines(out / "held.jsonl")]
            page = examples(problems, lessons, _learned(out, "held"), samples, verdicts)
            store.write_atomic(out / "examples.md", page)
    if (out / "donors.json").exists():
        result["donors"] = {name: shares(one) for name, one in store.read_json(out / "donors.json").items()}
    result["seconds"] = store.read_json(out / "seconds.json")
    store.write_json(out / "result.json", result)
    store.write_atomic(out / "result.md", table(result))
    if "held" in result:
        figure(out / "figure.svg", result["held"])
    console.out(table(result))


def _contrasts(part: str) -> list[tuple[str, str]]:
    if part == "held":
        return list(CONTRASTS)
    arms = dose_arms() if part == "dose" else variant_arms()
    return [(right, wrong) for _, right, wrong in arms]


def _learned(out: Path, part: str) -> dict[str, list[str]]:
    """The tasks of a part in their order, each with the tasks whose solutions its adapters were made from."""
    rows = [row for _, row in store.read_lines(out / "training.jsonl")] if (out / "training.jsonl").exists() else []
    steps = [row["steps"] for row in rows if row["part"] == part]
    return {
        row["key"].partition("/")[2]: row["lessons"] for row in rows if row["part"] == part and row["steps"] == steps[0]
    }


def _by_donor(
    part: str, problems: Sequence[Problem], out: Path, verdicts: Sequence[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """How many wrong donors are of the same function, for want of another; what the rule chooses without these."""
    known = {p.task_id: p for p in problems}
    tasks = list(_learned(out, "held" if part == "held" else "dose"))
    if set(tasks) != {v["task"] for v in verdicts}:
        return {}  # another size, cut off: order and pairs are the first size's
    pairs = updates_oracle.partners([Job("oracle", updates.Case(known[t], None, (), ()), ()) for t in tasks])
    domains = [(j.case.problem.domain, d.case.problem.domain) for j, d in pairs]
    far = {
        j.case.problem.task_id
        for (j, _), (own, wrong) in zip(pairs, domains, strict=True)
        if updates._function(own) != updates._function(wrong)
    }
    found: dict[str, Any] = {
        "of": len(pairs), "same_update": sum(own == wrong for own, wrong in domains),
        "same_function": len(pairs) - len(far),
        "other_package": sum(j.case.problem.category != d.case.problem.category for j, d in pairs),
    }  # fmt: skip
    if part != "held":
        arms = dose_arms() if part == "dose" else variant_arms()
        chosen, scores = choose([v for v in verdicts if v["task"] in far], arms)
        found |= {"chosen_without_same_function": chosen, "scores_without_same_function": scores}
    return {"wrong_donors": found}


LIKENESS_ARMS = ("vanilla", "context_sibling1", "oracle_wrong", "oracle", "generated_wrong", "generated")


def _by_likeness(lessons: Sequence[Trajectory], out: Path, verdicts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The oracle study's halves: how much of a task's solution stands in its siblings'."""
    curves = [{"key": f"oracle/{task}", "lessons": shown} for task, shown in _learned(out, "held").items()]
    likeness = updates_oracle._likeness(lessons, curves)
    tasks = {v["task"] for v in verdicts}
    if not tasks <= set(likeness):
        return {}
    middle = float(np.median([likeness[task] for task in tasks]))
    halves = {
        name: updates._numbers([v for v in verdicts if (likeness[v["task"]] > middle) is near], "used", CONTRASTS)
        for name, near in (("far", False), ("near", True))
    }
    return {"median": middle, **halves}


def examples(
    problems: Sequence[Problem], lessons: Sequence[Trajectory], learned: dict[str, list[str]],
    samples: Sequence[dict[str, Any]], verdicts: Sequence[dict[str, Any]],
) -> str:  # fmt: skip
    """Three tasks as Markdown: the two of most gain over the wrong donor, of two updates, and the one of most loss."""
    hits: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for v in verdicts:
        hits[v["task"]][v["arm"]] += v["used"]
    if not any("generated" in arms for arms in hits.values()):
        return ""
    lead = {task: arms["generated"] - arms["generated_wrong"] for task, arms in hits.items()}
    order = sorted(lead, key=lambda task: (-lead[task], hits[task].get("vanilla", 0), task))
    first = order[0]
    second = next((t for t in order if t.rpartition("/")[0] != first.rpartition("/")[0]), first)
    signs = [sum(v > 0 for v in lead.values()), sum(v == 0 for v in lead.values()), sum(v < 0 for v in lead.values())]
    lines = [
        "# Three held-out tasks side by side", "",
        "Picked by program: the two where `generated` counts most draws more than `generated_wrong` (of two updates; "
        "of equals the one that the bare model solves least), and the one where it counts most fewer. Programs are "
        f"draw 0. Of {len(lead)} tasks `generated` is ahead of `generated_wrong` in {signs[0]}, level in {signs[1]}, "
        f"behind in {signs[2]}.", "",
    ]  # fmt: skip
    known, solved = {p.task_id: p for p in problems}, {t.task_id: t for t in lessons}
    program = {(s["condition"], s["task_id"]): s["program"] for s in samples if s["draw"] == 0}
    titles = {
        "vanilla": "bare model", "generated": "adapter generated from the siblings' trajectories",
        "context_sibling1": "the first sibling's trajectory in context",
    }  # fmt: skip
    for task, why in ((first, "gain"), (second, "gain"), (order[-1], "loss")):
        arms = ("vanilla", "generated", "generated_wrong", "context_sibling1", "oracle")
        counts = ", ".join(f"{arm} {hits[task][arm]}" for arm in arms if arm in hits[task])
        lines += [f"## `{task}` ({why})", "", f"Draws of {DRAWS} that count: {counts}.", ""]
        lines += ["The task:", "", "```", known[task].prompt.strip(), "```", ""]
        if task in learned:
            sibling = learned[task][0]
            lines += [f"The first sibling's solution, of `{sibling}`:", ""]
            lines += ["```python", solved[sibling].solution.strip(), "```", ""]
        for arm, title in titles.items():
            if (arm, task) in program:
                lines += [f"{title[0].upper()}{title[1:]}:", "", "```python", program[arm, task].strip(), "```", ""]
    return "\n".join(lines)


def shares(one: dict[str, Any]) -> dict[str, float]:
    """Rank of the right donor as a share of the donors, among all and in the package (another function); chance 0.5."""
    nats, targets = np.array(one["nats"]), one["targets"]
    update = [t.partition("/")[2].rpartition("/")[0] for t in targets]
    function = [updates._function(u) for u in update]
    every, package, ahead = [], [], []
    for t in range(len(targets)):
        mine = nats[t, t]
        others = [d for d in range(len(targets)) if function[d] != function[t]]
        near = [d for d in others if function[d].partition(".")[0] == function[t].partition(".")[0]]
        for found, donors in ((every, others), (package, near)):
            if donors:
                found.append((0.5 + sum(nats[d, t] > mine for d in donors)) / (len(donors) + 1))
        ahead += [mine - nats[d, t] for d in near]
    return {
        "targets": len(targets), "all": float(np.mean(every)), "package": float(np.mean(package)),
        "lead_nats": float(np.mean(ahead)),
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """Everything as Markdown."""
    lines: list[str] = []
    titles = {
        "held": "Held-out updates", "dose": "The oracle's dose, validation updates",
        "variants": "Generated adapters, validation updates",
    }  # fmt: skip
    for part, title in titles.items():
        if part not in result:
            continue
        used, plain = result[part]["used"], result[part]["plain"]
        lines += [
            f"## {title}", "",
            f"{used['tasks']} tasks of {result[part]['updates']} updates, T = {updates.TEMPERATURE}, "
            f"{result['seconds']['device']}", "", "| arm | UPass | plain pass |", "|---|---:|---:|",
        ]  # fmt: skip
        lines += [f"| {arm} | {value:.1f} | {plain['arms'][arm]:.1f} |" for arm, value in used["arms"].items()]
        lines += ["", "| contrast | UPass, points | 95 % over updates | plain pass, points | 95 % over updates |"]
        lines.append("|---|---:|---:|---:|---:|")
        for name, (points, low, high) in used["contrasts"].items():
            p = plain["contrasts"][name]
            lines.append(
                f"| {name} | {points:+.1f} | {low:+.1f} … {high:+.1f} | {p[0]:+.1f} | {p[1]:+.1f} … {p[2]:+.1f} |"
            )
        lines.append("")
        donors = result[part].get("wrong_donors")
        if donors:
            lines += [
                f"Wrong donors: {donors['of']}; of the task's update {donors['same_update']}, of its function "
                f"{donors['same_function']}, of another package {donors['other_package']}.",
                "",
            ]
        if donors and donors["same_function"] and donors.get("chosen_without_same_function"):
            chosen = " × ".join(map(str, donors["chosen_without_same_function"]))
            lines += [f"Without the tasks whose wrong donor is of their function the rule chooses {chosen}.", ""]
    if result.get("likeness"):
        halves = result["likeness"]
        lines += [
            "By the share of the task's own solution (runs of five tokens) that stands in its siblings', parted at the "
            f"median, {100 * halves['median']:.0f} %; UPass:", "",
            "| half | tasks | " + " | ".join(LIKENESS_ARMS) + " | oracle − wrong | generated − wrong |",
            "|---|" + "---:|" * (len(LIKENESS_ARMS) + 3),
        ]  # fmt: skip
        for name in ("far", "near"):
            half = halves[name]
            cells = [f"{half['arms'][arm]:.1f}" for arm in LIKENESS_ARMS]
            for arm in ("oracle", "generated"):
                points, low, high = half["contrasts"][f"{arm} − {arm}_wrong"]
                cells.append(f"{points:+.1f} [{low:+.1f}, {high:+.1f}]")
            lines.append(f"| {name} | {half['tasks']} | " + " | ".join(cells) + " |")
        lines.append("")
    for what, one in result["choice"].items():
        how = "by the rule" if one["by_rule"] else "the fallback: not judged in time"
        lines += [f"Chosen {what}: {' × '.join(map(str, one['chosen']))} ({how}).", ""]
    for name, one in result.get("donors", {}).items():
        lines += [
            f"Rank of the right donor, {name}, {one['targets']} targets, as a share (chance 0.5): {one['all']:.2f} "
            f"among other functions, {one['package']:.2f} in the package; ahead of these by "
            f"{one['lead_nats']:+.1f} nats.",
            "",
        ]  # fmt: skip
    return "\n".join(lines)


NAMES = {
    "vanilla": "bare model", "context_sibling1": "a sibling's trajectory in context",
    "generated_wrong": "generated from another update", "generated": "generated from the update's siblings",
    "oracle_wrong": "fine-tuned on another update", "oracle": "fine-tuned on the update's siblings",
}  # fmt: skip


def figure(path: Path, part: dict[str, Any]) -> None:
    """UPass of the arms on held-out updates."""
    bars(path, part, NAMES, size=(7.2, 2.8), salt="distilled")


def bars(path: Path, part: dict[str, Any], names: dict[str, str], *, size: tuple[float, float], salt: str) -> None:
    """One bar for each arm of `names` (arm → what it is called) that was drawn; `size` in inches, `salt` of the ids."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "axes.spines.top": False}):
        drawing = Figure(figsize=size, layout="constrained")
        axes = drawing.subplots()
        present = {arm: name for arm, name in names.items() if arm in part["used"]["arms"]}
        for at, arm in enumerate(reversed(present)):
            value = part["used"]["arms"][arm]
            axes.barh(at, value, color="#b3261e" if "wrong" in arm else "#1f5fbf", height=0.6)
            axes.text(value + 0.3, at, f"{value:.1f}", va="center", fontsize=9)
        axes.set_yticks(range(len(present)), list(reversed(present.values())), fontsize=9)
        axes.set_xlabel(f"UPass in %, {part['used']['tasks']} tasks of {part['updates']} updates")
        axes.spines["right"].set_visible(False)
        drawing.savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
