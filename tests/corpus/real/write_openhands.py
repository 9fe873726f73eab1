"""Writes openhands/ with OpenHands itself: its agent, tools and event log, its scripted model for events, and for the
logs of its requests a scripted server on this machine in place of a provider.

    python3.12 -m venv /tmp/v && /tmp/v/bin/pip install openhands-sdk==1.58.2 openhands-tools==1.58.2
    /tmp/v/bin/python write_openhands.py

Not run by the tests: they read what it wrote.
"""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

from openhands.sdk import LLM, Agent, Conversation, Tool
from openhands.sdk.llm import Message, MessageToolCall, TextContent
from openhands.sdk.testing import TestLLM
from openhands.tools.apply_patch import ApplyPatchTool
from openhands.tools.file_editor import FileEditorTool
from openhands.tools.terminal import TerminalTool

REPOSITORY = "/tmp/testbed"
OUT = Path(__file__).parent / "openhands"
FILE = f"{REPOSITORY}/calc.py"
Call = tuple[str, dict[str, Any]]
PATCH = (
    "*** Begin Patch\n*** Update File: calc.py\n@@\n def half(x):\n-    return x // 2\n+    return x / 2\n*** End Patch"
)


def terminal(command: str) -> Call:
    return "terminal", {"command": f"cd {REPOSITORY} && {command}"}


def replace(old: str, new: str) -> Call:
    return "file_editor", {"command": "str_replace", "path": FILE, "old_str": old, "new_str": new}


FINISH: Call = ("finish", {"message": "done"})
SESSIONS: dict[str, list[Call]] = {
    "replace_twice": [
        ("file_editor", {"command": "view", "path": FILE}),
        replace("x // 2", "x / 3"),
        terminal("python t.py"),
        replace("x / 3", "x / 2"),
        terminal("python t.py"),
        FINISH,
    ],
    "sed_and_scratch": [
        terminal("grep -rn '//' . --include=*.py"),
        (
            "file_editor",
            {
                "command": "create",
                "path": f"{REPOSITORY}/reproduce.py",
                "file_text": "import calc\nprint(calc.half(3))\n",
            },
        ),
        terminal("python reproduce.py"),
        terminal("sed -i 's#x // 2#x / 2#' calc.py && python reproduce.py"),
        terminal("rm reproduce.py && python t.py"),
        FINISH,
    ],
    "apply_patch": [("apply_patch", {"patch": PATCH}), terminal("python t.py"), FINISH],
}


def repository() -> None:
    shutil.rmtree(REPOSITORY, ignore_errors=True)
    Path(REPOSITORY).mkdir()
    Path(FILE).write_text("def half(x):\n    return x // 2\n", encoding="utf-8")
    Path(REPOSITORY, "t.py").write_text(
        'import calc\nassert calc.half(3) == 1.5, calc.half(3)\nprint("ok")\n', encoding="utf-8"
    )
    commit = "git init -q . && git add -A && git -c user.name=t -c user.email=t@t commit -qm start"
    subprocess.run(commit, shell=True, cwd=REPOSITORY, check=True)


def talk(llm: Any) -> list[dict[str, Any]]:
    repository()
    names = (TerminalTool.name, FileEditorTool.name, ApplyPatchTool.name)
    agent = Agent(llm=llm, tools=[Tool(name=name) for name in names])
    conversation = Conversation(agent=agent, workspace=REPOSITORY, visualizer=None)
    conversation.send_message("half(3) should be 1.5")
    conversation.run()
    events = [json.loads(event.model_dump_json()) for event in conversation.state.events]
    conversation.close()
    return events


def scripted(calls: list[Call]) -> TestLLM:
    messages = [
        Message(
            role="assistant",
            content=[TextContent(text="")],
            tool_calls=[MessageToolCall(id=f"c{i}", name=name, arguments=json.dumps(given), origin="completion")],
        )
        for i, (name, given) in enumerate(calls)
    ]
    return TestLLM.from_messages(messages)


class Provider(BaseHTTPRequestHandler):
    """An OpenAI-compatible answer for each call in turn."""

    calls: ClassVar[list[Call]] = []
    number = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        name, given = Provider.calls[Provider.number]
        function = {"name": name, "arguments": json.dumps(given)}
        message = {"role": "assistant", "content": None}
        message["tool_calls"] = [{"id": f"c{Provider.number}", "type": "function", "function": function}]
        answer = {"id": "x", "object": "chat.completion", "created": 0, "model": "scripted"}
        answer["choices"] = [{"index": 0, "message": message, "finish_reason": "tool_calls"}]
        answer["usage"] = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        Provider.number += 1
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def main() -> None:
    OUT.mkdir(exist_ok=True)
    server = HTTPServer(("127.0.0.1", 0), Provider)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, calls in SESSIONS.items():
        log = json.dumps(talk(scripted(calls)), indent=1)
        (OUT / f"{name}.events.json.gz").write_bytes(gzip.compress(log.encode(), mtime=0))
        Provider.calls, Provider.number = calls, 0
        folder = Path("/tmp/testbed-requests")
        shutil.rmtree(folder, ignore_errors=True)
        address = f"http://127.0.0.1:{server.server_port}/v1"
        talk(
            LLM(
                model="openai/scripted",
                base_url=address,
                api_key="none",
                log_completions=True,
                log_completions_folder=str(folder),
                num_retries=0,
            )
        )
        target = OUT / "llm_completions" / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for number, file in enumerate(sorted(folder.glob("*.json"), key=lambda f: f.stat().st_mtime)):
            (target / f"{number}.json.gz").write_bytes(gzip.compress(file.read_bytes(), mtime=0))
    server.shutdown()


main()
