"""Answers as OpenAI's clients read them: whole, or chunk by chunk as server-sent events."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rune.serving.calls import Call, CallReader, Said, read
from rune.types import Delta, TokenLogprob

DONE = b"data: [DONE]\n\n"


def event(value: Any) -> bytes:
    """One server-sent event. In ASCII: clients take more characters than \\n for the end of a line."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


class Answer:
    """One answer on its way; `deltas` in, chunks or the whole out. Choice i·n + d is draw d of prompt i."""

    def __init__(
        self,
        *,
        model: str,
        fingerprint: str,
        chat: bool,
        n: int,
        prompts: int,
        prompt_tokens: int,
        calls: bool = False,
    ) -> None:
        """`calls`: functions were offered, and what the model says may be a call of one."""
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
        self._readers = [CallReader() for _ in self._tokens] if calls else []

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
            text, calls = read(text) if self._readers else Said(text, ())
            message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
            if calls:
                message.update(content=text or None, tool_calls=[call.shown() for call in calls])
            said = {"message": message} if self._chat else {"text": text}
            finish = _finish(self._finish[index], calls)
            choices.append({"index": index, "finish_reason": finish, **said, "logprobs": self._logprobs(index, found)})
        return {**self._whole, "choices": choices, "usage": self.usage}

    # ------------------------------------------------------------------ as a stream

    def opening(self) -> Iterator[bytes]:
        """Who speaks, for each choice of a chat."""
        if self._chat:
            for index in range(len(self._tokens)):
                yield self._event(index, {"delta": {"role": "assistant", "content": ""}}, None, None)

    def chunk(self, prompt: int, delta: Delta, *, reports: bool) -> bytes:
        index = self.take(prompt, delta)
        text = delta.text
        asked: Sequence[Call] = ()
        if self._readers:
            text = self._readers[index].push(text)
            if delta.finish_reason:
                rest, asked = self._readers[index].end()
                text += rest
        found = self._logprobs(index, delta.logprobs if reports else None)
        self._texts[index].clear()  # they are with the client
        self._reports[index].clear()
        before = b""
        if asked:  # the text, the calls, and then the end, as OpenAI's own streams have them
            before = self._event(index, {"delta": {"content": text}}, None, None) if text else b""
            parts = [{"index": number, **call.shown()} for number, call in enumerate(asked)]
            before += self._event(index, {"delta": {"tool_calls": parts}}, None, None)
            text = ""
        said: dict[str, Any] = {"delta": {"content": text}} if self._chat else {"text": text}
        if self._chat and delta.finish_reason and not text:
            said = {"delta": {}}
        return before + self._event(index, said, found, _finish(delta.finish_reason or None, asked))

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


def _finish(reason: str | None, calls: Sequence[Call]) -> str | None:
    return "tool_calls" if calls and reason == "stop" else reason


def _chat_token(one: TokenLogprob) -> dict[str, Any]:
    return {**_named(one.token, one.logprob), "top_logprobs": [_named(token, value) for token, value in one.top]}


def _named(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _text(token), "logprob": logprob, "bytes": list(token)}


def _text(token: bytes) -> str:
    return token.decode("utf-8", errors="replace")
