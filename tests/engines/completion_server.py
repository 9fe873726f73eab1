"""A small real server of completions over the torch engine, which names and loads adapters as vLLM or SGLang do, and
streams as vLLM does: a piece of text an event, `usage` in an event without choices, `[DONE]`.

`faults` decides what goes wrong: a number of answers after which it dies, requests it answers with 503 first, a hang.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rune.adapters import peft
from rune.engines.local.torch_engine import TorchEngine
from rune.errors import RuneError
from rune.types import AdapterRef, Request, Sampling


@dataclass
class Faults:
    """What the server does wrong; all zero is a healthy one."""

    die_after: int = 0  # answers, then every connection is dropped
    busy_first: int = 0  # completions answered with 503 before the first good one
    hang_seconds: float = 0.0  # before each completion


class CompletionServer:
    def __init__(self, engine: TorchEngine) -> None:
        self.engine, self.faults = engine, Faults()
        self.dialect = "vllm"
        self.answered = 0
        self.calls: list[str] = []
        self._lock = threading.Lock()
        self._adapters: dict[str, AdapterRef] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.handle(self, None)

            def do_POST(self) -> None:
                outer.handle(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, format: str, *args: object) -> None:
                return None

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def handle(self, http: BaseHTTPRequestHandler, body: dict[str, Any] | None) -> None:
        self.calls.append(http.path)
        if self.faults.die_after and self.answered >= self.faults.die_after:
            http.connection.close()
            return
        status, answer = self._answer(http.path, body or {})
        if status == 200 and (body or {}).get("stream"):
            http.send_response(200)
            http.send_header("Content-Type", "text/event-stream")
            http.end_headers()
            for event in events(answer):
                http.wfile.write(f"data: {event}\n\n".encode())
            return
        raw = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        http.send_response(status)
        http.send_header("Content-Length", str(len(raw)))
        http.end_headers()
        http.wfile.write(raw)

    def _answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/health":
            return 200, ""
        if path == "/v1/models":
            return 200, {"data": [{"id": name} for name in (self.engine.model.name, *self._adapters)]}
        if path.startswith("/v1/") == (self.dialect == "sglang") and path.endswith("load_lora_adapter"):
            return 404, {"detail": "Not Found"}
        if path.endswith("/unload_lora_adapter"):
            self._adapters.pop(body["lora_name"], None)
            return 200, "Success: LoRA adapter removed"
        if path.endswith("/load_lora_adapter"):
            if body["lora_name"] in self._adapters and self.dialect == "vllm":
                return 400, {"error": {"message": f"The lora adapter '{body['lora_name']}' has already been loaded."}}
            try:
                adapter = peft.read_peft(body["lora_path"])
                with self._lock:
                    self._adapters[body["lora_name"]] = self.engine.put_adapter(body["lora_name"], adapter)
            except RuneError as error:
                return 400, {"error": str(error)}
            return 200, "Success: LoRA adapter added"
        return self._completion(body)

    def _completion(self, body: dict[str, Any]) -> tuple[int, Any]:
        if self.faults.busy_first > 0:
            self.faults.busy_first -= 1
            return 503, {"error": "busy"}
        time.sleep(self.faults.hang_seconds)
        applied = body["model"]
        if self.dialect == "sglang":  # the name of the model is not looked at, but for an adapter behind a colon
            applied = applied.partition(":")[2] or body.get("lora_path") or self.engine.model.name
        if applied not in (self.engine.model.name, *self._adapters):
            return (400 if self.dialect == "sglang" else 404), {"error": f"the model {applied} does not exist"}
        chat = "messages" in body
        sampling = Sampling(
            temperature=body["temperature"],
            max_new_tokens=body["max_tokens"],
            top_p=body.get("top_p", 1.0),
            top_k=body.get("top_k", 0),
            stop=tuple(body.get("stop", ())),
        )
        request = Request(
            key="",
            prompt=body["messages"][-1]["content"] if chat else body["prompt"],
            sampling=sampling,
            seed=body.get("seed", 0),
            n=body.get("n", 1),
            adapter=self._adapters.get(applied),
        )
        with self._lock:
            drawn = list(self.engine.complete([request]))
            self.answered += 1
        choices = [
            {"index": one.draw, "finish_reason": one.finish_reason}
            | ({"message": {"role": "assistant", "content": one.text}} if chat else {"text": one.text})
            for one in drawn
        ]
        return 200, {"choices": choices, "usage": {"completion_tokens": sum(one.num_tokens for one in drawn)}}


def events(answer: dict[str, Any]) -> list[str]:
    """A completion as vLLM streams it."""
    found: list[dict[str, Any]] = []
    for choice in answer["choices"]:
        pieces = [(piece, None) for piece in choice["text"]] + [("", choice["finish_reason"])]
        found += [{"choices": [{"index": choice["index"], "text": text, "finish_reason": end}]} for text, end in pieces]
    found.append({"choices": [], "usage": answer["usage"]})
    return [*map(json.dumps, found), "[DONE]"]
