"""Completions as OpenAI has them: a request is understood (`Plan`), drawn, and told whole or as events."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, NamedTuple

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from rune.adapters.registry.records import Entry
from rune.errors import ModelError
from rune.models import chat
from rune.serving import shapes
from rune.serving.answers import Answer, event
from rune.serving.calls import CALL_ENDS
from rune.serving.context import ServerContext
from rune.serving.drawing import Admission, Drawing, HungUp, unless_gone
from rune.serving.edge import GONE
from rune.serving.keys import Client
from rune.serving.metrics import Metrics
from rune.serving.openapi import error_responses, request_body
from rune.serving.refusals import Refusal
from rune.types import Request as Draw
from rune.types import Sampling

_ERRORS = error_responses(400, 401, 403, 404, 408, 409, 413, 429, 503)


class Plan(NamedTuple):
    """A completion request, understood."""

    draws: list[Draw]
    entry: Entry | None  # the adapter; None: the base model
    answer: Answer
    reports: bool
    stream: bool
    with_usage: bool


def add_completions(app: FastAPI, context: ServerContext) -> None:
    settings = context.settings
    admission = Admission(settings.max_draws, settings.max_draws_per_key, "draws")

    @app.post(
        "/v1/chat/completions",
        openapi_extra=request_body(shapes.ChatBody),
        responses=_ERRORS,
    )
    async def converse(request: Request) -> Response:
        """OpenAI's chat completions. `metadata` {project, domain, task} lets the registry choose the adapter."""
        body = shapes.parse(shapes.ChatBody, await request.body())
        return await _answer(context, admission, request, lambda: _chat_plan(context, body, request.state.client))

    @app.post(
        "/v1/completions",
        openapi_extra=request_body(shapes.CompletionBody),
        responses=_ERRORS,
    )
    async def complete(request: Request) -> Response:
        """OpenAI's text completions."""
        body = shapes.parse(shapes.CompletionBody, await request.body())
        return await _answer(context, admission, request, lambda: _text_plan(context, body, request.state.client))


def _chat_plan(context: ServerContext, body: shapes.ChatBody, client: Client) -> Plan:
    body.check()
    tools = body.shown_tools
    if (tools or body.calls) and not chat.takes_tools(context.model):
        raise Refusal(
            400,
            f"tools: the chat template of {context.base_name} shows none to the model, or in a form that is not read "
            "here; leave them out, and let the agent talk in text",
            code="unsupported_parameter",
            param="tools" if tools else "messages",
        )
    messages = [message.shown(f"messages.{number}") for number, message in enumerate(body.messages)]
    try:
        prompt = chat.converse(context.model, messages, tools)
    except ModelError as error:
        raise Refusal(400, str(error), param="messages") from None
    wanted = body.max_completion_tokens or body.max_tokens
    calls = 0 if not tools else 1 if body.parallel_tool_calls is False else None
    return _plan(context, body, [prompt], client, reports=body.reports, wanted=wanted, is_chat=True, calls=calls)


def _text_plan(context: ServerContext, body: shapes.CompletionBody, client: Client) -> Plan:
    body.check()
    if len(body.prompts) > context.settings.max_prompts:
        raise Refusal(
            400, f"{len(body.prompts)} prompts, at most {context.settings.max_prompts} may be", param="prompt"
        )
    return _plan(context, body, body.prompts, client, reports=body.logprobs, wanted=body.max_tokens, is_chat=False)


def _plan(
    context: ServerContext,
    body: shapes.Sampled,
    texts: Sequence[str],
    client: Client,
    *,
    reports: int | None,
    wanted: int | None,
    is_chat: bool,
    calls: int | None = 0,
) -> Plan:
    """`calls`: how many functions an answer may call; None: any number."""
    if reports is not None and not getattr(context.engine, "reports_logprobs", False):
        raise shapes.unsupported("logprobs")
    entry = _adapter_of(context, body, client)
    n = body.n or 1
    if n > context.settings.max_n:
        raise Refusal(400, f"n is {n}, at most {context.settings.max_n} may be", param="n")
    counts = [context.count(text) for text in texts]
    if not min(counts):
        raise Refusal(400, "the prompt is empty; give it some text", param="prompt")
    room = context.window - max(counts)
    if room < (wanted or 1):
        asked = f" and {wanted} were asked for in the answer" if wanted else ""
        raise Refusal(
            400,
            f"this model has room for {context.window} tokens; the prompt has {max(counts)}{asked}",
            code="context_length_exceeded",
            param="messages" if is_chat else "prompt",
        )
    sampling = Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        max_new_tokens=wanted or min(room, context.settings.max_tokens),
        top_p=1.0 if body.top_p is None else max(body.top_p, 1e-9),  # 0 is the best token alone
        top_k=max(body.top_k or 0, 0),
        stop=(*body.stops, CALL_ENDS) if calls == 1 else body.stops,
    )
    seed = secrets.randbits(31) if body.seed is None else body.seed
    ref = context.memory.ref(entry) if entry else None
    draws = [
        Draw(key=str(i), prompt=text, sampling=sampling, seed=seed, n=n, adapter=ref, logprobs=reports, salt=client.key)
        for i, text in enumerate(texts)
    ]
    answer = Answer(
        model=f"{context.base_name}:{entry.id}" if entry else context.base_name,
        fingerprint=f"fp_{context.model.digest[:12]}",
        chat=is_chat,
        n=n,
        prompts=len(texts),
        prompt_tokens=sum(counts),
        calls=calls != 0,
    )
    options = body.stream_options
    return Plan(draws, entry, answer, reports is not None, bool(body.stream), bool(options and options.include_usage))


