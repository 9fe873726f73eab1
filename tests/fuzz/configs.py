"""Damaged configs and odd `--set` values, given to `run --dry-run`, `power`, `preregister`; damaged run folders, given
to `gate`, `show` and `compare`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

from rune import config
from rune.study import config as study
from tests.fuzz.damage import ODD, damage, places, refused, run, spoil

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))
RUN = ROOT / "results" / "phase1-0.5b"
FILES = ("config.toml", "manifest.json", "preregistration.json", "seals.json", "decision.json", "leakage.json")
FILES += ("problems.jsonl", "verdicts.jsonl", "samples.jsonl", "treatments.jsonl", "trajectories.jsonl")


@functools.cache
def _raw(path: Path) -> dict[str, Any]:
    """A config with what it extends."""
    return config.parse(config.dump_toml(study.load(path).settings), where=str(path))


def _toml(value: Any) -> str:
    """What is no TOML any more is written as JSON: that file must be refused."""
    try:
        return config.dump_toml(value)
    except (TypeError, ValueError, AttributeError, RecursionError):
        return json.dumps(value)


def _other_number(raw: Any, rng: random.Random) -> None:
    """One number in it becomes another of its kind: the type fits, the size may not."""
    numbers = [(c, k) for c, k in places(raw) if isinstance(c[k], (int, float)) and not isinstance(c[k], bool)]
    container, key = rng.choice(numbers)
    old = container[key]
    if isinstance(old, int):
        container[key] = rng.choice((0, 1, -1, 2, 3, old + 1, 2 * old, 10**3, 10**6, 2**31, 2**63, 10**30))
    else:
        container[key] = rng.choice((0.0, 1.0, -1.0, 0.5, 2 * old, 1e-9, 1e9, 1e308, math.nan, math.inf))


def make(number: int) -> tuple[str, bytes, list[str]]:
    """(verb, config, values of --set) of one input."""
    rng = random.Random(number)
    raw: Any = _raw(rng.choice(CONFIGS))
    fields = sorted({str(key) for _, key in places(raw) if isinstance(key, str)})
    verb = rng.choice(("power", "preregister") * 4 + ("dry-run",))
    changes = []
    if rng.random() < 0.3:
        section = rng.choice([k for k, v in raw.items() if isinstance(v, dict)])
        key = rng.choice([*raw[section], rng.choice(fields), "", "a.b.c"])
        value = rng.choice([json.dumps(rng.choice(ODD)), str(rng.choice(ODD)), "nan", "-1", "1e400", "[[["])
        changes = [f"{section}.{key}={value}" if rng.random() < 0.95 else value]
        return verb, _toml(raw).encode("utf-8", "surrogatepass"), changes
    if rng.random() < 0.5:
        _other_number(raw := copy.deepcopy(raw), rng)
        return verb, _toml(raw).encode(), []
    text = _toml(damage(raw, rng, fields))
    return verb, spoil(text.encode("utf-8", "surrogatepass"), rng), []


def judge(number: int, folder: Path) -> str:
    """What became of one config: "accepted" or "refused". Raises AssertionError if it is neither."""
    verb, data, changes = make(number)
    path = folder / "c.toml"
    path.write_bytes(data)
    sets = [part for change in changes for part in ("--set", change)]
    command = {
        "power": ["power", str(path), "--simulations", "1"],
        "preregister": ["preregister", str(path)],
        "dry-run": ["run", "--dry-run", str(path)],
    }[verb]
    with contextlib.chdir(folder):
        code, out, err = run(*command, *sets)
    try:
        assert [p.name for p in folder.iterdir()] == [path.name], list(folder.iterdir())
        if code == 2:
            refused(code, out if verb != "dry-run" else "", err)
            return "refused"
        assert code == 0, err
        settings = study.load(path, changes).settings
        # What a run folder would keep says the same again, and every number in it is one.
        assert study.build(study.raw_of(settings)) == settings
        for container, key in places(config.plain(settings)):
            value = container[key]
            assert not isinstance(value, float) or math.isfinite(value), (key, value)
        return "accepted"
    finally:
        path.unlink()


def damaged_run(number: int, folder: Path) -> str:
    """A committed run with one file damaged: decided as before, or refused; never otherwise."""
    rng = random.Random(number)
    target = folder / "run"
    target.mkdir()
    for name in FILES:
        shutil.copy(RUN / name, target / name)
    (target / "checkpoints").symlink_to(RUN / "checkpoints")
    name = rng.choice(FILES)
    data = (RUN / name).read_bytes()
    if name.endswith(".jsonl"):
        lines = data.split(b"\n")
        at = rng.randrange(len(lines))
        with contextlib.suppress(ValueError):
            lines[at] = json.dumps(damage(json.loads(lines[at]), rng)).encode("utf-8", "surrogatepass")
        data = b"\n".join(lines)
    elif name.endswith(".json"):
        data = json.dumps(damage(json.loads(data), rng)).encode("utf-8", "surrogatepass")
    else:
        raw = config.parse(data.decode(), where=name)
        data = _toml(damage(raw, rng)).encode("utf-8", "surrogatepass")
    (target / name).write_bytes(spoil(data, rng))
    changed = (target / name).read_bytes() != (RUN / name).read_bytes()
    verb = rng.choice(("gate", "gate", "show", "compare"))
    command = {"gate": ["gate"], "show": ["show"], "compare": ["compare", str(RUN)]}[verb]
    try:
        code, out, err = run(*command, str(target))
        if code == 2:
            refused(code, "" if verb == "show" else out, err)
            return "refused"
        assert code == (10 if verb == "gate" else 0), (verb, name, code, err)
        if verb == "gate":
            assert "Gate FAILED — reassessing" in out, out
        return "decided as before" if verb == "gate" else "shown" if changed else "unchanged"
    finally:
        shutil.rmtree(target)
