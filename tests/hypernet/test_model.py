"""Features, the hypernetwork and the choice of pairs, on a tiny base model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rune.adapters.factors import StaticLora, concatenate, squared_norm
from rune.benchmarks import families
from rune.encoders.shared.token_features import Ending, Kind
from rune.errors import ConfigError, DataError, ModelError
from rune.hypernet import base as bases
from rune.hypernet import features, losses, objective, trainer
from rune.hypernet.data import Corpus
from rune.hypernet.features import FeatureTable, Reader
from rune.hypernet.loop import learning_rate
from rune.hypernet.settings import MODULES, EncoderConfig, HypernetConfig, PairMix, Schedule, Weights
from rune.runs import store
from rune.types import Answer, Attempt, ModelRef, Outcome, Trajectory

Curve = dict[str, list[float]]

TRAJECTORY = Trajectory(
    trajectory_id="t",
    task_id="T/1",
    benchmark="T",
    prompt="def f(x):",
    attempts=(
        Attempt(code="def f(x):\n    return x", outcome=Outcome.FAILED, error_kind="WrongAnswer", error="got 1"),
        Attempt(code="def f(x):\n    while 1: pass", outcome=Outcome.TIMED_OUT, error_kind="Timeout"),
        Attempt(code="def f(x):\n    return x + 1", outcome=Outcome.PASSED),
    ),
    solution="def f(x):\n    return x + 1",
)


def settings(**changes: object) -> HypernetConfig:
    values: dict[str, object] = {
        "schedule": Schedule(steps=40, learning_rate=1e-2),
        "rank": 4,
        "alpha": 8.0,
        "groups": 2,
        "targets": 1,
        "pairs": PairMix(recall=1.0, max_sources=1),
        "weights": Weights(),
        "encoder_settings": {"width": 32, "latents": 4, "hidden": 64},
        "taps": (0, 1),
        "max_tokens": 700,
        "drop_tokens": 0.0,
    }
    return HypernetConfig(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def base(tiny_model: ModelRef) -> bases.Base:
    return bases.load(tiny_model, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def lessons() -> list[Trajectory]:
    problems = families.generate(families.Config(families=9, held_out=0, tasks=3, seed=3))
    return families.trajectories(problems, None)


def reader(base: bases.Base, folder: Path | None = None) -> Reader:
    return Reader(base.model, base.tokenizer, taps=(0, 1), digest="d", folder=folder)


def test_each_layer_module_and_rank_asks_for_itself(base: bases.Base) -> None:
    """One and the same head per kind of module: what tells its layers and ranks apart are their embeddings."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hypernet = trainer.new_hypernet(base.layout(("q_proj", "o_proj")), settings()).eval()
        for up in hypernet.up.values():
            torch.nn.init.normal_(up)
        z_NLW = torch.randn(2, 4, 32)
    hypernet.up["o_proj"].data.copy_(hypernet.up["q_proj"])  # both are 64 × 64: only the embedding differs
    with torch.no_grad():
        made = hypernet.generate(z_NLW)
    up_YNRO = made["q_proj"].up_YNRO
    assert up_YNRO.shape[:3] == (2, 2, 4)
    pairs = {
        "layers": (up_YNRO[0], up_YNRO[1]),
        "sets": (up_YNRO[:, 0], up_YNRO[:, 1]),
        "ranks": (up_YNRO[:, :, 0], up_YNRO[:, :, 1]),
        "modules": (up_YNRO, made["o_proj"].up_YNRO),
    }
    for what, (one, other) in pairs.items():
        assert float((one - other).norm()) > 0.01 * float(one.norm()), what


# --------------------------------------------------------------------------- features


def test_every_token_is_tagged_with_what_it_is_and_what_became_of_it(base: bases.Base) -> None:
    found = reader(base).read([TRAJECTORY])[0]
    kinds = [Kind(k) for k in found.kind_T.tolist()]
    assert set(kinds) == {Kind.TASK, Kind.ATTEMPT, Kind.ERROR, Kind.FIX, Kind.SOLUTION}
    endings = {(Kind(k), Ending(e)) for k, e in zip(found.kind_T.tolist(), found.ending_T.tolist(), strict=True)}
    assert {(Kind.ATTEMPT, Ending.FAILED), (Kind.ATTEMPT, Ending.TIMED_OUT), (Kind.FIX, Ending.PASSED)} <= endings
    assert found.step_T.tolist() == sorted(found.step_T.tolist()) and int(found.step_T.max()) == 3


