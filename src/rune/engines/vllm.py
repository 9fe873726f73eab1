"""vLLM in this process: its asynchronous engine (`AsyncLLM`), one `LoRARequest` per draw, adapters by content hash.

Submitted requests join the batch that vLLM is drawing, and are heard token by token; lists are handed over in chunks.
Names by hash because vLLM's prefix cache is keyed by the adapter's name: weights changed in place under one name
would be served from the old cache. One engine per GPU; tensor parallelism only where the base does not fit
(wrong outputs of LoRA under it went unnoticed upstream before, vllm#21471).

On a CPU, draws of the base model wear an adapter of zeros: vLLM's torch kernels take the index −1, for none, as the
last adapter's (`lora/ops/torch_ops` in 0.32), silently, wherever other rows of the batch wear one. Its GPU kernels
leave such rows out; lists still hand the base model's draws over apart. A *served* vLLM is the engine `openai` with
dialect = "vllm".
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import queue
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rune.adapters.folders import AdapterSource, Folders
from rune.engines.shared.streams import joined, no_logprobs
from rune.errors import AdapterError, EngineError
from rune.types import AdapterRef, Completion, Delta, Listener, ModelRef, Request

_ENDS = ("stop", "length")
_CLOSED = "the engine was closed; build it again"

_ELSEWHERE = {  # what options cannot say: settings here, or of [model], or what the engine stands on
    "model", "dtype", "enable_lora", "max_loras", "max_cpu_loras", "max_lora_rank", "gpu_memory_utilization",
    "max_model_len", "tensor_parallel_size",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of `[engine]` when name = "vllm"."""

    max_loras: int = 16  # adapters in one batch; vLLM's own default of 1 would take turns
    max_cpu_loras: int = 256  # adapters kept in host memory
    max_lora_rank: int = 64  # larger ones are refused
    gpu_memory_utilization: float = 0.85  # share of the GPU's memory
    max_model_len: int = 4096  # tokens of prompt and answer
    tensor_parallel_size: int = 1  # GPUs for one base model
    chunk: int = 2048  # draws of a list that are handed over at once
    options: dict[str, Any] = field(default_factory=dict)  # of vLLM's `AsyncEngineArgs(…)`: kv_cache_memory_bytes

    def __post_init__(self) -> None:
        if min(self.max_loras, self.max_lora_rank, self.max_model_len, self.tensor_parallel_size, self.chunk) < 1:
            raise ValueError("max_loras, max_lora_rank, max_model_len, tensor_parallel_size and chunk must be ≥ 1")
        if self.max_cpu_loras < self.max_loras:
            raise ValueError(f"max_cpu_loras must be at least max_loras ({self.max_loras})")
        if given := sorted(_ELSEWHERE & {*self.options}):
            raise ValueError(f"options: '{given[0]}' has a setting of its own; leave it out of options")


def build(
    config: Config, *, model: ModelRef, device: str, dtype: str, adapters: AdapterSource | None = None
) -> VllmEngine:
    """Load the model into vLLM (a minute or more). Raises EngineError if vLLM is not installed or will not start."""
    # A hypernetwork that was loaded here has done arithmetic, whose threads a forked engine process would wait for.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for what a command answers with
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise EngineError(f"engine 'vllm' cannot be imported ({error}); pip install 'rune-lora[vllm]'") from None
    zeros = _zeros(model) if device == "cpu" else None
    options: dict[str, Any] = {
        "model": model.path,
        "dtype": dtype,
        "enable_lora": True,
        "max_loras": config.max_loras + (zeros is not None),
        "max_cpu_loras": config.max_cpu_loras + (zeros is not None),
        "max_lora_rank": config.max_lora_rank,
        "max_model_len": config.max_model_len,
        "tensor_parallel_size": config.tensor_parallel_size,
        "enforce_eager": device == "cpu",
        "disable_log_stats": True,
        "seed": 0,
    }
    if device == "cuda":
        options["gpu_memory_utilization"] = config.gpu_memory_utilization

    def start() -> Any:
        # As `LLM(…)` is sized: for how much a batch yields, not for how soon one answer comes.
        return AsyncLLM.from_engine_args(
            AsyncEngineArgs(**options | config.options), usage_context=UsageContext.LLM_CLASS
        )

    try:
        return VllmEngine(config, model, start, adapters or Folders(), zeros)
    except (RuntimeError, ValueError, OSError, TypeError) as error:
        if zeros is not None:
            zeros.cleanup()
        raise EngineError(f"vLLM did not start with {model.name}: {str(error).splitlines()[0]}") from None


class _Row(NamedTuple):
    """One draw, ready for vLLM."""

    request: Request
    number: int
    tokens: list[int]
    lora: Any  # vLLM's LoRARequest; None: the base model


