"""Inputs of our own in every format, each with what a person who reads it finds: attempts, outcome, task.

Shapes follow the tools' source and the data sets' cards; `real/` and the shared data hold files that the tools wrote.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Sample(NamedTuple):
    record: Any  # one JSON value, or the list of all lines of a file
    kinds: tuple[str, ...]  # error_kind of each attempt, "" for the one that passed
    solution: str = ""  # a part of it; "" for none
    task: str = "demo__calc-1"
    prompt: str = "half(3) should be 1.5"
    lines: bool = False  # `record` is the lines of one file


ISSUE = "half(3) should be 1.5"
PATCH = (
    "diff --git a/calc.py b/calc.py\n--- a/calc.py\n+++ b/calc.py\n@@ -1,2 +1,2 @@\n def half(x):\n"
    "-    return x // 2\n+    return x / 2\n"
)
SED = "sed -i 's#x // 2#x / 2#' calc.py"
WRONG = "sed -i 's#x // 2#x / 3#' calc.py && python t.py"
FAILED = 'Traceback (most recent call last):\n  File "t.py", line 2\nAssertionError: 1.0'
UPLOADED = (
    "<uploaded_files>\n/r\n</uploaded_files>\nI've uploaded a repository. Consider the following PR description:\n\n"
    f"<pr_description>\n{ISSUE}\n</pr_description>\n\nCan you help me?\nFollow these steps:\n1. sed -i 's/a/b/' f"
)
MINI = (
    f"Please solve this issue: {ISSUE}\n\nYou can execute bash commands and edit files.\n\n"
    "## Recommended Workflow\n1. Look"
)
SWE_AGENT = (
    f"We're currently solving the following issue.\nISSUE:\n{ISSUE}\n\nINSTRUCTIONS:\nNow, edit 1:1 what you want."
)


def system() -> dict[str, Any]:
    return {"role": "system", "content": "You are a helpful assistant. To edit, run `sed -i` or `cat > f <<EOF`."}


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def xml(name: str, **given: str) -> dict[str, Any]:
    inside = "\n".join(f"<parameter={k}>{v}</parameter>" for k, v in given.items())
    return assistant(f"Let me see.\n\n<function={name}>\n{inside}\n</function>")


def block(command: str, language: str = "bash") -> dict[str, Any]:
    return assistant(f"THOUGHT: next\n\n```{language}\n{command}\n```")


def call(identity: str, name: str, **given: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(given)}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": identity, "type": "function", "function": function}],
    }


def tool(identity: str, text: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": identity, "content": text}


def replaced(old: str = "x // 2", new: str = "x / 2") -> dict[str, str]:
    return {"command": "str_replace", "path": "/r/calc.py", "old_str": old, "new_str": new}


XML_CHAT = [
    system(),
    user(UPLOADED),
    xml("str_replace_editor", command="view", path="/r/calc.py"),
    user("OBSERVATION:\n1\tdef half(x):"),
    xml("str_replace_editor", **replaced(new="x / 3")),
    user("OBSERVATION:\nThe file has been edited."),
    xml("bash", command="cd /r && python t.py"),
    user(f"OBSERVATION:\n{FAILED}"),
    xml("str_replace_editor", **replaced("x / 3", "x / 2")),
    user("OBSERVATION:\nThe file has been edited."),
    xml("submit"),
]
TOOL_CHAT = [
    system(),
    user(UPLOADED),
    call("c1", "str_replace_editor", **replaced()),
    tool("c1", [{"type": "text", "text": "The file has been edited."}]),
    call("c2", "execute_bash", command="cd /r && python t.py"),
    tool("c2", "ok"),
    call("c3", "finish"),
]
SCRATCH_CHAT = [
    user(UPLOADED),
    call("c1", "str_replace_editor", **replaced()),
    tool("c1", "edited"),
    call("c2", "str_replace_editor", command="create", path="/r/edge.py", file_text="import calc\nprint(calc.half(3))"),
    tool("c2", "File created successfully at: /r/edge.py"),
    call("c3", "execute_bash", command="python /r/edge.py && rm /r/edge.py"),
    tool("c3", "1.5"),
]


def item(kind: str, identity: str, **given: Any) -> dict[str, Any]:
    """An item of OpenAI's Responses API."""
    return {"type": kind, "id": f"it_{identity}", "call_id": identity, **given}


