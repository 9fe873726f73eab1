"""What a step of phase B adds up, held against the same terms worked out row by row, one pass of the model each.

The corpus has what every term needs: prompts that several lessons share, a task that nobody solved, single
trajectories with a fine-tuned adapter, and a teacher that is worse than the student on part of the tokens.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rune import prompts
from rune.adapters.factors import Adapters, Factors, StaticLora, concatenate, select
from rune.benchmarks import families
from rune.hypernet import base as bases
from rune.hypernet import objective, trainer, unrelated
from rune.hypernet.base import Text
from rune.hypernet.data import Corpus, Group
from rune.hypernet.features import Features, FeatureTable, Reader, statistics
from rune.hypernet.model import Made
from rune.hypernet.objective import BUCKETS, Objective, plan
from rune.hypernet.settings import MODULES, HypernetConfig, LoraConfig, PairMix, Schedule, Weights
from rune.runs import store
from rune.types import ModelRef, Outcome, Trajectory

WEIGHTS = {
    "cross_entropy": 1.3,
    "target_contrast": 0.7,
    "source_contrast": 0.31,
    "kl_base": 0.23,
    "kl_static": 0.19,
    "kl_teacher": 0.53,
    "norm": 11.0,
    "variance": 0.41,
    "lesson": 0.17,
    "reconstruction": 0.11,
}
EVERY = 2  # unrelated_every
RATE = 1e-3


class World(NamedTuple):
    base: bases.Base
    corpus: Corpus
    table: FeatureTable


def exhausted(trajectory: Trajectory) -> Trajectory:
    """As if nobody had found the solution: its last program failed."""
    failed = replace(trajectory.attempts[0], code=trajectory.solution, outcome=Outcome.FAILED, error_kind="WrongAnswer")
    return replace(trajectory, attempts=(failed,), solution="", trajectory_id="x" + trajectory.trajectory_id)


@pytest.fixture(scope="module")
def world(tiny_model: ModelRef) -> World:
    base = bases.load(tiny_model, device="cpu", dtype="float32")
    problems = families.generate(families.Config(families=5, held_out=0, tasks=3, seed=3))
    lessons = families.trajectories(problems, None)
    unsolved = [exhausted(t) for t in lessons[12:14]]
    # Every second family's tasks are asked with the words of the family before: one prompt, two lessons.
    lessons = [replace(t, prompt=lessons[i - 3].prompt) if i // 3 % 2 else t for i, t in enumerate(lessons[:12])]
    near = {t.trajectory_id: [o.trajectory_id for o in lessons[i : i + 3]] for i, t in enumerate(unsolved)}
    everything = [*lessons, *unsolved]
    corpus = Corpus(base, everything, max_tokens=900, retrieved=near)
    read = Reader(base.model, base.tokenizer, taps=(0, 1), digest="d", folder=None).read(everything)
    return World(base, corpus, FeatureTable(read))


def settings(**changes: object) -> HypernetConfig:
    values: dict[str, object] = {
        "schedule": Schedule(steps=2, learning_rate=RATE, warmup=0.0, weight_decay=0.0),
        "rank": 2,
        "alpha": 4.0,
        "groups": 3,
        "targets": 2,
        "pairs": PairMix(recall=1.0, max_sources=2),
        "weights": Weights(**WEIGHTS),
        "encoder_settings": {"width": 32, "latents": 4, "hidden": 64},
        "taps": (0, 1),
        "max_tokens": 900,
        "drop_tokens": 0.0,
        "unrelated_every": EVERY,
        "teacher_top_k": 5,
        "margin": 2.5,
        "reconstruct_from": "somewhere",
    }
    return HypernetConfig(**{**values, **changes})  # type: ignore[arg-type]


def random_lora(base: bases.Base, seed: int, spread: float) -> StaticLora:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        lora = StaticLora(base.layout(MODULES), rank=2, alpha=4.0)
        for up in lora.up_YRO.values():
            torch.nn.init.normal_(up, std=spread)
    return lora


def make(world: World, config: HypernetConfig) -> Objective:
    """An objective whose adapters are not zero and far from alike, as in the middle of training."""
    base, corpus, table = world
    layout = base.layout(MODULES)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        both = trainer.HypernetWithStatic(random_lora(base, 1, 0.02), trainer.new_hypernet(layout, config)).train()
        for up in both.hypernet.up.values():
            torch.nn.init.normal_(up, std=4.0)
        torch.nn.init.normal_(both.guess.weight, std=0.1)
    goals = {n: random_lora(base, 10 + n, 0.02).factors() for n in range(0, 12, 2)}
    detached = {n: {m: Factors(*(t.detach() for t in f)) for m, f in goal.items()} for n, goal in goals.items()}
    return Objective(base, corpus, table, both, config, layout, detached, seed=5)


def test_another_seed_of_training_sees_other_batches(world: World) -> None:
    layout, seeds = world.base.layout(MODULES), []
    for seed in (5, 6):
        both = trainer.HypernetWithStatic(random_lora(world.base, 1, 0.02), trainer.new_hypernet(layout, settings()))
        objective = Objective(world.base, world.corpus, world.table, both, settings(), layout, {}, seed=seed)
        seeds.append(objective.seed)
    assert seeds[0] != seeds[1]
    drawn = [world.corpus.groups(np.random.default_rng([s, 0]), settings().pairs, count=3, targets=2, contrasts=1)
             for s in seeds]  # fmt: skip
    assert drawn[0] != drawn[1]


def test_another_solution_of_the_same_lesson_is_no_wrong_one(world: World) -> None:
    """Two tries at one task that both passed: neither is pushed away from the other."""
    first = next(t for t in world.corpus.trajectories if t.solved)
    second = replace(first, trajectory_id="other", solution=first.solution + "# the same, said otherwise\n")
    stranger = replace(second, trajectory_id="stranger", task_id="elsewhere", domain="elsewhere")
    mix = PairMix(recall=1.0, max_sources=1)

    def wrongs(*some: Trajectory) -> set[int | None]:
        corpus = Corpus(world.base, some, max_tokens=2000)
        rng = np.random.default_rng(0)
        return {w for g in corpus.groups(rng, mix, count=20, targets=1, contrasts=1) for w in g.wrongs}

    assert wrongs(first, second) == {None}
    assert wrongs(first, stranger) == {0, 1}


# --------------------------------------------------------------------------- the terms, one row at a time


class Reference:
    """What `Objective.take(step)` should find; every text alone in its pass, under its own adapter or none."""

    def __init__(self, objective: Objective, world: World, step: int) -> None:
        self.o, self.config, self.step = objective, objective.config, step
        self.base, self.corpus, _ = world
        rng = np.random.default_rng([objective.seed, step])
        self.groups = drawn(objective, rng)
        with_strangers = self.config.weights.kl_static and step % EVERY == 0
        self.unsolved_tasks = (
            self.corpus.unsolved_tasks(rng, self.config.groups, max_sources=2) if with_strangers else []
        )
        sets = [*(g.sources for g in self.groups), *(s.sources for s in self.unsolved_tasks)]
        self.made: Made = objective.both.hypernet(world.table.batch(sets))
        self.static = objective.both.static.factors()
        self.applied = concatenate(self.static, self.made.factors)

    def adapter(self, n: int) -> Adapters:
        return select(self.applied, slice(n, n + 1))

    def logits(self, text: Text, applied: Adapters | None) -> tuple[Tensor, Tensor]:
        """[response tokens, vocabulary] log-probabilities and the tokens, straight from the model's own forward."""
        ids = torch.tensor([text.ids])
        with self.base.hooks.using(self.base._stacked(applied)):
            every = self.base.model(input_ids=ids).logits[0]
        return every[text.start - 1 : -1].log_softmax(-1), ids[0, text.start :]

    def log_prob(self, text: Text, applied: Adapters | None) -> Tensor:
        log, ids = self.logits(text, applied)
        return log.gather(-1, ids[:, None])[:, 0]

    def targets(self) -> list[tuple[int, int]]:
        return [(n, number) for n, group in enumerate(self.groups) for number in group.targets]

    def cross_entropy(self) -> float:
        each = torch.cat([self.log_prob(self.corpus.texts[i], self.adapter(n)) for n, i in self.targets()])
        return -float(each.mean())

    def target_leads(self) -> list[float]:
        """The right solution over another lesson's, same prompt, same adapter."""
        leads = []
        for n, group in enumerate(self.groups):
            (wrong,) = group.wrongs
            if wrong is not None:
                texts = self.corpus.texts[group.targets[0]], self.corpus.texts[wrong]
                right, other = (float(self.log_prob(t, self.adapter(n)).sum()) for t in texts)
                leads.append(right - other)
        return leads

    def source_leads(self) -> list[float]:
        """A solution under its own adapter over the same one under the group's before it, of another lesson."""
        leads = []
        for n, group in enumerate(self.groups):
            before = (n - 1) % len(self.groups)
            if self.corpus.domain_key(self.groups[before].targets[0]) != self.corpus.domain_key(group.targets[0]):
                text = self.corpus.texts[group.targets[0]]
                own, foreign = (float(self.log_prob(text, self.adapter(m)).sum()) for m in (n, before))
                leads.append(own - foreign)
        return leads

    def contrast(self, leads: list[float]) -> float:
        return sum(math.log1p(math.exp(self.config.margin - lead)) for lead in leads) / len(leads)

    def kl_base(self) -> float:
        """To the bare model on unrelated texts, other ones each time; nothing on the steps between."""
        if self.step % EVERY:
            return 0.0
        each = []
        for n in range(self.config.groups):
            words = unrelated.TEXTS[(self.step + n) % len(unrelated.TEXTS)]
            text = Text(tuple(self.base.tokenizer(words, add_special_tokens=False)["input_ids"]), 1)
            each.append(divergence(self.logits(text, None)[0], self.logits(text, self.adapter(n))[0]))
        return EVERY * float(torch.cat(each).mean())

    def kl_static(self) -> float:
        if self.step % EVERY:
            return 0.0
        each = []
        for n, stranger in enumerate(self.unsolved_tasks):
            alone, _ = self.logits(stranger.text, self.static)
            each.append(divergence(alone, self.logits(stranger.text, self.adapter(len(self.groups) + n))[0]))
        return EVERY * float(torch.cat(each).mean())

    def kl_teacher(self) -> tuple[float, float]:
        """The term, and the share of the tokens on which the teacher is ahead."""
        each: list[Tensor] = []
        ahead = []
        for n, number in self.targets():
            sources = [self.corpus.trajectories[i] for i in self.groups[n].sources]
            context = "\n\n".join(prompts.render_trajectory(t) for t in sources)
            target = self.corpus.trajectories[number]
            teacher, ids = self.logits(self.base.encode(target.prompt, target.solution, context=context), None)
            student, _ = self.logits(self.corpus.texts[number], self.adapter(n))
            better = (teacher - student).gather(-1, ids[:, None])[:, 0] > 0
            ahead.append(better)
            each.append(self.kept(teacher, student)[better])
        return float(torch.cat(each).mean()), float(torch.cat(ahead).float().mean())

    def kept(self, teacher: Tensor, student: Tensor) -> Tensor:
        """KL over the teacher's best tokens and one bucket for the rest."""
        best = teacher.topk(self.config.teacher_top_k, -1)
        p, q = best.values.exp(), student.gather(-1, best.indices).exp()
        p, q = (torch.cat([x, (1 - x.sum(-1, keepdim=True)).clamp_min(1e-6)], -1) for x in (p, q))
        return (p * (p / q).log()).sum(-1)

    def norm(self) -> float:
        """The trajectory part alone, from dense ΔW."""
        own = select(self.made.factors, slice(0, len(self.groups)))
        changed = sum(float(dense(f).square().sum()) for f in own.values()) / len(self.groups)
        return changed / self.base.squared_norm(self.base.layout(MODULES))

    def variance(self) -> float:
        spread = (self.made.latents_NLW[: len(self.groups)].flatten(1).var(0) + 1e-4).sqrt()
        return float((1 - spread).clamp_min(0).mean())

    def lesson(self) -> float:
        """Cross-entropy of the words that a group's solutions have and their own prompts lack."""
        guesses = self.o.both.guess(self.made.standardised_NLW.flatten(1)).log_softmax(-1)
        found = []
        for n, group in enumerate(self.groups):
            texts = [self.corpus.texts[i] for i in group.targets]
            words = {w for t in texts for w in t.ids[t.start :] if w not in t.ids[: t.start]}
            buckets = sorted({w * 40503 % 65521 % BUCKETS for w in words})
            found.append(-float(guesses[n, buckets].mean()))
        return sum(found) / len(found)

    def reconstruction(self) -> float:
        """Of groups made from one trajectory that has an adapter of its own; dense ΔW again."""
        found = []
        for n, group in enumerate(self.groups):
            if len(group.sources) == 1 and group.sources[0] in self.o.reconstruct:
                goal = self.o.reconstruct[group.sources[0]]
                detached_term = sum(
                    float((dense(f) - dense(goal[m])).square().sum()) for m, f in self.adapter(n).items()
                )
                found.append(detached_term / sum(float(dense(f).square().sum()) for f in goal.values()))
        return sum(found) / len(found) if found else 0.0


