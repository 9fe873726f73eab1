"""What many adapters need on many GPUs, on paper: bytes, hit rates, load, cost, and what breaks first.

    python bench/plan.py [--adapters 100000] [--gpus 64] [--gpu-dollars-an-hour 3] [--check] [--out FILE]

Arithmetic over a model's shape, the arguments and measured numbers from committed results, each named by its file;
nothing is run. Writes results/plan-100k-64.json, and docs/cluster.md between its markers when the arguments are the
defaults. `--check` writes nothing and exits 1 where the page or the file says something else.

Requests are drawn by popularity: the adapter of rank i with probability ∝ 1/i^s (Zipf), each on its own. A cache that
lets the least recently used go then holds adapter i for a share 1 − exp(−p_i·t) of the time, with t such that the
shares sum to its size: Che, Tung, Wang, "Hierarchical Web caching systems" (2002); a test holds it against LRU itself.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rune.models.memory import BYTES, PUBLISHED, Shape

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "results" / "plan-100k-64.json"
DOC = ROOT / "docs" / "cluster.md"
BEGIN, END = "<!-- plan:begin -->", "<!-- plan:end -->"
MODELS = ("qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct", "qwen2.5-coder-7b-instruct")
MEASURED_MODEL = MODELS[0]  # whose speed was measured
GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What is not measured here: the arguments."""

    adapters: int = 100_000
    gpus: int = 64
    gpus_a_host: int = 8
    rank: int = 16  # of an adapter as it is kept: static 8 and trajectory 8, side by side (hypernet/export.py)
    dtype: str = "bfloat16"
    gpu_gb: float = 141.0  # memory of one GPU (H200)
    memory_share: float = 0.85  # of it that the engine takes, as engine.settings.memory_fraction
    rows: int = 256  # drawn at once on a replica
    window: int = 4096  # tokens that a row's keys and values may take
    host_gb: float = 1024.0  # memory of a host
    host_share: float = 0.5  # of it that the system's file cache gets
    network_gbit: float = 100.0  # of a host, from the shared file system
    storage_gbyte: float = 20.0  # per second, of the shared file system for all hosts
    zipf: float = 1.0  # s: popularity of the adapter of rank i ∝ 1/i^s
    prompt_tokens: float = 500.0
    answer_tokens: float = 200.0
    load: float = 0.5  # share of the measured speed that is asked for
    gpu_dollars_an_hour: float = 3.0
    learned_a_day: int = 100_000  # trajectories that become adapters


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Read from committed results."""

    tokens_per_second: float  # drawn by one GPU under 1,000 adapters, requests coming one by one
    first_token_ms: float  # median, the same run
    bare_tokens_per_second: float  # the same, no adapter
    load_ms: float  # one adapter from the disk's cache to the GPU
    learn_seconds: float  # one adapter by the hypernetwork
    requests_per_second: float  # that one server process has carried
    select_ms: float  # one adapter chosen among 100,000, median
    two_gpus: float  # speed-up of a second GPU
    sources: tuple[tuple[str, str], ...]  # (what, file and field)


def measured(root: Path = ROOT) -> Measured:
    """Raises OSError or KeyError where a result is not what it was."""

    def read(file: str, *keys: str) -> Any:
        value: Any = json.loads((root / "results" / file).read_text(encoding="utf-8"))
        for key in keys:
            value = value[key]
        return value

    served = "bench-generate-h200/served"
    of_164 = "bench-generate-h200/bf16/ours_164.json"
    return Measured(
        tokens_per_second=read(f"{served}/session_1000.json", "rate"),
        first_token_ms=read(f"{served}/session_1000.json", "first_token_ms", "p50"),
        bare_tokens_per_second=read(f"{served}/session_0.json", "rate"),
        load_ms=1000 * read(of_164, "load_seconds") / read(of_164, "adapters"),
        learn_seconds=read("bench-hypernet-h100.json", "adapter", "seconds_median"),
        requests_per_second=read("bench-serve-cpu.json", "requests_per_second"),
        select_ms=read("bench-registry.json", "milliseconds", "select", "median_ms"),
        two_gpus=read("bench-generate-h200-x2/bench-generate.json", "parts", "two_gpus", "speedup"),
        sources=(
            ("tokens/s of one GPU, first token", f"results/{served}/session_1000.json, session_0.json"),
            ("reading one adapter", f"results/{of_164}: load_seconds / adapters"),
            ("learning one adapter", "results/bench-hypernet-h100.json: adapter.seconds_median"),
            ("requests/s of one server process", "results/bench-serve-cpu.json (two cores, clients included)"),
            ("choosing among 100,000 adapters", "results/bench-registry.json: select, median"),
            ("a second GPU", "results/bench-generate-h200-x2/bench-generate.json: two_gpus.speedup"),
        ),
    )


# --------------------------------------------------------------------------- arithmetic


def adapter_bytes(shape: Shape, rank: int, dtype: str) -> int:
    """A and B on all seven kinds of projection."""
    return shape.lora_parameters(rank) * BYTES[dtype]


def resident_bytes(shape: Shape, rank: int, dtype: str) -> int:
    """The same on a device: B of q·k·v is one block there, three times as high (engines/local/adapter_pool.py)."""
    qkv = (shape.heads + 2 * shape.kv_heads) * shape.head
    return adapter_bytes(shape, rank, dtype) + shape.layers * 2 * rank * qkv * BYTES[dtype]


def own_bytes(shape: Shape, rank: int, dtype: str) -> int:
    """Of a kept adapter, what no other has: the generated B, half of its ranks. The rest is static or the learned A."""
    outputs = shape.heads * shape.head + 2 * shape.kv_heads * shape.head + 2 * shape.hidden + 2 * shape.ffn
    return shape.layers * (rank // 2) * outputs * BYTES[dtype]


def kv_bytes(shape: Shape, dtype: str) -> int:
    """Keys and values of one token in all layers."""
    return 2 * shape.layers * shape.kv_heads * shape.head * BYTES[dtype]


def popularity(count: int, s: float) -> np.ndarray:
    """Probabilities of adapters by rank, most popular first [count]."""
    weight_N = np.arange(1, count + 1, dtype=np.float64) ** -s
    return weight_N / weight_N.sum()


def hit_rate(share_N: np.ndarray, places: float) -> float:
    """Share of requests that find their adapter in an LRU cache of `places` (Che's approximation)."""
    if places >= len(share_N):
        return 1.0
    if places <= 0:
        return 0.0
    low, high = 0.0, 1.0
    while _occupied(share_N, high) < places:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _occupied(share_N, middle) < places else (low, middle)
    return float((share_N * -np.expm1(-share_N * high)).sum())


def _occupied(share_N: np.ndarray, time: float) -> float:
    return float(-np.expm1(-share_N * time).sum())


def dollars_a_million(dollars_an_hour: float, tokens_per_second: float) -> float:
    """Of one GPU that draws at this speed all the time."""
    return dollars_an_hour / (tokens_per_second * 3600) * 1e6


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One resource under the load: `headroom` below 1 means that it breaks."""

    what: str
    has: float
    needs: float
    unit: str
    remedy: str

    @property
    def headroom(self) -> float:
        return self.has / self.needs if self.needs else math.inf


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One model's numbers. Bytes are in 10⁹; rates per second of the whole cluster unless they say otherwise."""

    model: str
    adapter_mb: float
    own_mb: float  # of it that no other adapter has
    resident_mb: float  # of one adapter on the device
    all_adapters_gb: float
    kv_kb_a_token: float
    weights_gb: float
    kv_gb: float  # a replica's cache, all rows at full length
    places: int  # adapters beside model and cache on one GPU
    places_with_pages: int  # the same if a row took what its tokens need, not its whole window
    host_places: int  # adapters in the file caches of all hosts
    hit_by_residency: float  # one home each: the GPUs' places are one cache
    hit_at_random: float  # every replica sees every adapter
    host_hit: float  # of the misses of the former, share found in the host's memory
    tokens_per_second: float  # of one GPU; measured, or scaled by parameters
    requests: float
    misses: float
    misses_at_random: float
    storage_gb_per_second: float
    cold_ms: float  # one adapter from the shared file system into a GPU
    refill_seconds: float  # the homes of one replica that died
    dollars_a_million: float
    limits: tuple[Limit, ...]  # the tightest first


def plan(model: str, shape: Shape, given: Assumptions, known: Measured) -> Plan:
    """All of one model. `known` is of `MEASURED_MODEL`: others' speed is taken to fall as their weights grow."""
    size = adapter_bytes(shape, given.rank, given.dtype)
    held = resident_bytes(shape, given.rank, given.dtype)
    weights = shape.parameters * BYTES[given.dtype]
    cache = given.rows * given.window * kv_bytes(shape, given.dtype)
    budget = given.gpu_gb * GB * given.memory_share
    room = budget - weights - cache
    places = max(0, int(room // held))
    tokens = given.prompt_tokens + given.answer_tokens
    pages = int(given.rows * tokens * kv_bytes(shape, given.dtype))
    hosts = math.ceil(given.gpus / given.gpus_a_host)
    host_places = int(hosts * given.host_gb * GB * given.host_share // size)
    share_N = popularity(given.adapters, given.zipf)
    speed = known.tokens_per_second * PUBLISHED[MEASURED_MODEL].parameters / shape.parameters
    requests = given.gpus * speed * given.load / given.answer_tokens
    home, random = hit_rate(share_N, places * given.gpus), hit_rate(share_N, places)
    below = hit_rate(share_N, places * given.gpus + host_places)
    host_hit = 1.0 if home == 1 else (below - home) / (1 - home)
    misses = requests * (1 - home)
    from_storage = misses * (1 - host_hit)
    cold = size / (given.network_gbit / 8 * GB)
    lost = min(given.adapters / given.gpus, places) * size
    limits = (
        Limit(
            what="requests through one server process",
            has=known.requests_per_second,
            needs=requests,
            unit="requests/s",
            remedy="several `rune serve` processes over one registry, behind a proxy that routes by adapter",
        ),
        Limit(
            what="choosing an adapter in the registry (SQLite, one reader)",
            has=1000 / known.select_ms,
            needs=requests,
            unit="selects/s",
            remedy="readers side by side, or the choice kept in memory for some seconds",
        ),
        Limit(
            what="device memory: rows at full length",
            has=budget - weights,
            needs=cache,
            unit="bytes of one GPU",
            remedy="fewer rows or a shorter window; pages of keys and values in place of whole rows",
        ),
        Limit(
            what="places for adapters on the devices",
            has=places * given.gpus,
            needs=given.adapters,
            unit="adapters",
            remedy="the rest is read when asked for: see the hit rate; a smaller rank, or only the generated B",
        ),
        Limit(
            what="reading adapters into the devices",
            has=given.gpus * 1000 / (1000 * cold + known.load_ms),
            needs=misses,
            unit="adapters/s",
            remedy="prefetch for waiting requests",
        ),
        Limit(
            what="the shared file system",
            has=given.storage_gbyte * GB,
            needs=from_storage * size,
            unit="bytes/s",
            remedy="disks of the hosts as another tier",
        ),
        Limit(
            what="memory of the hosts as a tier",
            has=host_places,
            needs=given.adapters,
            unit="adapters",
            remedy="more of it, or disks of the hosts",
        ),
        Limit(
            what="learning (one GPU's hypernetwork)",
            has=1 / known.learn_seconds,
            needs=given.learned_a_day / 86400,
            unit="adapters/s",
            remedy="another GPU for learning",
        ),
    )
    return Plan(
        model=model,
        adapter_mb=size / 1e6,
        own_mb=own_bytes(shape, given.rank, given.dtype) / 1e6,
        resident_mb=held / 1e6,
        all_adapters_gb=size * given.adapters / GB,
        kv_kb_a_token=kv_bytes(shape, given.dtype) / 1e3,
        weights_gb=weights / GB,
        kv_gb=cache / GB,
        places=places,
        places_with_pages=max(0, int((budget - weights - pages) // held)),
        host_places=host_places,
        hit_by_residency=home,
        hit_at_random=random,
        host_hit=host_hit,
        tokens_per_second=speed,
        requests=requests,
        misses=misses,
        misses_at_random=requests * (1 - random),
        storage_gb_per_second=from_storage * size / GB,
        cold_ms=1000 * cold + known.load_ms,
        refill_seconds=lost / (given.network_gbit / 8 * GB),
        dollars_a_million=dollars_a_million(given.gpu_dollars_an_hour, speed * given.load),
        limits=tuple(sorted(limits, key=lambda limit: limit.headroom)),
    )


# --------------------------------------------------------------------------- what is written


def tables(plans: Sequence[Plan], given: Assumptions, known: Measured) -> str:
    """What stands between the page's markers."""

    def row(words: str, *values: str) -> str:
        return f"| {words} | {' | '.join(values)} |"

    def each(words: str, form: Any) -> str:
        return row(words, *(form(one) for one in plans))

    lines = [
        f"{given.adapters:,} adapters of rank {given.rank} on all seven projections ({given.dtype}), {given.gpus} GPUs "
        f"of {given.gpu_gb:g} GB in hosts of {given.gpus_a_host}; {given.rows} rows of {given.window:,} tokens a "
        f"replica; an answer has {given.answer_tokens:g} tokens; asked for: {given.load:.0%} of the speed that was "
        f"measured with 512 requests under way; popularity ∝ 1/rank^{given.zipf:g}; {given.gpu_dollars_an_hour:g} $ a "
        "GPU-hour.",
        "",
        row("", *(one.model for one in plans)),
        "|---|" + "---:|" * len(plans),
        each("one adapter, MB", lambda p: f"{p.adapter_mb:.1f}"),
        each("… of it that no other adapter has", lambda p: f"{p.own_mb:.1f}"),
        each("… on the device", lambda p: f"{p.resident_mb:.1f}"),
        each("all of them, GB (disk)", lambda p: f"{p.all_adapters_gb:,.0f}"),
        each("weights of a replica, GB", lambda p: f"{p.weights_gb:.1f}"),
        each("keys and values of one token, kB", lambda p: f"{p.kv_kb_a_token:.1f}"),
        each("… of all rows at full length, GB", lambda p: f"{p.kv_gb:.1f}"),
        each("places for adapters on one GPU", lambda p: f"{p.places:,}"),
        each(
            f"… if rows took pages, {given.prompt_tokens + given.answer_tokens:g} tokens each",
            lambda p: f"{p.places_with_pages:,}",
        ),
        each("… on all, as it is", lambda p: f"{p.places * given.gpus:,}"),
        each("found on the device, routed by residency, %", lambda p: f"{100 * p.hit_by_residency:.1f}"),
        each("… routed at random, %", lambda p: f"{100 * p.hit_at_random:.1f}"),
        each(
            "tokens/s of one GPU" + f" ({plans[0].model} measured, others scaled)",
            lambda p: f"{p.tokens_per_second:,.0f}",
        ),
        each("requests/s asked for", lambda p: f"{p.requests:,.0f}"),
        each("adapters read per second", lambda p: f"{p.misses:,.1f}"),
        each("… routed at random", lambda p: f"{p.misses_at_random:,.1f}"),
        each("from the shared file system, GB/s", lambda p: f"{p.storage_gb_per_second:.2f}"),
        each("one cold adapter, ms", lambda p: f"{p.cold_ms:.1f}"),
        each("a dead replica's adapters read again, s", lambda p: f"{p.refill_seconds:.1f}"),
        each("$ per million tokens drawn", lambda p: f"{p.dollars_a_million:.3f}"),
        "",
        "What breaks first: what there is over what is needed, below 1 it breaks (ordered by the first model):",
        "",
        row("", *(one.model for one in plans), "instead"),
        "|---|" + "---:|" * len(plans) + "---|",
        *(_limit(limit, plans, row) for limit in plans[0].limits),
        "",
        "Measured, not assumed:",
        "",
        "| | | from |",
        "|---|---:|---|",
    ]
    values = (
        f"{known.tokens_per_second:,.0f} under 1,000 adapters ({known.bare_tokens_per_second:,.0f} under none), "
        f"{known.first_token_ms:.0f} ms",
        f"{known.load_ms:.1f} ms",
        f"{known.learn_seconds:.3f} s",
        f"{known.requests_per_second:g}",
        f"{known.select_ms:.1f} ms",
        f"× {known.two_gpus:g}",
    )
    lines += [f"| {what} | {value} | {source} |" for (what, source), value in zip(known.sources, values, strict=True)]
    return "\n".join(lines)


def _limit(limit: Limit, plans: Sequence[Plan], row: Any) -> str:
    same = [next(other for other in one.limits if other.what == limit.what) for one in plans]
    ratios = ["no need" if one.headroom == math.inf else f"{one.headroom:,.2f}" for one in same]
    return row(limit.what, *ratios, limit.remedy if any(one.headroom < 1 for one in same) else "–")


def page(text: str, found: str) -> str:
    """docs/cluster.md with the tables in it."""
    before, rest = text.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    return f"{before}{BEGIN}\n{found}\n{END}{after}"


def record(plans: Sequence[Plan], given: Assumptions, known: Measured) -> dict[str, Any]:
    found = [{**asdict(one), "limits": [{**asdict(x), "headroom": x.headroom} for x in one.limits]} for one in plans]
    return {"assumed": asdict(given), "measured": asdict(known), "plans": found}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value in asdict(Assumptions()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help="default: %(default)s")
    parser.add_argument("--models", nargs="+", choices=sorted(PUBLISHED), default=list(MODELS), metavar="MODEL")
    parser.add_argument("--check", action="store_true", help="exit 1 where the page or the file says something else")
    parser.add_argument("--out", type=Path, help=f"default: {OUT.relative_to(ROOT)}, for the default arguments")
    args = parser.parse_args(argv)
    given = Assumptions(**{name: getattr(args, name) for name in asdict(Assumptions())})
    for name, value in asdict(given).items():
        free = value == 0 and name in ("zipf", "gpu_dollars_an_hour")
        if isinstance(value, int | float) and not (free or 0 < value < math.inf):
            parser.error(f"--{name.replace('_', '-')} is {value}; give a number above 0")
    if given.dtype not in BYTES:
        parser.error(f"--dtype {given.dtype}; it may be {', '.join(BYTES)}")
    known = measured()
    plans = [plan(name, PUBLISHED[name], given, known) for name in args.models]
    found = tables(plans, given, known)
    text = json.dumps(record(plans, given, known), indent=1) + "\n"
    usual = given == Assumptions() and args.models == list(MODELS)
    if args.check:
        old = OUT.read_text(encoding="utf-8"), DOC.read_text(encoding="utf-8")
        if old != (text, page(old[1], found)):
            print(f"{OUT.name} or {DOC.name} says something else; run: python bench/plan.py", file=sys.stderr)
            return 1
        return 0
    print(found)
    if usual:
        DOC.write_text(page(DOC.read_text(encoding="utf-8"), found), encoding="utf-8")
    if out := args.out or (OUT if usual else None):
        out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
