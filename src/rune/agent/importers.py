"""Trajectories made elsewhere → our records, checked line by line.

Read: our own JSONL; SWE-agent and SWE-smith `.traj` files; SWE-smith's chat JSONL; mini-swe-agent's
`.traj.json`; SWE-bench style instances (JSONL with `problem_statement` and `patch`).

An agent's trajectory becomes attempts by its code edits: an edit is an attempt, and what the environment said
until the next edit is its error. A submitted patch counts as passing only if the file says that its tests did
(`resolved`); without such a word it is kept as an attempt of kind "Unverified", and the trajectory has no
solution. An instance's own patch is its benchmark's verified answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rune import prompts, store
from rune.config import digest
from rune.errors import DataError
from rune.types import Attempt, Outcome, Trajectory

ERROR_CHARS = 1000  # kept of what the environment answered to one edit
PROMPT_CHARS = 8000  # kept of a problem statement

_EDIT = re.compile(
    r"^\s*(edit\b|insert\b|str_replace_editor\s+(create|str_replace|insert)\b)"  # SWE-agent's and Anthropic's tools
    r"|\bsed\s+(-\w+\s+)*-i|\bcat\s+<<|\bcat\s*>|\btee\s|\bgit\s+apply|\bpatch\s+-p|\bapply_patch\b",
)
_BLOCK = re.compile(r"```(?:mswea_bash_command|bash|sh)\n(.*?)\n```", re.DOTALL)
_CALL = re.compile(r"<function=(\w+)>\s*(.*?)\s*</function>", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=(\w+)>(.*?)</parameter>", re.DOTALL)
# The last line of a traceback, pytest's too; not a name in a file that was shown.
_EXCEPTION = re.compile(
    r"^(?:E\s+|- E\d+ )?(?:\w+\.)*([A-Z]\w*(?:Error|Exception|Interrupt))\b\s*(?::|$)", re.MULTILINE
)
_STATEMENT = re.compile(
    r"(?:ISSUE:|<pr_description>|solve this issue:)\s*(.*?)(?:</pr_description>|INSTRUCTIONS:|\Z)", re.DOTALL
)


class Step(NamedTuple):
    """One turn of an agent."""

    action: str
    observation: str


def read(path: Path) -> list[Trajectory]:
    """All trajectories of a file. Raises DataError that names file, line and field."""
    if path.name.endswith((".traj", ".traj.json")):
        return [_agent_file(path)]
    found: list[Trajectory] = []
    lines: dict[str, int] = {}
    for number, raw in store.read_lines(path):
        where = f"{path}:{number}"
        trajectory = _line(raw, path, where)
        first = lines.setdefault(trajectory.trajectory_id, number)
        if first != number:
            raise DataError(f"{where}: field 'trajectory_id' repeats line {first}; each line needs its own")
        found.append(trajectory)
    if not found:
        raise DataError(f"{path}: holds no trajectory")
    return found


def _line(raw: Any, path: Path, where: str) -> Trajectory:
    if isinstance(raw, Mapping) and "problem_statement" in raw:
        return _instance(raw, path, where)
    if isinstance(raw, Mapping) and "messages" in raw:
        task = _text(raw, "instance_id", where)
        steps = list(_from_messages(_list(raw, "messages", where), where))
        return _trajectory(
            task, _first_user(raw["messages"]), steps, "", resolved=bool(raw.get("resolved")), path=path, where=where
        )
    return check(store.decode(Trajectory, raw, where=where), where)


def check(trajectory: Trajectory, where: str) -> Trajectory:
    """What types alone do not say. Raises DataError naming the field."""
    for name in ("trajectory_id", "task_id", "benchmark", "prompt"):
        if not getattr(trajectory, name).strip():
            raise DataError(f"{where}: field '{name}' is empty")
    if not trajectory.attempts:
        raise DataError(f"{where}: field 'attempts' is empty; a trajectory holds at least one")
    for number, attempt in enumerate(trajectory.attempts):
        if attempt.outcome is not Outcome.PASSED and not (attempt.error_kind or attempt.error):
            raise DataError(f"{where}: field 'attempts[{number}].error' is empty though the attempt failed")
        if attempt.outcome is Outcome.PASSED and number + 1 < len(trajectory.attempts):
            raise DataError(f"{where}: field 'attempts[{number}].outcome' is passed, but attempts follow it")
    last = trajectory.attempts[-1]
    if trajectory.solution and (last.outcome is not Outcome.PASSED or last.code != trajectory.solution):
        raise DataError(f"{where}: field 'solution' is not the code of a passing last attempt")
    if not trajectory.solution and last.outcome is Outcome.PASSED:
        raise DataError(f"{where}: field 'solution' is empty though the last attempt passed")
    return trajectory


# --------------------------------------------------------------------------- agents' files


def _agent_file(path: Path) -> Trajectory:
    raw = store.read_json(path)
    if isinstance(raw, list):  # mini-swe-agent's first format: the messages alone
        raw = {"messages": raw}
    if not isinstance(raw, Mapping):
        raise DataError(f"{path}:1: expected an object or a list of messages, found {type(raw).__name__}")
    where = f"{path}:1"
    given = raw.get("info")
    info: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    if "trajectory" in raw:
        steps = [
            Step(_text(s, "action", f"{where}: trajectory[{i}]"), _text(s, "observation", f"{where}: trajectory[{i}]"))
            for i, s in enumerate(_list(raw, "trajectory", where))
        ]
        first = _first_user(_list(raw, "history", where))
    elif "messages" in raw:
        messages = _list(raw, "messages", where)
        steps, first = list(_from_messages(messages, where)), _first_user(messages)
    elif "history" in raw:  # SWE-agent's demonstrations
        history = _list(raw, "history", where)
        steps, first = list(_from_messages(history, where)), _first_user(history)
    else:
        raise DataError(f"{where}: neither field 'trajectory' (SWE-agent) nor 'messages' (mini-swe-agent) is there")
    stem = re.split(r"__install-\d+__", path.name.partition(".traj")[0])[-1]  # SWE-agent writes its settings first
    task = str(raw.get("instance_id") or info.get("instance_id") or stem)
    patch = str(info.get("submission") or "").replace("\r\n", "\n").strip()
    resolved = bool(raw.get("resolved") or info.get("resolved"))
    return _trajectory(task, first, steps, patch, resolved=resolved, path=path, where=where)


def _trajectory(
    task: str, prompt: str, steps: list[Step], patch: str, *, resolved: bool, path: Path, where: str
) -> Trajectory:
    attempts = _attempts(steps)
    if patch:
        attempts.append(Attempt(code=patch, outcome=Outcome.FAILED, error_kind="Unverified", error=_UNVERIFIED))
    if not attempts:
        raise DataError(f"{where}: no code edit and no submission in it; there is nothing to learn from")
    if resolved:
        attempts[-1] = replace(attempts[-1], outcome=Outcome.PASSED, error_kind="", error="")
    task_id, benchmark = _identity(task)
    return check(
        Trajectory(
            trajectory_id=digest([task_id, prompt, attempts])[:16],
            task_id=task_id,
            benchmark=benchmark,
            prompt=prompts.truncate(prompt, PROMPT_CHARS),
            attempts=tuple(attempts),
            solution=attempts[-1].code if resolved else "",
            category="repository",
            source=f"imported:{path.name}",
        ),
        where,
    )


_UNVERIFIED = "The agent submitted this patch; the file does not say whether its tests passed."


def _identity(task: str) -> tuple[str, str]:
    """(task id, benchmark). A HumanEvalFix task is recognised, so that the exclusion list can refuse it."""
    if match := re.search(r"humanevalfix-python-(\d+)", task, re.IGNORECASE):
        return f"HumanEvalFix/{match[1]}", "humanevalfix"
    return task, "swe"


def _attempts(steps: list[Step]) -> list[Attempt]:
    """Edits with what followed them, until the next edit, as their error."""
    found: list[tuple[str, list[str]]] = []
    for step in steps:
        if _EDIT.search(step.action):
            found.append((step.action.strip(), []))
        if found and step.observation.strip():
            found[-1][1].append(step.observation.replace("\r\n", "\n").strip())
    attempts = []
    for code, said in found:
        text = prompts.truncate("\n".join(said), ERROR_CHARS) or "(no output)"
        kinds = _EXCEPTION.findall("\n".join(said))
        kind = kinds[-1] if kinds else "Superseded"
        attempts.append(Attempt(code=code, outcome=Outcome.FAILED, error_kind=kind, error=text))
    return attempts


def _from_messages(messages: list[Any], where: str) -> Iterator[Step]:
    """Turns of a chat: a bash block or an XML call in the assistant's message, then the answer to it."""
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise DataError(f"{where}: field 'messages[{number}].role' is missing")
        if message["role"] != "assistant":
            continue
        text = _content(message)
        blocks = _BLOCK.findall(text)
        calls = [_command(name, body) for name, body in _CALL.findall(text)]
        calls += [message["action"]] if isinstance(message.get("action"), str) else []
        following = messages[number + 1] if number + 1 < len(messages) else {}
        yield Step("\n".join([*calls, *blocks]), _content(following) if isinstance(following, Mapping) else "")


