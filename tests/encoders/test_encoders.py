"""Every file in encoders/: one contract. A new encoder is tested before its author writes a test."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rune import plugins
from rune.encoders._front import Ending, FrontEnd, Kind, Steps

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
