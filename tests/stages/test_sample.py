"""sample: every arm speaks under its own adapter and context, with the same chance, each draw once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rune import console, prompts
from rune.engines import scripted
from rune.runs import store
from rune.stages import sample
from rune.stages.context import Context
from rune.types import AdapterRef, ModelRef, Problem, Sample, Split, Treatment

CONFIG = sample.Config(n=3, temperature=0.8, max_new_tokens=8, top_p=1.0, top_k=0)
TASKS = ("T/1", "T/2")


def _adapter(name: str, model: ModelRef) -> AdapterRef:
    return AdapterRef(adapter_id=name, base_model=model.digest, rank=1, delta_w_norm=1.0)


@pytest.fixture
def folder(tiny_model: ModelRef, tmp_path: Path) -> store.RunDir:
    """Two tasks, three arms without text of their own that differ in the adapter alone, and one with a context."""
    problems = [
        Problem(task_id=t, benchmark="t", prompt=f"the task {t}", entry_point="f", test="", split=Split.HELD_OUT)
        for t in TASKS
    ]
    treatments = [
        treatment
        for t in TASKS
        for treatment in (
            Treatment(task_id=t, condition="vanilla"),
            Treatment(task_id=t, condition="hypernet", adapter=_adapter(f"own {t}", tiny_model)),
            Treatment(task_id=t, condition="wrong", adapter=_adapter(f"other {t}", tiny_model)),
            Treatment(task_id=t, condition="rag", context=f"a hint for {t}"),
        )
    ]
    store.write_jsonl(tmp_path / "problems.jsonl", problems)
    store.write_jsonl(tmp_path / "treatments.jsonl", treatments)
    return store.RunDir(tmp_path)


@pytest.fixture
def context(tiny_model: ModelRef, tmp_path: Path) -> Context:
    """An engine whose words say which adapter, context and task it was asked with, and by what chance."""
    answers = {f"a hint for {t}": tuple(f"hint {t} {i}" for i in range(100)) for t in TASKS}
    for t in TASKS:
        for name in (f"own {t}", f"other {t}"):
            answers[f"{name}:the task {t}"] = tuple(f"{name} {i}" for i in range(100))
        answers[f"the task {t}"] = tuple(f"bare {t} {i}" for i in range(100))
    engine = scripted.build(scripted.Config(answers=answers), model=tiny_model, device="cpu", dtype="float32")

    def no_sandbox() -> None:
        raise AssertionError("sampling runs no program")

    return Context(
        seed=5,
        model=lambda: tiny_model,
        device="cpu",
        dtype="float32",
        engine=lambda: engine,
        sandbox=no_sandbox,  # type: ignore[arg-type, return-value]
        cache=tmp_path,
    )


def _samples(folder: store.RunDir) -> dict[tuple[str, str, int], Sample]:
    found = store.read_jsonl(folder / "samples.jsonl", Sample)
    keyed = {(s.condition, s.task_id, s.draw): s for s in found}
    assert len(keyed) == len(found)
    return keyed


def test_each_arm_speaks_under_its_own_adapter_and_context(folder: store.RunDir, context: Context) -> None:
    assert sample.run(folder, CONFIG, context) == 24
    said = {"vanilla": "bare", "hypernet": "own", "wrong": "other", "rag": "hint"}
    for (arm, task, _), drawn in _samples(folder).items():
        assert drawn.completion.rsplit(" ", 1)[0] == f"{said[arm]} {task}"


def test_one_task_and_draw_has_one_seed_in_all_arms_and_no_other_has_it(folder: store.RunDir, context: Context) -> None:
    sample.run(folder, CONFIG, context)
    seeds: dict[tuple[str, int], set[int]] = {}
    for (_, task, draw), drawn in _samples(folder).items():
        seeds.setdefault((task, draw), set()).add(drawn.seed)
        assert drawn.completion.rsplit(" ", 1)[1] == str(drawn.seed % 100)
    assert all(len(found) == 1 for found in seeds.values())
    assert len(set.union(*seeds.values())) == len(seeds) == 6


@pytest.mark.parametrize("kept", [(0, 1, 2, 4, 5, 6, 7, 8), (0, 1, 2, 3), (1, 4, 6), tuple(range(1, 24, 3))])
def test_a_resumed_run_draws_what_is_missing_and_nothing_twice(
    folder: store.RunDir, context: Context, kept: tuple[int, ...]
) -> None:
    """Whole tasks, the end of one, its beginning, its middle: whatever is missing comes with the seeds it had."""
    sample.run(folder, CONFIG, context)
    whole = _samples(folder)
    path = folder / "samples.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[i] for i in kept) + lines[9][:20])
    assert sample.run(folder, CONFIG, context) == 24 - len(kept)
    assert _samples(folder) == whole
    assert sample.run(folder, CONFIG, context) == 0


def test_draws_beyond_n_are_not_counted_against_the_one_that_is_missing(folder: store.RunDir, context: Context) -> None:
    sample.run(folder, replace(CONFIG, n=5), context)
    path = folder / "samples.jsonl"
    (lost, *_), kept = _samples(folder), path.read_text().splitlines(keepends=True)
    path.write_text("".join(kept[1:]))
    assert sample.run(folder, CONFIG, context) == 1 and lost in _samples(folder)


def test_more_draws_keep_those_that_were_drawn(folder: store.RunDir, context: Context) -> None:
    sample.run(folder, CONFIG, context)
    before = _samples(folder)
    assert sample.run(folder, replace(CONFIG, n=5), context) == 8 * 2
    after = _samples(folder)
    assert {key: after[key] for key in before} == before
    assert {d for _, _, d in after} == set(range(5))
    for (_, task, draw), drawn in after.items():
        assert drawn.seed == after["vanilla", task, 0].seed + draw


def test_the_runs_seed_changes_every_draw_and_repeats_with_itself(folder: store.RunDir, context: Context) -> None:
    found = []
    for seed in (5, 5, 6):
        (folder / "samples.jsonl").unlink(missing_ok=True)
        sample.run(folder, CONFIG, replace(context, seed=seed))
        found.append(_samples(folder))
    assert found[0] == found[1]
    assert not {s.seed for s in found[0].values()} & {s.seed for s in found[2].values()}


def test_a_sample_is_the_program_of_its_own_completion_and_task(folder: store.RunDir, context: Context) -> None:
    sample.run(folder, CONFIG, context)
    order = list(_samples(folder))
    assert [t for _, t, _ in order] == sorted(t for _, t, _ in order)  # task by task: arms are interleaved
    for drawn in _samples(folder).values():
        assert drawn.task_id in drawn.completion
        assert drawn.program == prompts.extract(drawn.completion, prompt=f"the task {drawn.task_id}", entry_point="f")


def test_the_bar_tells_rows_alive_where_the_engine_counts_them(
    folder: store.RunDir, context: Context, tiny_model: ModelRef, capsys: pytest.CaptureFixture[str]
) -> None:
    from rune.engines import torch as torch_engine

    engine = torch_engine.build(torch_engine.Config(), model=tiny_model, device="cpu", dtype="float32")
    treatments = [Treatment(task_id=t, condition="vanilla") for t in TASKS]
    store.write_jsonl(folder / "treatments.jsonl", treatments)
    assert sample.run(folder, CONFIG, replace(context, engine=lambda: engine)) == 6
    shown = sample.pace(engine, engine.stats.tokens, 2.0)
    rate, steps, read = engine.stats.tokens / 2, engine.stats.steps, engine.stats.prompt_tokens
    assert steps > 0 and read > 0
    told = {"tok/s": f"{rate:.0f}", "alive": "0", "waiting": "0", "steps": str(steps), "read": str(read)}
    assert shown == told
    assert engine.stats.tokens > 0
    assert sample.pace(context.engine(), 10, 4.0) == {"tok/s": "2"}
    assert "tok/s=" in capsys.readouterr().err


def test_the_bar_counts_what_was_there_and_each_draw_once(
    folder: store.RunDir, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample.run(folder, CONFIG, context)
    drawn = (folder / "samples.jsonl").read_text().splitlines(keepends=True)
    (folder / "samples.jsonl").write_text("".join(drawn[:14]))
    bars: list[Bar] = []

    class Bar(console.Progress):
        def __init__(self, title: str, total: int, **more: Any) -> None:
            super().__init__(title, total, **more)
            self.total, self.initial, self.advanced = total, more["initial"], 0
            bars.append(self)

        def advance(self, count: int = 1, **shown: object) -> None:
            super().advance(count, **shown)
            self.advanced += count

    monkeypatch.setattr(console, "Progress", Bar)
    assert sample.run(folder, CONFIG, context) == 10
    assert [(bar.total, bar.initial, bar.advanced) for bar in bars] == [(24, 14, 10)]


def test_the_pace_of_less_than_a_second_is_told_and_of_none_is_not(context: Context) -> None:
    assert sample.pace(context.engine(), 10, 0.5) == {"tok/s": "20"}
    assert sample.pace(context.engine(), 10, 0.0) == {"tok/s": "?"}
