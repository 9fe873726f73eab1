"""The portable sandbox: the fork server with resource limits and nothing else. Weak; for macOS and for old kernels.

The verdict is as hard to forge as anywhere (the tests run in another process, over data-only calls), but the
program can read and write this user's files and use the network. It is refused unless `allow_weak` is set.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from rune.sandbox.isolation.limits import LAYERS, Limits, python_command
from rune.sandbox.judging.pool import Pool
from rune.sandbox.judging.second_opinion import SecondOpinion, of_server


@dataclass(frozen=True, kw_only=True)
class Config(Limits):
    """See Limits. Nothing but rlimits is used whatever `without` says."""


def build(config: Config) -> Pool:
    """Raises SandboxError unless `allow_weak`."""

    def launch(options: dict[str, object]) -> list[str]:
        return [*python_command(module="isolation.fork_server", isolated=True), "{control}", json.dumps(options)]

    return Pool(_bare(config), launch, name="subprocess")


def second(config: Config) -> SecondOpinion:
    """See `second_opinion`. Raises SandboxError unless `allow_weak`."""
    return SecondOpinion(_bare(config), of_server)


def _bare(config: Config) -> Config:
    return dataclasses.replace(config, without=tuple(name for name in LAYERS if name != "rlimits"))
