"""Damaged adapter folders, given to the engine's loader and `rune show`; damaged checkpoints, to `rune adapt`."""

from __future__ import annotations

import functools
import json
import math
import random
import shutil
import struct
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from rune.adapters import peft
from rune.adapters.factors import StaticLora, layout_of
from rune.errors import AdapterError
from rune.hypernet import base as bases
from rune.hypernet import checkpoint
from rune.hypernet.trainer import HypernetWithStatic, new_hypernet
from rune.runs import store
from rune.types import Attempt, ModelRef, Outcome, Trajectory
from tests.conftest import make_tiny_model
from tests.fuzz.damage import bounded, damage, refused, run, spoil
from tests.train.train_setup import settings

TENSORS = ("BF16", "F16", "F32", "F64", "I64", "U8", "BOOL", "F8_E4M3", "X9")


class Ground(NamedTuple):
    """What is damaged: a tiny model, an adapter and a checkpoint for it, and a trajectory."""

    model: ModelRef
    adapter: Path
    checkpoint: Path
    trajectory: Path
    norm: float  # of the adapter


@functools.cache
def ground() -> Ground:
    """Made once a process."""
    torch.manual_seed(0)
    root = Path(tempfile.mkdtemp(prefix="rune-fuzz-"))
    model = make_tiny_model(root / "model", seed=0, hidden=16, layers=1)
    loaded = bases.load(model, device="cpu", dtype="float32")
    config = settings()
    layout = layout_of(loaded.model, config.lora.modules)
    static = StaticLora(layout, rank=config.lora.rank, alpha=config.lora.alpha)
    both = HypernetWithStatic(static, new_hypernet(layout, config.hypernet))
    checkpoint.save_hypernet(root / "checkpoint", both, layout, config.lora, config.hypernet, model)
    settings_file = root / "checkpoint" / checkpoint.SETTINGS
    known = store.read_json(settings_file)
    del known["weights_sha256"]  # as before it was written: damage must be found by what the weights are
    store.write_json(settings_file, known)
    pairs = {
        name: peft.Pair(torch.randn(linear.in_features, 2), torch.randn(2, linear.out_features))
        for name, linear in peft.target_linears(loaded.model).items()
    }
    ref = peft.write_peft(root / "adapter", peft.Adapter(pairs=pairs, scale=2.0, base_model=model.digest))
    one = Trajectory(
        trajectory_id="a",
        task_id="mine/1",
        benchmark="mine",
        prompt="Write f.",
        attempts=(Attempt(code="def f(): 1/0", outcome=Outcome.FAILED, error_kind="ZeroDivisionError", error="no"),),
        source="elsewhere",
    )
    store.write_jsonl(root / "t.jsonl", [one])
    return Ground(model, root / "adapter", root / "checkpoint", root / "t.jsonl", ref.delta_w_norm)


def weights(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose head is damaged, or whose numbers are none."""
    (size,) = struct.unpack("<Q", data[:8])
    head, body = json.loads(data[8 : 8 + size]), bytearray(data[8 + size :])
    kind = rng.randrange(6)
    if kind == 0:
        head = damage(head, rng)
    elif kind == 1:
        name = rng.choice([k for k in head if k != "__metadata__"])
        head[name] = head[name] | {"dtype": rng.choice(TENSORS)}
    elif kind == 2:
        name = rng.choice([k for k in head if k != "__metadata__"])
        head[name] = head[name] | {"shape": rng.choice(([], [0], [-1, 2], head[name]["shape"][::-1], [2**62, 4]))}
    elif kind == 3:
        names = [k for k in head if k != "__metadata__"]
        head[rng.choice(("", "x", names[0] + ".x", names[0].replace("lora_A", "lora_B")))] = head.pop(names[0])
    elif kind == 4:
        at = rng.randrange(len(body) // 4) * 4
        body[at : at + 4] = struct.pack("<f", rng.choice((math.nan, math.inf, -math.inf)))
    text = json.dumps(head).encode("utf-8", "surrogatepass")
    data = struct.pack("<Q", rng.choice((len(text), len(text), len(text), 0, 2**63))) + text + bytes(body)
    return spoil(data, rng)


def damaged(source: Path, names: tuple[str, str], folder: Path, rng: random.Random) -> None:
    """A copy of `source` (JSON settings, weights) with one of the two damaged, or gone."""
    shutil.copytree(source, folder)
    settings, tensors = (folder / name for name in names)
    if rng.random() < 0.6:
        value = damage(
            json.loads(settings.read_text(encoding="utf-8")), rng, ("r", "peft_type", "rank_pattern", "kind")
        )
        settings.write_bytes(spoil(json.dumps(value).encode("utf-8", "surrogatepass"), rng))
    elif rng.random() < 0.95:
        tensors.write_bytes(weights(tensors.read_bytes(), rng))
    else:
        rng.choice((settings, tensors)).unlink()


def judge(number: int, folder: Path) -> str:
    """A PEFT folder through the loader that all engines use: "loaded" or "refused"."""
    rng = random.Random(number)
    target = folder / "adapter"
    damaged(ground().adapter, (peft.CONFIG_FILE, peft.WEIGHTS_FILE), target, rng)
    try:
        if rng.random() < 0.1:
            refused(*run("show", str(target)))
            return "refused"
        try:
            with bounded():
                found = peft.read_peft(target)
        except AdapterError as error:
            assert "\n" not in str(error) and str(target) in str(error), error
            return "refused"
        norms = peft.delta_w_norms(found)
        assert found.pairs and math.isfinite(sum(norms.values())), norms
        assert found.rank >= 1 and math.isfinite(found.scale) and isinstance(found.base_model, str)
        return "loaded"
    finally:
        shutil.rmtree(target)


def judge_checkpoint(number: int, folder: Path) -> str:
    """A hypernetwork's folder through `rune adapt --trajectory`: "adapted" or "refused"."""
    rng, given = random.Random(number), ground()
    source, target = folder / "checkpoint", folder / "made"
    damaged(given.checkpoint, (checkpoint.SETTINGS, checkpoint.WEIGHTS), source, rng)
    command = ["adapt", "--trajectory", str(given.trajectory), "-o", str(target), "--checkpoint", str(source)]
    code, out, err = run(*command, "--model", given.model.path)
    try:
        if code != 0:
            refused(code, out, err)
            assert str(source) in err, err
            assert not target.exists()
            return "refused"
        found = peft.read_peft(target)
        assert math.isfinite(peft.delta_w_norm(found)) and found.base_model == given.model.digest
        return "adapted"
    finally:
        shutil.rmtree(source)
        shutil.rmtree(target, ignore_errors=True)
