"""Lists of messages as OpenAI's and Anthropic's APIs have them: bare, or under `messages` (fine-tuning JSONL).

Calls are `tool_calls`, `function_call`, `tool_use` blocks or bash blocks. A line without an id of its own is named by
its file and line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rune.corpus import conversation, statement
from rune.corpus.session import Session, proved, text_field

NAME = "lists of messages (OpenAI, Anthropic)"

_IDS = ("id", "task_id", "traj_id", "conversation_id")


def claims(record: Any) -> bool:
    """A list of messages with roles, or an object whose only conversation is `messages`."""
    if isinstance(record, list):
        first = record[0] if record else None
        return isinstance(first, Mapping) and "messages" not in first and _message(first)
    others = {"instance_id", "info", "response", "trajectory", "history", "trajectory_format"}
    return isinstance(record, dict) and "messages" in record and not others & set(record)


def _message(first: Mapping[str, Any]) -> bool:
    known = {"system", "user", "assistant", "tool", "developer", "function", "human", "ai"}
    return isinstance(first.get("role"), str) and first["role"].lower() in known


def read(record: Any, where: str, name: str) -> Sequence[Session]:
    """Raises DataError naming the field."""
    given: Mapping[str, Any] = record if isinstance(record, Mapping) else {}
    messages = conversation.messages_of(given, "messages", where) if given else record
    steps = conversation.steps(messages, where)
    field, patch = text_field(given, "patch", "model_patch", "submission", where=where)
    if not patch:
        field, patch = "messages", _handed_in(messages, steps[-1].call.text if steps else "")
    _, problem = text_field(given, "problem_statement", where=where)
    task = next((given[k] for k in _IDS if isinstance(given.get(k), str) and given[k].strip()), name)
    return [
        Session(
            task=task,
            prompt=problem or statement.find(conversation.first_request(messages)),
            steps=tuple(steps),
            patch=patch,
            patch_field=field,
            resolved=proved(given, "resolved", where=where),
            benchmark="session",
        )
    ]


def _handed_in(messages: Sequence[Any], last_command: str) -> str:
    """mini-swe-agent's first versions: the answer to the submission is the diff."""
    if "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT" not in last_command and "MINI_SWE_AGENT_FINAL" not in last_command:
        return ""
    last = messages[-1]
    text = conversation.text_of(last.get("content")) if conversation.role(last) != "assistant" else ""
    return text if text.lstrip().startswith("diff --git ") else ""
