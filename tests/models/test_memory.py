"""Memory is counted, and the count is exact where it can be checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rune.errors import ModelError
from rune.models import memory
from rune.models.resolve import default_cache
from rune.types import ModelRef

PUBLISHED = {
    "qwen2.5-coder-0.5b-instruct": 494_032_768,
    "qwen2.5-coder-1.5b-instruct": 1_543_714_304,
    "qwen2.5-coder-7b-instruct": 7_615_616_512,
    "smollm2-135m-instruct": 134_515_008,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_counted_to_the_last_one(name: str) -> None:
    assert memory.PUBLISHED[name].parameters == PUBLISHED[name]


def test_the_count_equals_a_real_models_size(tiny_model: ModelRef) -> None:
    from transformers import AutoModelForCausalLM

    shape = memory.known_shape("tiny", Path(tiny_model.path))
    assert shape is not None
    assert shape.parameters == AutoModelForCausalLM.from_pretrained(tiny_model.path).num_parameters()


def test_lora_parameters_equal_pefts(tiny_model: ModelRef) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    shape = memory.known_shape("tiny", Path(tiny_model.path))
    assert shape is not None
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model.path), LoraConfig(r=3, target_modules=names))
    assert model.get_nb_trainable_parameters()[0] == shape.lora_parameters(3)


@pytest.mark.model
@pytest.mark.parametrize("name", ["qwen2.5-coder-0.5b-instruct", "smollm2-135m-instruct"])
def test_published_shapes_equal_the_cached_models(name: str) -> None:
    folder = default_cache() / "models" / name
    assert memory.known_shape(name, folder) == memory.PUBLISHED[name]


def test_the_cache_doubles_with_rows_and_tokens_and_the_weights_do_not() -> None:
    shape = memory.PUBLISHED["qwen2.5-coder-7b-instruct"]
    one = memory.estimate_sampling(shape, dtype="bfloat16", rows=10, tokens=500, adapters=1, rank=8)
    two = memory.estimate_sampling(shape, dtype="bfloat16", rows=20, tokens=1000, adapters=1, rank=8)
    assert two["key-value cache"] == 4 * one["key-value cache"]
    assert one["key-value cache"] == 10 * 500 * 2 * 28 * 4 * 128 * 2
    assert two["weights"] == one["weights"] == 2 * 7_615_616_512


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(ModelError, match="no memory model for architecture 'mamba'"):
        memory.known_shape("m", tmp_path)