def printed(text: str, code: int = 0, kind: str = "exit") -> dict[str, Any]:
    """What one command of a shell call printed."""
    return {"stdout": text, "stderr": "", "outcome": {"type": kind, "exit_code": code}}


def diff_of(kind: str, path: str, diff: str = "", **given: Any) -> dict[str, Any]:
    """What an `apply_patch_call` asks for."""
    return {"type": kind, "path": path, **({"diff": diff} if diff else {}), **given}


HALVED = "@@ def half(x):\n-    return x // 2\n+    return x / 2\n"
ITEMS = [
    user(ISSUE),
    {"type": "reasoning", "id": "rs", "summary": []},
    item("shell_call", "a", action={"commands": ["cat calc.py", "ls"]}),
    item("shell_call_output", "a", output=[printed("def half(x):"), printed("calc.py")]),
    # Two calls at once; the answer to the second comes first.
    item("apply_patch_call", "b", operation=diff_of("update_file", "calc.py", HALVED.replace("x / 2", "x / y"))),
    item("apply_patch_call", "c", operation=diff_of("create_file", "t.py", "+import calc\n+calc.half(3)\n")),
    item("apply_patch_call_output", "c", output="Created\nImportError: t", status="completed"),
    item("apply_patch_call_output", "b", output="Updated\nNameError: y", status="completed"),
    {"type": "web_search_call", "id": "w", "action": {"query": "sed -i"}},
    item("apply_patch_call", "d", operation=diff_of("update_file", "calc.py", HALVED)),
    item("apply_patch_call_output", "d", output="Invalid Context", status="failed"),
    item("shell_call", "e", action={"commands": ["sed -i 's#/ y#/ 2#' calc.py", "python t.py"]}),
    item("shell_call_output", "e", output=[printed(""), printed("", kind="timeout")]),
    item("apply_patch_call", "f", operation=diff_of("delete_file", "t.py")),
    item("apply_patch_call_output", "f", output="Deleted", status="completed"),
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Done."}]},
]


def responses(*answers: tuple[str, str]) -> dict[str, Any]:
    """AutoGen's answer to all calls of a turn; its own text is all of theirs."""
    each = [{"tool_call_id": i, "role": "tool", "content": text} for i, text in answers]
    text = "\n\n".join(text for _, text in answers)
    return {"role": "tool", "name": "runner", "content": text, "tool_responses": each}


def calls(*given: tuple[str, str]) -> dict[str, Any]:
    """Several shell calls of one turn."""
    made = [call(identity, "run_shell", command=command)["tool_calls"][0] for identity, command in given]
    return {"role": "assistant", "content": None, "tool_calls": made}


# The chat as the agent keeps it who asked: its request is the "assistant"'s, the other's words are a "user"'s.
ASKERS = [
    {"role": "assistant", "name": "runner", "content": ISSUE},
    calls(("a", WRONG), ("b", "printf 'import calc' > more.py && python more.py")),
    responses(("a", FAILED), ("b", "ImportError: more")),
    calls(("c", SED)),
    responses(("c", "")),
    {"role": "user", "name": "writer", "content": "half(3) is 1.5. TERMINATE"},
]


def inspected(identity: str, error: dict[str, str] | None = None, text: str = "", **given: Any) -> list[dict[str, Any]]:
    """A call and its answer as Inspect's logs have them."""
    made = {"id": identity, "function": "bash", "arguments": given, "type": "function"}
    answer = {"role": "tool", "tool_call_id": identity, "function": "bash", "content": text}
    return [{"role": "assistant", "content": "", "tool_calls": [made]}, answer | ({"error": error} if error else {})]


