"""What every request passes on its way in and out: size and time of its body, who asks, a log line, a last resort.

Plain ASGI, around the application. Nothing here reads a body; nothing that is logged comes from one.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TextIO

from starlette.requests import ClientDisconnect

from rune.runs import store
from rune.serving.keys import OWNER, Client, Keys
from rune.serving.metrics import Metrics
from rune.serving.refusals import Refusal
from rune.serving.settings import Serve, is_loopback

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

GONE = 499  # in the log, for a client that hung up; nobody reads it as an answer
OPEN = ("/", "/healthz", "/readyz", "/openapi.json")  # answered without a key
UPLOADS = ("/v1/trajectories",)


class Edge:
    """See the module's docstring. `draining` and the log are the server's to set."""

    def __init__(self, app: Any, settings: Serve, keys: Keys, metrics: Metrics, *, log: TextIO | None = None) -> None:
        self._app, self._settings, self._keys, self._metrics = app, settings, keys, metrics
        self._log = log
        self.draining = False

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a websocket: nothing here speaks it
            await receive()
            await send({"type": "websocket.close", "code": 1003})
            return
        started, number = time.monotonic(), secrets.token_hex(8)
        facts: dict[str, Any] = {}
        scope.setdefault("state", {})
        scope["state"].update(facts=facts, request_id=number)
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", number.encode())]
            await send(message)

        try:
            try:
                client = self._client(scope)
                scope["state"]["client"] = client
                facts["key"] = client.name
                await self._app(scope, self._limited(scope, receive), answer)
            except Refusal as refusal:
                if status:
                    raise  # the answer has begun
                await refuse(refusal, answer)
        except ClientDisconnect:  # in the middle of its body
            status = GONE
        except asyncio.CancelledError:
            status = status or GONE
            raise
        except Exception as error:
            where = error.__traceback__
            while where is not None and where.tb_next is not None:
                where = where.tb_next
            place = f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where else ""
            facts.update(error=type(error).__name__, at=place)  # no message: it may quote what a client wrote
            if not status:
                await refuse(Refusal(500, f"a fault of the server; its log has it under {number}"), answer)
        finally:
            self._write(scope, status, time.monotonic() - started, number, facts)

    # ------------------------------------------------------------------ who

    def _client(self, scope: Message) -> Client:
        """Raises Refusal: 401 without a key that is known, 403 for a web page, 503 while the server stops."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"]
        if path in OPEN:
            return Client(name="", projects=())
        if self.draining:
            raise Refusal(503, "the server is stopping; try another, or this one later", retry_after=5)
        if not self._keys.required:
            # Nothing but this machine reaches a server without keys; a page in its browser must not either.
            if not is_loopback(_host(headers.get("host", "localhost"))):
                raise Refusal(403, "this server answers to localhost only; give it API keys: `rune keys add`")
            origin = headers.get("origin", "")
            if origin and not is_loopback(_host(origin.partition("//")[2])):
                raise Refusal(403, "web pages may not use a server without API keys")
            return OWNER
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Refusal(401, "no API key; send the header 'Authorization: Bearer KEY'", code="invalid_api_key")
        client = self._keys.find(token.strip())
        if client is None:
            raise Refusal(401, "the API key is not known here", code="invalid_api_key")
        if path == "/metrics" and client.projects is not None:
            raise Refusal(403, "/metrics needs a key made with --admin")
        return client

    # ------------------------------------------------------------------ how much, how long

    def _limited(self, scope: Message, receive: Receive) -> Receive:
        """`receive` that refuses a body which is too large or takes too long."""
        uploads = scope["path"] in UPLOADS
        most = self._settings.trajectory_bytes if uploads else self._settings.request_bytes
        too_large = Refusal(413, f"the body has more than {most} bytes; send less", code="too_large")
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        ends = time.monotonic() + self._settings.upload_seconds
        read, complete = 0, False

        async def limited() -> Message:
            nonlocal read, complete
            if complete:
                return await receive()
            if not declared.isdigit() or int(declared[:20]) > most:
                raise too_large
            try:
                message = await asyncio.wait_for(receive(), max(0.0, ends - time.monotonic()))
            except TimeoutError:
                seconds = self._settings.upload_seconds
                raise Refusal(408, f"the body was not there after {seconds:g} s; send it again") from None
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if read > most:
                    raise too_large
            return message

        return limited

    # ------------------------------------------------------------------ what is told

    def _write(self, scope: Message, status: int, seconds: float, number: str, facts: dict[str, Any]) -> None:
        route = getattr(scope.get("route"), "path", "") or ("other" if status == 404 else scope["path"])
        if status in (401, 403, 404, 405, 413) and not scope.get("route"):
            route = "other"  # a path of the client's own would make a label of its own
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if self._log is None:
            return
        line = {
            "time": store.now(),
            "id": number,
            "method": scope["method"],
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
            **facts,
        }
        print(json.dumps(line), file=self._log, flush=True)


def _host(authority: str) -> str:
    """The name in "name:port" or "[address]:port"."""
    authority = authority.partition("/")[0]
    if authority.startswith("["):
        return authority.partition("]")[0].removeprefix("[")
    return authority.rpartition(":")[0] or authority


async def refuse(refusal: Refusal, send: Send) -> None:
    """Answer with a refusal."""
    body = json.dumps(refusal.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
    if refusal.status in (408, 413):
        headers["connection"] = "close"  # what is still coming is not read
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
