"""The registry keeps what it is given: once, whole, and with what it came from."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rune.adapters import composition, peft
from rune.adapters.registry import export, intake, operations, origin, selection
from rune.adapters.registry.objects import CONFIG_FILE, WEIGHTS_FILE
from rune.adapters.registry.records import Level, MadeFrom, Place, Source, Status
from rune.adapters.registry.registry import MAX_RANK, Registry, View, default_folder
from rune.errors import AdapterError, DataError, StoreError
from tests.adapters import small

PROJECT = Place(project="shop")
DOMAIN = Place(project="shop", domain="dates")
TASK = Place(project="shop", domain="dates", task="parse")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry", create=True)


def test_an_adapter_comes_back_bit_by_bit_under_the_hash_of_its_file(registry: Registry) -> None:
    made_from = MadeFrom(sources=(Source(trajectory_id="t1", task_id="Shop/1"),), hypernet="abc", how="hypernet")
    entry = small.put(registry, 1, DOMAIN, made_from=made_from)
    path = registry.objects.place(entry.id)
    assert hashlib.sha256((path / WEIGHTS_FILE).read_bytes()).hexdigest() == entry.id == path.name
    assert path.parent.name == entry.id[:2]
    back = intake.load(registry, entry, base=small.BASE)
    assert peft.content_id(back) == peft.content_id(small.adapter(1))
    assert (entry.place.level, entry.rank, entry.base, entry.status) == (Level.DOMAIN, 3, small.BASE, Status.ACTIVE)
    assert entry.delta_w_norm == pytest.approx(peft.delta_w_norm(small.adapter(1)))
    assert entry.parameters == sum(p.a.numel() + p.b.numel() for p in small.adapter(1).pairs.values())
    assert registry.sources(entry.id) == [Source(trajectory_id="t1", task_id="Shop/1")]
    assert registry.objects.folder(registry.ref(entry, base=small.BASE)) == path


def test_the_same_adapter_twice_is_there_once(registry: Registry) -> None:
    first = small.put(registry, 1, DOMAIN)
    assert small.put(registry, 1, DOMAIN) == first
    assert registry.count(View()) == 1
    with pytest.raises(AdapterError, match="is there already, as shop/dates"):
        small.put(registry, 1, PROJECT)


@pytest.mark.check
def test_the_same_adapter_has_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    code = (
        "import hashlib, sys; from pathlib import Path; from tests.adapters import small\n"
        "f = small.folder(Path(sys.argv[1]), 5)\n"
        "print(*[hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(f.iterdir())])"
    )
    root = Path(__file__).parents[2]
    said = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / str(n))],
            capture_output=True,
            text=True,
            check=True,
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": str(n)},
        ).stdout
        for n in range(3)
    }
    assert len(said) == 1


def test_the_scale_and_the_base_are_part_of_what_an_adapter_is(registry: Registry) -> None:
    ids = {
        small.put(registry, 1, DOMAIN).id,
        small.put(registry, 1, DOMAIN, scale=4.0).id,
        small.put(registry, 1, DOMAIN, base=small.OTHER).id,
    }
    assert len(ids) == 3
    assert len({peft.content_id(small.adapter(1, scale=scale)) for scale in (2.0, 4.0)}) == 2


def test_foreign_folders_are_written_anew_and_keep_their_numbers(registry: Registry, tmp_path: Path) -> None:
    """As PEFT writes one: no base digest, rank-stabilised scale, a dropout, fields of its own."""
    from safetensors.torch import save_file

    folder = tmp_path / "foreign"
    folder.mkdir()
    adapter = small.adapter(3, rank=4)
    tensors = {}
    for name, pair in adapter.pairs.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = pair.a.T.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = pair.b.T.contiguous()
    save_file(tensors, folder / WEIGHTS_FILE)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "use_rslora": True, "lora_dropout": 0.1, "bias": "none"}
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(AdapterError, match="does not say which base model it belongs to; add --base"):
        intake.read(folder, DOMAIN, MadeFrom(), max_rank=MAX_RANK)
    ready = intake.read(folder, DOMAIN, MadeFrom(), base=small.BASE, max_rank=MAX_RANK)
    entry, new = registry.insert(ready.draft, ready.config, ready.weights)
    assert new
    back = intake.load(registry, entry)
    assert back.scale == pytest.approx(3.0) and back.base_model == small.BASE
    assert all((back.pairs[n].a == p.a).all() and (back.pairs[n].b == p.b).all() for n, p in adapter.pairs.items())


# --------------------------------------------------------------------------- every load is checked


def test_a_flipped_bit_is_found_on_every_load_and_put_right_by_adding_again(registry: Registry) -> None:
    entry = small.put(registry, 1, DOMAIN)
    weights = registry.objects.place(entry.id) / WEIGHTS_FILE
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(AdapterError, match=r"damaged, its sha256 is .*`rune adapters add` puts it back"):
        intake.load(registry, entry)
    with pytest.raises(AdapterError, match="damaged"):
        registry.ref(entry, base=small.BASE)
    assert [line for line in registry.verify() if "damaged" in line]
    assert small.put(registry, 1, DOMAIN) == entry
    assert registry.verify() == []


def test_a_config_that_contradicts_the_weights_is_found(registry: Registry) -> None:
    entry = small.put(registry, 1, DOMAIN)
    path = registry.objects.place(entry.id) / CONFIG_FILE
    path.write_text(path.read_text().replace('"lora_alpha": 6.0', '"lora_alpha": 60.0'))
    with pytest.raises(AdapterError, match="contradicts the weights file"):
        intake.load(registry, entry)


def test_another_base_and_a_high_rank_are_refused_on_load(registry: Registry) -> None:
    entry = small.put(registry, 1, DOMAIN)
    with pytest.raises(AdapterError, match=r"was made for base model .* asked for is"):
        intake.load(registry, entry, base=small.OTHER)
    with pytest.raises(AdapterError, match="has rank 3, the limit is 2; pass --max-rank 3"):
        intake.load(Registry(registry.folder, max_rank=2), entry)


# --------------------------------------------------------------------------- names, pages


def test_an_adapter_is_found_by_alias_and_by_the_beginning_of_its_id(registry: Registry) -> None:
    entry, other = small.put(registry, 1, DOMAIN), small.put(registry, 2, DOMAIN)
    registry.set_alias("best", entry.id)
    assert registry.resolve("best") == registry.resolve(entry.id[:6]) == registry.resolve(entry.id.upper()) == entry
    registry.set_alias("best", other.id)
    assert registry.resolve("best") == other and registry.aliases(entry.id) == []
    for name in ("worst", "abc", "%", entry.id[:8] + "zz"):
        with pytest.raises(DataError, match=f"no adapter '{name}'"):
            registry.resolve(name)
    for name in ("", "two words", "beef"):
        with pytest.raises(DataError, match="the alias"):
            registry.set_alias(name, entry.id)


def test_pages_follow_each_other_and_leave_nothing_out(registry: Registry) -> None:
    entries = [small.put(registry, n, DOMAIN if n % 2 else PROJECT, rank=1) for n in range(7)]
    operations.forget(registry, [entries[3]], reason="")
    pages, after = [], 0
    while page := registry.page(View(), after=after, limit=2):
        pages += page
        after = page[-1].number
    assert [e.id for e in pages] == [e.id for e in entries if e is not entries[3]]
    assert registry.count(View()) == 6 and registry.count(View(status=None)) == 7
    assert registry.count(View(level=Level.DOMAIN)) == 2 and registry.count(View(project="shop", domain="dates")) == 2
    assert registry.count(View(base=small.BASE[:8])) == 6 and registry.count(View(base="0" * 8)) == 0


# --------------------------------------------------------------------------- selection


def test_selection_takes_the_most_specific_level_with_enough_fitness_then_goes_up(registry: Registry) -> None:
    project = small.put(registry, 1, PROJECT, fitness=0.8)
    domain = small.put(registry, 2, DOMAIN, fitness=0.6)
    task = small.put(registry, 3, TASK, fitness=0.3)

    def chosen(threshold: float | None, place: Place = TASK, base: str = small.BASE) -> object:
        return selection.select(registry, place, base=base, threshold=threshold).chosen

    assert chosen(None) == chosen(0.3) == task
    assert chosen(0.31) == chosen(0.6) == domain
    assert chosen(0.61) == chosen(0.8) == project
    assert chosen(0.81) is None
    assert chosen(None, replace(TASK, task="other")) == domain
    assert chosen(None, Place(project="shop", domain="other")) == project
    assert chosen(None, Place(project="bank")) is None
    assert chosen(None, base=small.OTHER) is None
    tried = selection.select(registry, TASK, base=small.BASE, threshold=0.7).tried
    assert [(str(t.place), t.enough) for t in tried] == [
        ("shop/dates/parse", False),
        ("shop/dates", False),
        ("shop", True),
    ]


def test_within_a_level_the_fittest_wins_and_archived_or_unmeasured_ones_do_not(registry: Registry) -> None:
    small.put(registry, 1, DOMAIN, fitness=0.5)
    best = small.put(registry, 2, DOMAIN, fitness=0.7)
    unmeasured = small.put(registry, 3, DOMAIN)
    gone = small.put(registry, 4, DOMAIN, fitness=0.9)
    operations.forget(registry, [gone], reason="")
    assert selection.select(registry, DOMAIN, base=small.BASE).chosen == best
    operations.forget(registry, [best], reason="")
    assert selection.select(registry, DOMAIN, base=small.BASE, threshold=0.6).chosen is None
    only = selection.select(registry, Place(project="shop", domain="dates"), base=small.BASE).chosen
    assert only is not None and only.fitness == 0.5 and only != unmeasured
    operations.restore(registry, [gone], reason="")
    assert selection.select(registry, DOMAIN, base=small.BASE, threshold=0.6).chosen == registry.get(gone.id)


def test_of_adapters_that_are_equally_fit_or_were_never_measured_the_newest_wins(registry: Registry) -> None:
    for fitness in (None, 0.5):
        place = replace(DOMAIN, domain=f"of {fitness}")
        small.put(registry, 1 if fitness else 2, place, fitness=fitness)
        newest = small.put(registry, 3 if fitness else 4, place, fitness=fitness)
        assert selection.select(registry, place, base=small.BASE).chosen == newest


def test_a_measurement_on_other_domains_is_kept_and_selection_does_not_go_by_it(registry: Registry) -> None:
    entry = small.put(registry, 1, DOMAIN, fitness=0.5)
    registry.set_fitness(entry.id, small.measured(0.9), own=False)
    assert registry.get(entry.id).fitness == 0.5
    assert [found.value for found in registry.fitness(entry.id)] == [0.5, 0.9]


def test_an_adapter_that_is_composed_twice_is_a_parent_with_both_weights(registry: Registry, tmp_path: Path) -> None:
    one, two = small.put(registry, 1, DOMAIN), small.put(registry, 2, DOMAIN)
    parts = [(one.id, 0.25), (two.id, 1.0), (one.id, 0.5)]
    whole = composition.compose(intake.load_all(registry, [one, two, one]), [w for _, w in parts])
    export.composed(registry, whole, parts, tmp_path / "out", base_name="org/base")
    assert origin.read(tmp_path / "out").parents == ((one.id, 0.75), (two.id, 1.0))


def test_an_exported_adapter_says_what_it_was_made_from_and_with_which_weights(
    registry: Registry, tmp_path: Path
) -> None:
    one, two = small.put(registry, 1, DOMAIN), small.put(registry, 2, DOMAIN)
    middle = small.put(registry, 3, DOMAIN, made_from=MadeFrom(how="merge cat", parents=((one.id, 0.5), (two.id, 1.0))))
    last = small.put(registry, 4, DOMAIN, made_from=MadeFrom(how="merge svd", parents=((middle.id, 2.0),)))
    export.one(registry, last, tmp_path / "last")
    assert origin.read(tmp_path / "last").parents == ((middle.id, 2.0),)  # not its grandparents
    export.one(registry, middle, tmp_path / "middle")
    assert set(origin.read(tmp_path / "middle").parents) == {(one.id, 0.5), (two.id, 1.0)}
    export.one(registry, one, tmp_path / "one")
    assert origin.read(tmp_path / "one").parents == ()


def test_the_chain_to_compose_is_the_best_of_every_level_from_the_project_down(registry: Registry) -> None:
    project = small.put(registry, 1, PROJECT, fitness=0.8)
    domain = small.put(registry, 2, DOMAIN, fitness=0.2)
    task = small.put(registry, 3, TASK, fitness=0.9)
    assert selection.chain(registry, TASK, base=small.BASE) == [project, domain, task]
    assert selection.chain(registry, TASK, base=small.BASE, threshold=0.5) == [project, task]
    parents = ((project.id, 1.0), (domain.id, 1.0))
    both = small.put(registry, 4, DOMAIN, fitness=0.9, made_from=MadeFrom(how="composed", parents=parents))
    assert selection.chain(registry, TASK, base=small.BASE) == [both, task]  # the project's part is in it already


# --------------------------------------------------------------------------- lineage


def test_lineage_goes_both_ways_and_never_in_a_circle(registry: Registry) -> None:
    a, b = small.put(registry, 1, DOMAIN), small.put(registry, 2, DOMAIN)
    c = small.put(registry, 3, DOMAIN, made_from=MadeFrom(parents=((a.id, 0.5), (b.id, 0.5))))
    d = small.put(registry, 4, DOMAIN, made_from=MadeFrom(parents=((c.id, 1.0),)))
    found = registry.lineage(d.id)
    assert {(e.child, e.parent) for e in found.ancestors} == {(d.id, c.id), (c.id, a.id), (c.id, b.id)}
    assert {e.child for e in registry.lineage(a.id).descendants} == {c.id, d.id}
    with pytest.raises(DataError, match="cycle in the lineage"):
        small.put(registry, 1, DOMAIN, made_from=MadeFrom(parents=((d.id, 1.0),)))
    with pytest.raises(DataError, match="cycle in the lineage"):
        small.put(registry, 1, DOMAIN, made_from=MadeFrom(parents=((a.id, 1.0),)))
    with pytest.raises(DataError, match="lineage is written once"):
        small.put(registry, 3, DOMAIN, made_from=MadeFrom(parents=((a.id, 1.0),)))
    with pytest.raises(AdapterError, match="adapters of several bases cannot be mixed"):
        small.put(registry, 9, DOMAIN, base=small.OTHER, made_from=MadeFrom(parents=((a.id, 1.0),)))
    assert registry.count(View(status=None)) == 4


def test_a_circle_written_by_something_else_is_reported_not_followed(registry: Registry) -> None:
    a = small.put(registry, 1, DOMAIN)
    b = small.put(registry, 2, DOMAIN, made_from=MadeFrom(parents=((a.id, 1.0),)))
    with registry.database.write() as connection:
        connection.exec_driver_sql("INSERT INTO parents VALUES (?, ?, 0, 1.0)", (a.id, b.id))
    with pytest.raises(StoreError, match=r"a cycle in the lineage: .* → "):
        registry.lineage(a.id)
    assert any("cycle in the lineage" in line for line in registry.verify())


# --------------------------------------------------------------------------- files without entries


def test_gc_takes_what_no_entry_names_and_nothing_else(registry: Registry) -> None:
    kept = small.put(registry, 1, DOMAIN)
    operations.forget(registry, [kept], reason="no longer used")
    ready = intake.prepare(small.adapter(2), DOMAIN, MadeFrom(), max_rank=MAX_RANK)
    registry.keep_files(ready.draft.id, ready.config, ready.weights)
    half = registry.objects.place(kept.id).parent / "tmp-123"
    half.mkdir()
    (half / WEIGHTS_FILE).write_bytes(b"half of an adapter")
    would = registry.gc(dry_run=True)
    assert would.folders == 2 and registry.objects.place(ready.draft.id).is_dir()
    assert registry.gc() == would and registry.gc().folders == 0
    assert list(registry.objects.digests()) == [kept.id] and registry.verify() == []


def test_weights_of_archived_adapters_can_be_removed_and_all_that_is_known_of_them_stays(
    registry: Registry, tmp_path: Path
) -> None:
    old = small.put(registry, 1, DOMAIN, fitness=0.5)
    kept = small.put(registry, 2, DOMAIN, made_from=MadeFrom(how="merge svd", parents=((old.id, 1.0),)))
    export.one(registry, old, tmp_path / "copy")
    operations.forget(registry, [old], reason="no longer used")
    would = operations.release(registry, dry_run=True)
    size = sum(f.stat().st_size for f in registry.objects.place(old.id).iterdir())
    assert would == (1, size) and registry.objects.place(old.id).is_dir()
    assert operations.release(registry) == would and operations.release(registry).folders == 0
    assert list(registry.objects.digests()) == [kept.id]
    assert registry.verify() == [] and registry.gc().folders == 0
    assert registry.get(old.id).fitness == 0.5 and registry.lineage(kept.id).ancestors[0].parent == old.id
    assert [o.kind for o in operations.listed(registry, old.id)] == ["forget", "release"]
    with pytest.raises(AdapterError, match=r"its weights were removed; `rune adapters add` a copy of it$"):
        operations.restore(registry, [old], reason="missed")
    assert registry.get(old.id).status is Status.ARCHIVED
    # A copy brings it back, and it may rest and be released once more.
    ready = intake.read(tmp_path / "copy", DOMAIN, MadeFrom(), max_rank=MAX_RANK)
    assert registry.insert(ready.draft, ready.config, ready.weights)[1] is False
    operations.restore(registry, [old], reason="missed")
    assert registry.get(old.id).status is Status.ACTIVE and registry.verify() == []
    # What is active and missing is still a fault, whatever was released before.
    registry.objects.remove(old.id)
    assert len(registry.verify()) == 1
    operations.forget(registry, [kept], reason="no longer used")
    assert operations.release(registry).folders == 1


def test_the_registry_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RUNE_REGISTRY", str(tmp_path / "here"))
    assert default_folder() == tmp_path / "here"
    monkeypatch.delenv("RUNE_REGISTRY")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".local" / "share" / "rune" / "adapters"
    with pytest.raises(StoreError, match="no registry of adapters; `rune adapters add"):
        Registry(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
