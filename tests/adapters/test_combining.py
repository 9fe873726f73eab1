"""Adapters added, measured against each other and merged: compared with dense sums and with PEFT itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rune.adapters import composition, convert, interference, merge_settings, merging, peft
from rune.adapters.factors import LoraTargets, Size
from rune.adapters.peft import Adapter, Pair
from rune.errors import AdapterError, ConfigError
from rune.types import ModelRef
from tests.adapters import small
from tests.adapters.small import delta

WHOLE = tuple(small.SIZES)


def dense(adapters: Sequence[Adapter], weights: Sequence[float], name: str) -> torch.Tensor:
    here = [w * delta(a, name) for a, w in zip(adapters, weights, strict=True) if name in a.pairs]
    return torch.stack(here).sum(0)


def flipped(adapter: Adapter) -> Adapter:
    """The very same ΔW, written as (−A)(−B) with the ranks in another order."""
    pairs = {name: Pair(-pair.a.flip(1), -pair.b.flip(0)) for name, pair in adapter.pairs.items()}
    return Adapter(pairs=pairs, scale=adapter.scale, base_model=adapter.base_model)


# --------------------------------------------------------------------------- composition


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 0.5, -0.25), (0.0, 2.0, 1.0)])
def test_composition_is_the_weighted_sum_of_the_deltas(weights: tuple[float, ...]) -> None:
    parts = [
        small.adapter(1, rank=3, scale=2.0),
        small.adapter(2, rank=5, scale=0.5),
        small.adapter(3, rank=1, names=WHOLE[:1]),
    ]
    whole = composition.compose(parts, weights)
    assert whole.rank == 9 and whole.base_model == small.BASE
    for name in WHOLE:
        torch.testing.assert_close(delta(whole, name), dense(parts, weights, name), rtol=1e-5, atol=1e-5)
        assert whole.pairs[name].a.shape[1] == 9  # PEFT states one rank for all modules


def test_weights_may_differ_from_module_to_module() -> None:
    parts = [small.adapter(1), small.adapter(2)]
    each = {name: 0.1 * n for n, name in enumerate(WHOLE)}
    whole = composition.compose(parts, [1.0, each])
    for name in WHOLE:
        expected = delta(parts[0], name) + each[name] * delta(parts[1], name)
        torch.testing.assert_close(delta(whole, name), expected, rtol=1e-5, atol=1e-5)


def test_half_precision_parts_are_summed_without_rounding_the_weight_in() -> None:
    part = small.adapter(1)
    half = Adapter(
        pairs={n: Pair(p.a.bfloat16(), p.b.bfloat16()) for n, p in part.pairs.items()},
        scale=part.scale,
        base_model=part.base_model,
    )
    whole = composition.compose([half], [1 / 3])
    for name in WHOLE:
        torch.testing.assert_close(delta(whole, name), delta(half, name) / 3, rtol=1e-6, atol=1e-6)


def test_what_cannot_be_summed_is_refused() -> None:
    one = small.adapter(1)
    strange = Adapter(pairs={WHOLE[0]: Pair(torch.ones(5, 1), torch.ones(1, 5))}, scale=1, base_model=small.BASE)
    wrong: list[tuple[list[Adapter], str]] = [
        ([], "no adapters to combine"),
        ([one, small.adapter(2, base=small.OTHER)], "belong to several base models"),
        ([one, strange], "not one base model"),
    ]
    for parts, words in wrong:
        with pytest.raises(AdapterError, match=words):
            composition.compose(parts)
    with pytest.raises(AdapterError, match="2 adapters and 1 weights"):
        composition.compose([one, one], [1.0])
    with pytest.raises(AdapterError, match="a weight is nan"):
        composition.compose([one], [math.nan])


def test_shrinking_gives_the_best_delta_of_its_rank() -> None:
    whole = composition.compose([small.adapter(1, rank=4), small.adapter(2, rank=4)])
    for rank in (1, 3, 8, 20):
        smaller = composition.shrink(whole, rank)
        assert smaller.rank == rank
        for name in WHOLE:
            u, s, v = torch.linalg.svd(delta(whole, name), full_matrices=False)
            best = (u[:, :rank] * s[:rank]) @ v[:rank]
            torch.testing.assert_close(delta(smaller, name), best, rtol=1e-4, atol=1e-4)


def test_shrinking_an_adapter_of_any_scale_leaves_its_delta() -> None:
    one = small.adapter(1, rank=3, scale=2.0)
    for name in WHOLE:
        torch.testing.assert_close(delta(composition.shrink(one, 3), name), delta(one, name), rtol=1e-4, atol=1e-4)


def test_factors_for_training_hold_the_scale() -> None:
    """A fine-tuned adapter of α/r = 2 is a goal of reconstruction: its ΔW, not half of it."""
    one = small.adapter(1, scale=2.0, names=WHOLE[::2])
    size = Size(*small.SIZES[WHOLE[0]])
    layout = LoraTargets(
        layers=2, width=12, sizes={"q_proj": size}, paths={"q_proj": "model.layers.{}.self_attn.q_proj"}
    )
    down_YNRI, up_YNRO = convert.from_adapter(one, layout)["q_proj"]
    assert down_YNRI.shape == (2, 1, 3, 12) and up_YNRO.shape == (2, 1, 3, 10)
    for layer, name in enumerate(WHOLE[::2]):
        found = down_YNRI[layer, 0].T.double() @ up_YNRO[layer, 0].double()
        torch.testing.assert_close(found, delta(one, name), rtol=1e-5, atol=1e-5)
    back = convert.to_adapter(convert.from_adapter(one, layout), layout, base_model=small.BASE)
    for name in WHOLE[::2]:
        torch.testing.assert_close(delta(back, name), delta(one, name), rtol=1e-5, atol=1e-5)


def test_an_adapter_without_a_module_that_is_learned_is_refused_by_its_folder_and_the_modules_name(
    tmp_path: Path,
) -> None:
    """As `train.hypernet.reconstruct_from` meets one: PEFT's own default adapts two kinds of module."""
    one = small.adapter(1, names=WHOLE[::2])
    folder = tmp_path / "one"
    peft.write_peft(folder, one)
    size = Size(*small.SIZES[WHOLE[0]])
    paths = {"q_proj": "model.layers.{}.self_attn.q_proj", "o_proj": "model.layers.{}.self_attn.o_proj"}
    layout = LoraTargets(layers=2, width=12, sizes={"q_proj": size, "o_proj": size}, paths=paths)
    words = r"/one: the adapter has no 'model\.layers\.0\.self_attn\.o_proj'; what fits has q_proj, o_proj in 2 layers"
    with pytest.raises(AdapterError, match=words):
        convert.read(folder, layout)


