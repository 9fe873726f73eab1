"""What the page of the interface (/openapi.json) says of bodies that the routes read themselves, and of errors."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from rune.serving.refusals import kind


def request_body(shape: type[BaseModel]) -> dict[str, Any]:
    """A route's `openapi_extra` for a JSON body of this shape."""
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


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """A route's `responses`: these statuses come with OpenAI's error."""
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
