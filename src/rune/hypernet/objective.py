"""The loss of phase B as a function of the step: batch, passes through the base model, named terms.

Draw groups (data.py), make one adapter per group from its trajectories, run all rows of all groups through the frozen
base in one padded batch, each group under its own adapter, and add up the terms with a weight.
"""

# Shapes: G groups = N adapters · R rows of a group · B = G·R rows · P packed response tokens · K teacher tokens
from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rune import prompts
from rune.adapters.factors import Adapters, Factors, LoraTargets, concatenate, select, to_dtype
from rune.config import derive_seed
from rune.hypernet import losses, unrelated
from rune.hypernet.base import Base, Text
from rune.hypernet.data import Corpus, Group, UnsolvedTask
from rune.hypernet.features import FeatureTable
from rune.hypernet.loop import Step
from rune.hypernet.model import Made
from rune.hypernet.parallel import Processes
from rune.hypernet.settings import HypernetConfig

if TYPE_CHECKING:
    from rune.hypernet.trainer import HypernetWithStatic

BUCKETS = 1024  # of the lesson term's word hash
CALIBRATION_SETS = 512  # trajectory sets that the latents' statistics are measured on


class Plan(NamedTuple):
    """The rows of a step, in group order, and which of them belong together."""

    texts: list[Text]
    right_B: list[bool]  # rows that cross-entropy counts
    target_pairs: list[tuple[int, int]]  # (right solution, wrong solution) under one adapter
    source_pairs: list[tuple[int, int]]  # one solution (under its own adapter, under another's)


def plan(corpus: Corpus, groups: list[Group], *, target_contrast: bool, source_contrast: bool) -> Plan:
    """Every group gets the same number of rows; a contrast without a partner keeps its place and is not counted."""
    texts: list[Text] = []
    right: list[bool] = []
    first_row: list[int] = []
    target_pairs: list[tuple[int, int]] = []
    foreign: list[tuple[int, int]] = []  # (row, group whose first target it repeats)
    for g, group in enumerate(groups):
        first_row.append(len(texts))
        texts += [corpus.texts[i] for i in group.targets]
        right += [True] * len(group.targets)
        if target_contrast:
            wrong = group.wrongs[0]
            if wrong is not None:
                target_pairs.append((first_row[g], len(texts)))
            texts.append(corpus.texts[group.targets[0] if wrong is None else wrong])
            right.append(False)
        if source_contrast:
            other = (g + 1) % len(groups)
            if corpus.domain_key(groups[other].targets[0]) != corpus.domain_key(group.targets[0]):
                foreign.append((len(texts), other))
            texts.append(corpus.texts[groups[other].targets[0]])
            right.append(False)
    return Plan(texts, right, target_pairs, [(first_row[other], row) for row, other in foreign])


def detached_term(adapters: Adapters, term: Callable[[Adapters], Tensor]) -> Tensor:
    """`term(adapters)`, its way back through the base model gone already: the same value and the same gradient.

    The activations of a pass are most of a step's memory; so those of several passes never stand side by side.
    """
    applied = {m: Factors(*(t.detach().requires_grad_() for t in f)) for m, f in adapters.items()}
    value = term(applied)
    gradients = torch.autograd.grad(value, [t for f in applied.values() for t in f])
    given = [t for f in adapters.values() for t in f]
    straight = torch.stack([(t * g).float().sum() for t, g in zip(given, gradients, strict=True)]).sum()
    return value.detach() + (straight - straight.detach())


