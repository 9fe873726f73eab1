"""What measures and makes adapters for real: the stages that draw and judge in every experiment, and the hypernetwork
or fine-tuning.

A batch of measurements is a folder `measurements/<protocol>/<batch>/` in the registry, in the shapes of a run:
problems.jsonl, treatments.jsonl, samples.jsonl, verdicts.jsonl. Draws and verdicts are there when they are made, so a
stopped measurement goes on; all adapters of a batch are drawn together. Draw i of a task has the same seed under
every adapter.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rune import config, plugins
from rune.adapters.registry.objects import Objects
from rune.adapters.registry.records import Source
from rune.corpus import reading
from rune.errors import ConfigError, DataError
from rune.runs import store
from rune.sandbox.judging import verdict_cache
from rune.stages import sample, score
from rune.study.cells import problems
from rune.study.evolution import Found, Tasks, Wanted
from rune.study.machines import Machines
from rune.study.memory import MemoryConfig
from rune.types import ModelRef, Outcome, Problem, Split, Trajectory, Treatment, Verdict

if TYPE_CHECKING:
    from rune.adapters.peft import Adapter
    from rune.hypernet.base import Base
    from rune.hypernet.export import AdapterGenerator


class EngineEvaluator:
    """An `evolution.Evaluator`: programs of the config's engine, judged in its sandbox."""

    def __init__(self, settings: MemoryConfig, folder: Path) -> None:
        """`folder` is the registry's. Raises ConfigError for a part or setting that is not there."""
        for kind, part, where in (
            ("benchmarks", settings.benchmark, "benchmark.settings"),
            ("engines", settings.engine, "engine.settings"),
        ):
            config.build(plugins.load(kind, part.name).Config, part.settings, where=where)
        self._settings, self._folder = settings, folder
        self._machines = Machines(settings, "memory", together=1, adapters=Objects(folder / "objects"))
        self._context = self._machines.context(settings.evolve.seed)
        self.draws = settings.sample.n

    @property
    def model(self) -> ModelRef:
        return self._context.model()

    @property
    def device(self) -> str:
        return self._context.device

    @property
    def dtype(self) -> str:
        return self._context.dtype

    @functools.cached_property
    def _by_domain(self) -> dict[str, list[Problem]]:
        """The tasks of each domain that are scored: chosen by the seed, the same for every adapter."""
        wanted = self._settings.evolve.inside
        found: dict[str, list[Problem]] = defaultdict(list)
        for problem in self._in_order(problems(self._settings.benchmark)):
            if not problem.domain:
                continue
            if (not wanted and problem.split is Split.HELD_OUT) or len(found[problem.domain]) < wanted:
                found[problem.domain].append(problem)
        if not any(found.values()):
            raise ConfigError(
                f"[benchmark] {self._settings.benchmark.name}: no task has a domain and is held out; "
                "set evolve.inside, or choose a benchmark with domains (families, api_updates)"
            )
        return dict(found)

    @functools.cached_property
    def _elsewhere(self) -> list[Problem]:
        section = self._settings.elsewhere
        if section is not None:
            return self._in_order(problems(section))
        return self._in_order([p for tasks in self._by_domain.values() for p in tasks])

    @functools.cached_property
    def _problems(self) -> dict[str, Problem]:
        """All that may be scored, by id."""
        inside = [p for tasks in self._by_domain.values() for p in tasks]
        return {p.task_id: p for p in (*inside, *self._elsewhere)}

    def _in_order(self, tasks: Sequence[Problem]) -> list[Problem]:
        """By chance, as the seed says; another task that comes in moves no other."""

        def place(problem: Problem) -> str:
            return hashlib.sha256(f"{self._settings.evolve.seed}/{problem.task_id}".encode()).hexdigest()

        return sorted(tasks, key=place)

    @functools.cached_property
    def protocol(self) -> str:
        settings = self._settings
        tasks = sorted(self._problems.values(), key=lambda p: p.task_id)
        chosen = {domain: [p.task_id for p in found] for domain, found in sorted(self._by_domain.items())}
        return config.digest(
            {
                "model": self.model.digest,
                "dtype": self._context.dtype,
                "engine": config.plain(settings.engine),
                "sample": config.plain(settings.sample),
                "score": config.plain(settings.score),
                "scorer": verdict_cache.SCORER,
                "seed": settings.evolve.seed,
                "outside": settings.evolve.outside,
                "inside": chosen,
                "tasks": config.digest([config.plain(p) for p in tasks]),
            }
        )

    def tasks(self, domains: Sequence[str]) -> Tasks:
        for domain in domains:
            if not self._by_domain.get(domain):
                near = plugins.unknown("domain with held-out tasks", domain, sorted(self._by_domain)[:20])
                raise DataError(f"[benchmark] {self._settings.benchmark.name}: {near}")
        inside = [p.task_id for domain in domains for p in self._by_domain[domain]]
        others = [p.task_id for p in self._elsewhere if p.domain not in domains and p.task_id not in inside]
        return Tasks(tuple(inside), tuple(others[: self._settings.evolve.outside]))

    def measure(self, wanted: Sequence[Wanted]) -> Iterator[Found]:
        """Raises AdapterError, EngineError, SandboxError; what was drawn and judged before stays in the folder."""
        tasks = sorted({task for one in wanted for task in one.tasks})
        treatments = [
            Treatment(task_id=task, condition=one.ref.adapter_id, adapter=one.ref)
            for one in wanted
            for task in one.tasks
        ]
        treatments.sort(key=lambda t: (t.condition, t.task_id))
        batch = config.digest([(t.condition, t.task_id) for t in treatments])[:16]
        folder = store.RunDir(self._folder / "measurements" / self.protocol[:16] / batch)
        with store.writing(folder.path):
            folder.path.mkdir(parents=True, exist_ok=True)
        with folder.lock():
            store.write_jsonl(folder / "problems.jsonl", [self._problems[task] for task in tasks])
            store.write_jsonl(folder / "treatments.jsonl", treatments)
            sample.run(folder, self._settings.sample, self._context)
            score.run(folder, self._settings.score, self._context)
            counts: dict[tuple[str, str], list[bool]] = defaultdict(list)
            for verdict in store.read_jsonl(folder / "verdicts.jsonl", Verdict):
                counts[verdict.condition, verdict.task_id].append(verdict.outcome is Outcome.PASSED)
        for (adapter, task), passed in sorted(counts.items()):
            yield Found(adapter, task, sum(passed), len(passed))

    def close(self) -> None:
        self._machines.close()


