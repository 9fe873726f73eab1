"""The adapt stage step by step with arms and models of straw: who is treated, made again, proved and compared."""

from __future__ import annotations

import contextlib
import json
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rune.adapters import peft
from rune.errors import AdapterError
from rune.hypernet import base as bases
from rune.hypernet import losses
from rune.runs import store
from rune.stages import adapt
from rune.types import AdapterRef, Problem, Split, Treatment

HELD_OUT = [f"T/{i}" for i in range(1, 4)]


def problem(task: str, split: Split = Split.HELD_OUT, reference: str = "r") -> Problem:
    return Problem(
        task_id=task, benchmark="t", prompt=f"Do {task}.", entry_point="f", test="", split=split, reference=reference
    )


def ref(name: str, norm: float = 1.0) -> AdapterRef:
    return AdapterRef(adapter_id=name, base_model="d", rank=1, delta_w_norm=norm)


class Arm:
    """Treats with an adapter a task, or with none; stops before the task it is told."""

    log: list[Any]

    def __init__(self, name: str, wears: Callable[[str], str | None], stops_at: str = "") -> None:
        self.name, self.wears, self.stops_at = name, wears, stops_at

    def treat(self, problems: Sequence[Problem], on_done: Callable[[Treatment], None]) -> None:
        Arm.log.append((self.name, [p.task_id for p in problems]))
        for p in problems:
            if p.task_id == self.stops_at:
                raise KeyboardInterrupt
            worn = self.wears(p.task_id)
            on_done(Treatment(task_id=p.task_id, condition=self.name, adapter=ref(worn) if worn else None))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> store.RunDir:
    Arm.log = []
    made = store.RunDir(tmp_path)
    store.write_json(made.manifest_path, {"stages": {}})
    store.write_jsonl(made / "problems.jsonl", [problem("T/0", Split.TRAIN), *map(problem, HELD_OUT)])
    monkeypatch.setattr(adapt, "build", lambda config, arm_inputs: arm_inputs)
    return made


def run(folder: store.RunDir, arms: dict[str, Arm], in_memory: bool = False) -> list[Treatment]:
    config = adapt.Config(arms=tuple(arms))
    adapters: Any = types.SimpleNamespace(in_memory=in_memory)
    return adapt.run(folder, config, None, arm_inputs=arms, adapters=adapters)  # type: ignore[arg-type]


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []
    monkeypatch.setattr(adapt, "_inspect", lambda *given: seen.append(([p.task_id for p in given[3]], len(given[4]))))
    return seen


def test_every_arm_treats_every_held_out_task_and_goes_on_where_it_stopped(
    folder: store.RunDir, looked_at: list[Any]
) -> None:
    arms = {"bare": Arm("bare", lambda t: None), "worn": Arm("worn", lambda t: f"of {t}", stops_at="T/3")}
    with pytest.raises(KeyboardInterrupt):
        run(folder, arms)
    assert looked_at == []
    with (folder / "treatments.jsonl").open("a") as file:
        file.write('{"torn')
    arms["worn"].stops_at = ""
    Arm.log.clear()
    found = run(folder, arms)
    assert Arm.log == [("worn", ["T/3"])]
    assert [(t.condition, t.task_id) for t in found] == [(a, t) for a in ("bare", "worn") for t in HELD_OUT]
    assert store.read_jsonl(folder / "treatments.jsonl", Treatment) == found and looked_at == [(HELD_OUT, 6)]


@pytest.mark.parametrize(("in_memory", "done", "kept"), [
    (True, False, False), (True, True, True), (False, False, True), (False, True, True),
])  # fmt: skip
def test_records_of_adapters_that_went_with_a_process_count_for_nothing(
    folder: store.RunDir, looked_at: list[Any], in_memory: bool, done: bool, kept: bool
) -> None:
    store.write_jsonl(folder / "treatments.jsonl", [Treatment(task_id="T/1", condition="worn", adapter=ref("old"))])
    store.write_json(folder.manifest_path, {"stages": {"adapt": {"status": "done" if done else "interrupted"}}})
    found = run(folder, {"worn": Arm("worn", lambda t: f"of {t}")}, in_memory)
    assert found[0].adapter == ref("old" if kept else "of T/1")
    assert Arm.log == [("worn", HELD_OUT[1:] if kept else HELD_OUT)]