class Objective:
    """The loss of phase B as a function of the step."""

    def __init__(
        self,
        base: Base,
        corpus: Corpus,
        table: FeatureTable,
        both: HypernetWithStatic,
        config: HypernetConfig,
        layout: LoraTargets,
        reconstruct: Mapping[int, Adapters],
        seed: int,
        processes: Processes | None = None,
    ) -> None:
        self.base, self.corpus, self.table, self.both, self.config = base, corpus, table, both, config
        self.processes = processes or Processes()
        self.reconstruct = reconstruct
        self.seed = derive_seed(seed, "hypernet data")
        self.dtype = next(base.model.parameters()).dtype
        self.base_squared_norm = base.squared_norm(layout)
        encode = base.tokenizer
        self.unrelated = [Text(tuple(encode(t, add_special_tokens=False)["input_ids"]), 1) for t in unrelated.TEXTS]

    def training_step(self, step: int) -> Step:
        config, weights = self.config, self.config.weights
        rng = np.random.default_rng([self.seed, step])
        groups = self.corpus.groups(rng, config.pairs, count=config.groups, targets=config.targets, contrasts=1)
        unsolved_tasks: list[UnsolvedTask] = []
        if weights.kl_static and step % config.unrelated_every == 0:
            count = min(8, config.groups)
            unsolved_tasks = self.corpus.unsolved_tasks(rng, count, max_sources=config.pairs.max_sources)
        steps = self.table.batch(
            [*(g.sources for g in groups), *(s.sources for s in unsolved_tasks)],
            max_tokens=config.max_source_tokens,
            drop=config.drop_tokens,
            rng=rng,
        )
        with torch.autocast(self.base.device.type, torch.bfloat16, enabled=self.base.device.type == "cuda"):
            every = self.both.hypernet(steps)
        made = Made(select(every.factors, slice(0, len(groups))), *(t[: len(groups)] for t in every[1:]))
        adapters = to_dtype(concatenate(self.both.static.factors(), made.factors), self.dtype)
        layout = plan(
            self.corpus,
            groups,
            target_contrast=weights.target_contrast > 0,
            source_contrast=weights.source_contrast > 0,
        )
        kept = {}  # first, as their passes through the base model leave nothing behind
        if weights.kl_base:
            kept["kl_base"] = self._kl_base(step, adapters)
        if weights.kl_static:
            kept["kl_static"] = self._kl_static(unsolved_tasks, select(every.factors, slice(len(groups), None)))
        mine, parts = self._shares(layout, len(groups))
        rows = self.base.rows(layout.texts[parts[self.processes.rank]])
        logits_PV = self.base.logits(rows, select(adapters, mine))
        own_P = -F.cross_entropy(logits_PV.float(), rows.label_P, reduction="none")
        tokens_B = torch.tensor([len(text.ids) - text.start for text in layout.texts])
        log_prob_P = self.processes.gather(own_P, [int(tokens_B[part].sum()) for part in parts])
        row_P = torch.arange(len(layout.texts)).repeat_interleave(tokens_B).to(self.base.device)
        sequence_B = losses.sequence_log_prob(log_prob_P, row_P, len(layout.texts))
        right_P = torch.tensor(layout.right_B, device=self.base.device)[row_P].float()
        terms = {"cross_entropy": losses.cross_entropy(log_prob_P, right_P)}
        terms |= self._contrast("target_contrast", sequence_B, layout.target_pairs)
        terms |= self._contrast("source_contrast", sequence_B, layout.source_pairs)
        if weights.norm:
            kept["norm"] = losses.norm(made.factors, self.base_squared_norm)
        if weights.variance:
            kept["variance"] = losses.variance_hinge(made.latents_NLW.flatten(1))
        if weights.lesson:
            kept["lesson"] = losses.bag_of_tokens_loss(
                self.both.guess(made.standardised_NLW.flatten(1)), self._words(groups)
            )
        if weights.reconstruction:
            kept["reconstruction"] = self._reconstruction(groups, adapters)
        terms |= {name: self.processes.once(term) for name, term in kept.items()}
        if weights.kl_teacher:
            right_own = torch.tensor(layout.right_B[parts[self.processes.rank]], device=self.base.device)[rows.row_P]
            terms["kl_teacher"] = self._kl_teacher(groups[mine], logits_PV, own_P.detach(), right_own)
        loss = torch.stack([getattr(weights, name) * term for name, term in terms.items() if hasattr(weights, name)])
        return Step(loss.sum(), terms, rows.ids_BT.numel() * self.processes.count)

    def _shares(self, layout: Plan, groups: int) -> tuple[slice, list[slice]]:
        """This process' groups, and every process' rows."""
        each = len(layout.texts) // groups
        shares = [
            Processes(rank, self.processes.count).share(groups, "train.hypernet.groups")
            for rank in range(self.processes.count)
        ]
        return shares[self.processes.rank], [slice(s.start * each, s.stop * each) for s in shares]

    def encoder_step(self, step: int) -> Step:
        """A step of the phase that teaches the encoder alone."""
        config, first = self.config, self.config.encoder_first
        assert first is not None
        rng = np.random.default_rng([derive_seed(self.seed, "encoder"), step])
        groups = self.corpus.groups(rng, config.pairs, count=first.groups, targets=config.targets, contrasts=0)
        steps = self.table.batch(
            [g.sources for g in groups], max_tokens=config.max_source_tokens, drop=config.drop_tokens, rng=rng
        )
        with torch.autocast(self.base.device.type, torch.bfloat16, enabled=self.base.device.type == "cuda"):
            z_NLW = self.both.hypernet.standardise(self.both.hypernet.encoder(steps))
        term = self.processes.once(losses.bag_of_tokens_loss(self.both.guess(z_NLW.flatten(1)), self._words(groups)))
        return Step(term, {"lesson": term}, steps.mask_BT.numel())

    @torch.no_grad()
    def calibrate(self) -> None:
        """Measure the latents' mean and spread over training sets with the finished encoder.

        The running averages lag behind a moving encoder: in a test they turned a lead of 134 nats into 14.
        """
        config, hypernet = self.config, self.both.hypernet
        found = []
        for number in range(-(-CALIBRATION_SETS // config.groups)):
            rng = np.random.default_rng([derive_seed(self.seed, "calibrate"), number])
            groups = self.corpus.groups(rng, config.pairs, count=config.groups, targets=1, contrasts=0)
            steps = self.table.batch([g.sources for g in groups], max_tokens=config.max_source_tokens)
            with torch.autocast(self.base.device.type, torch.bfloat16, enabled=self.base.device.type == "cuda"):
                found.append(hypernet.encoder(steps).float().flatten(1))
        latents_ND = torch.cat(found)
        hypernet.centre.running_mean.copy_(latents_ND.mean(0))  # type: ignore[union-attr]
        hypernet.centre.running_var.copy_(latents_ND.var(0))  # type: ignore[union-attr]

    def _words(self, groups: list[Group]) -> Tensor:
        """Hash buckets of the words that the targets' solutions have and their prompts lack [N, H]."""
        bag_NH = torch.zeros(len(groups), BUCKETS)
        for n, group in enumerate(groups):
            for number in group.targets:
                text = self.corpus.texts[number]
                fresh = set(text.ids[text.start :]) - set(text.ids[: text.start])
                bag_NH[n, [token * 40503 % 65521 % BUCKETS for token in fresh]] = 1.0
        return bag_NH.to(self.base.device, non_blocking=True)

    def _contrast(self, name: str, sequence_B: Tensor, pairs: list[tuple[int, int]]) -> dict[str, Tensor]:
        """The term, and beside it the mean lead of the right one in nats."""
        if not getattr(self.config.weights, name):
            return {}
        if not pairs:
            zero = sequence_B.sum() * 0.0
            return {name: zero, f"{name}_lead": zero}
        index_2Q = torch.tensor(pairs, device=sequence_B.device).T
        right_Q, wrong_Q = sequence_B[index_2Q[0]], sequence_B[index_2Q[1]]
        term = losses.contrast(right_Q, wrong_Q, margin=self.config.margin)
        return {name: term, f"{name}_lead": (right_Q - wrong_Q).mean()}

    def _kl_base(self, step: int, adapters: Adapters) -> Tensor:
        """Every `unrelated_every` steps, that many times as strong; one text per adapter, for a few adapters."""
        every = self.config.unrelated_every
        if step % every:
            return torch.zeros((), device=self.base.device)
        count = min(8, self.config.groups)
        texts = list(itertools.islice(itertools.cycle(self.unrelated), step, step + count))
        rows = self.base.rows(texts)
        with torch.no_grad():
            bare_PV = self.base.logits(rows, None)
        some = select(adapters, slice(0, count))
        return every * detached_term(some, lambda applied: losses.kl(bare_PV, self.base.logits(rows, applied)))

    def _kl_static(self, unsolved_tasks: Sequence[UnsolvedTask], parts: Adapters) -> Tensor:
        """With the trajectory part of its neighbours, a task that nothing has learned is answered as without."""
        if not unsolved_tasks:
            return torch.zeros((), device=self.base.device)
        rows = self.base.rows([s.text for s in unsolved_tasks])
        static = {m: type(f)(*(t.detach() for t in f)) for m, f in self.both.static.factors().items()}
        with torch.no_grad():
            alone_PV = self.base.logits(rows, to_dtype(static, self.dtype))

        def term(applied: Adapters) -> Tensor:
            both = to_dtype(concatenate(static, applied), self.dtype)
            return losses.kl(alone_PV, self.base.logits(rows, both))

        return self.config.unrelated_every * detached_term(parts, term)

    def _kl_teacher(self, groups: list[Group], student_PV: Tensor, student_P: Tensor, right_P: Tensor) -> Tensor:
        """The bare model with the trajectories in context, where it knows the solution better than the student."""
        texts = []
        for group in groups:
            sources = [self.corpus.trajectories[i] for i in group.sources]
            context = "\n\n".join(prompts.render_trajectory(t) for t in sources)
            for number in group.targets:
                target = self.corpus.trajectories[number]
                texts.append(self.base.encode(target.prompt, target.solution, context=context, answer=target.answer))
        rows = self.base.rows(texts)
        with torch.no_grad():
            teacher_PV = self.base.logits(rows, None).float().log_softmax(-1)
            top = teacher_PV.topk(self.config.teacher_top_k, -1)
            teacher_P = teacher_PV.gather(-1, rows.label_P[:, None])[:, 0]
        ahead_P = teacher_P > student_P[right_P]
        mine = ahead_P.sum().float()
        share = mine / self.processes.add(mine).clamp_min(1)  # a mean over the tokens of all processes
        if not bool(mine):
            return self.processes.add(torch.zeros((), device=student_PV.device))
        found = losses.kl_top(top.values[ahead_P], top.indices[ahead_P], student_PV[right_P][ahead_P])
        return self.processes.add(found * share)

    def _reconstruction(self, groups: list[Group], adapters: Adapters) -> Tensor:
        """Only groups made from one trajectory that has a fine-tuned adapter."""
        alone = {n: g.sources[0] for n, g in enumerate(groups) if len(g.sources) == 1}
        known = {n: self.reconstruct[number] for n, number in alone.items() if number in self.reconstruct}
        if not known:
            return torch.zeros((), device=self.base.device)
        mine = to_dtype(select(adapters, torch.tensor(list(known), device=self.base.device)), torch.float32)
        goals = {
            module: Factors(
                torch.cat([goal[module].down_YNRI for goal in known.values()], 1).to(mine[module].down_YNRI),
                torch.cat([goal[module].up_YNRO for goal in known.values()], 1).to(mine[module].up_YNRO),
            )
            for module in mine
        }
        return losses.reconstruction(mine, goals)
