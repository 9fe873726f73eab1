"""What is measured and what adapters are made from: stages and training are straw, records and counting real."""

from __future__ import annotations

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rune.adapters.factors import Factors
from rune.adapters.registry.records import Source
from rune.conditions import tuned
from rune.errors import ConfigError, DataError
from rune.runs import store
from rune.study import measuring
from rune.study.evolution import Found, Wanted
from rune.types import AdapterRef, Attempt, Outcome, Problem, Split, Trajectory, Treatment, Verdict


def problem(task: str, domain: str, split: Split = Split.HELD_OUT) -> Problem:
    return Problem(task_id=task, benchmark="t", prompt=task, entry_point="f", test="", domain=domain, split=split)


def evaluator(benchmark: Sequence[Problem], *, elsewhere: Sequence[Problem] | None = None, **evolve: Any) -> Any:
    """One without engine or sandbox, whose benchmarks are these tasks."""
    found = measuring.EngineEvaluator.__new__(measuring.EngineEvaluator)
    given = {"seed": 1, "inside": 2, "outside": 3, **evolve}
    found._settings = types.SimpleNamespace(  # type: ignore[assignment]
        evolve=types.SimpleNamespace(**given),
        benchmark=types.SimpleNamespace(name="b", tasks=list(benchmark)),
        elsewhere=None if elsewhere is None else types.SimpleNamespace(name="e", tasks=list(elsewhere)),
        sample="[sample]", score="[score]",
    )  # fmt: skip
    return found


@pytest.fixture(autouse=True)
def straw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "problems", lambda section: section.tasks)


EIGHT = [problem(f"{d}/{i}", d, Split.HELD_OUT if i % 2 else Split.TRAIN) for d in ("x", "y") for i in range(4)]


def test_the_tasks_of_a_domain_are_so_many_by_chance_or_all_that_are_held_out() -> None:
    some = evaluator([*EIGHT, problem("none/0", "")], inside=3)
    order = [p.task_id for p in some._in_order(EIGHT)]
    assert {d: [p.task_id for p in found] for d, found in some._by_domain.items()} == {
        d: [t for t in order if t[0] == d][:3] for d in ("x", "y")
    }
    held_out = evaluator(EIGHT, inside=0)
    assert {d: {p.task_id for p in found} for d, found in held_out._by_domain.items()} == {
        "x": {"x/1", "x/3"}, "y": {"y/1", "y/3"},
    }  # fmt: skip
    for tasks, how in (([problem("a", "")], 2), ([problem("a", "x", Split.TRAIN)], 0)):
        with pytest.raises(ConfigError, match=r"\[benchmark\] b: no task has a domain and is held out"):
            evaluator(tasks, inside=how)._by_domain  # noqa: B018


def test_other_tasks_are_those_of_other_domains_or_those_named_apart() -> None:
    one = evaluator(EIGHT, inside=2, outside=1)
    assert sorted(p.task_id for p in one._elsewhere) == sorted(p.task_id for f in one._by_domain.values() for p in f)
    inside, outside = one.tasks(["x"])
    assert len(inside) == 2 and len(outside) == 1 and outside[0].startswith("y/")
    apart = [problem("z/0", "z"), problem(inside[0], "other"), problem("x/9", "x")]
    two = evaluator(EIGHT, elsewhere=apart, outside=9)
    assert two.tasks(["x"]).outside == ("z/0",)  # neither of the domain nor scored inside it
    assert set(two._problems) == {p.task_id for f in two._by_domain.values() for p in f} | {"z/0", "x/9"}
    with pytest.raises(DataError, match=r"\[benchmark\] b: no domain with held-out tasks named 'q'"):
        one.tasks(["x", "q"])


def ref(name: str) -> AdapterRef:
    return AdapterRef(adapter_id=name, base_model="m", rank=1, delta_w_norm=1.0)


