"""Sessions of Claude Code and tools that write as it does: JSON Lines of typed events, several sessions a file.

`user` and `assistant` lines hold a message; the others (summaries, snapshots, queue operations, system and progress
lines) hold none. Side chains (sub-agents) and meta lines are not the session's own conversation. `--output-format
stream-json` writes the same with `session_id`, but not what was asked for on the command line: such a file is refused.
Nothing in it says whether tests passed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rune.corpus import conversation, edits, statement
from rune.corpus.session import Session
from rune.errors import DataError

NAME = "Claude Code session JSONL"

_TYPED = {"user", "assistant", "system", "summary", "result", "human"}


def claims(record: Any) -> bool:
    """Lines that all have a type and no role, of which one at least is a message of a session."""
    lines = record if isinstance(record, list) else [record]
    if not lines or not all(isinstance(line, Mapping) and isinstance(line.get("type"), str) for line in lines):
        return False
    if any("role" in line or "kind" in line for line in lines):
        return False
    return any(
        line["type"] in _TYPED and (_session(line) or isinstance(line.get("message"), Mapping)) for line in lines
    )


def _session(line: Mapping[str, Any]) -> str:
    given = line.get("sessionId") or line.get("session_id")
    return given if isinstance(given, str) else ""


def read(record: Any, where: str, name: str) -> Sequence[Session]:
    """One session each id, in order of appearance. Raises DataError naming the line's field."""
    lines = record if isinstance(record, list) else [record]
    talks: dict[str, list[Mapping[str, Any]]] = {}
    seen: set[str] = set()
    for number, line in enumerate(lines):
        if line["type"] not in ("user", "assistant", "human") or line.get("isSidechain") or line.get("isMeta"):
            continue
        message = line.get("message")
        if not isinstance(message, Mapping):
            raise DataError(f"{where}: field 'message' of line {number + 1} of the session is missing")
        identity = line.get("uuid")
        if isinstance(identity, str):
            if identity in seen:  # a session that was resumed repeats its lines
                continue
            seen.add(identity)
        role = "assistant" if line["type"] == "assistant" else "user"
        talks.setdefault(_session(line), []).append({"role": role, **message})
    sessions = []
    for identity, messages in talks.items():
        prompt, steps = statement.find(_request(messages)), tuple(conversation.steps(messages, where))
        if not prompt and any(edits.effect(step.call).edits for step in steps):
            raise DataError(
                f"{where}: what the person asked for is not in it (stream-json leaves out the prompt of the command "
                "line); import the session's own file, ~/.claude/projects/*/SESSION.jsonl"
            )
        sessions.append(Session(task=identity or name, prompt=prompt, steps=steps, benchmark="session"))
    return sessions


def _request(messages: Sequence[Mapping[str, Any]]) -> str:
    """The first thing that the person asked: no tool's result, no local command."""
    for message in messages:
        content = message.get("content")
        if message["role"] != "user" or (
            isinstance(content, list)
            and any(isinstance(part, Mapping) and part.get("type") == "tool_result" for part in content)
        ):
            continue
        text = conversation.text_of(content)
        text = re.sub(r"\A\s*Caveat: The messages below were generated.*", "", text, flags=re.DOTALL)
        if re.sub(r"<([\w-]+)>.*?</\1>", "", text, flags=re.DOTALL).strip() or "<pr_description>" in text:
            return text
    return ""