def test_the_fix_is_the_lines_that_no_failed_attempt_has(base: bases.Base) -> None:
    step = features.steps_of(TRAJECTORY)[-1]
    tokens = features.tokenise(base.tokenizer, step)
    fix = base.tokenizer.decode([i for i, k in zip(tokens.ids, tokens.kinds, strict=True) if k == Kind.FIX])
    assert fix.strip() == "return x + 1"


def test_a_step_looks_the_same_whatever_stands_before_it(base: bases.Base) -> None:
    """Each step goes through the base model alone, so order of attempts cannot leak into features."""
    import dataclasses

    first, second, last = TRAJECTORY.attempts
    swapped = dataclasses.replace(TRAJECTORY, attempts=(second, first, last))
    one, other = reader(base).read([TRAJECTORY])[0], reader(base).read([swapped])[0]
    assert torch.allclose(one.features_TSD[one.step_T == 1], other.features_TSD[other.step_T == 2], atol=1e-5)


def test_taps_are_the_base_models_hidden_states(base: bases.Base) -> None:
    found = reader(base).read([TRAJECTORY])[0]
    ids = torch.tensor([features.tokenise(base.tokenizer, features.steps_of(TRAJECTORY)[0]).ids])
    with torch.no_grad():
        hidden = base.model(input_ids=ids, output_hidden_states=True).hidden_states
    expected = torch.stack([hidden[0][0], hidden[1][0]], 1)
    assert torch.allclose(found.features_TSD[found.step_T == 0], expected, atol=1e-5)


def test_features_come_from_the_cache_and_are_the_same(base: bases.Base, tmp_path: Path) -> None:
    made = reader(base, tmp_path).read([TRAJECTORY])[0]
    (file,) = tmp_path.rglob("*.safetensors")
    read = reader(base, tmp_path)
    read._forward = None  # type: ignore[assignment,method-assign]  # the model may not be asked again
    again = read.read([TRAJECTORY])[0]
    assert torch.equal(made.features_TSD, again.features_TSD) and torch.equal(made.kind_T, again.kind_T)
    file.write_bytes(b"torn")
    assert torch.equal(reader(base, tmp_path).read([TRAJECTORY])[0].features_TSD, made.features_TSD)


def test_a_step_over_the_limit_loses_its_middle_and_says_so(base: bases.Base) -> None:
    import dataclasses

    long = dataclasses.replace(TRAJECTORY, prompt="x = 1\n" * 3000)
    found = reader(base).read([long])[0]
    assert found.cut > 0 and int((found.step_T == 0).sum()) == features.MAX_STEP_TOKENS


def test_taps_beyond_the_model_are_refused(base: bases.Base) -> None:
    with pytest.raises(ModelError, match="taps reach layer 9, the model has 2"):
        Reader(base.model, base.tokenizer, taps=(0, 9), digest="d", folder=None)


def test_a_batch_over_its_limit_drops_whole_attempts_and_keeps_task_and_solution(base: bases.Base) -> None:
    table = FeatureTable(reader(base).read([TRAJECTORY]))
    whole, short = table.batch([[0]]), table.batch([[0]], max_tokens=40)
    assert short.mask_BT.sum() < whole.mask_BT.sum()
    kept = set(short.kind_BT[short.mask_BT].tolist())
    assert {Kind.TASK, Kind.SOLUTION, Kind.FIX} <= kept


# --------------------------------------------------------------------------- model


@pytest.mark.parametrize("inputs", ["shared", "generated"])
def test_a_fresh_hypernetwork_changes_nothing_exactly(base: bases.Base, lessons: list[Trajectory], inputs: str) -> None:
    layout = base.layout(MODULES)
    made = trainer.new_hypernet(layout, settings(inputs=inputs)).eval()(
        FeatureTable(reader(base).read(lessons[:2])).batch([[0], [1]])
    )
    assert squared_norm(made.factors).tolist() == [0.0, 0.0]
    static = StaticLora(layout, rank=2, alpha=4.0)
    joined = concatenate(static.factors(), made.factors)
    rows = base.rows([base.encode("p", "q")] * 2)
    assert torch.equal(base.log_prob(rows, joined), base.log_prob(rows, None))


