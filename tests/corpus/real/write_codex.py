"""Writes codex/*.jsonl.gz with Codex itself (the CLI in the openai-codex-cli-bin wheel): its tools, its session log.
A scripted server on this machine stands for the provider; nothing else is reached.

    python3 -m venv /tmp/v && /tmp/v/bin/pip install openai-codex-cli-bin==0.163.0 && /tmp/v/bin/python write_codex.py

Not run by the tests: they read what it wrote. The instructions that Codex gives to the model, which its log repeats,
are left out: `base_instructions`, and messages of the developer.
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

import codex_cli_bin

CLI = Path(codex_cli_bin.__file__).parent / "bin" / "codex"
REPOSITORY = Path("/tmp/testbed")
OUT = Path(__file__).parent / "codex"
Item = dict[str, Any]
CONFIG = """model = "{model}"
model_provider = "local"
approval_policy = "never"
sandbox_mode = "danger-full-access"
check_for_update_on_startup = false
[analytics]
enabled = false
[model_providers.local]
name = "local"
base_url = "http://127.0.0.1:{port}/v1"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
"""


def run(command: str) -> Item:
    return {"type": "function_call", "name": "exec_command", "arguments": json.dumps({"cmd": command})}


def patch(*lines: str) -> Item:
    text = "\n".join(["*** Begin Patch", *lines, "*** End Patch"])
    return {"type": "custom_tool_call", "name": "apply_patch", "input": text}


def update(old: str, new: str) -> Item:
    return patch("*** Update File: calc.py", "@@", " def half(x):", f"-    return {old}", f"+    return {new}")


SESSIONS: dict[str, list[Item]] = {
    # The second patch is refused: the file has no such line.
    "patch_twice": [run("cat calc.py"), update("x // 2", "x / 3"), run("python3 t.py"), update("x // 2", "x / 2"),
                    update("x / 3", "x / 2"), run("python3 t.py")],
    "scratch_by_patch": [
        patch("*** Add File: repro.py", "+import calc", "+print(calc.half(3))"),
        run("python3 repro.py"),
        run("sed -i 's#//#/#' calc.py && python3 repro.py"),
        patch("*** Delete File: repro.py"),
        run("python3 t.py"),
    ],
    "shell_only": [
        run("grep -n 'sed -i' calc.py; ls"),
        run("cat > calc.py <<'EOF'\ndef half(x):\n    return x / 2\nEOF\npython3 t.py"),
        run("apply_patch <<'EOF'\n*** Begin Patch\n*** Update File: calc.py\n@@\n def half(x):\n"
            "-    return x / 2\n+    return x * 0.5\n*** End Patch\nEOF"),
        run("python3 t.py"),
    ],
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


def stream(number: int, item: Item | None) -> Iterator[dict[str, Any]]:
    """One answer as the provider streams it: a call, or the last words."""
    words = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "half(3) is 1.5."}]}
    said = {**item, "call_id": f"call_{number}"} if item else words
    usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    yield {"type": "response.created", "response": {"id": f"r{number}"}}
    yield {"type": "response.output_item.done", "item": {**said, "id": f"i{number}"}}
    yield {"type": "response.completed", "response": {"id": f"r{number}", "usage": usage}}


class Provider(BaseHTTPRequestHandler):
    """An answer for each item in turn, then the last words."""

    items: ClassVar[list[Item]] = []
    number = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        item = Provider.items[Provider.number] if Provider.number < len(Provider.items) else None
        Provider.number += 1
        events = stream(Provider.number, item)
        body = "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def kept(line: str) -> str:
    """A line of the log without the instructions to the model; "" if it is nothing else."""
    record = json.loads(line)
    payload = record["payload"]
    if payload.get("role") == "developer" or record["type"] == "world_state":
        return ""
    payload.pop("base_instructions", None)
    return json.dumps(record, separators=(",", ":"))


def main() -> None:
    OUT.mkdir(exist_ok=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, items in SESSIONS.items():
        repository()
        Provider.items, Provider.number = items, 0
        with tempfile.TemporaryDirectory() as home:
            # A model that Codex knows gives it the tool `apply_patch`.
            settings = CONFIG.format(model="gpt-5.5", port=server.server_port)
            Path(home, "config.toml").write_text(settings, encoding="utf-8")
            environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": home, "CODEX_HOME": home}
            environment["PYTHONDONTWRITEBYTECODE"] = "1"  # two edits in a second look alike to its cache
            subprocess.run(
                [CLI, "exec", "half(3) should be 1.5"],
                cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, timeout=120, check=True,
            )  # fmt: skip
            (session,) = Path(home).glob("sessions/*/*/*/rollout-*.jsonl")
            lines = map(kept, session.read_text(encoding="utf-8").splitlines())
            log = "".join(f"{line}\n" for line in lines if line)
            (OUT / f"{name}.jsonl.gz").write_bytes(gzip.compress(log.encode(), mtime=0))
    server.shutdown()


main()
