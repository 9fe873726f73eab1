"""How a generator of outer products is trained: to do in passes what fine-tuning on the same solutions does.

1. Each task with solved siblings (other tasks of its domain) gets a *teacher*: a LoRA of a few gradient steps on the
   siblings' solutions, which has not seen the task's own. All have the same initial weights.
2. A step draws sets of siblings' solutions, each of another domain while there are enough. The generator writes an
   adapter for each set; under it the base model should answer the task as it does under the teacher (`kl_teacher`), and
   another domain's task as it does bare (`kl_stranger`). With `recall`, the task asked about is one of those read.

Some domains take no part: before the first step and after the last, the same terms are measured on their tasks. These
are the steps and terms of the studies of updates (studies/adapter_lane.py).
"""

# Shapes: N adapters = examples of a step · P solution tokens of all rows · V vocabulary
from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rune import config as configs
from rune import console
from rune.adapters.factors import Adapters, Factors, select
from rune.config import derive_seed
from rune.errors import DataError
from rune.hypernet import losses, side_by_side
from rune.hypernet.base import Base, Text
from rune.hypernet.data import Corpus
from rune.hypernet.loop import Rate, Step, cut_metrics, fit
from rune.hypernet.objective import detached_term
from rune.hypernet.outer_products import MODULES, OuterProducts, observe, write
from rune.hypernet.settings import OuterProductsTraining, Schedule
from rune.runs import store
from rune.types import Trajectory

HELD_OUT_TASKS = 64  # of the withheld domains, at most; more change the mean little and cost time
PHASE, HELD_OUT_PHASE = "hypernet", "held_out"  # in metrics.jsonl


class Job(NamedTuple):
    """A task, and what an adapter for it is made from."""

    task_id: str
    benchmark: str
    domain: str
    targets: tuple[Text, ...]  # its own solutions
    lessons: tuple[Text, ...]  # its siblings'


class Example(NamedTuple):
    """Solutions that an adapter is made from, and the one that it should make likely as the teacher of `job` does."""

    job: Job
    sources: tuple[Text, ...]
    target: Text


def train(
    base: Base,
    trajectories: Sequence[Trajectory],
    config: OuterProductsTraining,
    *,
    seed: int,
    folder: Path,
    teachers: Path,
    metrics: Path,
) -> OuterProducts:
    """A generator, resumed from `folder` if it was begun there, on the base's device; its teachers lie in `teachers`.

    Raises DataError for a corpus without enough domains of two solved tasks, and if the loss is not finite.
    """
    training, withheld = withhold(jobs_of(base, trajectories, config), config, seed)
    known = Teachers(base, [*training, *withheld], config, seed, teachers)
    known.make()
    objective = Objective(base, training, withheld, known, config, seed)
    module = objective.untrained()
    if withheld and not (folder / "state.safetensors").is_file():
        _record(metrics, 0, objective.held_out(module))
    fit(module, rates(module), config.schedule, objective.step_of(module), folder=folder, metrics=metrics, phase=PHASE)
    if withheld:
        found = objective.held_out(module)
        _record(metrics, config.schedule.steps, found)
        console.note(f"held-out loss {found['loss']:.3f}, {len(objective.asked)} tasks of withheld domains")
    return module.eval()


# --------------------------------------------------------------------------- what is trained on


def jobs_of(base: Base, trajectories: Sequence[Trajectory], config: OuterProductsTraining) -> list[Job]:
    """Tasks with a solution that fits and a solved sibling whose solution fits, in the corpus' order."""
    corpus = Corpus(base, trajectories, max_tokens=config.generator.max_tokens)
    if corpus.too_long:
        longest = config.generator.max_tokens
        console.warn(f"{corpus.too_long} solutions of more than {longest} tokens (prompt included) are not read")
    domains: dict[str, list[int]] = defaultdict(list)
    tasks: dict[str, list[int]] = defaultdict(list)
    for number in corpus.texts:
        trajectory = corpus.trajectories[number]
        tasks[trajectory.task_id].append(number)
        if trajectory.domain:
            domains[trajectory.domain].append(number)
    found = []
    for task_id, own in tasks.items():
        first = corpus.trajectories[own[0]]
        siblings = [i for i in domains.get(first.domain, ()) if corpus.trajectories[i].task_id != task_id]
        targets = tuple(corpus.texts[i] for i in own if len(corpus.texts[i].ids) <= config.max_tokens)
        if siblings and targets:
            lessons = tuple(corpus.texts[i] for i in siblings)
            found.append(Job(task_id, first.benchmark, first.domain, targets, lessons))
    if left := len(tasks) - len(found):
        console.warn(
            f"{left} of {len(tasks)} tasks have no solved sibling, or no solution of at most {config.max_tokens} "
            "tokens; no adapter is trained for them"
        )
    return found


