"""Passes doubted: each judged again by another path, every disagreement named, and explained if an experiment can.

The other path (`sandbox/judging/second_opinion.py`) runs program and test together in a process of their own, as
the original harnesses do. There a pass can honestly be lost: program and test share names and objects, and no value is
made plain on its way. For a pass that is lost each of these is taken away in turn; the one that brings it back is the
explanation.
What none of them brings back is a pass that nobody should believe.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import hashlib
import platform
import random
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rune import config as configs
from rune import console, plugins
from rune.benchmarks.scorers import execution_with_and_without, judging
from rune.benchmarks.scorers.judging import Check
from rune.errors import ConfigError, DataError
from rune.runs import provenance, store
from rune.sandbox.judging import one_process
from rune.sandbox.judging.second_opinion import Opinion, SecondOpinion
from rune.stages import score
from rune.stages.score import VERDICTS
from rune.types import Outcome, Problem, Program, Sample, Verdict

FILE = "audit.json"
DISAGREES = 1  # the exit code
EXPLANATIONS = {
    one_process.NAMES: "program and test define the same name, and here they share a namespace",
    one_process.COPIES: "the program changes its arguments or returns one object twice, and the test looks at it again",
    one_process.PLAIN: "the program returns numpy's values or subclasses of plain types; the judge reads both as plain",
}
TOGETHER = "several of: shared names, shared objects, values that are not plain"
CHANCE = "random numbers: with other seeds it passes"
SEEDS = 4  # tried, besides the first


class Pass(NamedTuple):
    """A sample that passed."""

    name: str  # arm and draw; before them the cell, or alone the line of a samples file
    code: str
    problem: Problem


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """A program whose pass the other path does not confirm."""

    task_id: str
    samples: tuple[str, ...]  # the names of every pass it stands for
    first: Outcome
    second: Outcome
    why: str  # what the other path saw
    explanation: str  # "" if no experiment explains it
    program_sha256: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What audit.json holds."""

    passes: int  # that there are
    audited: int
    programs: int  # distinct answers among the audited
    agree: int  # passes, not programs, here and below
    explained: dict[str, int]
    unexplained: int
    seed: int
    cpu_seconds: float  # limit of program and test together
    machine: str
    by: dict[str, str]
    disagreements: tuple[Disagreement, ...]


def build(config: score.Config) -> SecondOpinion:
    """The second opinion behind the walls of the backend that judged. Raises ConfigError, SandboxError."""
    module = plugins.load("sandbox", config.backend)
    if not hasattr(module, "second"):
        raise ConfigError(f"sandbox backend '{config.backend}' gives no second opinion; use --backend fork")
    opinion: SecondOpinion = module.second(configs.build(module.Config, config.settings, where="score.settings"))
    return opinion


def parse(text: str) -> int | None:
    """`--audit N`; None for "all". Raises ConfigError."""
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--audit {text!r}: expected how many passes, for example --audit 100, or --audit all")
    return int(text)


def of_run(folder: Path) -> list[Pass]:
    """The passes of a run, or of every cell of an experiment, one of version 1 too. Raises DataError."""
    places = [folder, *sorted(folder.glob("cells/*")), *sorted(folder.glob("seed-*/fold-*/t*"))]
    found: list[Pass] = []
    for place in places:
        if not (place / VERDICTS).exists():
            continue
        problems = {p.task_id: p for p in store.read_jsonl(place / "problems.jsonl", Problem)}
        label = place.relative_to(folder).as_posix().removeprefix(".").removeprefix("cells/")
        found += of_records(
            store.read_jsonl(place / "samples.jsonl", Sample),
            store.read_jsonl(place / VERDICTS, Verdict),
            problems,
            where=place / VERDICTS,
            place=label,
        )
    if not found:
        raise DataError(f"{folder}: no passes in {VERDICTS}; run `rune score {folder}` first")
    return found


def of_records(
    samples: Sequence[Sample],
    verdicts: Sequence[Verdict],
    problems: Mapping[str, Problem],
    *,
    where: Path,
    place: str = "",
) -> list[Pass]:
    """The samples that passed. Raises DataError for a verdict without a sample or a task, naming `where`."""
    drawn = {(s.condition, s.task_id, s.draw): s.program for s in samples}
    found = []
    for verdict in verdicts:
        key = (verdict.condition, verdict.task_id, verdict.draw)
        if key not in drawn or verdict.task_id not in problems:
            raise DataError(
                f"{where}: a verdict on {verdict.task_id} {verdict.condition} draw {verdict.draw} without "
                f"its {'task' if key in drawn else 'sample'}"
            )
        if verdict.outcome is Outcome.PASSED:
            found.append(Pass(f"{place} {key[0]} draw {key[2]}".strip(), drawn[key], problems[verdict.task_id]))
    return found


def choose(passes: Sequence[Pass], number: int | None, seed: int) -> list[Pass]:
    """`number` of them, without replacement, by the seed alone; all if there are no more."""
    ordered = sorted(passes, key=lambda p: (p.name, p.problem.task_id))
    if number is None or number >= len(ordered):
        return ordered
    return random.Random(configs.derive_seed(seed, "audit")).sample(ordered, number)


