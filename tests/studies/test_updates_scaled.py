"""The scaled study and Phase 4: who learns from whom, what counts as naming a function, arithmetic on ΔW."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rune.adapters.factors import Factors
from rune.benchmarks import api_updates
from rune.benchmarks.scorers.updates import names_function
from rune.hypernet import base as bases
from rune.hypernet import outer_products, side_by_side
from rune.hypernet.base import Base
from rune.runs import store
from rune.types import Execution, ModelRef, Outcome, Problem, Sample, Trajectory

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STUDIES / "updates-scaled"))
    return importlib.import_module("scaled")


@pytest.fixture
def phase4(study: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STUDIES / "phase4"))
    return importlib.import_module("phase4")


@pytest.fixture
def base(tiny_model: ModelRef) -> Iterator[Base]:
    loaded = bases.load(tiny_model, device="cpu", dtype="float32")
    yield loaded
    loaded.hooks.remove()


@pytest.fixture(scope="module")
def made() -> tuple[list[Trajectory], list[Problem]]:
    tasks = api_updates.generate(api_updates.Config(seed=3, updates=25))
    return list(api_updates.trajectories(tasks)), [t.problem for t in tasks]


def function(task: str) -> str:
    return task.partition("/")[2].partition(":")[0]


def test_withheld_functions_are_trained_on_by_no_generated_update(
    study: ModuleType, made: tuple[list[Trajectory], list[Problem]]
) -> None:
    lessons, problems = made
    functions = sorted({function(p.task_id) for p in problems})[:5]
    train, withheld = study.generated_jobs(lessons, [p for p in problems if function(p.task_id) in functions])
    assert {function(j.case.problem.task_id) for j in withheld} == set(functions)
    assert not {function(t.task_id) for j in train for t in (j.case.own, *j.lessons)} & set(functions)
    assert len(train) + len(withheld) == 25
    assert all(j.case.own not in j.lessons and len(j.lessons) == 3 for j in (*train, *withheld))
    assert all(j.case.problem.test for j in withheld)  # can be judged


def test_a_wrong_donor_is_of_another_function_and_of_the_package_where_it_can_be(
    study: ModuleType, made: tuple[list[Trajectory], list[Problem]]
) -> None:
    train, _ = study.generated_jobs(made[0], [])
    pairs = study.strangers(train)
    assert len(pairs) == 25
    alone = 0
    for job, donor in pairs:
        mine, other = function(job.case.problem.task_id), function(donor.case.problem.task_id)
        assert mine != other
        near = [j for j in train if j.case.problem.category == job.case.problem.category
                and function(j.case.problem.task_id) != mine]  # fmt: skip
        alone += not near
        assert not near or donor.case.problem.category == job.case.problem.category
    assert 0 < alone < 25


def test_a_reference_names_its_function_and_a_string_or_comment_does_not(
    study: ModuleType, made: tuple[list[Trajectory], list[Problem]]
) -> None:
    problem = next(p for p in made[1] if function(p.task_id).startswith("statistics"))
    assert all(names_function(p.reference, p) for p in made[1])
    name = problem.prelude.partition("UPDATED = (")[2].partition("'")[2].partition("'")[2].split("'")[1]
    assert not names_function(f"# {name}\ndef f(x):\n    return '{name}'\n", problem)
    assert names_function(f"from statistics import {name} as other\n", problem)
    found = study.ignores(
        [{"arm": "a", "used": n < 2, "named": names_function(code, problem)}
         for n, code in enumerate((problem.reference, "x = 1", "x = 2"))]
    )  # fmt: skip
    assert found == {"a": [1, 2]}
    assert names_function(f"def f(x:\n    {name}(x)\n", problem)  # what this Python does not read
    assert not names_function("def f(x:\n    pass\n", problem)


def test_what_ends_at_the_limit_of_tokens_is_counted_by_arm(study: ModuleType) -> None:
    ends = ("length", "stop", "stop", "length")
    drawn = {("a", "t", n): {"finish_reason": end, "num_tokens": n} for n, end in enumerate(ends)}
    assert study.lengths([{"arm": "a", "task": "t", "draw": n} for n in range(4)], drawn) == {"a": (1.5, 50.0)}


def test_examples_by_where_their_updates_are_from_add_up_to_what_a_step_draws(study: ModuleType) -> None:
    found = study.seen(10)
    assert found["real"] == {"real": 120, "generated": 0}
    assert found["real+1000"] == found["real+300"] == {"real": 30, "generated": 90}


def test_the_lead_of_one_setting_over_another_is_the_difference_of_right_minus_wrong(study: ModuleType) -> None:
    hits = {"real": (1, 1), "real_wrong": (1, 0), "real+1000": (1, 1), "real+1000_wrong": (0, 0)}
    verdicts = [
        {"arm": arm, "task": f"{update}/0", "draw": draw, "used": bool(hit)}
        for update in ("a:x:0", "b:y:0") for arm, some in hits.items() for draw, hit in enumerate(some)
    ]  # fmt: skip
    assert study.leads(verdicts)["real+1000 − real"] == (50.0, 50.0, 50.0)


def test_examples_read_their_siblings_and_sometimes_the_target_itself(
    study: ModuleType, base: Base, made: tuple[list[Trajectory], list[Problem]]
) -> None:
    train, _ = study.generated_jobs(made[0], [])
    lane = SimpleNamespace(args=SimpleNamespace(smoke=True), encode=lambda t: base.encode(t.prompt, t.solution))
    study.updates_oracle.MAX_TOKENS = 4000
    try:
        draw = study.examples(train[:5], train[5:], lane)
        drawn = [e for n in range(60) for e in draw(np.random.default_rng(n))]
    finally:
        study.updates_oracle.MAX_TOKENS = 768
    jobs = {j.key: j for j in train}
    recalled = 0
    for e in drawn:
        own = lane.encode(jobs[e.teacher].case.own)
        assert set(e.sources) <= {lane.encode(t) for t in jobs[e.teacher].lessons}
        assert (e.target in e.sources) is (e.target != own)
        recalled += e.target in e.sources
    assert 0.08 < recalled / len(drawn) < 0.24
    real = sum(e.teacher in {j.key for j in train[:5]} for e in drawn)
    assert real == len(drawn) // 4
    assert {len(e.sources) for e in drawn} == {1, 2, 3}


def test_a_judge_that_is_cut_off_leaves_whole_blocks(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    updates = study.updates
    problem = Problem(task_id="t/0", benchmark="x", prompt="", entry_point="f", test="", reference="")
    samples = [
        Sample(
            task_id="t/0", condition="a", draw=n, seed=n, completion="", program="", num_tokens=1, finish_reason="stop"
        )
        for n in range(2 * updates.BLOCK)
    ]  # fmt: skip
    store.write_jsonl(tmp_path / "samples.jsonl", samples)
    blocks = []

    def judged(sandbox: Any, items: Any) -> Iterator[Execution]:
        blocks.append([i.key for i in items])
        for number, key in enumerate(blocks[-1]):
            if len(blocks) == 2 and number == 5:  # cut off in the middle of the second block
                raise KeyboardInterrupt
            yield Execution(key=key, outcome=Outcome.FAILED if number % 2 else Outcome.PASSED)

    monkeypatch.setattr(updates.judging, "judge", judged)
    monkeypatch.setattr(updates, "_sandbox", lambda: SimpleNamespace(close=lambda: None))
    with pytest.raises(KeyboardInterrupt):
        updates._score([problem], tmp_path / "samples.jsonl", tmp_path / "verdicts.jsonl")
    rows = [row for _, row in store.read_lines(tmp_path / "verdicts.jsonl")]
    assert [len(rows), sum(row["used"] for row in rows)] == [updates.BLOCK, updates.BLOCK // 2]


# --------------------------------------------------------------------------- arithmetic on ΔW


def adapters(base: Base, count: int, rank: int) -> list[dict[str, Factors]]:
    chance = torch.Generator().manual_seed(rank)
    layout = base.layout(outer_products.MODULES)
    return [
        {
            m: Factors(
                torch.randn(layout.layers, 1, rank, s.inputs, generator=chance),
                torch.randn(layout.layers, 1, rank, s.outputs, generator=chance),
            )
            for m, s in layout.sizes.items()
        }
        for _ in range(count)
    ]


def dense(some: dict[str, Factors]) -> torch.Tensor:
    return torch.cat([torch.einsum("ynri,ynro->yio", *f).flatten() for f in some.values()])


def test_products_and_the_mean_of_adapters_are_those_of_the_dense_weights(phase4: ModuleType, base: Base) -> None:
    one, other = adapters(base, 3, 2), adapters(base, 2, 5)
    expected = torch.stack([dense(a) for a in one]) @ torch.stack([dense(b) for b in other]).T
    torch.testing.assert_close(phase4.gram(one, other), expected, rtol=1e-4, atol=1e-2)
    whole = torch.stack([dense(a) for a in one]).mean(0)
    torch.testing.assert_close(dense(phase4.mean_adapter(one, 64)), whole, rtol=1e-3, atol=1e-3)
    drawn = phase4.gaussian(one[0], 7)
    assert float(dense(drawn).norm()) == pytest.approx(float(dense(one[0]).norm()), rel=1e-4)
    found = phase4.errors([drawn, one[0]], [one[0], one[0]])["written"]
    assert found["error"] == pytest.approx([2.0, 0.0], abs=0.1)
    assert found["cosine"] == pytest.approx([0.0, 1.0], abs=0.05)


def test_adapters_that_share_a_part_are_alike_raw_and_not_around_their_mean(phase4: ModuleType, base: Base) -> None:
    common, *own = adapters(base, 5, 2)
    shared = [scaled_sum(common, some) for some in own]
    found = phase4.diversity(shared)
    assert found["cosine_raw"] > 0.7
    assert found["cosine_centred"] == pytest.approx(-1 / 3, abs=0.05)  # of four around their mean


def scaled_sum(one: dict[str, Factors], other: dict[str, Factors]) -> dict[str, Factors]:
    return {
        m: Factors(torch.cat([2 * f.down_YNRI, other[m].down_YNRI], 2), torch.cat([f.up_YNRO, other[m].up_YNRO], 2))
        for m, f in one.items()
    }


def texts(base: Base) -> list[Any]:
    codes = ("return blorp(x)", "return x.zibble + 1", "return snurg(x, x)")
    return [base.encode(f"Write f{n}.\n", f"def f{n}(x):\n    {code}\n") for n, code in enumerate(codes)]


def test_a_lora_on_the_common_start_stays_in_its_rows_and_nearer_than_no_adapter_to_a_fine_tuned_one(
    phase4: ModuleType, base: Base
) -> None:
    some = texts(base)
    lessons = [side_by_side.Lesson(f"t{n}", (t,)) for n, t in enumerate(some)]
    schedule = phase4.Schedule(steps=1, learning_rate=1e-3)
    tuned, _ = side_by_side.train(base, lessons, schedule, rank=4, alpha=8.0, rows=1, seed=1, start="common")
    goal = {m: tuned[m] for m in outer_products.MODULES}
    start = side_by_side.first_down(base.layout(side_by_side.MODULES), 4, 1, "common")
    model = phase4.CommonStart(base.layout(outer_products.MODULES), start)
    seen = outer_products.observe(base, [[t] for t in some], tokens=64)
    model.calibrate(base, seen)
    phase4.best_steps(model, seen, goal)
    with torch.no_grad():
        made = model(seen)
    for module, factors in made.items():
        assert factors.down_YNRI.shape[2] == 4
        torch.testing.assert_close(factors.down_YNRI[:, 1], start[module])
    one = [{m: Factors(*(t[:, n : n + 1] for t in f)) for m, f in made.items()} for n in range(3)]
    wanted = [{m: Factors(*(t[:, n : n + 1] for t in f)) for m, f in goal.items()} for n in range(3)]
    assert max(phase4.errors(one, wanted)["written"]["error"]) < 0.98


def test_phase_4_tells_by_its_rule_what_reconstructs_and_what_serves(phase4: ModuleType) -> None:
    below, over = (-0.2, -0.3, -0.1), (-0.01, -0.02, 0.01)
    near = {"reconstruction − mean": below, "reconstruction − nearest by text": below}
    far = {"end to end − mean": over, "end to end − nearest by text": below}
    result = {
        "reconstruction": {"reconstruction": {}, "end to end": {}},
        "leads": near | far,
        "used": {
            "arms": {"fine-tuned": 40.0, "reconstruction": 19.9, "end to end": 20.0},
            "contrasts": {
                "reconstruction − reconstruction_wrong": (5.0, 1.0, 9.0),
                "end to end − end to end_wrong": (5.0, 1.0, 9.0),
            },
        },
    }
    assert phase4.verdict(result) == {
        "reconstruction": {"reconstructs": True, "serves": False},
        "end to end": {"reconstructs": False, "serves": True},
    }
    result["used"]["contrasts"]["end to end − end to end_wrong"] = (5.0, 0.0, 9.0)
    assert not phase4.verdict(result)["end to end"]["serves"]


@pytest.fixture
def cause(study: ModuleType) -> ModuleType:
    return importlib.import_module("cause")


def test_a_prompt_says_a_name_as_words_of_any_spelling_and_not_inside_another(cause: ModuleType) -> None:
    assert cause._says("def make_pformat_last(items):", "pprint.pformat")
    assert cause._says("Use the new fast_log of it.", "math.log", "fast_log")
    assert not cause._says("Give the logarithm of each.", "math.log")
    assert not cause._says("Be fast, and log nothing.", "math.ceil", "quick_log")


def test_tokens_that_begin_a_name_are_found_where_the_text_has_it(cause: ModuleType, base: Base) -> None:
    text = base.encode("Do it.", "x = math.log(y)\nlogs = catalog.log(log)")
    at = cause.names_at(base, text, "log")
    pieces = [base.tokenizer.decode([i]) for i in text.ids[text.start :]]
    starts = [len("".join(pieces[:n])) for n in range(len(pieces) + 1)]
    whole = "".join(pieces)
    places = [n for n in range(len(whole)) if whole[n : n + 4] in ("log(", "log)")]
    assert len(at) == len(places) == 3
    assert all(starts[token] <= place < starts[token + 1] for token, place in zip(at, places, strict=True))


def test_what_is_kept_is_the_largest_error_and_the_names_in_it(cause: ModuleType, base: Base) -> None:
    lesson = Trajectory(trajectory_id="1", task_id="t/0", benchmark="b", prompt="Do it.", attempts=(),
                        solution="import math\n\n\ndef f(x):\n    return math.ceil(x)\n")  # fmt: skip
    problem = Problem(task_id="t/1", benchmark="b", prompt="", entry_point="f", test="",
                      prelude="UPDATED = ('math', 'ceil')\n")  # fmt: skip
    job = SimpleNamespace(lessons=(lesson, lesson), case=SimpleNamespace(problem=problem))
    found = cause.kept(base, job)
    assert found["names"] == 2 and found["names kept"]["512"] == 2 and found["share"]["512"] == 1.0
    shares = list(found["share"].values())
    assert shares == sorted(shares) and 0 < shares[0] <= 1
    assert found["tokens"] == 2 * (len(base.encode("Do it.", lesson.solution).ids) - base.encode("Do it.", "").start)