def columns(message: dict[str, Any]) -> dict[str, Any]:
    """A message with every column of the data set, as parquet gives it."""
    empty = dict.fromkeys(("content", "function_call", "name", "role", "tool_call_id", "tool_calls"))
    return {**empty, **message}


BEGIN_PATCH = (
    "*** Begin Patch\n*** Update File: calc.py\n@@\n def half(x):\n-    return x // 2\n+    return x / 3\n*** End Patch"
)
TRIED = json.dumps({"cmd": "python t.py", "workdir": "/r"})
HEAD = "Chunk ID: 1\nWall time: 0.1 seconds\nProcess exited with code 0\nOriginal token count: 9\nOutput:\n"


def rollout(kind: str, /, **payload: Any) -> dict[str, Any]:
    """A line of a Codex session."""
    return {"timestamp": "2026-11-28T00:00:00Z", "type": kind, "payload": payload}


def action(identity: int, kind: str, **arguments: Any) -> dict[str, Any]:
    return {"id": identity, "timestamp": "2025-01-01T00:00:00", "source": "agent", "message": "…", "action": kind} | {
        "args": {**arguments, "thought": "next", "security_risk": None, "is_confirmed": "confirmed"}
    }


def observation(identity: int, kind: str, content: str, cause: int) -> dict[str, Any]:
    return {"id": identity, "source": "agent", "cause": cause, "observation": kind, "content": content, "extras": {}}


def asked(text: str = ISSUE) -> dict[str, Any]:
    return {"id": 0, "source": "user", "action": "message", "args": {"content": text, "image_urls": None}}


EVENTS = [
    asked(UPLOADED),
    action(1, "run", command="cat calc.py"),
    observation(2, "run", "def half(x):", 1),
    action(3, "edit", path="/r/calc.py", command="str_replace", old_str="x // 2", new_str="x / 3", start=1, end=-1),
    observation(4, "edit", "The file /r/calc.py has been edited.", 3),
    action(5, "run", command="python t.py"),
    observation(6, "run", FAILED, 5),
    action(7, "run_ipython", code="edit_file_by_replace('calc.py', to_replace='x / 3', new_content='x / 2')"),
    observation(8, "run_ipython", "[File updated]", 7),
    action(9, "finish", outputs={}),
]


def sdk_action(identity: str, name: str, kind: str, **given: Any) -> dict[str, Any]:
    return {
        "id": identity,
        "source": "agent",
        "kind": "ActionEvent",
        "tool_name": name,
        "tool_call_id": f"t{identity}",
    } | {"action": {"kind": kind, **given}}


def sdk_answer(identity: str, to: str, text: str, *, error: bool = False) -> dict[str, Any]:
    content = [{"type": "text", "text": text, "cache_prompt": False}]
    return {"id": identity, "source": "environment", "kind": "ObservationEvent", "action_id": to} | {
        "observation": {"kind": "Observation", "content": content, "is_error": error}
    }


SDK_EVENTS = [
    {"id": "s", "source": "agent", "kind": "SystemPromptEvent", "system_prompt": {"type": "text", "text": "sed -i"}},
    {
        "id": "u",
        "source": "user",
        "kind": "MessageEvent",
        "llm_message": {"role": "user", "content": [{"text": ISSUE}]},
    },
    sdk_action("a", "file_editor", "FileEditorAction", **replaced()),
    sdk_answer("b", "a", "No replacement was performed", error=True),
    sdk_action("c", "terminal", "TerminalAction", command="perl -pi -e 's#//#/#' calc.py", is_input=False),
    sdk_answer("d", "c", ""),
]


