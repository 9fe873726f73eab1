"""Other machines (locale, limits, weights that are none, foreign folders), and what the command line says."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import save

from rune.cli import main as cli
from rune.errors import ModelError, RuneError
from rune.models import registry, resolve
from rune.runs import store
from rune.sandbox.isolation.limits import Limits

SOURCE = Path(cli.__file__).resolve().parents[1]
RUN = SOURCE.parents[1] / "results" / "phase1-0.5b"


def _weights() -> bytes:
    import numpy

    return bytes(save({"w": numpy.ones((4, 4), dtype="float32")}))


BAD_WEIGHTS = {
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a git-lfs pointer"),
    "empty": (b"", "empty"),
    "cut in the header": (_weights()[:30], "cut off"),
    "cut in the weights": (_weights()[:-9], "cut off"),
    "too long": (_weights() + b"more", "longer than its header says"),
    "a web page": (b"<!DOCTYPE html><html>not found</html>", "cut off, or no safetensors"),
    "a pickle": (b"PK\x03\x04\x00\x00\x00\x00" * 9, "cut off, or no safetensors"),
    "a header of another kind": (len(b"[1,2,3]").to_bytes(8, "little") + b"[1,2,3]", "no safetensors header"),
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_weights_that_are_none_are_found_before_anything_is_loaded(name: str, tmp_path: Path) -> None:
    content, words = BAD_WEIGHTS[name]
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=words):
        resolve.check_name(str(tmp_path))
    assert cli.main(["models", "path", str(tmp_path)]) == 2
    (tmp_path / "model.safetensors").write_bytes(_weights())
    resolve.check_name(str(tmp_path))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
INDEX = "model.safetensors.index.json"
INCOMPLETE = {
    "a tokenizer that is a pointer": ({"tokenizer.json": POINTER}, r"tokenizer\.json: a git-lfs pointer"),
    "a config that is a pointer": ({"config.json": POINTER}, r"config\.json: a git-lfs pointer"),
    "an index that is a pointer": ({INDEX: POINTER}, r"index\.json: a git-lfs pointer"),
    "an index of another kind": ({INDEX: b"[1]"}, "no index of weights"),
    "an index cut off": ({INDEX: b'{"weight_map": {'}, "not valid JSON"),
    "a missing shard": (
        {INDEX: b'{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"}}'},
        r"model-2\.safetensors is missing \(1 of its files",
    ),
    "one shard of two a pointer": ({"model-2.safetensors": POINTER}, "a git-lfs pointer"),
}


@pytest.mark.parametrize("name", INCOMPLETE)
def test_a_model_folder_that_is_not_whole_is_found_before_anything_is_loaded(name: str, tmp_path: Path) -> None:
    whole = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": _weights()}
    more, words = INCOMPLETE[name]
    for file, content in {**whole, **more}.items():
        (tmp_path / file).write_bytes(content)
    with pytest.raises(RuneError, match=words):
        resolve.check_name(str(tmp_path))
    assert cli.main(["models", "path", str(tmp_path)]) == 2
    for file in more:
        (tmp_path / file).unlink()
    for file, content in whole.items():
        (tmp_path / file).write_bytes(content)
    resolve.check_name(str(tmp_path))


def _rune(*args: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-X", "utf8=0", "-m", "rune", *args]
    inherited = {k: v for k, v in os.environ.items() if k not in ("LC_ALL", "LANG", "PYTHONUTF8")}
    return subprocess.run(command, env={**inherited, **environment}, capture_output=True, check=False, timeout=120)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "koi8-r"])
@pytest.mark.parametrize("args", [("--help",), ("help", "score"), ("show", str(RUN))])
def test_a_terminal_of_another_encoding_gets_replacements(encoding: str, args: tuple[str, ...]) -> None:
    done = _rune(*args, PYTHONIOENCODING=encoding, LC_ALL="C", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0 and b"Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["naïve ∑.json".encode(), b"s\xe9ssion.json", b"\xff\xfe.json"])
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_a_file_of_any_name_is_read_and_every_text_comes_back(name: bytes, locale: str, tmp_path: Path) -> None:
    """Names are bytes: of another encoding than the locale's, or of none at all."""
    asked = [
        {"role": "user", "content": "naïve ∑ 数"},
        {"role": "assistant", "content": "```bash\nsed -i s/é/ü/ x\n```"},
    ]
    path = os.fsencode(tmp_path) + b"/" + name
    Path(os.fsdecode(path)).write_text(json.dumps(asked, ensure_ascii=False), encoding="utf-8")
    command = [sys.executable, "-X", "utf8=0", "-m", "rune", "collect", "--import", path, "-o", str(tmp_path / "o")]
    environment = {**os.environ, "LC_ALL": locale, "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    (line,) = (tmp_path / "o").read_text(encoding="utf-8").splitlines()
    found = json.loads(line)
    stem = name.decode("utf-8", "replace").removesuffix(".json")
    assert (found["task_id"], found["source"]) == (stem, f"imported:{stem}.json")
    assert (found["prompt"], found["attempts"][0]["code"]) == ("naïve ∑ 数", "sed -i s/é/ü/ x")


def test_every_file_is_opened_with_its_encoding_said() -> None:
    """ruff's PLW1514 sees `open`; what it cannot see are the methods of a path whose type it does not know."""
    lacking = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            ours = ast.unparse(node.func.value) in ("store", "files")
            said = any(k.arg == "encoding" for k in node.keywords)
            if node.func.attr in ("read_text", "write_text") and not said and not ours:
                lacking.append(f"{path.name}:{node.lineno}")
    assert not lacking


@pytest.mark.parametrize("limit", ["-t 4", "-n 200", "-u 500", "-v 6000000", "-f 100000"])
def test_lower_hard_limits_are_respected(limit: str, tmp_path: Path) -> None:
    task = {"task_id": "t/0", "prompt": "def f(a):\n", "entry_point": "f", "canonical_solution": "    return a\n"}
    task["test"] = "def check(candidate):\n    assert candidate(1) == 1\n"
    (tmp_path / "p.jsonl").write_text(json.dumps(task), encoding="utf-8")
    (tmp_path / "s.jsonl").write_text(json.dumps({"task_id": "t/0", "completion": "    return a\n"}), encoding="utf-8")
    line = f"ulimit {limit}; exec {sys.executable} -m rune score --no-cache --workers 1 --benchmark humaneval s.jsonl"
    done = subprocess.run(
        ["bash", "-c", f"{line} --problems p.jsonl"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "pass@1: 1.0000" in done.stdout, done.stderr


def _one_task(folder: Path) -> list[str]:
    """A problem file and a sample in `folder`; the command that scores them, without the program's name."""
    task = {"task_id": "t/0", "prompt": "def f(a):\n", "entry_point": "f", "canonical_solution": "    return a\n"}
    task["test"] = "def check(candidate):\n    assert candidate(1) == 1\n"
    (folder / "p.jsonl").write_text(json.dumps(task), encoding="utf-8")
    (folder / "s.jsonl").write_text(json.dumps({"task_id": "t/0", "completion": "    return a\n"}), encoding="utf-8")
    return ["score", "--benchmark", "humaneval", "s.jsonl", "--problems", "p.jsonl"]


def _run(*command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k != "RUNE_CACHE"}
    return subprocess.run(
        [sys.executable, "-m", "rune", *command],
        cwd=folder,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_user_without_a_writable_home_scores_with_a_word_and_is_told_what_to_set(tmp_path: Path) -> None:
    done = _run(*_one_task(tmp_path), folder=tmp_path, HOME="/proc/none")
    assert done.returncode == 0 and "pass@1: 1.0000" in done.stdout, done.stderr
    assert "warning: judged without the verdict cache: /proc/none/" in done.stderr and "RUNE_CACHE" in done.stderr
    done = _run("models", "path", "smollm2-135m-instruct", folder=tmp_path, HOME="/proc/none")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    assert "set RUNE_CACHE to a folder that can be written" in done.stderr
    for verb in (["show", str(RUN)], ["gate", "--help"], ["models", "list"]):
        assert _run(*verb, folder=tmp_path, HOME="/proc/none").returncode == 0


def test_a_folder_with_spaces_is_a_folder(tmp_path: Path) -> None:
    """The package itself, the working folder, the cache and every file lie under names with spaces."""
    place = tmp_path / "my own  checkout"
    shutil.copytree(SOURCE, place / "src" / "rune", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(SOURCE.parents[1] / "configs", place / "configs")
    where = {"PYTHONPATH": str(place / "src"), "RUNE_CACHE": str(place / "a cache")}
    done = _run(*_one_task(place), folder=place, **where)
    assert done.returncode == 0 and "pass@1: 1.0000" in done.stdout, done.stderr
    mini = Path(__file__).parents[1] / "corpus" / "real" / "mini"
    shutil.copytree(mini, place / "what agents wrote")
    done = _run("collect", "--import", "what agents wrote", "-o", "my corpus.jsonl", folder=place, **where)
    assert done.returncode == 0 and (place / "my corpus.jsonl").is_file(), done.stderr
    done = _run("preregister", "configs/crossfit-0.5b.toml", folder=place, **where)
    assert done.returncode == 0 and len(done.stdout.strip()) > 30, done.stderr
    shutil.copytree(RUN, place / "a run", ignore=shutil.ignore_patterns("checkpoints", "report.html"))
    done = _run("show", "a run", folder=place, **where)
    assert done.returncode == 0 and "Gate FAILED" in done.stdout, done.stderr


MINI = Path(__file__).parents[1] / "corpus" / "real" / "mini" / "v1_sed_twice.traj.json"


def _shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    line = line.replace("rune ", f"{sys.executable} -m rune ").replace("MINI", str(MINI))
    return subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    "line",
    [
        "cat MINI | rune collect -o o.jsonl --import /dev/stdin",
        "gzip -c MINI | rune collect -o o.jsonl --import /dev/stdin",
        "rune collect -o o.jsonl --import <(cat MINI)",
        "mkfifo f; cat MINI > f & rune collect -o o.jsonl --import f",
        "rune collect -o o.jsonl --import /dev/fd/3 3< MINI",
        "rune collect -o /dev/stdout --import MINI > o.jsonl",
        "rune collect -o >(cat > o.jsonl) --import MINI; sleep 1",
    ],
)
def test_trajectories_come_and_go_through_a_pipe(line: str, tmp_path: Path) -> None:
    done = _shell(line, tmp_path)
    assert done.returncode == 0, done.stderr
    (first, *rest) = (tmp_path / "o.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(first)["prompt"] == "half(3) should be 1.5"
    assert not any(line.startswith("{") for line in rest)


@pytest.mark.parametrize(
    "line",
    [
        "cat s.jsonl | rune score --benchmark humaneval /dev/stdin --problems p.jsonl",
        "gzip -c s.jsonl | rune score --benchmark humaneval /dev/stdin --problems p.jsonl",
        "cat p.jsonl | rune score --benchmark humaneval s.jsonl --problems /dev/stdin",
        "rune score --benchmark humaneval s.jsonl --problems <(gzip -c p.jsonl)",
        "rune score --benchmark humaneval <(cat s.jsonl) --problems <(cat p.jsonl)",
    ],
)
def test_samples_and_problems_come_through_a_pipe(line: str, tmp_path: Path) -> None:
    _one_task(tmp_path)
    done = _shell(line, tmp_path)
    assert "pass@1: 1.0000" in done.stdout, done.stderr
    assert len(list(tmp_path.glob("*_results.jsonl"))) == 1


def test_what_goes_to_a_device_leaves_it_a_device(tmp_path: Path) -> None:
    """A file in the place of /dev/null or /dev/stdout would break the machine for every process."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        store.write_atomic(pipe, "text")
        assert os.read(reader, 9) == b"text" and pipe.is_fifo()
    finally:
        os.close(reader)
    store.write_atomic(Path("/dev/null"), "text")
    assert Path("/dev/null").is_char_device()
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("-t 100", "ulimit -t  100 seconds"),
        ("-n 200", "ulimit -n  200 open files"),
        ("-v 4000000", "ulimit -v  4000000 KiB"),
        ("-u 200", "ulimit -u  200 processes"),
        ("-t 100000", ""),
    ],
)
def test_doctor_names_the_limits_that_are_low(limit: str, words: str) -> None:
    """The rows in a process of that limit: torch would not start under some of them."""
    program = "from rune.cli import doctor; print(*('  '.join(row) for row in doctor._limits()), sep='\\n')"
    line = f'ulimit {limit}; exec {sys.executable} -c "{program}"'
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert words in done.stdout if words else f"ulimit {limit.split()[0]}" not in done.stdout


@pytest.mark.parametrize("manifest", ["{}", "[]", "null", "{", '{"schema": 99}', '{"schema_version": 1}', "\xff"])
def test_foreign_folders_do_not_stop_show(manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(RUN, tmp_path / "good", ignore=shutil.ignore_patterns("*.safetensors", "samples.jsonl"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text(manifest, encoding="latin-1")
    assert cli.main(["show", str(tmp_path)]) == 0
    out, error = capsys.readouterr()
    assert "good" in out and "other: no run of this rune" in error


@pytest.mark.parametrize("verb", cli.VERBS)
def test_each_verb_shows_an_example_and_its_exit_codes(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    for args in ([verb, "--help"], ["help", verb]):
        with pytest.raises(SystemExit) as ended:
            cli.main(args)
        said = capsys.readouterr().out
        assert ended.value.code == 0 and f"Example: rune {verb}" in said and "Exit codes: 0 done" in said


def test_score_says_that_no_workers_are_all_processors(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["score", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "programs at a time, 0 = one for each processor that may be used; default: the config's, else 0" in said
    assert Limits(workers=0).processes == Limits().processes == len(os.sched_getaffinity(0))


def test_a_run_is_not_compared_with_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", str(RUN), str(RUN / ".." / RUN.name)]) == 2
    assert "named twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("qwen2.5-coder-0.5b-instruct", ("Qwen/Qwen2.5-Coder-0.5B-Instruct", "")),
        ("qwen2.5-coder-0.5b-instruct@abc", ("Qwen/Qwen2.5-Coder-0.5B-Instruct", "abc")),
        ("org/name", ("org/name", "")),
        ("org/name@main", ("org/name", "main")),
        (str(SOURCE), (str(SOURCE), "")),
    ],
)
def test_an_adapter_names_its_base_as_the_hub_does(name: str, found: tuple[str, str]) -> None:
    assert registry.hub_name(name) == found
