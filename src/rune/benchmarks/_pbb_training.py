"""What a hypernetwork for `pbb` trains on: many functions, each one's trajectory and its execution pairs.

A function's trajectory is what a held-out one has as well (its test, a stub that fails, the function). An execution
pair is a question as a task's, with its value as the solution, on an input that the trajectory does not show; it is of
the benchmark PAIRS, so that a config says what is read and what is learned (`train.hypernet.pairs`: `read`, `shares`).

No held-out function trains: none under its name, none that computes what a held-out function or composition does, and
of every second held-out function (`apart`) none of its form either, whatever the constants (CRUXEval's functions apart,
whose parameters have other names).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rune.benchmarks import _pbb_drawn, _pbb_renamed, pbb, pbb_cruxeval
from rune.benchmarks.pbb import NAME, Config, Function
from rune.config import digest
from rune.errors import DataError
from rune.types import Answer, Attempt, Outcome, Split, Trajectory

PAIRS = "pbb_pairs"
PROBES = 12  # inputs on which two functions must differ
_UNDEFINED = (AttributeError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError)

Used = tuple[Function, ...]  # one; of a composition the outer and the inner one


def own(config: Config, *, pairs: int) -> list[Trajectory]:
    """The benchmark's own functions that are not held out: their trajectories and `pairs` execution pairs each.

    Those of a form that is kept apart are left out.
    """
    far = {_pbb_drawn.form(one.source.code) for one in apart(config)}
    made = []
    for one in pbb.functions(config):
        if one.split is Split.TRAIN and _pbb_drawn.form(one.source.code) not in far:
            made.append(pbb.trajectory(config, one))
            made += _pairs(one, replace(config, inputs=pairs))
    return made


def drawn(config: Config, *, count: int, pairs: int, seed: int = 0) -> list[Trajectory]:
    """`count` functions of the grammar (`_pbb_drawn`) under nonce names, `pairs` execution pairs each.

    Raises DataError if the grammar does not give so many.
    """
    rng = random.Random(f"{config.seed} {seed} drawn")
    asking = replace(config, inputs=pairs)
    held = {_signature(config, used) for used in held_out(config)}
    far = {_pbb_drawn.form(one.source.code) for one in apart(config)}
    names = {one.name for one in pbb.functions(config)}
    made: list[Trajectory] = []
    codes: set[str] = set()
    for _ in range(20 * count):
        if len(codes) == count:
            return made
        one = Function(_pbb_renamed.nonce(rng), _pbb_drawn.draw(rng), Split.TRAIN)
        if one.name in names or one.source.code in codes or _pbb_drawn.form(one.source.code) in far:
            continue
        try:
            if _signature(config, (one,)) in held:
                continue
            lesson = [pbb.trajectory(config, one), *_pairs(one, asking)]
        except (DataError, *_UNDEFINED):  # does not halt, is not defined everywhere, or gives one value
            continue
        codes.add(one.source.code)
        names.add(one.name)
        made += lesson
    raise DataError(f"{NAME}: {len(codes)} of {count} training functions in {20 * count} draws; ask for fewer")


def renamed(config: Config, *, pairs: int, seed: int = 0, path: str = "", verify: bool = True) -> list[Trajectory]:
    """CRUXEval's functions under nonce names, as `drawn`: those that are short, with inputs and values that are short.

    Their code is not run (`_pbb_renamed`, which also says what `path` and `verify` are). One that agrees with a
    held-out function on all inputs that are known is left out. Raises DataError as `_pbb_renamed.functions` does.
    """
    rng = random.Random(f"{config.seed} {seed} renamed")
    names = {one.name for one in pbb.functions(config)}
    held = held_out(config)
    made: list[Trajectory] = []
    for one in _pbb_renamed.functions(rng, path=path, verify=verify, taken=names):
        if any(all(_value(used, values) == value for values, value in one.known) for used in held):
            continue
        made.append(_pbb_renamed.lesson(one))
        for number, (call, value) in enumerate(one.calls()[pbb.SHOWN : pbb.SHOWN + pairs]):
            asked = f"{pbb_cruxeval.question(rng, call)}\nassert {call} =="
            made.append(_pair(one.name, "cruxeval", number, asked, value))
    return made


def apart(config: Config) -> list[Function]:
    """Every second held-out function of each kind, whose form no drawn function has."""
    kinds: dict[str, list[Function]] = {}
    for one in pbb.functions(config):
        if one.split is Split.HELD_OUT:
            kinds.setdefault(one.source.kind, []).append(one)
    return [one for kind in sorted(kinds) for one in kinds[kind][1::2]]


def held_out(config: Config) -> list[Used]:
    """Held-out functions, and compositions of them."""
    return list(dict.fromkeys(t.functions for t in pbb.tasks(config) if t.problem.split is Split.HELD_OUT))


def _signature(config: Config, used: Used) -> str:
    """What a function or composition takes, and gives on PROBES fixed inputs: equal for equal functions."""
    takes = used[-1].source.takes
    rng = random.Random(f"probe {takes}")
    return digest([takes, [_value(used, pbb.TIERS[config.tier].inputs[takes](rng)) for _ in range(PROBES)]])


def _value(used: Used, values: Sequence[Any]) -> str:
    """What a function of ours gives for these arguments, as text; "" where that is nothing."""
    call = pbb.call_of(used[-1].name, values)
    for outer in used[-2::-1]:
        call = f"{outer.name}({call})"
    try:
        return repr(pbb.run("\n\n".join(one.code for one in used), call).value)
    except (DataError, *_UNDEFINED):
        return ""


def _pairs(function: Function, config: Config) -> list[Trajectory]:
    asked = enumerate(pbb.asked(config, (function,)))
    return [_pair(function.name, function.source.kind, i, t.problem.prompt, t.problem.test) for i, t in asked]


def _pair(name: str, category: str, number: int, prompt: str, value: str) -> Trajectory:
    return Trajectory(
        trajectory_id=digest([PAIRS, name, prompt])[:16],
        task_id=f"PBB/{name}/pair-{number}",
        benchmark=PAIRS,
        prompt=prompt,
        attempts=(Attempt(code=value, outcome=Outcome.PASSED),),
        solution=value,
        category=category,
        domain=name,
        source="pbb",
        answer=Answer.VALUE,
    )
