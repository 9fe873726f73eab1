"""How a test runs something as a user without rights, wherever the checkout and the interpreter lie.

CI runs as root, in a clone that may be below a folder that nobody else can enter, with a Python that may be too (pyenv
in /root). So what the hostile suite needs is copied to a folder that anyone can read: the sandbox, the suite and, if
an ordinary user cannot start this interpreter where it is, the interpreter.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.hostile import suite

NOBODY = 65534
SOURCE = suite.SOURCE / "rune"


class Place(NamedTuple):
    """Where an ordinary user can read and start things. To be deleted by who made it."""

    folder: Path
    python: Path
    suite: Path


def run(place: Place, *arguments: str, seconds: float = 240) -> subprocess.CompletedProcess[str]:
    """The interpreter with these arguments, as `nobody` if this is root, and as this user otherwise."""
    return _run(place.folder, place.python, *arguments, seconds=seconds)


def _run(folder: Path, python: Path, *arguments: str, seconds: float) -> subprocess.CompletedProcess[str]:
    become = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    # A copied interpreter looks for its shared library where it was built, which is what this user cannot read.
    environment = {
        "LD_LIBRARY_PATH": str(folder / "python" / "lib"),
        "PATH": os.defpath,
        "TMPDIR": str(folder / "tmp"),  # what it leaves is told from what other tests are using
    }
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [str(python), *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds,
        check=False, **become,
    )  # fmt: skip


def place() -> Place:
    """Makes one. Raises RuntimeError if no folder of this machine will do."""
    tried = []
    for base in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm")):
        folder = Path(tempfile.mkdtemp(prefix="rune-ordinary-", dir=base))
        folder.chmod(0o755)
        (folder / "tmp").mkdir()
        (folder / "tmp").chmod(0o1777)
        for python in (_base_interpreter(), _copied_interpreter):
            path = python if isinstance(python, Path) else python(folder)
            try:
                if _run(folder, path, "-S", "-c", "import ctypes, json, socket", seconds=60).returncode == 0:
                    return Place(folder, path, _copied_suite(folder))
            except OSError as error:  # a folder or an interpreter that this user may not enter
                tried.append(f"{path}: {error.strerror}")
        shutil.rmtree(folder)
    raise RuntimeError(f"no folder from which an ordinary user can start Python: {'; '.join(tried)}")


def _base_interpreter() -> Path:
    return Path(sys.executable).resolve()


def _copied_interpreter(folder: Path) -> Path:
    """The interpreter without its tests and packages: 60 MB, a second."""
    home = folder / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    unneeded = shutil.ignore_patterns("site-packages", "dist-packages", "test", "tests", "idlelib", "config-*")
    shutil.copytree(sysconfig.get_path("stdlib"), home / "lib" / version, symlinks=True, ignore=unneeded)
    for library in Path(sysconfig.get_config_var("LIBDIR") or "/").glob("libpython3*.so*"):
        shutil.copy(library, home / "lib")
    (home / "bin").mkdir()
    return Path(shutil.copy(_base_interpreter(), home / "bin" / version))


def _copied_suite(folder: Path) -> Path:
    """The suite, beside the sandbox and the few modules that it imports."""
    target = folder / "src" / "rune"
    target.mkdir(parents=True)
    for module in SOURCE.glob("*.py"):
        shutil.copy(module, target)
    quiet = shutil.ignore_patterns("__pycache__")
    shutil.copytree(SOURCE / "sandbox", target / "sandbox", ignore=quiet)
    copied = shutil.copytree(suite.HERE, folder / "tests" / "hostile", ignore=quiet)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o444))
    return Path(copied) / "suite.py"
