"""Break single expressions of the core at random and count how many breakages the fast tests notice.

`tools/mutants.py` holds breakages that somebody thought of; this one draws them: a comparison turned round, a
bound off by one, a statement left out, a truth value inverted. tests/mutants/wide.toml names the files, by area.
A first run of `make test`'s tests records which of them reach which line (coverage.py, one context a test), and how
long each takes; a mutant is then tried against those only, quickest first, until one fails. Where no test reaches the
line in its own process (constants, the sandbox's children), those that reach the file and those that wide.toml names
for the area are meant. Either way only as many as fit --budget;
`--keys KEY … --tests PATH …` tries what survived against others, slower or just written.

    python tools/mutants_wide.py --sample 120 --seed 1      → artifacts/mutants-wide.jsonl, goes on where it stopped
    python tools/mutants_wide.py --only analysis/stats.py            mutants of some files
    python tools/mutants_wide.py --sample 0 --budget 10 40 150 --jobs 38 --warm      all, in random order, on many cores

A survivor is a missing test until tests/mutants/survivors.toml says otherwise: "equivalent" (no behaviour differs)
or "accepted" (it differs, and why no test is wanted). Equivalent ones leave the count.
Exit codes: 0 at least --floor per cent caught · 1 fewer · 2 the tree or the lists are at fault.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import hashlib
import json
import queue
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).parent))
from warm import Warm

import mutants as listed

ROOT = listed.ROOT
AREAS = ROOT / "tests" / "mutants" / "wide.toml"
SURVIVORS = ROOT / "tests" / "mutants" / "survivors.toml"
VERDICTS = ("equivalent", "accepted")
DO_NOT_END = "the tests do not end"

_COMPARE = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.In: "not in", ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is",
}  # fmt: skip
_ARITHMETIC = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*", ast.Pow: "*",
    ast.MatMult: "+", ast.BitAnd: "|", ast.BitOr: "&", ast.LShift: ">>", ast.RShift: "<<",
}  # fmt: skip
_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list", "sum": "max", "abs": "float"}


@dataclass(frozen=True, kw_only=True)
class Area:
    """Files that belong together, and the tests that should notice when one of them is wrong."""

    name: str
    files: tuple[str, ...]
    tests: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """One place of one file with other text in it."""

    key: str  # stable while the function and its text stand: file, function, operator, text, which of several
    file: str  # "src/rune/analysis/stats.py"
    line: int
    area: str
    what: str  # "`<` → `<=`"
    start: int  # byte offsets of the old text
    end: int
    new: str


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What became of a mutant: caught, survived, undecided (survived, but tests that reach it do not run on this
    machine) or unfit (the suite could not run)."""

    key: str
    file: str
    line: int
    area: str
    what: str
    outcome: str
    by: str  # the test that failed
    tests: int  # how many were selected
    seconds: float
    budget: float = 0.0  # that the tests were chosen for


# --------------------------------------------------------------------------- drawing mutants


