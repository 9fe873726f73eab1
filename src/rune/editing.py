"""Edits as a model writes them: search/replace blocks, each for one file. Pure text in, text out.

    path/to/file.py
    <<<<<<< SEARCH
    lines that stand in the file, once
    =======
    lines that stand there instead
    >>>>>>> REPLACE

An empty search part makes a new file. Blocks are applied in order, each to what the ones before it left.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

SEARCH, MIDDLE, REPLACE = "<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE"
SHOWN, PARTS = "=== ", " (parts of it)"  # before the path of a file that a task shows, and behind one that is cut
_BLOCK = re.compile(
    rf"^(?P<path>[^\n]+)\n{SEARCH}[ \t]*\n(?P<old>.*?)^{MIDDLE}[ \t]*\n(?P<new>.*?)^{REPLACE}[ \t]*$",
    re.MULTILINE | re.DOTALL,
)


class Edit(NamedTuple):
    """One block."""

    path: str
    old: str  # whole lines, each with its newline; "" for a new file
    new: str


class BadEdit(ValueError):
    """Blocks that cannot be applied; the message is for the model."""


def parse(text: str) -> list[Edit]:
    """The blocks in a text, in order. Raises BadEdit if there are none, or something that only begins as one."""
    found = [Edit(_path(m["path"]), m["old"], m["new"]) for m in _BLOCK.finditer(text)]
    if not found:
        raise BadEdit(
            f"there is no complete block: a path, {SEARCH}, {MIDDLE} and {REPLACE}, each on a line of its own"
        )
    begun = len(re.findall(rf"^{SEARCH}", text, re.MULTILINE))
    if begun != len(found):
        raise BadEdit(f"{begun} blocks begin and {len(found)} are complete")
    return found


def _path(line: str) -> str:
    return line.strip().strip("`*\"'").removeprefix("./")


def first_shown(prompt: str) -> str:
    """The path of the first file that a task shows; "" if it shows none."""
    match = re.search(rf"^{SHOWN}(.+?)(?:{re.escape(PARTS)})?$", prompt, re.MULTILINE)
    return match[1] if match else ""


def taken(text: str) -> str:
    """The blocks of an answer as text, whatever is said around them; "" if there are none."""
    return "\n".join(match[0] for match in _BLOCK.finditer(text))


def apply(edits: Sequence[Edit], files: Mapping[str, str]) -> dict[str, str]:
    """Path → new text of every file that changes. Raises BadEdit saying which block does not fit, and why."""
    changed: dict[str, str] = {}
    for number, edit in enumerate(edits, start=1):
        where = f"block {number} ({edit.path})"
        path = PurePosixPath(edit.path)
        if path.is_absolute() or ".." in path.parts or not path.name or path.parts[0] == ".git":
            raise BadEdit(f"{where}: the path is outside of the repository")
        before = changed.get(edit.path, files.get(edit.path))
        if not edit.old:
            if before:
                raise BadEdit(f"{where}: the file exists, so the search part says which of its lines are replaced")
            changed[edit.path] = edit.new
            continue
        if before is None:
            raise BadEdit(f"{where}: there is no such file")
        count = _count(before, edit.old)
        if count != 1:
            times = "nowhere" if not count else f"{count} times"
            raise BadEdit(f"{where}: its search part stands {times} in the file; give lines that stand there once")
        if edit.old == edit.new:
            raise BadEdit(f"{where}: it replaces lines by themselves")
        changed[edit.path] = _replace(before, edit.old, edit.new)
    return changed


def _count(text: str, old: str) -> int:
    """How often whole lines stand in a text; the last line of a file may lack its newline."""
    return len(re.findall(rf"^(?={re.escape(old)})", text if text.endswith("\n") else f"{text}\n", re.MULTILINE))


def _replace(text: str, old: str, new: str) -> str:
    text = text if text.endswith("\n") else f"{text}\n"
    match = re.search(rf"^(?={re.escape(old)})", text, re.MULTILINE)
    assert match is not None
    return text[: match.start()] + new + text[match.start() + len(old) :]


def between(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """Blocks that make `after` of `before`, each with as much context as makes it unique. Files are never removed."""
    blocks = []
    for path, text in after.items():
        old = before.get(path, "")
        if old == text:
            continue
        if not old:
            blocks.append(_written(Edit(path, "", _ended(text))))
            continue
        old_lines, new_lines = _ended(old).splitlines(keepends=True), _ended(text).splitlines(keepends=True)
        blocks += [_written(Edit(path, *pair)) for pair in _unique(old_lines, new_lines)]
    return "\n".join(blocks)


def patch(before: Mapping[str, str], changed: Mapping[str, str]) -> str:
    """The same change as a unified diff that git applies."""
    parts = []
    for path, text in changed.items():
        old = before.get(path)
        lines = difflib.unified_diff(
            _ended(old or "").splitlines(keepends=True),
            _ended(text).splitlines(keepends=True),
            f"a/{path}" if old is not None else "/dev/null",
            f"b/{path}",
        )
        head = f"diff --git a/{path} b/{path}\n" + ("" if old is not None else "new file mode 100644\n")
        parts.append(head + "".join(lines))
    return "".join(parts)


def _unique(old: Sequence[str], new: Sequence[str]) -> list[tuple[str, str]]:
    """(search, replace) of each group of changes; with the least context at which all of them apply as they should."""
    for context in (3, 6, 12, 25, len(old)):
        groups = difflib.SequenceMatcher(None, old, new, autojunk=False).get_grouped_opcodes(context)
        pairs = [("".join(old[g[0][1] : g[-1][2]]), "".join(new[g[0][3] : g[-1][4]])) for g in groups]
        try:
            if apply([Edit("f", *pair) for pair in pairs], {"f": "".join(old)})["f"] == "".join(new):
                return pairs
        except BadEdit:
            continue
    return [("".join(old), "".join(new))]


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else f"{text}\n"


def _written(edit: Edit) -> str:
    return f"{edit.path}\n{SEARCH}\n{edit.old}{MIDDLE}\n{edit.new}{REPLACE}"
