"""A short run of every kind; the long one is `python tests/fuzz/campaign.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.fuzz import adapters, campaign, configs, damage

SHORT = {
    "trajectory files": (300, {"read", "refused"}),
    "adapter folders": (150, {"loaded", "refused"}),
    "configs": (25, {"accepted", "refused"}),
    "sample files": (20, {"scored", "refused"}),
    "problem files": (20, {"scored", "refused"}),
    "run folders": (8, set[str]()),
    "checkpoints": (20, {"refused"}),
}


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=pytest.mark.check if k == "configs" else ()) for k in campaign.KINDS],  # starts processes
)
def test_a_damaged_input_is_one_line_or_a_right_result(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if kind.endswith("files") and not sys.platform.startswith("linux"):
        pytest.skip("the fork backend is Linux's")
    monkeypatch.setenv("RUNE_CACHE", str(tmp_path))
    count, sides = SHORT[kind]
    found = campaign.campaign(kind, count, 0)
    assert not found.finds
    assert found.inputs >= 0.9 * count
    assert sides <= set(found.became)  # both sides are tried


def test_what_is_wrong_is_a_find(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def breaks(_number: int, _folder: Path) -> str:
        damage.refused(*damage.run("power", str(tmp_path / "none.toml")))
        raise ValueError("a bug")

    monkeypatch.setitem(campaign.KINDS, "configs", (breaks, 1))
    found = campaign.campaign("configs", 3, 0)
    assert len(found.finds) == found.inputs and all("a bug" in what for what in found.finds.values())
    with pytest.raises(AssertionError):
        damage.refused(2, "", "two\nlines\n")


def test_found_once(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs that broke it before: folds without end, numbers that are none, names with line breaks, odd manifests."""
    config = configs.ROOT / "configs" / "crossfit-0.5b.toml"
    for change in ("design.folds=1000000", "gate.seed=-1", "sample.temperature=nan", "design.temperatures=[inf]"):
        damage.refused(*damage.run("preregister", str(config), "--set", change))
    for change in ("sample.n=1000000000000", "design.held_out=1" + "0" * 30):
        damage.refused(*damage.run("power", str(config), "--set", "design.folds=0", "--set", change))
    (tmp_path / "run").mkdir()
    for manifest in ([], {"stages": {"gate": "done"}}, {"stages": 3}, {"seals": "x"}):
        (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
        damage.refused(*damage.run("gate", str(tmp_path / "run")))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.jsonl").write_text(json.dumps({"task_id": "a\r\nb\u2028c", "completion": ""}) + "\n")
    code, out, err = damage.run("score", "--benchmark", "humaneval", "s.jsonl")
    damage.refused(code, out, err)
    assert r"'a\r\nb\u2028c'" in err


def test_a_checkpoint_whose_settings_or_numbers_are_none_is_one_line(tmp_path: Path) -> None:
    given = adapters.ground()
    whole = json.loads((given.checkpoint / "settings.json").read_text(encoding="utf-8"))
    bad = [[], {}, whole | {"kind": "x"}, whole | {"layout": 3}, {k: v for k, v in whole.items() if k != "lora"}]
    bad.append(whole | {"layout": whole["layout"] | {"layers": 10**12}})
    (tmp_path / "model.safetensors").write_bytes((given.checkpoint / "model.safetensors").read_bytes())
    for settings in bad:
        (tmp_path / "settings.json").write_text(json.dumps(settings))
        command = ["adapt", "--trajectory", str(given.trajectory), "-o", str(tmp_path / "made")]
        command += ["--checkpoint", str(tmp_path), "--model", given.model.path]
        damage.refused(*damage.run(*command))
        assert not (tmp_path / "made").exists()
