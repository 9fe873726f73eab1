"""Bodies of requests as OpenAI's clients send them, field by field. What would silently do nothing is refused."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rune.serving.refusals import Refusal

M = TypeVar("M", bound=BaseModel)
_SEEDS = 2**63


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class StreamOptions(_Body):
    include_usage: bool = False
    include_obfuscation: bool | None = None  # of OpenAI's own traffic; there is none here


class Part(_Body):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class Function(_Body):
    """A function that the model may ask for."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None  # JSON schema
    strict: bool | None = None


class Tool(_Body):
    type: Literal["function"]
    function: Function


class CalledFunction(_Body):
    name: Annotated[str, Field(min_length=1, max_length=1000)]
    arguments: str  # a JSON object


class ToolCall(_Body):
    """A call that the model asked for, as it was told to the client."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None  # of a stream's parts, which some clients leave in


class ChatMessage(_Body):
    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["content"]}, {"required": ["tool_calls"]}]})

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    # What answers hold beside that; clients send them back as they came, with nothing in them.
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""

    def check(self, where: str) -> None:
        """Raises Refusal for what belongs to another role, or is missing."""
        if self.content is None and not self.tool_calls:
            raise Refusal(400, f"{where}.content: this message has none", param=where)
        if self.tool_calls and self.role != "assistant":
            raise Refusal(400, f"{where}.tool_calls: only an assistant calls", param=where)
        if self.tool_call_id is not None and self.role != "tool":
            raise Refusal(400, f"{where}.tool_call_id is for the role 'tool'", param=where)

    def shown(self, where: str) -> dict[str, Any]:
        """As chat templates take it. Raises Refusal for arguments that are no JSON object."""
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Any] = {"role": role, "content": self.text}
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": _object(call.function.arguments, where)},
                }
                for call in self.tool_calls
            ]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # neither NaN nor half a character
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Refusal(400, f"{where}.tool_calls: arguments are a JSON object, written as a string", param=where)
    return value


class Sampled(_Body):
    """What chat and text completions have in common."""

    model: Annotated[str, Field(min_length=1, max_length=1000)]
    max_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1 << 20)] | None = None  # vLLM's; 0 and −1: no limit
    n: Annotated[int, Field(ge=1, le=1 << 10)] | None = None
    stop: Annotated[str, Field(max_length=500)] | list[Annotated[str, Field(max_length=500)]] | None = None
    seed: Annotated[int, Field(ge=-_SEEDS, lt=_SEEDS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: dict[str, str] | None = None  # project, domain, task: which adapter answers a request for the base model
    # Of no effect on an answer: taken, so that clients need not be changed.
    user: str | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # Only the value that asks for nothing.
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(string for string in given if string)

    def check(self) -> None:
        """Raises Refusal for what this server cannot do."""
        for name in ("presence_penalty", "frequency_penalty", "logit_bias"):
            if getattr(self, name):
                raise unsupported(name)
        if self.stream_options is not None and not self.stream:
            raise Refusal(400, "stream_options is for stream = true", param="stream_options")
        if len(self.stops) > 16:
            raise Refusal(400, f"{len(self.stops)} stop strings, at most 16 may be", param="stop")


class ChatBody(Sampled):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=10_000)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None  # False: an answer ends with its first call
    response_format: Any = None

    def check(self) -> None:
        super().check()
        for number, message in enumerate(self.messages):
            message.check(f"messages.{number}")
        if any(tool.function.strict for tool in self.tools or ()):
            raise Refusal(
                400, "strict is not supported: nothing binds the model to a schema; leave it out", param="tools",
                code="unsupported_parameter",
            )  # fmt: skip
        if self.tool_choice not in (None, "none", "auto"):
            raise Refusal(
                400, "tool_choice may be 'auto' or 'none': nothing makes the model call", param="tool_choice",
                code="unsupported_parameter",
            )  # fmt: skip
        if self.response_format not in (None, {"type": "text"}):
            raise unsupported("response_format")
        if self.top_logprobs is not None and not self.logprobs:
            raise Refusal(400, "top_logprobs needs logprobs = true", param="top_logprobs")

    @property
    def shown_tools(self) -> list[dict[str, Any]]:
        """The functions as chat templates take them; none where none may be called."""
        if self.tool_choice == "none":
            return []
        return [tool.model_dump(exclude_none=True) for tool in self.tools or ()]

    @property
    def calls(self) -> bool:
        """Whether calls were asked for before, and stand in the messages."""
        return any(message.tool_calls for message in self.messages)

    @property
    def reports(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(Sampled):
    """`POST /v1/completions`."""

    prompt: str | Annotated[list[str], Field(min_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None

    def check(self) -> None:
        super().check()
        if self.echo:
            raise unsupported("echo")
        if self.suffix:
            raise unsupported("suffix")
        if self.best_of not in (None, self.n or 1):
            raise unsupported("best_of")

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class LoadBody(_Body):
    """`POST /v1/load_lora_adapter`, in vLLM's words."""

    lora_name: Annotated[str, Field(min_length=1, max_length=200)]
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]
    load_inplace: bool | None = None  # an adapter is named by its content here: there is nothing to replace


class UnloadBody(_Body):
    """`POST /v1/unload_lora_adapter`."""

    lora_name: Annotated[str, Field(min_length=1, max_length=200)]
    lora_int_id: int | None = None  # vLLM's own number; taken, and not looked at


def unsupported(name: str) -> Refusal:
    return Refusal(
        400, f"{name} is not supported by this server; leave it out", code="unsupported_parameter", param=name
    )


def parse(shape: type[M], body: bytes) -> M:
    """A JSON body as `shape`. Raises Refusal: 400 with the first thing that is wrong, and nothing of the body."""
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    except RecursionError:
        raise Refusal(400, "the body is nested too deeply") from None
    # Numbers and tags of unions are steps of the path too; a client's own keys could be anything.
    steps = [str(step) for step in first["loc"] if isinstance(step, int) or str(step).isidentifier()]
    path = ".".join(steps)[:100]
    if first["type"] == "json_invalid":
        raise Refusal(400, f"the body is not JSON: {first['msg']}")
    if first["type"] == "extra_forbidden":
        raise Refusal(400, f"unknown field '{path}'; leave it out", code="unknown_parameter", param=path or None)
    raise Refusal(400, f"{path or 'the body'}: {first['msg']}", param=path or None)
