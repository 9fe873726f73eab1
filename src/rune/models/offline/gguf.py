"""GGUF → a safetensors folder that `from_pretrained` reads, tokenizer and chat template included.

Done here rather than by transformers' own GGUF loading, which differs from version to version (5.23 refuses to
save what it loaded; older ones know no `dequantize`), takes a minute at every load, and leaves three silent
faults: one end-of-sequence id instead of two, an untied output matrix where the model is tied, and SmolLM2's
digits not split. Weights are dequantised exactly, then rounded to bfloat16, the precision they were trained in.

Covers the `llama` and `qwen2` architectures with byte-level BPE vocabularies of the pre-tokenizers `qwen2` and
`smollm`. Anything else is refused by name. Not covered: rope scaling, experts, sharded GGUF files.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rune.errors import ModelError
from rune.runs import store

SAME_MATRIX = 0.2  # ‖E − O‖/‖O‖ of one matrix quantised twice is about 0.05; of two matrices, above 1

_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTROL, _USER_DEFINED = 3, 4  # token types of the GGUF specification


def convert(gguf_file: Path, folder: Path) -> str:
    """Write config, weights, tokenizer and generation defaults of `gguf_file` into the existing `folder`.

    Returns what the file says its weights are, in llama.cpp's words ("Q4_K_M"), "" if it does not say.
    Raises ModelError if the file is truncated, not GGUF, or of an architecture or tokenizer not covered.
    """
    reader = _open(gguf_file)
    meta: dict[str, Any] = dict(reader.fields)
    arch = str(_value(meta, "general.architecture", gguf_file))
    if arch not in _CLASSES:
        raise ModelError(f"{gguf_file}: architecture '{arch}' is not covered; covered: {', '.join(sorted(_CLASSES))}")
    with _readable(gguf_file):
        tied = _write_weights(reader, folder / "model.safetensors", heads=_heads(meta, arch, gguf_file), arch=arch)
        _write_tokenizer(meta, folder, gguf_file)
        ids = _special_ids(meta, gguf_file)
        store.write_json(folder / "config.json", _config(meta, arch, gguf_file, tied=tied, ids=ids))
        store.write_json(folder / "generation_config.json", _generation(ids))
    return _file_type(meta)


def _file_type(meta: dict[str, Any]) -> str:
    from gguf import LlamaFileType

    try:
        name = LlamaFileType(int(meta["general.file_type"].contents())).name
        return name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except (KeyError, ValueError, TypeError):
        return ""


def check(path: Path) -> None:
    """Raises ModelError for a file that is no GGUF or shorter than its header says; reads the header only."""
    _open(path)


def _open(path: Path) -> Any:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{path}: not a GGUF file (it does not begin with 'GGUF')")
    with _readable(path):
        from gguf import GGUFReader

        return GGUFReader(path)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """The reader maps the file: past the end it raises whatever numpy happens to raise."""
    try:
        yield
    except (ValueError, IndexError, KeyError, OverflowError, EOFError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: truncated or damaged GGUF file ({error}); delete it and fetch it again") from None


def _value(meta: dict[str, Any], key: str, path: Path, default: Any = None) -> Any:
    if key in meta:
        return meta[key].contents()
    if default is None:
        raise ModelError(f"{path}: GGUF metadata '{key}' is missing; this file cannot be converted")
    return default


def _heads(meta: dict[str, Any], arch: str, path: Path) -> tuple[int, int]:
    heads = int(_value(meta, f"{arch}.attention.head_count", path))
    return heads, int(_value(meta, f"{arch}.attention.head_count_kv", path, heads))


# --------------------------------------------------------------------------- weights


def _write_weights(reader: Any, target: Path, *, heads: tuple[int, int], arch: str) -> bool:
    """Dequantise all tensors into one bfloat16 safetensors file. Returns whether the output matrix is tied."""
    import torch
    from gguf.quants import dequantize
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            raise ModelError(f"{target.parent.name}: rope scaling in a GGUF file is not covered; use the hub's files")
        array = dequantize(tensor.data, tensor.tensor_type)
        if arch == "llama" and re.search(r"\.attn_[qk]\.", tensor.name):
            array = _interleave(array, heads[0] if ".attn_q." in tensor.name else heads[1])
        tensors[_rename(tensor.name)] = torch.from_numpy(array.copy()).to(torch.bfloat16)
    tied = "lm_head.weight" not in tensors
    if not tied:
        embed, output = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
        if embed.shape == output.shape and _relative_distance(embed, output) < SAME_MATRIX:
            # One matrix stored twice; the output copy has the more bits in every llama.cpp recipe.
            tensors["model.embed_tokens.weight"] = tensors.pop("lm_head.weight")
            tied = True
    with store.writing(target):
        try:
            save_file(tensors, target, metadata={"format": "pt"})
        except SafetensorError as error:  # carries the system's error as text only
            raise OSError(errno.ENOSPC if f"os error {errno.ENOSPC}" in str(error) else 0, str(error)) from None
    return tied


def _relative_distance(a: Any, b: Any) -> float:
    a, b = a[:4096].float(), b[:4096].float()
    return float((a - b).norm() / b.norm())


def _interleave(array: Any, heads: int) -> Any:
    """Undo llama.cpp's row order of q and k: it stores rotary pairs side by side, transformers in two halves."""
    rows = array.shape[0]
    return array.reshape(heads, rows // heads // 2, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def _rename(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if not match or match[2] not in _LAYER:
        raise ModelError(f"GGUF tensor '{name}' has no place in a llama or qwen2 model; this file is not covered")
    return f"model.layers.{match[1]}.{_LAYER[match[2]]}.{kind}"


# --------------------------------------------------------------------------- config


def _special_ids(meta: dict[str, Any], path: Path) -> dict[str, Any]:
    """End, pad and begin ids. A GGUF keeps one end id; both the end of a turn and the end of text are needed."""
    tokens: list[str] = _value(meta, "tokenizer.ggml.tokens", path)
    eos = int(_value(meta, "tokenizer.ggml.eos_token_id", path))
    end_of_text = tokens.index("<|endoftext|>") if "<|endoftext|>" in tokens else eos
    return {
        "bos": int(_value(meta, "tokenizer.ggml.bos_token_id", path, eos)),
        "eos": list(dict.fromkeys((eos, end_of_text))),
        "pad": int(_value(meta, "tokenizer.ggml.padding_token_id", path, end_of_text)),
    }


def _config(meta: dict[str, Any], arch: str, path: Path, *, tied: bool, ids: dict[str, Any]) -> dict[str, Any]:
    def get(key: str, default: Any = None) -> Any:
        return _value(meta, f"{arch}.{key}", path, default)

    heads, kv_heads = _heads(meta, arch, path)
    hidden = int(get("embedding_length"))
    config: dict[str, Any] = {
        "architectures": [_CLASSES[arch]],
        "model_type": arch,
        "vocab_size": len(_value(meta, "tokenizer.ggml.tokens", path)),
        "hidden_size": hidden,
        "intermediate_size": int(get("feed_forward_length")),
        "num_hidden_layers": int(get("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": int(get("context_length")),
        "rms_norm_eps": float(f"{float(get('attention.layer_norm_rms_epsilon')):.6g}"),
        "rope_theta": float(get("rope.freq_base", 10000.0)),
        "tie_word_embeddings": tied,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": ids["bos"],
        "eos_token_id": ids["eos"],
        "pad_token_id": ids["pad"],
        "torch_dtype": "bfloat16",
    }
    if arch == "qwen2":
        config["use_sliding_window"] = False
    return config


def _generation(ids: dict[str, Any]) -> dict[str, Any]:
    """Neutral and explicit, so that no library's default decides how a model is sampled."""
    return {
        "bos_token_id": ids["bos"],
        "eos_token_id": ids["eos"],
        "pad_token_id": ids["pad"],
        "do_sample": False,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 50,
        "repetition_penalty": 1.0,
    }


# --------------------------------------------------------------------------- tokenizer


def _write_tokenizer(meta: dict[str, Any], folder: Path, path: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors

    kind = (_value(meta, "tokenizer.ggml.model", path), _value(meta, "tokenizer.ggml.pre", path, "default"))
    if kind[0] != "gpt2" or kind[1] not in ("qwen2", "smollm"):
        raise ModelError(f"{path}: tokenizer '{'/'.join(kind)}' is not covered; covered: gpt2/qwen2, gpt2/smollm")
    tokens: list[str] = _value(meta, "tokenizer.ggml.tokens", path)
    types: list[int] = list(_value(meta, "tokenizer.ggml.token_type", path))
    merges = [tuple(m.split(" ", 1)) for m in _value(meta, "tokenizer.ggml.merges", path)]
    plain = {t: i for i, (t, kind) in enumerate(zip(tokens, types, strict=True)) if kind == 1}
    added = [(t, kind) for t, kind in zip(tokens, types, strict=True) if kind in (_CONTROL, _USER_DEFINED)]
    vocab = plain | {t: i for i, t in enumerate(tokens) if types[i] in (_CONTROL, _USER_DEFINED)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    _set_pre_tokenizer(tokenizer, kind[1])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    for text, kind_of in added:
        tokenizer.add_tokens([AddedToken(text, special=kind_of == _CONTROL, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))

    ids = _special_ids(meta, path)
    template = str(_value(meta, "tokenizer.chat_template", path, "")) or None
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": tokens[ids["eos"][0]],
        "pad_token": tokens[ids["pad"]],
        # <|im_start|> is not reported as special by the metadata; stopping and decoding rely on it.
        "additional_special_tokens": [t for t, kind_of in added if kind_of == _CONTROL],
        "model_max_length": int(_value(meta, f"{_value(meta, 'general.architecture', path)}.context_length", path)),
    }
    if template:
        settings["chat_template"] = template
    store.write_json(folder / "tokenizer_config.json", settings)


def _set_pre_tokenizer(tokenizer: Any, kind: str) -> None:
    from tokenizers import Regex, normalizers, pre_tokenizers

    split: Any
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated", invert=False)
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    else:
        split = pre_tokenizers.Digits(individual_digits=True)
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
