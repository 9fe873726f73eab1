"""The recursive loop: generate → execute → reflect → retry, until a program passes or the attempts run out.

A chain is one such sequence for one task, its history linear: what the model saw is the trajectory. Chains
advance together, one attempt a round, so that every round is one batch for the engine and one for the
sandbox. The loop owns no files: `on_attempt` hands out each attempt as soon as it is whole, and `resume`
takes them back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from rune import prompts
from rune.benchmarks.scorers import judging
from rune.benchmarks.scorers.judging import Item
from rune.config import derive_seed
from rune.types import Attempt, Engine, Execution, Outcome, Problem, Request, Sampling, Sandbox


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the loop works; all of it is data."""

    max_attempts: int  # programs a chain may try
    sampling: Sampling  # its stop strings are the task's
    reflect: bool  # ask the model for one sentence on its mistake before it tries again
    history: int  # failed attempts kept in the prompt, the last ones
    restart: int  # every so many attempts the model starts afresh, without the history; 0 = never
    error_chars: int  # error text kept of one attempt
    seed: int


@dataclass(slots=True)
class Chain:
    """One trajectory in the making."""

    problem: Problem
    index: int  # which of the task's chains
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def key(self) -> str:
        return f"{self.problem.task_id}#{self.index}"

    def open(self, max_attempts: int) -> bool:
        """Whether there is something left to try."""
        passed = bool(self.attempts) and self.attempts[-1].outcome is Outcome.PASSED
        return not passed and len(self.attempts) < max_attempts


def work(
    chains: Sequence[Chain],
    settings: Settings,
    *,
    engine: Engine,
    sandbox: Sandbox,
    render: Callable[[prompts.Chat], str],
    on_attempt: Callable[[Chain, Attempt], None],
) -> None:
    """Bring every chain to its end. Chains that already hold attempts go on from there.

    Raises EngineError and SandboxError; whatever was handed to `on_attempt` before stays valid.
    """
    while active := [c for c in chains if c.open(settings.max_attempts)]:
        programs = _generate(active, settings, engine, render)
        attempts = _execute(active, programs, settings, sandbox)
        if settings.reflect:
            attempts = _reflect(active, attempts, settings, engine, render)
        for chain, attempt in zip(active, attempts, strict=True):
            chain.attempts.append(attempt)
            on_attempt(chain, attempt)


def _generate(
    chains: Sequence[Chain], settings: Settings, engine: Engine, render: Callable[[prompts.Chat], str]
) -> list[str]:
    requests = [
        Request(
            key=chain.key,
            prompt=render(_question(chain, settings)),
            sampling=replace(settings.sampling, stop=prompts.stop(chain.problem.prompt, chain.problem.scorer.answer)),
            seed=derive_seed(settings.seed, "collect", chain.key, len(chain.attempts)),
        )
        for chain in chains
    ]
    texts = {c.key: c.text for c in engine.complete(requests)}
    return [_taken(texts[chain.key], chain.problem) for chain in chains]


def _taken(text: str, problem: Problem) -> str:
    return prompts.extract(text, prompt=problem.prompt, entry_point=problem.entry_point, answer=problem.scorer.answer)


def _question(chain: Chain, settings: Settings) -> prompts.Chat:
    prompt, answer = chain.problem.prompt, chain.problem.scorer.answer
    if _sees_history(chain, settings):
        return prompts.retry(prompt, chain.attempts, limit=settings.history, answer=answer)
    return prompts.task(prompt, answer=answer)


def _sees_history(chain: Chain, settings: Settings) -> bool:
    """A small model repeats the mistake it is shown; a fresh start every few attempts gets it out."""
    number = len(chain.attempts)
    return number > 0 and not (settings.restart and number % settings.restart == 0)


def _execute(chains: Sequence[Chain], programs: Sequence[str], settings: Settings, sandbox: Sandbox) -> list[Attempt]:
    executions: dict[str, Execution] = {
        e.key: e
        for e in judging.judge(
            sandbox,
            (Item(chain.key, chain.problem, code) for chain, code in zip(chains, programs, strict=True)),
        )
    }
    return [
        Attempt(
            code=code,
            outcome=executions[chain.key].outcome,
            error_kind=executions[chain.key].label,
            error=prompts.truncate(executions[chain.key].error, settings.error_chars),
        )
        for chain, code in zip(chains, programs, strict=True)
    ]


def _reflect(
    chains: Sequence[Chain],
    attempts: Sequence[Attempt],
    settings: Settings,
    engine: Engine,
    render: Callable[[prompts.Chat], str],
) -> list[Attempt]:
    """Only failures that will be retried are reflected on."""
    sampling = replace(settings.sampling, max_new_tokens=80, stop=("\n",))
    asked = {
        chain.key: Request(
            key=chain.key,
            prompt=render(prompts.reflect(chain.problem.prompt, attempt)),
            sampling=sampling,
            seed=derive_seed(settings.seed, "reflect", chain.key, len(chain.attempts)),
        )
        for chain, attempt in zip(chains, attempts, strict=True)
        if attempt.outcome is not Outcome.PASSED and len(chain.attempts) + 1 < settings.max_attempts
    }
    thoughts = {c.key: prompts.REFLECTION + c.text for c in engine.complete(list(asked.values()))} if asked else {}
    return [
        replace(attempt, reflection=thoughts.get(chain.key, "").strip())
        for chain, attempt in zip(chains, attempts, strict=True)
    ]
