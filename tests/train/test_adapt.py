"""The adapt stage and the arms that make adapters: live, loadable, resumable, and different where they must be."""

from __future__ import annotations

import dataclasses
import gzip
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from rune.adapters import convert
from rune.adapters.factors import Factors
from rune.adapters.folders import Folders
from rune.adapters.modules import MODULES
from rune.adapters.peft import WEIGHTS_FILE, Adapter, read_peft, write_peft
from rune.adapters.store import FolderStore, MemoryStore
from rune.cli import main as cli
from rune.conditions import _adapters
from rune.conditions.shared.arm_inputs import ArmInputs
from rune.engines import scripted
from rune.errors import AdapterError, ConfigError
from rune.hypernet import base as bases
from rune.hypernet import checkpoint
from rune.runs import store
from rune.stages import adapt
from rune.stages.context import Context
from rune.types import AdapterRef, ModelRef, Problem, Split, Trajectory, Treatment
from tests.train.train_setup import make_arm_inputs, make_context, settings

Corpus = tuple[list[Problem], list[Trajectory]]
ARMS = (
    "vanilla", "lora", "static", "hypernet", "wrong_trajectory", "empty_trajectory", "oracle", "rag", "teacher",
)  # fmt: skip
CONFIG = adapt.Config(arms=ARMS, settings={"oracle": {"steps": 2, "rank": 2, "rows": 2}})


class Adapted(NamedTuple):
    folder: store.RunDir
    context: Context
    arm_inputs: ArmInputs
    treatments: list[Treatment]

    @property
    def folders(self) -> Folders:
        return Folders(self.folder.path)

    def read(self, ref: AdapterRef) -> Adapter:
        return read_peft(self.folders.folder(ref))

    def of(self, arm: str) -> dict[str, Treatment]:
        return {t.task_id: t for t in self.treatments if t.condition == arm}


def kept(arm_inputs: ArmInputs) -> FolderStore:
    return FolderStore(arm_inputs.adapters, arm_inputs.model, dtype="float32")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, trained: tuple[store.RunDir, Context], corpus: Corpus) -> Adapted:
    source, context = trained
    folder = store.RunDir(tmp_path_factory.mktemp("adapted") / "run")
    shutil.copytree(source.path, folder.path)
    arm_inputs = make_arm_inputs(folder, context, corpus, siblings=True)
    return Adapted(
        folder,
        context,
        arm_inputs,
        adapt.run(folder, CONFIG, context, arm_inputs=arm_inputs, adapters=kept(arm_inputs)),
    )


def test_every_arm_treats_every_held_out_task_once(adapted: Adapted, corpus: Corpus) -> None:
    held_out = [p.task_id for p in corpus[0] if p.split is Split.HELD_OUT]
    found = [(t.condition, t.task_id) for t in adapted.treatments]
    assert sorted(found) == sorted((arm, task) for arm in ARMS for task in held_out)


CHEAP = adapt.Config(arms=("vanilla", "lora", "static"))


def copied(adapted: Adapted, root: Path) -> store.RunDir:
    """The run with its checkpoints and the records of three arms that cost nothing to make."""
    folder = store.RunDir(root / "run")
    shutil.copytree(adapted.folder / "checkpoints", folder / "checkpoints")
    for name in ("problems.jsonl", "trajectories.jsonl", "manifest.json"):
        shutil.copy(adapted.folder / name, folder / name)
    store.write_jsonl(folder / "treatments.jsonl", [t for t in adapted.treatments if t.condition in CHEAP.arms])
    return folder


