"""Writes claude_code/*.jsonl.gz with Claude Code itself (the CLI in the claude-agent-sdk wheel): its tools, its session
log; and ../refused/claude_code.stream.jsonl.gz, what `--output-format stream-json` prints of the first session. A
scripted server on this machine stands for the provider; nothing else is reached.

    python3 -m venv /tmp/v && /tmp/v/bin/pip install claude-agent-sdk==0.2.189 && /tmp/v/bin/python write_claude_code.py

Not run by the tests: they read what it wrote. Lines that repeat what Claude Code tells the model (its prompts, facts of
the machine) are left out; they are of types that are not read.
"""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import claude_agent_sdk

CLI = Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"
REPOSITORY = Path("/tmp/testbed")
OUT = Path(__file__).parent / "claude_code"
FILE = str(REPOSITORY / "calc.py")
Call = tuple[str, dict[str, Any]]
LEFT_OUT = {"attachment", "api-request", "api-request-blob", "api-request-shape"}


def bash(command: str) -> Call:
    return "Bash", {"command": command, "description": "run it"}


def edit(old: str, new: str) -> Call:
    return "Edit", {"file_path": FILE, "old_string": old, "new_string": new}


READ: Call = ("Read", {"file_path": FILE})
SCRATCH = str(REPOSITORY / "repro.py")
SESSIONS: dict[str, list[Call]] = {
    # The second edit is refused: the file has no such text.
    "edit_twice": [READ, edit("x // 2", "x / 3"), bash("python3 t.py"), edit("x // 2", "x / 2"), edit("x / 3", "x / 2"),
                   bash("python3 t.py")],
    "write_and_scratch": [
        ("Write", {"file_path": SCRATCH, "content": "import calc\nprint(calc.half(3))\n"}),
        bash("python3 repro.py"),
        READ,
        ("Write", {"file_path": FILE, "content": "def half(x):\n    return x / 2\n"}),
        bash("python3 repro.py && rm repro.py && python3 t.py"),
    ],
    "sed_only": [bash("grep -n 'sed -i' calc.py; sed -n 1,2p calc.py"), bash("sed -i 's#//#/#' calc.py"),
                 bash("python3 t.py")],
}  # fmt: skip


def repository() -> None:
    shutil.rmtree(REPOSITORY, ignore_errors=True)
    REPOSITORY.mkdir()
    (REPOSITORY / "calc.py").write_text("def half(x):\n    return x // 2\n", encoding="utf-8")
    (REPOSITORY / "t.py").write_text(
        'import calc\nassert calc.half(3) == 1.5, calc.half(3)\nprint("ok")\n', encoding="utf-8"
    )
    commit = "git init -q . && git add -A && git -c user.name=t -c user.email=t@t commit -qm start"
    subprocess.run(commit, shell=True, cwd=REPOSITORY, check=True)


def stream(number: int, call: Call | None) -> Iterator[dict[str, Any]]:
    """One answer as the provider streams it: a call, or the last words."""
    usage = {"input_tokens": 1, "output_tokens": 1}
    head = {"id": f"msg_{number}", "type": "message", "role": "assistant", "model": "scripted", "content": []}
    yield {"type": "message_start", "message": {**head, "stop_reason": None, "stop_sequence": None, "usage": usage}}
    if call is None:
        yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "half(3) is 1.5."}}
    else:
        name, given = call
        block = {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(given)}
        yield {"type": "content_block_start", "index": 0, "content_block": block}
        yield {"type": "content_block_delta", "index": 0, "delta": delta}
    yield {"type": "content_block_stop", "index": 0}
    reason = "tool_use" if call else "end_turn"
    yield {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": usage}
    yield {"type": "message_stop"}


class Provider(BaseHTTPRequestHandler):
    """Answers each request that offers the tools with the next call; others (titles, counts) with words."""

    calls: ClassVar[list[Call]] = []
    number = 0

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        offered = {tool.get("name") for tool in asked.get("tools", [])}
        call = None
        if "Bash" in offered and Provider.number < len(Provider.calls):
            call = Provider.calls[Provider.number]
            Provider.number += 1
        events = stream(Provider.number, call)
        body = "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def talk(home: str, port: int, *more: str) -> str:
    """One session in the repository; what the command printed."""
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": home,
        "CLAUDE_CONFIG_DIR": home,
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}",
        "ANTHROPIC_API_KEY": "none",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "PYTHONDONTWRITEBYTECODE": "1",  # two edits in a second look alike to its cache
    }
    command = [str(CLI), "-p", "half(3) should be 1.5", "--allowedTools", "Bash,Edit,Write,Read"]
    done = subprocess.run(
        [*command, "--permission-mode", "acceptEdits", *more],
        cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout.decode()


def save(path: Path, log: str) -> None:
    lines = [line for line in log.splitlines() if json.loads(line).get("type") not in LEFT_OUT]
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0))


def main() -> None:
    OUT.mkdir(exist_ok=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, calls in SESSIONS.items():
        repository()
        Provider.calls, Provider.number = calls, 0
        with tempfile.TemporaryDirectory() as home:
            talk(home, server.server_port)
            (session,) = Path(home).glob("projects/*/*.jsonl")
            save(OUT / f"{name}.jsonl.gz", session.read_text(encoding="utf-8"))
    repository()
    Provider.calls, Provider.number = SESSIONS["edit_twice"], 0
    with tempfile.TemporaryDirectory() as home:
        printed = talk(home, server.server_port, "--output-format", "stream-json", "--verbose")
        save(OUT.parents[1] / "refused" / "claude_code.stream.jsonl.gz", printed)
    server.shutdown()


main()