def test_what_was_drawn_and_judged_is_counted_by_adapter_and_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Any] = []
    passes = {("b", "x/1"): (2, 3), ("a", "x/1"): (0, 3), ("a", "y/1"): (3, 3)}

    def run(folder: store.RunDir, settings: Any, context: Any) -> None:
        heard.append((folder.path.relative_to(tmp_path).parts[:-1], settings, context))

    def judge(folder: store.RunDir, settings: Any, context: Any) -> None:
        run(folder, settings, context)
        store.write_jsonl(
            folder / "verdicts.jsonl",
            [
                Verdict(task_id=t, condition=a, draw=d, outcome=Outcome.PASSED if d < c else Outcome.TIMED_OUT)
                for (a, t), (c, n) in passes.items()
                for d in range(n)
            ],
        )

    monkeypatch.setattr(measuring.sample, "run", run)
    monkeypatch.setattr(measuring.score, "run", judge)
    one = evaluator(EIGHT)
    one._folder, one._context = tmp_path, "context"
    one.__dict__ |= {"protocol": "p" * 40, "_problems": {p.task_id: p for p in EIGHT}}
    wanted = [Wanted(ref("b"), ("x/1",)), Wanted(ref("a"), ("y/1", "x/1"))]
    assert list(one.measure(wanted)) == [
        Found("a", "x/1", 0, 3), Found("a", "y/1", 3, 3), Found("b", "x/1", 2, 3),
    ]  # fmt: skip
    place = ("measurements", "p" * 16)
    assert heard == [(place, "[sample]", "context"), (place, "[score]", "context")]
    (folder,) = (tmp_path / "measurements" / ("p" * 16)).iterdir()
    assert [p.task_id for p in store.read_jsonl(folder / "problems.jsonl", Problem)] == ["x/1", "y/1"]
    treatments = store.read_jsonl(folder / "treatments.jsonl", Treatment)
    assert [(t.condition, t.task_id, t.adapter) for t in treatments] == [
        ("a", "x/1", ref("a")), ("a", "y/1", ref("a")), ("b", "x/1", ref("b")),
    ]  # fmt: skip
    list(one.measure(list(reversed(wanted))))  # the same batch, whoever comes first
    assert len(list(folder.parent.iterdir())) == 1
    list(one.measure(wanted[:1]))
    assert len(list(folder.parent.iterdir())) == 2


# --------------------------------------------------------------------------- makers of adapters


def trajectory(name: str, domain: str, solution: str = "s") -> Trajectory:
    outcome = Outcome.PASSED if solution else Outcome.FAILED
    return Trajectory(
        trajectory_id=name, task_id=f"task {name}", benchmark="t", prompt=f"Do {name}.", domain=domain,
        attempts=(Attempt(code="s", outcome=outcome, error="" if solution else "no"),), solution=solution,
    )  # fmt: skip


STORIES = [trajectory("1", "x"), trajectory("2", "y"), trajectory("3", "x"), trajectory("failed", "x", "")]


def source(name: str) -> Source:
    return Source(trajectory_id=name, task_id=f"task {name}")


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    store.write_jsonl(tmp_path / "corpus.jsonl", STORIES)
    return str(tmp_path / "corpus.jsonl")


def settings(corpus: str, **evolve: Any) -> Any:
    given = {"trajectories": (corpus,), "checkpoint": "", "tune": None, "seed": 4, "strength": 0.5, **evolve}
    return types.SimpleNamespace(evolve=types.SimpleNamespace(**given))


def test_a_maker_knows_the_trajectories_of_a_domain_and_refuses_strange_ones(corpus: str) -> None:
    maker = measuring._FromTrajectories(settings(corpus))
    assert maker.known("x") == [source("1"), source("3"), source("failed")] and maker.known("z") == []
    assert [t.trajectory_id for t in maker._chosen([source("3"), source("2")])] == ["3", "2"]
    with pytest.raises(DataError, match="trajectory 9 is not among them, and an adapter was made from it"):
        maker._chosen([source("1"), source("9")])


