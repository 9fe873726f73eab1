"""`rune adapters`: what it prints, and one clear line for everything that does not fit."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rune.adapters import interference, peft
from rune.adapters.registry.registry import Registry, View
from rune.cli.adapters import ACTIONS
from rune.cli.main import main
from tests.adapters import small

ROOT = Path(__file__).parents[2]


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def rune(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """`rune adapters …` in an empty folder with a registry of its own. A traceback fails the test by itself."""
    monkeypatch.setenv("RUNE_REGISTRY", str(tmp_path / "memory"))
    monkeypatch.chdir(tmp_path)

    def call(*args: object) -> Said:
        capsys.readouterr()
        try:
            code = main(["adapters", *map(str, args)])
        except SystemExit as stop:
            code = int(str(stop.code))
        found = capsys.readouterr()
        return Said(code, found.out, found.err)

    return call


def refused(said: Said, *words: str) -> None:
    assert said.code == 2, said
    assert said.err.count("\n") == 1 and said.err.startswith("rune"), said.err
    assert said.out == ""
    for word in words:
        assert word in said.err, said.err


@pytest.fixture
def two(rune: Callable[..., Said], tmp_path: Path) -> tuple[str, str]:
    """A project's adapter and a domain's, in the registry."""
    small.folder(tmp_path / "a", 1)
    small.folder(tmp_path / "b", 2)
    first = rune("add", "a", "--project", "shop", "--trajectory-id", "t1").out.strip()
    second = rune(
        "add", "b", "--project", "shop", "--domain", "dates", "--alias", "dates", "--parent", first
    ).out.strip()
    return first, second


# --------------------------------------------------------------------------- what it prints


def test_every_action_speaks_json(rune: Callable[..., Said], two: tuple[str, str], tmp_path: Path) -> None:
    first, second = two
    listed = rune("list", "--json").json
    assert listed["total"] == 2 and [a["id"][:12] for a in listed["adapters"]] == [first, second]
    assert rune("list", "--limit", 1, "--json").json["next_after"] == 1
    shown = rune("show", "dates", "--json").json
    assert shown["aliases"] == ["dates"] and shown["level"] == "domain" and shown["fitness"] is None
    assert Path(shown["path"]).is_dir()
    chosen = rune("select", "--project", "shop", "--domain", "dates", "--json").json
    assert chosen["chosen"]["id"][:12] == second and chosen["tried"][0]["enough"]
    composed = rune("compose", first, second, "--weights", "1,0.5", "-o", "both", "--json").json
    assert composed["rank"] == 6 and [p["weight"] for p in composed["parts"]] == [1.0, 0.5]
    (between,) = composed["between"]
    each = interference.measure(peft.read_peft(tmp_path / "a"), peft.read_peft(tmp_path / "b"))
    assert set(between["modules"]) == set(each) and len(each) > 1
    for name, found in each.items():
        told = between["modules"][name]
        assert [told[k] for k in ("cosine", "inputs", "outputs")] == pytest.approx(found[:3], abs=1e-5)
    norms = [told["norms"] for told in between["modules"].values()]
    cosines = [told["cosine"] for told in between["modules"].values()]
    whole = sum(c * x * y for c, (x, y) in zip(cosines, norms, strict=True))
    assert between["cosine"] == pytest.approx(whole / between["norms"][0] / between["norms"][1])
    lineage = rune("lineage", second, "--json").json
    assert lineage[0]["ancestors"][0]["parent"][:12] == first
    assert rune("verify", "--json").json == {"problems": []}
    assert rune("gc", "--json").json == {
        "removed": True, "folders": 0, "bytes": 0, "archived": {"removed": False, "folders": 0, "bytes": 0},
    }  # fmt: skip
    assert rune("archive", second, "--reason", "old", "--json").json["arguments"]["reason"] == "old"
    assert rune("select", "--project", "shop", "--domain", "dates").out.strip() == first
    assert rune("archive", second, "--restore", "--json").json["kind"] == "restore"
    operations = rune("lineage", "--operations", "--json").json
    assert [o["kind"] for o in operations] == ["forget", "restore"]
    assert rune("export", first, "-o", "out", "--json").json["path"] == "out"
    assert (tmp_path / "out" / peft.WEIGHTS_FILE).read_bytes() == (tmp_path / "a" / peft.WEIGHTS_FILE).read_bytes()


def test_gc_tells_what_archived_adapters_hold_and_removes_it_when_told_to(
    rune: Callable[..., Said], two: tuple[str, str], tmp_path: Path
) -> None:
    first, second = two
    rune("archive", second, "--reason", "old")
    weights = Path(rune("show", second, "--json").json["path"])
    said = rune("gc")
    assert said.code == 0 and "weights of 1 archived adapters" in said.err and "--archived removes them" in said.err
    assert weights.is_dir()
    assert "would be removed; their entries stay" in rune("gc", "--archived", "--dry-run").out and weights.is_dir()
    assert "removed; their entries stay" in rune("gc", "--archived").out and not weights.exists()
    assert rune("verify").code == 0 and rune("show", second).code == 0
    refused(rune("archive", second, "--restore"), "its weights were removed", "`rune adapters add` a copy of it")
    refused(rune("export", second, "-o", "x"), "cannot be read", "`rune adapters add` puts it back")
    assert rune("add", "b", "--project", "shop", "--domain", "dates").code == 0
    assert rune("archive", second, "--restore").code == 0 and weights.is_dir()
    assert rune("gc", "--json").json["archived"]["folders"] == 0
    assert rune("select", "--project", "shop", "--domain", "dates").out.strip() == second != first


def test_every_action_has_an_example_of_its_own(rune: Callable[..., Said]) -> None:
    for action, (_, example) in ACTIONS.items():
        said = rune(action, "--help")
        assert said.code == 0 and f"Example: {example.split(' --')[0]}" in " ".join(said.out.split()), action
        assert example.startswith(f"rune adapters {action}")


def test_selection_that_finds_nothing_says_so_with_its_exit_code(
    rune: Callable[..., Said], two: tuple[str, str]
) -> None:
    said = rune("select", "--project", "shop", "--domain", "dates", "--threshold", "0.5")
    assert said.code == 1 and said.out == "" and "no adapter has enough fitness" in said.err
    assert rune("select", "--project", "bank", "--json").json["chosen"] is None


def test_verify_finds_a_damaged_file_and_adding_a_copy_mends_it(
    rune: Callable[..., Said], two: tuple[str, str]
) -> None:
    weights = Path(rune("show", two[0], "--json").json["path"]) / peft.WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-4])
    said = rune("verify")
    assert said.code == 1 and "damaged" in said.out and said.out.count("\n") == 1
    refused(rune("export", two[0], "-o", "x"), "damaged, its sha256 is", "`rune adapters add` puts it back")
    refused(rune("compose", two[0], "-o", "x"), "damaged")
    assert rune("add", "a", "--project", "shop").code == 0 and rune("verify").code == 0


# --------------------------------------------------------------------------- bad input


def config_of(path: Path, **changes: Any) -> None:
    raw = json.loads((path / peft.CONFIG_FILE).read_text())
    (path / peft.CONFIG_FILE).write_text(json.dumps({**raw, **changes}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, "DoRA is not supported; export a plain LoRA"),
        ({"bias": "all"}, "bias='all' is not supported"),
        ({"lora_bias": True}, "a bias on B is not supported"),
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported"),
        ({"rank_pattern": {"q_proj": 3}}, "rank_pattern is not supported"),
        ({"r": 5, "lora_alpha": 10}, "not of the rank 5"),
    ],
)
def test_adapters_of_another_kind_are_refused(
    rune: Callable[..., Said], tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    config_of(small.folder(tmp_path / "a", 1), **changes)
    refused(rune("add", "a"), words)
    assert Registry(tmp_path / "memory").count(View(status=None)) == 0


def test_adapters_that_cannot_be_kept_are_refused(rune: Callable[..., Said], tmp_path: Path) -> None:
    small.folder(tmp_path / "ok", 1)
    small.folder(tmp_path / "nobody", 2, base="")
    small.folder(tmp_path / "large", 3, rank=8)
    odd = {"model.embed_tokens": peft.Pair(*small.adapter(4).pairs["model.layers.0.self_attn.q_proj"])}
    peft.write_peft(tmp_path / "odd", peft.Adapter(pairs=odd, scale=1.0, base_model=small.BASE))
    peft.write_peft(tmp_path / "dead", peft.Adapter(pairs=small.adapter(5).pairs, scale=0.0, base_model=small.BASE))
    refused(rune("add", "nobody"), "nobody: the adapter does not say which base model it belongs to; add --base MODEL")
    refused(rune("add", "large", "--max-rank", 4), "large: the adapter has rank 8, the limit is 4")
    refused(rune("add", "odd"), "odd: the adapter changes 'embed_tokens'; known target modules: q_proj")
    refused(rune("add", "dead"), "dead: the adapter changes nothing")
    refused(rune("add", "ok", "--base", small.OTHER), "made for base model", "leave --base out")
    refused(rune("add", "ok", "--base", "no-such-model"), "no model named 'no-such-model'")
    refused(rune("add", "nowhere"), "nowhere: no adapter_config.json; expected a PEFT LoRA folder")
    refused(rune("add", "ok", "odd"), "odd")  # all are looked at before the first is brought in
    assert Registry(tmp_path / "memory").count(View(status=None)) == 0
    assert rune("add", "nobody", "--base", small.BASE.upper()).code == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("add", "a", "--domain", ""), "the domain is ''; give it a name, or leave --domain out"),
        (("add", "a", "--task", "x"), "task 'x' has no domain; add --domain NAME"),
        (("add", "a", "--project", " "), "the project is ' '"),
        (("add", "a", "--max-rank", "0"), "--max-rank must be 1 or more"),
        (("add", "a", "--project", "shop", "--alias", "beef"), "looks like the beginning of an id"),
        (("add", "a", "b", "--alias", "x"), "an alias names one adapter"),
        (("add", "a", "--project", "bank"), "is there already, as shop; an adapter has one place"),
        (("show", "nothing"), "no adapter 'nothing'; give an alias or the first 4 or more characters"),
        (("list", "--limit", "0"), "--limit must be 1 or more"),
        (("list", "--level", "city"), "invalid choice: 'city'"),
        (("select", "--project", "shop", "--threshold", "1.5"), "the threshold is 1.5; fitness lies between 0 and 1"),
        (("select", "--project", "shop", "--threshold", "nan"), "the threshold is nan"),
        (("compose", "--project", "bank", "-o", "x"), "nothing to compose for bank"),
        (("compose", "dates", "--weights", "1,2", "-o", "x"), "expected 1 finite numbers"),
        (("compose", "dates", "--weights", "one", "-o", "x"), "expected numbers with commas"),
        (("compose", "dates", "--weights", "nan", "-o", "x"), "expected 1 finite numbers"),
        (("compose", "dates", "dates", "--max-rank", "5", "-o", "x"), "the ranks add up to 6, the limit is 5"),
        (("compose", "dates", "--learn", "x.jsonl", "-o", "x"), "--learn runs the base model; add --base"),
        (("compose", "dates", "--learn", "x.jsonl", "--weights", "1", "-o", "x"), "leave --weights out"),
        (("compose", "dates", "-o", "a"), "a: there is something already; give -o another folder"),
        (("export", "dates", "-o", "a"), "a: there is something already"),
        (("evolve", "--config", "none.toml"), "none.toml: cannot read the config"),
        (("polish",), "invalid choice: 'polish'"),
    ],
)
def test_arguments_that_do_not_fit_are_one_line(
    rune: Callable[..., Said], two: tuple[str, str], args: tuple[str, ...], words: str
) -> None:
    before = rune("list", "--all", "--json").json
    refused(rune(*args), words)
    assert rune("list", "--all", "--json").json == before and not Path("x").exists()


def test_bases_are_not_mixed(rune: Callable[..., Said], two: tuple[str, str], tmp_path: Path) -> None:
    small.folder(tmp_path / "other", 9, base=small.OTHER)
    refused(rune("add", "other", "--project", "shop", "--parent", two[0]), "adapters of several bases cannot be mixed")
    other = rune("add", "other", "--project", "shop").out.strip()
    refused(rune("compose", two[0], other, "-o", "x"), "was made for base model", "asked for is")
    refused(rune("select", "--project", "shop"), "adapters of 2 base models", "choose with --base")
    assert rune("select", "--project", "shop", "--base", small.OTHER).out.strip() == other


def test_a_cycle_in_the_lineage_is_refused(rune: Callable[..., Said], two: tuple[str, str]) -> None:
    refused(rune("add", "a", "--project", "shop", "--parent", two[1]), "that would be a cycle in the lineage")
    refused(rune("add", "a", "--project", "shop", "--parent", two[0]), "that would be a cycle in the lineage")


def test_a_damaged_database_is_one_line(rune: Callable[..., Said], two: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "memory" / "registry.sqlite"
    path.write_bytes(b"no database at all, but long enough to be looked at" * 100)
    for action in (("list",), ("show", "dates"), ("add", "a"), ("verify",), ("gc",)):
        refused(rune(*action), "registry.sqlite: damaged (file is not a database)", "/objects/*/*`")
    # What the line says works: the adapters themselves are all there.
    path.unlink()
    objects = sorted((tmp_path / "memory" / "objects").glob("*/*"))
    assert rune("add", *objects, "--project", "shop").code == 0
    assert {e["id"][:12] for e in rune("list", "--json").json["adapters"]} == set(two)


def test_a_full_disk_is_one_line_and_leaves_nothing(
    rune: Callable[..., Said], two: tuple[str, str], tmp_path: Path
) -> None:
    """Files may grow to 200 kB in the child: an adapter of 400 kB does not fit; its entry is not made."""
    wide = {"model.layers.0.self_attn.q_proj": peft.Pair(*map(_ones, ((50_000, 1), (1, 50_000))))}
    peft.write_peft(tmp_path / "wide", peft.Adapter(pairs=wide, scale=1.0, base_model=small.BASE))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    done = subprocess.run(
        [sys.executable, "-m", "rune", "adapters", "add", "wide", "--project", "shop"],
        capture_output=True,
        text=True,
        preexec_fn=limit,
        check=False,
    )
    refused(Said(done.returncode, done.stdout, done.stderr), "the disk is full", "nothing was added", "free some space")
    registry = Registry(tmp_path / "memory")
    assert registry.verify() == [] and registry.count(View(status=None)) == 2 and registry.gc().folders == 0
    assert rune("add", "wide", "--project", "shop").code == 0


def test_a_database_that_cannot_grow_is_one_line_and_stays_whole(
    rune: Callable[..., Said], two: tuple[str, str], tmp_path: Path
) -> None:
    small.folder(tmp_path / "c", 3, rank=1)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))

    done = subprocess.run(
        [sys.executable, "-m", "rune", "adapters", "add", "c", "--project", "shop"],
        capture_output=True,
        text=True,
        preexec_fn=limit,
        check=False,
    )
    refused(Said(done.returncode, done.stdout, done.stderr), "registry.sqlite", "disk")
    assert Registry(tmp_path / "memory").count(View(status=None)) == 2 and rune("verify").code == 0


def _ones(shape: tuple[int, int]) -> Any:
    import torch

    return torch.ones(shape)


def test_looking_loads_no_torch(two: tuple[str, str]) -> None:
    code = (
        "import sys; from rune.cli.main import main\n"
        "for args in ('list', 'show dates', 'select --project shop', 'lineage dates', 'verify', 'export dates -o x'):\n"
        "    assert main(['adapters', *args.split()]) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
