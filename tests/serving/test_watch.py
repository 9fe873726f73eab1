"""`rune watch`: sessions are taken once, when they have ended or are still, whatever else lies in the folder."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rune.adapters.registry.records import Status, place
from rune.adapters.registry.registry import Registry
from rune.cli.main import main
from rune.errors import ConfigError
from rune.serving import library
from rune.serving.keys import OWNER
from rune.serving.memory import AdapterMemory
from rune.serving.watching import Here, Taken, Watcher, ended
from rune.types import ModelRef
from tests.corpus.samples import SAMPLES
from tests.serving.world import PATIENCE, configured, trajectory

REAL = Path(__file__).parents[1] / "corpus" / "real"
SHOP = place("shop")
LONG_AGO = 1_000_000_000  # Unix seconds


@pytest.fixture
def memory(tiny_model: ModelRef, hypernet: Path, tmp_path: Path) -> AdapterMemory:
    return library.memory_of(configured(tiny_model, tmp_path, hypernet))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "sessions"
    made.mkdir()
    return made


@pytest.fixture
def watcher(memory: AdapterMemory, folder: Path) -> Iterator[Watcher]:
    made = watching(memory, folder)
    yield made
    made.close()


def watching(memory: AdapterMemory, folder: Path, *, alias: str = "", **how: Any) -> Watcher:
    return Watcher(folder, Here(memory, SHOP, alias=alias), **how)


def put(path: Path, data: bytes, *, age: float = 0) -> Path:
    """A session's file; `age`: seconds since its last change."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    changed = time.time() - age
    os.utime(path, (changed, changed))
    return path


def names(taken: list[Taken]) -> list[tuple[str, bool]]:
    """(file, whether something was learned of it)"""
    return [(one.path.name, one.made is not None) for one in taken]


def lines(name: str) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in SAMPLES[name][0].record).encode()


def active(memory: AdapterMemory) -> int:
    return memory.count(OWNER, project="shop")


def test_a_session_is_taken_when_it_is_still_and_only_once(watcher: Watcher, memory: AdapterMemory) -> None:
    path = put(watcher.folder / "deep" / "er" / "s.jsonl", trajectory(1), age=299)
    put(watcher.folder / "notes.txt", b"no session", age=LONG_AGO)
    assert list(watcher.poll()) == []
    put(path, trajectory(1), age=301)
    (taken,) = watcher.poll()
    assert taken.path == path and taken.made is not None and taken.made.trajectories == ("t1",)
    assert str(memory.named(taken.made.id, OWNER).place) == "shop"
    assert list(watcher.poll()) == [] and active(memory) == 1
    put(path, trajectory(1), age=400)  # touched, and the same
    assert list(watcher.poll()) == []


def test_a_clock_that_was_set_back_does_not_keep_a_session_waiting_for_ever(
    memory: AdapterMemory, folder: Path
) -> None:
    watcher = watching(memory, folder, still_seconds=0.05)
    put(folder / "s.jsonl", trajectory(1), age=-10_000)
    assert list(watcher.poll()) == []
    time.sleep(0.06)
    assert names(list(watcher.poll())) == [("s.jsonl", True)]
    watcher.close()


@pytest.mark.parametrize("path", sorted(REAL.glob("c*/*.jsonl.gz")) + sorted(REAL.glob("mini/*.json")), ids=str)
def test_real_sessions_are_known_to_have_ended_and_their_beginnings_are_not(path: Path, tmp_path: Path) -> None:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    copy = tmp_path / path.name.removesuffix(".gz")
    copy.write_bytes(data)
    assert ended(copy)
    beginnings = data.splitlines(keepends=True)
    for number in range(len(beginnings) - 1):
        copy.write_bytes(b"".join(beginnings[:number]))
        assert not ended(copy)
    for cut in random.Random(1).sample(range(len(data) - 2), 20):
        copy.write_bytes(data[:cut])
        assert not ended(copy)


def test_what_has_ended_is_taken_at_once(watcher: Watcher) -> None:
    for source in sorted(REAL.glob("c*/*.gz")):
        put(watcher.folder / source.parent.name / source.stem, gzip.decompress(source.read_bytes()))
    put(watcher.folder / "goes-on.jsonl", lines("claude_code"))
    taken = list(watcher.poll())
    assert len(taken) == 6 and all(one.made is not None for one in taken)
    assert "goes-on.jsonl" not in dict(names(taken))


def test_a_session_that_goes_on_is_learned_again_and_its_shorter_self_is_archived(
    watcher: Watcher, memory: AdapterMemory
) -> None:
    path = put(watcher.folder / "s.jsonl", trajectory(1), age=400)
    (first,) = watcher.poll()
    put(path, trajectory(1) + trajectory(2), age=400)
    (second,) = watcher.poll()
    assert first.made and second.made and second.made.trajectories == ("t1", "t2")
    assert memory.registry.get(first.made.id).status is Status.ARCHIVED
    assert active(memory) == 1


def test_the_alias_and_the_place_serve_the_newest_session(memory: AdapterMemory, folder: Path) -> None:
    watcher = watching(memory, folder, alias="latest")
    put(folder / "b.jsonl", trajectory(1), age=500)
    put(folder / "a.jsonl", trajectory(2), age=400)
    older, newer = watcher.poll()
    assert older.path.name == "b.jsonl" and newer.made is not None
    assert memory.named("shop/latest", OWNER).id == newer.made.id
    assert memory.chosen(SHOP, OWNER).id == newer.made.id
    watcher.close()


