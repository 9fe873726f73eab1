"""OpenHands' `llm_completions/INSTANCE/*.json`: one file a request, each with the conversation so far and the answer.

The last request of a session holds all of it; `reading` keeps that one of a folder. Nothing in it says whether the
tests passed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rune.corpus import conversation, statement
from rune.corpus.session import Session, proved

NAME = "OpenHands completions"


def claims(record: Any) -> bool:
    """The messages of a request beside the model's response."""
    return isinstance(record, dict) and {"messages", "response"} <= set(record)


def messages_of(record: Mapping[str, Any], where: str) -> list[Any]:
    """The conversation with the answer at its end. Raises DataError."""
    messages = list(conversation.messages_of(record, "messages", where))
    response = conversation.from_json_text(record.get("response"), where, "response")
    choices = response.get("choices") if isinstance(response, Mapping) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    answer = first.get("message") if isinstance(first, Mapping) else None
    return [*messages, {"role": "assistant", **answer}] if isinstance(answer, Mapping) else messages


def read(record: Any, where: str, name: str) -> Sequence[Session]:
    """Raises DataError naming the field."""
    messages = messages_of(record, where)
    task = record.get("instance_id")
    return [
        Session(
            task=task if isinstance(task, str) and task else name,
            prompt=statement.find(conversation.first_request(messages)),
            steps=tuple(conversation.steps(messages, where)),
            resolved=proved(record, "resolved", where=where),
        )
    ]
