"""A Ray cluster on this machine: a head without processors, and nodes that are processes of their own, to be killed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

PATIENCE = 300  # seconds; only a hang reaches it


class Nodes:
    """`count` nodes of `cpus` processors each. Killing one takes its raylet and all its workers."""

    def __init__(self, count: int, *, cpus: int = 1) -> None:
        from ray.cluster_utils import Cluster

        small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
        self.nodes = [self._cluster.add_node(num_cpus=cpus, wait=False, **small) for _ in range(count)]
        self._cluster.wait_for_nodes(PATIENCE)
        self.address: str = self._cluster.address

    def processes(self, node: int) -> list[psutil.Process]:
        """All that runs on a node, its raylet among them."""
        found: list[psutil.Process] = []
        for kind in self.nodes[node].all_processes.values():
            for info in kind:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process = psutil.Process(info.process.pid)
                    found += [process, *process.children(recursive=True)]
        return found

    def kill(self, node: int) -> None:
        """SIGKILL, as when the power is gone: everything on the node ends at once, and nobody is told."""
        everything = self.processes(node)
        self._cluster.remove_node(self.nodes[node], allow_graceful=False)
        for process in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(everything, timeout=PATIENCE)

    def add(self, *, cpus: int = 1) -> None:
        self.nodes.append(self._cluster.add_node(num_cpus=cpus, object_store_memory=80 * 2**20))

    def close(self) -> None:
        self._cluster.shutdown()


@contextlib.contextmanager
def nodes(count: int, *, cpus: int = 1) -> Iterator[Nodes]:
    pytest.importorskip("ray")
    cluster = Nodes(count, cpus=cpus)
    try:
        yield cluster
    finally:
        cluster.close()


def until(condition: Any, what: str) -> None:
    ends = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends, f"waited too long for {what}"
        time.sleep(0.02)
