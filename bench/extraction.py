"""Does taking the program out of an answer keep it right? References of all data sets, with demonstrations added.

    .venv/bin/python bench/extraction.py [--data ../shared/data] [--limit N] [--out FILE]

Each reference is written in several shapes (as it is; under a condition; behind a registry; reading a table that is
filled afterwards), with the calls, prints and tests that models append, and put into an answer with prose, a draft and
fences. What passes as a whole must pass as extracted. Then every completion that is committed under results/, in run
folders and in archives, is extracted again: how many programs change, and which verdicts with them. A program that
changed is judged today beside the one that was scored, so that what differs is the extraction alone.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import tarfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import rejudge

from rune import console, prompts
from rune.benchmarks import (
    api_updates,
    code_update_arena,
    families,
    humaneval,
    humaneval_plus,
    mbpp,
    mbpp_plus,
    private_library,
    puzzles,
)
from rune.benchmarks.formats import data as _data
from rune.benchmarks.scorers import updates
from rune.errors import DataError, SandboxError
from rune.runs import store
from rune.sandbox import fork
from rune.stages import score
from rune.types import Execution, Outcome, Problem, Program, Sample, Sandbox

UPDATES = 200  # of the generated API updates, 4 tasks each
# Many of a kind, or slow: one shape each.
IN_TURN = ("families", "api_updates", "humaneval_plus", "mbpp_plus", "code_update_arena", "private_library")
LENT = (*fork.Config().packages, *code_update_arena.LENT)
# Judged together, and written when they are done: what imports libraries, what is quick, what is slow.
PARTS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("code_update_arena", "private_library"), {"packages": LENT, "memory_mb": 4096}),
    (("humaneval", "mbpp", "cruxeval", "puzzles", "families", "api_updates"), {}),
    (("humaneval_plus", "mbpp_plus"), {}),
)


def plain(code: str, entry: str) -> str:
    return code


def conditional(code: str, entry: str) -> str:
    """All of it under conditions that hold."""
    body = ast.parse(code).body
    future = [ast.unparse(n) for n in body if isinstance(n, ast.ImportFrom) and n.module == "__future__"]
    rest = "\n".join(ast.unparse(n) for n in body if ast.unparse(n) not in future)
    return "\n".join([*future, "import sys", "try:", "    if sys.maxsize > 0:", textwrap.indent(rest, " " * 8)]) + (
        "\nexcept ImportError:\n    raise\n"
    )


def registry(code: str, entry: str) -> str:
    """The function is entered in a table by a decorator, and found there."""
    return (
        f"{code}\n\n_FOUND = {{}}\n\n\ndef _enter(name):\n    def note(f):\n        _FOUND[name] = f\n"
        f"        return f\n    return note\n\n\n_first = {entry}\n\n\n@_enter('it')\ndef _kept(*args, **options):\n"
        f"    return _first(*args, **options)\n\n\ndef {entry}(*args, **options):\n"
        f"    return _FOUND['it'](*args, **options)\n"
    )


def filled(code: str, entry: str) -> str:
    """What the function calls stands in a table that statements fill, by methods, loops and items."""
    return (
        f"{code}\n\n_ROWS = []\n_ROWS.append([{entry}])\nfor _row in _ROWS:\n    _row.insert(0, None)\n_TABLE = {{}}\n"
        f"_TABLE['row'] = _ROWS[0]\n_TABLE.update(last=1)\n\n\ndef {entry}(*args, **options):\n"
        f"    return _TABLE['row'][_TABLE['last']](*args, **options)\n\n\n{entry}.calls = 0\n"
    )


Shape = Callable[[str, str], str]
SHAPES: tuple[Shape, ...] = (plain, conditional, registry, filled)


def answer(program: str, entry: str, demo: str, style: int) -> str:
    """A whole answer that ends in demonstrations; `style` picks how it is laid out."""
    shown = (
        f"{program}\n\ndef test_{entry}():\n    assert callable({entry})\n\n\ntest_{entry}()\n"
        f"print({entry}, 'is here')\n{demo}\nif __name__ == '__main__':\n    raise SystemExit({entry}.__name__)\n"
    )
    draft = f"def {entry}(*args):\n    return None\n"
    return (
        shown,
        f"{shown}```\nThis should do.",
        f"<think>\nPerhaps\n```python\n{draft}```\n</think>\nHere it is:\n```python\n{shown}```\n",
        f"A first try:\n~~~python\n{draft}~~~\nBetter:\n\n1. this\n\n   ```py\n{textwrap.indent(shown, '   ')}   ```\n"
        if "'''" not in shown and '"""' not in shown
        else f"A first try:\n~~~python\n{draft}~~~\nBetter:\n~~~~\n{shown}~~~~\n",
    )[style % 4]


