"""Cells dealt out to processes of their own: on this machine's GPUs and processors, or as tasks of a Ray cluster.

Cells that share a training stay together. All that a worker does is on disk, so one that dies loses at most a stage's
last moments; an experiment may be gone on with by other workers, elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rune import console
from rune.engines.shared import cluster
from rune.errors import EngineError, RuneError
from rune.sandbox.isolation import seccomp
from rune.study import checks

if TYPE_CHECKING:
    from rune.study.folders import CellFolder, Experiment

RETRIES = 5  # of a group of cells whose node or process is lost


def run(experiment: Experiment, groups: Sequence[Sequence[CellFolder]], jobs: int, *, ray: str | None = None) -> None:
    """Cells by `jobs` processes, each group by one of them; one process that fails stops all. Raises RuneError.

    `ray`: an address of a cluster whose file system is shared, "" for one on this machine; None for plain processes.
    """
    wanted = [place for group in groups for place in group]
    parts = [[place.cell.name for place in group] for group in groups]
    on_gpu = checks.device(experiment.settings) == "cuda"
    with _progress(experiment, wanted) as advance:
        if ray is None:
            _local(experiment, parts, jobs, gpus() if on_gpu else [], advance)
        else:
            _on_ray(experiment, parts, jobs, ray, on_gpu, advance)


class _Bar:
    """Counts cells as they are done."""

    def __init__(self, bar: console.Progress, wanted: Sequence[CellFolder]) -> None:
        self._bar, self._left = bar, list(wanted)

    def look(self) -> None:
        for place in [p for p in self._left if p.folder.stage_done("score")]:
            self._left.remove(place)
            self._bar.advance()


@contextlib.contextmanager
def _progress(experiment: Experiment, wanted: Sequence[CellFolder]) -> Iterator[_Bar]:
    total = len(experiment.places())
    with console.Progress("cells", total, unit="cell", initial=total - len(wanted)) as bar:
        yield _Bar(bar, wanted)


def gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that this process sees."""
    import torch

    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named or [str(i) for i in range(torch.cuda.device_count())]


def command(folder: Path, names: Sequence[str], together: int) -> list[str]:
    """How a worker is started."""
    own = ["--together", str(together), "--parent", str(os.getpid())]
    return [sys.executable, "-m", "rune", "run", str(folder), *own, "--worker", *names]


def _local(experiment: Experiment, parts: Sequence[Sequence[str]], jobs: int, gpus: Sequence[str], bar: _Bar) -> None:
    """`gpus` take turns, so that jobs are spread evenly; processors are dealt out while there is one for each."""
    jobs = min(jobs, len(parts))
    together = -(-jobs // len(gpus)) if gpus else jobs  # processes that share a device's memory
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    running: dict[Path, subprocess.Popen[bytes]] = {}
    with contextlib.ExitStack() as stack:
        try:
            for i in range(jobs):
                log = experiment.folder / f"worker-{i}.log"
                names = [name for part in parts[i::jobs] for name in part]
                device = {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {}
                out = stack.enter_context(log.open("ab"))
                running[log] = subprocess.Popen(
                    command(experiment.folder.path, names, together),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env={**os.environ, **device},
                )
                if len(cores) >= jobs:  # threads of two processes on one core are slower than one's
                    os.sched_setaffinity(running[log].pid, cores[i::jobs])
            while running:
                time.sleep(0.5)
                bar.look()
                for log, process in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[log]
                    if process.returncode:
                        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
                        raise RuneError(f"a worker ended with {process.returncode} ({''.join(last)}); see {log}")
            bar.look()
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()


def _on_ray(
    experiment: Experiment, parts: Sequence[Sequence[str]], jobs: int, address: str, on_gpu: bool, bar: _Bar
) -> None:
    """One Ray task for each group of cells, with a GPU of its own if there are any.

    A group whose node or process is lost goes on elsewhere, from what is on the disk.
    """
    ours = cluster.join(address, cpus=max(jobs, 1), gpus=len(gpus()) if on_gpu else 0)
    import ray

    try:
        needs = {"CPU": 1, "GPU": 1} if on_gpu else {"CPU": 1}
        if missing := [name for name in needs if not ray.cluster_resources().get(name)]:
            console.warn(f"no node of the Ray cluster has a {missing[0]}; the run waits until one joins")
        task = ray.remote(num_cpus=1, num_gpus=1 if on_gpu else 0, max_retries=RETRIES)(_in_ray)
        folder = str(experiment.folder.path.resolve())
        waiting = [task.remote(folder, list(names), str(Path.cwd())) for names in parts]
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1, timeout=0.5)
            bar.look()
            for one in done:
                if said := ray.get(one):
                    raise RuneError(said)
        bar.look()
    except ray.exceptions.RayError as error:
        raise EngineError(
            f"the Ray cluster lost a worker {RETRIES + 1} times, or is gone ({cluster.one_line(error)}); what was done "
            f"is kept, go on with `rune run {experiment.folder.path} --resume`"
        ) from None
    finally:
        if ours:
            ray.shutdown()


def _in_ray(folder: str, names: list[str], here: str) -> str:
    """One group of cells in a process of its own; "" or what went wrong."""
    done = subprocess.run(
        command(Path(folder), names, 1), cwd=here, capture_output=True, text=True, errors="replace", check=False
    )
    last = "".join(done.stderr.strip().splitlines()[-1:])
    return f"a worker of cells {', '.join(names)} ended with {done.returncode}: {last}" if done.returncode else ""


def end_with(parent: int) -> None:
    """This worker ends when the process that started it does: another one may be given its cells. Linux only."""
    if sys.platform == "linux":
        seccomp.die_with_parent()
        if os.getppid() != parent:  # it was gone before that call
            os.kill(os.getpid(), signal.SIGKILL)
