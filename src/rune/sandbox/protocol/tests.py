"""A test, made ready once and used for every program of its task; and what to say when it fails.

A test is trusted source that defines `check(candidate)`. Names it uses and does not define are looked for in
this order: the entry point (the candidate itself), a standard module, and else a name of the candidate's
program, as a remote object (MBPP's tests build the candidate's own Node or Pair). Builtins are always ours.
"""

from __future__ import annotations

import ast
import builtins
import symtable
import sys
import traceback
from collections.abc import Iterator
from types import CodeType, TracebackType
from typing import Any, NamedTuple

from rune.sandbox.protocol.connection import Link
from rune.sandbox.protocol.remote import Candidate, cut, public, short, weight

FILE = "<test>"
_SAID = 1000  # characters of an exception's text
_FORESEEING = "__foreseeing__"


class Test(NamedTuple):
    """Compiled source with what is needed to explain a failure."""

    code: CodeType
    tree: ast.Module
    modules: tuple[str, ...]  # standard modules that the test uses without importing them
    foreign: tuple[str, ...]  # names that only the candidate's program can define


def prepare(source: str, entry_point: str) -> Test:
    """Raises SyntaxError or ValueError for a broken test: that is the machinery's fault, not a program's."""
    tree = ast.parse(source)
    _Adapted({"candidate", entry_point}).visit(tree)
    ast.fix_missing_locations(tree)
    free = sorted(_free_names(source) - {entry_point})
    modules = tuple(n for n in free if n in sys.stdlib_module_names)
    foreign = tuple(n for n in free if n not in modules)
    return Test(compile(tree, FILE, "exec", dont_inherit=True), tree, modules, foreign)


def run(test: Test, link: Any, prelude: CodeType | None, entry_point: str, *, foreseeing: bool = False) -> None:
    """Returns if the test ran to its end. Raises whatever it raised, or the link's finding.

    `link` is a Link, or what stands for one while calls are foreseen (`ahead`): then no assertion fails.
    """
    candidate = Candidate(link, entry_point)
    scope: dict[str, Any] = {"__name__": "__test__", entry_point: candidate, _FORESEEING: foreseeing}
    if prelude is not None:
        exec(prelude, scope)
        scope[entry_point] = candidate
    for name in test.modules:
        scope.setdefault(name, __import__(name))
    for name in test.foreign:
        scope.setdefault(name, _Foreign(link, name))
    exec(test.code, scope)
    scope["check"](candidate)


class _Foreign(Candidate):
    """A name of the program that is no entry point: what it gives is not what a message should quote."""

    def __call__(self, /, *args: object, **options: object) -> Any:
        return self._link.construct("call", self.__name__, *args, **options)

    def __getattr__(self, name: str) -> Any:
        return self._link.construct("getattr", self._link.construct("value", self.__name__), public(name))


class _Adapted(ast.NodeTransformer):
    """`candidate(x)` as a statement of its own → `candidate.observed(x)`: see Candidate.observed.

    And `assert x` → `assert x or <foreseeing>`: see `run`.
    """

    def __init__(self, names: set[str]) -> None:
        self._names = names

    def visit_Expr(self, node: ast.Expr) -> ast.Expr:
        call = node.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in self._names:
            call.func = ast.copy_location(ast.Attribute(value=call.func, attr="observed", ctx=ast.Load()), call.func)
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.Assert:
        node.test = ast.copy_location(ast.BoolOp(ast.Or(), [node.test, ast.Name(_FORESEEING, ast.Load())]), node.test)
        return node


def _asserted(node: ast.Assert) -> ast.expr:
    """What the source asserts, without our addition."""
    assert isinstance(node.test, ast.BoolOp)
    return node.test.values[0]


def _free_names(source: str) -> set[str]:
    """Global names that the source reads and nowhere binds, builtins left out."""
    top = symtable.symtable(source, FILE, "exec")
    bound = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    used: set[str] = set()
    for scope in _scopes(top):
        for symbol in scope.get_symbols():
            if symbol.is_global() and symbol.is_assigned():
                bound.add(symbol.get_name())
            if symbol.is_referenced() and (scope is top or symbol.is_global()):
                used.add(symbol.get_name())
    return {name for name in used - bound if not hasattr(builtins, name) and not name.startswith("__")}


def _scopes(scope: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield scope
    for child in scope.get_children():
        yield from _scopes(child)


def explain(test: Test, link: Link, error: BaseException) -> str:
    """Why a test failed, in terms of the call: `check: candidate([1.0], 0.5) returned True, expected False`."""
    story = link.story()
    if not isinstance(error, AssertionError):
        last = _said(error)
        return f"check: {story}; the test then raised {last}" if story else f"check: the test raised {last}"
    frame = _last_frame(error.__traceback__)
    node = _assert_at(test.tree, frame.tb_lineno) if frame else None
    source = _source(_asserted(node)) if node is not None else ""
    message = _message(error) if error.args else ""
    said = f" ({message})" if message else ""
    expected = _expected(node, frame) if node is not None and frame is not None else None
    if story and expected is not None:
        return f"check: {story}, expected {expected}{said}"
    parts = [part for part in (story, f"assert {source}" if source else "") if part]
    return f"check: {'; failed: '.join(parts) or 'an assertion failed'}{said}"


def _message(error: BaseException) -> str:
    """What the test says: as a rule a text, but `assert x, value` says any value."""
    said = error.args[0] if len(error.args) == 1 else error.args
    return cut(said, _SAID) if type(said) is str else short(said, _SAID)


def _said(error: BaseException) -> str:
    """`Name: text` of an exception that is not the program's; its text may quote what the program returned."""
    if weight(error.args, _SAID) >= _SAID:
        return f"{type(error).__name__}: {_message(error)}"
    return cut(traceback.format_exception_only(error)[-1].strip(), _SAID)


def _source(node: ast.expr) -> str:
    try:
        return short(ast.unparse(node).replace(".observed(", "("))
    except RecursionError:
        return ""


def _last_frame(trace: TracebackType | None) -> TracebackType | None:
    found = None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == FILE:
            found = trace
        trace = trace.tb_next
    return found


def _assert_at(tree: ast.Module, line: int) -> ast.Assert | None:
    best = None
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and node.lineno <= line <= (node.end_lineno or line):
            best = node
    return best


def _expected(node: ast.Assert, frame: TracebackType) -> str | None:
    """The other side of `assert candidate(…) == …`, or of `exp` in a checker's `out == exp`; None if there is none."""
    test = _asserted(node)
    if not (isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], (ast.Eq, ast.Is))):
        return None
    right = test.comparators[0]
    if any(isinstance(part, (ast.Call, ast.Await, ast.NamedExpr)) for part in ast.walk(right)):
        return _source(right)
    try:
        value = eval(compile(ast.Expression(right), FILE, "eval"), frame.tb_frame.f_globals, frame.tb_frame.f_locals)
    except Exception:
        return _source(right)
    return short(value)