class Reference(NamedTuple):
    """A right program, the test that judges it, and the calls a model would show it with."""

    problem: Problem
    demo: str
    spoken: Callable[[str], str] = str  # what of a program is run: a private library's names are its public ones

    @property
    def key(self) -> str:
        return f"{self.problem.benchmark} {self.problem.task_id}"


def references(data: Path) -> Iterator[Reference]:
    """The references of all data sets."""
    for problem in humaneval.build(humaneval.Config()).problems():
        # Models repeat the tests that they know from the task's page.
        yield Reference(problem, f"{problem.test}\ncheck({problem.entry_point})")
    rows = {f"Mbpp/{row['task_id']}": row["test_list"] for row in _data.read(data / "mbpp/mbpp.jsonl")}
    for problem in mbpp.build(mbpp.Config(path=str(data))).problems():
        yield Reference(problem, "\n".join(rows[problem.task_id]))
    yield from _cruxeval(data)
    for problem in puzzles.build(puzzles.Config(path=str(data))).problems():
        if problem.reference:
            yield Reference(problem, "")
    yield from (Reference(p, "") for p in families.build(families.Config()).problems())
    yield from (Reference(p, "") for p in api_updates.build(api_updates.Config(updates=UPDATES)).problems())
    yield from (Reference(p, "") for p in code_update_arena.build(code_update_arena.Config(path=str(data))).problems())
    for library in ("beatnum", "monkey", "numpy", "pandas"):
        part = private_library.build(private_library.Config(library=library, path=str(data)))  # type: ignore[arg-type]
        named = (p for p in part.problems() if p.entry_point)  # the others are statements, without a function
        yield from (Reference(p, "", part.names().back) for p in named)
    for problem in humaneval_plus.build(humaneval_plus.Config(path=str(data))).problems():
        yield Reference(problem, "")
    for problem in mbpp_plus.build(mbpp_plus.Config(path=str(data))).problems():
        yield Reference(problem, "\n".join(rows[problem.task_id]))


def _cruxeval(data: Path) -> Iterator[Reference]:
    for row in map(json.loads, (data / "cruxeval/cruxeval.jsonl").read_text(encoding="utf-8").splitlines()):
        if "lambda" in row["input"] or "lambda" in row["code"].partition("\n")[0]:
            continue  # a function crosses no wall
        call = f"({row['input']})"
        test = f"def check(candidate):\n    assert candidate{call} == {row['output']}\n"
        problem = Problem(
            task_id=f"cruxeval/{row['id']}",
            benchmark="cruxeval",
            prompt="",
            entry_point="f",
            test=test,
            reference=row["code"] + "\n",
        )
        yield Reference(problem, f"print(f{call})\nassert f{call} == {row['output']}\nresult = f{call}")


def shapes_of(given: Reference, number: int) -> tuple[Shape, ...]:
    """Every shape, or one in turn."""
    return (SHAPES[number % len(SHAPES)],) if given.problem.benchmark in IN_TURN else SHAPES