def test_what_is_made_again_must_be_what_it_was(folder: store.RunDir) -> None:
    arms = {"bare": Arm("bare", lambda t: None), "worn": Arm("worn", lambda t: f"of {t}")}

    def remake(**changed: str | None) -> None:
        records = [
            Treatment(task_id=t, condition=a, adapter=ref(w) if w else None)
            for a, arm in arms.items()
            for t in HELD_OUT
            for w in [changed.get(f"{a}_{t[2:]}", arm.wears(t))]
        ]
        store.write_jsonl(folder / "treatments.jsonl", records)
        adapt.remake(folder, adapt.Config(arms=tuple(arms)), arm_inputs=arms)  # type: ignore[arg-type]

    remake()
    assert Arm.log == [("bare", HELD_OUT), ("worn", HELD_OUT)]
    with pytest.raises(AdapterError, match=r"the adapter of worn for T/2 is another than the one in treatments.jsonl"):
        remake(worn_2="other")
    for changed, said in ({"worn_3": None}, "worn of T/3"), ({"bare_1": "some"}, "bare of T/1"):
        with pytest.raises(AdapterError, match=f"made again, {said} is another"):
            remake(**changed)
    store.write_jsonl(folder / "treatments.jsonl", [Treatment(task_id="T/9", condition="bare")])
    with pytest.raises(AdapterError, match="made again, bare of T/9 is another"):
        adapt.remake(folder, adapt.Config(arms=tuple(arms)), arm_inputs=arms)  # type: ignore[arg-type]


# --------------------------------------------------------------------------- what is looked at when all are made


class Lent:
    def __init__(self) -> None:
        self.asked: list[Any] = []

    @contextlib.contextmanager
    def __call__(self, held: Any, model: Any, *, device: str, dtype: str) -> Iterator[Any]:
        self.asked.append((held, model, device, dtype))
        yield types.SimpleNamespace(layout=lambda modules: "layout")


CONTEXT: Any = types.SimpleNamespace(
    session=None, model=lambda: "model", device="cpu", dtype="float32", seed=6,
)  # fmt: skip


@pytest.mark.parametrize("swap_tasks", [0, 2, 48])
def test_each_arm_is_described_by_its_own_and_compared_where_it_has_several(
    folder: store.RunDir, monkeypatch: pytest.MonkeyPatch, swap_tasks: int
) -> None:
    lent, proved = Lent(), []
    monkeypatch.setattr(bases, "lent", lent)
    monkeypatch.setattr(
        adapt, "prove_live", lambda base, adapters, prompt, load: proved.append((adapters, prompt, load))
    )
    monkeypatch.setattr(adapt, "describe", lambda base, layout, own, adapters: sorted(own))
    monkeypatch.setattr(
        adapt, "swapped", lambda base, some, own, seed, load: [[p.task_id for p in some], sorted(own), seed, load]
    )
    worn = {"bare": {}, "one": dict.fromkeys(HELD_OUT, "shared"), "some": {"T/3": "c", "T/2": "b"},
            "all": {t: f"of {t}" for t in HELD_OUT}, "not an arm": {"T/1": "stray"}}  # fmt: skip
    treatments = [
        Treatment(task_id=t, condition=arm, adapter=ref(own[t]) if t in own else None)
        for arm, own in worn.items()
        for t in HELD_OUT
    ]
    config = adapt.Config(arms=("bare", "one", "some", "all"), swap_tasks=swap_tasks)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "metrics.jsonl").write_text(json.dumps({"phase": "lora", "loss": 1.0}) + "\n")
    problems = list(map(problem, HELD_OUT))
    adapters: Any = types.SimpleNamespace(adapter="load")
    adapt._inspect(folder, config, CONTEXT, problems, treatments, adapters)
    found = store.read_json(folder / "diagnostics.json")
    assert found["arms"] == {"one": HELD_OUT, "some": ["T/2", "T/3"], "all": HELD_OUT}
    swaps = {
        "some": [["T/2", "T/3"][:swap_tasks], ["T/2", "T/3"], 6, "load"],
        "all": [HELD_OUT[:swap_tasks], HELD_OUT, 6, "load"],
    }
    assert found["swap"] == (swaps if swap_tasks else {}) and list(found["training"]) == ["lora"]
    ((some, prompt, load),) = proved
    assert [(arm, r.adapter_id) for arm, r in some] == [
        ("one", "shared"), ("some", "b"), ("some", "c"), *(("all", f"of {t}") for t in HELD_OUT),
        ("not an arm", "stray"),
    ]  # fmt: skip
    assert (prompt, load) == ("Do T/1.", "load") and lent.asked == [(None, "model", "cpu", "float32")]


def test_without_any_adapter_no_model_is_loaded(folder: store.RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "lent", None)
    treatments = [Treatment(task_id=t, condition="bare") for t in HELD_OUT]
    adapt._inspect(folder, adapt.Config(arms=("bare",)), CONTEXT, [problem("T/1")], treatments, None)  # type: ignore[arg-type]
    assert store.read_json(folder / "diagnostics.json") == {"arms": {}, "training": {}, "swap": {}}


