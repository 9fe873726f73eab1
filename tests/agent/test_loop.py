"""The recursive loop with the real sandbox and the scripted engine: what it asks, with which seed, and when it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest

from rune import prompts
from rune.agent import loop
from rune.agent.loop import Chain, Settings
from rune.engines import scripted
from rune.sandbox import fork
from rune.types import Attempt, Completion, Engine, ModelRef, Outcome, Problem, Request, Sampling, Sandbox

SAMPLING = Sampling(temperature=0.7, max_new_tokens=99, top_p=0.9, top_k=7)
SETTINGS = Settings(
    max_attempts=4, sampling=SAMPLING, reflect=True, history=2, restart=0, error_chars=1000, seed=11
)  # fmt: skip
WRONG = "def f(x):\n    return x\n```"
RIGHT = "def f(x):\n    return x + 1\n```"
MODEL = ModelRef(name="none", path="", digest="", source="local")


def problem(task_id: str = "T/1", **changes: str) -> Problem:
    values = {
        "prompt": f"Add one, says {task_id}.",
        "entry_point": "f",
        "test": "def check(candidate):\n    assert candidate(1) == 2\n",
        **changes,
    }
    return Problem(task_id=task_id, benchmark="T", **values)


@dataclass
class Heard:
    """An engine, and what it was asked."""

    engine: Engine
    requests: list[Request] = field(default_factory=list)

    def complete(self, requests: Sequence[Request]) -> Iterator[Completion]:
        self.requests += requests
        yield from self.engine.complete(requests)

    def close(self) -> None:
        self.engine.close()

    def of(self, key: str, *, reflections: bool = False) -> list[Request]:
        return [r for r in self.requests if r.key == key and r.prompt.endswith(prompts.REFLECTION) is reflections]


def engine(**answers: str) -> Heard:
    """Texts by a piece of the prompt; whatever else is asked gets a wrong program, a reflection its own words."""
    texts = {prompts.REFLECTION: (" that one is missing.\nAnd more.",)}
    known = {piece: (text,) for piece, text in answers.items()}
    config = scripted.Config(answers=known, default=(WRONG,))
    heard = Heard(scripted.build(config, model=MODEL, device="cpu", dtype="float32"))
    other = scripted.build(scripted.Config(default=texts[prompts.REFLECTION]), model=MODEL, device="", dtype="")
    heard.engine = Either(heard.engine, other)
    return heard


@dataclass
class Either:
    """Programs from one engine, reflections from another: both are told apart by how their prompts end."""

    programs: Engine
    reflections: Engine

    def complete(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for request in requests:
            chosen = self.reflections if request.prompt.endswith(prompts.REFLECTION) else self.programs
            yield from chosen.complete([request])

    def close(self) -> None:
        return None


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    box = fork.build(fork.Config(cpu_seconds=1.0))
    yield box
    box.close()


def render(chat: prompts.Chat) -> str:
    return "".join(f"<{role}>{text}" for role, text in chat.messages) + f"<assistant>{chat.prefill}"


def work(chains: Sequence[Chain], settings: Settings, heard: Engine, sandbox: Sandbox) -> list[tuple[str, Attempt]]:
    seen: list[tuple[str, Attempt]] = []
    loop.work(
        chains, settings, engine=heard, sandbox=sandbox, render=render,
        on_attempt=lambda chain, attempt: seen.append((chain.key, attempt)),
    )  # fmt: skip
    return seen


# --------------------------------------------------------------------------- chance


def test_every_question_of_every_attempt_and_chain_has_a_seed_of_its_own(sandbox: Sandbox) -> None:
    """Else a second attempt after a fresh start would draw the first one again, and two chains the same programs."""
    heard = engine()
    tasks = problem("T/1"), problem("T/2")
    work([Chain(p, i) for p in tasks for i in range(2)], replace(SETTINGS, restart=1), heard, sandbox)
    seeds = [r.seed for r in heard.requests]
    assert len(seeds) == 4 * (4 + 3)  # programs, and reflections between them
    assert len(set(seeds)) == len(seeds)


def test_another_run_seed_changes_every_question_and_the_same_one_none(sandbox: Sandbox) -> None:
    asked = []
    for seed in (11, 11, 12):
        heard = engine()
        work([Chain(problem(), 0)], replace(SETTINGS, seed=seed), heard, sandbox)
        asked.append([(r.key, r.prompt, r.seed) for r in heard.requests])
    assert asked[0] == asked[1]
    assert not {seed for *_, seed in asked[0]} & {seed for *_, seed in asked[2]}


@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_chain_that_is_taken_up_again_asks_as_if_it_had_never_stopped(sandbox: Sandbox, done: int) -> None:
    """Also beside a chain that begins."""
    whole = engine()
    straight = Chain(problem(), 0)
    work([straight], SETTINGS, whole, sandbox)
    again, resumed = engine(), Chain(problem(), 0, attempts=straight.attempts[:done])
    fresh = Chain(problem("T/2"), 1)
    new = [attempt for key, attempt in work([fresh, resumed], SETTINGS, again, sandbox) if key == resumed.key]
    assert resumed.attempts == straight.attempts and new == straight.attempts[done:]
    for reflections in (False, True):
        assert again.of("T/1#0", reflections=reflections) == whole.of("T/1#0", reflections=reflections)[done:]


# --------------------------------------------------------------------------- what the model is shown


def shown(request: Request) -> int:
    """Earlier attempts in a prompt."""
    return request.prompt.count("<assistant>") - 1


@pytest.mark.parametrize(
    ("restart", "history", "expected"),
    [(0, 2, [0, 1, 2, 2, 2, 2, 2]), (0, 1, [0, 1, 1, 1, 1, 1, 1]), (3, 2, [0, 1, 2, 0, 2, 2, 0]), (1, 2, [0] * 7)],
)
def test_the_last_failures_are_shown_and_every_so_often_none(
    sandbox: Sandbox, restart: int, history: int, expected: list[int]
) -> None:
    heard = engine()
    settings = replace(SETTINGS, max_attempts=7, restart=restart, history=history)
    work([Chain(problem(), 0)], settings, heard, sandbox)
    assert [shown(r) for r in heard.of("T/1#0")] == expected


def test_a_retry_shows_the_attempt_its_error_and_the_models_own_word_on_it(sandbox: Sandbox) -> None:
    heard = engine()
    seen = work([Chain(problem(), 0)], SETTINGS, heard, sandbox)
    _, second = heard.of("T/1#0")[:2]
    attempt = seen[0][1]
    assert attempt.reflection == "The mistake is that one is missing."
    assert attempt.outcome is Outcome.FAILED and "returned 1" in attempt.error
    for part in (attempt.code.strip(), attempt.error.strip(), attempt.reflection):
        assert part in second.prompt
    (reflection, *_) = heard.of("T/1#0", reflections=True)
    assert attempt.code.strip() in reflection.prompt and attempt.error.strip() in reflection.prompt


def test_programs_are_drawn_as_configured_up_to_the_tasks_own_stops_and_reflections_are_one_line(
    sandbox: Sandbox,
) -> None:
    heard = engine()
    asserted = problem("T/2", prompt='"""Add one.\nassert f(1) == 2\n"""')
    work([Chain(problem(), 0), Chain(asserted, 0)], SETTINGS, heard, sandbox)
    for key, task in (("T/1#0", problem()), ("T/2#0", asserted)):
        for request in heard.of(key):
            assert request.sampling == replace(SAMPLING, stop=prompts.stop(task.prompt))
        for request in heard.of(key, reflections=True):
            assert request.sampling == replace(SAMPLING, max_new_tokens=80, stop=("\n",))
    assert "\nassert " not in heard.of("T/2#0")[0].sampling.stop


def test_an_error_is_kept_to_the_given_length(sandbox: Sandbox) -> None:
    long = engine(**{"Add one": "def f(x):\n    raise ValueError('y' * 5000)\n```"})
    (_, first), *_ = work([Chain(problem(), 0)], replace(SETTINGS, error_chars=200), long, sandbox)
    assert len(first.error) <= 200 and "characters left out" in first.error
    assert first.error_kind == "ValueError"


# --------------------------------------------------------------------------- when it ends


def test_a_chain_ends_when_it_passes_and_the_others_go_on(sandbox: Sandbox) -> None:
    """One solves its task at once, one after a failure shown to it, one never."""
    heard = engine(**{"says T/1": RIGHT, "returned 1": RIGHT})
    never = problem("T/3", test="def check(candidate):\n    assert candidate(1) == 3, 'no'\n")
    chains = [Chain(problem("T/1"), 0), Chain(problem("T/2"), 0), Chain(never, 0)]
    seen = work(chains, SETTINGS, heard, sandbox)
    outcomes = {c.key: [a.outcome is Outcome.PASSED for a in c.attempts] for c in chains}
    assert outcomes == {"T/1#0": [True], "T/2#0": [False, True], "T/3#0": [False] * 4}
    assert {c.key: c.attempts for c in chains} == {
        key: [attempt for k, attempt in seen if k == key] for key in outcomes
    }


def test_only_a_failure_that_will_be_retried_is_reflected_on(sandbox: Sandbox) -> None:
    heard = engine(**{"says T/1": RIGHT})
    chains = [Chain(problem("T/1"), 0), Chain(problem("T/2"), 0)]
    work(chains, SETTINGS, heard, sandbox)
    assert heard.of("T/1#0", reflections=True) == []
    assert len(heard.of("T/2#0", reflections=True)) == 3
    assert [bool(a.reflection) for a in chains[1].attempts] == [True, True, True, False]
    silent = engine()
    work([Chain(problem(), 0)], replace(SETTINGS, reflect=False), silent, sandbox)
    assert silent.of("T/1#0", reflections=True) == [] and len(silent.requests) == 4


def test_a_finished_chain_is_asked_nothing(sandbox: Sandbox) -> None:
    passed = Attempt(code="def f(x): return x + 1", outcome=Outcome.PASSED)
    failed = Attempt(code="def f(x): return x", outcome=Outcome.FAILED)
    heard = engine()
    done = [Chain(problem(), 0, [failed, passed]), Chain(problem(), 1, [failed] * 4)]
    assert work(done, SETTINGS, heard, sandbox) == [] and heard.requests == []


def test_a_programs_prelude_is_there_when_it_is_judged(sandbox: Sandbox) -> None:
    needs = problem(prelude="STEP = 1")
    heard = engine(**{"Add one": "def f(x):\n    return x + STEP\n```"})
    ((_, attempt),) = work([Chain(needs, 0)], SETTINGS, heard, sandbox)
    assert attempt.outcome is Outcome.PASSED
