"""The routes: OpenAI's and vLLM's, and those for trajectories and adapters. What a route does is in the other files."""

from __future__ import annotations

import calendar
import contextlib
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from rune import __version__, prompts
from rune.adapters.registry.records import Entry
from rune.errors import ModelError
from rune.models import chat
from rune.serving import shapes
from rune.serving.answers import Answer, event
from rune.serving.drawing import Admission, Drawing, HungUp, unless_gone
from rune.serving.edge import GONE
from rune.serving.keys import Client
from rune.serving.memory import AdapterMemory, check_alias
from rune.serving.metrics import Metrics
from rune.serving.refusals import Refusal, kind
from rune.serving.settings import Serve
from rune.types import Engine, ModelRef, Sampling
from rune.types import Request as Draw

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


class House(NamedTuple):
    """Everything that the routes use."""

    settings: Serve
    model: ModelRef
    base_name: str  # what clients call the base model
    engine: Engine
    memory: AdapterMemory
    count: Callable[[str], int]  # how many tokens a text has
    window: int  # tokens of prompt and answer
    metrics: Metrics
    ready: Callable[[], bool]


class Plan(NamedTuple):
    """A completion request, understood."""

    draws: list[Draw]
    entry: Entry | None  # the adapter; None: the base model
    answer: Answer
    reports: bool
    stream: bool
    with_usage: bool


def build(house: House) -> FastAPI:
    """The application, without what stands around it (`edge.py`)."""
    app = FastAPI(title="rune serve", version=__version__, docs_url=None, redoc_url=None)
    _errors(app)
    _health(app, house)
    _completions(app, house)
    _models(app, house)
    _adapters(app, house)
    _trajectories(app, house)
    _vllm(app, house)
    return app


