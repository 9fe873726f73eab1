"""One id an adapter, in a run, in memory, in a registry and on the screen; and its folder found by that id alone."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from rune.adapters import convert, peft
from rune.adapters.factors import Factors, LoraTargets, Size
from rune.adapters.folders import Folders
from rune.adapters.layout import CONFIG_FILE, WEIGHTS_FILE
from rune.adapters.registry import intake
from rune.adapters.registry.records import MadeFrom, Place
from rune.adapters.registry.registry import Registry
from rune.adapters.store import FolderStore, MemoryStore
from rune.engines import scripted
from rune.errors import AdapterError
from rune.runs import store
from rune.types import AdapterRef, ModelRef, Request, Sampling, Treatment
from tests.adapters import small

MODEL = ModelRef(name="tiny", path="", digest=small.BASE, source="local")
LAYOUT = LoraTargets(layers=1, width=12, sizes={"q_proj": Size(12, 10)}, paths={"q_proj": "model.layers.{}.q_proj"})


def made(seed: int) -> dict[str, Factors]:
    (pair,) = small.adapter(seed, names=("model.layers.0.self_attn.q_proj",)).pairs.values()
    return {"q_proj": Factors(pair.a.T[None, None], pair.b[None, None])}


def test_an_adapter_has_one_id_in_a_run_in_memory_and_in_a_registry(tmp_path: Path) -> None:
    written = FolderStore(tmp_path / "run", MODEL, dtype="float32").put("hypernet", "T_1", made(1), LAYOUT)
    folder = Folders(tmp_path).folder(written)
    assert folder == tmp_path / "run" / "hypernet" / "T_1"
    assert written.adapter_id == hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()

    engine = scripted.build(scripted.Config(), model=MODEL, device="cpu", dtype="float32")
    handed_over = MemoryStore(engine, MODEL, dtype="float32", device="cpu").put("hypernet", "T_1", made(1), LAYOUT)
    assert handed_over == written

    registry = Registry(tmp_path / "registry", create=True)
    place = Place(project="shop", domain="dates")
    ready = intake.read(folder, place, MadeFrom(), max_rank=8)
    entry, _ = registry.insert(ready.draft, ready.config, ready.weights)
    assert entry.id == written.adapter_id
    assert registry.objects.folder(written).name == written.adapter_id
    adapter = convert.to_adapter(made(1), LAYOUT, base_model=MODEL.digest)
    assert peft.content_id(adapter) == entry.id != peft.content_id(convert.to_adapter(made(2), LAYOUT, base_model=""))


def test_an_adapter_is_found_wherever_its_folder_was_moved_to(tmp_path: Path) -> None:
    ref = peft.write_peft(tmp_path / "here" / "lora" / "all", small.adapter(1))
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert Folders(tmp_path / "nowhere", tmp_path / "there").folder(ref) == tmp_path / "there" / "lora" / "all"
    with pytest.raises(AdapterError, match=f"unknown adapter {ref.adapter_id}.*looked below: .*here"):
        Folders(tmp_path / "here").folder(ref)


def test_a_folder_whose_weights_changed_is_found_no_more(tmp_path: Path) -> None:
    """Also by whoever has found it before, and by whoever wrote it."""
    folders = Folders(tmp_path)
    ref = peft.write_peft(tmp_path / "a", small.adapter(1))
    folders.know(ref.adapter_id, tmp_path / "a")
    assert folders.folder(ref) == tmp_path / "a"
    other = peft.write_peft(tmp_path / "a", small.adapter(2))
    assert folders.folder(other) == tmp_path / "a"
    with pytest.raises(AdapterError, match="no folder holds these weights"):
        folders.folder(ref)
    damaged = bytearray((tmp_path / "a" / WEIGHTS_FILE).read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "a" / WEIGHTS_FILE).write_bytes(damaged)
    with pytest.raises(AdapterError, match="no folder holds these weights"):
        folders.folder(other)


def test_the_nearest_root_is_looked_through_first(tmp_path: Path) -> None:
    ref = peft.write_peft(tmp_path / "one" / "x", small.adapter(1))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    folders = Folders(tmp_path / "one", tmp_path / "two")
    folders.first(tmp_path / "two")
    assert folders.folder(ref) == tmp_path / "two" / "x"


def test_a_record_of_before_still_opens_and_its_adapter_is_found(tmp_path: Path) -> None:
    """Its id has 32 digits, and it says where the adapter lay on another machine."""
    peft.write_peft(tmp_path / "adapters" / "lora" / "other", small.adapter(2))
    peft.write_peft(tmp_path / "adapters" / "lora" / "all", small.adapter(1))
    old = {
        "adapter_id": peft.earlier_id(small.adapter(1)),
        "path": "/elsewhere/adapters/lora/all",
        "base_model": small.BASE,
        "rank": 3,
        "delta_w_norm": 1.0,
    }
    line = {"task_id": "T/1", "condition": "lora", "context": "", "adapter": old, "trajectory_ids": []}
    (tmp_path / "treatments.jsonl").write_text(json.dumps(line) + "\n")
    ((treatment),) = store.read_jsonl(tmp_path / "treatments.jsonl", Treatment)
    assert treatment.adapter is not None and len(treatment.adapter.adapter_id) == 32
    assert Folders(tmp_path).folder(treatment.adapter) == tmp_path / "adapters" / "lora" / "all"
    assert "path" not in json.loads(store.encode(treatment))["adapter"]
    assert set(json.loads(store.encode(treatment))["adapter"]) == set(AdapterRef.__slots__)


def test_the_id_of_before_is_what_it_was() -> None:
    assert peft.earlier_id(small.adapter(1)) == "dc2a008983288d0c10441169b75c117a"


def test_an_engine_without_folders_knows_no_adapter(tmp_path: Path) -> None:
    ref = peft.write_peft(tmp_path, small.adapter(1))
    sampling = Sampling(temperature=0.0, max_new_tokens=4)
    request = Request(key="x", prompt="p", sampling=sampling, seed=0, adapter=ref)
    config = scripted.Config(default=("a",), read_adapters=True)
    blind = scripted.build(config, model=MODEL, device="cpu", dtype="float32")
    with pytest.raises(AdapterError, match="none was named"):
        list(blind.complete([request]))
    sighted = scripted.build(config, model=MODEL, device="cpu", dtype="float32", adapters=Folders(tmp_path))
    assert [c.text for c in sighted.complete([request])] == ["a"]
    (tmp_path / CONFIG_FILE).unlink()
    with pytest.raises(AdapterError, match=CONFIG_FILE):
        list(sighted.complete([request]))