def test_a_bad_file_is_one_line_and_the_others_are_taken(watcher: Watcher, memory: AdapterMemory) -> None:
    for number, data in enumerate([b"", b"\x00\xff", b"{", b'{"steps": 1}', trajectory(5)[:-40], b"[" * 10_000]):
        put(watcher.folder / f"bad{number}.jsonl", data, age=500)
    put(watcher.folder / "bad6.jsonl.gz", b"\x1f\x8b\x00")
    put(watcher.folder / "talk.jsonl", b'{"role": "user", "content": "hello"}\n', age=500)
    put(watcher.folder / "good.jsonl", trajectory(6), age=400)
    (watcher.folder / "gone.jsonl").symlink_to("nowhere")
    (watcher.folder / "folder.jsonl").mkdir()
    taken = list(watcher.poll())
    assert [one.path.name for one in taken if one.made] == ["good.jsonl"] and len(taken) == 9
    for one in taken:
        assert one.made or (one.why and "\n" not in one.why and len(one.why) < 600), one
    assert list(watcher.poll()) == [] and active(memory) == 1


def test_a_copy_of_a_session_is_not_learned_again(watcher: Watcher, memory: AdapterMemory) -> None:
    path = put(watcher.folder / "s.jsonl", trajectory(1), age=400)
    assert len(list(watcher.poll())) == 1
    shutil.copy2(path, watcher.folder / "copy.jsonl")
    assert list(watcher.poll()) == []
    put(path, trajectory(3), age=400)  # the copy still is what the first adapter was made from
    assert names(list(watcher.poll())) == [("s.jsonl", True)] and active(memory) == 2


def test_started_again_it_goes_on_where_it_was(memory: AdapterMemory, folder: Path) -> None:
    put(folder / "s.jsonl", trajectory(1), age=400)
    put(folder / "bad.jsonl", b"{", age=500)
    first = watching(memory, folder)
    with pytest.raises(ConfigError, match="another `rune watch` looks after this folder already"):
        watching(memory, folder)
    assert names(list(first.poll())) == [("bad.jsonl", False), ("s.jsonl", True)]
    first.close()
    put(folder / "new.jsonl", trajectory(2), age=400)
    again = watching(memory, folder)
    assert names(list(again.poll())) == [("new.jsonl", True)]
    memory.archive(memory.chosen(SHOP, OWNER))
    again.close()
    third = watching(memory, folder)
    assert list(third.poll()) == [] and active(memory) == 1  # what somebody took out of service stays out
    third.close()


def test_the_memory_may_lie_in_the_folder_that_is_watched(memory: AdapterMemory) -> None:
    inside = memory.registry.folder.parent
    put(inside / "s.jsonl", trajectory(1), age=400)
    watcher = watching(memory, inside, still_seconds=0)
    taken = names(list(watcher.poll()))
    assert ("s.jsonl", True) in taken
    assert [one for one in watcher.poll() if one.path.is_relative_to(memory.registry.folder)] == []
    watcher.close()


def test_by_the_command_line(
    tiny_model: ModelRef,
    hypernet: Path,
    tmp_path: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put(folder / "s.jsonl", trajectory(1), age=400)
    put(folder / "bad.jsonl", b"{", age=400)
    where = ["--model", tiny_model.path, "--checkpoint", str(hypernet), "--registry", str(tmp_path / "registry")]
    command = ["watch", str(folder), "--project", "shop", "--alias", "latest", "--once", *where]
    assert main(command) == 0
    said = capsys.readouterr()
    (line,) = said.out.splitlines()
    entry = Registry(tmp_path / "registry").resolve("shop/latest")
    assert line == f"{entry.id}  {folder / 's.jsonl'}"
    assert [line for line in said.err.splitlines() if line.startswith(f"warning: {folder / 'bad.jsonl'}: ")]
    assert main(command) == 0 and capsys.readouterr().out == ""
    for bad in (["watch", str(tmp_path / "none"), *where], [*command, "--every", "0"], [*command, "--alias", "a/b"]):
        assert main(bad) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main([*command[:-4], "--checkpoint", "", *command[-2:]]) == 2
    assert "no hypernetwork" in capsys.readouterr().err


@pytest.mark.check
def test_killed_again_and_again_it_learns_every_session_once(
    tiny_model: ModelRef, hypernet: Path, tmp_path: Path, folder: Path
) -> None:
    rng = random.Random(2)
    for number in range(24):
        put(folder / f"s{number}.jsonl", trajectory(number), age=1000 - number)
    command = [sys.executable, "-m", "rune", "watch", str(folder), "--project", "shop", "--every", "0.1"]
    command += ["--model", tiny_model.path, "--checkpoint", str(hypernet), "--registry", str(tmp_path / "registry")]
    said: list[str] = []
    for _ in range(3):
        process = subprocess.Popen([*command, "--once"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        for _ in range(rng.randint(2, 6)):
            said += [part.decode() for part in process.stdout.readline().split()[:1]]  # nothing: it has ended
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        said += [line.split()[0].decode() for line in process.stdout.read().splitlines()]
        process.wait(PATIENCE)
    assert len(said) == len(set(said))
    done = subprocess.run([*command, "--once"], capture_output=True, text=True, check=True, timeout=10 * PATIENCE)
    said += [line.split()[0] for line in done.stdout.splitlines()]
    registry = Registry(tmp_path / "registry")
    assert registry.verify() == []
    entries = {digest for digest in said if registry.get(digest)}
    memory = library.memory_of(configured(tiny_model, tmp_path, hypernet))
    assert memory.count(OWNER) == 24 and len(entries) >= 24 - 3  # one a kill may be registered and not said
    again = subprocess.run([*command, "--once"], capture_output=True, text=True, check=True, timeout=10 * PATIENCE)
    assert again.stdout == ""