def test_adapters_made_again_must_be_those_of_the_records(adapted: Adapted, tmp_path: Path) -> None:
    folder = copied(adapted, tmp_path)
    arm_inputs = dataclasses.replace(adapted.arm_inputs, checkpoints=folder / "checkpoints")
    model = adapted.context.model()

    def remake() -> None:
        where = FolderStore(tmp_path / "again", model, dtype="float32")
        adapt.remake(folder, CHEAP, arm_inputs=dataclasses.replace(arm_inputs, keep=where.put))

    remake()
    kept = store.read_jsonl(folder / "treatments.jsonl", Treatment)
    number = next(i for i, t in enumerate(kept) if t.condition == "static")
    lora = next(t for t in kept if t.condition == "lora")
    assert kept[number].adapter and lora.adapter and kept[number].adapter.adapter_id != lora.adapter.adapter_id
    changed = dataclasses.replace(kept[number], adapter=lora.adapter)
    store.write_jsonl(folder / "treatments.jsonl", [*kept[:number], changed, *kept[number + 1 :]])
    with pytest.raises(AdapterError, match=r"made again here, the adapter of static for .* is another than the one in"):
        remake()
    bare = dataclasses.replace(kept[number], adapter=None)
    store.write_jsonl(folder / "treatments.jsonl", [*kept[:number], bare, *kept[number + 1 :]])
    with pytest.raises(AdapterError, match=r"made again, static of .* is another"):
        remake()


def test_adapters_that_went_with_another_process_are_made_anew(adapted: Adapted, tmp_path: Path) -> None:
    """Records of a stage that was stopped name adapters that no engine holds any more."""
    folder, model = copied(adapted, tmp_path), adapted.context.model()
    arm_inputs = dataclasses.replace(adapted.arm_inputs, checkpoints=folder / "checkpoints")
    engine = scripted.build(scripted.Config(), model=model, device="cpu", dtype="float32")
    memory = MemoryStore(engine, model, dtype="float32", device="cpu")
    arm_inputs = dataclasses.replace(arm_inputs, keep=memory.put)
    found = adapt.run(folder, CHEAP, adapted.context, arm_inputs=arm_inputs, adapters=memory)
    worn = [t.adapter for t in found if t.adapter]
    assert len(worn) == 2 * len(adapted.of("vanilla")) and all(memory.adapter(ref).rank for ref in worn)
    assert store.read_jsonl(folder / "treatments.jsonl", Treatment) == found


def test_the_lora_and_the_static_arm_wear_what_each_training_left(adapted: Adapted) -> None:
    """lora: phase A's. static: the hypernetwork's constant part, which phase B has moved on."""
    for arm, kind in (("lora", "lora"), ("static", "hypernet")):
        stored = checkpoint.load(adapted.folder / "checkpoints" / kind, adapted.context.model(), device="cpu")
        (ref,) = {t.adapter for t in adapted.of(arm).values() if t.adapter}
        worn = convert.from_adapter(read_peft(Folders(adapted.folder.path).folder(ref)), stored.layout)
        for module, (down_YNRI, up_YNRO) in stored.static.factors().items():
            torch.testing.assert_close(worn[module].down_YNRI, down_YNRI.detach())
            torch.testing.assert_close(worn[module].up_YNRO, up_YNRO.detach())


def test_constant_arms_share_one_adapter_and_generated_arms_do_not(adapted: Adapted) -> None:
    def distinct(arm: str) -> int:
        return len({t.adapter.adapter_id for t in adapted.of(arm).values() if t.adapter})

    assert [distinct(arm) for arm in ("vanilla", "lora", "static", "empty_trajectory")] == [0, 1, 1, 1]
    # Three families of three tasks; siblings differ from task to task.
    assert distinct("hypernet") == len(adapted.of("hypernet"))


def test_the_wrong_arm_uses_no_trajectory_of_the_right_lesson(adapted: Adapted) -> None:
    families = {
        t.trajectory_id: t.domain for hits in adapted.arm_inputs.hits.values() for t in [h.trajectory for h in hits]
    }
    families |= {t.trajectory_id: t.domain for t in adapted.arm_inputs.trajectories}
    right, wrong = adapted.of("hypernet"), adapted.of("wrong_trajectory")
    for task in right:
        assert not {families[i] for i in right[task].trajectory_ids} & {families[i] for i in wrong[task].trajectory_ids}
        assert right[task].adapter != wrong[task].adapter
    assert _adapters.permuted(adapted.arm_inputs) == _adapters.permuted(adapted.arm_inputs)


