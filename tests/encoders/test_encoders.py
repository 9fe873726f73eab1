"""Every file in encoders/: one contract. A new encoder is tested before its author writes a test."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rune import plugins
from rune.encoders.shared.token_features import Ending, FrontEnd, Kind, Steps, pool

NAMES = plugins.available("encoders")
TAPS, FEATURES, STEPS, LENGTH = 2, 12, 4, 5  # four steps of five tokens
ORDER_BLIND = [n for n in NAMES if n != "recurrent"]


def make(name: str, **settings: int) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    module = plugins.load("encoders", name)
    config = module.Config(width=16, latents=3, hidden=24, **settings)
    return module.build(config, taps=TAPS, features=FEATURES).eval(), config


def example(seed: int = 1, batch: int = 2) -> Steps:
    rng = torch.Generator().manual_seed(seed)
    tokens = STEPS * LENGTH
    kinds = torch.tensor([Kind.TASK, Kind.ATTEMPT, Kind.ATTEMPT, Kind.SOLUTION]).repeat_interleave(LENGTH)
    endings = torch.tensor([Ending.NONE, Ending.FAILED, Ending.FAILED, Ending.PASSED]).repeat_interleave(LENGTH)
    return Steps(
        torch.randn(batch, tokens, TAPS, FEATURES, generator=rng),
        torch.ones(batch, tokens, dtype=torch.bool),
        kinds.expand(batch, -1),
        endings.expand(batch, -1),
        torch.arange(STEPS).repeat_interleave(LENGTH).expand(batch, -1),
    )


def reorder(steps: Steps, order: list[int]) -> Steps:
    """The same steps in another order, numbered as they now come."""
    index = torch.cat([torch.arange(i * LENGTH, (i + 1) * LENGTH) for i in order])
    moved = Steps(*(t[:, index] for t in steps))
    return moved._replace(step_BT=steps.step_BT)


def pad(steps: Steps, amount: int) -> Steps:
    """Masked rubbish behind the last token."""

    def wider(t: Tensor, value: float) -> Tensor:
        return torch.cat([t, torch.full((t.shape[0], amount, *t.shape[2:]), value).to(t.dtype)], 1)

    return Steps(*(wider(t, v) for t, v in zip(steps, (9.0, 0, 3, 2, 0), strict=True)))


@pytest.mark.parametrize("name", NAMES)
def test_the_output_is_latents_of_the_configured_shape(name: str) -> None:
    encoder, config = make(name)
    assert encoder(example()).shape == (2, config.latents, config.width)


@pytest.mark.parametrize("name", NAMES)
def test_it_reads_its_input(name: str) -> None:
    encoder, _ = make(name)
    assert not torch.allclose(encoder(example(1)), encoder(example(2)), atol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name: str) -> None:
    encoder, _ = make(name)
    assert torch.allclose(encoder(example()), encoder(pad(example(), 7)), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_set_does_not_depend_on_its_neighbours_in_the_batch(name: str) -> None:
    encoder, _ = make(name)
    steps = example(batch=3)
    alone = Steps(*(t[1:2] for t in steps))
    assert torch.allclose(encoder(steps)[1:2], encoder(alone), atol=1e-5)


@pytest.mark.parametrize("name", ORDER_BLIND)
def test_the_order_of_attempts_does_not_matter(name: str) -> None:
    encoder, _ = make(name)
    assert torch.allclose(encoder(example()), encoder(reorder(example(), [0, 2, 1, 3])), atol=1e-5)


def test_the_recurrent_encoder_sees_the_order_of_attempts() -> None:
    """So the test above can fail."""
    encoder, _ = make("recurrent")
    assert not torch.allclose(encoder(example()), encoder(reorder(example(), [0, 2, 1, 3])), atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("field", ["kind_BT", "ending_BT"])
def test_tags_matter(name: str, field: str) -> None:
    encoder, _ = make(name)
    steps = example()
    changed = steps._replace(**{field: torch.full_like(getattr(steps, field), 3)})
    assert not torch.allclose(encoder(steps), encoder(changed), atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_set_is_legal_and_has_one_answer(name: str) -> None:
    encoder, _ = make(name)
    one, other = (s._replace(mask_BT=torch.zeros_like(s.mask_BT)) for s in (example(1), example(2)))
    assert encoder(one).isfinite().all() and torch.allclose(encoder(one), encoder(other), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_every_parameter_also_beside_an_empty_set(name: str) -> None:
    encoder, _ = make(name)
    steps = example()
    mask = steps.mask_BT.clone()
    mask[1] = False
    encoder(steps._replace(mask_BT=mask)).square().sum().backward()
    dead = [
        n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert dead == []


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_under_bfloat16_autocast(name: str) -> None:
    encoder, _ = make(name)
    steps = example()
    with torch.autocast("cpu", torch.bfloat16):
        latents = encoder(steps._replace(features_BTSD=steps.features_BTSD.bfloat16()))
    assert latents.isfinite().all()
    assert torch.allclose(latents.float(), encoder(steps), atol=0.3)


def test_encoders_have_the_same_size_within_a_tenth() -> None:
    """At the default settings, for the 0.5B model: four taps of width 896."""
    counts = {}
    for name in NAMES:
        module = plugins.load("encoders", name)
        built = module.build(module.Config(), taps=4, features=896)
        counts[name] = sum(p.numel() for p in built.parameters())
    assert max(counts.values()) <= 1.1 * min(counts.values()), counts


def test_the_front_end_standardises_with_the_statistics_it_was_given() -> None:
    front = FrontEnd(taps=1, features=4, width=8)
    steps = Steps(
        torch.tensor([[[[3.0, 0.0, 0.0, 0.0]], [[0.0, 3.0, 0.0, 0.0]]]]),
        torch.ones(1, 2, dtype=torch.bool),
        torch.ones(1, 2, dtype=torch.long),
        torch.zeros(1, 2, dtype=torch.long),
        torch.zeros(1, 2, dtype=torch.long),
    )
    apart = front(steps)[0][0, 1:]
    assert not torch.allclose(apart[0], apart[1], atol=1e-2)
    # A huge spread makes all tokens alike: the statistics are in use.
    front.standardise(torch.zeros(1, 4), torch.full((1, 4), 1e6))
    alike = front(steps)[0][0, 1:]
    assert torch.allclose(alike[0], alike[1], atol=1e-4)


# --------------------------------------------------------------------------- masks


def shorter(steps: Steps, kept: int) -> Steps:
    """The same batch, but the second set has only its first `kept` steps; what stood behind them is masked rubbish."""
    gone = torch.zeros_like(steps.mask_BT)
    gone[1, kept * LENGTH :] = True
    return rubbish(steps, gone)


def rubbish(steps: Steps, gone: Tensor) -> Steps:
    """`gone` tokens masked, everything about them changed."""
    return Steps(
        steps.features_BTSD.masked_fill(gone[..., None, None], 9.0),
        steps.mask_BT & ~gone,
        steps.kind_BT.masked_fill(gone, int(Kind.ERROR)),
        steps.ending_BT.masked_fill(gone, int(Ending.TIMED_OUT)),
        steps.step_BT.masked_fill(gone, 3),
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_short_set_beside_a_long_one_is_read_as_if_it_were_alone(name: str, kept: int) -> None:
    """Steps that only its neighbour has are nothing to it, at no level."""
    encoder, _ = make(name)
    together = encoder(shorter(example(), kept))[1:]
    alone = encoder(Steps(*(t[1:, : kept * LENGTH] for t in example())))
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_under_the_mask_is_never_read(name: str) -> None:
    """Hidden tokens lie among the others, as training hides them; their features and tags may be anything."""
    encoder, _ = make(name)
    steps = example()
    gone = torch.rand(steps.mask_BT.shape, generator=torch.Generator().manual_seed(3)) < 0.3
    hidden = encoder(steps._replace(mask_BT=~gone))
    assert torch.allclose(encoder(rubbish(steps, gone)), hidden, atol=1e-5)
    assert not torch.allclose(encoder(steps), hidden, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_every_token_of_every_step_is_read(name: str) -> None:
    """The gradient of the latents reaches the features of each token that stands, and of no other."""
    encoder, _ = make(name)
    steps = shorter(example(), 2)
    features = steps.features_BTSD.clone().requires_grad_()
    # Squared, and against other latents: a plain sum is blind to what a layer norm takes out.
    (encoder(steps._replace(features_BTSD=features)) - encoder(example(5))).square().sum().backward()
    assert features.grad is not None
    reached = features.grad.flatten(2).abs().amax(-1) > 1e-9
    assert torch.equal(reached, steps.mask_BT)


def longer(steps: Steps, step: int) -> Steps:
    """The tokens of one step written three times over."""
    index = torch.cat([torch.arange(i * LENGTH, (i + 1) * LENGTH).repeat(3 if i == step else 1) for i in range(STEPS)])
    return Steps(*(t[:, index] for t in steps))


@pytest.mark.parametrize("name", ["hierarchical", "recurrent"])
def test_a_long_attempt_weighs_no_more_than_a_short_one(name: str) -> None:
    """What reads step by step sums each one up before it looks at the set."""
    encoder, _ = make(name)
    assert torch.allclose(encoder(example()), encoder(longer(example(), 1)), atol=1e-5)


def test_the_perceiver_counts_tokens() -> None:
    """So the test above can fail."""
    encoder, _ = make("perceiver")
    assert not torch.allclose(encoder(example()), encoder(longer(example(), 1)), atol=1e-4)


@pytest.mark.parametrize("name", ["hierarchical", "recurrent"])
def test_it_matters_which_step_a_token_belongs_to(name: str) -> None:
    encoder, _ = make(name)
    steps = example()
    regrouped = steps._replace(step_BT=(torch.arange(STEPS * LENGTH) * STEPS // 3 // LENGTH % STEPS).expand(2, -1))
    assert not torch.allclose(encoder(steps), encoder(regrouped), atol=1e-4)


def test_pooling_gives_mean_and_maximum_of_each_groups_unmasked_tokens() -> None:
    x = torch.tensor([[[-1.0, 4.0], [-3.0, 2.0], [100.0, 100.0], [7.0, -7.0]]])
    mask = torch.tensor([[True, True, False, True]])
    mean, largest, present = pool(x, mask, torch.tensor([[0, 0, 0, 2]]), 3)
    assert mean.tolist() == [[[-2.0, 3.0], [0.0, 0.0], [7.0, -7.0]]]
    assert largest.tolist() == [[[-1.0, 4.0], [0.0, 0.0], [7.0, -7.0]]]
    assert present.tolist() == [[True, False, True]]


def test_the_front_end_takes_the_mean_out_and_divides_by_the_spread_and_no_outlier_drowns_the_rest() -> None:
    """Statistics of its own make features whose difference they hide come out alike, and a huge one stays in bounds."""
    front = FrontEnd(taps=1, features=4, width=8)
    one = torch.tensor([2.0, 0.0, 0.0, 0.0])  # at root-mean-square 1 already
    other = torch.tensor([0.0, 2.0, 0.0, 0.0])

    def token(feature: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
        front.standardise(mean[None], spread[None])
        tags = torch.zeros(1, 1, dtype=torch.long)
        steps = Steps(feature[None, None, None], torch.ones(1, 1, dtype=torch.bool), tags, tags, tags)
        return front(steps)[0][0, 1].detach()

    ones = torch.ones(4)
    assert torch.allclose(token(one, one, ones), token(other, other, ones), atol=1e-4)
    assert torch.allclose(token(one, 0 * ones, ones / 3), token(one, -2 * one, ones), atol=1e-4)  # 3 · one both times
    assert torch.allclose(token(one, 0 * ones, ones / 50), token(one, 0 * ones, ones / 500), atol=1e-4)


def test_the_front_end_hears_every_tap() -> None:
    encoder, _ = make("perceiver")
    steps = example()
    for tap in range(TAPS):
        changed = steps.features_BTSD.clone()
        changed[:, :, tap] = changed[:, :, tap].roll(1, -1)
        assert not torch.allclose(encoder(steps), encoder(steps._replace(features_BTSD=changed)), atol=1e-3)
