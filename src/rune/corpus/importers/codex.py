"""Sessions of Codex (`~/.codex/sessions/YYYY/MM/DD/rollout-*.jsonl`): JSON Lines of {timestamp, type, payload}.

`session_meta` opens the file and names the session; `response_item` lines are what the model was sent and what it said,
as OpenAI's Responses API has it; the others (`event_msg`, `turn_context`, …) tell the same again for the screen. The
first versions wrote the items bare, after a line with the session's id. A forked session repeats its parent's lines
below its own `session_meta`. Nothing in it says whether tests passed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rune.corpus import conversation, files, items, statement
from rune.corpus.session import Session
from rune.errors import DataError

NAME = "Codex session JSONL"

# What Codex writes above a tool's output for the model.
_HEAD = re.compile(
    r"\A(?:Chunk ID: [^\n]*\n)?(?:Exit code: (\d+)\n)?Wall time: [^\n]*\n(?:Process exited with code (\d+)\n)?"
    r"(?:Process running [^\n]*\n)?(?:Original token count: [^\n]*\n)?(?:Total output lines: [^\n]*\n)?\n?Output:\n"
)
# What Codex says to the model in the user's name, and what its editor extension puts before the request.
_OWN = re.compile(r"\A\s*(?:<(?:environment_context|user_instructions|turn_aborted|skill)>|# AGENTS\.md instructions )")
_REQUEST = re.compile(r"\A# Context from my IDE setup:.*?^## My request for Codex:\n", re.DOTALL | re.MULTILINE)


def claims(record: Any) -> bool:
    """Lines that all have a type, some of them a header or an item in its envelope; or bare items below a header."""
    lines = record if isinstance(record, list) else [record]
    if not lines or not all(isinstance(line, Mapping) for line in lines):
        return False
    if all(isinstance(line.get("type"), str) for line in lines):
        return any(
            line["type"] in ("session_meta", "response_item") and isinstance(line.get("payload"), Mapping)
            for line in lines
        )
    return _bare(lines)


def _bare(lines: Sequence[Mapping[str, Any]]) -> bool:
    """The first versions' form."""
    head = lines[0]
    return (
        isinstance(head.get("id"), str)
        and "timestamp" in head
        and not {"type", "role", "messages"} & set(head)
        and any(line.get("type") in ("message", *items.CALLS) for line in lines[1:])
    )


def read(record: Any, where: str, name: str) -> Sequence[Session]:
    """Raises DataError naming the line's field."""
    lines = record if isinstance(record, list) else [record]
    head: Any = next((line.get("payload") for line in lines if line.get("type") == "session_meta"), lines[0])
    identity = head.get("id") if isinstance(head, Mapping) else None
    messages = [message for number, item in _items(lines, where) for message in _messages(item, f"{where}: {number}")]
    return [
        Session(
            task=identity if isinstance(identity, str) and identity.strip() else name,
            prompt=statement.find(_REQUEST.sub("", conversation.first_request(messages))),
            steps=tuple(conversation.steps(messages, where)),
            benchmark="session",
        )
    ]


def _items(lines: Sequence[Mapping[str, Any]], where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(what an error calls it, item) of the conversation."""
    for number, line in enumerate(lines, start=1):
        if line.get("type") == "response_item":
            if not isinstance(line.get("payload"), Mapping):
                raise DataError(f"{where}: field 'payload' of line {number} of the session is missing or no object")
            yield f"field 'payload' of line {number} of the session", line["payload"]
        elif "payload" not in line:
            yield f"line {number} of the session", line


def _messages(item: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """An item as a message that `conversation` reads; none for what is no part of the talk."""
    kind = item.get("type")
    if kind is not None and not isinstance(kind, str):
        raise DataError(f"{where}: 'type': expected text, found {type(kind).__name__}")
    if kind == "message":
        role, content = item.get("role"), item.get("content")
        if not isinstance(role, str):
            raise DataError(f"{where}: 'role' is missing")
        if not (role == "user" and _OWN.match(conversation.text_of(content))):
            yield {"role": role, "content": content}
    elif kind in (items.CALLS | items.ANSWERS) and (message := items.message(item)):
        yield {**message, "output": _said(message["output"])} if "output" in message else {**message}


def _said(output: Any) -> str:
    """A tool's output without what Codex wrote around it; a command's exit code stays if it is not 0."""
    if isinstance(output, str) and output.startswith("{"):  # {"output": …, "metadata": {"exit_code": …}} as text
        try:
            inner = files.parse(output)
        except ValueError:
            inner = None
        if isinstance(inner, Mapping) and isinstance(inner.get("output"), str):
            output = inner["output"]
    text, code = conversation.text_of(output), "0"
    while match := _HEAD.match(text):
        code = match[1] or match[2] or code
        text = text[match.end() :]
    return text if code.strip("0") == "" else f"exit code {code}\n{text}"
