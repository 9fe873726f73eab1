"""Adapters as sums of outer products: solved tasks are read once by the whole base model and written into its weights.

    e_t    = γ ∘ (E[y_t] − Σ_v p_t(v) E[v])          what the model got wrong at token t, in the residual stream
    ΔW_l   = gain_l · Σ_t gate_t · (1 + U_l V_l) e_t ⊗ (scale_l ∘ k_l,t)

k_l,t is what entered module l at that token, E the output embedding, γ the weight of the last norm. −e_t is the
gradient of the loss at the last layer up to that norm's size; the stream is a sum, so it stands in for the gradient at
every module that writes into it: a *synthetic gradient* (Jaderberg et al. 2017), found without a backward pass. Learned
are how large a step each layer takes, which inputs tell tokens apart, and a low-rank correction of the direction. Names
that training never saw are copied as well as others, as E and k already tell them apart; the hypernetwork of `model.py`
has to learn that for each of them. ΔW is linear in the tokens, and zero for a text that the model knows.

Several passes add up: each reads the texts under what the passes before it have written, and takes steps of its own
sizes. As a reference for the synthetic gradient, `gradient` puts the true one of every module in e_t's place, which
costs a backward pass; with it, one pass is one step of gradient descent whose step sizes are learned (Meta-SGD, Li et
al. 2017).

Sums of outer products as weights: Schlag et al. 2021; of a context's tokens in one pass: Chen et al. 2024
(Generative Adapter, arXiv 2411.05877); keys and values of `down_proj`: Meng et al. 2023 (MEMIT).
"""

# Shapes: N sets · R tokens kept of a set = rank · Y layers · W width of the stream · I inputs of a module · B rows
#         P solution tokens of all rows · K rank of the correction · S passes
from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rune.adapters.factors import Adapters, Factors, LoraTargets, concatenate
from rune.hypernet.base import Base, Text, pairs

MODULES = ("o_proj", "down_proj")  # those that write into the residual stream
FIRST_GAIN = 0.002  # a token's step as a share of the stream; at five times that, untrained adapters of 24 layers harm


class Observed(NamedTuple):
    """What the base model saw in N sets of solved tasks, at the R tokens of each that it was most wrong about."""

    keys_YNRI: dict[str, Tensor]  # module type → what entered it
    error_YNRW: dict[str, Tensor]  # module type → e_t, Y = 1; or the negative gradient of each layer's module
    state_NRW: Tensor  # the last hidden state before the token
    mask_NR: Tensor  # False where a set has fewer tokens
    stream_Y: Tensor  # mean norm of the residual stream after each layer


def observe(
    base: Base, sets: Sequence[Sequence[Text]], *, tokens: int, applied: Adapters | None = None, gradient: bool = False
) -> Observed:
    """One pass of the base model. `tokens` is R; a set may hold several texts, an empty one gives no token.

    With `applied`, N adapters, each set is read under its own: what is still got wrong then. With `gradient` a backward
    pass follows. Nothing here is differentiated by the caller: what was read counts as given.
    """
    layout = base.layout(MODULES)
    texts = [text for one in sets for text in one]
    if not texts:
        raise ValueError("observe needs one text at least")
    rows = base.rows(texts)
    place = rows.row_P, rows.position_P
    owner_B = torch.tensor([n for n, one in enumerate(sets) for _ in one], device=base.device)
    stacked = pairs(applied, base.layout(tuple(applied))) if applied else {}
    inner: Any = base.model
    with torch.set_grad_enabled(gradient), base.hooks.using(stacked, owner_B if applied else None):
        embedded_BTW = inner.model.embed_tokens(rows.ids_BT).detach().requires_grad_(gradient)
        with _watching(base, layout, place) as (inputs, outputs, norms):
            hidden_BTW = inner.model(inputs_embeds=embedded_BTW, use_cache=False).last_hidden_state
        state_PW = hidden_BTW[place]
        logits_PV = inner.lm_head(state_PW).float()
        if gradient:
            loss = F.cross_entropy(logits_PV, rows.label_P, reduction="sum")
            slopes = dict(zip(outputs, torch.autograd.grad(loss, list(outputs.values())), strict=True))
    with torch.no_grad():
        embedding_VW = inner.lm_head.weight
        probability_PV = logits_PV.softmax(-1).to(embedding_VW.dtype)
        error_PW = inner.model.norm.weight * (embedding_VW[rows.label_P] - probability_PV @ embedding_VW)
        chosen_NR, mask_NR = _largest(error_PW.float().norm(dim=-1), owner_B[rows.row_P], len(sets), tokens)
        keys, errors = {}, {}
        for module, path in layout.paths.items():
            paths = [path.format(y) for y in range(layout.layers)]
            keys[module] = torch.stack([inputs[p][chosen_NR] for p in paths])
            errors[module] = error_PW[None, chosen_NR]
            if gradient:
                errors[module] = torch.stack([-slopes[p][place][chosen_NR] for p in paths])
        return Observed(keys, errors, state_PW[chosen_NR].detach(), mask_NR, torch.stack(norms))


