"""The memory evolves: adapters are measured, consolidated, updated, merged and forgotten.

    consolidate   adapters of one domain's tasks → one of the domain, made from all their trajectories
    update        an adapter and trajectories that came since → one made from all of them, in its place
    merge         two adapters → one, by an operator on their weights
    forget        out of selection, never deleted

What is made is measured before anything is decided, on the same tasks as what it was made from. A merge is kept only
if the interval of its fitness lies above both parents' fitness; a consolidated or updated adapter if its fitness is no
less than that of the best adapter it was made from. Whatever is not kept is archived with its numbers. An operation is
one transaction, and one row that is enough to do it again; none is done twice, so a stopped evolution goes on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from rune import console
from rune.adapters.registry import operations
from rune.adapters.registry.records import Entry, Fitness, MadeFrom, Operation, Place, Source
from rune.adapters.registry.registry import Registry
from rune.config import plain
from rune.errors import ContaminationError, DataError
from rune.runs.store import now
from rune.study import fitness as fitnesses
from rune.types import AdapterRef

if TYPE_CHECKING:
    from rune.adapters.peft import Adapter
    from rune.adapters.registry.intake import Prepared

BATCH = 500  # passes kept in one transaction


class Tasks(NamedTuple):
    """Held-out tasks that an adapter of some domains is measured on."""

    inside: tuple[str, ...]  # of these domains
    outside: tuple[str, ...]  # of others


class Wanted(NamedTuple):
    """An adapter and the tasks it is still to be drawn on."""

    ref: AdapterRef
    tasks: tuple[str, ...]


class Found(NamedTuple):
    """Passes of one adapter on one task."""

    adapter: str  # AdapterRef.adapter_id
    task: str
    passes: int
    draws: int


class Evaluator(Protocol):
    """Draws programs under an adapter and judges them."""

    draws: int  # for each task and adapter

    @property
    def protocol(self) -> str:
        """Digest of all that a pass depends on but the adapter."""

    def tasks(self, domains: Sequence[str]) -> Tasks:
        """What adapters of these domains are measured on. Raises DataError for a domain without held-out tasks."""

    def measure(self, wanted: Sequence[Wanted]) -> Iterator[Found]:
        """Passes, in any order. What was yielded is kept, whatever happens after."""


class Generator(Protocol):
    """Makes an adapter from trajectories: a hypernetwork, or fine-tuning, and a corpus."""

    name: str  # digest of what it makes adapters with

    def known(self, domain: str) -> list[Source]:
        """Trajectories of a domain that are at hand."""

    def make(self, sources: Sequence[Source]) -> Adapter:
        """One adapter from all of these. Raises DataError for one that is not at hand."""


class Remake(Protocol):
    """Step → the adapter that it makes, before anything of it is in the registry."""

    def __call__(self, step: Step) -> Prepared: ...


@dataclass(frozen=True, kw_only=True)
class Step:
    """An operation that makes an adapter, before it is done."""

    kind: str
    inputs: tuple[Entry, ...]
    place: Place
    arguments: Mapping[str, Any]
    sources: tuple[Source, ...]
    notes: Mapping[str, Any] = field(default_factory=dict)  # what was measured before, and decides nothing

    @property
    def key(self) -> str:
        return operations.key(self.kind, [entry.id for entry in self.inputs], self.arguments)


@dataclass(kw_only=True)
class Evolved:
    """What an evolution did, and what it left for want of draws."""

    measured: list[Entry] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # what the budget did not reach, in words
    draws: int = 0


class Evaluation:
    """Measures adapters of one registry within a budget of draws, once for each task."""

    def __init__(self, registry: Registry, evaluator: Evaluator, *, alpha: float, budget: int) -> None:
        """`budget`: draws under this protocol over all calls, those of earlier ones too. Raises ConfigError for α."""
        fitnesses.check_alpha(alpha)
        self.registry, self.evaluator, self.alpha, self.budget = registry, evaluator, alpha, budget

    @property
    def remaining(self) -> int:
        return self.budget - operations.spent(self.registry, self.evaluator.protocol)

    def domains(self, entry: Entry) -> tuple[str, ...]:
        """What an adapter is about: its domain, or those of the adapters that a project's adapter was made from."""
        if entry.place.domain:
            return (entry.place.domain,)
        above = [self.registry.get(edge.parent) for edge in self.registry.lineage(entry.id).ancestors]
        return tuple(sorted({e.place.domain for e in above if e.place.domain}))

    def missing(self, ref: AdapterRef, domains: Sequence[str], sources: Iterable[Source]) -> Wanted:
        """What is left to draw. Raises ContaminationError if a task is scored that the adapter was made from."""
        tasks = self.evaluator.tasks(domains)
        scored = dict.fromkeys((*tasks.inside, *tasks.outside))
        if seen := sorted({s.task_id for s in sources} & scored.keys()):
            raise ContaminationError(
                f"adapter {ref.adapter_id[:12]} was made from task '{seen[0]}', which is scored; make it from other "
                "tasks: `rune adapters evolve --dry-run` lists the scored ones"
            )
        known = operations.known_passes(self.registry, ref.adapter_id, self.evaluator.protocol)
        return Wanted(ref, tuple(task for task in scored if task not in known))

    def cost(self, wanted: Sequence[Wanted]) -> int:
        """Draws; an adapter that is wanted twice is drawn once for each task."""
        return self.evaluator.draws * len({(w.ref.adapter_id, task) for w in wanted for task in w.tasks})

    def draw(self, wanted: Sequence[Wanted]) -> None:
        """Draw what is wanted and keep what is found, also if it is stopped on the way."""
        together: dict[str, Wanted] = {}
        for one in wanted:
            before = together.get(one.ref.adapter_id)
            tasks = dict.fromkeys((*(before.tasks if before else ()), *one.tasks))
            together[one.ref.adapter_id] = Wanted(one.ref, tuple(tasks))
        left = [one for one in together.values() if one.tasks]
        if not left:
            return
        found: list[tuple[str, str, int, int]] = []
        try:
            for one_found in self.evaluator.measure(left):
                found.append(tuple(one_found))  # type: ignore[arg-type]
                if len(found) >= BATCH:
                    operations.add_passes(self.registry, self.evaluator.protocol, found)
                    found = []
        finally:
            operations.add_passes(self.registry, self.evaluator.protocol, found)

    def rates(self, digests: Sequence[str], domain: str) -> dict[str, float]:
        """pass@1 of adapters on one domain's tasks: what a merge gives and takes on the tasks of each parent."""
        tasks = self.evaluator.tasks([domain]).inside
        found = {}
        for digest in digests:
            known = operations.known_passes(self.registry, digest, self.evaluator.protocol)
            found[digest] = math.fsum(known[task][0] / known[task][1] for task in tasks) / len(tasks)
        return found

    def fitness(self, digest: str, domains: Sequence[str]) -> Fitness:
        """φ from what was drawn. Raises DataError if a task was not."""
        known = operations.known_passes(self.registry, digest, self.evaluator.protocol)
        tasks = self.evaluator.tasks(domains)
        if lacking := [t for t in (*tasks.inside, *tasks.outside) if t not in known]:
            raise DataError(f"adapter {digest[:12]}: task '{lacking[0]}' was not measured; run the evolution again")
        return fitnesses.fitness(
            {task: known[task] for task in tasks.inside},
            {task: known[task] for task in tasks.outside},
            alpha=self.alpha,
            protocol=self.evaluator.protocol,
            measured=now(),
        )


