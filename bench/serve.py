"""Many clients, many adapters, one `rune serve` on loopback; every answer checked; writes results/bench-serve-cpu.json.

    python bench/serve.py [--clients 200] [--adapters 1000] [--places 128] [--seconds 600] [--check] [--out FILE]

A tiny random model (or --model FOLDER) and random adapters of rank 8 in a registry. First the batch engine answers
every (adapter, prompt) greedily in this process; then the clients ask the server, one request after the other, a tenth
of them for the base model, half as streams, adapters drawn at random with a few favourites (Zipf). An answer must be
its adapter's own text. Refused with 429, a client waits as it is told and asks again. Memory is the server's resident
set. Requests/s and latencies are wall time of a machine that the clients share. `--check` exits 1 for a wrong answer,
an error other than 429 on either side, or memory that still grows.

Each client has a connection of its own, as clients on as many machines would. In a pool that all of them shared, httpx
closed connections on which a request had just begun (encode/httpcore#1110): a ReadError here, a client that hung up
(499) in the server's log. `server_statuses` is what that log says, so that the two sides can be held together.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rune.adapters.peft import Adapter, Pair, target_linears
from rune.adapters.registry import intake
from rune.adapters.registry.records import MadeFrom, Place
from rune.adapters.registry.registry import Registry
from rune.engines import torch as torch_engine
from rune.models import loader
from rune.runs import store
from rune.types import ModelRef, Request, Sampling

PROMPTS = ("def add(a, b):\n", "class Account:\n", "import json\n")
RANK, TOKENS = 8, 16
MOST_GROWTH = 0.05  # of the resident set, from the second quarter of the time to the last: beyond it memory grows
SLICES = 20  # of the time, each with its own numbers


class Answered(NamedTuple):
    """One right or wrong answer, as its client saw it."""

    second: float  # since the start, when it was finished
    ms: float
    first_text_ms: float  # of a stream; 0 without one
    stream: bool


@dataclass
class Found:
    """What all clients together have seen."""

    started: float = field(default_factory=time.monotonic)
    answered: list[Answered] = field(default_factory=list)
    refused: int = 0  # 429
    errors: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)
    memory: list[tuple[float, int]] = field(default_factory=list)  # (second, bytes)


def main() -> int:
    args = arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="rune-bench-serve-") as scratch:
        root = Path(scratch)
        model = given_model(args.model) if args.model else tiny_model(root / "model")
        registry = Registry(root / "registry", create=True)
        names = fill(registry, model, args.adapters)
        expected = batch_answers(registry, model, names)
        print(f"{len(names)} adapters, {len(expected)} answers known, {len(set(expected.values()))} different")
        result = {**about(args, model, expected), **measure(args, root, model, names, expected)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    store.write_json(args.out, result)
    print(json.dumps(result, indent=2))
    sound = not result["wrong_answers"] and not result["errors"] and not result["server_errors"]
    sound = sound and result["memory_growth"] <= MOST_GROWTH and result["exit_code"] == 0
    return 0 if sound or not args.check else 1


def fill(registry: Registry, model: ModelRef, count: int) -> list[str]:
    """Random adapters, strong enough that each says something of its own."""
    linears = target_linears(loader.load(model, device="cpu", dtype="float32"))
    sizes = {name: (linear.in_features, linear.out_features) for name, linear in linears.items()}
    names = []
    for number in range(count):
        rng = torch.Generator().manual_seed(number)
        pairs = {
            name: Pair(0.3 * torch.randn(i, RANK, generator=rng), 0.3 * torch.randn(RANK, o, generator=rng))
            for name, (i, o) in sizes.items()
        }
        adapter = Adapter(pairs=pairs, scale=1.0, base_model=model.digest)
        place = Place(project=f"p{number % 10}", domain=f"d{number}")
        ready = intake.prepare(adapter, place, MadeFrom(how="bench"), max_rank=registry.max_rank)
        entry, _ = registry.insert(ready.draft, ready.config, ready.weights)
        names.append(entry.id)
    return names


def batch_answers(registry: Registry, model: ModelRef, names: list[str]) -> dict[tuple[str, str], str]:
    """(adapter or "", prompt) → the batch engine's greedy text."""
    config = torch_engine.Config(max_adapters=max(1, len(names)))
    engine = torch_engine.build(config, model=model, device="cpu", dtype="float32", adapters=registry.objects)
    refs = {"": None, **{name: registry.ref(registry.get(name), base=model.digest) for name in names}}
    sampling = Sampling(temperature=0, max_new_tokens=TOKENS)
    requests = [
        Request(key=f"{name}|{number}", prompt=prompt, sampling=sampling, seed=0, adapter=ref)
        for name, ref in refs.items()
        for number, prompt in enumerate(PROMPTS)
    ]
    found = {}
    for completion in engine.complete(requests):
        name, _, number = completion.key.partition("|")
        found[name, PROMPTS[int(number)]] = completion.text
    engine.close()
    return found


