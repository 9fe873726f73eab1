"""A hundred programs that try to pass, to get out or to stay: none may, with any backend, as root or not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.hostile import ordinary, suite

ROOT = os.geteuid() == 0
CASES = {c.name: c for c in suite.cases()}
BACKENDS = [("fork", ""), ("fork", "namespaces"), ("bubblewrap", ""), ("subprocess", "")]
EVERYTHING = os.environ.get("RUNE_HOSTILE") == "all"  # `make check`: nothing is skipped or left out
FIRST, *REST = BACKENDS
AS_ROOT = [FIRST, *(pytest.param(*b, marks=pytest.mark.check) for b in REST)]
AS_NOBODY = [pytest.param(*b, marks=pytest.mark.check) for b in BACKENDS] if ROOT else AS_ROOT
SOME = ("always_equal", "endless_loop", "honest_recursion", "says_passed", "writes_files")  # the probe's

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="walls are Linux's"),
]


def not_here(reason: str) -> None:
    """A backend that is missing is no reason to fail, except where all of them are promised (CI)."""
    if promised := os.environ.get("RUNE_HOSTILE"):
        pytest.fail(f"RUNE_HOSTILE={promised}, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def place() -> Iterator[ordinary.Place]:
    made = ordinary.place()
    yield made
    shutil.rmtree(made.folder)


def demand(backend: str, place: ordinary.Place | None) -> None:
    """Skip where a backend is not installed, or where this kernel does not let this user use it."""
    if backend != "bubblewrap":
        return
    path = shutil.which("bwrap")
    if path is None:
        not_here("bubblewrap is not installed")
    command = [path, "--unshare-all", "--ro-bind", "/", "/", "/bin/true"]
    starts = f"import subprocess; subprocess.run({command}, check=True)"
    here = subprocess.run([sys.executable, "-c", starts], capture_output=True, text=True, check=False)
    done = here if place is None else ordinary.run(place, "-S", "-c", starts)
    if done.returncode:
        pytest.skip(f"bubblewrap may not make namespaces here: {done.stderr}")


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_held(
    results: list[dict[str, Any]], *, weak: bool = False, brief: bool = True, only: Sequence[str] = ()
) -> None:
    assert results.pop() == {"left": []}
    expected = {case.name for case in suite.chosen(weak=weak, brief=brief, only=only)}
    names = {r["key"] for r in results}
    assert names == expected | {f"after {name}" for name in expected}
    for result in results:
        name, found = result["key"], result["outcome"]
        what = f"{name}: {found} {result['error_kind']} {result['raised']}: {result['error'][-300:]}"
        assert "returned 'ESCAPED" not in result["error"], what
        result["error"].encode()
        assert not [c for c in result["error"] if unicodedata.category(c) == "Cc" and c not in "\n\t"], what
        assert len(result["error"]) <= 1500, what
        if name.startswith("after "):
            assert found == "passed", what
            continue
        case = CASES[name]
        assert found == case.outcome or (case.outcome == "not-passed" and found != "passed"), what
        assert not case.kind or case.kind == (result["error_kind"] + " " + result["raised"]).strip(), what
    assert not list(Path("/tmp").glob("rune-escaped*"))


def options(backend: str, without: str, *, brief: bool, only: Sequence[str] = ()) -> list[str]:
    flags = [*(["--without", without] if without else []), *(["--brief"] if brief else [])]
    return [backend, *flags, *(f"--only={name}" for name in only)]


def test_the_suite_holds_at_least_forty_programs() -> None:
    assert sum(c.outcome != "passed" for c in CASES.values()) >= 40


@pytest.mark.parametrize(("backend", "without"), REST)
def test_every_backend_is_here_and_holds_some_programs(
    backend: str, without: str, place: ordinary.Place, tmp_path: Path
) -> None:
    """As this user and as an ordinary one. The whole suite with each of them is run by `make check`."""
    weak, wanted = backend == "subprocess", options(backend, without, brief=False, only=SOME)
    demand(backend, None)
    own = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, suite.__file__, *wanted]
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=240, check=False)
    assert_held(lines(done), weak=weak, brief=False, only=SOME)
    demand(backend, place)
    assert_held(lines(ordinary.run(place, str(place.suite), *wanted)), weak=weak, brief=False, only=SOME)


@pytest.mark.skipif(not ROOT, reason="not root; the ordinary user's tests below are this user's")
@pytest.mark.parametrize(("backend", "without"), AS_ROOT)
def test_no_program_gets_out_or_passes_as_root(backend: str, without: str, tmp_path: Path) -> None:
    demand(backend, None)
    brief = not EVERYTHING or (backend, without) != FIRST  # what a clock ends, it ends in all of them
    command = [sys.executable, suite.__file__, *options(backend, without, brief=brief)]
    own = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=240, check=False)
    assert_held(lines(done), weak=backend == "subprocess", brief=brief)


@pytest.mark.parametrize(("backend", "without"), AS_NOBODY)
def test_no_program_gets_out_or_passes_as_an_ordinary_user(backend: str, without: str, place: ordinary.Place) -> None:
    demand(backend, place)
    brief = ROOT or not EVERYTHING or (backend, without) != FIRST
    done = ordinary.run(place, str(place.suite), *options(backend, without, brief=brief))
    assert_held(lines(done), weak=backend == "subprocess", brief=brief)


def test_the_suite_notices_what_is_left(tmp_path: Path) -> None:
    """A process, a descriptor and a file, left on purpose."""
    script = (
        f"import sys; sys.path[:0] = [{str(suite.HERE)!r}]\n"
        "import os, pathlib, subprocess, suite, tempfile\n"
        "before = suite.possessions()\n"
        "command = [sys.executable, '-c', 'print(flush=True); import time; time.sleep(60)', 'left-on-purpose']\n"
        "child = subprocess.Popen(command, stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "file = pathlib.Path(tempfile.gettempdir(), f'rune-box-left-{os.getpid()}').open('w')\n"
        "print(suite.descendants(), sorted(suite.possessions() - before))\n"
        "child.kill(); os.unlink(file.name)\n"
    )
    own = {**os.environ, "TMPDIR": str(tmp_path)}  # /tmp holds the boxes of other tests
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=own)
    assert done.returncode == 0, done.stderr
    assert "left-on-purpose" in done.stdout and "descriptor" in done.stdout and "/rune-box-left-" in done.stdout
