"""What of a program its answer needs: a static slice over top-level statements. Pure text in, text out.

Kept: imports; what binds a name that a kept statement reads; what may change such a name (an item, an attribute, a
method call, a registration, a call of a function that does one of these); what sets up a module (a seed, a recursion
limit); and classes, which a test may build. Left out: calls and tests of the answer, prints, the `__main__` block,
definitions that nothing reaches. What is in doubt stays. Calling the answer counts as no change: that is what a
demonstration does.

Not seen: names that are built from text, but for `globals()`, `eval` and their kind, beside which all definitions stay.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_DYNAMIC = {"globals", "locals", "vars", "eval", "exec", "__import__", "__builtins__", "compile"}
_ENDS = {"exit", "quit", "input", "print", "breakpoint", "help", "pprint", "display"}
_IMPURE = {"setattr", "delattr", "next", "map", "filter", "iter", "reversed", "list", "tuple", "sum", "set", "dict"}
_PURE = {name for name in dir(builtins) if not name.startswith("_")} - _DYNAMIC - _IMPURE
# Modules and functions that show, time or test an answer, or end the program; they prepare nothing.
_SHOWS = {"unittest", "doctest", "pytest", "timeit", "pprint", "time"}
_SHOW_CALLS = {("sys", "exit"), ("sys", "stdout"), ("sys", "stderr"), ("sys", "stdin"), ("os", "_exit")}


class _Facts(NamedTuple):
    """What executing a statement does, by global name."""

    binds: frozenset[str]
    reads: frozenset[str]  # now, or when something it defines is called
    changes: frozenset[str]  # may be changed in place
    prepares: bool  # it calls into an imported module, without calling the answer
    dynamic: bool


def names_bound(node: ast.AST) -> set[str]:
    """Names that executing this statement binds at its own level, conditional ones included."""
    found: set[str] = set()
    for part in _executed(node):
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(part.name)
        elif isinstance(part, (ast.Import, ast.ImportFrom)):
            found |= {(a.asname or a.name).split(".")[0] for a in part.names}
        elif isinstance(part, ast.Name) and isinstance(part.ctx, (ast.Store, ast.Del)):
            found.add(part.id)
        elif (isinstance(part, ast.ExceptHandler) and part.name) or (
            isinstance(part, (ast.MatchAs, ast.MatchStar)) and part.name
        ):
            found.add(part.name)
    return found


def is_main_block(node: ast.stmt) -> bool:
    """`if __name__ == "__main__":` without an else: it never runs where a program is judged."""
    return (
        isinstance(node, ast.If)
        and not node.orelse
        and isinstance(node.test, ast.Compare)
        and len(node.test.ops) == 1
        and isinstance(node.test.ops[0], ast.Eq)
        and {ast.unparse(node.test.left), ast.unparse(node.test.comparators[0])} == {"__name__", "'__main__'"}
    )


def needed(code: str, entry_point: str) -> str:
    """The statements of `code` that `entry_point` needs, as they are written. Raises SyntaxError.

    Comments between statements are lost.
    """
    body = [node for node in ast.parse(code).body if not is_main_block(node)]
    program = _Program(body, entry_point)
    facts = [program.facts(node) for node in body]
    wanted = {number for number, node in enumerate(body) if isinstance(node, (ast.Import, ast.ImportFrom))}
    names = {entry_point}
    everything = False
    while True:
        fresh = {
            number
            for number, (node, fact) in enumerate(zip(body, facts, strict=True))
            if number not in wanted and _wanted(node, fact, names, program, everything)
        }
        if not fresh:
            break
        wanted |= fresh
        for number in fresh:
            names |= facts[number].reads
        everything = everything or any(facts[n].reads & _DYNAMIC for n in fresh)
    return _source(code, body, wanted)


def _wanted(node: ast.stmt, fact: _Facts, names: set[str], program: _Program, everything: bool) -> bool:
    if fact.binds & names or fact.prepares or fact.dynamic:
        return True
    if fact.changes & names or any(names & program.behind(name) for name in fact.changes):
        return True
    if isinstance(node, ast.ClassDef):  # a test may build the program's own classes
        return not any(_root(base) in _SHOWS or _root(base) == "TestCase" for base in node.bases)
    return everything and bool(fact.binds)


class _Program:
    """The definitions of a program, and what calling them changes."""

    def __init__(self, body: list[ast.stmt], entry_point: str) -> None:
        self.entry = entry_point
        self.builtins = set(dir(builtins)).difference(*map(names_bound, body))
        self.imported: set[str] = set()
        self.defined: dict[str, list[ast.AST]] = {}
        self.methods: dict[str, list[ast.AST]] = {}
        self.aliases: dict[str, set[str]] = {}
        self._changes: dict[int, frozenset[str]] = {}
        for statement in body:
            for node in ast.walk(statement):
                self._note(node)
        for statement in body:
            for node in _executed(statement):
                self._note_alias(node)

    def _note(self, node: ast.AST) -> None:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            self.imported |= names_bound(node)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            self.defined.setdefault(node.name, []).append(node)
            self.methods.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.ClassDef):
            self.defined.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    self.defined.setdefault(target.id, []).append(node.value)

    def _note_alias(self, node: ast.AST) -> None:
        """`row = TABLE[0]`, `for row in TABLE`: what changes `row` changes TABLE."""
        if isinstance(node, ast.Assign):
            targets, value = list(node.targets), node.value
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
            targets, value = [node.target], node.value
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
            targets, value = [node.target], node.iter
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            targets, value = [node.optional_vars], node.context_expr
        else:
            return
        sources = set(self._may_be(value))
        for target in targets:
            for name in (n.id for n in ast.walk(target) if isinstance(n, ast.Name)):
                self.aliases.setdefault(name, set()).update(sources - {name})

    def _may_be(self, value: ast.expr) -> Iterator[str]:
        """Global names whose object an expression may give, or a part of it."""
        called = {id(n.func) for n in ast.walk(value) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        of_answer = {
            id(part)
            for call in ast.walk(value)
            if isinstance(call, ast.Call) and _root(call.func) == self.entry
            for part in ast.walk(call)
        }
        for node in ast.walk(value):
            if isinstance(node, ast.Name) and id(node) not in called and id(node) not in of_answer:
                yield node.id

    def behind(self, name: str) -> set[str]:
        """What `name` may stand for besides itself."""
        found: set[str] = set()
        queue = [name]
        while queue:
            for other in self.aliases.get(queue.pop(), ()):
                if other not in found:
                    found.add(other)
                    queue.append(other)
        return found

    def facts(self, statement: ast.stmt) -> _Facts:
        binds = frozenset(names_bound(statement))
        reads = frozenset(_reads(statement))
        executed = list(_executed(statement))
        changes = set(self._changed(executed, frozenset()))
        for node in executed:
            changes |= self._decorated(node)
        answers = any(isinstance(n, ast.Call) and _root(n.func) == self.entry for n in executed)
        calls = [n for n in executed if isinstance(n, (ast.Call, ast.Assign, ast.AugAssign))]
        prepares = not answers and any(self._prepares(n) for n in calls)
        dynamic = not answers and any(isinstance(n, ast.Name) and n.id in _DYNAMIC for n in executed)
        return _Facts(binds, reads, frozenset(changes), prepares and not self._only_binds(statement), dynamic)

    def _only_binds(self, statement: ast.stmt) -> bool:
        """An assignment of plain names, or a definition: wanted for what it binds or not at all."""
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            return True
        if isinstance(statement, ast.Assign):
            return all(isinstance(t, (ast.Name, ast.Tuple, ast.List)) for t in statement.targets)
        return isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)

    def _prepares(self, node: ast.AST) -> bool:
        """`random.seed(0)`, `getcontext().prec = 50`: a call into, or a setting of, an imported module."""
        if isinstance(node, ast.Call):
            path = _path(node.func)
        else:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]  # type: ignore[attr-defined]
            paths = [_path(t) for t in targets if isinstance(t, (ast.Attribute, ast.Subscript))]
            path = next(iter(paths), ())
        if not path or path[0] not in self.imported or path[0] in _SHOWS or path[0] in _ENDS:
            return False
        return path[:2] not in _SHOW_CALLS

    def _decorated(self, node: ast.AST) -> set[str]:
        """What decorators, base classes and metaclasses may change when a definition is made."""
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            return set()
        makers: list[ast.expr] = list(node.decorator_list)
        if isinstance(node, ast.ClassDef):
            makers += [*node.bases, *(k.value for k in node.keywords)]
        found: set[str] = set()
        for maker in makers:
            root = _root(maker)
            if isinstance(maker, ast.Attribute) or (isinstance(maker, ast.Call) and "." in ast.unparse(maker.func)):
                found.add(root)
            found |= self._called(root, frozenset())
        return found

    def _changed(self, nodes: Iterable[ast.AST], within: frozenset[str]) -> Iterator[str]:
        """Names whose objects these nodes may change in place."""
        for node in nodes:
            if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, (ast.Store, ast.Del)):
                yield _root(node)
            elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
                yield node.target.id
            elif isinstance(node, ast.Call):
                yield from self._by_call(node, within)

    def _by_call(self, call: ast.Call, within: frozenset[str]) -> Iterator[str]:
        root = _root(call.func)
        if isinstance(call.func, ast.Name):
            if root == self.entry or root in _PURE or root in _ENDS:
                return
            yield from self._called(root, within)
            if root not in self.defined or self._changes_arguments(root, within):
                yield from self._given(call)
        elif isinstance(call.func, ast.Attribute):
            name = call.func.attr
            ours = root in self.defined or root == self.entry or isinstance(_base(call.func), ast.Call)
            if ours and name in self.methods:
                if self._changes_arguments(name, within):
                    yield root
            elif root not in self.imported and root != self.entry:
                yield root
            for method in self.methods.get(name, ()):
                yield from self._by_running(method, within)
            if not (root == self.entry and name in self.methods):
                yield from self._given(call)

    def _given(self, call: ast.Call) -> Iterator[str]:
        """Names whose objects a call is given and may change: no builtin's, and no module's for `np.float64`."""
        for value in _arguments(call):
            name = _root(value)
            if name not in self.builtins and not (name in self.imported and isinstance(value, ast.Attribute)):
                yield name

    def _called(self, name: str, within: frozenset[str]) -> frozenset[str]:
        """Global names that calling `name` may change; the answer's own calls count as none."""
        if name in within or name == self.entry:
            return frozenset()
        found: set[str] = set()
        for definition in self.defined.get(name, ()):
            found |= self._by_running(definition, within | {name})
        return frozenset(found)

    def _by_running(self, definition: ast.AST, within: frozenset[str]) -> frozenset[str]:
        if id(definition) not in self._changes:
            self._changes[id(definition)] = frozenset()  # a function that calls itself adds nothing by that
            nodes = list(ast.walk(definition))
            declared = {n for node in nodes if isinstance(node, ast.Global) for n in node.names}
            stored = {n.id for n in nodes if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
            own = ({a.arg for n in nodes if isinstance(n, ast.arguments) for a in _parameters(n)} | stored) - declared
            changed = set(self._changed(nodes, within)) | (stored & declared)
            sources = {n.id for n in nodes if isinstance(n, ast.Name)} - own
            # Through a name of its own, a function may reach any global that it mentions; a builtin cannot be changed,
            # and what a test of the answer compares by an imported function sets up no module.
            through = sources - set(self.defined) - self.builtins if changed & stored - declared else set()
            if self._tests_answer(nodes):
                through -= self.imported
            self._changes[id(definition)] = frozenset((changed - own) | through)
        return self._changes[id(definition)]

    def _tests_answer(self, nodes: list[ast.AST]) -> bool:
        """Whether a function's nodes call the answer and set no attribute or item (`getcontext().prec = 50` does)."""
        calls = any(isinstance(n, ast.Call) and _root(n.func) == self.entry for n in nodes)
        return calls and not any(isinstance(n, (ast.Attribute, ast.Subscript)) and not _loads(n) for n in nodes)

    def _changes_arguments(self, name: str, within: frozenset[str]) -> bool:
        for definition in [*self.defined.get(name, ()), *self.methods.get(name, ())]:
            nodes = list(ast.walk(definition))
            own = {a.arg for n in nodes if isinstance(n, ast.arguments) for a in _parameters(n)}
            if name not in within and own & {*self._changed(nodes, within | {name}), *_kept(nodes)}:
                return True
        return False


def _kept(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Names whose objects are put where they outlast a call: `self.all = rows`, `TABLE[name] = function`."""
    for node in nodes:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Name)
            and any(isinstance(t, (ast.Attribute, ast.Subscript)) for t in node.targets)
        ):
            yield node.value.id


def _parameters(node: ast.arguments) -> list[ast.arg]:
    extra = [a for a in (node.vararg, node.kwarg) if a]
    return [*node.posonlyargs, *node.args, *node.kwonlyargs, *extra]


def _arguments(call: ast.Call) -> Iterator[ast.expr]:
    """What a call is given that has a name: `a`, `a.b`, `a[0]`, as they are or within a display."""
    parts = [*call.args, *(k.value for k in call.keywords)]
    while parts:
        part = parts.pop()
        if isinstance(part, (ast.Tuple, ast.List, ast.Set)):
            parts += part.elts
        elif isinstance(part, ast.Starred):
            parts.append(part.value)
        elif isinstance(part, (ast.Name, ast.Attribute, ast.Subscript)) and isinstance(_base(part), ast.Name):
            yield part


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """The node and what runs with it: no function bodies, but decorators, defaults, class bodies, comprehensions."""
    yield node
    if isinstance(node, ast.Lambda):
        return
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        parts: list[ast.AST] = [*node.decorator_list, *node.args.defaults, *(d for d in node.args.kw_defaults if d)]
    else:
        parts = list(ast.iter_child_nodes(node))
    for part in parts:
        if isinstance(node, ast.ClassDef) and isinstance(part, ast.stmt):
            # Names bound in a class body are its own; what it runs is not.
            yield from (n for n in _executed(part) if not _is_binding(n))
        elif isinstance(node, _COMPREHENSIONS):
            yield from (n for n in _executed(part) if not (isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)))
        else:
            yield from _executed(part)


def _is_binding(node: ast.AST) -> bool:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)):
        return True
    return isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)


def _reads(statement: ast.stmt) -> set[str]:
    """Global names that a statement reads, now or later: those of functions without their own variables."""
    return _free(statement, frozenset())


def _free(node: ast.AST, local: frozenset[str]) -> set[str]:
    if isinstance(node, ast.Name):
        return {node.id} - local if isinstance(node.ctx, ast.Load) else set()
    if isinstance(node, ast.Global):
        return set(node.names)
    if isinstance(node, _FUNCTIONS):
        outside: list[ast.AST] = [*node.args.defaults, *(d for d in node.args.kw_defaults if d)]
        outside += [a.annotation for a in _parameters(node.args) if a.annotation]
        inside: list[ast.AST] = [node.body] if isinstance(node, ast.Lambda) else list(node.body)
        if not isinstance(node, ast.Lambda):
            outside += [*node.decorator_list, *([node.returns] if node.returns else [])]
        declared = {n for part in inside for x in ast.walk(part) if isinstance(x, ast.Global) for n in x.names}
        bound = {a.arg for a in _parameters(node.args)}
        for part in inside:
            bound |= names_bound(part)
        own = (local | bound) - declared
        return set().union(*(_free(p, local) for p in outside), *(_free(p, frozenset(own)) for p in inside))
    if isinstance(node, _COMPREHENSIONS):
        targets = {n.id for g in node.generators for n in ast.walk(g.target) if isinstance(n, ast.Name)}
        first = _free(node.generators[0].iter, local)
        return first.union(*(_free(p, local | frozenset(targets)) for p in ast.iter_child_nodes(node)))
    if isinstance(node, (ast.For, ast.AsyncFor)):  # what its own head binds is no other statement's affair
        mine = frozenset(n.id for n in ast.walk(node.target) if isinstance(n, ast.Name) and not _loads(n))
        head = _free(node.iter, local) | _free(node.target, local)
        return head.union(*(_free(p, local | mine) for p in [*node.body, *node.orelse]))
    return set().union(*(_free(part, local) for part in ast.iter_child_nodes(node)))


def _loads(node: ast.Name | ast.Attribute | ast.Subscript) -> bool:
    return isinstance(node.ctx, ast.Load)


def _base(node: ast.AST) -> ast.AST:
    """What stands left of all dots and brackets."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Starred)):
        node = node.value
    return node


def _root(node: ast.AST) -> str:
    """The name left of all dots, brackets and calls; "" if it is none."""
    while True:
        node = _base(node)
        if isinstance(node, ast.Call):
            node = node.func
        else:
            return node.id if isinstance(node, ast.Name) else ""


def _path(node: ast.AST) -> tuple[str, ...]:
    """Names of a dotted expression, calls and brackets passed over: `a.b().c` → a, b, c."""
    if isinstance(node, ast.Attribute):
        before = _path(node.value)
        return (*before, node.attr) if before else ()
    if isinstance(node, (ast.Subscript, ast.Starred)):
        return _path(node.value)
    if isinstance(node, ast.Call):
        return _path(node.func)
    return (node.id,) if isinstance(node, ast.Name) else ()


def _source(code: str, body: list[ast.stmt], wanted: set[int]) -> str:
    """The wanted statements' own text: whole lines, or the part of a line that is theirs where `;` joins several."""
    lines = code.split("\n")
    users: dict[int, int] = {}
    spans = []
    for node in body:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        last = node.end_lineno or first
        spans.append((first, last))
        for line in {first, last}:
            users[line] = users.get(line, 0) + 1
    kept = []
    for number in sorted(wanted):
        node, (first, last) = body[number], spans[number]
        if users[first] > 1 or users[last] > 1:
            kept.append(ast.get_source_segment(code, node) or ast.unparse(node))
        else:
            kept.append("\n".join(lines[first - 1 : last]))
    return "\n".join(kept) + "\n"
