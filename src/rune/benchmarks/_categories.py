"""The four categories of HumanEval's (and MBPP's) tasks, by a rule that reads types and syntax, not opinions.

1. *string manipulation*: an argument is a string, or a list of strings;
2. *arithmetic*: every argument is a number;
3. of the rest (lists, tuples and dicts of numbers): *algorithms* if the reference solution nests loops, loops
   while a condition holds, calls itself, or sorts; else *data structures*.

Argument types are read off the first call in the official test whose arguments are literals without an empty
container, else off the annotations of the signature.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

STRINGS, ARITHMETIC, STRUCTURES, ALGORITHMS = (
    "string manipulation",
    "arithmetic",
    "data structures",
    "algorithms",
)
_LOOPS = (ast.For, ast.While, ast.comprehension)


def categorise(*, reference: str, entry_point: str, test: str) -> str:
    """The category of one task."""
    function = _function(reference, entry_point)
    kinds = _kinds_called(test, {"candidate", entry_point}) or (_kinds_annotated(function) if function else set())
    if "string" in kinds:
        return STRINGS
    if kinds == {"number"}:
        return ARITHMETIC
    return ALGORITHMS if function and _is_algorithm(function) else STRUCTURES


def _function(source: str, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """None where a user's task has a class or an assignment, or no reference."""
    found = (n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))
    return next((n for n in found if n.name == name), None)


def _kinds_called(test: str, names: set[str]) -> set[str]:
    fallback: set[str] = set()
    for arguments in _literal_calls(test, names):
        kinds = set().union(*map(_kinds, arguments))
        if "empty" not in kinds:
            return kinds
        fallback = fallback or kinds
    return fallback - {"empty"} or ({"container"} if fallback else set())


def _literal_calls(test: str, names: set[str]) -> Iterator[list[Any]]:
    for node in ast.walk(ast.parse(test)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            try:
                yield [ast.literal_eval(a) for a in node.args]
            except (ValueError, TypeError, RecursionError, MemoryError):
                continue


def _kinds(value: Any) -> set[str]:
    if isinstance(value, str):
        return {"string"}
    if isinstance(value, (int, float, complex)):
        return {"number"}
    if isinstance(value, (list, tuple)):
        inner = set().union(*map(_kinds, value)) if value else {"empty"}
        return {"string"} if inner == {"string"} else {"container"} | (inner & {"empty"})
    return {"container"}


def _kinds_annotated(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    names = {ast.unparse(a.annotation) if a.annotation else "" for a in function.args.args}
    return {{"str": "string", "int": "number", "float": "number"}.get(n, "container") for n in names}


def _is_algorithm(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    for node in ast.walk(function):
        if isinstance(node, ast.While) or _calls(node, function.name) or _calls(node, "sorted"):
            return True
        if isinstance(node, ast.Attribute) and node.attr == "sort":
            return True
        if isinstance(node, ast.For) and any(isinstance(n, _LOOPS) for part in node.body for n in ast.walk(part)):
            return True
        if isinstance(node, (ast.ListComp, ast.GeneratorExp, ast.SetComp, ast.DictComp)) and (
            sum(isinstance(n, ast.comprehension) for n in ast.walk(node)) > 1
        ):
            return True
    return False


def _calls(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