def programs_of(given: Reference, number: int) -> Iterator[Program]:
    """A reference in its shapes, each whole and as it is taken out of an answer."""
    problem, entry = given.problem, given.problem.entry_point
    for place, shape in enumerate(shapes_of(given, number)):
        shaped = shape(problem.reference, entry)
        laid = answer(shaped, entry, given.demo, number // len(SHAPES) + place)
        taken = prompts.extract(laid, prompt=problem.prompt, entry_point=entry)
        for kind, code in (("whole", answer(shaped, entry, given.demo, 0)), ("extracted", taken)):
            yield Program(
                key=f"{given.key} {shape.__name__} {kind}",
                code=given.spoken(code),
                test=problem.test,
                entry_point="" if problem.benchmark == "private_library" else entry,
                prelude=problem.prelude,
            )


def judged(given: Iterable[tuple[int, Reference]], sandbox: Sandbox, bar: console.Progress) -> dict[str, Execution]:
    """Every program's execution by its key; those that the sandbox cannot judge are left out."""
    programs = {p.key: p for number, reference in given for p in programs_of(reference, number)}
    found: dict[str, Execution] = {}
    while left := [p for p in programs.values() if p.key not in found]:
        try:
            for execution in sandbox.judge(left):
                found[execution.key] = execution
                bar.advance()
        except SandboxError as error:  # a test whose values cannot cross the wall
            del programs[error.key]
            bar.advance()
    return found


def compared(given: list[tuple[int, Reference]], found: dict[str, Execution]) -> dict[str, object]:
    """What passes whole, and what of it does not pass as extracted."""
    pairs = {k.removesuffix(" whole"): k.removesuffix("whole") + "extracted" for k in found if k.endswith(" whole")}
    pairs = {name: extracted for name, extracted in pairs.items() if extracted in found}
    whole = [name for name in pairs if found[f"{name} whole"].outcome is Outcome.PASSED]
    lost = [name for name in whole if found[pairs[name]].outcome is not Outcome.PASSED]
    passed = set(whole)
    failed = sorted(set(pairs) - passed)
    return {
        "references": len(given),
        "by_source": dict(Counter(reference.problem.benchmark for _, reference in given)),
        "references_passed_whole_by_source": dict(
            Counter(r.problem.benchmark for _, r in given if any(f"{r.key} {s.__name__}" in passed for s in SHAPES))
        ),
        "shapes": [s.__name__ for s in SHAPES],
        "programs": len(pairs),
        "passed_whole": len(whole),
        "failed_whole": len(failed),
        "failed_whole_by_source": dict(Counter(name.split()[0] for name in failed)),
        "not_judged": sum(len(shapes_of(r, n)) for n, r in given) - len(pairs),
        "passed_whole_failed_extracted": len(lost),
        "lost": [{"program": name, "error": found[pairs[name]].error[-300:]} for name in lost],
    }


def _parses(code: str) -> bool:
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True


def chosen(data: Path, limit: int) -> list[tuple[int, Reference]]:
    """All references that are Python, or every n-th, numbered."""
    every = list(enumerate(r for r in references(data) if _parses(r.problem.reference)))
    return every[:: max(1, len(every) // limit)] if limit else every


# --------------------------------------------------------------------------- completions that are committed

_DRAWS = re.compile(r"(?:^|/)(?:samples|context-\d+)\.jsonl$")


def sources(results: Path, data: Path) -> Iterator[rejudge.Source]:
    """Everything under results/ that holds both completions and the programs that were taken from them."""
    for folder in sorted(p for p in results.iterdir() if rejudge.holds_samples(p)):
        yield from rejudge.read(folder)
    yield from archived(results / "reader-layers", rejudge.study(results / "hypernet-0.5b"))
    arena = {p.task_id: p for p in code_update_arena.build(code_update_arena.Config(path=str(data))).problems()}
    for name in ("updates-exploration", "updates-oracle"):
        yield from archived(results / name, arena)
    tasks = {p.task_id: p for p in humaneval.build(humaneval.Config()).problems()}
    for path in sorted((results / "bench-generate-h100").glob("samples-*.jsonl.gz")):
        name = path.name.removesuffix(".gz")
        yield rejudge.Source(path.parent.name, name, tasks, rejudge.lines(path.parent, name, Sample), [])


def archived(folder: Path, tasks: dict[str, Problem]) -> Iterator[rejudge.Source]:
    """The draws in a study's records.tar.xz. Raises DataError if it holds none."""
    path = folder / "records.tar.xz"
    with tarfile.open(path) as archive:
        members = [m for m in archive.getmembers() if _DRAWS.search(m.name)]
        if not members:
            raise DataError(f"{path}: no samples.jsonl or context-N.jsonl in it")
        for member in members:
            file = archive.extractfile(member)
            assert file is not None
            text = file.read().decode()
            where = f"{path}: {member.name}"
            samples = [store.decode(Sample, json.loads(line), where=where) for line in text.splitlines()]
            yield rejudge.Source(folder.name, member.name.removeprefix("./"), tasks, samples, [])


class Changed(NamedTuple):
    """A sample whose program would be another one today."""

    run: str
    place: str
    sample: Sample
    problem: Problem
    program: str  # today's


def stored(results: Path, data: Path, limits: dict[str, Any]) -> dict[str, object]:
    """Every committed completion extracted again; the programs that changed are judged, before and now."""
    found: dict[str, Any] = {}
    changed: list[Changed] = []
    taken: dict[tuple[str, str, str], str] = {}
    for source in sources(results, data):
        entry = found.setdefault(source.run, {"samples": 0, "programs_changed": 0, "verdicts_changed": []})
        for sample in source.samples:
            problem = source.problems[sample.task_id]
            asked = (sample.completion, problem.prompt, problem.entry_point)
            if asked not in taken:
                taken[asked] = prompts.extract(asked[0], prompt=asked[1], entry_point=asked[2])
            entry["samples"] += 1
            if taken[asked] != sample.program:
                entry["programs_changed"] += 1
                changed.append(Changed(source.run, source.place, sample, problem, taken[asked]))
    for one, (before, now) in zip(changed, verdicts(changed, limits), strict=True):
        if before != now:
            place = {"place": one.place, "condition": one.sample.condition, "task_id": one.sample.task_id}
            told = {**place, "draw": one.sample.draw, "before": before, "now": now}
            found[one.run]["verdicts_changed"].append(told)
    return found


def verdicts(changed: list[Changed], limits: dict[str, Any]) -> list[tuple[str, str]]:
    """(before, now) of each. Of API updates it counts too whether the program passes because it uses the update."""
    said: dict[str, str] = {}
    codes = {f"{n} {when}": (c.problem, code) for n, c in enumerate(changed) for when, code in _both(c)}
    arena = {key: pair for key, pair in codes.items() if pair[0].benchmark == "code_update_arena"}
    with closing(fork.build(fork.Config(**limits))) as sandbox:
        jobs = (score.program(key, code, problem) for key, (problem, code) in codes.items() if key not in arena)
        said |= {e.key: str(e.outcome) for e in sandbox.judge(jobs)}
    with closing(fork.build(fork.Config(**limits, packages=LENT))) as sandbox:
        for graded in updates.judge(sandbox, ((key, *pair) for key, pair in arena.items())):
            said[graded.key] = f"{graded.plain.outcome}{', used' if graded.used else ''}"
    return [(said[f"{n} before"], said[f"{n} now"]) for n in range(len(changed))]


def _both(one: Changed) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("before", one.sample.program), ("now", one.program)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--limit", type=int, default=0, help="about so many references; 0 means all")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results/extraction.json"))
    args = parser.parse_args()
    given = chosen(args.data, args.limit)
    limits = {"cpu_seconds": 30.0, "wall_seconds": 120.0, "workers": args.workers}
    found: dict[str, Any] = {}
    executions: dict[str, Execution] = {}
    total = 2 * sum(len(shapes_of(r, n)) for n, r in given)
    begun = time.monotonic()
    found["stored_completions"] = stored(ROOT / "results", args.data, limits)
    done: list[tuple[int, Reference]] = []
    with console.Progress("extraction", total, unit="program") as bar:
        for benchmarks, more in PARTS:
            part = [(n, r) for n, r in given if r.problem.benchmark in benchmarks]
            with closing(fork.build(fork.Config(**limits, **more))) as sandbox:
                executions |= judged(part, sandbox, bar)
            done += part
            found["references"] = compared(done, executions) | {"seconds": round(time.monotonic() - begun)}
            found["finished"] = len(done) == len(given)
            store.write_json(args.out, found)
    told = found["references"]
    console.out(f"{told['passed_whole']} pass whole, {told['passed_whole_failed_extracted']} of them fail as extracted")
    console.out(
        json.dumps(
            {k: (v["programs_changed"], len(v["verdicts_changed"])) for k, v in found["stored_completions"].items()}
        )
    )


if __name__ == "__main__":
    main()