def measure(evaluation: Evaluation, entries: Sequence[Entry], outcome: Evolved) -> None:
    """Fitness of entries on their own domains, as far as the budget goes; what is known is not drawn again."""
    registry, wanted, chosen, cost = evaluation.registry, [], [], 0
    for entry in entries:
        domains = evaluation.domains(entry)
        if not domains:
            outcome.left.append(f"{entry.short}: an adapter of the whole project, made from none of a domain")
            continue
        ref = registry.ref(entry, base=entry.base)
        one = evaluation.missing(ref, domains, registry.sources(entry.id))
        if cost + evaluation.cost([one]) > evaluation.remaining:
            outcome.left.append(f"measure {entry.short}: {evaluation.cost([one])} draws")
            continue
        cost += evaluation.cost([one])
        wanted.append(one)
        chosen.append((entry, domains))
    evaluation.draw(wanted)
    outcome.draws += cost
    for entry, domains in chosen:
        found = evaluation.fitness(entry.id, domains)
        last = registry.fitness(entry.id)[-1:]
        if not any((f.protocol, f.alpha, f.draws) == (found.protocol, found.alpha, found.draws) for f in last):
            registry.set_fitness(entry.id, found)
            outcome.measured.append(registry.get(entry.id))


def perform(evaluation: Evaluation, steps: Sequence[Step], remake: Remake, outcome: Evolved) -> None:
    """Make, measure together, decide one by one. Steps that are done are passed over, those over the budget left."""
    registry = evaluation.registry
    with registry.database.files(alone=False):  # what was made is not yet named by an entry: nobody may sweep it away
        made: list[tuple[Step, Prepared, tuple[str, ...]]] = []
        wanted: list[Wanted] = []
        for step in steps:
            if operations.done(registry, step.key):
                continue
            ready = remake(step)
            if registry.has(ready.draft.id):
                outcome.left.append(f"{step.kind}: makes adapter {ready.draft.id[:12]}, which is there already")
                continue
            registry.keep_files(ready.draft.id, ready.config, ready.weights)
            draft = ready.draft
            ref = AdapterRef(
                adapter_id=draft.id,
                base_model=draft.base,
                rank=draft.rank,
                delta_w_norm=draft.delta_w_norm,
            )
            domains = tuple(sorted({d for entry in step.inputs for d in evaluation.domains(entry)}))
            more = [evaluation.missing(ref, domains, step.sources)]
            more += [
                evaluation.missing(registry.ref(entry, base=draft.base), domains, registry.sources(entry.id))
                for entry in step.inputs
            ]
            if evaluation.cost([*wanted, *more]) > evaluation.remaining:
                outcome.left.append(f"{step.kind} {' '.join(e.short for e in step.inputs)}")
                continue
            wanted += more
            made.append((step, ready, domains))
        outcome.draws += evaluation.cost(wanted)
        evaluation.draw(wanted)
        for step, ready, domains in made:
            outcome.operations.append(_decide(evaluation, step, ready, domains))


