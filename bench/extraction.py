"""Does taking the program out of an answer keep it right? References of all data sets, with demonstrations added.

    .venv/bin/python bench/extraction.py [--data ../shared/data] [--limit N] [--out results/extraction.json]

Each reference is written in several shapes (as it is; under a condition; behind a registry; reading a table that is
filled afterwards), with the calls, prints and tests that models append, and put into an answer with prose, a draft and
fences. What passes as a whole must pass as extracted. Then the stored completions of runs are extracted again: how many
programs change, and which verdicts with them.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rune import console, prompts
from rune.benchmarks import humaneval, mbpp, puzzles
from rune.benchmarks.formats import data as _data
from rune.errors import SandboxError
from rune.runs import store
from rune.sandbox import fork
from rune.types import Outcome, Problem, Program

# Runs that hold their problems, and both completions and the programs that were taken from them.
RUNS = ("results/phase1-0.5b", "results/families-0.5b")


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


def problems(data: Path) -> Iterator[tuple[Problem, str]]:
    """Every reference with the test that judges it, and the calls a model would show it with."""
    for problem in humaneval.build(humaneval.Config()).problems():
        yield problem, ""
    rows = {f"Mbpp/{row['task_id']}": row["test_list"] for row in _data.read(data / "mbpp/mbpp.jsonl")}
    for problem in mbpp.build(mbpp.Config(path=str(data))).problems():
        yield problem, "\n".join(rows[problem.task_id])
    for row in map(json.loads, (data / "cruxeval/cruxeval.jsonl").read_text(encoding="utf-8").splitlines()):
        if "lambda" in row["input"] or "lambda" in row["code"].partition("\n")[0]:
            continue  # a function crosses no wall
        call = f"({row['input']})"
        test = f"def check(candidate):\n    assert candidate{call} == {row['output']}\n"
        yield (
            Problem(
                task_id=f"cruxeval/{row['id']}",
                benchmark="cruxeval",
                prompt="",
                entry_point="f",
                test=test,
                reference=row["code"] + "\n",
            ),
            f"print(f{call})\nassert f{call} == {row['output']}\nresult = f{call}",
        )
    for problem in puzzles.build(puzzles.Config(path=str(data))).problems():
        if problem.reference:
            yield problem, ""


def references(data: Path, limit: int, sandbox: object) -> dict[str, object]:
    """Judge whole and extracted programs of every reference in every shape."""
    programs: dict[str, Program] = {}
    sources: Counter[str] = Counter()
    for number, (problem, demo) in enumerate(problems(data)):
        if limit and number % max(1, 2700 // limit):
            continue
        sources[problem.benchmark] += 1
        for place, shape in enumerate(SHAPES):
            text = answer(shape(problem.reference, problem.entry_point), problem.entry_point, demo, 0)
            laid = answer(shape(problem.reference, problem.entry_point), problem.entry_point, demo, number + place)
            taken = prompts.extract(laid, prompt=problem.prompt, entry_point=problem.entry_point)
            for kind, code in (("whole", text), ("extracted", taken)):
                key = f"{problem.benchmark} {problem.task_id} {shape.__name__} {kind}"
                programs[key] = Program(
                    key=key, code=code, test=problem.test, entry_point=problem.entry_point, prelude=problem.prelude
                )
    found = {}
    with console.Progress("extraction", len(programs), unit="program") as bar:
        while left := [p for p in programs.values() if p.key not in found]:
            try:
                for execution in sandbox.judge(left):  # type: ignore[attr-defined]
                    found[execution.key] = execution
                    bar.advance()
            except SandboxError as error:  # a test whose values cannot cross the wall
                del programs[error.key]
    pairs = [k for k in programs if k.endswith(" whole") and k.removesuffix("whole") + "extracted" in programs]
    whole = [k for k in pairs if found[k].outcome is Outcome.PASSED]
    lost = [k for k in whole if found[k.removesuffix("whole") + "extracted"].outcome is not Outcome.PASSED]
    return {
        "references": sum(sources.values()),
        "by_source": dict(sources),
        "shapes": [s.__name__ for s in SHAPES],
        "passed_whole": len(whole),
        "failed_whole": len(pairs) - len(whole),
        "passed_whole_failed_extracted": len(lost),
        "lost": [
            {"program": k.removesuffix(" whole"), "error": found[k.removesuffix("whole") + "extracted"].error[-300:]}
            for k in lost
        ],
    }


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / f"{name}.gz"
    if path.exists():
        return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    return [row for _, row in store.read_lines(folder / name)] if (folder / name).exists() else []


def stored(folder: Path, sandbox: object) -> dict[str, object]:
    """Extract a run's stored completions again, and judge the programs that changed."""
    tasks = {row["task_id"]: row for row in _rows(folder, "problems.jsonl")}
    samples = _rows(folder, "samples.jsonl")
    old = {(r["condition"], r["task_id"], r["draw"]): r["outcome"] for r in _rows(folder, "verdicts.jsonl")}
    changed = {}
    for row in samples:
        task = tasks[row["task_id"]]
        code = prompts.extract(row["completion"], prompt=task["prompt"], entry_point=task["entry_point"])
        if code != row["program"]:
            place = (row["condition"], row["task_id"], row["draw"])
            changed[place] = Program(
                key="|".join(map(str, place)),
                code=code,
                test=task["test"],
                entry_point=task["entry_point"],
                prelude=task.get("prelude", ""),
            )
    now = {e.key: str(e.outcome) for e in sandbox.judge(changed.values())}  # type: ignore[attr-defined]
    verdicts = [
        {"condition": c, "task_id": t, "draw": d, "before": old.get((c, t, d), ""), "now": now[p.key]}
        for (c, t, d), p in changed.items()
        if old.get((c, t, d), "") != now[p.key]
    ]
    return {"samples": len(samples), "programs_changed": len(changed), "verdicts_changed": verdicts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--limit", type=int, default=0, help="about so many references; 0 means all")
    parser.add_argument("--out", type=Path, default=Path("results/extraction.json"))
    args = parser.parse_args()
    sandbox = fork.build(fork.Config(cpu_seconds=30.0, wall_seconds=60.0))
    try:
        found = {"references": references(args.data, args.limit, sandbox), "stored_completions": {}}
        for run in RUNS:
            found["stored_completions"][run] = stored(Path(run), sandbox)
    finally:
        sandbox.close()
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
