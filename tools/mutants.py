"""Break the core on purpose, many times over, and demand that the fast tests notice each time.

tests/mutants/mutants.toml holds the breakages: file, exact old text, new text, and the tests that should catch
it. Each is applied to a copy of the tree; its tests must then fail. One that survives its own tests is run
against the whole fast suite; one that survives that too means a missing test. Text that is not in its file
exactly once is an error: a mutant that no longer mutates proves nothing.

    python tools/mutants.py                 all, two at a time → artifacts/mutants.json
    python tools/mutants.py NAME …          some
Exit codes: 0 all caught · 1 one survived · 2 the list or the unbroken tree is at fault.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tests" / "mutants" / "mutants.toml"
COPIED = (
    *("src", "tests", "configs", "docs", "results", "studies", "tools", "bench"),
    *("pyproject.toml", "README.md", "LICENSE", "Makefile"),
)
SECONDS = 420  # for one mutant's own tests; running out counts as caught: the tests hang on the breakage
ALL_SECONDS = 5400  # for the tests of all mutants on the unbroken tree, and for the whole suite on a broken one
# Tests of `make check` too: a breakage may be theirs to catch.
PYTEST = (
    sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header",
    "-m", "not model and not slow and not vllm",
)  # fmt: skip
FAILED_TESTS = 1  # pytest's exit code; a file that cannot even be collected is no failed test


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One deliberate breakage."""

    name: str
    why: str  # what would go wrong unnoticed
    file: str
    old: str
    new: str
    tests: tuple[str, ...]  # paths or node ids that should fail


@dataclass(frozen=True, kw_only=True)
class Result:
    name: str
    file: str
    outcome: str  # caught, survived, broken
    by: str  # the first failing test, or what is wrong with the mutant
    seconds: float


def read(path: Path) -> list[Mutant]:
    """The list, each entry checked against its file. Raises ValueError naming the first unfit one."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]
    mutants = [Mutant(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]
    names = [m.name for m in mutants]
    if len(set(names)) != len(names):
        raise ValueError(f"{path}: a name stands twice")
    for mutant in mutants:
        check(mutant, ROOT)
    return mutants


def check(mutant: Mutant, tree: Path) -> None:
    """Raises ValueError if the mutant does not mutate, or names tests that are not there."""
    file = tree / mutant.file
    times = file.read_text(encoding="utf-8").count(mutant.old) if file.is_file() else 0
    if times != 1 or mutant.old == mutant.new:
        raise ValueError(f"{mutant.name}: its old text is {times} times in {mutant.file}, expected once; update it")
    for test in mutant.tests:
        if not (tree / test.partition("::")[0]).exists():
            raise ValueError(f"{mutant.name}: no test at {test}; update it")


def copy_tree(target: Path) -> None:
    """What the tests need, without caches and history."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.pyc", ".*_cache", "*.egg-info")
            shutil.copytree(source, target / name, ignore=ignore)
        elif source.is_file():
            shutil.copy2(source, target / name)


@contextmanager
def applied(mutant: Mutant, tree: Path) -> Iterator[None]:
    file = tree / mutant.file
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole.replace(mutant.old, mutant.new))
    try:
        yield
    finally:
        file.write_text(whole)


def environment(tree: Path) -> dict[str, str]:
    """What tests in `tree` run under: its own package; beside it an empty cache, and an empty temporary folder."""
    cache, scratch = tree.parent / "cache", tree.parent / "tmp"
    for folder in (cache, scratch):
        shutil.rmtree(folder, ignore_errors=True)
    scratch.mkdir(exist_ok=True)
    return {
        **os.environ,
        "PYTEST_ADDOPTS": "",  # the caller's may leave out the lines that say what failed
        "PYTHONPATH": str(tree / "src"),
        "RUNE_CACHE": str(cache),  # verdicts of the unbroken scorer hide a breakage, and a breakage's must not stay
        "TMPDIR": str(scratch),
        "PYTHONDONTWRITEBYTECODE": "1",  # an edit within a second of the last must not meet stale bytecode
        "OMP_NUM_THREADS": "1",
        "RUNE_DATA": os.environ.get("RUNE_DATA") or str(ROOT.parent / "shared" / "data"),
    }