def test_an_unknown_encoder_setting_is_one_clear_error(base: bases.Base) -> None:
    with pytest.raises(ConfigError, match="did you mean 'latents'"):
        trainer.new_hypernet(base.layout(MODULES), settings(encoder_settings={"latent": 4}))


def test_two_lessons_get_two_adapters_that_know_their_own_solution(
    base: bases.Base, lessons: list[Trajectory], tmp_path: Path
) -> None:
    """The overfit test: after forty steps each adapter prefers its own lesson, by the weights alone."""
    pair = [lessons[0], lessons[4]]
    corpus, table = Corpus(base, pair, max_tokens=700), FeatureTable(reader(base).read(pair))
    static = StaticLora(base.layout(MODULES), rank=2, alpha=4.0)
    config = settings(weights=Weights(source_contrast=1.0))
    both = trainer.train_hypernet(
        base, corpus, table, static, config, seed=0, folder=tmp_path, metrics=tmp_path / "metrics.jsonl"
    )
    with torch.no_grad():
        made = both.hypernet(table.batch([[0], [1]]))
        applied = concatenate(both.static.factors(), made.factors)
        own = base.rows([corpus.texts[0], corpus.texts[1]])
        other = base.rows([corpus.texts[1], corpus.texts[0]])
        right, wrong = base.log_prob(own, applied), base.log_prob(other, applied)
    assert right.sum() - wrong.sum() > 4.0
    assert squared_norm(made.factors).min() > 0


def exhausted(trajectory: Trajectory) -> Trajectory:
    """As if nobody had found the solution: its last program failed."""
    failed = replace(trajectory.attempts[0], code=trajectory.solution, outcome=Outcome.FAILED, error_kind="WrongAnswer")
    return replace(trajectory, attempts=(failed,), solution="", trajectory_id="x" + trajectory.trajectory_id)


def divergence(base: bases.Base, both: trainer.HypernetWithStatic, table: FeatureTable, corpus: Corpus) -> float:
    """KL from the static part alone to both parts, on the unsolved task under its neighbour's adapter."""
    (stranger,) = corpus.unsolved_tasks(np.random.default_rng(0), 1, max_sources=1)
    with torch.no_grad():
        made = both.hypernet(table.batch([stranger.sources]))
        rows = base.rows([stranger.text])
        applied = concatenate(both.static.factors(), made.factors)
        return float(losses.kl(base.logits(rows, both.static.factors()), base.logits(rows, applied)))


def test_a_neighbours_adapter_leaves_a_task_alone_that_nothing_has_learned(
    base: bases.Base, lessons: list[Trajectory], tmp_path: Path
) -> None:
    """kl_static: the same training without it moves the answers to the unsolved task several times as far."""
    unsolved = exhausted(lessons[6])
    some = [lessons[0], lessons[4], unsolved]
    near = {unsolved.trajectory_id: [lessons[0].trajectory_id]}
    found = {}
    for weight in (0.0, 3.0):
        corpus, table = Corpus(base, some, max_tokens=700, retrieved=near), FeatureTable(reader(base).read(some))
        config = settings(
            weights=Weights(cross_entropy=1.0, kl_static=weight), pairs=PairMix(recall=1.0), unrelated_every=1
        )
        folder = tmp_path / f"{weight:g}"
        both = trainer.train_hypernet(
            base, corpus, table, StaticLora(base.layout(MODULES), rank=2, alpha=4.0), config,
            seed=0, folder=folder, metrics=folder / "metrics.jsonl",
        )  # fmt: skip
        found[weight] = divergence(base, both, table, corpus)
    assert 0 < found[3.0] < 0.5 * found[0.0]