def test_the_base_that_the_process_holds_is_lent(folder: store.RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    lent = Lent()
    monkeypatch.setattr(bases, "lent", lent)
    monkeypatch.setattr(adapt, "prove_live", lambda *given, **more: None)
    monkeypatch.setattr(adapt, "describe", lambda *given: 0)
    context: Any = types.SimpleNamespace(**{**vars(CONTEXT), "session": lambda: types.SimpleNamespace(base="held")})
    treatments = [Treatment(task_id="T/1", condition="a", adapter=ref("x"))]
    adapters: Any = types.SimpleNamespace(adapter="load")
    adapt._inspect(folder, adapt.Config(arms=("a",)), context, [problem("T/1")], treatments, adapters)
    assert lent.asked == [("held", "model", "cpu", "float32")]


# --------------------------------------------------------------------------- numbers


class Base:
    """A model whose last logits move by what the stacked adapters hold; row by row, rounded by the batch's size."""

    device = "cpu"

    def __init__(self) -> None:
        self.worn: list[float] = []
        self.batches: list[int] = []
        self.model = types.SimpleNamespace(model=self._hidden, lm_head=lambda hidden: hidden)
        self.hooks = types.SimpleNamespace(using=self._using)

    def encode(self, prompt: str, solution: str, *, answer: Any = None) -> Any:
        return types.SimpleNamespace(ids=[1, 2, 3], of=(prompt, solution, answer))

    def rows(self, texts: Sequence[Any]) -> Any:
        return types.SimpleNamespace(texts=texts, row_P=torch.tensor([0, 0, 1]))

    def log_prob(self, rows: Any, worn: list[float]) -> torch.Tensor:
        length = float(len(rows.texts[0].of[0]))
        return torch.tensor([worn[0], worn[0], worn[1] - length])

    def _hidden(self, *, input_ids: torch.Tensor, use_cache: bool) -> Any:
        assert not use_cache and input_ids.shape[1] == 3
        count = len(input_ids)
        self.batches.append(count)
        moved = torch.tensor(self.worn or [0.0] * count).view(-1, 1, 1) * torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1)
        return types.SimpleNamespace(last_hidden_state=moved.expand(-1, -1, 2) + 0.25 * count)

    @contextlib.contextmanager
    def _using(self, worn: list[float]) -> Iterator[None]:
        self.worn = worn
        yield
        self.worn = []


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(peft, "stack", lambda loaded, device: list(loaded))
    return Base()


def test_adapters_are_proved_some_at_a_time_each_against_as_many_bare_ones(base: Any) -> None:
    numbers = {str(n): float(n or 1) for n in range(19)}
    adapters = [("arm", ref(name)) for name in numbers]
    adapt.prove_live(base, adapters, "p", load=lambda r: numbers[r.adapter_id])  # type: ignore[arg-type, return-value]
    assert base.batches == [8, 8, 8, 8, 3, 3]
    for dead in ("0", "7", "8", "18"):

        def load(r: AdapterRef, dead: str = dead) -> Any:
            return 0.0 if r.adapter_id == dead else -1.0

        with pytest.raises(AdapterError, match=rf"the adapter {dead} is dead \(it does not move the model's logits\)"):
            adapt.prove_live(base, adapters, "p", load=load)
    for norm in (0.0, float("nan")):
        with pytest.raises(AdapterError, match=r"zero: the adapter z is dead \(ΔW is zero\)"):
            adapt.prove_live(base, [("zero", ref("z", norm))], "p", load=lambda r: 1.0)  # type: ignore[arg-type, return-value]


def test_a_swap_is_over_a_circle_of_the_seed_and_tasks_that_have_a_reference(
    base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        losses, "sequence_log_prob", lambda log_prob, row, count: torch.zeros(count).index_add(0, row, log_prob)
    )
    names = [f"{'x' * n}" for n in range(1, 7)]
    problems = [problem(n) for n in names] + [problem("none", reference="")]
    worn = {n: ref(n) for n in (*names, "none")}
    loaded: list[list[str]] = []

    def load(r: AdapterRef) -> Any:
        loaded.append([r.adapter_id])
        return float(len(r.adapter_id))

    found = adapt.swapped(base, problems, worn, 3, load=load)
    pairs = [(loaded[i][0], loaded[i + 1][0]) for i in range(0, len(loaded), 2)]
    assert [own for own, _ in pairs] == names and sorted(other for _, other in pairs) == names
    step = dict(pairs)
    at, path = names[0], []
    for _ in names:
        path.append(at)
        at = step[at]
    assert at == names[0] and sorted(path) == names  # one circle: nobody wears its own
    own = [2.0 * len(a) for a, _ in pairs]
    theirs = [len(b) - (len(f"Do {a}.")) for a, b in pairs]
    lead = [a - b for a, b in zip(own, theirs, strict=True)]
    assert found == pytest.approx({
        "tasks": 6, "mean_abs_delta_log_prob": sum(map(abs, lead)) / 6, "mean_lead": sum(lead) / 6,
        "own_log_prob": sum(own) / 6, "swapped_log_prob": sum(theirs) / 6,
    })  # fmt: skip
    others = set()
    for seed in range(8):
        loaded.clear()
        adapt.swapped(base, problems, worn, seed, load=load)
        others.add(tuple(name for (name,) in loaded[1::2]))
    assert len(others) > 1
    assert adapt.swapped(base, [*problems[:1], problems[-1]], worn, 3, load=load) == {}
    assert adapt.swapped(base, problems[:2], worn, 3, load=load)["tasks"] == 2