def _command(name: str, body: str) -> str:
    """An XML call as a command line, the way SWE-agent's own `action` field writes it."""
    given = dict(_PARAMETER.findall(body))
    command = given.pop("command", "").strip()
    rest = " ".join(f"--{k} {v.strip()}" if k != "path" else v.strip() for k, v in given.items())
    return f"{name} {command} {rest}".strip() if name != "bash" else command


def _first_user(messages: list[Any]) -> str:
    """The problem statement: out of the first user message that is no demonstration."""
    for message in messages:
        if isinstance(message, Mapping) and message.get("role") == "user" and not message.get("is_demo"):
            text = _content(message).replace("\r\n", "\n")
            match = _STATEMENT.search(text)
            return (match[1] if match else text).strip()
    return ""


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return str(content)


def _instance(raw: Mapping[str, Any], path: Path, where: str) -> Trajectory:
    task, statement, patch = (_text(raw, name, where) for name in ("instance_id", "problem_statement", "patch"))
    return check(
        Trajectory(
            trajectory_id=digest([task, patch])[:16],
            task_id=task,
            benchmark="swe",
            prompt=prompts.truncate(statement, PROMPT_CHARS),
            attempts=(Attempt(code=patch, outcome=Outcome.PASSED),),
            solution=patch,
            category="repository",
            source=f"imported:{path.name}",
        ),
        where,
    )


def _text(raw: Any, name: str, where: str) -> str:
    if not isinstance(raw, Mapping) or name not in raw:
        raise DataError(f"{where}: field '{name}' is missing")
    if not isinstance(raw[name], str):
        raise DataError(f"{where}: field '{name}': expected text, found {json.dumps(raw[name], default=str)[:40]}")
    return str(raw[name])


def _list(raw: Mapping[str, Any], name: str, where: str) -> list[Any]:
    if not isinstance(raw.get(name), list):
        raise DataError(f"{where}: field '{name}' is missing or no list")
    return list(raw[name])