# --------------------------------------------------------------------------- what stands between two


def test_cosines_and_overlaps_are_those_of_the_dense_deltas() -> None:
    first, second = small.adapter(1, rank=2), small.adapter(2, rank=3, scale=0.7)
    for name, found in interference.measure(first, second).items():
        one, two = delta(first, name), delta(second, name)
        assert found.norms == pytest.approx((float(one.norm()), float(two.norm())))
        assert found.cosine == pytest.approx(float((one * two).sum() / one.norm() / two.norm()))
        for overlap, (x, y) in ((found.inputs, (one, two)), (found.outputs, (one.T, two.T))):
            u1, u2 = torch.linalg.svd(x)[0][:, :2], torch.linalg.svd(y)[0][:, :3]
            assert overlap == pytest.approx(float((u1.T @ u2).square().sum()) / 2)
    whole = [torch.cat([delta(a, n).flatten() for n in WHOLE]) for a in (first, second)]
    expected = float(whole[0] @ whole[1] / whole[0].norm() / whole[1].norm())
    assert interference.cosine(first, second) == pytest.approx(expected)
    assert interference.summary(first, second).cosine == pytest.approx(expected)


def test_known_answers_identical_opposite_orthogonal_and_padded() -> None:
    one = small.adapter(1)
    opposite = Adapter(pairs=one.pairs, scale=-one.scale, base_model=one.base_model)
    padded = composition.compose([one, small.adapter(2)], [1.0, 0.0])  # rank 6, of which 3 do nothing
    eye = torch.eye(4)
    left = Adapter(pairs={"x.q_proj": Pair(eye[:, :2], eye[:2])}, scale=1.0, base_model=small.BASE)
    right = Adapter(pairs={"x.q_proj": Pair(eye[:, 2:], eye[2:])}, scale=1.0, base_model=small.BASE)
    for other, cosine, overlap in ((one, 1, 1), (flipped(one), 1, 1), (opposite, -1, 1), (padded, 1, 1)):
        found = interference.summary(one, other)
        assert found[:3] == pytest.approx((cosine, overlap, overlap), abs=1e-5)
    assert interference.summary(left, right)[:3] == pytest.approx((0, 0, 0))
    assert math.isnan(interference.cosine(composition.compose([one], [0.0]), one))