class _FromTrajectories:
    """What makers of adapters share: the config's trajectories, by their ids."""

    def __init__(self, settings: MemoryConfig) -> None:
        found = reading.read_all([Path(name) for name in settings.evolve.trajectories])
        found.check_exclusion([])
        self._trajectories = {t.trajectory_id: t for t in found.trajectories}

    def known(self, domain: str) -> list[Source]:
        return [
            Source(trajectory_id=t.trajectory_id, task_id=t.task_id)
            for t in self._trajectories.values()
            if t.domain == domain
        ]

    def _chosen(self, sources: Sequence[Source]) -> list[Trajectory]:
        """Raises DataError for one that is not at hand."""
        for source in sources:
            if source.trajectory_id not in self._trajectories:
                raise DataError(
                    f"evolve.trajectories: trajectory {source.trajectory_id} is not among them, and an adapter was "
                    "made from it; add its file"
                )
        return [self._trajectories[source.trajectory_id] for source in sources]


class Hypernetwork(_FromTrajectories):
    """An `evolution.Generator`: the config's checkpoint and its trajectories."""

    def __init__(self, settings: MemoryConfig, model: ModelRef) -> None:
        super().__init__(settings)
        self._checkpoint, self._model = Path(settings.evolve.checkpoint), model
        self._strength = settings.evolve.strength
        self._maker: AdapterGenerator | None = None  # loaded when the first adapter is made
        weights = self._checkpoint / "model.safetensors"
        if not weights.is_file():
            raise ConfigError(
                f"evolve.checkpoint: {self._checkpoint}: no checkpoint (no {weights.name}); "
                "give the folder of a trained hypernetwork"
            )
        self.name = store.sha256_file(weights)

    def make(self, sources: Sequence[Source]) -> Adapter:
        from rune.hypernet import export

        chosen = self._chosen(sources)
        if self._maker is None:
            self._maker = export.outside(self._checkpoint, self._model, device="cpu")
        return export.adapter_from(self._maker, chosen, strength=self._strength).adapter


