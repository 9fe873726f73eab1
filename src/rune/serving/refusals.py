"""What a server says no with: an HTTP status and OpenAI's error object. One line, and never a client's own text."""

from __future__ import annotations

from typing import Any


class Refusal(Exception):
    """An answer other than the one asked for."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """{"error": {…}} as OpenAI's clients read it."""
        message = " ".join(str(self).split())
        return {"error": {"message": message, "type": kind(self.status), "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        named = {"retry-after": str(self.retry_after)} if self.retry_after is not None else {}
        return {**named, **({"www-authenticate": "Bearer"} if self.status == 401 else {})}


def kind(status: int) -> str:
    """OpenAI's word for a class of errors."""
    by_status = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    return by_status.get(status, "invalid_request_error" if status < 500 else "server_error")


def no_model(name: str) -> Refusal:
    """One answer for what is not there and for what is somebody else's."""
    shown = name if len(name) <= 100 and name.isprintable() else f"{name[:60]!r}…"
    return Refusal(
        404,
        f"the model '{shown}' does not exist or is not yours; GET /v1/models lists those that are",
        code="model_not_found",
        param="model",
    )
