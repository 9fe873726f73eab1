"""Eighty programs that try to pass, to get out or to stay: none may, with any backend, as root or not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.hostile import suite

NOBODY = "65534"
ROOT = os.geteuid() == 0
CASES = {c.name: c for c in suite.cases()}


def ordinary_python() -> str | None:
    """An interpreter that an ordinary user may start here, 3.11 or later."""
    again = (
        "import subprocess, sys; assert sys.version_info >= (3, 11); subprocess.run([sys.executable, '-V'], check=True)"
    )
    for path in (sys.executable, shutil.which("python3", path="/usr/bin:/usr/local/bin")):
        if path and run_as_nobody(path, "-c", again).returncode == 0:
            return path
    return None


def run_as_nobody(*command: str) -> subprocess.CompletedProcess[str]:
    become = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"] if ROOT else []
    return subprocess.run([*become, *command], capture_output=True, text=True, timeout=240, check=False, env={})


def outside(backend: str, without: str, *, python: str) -> list[dict[str, str]]:
    done = run_as_nobody(python, str(Path(suite.__file__)), backend, without)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_held(results: list[dict[str, str]], *, weak: bool = False, brief: bool = True) -> None:
    expected = {case.name for case in suite.chosen(weak=weak, brief=brief)}
    names = {r["key"] for r in results}
    assert names == expected | {f"after {name}" for name in expected}
    for result in results:
        name, found = result["key"], result["outcome"]
        what = f"{name}: {found} {result['error_kind']}: {result['error'][-300:]}"
        assert "returned 'ESCAPED" not in result["error"], what
        result["error"].encode()
        assert len(result["error"]) <= 1500, what
        if name.startswith("after "):
            assert found == "passed", what
            continue
        case = CASES[name]
        assert found == case.outcome or (case.outcome == "not-passed" and found != "passed"), what
        assert not case.kind or result["error_kind"] == case.kind, what
    assert not list(Path("/tmp").glob("rune-escaped*"))


def test_the_suite_holds_at_least_forty_programs() -> None:
    assert sum(c.outcome != "passed" for c in CASES.values()) >= 40


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="walls are Linux's")
@pytest.mark.parametrize("without", ["", "namespaces"])
def test_the_fork_sandbox_holds_them_all(without: str) -> None:
    brief = bool(without)
    assert_held(suite.run("fork", tuple(filter(None, [without])), brief=brief), brief=brief)


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_bubblewrap_holds_them_all() -> None:
    assert_held(suite.run("bubblewrap", (), brief=True))


@pytest.mark.skipif(not ROOT, reason="the tests above ran as an ordinary user already")
@pytest.mark.parametrize("without", ["", "namespaces"])
def test_the_fork_sandbox_holds_them_all_for_an_ordinary_user(without: str) -> None:
    python = ordinary_python()
    if python is None:
        pytest.skip("no Python 3.11 that an ordinary user may start")
    assert_held(outside("fork", without, python=python))


def test_the_weak_backend_still_lets_no_verdict_be_forged() -> None:
    """Never as root: what it does not hold is this machine."""
    python = ordinary_python()
    if python is None:
        pytest.skip("no Python 3.11 that an ordinary user may start")
    before = set(Path("/tmp").glob("rune-box-*"))
    try:
        assert_held(outside("subprocess", "", python=python), weak=True)
    finally:
        for folder in set(Path("/tmp").glob("rune-box-*")) - before:
            shutil.rmtree(folder, ignore_errors=True)  # what a program had made undeletable for its user
