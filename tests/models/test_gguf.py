"""GGUF files: converted exactly, tied where the model is, refused when broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rune.errors import ModelError
from rune.models.offline import gguf
from rune.types import ModelRef
from tests.models.gguf_files import write

IDS = torch.arange(1, 33).reshape(2, 16)


@pytest.fixture(scope="module")
def source(tiny_model: ModelRef) -> tuple[Any, Path]:
    model = AutoModelForCausalLM.from_pretrained(tiny_model.path, dtype=torch.float32)
    return rounded(model), Path(tiny_model.path) / "tokenizer.json"


def rounded(model: Any) -> Any:
    """With weights a bfloat16 checkpoint can hold, so that the conversion has nothing to round."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.bfloat16())
    return model.eval()


def converted(tmp_path: Path, model: Any, tokenizer: Path, **options: Any) -> Path:
    write(tmp_path / "m.gguf", model, tokenizer, **options)
    folder = tmp_path / "out"
    folder.mkdir()
    gguf.convert(tmp_path / "m.gguf", folder)
    return folder


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(IDS).logits


def test_a_qwen2_file_converts_to_the_same_function(tmp_path: Path, source: tuple[Any, Path]) -> None:
    folder = converted(tmp_path, *source)
    with torch.no_grad():
        torch.testing.assert_close(logits(folder), source[0](IDS).logits, rtol=0, atol=1e-6)


def test_llama_rows_are_put_back_into_rotary_halves(tmp_path: Path, source: tuple[Any, Path]) -> None:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=600,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        tie_word_embeddings=False,
    )
    model = rounded(LlamaForCausalLM(config))
    folder = converted(tmp_path, model, source[1])
    with torch.no_grad():
        torch.testing.assert_close(logits(folder), model(IDS).logits, rtol=0, atol=1e-6)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False


def test_one_matrix_stored_twice_is_tied_with_the_output_copy(tmp_path: Path, source: tuple[Any, Path]) -> None:
    folder = converted(tmp_path, *source, output_noise=0.05)
    weights = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in weights
    original = source[0].state_dict()["model.embed_tokens.weight"]
    difference = (weights["model.embed_tokens.weight"].float() - original).norm() / original.norm()
    assert 0.02 < difference < 0.1  # the noisy output copy, not the clean embedding
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True


def test_two_different_matrices_stay_untied(tmp_path: Path, source: tuple[Any, Path]) -> None:
    folder = converted(tmp_path, *source, output_noise=2.0)
    assert "lm_head.weight" in load_file(folder / "model.safetensors")


def test_both_ends_of_text_stop_generation_and_sampling_defaults_are_explicit(
    tmp_path: Path, source: tuple[Any, Path]
) -> None:
    folder = converted(tmp_path, *source)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    defaults = json.loads((folder / "generation_config.json").read_text())
    assert defaults["eos_token_id"] == tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert defaults["pad_token_id"] == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert {"do_sample", "temperature", "top_p", "top_k", "repetition_penalty"} <= set(defaults)
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") in tokenizer.all_special_ids


@pytest.mark.parametrize("share", [0.0005, 0.02, 0.3, 0.999])
def test_a_truncated_file_is_one_clear_error(tmp_path: Path, source: tuple[Any, Path], share: float) -> None:
    write(tmp_path / "m.gguf", *source)
    data = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError, match=r"cut\.gguf: (truncated or damaged|not a GGUF)"):
        gguf.convert(tmp_path / "cut.gguf", tmp_path)


def test_something_else_is_not_taken_for_gguf(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04 no weights here")
    with pytest.raises(ModelError, match="not a GGUF file"):
        gguf.convert(tmp_path / "x.gguf", tmp_path)


def test_an_unknown_tokenizer_is_refused_by_name(tmp_path: Path, source: tuple[Any, Path]) -> None:
    write(tmp_path / "m.gguf", *source, pre="tekken")
    with pytest.raises(ModelError, match="gpt2/tekken"):
        gguf.convert(tmp_path / "m.gguf", tmp_path)


def test_the_qwen2_tokenizer_equals_transformers_own(tmp_path: Path, source: tuple[Any, Path]) -> None:
    from tokenizers import Tokenizer
    from transformers import Qwen2Tokenizer

    folder = converted(tmp_path, *source)
    raw = json.loads((folder / "tokenizer.json").read_text())["model"]
    theirs = Qwen2Tokenizer(vocab=raw["vocab"], merges=[tuple(m) for m in raw["merges"]])
    ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in (
        "def f(x2):\n\n    return x2  + 345\r\n",
        "naïve café’s I'LL 12ab\t\t\n  x",
        "汉字 et ﬁ 1234567",
        "a\n\n\n b",
    ):
        assert ours.encode(text).ids == theirs(text)["input_ids"], text


def test_smollm_digits_stand_alone(tmp_path: Path, source: tuple[Any, Path]) -> None:
    from tokenizers import Tokenizer

    folder = converted(tmp_path, *source, pre="smollm")
    tokens = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("x = 2048").tokens
    assert tokens[-4:] == ["2", "0", "4", "8"]