def test_whatever_a_task_is_given_all_arms_are_given(adapted: Adapted) -> None:
    """Two trajectories each: as text, in whole or in pieces, as an adapter in one pass or by gradient steps."""
    corpus = tuple(t.trajectory_id for t in adapted.arm_inputs.trajectories)
    for task, treatment in adapted.of("hypernet").items():
        given = adapted.arm_inputs.retrieved(task)
        ids = tuple(t.trajectory_id for t in given)
        assert len(set(ids)) == 2 and treatment.trajectory_ids == ids
        for arm in ("rag", "teacher", "oracle"):
            assert adapted.of(arm)[task].trajectory_ids == ids, arm
        for arm in ("rag", "teacher"):
            assert all(t.solution.strip() in adapted.of(arm)[task].context for t in given)
        for arm, known in (("vanilla", ()), ("empty_trajectory", ()), ("lora", corpus), ("static", corpus)):
            assert adapted.of(arm)[task].trajectory_ids == known
        assert not adapted.of("vanilla")[task].context and adapted.of("vanilla")[task].adapter is None
    assert {t.condition for t in adapted.treatments if t.context} == {"rag", "teacher"}
    assert {t.condition for t in adapted.treatments if t.adapter is None} == {"vanilla", "rag", "teacher"}


def test_an_adapter_is_what_the_hypernetwork_writes_from_the_trajectories_it_names(adapted: Adapted) -> None:
    from rune.adapters import convert
    from rune.hypernet import export

    source = export.AdapterGenerator(
        adapted.arm_inputs.checkpoints / "hypernet", adapted.arm_inputs.model, device="cpu", dtype="float32"
    )
    known = {h.trajectory.trajectory_id: h.trajectory for hits in adapted.arm_inputs.hits.values() for h in hits}
    known |= {t.trajectory_id: t for t in adapted.arm_inputs.trajectories}
    for arm in ("hypernet", "wrong_trajectory", "empty_trajectory"):
        for treatment in list(adapted.of(arm).values())[:3]:
            assert treatment.adapter is not None
            made = source.generate([[known[i] for i in treatment.trajectory_ids]])
            expected = convert.to_adapter(made, source.layout, base_model=adapted.arm_inputs.model.digest)
            written = adapted.read(treatment.adapter)
            for name, pair in expected.pairs.items():
                assert torch.allclose(written.pairs[name].a @ written.pairs[name].b, pair.a @ pair.b, atol=1e-6)


@pytest.mark.parametrize("arm", ["hypernet", "wrong_trajectory", "empty_trajectory"])
def test_strength_scales_what_the_trajectories_add_to_the_constant_part(adapted: Adapted, arm: str) -> None:
    from rune import plugins

    module = plugins.load("conditions", arm)
    problems = store.read_jsonl(adapted.folder / "problems.jsonl", Problem)
    asked = next(p for p in problems if p.task_id in adapted.arm_inputs.hits)
    made: list[dict[str, torch.Tensor]] = []

    def keep(arm: str, key: str, factors: Any, layout: Any) -> AdapterRef:
        made.append({m: b[:, 0].transpose(1, 2) @ a[:, 0] for m, (a, b) in factors.items()})
        return AdapterRef(adapter_id=key, base_model="", rank=1, delta_w_norm=1.0)

    shop = dataclasses.replace(adapted.arm_inputs, keep=keep)
    for strength in (0.0, 1.0, 3.0):
        module.build(module.Config(strength=strength), shop).treat([asked], lambda t: None)
    none, once, thrice = made
    assert module.Config().strength == 1.0
    for name, static in none.items():
        assert torch.allclose(thrice[name] - static, 3 * (once[name] - static), atol=1e-6)
    assert any(not torch.allclose(once[name], static, atol=1e-6) for name, static in none.items())


