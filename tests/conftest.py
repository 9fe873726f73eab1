"""Fixtures that several areas share. Real parts, small sizes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything loads torch, and inherited by what tests start: two workers whose threads wait for each other on two
# cores are twenty times slower than one thread each, and models this small gain nothing from a second one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from rune.runs.store import sha256_file
from rune.types import ModelRef

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


# A worker takes whole files (`--dist loadfile`), so that what a file's tests share is made once.
LONG = (
    *("hostile/test_hostile.py", "study/test_study.py", "pipeline/test_interruption.py", "study/test_phases.py"),
    *("score/test_killed_at_any_moment.py", "sandbox/test_verdicts.py", "study/test_new_study.py"),
    *("engines/test_contract.py", "engines/test_adapter_kernels.py", "engines/test_torch_engine.py"),
    *("benchmarks/test_repositories.py", "score/test_audit.py", "cli/test_bad_input.py", "train/test_adapt.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files begin first: one that begins last leaves the other worker idle."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path, len(LONG)))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The public data sets: `$RUNE_DATA`, or shared/data beside the repository. Skips where there are none."""
    root = Path(os.environ.get("RUNE_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (root / "README.md").is_file():
        pytest.skip(f"no data sets at {root}; set RUNE_DATA")
    return root


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    """A random Qwen2 of 2 layers, hidden 64, 4 query and 2 key heads, with a byte-level BPE of its own.

    Weights are drawn at 3× the usual spread, so that logits differ enough for adapters and prompts to show.
    """
    return make_tiny_model(tmp_path_factory.mktemp("tiny-model"), seed=0)


def make_tiny_model(folder: Path, *, seed: int, hidden: int = 64, layers: int = 2) -> ModelRef:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = make_tiny_tokenizer(folder)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.06,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    model.save_pretrained(folder)
    return ModelRef(name="tiny", path=str(folder), digest=sha256_file(folder / "model.safetensors"), source="local")


def make_tiny_tokenizer(folder: Path):  # type: ignore[no-untyped-def]
    """Byte-level BPE of 600 tokens trained on a text that stays as it is, for the golden records' sake.

    Saved to `folder` with a chat template like Qwen's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    source = Path(__file__).with_name("tokenizer_corpus.txt")
    tokenizer.train_from_iterator([source.read_text()], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
    )
    fast.save_pretrained(folder)
    return fast