def dense(factors: Factors) -> Tensor:
    return factors.up_YNRO.transpose(-1, -2) @ factors.down_YNRI


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    return (teacher.exp() * (teacher - student)).sum(-1)


def whole(groups: list[Group], known: Collection[int]) -> bool:
    """Of one and of two sources, one of each with an adapter to rebuild; a wrong solution for one behind the first."""
    rebuilt = {len(g.sources) for g in groups if g.sources[0] in known}
    return rebuilt == {1, 2} and any(g.wrongs[0] is not None for g in groups[1:])


def informative(world: World, config: HypernetConfig, *, odd: bool) -> int:
    """The first step whose groups have all that the terms speak of."""
    objective = make(world, config)
    return next(
        step
        for step in range(1 if odd else 0, 200, 2)
        if whole(drawn(objective, np.random.default_rng([objective.seed, step])), objective.reconstruct.keys())
    )


def drawn(objective: Objective, rng: np.random.Generator) -> list[Group]:
    config = objective.config
    return objective.corpus.groups(rng, config.pairs, count=config.groups, targets=config.targets, contrasts=1)


@pytest.mark.parametrize("odd", [False, True])
def test_every_term_is_what_it_says_and_the_loss_is_their_weighted_sum(world: World, odd: bool) -> None:
    """Both on a step with the terms on foreign tasks and on one between, where they count nothing."""
    config = settings()
    step = informative(world, config, odd=odd)
    done = make(world, config).training_step(step)
    with torch.no_grad():
        reference = Reference(make(world, config), world, step)
        expected = {
            "cross_entropy": reference.cross_entropy(),
            "target_contrast": reference.contrast(reference.target_leads()),
            "target_contrast_lead": sum(reference.target_leads()) / len(reference.target_leads()),
            "source_contrast": reference.contrast(reference.source_leads()),
            "source_contrast_lead": sum(reference.source_leads()) / len(reference.source_leads()),
            "kl_base": reference.kl_base(),
            "kl_static": reference.kl_static(),
            "kl_teacher": reference.kl_teacher()[0],
            "norm": reference.norm(),
            "variance": reference.variance(),
            "lesson": reference.lesson(),
            "reconstruction": reference.reconstruction(),
        }
    assert min(map(abs, (*reference.target_leads(), *reference.source_leads()))) > 0.1
    found = {name: float(term.detach()) for name, term in done.terms.items()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        exact = 5e-3 if name.endswith("_lead") else 1e-5  # a lead is the difference of two sums over many tokens
        assert found[name] == pytest.approx(value, rel=2e-3, abs=exact), name
        assert (value == 0.0) is (odd and name in ("kl_base", "kl_static")), name
    assert float(done.loss.detach()) == pytest.approx(sum(WEIGHTS[name] * found[name] for name in WEIGHTS), rel=1e-5)


def test_the_teacher_is_followed_where_it_knows_better_and_nowhere_else(world: World) -> None:
    """Random adapters make a student that is ahead on part of the tokens: there the teacher has nothing to say."""
    weights = Weights(cross_entropy=0.0, kl_teacher=1.0)
    config = settings(weights=weights)
    done = make(world, config).training_step(0)
    with torch.no_grad():
        term, ahead = Reference(make(world, config), world, 0).kl_teacher()
    assert 0.2 < ahead < 0.8
    assert float(done.loss.detach()) == pytest.approx(term, rel=2e-3)


def test_a_teacher_that_knows_nothing_better_teaches_nothing(world: World) -> None:
    objective = make(world, settings())
    reference = Reference(objective, world, 0)
    texts = [world.corpus.texts[i] for _, i in reference.targets()]
    rows = world.base.rows(texts)
    with torch.no_grad():
        logits = world.base.logits(rows, None)
    certain = torch.zeros(len(rows.label_P))  # log p = 0 of every token
    right = torch.ones(len(rows.label_P), dtype=torch.bool)
    assert float(objective._kl_teacher(reference.groups, logits, certain, right)) == 0.0
    hopeless = torch.full_like(certain, -1e9)
    assert float(objective._kl_teacher(reference.groups, logits, hopeless, right)) > 0.0


def test_a_contrast_without_a_partner_keeps_its_place_and_is_not_counted(world: World) -> None:
    """Rows 0 and 1 are of one family, row 3 is another lesson's answer to the prompt of row 0."""
    corpus = world.corpus
    assert corpus.domain_key(0) == corpus.domain_key(1) != corpus.domain_key(3)
    groups = [Group((0,), (0,), (3,)), Group((1,), (1,), (None,)), Group((3,), (3,), (0,))]
    made = plan(corpus, groups, target_contrast=True, source_contrast=True)
    # Each group: its target, the wrong solution (or the target again), the next group's target.
    assert made.texts == [corpus.texts[i] for i in (0, 3, 1, 1, 1, 3, 3, 0, 0)]
    assert made.right_B == [True, False, False] * 3
    assert made.target_pairs == [(0, 1), (6, 7)]
    assert made.source_pairs == [(6, 5), (0, 8)]  # no lesson is set against itself


def test_a_term_of_weight_zero_is_left_out(world: World) -> None:
    done = make(world, settings(weights=Weights(cross_entropy=1.0))).training_step(0)
    assert set(done.terms) == {"cross_entropy"}


def test_kl_static_changes_the_trajectory_part_and_leaves_the_static_part_alone(world: World) -> None:
    """What a neighbour must not do is no reason to move what is learned for all."""
    objective = make(world, settings(weights=Weights(cross_entropy=0.0, kl_static=1.0)))
    objective.training_step(0).loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in objective.both.static.parameters())
    assert all(p.grad is not None and p.grad.any() for p in objective.both.hypernet.up.values())