def test_generated_adapters_load_in_peft_with_equal_logits(adapted: Adapted, tiny_model: ModelRef) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = next(iter(adapted.of("hypernet").values())).adapter
    assert adapter is not None
    base = bases.load(tiny_model, device="cpu", dtype="float32")
    ids = torch.tensor([base.encode("def f(x):\n    return x", "return x").ids])
    from rune.adapters.peft import stack

    with torch.no_grad():
        bare = base.model(input_ids=ids).logits
        with base.hooks.using(stack([adapted.read(adapter)])):
            ours = base.model(input_ids=ids).logits
        plain = AutoModelForCausalLM.from_pretrained(tiny_model.path)
        peft = PeftModel.from_pretrained(plain, str(adapted.folders.folder(adapter)))
        theirs = peft(input_ids=ids).logits
    assert not torch.equal(ours, bare)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_strength_zero_is_the_static_arm(adapted: Adapted) -> None:
    from rune.hypernet import export

    source = export.AdapterGenerator(
        adapted.arm_inputs.checkpoints / "hypernet", adapted.arm_inputs.model, device="cpu", dtype="float32"
    )
    sets = next(iter(adapted.arm_inputs.hits.values()))
    silent = source.generate([[h.trajectory for h in sets]], strength=0.0)
    static = source.static()
    for module, (down, up) in silent.items():
        delta = up[:, 0].transpose(1, 2) @ down[:, 0]
        expected = static[module].up_YNRO[:, 0].transpose(1, 2) @ static[module].down_YNRI[:, 0]
        assert torch.allclose(delta, expected, atol=1e-6)


def test_diagnostics_have_the_seven_bars_the_cosines_and_the_swap(adapted: Adapted) -> None:
    found = store.read_json(adapted.folder / "diagnostics.json")
    assert set(found["arms"]) == set(ARMS) - {"vanilla", "rag", "teacher"}
    arm = found["arms"]["hypernet"]
    assert len(arm["frobenius"]) == 7 and all(len(bars) == 2 for bars in arm["ratio"].values())
    count = len(arm["cosine_raw"]["task_ids"])
    assert count == len(adapted.of("hypernet")) and len(arm["cosine_centred"]["matrix"]) == count
    assert arm["effective_rank"] > 0 and arm["delta_w_norm_mean"] > 0
    assert found["arms"]["static"]["cosine_raw"]["mean_off_diagonal"] is None
    assert found["swap"]["hypernet"]["mean_abs_delta_log_prob"] > 0
    assert found["training"]["hypernet"]["steps"] == 8
    mean = sum(t.adapter.delta_w_norm for t in adapted.of("hypernet").values() if t.adapter) / count
    assert arm["delta_w_norm_mean"] == pytest.approx(mean, rel=1e-4)


def test_adapters_that_leave_modules_as_they_are_are_described_by_those_that_they_have(
    tiny_model: ModelRef, tmp_path: Path
) -> None:
    base = bases.load(tiny_model, device="cpu", dtype="float32")
    layout = base.layout(("o_proj", "down_proj"))
    rng = torch.Generator().manual_seed(1)
    folders = FolderStore(tmp_path, tiny_model, dtype="float32")
    own = {}
    for task in ("a", "b"):
        made = {
            m: Factors(
                torch.randn(layout.layers, 1, 2, s.inputs, generator=rng),
                torch.randn(layout.layers, 1, 2, s.outputs, generator=rng),
            )
            for m, s in layout.sizes.items()
        }
        own[task] = folders.put("tuned", task, made, layout)
    found = adapt.describe(base, base.layout(MODULES), own, folders)
    assert set(found["frobenius"]) == {"o_proj", "down_proj"}
    assert found["delta_w_norm_mean"] == pytest.approx(sum(r.delta_w_norm for r in own.values()) / 2, rel=1e-4)


