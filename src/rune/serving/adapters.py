"""Models, adapters and trajectories over HTTP: listed, learned, loaded, taken out of service."""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.concurrency import run_in_threadpool

from rune.adapters.registry.records import Entry
from rune.serving import shapes
from rune.serving.context import ServerContext
from rune.serving.drawing import Admission
from rune.serving.keys import Client
from rune.serving.memory import check_alias
from rune.serving.openapi import error_responses, request_body
from rune.serving.refusals import Refusal

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
MOST_LISTED = 10_000


def add_models(app: FastAPI, context: ServerContext) -> None:
    def base() -> dict[str, Any]:
        return {
            "id": context.base_name,
            "object": "model",
            "created": 0,
            "owned_by": "rune",
            "parent": None,
            "root": context.base_name,
            "max_model_len": context.window,
            "digest": context.model.digest,
            "hypernet": context.memory.hypernet,  # its digest; "": trajectories are refused
        }

    @app.get("/v1/models", responses=error_responses(401))
    async def models(request: Request) -> Any:
        """The base model and every adapter that the client may use, by its aliases or, without one, by its id."""

        def every() -> list[dict[str, Any]]:
            found = context.memory.listed(request.state.client, limit=MOST_LISTED)
            aliases = context.memory.aliases(found)
            return [card for entry in found for card in _cards(context, entry, aliases.get(entry.id, []))]

        return {"object": "list", "data": [base(), *await run_in_threadpool(every)]}

    @app.get("/v1/models/{name:path}", responses=error_responses(401, 404))
    async def model(request: Request, name: str) -> Any:
        """One of them."""
        if name == context.base_name:
            return base()
        named = name.removeprefix(f"{context.base_name}:")
        entry = await run_in_threadpool(context.memory.named, named, request.state.client)
        return _cards(context, entry, [named])[0]


def _cards(context: ServerContext, entry: Entry, aliases: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "id": name,
            "object": "model",
            "created": _seconds(entry.created),
            "owned_by": entry.place.project,
            "parent": context.base_name,
            "root": entry.id,
            "max_model_len": context.window,
        }
        for name in aliases or [entry.id]
    ]


def _shown(context: ServerContext, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    residency = getattr(context.engine, "residency", None)  # of the torch engine
    resident = frozenset(residency.resident) if residency else None
    aliases = context.memory.aliases(entries)
    return [
        {
            "id": entry.id,
            "object": "adapter",
            "model": f"{context.base_name}:{entry.id}",
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
            "fitness_interval": None if entry.fitness is None else [entry.fitness_low, entry.fitness_high],
            "resident": None if resident is None else entry.id in resident,
        }
        for entry in entries
    ]


def add_adapters(app: FastAPI, context: ServerContext) -> None:
    @app.get("/v1/adapters", responses=error_responses(400, 401))
    async def adapters(request: Request, project: str = "", after: str = "0", limit: str = "100") -> Any:
        """A page of the client's adapters, in the order in which they came; `next_after` begins the next page."""
        first, most = _whole_number("after", after, 0, 2**53), _whole_number("limit", limit, 1, 1000)

        def page() -> dict[str, Any]:
            found = context.memory.listed(request.state.client, project=project, after=first, limit=most)
            more = found[-1].number if len(found) == most else None
            total = context.memory.count(request.state.client, project=project)
            return {"object": "list", "data": _shown(context, found), "total": total, "next_after": more}

        return await run_in_threadpool(page)

    @app.get("/v1/adapters/{name:path}", responses=error_responses(400, 401, 404))
    async def adapter(request: Request, name: str) -> Any:
        """One adapter, and the ids of the trajectories and adapters that it was made from."""

        def one() -> dict[str, Any]:
            entry = context.memory.named(name, request.state.client)
            sources = context.memory.registry.sources(entry.id)
            return {
                **_shown(context, [entry])[0],
                "trajectories": [source.trajectory_id for source in sources],
                "parents": context.memory.parents(entry, request.state.client),
            }

        return await run_in_threadpool(one)

    @app.delete("/v1/adapters/{name:path}", responses=error_responses(400, 401, 404))
    async def delete(request: Request, name: str) -> Any:
        """Take an adapter out of service. It is archived: nothing answers with it or lists it any more."""

        def gone_now() -> dict[str, Any]:
            entry = context.memory.named(name, request.state.client)
            context.memory.archive(entry)
            return {"id": entry.id, "object": "adapter", "deleted": True}

        return await run_in_threadpool(gone_now)


def add_trajectories(app: FastAPI, context: ServerContext) -> None:
    admission = Admission(context.settings.max_learning, 0, "trajectories")

    @app.post(
        "/v1/trajectories",
        status_code=201,
        openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {}}}}},
        responses=error_responses(400, 401, 403, 404, 408, 409, 413, 429),
    )
    async def learn(
        request: Request, project: str = "", domain: str = "", task: str = "", alias: str = "", name: str = "session"
    ) -> Any:
        """A file of trajectories, as an agent wrote it (docs/trajectories.md), in; an adapter of them out.

        The body is the file, plain or gzip. All its trajectories make one adapter, which the next request may use.
        """
        client: Client = request.state.client
        where = context.memory.place_for(client, project, domain, task)
        check_alias(alias)
        if not _NAME.fullmatch(name):
            raise Refusal(400, "a name is of letters, digits, '_', '.' and '-', at most 100 of them", param="name")
        with admission.enter(client, 1), context.metrics.learning.track_inprogress():
            data = await request.body()
            if not data:
                raise Refusal(400, "the body is empty; send the file of a session")
            made = await run_in_threadpool(context.memory.learn, data, where, name=name, alias=alias)
        context.metrics.learn_seconds.observe(made.seconds)
        request.state.facts.update(adapter=made.entry.short, new=made.new)
        (shown,) = await run_in_threadpool(_shown, context, [made.entry])
        found = {
            **shown,
            "trajectories": list(made.trajectories),
            "notes": list(made.notes),
            "seconds": round(made.seconds, 3),
        }
        return JSONResponse(found, 201 if made.new else 200)


def add_vllm(app: FastAPI, context: ServerContext) -> None:
    roots = [Path(folder).expanduser().resolve() for folder in context.settings.folders]

    @app.post(
        "/v1/load_lora_adapter",
        response_class=PlainTextResponse,
        openapi_extra=request_body(shapes.LoadBody),
        responses=error_responses(400, 401, 403, 409),
    )
    async def load(request: Request, project: str = "", domain: str = "", task: str = "") -> str:
        """A PEFT folder on the server's disk, below one of `serve.folders`, registered under an alias."""
        body = shapes.parse(shapes.LoadBody, await request.body())
        client = _owner(request)
        where = context.memory.place_for(client, project, domain, task)
        check_alias(body.lora_name)

        def register() -> None:
            folder = _below(roots, body.lora_path)
            context.memory.load(folder, where, alias=body.lora_name)

        await run_in_threadpool(register)
        return f"Success: LoRA adapter '{body.lora_name}' added successfully."

    @app.post(
        "/v1/unload_lora_adapter",
        response_class=PlainTextResponse,
        openapi_extra=request_body(shapes.UnloadBody),
        responses=error_responses(400, 401, 403, 404),
    )
    async def unload(request: Request) -> str:
        """Take it out of service: as DELETE /v1/adapters."""
        body = shapes.parse(shapes.UnloadBody, await request.body())
        client = _owner(request)

        def archive() -> None:
            context.memory.archive(context.memory.named(body.lora_name, client))

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
