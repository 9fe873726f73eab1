"""What studies of adapters written in passes share: workers of one GPU, teachers, training, draws, verdicts, intervals.

A study puts this folder on its path and says what its jobs, sources and arms are: private-libraries,
updates-real-looking, updates-sealed. The studies of updates before them (updates-distilled, updates-scaled) hold the
same step by step, each as it ran. Generator: `src/rune/hypernet/outer_products.py`; teachers: `side_by_side.py` there.

Workers of one folder OUT share its parts: who makes the mark OUT/claims/PART does it, and OUT/done/PART says that it is
done (with a text: that it failed). What is done is not done again; what an earlier start of a worker took up and did
not end is free again. A training that the time does not hold stops with its state beside it and goes on at the next
start, on another machine if OUT is carried there (`adapter_lane.sh`); only the teachers are made anew there.
"""

# Shapes: N adapters = examples of a step · B = 2·N rows · P solution tokens of all rows · V vocabulary
from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import os
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rune import config, console, plugins, prompts
from rune.adapters import convert
from rune.adapters.factors import Adapters, Factors, select, to_dtype
from rune.analysis import stats
from rune.errors import DataError
from rune.hypernet import base as bases
from rune.hypernet import loop, losses, outer_products, side_by_side
from rune.hypernet.base import Text
from rune.hypernet.loop import Rate, Step
from rune.hypernet.outer_products import OuterProducts
from rune.hypernet.settings import Schedule
from rune.models import chat, resolve
from rune.runs import store
from rune.types import Problem, Request, Sample, Sampling, Trajectory

RESAMPLES = 5000
TEXTS_AT_ONCE = 24  # that are read in one batch: its logits are 0.6 MB a token
ENDING = 25.0  # seconds that a worker keeps for its end where it stops before its time


class Job(NamedTuple):
    """One task and the solved tasks that its adapter is made from."""

    problem: Problem
    own: Trajectory
    lessons: tuple[Trajectory, ...]

    @property
    def key(self) -> str:
        return self.problem.task_id


class Ask(NamedTuple):
    """One arm's question; `begun` is how the program begins, which is given."""

    arm: str
    problem: Problem
    context: str = ""
    adapter: Any = None
    begun: str = ""


class Variant(NamedTuple):
    """A generator: what it is trained on, in equal shares, and how it reads."""

    name: str
    sources: tuple[str, ...]
    seed: int
    passes: int = 4
    tokens: int = 64  # a pass
    gradient: bool = False
    cost: float = 1.0  # of a training step, beside that of four passes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How generators are trained and drawn; the values that updates-real-looking had."""

    seed: int  # of teachers and draws
    dose: int = 4  # gradient steps of a teacher; its rate makes steps × rate 5·10⁻³
    example_tokens: int = 448  # of a target, prompt and solution
    text_tokens: int = 768  # of a text that is read
    recall: float = 0.25  # share of examples whose target is among the texts read
    most_read: int = 3  # texts of a job, at most, that an example reads
    foreign: float = 1.0  # weight of the KL that a stranger's adapter must not move the bare model
    rate: float = 2e-3
    least: int = 150  # training steps
    most: int = 1000
    rounds: float = 2.0  # variants that a worker is to have time for
    reserve: float = 110.0  # seconds that a variant's draws want
    together: int = 8  # LoRAs fine-tuned in one batch; 30 GB for the longest texts
    slice: int = 50  # training steps between two looks at the clock
    block: int = 32  # tasks whose adapters are worn at once
    temperature: float = 0.2
    new_tokens: int = 384


def options(parser: argparse.ArgumentParser) -> None:
    """What every study's command takes."""
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="the folder of public data sets")
    parser.add_argument("--corpus", type=Path, help="what `corpus` wrote")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--workers", type=int, default=3, help="draw: how many share the trainings")
    parser.add_argument("--judges", type=int, default=0, help="judge: so many processors at most")
    parser.add_argument("--seconds", type=float, default=1e9, help="of this start: nothing begins that ends later")
    parser.add_argument("--planned", type=float, default=0.0, help="of all starts together, if trainings may go on")
    parser.add_argument("--memory", type=float, default=0.0, help="share of the GPU's memory that may be taken")
    parser.add_argument("--follow", action="store_true", help="judge: go on until OUT/end is there")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: checks the path, claims nothing")


