"""The walls of the box: namespaces made once, a root of our own, and what each child gives up before it runs.

`enter` is called by the fork server at its start. It leaves the process that called it as a mere parent and
returns in a child that is process 1 of new user, pid, mount, network, ipc, uts and cgroup namespaces, inside a
read-only root that holds the interpreter's library, the shared objects and one small writable folder. Every
sample is then a plain fork of that process: what a namespace costs is paid once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import stat
import sys
from collections.abc import Sequence
from typing import NamedTuple

from rune.sandbox.isolation import seccomp

WORK = "/work"
SITE = "/site"
NOBODY = 65534

_NEWUSER, _NEWNS, _NEWPID, _NEWNET = 0x10000000, 0x00020000, 0x20000000, 0x40000000
_NEWIPC, _NEWUTS, _NEWCGROUP = 0x08000000, 0x04000000, 0x02000000
_ALL = _NEWUSER | _NEWNS | _NEWPID | _NEWNET | _NEWIPC | _NEWUTS | _NEWCGROUP
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_DETACH = 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


class Paths(NamedTuple):
    """What an interpreter needs to see to import its library and the packages lent to programs."""

    library: tuple[str, ...]  # the standard library's folders
    shared: tuple[str, ...]  # folders and files of shared objects
    hidden: tuple[str, ...]  # folders inside `library` that stay out: site-packages
    packages: tuple[str, ...]  # lent third-party folders and files


def paths(packages: Sequence[str]) -> Paths:
    """Found from the running interpreter; `packages` are absolute paths."""
    library = [os.path.realpath(p) for p in sys.path if p and os.path.isdir(p) and "site-packages" not in p]  # noqa: PTH112
    stdlib = os.path.realpath(os.path.dirname(os.__file__))  # noqa: PTH120
    library = [stdlib, *(p for p in library if not p.startswith(stdlib) and "lib-dynload" in p)]
    shared = {"/etc/ld.so.cache", "/usr/share/zoneinfo", "/etc/localtime"}
    for folder in ("/lib", "/lib64", "/usr/lib", "/usr/lib64"):
        for sub in ("", "/x86_64-linux-gnu", "/aarch64-linux-gnu"):
            if (sub or folder.endswith("64")) and os.path.isdir(folder + sub):  # noqa: PTH112
                shared.add(os.path.realpath(folder + sub))
    with contextlib.suppress(OSError), open("/proc/self/maps", encoding="utf-8") as maps:  # noqa: PTH123
        for line in maps:
            path = line.split(maxsplit=5)[5].strip() if line.count("/") else ""
            if ".so" in path and not path.startswith(stdlib):
                shared.add(os.path.realpath(path))
    hidden = [f"{stdlib}/{name}" for name in ("site-packages", "dist-packages")]
    return Paths(
        tuple(library),
        tuple(sorted(p for p in shared if os.path.exists(p))),  # noqa: PTH110
        tuple(p for p in hidden if os.path.isdir(p)),  # noqa: PTH112
        tuple(packages),
    )


def readable(found: Paths) -> list[str]:
    """What Landlock lets a program read where there is no root of our own: the library without what is hidden."""
    result = list(found.shared) + list(found.packages)
    for folder in found.library:
        if not any(hidden.startswith(folder + "/") for hidden in found.hidden):
            result.append(folder)
            continue
        with os.scandir(folder) as entries:
            result += [entry.path for entry in entries if entry.path not in found.hidden]
    return [*result, "/dev/null", "/dev/zero", "/dev/urandom"]


class Work(NamedTuple):
    """The one folder that can be written to."""

    path: str = WORK
    files: str = "1k"  # how many it may hold
    executable: bool = False  # whether what lies there may be started


FOR_PROGRAMS = Work()


def enter(found: Paths, work_mb: int, work: Work = FOR_PROGRAMS) -> None:
    """Return as process 1 of new namespaces, in a new root. Raises OSError with nothing changed for the caller.

    The calling process stays behind as its parent, does nothing but wait, and ends with it.
    """
    root = os.geteuid() == 0
    uid, gid = os.geteuid(), os.getegid()
    # Only a process outside may write a map of two users, so a helper made before `unshare` does.
    go_r, go_w = os.pipe()
    parent = os.getpid()
    helper = os.fork()
    if helper == 0:
        _exit_with(lambda: _write_maps(go_r, go_w, parent, uid, gid, root))
    os.close(go_r)
    try:
        _syscall_ok("unshare", _ALL)
        os.write(go_w, b"g")
    finally:
        os.close(go_w)
        _, status = os.waitpid(helper, 0)
    if status != 0:
        raise PermissionError("the user namespace's map was refused")
    child = os.fork()
    if child:
        _wait_and_exit(child)
    seccomp.die_with_parent()
    os.setsid()  # a signal to "my process group" must not reach beyond the namespace
    os.umask(0o022)
    _new_root(found, work_mb, work)


def _exit_with(action: object) -> None:
    code = 1
    try:
        assert callable(action)
        action()
        code = 0
    finally:
        os._exit(code)


def _write_maps(go_r: int, go_w: int, parent: int, uid: int, gid: int, root: bool) -> None:
    os.close(go_w)
    if os.read(go_r, 1) != b"g":
        raise OSError("not entered")
    if root:
        text = {"uid_map": f"0 {uid} 1\n{NOBODY} {NOBODY} 1\n", "gid_map": f"0 {gid} 1\n{NOBODY} {NOBODY} 1\n"}
    else:
        text = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1\n", "gid_map": f"{gid} {gid} 1\n"}
    for name, content in text.items():
        handle = os.open(f"/proc/{parent}/{name}", os.O_WRONLY)
        os.write(handle, content.encode())
        os.close(handle)


def _wait_and_exit(child: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.closerange(3, 256)
    with contextlib.suppress(BaseException):
        os.waitpid(child, 0)
    os._exit(0)


def _syscall_ok(name: str, *args: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    _syscall_ok("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())


def _new_root(found: Paths, work_mb: int, work: Work) -> None:
    # Sources are held open first: the new root is mounted over /tmp, and one of them may lie below it.
    binds = [*found.library, *found.shared, "/dev/null", "/dev/zero", "/dev/urandom"]
    sources = [(p, p, os.open(p, os.O_PATH)) for p in _outermost(binds)]
    sources += [(p, f"{SITE}/{os.path.basename(p)}", os.open(p, os.O_PATH)) for p in found.packages]  # noqa: PTH119
    named = ("/lib", "/lib64", *(("/bin", "/sbin") if work.executable else ()))
    links = [(p, os.readlink(p)) for p in named if os.path.islink(p)]  # noqa: PTH114, PTH115
    _mount("none", "/", "", _REC | _PRIVATE)
    root = "/tmp"
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, "size=1m,nr_inodes=2k,mode=755")
    for link, target in links:
        os.symlink(target, root + link)  # noqa: PTH211
    for source, target, handle in sources:
        _bind(source, root + target, handle)
        os.close(handle)
    for hidden in found.hidden:
        _mount("tmpfs", root + hidden, "tmpfs", _NOSUID | _NODEV | _RDONLY, "size=4k,nr_inodes=2,mode=555")
    os.makedirs(root + work.path)  # noqa: PTH103
    limit = f"size={work_mb}m,nr_inodes={work.files},mode=777"
    _mount("tmpfs", root + work.path, "tmpfs", _NOSUID | _NODEV | (0 if work.executable else _NOEXEC), limit)
    os.chdir(root)
    libc = ctypes.CDLL(None, use_errno=True)
    number = _PIVOT_ROOT[os.uname().machine]
    if libc.syscall(ctypes.c_long(number), b".", b".") != 0:
        raise OSError(ctypes.get_errno(), "pivot_root")
    _syscall_ok("umount2", b".", _DETACH)
    _mount("none", "/", "", _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV)
    os.chdir(work.path)


def _outermost(folders: Sequence[str]) -> list[str]:
    kept: list[str] = []
    for path in sorted(set(folders)):
        if not any(path.startswith(k + "/") for k in kept):
            kept.append(path)
    return kept


def _bind(source: str, target: str, handle: int) -> None:
    # By its handle: the path may lie below /tmp, where the new root is by now.
    if stat.S_ISDIR(os.fstat(handle).st_mode):
        os.makedirs(target, exist_ok=True)  # noqa: PTH103
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    _mount(f"/proc/self/fd/{handle}", target, "", _BIND)
    # A mount of another user namespace keeps its flags locked: they are repeated, or the remount is refused.
    inherited = os.statvfs(target).f_flag & (_NOSUID | _NODEV | _NOEXEC | 1024 | 2048)
    device = source.startswith("/dev/")
    _mount("none", target, "", _REMOUNT | _BIND | _RDONLY | _NOSUID | (0 if device else _NODEV) | inherited)


def clean_work() -> None:
    """Nothing of one sample stays for the next. Called by process 1 when all others are dead."""
    with contextlib.suppress(OSError):  # not ours as root; then the program could not change it either
        os.chmod(WORK, 0o777)  # noqa: PTH101
    empty(WORK)


def empty(folder: str) -> None:
    """Delete what is inside. Only while nobody is left who could swap a folder for a link.

    Links are removed, never followed: a program may leave one that points at a folder of the machine. Inner folders
    are moved to the top before they are emptied: nested deep enough, a path is longer than any call takes.
    """
    moved = 0
    while names := os.listdir(folder):  # noqa: PTH208
        for name in names:
            path = f"{folder}/{name}"
            if not _unlocked(path):
                os.unlink(path)  # noqa: PTH108
                continue
            for inner in os.listdir(path):  # noqa: PTH208
                if not _unlocked(f"{path}/{inner}"):
                    os.unlink(f"{path}/{inner}")  # noqa: PTH108
                    continue
                while os.path.lexists(f"{folder}/{moved}"):
                    moved += 1
                os.rename(f"{path}/{inner}", f"{folder}/{moved}")  # noqa: PTH104
            os.rmdir(path)  # noqa: PTH106


def _unlocked(path: str) -> bool:
    """Whether it is a folder; one can be listed, emptied and moved after this."""
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        return False
    os.chmod(path, 0o700)  # noqa: PTH101
    return True


class Folders:
    """Where there are no walls: another empty folder for each program.

    Where a daemon may outlive its program (not on Linux, where the server adopts and ends it) no permission is
    changed, as it could swap a folder for a link; what cannot be deleted so is left behind.
    """

    def __init__(self) -> None:
        self._current = ""
        self.next()

    def next(self) -> None:
        import tempfile  # here, because what it imports would be in every program's fork

        fresh = tempfile.mkdtemp(prefix="rune-box-")
        os.chdir(fresh)
        self.remove()
        self._current = fresh

    def remove(self) -> None:
        import shutil

        if self._current and sys.platform == "linux":
            with contextlib.suppress(OSError):
                os.chmod(self._current, 0o700)  # noqa: PTH101
                empty(self._current)
        if self._current:
            shutil.rmtree(self._current, ignore_errors=True)


def drop_user() -> None:
    """Become nobody if we are root in namespaces of our own (`enter` mapped that user); hold no capability."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        seccomp.die_with_parent()  # a change of user forgets it
    drop_capabilities()


def drop_capabilities() -> None:
    """Empty the effective, permitted and inheritable sets. Raises OSError."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    _syscall_ok("capset", header, data)