def _errors(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> Response:
        return JSONResponse(refusal.body, refusal.status, headers=refusal.headers)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        said = {404: "no such page; GET /openapi.json lists those that are", 405: "this page has other methods"}
        refusal = Refusal(error.status_code, said.get(error.status_code, str(error.detail)))
        return JSONResponse(refusal.body, refusal.status, headers=error.headers)

    @app.exception_handler(Exception)
    async def fault(request: Request, _: Exception) -> Response:
        refusal = Refusal(500, f"a fault of the server; its log has it under {request.state.request_id}")
        return JSONResponse(refusal.body, refusal.status)

    @app.exception_handler(RequestValidationError)
    async def parameters(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        refusal = Refusal(400, f"{name}: {first['msg']}", param=name)
        return JSONResponse(refusal.body, 400)


def _health(app: FastAPI, house: House) -> None:
    @app.get("/healthz", response_class=PlainTextResponse)
    async def alive() -> str:
        """The process answers."""
        return "ok"

    @app.get("/readyz", response_class=PlainTextResponse, responses=_responses(503))
    async def ready() -> str:
        """The model is loaded and the engine works."""
        if not house.ready():
            raise Refusal(503, "the engine has stopped", retry_after=60)
        return "ready"

    @app.get("/metrics", response_class=PlainTextResponse, responses=_responses(401, 403))
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(house.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


# --------------------------------------------------------------------------- completions


def _completions(app: FastAPI, house: House) -> None:
    settings = house.settings
    admission = Admission(settings.max_draws, settings.max_draws_per_key, "draws")

    @app.post("/v1/chat/completions", openapi_extra=_body(shapes.ChatBody), responses=_responses(*_DRAWING))
    async def converse(request: Request) -> Response:
        """OpenAI's chat completions. `metadata` {project, domain, task} lets the registry choose the adapter."""
        body = shapes.parse(shapes.ChatBody, await request.body())
        return await _answer(house, admission, request, lambda: _chat_plan(house, body, request.state.client))

    @app.post("/v1/completions", openapi_extra=_body(shapes.CompletionBody), responses=_responses(*_DRAWING))
    async def complete(request: Request) -> Response:
        """OpenAI's text completions."""
        body = shapes.parse(shapes.CompletionBody, await request.body())
        return await _answer(house, admission, request, lambda: _text_plan(house, body, request.state.client))


def _chat_plan(house: House, body: shapes.ChatBody, client: Client) -> Plan:
    body.check()
    roles = {"developer": "system"}
    messages = tuple((roles.get(m.role, m.role), m.text) for m in body.messages)
    try:
        prompt = chat.render(house.model, prompts.Chat(messages=messages, prefill=""))
    except ModelError as error:
        raise Refusal(400, str(error), param="messages") from None
    wanted = body.max_completion_tokens or body.max_tokens
    return _plan(house, body, [prompt], client, reports=body.reports, wanted=wanted, is_chat=True)


def _text_plan(house: House, body: shapes.CompletionBody, client: Client) -> Plan:
    body.check()
    if len(body.prompts) > house.settings.max_prompts:
        raise Refusal(400, f"{len(body.prompts)} prompts, at most {house.settings.max_prompts} may be", param="prompt")
    return _plan(house, body, body.prompts, client, reports=body.logprobs, wanted=body.max_tokens, is_chat=False)


def _plan(
    house: House,
    body: shapes.Sampled,
    texts: Sequence[str],
    client: Client,
    *,
    reports: int | None,
    wanted: int | None,
    is_chat: bool,
) -> Plan:
    if reports is not None and not getattr(house.engine, "reports_logprobs", False):
        raise shapes.unsupported("logprobs")
    entry = _adapter_of(house, body, client)
    n = body.n or 1
    if n > house.settings.max_n:
        raise Refusal(400, f"n is {n}, at most {house.settings.max_n} may be", param="n")
    counts = [house.count(text) for text in texts]
    if not min(counts):
        raise Refusal(400, "the prompt is empty; give it some text", param="prompt")
    room = house.window - max(counts)
    if room < (wanted or 1):
        asked = f" and {wanted} were asked for in the answer" if wanted else ""
        raise Refusal(
            400,
            f"this model has room for {house.window} tokens; the prompt has {max(counts)}{asked}",
            code="context_length_exceeded",
            param="messages" if is_chat else "prompt",
        )
    sampling = Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        max_new_tokens=wanted or min(room, house.settings.max_tokens),
        top_p=1.0 if body.top_p is None else max(body.top_p, 1e-9),  # 0 is the best token alone
        top_k=max(body.top_k or 0, 0),
        stop=body.stops,
    )
    seed = secrets.randbits(31) if body.seed is None else body.seed
    ref = house.memory.ref(entry) if entry else None
    draws = [
        Draw(key=str(i), prompt=text, sampling=sampling, seed=seed, n=n, adapter=ref, logprobs=reports)
        for i, text in enumerate(texts)
    ]
    answer = Answer(
        model=f"{house.base_name}:{entry.id}" if entry else house.base_name,
        fingerprint=f"fp_{house.model.digest[:12]}",
        chat=is_chat,
        n=n,
        prompts=len(texts),
        prompt_tokens=sum(counts),
    )
    options = body.stream_options
    return Plan(draws, entry, answer, reports is not None, bool(body.stream), bool(options and options.include_usage))


def _adapter_of(house: House, body: shapes.Sampled, client: Client) -> Entry | None:
    """Who answers: what `model` names, or what the registry chooses for `metadata`. Never the base for an adapter."""
    base, name = house.base_name, body.model
    if name != base:
        return house.memory.named(name.removeprefix(f"{base}:"), client)
    about = body.metadata or {}
    if not any(key in about for key in ("project", "domain", "task")):
        return None
    where = house.memory.place_asked(about.get("project"), about.get("domain"), about.get("task"), client)
    return house.memory.chosen(where, client)


async def _answer(house: House, admission: Admission, request: Request, make: Callable[[], Plan]) -> Response:
    facts: dict[str, Any] = request.state.facts
    plan = await run_in_threadpool(make)
    wears = "adapter" if plan.entry else "base"
    facts.update(adapter=plan.entry.short if plan.entry else "", stream=plan.stream)
    holding = contextlib.ExitStack()
    try:
        holding.enter_context(admission.enter(request.state.client, sum(draw.n for draw in plan.draws)))
        holding.enter_context(house.metrics.draws.track_inprogress())
        holding.enter_context(_counted(house, plan, facts, wears))
        started = time.monotonic()
        drawing = await Drawing.start(house.engine, plan.draws)
        holding.callback(drawing.close)
        deltas = _timed(house, drawing, started, wears)
        if plan.stream:
            return Stream(_events(plan, deltas), holding.pop_all(), facts, house.metrics)
        return JSONResponse(await unless_gone(request.receive, _whole(plan, deltas)))
    except HungUp:
        house.metrics.cancelled.inc()
        facts["hung_up"] = True
        return Response(status_code=GONE)
    finally:
        holding.close()


@contextlib.contextmanager
def _counted(house: House, plan: Plan, facts: dict[str, Any], wears: str) -> Iterator[None]:
    """Tokens of an answer that has ended, however it did."""
    try:
        yield
    finally:
        usage = plan.answer.usage
        facts.update(prompt_tokens=usage["prompt_tokens"], completion_tokens=usage["completion_tokens"])
        house.metrics.tokens.labels("prompt", wears).inc(usage["prompt_tokens"])
        house.metrics.tokens.labels("completion", wears).inc(usage["completion_tokens"])


async def _timed(house: House, drawing: Drawing, started: float, wears: str) -> AsyncIterator[tuple[int, Any]]:
    first = True
    async for index, delta in drawing.deltas(house.settings.request_seconds):
        if first:
            house.metrics.first_token.labels(wears).observe(time.monotonic() - started)
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


# --------------------------------------------------------------------------- models and adapters


def _models(app: FastAPI, house: House) -> None:
    def base() -> dict[str, Any]:
        return {
            "id": house.base_name,
            "object": "model",
            "created": 0,
            "owned_by": "rune",
            "parent": None,
            "root": house.base_name,
            "max_model_len": house.window,
        }

    @app.get("/v1/models", responses=_responses(401))
    async def models(request: Request) -> Any:
        """The base model and every adapter that the client may use, by its aliases or, without one, by its id."""

        def every() -> list[dict[str, Any]]:
            found = house.memory.listed(request.state.client, limit=MOST_LISTED)
            aliases = house.memory.aliases(found)
            return [card for entry in found for card in _cards(house, entry, aliases.get(entry.id, []))]

        return {"object": "list", "data": [base(), *await run_in_threadpool(every)]}

    @app.get("/v1/models/{name:path}", responses=_responses(401, 404))
    async def model(request: Request, name: str) -> Any:
        """One of them."""
        if name == house.base_name:
            return base()
        named = name.removeprefix(f"{house.base_name}:")
        entry = await run_in_threadpool(house.memory.named, named, request.state.client)
        return _cards(house, entry, [named])[0]


MOST_LISTED = 10_000


def _cards(house: House, entry: Entry, aliases: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "id": name,
            "object": "model",
            "created": _seconds(entry.created),
            "owned_by": entry.place.project,
            "parent": house.base_name,
            "root": entry.id,
            "max_model_len": house.window,
        }
        for name in aliases or [entry.id]
    ]


def _shown(house: House, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    residency = getattr(house.engine, "residency", None)  # of the torch engine
    resident = frozenset(residency.resident) if residency else None
    aliases = house.memory.aliases(entries)
    return [
        {
            "id": entry.id,
            "object": "adapter",
            "model": f"{house.base_name}:{entry.id}",
            "aliases": aliases.get(entry.id, []),
            "project": entry.place.project,
            "domain": entry.place.domain,
            "task": entry.place.task,
            "rank": entry.rank,
            "bytes": entry.size,
            "delta_w_norm": entry.delta_w_norm,
            "how": entry.how,
            "created": _seconds(entry.created),
            "fitness": entry.fitness,
            "resident": None if resident is None else entry.id in resident,
        }
        for entry in entries
    ]


def _adapters(app: FastAPI, house: House) -> None:
    @app.get("/v1/adapters", responses=_responses(400, 401))
    async def adapters(request: Request, project: str = "", after: str = "0", limit: str = "100") -> Any:
        """A page of the client's adapters, in the order in which they came; `next_after` begins the next page."""
        first, most = _whole_number("after", after, 0, 2**53), _whole_number("limit", limit, 1, 1000)

        def page() -> dict[str, Any]:
            found = house.memory.listed(request.state.client, project=project, after=first, limit=most)
            more = found[-1].number if len(found) == most else None
            total = house.memory.count(request.state.client, project=project)
            return {"object": "list", "data": _shown(house, found), "total": total, "next_after": more}

        return await run_in_threadpool(page)

    @app.get("/v1/adapters/{name:path}", responses=_responses(400, 401, 404))
    async def adapter(request: Request, name: str) -> Any:
        """One adapter, and the ids of the trajectories that it was made from."""

        def one() -> dict[str, Any]:
            entry = house.memory.named(name, request.state.client)
            sources = house.memory.registry.sources(entry.id)
            return {**_shown(house, [entry])[0], "trajectories": [source.trajectory_id for source in sources]}

        return await run_in_threadpool(one)

    @app.delete("/v1/adapters/{name:path}", responses=_responses(400, 401, 404))
    async def delete(request: Request, name: str) -> Any:
        """Take an adapter out of service. It is archived: nothing answers with it or lists it any more."""

        def gone_now() -> dict[str, Any]:
            entry = house.memory.named(name, request.state.client)
            house.memory.archive(entry)
            return {"id": entry.id, "object": "adapter", "deleted": True}

        return await run_in_threadpool(gone_now)


def _trajectories(app: FastAPI, house: House) -> None:
    admission = Admission(house.settings.max_learning, 0, "trajectories")

    @app.post(
        "/v1/trajectories",
        status_code=201,
        openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {}}}}},
        responses=_responses(400, 401, 403, 404, 408, 409, 413, 429),
    )
    async def learn(
        request: Request, project: str = "", domain: str = "", task: str = "", alias: str = "", name: str = "session"
    ) -> Any:
        """A file of trajectories, as an agent wrote it (docs/trajectories.md), in; an adapter of them out.

        The body is the file, plain or gzip. All its trajectories make one adapter, which the next request may use.
        """
        client: Client = request.state.client
        where = house.memory.place_for(client, project, domain, task)
        check_alias(alias)
        if not _NAME.fullmatch(name):
            raise Refusal(400, "a name is of letters, digits, '_', '.' and '-', at most 100 of them", param="name")
        with admission.enter(client, 1), house.metrics.learning.track_inprogress():
            data = await request.body()
            if not data:
                raise Refusal(400, "the body is empty; send the file of a session")
            made = await run_in_threadpool(house.memory.learn, data, where, name=name, alias=alias)
        house.metrics.learn_seconds.observe(made.seconds)
        request.state.facts.update(adapter=made.entry.short, new=made.new)
        (shown,) = await run_in_threadpool(_shown, house, [made.entry])
        found = {
            **shown,
            "trajectories": list(made.trajectories),
            "notes": list(made.notes),
            "seconds": round(made.seconds, 3),
        }
        return JSONResponse(found, 201 if made.new else 200)


