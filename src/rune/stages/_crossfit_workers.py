"""Folds dealt out to processes of their own: each has its share of the processors, and one GPU where there are any."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rune import console
from rune.errors import RuneError
from rune.stages._crossfit_folder import DONE, Place, place
from rune.store import RunDir


def gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that this process sees."""
    import torch

    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named or [str(i) for i in range(torch.cuda.device_count())]


def run(folder: RunDir, wanted: Sequence[Place], jobs: int, *, gpus: Sequence[str], total: int) -> None:
    """`wanted` by `jobs` processes, each with a log in the folder; one that fails stops all. Raises RuneError.

    `gpus` take turns, so that jobs are spread evenly; processors are dealt out as long as there is one for each.
    """
    jobs = min(jobs, len(wanted))
    together = -(-jobs // len(gpus)) if gpus else jobs  # processes that share a device's memory
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    running: dict[Path, subprocess.Popen[bytes]] = {}
    with (
        contextlib.ExitStack() as stack,
        console.Progress("crossfit", total, unit="fold", initial=total - len(wanted)) as bar,
    ):
        try:
            for i in range(jobs):
                log = folder / f"worker-{i}.log"
                names = [f"{p.seed}/{p.fold}" for p in wanted[i::jobs]]
                command = [sys.executable, "-m", "rune", "crossfit", str(folder.path)]
                command += ["--jobs", str(together), "--worker", *names]
                device = {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {}
                out = stack.enter_context(log.open("ab"))
                running[log] = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**os.environ, **device}
                )
                if len(cores) >= jobs:  # threads of two processes on one core are slower than one's
                    os.sched_setaffinity(running[log].pid, cores[i::jobs])
            left = {p: place(folder, p.seed, p.fold) / DONE for p in wanted}
            while running:
                time.sleep(0.5)
                for one in [p for p, done in left.items() if done.exists()]:
                    del left[one]
                    bar.advance()
                for log, process in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[log]
                    if process.returncode:
                        last = log.read_text(errors="replace").strip().splitlines()[-1:]
                        raise RuneError(
                            f"crossfit: a worker ended with {process.returncode} ({''.join(last)}); see {log}"
                        )
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