def test_the_swap_is_each_reference_under_its_own_adapter_against_under_anothers(
    adapted: Adapted, tmp_path: Path
) -> None:
    """Two tasks: the other one's adapter is known, and every figure can be worked out."""
    from rune.adapters.peft import stack
    from rune.hypernet.losses import sequence_log_prob

    base = bases.load(adapted.arm_inputs.model, device="cpu", dtype="float32")
    arm = adapted.of("hypernet")
    problems = [p for p in store.read_jsonl(adapted.folder / "problems.jsonl", Problem) if p.task_id in arm]
    one, other = problems[0], problems[-1]
    adapters = {p.task_id: ref for p in problems if (ref := arm[p.task_id].adapter)}

    def log_prob(problem: Problem, wears: Problem) -> float:
        rows = base.rows([base.encode(problem.prompt, problem.reference)])
        with torch.no_grad():
            log_prob_P = base.log_prob(rows, stack([adapted.read(adapters[wears.task_id])]))
        return sequence_log_prob(log_prob_P, rows.row_P, 1).item()

    own = (log_prob(one, one), log_prob(other, other))
    theirs = (log_prob(one, other), log_prob(other, one))
    lead = (own[0] - theirs[0], own[1] - theirs[1])
    assert min(map(abs, lead)) > 1e-4
    unknown = dataclasses.replace(one, task_id="no reference", reference="")
    found = adapt.swapped(base, [one, unknown, other], adapters, seed=0, load=adapted.read)
    assert found == {
        "tasks": 2,
        "mean_abs_delta_log_prob": pytest.approx((abs(lead[0]) + abs(lead[1])) / 2, abs=1e-5),
        "mean_lead": pytest.approx(sum(lead) / 2, abs=1e-5),
        "own_log_prob": pytest.approx(sum(own) / 2, abs=1e-5),
        "swapped_log_prob": pytest.approx(sum(theirs) / 2, abs=1e-5),
    }
    assert adapt.swapped(base, [one, unknown], adapters, seed=0, load=adapted.read) == {}


def test_the_right_donor_is_ranked_among_the_adapters_of_other_domains(adapted: Adapted) -> None:
    from rune.adapters.peft import stack
    from rune.hypernet.losses import sequence_log_prob

    base = bases.load(adapted.arm_inputs.model, device="cpu", dtype="float32")
    arm = adapted.of("hypernet")
    problems = [p for p in store.read_jsonl(adapted.folder / "problems.jsonl", Problem) if p.task_id in arm]
    adapters = {p.task_id: ref for p in problems if (ref := arm[p.task_id].adapter)}
    found = adapt.ranked(base, problems, adapters, load=adapted.read)
    assert (found["tasks"], found["donors"]) == (len(problems), len({r.adapter_id for r in adapters.values()}))
    for problem in problems:
        rows = base.rows([base.encode(problem.prompt, problem.reference)])
        with torch.no_grad():
            known = {
                p.task_id: float(
                    sequence_log_prob(base.log_prob(rows, stack([adapted.read(adapters[p.task_id])])), rows.row_P, 1)
                )
                for p in problems
            }
        ahead = [p for p in problems if p.domain != problem.domain and known[p.task_id] > known[problem.task_id]]
        assert found["ranks"][problem.task_id] == 1 + len(ahead)
    others = len(problems) - 3  # three tasks a domain, each with an adapter of its own
    assert found["mean_rank"] == pytest.approx(1 + found["mean_share"] * others)
    ranks = found["ranks"].values()
    assert found["first"] == sum(r == 1 for r in ranks) / len(ranks)
    assert found["best_quarter"] == sum(r - 1 <= 0.25 * others for r in ranks) / len(ranks)
    # Adapters that are one rank in the middle: neither right nor wrong.
    same = dict.fromkeys(adapters, next(iter(adapters.values())))
    assert adapt.ranked(base, problems, same, load=adapted.read) == {}
    first, *_, last = problems
    pair = {first.task_id: adapters[first.task_id], last.task_id: adapters[last.task_id]}
    crossed = {first.task_id: pair[last.task_id], last.task_id: pair[first.task_id]}
    ranked = [adapt.ranked(base, [first, last], two, load=adapted.read)["ranks"] for two in (pair, crossed)]
    assert all(ranked[0][task] + ranked[1][task] == 3 for task in pair)  # of two donors one is first, whoever wears it
    assert adapt.ranked(base, [first], pair, load=adapted.read) == {}

    def void(ref: AdapterRef) -> Adapter:
        adapter = adapted.read(ref)
        if ref != pair[first.task_id]:
            return adapter
        return dataclasses.replace(
            adapter, pairs={k: p._replace(a=p.a * float("nan")) for k, p in adapter.pairs.items()}
        )

    assert adapt.ranked(base, [first, last], pair, load=void)["ranks"][first.task_id] == 2