class VllmTicket:
    """Draws that are under way in vLLM. `say` is heard in the engine's thread."""

    def __init__(self, rows: Sequence[_Row], say: Callable[[Request, Delta | Exception], None]) -> None:
        self.rows = rows
        self.over = False
        self.leave: Callable[[], None] = lambda: None  # set by the engine, before anything is drawn
        self._say = say

    def cancel(self) -> None:
        """See `types.Ticket`: vLLM aborts what is not finished."""
        self.over = True
        self.leave()

    def say(self, request: Request, what: Delta | Exception) -> None:
        if self.over:
            return
        self.over = isinstance(what, Exception)
        try:
            self._say(request, what)
        except Exception:  # a listener that is gone; its draws have no use
            self.cancel()


class VllmEngine:
    """See the module's docstring."""

    def __init__(
        self,
        config: Config,
        model: ModelRef,
        start: Callable[[], Any],
        adapters: AdapterSource,
        zeros: tempfile.TemporaryDirectory[str] | None = None,
    ) -> None:
        """`start` makes vLLM's AsyncLLM, in the thread whose event loop it lives in. Raises what that raises.

        `zeros`: a PEFT folder, ours to remove, that changes nothing; draws of the base model wear it.
        """
        self.config, self.model, self._adapters, self._zeros = config, model, adapters, zeros
        self.window = config.max_model_len
        self._numbers: dict[str, int] = {"": 1}  # adapter id → vLLM's number for it
        self._names = itertools.count()
        self._preparing = threading.Lock()  # a tokenizer is not made for several threads at once
        self._guard = threading.Lock()
        self._closed = False
        started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, Any]] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._live(start, started)), name="rune-engine", daemon=True
        )
        self._thread.start()
        self._loop, self._closing, self._vllm = started.result()
        self.tokenizer = self._vllm.get_tokenizer()

    def complete(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield draws as they finish, chunk by chunk: the base model's first, then adapter by adapter."""
        rows = self._rows(requests)
        base = [row for row in rows if row.request.adapter is None]
        adapted = [row for row in rows if row.request.adapter is not None]
        adapted.sort(key=lambda row: row.request.adapter.adapter_id if row.request.adapter else "")
        size = self.config.chunk
        for chunk in [part[i : i + size] for part in (base, adapted) for i in range(0, len(part), size)]:
            heard: queue.SimpleQueue[tuple[Request, Delta | Exception]] = queue.SimpleQueue()
            ticket = self._begin(VllmTicket(chunk, lambda *told, heard=heard: heard.put(told)), whole=True)
            try:
                for _ in chunk:
                    request, what = heard.get()
                    if isinstance(what, Exception):
                        raise what
                    yield joined(request.key, [what])
            finally:
                ticket.cancel()

    def submit(self, request: Request, listen: Listener) -> VllmTicket:
        """See `types.Engine`: it joins vLLM's running batch."""
        return self._begin(VllmTicket(self._rows([request]), lambda _, what: listen(what)))

    @property
    def broken(self) -> bool:
        """Whether vLLM's engine process has died; every request is then refused."""
        return bool(self._vllm.errored)

    def close(self) -> None:
        """Stop vLLM's engine process and free its memory; whoever still listens hears an EngineError."""
        with self._guard:
            if not self._closed:
                self._closed = True
                self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()
        if self._zeros is not None:
            self._zeros.cleanup()

    # ------------------------------------------------------------------ in the engine's thread

    async def _live(
        self, start: Callable[[], Any], started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, Any]]
    ) -> None:
        self._drawing: dict[asyncio.Task[None], VllmTicket] = {}
        closing = asyncio.Event()
        try:
            vllm = start()
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result((asyncio.get_running_loop(), closing, vllm))
        await closing.wait()
        for task, ticket in self._drawing.items():
            ticket.say(ticket.rows[0].request, EngineError(_CLOSED))
            task.cancel()
        await asyncio.gather(*self._drawing, return_exceptions=True)
        vllm.shutdown()

    def _begin(self, ticket: VllmTicket, *, whole: bool = False) -> VllmTicket:
        """From any thread. Raises EngineError if the engine was closed."""

        def begin() -> None:
            task = self._loop.create_task(self._draw_all(ticket, whole))
            self._drawing[task] = ticket
            task.add_done_callback(self._drawing.pop)
            ticket.leave = lambda: self._from_outside(task.cancel)
            if ticket.over:  # cancelled before it began
                task.cancel()

        with self._guard:
            if self._closed:
                raise EngineError(_CLOSED)
            self._loop.call_soon_threadsafe(begin)
        return ticket

    def _from_outside(self, work: Callable[[], Any]) -> None:
        with self._guard:
            if not self._closed:
                self._loop.call_soon_threadsafe(work)

    async def _draw_all(self, ticket: VllmTicket, whole: bool) -> None:
        """All rows side by side. The first that fails ends the others, and its error is heard."""
        try:
            async with asyncio.TaskGroup() as group:
                for row in ticket.rows:
                    group.create_task(self._draw(row, ticket, whole))
        except ExceptionGroup as failed:
            error = failed.exceptions[0]
            if not isinstance(error, EngineError):  # vLLM's own kinds (a dead engine process) share no base class
                cause = error.__cause__ or error  # it hides what went wrong behind an EngineGenerateError
                said = (str(cause) or "no reason given").splitlines()[0]
                error = EngineError(f"vLLM failed: {type(cause).__name__}: {said}")
            ticket.say(ticket.rows[0].request, error)

    async def _draw(self, row: _Row, ticket: VllmTicket, whole: bool) -> None:
        request, count, reason = row.request, 0, ""
        prompt: dict[str, Any] = {"prompt_token_ids": row.tokens}
        if request.salt:
            prompt["cache_salt"] = request.salt
        outputs = self._vllm.generate(
            prompt, _sampling(request, row.number, whole=whole), str(next(self._names)), lora_request=row.lora
        )
        async for output in outputs:
            part = output.outputs[0]
            count += len(part.token_ids)
            reason = part.finish_reason or ""
            if reason in _ENDS or (part.text and not reason):
                ticket.say(
                    request,
                    Delta(
                        draw=row.number,
                        seed=request.seed + row.number,
                        text=part.text,
                        num_tokens=count,
                        finish_reason=reason,
                    ),
                )
        if reason not in _ENDS:
            raise EngineError(f"request {request.key!r} ended with {reason!r} in vLLM")

    # ------------------------------------------------------------------ what vLLM is given

    def _rows(self, requests: Sequence[Request]) -> list[_Row]:
        """Raises AdapterError, and EngineError for what vLLM is not asked here."""
        no_logprobs("vllm", requests)
        with self._preparing:
            return [
                _Row(request, number, tokens, lora)
                for request in requests
                for tokens, lora in [(self._encode(request.prompt), self._lora(request.adapter))]
                for number in range(request.n)
            ]

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _lora(self, adapter: AdapterRef | None) -> Any:
        """vLLM's handle, after the checks that vLLM leaves out. Raises AdapterError."""
        from vllm.lora.request import LoRARequest

        if adapter is None:
            return LoRARequest("base", self._numbers[""], self._zeros.name) if self._zeros else None
        if adapter.base_model != self.model.digest:
            raise AdapterError(f"adapter {adapter.adapter_id} was made for another base model than {self.model.name}")
        folder = self._adapters.folder(adapter)
        if adapter.adapter_id not in self._numbers:
            from rune.adapters import peft

            loaded = peft.read_peft(folder)
            if loaded.base_model not in ("", self.model.digest):
                raise AdapterError(f"{folder} was made for another base model than {self.model.name}")
            if loaded.rank > self.config.max_lora_rank:
                raise AdapterError(
                    f"{folder} has rank {loaded.rank}, above engine.settings.max_lora_rank = "
                    f"{self.config.max_lora_rank}; pass --set engine.settings.max_lora_rank={loaded.rank}"
                )
            self._numbers[adapter.adapter_id] = len(self._numbers) + 1
        return LoRARequest(adapter.adapter_id, self._numbers[adapter.adapter_id], str(folder))


