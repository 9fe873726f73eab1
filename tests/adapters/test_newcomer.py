"""README's five minutes with the memory, with its own words: two trajectories in, an adapter that PEFT loads out."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from rune.adapters.peft import read_peft
from rune.cli.main import main
from rune.runs import store
from rune.stages.context import Context
from rune.types import ModelRef
from tests.adapters.small import delta

ROOT = Path(__file__).parents[2]


def blocks(kind: str) -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    part = text.split("<!-- newcomer:begin -->")[1].split("<!-- newcomer:end -->")[0]
    return re.findall(rf"```{kind}\n(.*?)```", part, flags=re.DOTALL)


def test_the_five_minutes_of_readme_work_as_they_are_written(
    trained: tuple[store.RunDir, Context],
    tiny_model: ModelRef,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNE_REGISTRY", str(tmp_path / "memory"))
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    said = []
    (commands,) = blocks("sh")
    for line in commands.splitlines():
        words = shlex.split(line, comments=True)
        assert words.pop(0) == "rune"
        if words[0] == "adapt":  # a tiny model and its hypernetwork, in place of the ones that ship
            words += ["--checkpoint", str(trained[0] / "checkpoints" / "hypernet"), "--model", tiny_model.path]
        assert main(words) == 0, line
        said.append(capsys.readouterr().out.split())
    first, second, both = (said[n][0] for n in (2, 3, 8))
    assert len({first, second, both}) == 3
    assert said[5] == [second] and said[6] == [first]

    # The composed adapter is the sum, and PEFT runs it.
    parts, whole = [read_peft(tmp_path / name) for name in ("first", "second")], read_peft(tmp_path / "exported")
    for name in whole.pairs:
        torch.testing.assert_close(delta(whole, name), sum(delta(p, name) for p in parts), rtol=1e-4, atol=1e-6)
    tokens = torch.tensor([[5, 17, 42, 99]])
    bare = AutoModelForCausalLM.from_pretrained(tiny_model.path)(tokens).logits
    (python,) = blocks("python")
    scope: dict[str, Any] = {"BASE": tiny_model.path}
    exec(python, scope)
    worn = scope["model"](tokens).logits
    assert not torch.allclose(bare, worn, atol=1e-5)
    named = dict(AutoModelForCausalLM.from_pretrained(tiny_model.path).named_modules())
    model = AutoModelForCausalLM.from_pretrained(tiny_model.path)
    with torch.no_grad():
        for name in whole.pairs:
            assert name in named
            model.get_submodule(name).weight += sum(delta(p, name) for p in parts).T.float()
    torch.testing.assert_close(model(tokens).logits, worn, rtol=1e-3, atol=1e-3)


def test_what_an_adapter_was_made_from_follows_it_into_the_registry_and_out(
    trained: tuple[store.RunDir, Context],
    tiny_model: ModelRef,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import json

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNE_REGISTRY", str(tmp_path / "memory"))
    checkpoint = trained[0] / "checkpoints" / "hypernet"
    example = ROOT / "docs" / "examples" / "first.jsonl"
    (raw,) = [json.loads(line) for line in example.read_text().splitlines()]
    made = ["--checkpoint", str(checkpoint), "--model", tiny_model.path]
    assert main(["adapt", "--trajectory", str(example), "-o", "a", *made]) == 0
    assert main(["adapters", "add", "a", "--project", "p"]) == 0
    assert main(["adapters", "export", capsys.readouterr().out.split()[-1], "-o", "b"]) == 0
    capsys.readouterr()
    assert main(["adapters", "add", "b", "--project", "p", "--json"]) == 0
    (again,) = json.loads(capsys.readouterr().out)
    assert not again["new"]  # the same bytes, the same adapter
    assert again["hypernet"] == store.sha256_file(checkpoint / "model.safetensors")
    # Its weight may be learned on another task, and not on the one that it knows.
    learn = ["adapters", "compose", again["id"], "--base", tiny_model.path, "--steps", "2"]
    assert main([*learn, "--learn", str(example), "-o", "c"]) == 2
    assert f"an adapter was made from task '{raw['task_id']}'" in capsys.readouterr().err
    assert main([*learn, "--learn", str(example.with_name("second.jsonl")), "-o", "c"]) == 0
    assert "nats a token" in capsys.readouterr().err
    weights = store.read_json(tmp_path / "c" / "weights.json")[again["id"]]
    for name, pair in read_peft(tmp_path / "c").pairs.items():
        one = delta(read_peft(tmp_path / "a"), name)
        torch.testing.assert_close(pair.a.double() @ pair.b.double(), weights[name] * one, rtol=1e-4, atol=1e-6)
    assert main(["adapters", "show", again["id"], "--json"]) == 0
    (source,) = json.loads(capsys.readouterr().out)["sources"]
    assert source["task_id"] == raw["task_id"]
