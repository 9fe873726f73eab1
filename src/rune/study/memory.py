"""`rune adapters evolve --config X`: the whole configuration, and which operations an evolution consists of.

Paths in the config are relative to it. Reading one loads no torch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rune import config
from rune.adapters.merge_settings import Settings as MergeSettings
from rune.adapters.registry import operations
from rune.adapters.registry.records import Entry, Level, Operation, Place, Source, Status
from rune.adapters.registry.registry import Registry, View
from rune.conditions import tuned
from rune.errors import ConfigError, DataError
from rune.reporting import tracking
from rune.stages import sample, score
from rune.study import evolution, fitness
from rune.study.config import (
    BenchmarkSection,
    EngineSection,
    ModelSection,
    located_benchmark,
    located_model,
    path_at,
)
from rune.study.evolution import Evaluation, Evaluator, Evolved, Generator, Step

if TYPE_CHECKING:
    from rune.adapters.registry.intake import Prepared


@dataclass(frozen=True, kw_only=True)
class Evolve:
    """`[evolve]`: what is measured, and what may be done."""

    project: str
    seed: int  # of the draws, and of which tasks are scored
    budget: int  # draws in all, over every call with this config
    inside: int  # tasks of each domain that are scored: no adapter may be made from them; 0 = all that are held out
    outside: int  # tasks of other domains that every adapter is drawn on
    alpha: float = fitness.ALPHA  # the specified weight of the pass rate on its own domains
    consolidate: int = 0  # adapters of one domain's tasks that are enough to consolidate; 0: never
    update: bool = False  # make a domain's adapters again when there are trajectories that they were not made from
    merges: int = 0  # pairs that are merged
    order: Literal["alike", "apart"] | None = None  # which pairs first: of the highest or the lowest cosine of ΔW
    across: bool = False  # pairs of two domains too; their merge belongs to the project
    methods: tuple[MergeSettings, ...] = ()  # each pair is merged by each of these
    parent_weight: float = 0.5  # of each parent of a merge: 0.5 is their mean, 1 their sum
    forget_below: float = 0.0  # archive adapters whose whole interval of φ lies below
    trajectories: tuple[str, ...] = ()  # files and folders that `collect --import` reads
    checkpoint: str = ""  # the hypernetwork that makes adapters from them; or, instead of one:
    tune: tuned.Config | None = None  # they are fine-tuned, all from the same initial weights
    strength: float = 1.0  # λ on its trajectory part

    def __post_init__(self) -> None:
        if said := fitness.fault(self.alpha):
            raise ValueError(said)
        if min(self.budget, self.inside, self.outside, self.consolidate, self.merges) < 0:
            raise ValueError("budget, inside, outside, consolidate and merges must be 0 or more")
        if not 0 < self.parent_weight < math.inf:
            raise ValueError(f"parent_weight must be above 0, found {self.parent_weight:g}")
        if not 0 <= self.forget_below <= 1:
            raise ValueError(f"forget_below is compared with φ, which is 0 to 1; found {self.forget_below:g}")
        if self.consolidate == 1:
            raise ValueError("consolidate = 1 would copy single adapters; give 2 or more, or 0 for never")
        if self.merges and (not self.methods or self.order is None):
            raise ValueError("merges needs methods (for example [[evolve.methods]] method = 'svd') and order")
        if self.checkpoint and self.tune:
            raise ValueError("checkpoint and tune are two ways to make adapters; leave one out")
        if (self.consolidate or self.update) and not (self.trajectories and (self.checkpoint or self.tune)):
            raise ValueError("consolidate and update make adapters: set trajectories, and checkpoint or [evolve.tune]")


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """A config file of the memory."""

    model: ModelSection
    benchmark: BenchmarkSection  # its problems' domains are the adapters' domains
    sample: sample.Config
    score: score.Config
    evolve: Evolve
    engine: EngineSection = field(default_factory=EngineSection)
    elsewhere: BenchmarkSection | None = None  # tasks outside every domain; None: those of the other domains
    track: tracking.Config | None = None  # MLflow; None: not told


def load(path: Path, changes: Sequence[str] = ()) -> MemoryConfig:
    """Read a config and apply `--set`; its input paths are absolute after. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the config: {getattr(error, 'strerror', None) or error}") from None
    raw = config.override(config.parse(text, where=str(path)), changes)
    return located(config.build(MemoryConfig, raw), path.parent)