def measure(
    args: argparse.Namespace, root: Path, model: ModelRef, names: list[str], expected: dict[tuple[str, str], str]
) -> dict[str, Any]:
    command = [sys.executable, "-m", "rune", "serve", "--model", model.path, "--port", "0", "--checkpoint", ""]
    command += ["--registry", str(root / "registry"), "--set", "model.served_name=base"]
    command += ["--set", f"engine.settings={{window=256,max_adapters={args.places},max_rows={args.rows}}}"]
    command += ["--set", f"serve.max_draws={args.draws}", "--set", "model.device=cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (root / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment)
        assert server.stdout is not None
        url = server.stdout.readline().decode().strip()
        if not url:
            raise SystemExit((root / "log").read_text(encoding="utf-8")[-2000:])
        try:
            found, seconds = asyncio.run(crowd(args, url, server.pid, names, expected))
            metrics = httpx.get(f"{url}/metrics").text
        finally:
            server.terminate()
            code = server.wait(120)
    statuses, said = server_log(root / "log")
    quarter = max(1, len(found.memory) // 4)
    early = statistics.mean(size for _, size in found.memory[quarter : 2 * quarter] or found.memory)
    late = statistics.mean(size for _, size in found.memory[-quarter:])
    loads = metric(metrics, "rune_adapter_loads_total")
    return {
        "seconds": round(seconds, 1),
        "requests": len(found.answered),
        "requests_per_second": round(len(found.answered) / seconds, 1),
        "whole_ms": percentiles([one.ms for one in found.answered if not one.stream]),
        "stream_ms": percentiles([one.ms for one in found.answered if one.stream]),
        "first_text_ms": percentiles([one.first_text_ms for one in found.answered if one.first_text_ms]),
        "refused_429": found.refused,
        "errors": dict(found.errors),
        "server_statuses": dict(sorted(statuses.items())),
        "server_errors": said,
        "wrong_answers": len(found.wrong),
        "first_wrong": found.wrong[:3],
        "adapters_asked": len(found.asked - {""}),
        "adapter_loads": loads,
        "adapter_load_ms": 1000 * metric(metrics, "rune_adapter_load_seconds_total") / max(1, loads),
        "memory_growth": round(late / early - 1, 4),
        "over_time": over_time(found, seconds),
        "exit_code": code,
    }


def server_log(path: Path) -> tuple[Counter[str], list[str]]:
    """(answers by status, the first lines that tell of a fault): what the server itself wrote."""
    statuses: Counter[str] = Counter()
    said = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            status = json.loads(line)["status"]
            statuses[str(status)] += 1
            if status < 500:
                continue
        said.append(line[:300])
    return statuses, said[:10]


def over_time(found: Found, seconds: float) -> list[dict[str, Any]]:
    """Slices of the time: requests/s, latencies of all answers finished in it, and the resident set at its end."""
    width = seconds / SLICES
    slices = []
    for number in range(SLICES):
        inside = [one.ms for one in found.answered if number <= one.second / width < number + 1]
        sizes = [size for second, size in found.memory if number <= second / width < number + 1]
        slices.append(
            {
                "until_second": round(width * (number + 1), 1),
                "requests_per_second": round(len(inside) / width, 1),
                "ms": percentiles(inside),
                "memory_mb": round(sizes[-1] / 1e6, 1) if sizes else None,
            }
        )
    return slices


async def crowd(
    args: argparse.Namespace, url: str, pid: int, names: list[str], expected: dict[tuple[str, str], str]
) -> tuple[Found, float]:
    found, process = Found(), psutil.Process(pid)
    weights = [1 / (rank + 1) ** 0.7 for rank in range(len(names))]

    async def client(number: int) -> None:
        rng = random.Random(number)
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits, verify=False, trust_env=False) as http:
            while time.monotonic() - found.started < args.seconds:
                name = "" if rng.random() < 0.1 else rng.choices(names, weights)[0]
                await ask(http, found, name, rng.choice(PROMPTS), rng.random() < 0.5, expected)

    async def watch() -> None:
        while True:
            found.memory.append((time.monotonic() - found.started, process.memory_info().rss))
            await asyncio.sleep(1)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(client(number) for number in range(args.clients)))
    watching.cancel()
    return found, time.monotonic() - found.started