def test_tokens_are_hidden_and_long_sets_cut_in_training_as_the_settings_say(world: World) -> None:
    """A step with tokens hidden, or with attempts left out, is another step than the whole one."""
    weights = Weights(norm=1.0)

    def norm(**changes: object) -> float:
        return float(make(world, settings(weights=weights, **changes)).training_step(0).terms["norm"].detach())

    plain = norm()
    assert norm() == plain
    for change in ({"drop_tokens": 0.5}, {"max_source_tokens": 60}):
        assert norm(**change) != pytest.approx(plain, rel=1e-4), change


# --------------------------------------------------------------------------- what surrounds the steps


def trained(world: World, folder: Path, config: HypernetConfig, static: StaticLora) -> trainer.HypernetWithStatic:
    return trainer.train_hypernet(
        *world, static, config, seed=3, folder=folder, metrics=folder / "metrics.jsonl"
    )  # fmt: skip


def start(world: World, config: HypernetConfig) -> trainer.Hypernet:
    with trainer._seeded(trainer.derive_seed(3, "hypernet")):
        return trainer.new_hypernet(world.base.layout(MODULES), config)


@pytest.mark.parametrize(("base_rate", "encoder_rate"), [(0.0, 0.5), (2.0, 0.25)])
def test_static_part_encoder_and_heads_each_learn_at_their_own_rate(
    world: World, tmp_path: Path, base_rate: float, encoder_rate: float
) -> None:
    """Adam's first step moves a weight by the learning rate, whatever its gradient."""
    config = settings(
        schedule=Schedule(steps=1, learning_rate=RATE, warmup=0.0, weight_decay=0.0),
        weights=Weights(cross_entropy=1.0, variance=1.0, lesson=1.0),
        base_rate=base_rate,
        encoder_rate=encoder_rate,
        reconstruct_from="",
    )
    static = random_lora(world.base, 1, 0.02)
    before = copy.deepcopy(static)
    both, fresh = trained(world, tmp_path, config, static), start(world, config)

    def moved(now: torch.nn.Module | torch.nn.Parameter, then: torch.nn.Module | torch.nn.Parameter) -> float:
        pairs = zip(
            *(list(x.parameters()) if isinstance(x, torch.nn.Module) else [x] for x in (now, then)), strict=True
        )
        return max(float((a - b).abs().max()) for a, b in pairs)

    assert moved(both.static, before) == pytest.approx(base_rate * RATE, rel=0.02, abs=1e-9)
    assert moved(both.hypernet.encoder, fresh.encoder) == pytest.approx(encoder_rate * RATE, rel=0.02)
    assert moved(both.hypernet.up, fresh.up) == pytest.approx(RATE, rel=0.02)
    assert float(both.guess.weight.abs().max()) == pytest.approx(encoder_rate * RATE, rel=0.02)


