"""What this machine offers to hold a program, and what is lost where it does not. For `rune doctor`.

Namespaces are tried in a process of their own that ends at once: to ask is to do it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
from typing import NamedTuple

from rune.sandbox.isolation import landlock, seccomp
from rune.sandbox.isolation import layers as _layers
from rune.sandbox.isolation.limits import below_floor, python_command


class Layer(NamedTuple):
    """One protection of this machine."""

    name: str
    present: bool
    detail: str  # which version is there; or which protection is gone


def probe() -> list[Layer]:
    """Every layer, present or not. Takes about a tenth of a second; changes nothing."""
    namespaces = _namespaces()
    version = landlock.abi()
    layers = [
        Layer("user namespaces", not namespaces, namespaces or "user, pid, mount, network, ipc, uts, cgroup"),
        Layer(
            "private root",
            not namespaces,
            "read-only root, limited work folder" if not namespaces else "no work folder; files are held by Landlock",
        ),
        Layer(
            "seccomp",
            _has_seccomp(),
            "allow-list of system calls"
            if _has_seccomp()
            else "any system call can be made; no filter for this system",
        ),
        Layer("landlock", version > 0, _landlock_detail(version)),
        Layer(
            "no_new_privs", sys.platform == "linux", "" if sys.platform == "linux" else "set-uid programs gain rights"
        ),
        Layer(
            "rlimits", _has_resource(), "memory, CPU, files, processes" if _has_resource() else "memory is not limited"
        ),
    ]
    path = shutil.which("bwrap")
    layers.append(Layer("bwrap", path is not None, path or "not installed (optional: the bubblewrap backend)"))
    return layers


def floor() -> str:
    """Why untrusted code cannot be held here; "" if it can."""
    words = {"user namespaces": "namespaces"}
    found = {words.get(layer.name, layer.name) for layer in probe() if layer.present}
    return below_floor(found if landlock.holds_alone() else found - {"landlock"})


def _namespaces() -> str:
    """Empty if they can be made, else the reason."""
    if sys.platform != "linux":
        return f"{platform.system()} has none: nothing hides files, network and processes"
    command = python_command(module="isolation.probe", isolated=True)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False, env={})
        result = json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        result = f"could not be tried: {type(error).__name__}"
    return f"{result}: files, network and processes are held by Landlock and seccomp alone" if result else ""


def _has_seccomp() -> bool:
    if not seccomp.supported():
        return False
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="utf-8") as file:  # noqa: PTH123
        return "Seccomp:" in file.read()
    return True


def _has_resource() -> bool:
    try:
        import resource
    except ImportError:
        return False
    return hasattr(resource, "RLIMIT_AS")


def _landlock_detail(version: int) -> str:
    if not version:
        return "no second wall around files; needs Linux 5.13 with landlock in its lsm list"
    alone = "" if landlock.holds_alone() else " (not alone: needs Linux 6.2)"
    return f"ABI {version}: files{alone}" + (", TCP" if version >= 4 else "") + (", signals" if version >= 6 else "")


def main() -> None:
    """In a process of its own: enter the namespaces, say how it went."""
    out = os.dup(1)
    try:
        _layers.enter(_layers.paths(()), 1)
        answer = ""
    except OSError as error:
        answer = str(error)
    os.write(out, (json.dumps(answer) + "\n").encode())
    os._exit(0)
