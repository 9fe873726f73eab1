"""Writes chat/TOOL_*.json with tools that keep lists of messages, each with its own code. A scripted server on this
machine stands for the provider; nothing else is reached.

    python3 -m venv /tmp/v && /tmp/v/bin/pip install PACKAGES && /tmp/v/bin/python write_chat.py TOOL

shell_gpt: shell-gpt==1.5.1 click, and 1.4.5. The chat cache (`sgpt --chat`): `tool_calls`, before 1.5 `function_call`.
qwen_agent: qwen-agent==0.0.34 soundfile python-dateutil tqdm. The messages of `Assistant.run`: `function_call`.
langchain: langchain==1.5.2 langchain-openai==1.7.4. `convert_to_openai_messages` of an agent's state: `tool_calls`.
openai_agents: openai-agents==0.24.0. `RunResult.to_input_list()`: items of the Responses API.
inspect_ai: inspect-ai==0.3.285 openai. The messages of a sample of its log, without its prompt: its own `tool_calls`.
ag2: ag2[openai]==0.14.0. `ChatResult.chat_history`, and `chat_messages` of the agent that calls: `tool_responses`.

Not run by the tests: they read what it wrote.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

REPOSITORY = Path("/tmp/testbed")
OUT = Path(__file__).parent / "chat"
ISSUE = "half(3) should be 1.5"
Call = tuple[str, dict[str, Any]]

WRONG = "cat > calc.py <<'EOF'\ndef half(x):\n    return x / y\nEOF\npython3 t.py"
RIGHT = "cat > calc.py <<'EOF'\ndef half(x):\n    return x / 2\nEOF\npython3 t.py"
LOOK = "grep -n 'sed -i' calc.py; cat calc.py"
SCRATCH = "printf 'import calc\\nprint(calc.half(3))\\n' > repro.py && python3 repro.py"
SED = "sed -i 's#x // 2#x / 2#' calc.py && python3 repro.py && rm repro.py && python3 t.py"


def repository() -> None:
    shutil.rmtree(REPOSITORY, ignore_errors=True)
    REPOSITORY.mkdir()
    (REPOSITORY / "calc.py").write_text("def half(x):\n    return x // 2\n", encoding="utf-8")
    (REPOSITORY / "t.py").write_text(
        'import calc\nassert calc.half(3) == 1.5, calc.half(3)\nprint("ok")\n', encoding="utf-8"
    )


def executed(command: str) -> subprocess.CompletedProcess[str]:
    """A command's run, where the agent's maker leaves tools to the user."""
    environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command, shell=True, cwd=REPOSITORY, env=environment, check=False, capture_output=True, text=True, timeout=60
    )


def shell(command: str) -> str:
    """The same as text."""
    done = executed(command)
    return done.stdout + done.stderr + (f"exit code {done.returncode}\n" if done.returncode else "")


# --------------------------------------------------------------------------- the provider


class Provider(BaseHTTPRequestHandler):
    """Answers each request with the next turn: calls, or the last words."""

    turns: ClassVar[Iterator[list[Call]]] = iter(())
    in_text = False  # calls as Qwen's template writes them
    numbers = itertools.count(1)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        calls = next(Provider.turns, [])
        number = next(Provider.numbers)
        if self.path.endswith("/responses"):
            self.answer("application/json", json.dumps(response(number, calls)))
        elif asked.get("stream"):
            chunks = [completion(number, calls, "chat.completion.chunk", asked), "[DONE]"]
            lines = (c if isinstance(c, str) else json.dumps(c) for c in chunks)
            self.answer("text/event-stream", "".join(f"data: {line}\n\n" for line in lines))
        else:
            self.answer("application/json", json.dumps(completion(number, calls, "chat.completion", asked)))

    def answer(self, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def completion(number: int, calls: list[Call], kind: str, asked: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None if calls else "half(3) is 1.5. TERMINATE"}
    if calls and Provider.in_text:
        written = (json.dumps({"name": n, "arguments": a}) for n, a in calls)
        message["content"] = "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in written)
    elif calls:
        message["tool_calls"] = [
            {"index": i, "id": f"call_{number}_{i}", "type": "function",
             "function": {"name": name, "arguments": json.dumps(given)}}
            for i, (name, given) in enumerate(calls)
        ]  # fmt: skip
    reason = "tool_calls" if "tool_calls" in message else "stop"
    place = "delta" if kind.endswith("chunk") else "message"
    choice = {"index": 0, place: message, "finish_reason": reason}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {"id": f"c{number}", "object": kind, "created": 0, "model": asked["model"], "choices": [choice],
            "usage": usage}  # fmt: skip


def response(number: int, calls: list[Call]) -> dict[str, Any]:
    """OpenAI's Responses API: thoughts, then calls of its own tools, or the last words."""
    output: list[dict[str, Any]] = [
        {"type": "reasoning", "id": f"rs_{number}", "summary": [{"type": "summary_text", "text": "Next."}]}
    ]
    for i, (name, given) in enumerate(calls):
        identity = {"id": f"it_{number}_{i}", "call_id": f"call_{number}_{i}", "status": "completed"}
        if name == "shell":
            output.append({"type": "shell_call", **identity, "action": given})
        elif name == "apply_patch":
            output.append({"type": "apply_patch_call", **identity, "operation": given})
        else:
            output.append({"type": "function_call", **identity, "name": name, "arguments": json.dumps(given)})
    if not calls:
        text = {"type": "output_text", "text": "half(3) is 1.5.", "annotations": []}
        output.append({"type": "message", "id": f"m{number}", "role": "assistant", "status": "completed",
                       "content": [text]})  # fmt: skip
    usage = {"input_tokens": 1, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
             "output_tokens": 1, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 2}  # fmt: skip
    return {"id": f"r{number}", "object": "response", "created_at": 0, "status": "completed", "model": "scripted",
            "output": output, "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
            "usage": usage}  # fmt: skip


