"""The application: OpenAI's and vLLM's routes, those for trajectories and adapters, health, and how errors are told."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from rune import __version__
from rune.serving import adapters, completions, page
from rune.serving.context import ServerContext
from rune.serving.openapi import error_responses
from rune.serving.refusals import Refusal


def build(context: ServerContext) -> FastAPI:
    """The application, without what stands around it (`edge.py`)."""
    app = FastAPI(title="rune serve", version=__version__, docs_url=None, redoc_url=None)
    _errors(app)
    _health(app, context)
    page.add_page(app)
    completions.add_completions(app, context)
    adapters.add_models(app, context)
    adapters.add_adapters(app, context)
    adapters.add_trajectories(app, context)
    adapters.add_vllm(app, context)
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


def _health(app: FastAPI, context: ServerContext) -> None:
    @app.get("/healthz", response_class=PlainTextResponse)
    async def alive() -> str:
        """The process answers."""
        return "ok"

    @app.get("/readyz", response_class=PlainTextResponse, responses=error_responses(503))
    async def ready() -> str:
        """The model is loaded and the engine works."""
        if not context.ready():
            raise Refusal(503, "the engine has stopped", retry_after=60)
        return "ready"

    @app.get("/metrics", response_class=PlainTextResponse, responses=error_responses(401, 403))
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(context.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
