"""Repositories as a source of tasks: an issue, the files that matter, and tests that must pass (scorer `repository`).

`path` is a local git repository with a test command, or a file of instances in SWE-bench's form (Jimenez et al. 2024,
arXiv 2310.06770); without it, SWE-bench Lite is read from RUNE_DATA. An instance's repository must lie in `clones`:
nothing is fetched. A file's records may also hold `repository` (a folder, relative to the file), `test_command` and
`python`, which SWE-bench's do not. A task's domain is its repository, so that whole repositories can be held out.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rune import editing
from rune.benchmarks.formats import checkout, data
from rune.benchmarks.scorers import repository, swebench
from rune.benchmarks.scorers.repository import Task
from rune.errors import DataError
from rune.types import Problem, Scorer

NAME = "repositories"
FILE = "swebench_lite/swebench_lite.jsonl"
HUB = data.OnHub("princeton-nlp/SWE-bench_Lite", "", 323)  # test and dev
COMMAND = "python -m pytest -rA"
SOURCES = (".py", ".pyx", ".js", ".ts", ".go", ".rs", ".java", ".c", ".h", ".cc", ".cpp", ".rb", ".php", ".sh")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{2,}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """`[benchmark.settings]`."""

    path: str = ""  # a git repository, or a file of instances; "" = SWE-bench Lite from RUNE_DATA; "hub" = from the hub
    test_command: str = COMMAND  # of a local repository, and of instances that name none; no shell reads it
    issue: str = ""  # what is wrong, in words; "" = that the test command fails
    commit: str = ""  # of a local repository; "" = what is checked out, which must be clean
    fail_to_pass: tuple[str, ...] = ()  # tests that must pass; () = those that fail without edits
    pass_to_pass: tuple[str, ...] = ()  # tests that must still pass; () = those that pass without edits
    clones: str = ""  # folder with the instances' repositories: OWNER__NAME or NAME
    only: tuple[str, ...] = ()  # instance ids; () = all
    python: str = ""  # an interpreter that has what the tests import; "" = Rune's own
    seconds: float = 120.0  # wall time of one run of the tests
    max_chars: int = 12_000  # of files in a prompt
    evaluate: Literal["here", "swebench"] = "here"  # swebench: by its package, in Docker

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.max_chars < 200:
            raise ValueError("seconds must be above 0 and max_chars at least 200")


@dataclass(frozen=True, slots=True)
class Repositories:
    """The benchmark. Its tasks train: a run that scores some holds them out itself ([design] held_out, by)."""

    config: Config

    def problems(self) -> list[Problem]:
        """Raises DataError for a path that is neither, a dirty work tree, a commit or a clone that is not there."""
        path = Path(self.config.path).expanduser()
        if self.config.path not in ("", "hub") and not path.exists():
            raise DataError(
                f"{path}: no such file or folder; benchmark.settings.path is a git repository, or a file of instances "
                "in SWE-bench's form"
            )
        local = bool(self.config.path) and path.is_dir()
        if self.config.evaluate == "swebench":
            if local:
                raise DataError(
                    f"{path}: evaluate = 'swebench' is for SWE-bench's instances; leave it out, or name a file"
                )
            swebench.demand()
        if local:
            return [self._local(path)]
        found, where = data.load(self.config.path, FILE, {}, hub=HUB, verify=False)
        wanted = set(self.config.only)
        records = [r for r in found if not wanted or str(r.get("instance_id")) in wanted]
        if missing := wanted - {str(r.get("instance_id")) for r in records}:
            raise DataError(f"{where}: there is no instance '{min(missing)}'; name one of its instance_ids")
        return [self._instance(record, where) for record in records]

    def _local(self, path: Path) -> Problem:
        config = self.config
        task = Task(
            repository=str(path.resolve()),
            commit=checkout.commit_of(path, config.commit),
            command=config.test_command,
            fail_to_pass=config.fail_to_pass,
            pass_to_pass=config.pass_to_pass,
            python=config.python,
            seconds=config.seconds,
        )
        name = path.resolve().name
        return self._problem(f"{name}@{task.commit[:10]}", name, config.issue, task)

    def _instance(self, record: Mapping[str, Any], where: Path) -> Problem:
        config = self.config
        label = f"{where}: {record.get('instance_id', 'a record without instance_id')}"
        name, repo, commit, issue = data.texts(
            record, "instance_id", "repo", "base_commit", "problem_statement", where=label
        )
        if config.evaluate == "swebench":
            swebench.check(record, label)
        place = self._clone(record, repo, where, label)
        task = Task(
            repository=str(place),
            commit=checkout.commit_of(place, commit),
            command=str(record.get("test_command") or config.test_command),
            fail_to_pass=_names(record.get("FAIL_TO_PASS"), f"{label}: FAIL_TO_PASS"),
            pass_to_pass=_names(record.get("PASS_TO_PASS"), f"{label}: PASS_TO_PASS"),
            python=str(record.get("python") or config.python),
            seconds=config.seconds,
            instance=dict(record) if config.evaluate == "swebench" else {},
        )
        tests = checkout.patched(task.files, t, where=f"{label}: test_patch") if (t := record.get("test_patch")) else {}
        task = Task(**{**{k: getattr(task, k) for k in Task.__dataclass_fields__}, "tests": tests})
        gold = record.get("patch")
        reference = editing.between(task.files, checkout.patched(task.files, gold, where=label)) if gold else ""
        return self._problem(name, repo, issue, task, reference)

    def _clone(self, record: Mapping[str, Any], repo: str, where: Path, label: str) -> Path:
        if own := record.get("repository"):
            return (where.parent / str(own)).resolve()
        names = (repo.replace("/", "__"), repo.rpartition("/")[2])
        folders = [Path(self.config.clones).expanduser() / name for name in names] if self.config.clones else []
        found = next((folder for folder in folders if folder.is_dir()), None)
        if found is None:
            raise DataError(
                f"{label}: no clone of {repo} in clones ({self.config.clones or 'not set'}); run "
                f'`git clone https://github.com/{repo} CLONES/{names[0]}`, and set benchmark.settings.clones = "CLONES"'
            )
        return found.resolve()

    def _problem(self, name: str, repo: str, issue: str, task: Task, reference: str = "") -> Problem:
        said = issue.strip() or f"The command `{task.command}` fails. Mend the code so that all of its tests pass."
        return Problem(
            task_id=name,
            benchmark=NAME,
            prompt=f"{said}\n\n{shown(task.files, said, max_chars=self.config.max_chars)}",
            entry_point="",
            test=repository.written(task),
            reference=reference,
            category="repository",
            domain=repo,
            scorer=Scorer.REPOSITORY,
        )


def build(config: Config) -> Repositories:
    return Repositories(config)


def _names(value: Any, where: str) -> tuple[str, ...]:
    """A list of tests; SWE-bench writes it as a list, or as JSON in a text."""
    try:
        found = json.loads(value) if isinstance(value, str) else value or []
    except ValueError:
        raise DataError(f"{where}: expected a list of tests, found {value!r:.60}") from None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise DataError(f"{where}: expected a list of tests, found {value!r:.60}")
    return tuple(found)


# --------------------------------------------------------------------------- the files that matter


def shown(files: Mapping[str, str], issue: str, *, max_chars: int) -> str:
    """The sources nearest to an issue, each under its path, whole as long as there is room; then what else there is.

    Tests are never shown. Nearest: named in the issue first, then by the issue's rarer words that they hold.
    """
    sources = {p: t for p, t in files.items() if p.endswith(SOURCES) and not repository.is_test(p) and t.strip()}
    if not sources:
        return "There are no source files yet."
    parts, left, out = [], max_chars, []
    for path in ranked(sources, issue):
        text = sources[path]
        if len(text) <= left:
            parts.append(f"{editing.SHOWN}{path}\n{text.rstrip()}")
            left -= len(text)
        elif not parts:
            parts.append(f"{editing.SHOWN}{path}{editing.PARTS}\n{_excerpt(text, issue, left)}")
            left = 0
        else:
            out.append(path)
    if out:
        parts.append(f"Not shown: {', '.join(out[:20])}{f' and {len(out) - 20} more' if len(out) > 20 else ''}")
    return "\n\n".join(parts)


def ranked(sources: Mapping[str, str], issue: str) -> list[str]:
    """Paths, the nearest to the issue first; equals in the order of their names."""
    wanted = set(_WORD.findall(issue))
    held = {path: set(_WORD.findall(text)) & wanted for path, text in sources.items()}
    counts = Counter(word for words in held.values() for word in words)

    def nearness(path: str) -> float:
        module = path.removesuffix(".py").replace("/", ".")
        named = path in issue or ("." in module and module in issue) or Path(path).name in issue
        return 1000.0 * named + sum(math.log(1 + len(sources) / counts[word]) for word in held[path])

    return sorted(sources, key=lambda path: (-nearness(path), path))


def _excerpt(text: str, issue: str, chars: int) -> str:
    """The passages of a long file around its lines that share the issue's rarer words, in the file's order."""
    wanted = set(_WORD.findall(issue))
    lines = text.splitlines()
    counts = Counter(word for line in lines for word in set(_WORD.findall(line)) & wanted)
    score = [sum(1 / counts[w] for w in set(_WORD.findall(line)) & wanted) for line in lines]
    kept: set[int] = set()
    size = 0
    for number in sorted(range(len(lines)), key=lambda i: (-score[i], i)):
        around = [i for i in range(number - 12, number + 13) if 0 <= i < len(lines) and i not in kept]
        cost = sum(len(lines[i]) + 1 for i in around)
        if size + cost > chars:
            break
        kept.update(around)
        size += cost
    return "\n".join(_with_gaps(lines, sorted(kept)))


def _with_gaps(lines: Sequence[str], kept: Sequence[int]) -> Iterable[str]:
    last = -1
    for number in kept:
        if number != last + 1:
            yield f"… {number - last - 1} lines …"
        yield lines[number]
        last = number