def test_kl_static_without_an_unsolved_task_is_one_clear_error(base: bases.Base, lessons: list[Trajectory]) -> None:
    near = {t.trajectory_id: [o.trajectory_id for o in lessons[:3]] for t in lessons}
    with pytest.raises(DataError, match="kl_static needs tasks that no trajectory solved"):
        Corpus(base, lessons, max_tokens=700, retrieved=near).unsolved_tasks(np.random.default_rng(0), 2, max_sources=1)


def test_a_term_taken_apart_has_the_same_value_and_gradient(base: bases.Base, lessons: list[Trajectory]) -> None:
    """Its activations are gone before the next pass begins; a second backward through it finds nothing to do."""
    corpus = Corpus(base, lessons[:2], max_tokens=700)
    rows = base.rows([corpus.texts[0], corpus.texts[1]])
    lora = StaticLora(base.layout(MODULES), rank=2, alpha=4.0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        bare = base.logits(rows, None)
    found = []
    for take in (objective.detached_term, lambda adapters, term: term(adapters)):
        lora.zero_grad()
        value = take(
            concatenate(lora.factors(), lora.factors()), lambda applied: losses.kl(bare, base.logits(rows, applied))
        )
        (3.0 * value).backward()
        found.append((float(value), [p.grad.clone() for p in lora.parameters() if p.grad is not None]))
    (mine, gradients), (plain, expected) = found
    assert mine == pytest.approx(plain, rel=1e-5) and plain > 1e-4
    assert len(gradients) == len(expected) == len(list(lora.parameters()))
    for g, e in zip(gradients, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-3, atol=1e-6)
    assert max(float(e.abs().max()) for e in expected) > 1e-4


def test_an_encoder_that_was_taught_first_knows_its_lessons_when_the_adapters_begin(
    base: bases.Base, lessons: list[Trajectory], tmp_path: Path
) -> None:
    """Its own phase is in the curve, and a run that is stopped after it goes on to the same weights."""
    some = lessons[:6]
    corpus, table = Corpus(base, some, max_tokens=700), FeatureTable(reader(base).read(some))
    config = settings(
        weights=Weights(cross_entropy=1.0, lesson=0.3),
        schedule=Schedule(steps=4, learning_rate=1e-2, checkpoint_every=1),
        encoder_first=EncoderConfig(groups=4, schedule=Schedule(steps=60, learning_rate=3e-3)),
    )

    def train(
        name: str, config: HypernetConfig, stops: tuple[int | None, ...]
    ) -> tuple[trainer.HypernetWithStatic, Curve]:
        for stop in stops:
            torch.manual_seed(0)  # the static part begins at random factors
            both = trainer.train_hypernet(
                base, corpus, table, StaticLora(base.layout(MODULES), rank=2, alpha=4.0), config,
                seed=0, folder=tmp_path / name, metrics=tmp_path / name / "metrics.jsonl", stop_after=stop,
            )  # fmt: skip
        curve: Curve = {}
        for _, line in store.read_lines(tmp_path / name / "metrics.jsonl"):
            curve.setdefault(line["phase"], []).append(line["lesson"])
        return both, curve

    straight, curve = train("straight", config, (None,))
    assert len(curve["encoder"]) == 60 and curve["encoder"][-1] < curve["encoder"][0] - 0.5
    _, plain = train("plain", replace(config, encoder_first=None), (None,))
    assert "encoder" not in plain and curve["hypernet"][0] < plain["hypernet"][0] - 0.5
    stopped, again = train("stopped", config, (2, None))
    assert again == curve
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, stopped.state_dict()[name]), name


# --------------------------------------------------------------------------- pairs


@pytest.mark.parametrize(("kind", "own"), [("recall", True), ("family", False), ("retrieved", False)])
def test_only_recall_shows_a_target_its_own_trajectory(
    base: bases.Base, lessons: list[Trajectory], kind: str, own: bool
) -> None:
    near = {t.trajectory_id: [o.trajectory_id for o in lessons if o.task_id != t.task_id] for t in lessons}
    corpus = Corpus(base, lessons, max_tokens=700, retrieved=near)
    mix = PairMix(**{kind: 1.0}, max_sources=2)  # type: ignore[arg-type]
    for step in range(20):
        for group in corpus.groups(np.random.default_rng(step), mix, count=4, targets=2, contrasts=1):
            tasks = {lessons[i].task_id for i in group.sources}
            assert (lessons[group.targets[0]].task_id in tasks) is own
            if kind == "family":
                assert not tasks & {lessons[i].task_id for i in group.targets}
                assert {lessons[i].domain for i in (*group.sources, *group.targets)} == {
                    lessons[group.targets[0]].domain
                }


