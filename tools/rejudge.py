"""Judge every committed sample again with the scorer of today, or doubt every committed pass by another path.

    python tools/rejudge.py              → results/rejudged.json: what became of every verdict under results/
    python tools/rejudge.py --audit all  → results/audited.json: the second opinion (`rune score --audit`) on all passes

Reads run folders, the archives of cross-fitted runs (unpacked to a temporary folder) and the families studies; where
those have no problems.jsonl.gz, the generator makes their tasks again from the settings. Identical programs are judged
once over all runs. Sealed records are left alone: what changed is listed with before and after. Verdicts found on the
way are kept under --cache, so that an interrupted run goes on; another scorer needs another folder.
Exit codes: 0 nothing changed, no pass unexplained · 1 something did, or one is · 2 bad input.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import gzip
import json
import platform
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from rune import config, console
from rune.benchmarks import families
from rune.benchmarks.scorers import execution as by_execution
from rune.benchmarks.scorers import judging
from rune.errors import DataError, RuneError
from rune.runs import provenance, store
from rune.sandbox import fork
from rune.sandbox.judging.verdict_cache import SCORER
from rune.scoring import audit as _audit
from rune.stages import score
from rune.types import Outcome, Problem, Program, Sample, Scorer, Verdict

SETTINGS = ("seed", "families", "held_out", "tasks")  # of a families study, as its generator takes them


class Source(NamedTuple):
    """The samples of one run, or of one fold of a cross-fitted run."""

    run: str  # its folder under results/
    place: str  # the fold; "" for a plain run
    problems: dict[str, Problem]
    samples: list[Sample]
    verdicts: list[Verdict]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders; default: all under results/ that hold samples")
    parser.add_argument("--audit", default="", metavar="N|all", help="the second opinion on N passes of each run")
    parser.add_argument("--seed", type=int, default=0, help="which passes, and random numbers; default: 0")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cache", type=Path, help="keeps verdicts over calls; default: none are kept")
    parser.add_argument("--out", type=Path, help="default: results/rejudged.json or results/audited.json")
    args = parser.parse_args()
    try:
        folders = args.runs or sorted(p for p in (ROOT / "results").iterdir() if holds_samples(p))
        found = [source for folder in folders for source in read(folder)]
        limits = score.Config(settings={"workers": args.workers}, cache=args.cache is not None)
        if args.audit:
            out = args.out or ROOT / "results" / "audited.json"
            return audit(found, _audit.parse(args.audit), args.seed, limits, out)
        out = args.out or ROOT / "results" / "rejudged.json"
        return rejudge(found, limits, args.cache or Path(), out)
    except RuneError as error:
        console.note(f"rejudge: {error}")
        return 2


# --------------------------------------------------------------------------- what was committed


def holds_samples(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("samples.jsonl", "samples.jsonl.gz", "run.tar.xz"))


def read(folder: Path) -> Iterator[Source]:
    """Every source of one folder. Raises DataError if it holds none."""
    if (folder / "run.tar.xz").exists():
        with tempfile.TemporaryDirectory(prefix="rune-rejudge-") as scratch:
            with tarfile.open(folder / "run.tar.xz") as archive:
                archive.extractall(scratch, filter="data")
            places = sorted(path.parent for path in Path(scratch).rglob("samples.jsonl"))
            if not places:
                raise DataError(f"{folder / 'run.tar.xz'}: no folds with samples in it")
            for place in places:
                name = "/".join(place.relative_to(scratch).parts[1:])
                yield Source(folder.name, name, problems(place), *records(place))
    elif (folder / "samples.jsonl.gz").exists():
        yield Source(folder.name, "", study(folder), *records(folder))
    elif (folder / "samples.jsonl").exists():
        yield Source(folder.name, "", problems(folder), *records(folder))
    else:
        raise DataError(f"{folder}: no samples.jsonl, samples.jsonl.gz or run.tar.xz")


def problems(folder: Path) -> dict[str, Problem]:
    return {p.task_id: p for p in lines(folder, "problems.jsonl", Problem)}


def study(folder: Path) -> dict[str, Problem]:
    """The tasks of a families study: as committed with it, or as the generator makes them of its settings."""
    if (folder / "problems.jsonl.gz").exists():
        return problems(folder)
    raw = store.read_json(folder / "settings.json")
    if "families" not in raw:
        raw = store.read_json(folder / "manifest.json")["settings"]
    asked = families.Config(**{name: raw[name] for name in SETTINGS})
    return {p.task_id: p for p in families.generate(asked)}


def records(folder: Path) -> tuple[list[Sample], list[Verdict]]:
    return lines(folder, "samples.jsonl", Sample), lines(folder, "verdicts.jsonl", Verdict)


def lines(folder: Path, name: str, cls: type) -> list[Any]:
    path = folder / f"{name}.gz"
    if not path.exists():
        return store.read_jsonl(folder / name, cls)
    text = gzip.decompress(path.read_bytes()).decode()
    return [store.decode(cls, json.loads(line), where=str(path)) for line in text.splitlines()]


# --------------------------------------------------------------------------- judged again


def rejudge(sources: Sequence[Source], limits: score.Config, cache: Path, out: Path) -> int:
    """Every sample's outcome today beside the committed one."""
    numbers: dict[tuple[Program, Scorer], int] = {}
    items: list[judging.Item] = []
    tasks: dict[tuple[Program, Scorer], Problem] = {}
    for source in sources:
        for sample in source.samples:
            problem = source.problems[sample.task_id]
            program, scorer = known = identity(sample, problem)
            if known not in numbers:
                numbers[known] = len(items)
                items.append(judging.Item(str(len(items)), problem, sample.program))
            tasks.setdefault((dataclasses.replace(program, code=""), scorer), problem)
    sandbox = score.build_sandbox(limits, cache=cache)
    today: dict[int, Any] = {}
    try:
        score.self_check(sandbox, list(tasks.values()))
        with console.Progress("judge again", len(items), unit="program") as bar:
            for execution in judging.judge(sandbox, items):
                today[int(execution.key)] = execution
                bar.advance()
    finally:
        sandbox.close()
    runs: dict[str, Any] = {}
    changed: list[dict[str, Any]] = []
    for source in sources:
        entry = runs.setdefault(source.run, {"samples": 0, "passed_before": 0, "passed_now": 0, "changed": 0})
        before = {(v.condition, v.task_id, v.draw): v for v in source.verdicts}
        for sample in source.samples:
            problem = source.problems[sample.task_id]
            now = today[numbers[identity(sample, problem)]]
            was = before[sample.condition, sample.task_id, sample.draw]
            entry["samples"] += 1
            entry["passed_before"] += was.outcome is Outcome.PASSED
            entry["passed_now"] += now.outcome is Outcome.PASSED
            if now.outcome is not was.outcome:
                entry["changed"] += 1
                changed.append(
                    {
                        "run": source.run,
                        "place": source.place,
                        "arm": sample.condition,
                        "task": sample.task_id,
                        "draw": sample.draw,
                        "before": was.outcome,
                        "before_error": f"{was.label}: {was.error}"[:200] if was.label else "",
                        "now": now.outcome,
                        "now_error": f"{now.label}: {now.error}"[:200] if now.label else "",
                    }
                )
    kinds = collections.Counter(f"{c['before']} → {c['now']}" for c in changed)
    result = {
        "samples": sum(entry["samples"] for entry in runs.values()),
        "programs": len(items),
        "changed": len(changed),
        "changes": dict(kinds.most_common()),
        "runs": runs,
        **made(),
        "changed_samples": changed,
    }
    store.write_json(out, result)
    console.out(f"{result['samples']} verdicts ({len(items)} programs) judged again, {len(changed)} changed → {out}")
    return 1 if changed else 0