def withhold(jobs: Sequence[Job], config: OuterProductsTraining, seed: int) -> tuple[list[Job], list[Job]]:
    """Those that are trained on, and some of `config.withheld` of the domains (one at least), in random order.

    Raises DataError if too little is left to train on.
    """
    domains = sorted({j.domain for j in jobs}, key=lambda d: (derive_seed(seed, "withheld", d), d))
    count = max(1, round(config.withheld * len(domains))) if config.withheld else 0
    least = 2 if config.stranger else 1
    if len(domains) - count < least:
        raise DataError(
            f"{len(domains)} domains have two solved tasks that fit, {count} of them withheld, and a generator needs "
            f"{least} to train on; collect more, or set train.outer_products.withheld=0"
        )
    chosen = set(domains[:count])
    # In random order neighbours are of different domains: an example's stranger is the one before it.
    withheld = sorted(
        (j for j in jobs if j.domain in chosen), key=lambda j: (derive_seed(seed, "held out", j.task_id), j.task_id)
    )
    return [j for j in jobs if j.domain not in chosen], withheld[:HELD_OUT_TASKS]


class Examples:
    """The examples of a step; a function of the random stream alone."""

    def __init__(self, jobs: Sequence[Job], config: OuterProductsTraining) -> None:
        """Raises DataError for a share of a benchmark of which there is no task."""
        self.config, self.jobs = config, list(jobs)
        self.pools: dict[str, list[Job]] = defaultdict(list)
        for job in jobs:
            self.pools[job.benchmark].append(job)
        self.names = [name for name, share in config.shares.items() if share > 0]
        missing = next((name for name in self.names if name not in self.pools), None)
        if missing is not None:
            raise DataError(
                f"train.outer_products.shares: there is no task of {missing} to train on; "
                f"there are tasks of: {', '.join(sorted(self.pools))}"
            )
        weights = np.array([config.shares[name] for name in self.names])
        self.weights = weights / weights.sum() if self.names else weights

    def draw(self, rng: np.random.Generator) -> list[Example]:
        """One of each domain while there are enough."""
        found: list[Example] = []
        taken: set[str] = set()
        for _ in range(self.config.groups):
            for _ in range(50):
                job = self._job(rng)
                if job.domain not in taken:
                    break
            taken.add(job.domain)
            found.append(example(job, rng, self.config, recall=self.config.recall))
        return found

    def _job(self, rng: np.random.Generator) -> Job:
        pool = self.pools[self.names[int(rng.choice(len(self.names), p=self.weights))]] if self.names else self.jobs
        return pool[int(rng.integers(len(pool)))]


def example(job: Job, rng: np.random.Generator, config: OuterProductsTraining, *, recall: float) -> Example:
    """Some of a task's lessons in random order; the target is the task's own, or with chance `recall` one of them."""
    count = int(rng.integers(1, config.max_sources + 1))
    sources = tuple(job.lessons[i] for i in rng.permutation(len(job.lessons))[:count])
    short = [text for text in sources if len(text.ids) <= config.max_tokens]
    own = job.targets[int(rng.integers(len(job.targets)))]
    return Example(job, sources, short[0] if short and rng.random() < recall else own)


# --------------------------------------------------------------------------- teachers


