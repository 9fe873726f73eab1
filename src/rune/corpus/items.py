"""Items of OpenAI's Responses API, as its Agents SDK and Codex keep them → messages that `conversation` reads.

A call of any of its tools becomes a `function_call`, an answer a `function_call_output`; thoughts, searches and
settings are no part of the talk. Everything else (messages) stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CALLS = {"function_call", "custom_tool_call", "local_shell_call", "shell_call", "apply_patch_call"}
ANSWERS = {f"{call}_output" for call in CALLS}
# What neither says nor changes anything here: the provider runs these itself, or keeps them for itself.
_SILENT = {
    "reasoning", "compaction", "compaction_trigger", "item_reference", "additional_tools", "configuration_update",
    "file_search_call", "web_search_call", "tool_search_call", "tool_search_output", "image_generation_call",
    "computer_call", "computer_call_output", "code_interpreter_call", "program", "program_output",
    "mcp_list_tools", "mcp_approval_request", "mcp_approval_response", "mcp_call",
}  # fmt: skip
_VERBS = {"create_file": "Add", "update_file": "Update", "delete_file": "Delete"}


def message(item: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The item as a message; None for one that is no part of the talk."""
    kind = item.get("type")
    if not isinstance(kind, str):
        return item
    if kind in _SILENT:
        return None
    identity = item.get("call_id") or item.get("id")
    if kind in ANSWERS:
        failed = kind == "apply_patch_call_output" and item.get("status") == "failed"
        output = _said(item.get("output")) if kind == "shell_call_output" else item.get("output")
        return {"type": "function_call_output", "call_id": identity, "output": output, "failed": failed}
    if kind not in CALLS:
        return item
    if kind == "function_call":
        return {**item, "call_id": identity}
    name, given = _call(kind, item)
    return {"type": "function_call", "call_id": identity, "name": name, "arguments": given}


def _call(kind: str, item: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(tool, arguments) of a call that is no function's."""
    if kind == "custom_tool_call":
        return item.get("name"), {"input": item.get("input")}
    if kind == "apply_patch_call":
        return "apply_patch", {"input": _patch(item.get("operation"))}
    action = item.get("action")
    if not isinstance(action, Mapping):
        return "shell", {}
    commands = action.get("commands")
    if isinstance(commands, list):  # scripts, one after the other; `command` is one argument vector
        return "shell", {"command": "\n".join(c for c in commands if isinstance(c, str))}
    return "shell", {"command": action.get("command")}


def _patch(operation: Any) -> str:
    """An operation on one file as the patch that it is a part of."""
    given = operation if isinstance(operation, Mapping) else {}
    path, diff, verb = given.get("path"), given.get("diff"), _VERBS.get(str(given.get("type")))
    if not verb or not isinstance(path, str):
        return ""
    lines = ["*** Begin Patch", f"*** {verb} File: {path}"]
    if isinstance(given.get("move_to"), str):
        lines.append(f"*** Move to: {given['move_to']}")
    if isinstance(diff, str) and verb != "Delete":
        lines.append(diff.rstrip("\n"))
    return "\n".join([*lines, "*** End Patch"])


def _said(output: Any) -> Any:
    """What the commands of a shell call printed; an exit code that is not 0 is said after it."""
    if not isinstance(output, list):
        return output
    lines = []
    for one in output:
        given = one if isinstance(one, Mapping) else {}
        lines += [text for k in ("stdout", "stderr") if isinstance(text := given.get(k), str) and text.strip()]
        outcome = given.get("outcome")
        if isinstance(outcome, Mapping) and outcome.get("type") == "timeout":
            lines.append("timed out")
        elif isinstance(outcome, Mapping) and outcome.get("exit_code"):
            lines.append(f"exit code {outcome['exit_code']}")
    return "\n".join(line.strip("\n") for line in lines)
