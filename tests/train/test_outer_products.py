"""Adapters as sums of outer products: what is observed, what an adapter does, what is learned."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from rune.adapters.factors import concatenate, select
from rune.hypernet import base as bases
from rune.hypernet.base import Base, Text
from rune.hypernet.outer_products import MODULES, OuterProducts, observe, write
from rune.types import ModelRef


@pytest.fixture
def base(tiny_model: ModelRef) -> Iterator[Base]:
    loaded = bases.load(tiny_model, device="cpu", dtype="float32")
    yield loaded
    loaded.hooks.remove()


def texts(base: Base) -> list[Text]:
    codes = ("def f(x):\n    return blorp(x, zibble=3)\n", "def g(x):\n    return [snurg(y) for y in x]\n")
    return [base.encode(f"Write {code[4]}.\n", code) for code in codes]


def log_prob(base: Base, text: Text, adapters: object) -> float:
    with torch.no_grad():
        return float(base.log_prob(base.rows([text]), adapters).sum())  # type: ignore[arg-type]


def test_the_error_is_the_gradient_at_the_last_norm(base: Base) -> None:
    """−e is what a backward pass gives there: with one text and every token kept."""
    text = texts(base)[0]
    count = len(text.ids) - text.start
    seen = observe(base, [[text]], tokens=count)
    rows = base.rows([text])
    inner = base.model
    hidden_BTW = inner.model(input_ids=rows.ids_BT, use_cache=False).last_hidden_state.detach().requires_grad_()
    logits_PV = inner.lm_head(hidden_BTW[rows.row_P, rows.position_P])
    torch.nn.functional.cross_entropy(logits_PV, rows.label_P, reduction="sum").backward()
    gradient_PW = hidden_BTW.grad[0, rows.position_P] * inner.model.norm.weight
    ours = {tuple(row) for row in seen.error_YNRW["down_proj"][0, 0].mul(1e3).round().int().tolist()}
    theirs = {tuple(row) for row in gradient_PW.mul(-1e3).round().int().tolist()}
    assert len(ours) == count
    assert len(ours & theirs) > 0.8 * count  # the rest lies at a rounding edge


def test_the_tokens_kept_are_those_that_the_model_was_most_wrong_about(base: Base) -> None:
    one, other = texts(base)
    every = observe(base, [[one], [other, one]], tokens=200)
    few = observe(base, [[one], [other, one]], tokens=5)
    assert every.mask_NR.sum(1).tolist() == [
        len(one.ids) - one.start, len(one.ids) - one.start + len(other.ids) - other.start,
    ]  # fmt: skip
    for n in range(2):
        sizes = every.error_YNRW["o_proj"][0, n].norm(dim=-1)[every.mask_NR[n]]
        torch.testing.assert_close(few.error_YNRW["o_proj"][0, n].norm(dim=-1).sort().values, sizes.sort().values[-5:])
    assert few.keys_YNRI["down_proj"].shape == (2, 2, 5, 128)


def test_an_untrained_adapter_makes_what_was_read_likelier_and_what_it_shares_with_another_text(base: Base) -> None:
    one, other = texts(base)
    seen = observe(base, [[one], [other]], tokens=64)
    model = OuterProducts(base.layout(MODULES), gain=0.01)
    model.calibrate(base, seen)
    with torch.no_grad():
        made = model(seen)
    for text, right, wrong in ((one, 0, 1), (other, 1, 0)):
        bare = log_prob(base, text, None)
        own = log_prob(base, text, select(made, slice(right, right + 1)))
        strange = log_prob(base, text, select(made, slice(wrong, wrong + 1)))
        assert own > bare + 1.0
        assert own > strange + 1.0


def test_a_second_pass_writes_what_the_first_left_wrong(base: Base) -> None:
    one, other = texts(base)
    sets = [[other], [one, other], [one]]  # rows of one set beside several of another
    seen = observe(base, sets, tokens=64)
    model = OuterProducts(base.layout(MODULES), gain=0.01)
    model.calibrate(base, seen)
    with torch.no_grad():
        first = model(seen)
        again = observe(base, sets, tokens=64, applied=first)
        alone = observe(base, sets[2:], tokens=64, applied=select(first, slice(2, 3)))
        both = concatenate(first, model(again))
    sizes, by_itself = (
        some.error_YNRW["o_proj"][0, n].norm(dim=-1).sort().values for some, n in ((again, 2), (alone, 0))
    )
    torch.testing.assert_close(sizes, by_itself, rtol=1e-2, atol=1e-3)
    assert again.error_YNRW["o_proj"][0, 2].norm() < seen.error_YNRW["o_proj"][0, 2].norm()
    once, twice = (log_prob(base, one, select(made, slice(2, 3))) for made in (first, both))
    assert twice > once + 1.0


def test_padding_changes_nothing_and_a_set_without_texts_gives_the_bare_model(base: Base) -> None:
    one, other = texts(base)
    seen = observe(base, [[one], [], [other, one]], tokens=80)
    model = OuterProducts(base.layout(MODULES), gain=0.01)
    model.calibrate(base, seen)
    torch.nn.init.normal_(model.gate.weight)
    with torch.no_grad():
        for write_YKW in model.write_YKW.values():
            write_YKW.normal_()
        together = model(seen)
        alone = model(observe(base, [[one]], tokens=len(one.ids) - one.start))
    for module in MODULES:
        full, short = (
            torch.einsum("yri,yro->yio", f.down_YNRI[:, 0], f.up_YNRO[:, 0]) for f in (together[module], alone[module])
        )
        torch.testing.assert_close(full, short, rtol=1e-4, atol=1e-6)
        assert not together[module].up_YNRO[:, 1].any()
    assert log_prob(base, other, select(together, slice(1, 2))) == pytest.approx(log_prob(base, other, None), abs=1e-4)


def test_every_part_learns(base: Base) -> None:
    one, other = texts(base)
    seen = observe(base, [[one]], tokens=32)
    model = OuterProducts(base.layout(MODULES), correction=4, gain=0.01)
    model.calibrate(base, seen)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    rows = base.rows([other])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        loss = -base.log_prob(rows, model(seen)).mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.01
    unchanged = [name for name, p in model.named_parameters() if torch.equal(before[name], p)]
    assert unchanged == []


def test_without_a_text_there_is_nothing_to_observe(base: Base) -> None:
    with pytest.raises(ValueError, match="one text at least"):
        observe(base, [[]], tokens=4)


def test_the_true_gradient_is_that_of_the_weights_in_the_last_layer(base: Base) -> None:
    one, _ = texts(base)
    seen = observe(base, [[one]], tokens=len(one.ids) - one.start, gradient=True)
    found = torch.einsum("ri,rw->wi", seen.keys_YNRI["down_proj"][-1, 0], seen.error_YNRW["down_proj"][-1, 0])
    linear = base.model.get_submodule(base.layout(MODULES).paths["down_proj"].format(1))
    linear.weight.requires_grad_(True)
    (-base.log_prob(base.rows([one]), None).sum()).backward()
    torch.testing.assert_close(found, -linear.weight.grad, rtol=1e-3, atol=1e-5)
    linear.weight.requires_grad_(False)
    assert seen.error_YNRW["o_proj"].shape == (2, 1, len(one.ids) - one.start, 64)


def test_passes_add_up_each_under_those_before_with_steps_of_its_own(base: Base) -> None:
    one, other = texts(base)
    sets = [[one], [other]]
    for gradient in (False, True):
        model = OuterProducts(base.layout(MODULES), gain=0.01, passes=2, gradient=gradient)
        seen = observe(base, sets, tokens=16, gradient=gradient)
        model.calibrate(base, seen)
        with torch.no_grad():
            for gain_SY in model.log_gain_SY.values():
                gain_SY[1] += 0.5
            first = model(seen, 0)
            again = observe(base, sets, tokens=16, applied=first, gradient=gradient)
            expected = concatenate(first, model(again, 1))
            made = write(base, model, sets, tokens=16)
        for module in MODULES:
            torch.testing.assert_close(made[module].up_YNRO, expected[module].up_YNRO)
            torch.testing.assert_close(made[module].down_YNRI, expected[module].down_YNRI)
        rows = base.rows([one, other])
        loss = -base.log_prob(rows, write(base, model, sets, tokens=16)).mean()
        loss.backward()
        assert all(gain_SY.grad is not None and gain_SY.grad.abs().min() > 0 for gain_SY in model.log_gain_SY.values())
