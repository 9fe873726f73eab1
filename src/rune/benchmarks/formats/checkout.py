"""What a local git repository holds at a commit, read by git without touching the work tree."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rune.errors import DataError

MOST_BYTES = 1 << 20  # of one file that is read as text; a larger one is data


def commit_of(repository: Path, commit: str) -> str:
    """The full id of a commit; "" means the one that is checked out, and then the work tree must be clean.

    Raises DataError if there is no repository or no such commit, or for a dirty work tree.
    """
    if not repository.is_dir():
        raise DataError(f"{repository}: no such folder; give the folder of a git repository")
    try:
        _git(repository, "rev-parse", "--git-dir")
    except DataError:
        raise DataError(f"{repository}: no git repository; run `git init` and commit there, or give another") from None
    if not commit:
        changed = [line[3:] for line in _git(repository, "status", "--porcelain").decode().splitlines()]
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise DataError(
                f"{repository}: the work tree is dirty ({', '.join(changed[:3])}{more}); commit or stash it, or name "
                "the commit that is meant: benchmark.settings.commit"
            )
    try:
        return (
            _git(repository, "rev-parse", "--verify", "--end-of-options", f"{commit or 'HEAD'}^{{commit}}")
            .decode()
            .strip()
        )
    except DataError:
        raise DataError(
            f"{repository}: there is no commit '{commit or 'HEAD'}'; fetch it there, or name another"
        ) from None


def _git(repository: Path, *arguments: str, given: bytes | None = None) -> bytes:
    command = ["git", "-C", str(repository), "-c", "core.quotepath=off", "-c", "core.fsmonitor=false", *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(command, capture_output=True, input=given, timeout=300, check=False, env=environment)
    except FileNotFoundError:
        raise DataError("git is not installed, and repositories are read by it; install git") from None
    except subprocess.TimeoutExpired:
        raise DataError(f"{repository}: git {arguments[0]} took more than five minutes") from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise DataError(f"{repository}: git {arguments[0]} failed: {''.join(said)}")
    return done.stdout


def archive(repository: Path, commit: str, cache: Path) -> Path:
    """All files at a commit as a tar file, made once. Raises DataError."""
    name = hashlib.sha256(f"{repository.resolve()}\0{commit}".encode()).hexdigest()[:16]
    place = cache / "repositories" / f"{name}.tar"
    if not place.is_file():
        data = _git(repository, "archive", "--format=tar", commit)
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, fresh = tempfile.mkstemp(dir=place.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(fresh).replace(place)
    return place


def files(tar: Path) -> dict[str, str]:
    """Path → text of every file that is text and not large."""
    found: dict[str, str] = {}
    with tarfile.open(tar) as opened:
        for member in opened:
            if not member.isfile() or member.size > MOST_BYTES:
                continue
            content = opened.extractfile(member)
            assert content is not None
            try:
                text = content.read().decode("utf-8")
            except UnicodeDecodeError:
                continue
            if "\0" not in text:
                found[member.name] = text
    return found


def patched(before: Mapping[str, str], patch: str, *, where: str) -> dict[str, str]:
    """Path → text of the files that a unified diff changes or adds; one that it deletes is "". Raises DataError."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name).resolve()
        subprocess.run(["git", "init", "-q", str(root)], check=True, capture_output=True)
        for path, text in before.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8", newline="")
        try:
            _git(root, "apply", "--whitespace=nowarn", "-", given=patch.encode())
        except DataError as error:
            raise DataError(f"{where}: its patch does not apply: {str(error).partition(': ')[2]}") from None
        after = {
            str(p.relative_to(root)): p.read_text(encoding="utf-8")
            for p in root.rglob("*")
            if p.is_file() and ".git" not in p.relative_to(root).parts
        }
    gone = {path: "" for path in before if path not in after}
    return {**{p: t for p, t in after.items() if before.get(p) != t}, **gone}