def test_donors_are_in_the_diagnostics_where_they_are_asked_for(adapted: Adapted, tmp_path: Path) -> None:
    folder = copied(adapted, tmp_path)
    where = FolderStore(folder / "adapters", adapted.context.model(), dtype="float32")
    arm_inputs = dataclasses.replace(adapted.arm_inputs, checkpoints=folder / "checkpoints", keep=where.put)
    (folder / "treatments.jsonl").unlink()
    arms = adapt.Config(arms=("vanilla", "static", "hypernet", "hypernet_centred"), rank_tasks=4)
    adapt.run(folder, arms, adapted.context, arm_inputs=arm_inputs, adapters=where)
    found = store.read_json(folder / "diagnostics.json")
    assert set(found["donors"]) == {"hypernet", "hypernet_centred"} and found["donors"]["hypernet"]["tasks"] == 4
    assert "donors" not in store.read_json(adapted.folder / "diagnostics.json")


def test_an_interrupted_stage_goes_on_where_it_stopped(adapted: Adapted, tmp_path: Path) -> None:
    folder = store.RunDir(tmp_path / "run")
    shutil.copytree(adapted.folder.path, folder.path)
    path = folder / "treatments.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:30]) + lines[30][:25])  # a torn line at the end
    where = FolderStore(folder / "adapters", adapted.context.model(), dtype="float32")
    arm_inputs = dataclasses.replace(
        adapted.arm_inputs, checkpoints=folder / "checkpoints", adapters=folder / "adapters", keep=where.put
    )
    again = adapt.run(folder, CONFIG, adapted.context, arm_inputs=arm_inputs, adapters=where)
    # Adapter ids are content hashes: equal ids mean equal weights.
    assert {(t.condition, t.task_id, t.adapter and t.adapter.adapter_id) for t in again} == {
        (t.condition, t.task_id, t.adapter and t.adapter.adapter_id) for t in adapted.treatments
    }


def test_a_dead_adapter_stops_the_stage_with_one_line(adapted: Adapted) -> None:
    base = bases.load(adapted.arm_inputs.model, device="cpu", dtype="float32")
    live = adapted.of("static")
    ref = next(iter(live.values())).adapter
    assert ref is not None
    adapt.prove_live(base, [("static", ref)], "def f():", load=adapted.read)
    adapter = adapted.read(ref)
    zero = {name: pair._replace(b=torch.zeros_like(pair.b)) for name, pair in adapter.pairs.items()}
    dead = write_peft(adapted.folder / "dead", dataclasses.replace(adapter, pairs=zero))
    with pytest.raises(AdapterError, match=rf"hypernet: the adapter {dead.adapter_id} is dead \(ΔW is zero\)"):
        adapt.prove_live(base, [("hypernet", dead)], "def f():", load=adapted.read)
    # ΔW is not zero on paper, but nothing reaches the logits.
    lying = dataclasses.replace(dead, delta_w_norm=1.0)
    with pytest.raises(AdapterError, match="does not move the model's logits"):
        adapt.prove_live(base, [("hypernet", lying)], "def f():", load=adapted.read)