class FineTuning(_FromTrajectories):
    """An `evolution.Generator`: gradient steps on the solutions, from initial weights that all adapters share.

    On a GPU the sums of a backward pass may be taken in another order: the same trajectories give nearly the same
    numbers there, and on a CPU the same bytes.
    """

    def __init__(self, settings: MemoryConfig, model: ModelRef, *, device: str, dtype: str) -> None:
        super().__init__(settings)
        if settings.evolve.tune is None:
            raise ConfigError("evolve.tune is not set; it says how an adapter is fine-tuned")
        self._how, self._seed = settings.evolve.tune, settings.evolve.seed
        self._model, self._device, self._dtype = model, device, dtype
        self._base: Base | None = None  # loaded when the first adapter is made
        self.name = config.digest(["fine-tuning", config.plain(self._how), self._seed, model.digest, dtype])

    def make(self, sources: Sequence[Source]) -> Adapter:
        return self.make_all([sources])[0]

    def make_all(self, sets: Sequence[Sequence[Source]]) -> list[Adapter]:
        """An adapter a set, many in one batch: each is what it would be alone, but for rounding.

        Raises DataError for a set without a solution that is short enough.
        """
        from rune.adapters import convert
        from rune.adapters.factors import select
        from rune.hypernet import base as bases
        from rune.hypernet import side_by_side
        from rune.hypernet.settings import MODULES, Schedule

        how = self._how
        if self._base is None:
            self._base = bases.load(self._model, device=self._device, dtype=self._dtype)
        base, lessons = self._base, []
        for sources in sets:
            solved = [t for t in self._chosen(sources) if t.solved]
            texts = (base.encode(t.prompt, t.solution, answer=t.answer) for t in solved)
            short = tuple(text for text in texts if len(text.ids) <= how.max_tokens)
            if not short:
                raise DataError(
                    f"none of the trajectories {', '.join(s.trajectory_id for s in sources)} has a solution of at most "
                    f"{how.max_tokens} tokens; raise evolve.tune.max_tokens"
                )
            lessons.append(side_by_side.Lesson(" ".join(s.trajectory_id for s in sources), short))
        schedule = Schedule(steps=how.steps, learning_rate=how.learning_rate, checkpoint_every=how.steps)
        made = []
        for first in range(0, len(lessons), how.together):
            some = lessons[first : first + how.together]
            whole, _ = side_by_side.train(
                base, some, schedule, rank=how.rank, alpha=how.alpha, rows=how.rows, seed=self._seed, start="common"
            )
            on_cpu = {m: type(f)(*(t.cpu() for t in f)) for m, f in whole.items()}
            made += [select(on_cpu, slice(n, n + 1)) for n in range(len(some))]
        layout = base.layout(MODULES)
        return [convert.to_adapter(factors, layout, base_model=self._model.digest) for factors in made]


def generator(settings: MemoryConfig, evaluator: EngineEvaluator) -> Hypernetwork | FineTuning | None:
    """What makes adapters from trajectories, as the config says; None if it names nothing."""
    if settings.evolve.checkpoint:
        return Hypernetwork(settings, evaluator.model)
    if settings.evolve.tune:
        return FineTuning(settings, evaluator.model, device=evaluator.device, dtype=evaluator.dtype)
    return None


@contextlib.contextmanager
def opened(settings: MemoryConfig, folder: Path) -> Iterator[EngineEvaluator]:
    """The evaluator of a config; engine and sandbox end with the block."""
    evaluator = EngineEvaluator(settings, folder)
    try:
        yield evaluator
    finally:
        evaluator.close()