def _decide(evaluation: Evaluation, step: Step, ready: Prepared, domains: Sequence[str]) -> Operation:
    registry = evaluation.registry
    result = evaluation.fitness(ready.draft.id, domains)
    inputs = {entry.id: evaluation.fitness(entry.id, domains) for entry in step.inputs}
    best = max(found.value for found in inputs.values())
    kept = result.low > best if step.kind == "merge" else result.value >= best
    replaced = [entry.id for entry in step.inputs] if kept and step.kind == "update" else []
    operation = operations.commit(
        registry,
        kind=step.kind,
        inputs=[entry.id for entry in step.inputs],
        arguments=step.arguments,
        numbers={
            **step.notes,
            "result": numbers(result),
            "inputs": {digest: numbers(found) for digest, found in inputs.items()},
            "domains": {d: evaluation.rates([ready.draft.id, *inputs], d) for d in domains},
        },
        made=ready.draft,
        kept=kept,
        fitness=[(result, True)],
        archive=replaced,
        successor=dict.fromkeys(replaced, ready.draft.id),
    )
    console.note(
        f"{step.kind} {' '.join(e.short for e in step.inputs)} → {operation.result[:12]}: φ {result.value:.3f} "
        f"[{result.low:.3f}, {result.high:.3f}], best input {best:.3f}: {'kept' if kept else 'archived'}"
    )
    return operation


def weak(entries: Sequence[Entry], below: float) -> list[Entry]:
    """Measured adapters whose whole interval of φ lies below a fitness."""
    return [e for e in entries if e.fitness_high is not None and e.fitness_high < below]


def forget(registry: Registry, entries: Sequence[Entry], *, below: float, outcome: Evolved) -> None:
    """Archive the weak."""
    for entry in weak(entries, below):
        reason = f"φ {entry.fitness:.3f}, interval up to {entry.fitness_high:.3f}, below {below:g}"
        outcome.operations.append(operations.forget(registry, [entry], reason=reason))


def numbers(found: Fitness) -> dict[str, Any]:
    """A fitness as JSON."""
    raw: dict[str, Any] = plain(found)
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in raw.items()}


def made_from(step: Step, *, how: str, hypernet: str = "", weights: Sequence[float] = ()) -> MadeFrom:
    """What the entry of a step's result says of where it comes from."""
    shares = weights or [1.0] * len(step.inputs)
    parents = tuple((entry.id, float(w)) for entry, w in zip(step.inputs, shares, strict=True))
    return MadeFrom(sources=step.sources, hypernet=hypernet, how=how, parents=parents)
