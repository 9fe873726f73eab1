"""The default sandbox: a fork server behind every wall this kernel offers.

User, pid, mount, network, ipc, uts and cgroup namespaces around a read-only root (made once, forked into for each
program); seccomp; Landlock; no_new_privs; resource limits; no environment. As root and as an ordinary user.
Where user namespaces are not allowed, Landlock and seccomp alone hold files, network and processes (no work
folder then). Below that it refuses, unless `allow_weak`. What it does not cover: flaws of the kernel itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from rune.sandbox.isolation.limits import Limits, python_command
from rune.sandbox.judging.pool import Pool
from rune.sandbox.judging.second_opinion import SecondOpinion, of_server


@dataclass(frozen=True, kw_only=True)
class Config(Limits):
    """See Limits."""


def build(config: Config) -> Pool:
    """Raises SandboxError where untrusted code cannot be held and `allow_weak` is off."""

    def launch(options: dict[str, object]) -> list[str]:
        return [*python_command(module="isolation.fork_server", isolated=True), "{control}", json.dumps(options)]

    return Pool(config, launch, name="fork")


def second(config: Config) -> SecondOpinion:
    """See `second_opinion`. Raises SandboxError where `build` does."""
    return SecondOpinion(config, of_server)
