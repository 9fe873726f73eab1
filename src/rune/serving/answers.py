"""Answers as OpenAI's clients read them: whole, or chunk by chunk as server-sent events."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rune.types import Delta, TokenLogprob

DONE = b"data: [DONE]\n\n"


def event(value: Any) -> bytes:
    """One server-sent event. In ASCII: clients take more characters than \\n for the end of a line."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


class Answer:
    """One answer on its way; `deltas` in, chunks or the whole out. Choice i·n + d is draw d of prompt i."""

    def __init__(self, *, model: str, fingerprint: str, chat: bool, n: int, prompts: int, prompt_tokens: int) -> None:
        self._chat, self._n = chat, n
        kind = "chat.completion" if chat else "text_completion"
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
        about = {"id": self.id, "created": int(time.time()), "model": model, "system_fingerprint": fingerprint}
        self._whole = {**about, "object": kind}
        self._part = {**about, "object": f"{kind}.chunk" if chat else kind}
        self._prompt_tokens = prompt_tokens
        self._tokens = [0] * (n * prompts)
        self._texts: list[list[str]] = [[] for _ in self._tokens]
        self._reports: list[list[TokenLogprob]] = [[] for _ in self._tokens]
        self._offsets = [0] * len(self._tokens)
        self._finish: list[str | None] = [None] * len(self._tokens)

    @property
    def completion_tokens(self) -> int:
        return sum(self._tokens)

    @property
    def usage(self) -> dict[str, int]:
        drawn = self.completion_tokens
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": drawn,
            "total_tokens": self._prompt_tokens + drawn,
        }

    def take(self, prompt: int, delta: Delta) -> int:
        """Keep a delta; the number of its choice."""
        index = prompt * self._n + delta.draw
        self._tokens[index] = delta.num_tokens
        self._texts[index].append(delta.text)
        self._reports[index] += delta.logprobs
        self._finish[index] = delta.finish_reason or None
        return index

    def whole(self, *, reports: bool) -> dict[str, Any]:
        """After the last delta."""
        choices = []
        for index, texts in enumerate(self._texts):
            text, found = "".join(texts), self._reports[index] if reports else None
            said: dict[str, Any] = {"message": {"role": "assistant", "content": text, "refusal": None}}
            choice = {"index": index, "finish_reason": self._finish[index], **(said if self._chat else {"text": text})}
            choices.append({**choice, "logprobs": self._logprobs(index, found)})
        return {**self._whole, "choices": choices, "usage": self.usage}

    # ------------------------------------------------------------------ as a stream

    def opening(self) -> Iterator[bytes]:
        """Who speaks, for each choice of a chat."""
        if self._chat:
            for index in range(len(self._tokens)):
                yield self._event(index, {"delta": {"role": "assistant", "content": ""}}, None, None)

    def chunk(self, prompt: int, delta: Delta, *, reports: bool) -> bytes:
        index = self.take(prompt, delta)
        said: dict[str, Any] = {"delta": {"content": delta.text}} if self._chat else {"text": delta.text}
        found = self._logprobs(index, delta.logprobs if reports else None)
        self._texts[index].clear()  # they are with the client
        self._reports[index].clear()
        if self._chat and delta.finish_reason and not delta.text:
            said = {"delta": {}}
        return self._event(index, said, found, delta.finish_reason or None)

    def closing(self, *, with_usage: bool) -> Iterator[bytes]:
        if with_usage:
            yield event({**self._part, "choices": [], "usage": self.usage})
        yield DONE

    def _event(self, index: int, said: dict[str, Any], found: Any, finish: str | None) -> bytes:
        choice = {"index": index, **said, "logprobs": found, "finish_reason": finish}
        return event({**self._part, "choices": [choice]})

    def _logprobs(self, index: int, found: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
        if found is None:
            return None
        if self._chat:
            return {"content": [_chat_token(one) for one in found], "refusal": None}
        offsets = []
        for one in found:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(_text(one.token))
        return {
            "tokens": [_text(one.token) for one in found],
            "token_logprobs": [one.logprob for one in found],
            "top_logprobs": [{_text(token): value for token, value in one.top} for one in found],
            "text_offset": offsets,
        }


def _chat_token(one: TokenLogprob) -> dict[str, Any]:
    return {**_named(one.token, one.logprob), "top_logprobs": [_named(token, value) for token, value in one.top]}


def _named(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _text(token), "logprob": logprob, "bytes": list(token)}


def _text(token: bytes) -> str:
    return token.decode("utf-8", errors="replace")