def test_an_unknown_arm_or_setting_is_refused_before_anything_is_made(adapted: Adapted) -> None:
    given = {"arm_inputs": adapted.arm_inputs, "adapters": kept(adapted.arm_inputs)}
    with pytest.raises(ConfigError, match="did you mean 'hypernet'"):
        adapt.run(adapted.folder, adapt.Config(arms=("hypernets",)), adapted.context, **given)
    wrong = adapt.Config(arms=("hypernet",), settings={"hypernet": {"strenth": 2.0}})
    with pytest.raises(ConfigError, match="did you mean 'strength'"):
        adapt.run(adapted.folder, wrong, adapted.context, **given)


def test_one_adapter_from_a_trajectory_file_by_the_command_line(
    adapted: Adapted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.write_jsonl(tmp_path / "t.jsonl", adapted.arm_inputs.trajectories[:2])
    stored = checkpoint.load(adapted.arm_inputs.checkpoints / "hypernet", adapted.arm_inputs.model, device="cpu")
    assert stored.both is not None
    config = settings()
    # As shipped: half precision.
    checkpoint.save_hypernet(
        tmp_path / "shipped", stored.both, stored.layout, config.lora, config.hypernet, adapted.arm_inputs.model,
        precision="float16",
    )  # fmt: skip
    command = ["adapt", "--trajectory", str(tmp_path / "t.jsonl"), "-o", str(tmp_path / "adapter")]
    command += ["--checkpoint", str(tmp_path / "shipped"), "--model", adapted.arm_inputs.model.path]
    assert cli.main(command) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "adapter")
    assert read_peft(tmp_path / "adapter").rank == 4
    card = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nbase_model: ") and adapted.arm_inputs.model.digest in card
    assert all(f"`{t.task_id}`" in card for t in adapted.arm_inputs.trajectories[:2])
    # Two files, one packed, are the same as one that holds both; an agent's own file is read too.
    detached_term = [tmp_path / "one.jsonl", tmp_path / "two.jsonl.gz"]
    for path, trajectory in zip(detached_term, adapted.arm_inputs.trajectories[:2], strict=True):
        data = (store.encode(trajectory) + "\n").encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    several = ["adapt", "--trajectory", *map(str, detached_term), "-o", str(tmp_path / "several"), *command[-4:]]
    assert cli.main(several) == 0
    one, both = (load_file(tmp_path / name / WEIGHTS_FILE) for name in ("adapter", "several"))
    assert all(torch.equal(one[key], both[key]) for key in one)
    step = {"action": "sed -i 's#//#/#' calc.py", "observation": "ok"}
    issue = {"role": "user", "content": "ISSUE:\nhalf(3) should be 1.5\nINSTRUCTIONS:\n"}
    (tmp_path / "a.traj").write_text(json.dumps({"trajectory": [step], "history": [issue], "info": {}}, indent=1))
    agents = ["adapt", "--trajectory", str(tmp_path / "a.traj"), "-o", str(tmp_path / "agents"), *command[-4:]]
    assert cli.main(agents) == 0
    assert "redacted: nothing" in capsys.readouterr().err
    assert cli.main(command[:3]) == 2
    assert "add -o DIR" in capsys.readouterr().err
    assert cli.main([*command[:-4], "--checkpoint", str(tmp_path / "none"), *command[-2:]]) == 2
    assert "no checkpoint" in capsys.readouterr().err


def test_the_context_of_these_tests_has_neither_engine_nor_sandbox(tiny_model: ModelRef, tmp_path: Path) -> None:
    context = make_context(tiny_model, tmp_path)
    with pytest.raises(AssertionError):
        context.engine()