def run_tests(tree: Path, tests: Sequence[str], *extra: str, seconds: float = SECONDS) -> tuple[int, str]:
    """pytest's exit code in `tree` (124 for out of time) and its output."""
    command = [*PYTEST, *extra, *tests]
    process = subprocess.Popen(
        command, cwd=tree, env=environment(tree), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return 124, "out of time"
    return process.returncode, output


def try_one(mutant: Mutant, tree: Path) -> Result:
    """Apply, run its tests, then the whole fast suite if those pass."""
    started = time.monotonic()

    def result(outcome: str, by: str) -> Result:
        return Result(
            name=mutant.name, file=mutant.file, outcome=outcome, by=by, seconds=round(time.monotonic() - started, 1)
        )

    with applied(mutant, tree):
        for tests, seconds in ((mutant.tests, SECONDS), ((), ALL_SECONDS)):
            code, output = run_tests(tree, tests, seconds=seconds)
            if code == 124:
                return result("caught", "the tests do not end")
            if code == FAILED_TESTS and "::" in _first_failure(output):
                return result("caught", _first_failure(output))
            if code != 0:
                return result("broken", f"pytest ended with {code}: {_first_failure(output)}")
    return result("survived", "")


def _first_failure(output: str) -> str:
    return (_failures(output) or [_last_line(output)])[0]


def _failures(output: str) -> list[str]:
    lines = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return [line.split(" - ")[0].removeprefix("FAILED ").removeprefix("ERROR ") for line in lines]


def _last_line(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def baseline(tree: Path, mutants: Iterable[Mutant]) -> str:
    """What fails in the unbroken tree among the tests that must catch the mutants; "" if nothing.

    What fails is tried once more, alone: on a busy machine a test with limits in seconds may fall.
    """
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    whole = [t for t in tests if not any(t != other and t.startswith((other + "/", other + "::")) for other in tests)]
    code, output = run_tests(tree, whole, "-n", "2", "--dist", "loadfile", "--maxfail=10", seconds=ALL_SECONDS)
    failed = _failures(output)
    if code != 0 and 0 < len(failed) < 10:
        code, output = run_tests(tree, failed)
    return "" if code == 0 else f"{_first_failure(output)} (pytest ended with {code})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="only these mutants")
    parser.add_argument("--jobs", type=int, default=2, help="copies of the tree worked in at once")
    parser.add_argument("--json", type=Path, default=ROOT / "artifacts" / "mutants.json")
    args = parser.parse_args()
    try:
        mutants = read(LIST)
    except (ValueError, KeyError, TypeError) as error:
        print(f"mutants: {error}", file=sys.stderr)
        return 2
    unknown = sorted(set(args.names) - {m.name for m in mutants})
    if unknown:
        print(f"mutants: none named '{unknown[0]}' in {LIST}", file=sys.stderr)
        return 2
    chosen = [m for m in mutants if not args.names or m.name in args.names]
    with tempfile.TemporaryDirectory(prefix="rune-mutants-") as scratch:
        Path(scratch).chmod(0o755)  # for tests that run as another user
        trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(args.jobs):
            tree = Path(scratch) / f"tree{number}" / "rune"
            tree.mkdir(parents=True)
            copy_tree(tree)
            trees.put(tree)
        first = trees.get()
        if fault := baseline(first, chosen):
            print(f"mutants: the unbroken tree fails already: {fault}", file=sys.stderr)
            return 2
        trees.put(first)

        def work(mutant: Mutant) -> Result:
            tree = trees.get()
            try:
                return try_one(mutant, tree)
            finally:
                trees.put(tree)

        results: list[Result] = []
        width = max(len(m.name) for m in chosen)
        with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
            for done in concurrent.futures.as_completed([pool.submit(work, m) for m in chosen]):
                result = done.result()
                results.append(result)
                print(f"{result.outcome:<9}{result.name:<{width}}  {result.seconds:6.1f} s  {result.by}", flush=True)
    order = {m.name: i for i, m in enumerate(chosen)}
    results.sort(key=lambda r: order[r.name])
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps([asdict(r) for r in results], indent=2) + "\n")
    counts = {kind: sum(r.outcome == kind for r in results) for kind in ("caught", "survived", "broken")}
    print(f"\n{counts['caught']} of {len(results)} caught, {counts['survived']} survived, {counts['broken']} broken")
    return 1 if counts["survived"] else 2 if counts["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