def play(turns: list[list[Call]], *, in_text: bool = False) -> None:
    repository()
    Provider.turns, Provider.in_text, Provider.numbers = iter(turns), in_text, itertools.count(1)


def save(name: str, messages: Any) -> None:
    OUT.mkdir(exist_ok=True)
    (OUT / f"{name}.json").write_text(json.dumps(messages, indent=1) + "\n", encoding="utf-8")


# --------------------------------------------------------------------------- the tools


def shell_gpt(url: str) -> None:
    """Its own function, and the file that it keeps a chat in, byte for byte. Two requests of one chat."""
    old = importlib.metadata.version("shell-gpt").startswith("1.4")
    play([[("execute_shell_command", {"shell_command": c})] for c in (LOOK, WRONG, RIGHT)])
    with tempfile.TemporaryDirectory() as home:
        environment = {
            "PATH": os.environ["PATH"], "HOME": home, "API_BASE_URL": url, "OPENAI_API_KEY": "none",
            "CHAT_CACHE_PATH": f"{home}/chats", "CACHE_PATH": f"{home}/cache", "PYTHONDONTWRITEBYTECODE": "1",
            "OS_NAME": "Linux", "SHELL_NAME": "bash", "PRETTIFY_MARKDOWN": "false",
        }  # fmt: skip
        sgpt = str(Path(sys.executable).parent / "sgpt")
        for arguments in (["--install-functions"], ["--chat", "half", ISSUE], ["--chat", "half", "Thanks. All done?"]):
            subprocess.run([sgpt, *arguments], cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, check=True)
        OUT.mkdir(exist_ok=True)
        shutil.copy(f"{home}/chats/half", OUT / ("shell_gpt_1.4.json" if old else "shell_gpt_1.5.json"))