def nebius(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    first = {"role": "system", "system_prompt": "SETTING: …", "text": None, "mask": False, "cutoff_date": "01.01.2023"}
    rest = [{"role": r, "text": t, "system_prompt": None, "mask": r == "ai", "cutoff_date": None} for r, t in turns]
    return [first, *rest]


NEBIUS = nebius(
    ("user", SWE_AGENT),
    ("ai", "Look first.\n\n```\nopen calc.py 1\n```"),
    ("user", "[File: /r/calc.py (2 lines total)]"),
    ("ai", "Now edit.\n\n```\nedit 2:2\n    return x / 3\nend_of_edit\n```"),
    ("user", "[File: /r/calc.py (2 lines total)]"),
    ("ai", "Run it.\n\n```\npython t.py\n```"),
    ("user", FAILED),
    ("ai", "Again.\n\n```\nedit 2:2\n    return x / 2\nend_of_edit\n```"),
    ("user", "[File: /r/calc.py (2 lines total)]"),
    ("ai", "Done.\n\n```\nsubmit\n```"),
)


def line(number: int, kind: str, content: Any, **extra: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "uuid": f"u{number}",
        "parentUuid": f"u{number - 1}" if number else None,
        "isSidechain": False,
        "cwd": "/r",
        "sessionId": "5e55-10",
        "version": "2.1.12",
        "timestamp": "2026-01-20T11:57:17.716Z",
        "message": {"role": kind, "content": content},
        **extra,
    }


def use(identity: str, name: str, **given: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": "Next."}, {"type": "tool_use", "id": identity, "name": name, "input": given}]


def result(identity: str, text: str, **extra: Any) -> list[dict[str, Any]]:
    return [{"type": "tool_result", "tool_use_id": identity, "content": text, **extra}]


CLAUDE = [
    {"type": "summary", "summary": "Fix half", "leafUuid": "u9"},
    {"type": "file-history-snapshot", "messageId": "m", "snapshot": {}, "isSnapshotUpdate": False},
    line(0, "user", "<command-name>/clear</command-name>", isMeta=True),
    line(1, "user", f"<system-reminder>sed -i is a command</system-reminder>{ISSUE}"),
    line(2, "assistant", use("t1", "Read", file_path="/r/calc.py")),
    line(3, "user", result("t1", "     1→def half(x):")),
    line(4, "assistant", use("t2", "Edit", file_path="/r/calc.py", old_string="x // 2", new_string="x / 3")),
    line(5, "user", result("t2", "The file /r/calc.py has been updated."), toolUseResult={"filePath": "/r/calc.py"}),
    line(6, "assistant", use("t3", "Bash", command="cd /r && python t.py")),
    line(7, "user", result("t3", FAILED, is_error=True)),
    line(8, "assistant", use("t4", "Edit", file_path="/r/calc.py", old_string="x / 3", new_string="x / 2")),
    line(9, "user", result("t4", "The file /r/calc.py has been updated.")),
    line(10, "assistant", [{"type": "text", "text": "Fixed."}]),
]
OURS = {
    "trajectory_id": "a1",
    "task_id": "mine/1",
    "benchmark": "mine",
    "prompt": ISSUE,
    "attempts": [
        {
            "code": "def half(x): return x // 2",
            "outcome": "failed",
            "error_kind": "WrongAnswer",
            "error": "1 is not 1.5",
        },
        {"code": "def half(x): return x / 2", "outcome": "passed"},
    ],
    "solution": "def half(x): return x / 2",
}
INSTANCE = {"repo": "demo/calc", "instance_id": "demo__calc-1", "base_commit": "0", "problem_statement": ISSUE}
TWO = ("AssertionError", "Superseded")


def step(command: str, answer: str = "") -> dict[str, Any]:
    return {"action": command, "observation": answer, "response": "…", "thought": "…", "state": "{}"}


def mini(messages: list[dict[str, Any]], submission: str = "", **info: Any) -> dict[str, Any]:
    return {"info": {"exit_status": "Submitted", "submission": submission, **info}, "messages": messages}


def actions(identity: str, command: str) -> dict[str, Any]:
    return call(identity, "bash", command=command) | {
        "extra": {"actions": [{"command": command, "tool_call_id": identity}], "cost": 0.1}
    }


SAMPLES: dict[str, list[Sample]] = {
    "ours": [
        Sample(OURS, ("WrongAnswer", ""), "x / 2", "mine/1"),
        Sample(
            OURS | {"attempts": OURS["attempts"][:1], "solution": "", "task_id": "mine/2", "trajectory_id": "a2"},
            ("WrongAnswer",),
            task="mine/2",
        ),
        Sample(
            OURS | {"attempts": OURS["attempts"][1:], "trajectory_id": "a3", "family": "f"}, ("",), "x / 2", "mine/1"
        ),
    ],
    "swe_bench": [
        Sample(INSTANCE | {"patch": PATCH, "test_patch": "diff --git a/t.py b/t.py\n"}, ("",), PATCH[:20]),
        Sample(INSTANCE | {"patch": PATCH, "resolved": False}, ("Unverified",)),
        Sample(INSTANCE | {"patch": PATCH.replace("\n", "\r\n"), "FAIL_TO_PASS": '["t"]'}, ("",), "return x / 2"),
    ],
    "swe_agent": [
        Sample(
            {
                "environment": "swe_main",
                "trajectory": [
                    step("open calc.py\n", "[File: /r/calc.py]"),
                    step("edit 2:2\n    return x / 3\nend_of_edit\n", "[File: /r/calc.py]"),
                    step("python t.py\n", FAILED),
                    step("edit 2:2\n    return x / 2\nend_of_edit\n", "[File: /r/calc.py]"),
                    step("submit\n", PATCH),
                ],
                "history": [system(), user("DEMO edit 1:1") | {"is_demo": True}, user(SWE_AGENT)],
                "info": {"exit_status": "submitted", "submission": f"\n{PATCH}"},
                "instance_id": "demo__calc-1",
            },
            (*TWO, "Unverified"),
        ),
        Sample(
            {
                "trajectory": [
                    step("str_replace_editor str_replace /r/calc.py --old_str 'x // 2' --new_str 'x / 2'", "ok")
                ],
                "history": [],
                "info": {"submission": PATCH, "resolved": True, "instance_id": "demo__calc-1"},
                "replay_config": json.dumps({"problem_statement": {"text": ISSUE, "id": "demo__calc-1"}}),
            },
            ("Superseded", ""),
            PATCH[:20],
        ),
        Sample(
            {
                "history": [
                    system(),
                    user(SWE_AGENT),
                    assistant("I edit.") | {"action": "edit 2:2\n    return x / 2\nend_of_edit", "agent": "main"},
                    {"role": "tool", "content": "File updated.", "tool_call_ids": ["x"]},
                ]
            },
            ("Superseded",),
            task="FILE",
        ),
    ],
    "mini_swe_agent": [
        Sample(
            mini([system(), user(MINI), block(WRONG), user(FAILED), block(SED), user("ok")], PATCH)
            | {"instance_id": "demo__calc-1", "trajectory_format": "mini-swe-agent-1"},
            (*TWO, "Unverified"),
        ),
        Sample(
            mini([user(MINI), actions("c1", WRONG), tool("c1", FAILED), actions("c2", SED), tool("c2", "ok")])
            | {"trajectory_format": "mini-swe-agent-1.1"},
            TWO,
            task="FILE",
        ),
        Sample(
            mini(
                [
                    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": MINI}]},
                    {
                        "object": "response",
                        "output": [
                            {
                                "type": "function_call",
                                "call_id": "c",
                                "name": "bash",
                                "arguments": json.dumps({"command": SED}),
                            }
                        ],
                    },
                    {"type": "function_call_output", "call_id": "c", "output": "<returncode>0</returncode>"},
                    {"role": "exit", "content": PATCH, "extra": {"submission": PATCH}},
                ],
                resolved=1,
            ),
            ("Superseded", ""),
            PATCH[:20],
            "FILE",
        ),
        Sample(
            mini([user(f"DO THIS: {ISSUE}\n\nNow the rules."), block(SED, "mswea_bash_command"), user("ok")])
            | {"info": {"config": {"agent": {"instance_template": "DO THIS: {{task}}\n\nNow the rules."}}}},
            ("Superseded",),
            task="FILE",
        ),
    ],
    "swe_smith": [
        Sample(
            {"instance_id": "demo__calc-1", "messages": XML_CHAT, "resolved": True, "patch": PATCH},
            (*TWO, ""),
            PATCH[:20],
        ),
        Sample(
            {"instance_id": "demo__calc-1", "messages": XML_CHAT, "resolved": False, "patch": PATCH},
            (*TWO, "Unverified"),
        ),
        Sample(
            {"instance_id": "demo__calc-1", "messages": XML_CHAT, "resolved": True}, ("AssertionError", ""), "x / 2"
        ),
        Sample({"instance_id": "demo__calc-1", "messages": json.dumps(XML_CHAT), "traj_id": "x", "model": "m"}, TWO),
        Sample(
            {"instance_id": "demo__calc-1", "messages": [user(UPLOADED), block(SED), user("ok")], "resolved": 1},
            ("",),
            "sed -i",
        ),
    ],
    "swe_gym": [
        Sample(
            {
                "instance_id": "demo__calc-1",
                "run_id": "r",
                "resolved": True,
                "messages": [columns(m) for m in TOOL_CHAT],
            },
            ("",),
            "x / 2",
        ),
        Sample(
            {
                "instance_id": "demo__calc-1",
                "messages": SCRATCH_CHAT,
                "test_result": {"git_patch": PATCH, "report": {"resolved": True}},
            },
            ("Superseded", "Superseded", ""),
            PATCH[:20],
        ),
        Sample(
            {"instance_id": "demo__calc-1", "run_id": "r", "resolved": 1, "messages": SCRATCH_CHAT, "tools": []},
            ("",),
            "x / 2",
        ),
    ],
    "openhands": [
        Sample(
            {
                "instance_id": "demo__calc-1",
                "instruction": UPLOADED,
                "history": EVENTS,
                "instance": {**INSTANCE, "patch": "the benchmark's own"},
                "test_result": {"git_patch": PATCH, "report": {"resolved": True}},
            },
            (*TWO, ""),
            PATCH[:20],
        ),
        Sample(
            {"instance_id": "demo__calc-1", "history": [EVENTS[1:3], EVENTS[3:5]], "instruction": UPLOADED},
            ("Superseded",),
        ),
        Sample(EVENTS, TWO, task="FILE", lines=True),
        Sample(SDK_EVENTS, ("Superseded", "Superseded"), task="FILE", lines=True),
        Sample(
            {"instance_id": "demo__calc-1", "history": SDK_EVENTS, "test_result": {"git_patch": ""}, "resolved": True},
            ("Superseded", ""),
            "perl -pi",
        ),
    ],
    "openhands_completions": [
        Sample(
            {
                "messages": TOOL_CHAT[:-1],
                "response": {"choices": [{"message": TOOL_CHAT[-1]}]},
                "args": [],
                "kwargs": {},
            },
            ("Superseded",),
            task="FILE",
        ),
        Sample(
            {
                "messages": XML_CHAT[:8],
                "response": json.dumps({"choices": [{"message": XML_CHAT[8]}]}),
                "timestamp": 1.0,
            },
            TWO,
            task="FILE",
        ),
        Sample({"messages": TOOL_CHAT, "response": {"id": "x"}, "cost": 0.0}, ("Superseded",), task="FILE"),
    ],
    "nebius": [
        Sample(
            {
                "instance_id": "demo__calc-1",
                "model_name": "m",
                "target": True,
                "trajectory": NEBIUS,
                "exit_status": "submitted",
                "generated_patch": PATCH,
                "eval_logs": "",
            },
            (*TWO, ""),
            PATCH[:20],
        ),
        Sample({"instance_id": "demo__calc-1", "target": False, "trajectory": NEBIUS, "generated_patch": ""}, TWO),
        Sample(
            {
                "instance_id": "demo__calc-1",
                "repo": "demo/calc",
                "trajectory": TOOL_CHAT,
                "model_patch": PATCH,
                "resolved": 1,
            },
            ("Superseded", ""),
            PATCH[:20],
        ),
        Sample(
            {"instance_id": "demo__calc-1", "trajectory": json.dumps(TOOL_CHAT), "model_patch": PATCH, "resolved": 0},
            ("Superseded", "Unverified"),
        ),
    ],
    "chat": [
        Sample(TOOL_CHAT, ("Superseded",), task="FILE", lines=True),
        Sample({"messages": TOOL_CHAT, "id": "talk-1", "tools": []}, ("Superseded",), task="talk-1"),
        Sample(
            {
                "messages": [
                    user(ISSUE),
                    {
                        "role": "assistant",
                        "content": None,
                        "function_call": {
                            "name": "write_file",
                            "arguments": json.dumps({"path": "calc.py", "content": "x"}),
                        },
                    },
                    {"role": "function", "name": "write_file", "content": "SyntaxError: invalid syntax"},
                ]
            },
            ("SyntaxError",),
            task="FILE",
        ),
        Sample(
            [
                user(MINI),
                block(SED),
                user("ok"),
                block("echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT && git diff"),
                user(PATCH),
            ],
            ("Superseded", "Unverified"),
            task="FILE",
            lines=True,
        ),
        Sample(
            [
                user(ISSUE),
                assistant([*use("t", "Write", file_path="calc.py", content="x")]),
                user(result("t", "NameError: x")),
            ],
            ("NameError",),
            task="FILE",
            lines=True,
        ),
        Sample(ITEMS, ("NameError", "ImportError", "Superseded", "Superseded"), task="FILE", lines=True),
        # Without a patch the solution is what stands: not the refused edit, nor the file that was deleted again.
        Sample(
            {"messages": ITEMS, "resolved": True},
            ("NameError", "ImportError", "Superseded", ""),
            "    return x / y\n*** End Patch\nsed -i 's#/ y#/ 2#' calc.py",
            task="FILE",
        ),
        Sample(ASKERS, ("AssertionError", "ImportError", "Superseded"), task="FILE", lines=True),
        Sample(
            {
                "messages": [
                    user(ISSUE),
                    *inspected("a", {"type": "parsing", "message": "TypeError: no such argument"}, cmd=SED),
                    *inspected("b", {"type": "timeout", "message": "Command timed out"}, "half", command=SED),
                ],
                "resolved": True,
            },
            ("TypeError", ""),
            SED,
            task="FILE",
        ),
        # Functions without ids: what the user says after the last words is no answer of the tool's.
        Sample(
            [
                user(ISSUE),
                {
                    "role": "assistant",
                    "content": "",
                    "function_call": {
                        "name": "execute_shell_command",
                        "arguments": json.dumps({"shell_command": SED}),
                    },
                },
                {"role": "function", "name": "execute_shell_command", "content": "Exit code: 0, Output:\n"},
                assistant("Done."),
                user("ValueError: is it?"),
            ],
            ("Superseded",),
            task="FILE",
            lines=True,
        ),
    ],
    "claude_code": [
        Sample(CLAUDE, TWO, task="5e55-10", lines=True),
        Sample(
            [
                {"type": "system", "subtype": "init", "session_id": "s1", "tools": []},
                {"type": "assistant", "session_id": "s1", "message": {"role": "assistant", "content": []}},
                {"type": "user", "session_id": "s1", "message": {"role": "user", "content": ISSUE}},
                {
                    "type": "assistant",
                    "session_id": "s1",
                    "message": {"role": "assistant", "content": use("t", "Write", file_path="calc.py", content="x")},
                },
                {"type": "result", "session_id": "s1", "is_error": False},
            ],
            ("Superseded",),
            task="s1",
            lines=True,
        ),
        Sample(
            [
                *CLAUDE[3:7],
                line(
                    50,
                    "assistant",
                    use("t9", "Edit", file_path="/r/other.py", old_string="a", new_string="b"),
                    isSidechain=True,
                ),
                CLAUDE[6],
            ],
            ("Superseded",),
            task="5e55-10",
            lines=True,
        ),
    ],
    "codex": [
        Sample(
            [
                rollout("session_meta", id="c0de-1", cwd="/r", cli_version="0.163.0"),
                rollout("response_item", type="message", role="developer", content=[{"text": "You are Codex."}]),
                rollout("response_item", type="message", role="user", content=[{"text": "<environment_context>/r"}]),
                rollout("response_item", type="message", role="user", content=[{"type": "input_text", "text": ISSUE}]),
                rollout("event_msg", type="user_message", message=ISSUE),
                rollout("response_item", type="reasoning", summary=[], encrypted_content="x"),
                rollout("response_item", type="custom_tool_call", call_id="a", name="apply_patch", input=BEGIN_PATCH),
                rollout("event_msg", type="item_completed", item={"type": "FileChange"}),
                rollout("response_item", type="custom_tool_call_output", call_id="a", output=HEAD + "Success."),
                rollout("response_item", type="function_call", call_id="b", name="exec_command", arguments=TRIED),
                rollout("response_item", type="function_call_output", call_id="b", output=HEAD + FAILED),
                rollout(
                    "response_item",
                    type="function_call",
                    call_id="c",
                    name="shell",
                    arguments=json.dumps({"command": ["bash", "-lc", SED]}),
                ),
                rollout(
                    "response_item",
                    type="function_call_output",
                    call_id="c",
                    output=json.dumps({"output": "", "metadata": {"exit_code": 0}}),
                ),
                rollout(
                    "response_item",
                    type="custom_tool_call",
                    call_id="d",
                    name="apply_patch",
                    input="*** Begin Patch\n*** Delete File: repro.py\n*** End Patch",
                ),
                rollout("compacted", message=""),
            ],
            TWO,
            task="c0de-1",
            lines=True,
        ),
        Sample(
            [
                rollout("session_meta", id="c0de-2", source={"subagent": "review"}),
                rollout("session_meta", id="c0de-1"),
                rollout(
                    "response_item",
                    type="message",
                    role="user",
                    content=[
                        {
                            "type": "input_text",
                            "text": (
                                "# Context from my IDE setup:\n\n## Open tabs:\n- calc.py\n\n## My request for Codex:\n"
                                + ISSUE
                            ),
                        }
                    ],
                ),
                rollout(
                    "response_item",
                    type="local_shell_call",
                    id="s",
                    call_id="s",
                    status="completed",
                    action={"type": "exec", "command": ["bash", "-lc", WRONG]},
                ),
                rollout("response_item", type="function_call_output", call_id="s", output=[{"text": FAILED}]),
                rollout("response_item", type="message", role="assistant", content=[{"text": "Not yet."}]),
            ],
            ("AssertionError",),
            task="c0de-2",
            lines=True,
        ),
        Sample(
            [
                {"id": "c0de-3", "timestamp": "2025-08-01T00:00:00Z", "instructions": None, "git": {}},
                {"record_type": "state"},
                {"type": "message", "id": None, "role": "user", "content": [{"type": "input_text", "text": ISSUE}]},
                {
                    "type": "function_call",
                    "id": "f",
                    "name": "shell",
                    "call_id": "f",
                    "arguments": json.dumps({"command": ["bash", "-lc", SED], "workdir": "/r"}),
                },
                {"type": "function_call_output", "call_id": "f", "output": "ok"},
                {"record_type": "state"},
            ],
            ("Superseded",),
            task="c0de-3",
            lines=True,
        ),
    ],
}