class Lane:
    """One worker: base model, engine, clock, and the marks that it shares with the others."""

    def __init__(self, args: argparse.Namespace, recipe: Recipe) -> None:
        self.args, self.recipe, self.began = args, recipe, time.monotonic()
        self.shared = args.out
        self.own = args.out / f"worker-{args.worker}"
        self.own.mkdir(parents=True, exist_ok=True)
        for mark in (self.shared / "claims").glob("*"):
            if mark.read_text() == str(args.worker) and not (self.shared / "done" / mark.name).exists():
                mark.unlink()
        cuda = torch.cuda.is_available()
        if cuda:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            if args.memory:
                torch.cuda.set_per_process_memory_fraction(args.memory)
        self.device = "cuda" if cuda else "cpu"
        self.dtype = torch.bfloat16 if cuda else torch.float32
        self.model = resolve.resolve(args.model, sources=resolve.SOURCES, cache=args.cache)
        self.base = bases.load(self.model, device=self.device, dtype=str(self.dtype).removeprefix("torch."))
        self._engine: Any = None
        self._texts: dict[str, Text] = {}
        self._mark = self.began
        known = self.own / "seconds.json"
        self.seconds: dict[str, Any] = store.read_json(known) if known.exists() else {}
        self.done("load")

    # ----------------------------------------------------------------- clock and marks

    def left(self) -> float:
        return float(self.args.seconds - (time.monotonic() - self.began))

    def done(self, part: str) -> None:
        now = time.monotonic()
        self.seconds[part] = round(now - self._mark, 1)
        self._mark = now
        device = torch.cuda.get_device_name() if self.device == "cuda" else "CPU"
        store.write_json(self.own / "seconds.json", {**self.seconds, "device": device})
        print(f"{now - self.began:.0f} s: {part} took {self.seconds[part]:.0f} s", flush=True)

    def claim(self, part: str) -> bool:
        """Whether this worker is the one that does it."""
        if self.finished(part):
            return False
        mark = self.shared / "claims" / part.replace(" ", "-")
        mark.parent.mkdir(parents=True, exist_ok=True)
        try:
            with mark.open("x") as file:
                file.write(str(self.args.worker))
        except FileExistsError:
            return False
        return True

    def finished(self, part: str) -> bool:
        return (self.shared / "done" / part.replace(" ", "-")).exists()

    def finish(self, part: str, failed: str = "") -> None:
        store.write_atomic(self.shared / "done" / part.replace(" ", "-"), failed)

    @property
    def goes_on(self) -> bool:
        """Whether another start is planned after this one."""
        return bool(self.args.planned > self.args.seconds)

    # ----------------------------------------------------------------- model and engine

    @property
    def engine(self) -> Any:
        if self._engine is None:
            self.rest()
            module = plugins.load("engines", "torch")
            settings = module.Config(memory_fraction=0.1, max_rows=16 if self.args.smoke else 512)
            dtype = str(self.dtype).removeprefix("torch.")
            self._engine = module.build(settings, model=self.model, device=self.device, dtype=dtype)
        return self._engine

    def rest(self) -> None:
        """Give the engine's memory back: to training, or to adapters of another shape."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def encode(self, lesson: Trajectory) -> Text:
        if lesson.task_id not in self._texts:
            self._texts[lesson.task_id] = self.base.encode(lesson.prompt, lesson.solution)
        return self._texts[lesson.task_id]

    def fitting(self, jobs: Iterable[Job]) -> list[Job]:
        """Those whose texts fit, each without the lessons that do not; a job without a lesson is left out."""
        longest, found = self.recipe.text_tokens, []
        for job in jobs:
            lessons = tuple(t for t in job.lessons if len(self.encode(t).ids) <= longest)
            if lessons and len(self.encode(job.own).ids) <= longest:
                found.append(job._replace(lessons=lessons))
        return found

    # ----------------------------------------------------------------- adapters

    def tune(self, jobs: Sequence[Job], steps: int, part: str, rate: float = 0.0) -> dict[str, dict[str, Factors]]:
        """A LoRA a job on its lessons, all from one start; a quarter as many at once where memory wants it."""
        together, made, start = self.recipe.together, {}, 0
        schedule = Schedule(steps=steps, learning_rate=rate or 5e-3 / steps, checkpoint_every=steps)
        with store.Appender(self.own / "tuned.jsonl") as log:
            while start < len(jobs):
                some, mark = jobs[start : start + together], time.monotonic()
                lessons = [side_by_side.Lesson(j.key, tuple(map(self.encode, j.lessons))) for j in some]
                whole, curve = None, []
                try:
                    whole, curve = side_by_side.train(
                        self.base, lessons, schedule, rank=8, alpha=16.0, rows=2, seed=self.recipe.seed, start="common"
                    )
                except torch.OutOfMemoryError:
                    if together == 1:
                        raise
                if whole is None:  # not within `except`: the error holds the frames, and they the tensors
                    together = max(1, together // 4)
                    self.rest()
                    continue
                whole = to_dtype(whole, self.dtype)
                made |= {job.key: select(whole, slice(n, n + 1)) for n, job in enumerate(some)}
                log.write({
                    "part": part, "steps": steps, "keys": [j.key for j in some],
                    "loss": [[round(c[at], 4) for c in zip(*curve, strict=True)] for at in (0, -1)],
                    "seconds": round(time.monotonic() - mark, 2),
                })  # fmt: skip
                start += together
        return made

    def teachers(self, sources: Mapping[str, Sequence[Job]]) -> OnHost:
        """Fine-tuned LoRAs of everything that is trained on, shared among the workers and read by each."""
        size = self.recipe.together
        chunks = [(name, at, jobs[at : at + size]) for name, jobs in sources.items()
                  for at in range(0, len(jobs), size)]  # fmt: skip
        folder = self.shared / "teachers"
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{name}-{at:04}.safetensors" for name, at, _ in chunks]
        for (name, at, some), path in zip(chunks, paths, strict=True):
            if not path.exists() and self.claim(f"teachers-{name}-{at:04}"):
                made = self.tune(some, self.recipe.dose, name)
                whole = join([made[j.key] for j in some])
                flat = {f"{m}.{n}": t.cpu().contiguous() for m, f in whole.items() for n, t in enumerate(f)}
                save_file(flat, path.with_suffix(f".{self.args.worker}"))
                path.with_suffix(f".{self.args.worker}").rename(path)
                self.finish(f"teachers-{name}-{at:04}")
        self.rest()
        found = OnHost(self.base.device)
        for (_, _, some), path in zip(chunks, paths, strict=True):
            while not path.exists():  # another worker is at it
                if self.left() < self.recipe.reserve:
                    raise DataError(f"{path.name} is not there and the time is over")
                time.sleep(0.2)
            flat = load_file(path)
            whole = {m: Factors(flat[f"{m}.0"], flat[f"{m}.1"]) for m in {n.partition(".")[0] for n in flat}}
            found |= {job.key: select(whole, slice(n, n + 1)) for n, job in enumerate(some)}
        self.done("teachers")
        return found

    @torch.no_grad()
    def write(self, model: OuterProducts, sets: Sequence[Sequence[Trajectory]], tokens: int) -> list[Adapters]:
        """One adapter a set of texts, in the host's memory."""
        found: list[Adapters] = []
        while len(found) < len(sets):
            some: list[list[Text]] = []
            for one in sets[len(found) :]:
                if some and sum(map(len, some)) + len(one) > TEXTS_AT_ONCE:
                    break
                some.append([self.encode(t) for t in one])
            whole = outer_products.write(self.base, model, some, tokens=tokens)
            whole = {m: Factors(*(t.cpu() for t in f)) for m, f in whole.items()}
            found += [select(whole, slice(n, n + 1)) for n in range(len(some))]
        return found

    def wear(self, name: str, made: Adapters) -> Any:
        layout = self.base.layout(tuple(made))
        return self.engine.put_adapter(
            name, convert.to_adapter(made, layout, base_model=self.model.digest, dtype=self.dtype)
        )

    # ----------------------------------------------------------------- draws

    def show(
        self, file: str, asks: Sequence[Ask], made: Mapping[str, Adapters], donor: Mapping[tuple[str, str], str],
        draws: int,
    ) -> None:  # fmt: skip
        """Draw adapters: `asks` without one wear that of `made` which `donor` names for their (arm, task). Within a
        file a name means one adapter: the engine knows it by both."""
        for start in range(0, len(asks), self.recipe.block):
            some = asks[start : start + self.recipe.block]
            names = {(a.arm, a.problem.task_id): donor[a.arm, a.problem.task_id] for a in some}
            wanted = sorted(set(names.values()))
            if isinstance(made, Written):
                made.fetch(wanted)
            worn = {name: self.wear(f"{file}/{name}", made[name]) for name in wanted}
            self.draw(file, [a._replace(adapter=worn[names[a.arm, a.problem.task_id]]) for a in some], draws)
            for adapter in {ref.adapter_id for ref in worn.values()}:
                self.engine.drop_adapter(adapter)

    def draw(self, file: str, asks: Sequence[Ask], draws: int) -> None:
        """Draw what is missing into OUT/samples/`file`.jsonl: draw i of a task has the same seed in every arm."""
        path = self.shared / "samples" / f"{file.replace(' ', '-')}.jsonl"
        have = {(s.condition, s.task_id, s.draw) for s in store.read_jsonl(path, Sample)}
        most = 16 if self.args.smoke else self.recipe.new_tokens
        sampling = Sampling(temperature=self.recipe.temperature, max_new_tokens=most, top_k=0)
        requests, meaning = [], {}
        for ask in asks:
            question = prompts.task(ask.problem.prompt, ask.context)
            text = chat.render(self.model, question._replace(prefill=question.prefill + ask.begun))
            seed = config.derive_seed(self.recipe.seed, "sample", ask.problem.task_id)
            asked = dataclasses.replace(sampling, stop=prompts.stop(ask.problem.prompt))
            for draw in range(1 if self.args.smoke else draws):
                if (ask.arm, ask.problem.task_id, draw) in have:
                    continue
                key = f"{ask.arm}\t{ask.problem.task_id}\t{draw}"
                meaning[key] = (ask, draw)
                requests.append(Request(key=key, prompt=text, sampling=asked, seed=seed + draw, adapter=ask.adapter))
        with store.Appender(path) as log, console.Progress("sample", len(requests), unit="sample") as bar:
            for completion in self.engine.complete(requests):
                ask, draw = meaning[completion.key]
                whole = ask.begun + completion.text
                entry = "" if ask.begun else ask.problem.entry_point
                log.write(
                    Sample(
                        task_id=ask.problem.task_id, condition=ask.arm, draw=draw, seed=completion.seed,
                        completion=completion.text, num_tokens=completion.num_tokens,
                        program=prompts.extract(whole, prompt=ask.problem.prompt, entry_point=entry),
                        finish_reason=completion.finish_reason,
                    )
                )  # fmt: skip
                bar.advance()