def qwen_agent(url: str) -> None:
    """Its Assistant; its own code interpreter asks for Docker, so the tools are registered as its guide says."""
    from qwen_agent.agents import Assistant
    from qwen_agent.tools.base import BaseTool, register_tool

    @register_tool("write_file")
    class WriteFile(BaseTool):
        description = "Writes a file."
        parameters: ClassVar[list[dict[str, Any]]] = [
            {"name": "path", "type": "string", "description": "where", "required": True},
            {"name": "content", "type": "string", "description": "what", "required": True},
        ]

        def call(self, params: str, **_: Any) -> str:
            given = self._verify_json_format_args(params)
            (REPOSITORY / given["path"]).write_text(given["content"], encoding="utf-8")
            return f"wrote {given['path']}"

    @register_tool("run_shell")
    class RunShell(BaseTool):
        description = "Runs a command."
        parameters: ClassVar[list[dict[str, Any]]] = [
            {"name": "command", "type": "string", "description": "what to run", "required": True}
        ]

        def call(self, params: str, **_: Any) -> str:
            return shell(self._verify_json_format_args(params)["command"])

    def write(body: str) -> Call:
        return "write_file", {"path": "calc.py", "content": f"def half(x):\n    return {body}\n"}

    def run(command: str) -> Call:
        return "run_shell", {"command": command}

    sessions = {
        "twice": [[write("x / y")], [run("python3 t.py")], [write("x / 2")], [run("python3 t.py")]],
        "scratch": [[run(LOOK)], [run(SCRATCH)], [run(SED)]],
    }
    for name, turns in sessions.items():
        play(turns, in_text=True)
        model = {"model": "scripted", "model_type": "oai", "model_server": url, "api_key": "none"}
        asked = [{"role": "user", "content": ISSUE}]
        (*_, answered) = Assistant(llm=model, function_list=["write_file", "run_shell"]).run(asked)
        save(f"qwen_agent_{name}", [*asked, *answered])


def langchain(url: str) -> None:
    """Its agent with its shell."""
    from langchain.agents import create_agent
    from langchain.agents.middleware import HostExecutionPolicy, ShellToolMiddleware
    from langchain_core.messages import convert_to_openai_messages
    from langchain_openai import ChatOpenAI

    sessions = {"twice": (LOOK, WRONG, RIGHT), "scratch": (SCRATCH, SED)}
    for name, commands in sessions.items():
        play([[("shell", {"command": c})] for c in commands])
        middleware = ShellToolMiddleware(
            workspace_root=REPOSITORY, execution_policy=HostExecutionPolicy(), env={"PYTHONDONTWRITEBYTECODE": "1"}
        )
        model = ChatOpenAI(model="scripted", base_url=url, api_key="none")  # type: ignore[arg-type]
        agent = create_agent(model, middleware=[middleware], system_prompt="Mend the repository in your shell.")
        state = agent.invoke({"messages": [{"role": "user", "content": ISSUE}]})
        save(f"langchain_{name}", convert_to_openai_messages(state["messages"]))


def openai_agents(url: str) -> None:
    """Its agent with the tools of the Responses API, and with functions."""
    from agents import (
        Agent,
        ApplyPatchTool,
        OpenAIResponsesModel,
        Runner,
        ShellCallOutcome,
        ShellCommandOutput,
        ShellCommandRequest,
        ShellResult,
        ShellTool,
        apply_diff,
        function_tool,
        set_tracing_disabled,
    )
    from agents.editor import ApplyPatchOperation, ApplyPatchResult
    from openai import AsyncOpenAI

    class Editor:
        def create_file(self, operation: ApplyPatchOperation) -> ApplyPatchResult:
            (REPOSITORY / operation.path).write_text(apply_diff("", operation.diff or "", mode="create"))
            return ApplyPatchResult(status="completed", output=f"Created {operation.path}")

        def update_file(self, operation: ApplyPatchOperation) -> ApplyPatchResult:
            path = REPOSITORY / operation.path
            path.write_text(apply_diff(path.read_text(), operation.diff or ""))
            return ApplyPatchResult(status="completed", output=f"Updated {operation.path}")

        def delete_file(self, operation: ApplyPatchOperation) -> ApplyPatchResult:
            (REPOSITORY / operation.path).unlink()
            return ApplyPatchResult(status="completed", output=f"Deleted {operation.path}")

    @function_tool
    def run_command(cmd: str) -> str:
        """Runs a command in the repository."""
        return shell(cmd)

    def execute(request: ShellCommandRequest) -> ShellResult:
        done = [(command, executed(command)) for command in request.data.action.commands]
        return ShellResult(
            output=[
                ShellCommandOutput(
                    stdout=d.stdout, stderr=d.stderr, command=c,
                    outcome=ShellCallOutcome(type="exit", exit_code=d.returncode),
                )
                for c, d in done
            ]
        )  # fmt: skip

    def patch(kind: str, path: str, diff: str | None = None) -> Call:
        return "apply_patch", {"type": kind, "path": path, **({} if diff is None else {"diff": diff})}

    def run(*commands: str) -> Call:
        return "shell", {"commands": list(commands)}

    update = "@@ def half(x):\n-    return {}\n+    return {}\n"
    sessions: dict[str, list[list[Call]]] = {
        "patches": [
            [run("cat calc.py")],
            [patch("update_file", "calc.py", update.format("x // 2", "x / y"))],
            [run("python3 t.py")],
            [patch("update_file", "calc.py", update.format("x // 2", "x / 2"))],  # refused: no such line
            [patch("update_file", "calc.py", update.format("x / y", "x / 2"))],
            [run("python3 t.py")],
        ],
        "scratch": [
            [patch("create_file", "repro.py", "+import calc\n+print(calc.half(3))\n")],
            [run("python3 repro.py")],
            [run("sed -i 's#x // 2#x / 2#' calc.py", "python3 repro.py")],
            [patch("delete_file", "repro.py"), run("python3 t.py")],
        ],
        "functions": [[("run_command", {"cmd": c})] for c in (LOOK, WRONG, RIGHT)],
    }
    set_tracing_disabled(True)
    for name, turns in sessions.items():
        play(turns)
        model = OpenAIResponsesModel("scripted", AsyncOpenAI(base_url=url, api_key="none"))
        tools: list[Any] = [run_command] if name == "functions" else [
            ShellTool(executor=execute),
            ApplyPatchTool(editor=Editor()),
        ]  # fmt: skip
        agent = Agent(name="mender", instructions="Mend it.", model=model, tools=tools)
        save(f"openai_agents_{name}", Runner.run_sync(agent, ISSUE).to_input_list())


