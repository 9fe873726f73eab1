"""What a hypernetwork for `pbb` trains on: many functions, each one's trajectory and its execution pairs.

A function's trajectory is what a held-out one has as well (its test, a stub that fails, the function). An execution
pair is a question as a task's, with its value as the solution, on an input that the trajectory does not show; it is of
the benchmark PAIRS, so that a config says what is read and what is learned (`train.hypernet.pairs`: `read`, `shares`).

No held-out function trains: none under its name, none that computes what a held-out function or composition does, and
of every second held-out function (`apart`) none of its form either, whatever the constants (CRUXEval's functions apart,
whose parameters have other names).
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rune.benchmarks import _pbb_drawn, cruxeval, pbb
from rune.benchmarks.formats import data
from rune.benchmarks.pbb import NAME, Config, Function
from rune.config import digest
from rune.errors import DataError
from rune.types import Answer, Attempt, FailureKind, Outcome, Split, Trajectory

PAIRS = "pbb_pairs"
PROBES = 12  # inputs on which two functions must differ
SHORT, SHORT_CODE = 40, 300  # characters of an input or a value, and of a function, of CRUXEval that trains
EXTRA = "extra_inputs.jsonl"  # beside CRUXEval's file: further inputs of its functions, and what they gave
_UNDEFINED = (AttributeError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError)
_STARTS = ("b", "br", "ch", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "kl", "l", "m", "n", "p", "pl", "qu", "r")
_MIDDLES = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "x", "z")

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
        one = Function(_nonce(rng), _pbb_drawn.draw(rng), Split.TRAIN)
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

    Their code is not run: inputs and values are those of its file, the pinned one if `verify`, and of EXTRA beside it
    (`path`: their folder; "": from RUNE_DATA). One that agrees with a held-out function on all of them is left out.
    Raises DataError for a file that is missing or is not what it should be.
    """
    file = data.locate(path, cruxeval.FILE, hub=cruxeval.HUB.name)
    data.check(file, cruxeval.SHA256, verify=verify)
    extra = {record["id"]: record["extra"] for record in data.read(file.with_name(EXTRA))}
    rng = random.Random(f"{config.seed} {seed} renamed")
    names = {one.name for one in pbb.functions(config)}
    held = held_out(config)
    made: list[Trajectory] = []
    for record in data.read(file):
        known = _short([record, *extra.get(record["id"], ())])
        name = _nonce(rng)
        plain = len(record["code"]) <= SHORT_CODE and not re.search(r"\bf\b(?![('\"])", record["code"])
        if not plain or name in names or len(known) <= pbb.SHOWN or len({v for _, v in known}) < 2:
            continue
        if any(all(_value(used, values) == value for values, value in known) for used in held):
            continue
        names.add(name)
        code = re.sub(r"\bf\(", f"{name}(", record["code"]).strip() + "\n"
        calls = [(f"{name}({', '.join(map(repr, values))})", value) for values, value in known]
        made.append(_lesson(name, code, calls[: pbb.SHOWN], record["id"]))
        for number, (call, value) in enumerate(calls[pbb.SHOWN : pbb.SHOWN + pairs]):
            ask = rng.choice([text for text in pbb.ASKS if "{inputs}" not in text]).format(call=call)
            made.append(_pair(name, "cruxeval", number, f"{ask}\nassert {call} ==", value))
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


def _short(records: Sequence[Mapping[str, str]]) -> list[tuple[tuple[Any, ...], str]]:
    """Arguments and the text of the value, of the records where both are short literals, and differ."""
    found: dict[str, tuple[tuple[Any, ...], str]] = {}
    for record in records:
        if max(len(record["input"]), len(record["output"])) > SHORT or record["input"] == record["output"]:
            continue
        try:
            values = ast.literal_eval(f"({record['input']},)")
            found.setdefault(repr(values), (values, repr(ast.literal_eval(record["output"]))))
        except (SyntaxError, *_UNDEFINED):
            continue
    return list(found.values())


def _pairs(function: Function, config: Config) -> list[Trajectory]:
    asked = enumerate(pbb.asked(config, (function,)))
    return [_pair(function.name, function.source.kind, i, t.problem.prompt, t.problem.test) for i, t in asked]


def _nonce(rng: random.Random) -> str:
    """A name of the same kind as the tasks', from more syllables."""
    return rng.choice(_STARTS) + rng.choice("aeiou") + rng.choice(_MIDDLES) + rng.choice(pbb.ENDS)


def _lesson(name: str, code: str, calls: Sequence[tuple[str, str]], of: str) -> Trajectory:
    head = next(line for line in code.split("\n") if line.startswith("def "))
    return Trajectory(
        trajectory_id=digest([NAME, of, name])[:16],
        task_id=f"PBB/{name}/definition",
        benchmark=NAME,
        prompt=f"Write the function {name} so that all of these hold:\n"
        + "\n".join(f"assert {call} == {value}" for call, value in calls),
        attempts=(
            Attempt(
                code=f"{head}\n    return None\n",
                outcome=Outcome.FAILED,
                error_kind=FailureKind.WRONG_ANSWER.value,
                error=f"{calls[0][0]} is None, not {calls[0][1]}",
            ),
            Attempt(code=code, outcome=Outcome.PASSED),
        ),
        solution=code,
        category="cruxeval",
        domain=name,
        source="pbb",
    )


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