class Written(Mapping[str, Adapters]):
    """Adapters of sets of texts by name, written when they are wanted: all, of rank 512, would fill the memory."""

    def __init__(self, lane: Lane, model: OuterProducts, sets: Mapping[str, Sequence[Trajectory]], tokens: int) -> None:
        self._lane, self._model, self._sets, self._tokens = lane, model, sets, tokens
        self._now: dict[str, Adapters] = {}

    def fetch(self, names: Sequence[str]) -> None:
        """Have these, and no others."""
        known = {n: self._now[n] for n in names if n in self._now}
        missing = [n for n in names if n not in known]
        made = self._lane.write(self._model, [self._sets[n] for n in missing], self._tokens)
        self._now = {**known, **dict(zip(missing, made, strict=True))}

    def __getitem__(self, name: str) -> Adapters:
        if name not in self._now:
            self.fetch([name])
        return self._now[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sets)

    def __len__(self) -> int:
        return len(self._sets)


class OnHost(dict[str, dict[str, Factors]]):
    """LoRAs which together do not fit the GPU: one is moved there when it is asked for."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __getitem__(self, key: str) -> dict[str, Factors]:
        found = super().__getitem__(key)
        return {m: Factors(*(t.to(self.device, non_blocking=True) for t in f)) for m, f in found.items()}


def join(adapters: Sequence[Adapters]) -> dict[str, Factors]:
    """Several adapters of one rank as one of so many N."""
    return {m: Factors(*(torch.cat([a[m][n] for a in adapters], 1) for n in (0, 1))) for m in adapters[0]}


# --------------------------------------------------------------------------- training


class Unfinished(Exception):
    """The time is over; what was trained so far lies on disk."""


class Example(NamedTuple):
    """Texts that an adapter is made from, the solution that it should make likely, and its teacher."""

    sources: tuple[Text, ...]
    target: Text
    domain: str
    teacher: str


Examples = Callable[[np.random.Generator], list[Example]]


def mixture(lane: Lane, pools: Sequence[Sequence[Job]], shares: Sequence[int]) -> Examples:
    """A step's examples: so many of each pool; jobs whose target is too long are left out."""
    recipe = lane.recipe
    known = []
    for jobs in pools:
        texts = [(j, [lane.encode(t) for t in j.lessons], lane.encode(j.own)) for j in jobs]
        known.append([one for one in texts if len(one[2].ids) <= recipe.example_tokens])

    def draw(rng: np.random.Generator) -> list[Example]:
        found = []
        for pool, share in zip(known, shares, strict=True):
            for number in rng.choice(len(pool), size=share, replace=share > len(pool)):
                job, texts, own = pool[int(number)]
                read = [texts[i] for i in rng.permutation(len(texts))[: int(rng.integers(1, recipe.most_read + 1))]]
                short = [t for t in read if len(t.ids) <= recipe.example_tokens]
                target = short[0] if short and rng.random() < recipe.recall else own
                found.append(Example(tuple(read), target, job.problem.domain, job.key))
        return found

    return draw


