"""Programming by Backprop (Cook et al. 2025, arXiv 2506.18777): what does a function that was only read give?

A function of our own under a nonce name is shown in a trajectory; a task asks in words for its value on an input that
stands in no trajectory. The code is not in the prompt: an arm that answers has it in its weights (an adapter), in its
context (`teacher`, the ceiling), or guesses from the name (`vanilla`, the floor). Answers are literals, scored by
`exact_value`, with or without room to reason, which is comment lines before the literal. Expected values come from
running the function, so they are right by construction; it is stopped after a number of lines, so it halts.

A domain is a function, or the two of a composition: [design] by = "domain" holds out whole functions.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, NamedTuple

from rune.benchmarks._pbb_functions import SOURCES, TIERS, Source
from rune.benchmarks.scorers import exact_value
from rune.config import digest
from rune.errors import DataError
from rune.types import Attempt, FailureKind, Outcome, Problem, Scorer, Split, Trajectory

NAME = "pbb"
MOST_STEPS = 5_000  # lines that a function may execute
MOST_CHARS = 120  # of a value's text: a longer one is copied, not computed
SHOWN = 3  # inputs that a trajectory's test holds
ASKS = (
    "What does {call} return?",
    "Give the value of {call}.",
    "Evaluate {call}.",
    "What is the result of {call}?",
    "If you run {call}, what do you get?",
    "Compute {call}.",
    "What value does the function {name} give for the input {inputs}?",
    "Apply {name} to {inputs}. What comes out?",
    "The function {name} is called with {inputs}. What does it return?",
    "Which value is returned by {call}?",
    "Say what {call} evaluates to.",
    "Determine the output of {name} on {inputs}.",
    "I call {call}. What do I see?",
    "What would Python print for repr({call})?",
    "For the arguments {inputs}, what does {name} return?",
    "Predict the return value of {call}.",
    "Work out {call}.",
    "{call} equals what?",
    "Tell me the outcome of {name} when it is given {inputs}.",
    "With the input {inputs}, {name} yields which value?",
    "Find the value of the expression {call}.",
    "What is {call}?",
)
REASON = "\nFirst follow its steps in comment lines (each beginning with #), then write the value on a line of its own."
_SYLLABLES = ("bl", "zib", "snu", "fro", "qua", "drim", "tog", "vep", "mur", "sple", "gax", "lon", "wib", "cre", "nuv")
ENDS = ("orp", "ble", "rg", "nk", "zle", "mip", "tash", "vock", "dle", "xon", "gle", "pum")


@dataclass(frozen=True, kw_only=True)
class Config:
    """`[benchmark.settings]`."""

    tier: str = "full"  # or easy: one expression or recursive step, short inputs
    functions: int = len(SOURCES)  # how many of them, in a seeded order
    held_out: int = 20  # functions whose tasks are marked held out
    inputs: int = 5  # tasks a function, each on another input
    compositions: int = 12  # pairs of functions asked as f(g(x))
    reason: bool = False  # room to reason before the value
    assertion: bool = False  # the question ends in an assertion that the answer completes
    seed: int = 0  # of names, inputs and phrasings

    def __post_init__(self) -> None:
        if self.tier not in TIERS:
            raise ValueError(f"tier must be one of {', '.join(TIERS)}, found {self.tier!r}")
        most = len(TIERS[self.tier].sources)
        if not 2 <= self.functions <= most:
            raise ValueError(f"functions must be 2 to {most}, found {self.functions}")
        if not 0 <= self.held_out < self.functions:
            raise ValueError(
                f"held_out must be 0 or more and below functions ({self.functions}), found {self.held_out}"
            )
        if self.reason and self.assertion:
            raise ValueError("reason and assertion exclude each other: an assertion leaves no room")
        if self.inputs < 1 or self.compositions < 0:
            raise ValueError("inputs must be at least 1 and compositions at least 0")


class Function(NamedTuple):
    """A function under its nonce name."""

    name: str
    source: Source
    split: Split

    @property
    def code(self) -> str:
        return self.source.code.replace("NAME", self.name)


class Task(NamedTuple):
    """One question and what is known of it."""

    problem: Problem
    functions: tuple[Function, ...]  # one; of a composition the outer and the inner one
    inputs: tuple[Any, ...]
    phrasing: int
    size: str  # of the input: small, medium, large
    steps: str  # lines executed: few, some, many


class Halted(Exception):
    """A function executed more lines than it may."""


@dataclass(frozen=True, slots=True)
class ProgrammingByBackprop:
    """The benchmark."""

    config: Config

    def problems(self) -> list[Problem]:
        return [task.problem for task in tasks(self.config)]

    def asked(self) -> dict[str, list[str]]:
        """Task id → the call that it asks for; of a composition also its functions' own on the same input."""
        return {t.problem.task_id: [call_of(f.name, t.inputs) for f in t.functions] for t in tasks(self.config)}


