"""How near a training item is to a held-out task: ids, n-grams, normalised syntax trees, function names.

Pure text in, similarities out; used by the leakage check. Thresholds live with the caller.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

_TOKEN = re.compile(r"[A-Za-z_]\w*|\d+|[^\s\w]")


def tokens(text: str) -> list[str]:
    """Identifiers, numbers and punctuation, lower case; white space does not count."""
    return [t.lower() for t in _TOKEN.findall(text)]


def shingles(text: str, size: int) -> frozenset[tuple[str, ...]]:
    """All runs of `size` tokens; a shorter text is one shingle of its own, an empty one none."""
    words = tokens(text)
    if len(words) < size:
        return frozenset([tuple(words)]) if words else frozenset()
    return frozenset(tuple(words[i : i + size]) for i in range(len(words) - size + 1))


def containment(part: frozenset[tuple[str, ...]], whole: frozenset[tuple[str, ...]]) -> float:
    """Share of `part`'s shingles that stand in `whole`, 0..1; 0 for an empty part."""
    return len(part & whole) / len(part) if part else 0.0


class Shape(NamedTuple):
    """A program's syntax tree with names and docstrings taken out."""

    digest: str
    size: int  # nodes; small trees coincide by chance


def shape(code: str) -> Shape | None:
    """Normalised tree of `code`: equal for programs that differ in chosen names, comments, docstrings, layout.

    Names the program binds itself are numbered in order of appearance, so `a + a` differs from `a + b`;
    builtins and attributes keep theirs, so `sum(x)` differs from `max(x)`. Imports and annotations are left
    out. None if the code does not parse.
    """
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    tree.body = [n for n in tree.body if not isinstance(n, (ast.Import, ast.ImportFrom))]
    for node in list(ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)):
            node.body = _without_docstring(node.body)
        for field in ("annotation", "returns"):
            if getattr(node, field, None) is not None:
                setattr(node, field, None)
    nodes = list(ast.walk(tree))
    bound = {name for node in nodes for name in _binds(node)}
    numbers: dict[str, str] = {}
    for node in nodes:
        for field in ("name", "id", "arg"):
            value = getattr(node, field, None)
            if isinstance(value, str) and value in bound:
                setattr(node, field, numbers.setdefault(value, f"n{len(numbers)}"))
    return Shape(hashlib.sha256(ast.dump(tree).encode()).hexdigest(), len(nodes))


def _binds(node: ast.AST) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.arg):
        return [node.arg]
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return [node.id]
    return []


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return body[1:] if text else body


def functions(code: str) -> frozenset[str]:
    """Names of the functions a program defines; found by pattern if it does not parse."""
    try:
        return frozenset(
            n.name for n in ast.walk(ast.parse(code)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))
        )
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return frozenset(re.findall(r"^\s*(?:async\s+)?def\s+(\w+)", code, re.MULTILINE))


class Index:
    """Shingle sets of many items; `nearest` looks only at items that share a shingle with the query."""

    def __init__(self, items: Iterable[frozenset[tuple[str, ...]]]) -> None:
        self.items = list(items)
        self._holders: dict[tuple[str, ...], list[int]] = {}
        for number, item in enumerate(self.items):
            for shingle in item:
                self._holders.setdefault(shingle, []).append(number)

    def containments(self, part: frozenset[tuple[str, ...]]) -> Mapping[int, float]:
        """Item number → share of `part` it holds; items that hold none are absent."""
        counts: dict[int, int] = {}
        for shingle in part:
            for number in self._holders.get(shingle, ()):
                counts[number] = counts.get(number, 0) + 1
        return {number: count / len(part) for number, count in counts.items()}


def best(scores: Mapping[int, float]) -> tuple[int, float]:
    """(item number, score) of the highest score; (-1, 0.0) if there is none. Ties go to the lower number."""
    return max(scores.items(), key=lambda kv: (kv[1], -kv[0]), default=(-1, 0.0))


def boilerplate(sets: Sequence[frozenset[tuple[str, ...]]], *, share: float) -> frozenset[tuple[str, ...]]:
    """Shingles that more than `share` of the texts have: docstring frames, typing imports."""
    counts: dict[tuple[str, ...], int] = {}
    for item in sets:
        for shingle in item:
            counts[shingle] = counts.get(shingle, 0) + 1
    limit = max(2.0, share * len(sets))
    return frozenset(s for s, c in counts.items() if c > limit)