def fresh(lane: Lane, variant: Variant, drawn: Examples) -> OuterProducts:
    """The variant before training, its sizes measured on one step's examples."""
    with torch.random.fork_rng():
        torch.manual_seed(config.derive_seed(variant.seed, "outer products"))
        model = OuterProducts(
            lane.base.layout(outer_products.MODULES), passes=variant.passes, gradient=variant.gradient
        ).to(lane.base.device)
    sets = [e.sources for e in drawn(np.random.default_rng(variant.seed))]
    model.calibrate(
        lane.base, outer_products.observe(lane.base, sets, tokens=variant.tokens, gradient=variant.gradient)
    )
    return model


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


def step_of(
    lane: Lane, variant: Variant, model: OuterProducts, drawn: Examples, teachers: Mapping[str, Adapters]
) -> Callable[[int], Step]:
    """Each adapter wears two rows: its own target, by KL to the base model under the teacher, and the target of the
    example before it, by KL to the bare model, where that is of another domain. Variants of one seed and the same
    sources see the same examples."""
    base, recipe = lane.base, lane.recipe
    name = f"{variant.sources}/{variant.seed}"

    def take(step: int) -> Step:
        examples = drawn(np.random.default_rng([config.derive_seed(recipe.seed, "examples", name), step]))
        made = outer_products.write(base, model, [e.sources for e in examples], tokens=variant.tokens)
        strangers = [examples[n - 1] for n in range(len(examples))]
        pairs = list(zip(examples, strangers, strict=True))
        rows = base.rows([t for e, s in pairs for t in (e.target, s.target)])
        logits_PV = base.logits(rows, made)
        right_P = rows.row_P % 2 == 0
        differs = torch.tensor([e.domain != s.domain for e, s in pairs]).to(base.device)
        taught = base.rows([e.target for e in examples])
        with torch.no_grad():
            teacher_PV = base.logits(taught, join([teachers[e.teacher] for e in examples]))
            alone = base.rows([s.target for s in strangers])
            bare_PV = base.logits(alone, None)[differs[alone.row_P]]
        own_PV = logits_PV[right_P]
        terms = {
            "cross_entropy": F.cross_entropy(own_PV.float(), rows.label_P[right_P]),
            "kl_teacher": losses.kl(teacher_PV, own_PV),
            "kl_foreign": losses.kl(bare_PV, logits_PV[~right_P & differs[rows.row_P // 2]]),
        }
        return Step(terms["kl_teacher"] + recipe.foreign * terms["kl_foreign"], terms, rows.ids_BT.numel())

    return take


def pace(lane: Lane, variant: Variant, drawn: Examples, teachers: Mapping[str, Adapters]) -> int:
    """Steps of all variants: as many as leave each worker `rounds` of them, by the pace of whoever is here first,
    taken twice."""
    path = lane.shared / "pace.json"
    if path.exists():
        return int(store.read_json(path)["steps"])
    recipe, smoke = lane.recipe, lane.args.smoke
    probe, marks = fresh(lane, variant, drawn), []
    short = Schedule(steps=40, learning_rate=1e-6, checkpoint_every=100)
    stops = (1, 2, 3) if smoke else (8, 20, 32)
    with tempfile.TemporaryDirectory() as folder:
        for stop in stops:
            loop.fit(probe, rates(probe), short, step_of(lane, variant, probe, drawn, teachers), folder=Path(folder),
                     metrics=Path(folder) / "speed.jsonl", phase="speed", stop_after=stop)  # fmt: skip
            marks.append(time.monotonic())
    taken = [(b - a) / (stops[2] - stops[1]) / variant.cost for a, b in itertools.pairwise(marks)]
    if lane.claim("pace"):
        later = 0.8 * max(0.0, lane.args.planned - lane.args.seconds)  # a later start makes its teachers anew
        budget = (lane.left() + later) / recipe.rounds - recipe.reserve
        steps = 3 if smoke else max(recipe.least, min(recipe.most, int(budget / (1.05 * min(taken)))))
        store.write_json(path, {"steps": steps, "seconds_a_step": [round(t, 3) for t in taken]})
        lane.finish("pace")
    while not path.exists():  # another is just writing it
        time.sleep(0.1)
    return int(store.read_json(path)["steps"])


def trained(lane: Lane, variant: Variant, drawn: Examples, teachers: Mapping[str, Adapters]) -> OuterProducts:
    """The variant after training; its weights lie in OUT/VARIANT, as 16-bit numbers and as int8.

    Raises Unfinished where the time ends before the steps do; OUT/VARIANT/carry.safetensors goes on from there.
    """
    folder = lane.shared / variant.name.replace(" ", "-")
    model = fresh(lane, variant, drawn)
    if (folder / "model.safetensors").exists():
        model.load_state_dict({n: t.float() for n, t in load_file(folder / "model.safetensors").items()})
    else:
        steps = pace(lane, variant, drawn, teachers)
        schedule = Schedule(steps=steps, learning_rate=lane.recipe.rate, checkpoint_every=lane.recipe.slice)
        state, carry = folder / "state.safetensors", folder / "carry.safetensors"
        if carry.exists() and not state.exists():
            carry.rename(state)
        at = steps_of(state)
        while at < steps:
            each = variant.cost * min(store.read_json(lane.shared / "pace.json")["seconds_a_step"])
            if lane.goes_on and lane.left() < 1.3 * each * min(lane.recipe.slice, steps - at) + ENDING:
                raise Unfinished(f"{at} of {steps} steps")
            at = min(steps, (at // lane.recipe.slice + 1) * lane.recipe.slice)
            loop.fit(model, rates(model), schedule, step_of(lane, variant, model, drawn, teachers), folder=folder,
                     metrics=folder / "metrics.jsonl", phase=variant.name, stop_after=at)  # fmt: skip
            lighter(state, carry)
        half = {n: t.detach().to("cpu", torch.float16).contiguous() for n, t in model.state_dict().items()}
        save_file(half, folder / "model.safetensors")
        save_file(eight_bits(model.state_dict()), folder / "model.int8.safetensors")
        state.unlink()
        carry.unlink(missing_ok=True)
    lane.done(f"train {variant.name}")
    return model.to(lane.base.device).eval()


def steps_of(state: Path) -> int:
    """Steps that a training state has behind it; 0 where there is none."""
    if not state.exists():
        return 0
    with safe_open(state, framework="pt") as file:
        return int(file.metadata()["step"])


def lighter(state: Path, carry: Path) -> None:
    """A training state with AdamW's moments as bfloat16: two thirds of the bytes, to be carried to another machine."""
    tensors = {n: t.bfloat16() if n.startswith("adam.") and n.endswith(("exp_avg", "exp_avg_sq")) else t
               for n, t in load_file(state).items()}  # fmt: skip
    part = carry.with_suffix(".part")
    save_file(tensors, part, metadata={"step": str(steps_of(state))})
    part.rename(carry)


def eight_bits(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A generator's weights for shipping: corrections as int8 with one scale a channel, the rest as 16-bit numbers."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        whole = value.detach().cpu().float()
        if whole.dim() == 3:  # [layers, in, out] of a correction: nine tenths of all bytes
            scale = whole.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
            found[name] = (whole / scale).round().to(torch.int8).contiguous()
            found[f"{name}.scale"] = scale.contiguous()
        else:
            found[name] = whole.half().contiguous()
    return found


def from_eight_bits(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The opposite, as a state that `load_state_dict` takes."""
    return {
        name: value.float() * stored[f"{name}.scale"] if f"{name}.scale" in stored else value.float()
        for name, value in stored.items()
        if not name.endswith(".scale")
    }


def affordable(lane: Lane, variant: Variant) -> bool:
    """Whether there is time for it, as far as the pace is known."""
    path = lane.shared / "pace.json"
    if not path.exists():
        return True
    if lane.goes_on:
        return lane.left() > lane.recipe.reserve
    known = store.read_json(path)
    needs = variant.cost * known["steps"] * min(known["seconds_a_step"]) + lane.recipe.reserve / 2
    if lane.left() < needs:
        print(f"{variant.name}: wants {needs:.0f} s, {lane.left():.0f} s are left", flush=True)
    return lane.left() >= needs


def attempt(lane: Lane, part: str, do: Callable[[], None]) -> None:
    """Do a part if nobody else does; one that fails is told and left out, so that what follows does not fall."""
    if not lane.claim(part):
        return
    failed = ""
    try:
        do()
    except (RuntimeError, DataError) as error:  # out of memory, or a loss that is no number
        failed = f"{part} failed: {error}"
        print(failed, flush=True)
    if failed:  # not within `except`: the error holds the frames, and they the tensors
        lane.rest()
    lane.finish(part, failed)


def in_turn(lane: Lane, variants: Sequence[Variant], part: Callable[[Variant], None]) -> None:
    """The next variant to whoever is free, as long as there is time."""
    for variant in variants:
        try:
            if affordable(lane, variant):
                attempt(lane, variant.name, lambda v=variant: part(v))  # type: ignore[misc]
        except Unfinished as so_far:
            print(f"{variant.name}: {so_far}; to go on at the next start", flush=True)
            return


# --------------------------------------------------------------------------- verdicts


def judge(args: argparse.Namespace, score: Callable[[Path, Path], None]) -> None:
    """`score` each file of samples that has grown; with --follow until OUT/end is there."""
    if args.judges:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[-args.judges :])
    sizes: dict[Path, int] = {}
    while True:
        last = not args.follow or (args.out / "end").exists()
        for path in sorted(args.out.glob("samples/*.jsonl")):
            size = path.stat().st_size
            if sizes.get(path) != size:
                score(path, args.out / "verdicts" / path.name)
                sizes[path] = size
        if last:
            return
        time.sleep(1)


def waiting(samples: Path, verdicts: Path) -> dict[str, Sample]:
    """Key → samples without a verdict."""
    done = {(v["arm"], v["task"], v["draw"]) for v in lines(verdicts)}
    return {
        f"{s.condition}\t{s.task_id}\t{s.draw}": s
        for s in store.read_jsonl(samples, Sample)
        if (s.condition, s.task_id, s.draw) not in done
    }


def lines(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in store.read_lines(path)] if path.exists() else []


# --------------------------------------------------------------------------- numbers


class Table:
    """Verdicts by arm, task and training. An arm of a training is called `ARM@SEED`; one of none has no mark."""

    def __init__(self, rows: Iterable[Mapping[str, Any]], measure: str) -> None:
        hits: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            arm, _, seed = str(row["arm"]).partition("@")
            hits[arm, seed][row["task"]].append(float(row[measure]))
        self._means = {
            key: {task: 100 * float(np.mean(some)) for task, some in tasks.items()} for key, tasks in hits.items()
        }
        self.arms = sorted({arm for arm, _ in self._means})
        self._seeds = {arm: sorted(s for a, s in self._means if a == arm) for arm in self.arms}

    def tasks(self, arm: str) -> set[str]:
        """Those that every training of the arm was drawn on."""
        return set.intersection(*(set(self._means[arm, s]) for s in self._seeds[arm]))

    def share(self, arm: str) -> float:
        tasks = sorted(self.tasks(arm))
        return float(np.mean([[self._means[arm, s][t] for t in tasks] for s in self._seeds[arm]]))

    def trainings(self, arm: str) -> int:
        return len([s for s in self._seeds[arm] if s])

    def contrast(self, one: str, other: str, clusters: Callable[[str], str] | None = None) -> list[float] | None:
        """[points, low, high]: 95 % over tasks (or what `clusters` names for each) and trainings; None: not drawn."""
        if one not in self.arms or other not in self.arms:
            return None
        seeds = [s for s in self._seeds[one] if s in self._seeds[other] or "" in self._seeds[other]]
        if seeds == [""] and "" not in self._seeds[other]:
            return None
        tasks = sorted(self.tasks(one) & self.tasks(other))
        if not tasks or not seeds:
            return None
        values_TS = np.array([
            [self._means[one, s][t] - self._means[other, s if s in self._seeds[other] else ""][t] for s in seeds]
            for t in tasks
        ])  # fmt: skip
        names = [clusters(t) for t in tasks] if clusters else []
        weights = stats.task_weights(len(set(names)) or len(tasks), RESAMPLES, seed=0)
        found = stats.mean_interval(values_TS, names, weights, level=0.95, low=-100.0, high=100.0)
        return [float(values_TS.mean()), found.low, found.high]


def interval(value: Sequence[float] | None) -> str:
    return "–" if value is None else f"{value[0]:+.1f} [{value[1]:+.1f}, {value[2]:+.1f}]"


def first_and_last(metrics: Path) -> dict[str, list[float]]:
    """Mean of each loss term over the first and the last tenth of the steps."""
    rows = lines(metrics)
    tenth = max(1, len(rows) // 10)
    return {
        term: [round(float(np.mean([r[term] for r in some])), 4) for some in (rows[:tenth], rows[-tenth:])]
        for term in ("kl_teacher", "kl_foreign", "cross_entropy")
        if rows and term in rows[0]
    }


def shuffled(names: Iterable[str], seed: str) -> list[str]:
    found = sorted(names)
    random.Random(seed).shuffle(found)
    return found