async def ask(
    http: httpx.AsyncClient, found: Found, name: str, prompt: str, stream: bool, expected: dict[tuple[str, str], str]
) -> None:
    body = {"model": name or "base", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "stream": stream}
    started, first, text = time.monotonic(), 0.0, ""
    try:
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code == 429:
                await answer.aread()
                found.refused += 1
                await asyncio.sleep(float(answer.headers["retry-after"]))
                return
            if answer.status_code != 200:
                found.errors[f"{answer.status_code} {(await answer.aread())[:200].decode(errors='replace')}"] += 1
                return
            if stream:
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        first = first or time.monotonic()
                        text += json.loads(line[6:])["choices"][0]["text"]
            else:
                text = json.loads(await answer.aread())["choices"][0]["text"]
    except (httpx.HTTPError, KeyError, ValueError) as error:
        found.errors[told(error)] += 1
        return
    ends = time.monotonic()
    found.answered.append(
        Answered(ends - found.started, 1000 * (ends - started), 1000 * (first - started) if first else 0.0, stream)
    )
    found.asked.add(name)
    if text != expected[name, prompt]:
        found.wrong.append(f"{name[:12] or 'base'} {prompt!r}: {text!r} instead of {expected[name, prompt]!r}")


def told(error: BaseException) -> str:
    """An error and what it came of: httpx says ReadError for a connection that either side has closed."""
    names = []
    found: BaseException | None = error
    while found is not None:
        names.append(f"{type(found).__name__}({found})")
        found = found.__cause__ or found.__context__  # httpcore hides which of them it was
    return " ← ".join(names)


def percentiles(values: list[float]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=100)
    return {"p50": round(cuts[49], 1), "p95": round(cuts[94], 1), "p99": round(cuts[98], 1)}


def metric(text: str, name: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"{name} "))


def about(args: argparse.Namespace, model: ModelRef, expected: dict[tuple[str, str], str]) -> dict[str, Any]:
    return {
        "date": store.now()[:10],
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()},
        "model": "random, 2 layers, hidden 64" if not args.model else model.name,
        "clients": args.clients,
        "adapters": args.adapters,
        "places": args.places,
        "rows": args.rows,
        "max_draws": args.draws,
        "tokens": TOKENS,
        "different_answers": len(set(expected.values())),
    }


def given_model(folder: Path) -> ModelRef:
    from rune.models import resolve

    return resolve.resolve(str(folder), sources=("cache",), cache=resolve.default_cache())


def tiny_model(folder: Path) -> ModelRef:
    from tests.conftest import make_tiny_model

    folder.mkdir()
    return make_tiny_model(folder, seed=0)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--places", type=int, default=128, help="adapters resident at once")
    parser.add_argument("--rows", type=int, default=64, help="draws decoded at once")
    parser.add_argument("--draws", type=int, default=192, help="serve.max_draws: fewer than clients, so that some wait")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--model", type=Path, help="a model folder (default: a tiny random one)")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "bench-serve-cpu.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
