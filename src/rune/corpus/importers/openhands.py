"""OpenHands' events: `output.jsonl` of its benchmarks, saved trajectories, event logs; before and since its SDK.

Before: {id, source, action, args} and {id, source, observation, content, extras, cause}; the oldest benchmark files
pair them. Since the SDK (1.0): {kind: ActionEvent, action, tool_name, tool_call_id} and {kind: ObservationEvent,
observation, action_id}. A benchmark's row adds `instance`, `instruction`, `test_result.git_patch` and, once evaluated,
a report. The patch in `instance` is the benchmark's answer, never the agent's, and is not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rune.corpus import conversation, dataset_row, statement
from rune.corpus.edits import Call
from rune.corpus.session import Session, Step, instance_of, proved, text_field
from rune.errors import DataError

NAME = "OpenHands events"

_HISTORIES = ("history", "trajectory", "events")
_NOT_THE_TOOLS = {"thought", "security_risk", "is_confirmed", "confirmation_state", "impl_source", "hidden", "kind"}
_NOT_THE_TOOLS |= {"blocking", "keep_prompt", "is_static", "is_input", "translated_ipython_code", "timeout", "reset"}
_NOT_THE_TOOLS |= {"include_extra", "kernel_init_code", "view_range", "start", "end", "summary"}


def event(value: Any) -> bool:
    """Whether a value is one event, of either kind."""
    if not isinstance(value, Mapping) or "role" in value:
        return False
    kind = value.get("kind")
    if isinstance(kind, str) and kind.endswith(("Event", "Observation", "Condensation", "CondensationRequest")):
        return True
    before = isinstance(value.get("action"), str) and ("args" in value or "source" in value)
    return before or (isinstance(value.get("observation"), str) and bool({"content", "extras", "cause"} & set(value)))


def claims(record: Any) -> bool:
    """A list of events or pairs of them, or an object with one; a benchmark's row also if its history is empty."""
    if isinstance(record, list):
        return bool(record) and all(map(event, _flat(record)))
    if not isinstance(record, dict) or "messages" in record:
        return False
    for name in _HISTORIES:
        turns = record.get(name)
        if isinstance(turns, list) and turns:
            flat = _flat(turns)
            return bool(flat) and event(flat[0])
    return "history" in record and bool({"test_result", "instruction"} & set(record))


def read(record: Any, where: str, name: str) -> Sequence[Session]:
    """Raises DataError naming the field."""
    given: Mapping[str, Any] = record if isinstance(record, Mapping) else {}
    field = next((n for n in _HISTORIES if n in given), "events")
    events = _flat(conversation.messages_of(given, field, where) if given else record)
    for number, one in enumerate(events):
        if not event(one):
            raise DataError(f"{where}: field '{field}[{number}]': expected an event with action or observation")
    _, problem = text_field(given, "instance.problem_statement", "problem_statement", where=where)
    _, instruction = text_field(given, "instruction", where=where)
    patch_field, patch = text_field(given, *dataset_row.PATCHES[1:], where=where)
    task = given.get("instance_id")
    return [
        Session(
            task=task if isinstance(task, str) and task.strip() else name,
            prompt=problem or statement.find(instruction or _asked(events)),
            steps=tuple(_steps(events, where, field)),
            patch=patch,
            patch_field=patch_field or "test_result.git_patch",
            resolved=proved(given, *dataset_row.VERDICTS, where=where),
            repo=instance_of(given, where=where),
        )
    ]


def _flat(turns: Sequence[Any]) -> list[Any]:
    """Pairs of action and observation laid in a row."""
    if turns and all(isinstance(turn, list) for turn in turns):
        return [one for pair in turns for one in pair if one]
    return list(turns)


def _asked(events: Sequence[Mapping[str, Any]]) -> str:
    """The user's first message."""
    for one in events:
        if one.get("source") != "user":
            continue
        message = one.get("llm_message")
        if isinstance(message, Mapping):
            return conversation.text_of(message.get("content"))
        arguments = one.get("args")
        if one.get("action") == "message" and isinstance(arguments, Mapping):
            return conversation.text_of(arguments.get("content"))
    return ""


def _steps(events: Sequence[Mapping[str, Any]], where: str, field: str) -> list[Step]:
    found: list[Step] = []
    by_id: dict[str, int] = {}
    for number, one in enumerate(events):
        if one.get("source") == "user" or one.get("action") in ("message", "system", "recall", "think", "null"):
            continue
        place = f"{where}: field '{field}[{number}]'"
        if call := _call(one, place):
            for identity in (one.get("id"), one.get("tool_call_id")):
                if isinstance(identity, (str, int)):
                    by_id[str(identity)] = len(found)
            found.append(Step(call, ""))
        elif found and (answer := _answer(one)):
            text, failed = answer
            to = next(
                (str(v) for v in (one.get("action_id"), one.get("cause"), one.get("tool_call_id")) if v is not None), ""
            )
            target = by_id.get(to, len(found) - 1)
            before = found[target]
            said = "\n".join(t for t in (before.observation, text) if t.strip())
            found[target] = Step(before.call, said, before.failed or failed)
    return found


def _call(one: Mapping[str, Any], where: str) -> Call | None:
    action = one.get("action")
    if isinstance(action, Mapping):  # the SDK's
        name, arguments = one.get("tool_name"), action
    elif isinstance(action, str):
        metadata = one.get("tool_call_metadata")
        name = (metadata.get("function_name") if isinstance(metadata, Mapping) else None) or action
        arguments = one.get("args", {k: v for k, v in one.items() if k in ("command", "path", "content", "code")})
    else:
        return None
    if not isinstance(arguments, Mapping):
        raise DataError(f"{where}: field 'args': expected an object, found {type(arguments).__name__}")
    kept = {k: v for k, v in arguments.items() if k not in _NOT_THE_TOOLS and v not in (None, "")}
    if action == "run_ipython":
        name = "ipython"
    if action == "read":
        name, kept = "read", {k: v for k, v in kept.items() if k == "path"}
    return Call(str(name or "tool"), kept)


def _answer(one: Mapping[str, Any]) -> tuple[str, bool] | None:
    """(text, whether it is an error) of an observation of either kind."""
    observation = one.get("observation")
    if isinstance(observation, Mapping):
        text = conversation.text_of(observation.get("content", observation.get("output", "")))
        return text, observation.get("is_error") is True
    if isinstance(observation, str):
        return conversation.text_of(one.get("content")), observation == "error"
    if isinstance(one.get("error"), str):  # AgentErrorEvent
        return one["error"], True
    return None