class Teachers:
    """A LoRA of each task, fine-tuned on its lessons: some together in a file, read when they are asked for.

    A file's name holds a digest of all that it follows from, so one of other settings or texts is never taken for it.
    """

    def __init__(self, base: Base, jobs: Sequence[Job], config: OuterProductsTraining, seed: int, folder: Path) -> None:
        self.base, self.config, self.seed = base, config.teacher, seed
        self.dtype = next(p.dtype for p in base.model.parameters() if p.is_floating_point())
        size = self.config.together
        self.parts: dict[Path, list[Job]] = {}
        self.place: dict[str, tuple[Path, int]] = {}  # task → file, and which of its LoRAs
        for start in range(0, len(jobs), size):
            some = list(jobs[start : start + size])
            told = [base.ref.digest, str(self.dtype), seed, self.config, [(j.task_id, j.lessons) for j in some]]
            path = folder / f"{start // size:04}-{configs.digest(told)[:16]}.safetensors"
            self.parts[path] = some
            self.place |= {job.task_id: (path, n) for n, job in enumerate(some)}

    def make(self) -> None:
        """Fine-tune those that are not there yet."""
        config = self.config
        missing = {path: some for path, some in self.parts.items() if not path.is_file()}
        if not missing:
            return
        schedule = Schedule(steps=config.steps, learning_rate=config.learning_rate)
        left = sum(map(len, missing.values()))
        with console.Progress(
            "fine-tune teachers", len(self.place), unit="teacher", initial=len(self.place) - left
        ) as bar:
            for path, some in missing.items():
                made, curve = side_by_side.train(
                    self.base, [side_by_side.Lesson(j.task_id, j.lessons) for j in some], schedule,
                    rank=config.rank, alpha=config.alpha, rows=config.rows, seed=self.seed, start="common",
                    modules=config.modules,
                )  # fmt: skip
                flat = {
                    f"{module}.{side}": t.to(self.dtype).cpu().contiguous()
                    for module, factors in made.items()
                    for side, t in zip(("down", "up"), factors, strict=True)
                }
                store.write_atomic(path, save(flat))
                bar.advance(len(some), loss=f"{sum(curve[-1]) / len(some):.3f}")

    def of(self, examples: Sequence[Example]) -> dict[str, Factors]:
        """N adapters, on the base's device. Raises DataError for a damaged file."""
        read = [self._read(*self.place[e.job.task_id]) for e in examples]
        return {
            module: Factors(*(torch.cat([one[f"{module}.{side}"] for one in read], 1) for side in ("down", "up")))
            for module in self.config.modules
        }

    def _read(self, path: Path, number: int) -> dict[str, Tensor]:
        try:
            with safe_open(path, framework="pt") as file:
                return {
                    name: file.get_slice(name)[:, number : number + 1].to(self.base.device)
                    for name in file.keys()  # noqa: SIM118 (not a mapping)
                }
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path}: not readable ({error}); delete it, and `rune train` makes it again") from None


# --------------------------------------------------------------------------- the loss