def _vllm(app: FastAPI, house: House) -> None:
    roots = [Path(folder).expanduser().resolve() for folder in house.settings.folders]

    @app.post(
        "/v1/load_lora_adapter",
        response_class=PlainTextResponse,
        openapi_extra=_body(shapes.LoadBody),
        responses=_responses(400, 401, 403, 409),
    )
    async def load(request: Request, project: str = "", domain: str = "", task: str = "") -> str:
        """A PEFT folder on the server's disk, below one of `serve.folders`, registered under an alias."""
        body = shapes.parse(shapes.LoadBody, await request.body())
        client = _owner(request)
        where = house.memory.place_for(client, project, domain, task)
        check_alias(body.lora_name)

        def register() -> None:
            folder = _below(roots, body.lora_path)
            house.memory.load(folder, where, alias=body.lora_name)

        await run_in_threadpool(register)
        return f"Success: LoRA adapter '{body.lora_name}' added successfully."

    @app.post(
        "/v1/unload_lora_adapter",
        response_class=PlainTextResponse,
        openapi_extra=_body(shapes.UnloadBody),
        responses=_responses(400, 401, 403, 404),
    )
    async def unload(request: Request) -> str:
        """Take it out of service: as DELETE /v1/adapters."""
        body = shapes.parse(shapes.UnloadBody, await request.body())
        client = _owner(request)

        def archive() -> None:
            house.memory.archive(house.memory.named(body.lora_name, client))

        await run_in_threadpool(archive)
        return f"Success: LoRA adapter '{body.lora_name}' removed successfully."