def _sampling(request: Request, number: int, *, whole: bool) -> Any:
    """`whole`: one output, when the draw is finished; otherwise each has what came since the one before."""
    from vllm.sampling_params import RequestOutputKind

    from vllm import SamplingParams

    sampling = request.sampling
    return SamplingParams(
        n=1,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k or -1,
        max_tokens=sampling.max_new_tokens,
        stop=list(sampling.stop) or None,
        seed=request.seed + number,
        output_kind=RequestOutputKind.FINAL_ONLY if whole else RequestOutputKind.DELTA,
    )


def _zeros(model: ModelRef) -> tempfile.TemporaryDirectory[str]:
    """A PEFT folder that adds nothing to one linear layer of the base. Raises EngineError without its sizes."""
    import torch

    from rune.adapters import peft

    try:
        sizes = json.loads(Path(model.path, "config.json").read_text(encoding="utf-8"))
        inner, outer = int(sizes["intermediate_size"]), int(sizes["hidden_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{model.path}/config.json does not say how wide its layers are ({error})") from None
    pair = peft.Pair(torch.zeros(inner, 1), torch.zeros(1, outer))
    folder = tempfile.TemporaryDirectory(prefix="rune-vllm-base-")
    peft.write_peft(folder.name, peft.Adapter(pairs={"model.layers.0.mlp.down_proj": pair}, scale=1.0))
    return folder