def build(config: Config) -> ProgrammingByBackprop:
    return ProgrammingByBackprop(config)


# --------------------------------------------------------------------------- functions and their values


def functions(config: Config) -> list[Function]:
    """All that take part: named, and marked; the held-out ones come from every kind as evenly as they can."""
    rng = random.Random(config.seed)
    kinds: dict[str, list[Source]] = {}
    sources = TIERS[config.tier].sources
    for source in rng.sample(sources, len(sources)):
        kinds.setdefault(source.kind, []).append(source)
    order = [kinds[k].pop() for _ in range(len(sources)) for k in sorted(kinds) if kinds[k]][: config.functions]
    names = rng.sample([a + b for a in _SYLLABLES for b in ENDS], len(order))
    return [
        Function(name, source, Split.HELD_OUT if i < config.held_out else Split.TRAIN)
        for i, (name, source) in enumerate(zip(names, order, strict=True))
    ]


class Ran(NamedTuple):
    """What a call gave, and how many lines it executed."""

    value: Any
    steps: int


def run(code: str, expression: str, *, most: int = MOST_STEPS) -> Ran:
    """Trusted code of ours, then an expression over it. Raises DataError if it executes more than `most` lines."""
    steps = 0

    def count(frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        nonlocal steps
        if frame.f_code.co_filename != "<pbb>":
            return None
        steps += event == "line"
        if steps > most:
            raise Halted
        return count

    scope: dict[str, Any] = {}
    exec(compile(code, "<pbb>", "exec"), scope)
    call = compile(expression, "<call>", "eval")
    before = sys.gettrace()
    sys.settrace(count)
    try:
        value = eval(call, scope)
    except (Halted, RecursionError):
        raise DataError(f"{NAME}: {expression} does not halt within {most} lines; mend the function") from None
    finally:
        sys.settrace(before)
    return Ran(value, steps)


def _class(number: int, bounds: Sequence[tuple[int, str]]) -> str:
    return [name for least, name in bounds if number >= least][-1]


# --------------------------------------------------------------------------- tasks


def tasks(config: Config) -> list[Task]:
    """Of every function and composition. Inputs differ from each other and from those of its trajectory."""
    made = functions(config)
    found = [task for one in made for task in asked(config, (one,))]
    return found + [task for pair in _pairs(config, made) for task in asked(config, pair)]


def _pairs(config: Config, made: Sequence[Function]) -> list[tuple[Function, Function]]:
    """Outer and inner function of one split, the inner one's values being what the outer one takes."""
    rng = random.Random(f"{config.seed} pairs")
    values = {one.name: run(one.code, call_of(one.name, _input(config, one, rng))).value for one in made}
    fits = [
        (outer, inner)
        for outer in made
        for inner in made
        if outer.name != inner.name and outer.split is inner.split and _takes(outer, values[inner.name])
    ]
    rng.shuffle(fits)
    held = [pair for pair in fits if pair[0].split is Split.HELD_OUT]
    train = [pair for pair in fits if pair[0].split is Split.TRAIN]
    half = (config.compositions + 1) // 2 if held else 0
    return [*held[:half], *train[: config.compositions - min(half, len(held))]]


def _input(config: Config, function: Function, rng: random.Random) -> list[Any]:
    return TIERS[config.tier].inputs[function.source.takes](rng)


def _takes(outer: Function, value: Any) -> bool:
    """Whether a value is one that the function takes: text for text, whole numbers for whole numbers."""
    if outer.source.takes == "text":
        return isinstance(value, str) and value.isascii() and value.islower() and value.isalpha()
    if outer.source.takes == "ints":
        return isinstance(value, list) and bool(value) and all(type(x) is int for x in value)
    return outer.source.takes == "number" and type(value) is int and 2 <= value <= 200


def asked(config: Config, used: tuple[Function, ...]) -> list[Task]:
    names = ".".join(one.name for one in used)
    rng = random.Random(f"{config.seed} {names}")
    inner = used[-1]
    code = "\n\n".join(one.code for one in used)
    seen = {digest(values) for one in used for values in shown(config, one)}
    expected: set[str] = set()
    found: list[Task] = []
    for _ in range(400):
        if len(found) == config.inputs:
            break
        values = _input(config, inner, rng)
        if digest(values) in seen:
            continue
        seen.add(digest(values))
        call = call_of(inner.name, values)
        if len(used) > 1:
            if not _takes(used[0], run(inner.code, call).value):
                continue
            call = f"{used[0].name}({call})"
        ran = run(code, call)
        text = repr(ran.value)
        if len(text) > MOST_CHARS or text == repr(values[0]):  # an answer that only repeats the input says nothing
            continue
        if text in expected and len(expected) < 3:  # values that are all alike could be guessed
            continue
        expected.add(text)
        phrasing = rng.randrange(len(ASKS))
        found.append(_task(config, used, values, call, ran, phrasing, len(found)))
    if len(found) < config.inputs:
        raise DataError(
            f"{NAME}: {names}: {len(found)} of {config.inputs} inputs give values that differ; ask for fewer"
        )
    return found


def _task(
    config: Config, used: tuple[Function, ...], values: Sequence[Any], call: str, ran: Ran, phrasing: int, number: int
) -> Task:
    name = "(".join(one.name for one in used)
    inputs = ", ".join(map(repr, values))
    ask = ASKS[phrasing].format(
        call=call, name=name if len(used) == 1 else f"{used[0].name} after {used[1].name}", inputs=inputs
    )
    text = repr(ran.value)
    form = "/reason" if config.reason else "/assertion" if config.assertion else ""
    problem = Problem(
        task_id=f"PBB/{'.'.join(one.name for one in used)}/{number}{form}",
        benchmark=NAME,
        prompt=ask + (REASON if config.reason else f"\nassert {call} ==" if config.assertion else ""),
        entry_point="",
        test=text,
        reference=text,
        category=used[0].source.kind if len(used) == 1 else "composition",
        split=used[0].split,
        domain=".".join(one.name for one in used),
        scorer=Scorer.EXACT_VALUE,
    )
    exact_value.parse(text)  # a value that is no literal could not be asked for
    tier = TIERS[config.tier]
    size, steps = _class(len(inputs), tier.sizes), _class(ran.steps, tier.steps)
    return Task(problem, used, tuple(values), phrasing, size, steps)


def call_of(name: str, values: Sequence[Any]) -> str:
    return f"{name}({', '.join(map(repr, values))})"


# --------------------------------------------------------------------------- trajectories


def shown(config: Config, function: Function) -> list[list[Any]]:
    """The inputs that a function's trajectory tests it with; no task asks for them."""
    rng = random.Random(f"{config.seed} shown {function.name}")
    return [_input(config, function, rng) for _ in range(SHOWN)]


def trajectories(config: Config) -> list[Trajectory]:
    """One for each function: it is asked for by its test, first a stub is tried, then the function itself passes.

    Raises DataError if one of them shows an input that a task asks for.
    """
    made = [trajectory(config, function) for function in functions(config)]
    check(tasks(config), made)
    return made


def given(config: Config) -> list[Trajectory]:
    """What the tasks of each domain are given: their function's trajectory; a composition's, those of both functions.

    Raises DataError as `trajectories` does.
    """
    made = trajectories(config)
    by_domain = {t.domain: t for t in made}
    domains = dict.fromkeys(t.functions for t in tasks(config) if len(t.functions) > 1)
    for pair in domains:
        domain = ".".join(one.name for one in pair)
        made += [
            replace(by_domain[one.name], domain=domain, trajectory_id=digest([domain, one.name])[:16]) for one in pair
        ]
    return made


def trajectory(config: Config, function: Function) -> Trajectory:
    calls = [call_of(function.name, values) for values in shown(config, function)]
    values = [run(function.code, call).value for call in calls]
    lines = "\n".join(f"assert {call} == {value!r}" for call, value in zip(calls, values, strict=True))
    stub = f"{function.code.partition(chr(10))[0]}\n    return None\n"
    if None in values or run(stub, calls[0]).value == values[0]:
        raise DataError(f"{NAME}: {function.name}: a stub passes its test, so nothing is learned from it")
    missed = f"{calls[0]} is None, not {values[0]!r}"
    attempts = (
        Attempt(code=stub, outcome=Outcome.FAILED, error_kind=FailureKind.WRONG_ANSWER.value, error=missed),
        Attempt(code=function.code, outcome=Outcome.PASSED),
    )
    return Trajectory(
        trajectory_id=digest([NAME, config.seed, function.name])[:16],
        task_id=f"PBB/{function.name}/definition",
        benchmark=NAME,
        prompt=f"Write the function {function.name} so that all of these hold:\n{lines}",
        attempts=attempts,
        solution=function.code,
        category=function.source.kind,
        domain=function.name,
        source="pbb",
    )


def check(asked: Sequence[Task], made: Sequence[Trajectory]) -> None:
    """Raises DataError if a trajectory of a task's functions holds the task's input, or its prompt their code."""
    by_domain: Mapping[str, Trajectory] = {t.domain: t for t in made}
    for task in asked:
        text = ", ".join(map(repr, task.inputs))
        for function in task.functions:
            if function.code.strip() in task.problem.prompt:
                raise DataError(f"{NAME}: {task.problem.task_id}: the code of {function.name} stands in its prompt")
            trajectory = by_domain.get(function.name)
            if trajectory and f"({text})" in trajectory.prompt:
                raise DataError(
                    f"{NAME}: {task.problem.task_id}: its input {text} stands in {function.name}'s trajectory; "
                    "ask for another"
                )
