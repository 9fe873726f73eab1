"""Settings that every backend has, how its processes are started, and the floor below which none may run."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

SOURCE = str(Path(__file__).resolve().parents[3])
_BOOT = "import sys; sys.path.insert(0, {path!r}); import rune.sandbox.{module} as module; module.main()"
LAYERS = ("namespaces", "landlock", "seccomp", "rlimits")  # those that `Limits.without` can leave out


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Settings every backend has."""

    workers: int = 0  # programs at a time; 0 means one per processor this process may use
    cpu_seconds: float = 3.0  # a program's CPU time, the whole test long
    wall_seconds: float = 5.0  # its wall time, without the time it waited for a processor
    memory_mb: int = 2048  # address space
    work_mb: int = 16  # its private folder, and the largest file in it
    output_kb: int = 64  # what it prints is kept up to here
    packages: tuple[str, ...] = ("numpy", "scipy", "sympy", "mpmath", "networkx", "pandas")  # lent, where installed
    without: tuple[str, ...] = ()  # layers to leave out: namespaces, landlock, seccomp, rlimits (for tests)
    allow_weak: bool = False  # run untrusted code below the floor, on the user's word

    def __post_init__(self) -> None:
        for name in ("cpu_seconds", "wall_seconds", "memory_mb", "work_mb", "output_kb"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, found {getattr(self, name)}")
        if self.workers < 0:
            raise ValueError(f"workers must be 0 (all processors) or more, found {self.workers}")
        unknown = set(self.without) - set(LAYERS)
        if unknown:
            raise ValueError(f"without: unknown layer '{min(unknown)}'; known: {', '.join(LAYERS)}")

    @property
    def processes(self) -> int:
        """Programs at a time."""
        if self.workers or not hasattr(os, "sched_getaffinity"):
            return self.workers or os.cpu_count() or 1
        return len(os.sched_getaffinity(0))

    @property
    def test_seconds(self) -> float:
        """CPU time of a test by itself, beside its program's."""
        return 10.0 + 5.0 * self.cpu_seconds

    @property
    def test_mb(self) -> int:
        """Address space of the process that runs a test: the program's limit, an interpreter and numpy."""
        return self.memory_mb + 1024


def environment(*kept: str) -> dict[str, str]:
    """Of a process that judges: hashes alike in all, one thread for numpy, and these variables of this process.

    A Python that was moved finds its shared library by LD_LIBRARY_PATH.
    """
    fixed = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return fixed | {name: os.environ[name] for name in (*kept, "LD_LIBRARY_PATH") if name in os.environ}


def python_command(*, module: str, isolated: bool, source: str = SOURCE, executable: str = "") -> list[str]:
    """A fresh interpreter that runs `rune.sandbox.<module>.main()` and inherits nothing but descriptors.

    One that is to be isolated writes no compiled modules either.
    """
    flags = ["-B"] if isolated else []
    boot = _BOOT.format(path=source, module=module)
    return [executable or sys.executable, "-s", "-S", "-P", *flags, "-c", boot]


def box_options(limits: Limits) -> dict[str, Any]:
    """What the fork server is told."""
    return {
        "packages": package_paths(limits.packages),
        "hide": [SOURCE],
        "without": list(limits.without),
        "cpu_seconds": limits.cpu_seconds,
        "memory_mb": limits.memory_mb,
        "work_mb": limits.work_mb,
        "output_kb": limits.output_kb,
        "inside": "",
    }


def package_paths(names: Iterable[str]) -> list[str]:
    """Absolute paths of the lent packages that are installed, with the `.libs` folder beside them."""
    result: list[str] = []
    for name in names:
        with contextlib.suppress(ImportError, ValueError):
            spec = util.find_spec(name)
            if spec is None or not spec.origin or spec.origin in ("built-in", "frozen"):
                continue
            origin = Path(spec.origin)
            place = origin.parent if spec.submodule_search_locations else origin
            result += [str(p.resolve()) for p in (place, place.with_name(f"{name}.libs")) if p.exists()]
    if any(Path(p).name == "pandas" for p in result):
        result += package_paths(("dateutil", "pytz", "six", "tzdata"))
    return result


def below_floor(layers: Iterable[str]) -> str:
    """What is missing to hold untrusted code; "" if nothing. The floor: walls around files, network and processes."""
    found = {layer for layer in layers if not layer.startswith("-")}
    walls = found & {"namespaces", "bubblewrap"}
    if "rlimits" not in found:
        return "no limits on memory and CPU time (rlimits)"
    if walls or {"landlock", "seccomp"} <= found:
        return ""
    lost = [name for name in ("landlock", "seccomp") if name not in found]
    return f"no user namespaces, and no {' and no '.join(lost)}"