def located(settings: MemoryConfig, base: Path) -> MemoryConfig:
    """Settings whose input paths are absolute; `base` is what they are relative to."""
    evolve = settings.evolve
    trajectories = tuple(path_at(base, name) for name in evolve.trajectories)
    return replace(
        settings,
        model=located_model(settings.model, base),
        benchmark=located_benchmark(settings.benchmark, base),
        elsewhere=settings.elsewhere and located_benchmark(settings.elsewhere, base),
        evolve=replace(evolve, checkpoint=path_at(base, evolve.checkpoint), trajectories=trajectories),
    )


class Memory:
    """One project of a registry, what measures it, and what makes adapters for it."""

    def __init__(
        self,
        registry: Registry,
        settings: Evolve,
        evaluator: Evaluator,
        *,
        base: str,
        generator: Generator | None = None,
    ) -> None:
        """`base` is the base model's digest: adapters of others are passed over."""
        self.registry, self.settings, self.base, self.generator = registry, settings, base, generator
        self.evaluation = Evaluation(registry, evaluator, alpha=settings.alpha, budget=settings.budget)

    def evolve(self) -> Evolved:
        """Everything that is not done yet, in the order measure, consolidate, update, merge, forget.

        Raises DataError if the project has no active adapter of this base.
        """
        outcome = Evolved()
        evolution.measure(self.evaluation, self._some(), outcome)
        for steps in (self.consolidations, self.updates, self.merges):
            evolution.perform(self.evaluation, steps(), self.remake, outcome)
        evolution.forget(self.registry, self.entries(), below=self.settings.forget_below, outcome=outcome)
        return outcome

    def plan(self) -> dict[str, Any]:
        """What `evolve` would begin with, and what it costs at most; nothing is drawn, made or changed.

        What follows from measurements that are not there yet is not in it. Raises DataError as `evolve` does.
        """
        entries = self._some()
        wanted = [
            self.evaluation.missing(self.registry.ref(e, base=self.base), domains, self.registry.sources(e.id))
            for e in entries
            if (domains := self.evaluation.domains(e))  # one of the whole project, made from none of a domain, has none
        ]
        steps = [
            step
            for step in (*self.consolidations(), *self.updates(), *self.merges())
            if operations.done(self.registry, step.key) is None
        ]
        scored = sorted({d for e in entries for d in self.evaluation.domains(e)})
        return {
            "measure": [w.ref.adapter_id for w in wanted if w.tasks],
            "draws": self.evaluation.cost(wanted),
            "budget_left": max(0, self.evaluation.remaining),
            "operations": [
                {"kind": s.kind, "inputs": [e.id for e in s.inputs], "arguments": dict(s.arguments)} for s in steps
            ],
            "forget": [e.id for e in evolution.weak(entries, self.settings.forget_below)],
            "scored": {domain: list(self.evaluation.evaluator.tasks([domain]).inside) for domain in scored},
        }

    def _some(self) -> list[Entry]:
        found = self.entries()
        if not found:
            raise DataError(
                f"{self.registry.folder}: no active adapter of project '{self.settings.project}' and this base; "
                f"`rune adapters add DIR --project {self.settings.project}` brings one in"
            )
        return found

    def entries(self, level: Level | None = None) -> list[Entry]:
        """Active adapters of the project and the base."""
        view = View(project=self.settings.project, level=level, status=Status.ACTIVE, base=self.base)
        return self.registry.page(view, limit=1_000_000)

    # ------------------------------------------------------------------ which operations

    def consolidations(self) -> list[Step]:
        """One for each domain with enough adapters of its tasks."""
        if not self.settings.consolidate or self.generator is None:
            return []
        by_domain: dict[str, list[Entry]] = defaultdict(list)
        for entry in self.entries(Level.TASK):
            by_domain[entry.place.domain].append(entry)
        steps = []
        for domain, members in sorted(by_domain.items()):
            sources = self.sources(members)
            if len(members) >= self.settings.consolidate and sources:
                place = Place(project=self.settings.project, domain=domain)
                steps.append(self.step("consolidate", members, place, {"generator": self.generator.name}, sources))
        return steps

    def updates(self) -> list[Step]:
        """One for each domain's adapter that a hypernetwork made before some of the trajectories were there."""
        if not self.settings.update or self.generator is None:
            return []
        steps = []
        for entry in self.entries(Level.DOMAIN):
            had = self.sources([entry])
            scored = set(self.evaluation.evaluator.tasks([entry.place.domain]).inside)
            ids = {s.trajectory_id for s in had}
            new = [
                s
                for s in self.generator.known(entry.place.domain)
                if s.trajectory_id not in ids and s.task_id not in scored
            ]
            if new and had and entry.hypernet:
                steps.append(
                    self.step("update", [entry], entry.place, {"generator": self.generator.name}, (*had, *new))
                )
        return steps

    def merges(self) -> list[Step]:
        """Pairs at the level of domains, by how alike their ΔW are, each by each method."""
        settings = self.settings
        if not settings.merges:
            return []
        from rune.adapters import interference
        from rune.adapters.registry import intake

        entries = [e for e in self.entries(Level.DOMAIN) if not e.how.startswith("merge")]
        loaded = {e.id: intake.load(self.registry, e, base=self.base) for e in entries}
        pairs = [
            (interference.cosine(loaded[a.id], loaded[b.id]), a, b)
            for a, b in combinations(entries, 2)
            if settings.across or a.place == b.place
        ]
        pairs.sort(key=lambda p: (-p[0] if settings.order == "alike" else p[0], p[1].id, p[2].id))
        steps = []
        for cosine, a, b in pairs[: settings.merges]:
            place = a.place if a.place == b.place else Place(project=settings.project)
            for how in settings.methods:
                arguments = {"merge": config.plain(how), "weights": [settings.parent_weight] * 2}
                step = self.step("merge", [a, b], place, arguments, self.sources([a, b]))
                steps.append(replace(step, notes={"cosine": cosine}))
        return steps

    def step(
        self, kind: str, inputs: Sequence[Entry], place: Place, how: Mapping[str, Any], sources: Sequence[Source]
    ) -> Step:
        """With all that a result depends on among its arguments."""
        arguments = {**how, "protocol": self.evaluation.evaluator.protocol, "alpha": self.settings.alpha}
        in_order = tuple(sorted(sources, key=lambda s: s.trajectory_id))  # as the registry gives them back
        return Step(kind=kind, inputs=tuple(inputs), place=place, arguments=arguments, sources=in_order)

    def sources(self, entries: Sequence[Entry]) -> tuple[Source, ...]:
        """All trajectories of some adapters, each once."""
        return tuple({s.trajectory_id: s for e in entries for s in self.registry.sources(e.id)}.values())

    # ------------------------------------------------------------------ doing it, and doing it again

    def remake(self, step: Step) -> Prepared:
        """The adapter that a step makes: the same bytes whenever it is asked for.

        Raises DataError without the hypernetwork that the step was done with.
        """
        from rune.adapters import merging
        from rune.adapters.registry import intake

        first = step.inputs[0]
        if step.kind == "merge":
            how = config.build(MergeSettings, step.arguments["merge"], where="merge")
            weights = step.arguments["weights"]
            adapter = merging.merge(intake.load_all(self.registry, step.inputs), weights, how)
            about = evolution.made_from(step, how=f"merge {how.method}", weights=weights)
        else:
            if self.generator is None:
                raise DataError(
                    f"to {step.kind} is to make an adapter: set evolve.trajectories, and evolve.checkpoint or "
                    "[evolve.tune]"
                )
            if self.generator.name != step.arguments["generator"]:
                raise DataError(
                    f"another maker of adapters than the one that did this {step.kind}; set evolve.checkpoint or "
                    "evolve.tune to what it was"
                )
            adapter = self.generator.make(step.sources)
            about = evolution.made_from(step, how=step.kind, hypernet=self.generator.name)
        return intake.prepare(adapter, step.place, about, base_name=first.base_name, max_rank=self.registry.max_rank)

    def replay(self, operation: Operation) -> str:
        """Make an operation's result again from its inputs; returns its id. Raises DataError if it is another.

        Its weights are there afterwards, if they were removed before.
        """
        if not operation.result:
            raise DataError(
                f"operation {operation.number} ({operation.kind}) made no adapter; there is nothing to make again"
            )
        inputs = [self.registry.get(digest) for digest in operation.inputs]
        made = self.registry.get(operation.result)
        step = Step(
            kind=operation.kind,
            inputs=tuple(inputs),
            place=made.place,
            arguments=operation.arguments,
            sources=tuple(self.registry.sources(made.id)),
        )
        ready = self.remake(step)
        again = ready.draft.id
        if again != operation.result:
            raise DataError(
                f"operation {operation.number} gives adapter {again[:12]} now, it gave {operation.result[:12]}"
            )
        with self.registry.database.files(alone=False):
            self.registry.keep_files(again, ready.config, ready.weights)
        return again