# --------------------------------------------------------------------------- merges, against PEFT


def folders(root: Path, model: ModelRef, ranks: Sequence[int], names: tuple[str, ...]) -> list[Adapter]:
    """PEFT folders root/0, root/1, … of random adapters for the tiny model."""
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model.path)
    made = []
    for number, rank in enumerate(ranks):
        rng = torch.Generator().manual_seed(100 + number)
        pairs = {
            name: Pair(
                torch.randn(layer.in_features, rank, generator=rng),
                torch.randn(rank, layer.out_features, generator=rng) * 0.1,
            )
            for name, layer in peft.target_linears(loaded, names).items()
        }
        made.append(Adapter(pairs=pairs, scale=1.0 + number, base_model=model.digest))
        peft.write_peft(root / str(number), made[-1])
    return made


@pytest.fixture
def with_peft(tiny_model: ModelRef, tmp_path: Path) -> Iterator[Any]:
    """(ranks, modules, weights, how) → our merge and PEFT's, as dense ΔW by module."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def both(
        ranks: Sequence[int], names: tuple[str, ...], weights: list[float], how: merge_settings.Settings
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        adapters = folders(tmp_path, tiny_model, ranks, names)
        ours = merging.merge(adapters, weights, how)
        model = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tiny_model.path), str(tmp_path / "0"), adapter_name="0"
        )
        for number in range(1, len(ranks)):
            model.load_adapter(str(tmp_path / str(number)), adapter_name=str(number))
        inject = model.base_model.inject_adapter

        def then_seed(*args: Any, **options: Any) -> None:  # PEFT draws the start of the new adapter before it merges
            inject(*args, **options)
            torch.manual_seed(how.seed)

        model.base_model.inject_adapter = then_seed
        model.add_weighted_adapter(
            [str(n) for n in range(len(ranks))],
            weights,
            "merged",
            combination_type=how.method,
            svd_rank=how.rank or None,
            density=how.density,
            majority_sign_method=how.sign,
        )
        found = {}
        for name in ours.pairs:
            layer = model.base_model.model.get_submodule(name)
            found[name] = (delta(ours, name), layer.get_delta_weight("merged").detach().T.double())
        return found

    yield both


CASES = [
    ("cat", (2, 3), {}),
    ("svd", (2, 3), {}),
    ("svd", (2, 2), {"rank": 4}),
    ("linear", (3, 3), {}),
    ("ties", (3, 3), {"density": 0.4}),
    ("ties", (3, 3), {"density": 0.7, "sign": "frequency"}),
    ("magnitude_prune", (3, 3), {"density": 0.4}),
    ("dare_linear", (3, 3), {"density": 0.5, "seed": 4}),
    ("dare_ties", (3, 3), {"density": 0.5, "seed": 5}),
    ("ties_svd", (2, 3), {"density": 0.4, "rank": 5}),
    ("magnitude_prune_svd", (2, 3), {"density": 0.4, "rank": 5}),
    ("dare_linear_svd", (2, 3), {"density": 0.5, "rank": 5, "seed": 6}),
    ("dare_ties_svd", (2, 3), {"density": 0.5, "rank": 5, "seed": 7, "sign": "frequency"}),
]


@pytest.mark.parametrize(("method", "ranks", "options"), CASES)
@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.7, -0.3]])
def test_every_operator_gives_pefts_delta(
    with_peft: Any, method: str, ranks: tuple[int, ...], options: dict[str, Any], weights: list[float]
) -> None:
    how = merge_settings.settings(method=method, **options)
    # Chance is drawn module by module in order: of one kind of module, so that PEFT's order is ours.
    names = ("q_proj",) if "dare" in method else ("q_proj", "v_proj", "down_proj")
    found = with_peft(ranks, names, weights, how)
    assert len(found) == 2 * len(names)
    for name, (ours, theirs) in found.items():
        assert float(theirs.norm()) > 0.1, name
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", merge_settings.METHODS)
def test_a_merge_is_the_same_again_and_touches_no_global_chance(method: str) -> None:
    options: dict[str, Any] = {} if method in ("cat", "svd", "linear") else {"density": 0.5}
    how = merge_settings.settings(method=method, seed=3, **options)
    parts = [small.adapter(1), small.adapter(2)]
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first, second = (merging.merge(parts, [0.5, 0.5], how) for _ in range(2))
    assert peft.content_id(first) == peft.content_id(second)
    assert torch.equal(before, torch.get_rng_state())
    if "dare" in method:
        other = merging.merge(parts, [0.5, 0.5], merge_settings.settings(method=method, seed=4, **options))
        assert peft.content_id(other) != peft.content_id(first)


@pytest.mark.parametrize(
    "method", ["cat", "svd", "ties_svd", "dare_ties_svd", "dare_linear_svd", "magnitude_prune_svd"]
)
def test_merges_on_deltas_do_not_care_how_a_delta_is_written(method: str) -> None:
    options: dict[str, Any] = {} if method in ("cat", "svd") else {"density": 0.6}
    how = merge_settings.settings(method=method, rank=0 if method == "cat" else 6, seed=2, **options)
    one, two = small.adapter(1), small.adapter(2)
    plain, turned = (merging.merge([a, two], [1.0, 1.0], how) for a in (one, flipped(one)))
    for name in WHOLE:
        torch.testing.assert_close(delta(plain, name), delta(turned, name), rtol=1e-3, atol=1e-3)


def test_averaging_factors_can_merge_an_adapter_with_itself_to_nothing() -> None:
    """Why `linear` is no default: (A, B) and (−A, −B) are one adapter, and their average is zero."""
    one = small.adapter(1)
    minus = Adapter(
        pairs={n: Pair(-p.a, -p.b) for n, p in one.pairs.items()}, scale=one.scale, base_model=one.base_model
    )
    linear = merging.merge([one, minus], [0.5, 0.5], merge_settings.settings(method="linear"))
    svd = merging.merge([one, minus], [0.5, 0.5], merge_settings.settings(method="svd"))
    for name in WHOLE:
        assert float(delta(linear, name).norm()) < 1e-5
        torch.testing.assert_close(delta(svd, name), delta(one, name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "tees"}, r"no merge method named 'tees'; did you mean 'ties'\?"),
        ({"method": "ties"}, "'ties' needs a density"),
        ({"method": "svd", "density": 0.5}, "'svd' takes no density"),
        ({"method": "ties", "density": 0.0}, "above 0 and up to 1; found 0"),
        ({"method": "ties", "density": 0.5, "sign": "most"}, "sign is 'total' or 'frequency'"),
        ({"method": "svd", "rank": -1}, "rank must be 1 or more"),
    ],
)
def test_settings_of_a_merge_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        merge_settings.settings(**options)


def test_methods_that_keep_a_and_b_apart_need_one_rank() -> None:
    with pytest.raises(AdapterError, match=r"have ranks 2, 3, .* use svd, cat or a method that ends in _svd"):
        merging.merge(
            [small.adapter(1, rank=2), small.adapter(2, rank=3)], [1, 1], merge_settings.settings(method="linear")
        )


@pytest.mark.parametrize("shape", [(120, 200), (300, 90), (10, 400)])
def test_the_leading_part_of_a_large_matrix_is_as_near_to_it_as_any_of_its_rank(shape: tuple[int, int]) -> None:
    rng = torch.Generator().manual_seed(3)
    smooth = torch.randn(shape[0], 6, generator=rng) @ torch.randn(6, shape[1], generator=rng)
    matrix = smooth + 0.5 * torch.randn(shape, generator=rng)  # a tail, as what changes single entries leaves
    u_IK, s_K, v_OK = merging.leading(matrix, 4)
    near = v_OK[:, :4] * s_K[:4] @ u_IK[:, :4].T
    left, size, right = torch.linalg.svd(matrix)
    best = left[:, :4] * size[:4] @ right[:4]
    assert float((matrix - near).norm() / (matrix - best).norm()) < 1.001
    torch.testing.assert_close(s_K[:4], size[:4], rtol=1e-3, atol=0)
    again = merging.leading(matrix, 4)
    assert all(torch.equal(a, b) for a, b in zip((u_IK, s_K, v_OK), again, strict=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_merge_on_a_gpu_that_is_not_there_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="takes a GPU, and there is none; leave device out"):
        merging.merge([small.adapter(1)], [1.0], merge_settings.Settings(method="svd", device="cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", merge_settings.METHODS)
def test_a_merge_on_a_gpu_is_that_of_the_cpu_where_nothing_is_left_to_chance(method: str) -> None:
    density = None if method in ("cat", "svd", "linear") else 1.0
    parts, weights = [small.adapter(1), small.adapter(2)], [0.5, 0.5]
    here, there = (
        merging.merge(parts, weights, merge_settings.Settings(method=method, density=density, device=device))
        for device in ("cpu", "cuda")
    )
    for name in WHOLE:
        torch.testing.assert_close(delta(there, name), delta(here, name), rtol=1e-4, atol=1e-4)