def asked(lesson: Trajectory, number: int) -> Trajectory:
    """A question about a lesson, and its value."""
    return replace(
        lesson, trajectory_id=f"{lesson.domain}?{number}", task_id=f"{lesson.domain}/{number}", benchmark="questions",
        prompt=f"What is {lesson.domain} of {number}?", solution=str(number), answer=Answer.VALUE,
    )  # fmt: skip


def test_what_is_not_read_is_a_target_alone_and_its_features_are_not_needed(
    base: bases.Base, lessons: list[Trajectory]
) -> None:
    read = [next(t for t in lessons if t.domain == d) for d in sorted({t.domain for t in lessons})]
    everything = [some for t in read for some in (*(asked(t, n) for n in range(3)), t)]
    corpus = Corpus(base, everything, max_tokens=700, read=[read[0].benchmark])
    assert corpus.readable == tuple(range(3, len(everything), 4))
    table = FeatureTable(reader(base).read([everything[i] for i in corpus.readable]), corpus.readable)
    mix = PairMix(recall=0.3, family=0.7, max_sources=3)
    kinds = set()
    for step in range(20):
        for group in corpus.groups(np.random.default_rng(step), mix, count=4, targets=2, contrasts=1):
            (source,) = group.sources  # a lesson has one that is read
            first = everything[group.targets[0]]
            kinds.add(first.answer)
            assert source in corpus.readable and {everything[i].domain for i in group.targets} == {first.domain}
            if first.answer is Answer.VALUE:
                assert {everything[i].answer for i in group.targets} == {Answer.VALUE}
            alone = FeatureTable(reader(base).read([everything[source]])).batch([[0]])
            assert torch.allclose(table.batch([group.sources]).features_BTSD, alone.features_BTSD, atol=1e-4)
    assert kinds == {Answer.VALUE, Answer.PROGRAM}
    with pytest.raises(DataError, match=r"pairs\.read names nothing, and the corpus has no trajectory of it; it has: "):
        Corpus(base, everything, max_tokens=700, read=["nothing"])
    orphan = Corpus(base, [*everything[:3], everything[7]], max_tokens=700, read=[read[0].benchmark])
    with pytest.raises(DataError, match=r"nothing can be read for .*; add one"):
        orphan.groups(np.random.default_rng(0), PairMix(family=1.0), count=8, targets=1, contrasts=0)


def test_the_wrong_solution_answers_the_same_prompt_for_another_lesson(
    base: bases.Base, lessons: list[Trajectory]
) -> None:
    corpus = Corpus(base, lessons, max_tokens=700)
    found = 0
    for step in range(20):
        for group in corpus.groups(np.random.default_rng(step), PairMix(recall=1.0), count=4, targets=1, contrasts=1):
            (wrong,) = group.wrongs
            if wrong is None:
                continue
            found += 1
            right = group.targets[0]
            assert lessons[wrong].prompt == lessons[right].prompt and lessons[wrong].domain != lessons[right].domain
            assert lessons[wrong].solution != lessons[right].solution
    assert found


def test_groups_of_a_step_teach_different_lessons(base: bases.Base, lessons: list[Trajectory]) -> None:
    corpus = Corpus(base, lessons, max_tokens=700)
    groups = corpus.groups(np.random.default_rng(0), PairMix(recall=1.0), count=8, targets=1, contrasts=1)
    assert len({corpus.domain_key(g.targets[0]) for g in groups}) == 8


