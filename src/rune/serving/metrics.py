"""What `/metrics` shows, for Prometheus. No label names a client, a project or an adapter: only kinds of things."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from rune.engines.shared.residency import Prefixes, Residency

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """One server's numbers, in a registry of its own."""

    def __init__(
        self,
        *,
        residency: Callable[[], Residency | None],
        prefixes: Callable[[], Prefixes | None],
        waiting: Callable[[], int],
        replicas: Callable[[], int | None] = lambda: None,
    ) -> None:
        registry = CollectorRegistry()
        self.requests = Counter("rune_requests", "Answers", ["route", "status"], registry=registry)
        self.seconds = Histogram(
            "rune_request_seconds", "Until an answer was finished", ["route"], buckets=_SECONDS, registry=registry
        )
        self.first_token = Histogram(
            "rune_first_token_seconds",
            "Until the first text of an answer was there",
            ["wears"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.tokens = Counter("rune_tokens", "Tokens read and drawn", ["kind", "wears"], registry=registry)
        self.draws = Gauge("rune_draws", "Draws under way or waiting", registry=registry)
        self.learning = Gauge("rune_learning", "Trajectories being learned from or waiting for it", registry=registry)
        self.learn_seconds = Histogram(
            "rune_learn_seconds", "From a trajectory's arrival to its adapter", buckets=_SECONDS, registry=registry
        )
        self.cancelled = Counter("rune_cancelled_requests", "Clients that hung up", registry=registry)
        registry.register(_Engine(residency, prefixes, waiting, replicas))
        self._registry = registry

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Engine:
    """The engine's own counters, read when they are asked for."""

    def __init__(
        self,
        residency: Callable[[], Residency | None],
        prefixes: Callable[[], Prefixes | None],
        waiting: Callable[[], int],
        replicas: Callable[[], int | None],
    ) -> None:
        self._residency, self._prefixes, self._waiting, self._replicas = residency, prefixes, waiting, replicas

    def collect(self) -> Iterator[Metric]:
        yield _gauge("rune_engine_waiting_draws", "Draws that the engine has not begun", self._waiting())
        live = self._replicas()
        if live is not None:
            yield _gauge("rune_replicas", "Replicas of the engine that can be asked", live)
        kept = self._prefixes()
        if kept is not None:
            yield _gauge("rune_prefix_bytes", "Keys and values of prompts that others may begin with", kept.bytes)
            yield _count("rune_prefix_asked_tokens", "Tokens of prompts", kept.asked)
            yield _count("rune_prefix_hit_tokens", "Of these, those that were not read again", kept.hits)
        found = self._residency()
        if found is None:
            return
        yield _gauge("rune_adapter_places", "Adapters that the device may hold", found.places)
        yield _gauge("rune_adapters_resident", "Adapters that the device holds", len(found.resident))
        yield _gauge("rune_adapters_pinned", "Of these, those that never leave", len(found.pinned))
        yield _count("rune_adapter_loads", "Adapters brought to the device", found.loads)
        yield _count("rune_adapter_evictions", "Adapters that made room for others", found.evictions)
        yield _count("rune_adapter_load_seconds", "Spent bringing adapters to the device", found.load_seconds)
        yield _gauge("rune_adapters_held", "Adapters in host memory", found.held)
        yield _gauge("rune_adapters_held_bytes", "Their bytes", found.held_bytes)
        yield _count("rune_adapter_host_hits", "Loads that needed no disk", found.held_hits)


def _gauge(name: str, words: str, value: float) -> Any:
    return GaugeMetricFamily(name, words, value=value)


def _count(name: str, words: str, value: float) -> Any:
    return CounterMetricFamily(name, words, value=value)
