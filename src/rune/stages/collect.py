"""problems (train split) → trajectories.jsonl, by the loop in agent/loop.py and by import.

Reads problems.jsonl. Writes attempts.jsonl (every attempt as it happens: the loop resumes from it),
trajectories.jsonl (what is kept) and corpus.json (the summary). A held-out task, or a relative of one,
never gets in: the loop is given train tasks only, and the finished corpus is checked before it is written.

Where whole domains are held out, what a task is given comes from other tasks of its domain. Those trajectories are
shown.jsonl: retrieved from, and never trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from rune import console
from rune.agent import loop
from rune.config import ADDED, derive_seed, digest, plain
from rune.corpus import exclusion, reading, summary
from rune.errors import DataError
from rune.models import chat
from rune.runs import store
from rune.stages.context import Context
from rune.types import Attempt, Outcome, Problem, Sampling, Split, Trajectory

SHOWN = "shown.jsonl"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of `[collect]`."""

    tasks: int  # train tasks to work on, stratified by category; 0 = all
    chains: int  # independent chains a task
    max_attempts: int  # programs a chain may try
    temperature: float
    max_new_tokens: int
    top_p: float = 1.0
    top_k: int = 0
    reflect: bool = True  # one sentence by the model on its mistake before it tries again
    history: int = 2  # failed attempts shown in the prompt: more did not fit a 2k context
    restart: int = 0  # every so many attempts the model starts afresh, without the history; 0 = never
    error_chars: int = 1000  # error text kept of an attempt, middle cut
    keep: int = 100  # of its own trajectories at most; imports are added to them
    keep_per_task: int = 1
    wave: int = 512  # chains worked on together
    imports: tuple[str, ...] = ()  # trajectory files to add, see `rune collect --import`
    # Files of held-out domains: tasks are given what is in them, and nothing trains on it.
    shown: tuple[str, ...] = field(default=(), metadata=ADDED)

    def __post_init__(self) -> None:
        for name in ("chains", "max_attempts", "max_new_tokens", "keep", "keep_per_task", "wave"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.tasks < 0:
            raise ValueError(f"tasks must be 0 (all) or more, found {self.tasks}")
        if self.temperature < 0:
            raise ValueError(f"temperature must not be negative, found {self.temperature}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One line of attempts.jsonl."""

    task_id: str
    chain: int
    step: int
    attempt: Attempt


def run(
    folder: store.RunDir,
    config: Config,
    context: Context,
    *,
    attempts: Path | None = None,
    asked: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[Trajectory]:
    """Work on the train tasks, add imports, keep, check, write. Returns what was written.

    `attempts`: a file that several runs share, in place of the folder's own; `asked`: task id → calls whose values it
    asks for. Raises ContaminationError if an import holds a held-out task or a relative of one, or if it or what is
    shown holds a call that a held-out task asks for.
    """
    problems = store.read_jsonl(folder / "problems.jsonl", Problem)
    held_out = [p for p in problems if p.split is Split.HELD_OUT]
    by = exclusion.kept_apart(problems)
    train = choose([p for p in problems if p.split is Split.TRAIN], config.tasks, seed=context.seed)
    found = reading.read_all([Path(file) for file in config.imports])
    found.check_exclusion(held_out, by=by)
    calls = {call: p.task_id for p in held_out for call in asked.get(p.task_id, ())}
    found.check_asked(calls)
    given = shown(config.shown, calls) if config.shown else []
    own, excluded = exclusion.decontaminate(
        work(attempts or folder / "attempts.jsonl", config, context, train), held_out, by=by
    )
    if excluded.dropped:
        console.note(f"collect: left out {', '.join(f'{n} × {why}' for why, n in excluded.dropped.items())}")
    kept = keep(own, limit=config.keep, per_task=config.keep_per_task) + found.trajectories
    exclusion.check_corpus(kept, held_out, where=str(folder / "trajectories.jsonl"), by=by)
    store.write_jsonl(folder / "trajectories.jsonl", kept)
    if config.shown:
        store.write_jsonl(folder / SHOWN, given)
    report = summary.summarise(kept)
    store.write_json(folder / "corpus.json", {**plain(report), "excluded": plain(excluded), **found.record()})
    console.note(summary.text(report))
    if config.imports:
        console.note("\n".join(found.words()))
    return kept


def shown(files: Sequence[str], calls: Mapping[str, str]) -> list[Trajectory]:
    """What held-out tasks are given and nothing trains on. Raises DataError for a trajectory without a domain, and as
    `Imported.check_asked` does."""
    found = reading.read_all([Path(file) for file in files])
    found.check_exclusion([])
    found.check_asked(calls)
    for trajectory, place in zip(found.trajectories, found.places, strict=True):
        if not trajectory.domain:
            raise DataError(
                f"{place}: field 'domain' is empty; what is shown is for tasks of its domain alone: name it, or add "
                "the file to collect.imports"
            )
    return found.trajectories


def choose(problems: Sequence[Problem], count: int, *, seed: int) -> list[Problem]:
    """`count` tasks (0 = all), as even over categories as they allow, by a seeded order."""
    groups: dict[str, list[Problem]] = {}
    for problem in sorted(problems, key=lambda p: derive_seed(seed, "choose", p.task_id)):
        groups.setdefault(problem.category, []).append(problem)
    picked: list[Problem] = []
    while any(groups.values()) and (not count or len(picked) < count):
        for name in sorted(groups):
            if groups[name] and (not count or len(picked) < count):
                picked.append(groups[name].pop(0))
    return picked


def work(path: Path, config: Config, context: Context, train: Sequence[Problem]) -> list[Trajectory]:
    """Every chain of the loop as a trajectory; the attempts are written to `path` as they happen, and gone on from."""
    if not train:
        return []
    return [to_trajectory(c, source=context.model().name) for c in _loop(path, config, context, train)]


def _loop(path: Path, config: Config, context: Context, train: Sequence[Problem]) -> list[loop.Chain]:
    chains = {(p.task_id, i): loop.Chain(p, i) for p in train for i in range(config.chains)}
    store.repair(path) if path.exists() else None
    for step in store.read_jsonl(path, Step):
        chain = chains.get((step.task_id, step.chain))
        if chain is not None and step.step == len(chain.attempts):
            chain.attempts.append(step.attempt)
    model = context.model()
    settings = loop.Settings(
        max_attempts=config.max_attempts,
        sampling=Sampling(
            temperature=config.temperature,
            max_new_tokens=config.max_new_tokens,
            top_p=config.top_p,
            top_k=config.top_k,
        ),
        reflect=config.reflect,
        history=config.history,
        restart=config.restart,
        error_chars=config.error_chars,
        seed=context.seed,
    )
    everything = list(chains.values())
    done = sum(not c.open(config.max_attempts) for c in everything)
    if done == len(everything):
        return everything
    with (
        store.Appender(path) as log,
        console.Progress("collect", len(everything), unit="chain", initial=done) as bar,
    ):
        passed = sum(bool(c.attempts) and c.attempts[-1].outcome is Outcome.PASSED for c in everything)

        def on_attempt(chain: loop.Chain, attempt: Attempt) -> None:
            nonlocal passed
            number = len(chain.attempts) - 1
            log.write(Step(task_id=chain.problem.task_id, chain=chain.index, step=number, attempt=attempt))
            if not chain.open(config.max_attempts):
                passed += attempt.outcome is Outcome.PASSED
                bar.advance(passed=passed)

        for start in range(0, len(everything), config.wave):
            loop.work(
                everything[start : start + config.wave],
                settings,
                engine=context.engine(),
                sandbox=context.sandbox(),
                render=lambda c: chat.render(model, c),
                on_attempt=on_attempt,
            )
    return everything


def to_trajectory(chain: loop.Chain, *, source: str) -> Trajectory:
    """A finished chain as a record; `solution` is empty if it was exhausted."""
    problem = chain.problem
    last = chain.attempts[-1]
    solution = last.code if last.outcome is Outcome.PASSED else ""
    return Trajectory(
        trajectory_id=digest([problem.task_id, chain.index, list(chain.attempts)])[:16],
        task_id=problem.task_id,
        benchmark=problem.benchmark,
        prompt=problem.prompt,
        attempts=tuple(chain.attempts),
        solution=solution,
        category=problem.category,
        domain=problem.domain,
        source=source,
        answer=problem.scorer.answer,
    )


def keep(trajectories: Sequence[Trajectory], *, limit: int, per_task: int) -> list[Trajectory]:
    """At most `per_task` of each task and `limit` in all.

    Of one task the most instructive: a corrected failure before a first-try pass before an exhausted chain. Of all
    tasks, corrected failures first, then the others in an order that has nothing to do with how they ended, so that
    what the model could not solve stays in the corpus in its share.
    """

    def instructive(t: Trajectory) -> tuple[int, int, str]:
        kind = 0 if t.solved and len(t.attempts) > 1 else 1 if t.solved else 2
        return kind, len(t.attempts), t.trajectory_id

    taken: dict[str, int] = {}
    best: list[Trajectory] = []
    for trajectory in sorted(trajectories, key=instructive):
        if taken.get(trajectory.task_id, 0) < per_task:
            taken[trajectory.task_id] = taken.get(trajectory.task_id, 0) + 1
            best.append(trajectory)
    chosen = sorted(best, key=lambda t: (instructive(t)[0] != 0, t.trajectory_id))[:limit]
    order = {t.trajectory_id: i for i, t in enumerate(trajectories)}
    return sorted(chosen, key=lambda t: order[t.trajectory_id])
