"""bench/serve_beside.py: the same clients before `rune serve` and a server that speaks vLLM's dialect."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench import serve_beside as bench

from rune.engines import torch as torch_engine
from rune.serving.settings import Engine
from rune.types import ModelRef
from tests.engines.completion_server import CompletionServer
from tests.serving.world import configured, running

COUNTS = ["2", "0"]


@pytest.fixture
def stub(tiny_model: ModelRef) -> Iterator[CompletionServer]:
    engine = torch_engine.build(torch_engine.Config(), model=tiny_model, device="cpu", dtype="float32")
    server = CompletionServer(engine)
    engine.model = replace(tiny_model, name="base")
    yield server
    server.close()
    engine.close()


def tasks(folder: Path) -> Path:
    path = folder / "tasks.jsonl"
    prompts = [f'def f{number}(x):\n    """Add {number}."""\n' for number in range(5)]
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
    return path


def command(model: ModelRef, out: Path, *more: str) -> list[str]:
    return [
        "--model", model.path, "--out", str(out), "--tasks", str(tasks(out.parent)), "--counts", *COUNTS, "--cpu",
        "--clients", "3", "--client-processes", "1", "--seconds", "2", "--warm-seconds", "0.2", "--tokens", "8",
        "--dtype", "float32", "--strong", "0.5", *more,
    ]  # fmt: skip


@pytest.mark.check
def test_both_servers_are_asked_the_same_and_one_json_has_their_ratios(
    tiny_model: ModelRef, stub: CompletionServer, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    args = bench.arguments(command(tiny_model, out))
    args.work.mkdir(parents=True)
    bench.fill(args, tiny_model)  # before the server opens its registry
    config = replace(
        configured(tiny_model, args.work, None), engine=Engine(name="torch", settings={"max_rows": 4, "window": 1024})
    )
    config = replace(config, model=replace(config.model, served_name="base"))
    with running(config) as served:
        done = subprocess.run(
            [sys.executable, bench.__file__,
             *command(tiny_model, out, "--systems", "torch", "vllm", "--at", f"torch={served.url}", "--at",
                      f"vllm={stub.url}")],
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((out / "serve-beside.json").read_text(encoding="utf-8"))
    parts = found["parts"]
    for system in ("torch", "vllm"):
        assert parts[f"check-{system}"] == {
            **parts[f"check-{system}"], "stream_equals_whole": 1.0, "base_for_adapter": 0, "adapters_change_text": 1.0,
            "adapters_differ": 1.0, "n": 3, "chat_says_something": True, "unknown_adapter": 404,
        }  # fmt: skip
        for count in (2, 0):
            part = parts[f"{system}-{count}"]
            assert part["errors"] == {} and part["adapters"] == count
            assert part["requests"] > 3 and part["requests_per_second"] == round(part["requests"] / 2, 2)
            assert 0 < part["mean_tokens"] <= 8
            assert 0 < part["first_token_ms"]["p50"] <= part["stream_ms"]["p50"]
    assert parts["texts"]["equal_greedy_texts"] == {"torch and vllm": 1.0}  # two servers over the same mathematics
    ratio = found["ratios"]["rune over torch, to vLLM's server, 2 adapters: requests/s"]
    assert ratio == round(parts["torch-2"]["requests_per_second"] / parts["vllm-2"]["requests_per_second"], 3)
    loads = [path for path in stub.calls if path == "/v1/load_lora_adapter"]
    assert len(loads) == 2 + 2  # the strong ones and those that are asked, each once
    assert {line["adapter"] for line in served.lines() if line.get("adapter")} == {
        folder.name[:12] for folder in bench.fill(args, tiny_model).values()
    }


def test_a_server_that_answers_with_the_base_is_not_measured_and_does_not_hide_the_other(
    tiny_model: ModelRef, stub: CompletionServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stub, "dialect", "careless")
    real = stub._completion
    stub._completion = lambda body: real({**body, "model": "base"})  # type: ignore[method-assign]
    out = tmp_path / "out"
    given = command(tiny_model, out, "--systems", "torch", "vllm", "--at", f"vllm={stub.url}", "--python", "/bin/false")
    monkeypatch.setattr(sys, "argv", [bench.__file__, *given])
    assert bench.main() == 1
    found = json.loads((out / "serve-beside.json").read_text(encoding="utf-8"))
    assert found["systems"]["torch"]["failed"] == "ended with 1: it said nothing"
    assert found["systems"]["vllm"]["failed"] == "4 texts of adapters are the base model's"
    assert set(found["parts"]) == {"check-vllm", "texts"} and found["ratios"] == {}
    assert found["parts"]["check-vllm"]["unknown_adapter"] == 200


def test_a_server_that_cannot_be_started_or_is_not_there_is_told_and_the_run_goes_on(
    tiny_model: ModelRef, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*command(tiny_model, tmp_path / "out", "--systems", "torch", "vllm"), "--ready-seconds", "0.1"]
    args = bench.arguments([*given, "--at", "torch=http://127.0.0.1:9", "--vllm-python", str(tmp_path / "none")])
    for folder in (args.work, args.out):
        folder.mkdir(parents=True, exist_ok=True)
    dead, absent = (bench.started(args, system) for system in args.systems)
    bench.until_ready(args, [dead, absent])
    assert absent.failed == f"{tmp_path / 'none'}: No such file or directory"
    assert dead.failed == "not ready in 0.1 s: nobody is ready at http://127.0.0.1:9"
    capsys.readouterr()
    with pytest.raises(SystemExit):
        bench.arguments([*given, "--at", "torch"])
    assert "--at: found torch; give some of torch, vllm, as torch=http://" in capsys.readouterr().err


def test_held_it_says_that_all_have_started_and_waits(tmp_path: Path, tiny_model: ModelRef) -> None:
    args = bench.arguments(command(tiny_model, tmp_path / "out", "--hold", str(tmp_path / "go")))
    (tmp_path / "go").touch()
    bench.hold(args)
    assert (tmp_path / "go.ready").exists()


def test_options_are_written_as_vllms_command_line_takes_them() -> None:
    given = {"enable_lora": True, "max_loras": 8, "compilation_config": {"cudagraph_capture_sizes": [1, 2]}}
    assert bench.flags(given) == [
        "--enable-lora", "--max-loras", "8", "--compilation-config", '{"cudagraph_capture_sizes": [1, 2]}',
    ]  # fmt: skip