def test_shares_say_how_often_each_benchmark_is_drawn(base: bases.Base, lessons: list[Trajectory]) -> None:
    """The larger benchmark is drawn as seldom as it is told to; one that is not there is refused."""
    few = [replace(t, benchmark="few", domain="", trajectory_id=f"few{i}") for i, t in enumerate(lessons[:3])]
    corpus = Corpus(base, [*lessons, *few], max_tokens=700)
    shares = {"families": 0.25, "few": 0.75}
    mix = PairMix(recall=1.0, shares=shares)
    drawn = [
        corpus.trajectories[g.targets[0]].benchmark
        for step in range(200)
        for g in corpus.groups(np.random.default_rng(step), mix, count=2, targets=1, contrasts=0)
    ]
    assert 0.65 < drawn.count("few") / len(drawn) < 0.85
    solutions = [corpus.trajectories[i].benchmark for i in corpus.solutions(np.random.default_rng(0), 400, shares)]
    assert len(solutions) == 400 and 0.65 < solutions.count("few") / 400 < 0.85
    with pytest.raises(DataError, match="no solution of it to train on; it has: families, few"):
        corpus.solutions(np.random.default_rng(0), 4, {"mbpp": 1.0})


def test_a_family_is_never_taught_by_strangers(base: bases.Base, lessons: list[Trajectory]) -> None:
    near = {t.trajectory_id: [o.trajectory_id for o in lessons if o.domain != t.domain] for t in lessons}
    corpus = Corpus(base, lessons, max_tokens=700, retrieved=near)
    for group in corpus.groups(np.random.default_rng(0), PairMix(retrieved=1.0), count=6, targets=1, contrasts=0):
        assert {corpus.domain_key(i) for i in group.sources} == {corpus.domain_key(group.targets[0])}


def test_retrieved_pairs_are_about_spared_tasks_and_the_other_kinds_about_all(
    base: bases.Base, lessons: list[Trajectory]
) -> None:
    plain = [replace(t, domain="", task_id=f"T/{i}", trajectory_id=f"t{i}") for i, t in enumerate(lessons)]
    near = {t.trajectory_id: [o.trajectory_id for o in plain if o is not t][:3] for t in plain}
    spared = {"T/1", "T/4", "T/7"}
    corpus = Corpus(base, plain, max_tokens=700, retrieved=near, spared=spared)

    def targets(mix: PairMix) -> set[str]:
        return {
            plain[g.targets[0]].task_id
            for step in range(60)
            for g in corpus.groups(np.random.default_rng(step), mix, count=2, targets=1, contrasts=0)
        }

    assert targets(PairMix(retrieved=1.0)) == spared
    assert targets(PairMix(retrieved=1.0, shares={"families": 1.0, "absent": 0.0})) == spared
    assert targets(PairMix(recall=1.0)) > spared
    with pytest.raises(DataError, match="none of the 1 tasks spared for retrieved pairs has a solution"):
        Corpus(base, plain, max_tokens=700, retrieved=near, spared={"T/none"})


def test_a_step_is_a_function_of_seed_and_step_alone(base: bases.Base, lessons: list[Trajectory]) -> None:
    corpus = Corpus(base, lessons, max_tokens=700)
    draw = [
        corpus.groups(np.random.default_rng([3, 7]), PairMix(family=1.0), count=4, targets=2, contrasts=1)
        for _ in range(2)
    ]
    assert draw[0] == draw[1]


def test_retrieved_pairs_without_a_second_task_are_refused(base: bases.Base) -> None:
    corpus = Corpus(base, [TRAJECTORY], max_tokens=700)
    with pytest.raises(DataError, match="no trajectory of another task resembles T/1"):
        corpus.groups(np.random.default_rng(0), PairMix(retrieved=1.0), count=2, targets=1, contrasts=1)


def test_the_target_is_asked_as_at_sampling_time_and_closed_by_its_fence(base: bases.Base) -> None:
    from rune import prompts
    from rune.models import chat

    text = base.encode(TRAJECTORY.prompt, TRAJECTORY.solution)
    asked = chat.render(base.ref, prompts.task(TRAJECTORY.prompt))
    assert base.tokenizer.decode(text.ids[: text.start]) == asked
    assert base.tokenizer.decode(text.ids[text.start :]) == TRAJECTORY.solution + prompts.FENCE


def test_the_learning_rate_warms_up_peaks_and_ends_at_a_tenth() -> None:
    schedule = Schedule(steps=100, learning_rate=1.0, warmup=0.1)
    rates = [learning_rate(schedule, s) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1.0) and rates.index(max(rates)) in (9, 10)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
