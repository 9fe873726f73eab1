"""What the tasks of `api_updates` ask for, and how our own programs are run: with an update and without it."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from rune.benchmarks._api_changes import Use
from rune.benchmarks._api_functions import Function
from rune.benchmarks.scorers import updates
from rune.benchmarks.scorers.updates import Update
from rune.types import Problem


class Shape(NamedTuple):
    """What a task does with the function."""

    name: str  # in the task's name
    argument: str
    type: str  # of the argument, {t} the subject's
    body: str  # {x}: the call's input is put in by splitting at CALL(…)
    says: str  # {one}: the result in words; {many}: the input in words, plural
    subject: str  # how the input is called in the result's phrase
    arguments: Callable[[random.Random, Callable[[random.Random], Any]], Any]


def _several(low: int, high: int) -> Callable[[random.Random, Callable[[random.Random], Any]], Any]:
    return lambda rng, draw: [draw(rng) for _ in range(rng.randint(low, high))]


def _named(rng: random.Random, draw: Callable[[random.Random], Any]) -> dict[str, Any]:
    return {key: draw(rng) for key in rng.sample(["north", "south", "east", "west", "home", "away"], rng.randint(2, 3))}


SHAPES = (
    Shape("one", "{n}", "{t}", "    return CALL({n})\n", "Given {words}, return {one}{asks}.", "it",
           lambda rng, draw: draw(rng)),
    Shape("each", "items", "list[{t}]", "    return [CALL(item) for item in items]\n",
           "Given a list, each element of it {words}, return a list with {one} for each{asks}.", "the element",
           _several(1, 3)),
    Shape("table", "table", "dict[str, {t}]", "    return {key: CALL(value) for key, value in table.items()}\n",
           "Given a dictionary whose values are each {words}, return a dictionary with the same keys and {one} "
           "for each{asks}.", "the value", _named),
    Shape("pairs", "items", "list[{t}]",
           "    pairs = []\n    for item in items:\n        pairs.append((item, CALL(item)))\n    return pairs\n",
           "Given a list, each element of it {words}, return pairs of the element and {one}{asks}.", "the element",
           _several(1, 3)),
    Shape("last", "items", "list[{t}]",
           "    if not items:\n        return None\n    return CALL(items[-1])\n",
           "Given a list, each element of it {words}, return {one} for the last of them{asks}; None if the list is "
           "empty.", "the element", _several(1, 3)),
    Shape("report", "{n}", "{t}", "    outcome = CALL({n})\n    return f\"result: {outcome}\"\n",
           "Given {words}, return the text 'result: ' followed by {one}{asks}.", "it", lambda rng, draw: draw(rng)),
    Shape("nested", "groups", "list[list[{t}]]",
           "    return [[CALL(item) for item in group] for group in groups]\n",
           "Given a list of groups, each a list whose elements are each {words}, return the groups with {one} in the "
           "place of each{asks}.", "the element",
           lambda rng, draw: [[draw(rng) for _ in range(rng.randint(1, 2))] for _ in range(2)]),
    Shape("record", "{n}", "{t}",
           "    record = {\"input\": {n}}\n    record[\"output\"] = CALL({n})\n    return record\n",
           "Given {words}, return a dictionary with it under 'input' and {one} under 'output'{asks}.", "it",
           lambda rng, draw: draw(rng)),
)  # fmt: skip
_VERBS = ("build", "make", "collect", "compute", "prepare", "derive", "produce", "obtain", "form", "gather")
_ROLES = (
    "A librarian", "A teacher", "An engineer at a small firm", "A data analyst", "A journalist", "A researcher",
    "A student", "A shop owner", "A developer of a web service",
    "A museum curator", "A weather station", "A bookkeeper",
)  # fmt: skip
_NEEDS = (
    "wants this done many times a day.", "is cleaning up a script.", "has a large archive to go through.",
    "must hand in a report tonight.", "needs it for a nightly job.", "is replacing an old tool.",
    "keeps doing this by hand.", "wants one function for it.",
)  # fmt: skip


def name_of(rng: random.Random, function: Function, shape: Shape) -> str:
    return f"{rng.choice(_VERBS)}_{function.name.lower()}_{shape.name}"


def program(function: Function, name: str, shape: Shape, use: Use) -> str:
    argument = shape.argument.replace("{n}", "data")
    body = shape.body.replace("{n}", "data")
    while "CALL(" in body:
        before, _, rest = body.partition("CALL(")
        inner, _, after = rest.partition(")")
        body = f"{before}{use.expression(inner)}{after}"
    second = f", {use.parameter.partition(':')[0]}" if use.parameter else ""
    helper = f"{use.helper}\n\n" if use.helper else ""
    return f"import {function.module}\n\n\n{helper}def {name}({argument}{second}):\n{body}"


def prompt(rng: random.Random, function: Function, shape: Shape, use: Use, name: str, kind: str, words: str) -> str:
    one = function.says.replace("{x}", shape.subject)
    asks = f", {use.asks}" if use.asks else ""
    what = shape.says.replace("{words}", words).replace("{one}", one).replace("{asks}", asks)
    hint = f" Use {function.module} for it." if rng.random() < 0.5 else ""
    argument = shape.argument.replace("{n}", "data")
    second = f", {use.parameter}" if use.parameter else ""
    signature = f"def {name}({argument}: {shape.type.replace('{t}', kind)}{second}):"
    return f"{rng.choice(_ROLES)} {rng.choice(_NEEDS)}\n{what}{hint}\n\nThe function's signature:\n{signature}\n"


class Raised(NamedTuple):
    name: str


def run(update: Update | None, code: str, name: str, arguments: tuple[Any, ...]) -> Any:
    """What our own program gives in this process, with the update or without; the library is restored behind it."""
    scope: dict[str, Any] = {}
    with updates.restored([update.function] if update else []):
        try:
            if update:
                exec(updates.prelude(update), scope)
            exec(code, scope)
            return scope[name](*copy_of(arguments))
        except Exception as error:
            return Raised(type(error).__name__)


copy_of = copy.deepcopy  # bound now: the module's own function is one of those that are changed


def passes(update: Update | None, code: str, problem: Problem) -> bool:
    judge: dict[str, Any] = {}
    exec(problem.test, judge)
    return all(run(update, code, problem.entry_point, arguments) == expected for arguments, expected in judge["CASES"])
