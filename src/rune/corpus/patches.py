"""Whether a patch is one, and whether it is one of this task."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping

_HUNK = re.compile(r"^@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_GIT = re.compile(r'^diff --git (?:"?a/(.+?)"?) (?:"?b/(.+?)"?)$')
_FILE = re.compile(r'^(?:---|\+\+\+) "?(.+?)"?(?:\t.*)?$')
# Line numbers as viewers print them: `cat -n`, `nl`, SWE-agent's `12:`, Claude Code's arrow.
_NUMBERED = re.compile(r"^\s*\d+(?:\t|→|\| ?|:(?= |$|\S))")
_HEADS = (
    "new file mode",
    "deleted file mode",
    "rename ",
    "copy ",
    "old mode",
    "new mode",
    "similarity",
    "GIT binary",
    "Binary files",
    "dissimilarity",
    "index ",
)

CONTEXT = 3  # lines around a change: as many empty ones may have been stripped from the end


def normal(text: str) -> str:
    """A submission as a patch: \\n for \\r\\n, no empty lines around it."""
    return text.replace("\r\n", "\n").strip("\n")


def files(patch: str) -> list[str]:
    """The files that a unified diff changes, adds or deletes, without a/ and b/."""
    found: dict[str, None] = {}
    for line in patch.split("\n"):
        if match := _GIT.match(line):
            found[match[2]] = None
        elif line.startswith(("--- ", "+++ ")) and (match := _FILE.match(line)):
            path = match[1]
            if path != "/dev/null":
                found[path[2:] if path.startswith(("a/", "b/")) else path] = None
    return list(found)


_SECTION = re.compile(r"^(?=diff --git )", re.MULTILINE)


def added(patch: str) -> list[str]:
    """The files that a patch of git's form adds."""
    sections = (part for part in _SECTION.split(patch) if re.search(r"^--- /dev/null$", part, re.MULTILINE))
    return [name for part in sections for name in files(part)]


def without(patch: str, names: Iterable[str]) -> str:
    """A patch of git's form without these files."""
    dropped = set(names)
    kept = [part for part in _SECTION.split(patch) if not dropped.issuperset(files(part)) or not files(part)]
    return normal("".join(part if part.endswith("\n") else f"{part}\n" for part in kept))


def fault(patch: str) -> str:
    """Why a text is no complete patch of a repository, or "".

    Every file needs a hunk (or be renamed, re-moded or binary), every hunk as many lines as its head says, every
    path must lie inside the repository. Empty context lines at the very end may be missing: tools strip them.
    """
    lines = patch.split("\n")
    names = files(patch)
    if not names:
        return "no file is named in it"
    if outside := next((n for n in names if n.startswith(("/", "~")) or ".." in n.split("/")), None):
        return f"{outside!r} lies outside of the repository"
    at, substance, open_file = 0, False, ""
    while at < len(lines):
        line = lines[at]
        if match := _GIT.match(line):
            if open_file and not substance:
                return f"nothing is changed in {open_file!r}"
            open_file, substance = match[2], False
        elif line.startswith(_HEADS) and not line.startswith("index "):
            substance = True
        elif match := _HUNK.match(line):
            old, new = (int(n) if n is not None else 1 for n in match.groups())
            at, missing = _hunk(lines, at + 1, old, new)
            if missing:
                return f"the hunk {line[:40]!r} is {missing}"
            substance = True
            continue
        at += 1
    return "" if substance else f"nothing is changed in {open_file or names[-1]!r}"


def _hunk(lines: list[str], at: int, old: int, new: int) -> tuple[int, str]:
    """(line after the hunk, what is wrong with it)."""
    changed = False
    while (old > 0 or new > 0) and at < len(lines):
        line = lines[at]
        changed |= line.startswith(("+", "-"))
        if line.startswith("\\"):
            pass
        elif line.startswith("-"):
            old -= 1
        elif line.startswith("+"):
            new -= 1
        elif line.startswith(" ") or (not line and at + 1 < len(lines)):
            old, new = old - 1, new - 1
        else:
            break
        at += 1
    if old < 0 or new < 0:
        return at, "longer than its head says"
    stripped = changed and old == new <= CONTEXT and not any(lines[at:])
    if (old or new) and not stripped:
        return at, "shorter than its head says"
    return at, ""


