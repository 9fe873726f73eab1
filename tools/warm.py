"""Runs of pytest that need not import the heavy packages anew: each is a fork of a process that has imported them.

`Warm(modules).run(tree, tests, …)` is `mutants.run_tests` for a machine on which a mutant's tests take less time than
`import torch`. None of the modules may be Rune's: a fork must see the tree as it is on disk. Whatever a run leaves
behind is ended with it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
MODULES = (
    *("pytest", "hypothesis", "numpy", "scipy.stats", "torch", "transformers", "peft", "accelerate"),
    *("transformers.models.qwen2.modeling_qwen2", "safetensors.torch", "httpx", "sqlalchemy", "psutil"),
)


class Warm:
    """A process that has imported `modules`, and forks once a run. Not for several threads at once."""

    def __init__(self, modules: Sequence[str] = MODULES) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, *modules], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment, start_new_session=True,
        )  # fmt: skip

    def run(self, tree: Path, command: Sequence[str], environment: dict[str, str], seconds: float) -> tuple[int, str]:
        """pytest's exit code for the arguments `command` in `tree` (124 for out of time), and its output."""
        with tempfile.NamedTemporaryFile(prefix="rune-warm-") as log:
            asked = {
                "tree": str(tree), "command": list(command), "environment": environment, "seconds": seconds,
                "log": log.name,
            }  # fmt: skip
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
            if not answer:
                raise RuntimeError(f"the process that forks ended with {self._process.wait()}")
            return int(answer), Path(log.name).read_text(encoding="utf-8", errors="replace")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _serve(modules: Sequence[str]) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for module in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            _run(asked)
        code = _wait(child, asked["seconds"])
        _end_the_rest()
        print(code, file=answers, flush=True)


def _run(asked: dict[str, object]) -> None:
    """In the fork: what `python -m pytest` would do in the tree. Does not return."""
    code = 3
    try:
        os.setsid()
        log = os.open(str(asked["log"]), os.O_WRONLY | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(str(asked["tree"]))
        os.environ.clear()
        os.environ.update(asked["environment"])  # type: ignore[call-overload]
        sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
        sys.path[:] = [str(Path.cwd()), *os.environ.get("PYTHONPATH", "").split(os.pathsep), *sys.path[1:]]
        sys.argv = ["pytest", *asked["command"]]  # type: ignore[misc]
        tempfile.tempdir = None
        import pytest

        code = int(pytest.main(asked["command"]))  # type: ignore[arg-type]
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _wait(child: int, seconds: float) -> int:
    deadline = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, 9)
            os.waitpid(child, 0)
            return 124
        time.sleep(0.02)


def _end_the_rest() -> None:
    """Kill what the run has left: orphans come to this process."""
    import psutil

    for _ in range(20):
        left = psutil.Process().children(recursive=True)
        if not left:
            return
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.02)


if __name__ == "__main__":
    _serve(sys.argv[1:])
