"""A conversation in the words of the model: its own chat template, with the answer's beginning left open.

Rendered with jinja2 in a sandbox, as transformers does it (a test holds the two together), so that rendering
needs neither torch nor transformers. A model without a chat template is a base model: it gets the messages'
texts one after another.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rune import prompts
from rune.errors import ModelError
from rune.types import ModelRef

CALL = "<tool_call>"  # before a function call of Qwen's and Hermes' form


def render(model: ModelRef, chat: prompts.Chat) -> str:
    """The text to continue: everything up to and including `chat.prefill`, no end-of-turn mark behind it.

    Raises ModelError if the template refuses the conversation (a model without a system role, say).
    """
    messages = [{"role": role, "content": text} for role, text in chat.messages]
    return converse(model, messages) + chat.prefill


def converse(model: ModelRef, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
    """The same for messages and functions (JSON schemas) as chat templates take them; the answer begins at the end.

    A message has `role` and `content`, and may have `tool_calls`. Raises ModelError as `render` does. Whether the
    template shows tools at all is `takes_tools`'s to say.
    """
    template, tokens = _template(model.path)
    if template is None:
        return "".join(f"{message['content']}\n\n" for message in messages)
    import jinja2

    try:
        text = template.render(messages=messages, tools=tools or None, add_generation_prompt=True, **tokens)
    except (jinja2.TemplateError, TypeError, RecursionError) as error:
        raise ModelError(f"{model.name}: its chat template refuses this conversation: {error}") from None
    return str(text)


@functools.lru_cache(maxsize=8)
def takes_tools(model: ModelRef) -> bool:
    """Whether the chat template shows functions to the model and asks for calls of Qwen's and Hermes' form."""
    probe = {"type": "function", "function": {"name": "rune_probe", "description": "", "parameters": {}}}
    try:
        text = converse(model, [{"role": "user", "content": "x"}], [probe])
    except ModelError:
        return False
    return "rune_probe" in text and CALL in text


@functools.lru_cache(maxsize=8)
def _template(path: str) -> tuple[Any, dict[str, str]]:
    folder = Path(path)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    own_file = folder / "chat_template.jinja"
    source = own_file.read_text(encoding="utf-8") if own_file.is_file() else settings.get("chat_template")
    if isinstance(source, list):  # several named templates; "default" is the conversation's
        source = next((entry["template"] for entry in source if entry["name"] == "default"), None)
    if not source:
        return None, {}
    return _environment().from_string(source), _named_tokens(settings)


def _named_tokens(settings: dict[str, Any]) -> dict[str, str]:
    """`bos_token` and the like, which some templates print."""
    found: dict[str, str] = {}
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = settings.get(key)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            found[key] = value
    return found


def _environment() -> Any:
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    def refuse(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    return environment