def same(path: str, other: str) -> bool:
    """Whether two spellings (absolute, relative to somewhere) may name one file."""
    a, b = ([part for part in p.replace("\\", "/").split("/") if part not in ("", ".")] for p in (path, other))
    short = min(len(a), len(b))
    return bool(short) and a[-short:] == b[-short:]


def foreign(patch: str, edited: Iterable[str]) -> str:
    """Why a patch is not that of a session that edited these files, or "": it shares none of them."""
    changed, edited = files(patch), list(edited)
    if changed and edited and not any(same(a, b) for a in changed for b in edited):
        return f"changes {', '.join(changed[:3])}, but the session edited {', '.join(dict.fromkeys(edited[:3]))}"
    return ""


def elsewhere(repo: str, instance: str) -> str:
    """Why a repository is not that of an instance (`owner__name-123`, SWE-bench's form), or ""."""
    name = repo.rpartition("/")[2]
    if name and "__" in instance and name.lower() not in instance.lower():
        return f"is {repo!r}, but the instance is {instance!r}"
    return ""


def stranger(patch: str, path: str, text: str, *, whole: bool) -> str:
    """Why a patch cannot be one of a file that reads `text`, or "". `text` may have numbered lines.

    `whole`: the text is all of the file as the patch's author found it, so that every hunk's old lines must stand in
    it, one after the other. Otherwise it is enough that one of them does: what an agent was shown may be cut.
    """
    shown = [_NUMBERED.sub("", line).rstrip() for line in text.split("\n")]
    hunks = [old for name, old in old_sides(patch) if same(name, path) and any(map(str.strip, old))]
    for old in hunks if whole else ():
        lines = [line.rstrip() for line in old]
        if not any(shown[i : i + len(lines)] == lines for i in range(len(shown) - len(lines) + 1)):
            first = next(line for line in lines if line)
            return f"changes lines that {path!r} does not have, from {first.strip()[:60]!r}"
    there = {line.strip() for line in shown}
    told = [line.strip() for old in hunks for line in old if len(line.strip()) > 3]
    if told and not whole and not any(line in there for line in told):
        return f"shares no line with {path!r} as the session read it, as {told[0][:60]!r}"
    return ""


def old_sides(patch: str) -> Iterator[tuple[str, list[str]]]:
    """(file, context and removed lines) of each hunk of a file that was there before."""
    path, left = "", (0, 0)
    old: list[str] = []
    for line in patch.split("\n"):
        before, after = left
        if before > 0 or after > 0:
            if line.startswith("-"):
                old.append(line[1:])
                left = (before - 1, after)
            elif line.startswith("+"):
                left = (before, after - 1)
            elif not line.startswith("\\"):
                old.append(line[1:])
                left = (before - 1, after - 1)
            continue
        if old:
            yield path, old
            old = []
        if line.startswith("--- ") and (match := _FILE.match(line)):
            name = match[1]
            path = "" if name == "/dev/null" else name[2:] if name.startswith("a/") else name
        elif path and (match := _HUNK.match(line)):
            left = (int(match[1] or 1), int(match[2] or 1))
    if old:
        yield path, old


def quarrel(said: Mapping[str, str], kind: str) -> str:
    """Why fields of one record speak of different instances, or "". `kind`: "repo" or "commit".

    Repositories are compared without case, `owner__name` like `owner/name`, a bare name with the name alone; commits
    as far as the shorter of the two goes. A name such as HEAD says nothing.
    """
    alike = _same_repo if kind == "repo" else _same_commit
    told = [(field, value.strip()) for field, value in said.items() if value.strip()]
    for (field, value), (other, second) in itertools.combinations(told, 2):
        if not alike(value, second):
            return f"field {field!r} is {value!r}, but {other!r} is {second!r}"
    return ""


def _same_repo(one: str, other: str) -> bool:
    a, b = (re.split(r"/|__", re.sub(r"\.git$|/$", "", value.lower())) for value in (one, other))
    return a[-1] == b[-1] and (len(a) < 2 or len(b) < 2 or a[-2].rpartition(":")[2] == b[-2].rpartition(":")[2])


def _same_commit(one: str, other: str) -> bool:
    a, b = one.lower(), other.lower()
    short = min(len(a), len(b))
    named = re.fullmatch(r"[0-9a-f]{7,64}", a) and re.fullmatch(r"[0-9a-f]{7,64}", b)
    return not named or a[:short] == b[:short]
