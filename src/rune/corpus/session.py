"""A session of an agent → a trajectory. One rule for all formats.

* An edit is an attempt; what the environment said until the next edit is its error.
* What the agent handed in (a patch) is an attempt too, the last one.
* Solved is what the file *proves*: `true` or 1 in the field that its format has for it. False, 0, null and no field
  mean not solved; anything else is an error that names the field.
* The solution is the patch; without one, the edits that still stand at the end, never a scratch file: one that the
  agent made and removed, made outside of the repository, or made only to run it beside edits of the repository. A
  script that was made at the top of the repository, run and left there is taken out of the patch too.
* A patch must fit: complete, inside the repository, of the instance's repository and base commit; it shares a file
  with the edits; it changes lines that its files have, where the record or the session shows them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from rune import prompts
from rune.config import digest
from rune.corpus import edits, patches
from rune.corpus.edits import Call, Effect
from rune.corpus.redact import Redactor
from rune.errors import DataError
from rune.types import Attempt, Outcome, Trajectory

ERROR_CHARS = 1000  # kept of what the environment answered to one edit
PROMPT_CHARS = 8000  # kept of a problem statement
UNVERIFIED = "The agent submitted this patch; the file does not say whether its tests passed."
UNSOLVED = "The agent submitted this patch; the file says that it did not solve the task."

# The last line of a traceback, pytest's and LangChain's shell's too; not a name in a file that was shown.
_EXCEPTION = re.compile(
    r"^(?:E\s+|- E\d+ |\[stderr\] )?(?:\w+\.)*([A-Z]\w*(?:Error|Exception|Interrupt))\b\s*(?::|$)", re.MULTILINE
)
# What a tool says when it did not make the edit; a shell's output may be a test's, so there only the editor counts.
_REJECTED = re.compile(
    r"has introduced new syntax error|No replacement was performed|did not appear verbatim|<tool_use_error>"
    r"|String to replace not found|apply_patch verification failed|\AERROR:|\AError:|Invalid `?path"
    r"|No edit was made|Text not found",
    re.IGNORECASE,
)
_REJECTED_BY_SHELL = re.compile(
    r"has introduced new syntax error|No replacement was performed|did not appear verbatim|patch does not apply"
    r"|apply_patch verification failed"
    r"|^(?:sed|perl|patch|error|git): [^\n]*(?:can't read|No such file|patch failed|does not apply)|Text not found",
    re.IGNORECASE | re.MULTILINE,
)
_OUTSIDE = re.compile(r"^(?:/tmp/|/var/tmp/|/dev/shm/|~|\$HOME|/root/(?!\w+/))")
_TRIAL = re.compile(
    r"(?:^|[_.-])(?:test|tests|repro|reproduce|reproduction|debug|demo|scratch|check|verify|tmp|temp|try|edge)"
    r"|(?:^|_)(?:cases?|script|test|demo|check)\.",
    re.IGNORECASE,
)


class Step(NamedTuple):
    """One call of an agent and what the environment answered."""

    call: Call
    observation: str
    failed: bool = False  # the tool says that it did nothing


class NothingToLearn(DataError):
    """A session without an edit or a submission: no fault of the file, but no trajectory either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What an importer reads out of a file. All text is still as it was there."""

    task: str  # the instance's id, or a name for the session
    prompt: str  # the task's words, without the manual around them
    steps: tuple[Step, ...]
    patch: str = ""  # what the agent handed in, or the benchmark's answer
    patch_field: str = "patch"
    resolved: bool | None = None  # None where the file does not say
    repo: str = ""  # "owner/name" where the file says it
    texts: Mapping[str, str] = field(default_factory=dict)  # file → all of it, where the record has it
    benchmark: str = "swe"
    where: str = ""  # "file:line"
    source: str = ""  # the file's name


def proved(raw: Mapping[str, Any], *fields: str, where: str) -> bool | None:
    """Whether a record says that its tests passed; None if it says nothing. Fields may be nested ("info.resolved").

    Only `true` and 1 mean passed; false and 0 failed; null says nothing. Raises DataError for anything else, and for
    two that disagree.
    """
    said: dict[str, bool] = {}
    for name in fields:
        value: Any = raw
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None:
            continue
        if not (isinstance(value, bool) or (type(value) is int and value in (0, 1))):
            shown = repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:37]}…"
            raise DataError(f"{where}: field '{name}': only true or 1 means solved, false or 0 not; found {shown}")
        said[name] = bool(value)
    if len(set(said.values())) > 1:
        raise DataError(f"{where}: fields {' and '.join(map(repr, said))} disagree about whether it is solved")
    return any(said.values()) if said else None


# Where records name the instance's repository and the commit that its patch is against.
_REPOS = ("repo", "instance.repo", "info.repo", "metadata.repo")
_COMMITS = tuple(
    f"{place}base_commit"
    for place in ("", "instance.", "info.", "metadata.", "replay_config.env.repo.")  # its repo_name is a folder's
)


def instance_of(raw: Mapping[str, Any], *, where: str) -> str:
    """The repository that a record is about. Raises DataError if its fields speak of two, or of two commits."""
    repos = {name: text_field(raw, name, where=where)[1] for name in _REPOS}
    commits = {name: text_field(raw, name, where=where)[1] for name in _COMMITS}
    for said, kind in ((repos, "repo"), (commits, "commit")):
        if quarrel := patches.quarrel(said, kind):
            raise DataError(f"{where}: {quarrel}; the patch can be that of one instance only")
    return next((value.strip() for value in repos.values() if value.strip()), "")


def text_field(raw: Mapping[str, Any], *names: str, where: str) -> tuple[str, str]:
    """(name, text) of the first of these fields that holds text; ("", "") if none. Fields may be nested.

    Raises DataError for one that holds something else.
    """
    for name in names:
        value: Any = raw
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None or value == "":
            continue
        if not isinstance(value, str):
            raise DataError(f"{where}: field '{name}': expected text, found {type(value).__name__}")
        if value.strip():
            return name, value
    return "", ""


def to_trajectory(session: Session, redact: Redactor) -> Trajectory:
    """The session as our record, redacted. Raises DataError; NothingToLearn if nothing was edited or handed in."""
    where = session.where
    patch = patches.normal(session.patch)
    log = _follow(session.steps, session.prompt)
    _check_patch(session, patch, log)
    patch = _without_scratch(patch, log)
    attempts = _attempts(session.steps, log, redact)
    if patch.strip():
        said = UNVERIFIED if session.resolved is None else UNSOLVED
        attempts.append(Attempt(code=redact(patch), outcome=Outcome.FAILED, error_kind="Unverified", error=said))
    elif session.resolved and attempts:
        attempts = _ending_with(_standing(log), attempts, log, where)
    if not attempts:
        raise NothingToLearn(f"{where}: no code edit and no submission in it; there is nothing to learn from")
    if session.resolved:
        attempts[-1] = replace(attempts[-1], outcome=Outcome.PASSED, error_kind="", error="")
    task_id, benchmark = _identity(redact(session.task), session.benchmark)
    prompt = prompts.truncate(redact(session.prompt.replace("\r\n", "\n").strip()), PROMPT_CHARS)
    return Trajectory(
        trajectory_id=digest([task_id, prompt, attempts])[:16],
        task_id=task_id,
        benchmark=benchmark,
        prompt=prompt,
        attempts=tuple(attempts),
        solution=attempts[-1].code if session.resolved else "",
        category="repository",
        source=redact(f"imported:{session.source}"),
    )


def check(trajectory: Trajectory, where: str) -> Trajectory:
    """What types alone do not say. Raises DataError naming the field."""
    for name in ("trajectory_id", "task_id", "benchmark", "prompt"):
        if not getattr(trajectory, name).strip():
            raise DataError(f"{where}: field '{name}' is empty")
    if not trajectory.attempts:
        raise DataError(f"{where}: field 'attempts' is empty; a trajectory holds at least one")
    for number, attempt in enumerate(trajectory.attempts):
        if attempt.outcome is not Outcome.PASSED and not (attempt.error_kind or attempt.error):
            raise DataError(f"{where}: field 'attempts[{number}].error' is empty though the attempt failed")
        if attempt.outcome is Outcome.PASSED and number + 1 < len(trajectory.attempts):
            raise DataError(f"{where}: field 'attempts[{number}].outcome' is passed, but attempts follow it")
    last = trajectory.attempts[-1]
    if trajectory.solution and (last.outcome is not Outcome.PASSED or last.code != trajectory.solution):
        raise DataError(f"{where}: field 'solution' is not the code of a passing last attempt")
    if not trajectory.solution and last.outcome is Outcome.PASSED:
        raise DataError(f"{where}: field 'solution' is empty though the last attempt passed")
    return trajectory


def _identity(task: str, benchmark: str) -> tuple[str, str]:
    """(task id, benchmark). A HumanEvalFix task is recognised, so that the exclusion list can refuse it."""
    if match := re.search(r"humanevalfix-python-(\d+)", task, re.IGNORECASE):
        return f"HumanEvalFix/{match[1]}", "humanevalfix"
    return task, benchmark


# --------------------------------------------------------------------------- what became of the edits


@dataclass(slots=True)
class _Log:
    """What the steps did, in order."""

    effects: list[Effect]
    standing: list[bool]  # step → its edit was made and not taken back
    created: set[str]  # files that the session made
    removed: set[str]
    ran: set[str]

    def scratch(self, path: str) -> bool:
        """Made outside of the repository, or made here and removed again."""
        return bool(_OUTSIDE.match(path) and self._works_inside()) or _among(path, self.removed)

    def _works_inside(self) -> bool:
        """Whether anything is edited elsewhere than in temporary folders: a repository may lie in one itself."""
        return any(not _OUTSIDE.match(p) for e in self.effects for p in e.written)


def _among(path: str, others: set[str]) -> bool:
    return any(patches.same(path, other) for other in others)


def _follow(steps: Sequence[Step], prompt: str) -> _Log:
    log = _Log([], [], set(), set(), set())
    seen, opened = prompt, ""
    for step in steps:
        effect = edits.effect(step.call)
        if effect.edits and not effect.written and opened and step.call.text.lstrip().startswith(("edit", "insert")):
            effect.written.append(opened)  # SWE-agent edits the file that is open
        opened = effect.opened or opened
        new = {p for p in effect.whole if PurePosixPath(p).name not in seen}
        if re.match(r"\s*create\s", step.call.text) and effect.opened:
            new.add(effect.opened)
        log.created |= new
        log.removed = {p for p in log.removed if not _among(p, set(effect.written))}
        log.effects.append(effect)
        rejected = _REJECTED_BY_SHELL if edits.shell_text(step.call) else _REJECTED
        log.standing.append(effect.edits and not step.failed and not rejected.search(step.observation[:2000]))
        _take_back(log, effect)
        log.ran |= set(effect.ran)
        seen += f"\n{step.observation}"
    return log


def _take_back(log: _Log, effect: Effect) -> None:
    for old, new in effect.moved:
        for before in log.effects:
            before.written = [new if patches.same(p, old) else p for p in before.written]
        log.created = {new if patches.same(p, old) else p for p in log.created}
    everything = "." in effect.removed or "*" in effect.removed
    for path in list(log.created):
        folders = [r.rstrip("/") for r in effect.removed]
        if everything or _among(path, set(effect.removed)) or any(f and path.startswith(f"{f}/") for f in folders):
            log.removed.add(path)
    taken = set(effect.reverted)
    for number, before in enumerate(log.effects[:-1]):
        if taken and before.written and ("." in taken or all(_among(p, taken) for p in before.written)):
            log.standing[number] = False
    if effect.undone:
        last = next((i for i in range(len(log.effects) - 2, -1, -1) if log.standing[i]), None)
        if last is not None:
            log.standing[last] = False


def _standing(log: _Log) -> list[int]:
    """Steps whose edits are the state of the code at the end, without scratch files."""
    kept = [
        i
        for i, e in enumerate(log.effects)
        if log.standing[i] and not (e.written and all(log.scratch(p) for p in e.written))
    ]
    made = {i: all(_among(p, log.created) for p in log.effects[i].written) for i in kept if log.effects[i].written}
    if any(i not in made or not made[i] for i in kept):
        # The repository's own files were edited: a file made beside them only to be run is no part of it.
        def trial(number: int) -> bool:
            paths = log.effects[number].written
            return made.get(number, False) and all(_among(p, log.ran) or _TRIAL.search(_name(p)) for p in paths)

        kept = [i for i in kept if not trial(i)]
    last_whole = {p: i for i in kept for p in log.effects[i].whole}
    return [
        i for i in kept if not log.effects[i].written or any(i >= last_whole.get(p, i) for p in log.effects[i].written)
    ]


def _without_scratch(patch: str, log: _Log) -> str:
    """A patch without the scripts that the session made beside the repository's code, ran and left behind.

    Most patches of OpenHands hold one (`reproduce_error.py`). Files in folders stay: they may be tests of the change.
    """
    made = [p for p in patches.added(patch) if "/" not in p and _among(p, log.created) and _among(p, log.ran)]
    return patches.without(patch, made) if set(patches.files(patch)) - set(made) else patch


def _name(path: str) -> str:
    return PurePosixPath(path).name


def _check_patch(session: Session, patch: str, log: _Log) -> None:
    """Raises DataError for a patch that is not one of this instance."""
    where, name = session.where, session.patch_field
    if fault := patches.elsewhere(session.repo, session.task):
        raise DataError(f"{where}: field 'repo' {fault}")
    if not patch.strip():
        return
    fault = patches.fault(patch)
    if fault and session.resolved:
        raise DataError(f"{where}: field '{name}' is no complete patch: {fault}")
    edited = [i for i, e in enumerate(log.effects) if e.edits and log.standing[i]]
    known = [p for i in edited for p in log.effects[i].written]
    if not fault and edited and all(log.effects[i].written for i in edited):
        kept = [p for p in known if not log.scratch(p) and not (_among(p, log.created) and _among(p, log.ran))]
        if fault := patches.foreign(patch, kept):
            raise DataError(f"{where}: field '{name}' does not fit the session: it {fault}")
    for path, text in session.texts.items():
        if fault := patches.stranger(patch, path, text, whole=True):
            raise DataError(f"{where}: field '{name}' does not fit its instance: it {fault}")
    shown: dict[str, str] = {}
    for path, text in _shown(session.steps, log):
        key = next((p for p in shown if patches.same(p, path)), path)
        shown[key] = f"{shown.get(key, '')}\n{text}"
    for path, text in shown.items():
        if fault := patches.stranger(patch, path, text, whole=False):
            raise DataError(f"{where}: field '{name}' does not fit the session: it {fault}")


_NOT_SHOWN = re.compile(r"<returncode>[^0]|exit code:? [^0]|No such file|[Pp]ermission denied|Is a directory|not found")
_CAT = re.compile(r"^(?:cd\s+[\w./~-]+\s*(?:&&|;)\s*)?(?:cat(?:\s+-n)?|nl(?:\s+-ba)?)\s+([\w./~-]+)\s*$")


def _shown(steps: Sequence[Step], log: _Log) -> Iterator[tuple[str, str]]:
    """(file, text) of files that the agent had printed as a whole before it, or anything unnamed, was edited."""
    edited: set[str] = set()
    for step, effect in zip(steps, log.effects, strict=True):
        if effect.edits and not effect.written:
            return
        edited |= {*effect.written, *effect.outputs, *(new for _, new in effect.moved)}
        given = step.call.arguments
        if command := edits.shell_text(step.call):
            match = _CAT.match(command.strip())
            path = match[1] if match else ""
        else:
            parts = {"view_range", "offset", "limit", "start_line", "end_line", "start", "end"}
            views = given.get("command", "view") == "view" and not effect.edits
            path = next((v for k in ("path", "file_path") if isinstance(v := given.get(k), str)), "") if views else ""
            path = "" if any(given.get(k) is not None for k in parts) else path
        text = step.observation
        failed = step.failed or _REJECTED.search(text[:2000]) or _NOT_SHOWN.search(text[:300])
        if path and not failed and text.strip().count("\n") >= 2 and not _among(path, edited):
            yield path, text


def _attempts(steps: Sequence[Step], log: _Log, redact: Redactor) -> list[Attempt]:
    """Edits with what followed them, until the next edit, as their error."""
    found: list[tuple[str, list[str]]] = []
    for step, effect in zip(steps, log.effects, strict=True):
        if effect.edits:
            found.append((step.call.text, []))
        if found and step.observation.strip():
            found[-1][1].append(step.observation.replace("\r\n", "\n").strip())
    attempts = []
    for code, said in found:
        text = redact("\n".join(said))
        kinds = _EXCEPTION.findall(text)
        attempts.append(
            Attempt(
                code=redact(code),
                outcome=Outcome.FAILED,
                error_kind=kinds[-1] if kinds else "Superseded",
                error=prompts.truncate(text, ERROR_CHARS) or "(no output)",
            )
        )
    return attempts


def _ending_with(standing: list[int], attempts: list[Attempt], log: _Log, where: str) -> list[Attempt]:
    """The attempts up to the last standing edit, whose code is then all that stands."""
    if not standing:
        raise NothingToLearn(
            f"{where}: said to be solved, but it holds no patch and no edit of the repository that stands at the end"
        )
    number = sum(e.edits for e in log.effects[: standing[-1]])
    codes = [attempts[sum(e.edits for e in log.effects[:i])].code for i in standing]
    return [*attempts[:number], replace(attempts[number], code="\n".join(codes))]
