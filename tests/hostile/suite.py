"""The hostile suite: one file a program, with what a correct scorer reports in its first lines. Runs stand-alone.

`python tests/hostile/suite.py BACKEND [without,…]` prints one JSON line per program, in any order. It imports
the sandbox only, so any Python 3.11 with nothing installed can run it, as any user.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1] / "src"
TEST = """
# MARKER-7f3a: what a search through memory would find
def check(candidate):
    assert candidate([3, 1, 2]) == [1, 2, 3]
    assert candidate([]) == []
    data = [5, 5, -1]
    assert candidate(data) == sorted(data)
"""


class Case(NamedTuple):
    name: str
    code: str
    outcome: str
    kind: str  # "" if any will do
    needs_walls: bool  # an attack on files, network or processes: the weak backend does not claim to stop it


def cases() -> list[Case]:
    found = []
    for path in sorted((HERE / "programs").glob("*.py")):
        code = path.read_text()
        head = code.split("\n", 3)
        outcome, _, kind = head[1].removeprefix("# expect: ").partition(" ")
        found.append(Case(path.stem, code, outcome, kind.strip(), head[2] == "# needs: walls"))
    return found


SLOW_ONES_KEPT = ("endless_loop", "sleeps")


def chosen(*, weak: bool, brief: bool) -> list[Case]:
    """What a backend is tried with; `brief` leaves out most of those that end by a time limit."""
    found = [c for c in cases() if not (weak and c.needs_walls)]
    return [c for c in found if not brief or c.outcome != "timed_out" or c.name in SLOW_ONES_KEPT]


def run(backend: str, without: tuple[str, ...], *, brief: bool) -> list[dict[str, object]]:
    """Every program that the backend claims to hold, on two lanes, with honest ones between."""
    from rune.types import Program

    part = importlib.import_module(f"rune.sandbox.{backend}")
    weak = backend == "subprocess"
    settings = part.Config(
        workers=2, cpu_seconds=1.0, wall_seconds=1.5, memory_mb=512, without=without, allow_weak=weak
    )
    sandbox = part.build(settings)
    # In a walled lane the work folder must be empty again; a program without one may not even look.
    looks = "namespaces" in sandbox.layers or backend == "bubblewrap"
    held = "os.listdir()" if looks else "[]"
    good = f"import os\n# EARLIER {{n}}\ndef solve(x): return sorted(x) + {held}\n"
    programs = []
    for number, case in enumerate(chosen(weak=weak, brief=brief)):
        programs.append(Program(key=case.name, code=case.code, test=TEST, entry_point="solve"))
        # What one program did must not be felt by the next: no file, no limit, no signal.
        code = good.format(n=number)
        programs.append(Program(key=f"after {case.name}", code=code, test=TEST, entry_point="solve"))
    results = [dataclasses.asdict(e) for e in sandbox.judge(programs)]
    sandbox.close()
    return results


if __name__ == "__main__":
    sys.path.insert(0, str(SOURCE))
    for result in run(sys.argv[1], tuple(filter(None, ",".join(sys.argv[2:]).split(","))), brief=True):
        print(json.dumps(result))
