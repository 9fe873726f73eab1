"""What a config asks for that this machine, or this config, does not have is said at once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rune import config as read
from rune.adapters.folders import Folders
from rune.engines import torch as engines
from rune.errors import ConfigError
from rune.runs import store
from rune.study import checks, config
from rune.study.machines import Machines
from rune.types import ModelRef

CONFIG = Path(__file__).parents[2] / "configs" / "phase1-0.5b.toml"


def test_a_gpu_is_used_where_there_is_one_and_refused_where_there_is_none() -> None:
    present = torch.cuda.is_available()

    def device(wanted: str) -> str:
        return checks.device(config.load(CONFIG, [f"model.device={wanted}"]).settings)

    assert device("cpu") == "cpu"
    assert device("auto") == ("cuda" if present else "cpu")
    if present:
        assert device("cuda") == "cuda"
    else:
        with pytest.raises(ConfigError, match=r"torch sees no GPU; use --set model\.device=cpu"):
            device("cuda")


@pytest.mark.parametrize(
    ("dtype", "device", "used"),
    [("auto", "cpu", "float32"), ("auto", "cuda", "bfloat16"), ("bfloat16", "cpu", "bfloat16"),
     ("float32", "cuda", "float32")],
)  # fmt: skip
def test_numbers_are_of_the_kind_asked_for_or_the_devices_own(
    dtype: str, device: str, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config.load(CONFIG, [f"model.dtype={dtype}"]).settings
    monkeypatch.setattr(checks, "device", lambda _: device)
    assert Machines(settings, "one", together=1, adapters=Folders()).dtype == used


@pytest.mark.parametrize(("together", "share"), [(1, 0.85), (2, 0.6), (3, 0.5), (5, 0.3)])
def test_processes_on_one_device_leave_each_other_room(
    together: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        engines, "build", lambda settings, **_: asked.append(settings.memory_fraction) or SimpleNamespace(close=int)
    )
    monkeypatch.setattr(checks, "device", lambda _: "cpu")
    base = ModelRef(name="m", path="", digest="d", source="cache")
    machines = Machines(config.load(CONFIG).settings, "one", together=together, adapters=Folders())
    machines._new_engine(base)
    assert asked == [share]


@pytest.mark.parametrize("role", ["treatment", "baseline"])
def test_an_arm_that_the_gate_compares_is_one_of_the_run(role: str) -> None:
    read = config.load(CONFIG, [f"gate.{role}=oracle"]).settings
    assert "oracle" not in read.adapt.arms
    with pytest.raises(ConfigError, match=rf"\[gate\] {role} = 'oracle' is not among adapt.arms"):
        checks.arms(read)
    checks.arms(config.load(CONFIG).settings)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("engine.name=tors", "engines.*'tors'.*did you mean 'torch'|no engine.*'tors'.*did you mean 'torch'"),
        ('engine.settings={"batch_sise" = 2}', "engine.settings.*batch_sise"),
        ("score.backend=forc", "did you mean 'fork'"),
        ("retrieve.retriever=bm52", "did you mean 'bm25'"),
        ("train.retriever=bm52", "did you mean 'bm25'"),
        ("train.hypernet.encoder=perceiverr", "did you mean 'perceiver'"),
        ('adapt.arms=["vanila", "hypernet"]', "did you mean 'vanilla'"),
        ('adapt.settings={"hypernet" = {"strenth" = 2.0}}', "did you mean 'strength'"),
    ],
)
def test_a_part_or_setting_that_does_not_exist_is_refused_when_the_config_is_read(change: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config.load(CONFIG, [change])


@pytest.mark.parametrize(("folds", "fold"), [(3, 3), (3, 4), (0, 0), (3, -2)])
def test_a_fold_that_there_is_not_is_refused(folds: int, fold: int) -> None:
    with pytest.raises(ValueError, match=rf"fold must be below folds \({folds}\), or -1 for all of them, found {fold}"):
        config.Design(folds=folds, fold=fold)
    assert [config.Design(folds=3, fold=f).fold for f in (-1, 0, 2)] == [-1, 0, 2]


def test_checkpoints_to_go_on_from_are_of_both_kinds_or_one_hypernetwork(tmp_path: Path) -> None:
    training = config.load(CONFIG).settings.train
    plain = store.encode({"lora": read.plain(training.lora), "hypernet": read.plain(training.hypernet)})
    for kinds, fits in (((), False), (("lora",), False), (("hypernet",), False), (("lora", "hypernet"), True)):
        folder = tmp_path / "-".join(["checkpoints", *kinds])
        for kind in kinds:
            (folder / kind).mkdir(parents=True)
            (folder / kind / "settings.json").write_text(plain)
        if fits:
            checks.start(str(folder), "folder", training)
            checks.start(str(folder / "hypernet"), "folder", training)
        else:
            with pytest.raises(ConfigError, match=r"train.start_from: folder: no checkpoints \(lora and hypernet"):
                checks.start(str(folder), "folder", training)