@contextlib.contextmanager
def _watching(
    base: Base, layout: LoraTargets, place: tuple[Tensor, Tensor]
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor], list[Tensor]]]:
    """While open: path → inputs [P, I] and outputs [B, T, W] of each module, and the stream's norm after each layer."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    norms: list[Tensor] = []
    handles = []

    def keep(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[path] = args[0][place].detach()
            if output.requires_grad:
                outputs[path] = output

        return hook

    def measure(module: nn.Module, args: Any, output: Any) -> None:
        stream_BTW = output[0] if isinstance(output, tuple) else output
        norms.append(stream_BTW[place].detach().float().norm(dim=-1).mean())

    for layer in range(layout.layers):
        paths = [path.format(layer) for path in layout.paths.values()]
        handles += [base.model.get_submodule(path).register_forward_hook(keep(path)) for path in paths]
        stem = layout.paths["down_proj"].partition(".{}")[0]
        handles.append(base.model.get_submodule(f"{stem}.{layer}").register_forward_hook(measure))
    try:
        yield inputs, outputs, norms
    finally:
        for handle in handles:
            handle.remove()


def _largest(size_P: Tensor, set_P: Tensor, sets: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Index into P of the `tokens` largest of each set [N, R], and whether there are so many [N, R]."""
    count_N = torch.bincount(set_P, minlength=sets)
    first_N = count_N.cumsum(0) - count_N  # the rows of a set stand together
    slot_P = torch.arange(len(set_P), device=set_P.device) - first_N[set_P]
    dense_NT = torch.full((sets, max(int(count_N.max()), tokens)), -1.0, device=size_P.device)
    dense_NT[set_P, slot_P] = size_P
    top = dense_NT.topk(tokens, dim=-1)
    mask_NR = top.values >= 0
    return torch.where(mask_NR, first_N[:, None] + top.indices, 0), mask_NR


