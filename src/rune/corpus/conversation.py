"""Messages of a chat → what the agent did and what it was answered.

Read are calls as OpenAI's APIs write them (`tool_calls`, `function_call`, `items`), as Anthropic's does
(`tool_use` and `tool_result` blocks), as mini-swe-agent does (`extra.actions`, bash blocks in the text), as SWE-agent
does (`action`) and as OpenHands does for models without tool calls (`<function=…>` in the text).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rune.corpus import files, items
from rune.corpus.edits import Call
from rune.corpus.session import Step
from rune.errors import DataError

ASSISTANT = {"assistant", "ai", "model", "agent", "gpt"}
_SHELL_BLOCK = re.compile(r"```(?:mswea_bash_command|bash|sh|shell|console|zsh)[ \t]*\n(.*?)\n?```", re.DOTALL)
_ANY_BLOCK = re.compile(r"```[^\n`]*\n(.*?)\n?```", re.DOTALL)
_XML_CALL = re.compile(r"<function=([\w.-]+)>((?:(?!<function=).)*?)</function>", re.DOTALL)
_XML_PARAMETER = re.compile(r"<parameter=([\w.-]+)>(.*?)</parameter>", re.DOTALL)
_THOUGHT = re.compile(r"<(think|thinking)>(?:(?!<\1>).)*?</\1>", re.DOTALL)
_OBSERVATION = re.compile(r"\A\s*OBSERVATION:[ \t]*\n", re.IGNORECASE)


def messages_of(raw: Mapping[str, Any], name: str, where: str) -> list[Any]:
    """A field that is a list, or a list as JSON text. Raises DataError."""
    value = from_json_text(raw.get(name), where, name)
    if not isinstance(value, list):
        raise DataError(f"{where}: field '{name}' is missing or no list")
    return value


def from_json_text(value: Any, where: str, name: str) -> Any:
    """A value that may be stored as JSON text. Raises DataError for text that is none."""
    if not isinstance(value, str):
        return value
    try:
        return files.parse(value)
    except ValueError:
        raise DataError(
            f"{where}: field '{name}': expected a list, or one as JSON text; this text is no JSON"
        ) from None


def check(messages: Sequence[Any], where: str, name: str = "messages") -> None:
    """Raises DataError for the first thing that is no message."""
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            kind = type(message).__name__
            raise DataError(
                f"{where}: field '{name}[{number}]': expected a message with role and content, found {kind}"
            )
        said = items.message(message)
        if said is not None and not role(said):
            raise DataError(f"{where}: field '{name}[{number}].role' is missing")


def role(message: Mapping[str, Any]) -> str:
    """assistant, tool, user, system, …; "" if it cannot be told."""
    given = message.get("role")
    if isinstance(given, str) and given:
        return "assistant" if given.lower() in ASSISTANT else given.lower()
    if message.get("object") == "response" or message.get("type") == "function_call":  # OpenAI's Responses API
        return "assistant"
    return "tool" if message.get("type") == "function_call_output" else ""


def text_of(content: Any) -> str:
    """Content as text: a string, or parts that hold some."""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list):
        return ""
    parts = []
    for part in content:
        if isinstance(part, str):
            parts.append(part)
        elif isinstance(part, Mapping) and part.get("type") != "tool_use":
            inner = part.get("text", part.get("content", ""))
            parts.append(inner if isinstance(inner, str) else text_of(inner))
    return "\n".join(parts)


def first_request(messages: Sequence[Any]) -> str:
    """The first user message that is no demonstration."""
    if request := _by_the_one_who_asked(messages):
        return request
    asked = (m for m in messages if isinstance(m, Mapping) and role(m) in ("user", "human") and not m.get("is_demo"))
    return next((text for m in asked if (text := text_of(m.get("content")).strip())), "")


def _by_the_one_who_asked(messages: Sequence[Any]) -> str:
    """AutoGen's agents keep a chat each from its own side: the request is the assistant's where the one who asked kept
    it. It is told by the name, which is that of the agent who ran the tools. "" in any other chat."""
    talk = [m for m in messages if isinstance(m, Mapping) and role(m) != "system"]
    first = talk[0] if talk else {}
    name = first.get("name")
    if not isinstance(name, str) or role(first) != "assistant" or {"tool_calls", "function_call"} & set(first):
        return ""
    ran = any(m.get("name") == name and "tool_responses" in m for m in talk)
    return text_of(first.get("content")).strip() if ran else ""


def steps(messages: Sequence[Any], where: str, name: str = "messages", *, any_block: bool = False) -> list[Step]:
    """Every call with its answer. `any_block`: code blocks of any language are commands (SWE-agent's first format).

    An answer goes to the call whose id it names, else to the last one before it. Raises DataError.
    """
    check(messages, where, name)
    found: list[tuple[Call, list[str], list[bool]]] = []
    by_id: dict[str, int] = {}
    structured = False  # calls have ids, or answers a role of their own: what a user says is no answer
    for number, raw in enumerate(messages):
        message = items.message(raw)
        if message is None or message.get("is_demo"):
            continue
        who = role(message)
        if who == "assistant":
            calls = list(_calls(message, f"{where}: field '{name}[{number}]", any_block))
            for identity, call in calls:
                if identity:
                    by_id[identity] = len(found)
                found.append((call, [], []))
            structured = all(identity for identity, _ in calls) if calls else structured
        elif who not in ("system", "developer", "exit"):
            for identity, text, failed in _answers(message, structured):
                if found and (identity in by_id or text.strip()):
                    target = found[by_id.get(identity, len(found) - 1)]
                    target[1].append(_OBSERVATION.sub("", text))
                    target[2].append(failed)
                    structured |= who in ("tool", "function")
    return [Step(call, "\n".join(t for t in said if t.strip()), any(failed)) for call, said, failed in found]


def _answers(message: Mapping[str, Any], structured: bool) -> Iterator[tuple[str, str, bool]]:
    """(id of the call, text, whether the tool reports a failure) of each answer in a message."""
    content = message.get("content")
    blocks = [b for b in content if isinstance(b, Mapping)] if isinstance(content, list) else []
    results = [b for b in blocks if b.get("type") == "tool_result"]
    if results:
        for block in results:
            yield str(block.get("tool_use_id", "")), text_of(block.get("content")), block.get("is_error") is True
    elif message.get("type") == "function_call_output":
        yield str(message.get("call_id", "")), text_of(message.get("output")), message.get("failed") is True
    elif isinstance(message.get("tool_responses"), list):  # AutoGen: the answers to all calls of a turn
        for answer in message["tool_responses"]:
            if isinstance(answer, Mapping):
                yield str(answer.get("tool_call_id") or ""), text_of(answer.get("content")), False
    elif role(message) in ("tool", "function", "observation", "environment"):
        given = message.get("error")  # Inspect's: what kept the tool from its work
        error = given if isinstance(given, Mapping) else {}
        said = "\n".join(t for t in (text_of(content), text_of(error.get("message"))) if t.strip())
        yield str(message.get("tool_call_id") or ""), said, bool(error) and error.get("type") != "timeout"
    elif not structured:
        yield "", text_of(content), False


def _calls(message: Mapping[str, Any], where: str, any_block: bool) -> Iterator[tuple[str, Call]]:
    """(id, call) of each call in an assistant's message, from the first of its places that holds any."""
    extra = message.get("extra")
    if isinstance(extra, Mapping) and isinstance(extra.get("actions"), list):
        for action in extra["actions"]:
            if isinstance(action, Mapping) and isinstance(action.get("command"), str):
                yield str(action.get("tool_call_id") or ""), Call("bash", {"command": action["command"]})
            elif isinstance(action, str):
                yield "", Call("bash", {"command": action})
        return
    if isinstance(message.get("action"), str) and message["action"].strip():
        calls = message.get("tool_calls")
        identity = calls[0].get("id") if isinstance(calls, list) and calls and isinstance(calls[0], Mapping) else ""
        yield str(identity or ""), Call("bash", {"command": message["action"]})
        return
    items = _structured(message)
    if items:
        for place, identity, name, arguments in items:
            yield identity, Call(name, _arguments(arguments, f"{where}.{place}'"))
        return
    text = _THOUGHT.sub("", text_of(message.get("content")))
    if xml := _XML_CALL.findall(text):
        for name, body in xml:
            yield "", Call(name, {k: v.strip("\n") for k, v in _XML_PARAMETER.findall(body)})
        return
    blocks = _ANY_BLOCK.findall(text)[-1:] if any_block else _SHELL_BLOCK.findall(text)
    for block in blocks:
        yield "", Call("bash", {"command": block})


def _structured(message: Mapping[str, Any]) -> list[tuple[str, str, str, Any]]:
    """(place, id, tool, arguments) of calls that are data, not text."""
    found: list[tuple[str, str, str, Any]] = []
    calls = message.get("tool_calls")
    if isinstance(calls, str):
        try:
            calls = files.parse(calls)
        except ValueError:
            calls = None
    for number, call in enumerate(calls if isinstance(calls, list) else []):
        if isinstance(call, Mapping):
            inner = call["function"] if isinstance(call.get("function"), Mapping) else call
            arguments = inner.get("arguments", inner.get("args", inner.get("input", {})))
            place = f"tool_calls[{number}].function.arguments"
            tool = inner.get("name") or inner.get("function")  # Inspect's calls have the tool's name alone there
            found.append((place, str(call.get("id") or ""), tool if isinstance(tool, str) else "", arguments))
    call = message.get("function_call")
    if not found and isinstance(call, Mapping):
        found.append(("function_call.arguments", "", str(call.get("name") or ""), call.get("arguments", {})))
    if message.get("type") == "function_call":
        identity = str(message.get("call_id") or message.get("id") or "")
        found.append(("arguments", identity, str(message.get("name") or ""), message.get("arguments", {})))
    blocks = message.get("output") if message.get("object") == "response" else message.get("content")
    for number, block in enumerate(blocks if isinstance(blocks, list) and not found else []):
        if isinstance(block, Mapping) and block.get("type") == "tool_use":
            place = f"content[{number}].input"
            found.append((place, str(block.get("id") or ""), str(block.get("name") or ""), block.get("input", {})))
        elif isinstance(block, Mapping) and block.get("type") == "function_call":
            identity = str(block.get("call_id") or block.get("id") or "")
            found.append(
                (f"output[{number}].arguments", identity, str(block.get("name") or ""), block.get("arguments"))
            )
    return found


def _arguments(given: Any, where: str) -> Mapping[str, Any]:
    """A call's arguments: an object, or one as JSON text. Models write broken JSON too: that call did nothing."""
    if isinstance(given, str):
        try:
            given = files.parse(given) if given.strip() else {}
        except ValueError:
            return {}
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise DataError(f"{where}: expected an object, found {type(given).__name__}")
    return {str(k): v for k, v in given.items()}
