"""Hypernetworks of two kinds through one door: written, in fewer bytes, read, refused, and at work everywhere."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import rune
from rune import shipped
from rune.adapters import convert, peft
from rune.adapters.factors import Factors, lowered, squared_norm
from rune.adapters.registry.registry import Registry
from rune.adapters.store import FolderStore
from rune.cli import main as cli
from rune.corpus import exclusion
from rune.engines import torch as torch_engine
from rune.errors import AdapterError, ConfigError, ContaminationError, DataError
from rune.hypernet import base as bases
from rune.hypernet import checkpoint, choice, export, precision
from rune.hypernet.outer_products import MODULES, OuterProducts, write
from rune.hypernet.settings import OuterProductsConfig
from rune.runs import store
from rune.stages import adapt, train
from rune.stages.context import Context
from rune.study import checks
from rune.types import Attempt, ModelRef, Outcome, Problem, Split, Trajectory
from tests.conftest import make_tiny_model
from tests.serving.world import configured, random_hypernet, running, trajectory
from tests.train.outer_products import SMALL, outer_products
from tests.train.train_setup import make_arm_inputs, make_context, make_run, settings

ROOT = Path(__file__).parents[2]
Corpus = tuple[list[Problem], list[Trajectory]]


@pytest.fixture(scope="module")
def folder(tiny_model: ModelRef, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("outer") / "products"
    outer_products(place, tiny_model)
    return place


def solved(number: int) -> Trajectory:
    code = f"def f(x):\n    return blorp(x, {number}) + snurg(zibble={number})\n"
    return Trajectory(
        trajectory_id=f"t{number}", task_id=f"T/{number}", benchmark="T", prompt="Write f(x).", solution=code,
        attempts=(Attempt(code=code, outcome=Outcome.PASSED),),
    )  # fmt: skip


def delta(factors: Factors) -> torch.Tensor:
    return torch.einsum("ynri,ynro->ynoi", *(t.float() for t in factors))


# --------------------------------------------------------------------------- stored and read


def test_what_is_read_writes_the_adapters_that_the_trained_one_wrote(tiny_model: ModelRef, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, rank=0)
    module = outer_products(tmp_path, tiny_model, config)
    stored = checkpoint.load(tmp_path, tiny_model, device="cpu")
    assert stored.kind == "outer_products" and isinstance(stored.module, OuterProducts) and stored.both is None
    assert set(stored.module.state_dict()) == set(module.state_dict())
    for name, value in module.state_dict().items():
        assert torch.equal(stored.module.state_dict()[name], value), name
    base = bases.load(tiny_model, device="cpu", dtype="float32")
    sets = [[solved(1)], [solved(2), solved(3)]]
    with torch.no_grad():
        texts = [[base.encode(t.prompt, t.solution) for t in some] for some in sets]
        expected = write(base, module, texts, tokens=config.tokens)
    generator = export.AdapterGenerator(tmp_path, tiny_model, device="cpu", dtype="float32")
    made = generator.generate(sets, strength=3.0)
    for name in MODULES:
        torch.testing.assert_close(delta(made[name]), 3 * delta(expected[name]))
    assert made["o_proj"].down_YNRI.shape[2] == config.passes * config.tokens
    assert generator.layout.sizes.keys() == set(MODULES)
    with pytest.raises(DataError, match="kind 'outer_products' has no constant part; leave the arms static and lora"):
        generator.static()


def test_an_adapter_is_cut_to_the_rank_that_the_checkpoint_says(folder: Path, tiny_model: ModelRef) -> None:
    generator = export.AdapterGenerator(folder, tiny_model, device="cpu", dtype="float32")
    (made,) = generator.iter_generate([[solved(1)]], strength=1.0)
    assert {f.down_YNRI.shape[2] for f in made.values()} == {f.up_YNRO.shape[2] for f in made.values()} == {SMALL.rank}
    generator.writer.config = dataclasses.replace(SMALL, rank=0)  # type: ignore[attr-defined]
    (whole,) = generator.iter_generate([[solved(1)]], strength=1.0)
    for name in MODULES:
        for cut, full in zip(delta(made[name])[:, 0], delta(whole[name])[:, 0], strict=True):
            u, s, v = torch.linalg.svd(full.double(), full_matrices=False)
            nearest = (u[:, : SMALL.rank] * s[: SMALL.rank]) @ v[: SMALL.rank]
            torch.testing.assert_close(cut.double(), nearest, rtol=1e-3, atol=1e-5)
            assert s[SMALL.rank] > 1e-3 * s[0]  # something was cut


def test_a_rank_above_what_there_is_is_padded_and_exact() -> None:
    chance = torch.Generator().manual_seed(3)
    made = {"o_proj": Factors(*(torch.randn(2, 3, 4, size, generator=chance) for size in (6, 5)))}
    more = lowered(made, 9)
    assert more["o_proj"].down_YNRI.shape == (2, 3, 9, 6)
    torch.testing.assert_close(delta(more["o_proj"]), delta(made["o_proj"]), rtol=1e-4, atol=1e-5)
    one = lowered(made, 1)
    assert (squared_norm(one) < squared_norm(made)).all()


def test_trajectories_without_a_solution_that_fits_are_refused_by_name(folder: Path, tiny_model: ModelRef) -> None:
    generator = export.AdapterGenerator(folder, tiny_model, device="cpu", dtype="float32")
    failed = dataclasses.replace(solved(4), solution="")
    with pytest.raises(DataError, match=r"reads solutions, and of the trajectories \(t4\) none has a solution$"):
        generator.generate([[solved(1)], [failed]])
    with pytest.raises(DataError, match=r"of the trajectories \(none\) none has a solution$"):
        generator.generate([[]])
    long = dataclasses.replace(solved(5), solution="x = 1\n" * SMALL.max_tokens)
    with pytest.raises(DataError, match=rf"\(t5\) none has a solution of at most {SMALL.max_tokens} tokens$"):
        generator.generate([[long]])
    # One that fits is read alone.
    (mixed,) = generator.iter_generate([[failed, long, solved(1)]], strength=1.0)
    (alone,) = generator.iter_generate([[solved(1)]], strength=1.0)
    torch.testing.assert_close(delta(mixed["down_proj"]), delta(alone["down_proj"]))


def broken(folder: Path, target: Path, **changes: Any) -> Path:
    shutil.copytree(folder, target)
    found = store.read_json(target / "settings.json")
    found.pop("settings_sha256")  # as one that is older than the sum
    found.update(changes)
    store.write_json(target / "settings.json", found)
    return target


def written(folder: Path, found: Any) -> Path:
    store.write_json(folder / "settings.json", found)
    return folder


def test_another_base_another_kind_and_damage_are_one_line_each(
    folder: Path, tiny_model: ModelRef, tmp_path: Path
) -> None:
    other = dataclasses.replace(tiny_model, name="other", digest="0" * 64)
    with pytest.raises(AdapterError, match=r"made for base model tiny.* not for other \(000000000000\)"):
        export.AdapterGenerator(folder, other, device="cpu", dtype="float32")
    unknown = broken(folder, tmp_path / "unknown", kind="oracle")
    with pytest.raises(DataError, match="kind 'oracle' is none of hypernet, lora, outer_products"):
        checkpoint.load(unknown, tiny_model, device="cpu")
    mistaken = broken(folder, tmp_path / "mistaken", kind="hypernet")
    with pytest.raises(DataError, match=r"settings\.json: not a checkpoint's settings .* is missing"):
        checkpoint.load(mistaken, tiny_model, device="cpu")
    strange = broken(folder, tmp_path / "strange", outer_products={"passes": 0})
    with pytest.raises((ConfigError, DataError), match=r"needs passes, tokens and max_tokens >= 1"):
        checkpoint.load(strange, tiny_model, device="cpu")
    damaged = broken(folder, tmp_path / "damaged")
    data = bytearray((damaged / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (damaged / "model.safetensors").write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"model.safetensors: does not fit its settings.json \(damaged: sha256 "):
        checkpoint.load(damaged, tiny_model, device="cpu")
    wider = store.read_json(folder / "settings.json")["outer_products"] | {"correction": SMALL.correction + 1}
    unfit = broken(folder, tmp_path / "unfit", outer_products=wider)
    with pytest.raises(DataError, match=r"OuterProducts: size mismatch for .*; copy it again, or train again"):
        checkpoint.load(unfit, tiny_model, device="cpu")
    # One that is older than the digest is still asked whether it fits.
    older = broken(folder, tmp_path / "older", weights_sha256="")
    checkpoint.load(older, tiny_model, device="cpu")
    tensors = load_file(older / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k != "gate.bias"}, older / "model.safetensors")
    with pytest.raises(DataError, match=r"'gate\.bias' is on one side only"):
        checkpoint.load(older, tiny_model, device="cpu")


def test_settings_that_were_changed_after_they_were_written_are_refused(
    folder: Path, tiny_model: ModelRef, tmp_path: Path
) -> None:
    """The digest that adapters name is that of the weights alone: other settings would be another hypernetwork."""
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    found = store.read_json(changed / "settings.json")
    text = json.dumps(found, indent=None, sort_keys=True)  # another order and other spaces are the same settings
    (changed / "settings.json").write_text(text, encoding="utf-8")
    checkpoint.load(changed, tiny_model, device="cpu")
    for change in ({"outer_products": {**found["outer_products"], "tokens": 7}}, {"trained_on": []}):
        store.write_json(changed / "settings.json", {**found, **change})
        with pytest.raises(DataError, match="changed after they were written"):
            checkpoint.load(changed, tiny_model, device="cpu")


# --------------------------------------------------------------------------- fewer bytes


def test_int8_is_within_half_a_step_and_its_scales_lie_along_the_inputs() -> None:
    chance = torch.Generator().manual_seed(1)
    state = {
        "body.0.weight": torch.randn(160, 128, generator=chance),  # [outputs, inputs]
        "read_YWK.o_proj": torch.randn(2, 200, 64, generator=chance),  # [layers, inputs, outputs]
        "scale_YI.o_proj": torch.randn(4, 5000, generator=chance), "gate.weight": torch.randn(1, 64, generator=chance),
        "count": torch.tensor(7),
    }  # fmt: skip
    state["body.0.weight"][3] = 0.0
    stored = precision.packed(state, "int8")
    assert stored["body.0.weight.scale"].shape == (160, 1) and stored["read_YWK.o_proj.scale"].shape == (2, 1, 64)
    assert {n for n, t in stored.items() if t.dtype is torch.int8} == {"body.0.weight", "read_YWK.o_proj"}
    assert stored["count"].dtype is torch.int64
    again = precision.unpacked(stored)
    assert again.keys() == state.keys()
    for name in ("scale_YI.o_proj", "gate.weight", "count"):
        assert torch.equal(again[name], state[name]), name
    for name in ("body.0.weight", "read_YWK.o_proj"):
        scale = stored[f"{name}.scale"]
        assert ((again[name] - state[name]).abs() <= 0.5001 * scale).all(), name
        axis = scale.shape.index(1)
        torch.testing.assert_close(scale, state[name].abs().amax(axis, keepdim=True) / 127)
        assert int(stored[name].abs().max()) == 127
    assert not again["body.0.weight"][3].any()
    # What was read is written again as it is.
    twice = precision.packed(again, "int8")
    assert torch.equal(twice["body.0.weight"], stored["body.0.weight"])
    off = precision.relative_error(state, again)
    assert 0.002 < off < 0.01


def test_int8_without_its_scale_or_with_another_shape_is_refused(
    folder: Path, tiny_model: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "LEAST", 64)
    checkpoint.compress(folder, tmp_path / "int8", "int8")
    tensors = load_file(tmp_path / "int8" / "model.safetensors")
    name = next(n for n, t in tensors.items() if t.dtype is torch.int8)
    settings = store.read_json(tmp_path / "int8" / "settings.json")
    for change, message in (
        ({k: v for k, v in tensors.items() if k != f"{name}.scale"}, f"'{name}' is int8 and has no '{name}.scale'"),
        ({**tensors, f"{name}.scale": torch.ones(3)}, "which scales no"),
        ({**tensors, f"{name}.scale": torch.full_like(tensors[f"{name}.scale"], torch.nan)}, "holds NaN or infinity"),
    ):
        save_file(change, tmp_path / "int8" / "model.safetensors")
        data = (tmp_path / "int8" / "model.safetensors").read_bytes()
        settings.pop("settings_sha256", None)
        own = {**settings, "weights_sha256": hashlib.sha256(data).hexdigest()}
        store.write_json(tmp_path / "int8" / "settings.json", own)
        with pytest.raises(DataError, match=message.replace(".", r"\.")):
            checkpoint.load(tmp_path / "int8", tiny_model, device="cpu")


@pytest.mark.parametrize("kind", ["hypernet", "outer_products"])
def test_a_compressed_checkpoint_of_either_kind_is_smaller_and_writes_nearly_the_same_adapters(
    kind: str, tiny_model: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(precision, "LEAST", 512)
    whole, small = tmp_path / "whole", tmp_path / "small"
    if kind == "hypernet":
        random_hypernet(whole, tiny_model)
    else:
        outer_products(whole, tiny_model, dataclasses.replace(SMALL, correction=32))
    (whole / "result.md").write_text("Measured.", encoding="utf-8")
    assert cli.main(["checkpoints", "compress", str(whole), "-o", str(small)]) == 0
    out, said = capsys.readouterr()
    assert out.strip() == str(small) and "MB, ‖w − ŵ‖ / ‖w‖ = 0.00" in said
    sizes = [(place / "model.safetensors").stat().st_size for place in (whole, small)]
    assert sizes[1] < 0.6 * sizes[0]
    assert (small / "result.md").read_text(encoding="utf-8") == "Measured."
    before, after = (store.read_json(place / "settings.json") for place in (whole, small))
    assert (before.pop("precision"), after.pop("precision")) == ("float32", "int8")
    assert all(before.pop(name) != after.pop(name) for name in ("weights_sha256", "settings_sha256"))
    assert before == after
    made = [
        export.AdapterGenerator(place, tiny_model, device="cpu", dtype="float32").generate([[solved(1)], [solved(2)]])
        for place in (whole, small)
    ]
    for name in made[0]:
        one, other = (delta(some[name]) for some in made)
        assert 0 < float((one - other).norm() / one.norm()) < 0.05, name
    assert cli.main(["checkpoints", "compress", str(whole), "-o", str(whole)]) == 2
    assert "less precise weights do not come back" in capsys.readouterr().err
    kept = (whole / "model.safetensors").read_bytes()
    assert cli.main(["checkpoints", "compress", str(small), "-o", str(whole)]) == 2
    assert "holds a checkpoint already; give another folder" in capsys.readouterr().err
    assert (whole / "model.safetensors").read_bytes() == kept


def test_show_says_what_a_checkpoint_is_and_finds_damage(
    folder: Path, tiny_model: ModelRef, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["checkpoints", "show", str(folder)]) == 0
    said = {line[:29].strip(): line[29:].strip() for line in capsys.readouterr().out.splitlines()}
    assert said["kind"] == "outer_products" and tiny_model.digest in said["base"]
    assert said["modules"] == "o_proj, down_proj of 2 layers" and said["trained on"] == "1 tasks"
    assert (said["outer_products.passes"], said["outer_products.tokens"], said["outer_products.rank"]) == (
        "2",
        "16",
        "8",
    )
    assert said["precision"] == "float32" and said["sha256"] == store.sha256_file(folder / "model.safetensors")
    damaged = broken(folder, tmp_path / "damaged", weights_sha256="0" * 64)
    for place, message in ((damaged, "damaged, its sha256"), (tmp_path, "no checkpoint (it needs settings.json")):
        assert cli.main(["checkpoints", "show", str(place)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert cli.main(["checkpoints", "show", str(broken(folder, tmp_path / "b", kind="x"))]) == 2
    assert "(kind 'x' is none of hypernet, lora, outer_products); copy it again" in capsys.readouterr().err
    shutil.copy(folder / "model.safetensors", written(tmp_path / "c", {}))
    assert cli.main(["checkpoints", "show", str(tmp_path / "c")]) == 2
    assert "not a checkpoint's settings ('kind' is missing)" in capsys.readouterr().err


# --------------------------------------------------------------------------- by the base


@pytest.fixture
def two_ship(
    tiny_model: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[ModelRef, ModelRef, ModelRef]:
    """Two bases with a hypernetwork of their own, of two kinds, and a third without."""
    root = tmp_path / "root"
    others = [make_tiny_model(tmp_path / f"model-{seed}", seed=seed) for seed in (4, 5)]
    random_hypernet(root / "results" / "first", tiny_model)
    outer_products(root / "results" / "second", others[0])
    index = {
        tiny_model.digest: {"base": "tiny-one", "folder": "first"},
        others[0].digest: {"base": "tiny-two", "folder": "second"},
    }
    store.write_json(root / "results" / "hypernets.json", index)
    monkeypatch.setattr(shipped, "root", lambda: root)
    return tiny_model, others[0], others[1]


def test_adapt_takes_the_hypernetwork_of_the_base_that_it_is_given(
    two_ship: tuple[ModelRef, ModelRef, ModelRef], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = two_ship
    store.write_jsonl(tmp_path / "t.jsonl", [solved(1), solved(2)])
    command = ["adapt", "--trajectory", str(tmp_path / "t.jsonl"), "-o"]
    for model, rank, how in ((first, 4, "in one forward pass"), (second, SMALL.rank, "in passes of the base model")):
        target = tmp_path / model.digest
        assert cli.main([*command, str(target), "--model", model.path]) == 0
        made = peft.read_peft(target)
        assert (made.rank, made.base_model) == (rank, model.digest)
        assert how in (target / "README.md").read_text(encoding="utf-8")
    capsys.readouterr()
    assert cli.main([*command, str(tmp_path / "none"), "--model", third.path]) == 2
    error = capsys.readouterr().err
    assert f"no hypernetwork ships for base model {third.path} ({third.digest[:12]}), only for tiny-one (" in error
    assert f"tiny-two ({second.digest[:12]}); pass --checkpoint DIR" in error and error.count("\n") == 1
    given = ["--checkpoint", str(tmp_path / "root" / "results" / "first")]
    assert cli.main([*command, str(tmp_path / "none"), "--model", second.path, *given]) == 2
    assert "made for base model" in capsys.readouterr().err
    assert cli.main(["checkpoints", "list"]) == 0
    rows = capsys.readouterr().out
    assert "tiny-one" in rows and "tiny-two" in rows and "outer_products" in rows


def test_a_server_takes_the_hypernetwork_of_its_base_or_says_which_have_one(
    two_ship: tuple[ModelRef, ModelRef, ModelRef], tmp_path: Path
) -> None:
    first, second, third = two_ship
    plain = dataclasses.replace(configured(first, tmp_path, None).serve, checkpoint="shipped")
    config = dataclasses.replace(configured(first, tmp_path, None), serve=plain)
    assert [config.checkpoint(m) for m in (first, second)] == [choice.for_base(m) for m in (first, second)]
    assert config.checkpoint(first) != config.checkpoint(second)
    with pytest.raises(
        ConfigError, match=r"only for tiny-one .*; pass --checkpoint DIR .* or --checkpoint '' to learn"
    ):
        config.checkpoint(third)
    assert configured(first, tmp_path, None).checkpoint(third) is None


# --------------------------------------------------------------------------- at work


def test_a_session_becomes_an_adapter_of_outer_products_in_the_memory_and_the_next_request_wears_it(
    folder: Path, tiny_model: ModelRef, tmp_path: Path
) -> None:
    config = configured(tiny_model, tmp_path, folder)
    ask = {"prompt": "def f(x):\n", "max_tokens": 12, "temperature": 0}
    failed = json.loads(trajectory(3)) | {"trajectory_id": "f", "solution": ""}
    failed["attempts"] = failed["attempts"][:1]
    with running(config) as served:
        made = served.http.post("/v1/trajectories?project=shop&alias=house", content=trajectory(11)).json()
        assert made["rank"] == SMALL.rank
        worn, bare = (
            served.http.post("/v1/completions", json={"model": name, **ask}).json()["choices"][0]["text"]
            for name in ("house", "tiny")
        )
        assert worn != bare
        refused = served.http.post("/v1/trajectories", content=json.dumps(failed).encode())
        assert refused.status_code == 400 and "this hypernetwork reads solutions" in refused.text
    (tmp_path / "s.jsonl").write_bytes(trajectory(11))
    again = rune.remember(tmp_path / "s.jsonl", project="shop", config=config)
    assert again.adapter_id == made["id"]
    entry = Registry(config.registry).get(made["id"])
    assert entry.how == "outer_products, strength 1"
    assert entry.hypernet == store.sha256_file(folder / "model.safetensors")


def test_the_rank_of_four_passes_fits_the_memory_an_engine_and_peft(
    tiny_model: ModelRef, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = OuterProductsConfig(passes=4, tokens=64, correction=4, rank=0)
    outer_products(tmp_path / "net", tiny_model, config)
    store.write_jsonl(tmp_path / "t.jsonl", [solved(1), solved(2)])
    command = [
        "adapt",
        "--trajectory",
        str(tmp_path / "t.jsonl"),
        "-o",
        str(tmp_path / "a"),
        "--model",
        tiny_model.path,
    ]
    assert cli.main([*command, "--checkpoint", str(tmp_path / "net")]) == 0
    made = peft.read_peft(tmp_path / "a")
    assert made.rank == 256
    place = ["--registry", str(tmp_path / "memory")]
    assert cli.main(["adapters", "add", str(tmp_path / "a"), "--project", "shop", *place]) == 0
    capsys.readouterr()
    engine = torch_engine.build(torch_engine.Config(), model=tiny_model, device="cpu", dtype="float32")
    ref = engine.put_adapter("a", made)
    assert (ref.rank, ref.delta_w_norm) == (256, pytest.approx(peft.delta_w_norm(made), rel=1e-3))


def test_the_arms_of_a_run_take_a_hypernetwork_as_it_is(
    folder: Path, tiny_model: ModelRef, tmp_path: Path, corpus: Corpus
) -> None:
    run, context = make_run(tmp_path / "run", corpus), make_context(tiny_model, tmp_path / "cache")
    train.run(run, dataclasses.replace(settings(), use=str(folder)), context)
    taken = run / "checkpoints" / "hypernet"
    assert (taken / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert not (run / "checkpoints" / "lora").exists() and not (run / "checkpoints" / "metrics.jsonl").exists()
    arm_inputs = make_arm_inputs(run, context, corpus, siblings=True)
    arms = adapt.Config(arms=("hypernet", "wrong_trajectory", "hypernet_mean"))
    kept = FolderStore(arm_inputs.adapters, arm_inputs.model, dtype="float32")
    treatments = adapt.run(run, arms, context, arm_inputs=arm_inputs, adapters=kept)
    held_out = [p for p in corpus[0] if p.split is Split.HELD_OUT]
    assert len(treatments) == 3 * len(held_out) and all(t.adapter for t in treatments)
    generator = export.AdapterGenerator(folder, tiny_model, device="cpu", dtype="float32")
    one = next(t for t in treatments if t.condition == "hypernet" and t.adapter)
    (expected,) = generator.iter_generate([arm_inputs.retrieved(one.task_id)], strength=1.0)
    written = convert.from_adapter(kept.adapter(one.adapter), generator.layout)  # type: ignore[arg-type]
    for name in MODULES:
        torch.testing.assert_close(delta(written[name]), delta(expected[name]), rtol=1e-3, atol=1e-5)
    assert set(store.read_json(run / "diagnostics.json")["arms"]["hypernet"]["frobenius"]) == set(MODULES)


def test_a_hypernetwork_that_knows_a_held_out_task_is_not_taken(
    tiny_model: ModelRef, tmp_path: Path, corpus: Corpus
) -> None:
    held_out = next(p for p in corpus[0] if p.split is Split.HELD_OUT)
    outer_products(tmp_path / "net", tiny_model, trained_on=[held_out.task_id])
    run, context = make_run(tmp_path / "run", corpus), make_context(tiny_model, tmp_path / "cache")
    with pytest.raises(ContaminationError, match="which is held out"):
        train.run(run, dataclasses.replace(settings(), use=str(tmp_path / "net")), context)
    assert not (run / "checkpoints").exists()


def test_what_cannot_be_taken_as_it_is_is_refused_before_a_run_begins(
    folder: Path, trained: tuple[store.RunDir, Context], tmp_path: Path
) -> None:
    own = trained[0] / "checkpoints"
    checks.used(str(folder), "net", ("vanilla", "hypernet", "hypernet_mean", "wrong_trajectory"))
    checks.used(str(own / "hypernet"), "net", ("hypernet", "static", "empty_trajectory"))
    for place, arms, message in (
        (folder, ("hypernet", "static"), "net: of kind 'outer_products', .* leave out the arm static"),
        (folder, ("empty_trajectory",), "leave out the arm empty_trajectory"),
        (own / "hypernet", ("lora",), "the arm lora is one trained on the corpus"),
        (own / "lora", ("hypernet",), "train.use: net: a static LoRA"),
        (tmp_path, ("hypernet",), r"train.use: net: no checkpoint \(no settings.json\)"),
        (written(tmp_path / "list", []), ("hypernet",), "train.use: net: its settings.json holds no settings"),
        (written(tmp_path / "none", {}), ("hypernet",), r"train.use: net: no checkpoint \(no kind in settings.json\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            checks.used(str(place), "net", arms)
    with pytest.raises(ConfigError, match=r"train.start_from: net: its settings.json holds no settings"):
        checks.start(str(tmp_path / "list"), "net", settings())
    with pytest.raises(ConfigError, match="of kind 'outer_products', and training goes on from kind 'hypernet' alone"):
        checks.start(str(folder), "net", settings())
    with pytest.raises(ValueError, match="leave one of them out"):
        dataclasses.replace(settings(), use="a", start_from="b")


# --------------------------------------------------------------------------- out of a study


@pytest.mark.parametrize("stored", ["float16", "int8 of the lane"])
def test_what_a_study_trained_becomes_a_checkpoint(
    stored: str, tiny_model: ModelRef, tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "studies"))
    lanes = importlib.import_module("adapter_lane")
    config = dataclasses.replace(SMALL, rank=5)
    module = outer_products(tmp_path / "known", tiny_model, config)
    half = {n: t.half().contiguous() for n, t in module.state_dict().items()}
    save_file(half if stored == "float16" else lanes.eight_bits(module.state_dict()), tmp_path / "w.safetensors")
    _, trajectories = corpus
    for name, some in (("a", trajectories[:5]), ("b", trajectories[4:9])):
        store.write_jsonl(tmp_path / f"{name}.jsonl", some)
    (tmp_path / "result.md").write_text("Measured.", encoding="utf-8")
    spec = importlib.util.spec_from_file_location("ship", ROOT / "tools" / "ship_outer_products.py")
    assert spec and spec.loader
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    command = [str(tmp_path / "w.safetensors"), str(tmp_path / "made"), "--model", tiny_model.path, "--tokens", "16"]
    command += ["--rank", "5", "--trained-on", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    assert tool.main([*command, "--result", str(tmp_path / "result.md")]) == 0
    found = checkpoint.load(tmp_path / "made", tiny_model, device="cpu")
    assert found.config.outer_products == config and found.settings["precision"] == "int8"
    assert found.settings["trained_on"] == sorted({t.task_id for t in trajectories[:9]})
    assert found.settings["trained_on_domains"] == exclusion.domains_of(trajectories[:9])
    made, known = (
        export.AdapterGenerator(tmp_path / n, tiny_model, device="cpu", dtype="float32").generate([[solved(1)]])
        for n in ("made", "known")
    )
    for name in MODULES:
        one, other = delta(made[name]), delta(known[name])
        assert float((one - other).norm() / other.norm()) < 0.05, name
    save_file({"x": torch.zeros(2)}, tmp_path / "w.safetensors")
    assert tool.main(command) == 2