def test_a_hypernetwork_is_loaded_once_and_known_by_its_weights(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rune.hypernet import export

    loaded: list[Any] = []
    monkeypatch.setattr(
        export, "outside", lambda path, model, device: loaded.append((path, model, device)) or "the maker"
    )
    monkeypatch.setattr(
        export,
        "adapter_from",
        lambda maker, chosen, strength: types.SimpleNamespace(
            adapter=(maker, [t.trajectory_id for t in chosen], strength)
        ),
    )
    with pytest.raises(ConfigError, match=r"evolve.checkpoint: .*: no checkpoint \(no model.safetensors\); give"):
        measuring.Hypernetwork(settings(corpus, checkpoint=str(tmp_path)), "model")  # type: ignore[arg-type]
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    maker = measuring.Hypernetwork(settings(corpus, checkpoint=str(tmp_path)), "model")  # type: ignore[arg-type]
    assert maker.name == store.sha256_file(tmp_path / "model.safetensors") and loaded == []
    assert maker.make([source("2"), source("1")]) == ("the maker", ["2", "1"], 0.5)  # type: ignore[comparison-overlap]
    maker.make([source("3")])
    assert loaded == [(tmp_path, "model", "cpu")]


class Base:
    """A base model whose texts are as long as the names of what they are about."""

    def encode(self, prompt: str, solution: str, *, answer: bool) -> Any:
        return types.SimpleNamespace(ids=list(range(len(prompt))), of=(prompt, solution, answer))

    def layout(self, modules: Any) -> str:
        return "layout"


def test_fine_tuning_makes_an_adapter_a_set_so_many_in_a_batch(corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rune.adapters import convert
    from rune.hypernet import base as bases
    from rune.hypernet import side_by_side

    loads: list[Any] = []
    batches: list[Any] = []

    def train(base: Any, lessons: Sequence[Any], schedule: Any, **how: Any) -> Any:
        batches.append(([(one.name, [t.of for t in one.texts]) for one in lessons], schedule, how))
        first = 10.0 * len(batches)
        numbers = torch.tensor([first + i for i in range(len(lessons))]).view(1, -1, 1, 1)
        return {"q": Factors(numbers, -numbers)}, [[0.0]]

    monkeypatch.setattr(bases, "load", lambda model, device, dtype: loads.append((device, dtype)) or Base())
    monkeypatch.setattr(side_by_side, "Lesson", lambda name, texts: types.SimpleNamespace(name=name, texts=texts))
    monkeypatch.setattr(side_by_side, "train", train)
    monkeypatch.setattr(
        convert,
        "to_adapter",
        lambda factors, layout, base_model: (
            [(float(d.squeeze()), float(u.squeeze())) for d, u in factors.values()], layout, base_model,
        ),
    )  # fmt: skip
    how = tuned.Config(rank=3, alpha=6.0, steps=7, learning_rate=0.25, rows=2, together=2, max_tokens=6)
    model: Any = types.SimpleNamespace(digest="d")
    maker = measuring.FineTuning(settings(corpus, tune=how), model, device="cpu", dtype="float32")
    assert loads == []
    sets = [[source("1"), source("failed"), source("2")], [source("3")], [source("2")]]
    made = maker.make_all(sets)
    assert made == [([(n, -n)], "layout", "d") for n in (10.0, 11.0, 20.0)]
    text = {n: (f"Do {n}.", "s", STORIES[0].answer) for n in "123"}
    assert [lessons for lessons, _, _ in batches] == [
        [("1 failed 2", [text["1"], text["2"]]), ("3", [text["3"]])], [("2", [text["2"]])],
    ]  # fmt: skip
    for _, schedule, asked in batches:
        assert (schedule.steps, schedule.learning_rate, schedule.checkpoint_every) == (7, 0.25, 7)
        assert asked == {"rank": 3, "alpha": 6.0, "rows": 2, "seed": 4, "start": "common"}
    assert maker.make([source("1")]) == ([(30.0, -30.0)], "layout", "d")  # type: ignore[comparison-overlap]
    assert loads == [("cpu", "float32")]
    with pytest.raises(DataError, match="none of the trajectories failed has a solution of at most 6 tokens"):
        maker.make([source("failed")])
    short = measuring.FineTuning(
        settings(corpus, tune=tuned.Config(max_tokens=4)), model, device="cpu", dtype="float32"
    )
    with pytest.raises(DataError, match="at most 4 tokens"):
        short.make([source("1")])


def test_what_makes_adapters_is_known_by_all_that_it_depends_on(corpus: str) -> None:
    def name(seed: int = 4, rank: int = 8, digest: str = "d", dtype: str = "float32") -> str:
        model: Any = types.SimpleNamespace(digest=digest)
        how = settings(corpus, tune=tuned.Config(rank=rank), seed=seed)
        return measuring.FineTuning(how, model, device="cpu", dtype=dtype).name

    assert name() == name() and len({name(), name(5), name(rank=4), name(digest="e"), name(dtype="bfloat16")}) == 5
    with pytest.raises(ConfigError, match=r"evolve\.tune is not set"):
        measuring.FineTuning(settings(corpus), None, device="cpu", dtype="float32")  # type: ignore[arg-type]


def test_adapters_are_made_as_the_config_says_or_not_at_all(corpus: str, tmp_path: Path) -> None:
    given: Any = types.SimpleNamespace(model=types.SimpleNamespace(digest="d"), device="cpu", dtype="bfloat16")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert isinstance(measuring.generator(settings(corpus, checkpoint=str(tmp_path)), given), measuring.Hypernetwork)
    tune = measuring.generator(settings(corpus, tune=tuned.Config()), given)
    assert isinstance(tune, measuring.FineTuning) and (tune._device, tune._dtype) == ("cpu", "bfloat16")
    assert measuring.generator(settings(corpus), given) is None