class Objective:
    """The loss as a function of the step, and the same terms on what is withheld."""

    def __init__(
        self, base: Base, training: Sequence[Job], withheld: Sequence[Job], teachers: Teachers,
        config: OuterProductsTraining, seed: int,
    ) -> None:  # fmt: skip
        self.base, self.teachers, self.config, self.seed = base, teachers, config, seed
        self.examples = Examples(training, config)
        self.asked = [
            example(job, np.random.default_rng(derive_seed(seed, "held out sources", job.task_id)), config, recall=0.0)
            for job in withheld
        ]

    def untrained(self) -> OuterProducts:
        """A fresh generator, its sizes measured on one step's sets; a function of the seed and the corpus."""
        generator = self.config.generator
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(self.seed, "outer products"))
            module = OuterProducts(
                self.base.layout(MODULES),
                correction=generator.correction,
                passes=generator.passes,
                gradient=generator.gradient,
            ).to(self.base.device)
        some = self.examples.draw(np.random.default_rng(derive_seed(self.seed, "outer products sizes")))
        sets = [e.sources for e in some]
        module.calibrate(self.base, observe(self.base, sets, tokens=generator.tokens, gradient=generator.gradient))
        return module

    def step_of(self, module: OuterProducts) -> Callable[[int], Step]:
        """What `loop.fit` takes."""
        data = derive_seed(self.seed, "outer products data")

        def take(step: int) -> Step:
            examples = self.examples.draw(np.random.default_rng([data, step]))
            terms, tokens = self.terms(module, examples)
            return Step(self.loss(terms), terms, tokens)

        return take

    def loss(self, terms: dict[str, Tensor]) -> Tensor:
        """`cross_entropy` is told and not trained on."""
        stranger = terms.get("kl_stranger")
        return terms["kl_teacher"] + (0.0 if stranger is None else self.config.stranger * stranger)

    def terms(self, module: OuterProducts, examples: Sequence[Example]) -> tuple[dict[str, Tensor], int]:
        """Means over tokens, nats, and the tokens of the rows. The stranger of an example is the one before it."""
        base = self.base
        made = write(base, module, [e.sources for e in examples], tokens=self.config.generator.tokens)
        terms: dict[str, Tensor] = {}
        count = 0
        if self.config.stranger:  # first, as its pass through the base model leaves nothing behind
            terms["kl_stranger"], count = self._stranger(made, examples)
        rows = base.rows([e.target for e in examples])
        with torch.no_grad():
            teacher_PV = base.logits(rows, self.teachers.of(examples))
        own_PV = base.logits(rows, made)
        terms["kl_teacher"] = losses.kl(teacher_PV, own_PV)
        terms["cross_entropy"] = F.cross_entropy(own_PV.detach().float(), rows.label_P)
        return terms, count + rows.ids_BT.numel()

    def _stranger(self, made: Adapters, examples: Sequence[Example]) -> tuple[Tensor, int]:
        """KL(bare model ‖ with the adapter) on the target of another domain; 0 if there is no other."""
        apart = [n for n, e in enumerate(examples) if e.job.domain != examples[n - 1].job.domain]
        if not apart:
            return torch.zeros((), device=self.base.device), 0
        rows = self.base.rows([examples[n - 1].target for n in apart])
        with torch.no_grad():
            bare_PV = self.base.logits(rows, None)
        some = select(made, torch.tensor(apart, device=self.base.device))

        def term(applied: Adapters) -> Tensor:
            return losses.kl(bare_PV, self.base.logits(rows, applied))

        return (detached_term(some, term) if torch.is_grad_enabled() else term(some)), rows.ids_BT.numel()

    @torch.no_grad()
    def held_out(self, module: OuterProducts) -> dict[str, float]:
        """The loss and its terms on tasks of the withheld domains, each from its siblings: means over their tasks."""
        sums: dict[str, float] = defaultdict(float)
        for some in _batches(self.asked, self.config.groups):
            terms, _ = self.terms(module, some)
            for name, value in {"loss": self.loss(terms), **terms}.items():
                sums[name] += float(value) * len(some) / len(self.asked)
        return dict(sums)


def _batches(examples: Sequence[Example], most: int) -> Iterator[Sequence[Example]]:
    """Of equal size, as far as there is one: a last one alone would have no stranger."""
    count = -(-len(examples) // most)
    for n in range(count):
        yield examples[n * len(examples) // count : (n + 1) * len(examples) // count]


def rates(module: OuterProducts) -> list[Rate]:
    """Sizes of steps and inputs move freely, directions slowly; a step of the gate adds up over the whole state."""
    every = [
        Rate(list(module.log_gain_SY.parameters()), 10.0),
        Rate(list(module.scale_YI.parameters()), 5.0),
        Rate([*module.read_YWK.parameters(), *module.write_YKW.parameters()], 0.25),
        Rate(list(module.gate.parameters()), 0.02),
    ]
    return [rate for rate in every if rate.parameters]  # without a correction there is none


def _record(metrics: Path, step: int, terms: dict[str, float]) -> None:
    """A line of the phase of the held-out loss, in place of one that a killed start may have left."""
    cut_metrics(metrics, HELD_OUT_PHASE, step)
    with store.Appender(metrics) as log:
        log.write({"phase": HELD_OUT_PHASE, "step": step, **terms})