def test_the_encoder_sees_features_standardised_over_the_corpus_and_the_heads_latents_over_its_sets(
    world: World, tmp_path: Path
) -> None:
    """After training the front end holds the tokens' own mean and spread, and latents come with mean 0 and spread 1."""
    config = settings(
        schedule=Schedule(steps=2, learning_rate=1e-2),
        weights=Weights(),
        pairs=PairMix(recall=1.0, max_sources=1),
        groups=8,
        targets=1,
        reconstruct_from="",
    )
    both = trained(world, tmp_path, config, random_lora(world.base, 1, 0.02))
    features = world.table.features_XSD.double()
    unit = features / (features.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    front = both.hypernet.encoder.front
    assert isinstance(front.mean_SD, Tensor) and isinstance(front.spread_SD, Tensor)  # type: ignore[union-attr]
    torch.testing.assert_close(front.mean_SD.double(), unit.mean(0), rtol=1e-3, atol=1e-4)  # type: ignore[union-attr]
    expected = unit.std(0, correction=0).clamp_min(1e-3)
    torch.testing.assert_close(front.spread_SD.double(), expected, rtol=1e-3, atol=1e-4)  # type: ignore[union-attr]
    with torch.no_grad():
        z_ND = both.hypernet(world.table.batch([[i] for i in range(12)])).standardised_NLW.flatten(1)
    assert not both.training
    assert float(z_ND.mean(0).abs().max()) < 0.35
    assert float(z_ND.std(0).min()) > 0.7 and float(z_ND.std(0).max()) < 1.3


def test_statistics_of_a_large_corpus_are_those_of_all_its_parts() -> None:
    """More than 200,000 tokens are thinned evenly: the last trajectories count as much as the first."""
    size = 450_000
    first = torch.tensor([[[1.0, 0.0]]]).expand(size // 2, -1, -1)
    last = torch.tensor([[[0.0, 1.0]]]).expand(size // 2, -1, -1)
    tags = torch.zeros(size, dtype=torch.long)
    table = FeatureTable([Features(torch.cat([first, last]), tags, tags, tags, 0)])
    mean_SD, spread_SD = trainer.statistics_of(table)
    half = math.sqrt(2) / 2
    torch.testing.assert_close(mean_SD, torch.tensor([[half, half]]), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(spread_SD, torch.tensor([[half, half]]), rtol=1e-3, atol=1e-3)


def test_statistics_are_the_mean_and_spread_of_normalised_features_over_all_chunks() -> None:
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(500, 2, 6, generator=rng) * torch.tensor([1.0, 5.0, 0.2, 3.0, 1.0, 9.0]) + 2.0
    unit = features / (features.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    mean_SD, spread_SD = statistics([features[:100], features[100:130], features[130:]])
    torch.testing.assert_close(mean_SD, unit.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(spread_SD, unit.std(0, correction=0), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="statistics of no features"):
        statistics([])


def test_phase_a_draws_its_solutions_by_the_shares_it_was_given(world: World, tmp_path: Path) -> None:
    """With all the share on one benchmark the curve is that of a corpus without the others."""
    base = world.base
    lessons = [world.corpus.trajectories[i] for i in range(6)]
    mixed = [replace(t, benchmark="kept" if i < 2 else "left") for i, t in enumerate(lessons)]
    plan = LoraConfig(
        schedule=Schedule(steps=2, learning_rate=RATE), rank=2, alpha=4.0, rows=4, max_tokens=900, shares={"kept": 1.0}
    )

    def curve(name: str, trajectories: list[Trajectory], config: LoraConfig) -> list[float]:
        metrics = tmp_path / name / "metrics.jsonl"
        corpus = Corpus(base, trajectories, max_tokens=900)
        trainer.train_lora(base, corpus, config, seed=0, folder=tmp_path / name, metrics=metrics)
        return [line["loss"] for _, line in store.read_lines(metrics)]

    assert curve("shares", mixed, plan) == pytest.approx(curve("alone", mixed[:2], plan), rel=1e-4)
    assert curve("all", mixed, replace(plan, shares={})) != pytest.approx(curve("kept", mixed, plan), rel=1e-3)


def test_the_phases_loss_is_that_of_the_solutions_alone(world: World, tmp_path: Path) -> None:
    """The first step of phase A is the bare model's loss on the solutions' tokens; no token of a prompt counts."""
    base = world.base
    corpus = Corpus(base, [world.corpus.trajectories[i] for i in range(3)], max_tokens=900)
    plan = LoraConfig(schedule=Schedule(steps=1, learning_rate=RATE), rank=2, alpha=4.0, rows=3, max_tokens=900)
    metrics = tmp_path / "metrics.jsonl"
    trainer.train_lora(base, corpus, plan, seed=0, folder=tmp_path, metrics=metrics)
    ((_, line),) = store.read_lines(metrics)
    with torch.no_grad():
        each = []
        for text in corpus.texts.values():
            logits = base.model(input_ids=torch.tensor([text.ids])).logits[0, text.start - 1 : -1]
            each.append(F.cross_entropy(logits, torch.tensor(text.ids[text.start :]), reduction="none"))
    assert line["loss"] == pytest.approx(float(torch.cat(each).mean()), rel=1e-4)


def test_each_process_has_its_groups_and_the_rows_of_their_texts() -> None:
    """Twelve texts of four groups over two processes: three texts a group, in order."""
    for rank, count, mine, parts in (
        (1, 2, slice(2, 4), [slice(0, 6), slice(6, 12)]),
        (0, 1, slice(0, 4), [slice(0, 12)]),
        (2, 4, slice(2, 3), [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 12)]),
    ):
        straw = SimpleNamespace(processes=SimpleNamespace(rank=rank, count=count))
        layout = SimpleNamespace(texts=list(range(12)))
        assert Objective._shares(straw, layout, 4) == (mine, parts)  # type: ignore[arg-type]


@pytest.mark.parametrize(("groups", "step", "texts"), [(20, 4, 8), (3, 4, 3), (8, 0, 8), (20, 5, 0)])
def test_the_bare_model_is_held_to_on_a_few_unrelated_texts_in_turn(
    groups: int, step: int, texts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On every second step, twice as strong, with one text for each of the first few adapters."""
    one = Objective.__new__(Objective)
    one.config = SimpleNamespace(groups=groups, unrelated_every=2)  # type: ignore[assignment]
    one.unrelated = ["a", "b", "c"]  # type: ignore[list-item]
    seen: list[object] = []

    class Straw:
        device = "cpu"

        def rows(self, some: list[str]) -> str:
            seen.append(some)
            return "rows"

        def logits(self, rows: str, applied: object) -> object:
            assert rows == "rows"
            return "bare" if applied is None else applied

    one.base = Straw()  # type: ignore[assignment]
    adapters = {"q": Factors(torch.arange(20.0).view(1, 20, 1, 1), torch.zeros(1, 20, 1, 1))}
    monkeypatch.setattr(objective, "detached_term", lambda some, term: term(some))
    monkeypatch.setattr(
        objective.losses, "kl", lambda bare, worn: torch.tensor(float(len(worn["q"].down_YNRI[0]))) + (bare != "bare")
    )
    found = one._kl_base(step, adapters)
    assert float(found) == 2 * texts
    assert seen == ([["abc"[(step + i) % 3] for i in range(texts)]] if texts else [])
