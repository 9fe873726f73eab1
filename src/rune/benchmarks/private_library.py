"""BeatNum and Monkey (Zan et al. 2022, "When Language Model Meets Private Library"): numpy and pandas renamed.

A domain is a library; what a task's solution needs is what the others' solutions show. A program is judged by putting
the public names back, in its whole text and longest first, and running it under the test of its public twin. One that
uses the public name of something renamed has not used the private library and fails.

The tests compare arrays and tables, which do not cross as plain data, so they run in the box, as CodeUpdateArena's do
(see there for what that means). A task continues the given beginning of a program; some define a function.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rune.benchmarks.formats import data
from rune.errors import DataError
from rune.types import Execution, FailureKind, Outcome, Problem, Program, Sandbox, Split

LIBRARIES = {"beatnum": "numpy", "monkey": "pandas"}  # private → public
FOLDER = "private_library"
HUB = data.OnHub("none", "", 0)
SHA256 = {
    "beatnum_eval.jsonl.gz": "8acd87fafdc3bb45b4fe0e2cfb0d77222cfd728b41eb63b883b7eb868f6d5c71",
    "monkey_eval.jsonl.gz": "bf1f5bf74f71b69093021e4a62b7a49bd5d294dad8c347de82831070e10853a1",
    "numpy_eval.jsonl.gz": "b33dd8a480439d4dc367b5acd1cebd2dc46dbacdd59da27b7a13d33f9fe6762a",
    "pandas_eval.jsonl.gz": "675c303b68fc57ac0d27000b2b9cdee002fce1eb53613aa7e0343dcbf417af78",
    "renames.json": "1b79d9a8b5f6897273f9180ddf461608e9f90fda938044175625e8539d1addb0",
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """`[benchmark.settings]`."""

    library: Literal["beatnum", "monkey", "numpy", "pandas"] = "beatnum"  # the last two: the public twins, as sanity
    path: str = ""  # the folder of the files or the one above; "" = from RUNE_DATA
    verify: bool = True  # refuse files that are not the pinned ones


@dataclass(frozen=True, slots=True)
class PrivateLibrary:
    """The benchmark: 101 tasks of one library, all held out."""

    config: Config

    def problems(self) -> list[Problem]:
        """Raises DataError."""
        name = self.config.library
        public = LIBRARIES.get(name, name)
        records, path = self._read(f"{name}_eval.jsonl.gz")
        twins = {twin["task_id"]: twin for twin in self._read(f"{public}_eval.jsonl.gz")[0]}
        names = Names.of(self.renames(), name)
        return [_problem(record, twins, names, name, path) for record in records]

    def renames(self) -> dict[str, dict[str, str]]:
        """Library → public name → private name."""
        path = data.locate(self.config.path, f"{FOLDER}/renames.json", hub=HUB.name)
        data.check(path, SHA256, verify=self.config.verify)
        found: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def names(self) -> Names:
        """How programs are put back into public names. A public twin's are left as they are."""
        return Names.of(self.renames(), self.config.library)

    def _read(self, name: str) -> tuple[list[dict[str, Any]], Path]:
        return data.load(self.config.path, f"{FOLDER}/{name}", SHA256, hub=HUB, verify=self.config.verify)


def build(config: Config) -> PrivateLibrary:
    return PrivateLibrary(config)


@dataclass(frozen=True, slots=True)
class Names:
    """What is called otherwise in a private library."""

    public: Mapping[str, str]  # private → public

    @classmethod
    def of(cls, renames: Mapping[str, Mapping[str, str]], library: str) -> Names:
        return cls({private: public for public, private in renames.get(library, {}).items()})

    def back(self, text: str) -> str:
        """`text` in public names."""
        if not self.public:
            return text
        longest = sorted(self.public, key=len, reverse=True)
        return re.sub("|".join(map(re.escape, longest)), lambda found: self.public[found[0]], text)

    def slip(self, code: str) -> str:
        """The first attribute, import or keyword argument that has a public name in place of a private one, or ""."""
        hidden = set(self.public.values())
        try:
            nodes = list(ast.walk(ast.parse(code)))
        except (SyntaxError, ValueError, RecursionError):
            return ""
        for node in nodes:
            used = ""
            if isinstance(node, ast.Attribute):
                used = node.attr
            elif isinstance(node, ast.Import):
                used = node.names[0].name.partition(".")[0]
            elif isinstance(node, ast.ImportFrom):
                used = (node.module or "").partition(".")[0]
            if used in hidden:
                return used
        return ""


def judge(sandbox: Sandbox, programs: Iterable[tuple[str, Problem, str]], names: Names) -> Iterator[Execution]:
    """(key, problem, code) → verdicts, in any order."""
    honest = []
    for key, problem, code in programs:
        if slip := names.slip(code):
            text = f"'{slip}' is not a name of {problem.domain}"
            yield Execution(
                key=key, outcome=Outcome.FAILED, error_kind=FailureKind.RAISED, raised="AttributeError", error=text
            )
            continue
        honest.append(
            Program(key=key, code=names.back(code), test=problem.test, entry_point="", prelude=problem.prelude)
        )
    yield from sandbox.judge(honest)


def _problem(
    record: Mapping[str, Any], twins: Mapping[str, Mapping[str, Any]], names: Names, library: str, path: Path
) -> Problem:
    task, prompt, solutions = data.need(record, "task_id", "prompt", "canonical_solution", where=path)
    twin = twins.get(task)
    if twin is None:
        raise DataError(f"{path}: task {task} has no public twin")
    (test,) = data.need(twin, "test", where=path)
    defined = re.findall(r"^def\s+(\w+)", prompt, flags=re.MULTILINE)
    entry = str(defined[-1]) if defined and record.get("entry_point") != "none" else ""
    return Problem(
        task_id=f"{library}/{str(task).partition('/')[2]}",
        benchmark=FOLDER,
        prompt=prompt,
        entry_point=entry,
        test="def check(candidate):\n    run_library_test()\n",
        reference=f"{prompt}{solutions[0]}\n",
        category=library,
        split=Split.HELD_OUT,
        prelude=_prelude(test, names.back(entry), LIBRARIES.get(library, library)),
        domain=library,
    )


def _prelude(test: str, entry: str, public: str) -> str:
    short = {"numpy": "np", "pandas": "pd"}[public]
    return f"""if __name__ != '__test__':
    def run_library_test():
        import {public} as {short}
        scope = globals() | {{{short!r}: {short}}}
        exec({test!r}, scope)
        check = scope['check']
        check({f"scope[{entry!r}]" if entry else ""})
"""
