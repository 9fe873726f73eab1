"""An NF4 base is another base: loaded by one code path on a CPU too, trained on, and never mixed up with its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rune.adapters.folders import Folders
from rune.engines import torch as engines
from rune.errors import AdapterError, ConfigError
from rune.hypernet import base as bases
from rune.hypernet import checkpoint
from rune.models import identity, loader, registry, resolve
from rune.stages import adapt, train
from rune.study import config
from rune.types import ModelRef, Request, Sampling
from tests.train.train_setup import corpus, make_context, make_run, settings

__all__ = ["corpus"]
needs_bitsandbytes = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("bitsandbytes") is None,
    reason="NF4 needs bitsandbytes: pip install 'rune-lora[qlora]'",
)
CONFIG = Path(__file__).parents[2] / "configs" / "phase2-0.5b.toml"


@pytest.fixture
def four(tiny_model: ModelRef) -> ModelRef:
    return identity.quantised(tiny_model, "nf4")


def test_a_quantised_base_has_a_digest_of_its_own_and_says_what_it_is_made_of(
    tiny_model: ModelRef, four: ModelRef
) -> None:
    assert four.digest != tiny_model.digest == four.unquantised and len(four.digest) == 64
    assert identity.quantised(tiny_model, "none") is tiny_model
    assert identity.fits(four, four.digest) and not identity.fits(four, tiny_model.digest)
    assert "quantised to NF4; this one is not quantised" in identity.difference(tiny_model, four.digest)
    assert "not quantised; this one is quantised to NF4" in identity.difference(four, tiny_model.digest)
    assert identity.difference(four, "ab" * 32) == ""
    carrying = identity.carrying(four, tiny_model)
    assert identity.fits(carrying, tiny_model.digest) and identity.fits(carrying, four.digest)
    assert not identity.fits(carrying, "ab" * 32) and identity.carrying(four, four) is four


def test_where_weights_come_from_is_said_for_a_file_of_4_bits_a_folder_and_an_old_record(tiny_model: ModelRef) -> None:
    gguf = {"gguf_sha256": registry.SPECS[0].gguf_sha256}
    assert identity.of_record(gguf, Path()) == "4-bit weights (GGUF, Q4_K_M), dequantised"
    assert (
        identity.of_record({"gguf_sha256": "x", "file_type": "Q8_0"}, Path())
        == "8-bit weights (GGUF, Q8_0), dequantised"
    )
    assert identity.of_record({"gguf_sha256": "x", "file_type": "BF16"}, Path()) == "bfloat16 weights (GGUF)"
    assert identity.of_record({"gguf_sha256": "x"}, Path()) == "weights of a GGUF file"
    assert identity.of_folder(Path(tiny_model.path)) == "float32 weights"
    assert resolve.resolve(tiny_model.path).weights == "float32 weights"
    old = {"name": "m", "sha256": registry.SPECS[0].converted_sha256}
    assert identity.words(old, "bfloat16") == "4-bit weights (GGUF, Q4_K_M), dequantised, computed in bfloat16"
    four = {"weights": "bfloat16 weights", "quantize": "nf4"}
    assert "quantised to NF4 (bitsandbytes, double quantisation), computed in bfloat16" in identity.words(
        four, "bfloat16"
    )
    assert identity.words({"name": "m"}, "float32").startswith("weights of unrecorded origin")


def test_engines_that_load_the_base_themselves_are_refused_a_quantised_one() -> None:
    with pytest.raises(ConfigError, match=r"\[model\] quantize = 'nf4': the engine vllm loads the base itself"):
        config.load(CONFIG, ["model.quantize=nf4", "engine.name=vllm"])
    with pytest.raises(ConfigError, match=r"carries adapters to another base.*set adapt.save_adapters = true"):
        config.load(CONFIG, ["sample.quantize=nf4", "adapt.save_adapters=false"])
    with pytest.raises(ConfigError, match=r"\[engine.settings\] quantize is \[model\] quantize now"):
        config.load(CONFIG, ["engine.settings.quantize=nf4"])
    with pytest.raises(ConfigError, match="'nf5' is not one of none, nf4"):
        config.load(CONFIG, ["model.quantize=nf5"])


@needs_bitsandbytes
def test_the_loaded_base_is_nf4_with_double_quantisation_and_computes_as_its_four_bits_say(four: ModelRef) -> None:
    loaded = loader.load(four, device="cpu", dtype="bfloat16")
    layer = loaded.model.layers[0].mlp.up_proj
    assert layer.weight.dtype is torch.uint8 and layer.weight.quant_state.nested
    assert layer.weight.quant_state.quant_type == "nf4" and layer.compute_dtype is torch.bfloat16
    plain = loader.load(replace(four, quantize="none"), device="cpu", dtype="bfloat16")
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        found, before = loaded(ids).logits, plain(ids).logits
        base = bases.load(four, device="cpu", dtype="bfloat16")
        layout = base.layout(("q_proj", "up_proj", "down_proj", "o_proj", "k_proj", "v_proj", "gate_proj"))
        from rune.adapters.factors import weights_of

        for module, number, weight in weights_of(base.model, layout):
            target = plain.get_submodule(layout.paths[module].format(number)).weight
            assert weight.shape == target.shape and 0 < float((weight - target).norm() / target.norm()) < 0.2
            target.copy_(weight)
        again = plain(ids).logits
    assert not torch.equal(found, before)
    assert (
        float((found - again).float().norm() / again.float().norm())
        < 0.02
        < float((found - before).float().norm() / before.float().norm())
    )


@needs_bitsandbytes
def test_static_lora_and_hypernetwork_train_on_it_and_their_adapters_are_its_own(
    four: ModelRef, tiny_model: ModelRef, corpus: Any, tmp_path: Path
) -> None:
    folder = make_run(tmp_path, corpus)
    train.run(folder, settings(lora_steps=3, steps=3), make_context(four, tmp_path / "cache"))
    assert (folder / "checkpoints" / "lora").is_dir()
    hypernet = folder / "checkpoints" / "hypernet"
    assert checkpoint.load(hypernet, four, device="cpu").both is not None
    with pytest.raises(AdapterError, match=r"the same weights, quantised to NF4; this one is not quantised"):
        checkpoint.load(hypernet, tiny_model, device="cpu")
    from rune.runs import store
    from rune.types import Trajectory

    some = store.read_jsonl(folder / "trajectories.jsonl", Trajectory)[:1]
    ref = adapt.one(some, tmp_path / "adapter", hypernet, four, strength=1.0)
    assert ref.base_model == four.digest
    request = Request(
        key="a", prompt="def f():", sampling=Sampling(temperature=0.0, max_new_tokens=3), seed=0, adapter=ref
    )

    def drawn(model: ModelRef) -> int:
        engine = engines.build(
            engines.Config(), model=model, device="cpu", dtype="float32", adapters=Folders(tmp_path / "adapter")
        )
        return len(list(engine.complete([request])))

    assert drawn(four) == 1
    with pytest.raises(AdapterError, match=r"the same weights, quantised to NF4; this one is not quantised"):
        drawn(tiny_model)
    assert drawn(identity.carrying(tiny_model, four)) == 1