def _owner(request: Request) -> Client:
    """Raises Refusal: 403 for a client that does not run the server; paths on its disk are no business of others."""
    client: Client = request.state.client
    if client.projects is not None:
        raise Refusal(403, "folders on the server's disk need a key made with --admin; POST /v1/trajectories does not")
    return client


def _below(roots: Sequence[Path], path: str) -> Path:
    """A folder that may be read. Raises Refusal."""
    if not roots:
        raise Refusal(
            403, "no folders to load from: start the server with --set 'serve.folders=[\"DIR\"]'", param="lora_path"
        )
    try:
        folder = Path(path).resolve()
        if folder.is_dir() and any(folder.is_relative_to(root) for root in roots):
            return folder
    except (OSError, ValueError, RuntimeError):  # too long a name, a zero byte, a circle of links
        pass
    raise Refusal(400, "lora_path is no folder below those that this server loads from", param="lora_path")


def _whole_number(name: str, text: str, low: int, high: int) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 16 and low <= int(text) <= high:
        return int(text)
    raise Refusal(400, f"{name} must be a whole number in {low} … {high}", param=name)


def _seconds(created: str) -> int:
    """UTC text of the registry → Unix time."""
    return calendar.timegm(time.strptime(created, "%Y-%m-%dT%H:%M:%SZ"))


# --------------------------------------------------------------------------- the page of the interface

_DRAWING = (400, 401, 403, 404, 408, 409, 413, 429, 503)


def _body(shape: type[BaseModel]) -> dict[str, Any]:
    schema = shape.model_json_schema(ref_template="#/components/schemas/{model}")
    inner = schema.pop("$defs", {})
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _inlined(schema, inner)}}}}


def _inlined(schema: Any, inner: dict[str, Any]) -> Any:
    """A schema without references."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _inlined(inner[schema["$ref"].rpartition("/")[2]], inner)
        return {key: _inlined(value, inner) for key, value in schema.items()}
    return [_inlined(value, inner) for value in schema] if isinstance(schema, list) else schema


def _responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    error = {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            }
        },
    }
    return {s: {"description": kind(s), "content": {"application/json": {"schema": error}}} for s in statuses}
