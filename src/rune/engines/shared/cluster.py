"""A Ray cluster: joined at its address, or started on this machine. For the engine `ray` and for `rune run --ray`."""

from __future__ import annotations

import logging
import os
import socket
import sys
from typing import Any

from rune.errors import EngineError

REACH_SECONDS = 10
TRIES = 3  # to start Ray here: it waits 30 seconds for its own processes, which a busy machine needs longer for


def join(address: str, *, cpus: int, gpus: int = 0) -> bool:
    """Make Ray ready in this process; True if this call did, so that the caller shuts it down.

    `address` of a running cluster; "" starts Ray here with `cpus` and `gpus`. Nodes must see the files that this
    machine sees, under the same paths: code, models, runs, adapters. Raises EngineError without Ray or an answer.
    """
    try:
        import ray
    except ImportError:
        raise EngineError("a Ray cluster needs Ray; install it with: pip install 'rune-lora[ray]'") from None
    if address:
        _reach(address)
    if ray.is_initialized():
        return False
    path = os.pathsep.join(entry for entry in sys.path if entry)
    size: dict[str, Any] = {} if address else {"num_cpus": cpus, "num_gpus": gpus, "include_dashboard": False}
    for left in reversed(range(1 if address else TRIES)):
        try:
            ray.init(
                address=address or "local",  # None would join whatever cluster runs on this machine
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": {"PYTHONPATH": path}},
                **size,
            )
            return True
        except (Exception, SystemExit) as error:  # among them a plain Exception, and the end of the process
            ray.shutdown()
            if address:
                raise _absent(address, error) from None
            if not left:
                raise EngineError(f"Ray does not start on this machine: {one_line(error)}") from None
    raise AssertionError("unreachable")


def _reach(address: str) -> None:
    """Ask a HOST:PORT for a connection first: Ray tries for three minutes and then ends the process."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():  # "auto", "ray://…", or what Ray itself refuses
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _absent(address, error) from None


def _absent(address: str, error: BaseException) -> EngineError:
    return EngineError(
        f"no Ray cluster answers at '{address}' ({one_line(error)}); "
        "`ray start --head` starts one and prints its address, HOST:PORT"
    )


def one_line(error: BaseException) -> str:
    """The error's class and the last line of what it says: Ray's texts run over pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


def leave() -> None:
    """Shut down what `join` made ready in this process; a cluster that it joined lives on."""
    import ray

    ray.shutdown()