def run(passes: Sequence[Pass], number: int | None, *, seed: int, config: score.Config) -> Report:
    """Judge `number` of the passes by the other path, identical programs once.

    Nothing is kept of an interrupted audit. Raises SandboxError, or DataError for answers that no other path judges.
    """
    chosen = choose(passes, number, seed)
    groups: dict[tuple[Check, ...], list[Pass]] = {}
    for one in chosen:
        checks = judging.of(one.problem.scorer).checks(one.problem.task_id, one.code, one.problem)
        if not checks:
            raise DataError(
                f"{one.problem.task_id}: no other path judges answers of the scorer '{one.problem.scorer}'; "
                "run `rune score RUN --again` to judge them by the same one"
            )
        groups.setdefault(checks, []).append(one)
    disagreements: list[Disagreement] = []
    with contextlib.ExitStack() as stack:
        second = stack.enter_context(build(config))
        bar = stack.enter_context(console.Progress("audit", len(chosen), unit="pass"))
        judged = stack.enter_context(contextlib.closing(_judged(second, groups, seed)))
        for checks, found in judged:
            if found is not None:
                disagreements.append(_named(checks[0].program, groups[checks], *found))
            bar.advance(len(groups[checks]), disagree=sum(len(d.samples) for d in disagreements))
    disagreements.sort(key=lambda d: (d.explanation, d.task_id, d.samples))
    explained: collections.Counter[str] = collections.Counter()
    for doubted in disagreements:
        explained[doubted.explanation] += len(doubted.samples)
    unexplained = explained.pop("", 0)
    return Report(
        passes=len(passes),
        audited=len(chosen),
        programs=len(groups),
        agree=len(chosen) - unexplained - explained.total(),
        explained=dict(explained.most_common()),
        unexplained=unexplained,
        seed=seed,
        cpu_seconds=second.cpu_seconds,
        machine=f"{platform.machine()} {platform.system()} Python {platform.python_version()} {config.backend}",
        by=provenance.worker(),
        disagreements=tuple(disagreements),
    )


def tell(report: Report) -> int:
    """The result on the terminal; the exit code."""
    for one in report.disagreements[:20]:  # the unexplained come first
        shown = ", ".join(one.samples[:3]) + (f" and {len(one.samples) - 3} more" if len(one.samples) > 3 else "")
        reason = f"; {one.explanation}" if one.explanation else "; NOT EXPLAINED"
        console.note(
            f"{one.task_id} ({shown}): {one.first}, but {one.second} together with its test: {one.why}{reason}"
        )
    if len(report.disagreements) > 20:
        console.note(f"and {len(report.disagreements) - 20} more programs, all in {FILE}")
    console.out(
        f"{report.audited} of {report.passes} passes judged again ({report.programs} programs): {report.agree} agree, "
        f"{sum(report.explained.values())} differ and are explained, {report.unexplained} are not"
    )
    return DISAGREES if report.unexplained else 0


Finding = tuple[Opinion, str]  # the other path's opinion and its explanation


def _judged(
    second: SecondOpinion, answers: Iterable[tuple[Check, ...]], seed: int
) -> Generator[tuple[tuple[Check, ...], Finding | None], None, None]:
    """Each answer with what the other path found against it, as they finish; at most a few wait at a time."""
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(second.workers))
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        stack.callback(second.close)  # first: what runs is ended, then nobody is waited for
        waiting: dict[concurrent.futures.Future[Finding | None], tuple[Check, ...]] = {}
        left = iter(answers)
        while True:
            while len(waiting) < 2 * second.workers and (checks := next(left, None)) is not None:
                waiting[pool.submit(_doubts, second, checks, seed)] = checks
            if not waiting:
                return
            done, _ = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), future.result()


def _doubts(second: SecondOpinion, checks: Sequence[Check], seed: int) -> Finding | None:
    """What is first found against an answer that passed."""
    for program, passes in checks:
        if found := (_doubt if passes else _passes_after_all)(second, program, seed):
            return found
    return None


def _passes_after_all(second: SecondOpinion, program: Program, seed: int) -> Finding | None:
    """None if the program fails here too, as it must; else that it passes, and whether that was chance."""
    first = configs.derive_seed(seed, "audit", program.key)
    opinion = second.judge(program, seed=first)
    if opinion.outcome is not Outcome.PASSED:
        return None
    opinion = opinion._replace(why=execution_with_and_without.NOT_NEEDED)
    others = (second.judge(program, seed=first + other).outcome for other in range(1, SEEDS + 1))
    return opinion, "" if all(outcome is Outcome.PASSED for outcome in others) else CHANCE


def _doubt(second: SecondOpinion, program: Program, seed: int) -> Finding | None:
    """None if the program passes here too, else the opinion and what explains it."""
    first = configs.derive_seed(seed, "audit", program.key)
    opinion = second.judge(program, seed=first)
    if opinion.outcome is Outcome.PASSED:
        return None
    for relaxed, reason in EXPLANATIONS.items():
        if second.judge(program, relaxed=[relaxed], seed=first).outcome is Outcome.PASSED:
            return opinion, reason
    for other in range(1, SEEDS + 1):
        if second.judge(program, seed=first + other).outcome is Outcome.PASSED:
            return opinion, CHANCE
    if second.judge(program, relaxed=EXPLANATIONS, seed=first).outcome is Outcome.PASSED:
        return opinion, TOGETHER
    return opinion, ""


def _named(program: Program, passes: Sequence[Pass], opinion: Opinion, explanation: str) -> Disagreement:
    return Disagreement(
        task_id=program.key,
        samples=tuple(p.name for p in passes),
        first=Outcome.PASSED,
        second=opinion.outcome,
        why=opinion.why.strip().splitlines()[0][:200] if opinion.why.strip() else "",
        explanation=explanation,
        program_sha256=hashlib.sha256(program.code.encode("utf-8", "surrogatepass")).hexdigest(),
    )
