"""LoRA as data: equal to PEFT's own numbers, refusing what it cannot carry."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save, save_file
from transformers import AutoModelForCausalLM

from rune.adapters import peft
from rune.adapters.folders import Folders
from rune.adapters.peft import Adapter, LoraHooks, Pair
from rune.errors import AdapterError
from rune.types import ModelRef
from tests.engines.engine_helpers import random_adapter


@pytest.fixture
def model(tiny_model: ModelRef) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(tiny_model.path, dtype=torch.float32).eval()


def tokens(rows: int, length: int = 7) -> torch.Tensor:
    return torch.randint(3, 500, (rows, length), generator=torch.Generator().manual_seed(1))


def peft_logits(model_path: str, folder: Path, ids: torch.Tensor) -> torch.Tensor:
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    with torch.no_grad():
        return PeftModel.from_pretrained(base, str(folder)).eval()(ids).logits


def test_logits_of_two_adapters_and_the_base_in_one_batch_equal_pefts(
    tiny_model: ModelRef, model: torch.nn.Module, tmp_path: Path
) -> None:
    adapters = [random_adapter(model, seed=1, rank=4), None, random_adapter(model, seed=2, rank=8, scale=0.5)]
    ids = tokens(6)
    hooks = LoraHooks(model)
    with torch.no_grad(), hooks.using(peft.stack(adapters)):
        ours = model(ids).logits
    with torch.no_grad():
        base = model(ids).logits
    for index, adapter in enumerate(adapters):
        rows = slice(2 * index, 2 * index + 2)
        if adapter is None:
            expected = base[rows]
        else:
            peft.write_peft(tmp_path / str(index), adapter)
            expected = peft_logits(tiny_model.path, tmp_path / str(index), ids[rows])
            assert not torch.allclose(expected, base[rows], atol=1e-2)
        torch.testing.assert_close(ours[rows], expected, atol=1e-5, rtol=1e-5)


def test_gathered_rows_equal_grouped_rows(model: torch.nn.Module) -> None:
    stacked = peft.stack([random_adapter(model, seed=1), random_adapter(model, seed=2), None])
    ids = tokens(6)
    hooks = LoraHooks(model)
    order = torch.tensor([4, 0, 2, 1, 5, 3])
    with torch.no_grad():
        with hooks.using(stacked):
            grouped = model(ids).logits
        with hooks.using(stacked, order // 2):
            gathered = model(ids[order]).logits
    torch.testing.assert_close(gathered, grouped[order], atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_a_and_b_and_no_base_weight(model: torch.nn.Module) -> None:
    model.requires_grad_(False)
    adapters = [random_adapter(model, seed=1), random_adapter(model, seed=2)]
    leaves = [tensor.requires_grad_() for adapter in adapters for pair in adapter.pairs.values() for tensor in pair]
    with LoraHooks(model).using(peft.stack(adapters)):
        model(tokens(4)).logits.square().mean().backward()
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_leaving_the_block_gives_the_base_model_back(model: torch.nn.Module) -> None:
    ids, hooks = tokens(2), LoraHooks(model)
    with torch.no_grad():
        before = model(ids).logits
        with hooks.using(peft.stack([random_adapter(model, seed=1)])):
            during = model(ids).logits
        after = model(ids).logits
    assert torch.equal(before, after)
    assert not torch.allclose(before, during, atol=1e-2)


def test_a_module_that_is_no_target_is_refused(model: torch.nn.Module) -> None:
    with pytest.raises(AdapterError, match="k_proj"):
        LoraHooks(model, ["q_proj"]).set(peft.stack([random_adapter(model, seed=1)]))


def test_rows_that_do_not_divide_are_refused(model: torch.nn.Module) -> None:
    with LoraHooks(model).using(peft.stack([None, random_adapter(model, seed=1)])), pytest.raises(AdapterError):
        model(tokens(3))


def test_the_gram_norm_is_the_norm_of_delta_w(model: torch.nn.Module) -> None:
    adapter = random_adapter(model, seed=3, scale=1.5)
    dense = {name: (1.5 * pair.a.double() @ pair.b.double()).norm().item() for name, pair in adapter.pairs.items()}
    assert peft.delta_w_norms(adapter) == pytest.approx(dense, rel=1e-9)


def test_a_folder_reads_back_as_it_was_written(model: torch.nn.Module, tmp_path: Path) -> None:
    adapter = random_adapter(model, seed=4, rank=4, scale=2.0, base_model="abc")
    ref = peft.write_peft(tmp_path, adapter)
    again = peft.read_peft(tmp_path)
    assert (again.scale, again.base_model, again.rank) == (2.0, "abc", 4)
    assert peft.content_id(again) == ref.adapter_id
    assert ref.delta_w_norm > 0 and ref.rank == 4


def test_changing_one_weight_changes_the_id(model: torch.nn.Module) -> None:
    adapter = random_adapter(model, seed=4)
    name, pair = next(iter(adapter.pairs.items()))
    nudged = pair.a.clone()
    nudged[0, 0] += 1e-3
    other = Adapter(pairs={**adapter.pairs, name: Pair(nudged, pair.b)}, scale=adapter.scale)
    assert peft.content_id(other) != peft.content_id(adapter)


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"r": 3, "lora_alpha": 3.0}, "rank 3"),
    ],
)
def test_what_cannot_be_carried_is_refused(
    model: torch.nn.Module, tmp_path: Path, setting: dict[str, object], word: str
) -> None:
    peft.write_peft(tmp_path, random_adapter(model, seed=5))
    file = tmp_path / peft.CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | setting))
    with pytest.raises(AdapterError, match=word):
        peft.read_peft(tmp_path)


def test_a_corrupt_or_missing_file_is_one_clear_error(model: torch.nn.Module, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no adapter_config"):
        peft.read_peft(tmp_path / "nowhere")
    peft.write_peft(tmp_path, random_adapter(model, seed=5))
    weights = tmp_path / peft.WEIGHTS_FILE
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AdapterError, match="cannot be read"):
        peft.read_peft(tmp_path)
    weights.write_bytes(whole)
    tensors = load_file(weights)
    tensors[next(iter(tensors))][0, 0] = float("nan")
    save_file(tensors, str(weights))
    with pytest.raises(AdapterError, match="NaN"):
        peft.read_peft(tmp_path)


def test_peft_finds_the_base_by_the_folder_alone_and_warns_of_nothing(tiny_model: ModelRef, tmp_path: Path) -> None:
    """Our digest stands in a field of the weights' own metadata: PEFT warns of fields in its config that it does not
    know, and the weights are what is copied.
    """
    from peft import AutoPeftModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model.path, dtype=torch.float32)
    pairs = {
        name: peft.Pair(torch.randn(linear.in_features, 2), torch.randn(2, linear.out_features))
        for name, linear in peft.target_linears(base).items()
    }
    made = peft.Adapter(pairs=pairs, scale=1.0, base_model=tiny_model.digest)
    peft.write_peft(tmp_path, made, base_model_name=tiny_model.path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # what PEFT says of unknown fields
        loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert loaded.peft_config["default"].base_model_name_or_path == tiny_model.path
    assert peft.read_peft(tmp_path).base_model == tiny_model.digest
    assert tiny_model.digest not in (tmp_path / peft.CONFIG_FILE).read_text(encoding="utf-8")
    stacked = peft.stack([made])
    tokens = torch.tensor([[5, 6, 7]])
    with torch.no_grad(), peft.LoraHooks(base).using(stacked):
        ours = base(tokens).logits
    with torch.no_grad():
        assert torch.allclose(loaded(tokens).logits, ours, atol=1e-4)


def test_peft_warns_of_a_field_of_ours_in_its_config(model: torch.nn.Module, tmp_path: Path) -> None:
    """Why the base's digest stands in the weights' metadata."""
    from peft import LoraConfig

    peft.write_peft(tmp_path, random_adapter(model, seed=1))
    file = tmp_path / peft.CONFIG_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_digest": "5e5"}), encoding="utf-8")
    with pytest.warns(UserWarning, match="base_model_digest"):
        LoraConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("change", [{"r": 0}, {"r": -2}, {"lora_alpha": 1e30}, {"lora_alpha": float("nan")}])
def test_a_rank_or_alpha_that_scales_nothing_is_refused(change: dict[str, float], tmp_path: Path) -> None:
    pairs = {"layers.0.q_proj": peft.Pair(torch.randn(4, 2), torch.randn(2, 4))}
    peft.write_peft(tmp_path, peft.Adapter(pairs=pairs, scale=1.0))
    path = tmp_path / peft.CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(AdapterError, match=r"not a PEFT LoRA config.*r = .*lora_alpha = "):
        peft.read_peft(tmp_path)


def test_a_scale_edited_in_the_config_is_refused_as_the_id_would_not_show_it(tmp_path: Path) -> None:
    """An adapter's id is the digest of its weights file, so what that file says of the scale holds."""
    pairs = {"layers.0.q_proj": peft.Pair(torch.randn(4, 2), torch.randn(2, 4))}
    ref = peft.write_peft(tmp_path, peft.Adapter(pairs=pairs, scale=2.0))
    path = tmp_path / peft.CONFIG_FILE
    written = json.loads(path.read_text(encoding="utf-8"))
    opened = peft.open_peft(Folders(tmp_path).folder(ref))
    assert torch.equal(opened.layer("layers.0.q_proj")[1], 2.0 * pairs["layers.0.q_proj"].b)
    for change in ({"lora_alpha": 2 * written["lora_alpha"]}, {"use_rslora": True}):
        path.write_text(json.dumps(written | change), encoding="utf-8")
        for read in (peft.read_peft, peft.open_peft):
            with pytest.raises(AdapterError, match=r"contradicts the weights file, which says α/r = 2\.0, not"):
                read(Folders(tmp_path).folder(ref))


def test_an_rslora_folder_of_others_gives_its_layers_as_scaled_as_the_whole(tmp_path: Path) -> None:
    pairs = {"layers.0.q_proj": peft.Pair(torch.randn(4, 4), torch.randn(4, 4))}
    peft.write_peft(tmp_path, peft.Adapter(pairs=pairs, scale=1.0))
    weights, config = tmp_path / peft.WEIGHTS_FILE, tmp_path / peft.CONFIG_FILE
    weights.write_bytes(save(load(weights.read_bytes())))  # as PEFT writes it: nothing in the metadata
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_rslora": True}), encoding="utf-8")
    whole = peft.read_peft(tmp_path)
    assert whole.scale == 2.0
    down_RI, up_RO = peft.open_peft(tmp_path).layer("layers.0.q_proj")
    assert torch.equal(down_RI, whole.pairs["layers.0.q_proj"].a.T)
    assert torch.equal(up_RO, 2.0 * whole.pairs["layers.0.q_proj"].b)
    with pytest.raises(AdapterError, match=r"nothing for 'layers\.1\.q_proj'"):
        peft.open_peft(tmp_path).layer("layers.1.q_proj")
