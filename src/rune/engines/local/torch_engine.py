"""The default engine: one process, one device, a decoding loop of our own, every row under its own adapter.

Adapters come from the PEFT folders that its `AdapterSource` finds or, through `put_adapter`, as tensors straight from
a hypernetwork. The same (prompt, adapter, sampling, seed) gives the same text in any batch in fp32, unless a draw falls
on the last bits of a sum; in bf16 the products of another batch size may round differently, as with every engine.
`complete` decodes a list of requests in the caller's thread, `submit` hands one to a session that runs until `close`
(`session.py`); both take the decoder's turns.
What is not covered: sliding windows, mixture-of-experts, adapters on embeddings or heads.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.nn import functional

from rune.adapters import peft
from rune.adapters.folders import AdapterSource
from rune.adapters.peft import Adapter
from rune.engines.local.adapter_pool import AdapterPool
from rune.engines.local.batch import Row
from rune.engines.local.budget import Budget, divide, divide_paged
from rune.engines.local.decode import Decoder, Limits, Stats, chunks, out_of_memory
from rune.engines.local.host_tier import HostTier
from rune.engines.local.kv_cache import PromptAttention
from rune.engines.local.network import Network, NoLora
from rune.engines.local.prefixes import PrefixCache
from rune.engines.local.session import Session, SessionTicket, logprobs
from rune.engines.local.text import Detokenizer, StopWatch, Unfolding
from rune.engines.shared.residency import Prefixes, Residency
from rune.engines.shared.streams import gather
from rune.engines.torch import Config
from rune.errors import AdapterError, EngineError
from rune.models import identity, loader
from rune.types import AdapterRef, Completion, Listener, ModelRef, Request

T = TypeVar("T")
PASS_COST = 2048  # of a pass on a GPU, in tokens: some 7 ms of launches at 3 µs a token. On a CPU less than a block


class TorchEngine:
    """See the module's docstring."""

    reports_logprobs = True

    def __init__(self, config: Config, model: ModelRef, loaded: Any, adapters: AdapterSource) -> None:
        self.config, self.model, self._adapters = config, model, adapters
        self.tokenizer = loader.tokenizer(model)
        self.network = Network(loaded)
        self.pool = AdapterPool(self.network)
        self._detokenizer = Detokenizer(self.tokenizer)
        self.host = HostTier(self._read, config.host_bytes)
        self._in_memory: set[str] = set()  # handed over as tensors: nothing to read them from again
        self._pinned: set[str] = set()
        self._leaving: set[str] = set()  # dropped, and still worn by rows that were under way
        self._listed: Counter[str] = Counter()  # names worn by lists under way, without a session
        self._next: tuple[str, Adapter] | None = None  # id, and what was read: it waits for a place
        self._loads = self._evictions = 0
        self._load_seconds = 0.0
        self._session: Session | None = None
        self._opening = threading.Lock()
        self._batches = 0  # calls of `complete` under way, without a session
        self._encoding = threading.Lock()  # a tokenizer is not made for several threads at once
        cuda = self.network.device.type == "cuda"
        self._limits = Limits(
            max_rows=config.max_rows or (1024 if cuda else 64),
            memory_fraction=config.memory_fraction,
            prefill_tokens=config.prefill_tokens or (16384 if cuda else 2048),
            pass_cost=PASS_COST if cuda else 0,
            burst=config.burst or (4 if cuda else 1),
            graphs=config.graphs,
            # On a GPU static until both were measured there: `bench/generate.py --parts paging`.
            paged=config.kv_layout == "paged" or (config.kv_layout == "" and not cuda),
        )
        self.decoder = Decoder(self.network, self.pool, ends=end_tokens(loaded, self.tokenizer), limits=self._limits)
        self._budget: Budget | None = None
        if config.device_bytes:
            most_rows, prefix_bytes = self._limits.max_rows, config.prefix_bytes
            if self._limits.paged:
                self._budget = divide_paged(
                    config.device_bytes, row_bytes=self.decoder.row_bytes(0), block_bytes=self.decoder.block_bytes,
                    most_rows=most_rows, prefix_bytes=prefix_bytes, window=self.window,
                )  # fmt: skip
            else:
                row_bytes = self.decoder.row_bytes(self.window + 128)  # in steps of 64, and the overrun of bursts
                self._budget = divide(
                    config.device_bytes,
                    row_bytes=row_bytes, most_rows=most_rows, prefix_bytes=prefix_bytes, window=self.window,
                )  # fmt: skip

    @property
    def stats(self) -> Stats:
        """Tokens so far, rows alive and waiting, steps."""
        return self.decoder.stats

    def put_adapter(self, adapter_id: str, adapter: Adapter) -> AdapterRef:
        """Make an adapter resident from tensors; requests wear it by the record that is returned.

        It stays until `drop_adapter`. Raises AdapterError if it does not fit this model, if `device_bytes` have no
        place for it, or while requests are drawn under an adapter of that name.
        """
        self._check_base(adapter_id, adapter.base_model)

        def put() -> float:
            in_use = self._in_use()
            if adapter_id in in_use:
                raise AdapterError(
                    f"requests are being drawn under an adapter {adapter_id}; put it when they have ended, or under "
                    "another name"
                )
            self._let_go(in_use)
            if self._budget:  # it counts as one read from the disk does
                places = self._places_beside(adapter_id, adapter)
                self._check_pins("for", adapter_id, places)
                staying = set(self.pool.slots) & (self._pinned | self._in_memory | in_use) - {adapter_id}
                if len(staying) >= places:
                    raise AdapterError(
                        f"no room for adapter {adapter_id}: requests are being drawn under all {places} places; "
                        f"put it when some have ended, or raise {self._limiting}"
                    )
                self.pool.drop(adapter_id)  # two of one name would be one too many
                self._evict(keep=in_use, places=places)
                self._bound(adapter, places)
            with torch.inference_mode():
                norm = self.pool.put(adapter_id, adapter)
            self._forget_prefixes(adapter_id)
            self._in_memory.add(adapter_id)
            return norm

        return AdapterRef(
            adapter_id=adapter_id,
            base_model=self.model.digest,
            rank=adapter.rank,
            delta_w_norm=self._alone(put),
        )

    def drop_adapter(self, adapter_id: str) -> None:
        """Forget an adapter. What is being drawn under it ends under it; whoever asks for it anew has it read anew."""

        def drop() -> None:
            self._forget_prefixes(adapter_id)
            self._in_memory.discard(adapter_id)
            self._pinned.discard(adapter_id)
            if adapter_id in self.pool:
                self._leaving.add(adapter_id)
            self._let_go(self._in_use())

        self._alone(drop)

    def pin_adapter(self, adapter: AdapterRef) -> None:
        """Make an adapter resident and keep it so, whatever else is asked for. Raises AdapterError without room."""

        def pin() -> None:
            self._check_pins("to pin", adapter.adapter_id, self.places)
            self._ensure([adapter])
            self._check_pins("to pin", adapter.adapter_id, self.places)  # a wide one makes places fewer
            self._pinned.add(adapter.adapter_id)

        self._alone(pin)

    @property
    def residency(self) -> Residency:
        """Which adapters the device holds, and what it took to bring them there."""
        return Residency(
            places=self.places,
            resident=tuple(name for name in self.pool.slots if name not in self._leaving),
            pinned=frozenset(self._pinned | self._in_memory),
            loads=self._loads,
            evictions=self._evictions,
            load_seconds=self._load_seconds,
            held=len(self.host),
            held_bytes=self.host.bytes,
            held_hits=self.host.hits,
        )

    @property
    def prefixes(self) -> Prefixes | None:
        """Prompts whose beginnings need not be read again; None without a session, or without room for any."""
        kept = self.decoder.prefixes
        if kept is None:
            return None
        return Prefixes(blocks=len(kept), bytes=kept.bytes, hits=kept.hits, asked=kept.asked)

    @property
    def places(self) -> int:
        """Adapters that the device may hold: `max_adapters`, or those of their size that `device_bytes` leave."""
        if self._budget is None or not self.pool.adapter_bytes:
            return self.config.max_adapters
        return min(self.config.max_adapters, self._budget.places(self.pool.adapter_bytes))

    def complete(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield every draw of every request as it ends. Adapters and prompt lengths are checked before the first."""
        with self._opening:
            alone = self._session is None
            self._batches += alone
        if not alone:  # the session owns the decoder
            yield from gather(self, requests)
            return
        try:
            yield from self._complete(requests)
        finally:
            self._batches -= 1

    def _complete(self, requests: Sequence[Request]) -> Iterator[Completion]:
        rows = self._rows(requests)
        applied = {request.adapter.adapter_id: request.adapter for request in requests if request.adapter is not None}
        self._ensure(list(applied.values()))
        self._listed.update(applied.keys())
        try:
            yield from self._drawn(rows)
        finally:
            self._listed.subtract(applied.keys())

    def _drawn(self, rows: list[Row]) -> Iterator[Completion]:
        decoding = self.decoder.run(rows)
        while True:
            with torch.inference_mode():  # never held over a yield: it is the consumer's thread too
                row = next(decoding, None)
            if row is None:
                return
            unfolding = Unfolding(self._detokenizer, row.request.sampling.stop)
            shown = unfolding.push([token for token in row.tokens if token not in self.decoder.ends], last=True)
            yield Completion(
                key=row.request.key,
                draw=row.draw,
                seed=row.seed,
                text=shown.text,
                num_tokens=len(row.tokens),
                finish_reason=row.finish,
                logprobs=logprobs(row, self._detokenizer, 0, shown.tokens),
            )

    def submit(self, request: Request, listen: Listener) -> SessionTicket:
        """See `types.Engine`. Prompt and answer may reach `config.window` tokens; begins the session at its first call.

        Raises EngineError or AdapterError for a request that cannot be drawn.
        """
        rows = self._rows([request])
        tokens = len(rows[0].prompt) + request.sampling.max_new_tokens
        if tokens > self.window:
            raise EngineError(
                f"request {request.key!r}: prompt and answer may reach {tokens} tokens, a submitted request has "
                f"room for {self.window}; shorten it, or raise engine.settings.window"
            )
        if request.adapter is not None:
            self._check_base(request.adapter.adapter_id, request.adapter.base_model)
            if request.adapter.adapter_id not in self.pool or request.adapter.adapter_id in self._leaving:
                self.host.fetch(request.adapter)
        return self._open_session().submit(rows, request.adapter, listen)

    @property
    def window(self) -> int:
        """Tokens that prompt and answer of a submitted request may reach together."""
        return min(self.config.window, self.network.max_positions)

    @property
    def broken(self) -> bool:
        """Whether the session has stopped by a fault; every request is then refused."""
        return self._session is not None and self._session.broken

    @property
    def waiting(self) -> int:
        """Submitted draws that have not begun."""
        return self._session.waiting if self._session else 0

    def logprobs(
        self, prompts: Sequence[str], completions: Sequence[str], adapters: Sequence[AdapterRef | None]
    ) -> list[list[float]]:
        """log p(token | what is before it) for every token of each completion, under each one's adapter.

        Prompt and completion are tokenised apart, so that the border is where the engine would have put it.
        """
        return self._alone(lambda: self._all_logprobs(prompts, completions, adapters))

    @torch.inference_mode()
    def _all_logprobs(
        self, prompts: Sequence[str], completions: Sequence[str], adapters: Sequence[AdapterRef | None]
    ) -> list[list[float]]:
        self._ensure([adapter for adapter in adapters if adapter is not None])
        items = []
        for index, (prompt, completion, adapter) in enumerate(zip(prompts, completions, adapters, strict=True)):
            head, tail = self._encode(prompt), self._encode(completion)
            self._check_length(f"text {index}", len(head) + len(tail))
            items.append(((adapter.adapter_id if adapter else None, head + tail), (index, len(head))))
        found: list[list[float]] = [[] for _ in items]
        budget = max(self._limits.prefill_tokens // 4, 1)  # every position gives logits here
        pending = list(chunks(items, budget))
        while pending:
            chunk = pending.pop()
            try:
                for (index, _), values in self._logprobs(chunk):
                    found[index] = values
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or len(chunk) == 1:
                    raise
                pending += [chunk[: len(chunk) // 2], chunk[len(chunk) // 2 :]]
        return found

    def close(self) -> None:
        """End the session, if there is one, and give the device's memory back."""
        if self._session is not None:
            self._session.close()
            self._session = None
            self.decoder.prefixes = None
        self.host.close()
        self.release()

    def release(self) -> None:
        """Give the cache's memory back between two lists; the next one takes its own. A session keeps what it has."""
        if self._session is None:
            self.decoder.release()

    # ------------------------------------------------------------------ inside

    def _open_session(self) -> Session:
        with self._opening:
            if self._batches:
                raise EngineError("a list of requests is being drawn; submit when `complete` has ended")
            if self._session is None:
                budget = self._budget
                if most := budget.prefixes if budget else self.config.prefix_bytes:
                    self.decoder.prefixes = PrefixCache(most, block_bytes=self.decoder.block_bytes)
                self._session = Session(
                    self.decoder,
                    self,
                    self._detokenizer,
                    window=self.window,
                    rows=budget.rows if budget else self._limits.max_rows,
                    blocks=budget.blocks if budget else 0,
                    max_adapters=self.config.max_adapters,
                )
            return self._session

    def _alone(self, work: Callable[[], T]) -> T:
        """Do something to the adapters while nothing is decoded."""
        session = self._session
        return work() if session is None else session.call(work)

    def _logprobs(self, chunk: list[Any]) -> Iterator[tuple[tuple[int, int], list[float]]]:
        device = self.network.device
        longest = max(len(tokens) for (_, tokens), _ in chunk)
        ids_PT = torch.tensor([[*tokens, *[0] * (longest - len(tokens))] for (_, tokens), _ in chunk], device=device)
        applied = [adapter_id for (adapter_id, _), _ in chunk]
        lora = NoLora() if applied[0] is None else self.pool.gathered(applied, longest)
        attend = PromptAttention(self.network, len(chunk), longest)
        hidden_PTH = self.network.forward(ids_PT.flatten(), attend, lora).unflatten(0, ids_PT.shape)
        for row, ((_, tokens), (index, start)) in enumerate(chunk):
            first = max(start, 1)  # nothing comes before the first token of an empty prompt
            logits_TV = self.network.logits(hidden_PTH[row, first - 1 : len(tokens) - 1]).float()
            targets_T1 = ids_PT[row, first : len(tokens), None]
            yield (index, start), functional.log_softmax(logits_TV, -1).gather(1, targets_T1)[:, 0].tolist()

    def _rows(self, requests: Sequence[Request]) -> list[Row]:
        rows = []
        for request in requests:
            prompt = self._encode(request.prompt)
            self._check_length(f"request {request.key!r}", len(prompt) + request.sampling.max_new_tokens)
            if not prompt:
                raise EngineError(f"request {request.key!r}: the prompt has no tokens; give it some text")
            if request.sampling.max_new_tokens < 1:
                raise EngineError(f"request {request.key!r}: max_new_tokens must be at least 1")
            watch = StopWatch(self._detokenizer, request.sampling.stop)
            rows += [Row(request=request, draw=draw, prompt=prompt, watch=watch.fresh()) for draw in range(request.n)]
        return rows

    def _encode(self, text: str) -> tuple[int, ...]:
        with self._encoding:
            return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _check_length(self, what: str, tokens: int) -> None:
        if tokens > self.network.max_positions:
            raise EngineError(
                f"{what}: prompt and answer may reach {tokens} tokens, {self.model.name} has room for "
                f"{self.network.max_positions}; shorten the context or max_new_tokens"
            )

    def _check_base(self, adapter_id: str, base_model: str) -> None:
        if base_model and not identity.fits(self.model, base_model):
            raise AdapterError(
                f"adapter {adapter_id} was made for base model {base_model[:12]}…, this is {self.model.name} "
                f"({self.model.digest[:12]}…){identity.difference(self.model, base_model)}; make the adapter again for "
                "this model"
            )

    def _ensure(self, adapters: Sequence[AdapterRef]) -> None:
        """Every adapter resident, or AdapterError: an unknown one is never answered by the base model."""
        wanted = {adapter.adapter_id: adapter for adapter in adapters}
        self.pool.reserve(min(len(wanted), self.places))
        self._let_go(self._in_use())
        for adapter_id, adapter in wanted.items():
            self._check_base(adapter_id, adapter.base_model)
            if adapter_id in self._leaving:
                raise AdapterError(f"adapter {adapter_id} was dropped while it is drawn under; ask again after that")
            if adapter_id in self.pool:
                self.pool.touch(adapter_id)
                continue
            self._load(adapter, keep=wanted, read=self._read)  # once: nothing is kept of it

    def ready(self, adapter: AdapterRef) -> bool:
        """For the session: whether `place` would not wait for the disk."""
        return adapter.adapter_id in self.pool or self.host.ready(adapter)

    def place(self, adapter: AdapterRef, in_use: Collection[str | None]) -> bool:
        """For the session: one adapter resident, in the place of the one unused for longest. False: all are in use.

        Raises AdapterError for an adapter that cannot be had, and where pinned ones take every place.
        """
        self._let_go(in_use)
        if adapter.adapter_id in self._leaving:  # its name waits until the last row has taken it off
            return False
        if adapter.adapter_id in self.pool:
            self.pool.touch(adapter.adapter_id)
            return True
        # Under a budget its size says how many find a place; else whether there is one is asked before it is read.
        loaded = self._coming(adapter) if self._budget else None
        places = self._places_beside(adapter.adapter_id, loaded) if loaded else self.config.max_adapters
        keep = self._pinned | self._in_memory
        if len(keep) >= places:
            raise AdapterError(
                f"no place for adapter {adapter.adapter_id}: all {places} are pinned; raise {self._limiting}"
            )
        staying = set(self.pool.slots) & (keep | set(in_use))
        if len(staying) >= places:
            return False
        self._load(adapter, keep=in_use, read=lambda ref: loaded or self.host.take(ref))
        self._next = None
        return True

    def _coming(self, adapter: AdapterRef) -> Adapter:
        """The one that waits for a place: read once, however often `place` is asked. Raises AdapterError."""
        if self._next is None or self._next[0] != adapter.adapter_id:
            self._next = adapter.adapter_id, self.host.take(adapter)
        return self._next[1]

    @property
    def _limiting(self) -> str:
        """The setting that says how many adapters find a place."""
        return f"engine.settings.{'max_adapters' if self.places == self.config.max_adapters else 'device_bytes'}"

    def _places_beside(self, adapter_id: str, adapter: Adapter) -> int:
        """Places when this one has come, which may be wider than all before. Raises AdapterError if there are none."""
        if self._budget is None:
            return self.config.max_adapters
        size = self.pool.bytes_with(adapter)
        places = min(self.config.max_adapters, self._budget.places(size))
        if not places:
            raise AdapterError(
                f"no place for adapter {adapter_id}: it takes {size} bytes twice, and engine.settings.device_bytes "
                f"leaves {self._budget.adapters} for adapters; raise it"
            )
        return places

    def _read(self, adapter: AdapterRef) -> Adapter:
        """From the disk. Raises AdapterError."""
        loaded = peft.read_peft(self._adapters.folder(adapter))
        self._check_base(adapter.adapter_id, loaded.base_model)
        return loaded

    def _load(
        self, adapter: AdapterRef, keep: Collection[str | None], *, read: Callable[[AdapterRef], Adapter]
    ) -> None:
        started = time.perf_counter()
        loaded = read(adapter)
        places = self._places_beside(adapter.adapter_id, loaded)
        self._evict(keep=keep, places=places)
        self._bound(loaded, places)
        with torch.inference_mode():
            self.pool.put(adapter.adapter_id, loaded)
        self._loads += 1
        self._load_seconds += time.perf_counter() - started

    def _bound(self, adapter: Adapter, places: int) -> None:
        """Tell the bank what the budget leaves it, when this one has come."""
        if self._budget:
            self.pool.most = places
            self.pool.most_active = self._budget.adapters // self.pool.bytes_with(adapter) - places

    def _check_pins(self, what: str, adapter_id: str, places: int) -> None:
        if len(self._pinned | self._in_memory | {adapter_id}) > places:
            raise AdapterError(
                f"no room {what} adapter {adapter_id}: all {places} places are pinned; raise {self._limiting}"
            )

    def _in_use(self) -> set[str | None]:
        """Adapters that rows under way wear. In the session's thread, if there is one."""
        if self._session is not None:
            return self._session.in_use
        return {name for name, lists in self._listed.items() if lists > 0}

    def _let_go(self, in_use: Collection[str | None]) -> None:
        """Dropped ones that no row wears any more."""
        for adapter_id in self._leaving - set(in_use):
            self.pool.drop(adapter_id)
            self._leaving.discard(adapter_id)

    def _forget_prefixes(self, adapter_id: str) -> None:
        if self.decoder.prefixes is not None:
            self.decoder.prefixes.forget(adapter_id)

    def _evict(self, keep: Collection[str | None], places: int) -> None:
        for adapter_id in list(self.pool.slots):
            if len(self.pool.slots) < places:
                return
            if adapter_id not in keep and adapter_id not in self._in_memory | self._pinned:
                self.pool.drop(adapter_id)
                self._evictions += 1


def end_tokens(loaded: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end an answer: the generation config's (Qwen has two), and the tokenizer's own."""
    ends = loaded.generation_config.eos_token_id
    listed = ends if isinstance(ends, (list, tuple)) else [ends]
    return frozenset(token for token in (*listed, tokenizer.eos_token_id) if token is not None)
