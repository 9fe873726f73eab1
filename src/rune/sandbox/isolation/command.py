"""Inside the box: one command over files of its own, as a repository's tests are run. One process, one command.

Namespaces of its own (no network), a read-only root that holds the interpreter's folders and the system's programs, one
writable folder in memory, resource limits, no new privileges, Landlock. There is no list of system calls: tests start
programs. What the tests report they report of themselves: code under test that forges their report is not covered.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import tarfile
import time
from typing import Any

from rune.sandbox.isolation import landlock, layers, seccomp

HEAD = struct.Struct("<II")  # on stdin: bytes of the job as JSON, bytes of the tar file
PLACE = "/box"  # the writable folder; the files lie in PLACE/files
OUTPUT = 1 << 18  # bytes of output that are kept, from the end
SYSTEM = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/etc/alternatives",
    "/etc/passwd",
    "/etc/group",
    "/etc/ld.so.cache",
)


def main() -> None:
    """The job and the files on stdin; on stdout one JSON object: how it ended, or "broken" with the reason."""
    out = os.dup(1)
    os.set_inheritable(out, False)
    job_bytes, tar_bytes = HEAD.unpack(_exactly(HEAD.size))
    job = json.loads(_exactly(job_bytes))
    files = _exactly(tar_bytes)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.close(null)
    seccomp.die_with_parent()
    try:
        _enter(job)
        _unpack(files, job["files"])
    except BaseException as error:
        _say(out, {"broken": f"{type(error).__name__}: {error}"})
    _say(out, _run(job))


def _exactly(size: int) -> bytes:
    data = sys.stdin.buffer.read(size)
    if len(data) != size:
        os._exit(1)  # whoever asked is gone
    return data


def _say(out: int, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    while data:
        data = data[os.write(out, data) :]
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(-1, signal.SIGKILL)
    os._exit(0)


def _enter(job: dict[str, Any]) -> None:
    """Behind every wall. Raises OSError where one of them cannot be had."""
    folders = tuple(p for p in dict.fromkeys([*job["folders"], *SYSTEM]) if os.path.exists(p) and not os.path.islink(p))  # noqa: PTH110, PTH114
    found = layers.Paths(library=folders, shared=(), hidden=(), packages=())
    layers.enter(found, job["folder_mb"], layers.Work(PLACE, "200k", executable=True))
    layers.drop_user()
    megabyte = 1 << 20
    for name, value in {
        "RLIMIT_AS": job["memory_mb"] * megabyte,
        "RLIMIT_FSIZE": job["folder_mb"] * megabyte,
        "RLIMIT_CPU": int(job["seconds"]) + 1,
        "RLIMIT_CORE": 0,
        "RLIMIT_NPROC": 256,
        "RLIMIT_NOFILE": 1024,
    }.items():
        what = getattr(resource, name)
        _, most = resource.getrlimit(what)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(what, (value, value))
    seccomp.lock_privileges()
    if landlock.abi():
        landlock.restrict(landlock.ruleset(["/"], [PLACE, os.devnull]))


def _unpack(files: bytes, instead: dict[str, str]) -> None:
    for folder in ("files", "home", "tmp"):
        os.mkdir(f"{PLACE}/{folder}")  # noqa: PTH102
    os.chdir(f"{PLACE}/files")
    with tarfile.open(fileobj=io.BytesIO(files)) as archive:
        archive.extractall(".", filter="data")
    for path, text in instead.items():
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)  # noqa: PTH103, PTH120
        with open(path, "w", encoding="utf-8", newline="") as file:  # noqa: PTH123
            file.write(text)


def _run(job: dict[str, Any]) -> dict[str, Any]:
    """The command to its end, or to the end of its time; then nothing of it lives."""
    environment = {
        "PATH": job["path"],
        "HOME": f"{PLACE}/home",
        "TMPDIR": f"{PLACE}/tmp",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
    }
    if job["python_path"]:
        environment["PYTHONPATH"] = job["python_path"]
    began = time.monotonic()
    try:
        process = subprocess.Popen(
            job["argv"], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        return {"code": 127, "output": f"{job['argv'][0]}: {error.strerror}", "timed_out": False, "seconds": 0.0}
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    os.set_blocking(pipe, False)
    kept, timed_out = b"", False
    while True:
        left = began + job["seconds"] - time.monotonic()
        if left <= 0:
            timed_out = True
            break
        ready, _, _ = select.select([pipe], [], [], min(left, 0.2))
        data = os.read(pipe, 1 << 16) if ready else None
        if data:
            kept = (kept + data)[-OUTPUT:]
        elif data == b"" or process.poll() is not None:  # closed, or a daemon holds it open that outlived the command
            break
    if timed_out:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(-1, signal.SIGKILL)
    try:
        code = process.wait(timeout=max(0.1, began + job["seconds"] - time.monotonic()))
    except subprocess.TimeoutExpired:
        timed_out, code = True, -int(signal.SIGKILL)
    return {
        "code": code,
        "output": kept.decode("utf-8", "replace"),
        "timed_out": timed_out,
        "seconds": time.monotonic() - began,
    }