def inspect_ai(url: str) -> None:
    """Its ReAct agent with its shell. The second call names an argument that the tool has not: it is not run."""
    from inspect_ai import Task, eval
    from inspect_ai.agent import react
    from inspect_ai.dataset import Sample
    from inspect_ai.scorer import includes
    from inspect_ai.tool import bash

    bad: list[Call] = [("bash", {"cmd": RIGHT})]
    play([[("bash", {"command": LOOK})], bad, *([("bash", {"command": c})] for c in (WRONG, RIGHT)),
          [("submit", {"answer": "done"})]])  # fmt: skip
    files = {path.name: path.read_text(encoding="utf-8") for path in REPOSITORY.iterdir()}
    sample = Sample(input=ISSUE, target="done", files=files)
    task = Task(dataset=[sample], solver=react(tools=[bash()]), sandbox="local", scorer=includes())
    with tempfile.TemporaryDirectory() as folder:
        (log,) = eval(
            task, model="openai/scripted", model_base_url=url, log_dir=folder, display="none",
            model_args={"api_key": "none", "responses_api": False},
        )  # fmt: skip
        messages = log.samples[0].messages if log.samples else []
        save("inspect_ai", [m.model_dump(exclude_none=True) for m in messages if m.role != "system"])


def ag2(url: str) -> None:
    """Two agents: one calls, one executes. Each keeps the chat from its own side; two calls may share a turn."""
    from autogen import ConversableAgent, register_function

    def run_shell(command: str) -> str:
        return shell(command)

    def calls(*commands: str) -> list[Call]:
        return [("run_shell", {"command": c}) for c in commands]

    # Two calls of one turn are run side by side, so the second asks nothing of the first.
    for name, turns in {
        "twice": [calls(WRONG, "ls *.py"), calls(RIGHT)],
        "scratch": [calls(SCRATCH), calls(SED)],
    }.items():
        play(turns)
        model = {"config_list": [{"model": "scripted", "base_url": url, "api_key": "none", "price": [0, 0]}]}
        writer = ConversableAgent("writer", system_message="Mend it.", llm_config=model)
        runner = ConversableAgent(
            "runner", llm_config=False, human_input_mode="NEVER",
            is_termination_msg=lambda m: "TERMINATE" in (m.get("content") or ""),
        )  # fmt: skip
        register_function(run_shell, caller=writer, executor=runner, description="Runs a command.")
        result = runner.initiate_chat(writer, message=ISSUE)
        if name == "twice":
            save("ag2_chat_history", result.chat_history)
        save(f"ag2_{name}", writer.chat_messages[runner])


TOOLS: dict[str, Callable[[str], None]] = {
    tool.__name__: tool for tool in (shell_gpt, qwen_agent, langchain, openai_agents, inspect_ai, ag2)
}


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    TOOLS[sys.argv[1]](f"http://127.0.0.1:{server.server_port}/v1")
    server.shutdown()


main()