class OuterProducts(nn.Module):
    """`Observed` → factors of N adapters of rank R, for the modules that write into the residual stream."""

    stream_Y: Tensor
    unit_MY: Tensor
    power_MY: Tensor

    def __init__(
        self, layout: LoraTargets, *, correction: int = 32, gain: float = FIRST_GAIN, passes: int = 1,
        gradient: bool = False,
    ) -> None:  # fmt: skip
        """`correction` is K; 0 leaves the direction as it is. Untrained, S passes take a step of `gain` together."""
        super().__init__()
        self.passes, self.gradient = passes, gradient
        layers, width = layout.layers, layout.width
        sizes = {m: layout.sizes[m] for m in MODULES}
        self.log_gain_SY = nn.ParameterDict({m: torch.full((passes, layers), math.log(gain / passes)) for m in sizes})
        self.scale_YI = nn.ParameterDict({m: torch.ones(layers, s.inputs) for m, s in sizes.items()})
        self.read_YWK = nn.ParameterDict(
            {m: torch.randn(layers, width, correction) / math.sqrt(width) for m in sizes if correction}
        )
        self.write_YKW = nn.ParameterDict({m: torch.zeros(layers, correction, width) for m in sizes if correction})
        self.gate = nn.Linear(width, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        self.register_buffer("stream_Y", torch.ones(layers))
        self.register_buffer("unit_MY", torch.ones(len(sizes), layers))
        self.register_buffer("power_MY", torch.ones(len(sizes), layers))

    @torch.no_grad()
    def calibrate(self, base: Base, seen: Observed) -> None:
        """Measure once what the learned gains are shares of: sizes of stream, error and inputs."""
        inner: Any = base.model
        weight_VW = inner.lm_head.weight.float() * inner.model.norm.weight.float()
        self.unit_MY.fill_(weight_VW.norm(dim=-1).mean())
        self.stream_Y.copy_(seen.stream_Y)
        mask_NR = seen.mask_NR.float()
        for number, module in enumerate(MODULES):
            power_YNR = seen.keys_YNRI[module].float().square().sum(-1)
            self.power_MY[number] = (power_YNR * mask_NR).sum((1, 2)) / mask_NR.sum()
            if self.gradient:
                size_YNR = seen.error_YNRW[module].float().norm(dim=-1)
                self.unit_MY[number] = (size_YNR * mask_NR).sum((1, 2)) / mask_NR.sum()

    def forward(self, seen: Observed, number: int = 0) -> dict[str, Factors]:
        """What pass `number` adds: down [Y, N, R, I], up [Y, N, R, W]; tokens beyond a set's own are zero."""
        state_NRW = F.rms_norm(seen.state_NRW.float(), (seen.state_NRW.shape[-1],))
        gate_NR = 2.0 * self.gate(state_NRW)[..., 0].sigmoid() * seen.mask_NR
        made = {}
        for at, module in enumerate(MODULES):
            keys_YNRI = seen.keys_YNRI[module]
            scale_YI = self.scale_YI[module] / self.power_MY[at][:, None]
            up_YNRW = seen.error_YNRW[module].float() * gate_NR[..., None] / self.unit_MY[at][:, None, None, None]
            if module in self.read_YWK:
                read_YNRK = torch.einsum("ynrw,ywk->ynrk", up_YNRW, self.read_YWK[module])
                up_YNRW = up_YNRW + torch.einsum("ynrk,ykw->ynrw", read_YNRK, self.write_YKW[module])
            step_Y = self.log_gain_SY[module][number].exp() * self.stream_Y
            made[module] = Factors(
                keys_YNRI * scale_YI[:, None, None].to(keys_YNRI.dtype),
                (up_YNRW * step_Y[:, None, None, None]).to(keys_YNRI.dtype),
            )
        return made


def write(
    base: Base, model: OuterProducts, sets: Sequence[Sequence[Text]], *, tokens: int, strength: float = 1.0,
    passes: int = 0,
) -> dict[str, Factors]:  # fmt: skip
    """Adapters of N sets of texts, of rank S·R: all passes of `model`, each under the adapters so far.

    With `passes` so many instead, those beyond S with the step sizes of the last. Gradients reach `model` through what
    each pass adds, not through what the later ones read (a first-order unrolling).
    """
    whole: dict[str, Factors] = {}
    for number in range(passes or model.passes):
        under = {m: Factors(f.down_YNRI.detach(), f.up_YNRO.detach()) for m, f in whole.items()}
        seen = observe(base, sets, tokens=tokens, applied=under or None, gradient=model.gradient)
        made = model(seen, min(number, model.passes - 1))
        made = {m: Factors(f.down_YNRI, strength * f.up_YNRO) for m, f in made.items()}
        whole = concatenate(whole, made) if whole else made
    return whole
