"""SWE-agent's .traj, all versions, and SWE-smith's, which it wrote.

0.x: `trajectory` (action, observation, state), `history`, `info.submission`; 1.x adds `replay_config` with the
problem statement; demonstrations hold `history` alone. The tests' verdict is not SWE-agent's to give: `resolved` stands
at the top or in `info` where somebody added it.

The retrying agent (1.1) keeps every try in `attempts`, each with its own trajectory, history, info and replay_config,
and repeats the one that it handed in at the top, with its number as `info.best_attempt_idx`. Until it has chosen, the
file holds `attempts` alone, also where the run was stopped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rune.corpus import conversation, files, statement
from rune.corpus.edits import Call
from rune.corpus.session import Session, Step, instance_of, proved, text_field
from rune.errors import DataError

NAME = "SWE-agent .traj"


def claims(record: Any) -> bool:
    """`trajectory` as actions and observations, or a `history` of messages, and not what Nebius or OpenHands add."""
    if not isinstance(record, dict):
        return False
    if not {"trajectory", "history"} & set(record):
        return bool(tries(record)) and not {"trajectory_id", "messages"} & set(record)
    if {"generated_patch", "model_patch", "target", "test_result", "instruction"} & set(record):
        return False
    turns = record.get("trajectory", record.get("history"))
    first = turns[0] if isinstance(turns, list) and turns and isinstance(turns[0], Mapping) else {}
    if "trajectory" in record:
        return "role" not in first and not {"source", "cause", "kind"} & set(first) and not isinstance(turns, str)
    return not {"source", "args", "extras", "kind"} & set(first) or "role" in first


def tries(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The tries of the retrying agent, or none."""
    given = record.get("attempts")
    if not isinstance(given, list) or not all(isinstance(t, Mapping) and "trajectory" in t for t in given):
        return []
    return given


def read(record: Any, where: str, name: str) -> Sequence[Session]:
    """One session, or one a try of the retrying agent, equal ones once. Raises DataError naming the field."""
    given = tries(record)
    if not given:
        return [_session(record, where, name)]
    common = {k: v for k, v in record.items() if k in ("instance_id", "replay_config", "environment")}
    sessions = [_session({**common, **t}, f"{where}: attempts[{i}]", name) for i, t in enumerate(given)]
    # The verdict of the whole is that of the try which was handed in.
    said = proved(record, "resolved", "info.resolved", where=where)
    info = _info(record)
    best, patch = info.get("best_attempt_idx"), text_field(info, "submission", where=f"{where}: info")[1]
    numbered = isinstance(best, int) and not isinstance(best, bool)
    kept: list[Session] = []
    for number, one in enumerate(sessions):
        chosen = number == best if numbered else bool(patch) and one.patch == patch
        session = _with(one, said) if chosen else one
        if session not in kept:
            kept.append(session)
    return kept


def _with(session: Session, resolved: bool | None) -> Session:
    return session if resolved is None else replace(session, resolved=session.resolved or resolved)


def _session(record: Mapping[str, Any], where: str, name: str) -> Session:
    info = _info(record)
    if "trajectory" in record:
        turns = conversation.messages_of(record, "trajectory", where)
        steps = [_step(turn, f"{where}: trajectory[{i}]") for i, turn in enumerate(turns)]
        history = conversation.messages_of(record, "history", where) if "history" in record else []
        field, patch = text_field(info, "submission", where=f"{where}: info")
    else:
        history = conversation.messages_of(record, "history", where)
        steps = conversation.steps(history, where, "history")
        field, patch = text_field(info, "submission", where=f"{where}: info")
    replayed = _replay_config(record)
    problem = replayed.get("problem_statement")
    given = problem.get("text") if isinstance(problem, Mapping) else None
    prompt = given if isinstance(given, str) and given.strip() else statement.find(conversation.first_request(history))
    named = problem.get("id") if isinstance(problem, Mapping) else None
    ids = (record.get("instance_id"), info.get("instance_id"), named if "__" in str(named) else None)
    task = next((v for v in ids if isinstance(v, str) and v), "")
    return Session(
        task=task or re.split(r"__install-\d+__", name)[-1],  # 0.x writes its settings before the id
        prompt=prompt,
        steps=tuple(steps),
        patch=patch,
        patch_field=f"info.{field}",
        resolved=proved(record, "resolved", "info.resolved", where=where),
        repo=instance_of({**record, "replay_config": replayed}, where=where),
    )


def _info(record: Mapping[str, Any]) -> Mapping[str, Any]:
    info = record.get("info")
    return info if isinstance(info, Mapping) else {}


def _replay_config(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """1.0 writes it as JSON text, 1.1 as an object."""
    given = record.get("replay_config")
    if isinstance(given, str):
        try:
            given = files.parse(given)
        except ValueError:
            return {}
    return given if isinstance(given, Mapping) else {}


def _step(turn: Any, where: str) -> Step:
    if not isinstance(turn, Mapping):
        raise DataError(f"{where}: expected an object with action and observation, found {type(turn).__name__}")
    for field in ("action", "observation"):
        if field not in turn:
            raise DataError(f"{where}: field '{field}' is missing")
        if not isinstance(turn[field], str):
            raise DataError(f"{where}: field '{field}': expected text, found {type(turn[field]).__name__}")
    return Step(Call("bash", {"command": turn["action"]}), turn["observation"])
