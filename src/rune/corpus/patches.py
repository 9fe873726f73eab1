"""Whether a patch is one, and whether it is one of this task."""

from __future__ import annotations

import re
from collections.abc import Iterable

_HUNK = re.compile(r"^@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_GIT = re.compile(r'^diff --git (?:"?a/(.+?)"?) (?:"?b/(.+?)"?)$')
_FILE = re.compile(r'^(?:---|\+\+\+) "?(.+?)"?(?:\t.*)?$')
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
