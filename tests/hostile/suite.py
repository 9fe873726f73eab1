"""The hostile suite: one file a program, with what a correct scorer reports in its first lines. Runs stand-alone.

`python tests/hostile/suite.py BACKEND [--without LAYER] [--brief] [--only NAME]` prints one JSON line per program, in
any order, and a last one with what is left on the machine. It imports the sandbox only, so any Python 3.11 with nothing
installed can run it, as any user.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
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
# Other ways in which tests treat a candidate, for the attacks that need one: `# test: NAME` in a program's head.
TESTS = {
    "": TEST,
    "walks": """
def check(candidate):
    assert list(candidate([3, 1, 2])) == [1, 2, 3]
    assert sorted(candidate([])) == []
""",
    "large": """
def check(candidate):
    data = list(range(400_000, 0, -1))
    assert candidate(data) == sorted(data)
""",
    "numpy": """
def check(candidate):
    try:
        import numpy
    except ImportError:
        assert candidate([3, 1, 2]) == [1, 2, 3]
    else:
        assert numpy.allclose(candidate([3, 1, 2]), [1, 2, 3])
""",
    # An argument that hangs on the answer before: nothing behind it is sent ahead.
    "one by one": """
def check(candidate):
    first = candidate([3, 1, 2])
    assert first == [1, 2, 3]
    assert candidate(first + []) == [1, 2, 3]
    assert candidate([5, 5, -1]) == [-1, 5, 5]
    assert candidate([]) == []
""",
    "catches": """
def check(candidate):
    for data in ([3, 1, 2], [], [5, 5, -1]):
        try:
            assert candidate(data) == sorted(data)
        except BaseException:
            pass
""",
    "random": """
import random
def check(candidate):
    for _ in range(5):
        wanted = [random.randrange(10**9) for _ in range(3)]
        assert candidate([]) == wanted
""",
    "asks methods": """
def check(candidate):
    assert candidate([3, 1, 2]).count(7) == 1000
""",
    "walks twice": """
def check(candidate):
    found = candidate([3, 1, 2])
    assert list(found) != []
    assert list(found) == [] and next(iter(found), 0) == 0
    assert candidate([3, 1, 2]) == [1, 2, 3]
""",
    "says what it got": """
def check(candidate):
    out = candidate([3, 1, 2])
    assert out == [1, 2, 3], out
""",
    "compares with a part": """
def check(candidate):
    out = candidate([3, 1, 2])
    assert [1, 2, 3] == out.size
""",
    "passes on": """
def check(candidate):
    assert candidate(candidate([3, 1, 2])) == [1, 2, 3]
    assert candidate([candidate([3, 1, 2])]) == [[1, 2, 3]]
""",
}


class Case(NamedTuple):
    name: str
    code: str
    outcome: str
    kind: str  # "" if any will do
    needs_walls: bool  # an attack on files, network or processes: the weak backend does not claim to stop it
    test: str  # a name in TESTS


def cases() -> list[Case]:
    found = []
    for path in sorted((HERE / "programs").glob("*.py")):
        code = path.read_text()
        head = dict(line[2:].split(": ", 1) for line in code.split("\n")[1:4] if line.startswith("# ") and ": " in line)
        outcome, _, kind = head["expect"].partition(" ")
        found.append(Case(path.stem, code, outcome, kind.strip(), head.get("needs") == "walls", head.get("test", "")))
    return found


SLOW_ONES_KEPT = ("drips", "endless_loop", "sleeps")


def chosen(*, weak: bool, brief: bool, only: Sequence[str] = ()) -> list[Case]:
    """What a backend is tried with; `brief` leaves out most of those that end by a time limit."""
    found = [c for c in cases() if not (weak and c.needs_walls) and (not only or c.name in only)]
    return [c for c in found if not brief or c.outcome != "timed_out" or c.name in SLOW_ONES_KEPT]


def run(backend: str, without: tuple[str, ...], *, brief: bool, only: Sequence[str] = ()) -> list[dict[str, object]]:
    """Every program that the backend claims to hold, on two lanes, with honest ones between."""
    from rune.types import Program

    part = importlib.import_module(f"rune.sandbox.{backend}")
    weak = backend == "subprocess"
    settings = part.Config(
        workers=2, cpu_seconds=0.7, wall_seconds=1.0, memory_mb=512, without=without, allow_weak=weak
    )
    sandbox = part.build(settings)
    # The work folder must be empty again and open to all; where Landlock is the only wall there is none.
    has_folder = "namespaces" in sandbox.layers or backend != "fork"
    looks = "os.listdir()\n    open('mine', 'w').close()\n    os.unlink('mine')" if has_folder else "[]"
    good = f"import os\n# EARLIER {{n}}\ndef solve(x):\n    found = {looks}\n    return sorted(x) + found\n"
    programs = []
    for number, case in enumerate(chosen(weak=weak, brief=brief, only=only)):
        programs.append(Program(key=case.name, code=case.code, test=TESTS[case.test], entry_point="solve"))
        # What one program did must not be felt by the next: no file, no limit, no signal.
        code = good.format(n=number)
        programs.append(Program(key=f"after {case.name}", code=code, test=TEST, entry_point="solve"))
    results = [dataclasses.asdict(e) for e in sandbox.judge(programs)]
    sandbox.close()
    return results


def descendants() -> list[str]:
    """Command lines of all that this process started or, being their reaper, has been left with."""
    found = []
    waiting = [os.getpid()]
    while waiting:
        for task in Path(f"/proc/{waiting.pop()}/task").glob("*"):
            for pid in (task / "children").read_text().split():
                waiting.append(int(pid))
                found.append(
                    Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").replace("\0", " ")[:200]
                    or f"process {pid}"
                )
    return found


def reap() -> None:
    """Orphans that have ended are this process's to bury."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def possessions() -> set[str]:
    """Descriptors of this process, and what this user has where a program or a sandbox could leave a thing."""
    found = {f"descriptor {path.name}" for path in Path("/proc/self/fd").iterdir()}
    shared = [("/dev/shm", "*"), ("/dev/mqueue", "*")] if os.geteuid() else []  # others use them too, as root
    here = tempfile.gettempdir()  # a folder of this run's own: other tests' sandboxes stand in /tmp
    for place, pattern in ((here, "rune-box-*"), (here, "pymp-*"), *shared):
        found |= {str(path) for path in Path(place).glob(pattern) if path.lstat().st_uid == os.geteuid()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("backend")
    parser.add_argument("--without", action="append", default=[])
    parser.add_argument("--brief", action="store_true")
    parser.add_argument("--only", action="append", default=[])
    args = parser.parse_args()
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # orphans become this process's children, so that none is overlooked
    before = possessions()
    for result in run(args.backend, tuple(args.without), brief=args.brief, only=args.only):
        print(json.dumps(result))
    deadline = time.monotonic() + 5
    while reap() or (descendants() and time.monotonic() < deadline):
        time.sleep(0.05)
    print(json.dumps({"left": [*descendants(), *sorted(possessions() - before)]}))


if __name__ == "__main__":
    sys.path.insert(0, str(SOURCE))
    main()