def _adapter_of(context: ServerContext, body: shapes.Sampled, client: Client) -> Entry | None:
    """Who answers: what `model` names, or what the registry chooses for `metadata`. Never the base for an adapter."""
    base, name = context.base_name, body.model
    if name != base:
        return context.memory.named(name.removeprefix(f"{base}:"), client)
    about = body.metadata or {}
    if not any(key in about for key in ("project", "domain", "task")):
        return None
    where = context.memory.place_asked(about.get("project"), about.get("domain"), about.get("task"), client)
    return context.memory.chosen(where, client)


async def _answer(context: ServerContext, admission: Admission, request: Request, make: Callable[[], Plan]) -> Response:
    facts: dict[str, Any] = request.state.facts
    plan = await run_in_threadpool(make)
    wears = "adapter" if plan.entry else "base"
    facts.update(adapter=plan.entry.short if plan.entry else "", stream=plan.stream)
    holding = contextlib.ExitStack()
    try:
        holding.enter_context(admission.enter(request.state.client, sum(draw.n for draw in plan.draws)))
        holding.enter_context(context.metrics.draws.track_inprogress())
        holding.enter_context(_counted(context, plan, facts, wears))
        started = time.monotonic()
        drawing = await Drawing.start(context.engine, plan.draws, context.post)
        holding.callback(drawing.close)
        deltas = _timed(context, drawing, started, wears)
        if plan.stream:
            return Stream(_events(plan, deltas), holding.pop_all(), facts, context.metrics)
        return JSONResponse(await unless_gone(request.receive, _whole(plan, deltas)))
    except HungUp:
        context.metrics.cancelled.inc()
        facts["hung_up"] = True
        return Response(status_code=GONE)
    finally:
        holding.close()


@contextlib.contextmanager
def _counted(context: ServerContext, plan: Plan, facts: dict[str, Any], wears: str) -> Iterator[None]:
    """Tokens of an answer that has ended, however it did."""
    try:
        yield
    finally:
        usage = plan.answer.usage
        facts.update(prompt_tokens=usage["prompt_tokens"], completion_tokens=usage["completion_tokens"])
        context.metrics.tokens.labels("prompt", wears).inc(usage["prompt_tokens"])
        context.metrics.tokens.labels("completion", wears).inc(usage["completion_tokens"])


async def _timed(
    context: ServerContext, drawing: Drawing, started: float, wears: str
) -> AsyncIterator[tuple[int, Any]]:
    first = True
    async for index, delta in drawing.deltas(context.settings.request_seconds):
        if first:
            context.metrics.first_token.labels(wears).observe(time.monotonic() - started)
            first = False
        yield index, delta


async def _whole(plan: Plan, deltas: AsyncIterator[tuple[int, Any]]) -> dict[str, Any]:
    async for index, delta in deltas:
        plan.answer.take(index, delta)
    return plan.answer.whole(reports=plan.reports)


async def _events(plan: Plan, deltas: AsyncIterator[tuple[int, Any]]) -> AsyncIterator[bytes]:
    for chunk in plan.answer.opening():
        yield chunk
    try:
        async for index, delta in deltas:
            yield plan.answer.chunk(index, delta, reports=plan.reports)
    except Refusal as refusal:  # the status has been sent: clients look for an error in the events
        yield event(refusal.body)
        return
    for chunk in plan.answer.closing(with_usage=plan.with_usage):
        yield chunk


class Stream(Response):
    """Server-sent events, until they end or the client hangs up; then what was held is let go."""

    def __init__(
        self, events: AsyncIterator[bytes], holding: contextlib.ExitStack, facts: dict[str, Any], metrics: Metrics
    ) -> None:
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._events, self._holding, self._facts, self._metrics = events, holding, facts, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def tell() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for chunk in self._events:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        with self._holding:
            try:
                await unless_gone(receive, tell())
            except HungUp:
                self._metrics.cancelled.inc()
                self._facts["hung_up"] = True
