"""What benchmarks of API updates share: an update, the prelude that installs it in the box, its documentation.

An *update* changes one function of a library. Programs are judged with it and without it, by
`execution_with_and_without`.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rune.benchmarks.scorers import execution_with_and_without
from rune.types import Problem

BENCHMARKS = ("code_update_arena", "api_updates")  # whose domains are named by `domain`


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One change of one function; `domain` names it in problems and trajectories."""

    domain: str  # "statistics.mean:new-argument:limit": function, kind, what tells it from others
    function: str  # dotted path, "statistics.mean"
    setup: str  # source that runs first: imports, the old function under another name
    implementation: str  # source that defines the function of that name
    name: str  # what the implementation calls it: another name where the update renames
    signature: str
    documentation: str

    @property
    def package(self) -> str:
        return self.function.partition(".")[0]

    def text(self) -> str:
        """The update as a changelog shows it."""
        return f"{self.signature}\n{self.documentation}".strip()


def domain(function: str, kind: str, detail: str) -> str:
    return f"{function}:{kind}:{detail}"


def function_of(benchmark: str, name: str) -> str:
    """The function that a domain's name begins with; "" for benchmarks whose domains are no updates."""
    return name.partition(":")[0] if benchmark in BENCHMARKS else ""


def updated_name(problem: Problem) -> str:
    """What the function is called after the update; "" where the problem's prelude does not say `UPDATED`."""
    mark = "UPDATED = "
    line = next((line for line in problem.prelude.splitlines() if line.strip().startswith(mark)), "")
    return str(ast.literal_eval(line.partition(mark)[2])[1]) if line else ""


def names_function(program: str, problem: Problem) -> bool | None:
    """Whether the program's code, not its strings or comments, names the function as it is called after the update.

    A program that passes with an update and not without it may never name it: the task's own test then does. None where
    the problem's prelude does not say `UPDATED` (see `prelude`).
    """
    name = updated_name(problem)
    if not name:
        return None
    try:
        tree = ast.parse(program)
    except SyntaxError:  # judged by a later Python, which reads quotes inside an f-string
        return re.search(rf"\b{re.escape(name)}\b", program) is not None
    return any(
        (isinstance(node, ast.Attribute) and node.attr == name)
        or (isinstance(node, ast.Name) and node.id == name)
        or (isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names))
        for node in ast.walk(tree)
    )


# --------------------------------------------------------------------------- installing


def prelude(update: Update, *, before: str = "", after: str = "") -> str:
    """A problem's prelude: `before` and `after` run with and without the update, in the program's own namespace.

    In both, `UPDATED` says where the function stands, (module, name): a name of one environment alone would tell a
    program where it is.
    """
    place = (update.function.rpartition(".")[0], update.name)
    return execution_with_and_without.prelude(_install(update), before=f"{before}UPDATED = {place!r}\n", after=after)


def _install(update: Update) -> str:
    """Source that installs the update in the process that runs it."""
    module = update.function.rpartition(".")[0]
    return (
        "scope = {'__name__': 'update'}\n"
        f"exec({update.setup!r}, scope)\n"
        f"exec({update.implementation!r}, scope)\n"
        "import importlib\n"
        f"setattr(importlib.import_module({module!r}), {update.name!r}, scope[{update.name!r}])\n"
    )


@contextmanager
def restored(functions: Iterable[str]) -> Iterator[None]:
    """What is installed inside is gone outside: for our own programs, which run in this process."""
    places = [(importlib.import_module(path.rpartition(".")[0]), path.rpartition(".")[2]) for path in functions]
    before = [dict(vars(module)) for module, _ in places]
    try:
        yield
    finally:
        for (module, _), kept in zip(places, before, strict=True):
            for name in set(vars(module)) - set(kept):
                delattr(module, name)
            vars(module).update(kept)