class _Finder(ast.NodeVisitor):
    """Collects (node, operator, new text) over one module; annotations and docstrings are left alone."""

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.lines = [0]
        for line in source.split(b"\n"):
            self.lines.append(self.lines[-1] + len(line) + 1)
        self.scope: list[str] = []
        self.found: list[tuple[str, str, int, int, int, str]] = []  # scope, operator, line, start, end, new

    def span(self, node: ast.AST) -> tuple[int, int]:
        start = self.lines[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        return start, self.lines[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def text(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.source[start:end].decode()

    def add(self, node: ast.AST, operator: str, new: str) -> None:
        start, end = self.span(node)
        if self.source[start:end].decode() != new:
            where = ".".join(self.scope)
            self.found.append((where, operator, node.lineno, start, end, new))  # type: ignore[attr-defined]

    def between(self, left: ast.AST, right: ast.AST, old_new: tuple[str, str], operator: str) -> None:
        """Replace an operator that stands between two operands."""
        start, end = self.span(left)[1], self.span(right)[0]
        gap = self.source[start:end].decode()
        old, new = old_new
        if gap.count(old) == 1:
            at = start + len(gap[: gap.index(old)].encode())
            line = self.source[:at].count(b"\n") + 1
            self.found.append((".".join(self.scope), operator, line, at, at + len(old.encode()), new))

    # -- scopes

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.scope.append(node.name)
        for default in (*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)):
            self.visit(default)
        for statement in _body(node):
            self.visit(statement)
        self.scope.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.scope.append(node.name)
        for statement in _body(node):
            self.visit(statement)
        self.scope.pop()

    def visit_Module(self, node: ast.Module) -> None:
        for statement in _body(node):
            self.visit(statement)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    # -- statements

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call) and self.scope:
            self.add(node, "statement left out", "pass")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.add(node, "statement left out", "pass")
        self.visit(node.value)

    def visit_Raise(self, node: ast.Raise) -> None:
        self.add(node, "raise left out", "pass")  # what it says is no behaviour

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
            self.add(node, "returns None", "return None")
            self.visit(node.value)

    def visit_Break(self, node: ast.Break) -> None:
        self.add(node, "break", "continue")

    def visit_Continue(self, node: ast.Continue) -> None:
        self.add(node, "continue", "break")

    def visit_If(self, node: ast.If) -> None:
        self.condition(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.condition(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self.condition(test)
        self.generic_visit(node)

    def condition(self, test: ast.expr) -> None:
        if not isinstance(test, ast.Compare | ast.UnaryOp):
            self.add(test, "condition inverted", f"(not ({self.text(test)}))")

    # -- expressions

    def visit_Compare(self, node: ast.Compare) -> None:
        left: ast.AST = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            old = {ast.NotIn: "not in", ast.IsNot: "is not"}.get(type(operator)) or _sign(operator)
            self.between(left, right, (old, _COMPARE[type(operator)]), "comparison")
            left = right
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.between(left, right, (old, new), "and/or")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.USub):
            self.add(node, "sign or not dropped", f"({self.text(node.operand)})")
        self.visit(node.operand)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        literal = isinstance(node.left, ast.Constant | ast.JoinedStr) and isinstance(_value(node.left), str)
        if type(node.op) in _ARITHMETIC and not literal:
            self.between(node.left, node.right, (_sign(node.op), _ARITHMETIC[type(node.op)]), "arithmetic")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if value is True or value is False:
            self.add(node, "truth value", str(not value))
        elif type(value) is int:
            self.add(node, "number", str(value + 1))
        elif type(value) is float:
            self.add(node, "number", repr(value * 2 if value else 1.0))

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in _CALLS:
            self.add(node.func, "call", _CALLS[node.func.id])
        self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Words to people: not mutated."""

    def visit_Assert(self, node: ast.Assert) -> None:
        """A check of our own invariants: leaving it out changes nothing that is right."""


def _body(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.stmt]:
    first = node.body[0] if node.body else None
    has_docstring = isinstance(first, ast.Expr) and isinstance(_value(first.value), str)
    return node.body[1:] if has_docstring else node.body


def _value(node: ast.AST) -> object:
    return node.value if isinstance(node, ast.Constant) else "" if isinstance(node, ast.JoinedStr) else None


_SIGNS = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=", ast.In: "in", ast.Is: "is",
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
    ast.MatMult: "@", ast.BitAnd: "&", ast.BitOr: "|", ast.LShift: "<<", ast.RShift: ">>",
}  # fmt: skip


def _sign(operator: ast.AST) -> str:
    return _SIGNS[type(operator)]


def mutations(path: Path, area: str, *, root: Path = ROOT) -> list[Mutation]:
    """Every mutant of one file that still compiles, in order of place."""
    source = path.read_bytes()
    finder = _Finder(source)
    module = ast.parse(source)
    finder.visit(module)
    statements = [_whole(finder, node) for node in module.body]
    name = path.relative_to(root).as_posix()
    result, seen = [], {}
    for scope, operator, line, start, end, new in sorted(finder.found, key=lambda f: (f[3], f[4], f[5])):
        first, last = next((f, e) for f, e in statements if f <= start < e)
        try:
            compile(source[first:start] + new.encode() + source[end:last], name, "exec")
        except (SyntaxError, ValueError):
            continue
        old = " ".join(source[start:end].decode().split())
        base = f"{name}|{scope}|{operator}|{_context(source, line)}|{old}"
        seen[base] = seen.get(base, 0) + 1
        key = hashlib.sha256(f"{base}|{seen[base]}".encode()).hexdigest()[:12]
        shown = f"{operator}: `{old[:60]}` → `{new[:60]}`"
        result.append(Mutation(key=key, file=name, line=line, area=area, what=shown, start=start, end=end, new=new))
    return result


def _whole(finder: _Finder, node: ast.stmt) -> tuple[int, int]:
    """Where a statement of a module begins, its decorators included, and ends."""
    decorators = getattr(node, "decorator_list", [])
    return finder.lines[min([node.lineno, *(d.lineno for d in decorators)]) - 1], finder.span(node)[1]


def _context(source: bytes, line: int) -> str:
    return " ".join(source.split(b"\n")[line - 1].decode().split())


def areas(path: Path = AREAS) -> list[Area]:
    """The areas of wide.toml. Raises ValueError for a glob that names no file or a test that is not there."""
    result = [
        Area(name=a["name"], files=tuple(a["files"]), tests=tuple(a["tests"]))
        for a in tomllib.loads(path.read_text(encoding="utf-8"))["area"]
    ]
    for area in result:
        for pattern in area.files:
            if not list((ROOT / "src" / "rune").glob(pattern)):
                raise ValueError(f"{path}: area '{area.name}': no file src/rune/{pattern}; update it")
        for test in area.tests:
            if not (ROOT / test).exists():
                raise ValueError(f"{path}: area '{area.name}': no test at {test}; update it")
    return result


def triaged(path: Path = SURVIVORS) -> dict[str, str]:
    """Key → "equivalent" or "accepted". Raises ValueError for another word or a missing reason."""
    if not path.exists():
        return {}
    result = {}
    for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("survivor", []):
        if entry.get("verdict") not in VERDICTS or not entry.get("why"):
            raise ValueError(f"{path}: {entry.get('key')}: needs verdict (one of {', '.join(VERDICTS)}) and why")
        result[entry["key"]] = entry["verdict"]
    return result


# --------------------------------------------------------------------------- which tests reach a line


class Reach:
    """Which tests ran which line, and how long each took: read from coverage.py's database and a durations file."""

    def __init__(self, folder: Path) -> None:
        self.seconds: dict[str, float] = json.loads((folder / "seconds.json").read_text(encoding="utf-8"))
        base = sqlite3.connect(folder / "coverage.db")
        contexts = dict(base.execute("select id, context from context"))
        files = dict(base.execute("select id, path from file"))
        left_out = folder / "left-out.json"
        self.left_out: set[str] = set(json.loads(left_out.read_text(encoding="utf-8"))) if left_out.exists() else set()
        files_of: dict[str, list[float]] = {}
        for test, seconds in self.seconds.items():
            files_of.setdefault(test.partition("::")[0], []).append(seconds)
        self.shared = {file: sorted(each)[-2] if len(each) > 1 else 0.0 for file, each in files_of.items()}
        self.lines: dict[tuple[str, int], set[str]] = {}
        self.files: dict[str, set[str]] = {}
        for file, context, bits in base.execute("select file_id, context_id, numbits from line_bits"):
            test = contexts[context].partition("|")[0]
            name = "src/rune/" + files[file].partition("/src/rune/")[2]
            for number in _numbits(bits):
                self.lines.setdefault((name, number), set()).add(test)
            self.files.setdefault(name, set()).add(test)

    def tests(self, mutation: Mutation, budget: float, area: Sequence[str] = ("",)) -> list[str]:
        """Tests that ran the mutant's line, quickest first. Where only an import did, or nothing was seen: those of
        the file and the `area`.

        As many as take `budget` seconds (one at least). The first of a file pays for what its tests share: as much as
        the slowest but one took, since two processes recorded them and in each some test paid.
        """
        found = {t for t in self.lines.get((mutation.file, mutation.line), ()) if t in self.seconds}
        shared = dict(self.shared)
        if not found:
            found = {t for t in self.seconds if t.startswith(tuple(area)) or t in self.files.get(mutation.file, ())}
        ordered = sorted(found, key=lambda t: (self.seconds[t], t))
        chosen: list[str] = []
        spent = 0.0
        for test in ordered:
            file = test.partition("::")[0]
            cost = self.seconds[test] + shared.get(file, 0.0)
            if spent + cost <= budget:
                spent += cost
                shared.pop(file, None)
                chosen.append(test)
        chosen = chosen or ordered[:1]
        files: dict[str, float] = {}
        for test in chosen:
            files[test.partition("::")[0]] = files.get(test.partition("::")[0], 0.0) + self.seconds[test]
        # whole files, so that what a file's tests share is made once
        return sorted(chosen, key=lambda t: (files[t.partition("::")[0]], t.partition("::")[0], self.seconds[t], t))

    def cost(self, tests: Sequence[str]) -> float:
        """Seconds that `tests` took when recorded, with what those of a file share."""
        return sum(self.seconds[t] for t in tests) + sum(self.shared[f] for f in {t.partition("::")[0] for t in tests})

    def undecided(self, mutation: Mutation, area: Sequence[str] = ("",)) -> bool:
        """Whether a test that was left out would have been tried: what survives here may be caught elsewhere."""
        seen = self.lines.get((mutation.file, mutation.line), set())
        if seen & self.seconds.keys():
            return bool(seen & self.left_out)
        return any(t.startswith(tuple(area)) or t in self.files.get(mutation.file, ()) for t in self.left_out)


def _numbits(bits: bytes) -> Iterator[int]:
    return (8 * i + b for i, byte in enumerate(bits) for b in range(8) if byte & (1 << b))


def record(
    folder: Path, tree: Path, tests: Sequence[str], *, spare: int = 0, jobs: int = 2, seconds_for_all: float = 3600
) -> list[str]:
    """Run `tests` in `tree` on `jobs` processes, a coverage context for each; returns those that fail already, which
    are left out.

    Raises RuntimeError if more than `spare` do: nothing is mutated yet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "coverage.ini"
    settings.write_text(f"[run]\ndata_file = {folder / 'coverage.db'}\nsource = {tree / 'src' / 'rune'}\n")
    command = [
        *("-p", "pytest_cov", "--cov", "--cov-context=test", f"--cov-config={settings}", "--cov-report="),
        *("-n", str(jobs), "--dist", "loadfile", f"--junitxml={folder / 'junit.xml'}", "-o", "junit_family=xunit1"),
        *(
            "-m",
            "not model and not slow and not vllm and not check",
            f"--maxfail={spare + 1}",
            "--continue-on-collection-errors",
        ),
    ]
    code, output = listed.run_tests(tree, tests, *command, seconds=seconds_for_all)
    seconds, failed = {}, []
    table = folder / "junit.xml"
    ran = code in (0, 1) and table.exists()
    for case in ElementTree.parse(table).iter("testcase") if ran else ():
        file = case.get("file") or ""
        module = file.removesuffix(".py").replace("/", ".")
        inner = (case.get("classname") or "").removeprefix(module).strip(".").replace(".", "::")
        name = "::".join(part for part in (file, inner, case.get("name") or "") if part)
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(name)
        else:
            seconds[name] = float(case.get("time") or 0)
    if not ran or len(failed) > spare:
        raise RuntimeError(f"the unbroken tree fails already (pytest ended with {code}): {output[-600:]}")
    (folder / "left-out.json").write_text(json.dumps(failed))
    (folder / "seconds.json").write_text(json.dumps(seconds))
    return failed


# --------------------------------------------------------------------------- trying


Runner = Callable[..., tuple[int, str]]  # as mutants.run_tests


def try_one(
    mutation: Mutation, tree: Path, tests: Sequence[str], limit: float, run: Runner | None = None, budget: float = 0.0
) -> Tried:
    """Apply the mutant in `tree`, run `tests` until one fails, and put the file back."""
    file = tree / mutation.file
    whole = file.read_bytes()
    started = time.monotonic()
    try:
        file.write_bytes(whole[: mutation.start] + mutation.new.encode() + whole[mutation.end :])
        code, output = (run or listed.run_tests)(tree, tests, "-x", "-n", "0", seconds=limit)
    finally:
        file.write_bytes(whole)
    if code in (0, 5):
        outcome, by = "survived", ""
    elif code == 124:
        outcome, by = "caught", DO_NOT_END
    elif code in (1, 2) or code < 0:  # a test fails; a file can no longer be imported; the process dies
        outcome, by = "caught", listed._first_failure(output)
    else:  # nothing was run, so nothing was noticed
        outcome, by = "unfit", listed._first_failure(output)
    return Tried(
        key=mutation.key, file=mutation.file, line=mutation.line, area=mutation.area, what=mutation.what,
        outcome=outcome, by=by, tests=len(tests), seconds=round(time.monotonic() - started, 1), budget=budget,
    )  # fmt: skip


class Sound:
    """Which tests pass by themselves in the unbroken tree: one that does not catches nothing."""

    def __init__(self) -> None:
        self._known: dict[str, bool] = {}

    def __call__(self, result: Tried, tree: Path, tests: Sequence[str], limit: float, run: Runner) -> bool:
        if result.outcome != "caught" or ("::" not in result.by and result.by != DO_NOT_END):
            return True
        if result.by == DO_NOT_END:
            return run(tree, tests, "-x", "-n", "0", seconds=limit)[0] != 124
        if result.by not in self._known:  # 4: a name that pytest cuts short is not found again
            self._known[result.by] = run(tree, [result.by], "-n", "0", seconds=limit)[0] in (0, 4)
        return self._known[result.by]


def choose(every: Sequence[Mutation], count: int, seed: int) -> list[Mutation]:
    """`count` mutants, each equally likely; the same for the same seed and tree."""
    ordered = sorted(every, key=lambda m: m.key)
    return random.Random(seed).sample(ordered, min(count, len(ordered)))


def summary(tried: Sequence[Tried], verdicts: dict[str, str]) -> dict[str, object]:
    """Counts over all that was tried; a survivor that is equivalent is no mutant, an undecided one counts as open."""
    survivors = [t for t in tried if t.outcome in ("survived", "undecided")]
    equivalent = [t for t in survivors if verdicts.get(t.key) == "equivalent"]
    accepted = [t for t in survivors if verdicts.get(t.key) == "accepted"]
    caught = [t for t in tried if t.outcome == "caught"]
    real = len(tried) - len(equivalent)
    return {
        "tried": len(tried),
        "caught": len(caught),
        "equivalent": len(equivalent),
        "accepted": len(accepted),
        "open": len(tried) - len(caught) - len(equivalent) - len(accepted),
        "undecided": sum(t.outcome == "undecided" and t.key not in verdicts for t in tried),
        "caught_percent": round(100 * len(caught) / real, 1) if real else None,
    }


def by_area(tried: Sequence[Tried], verdicts: dict[str, str]) -> dict[str, dict[str, object]]:
    """`summary` of each area."""
    return {name: summary([t for t in tried if t.area == name], verdicts) for name in sorted({t.area for t in tried})}


def latest(tried: Iterable[Tried]) -> dict[str, Tried]:
    """Key → the last outcome of it; who was caught once is caught."""
    result: dict[str, Tried] = {}
    for t in tried:
        if t.key not in result or result[t.key].outcome != "caught":
            result[t.key] = t
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=120, help="how many mutants to draw; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="files whose path ends so")
    parser.add_argument("--keys", nargs="*", default=[], help="these mutants, whatever was drawn")
    parser.add_argument("--tests", nargs="*", default=[], help="try against these instead of those that reach the line")
    parser.add_argument("--jobs", type=int, default=2, help="copies of the tree worked in at once")
    parser.add_argument("--seconds", type=int, default=900, help="for one mutant's tests; running out counts as caught")
    parser.add_argument(
        "--budget", type=float, nargs="*", default=[150],
        help="seconds that one mutant's tests took when recorded; several: survivors are tried again with the next",
    )  # fmt: skip
    parser.add_argument("--warm", action="store_true", help="fork pytest from processes that have imported torch")
    parser.add_argument("--record-jobs", type=int, default=2, help="processes that record which test reaches what")
    parser.add_argument("--record-tests", nargs="*", default=["tests"], help="what is recorded, and tried from then on")
    parser.add_argument("--spare", type=int, default=20, help="tests that may fail already; they are left out")
    parser.add_argument("--stop-after", type=float, default=float("inf"), help="seconds after which none is begun")
    parser.add_argument("--floor", type=float, default=90.0, help="per cent that must be caught")
    parser.add_argument(
        "--reach",
        type=lambda p: Path(p).resolve(),
        default=ROOT / "artifacts" / "reach",
        help="folder of recorded lines; made if absent",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "artifacts" / "mutants-wide.jsonl")
    parser.add_argument("--list", action="store_true", help="print the mutants drawn and stop")
    args = parser.parse_args()
    try:
        found, verdicts = areas(), triaged()
    except (ValueError, KeyError, OSError) as error:
        print(f"mutants-wide: {error}", file=sys.stderr)
        return 2
    every: dict[str, Mutation] = {}
    for area in found:
        for pattern in area.files:
            for path in sorted((ROOT / "src" / "rune").glob(pattern)):
                if path.name != "__init__.py":
                    every.update((m.key, m) for m in mutations(path, area.name))
    pool = [m for m in every.values() if not args.only or m.file.endswith(tuple(args.only))]
    chosen = [every[k] for k in args.keys if k in every] or choose(pool, args.sample or len(pool), args.seed)
    if args.list:
        for m in chosen:
            print(f"{m.key}  {m.file}:{m.line}  {m.what}")
        print(f"{len(chosen)} of {len(every)}")
        return 0
    args.out.parent.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    before = latest(Tried(**json.loads(line)) for line in _lines(args.out))
    done = {} if args.keys else before
    with tempfile.TemporaryDirectory(prefix="rune-wide-") as scratch:
        Path(scratch).chmod(0o755)  # for tests that run as another user
        places: queue.SimpleQueue[tuple[Path, Runner]] = queue.SimpleQueue()
        for number in range(args.jobs):
            tree = Path(scratch) / f"tree{number}" / "rune"
            tree.mkdir(parents=True)
            listed.copy_tree(tree)
            places.put((tree, _warm_runner(Warm()) if args.warm else listed.run_tests))
        first = places.get()
        places.put(first)
        if args.tests:  # one that fails anyhow would "catch" every mutant
            code, output = first[1](first[0], args.tests, "-x", "-n", "0", seconds=args.seconds)
            if code != 0:
                print(f"mutants-wide: --tests fail without a mutant: {listed._first_failure(output)}", file=sys.stderr)
                return 2
        named = {area.name: area.tests for area in found}
        reach = None
        if not args.tests:
            if not (args.reach / "seconds.json").exists():
                print("which tests reach which line", flush=True)
                try:
                    for name in record(
                        args.reach,
                        first[0],
                        args.record_tests,
                        spare=args.spare,
                        jobs=args.record_jobs,
                        seconds_for_all=min(3600, args.stop_after / 3),
                    ):
                        print(f"fails already, left out: {name}", flush=True)
                except RuntimeError as error:
                    print(f"mutants-wide: {error}", file=sys.stderr)
                    return 2
            reach = Reach(args.reach)
        sound = Sound()

        def work(mutation: Mutation, budget: float) -> Tried | None:
            if time.monotonic() - begun > args.stop_after:
                return None
            tree, run = places.get()
            try:
                return decide(mutation, tree, run, budget)
            finally:
                places.put((tree, run))

        def decide(mutation: Mutation, tree: Path, run: Runner, budget: float) -> Tried:
            tests, limit = list(args.tests), args.seconds
            if reach:
                tests = reach.tests(mutation, budget, named[mutation.area])
                if mutation.key in done:  # survived the budget before
                    met = set(reach.tests(mutation, done[mutation.key].budget, named[mutation.area]))
                    tests = [t for t in tests if t not in met]
                limit = min(limit, 30 + 5 * reach.cost(tests))
            while tests:
                result = try_one(mutation, tree, tests, limit, run, budget)
                if result.outcome == "unfit":  # a single test of a file that cannot be imported is not found
                    files = sorted({t.partition("::")[0] for t in tests})
                    result = try_one(mutation, tree, files, args.seconds, run, budget)
                if sound(result, tree, tests, limit, run):
                    break
                print(f"fails by itself too, left out: {result.by}", flush=True)
                tests = [t for t in tests if t != result.by] if result.by != DO_NOT_END else []
            if not tests:
                result = replace(done[mutation.key], budget=budget) if mutation.key in done else _untried(mutation)
            if result.outcome == "survived" and reach and reach.undecided(mutation, named[mutation.area]):
                result = replace(result, outcome="undecided")
            return result

        with concurrent.futures.ThreadPoolExecutor(args.jobs) as workers, args.out.open("a", encoding="utf-8") as log:
            for budget in args.budget:
                todo = [m for m in chosen if m.key not in done or _may_be_caught_with(budget, done[m.key])]
                print(f"{len(chosen)} mutants of {len(every)}, {len(todo)} to try within {budget:g} s", flush=True)
                for future in concurrent.futures.as_completed([workers.submit(work, m, budget) for m in todo]):
                    result = future.result()
                    if result is None:
                        continue
                    done[result.key] = result
                    log.write(json.dumps(asdict(result)) + "\n")
                    log.flush()
                    print(f"{result.outcome:<9}{result.key}  {result.file}:{result.line}  {result.what}", flush=True)
    chosen = [m for m in chosen if m.key in done]
    counts = summary([done[m.key] for m in chosen], verdicts)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    each = by_area([done[m.key] for m in chosen], verdicts)
    report = {"seed": args.seed, "commit": commit, "mutants": len(every), **counts, "areas": each}
    args.out.with_suffix(".summary.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    for m in chosen:
        if done[m.key].outcome != "caught" and m.key not in verdicts:
            print(f"{done[m.key].outcome} {m.key}  {m.file}:{m.line}  {m.what}")
    return 0 if (counts["caught_percent"] or 0) >= args.floor else 1  # type: ignore[operator]


def _may_be_caught_with(budget: float, tried: Tried) -> bool:
    return tried.outcome in ("survived", "undecided") and 0 < tried.budget < budget


def _untried(m: Mutation) -> Tried:
    return Tried(
        key=m.key, file=m.file, line=m.line, area=m.area, what=m.what, outcome="unfit", by="", tests=0, seconds=0.0
    )  # fmt: skip


def _warm_runner(warm: Warm) -> Runner:
    def run(tree: Path, tests: Sequence[str], *extra: str, seconds: float = listed.SECONDS) -> tuple[int, str]:
        command = [*listed.PYTEST[3:], *extra, *tests]
        return warm.run(tree, command, listed.environment(tree), seconds)

    return run


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())