def identity(sample: Sample, problem: Problem) -> tuple[Program, Scorer]:
    """What makes two samples one program: text, test and how it is judged."""
    return by_execution.program(sample.task_id, sample.program, problem), problem.scorer


def audit(sources: Sequence[Source], number: int | None, seed: int, limits: score.Config, out: Path) -> int:
    """The second opinion on `number` passes of each run."""
    passes: dict[str, list[_audit.Pass]] = {}
    for source in sources:
        where = Path(source.run) / "verdicts.jsonl"
        passes.setdefault(source.run, []).extend(
            _audit.of_records(source.samples, source.verdicts, source.problems, where=where, place=source.place)
        )
    chosen = [
        one._replace(name=f"{run} {one.name}") for run in passes for one in _audit.choose(passes[run], number, seed)
    ]
    report = _audit.run(chosen, None, seed=seed, config=limits)
    counts = {run: len(ones) for run, ones in passes.items()}
    store.write_json(out, {"passes_by_run": counts, **config.plain(report), **made()})
    return _audit.tell(report)


def made() -> dict[str, Any]:
    """With what, and when."""
    return {
        "scorer": SCORER,
        "by": provenance.worker(),
        "limits": config.plain(fork.Config()),
        "machine": f"{platform.machine()} {platform.system()} Python {platform.python_version()}",
        "date": store.now(),
    }


if __name__ == "__main__":
    sys.exit(main())
