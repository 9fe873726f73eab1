"""The fork server inside bubblewrap: `bwrap` makes the namespaces and the root, once for each lane.

For machines that allow user namespaces to bwrap alone (Ubuntu 23.10 and later), and as a second opinion on our
own set-up. Inside, the server adds seccomp, Landlock, no_new_privs and limits as the `fork` backend does. The
work folder is a tmpfs of bwrap's, shared by a lane's programs one after another and emptied between them.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rune.errors import SandboxError
from rune.sandbox.isolation import layers
from rune.sandbox.isolation.limits import SOURCE, Limits, python_command
from rune.sandbox.judging.pool import Pool
from rune.sandbox.judging.second_opinion import SecondOpinion


@dataclass(frozen=True, kw_only=True)
class Config(Limits):
    """See Limits."""

    program: str = "bwrap"  # name or path


def build(config: Config) -> Pool:
    """Raises SandboxError if bubblewrap is not installed or does not start."""
    program = _find(config)

    def launch(options: dict[str, Any]) -> list[str]:
        return [*wrapper(program, options), *_inner("isolation.fork_server", options, "{control}")]

    return Pool(config, launch, name="bubblewrap")


def second(config: Config) -> SecondOpinion:
    """See `second_opinion`. Raises SandboxError as `build` does."""
    program = _find(config)
    return SecondOpinion(config, lambda options: [*wrapper(program, options), *_inner("judging.one_process", options)])


def _find(config: Config) -> str:
    program = shutil.which(config.program)
    if program is None:
        raise SandboxError(f"bubblewrap: no program '{config.program}'; apt-get install bubblewrap, or use fork")
    return program


def wrapper(program: str, options: dict[str, Any]) -> list[str]:
    """bwrap's own arguments: what is mounted where, and that nothing else is."""
    found = layers.paths(options["packages"])
    line = [program, "--unshare-all", "--as-pid-1", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    interpreter = Path(sys.executable)
    home = Path(sys.base_prefix)
    # The interpreter starts inside, so its own folder is mounted; site-packages stay hidden below.
    binds = {str(interpreter.resolve()), *found.library, *found.shared, *_startup_files(home)}
    for path in sorted(binds):
        line += ["--ro-bind-try", path, path]
    for link in ("/lib", "/lib64"):
        if Path(link).is_symlink():
            line += ["--symlink", str(Path(link).readlink()), link]
    for hidden in found.hidden:
        line += ["--tmpfs", hidden, "--remount-ro", hidden]
    for package in found.packages:
        line += ["--ro-bind", package, f"{layers.SITE}/{Path(package).name}"]
    line += ["--ro-bind", f"{SOURCE}/rune/sandbox", "/rune-source/rune/sandbox"]
    line += ["--ro-bind", f"{SOURCE}/rune/__init__.py", "/rune-source/rune/__init__.py"]
    line += ["--dev-bind", "/dev/null", "/dev/null", "--dev-bind", "/dev/zero", "/dev/zero"]
    line += ["--dev-bind", "/dev/urandom", "/dev/urandom"]
    return [*line, "--size", str(options["work_mb"] << 20), "--tmpfs", layers.WORK, "--remount-ro", "/"]


def _startup_files(home: Path) -> set[str]:
    library = home / "lib"
    return {str(p) for p in library.glob("libpython*.so*")} if library.is_dir() else set()


def _inner(module: str, options: dict[str, Any], *arguments: str) -> list[str]:
    settings = {**options, "inside": "bubblewrap", "hide": ["/rune-source"]}
    executable = os.path.realpath(sys.executable)
    command = python_command(module=module, isolated=True, source="/rune-source", executable=executable)
    return ["--", *command, *arguments, json.dumps(settings)]
