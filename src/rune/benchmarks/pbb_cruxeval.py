"""Programming by Backprop with functions by others: CRUXEval's, under nonce names (see `pbb`, and `_pbb_renamed`).

A task asks in words, or by an assertion that the answer completes, for a function's value on an input that its
trajectory does not show; its code is in no prompt. A domain is a function, so [design] by = "domain" holds out whole
ones. How many lines a function executes is not known: nothing of it is run.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from rune.benchmarks import _pbb_renamed, pbb
from rune.benchmarks._pbb_renamed import Renamed
from rune.errors import DataError
from rune.types import Problem, Scorer, Split, Trajectory

NAME = "pbb_cruxeval"


@dataclass(frozen=True, kw_only=True)
class Config:
    """`[benchmark.settings]`."""

    functions: int = 100  # how many take part, in a seeded order
    held_out: int = 40  # of them, marked held out
    inputs: int = 5  # tasks a function, at most; it has as many as inputs of it are known beside those shown
    assertion: bool = True  # the question ends in an assertion that the answer completes
    seed: int = 0  # of names, order and phrasings
    path: str = ""  # the file or its folder; "" = from RUNE_DATA
    verify: bool = True  # refuse a file that is not the pinned one

    def __post_init__(self) -> None:
        if self.inputs < 1:
            raise ValueError(f"inputs must be at least 1, found {self.inputs}")
        if not 0 <= self.held_out < self.functions:
            raise ValueError(
                f"held_out must be 0 or more and below functions ({self.functions}), found {self.held_out}"
            )


@dataclass(frozen=True, slots=True)
class Renaming:
    """The benchmark."""

    config: Config

    def problems(self) -> list[Problem]:
        """Raises DataError for a file that is missing or another, or has fewer functions than asked for."""
        return [problem for problem, _ in self._tasks()]

    def asked(self) -> dict[str, list[str]]:
        """Task id → the call that it asks for. Raises as `problems` does."""
        return {problem.task_id: [call] for problem, call in self._tasks()}

    def _tasks(self) -> list[tuple[Problem, str]]:
        config = self.config
        rng = random.Random(f"{config.seed} asked")
        made = []
        for number, one in enumerate(functions(config)):
            split = Split.HELD_OUT if number < config.held_out else Split.TRAIN
            for place, (call, value) in enumerate(one.calls()[pbb.SHOWN : pbb.SHOWN + config.inputs]):
                made.append((_problem(config, one, split, place, question(rng, call), call, value), call))
        return made


def build(config: Config) -> Renaming:
    return Renaming(config)


def functions(config: Config) -> list[Renamed]:
    """Those that take part, the held-out ones first."""
    rng = random.Random(f"{config.seed} names")
    every = _pbb_renamed.functions(rng, path=config.path, verify=config.verify, taken=set())
    found = [one for one in every if all(value != "None" for _, value in one.known)]  # a stub gives None
    if len(found) < config.functions:
        raise DataError(f"{NAME}: {config.functions} functions wanted, {len(found)} are short enough; ask for fewer")
    return rng.sample(found, config.functions)


def trajectories(config: Config) -> list[Trajectory]:
    """One a function: what held-out tasks are given (`collect.shown`), and what the others train on."""
    return [_pbb_renamed.lesson(one) for one in functions(config)]


def question(rng: random.Random, call: str) -> str:
    """In words, by one of the phrasings of `pbb` that name a call."""
    return rng.choice([text for text in pbb.ASKS if "{inputs}" not in text]).format(call=call)


def _problem(config: Config, one: Renamed, split: Split, place: int, asked: str, call: str, value: str) -> Problem:
    return Problem(
        task_id=f"PBB/{one.name}/{place}{'/assertion' if config.assertion else ''}",
        benchmark=NAME,
        prompt=f"{asked}\nassert {call} ==" if config.assertion else asked,
        entry_point="",
        test=value,
        reference=value,
        category="cruxeval",
        split=split,
        domain=one.name,
        scorer=Scorer.EXACT_VALUE,
    )
