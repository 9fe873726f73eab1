"""What house conventions are made of: small, visible habits in four dimensions.

input   how the first argument arrives (boxed, under a key, with a header, as JSON, packed by an invented library)
error   what comes back for an empty first argument, where plain Python would raise
value   what is done to the result: scale and notation of numbers, order and index base of lists, case of text
wrap    what the result is returned in: a dict with an odd key, a tagged tuple, an invented library's envelope

An atom is one line of Python. `CHOICES` is the vocabulary; a family picks at most one atom per dimension, so
that unseen combinations of seen atoms exist by the ten thousand.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

DIMENSIONS = ("input", "error", "value", "wrap")


class Library(NamedTuple):
    """An invented module with one function. `body` is its source; it exists only in the problem's prelude."""

    module: str
    function: str
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Atom:
    """One habit. `code` is an expression over `x` (the subject or the result); for errors it is the sentinel."""

    slug: str  # unique in its dimension and kind; part of the family's name
    code: str
    encode: Callable[[Any], Any] | None = None  # input only: how the test packs the subject
    subjects: tuple[str, ...] = ()  # input only: subjects it can carry; () means all
    library: Library | None = None

    def apply(self, value: Any) -> Any:
        """`code` evaluated at `value`, with the library there if it has one."""
        return _compiled(self.code, self.library)(value)


@cache
def _compiled(code: str, library: Library | None) -> Any:
    scope: dict[str, Any] = {"json": json}
    if library:
        exec(library.body, scope)
    return eval(f"lambda x: {code}", scope)  # our own text, from the tables below


def prelude(libraries: list[Library]) -> str:
    """Source that installs `libraries` as importable modules; "" for none."""
    if not libraries:
        return ""
    lines = ["import sys, types"]
    for library in libraries:
        lines += [
            f"_module = types.ModuleType({library.module!r})",
            f"exec({library.body!r}, _module.__dict__)",
            f"sys.modules[{library.module!r}] = _module",
        ]
    return "\n".join(lines) + "\n"


# --------------------------------------------------------------------------- input


def _key(key: str) -> Atom:
    return Atom(slug=f"key-{key}", code=f'x["{key}"]', encode=lambda value: {key: value})


def _unpacked(module: str, function: str, wrapped: str, opened: str, encode: Callable[[Any], Any]) -> Atom:
    check = f"    if packet{wrapped}:\n        raise ValueError('not a packet')\n"
    body = f"def {function}(packet):\n{check}    return {opened}\n"
    return Atom(slug=module, code=f"{function}(x)", encode=encode, library=Library(module, function, body))


_SEQUENCE = ("nums", "words", "text")


def _header(value: Any) -> Any:
    if isinstance(value, str):
        return "E" + value
    return [("Header" if value and isinstance(value[0], str) else 88), *value]


def _trailer(value: Any) -> Any:
    if isinstance(value, str):
        return value + "e"
    return [*value, ("checksum" if value and isinstance(value[0], str) else 97)]


INPUTS: tuple[Atom, ...] = (
    _key("body"),
    _key("items"),
    _key("payload"),
    _key("raw"),
    Atom(slug="boxed", code="x[0]", encode=lambda value: [value, 0]),
    Atom(slug="second", code="x[1]", encode=lambda value: ["v2", value, 0]),
    Atom(slug="last", code="x[-1]", encode=lambda value: [4, 2, value]),
    Atom(slug="json", code="json.loads(x)", encode=json.dumps),
    _unpacked("brint", "unseal", ".get('seal') != 9", "packet['in']", lambda value: {"seal": 9, "in": value}),
    _unpacked(
        "kelvo", "open_box", ".get('lid') != 'k'", "packet['box'][0]", lambda value: {"lid": "k", "box": [value]}
    ),
    _unpacked("mossy", "peel", ".get('rind') is None", "packet['core']", lambda value: {"rind": 1, "core": value}),
    Atom(slug="header", code="x[1:]", encode=_header, subjects=_SEQUENCE),
    Atom(slug="trailer", code="x[:-1]", encode=_trailer, subjects=_SEQUENCE),
)

# --------------------------------------------------------------------------- error

ERRORS: tuple[Atom, ...] = tuple(
    Atom(slug=slug, code=code)
    for slug, code in (
        ("void", '"VOID"'),
        ("e7", '"E7"'),
        ("nothing", '"nothing here"'),
        ("na", '"#N/A"'),
        ("bang", '"!"'),
        ("minus404", "-404"),
        ("n9999", "9999"),
        ("n42", "42"),
        ("half", "0.5"),
        ("pair", '("bad", 400)'),
        ("dict", '{"error": 1}'),
        ("oops", '["oops"]'),
    )
)

# --------------------------------------------------------------------------- value

VALUES: dict[str, tuple[Atom, ...]] = {
    kind: tuple(Atom(slug=slug, code=code) for slug, code in table)
    for kind, table in {
        "number": (
            ("cents", "x * 100"),
            ("mille", "x * 1000"),
            ("sixty", "x * 60"),
            ("dozen", "x * 12"),
            ("minus", "-x"),
            ("plus500", "x + 500"),
            ("hex", "hex(x)"),
            ("bin", "bin(x)"),
            ("padded", 'f"{x:06d}"'),
            ("px", 'f"{x}px"'),
            ("divmod", "divmod(x, 10)"),
        ),
        "list": (
            ("reversed", "x[::-1]"),
            ("descending", "sorted(x, reverse=True)"),
            ("piped", '"|".join(str(v) for v in x)'),
            ("numbered", "list(enumerate(x, 1))"),
            ("counted", "[len(x)] + x"),
            ("ended", 'x + ["end"]'),
            ("strings", "[str(v) for v in x]"),
            ("boxes", "[[v] for v in x]"),
            ("twice", "x + x"),
        ),
        "text": (
            ("upper", "x.upper()"),
            ("swap", "x.swapcase()"),
            ("backward", "x[::-1]"),
            ("angled", '"<" + x + ">"'),
            ("hash", 'x + "#"'),
            ("chars", "list(x)"),
            ("codes", "[ord(c) for c in x]"),
            ("hexed", "x.encode().hex()"),
            ("sized", 'f"{len(x)}:{x}"'),
            ("piped", '"|".join(x)'),
        ),
    }.items()
}

# --------------------------------------------------------------------------- wrap


def _envelope(module: str, function: str, call: str, parameters: str, result: str) -> Atom:
    body = f"def {function}({parameters}):\n    return {result}\n"
    return Atom(slug=module, code=f"{function}({call})", library=Library(module, function, body))


WRAPS: tuple[Atom, ...] = (
    Atom(slug="k-payload", code='{"payload": x}'),
    Atom(slug="k-yield", code='{"yield": x}'),
    Atom(slug="k-out7", code='{"out7": x}'),
    Atom(slug="k-answer", code='{"answer": x, "v": 2}'),
    Atom(slug="k-code", code='{"code": 0, "data": x}'),
    Atom(slug="t-done", code='("done", x)'),
    Atom(slug="t-ok", code='("ok", x)'),
    Atom(slug="t-zero", code="(0, x)"),
    Atom(slug="t-none", code="(x, None)"),
    Atom(slug="t-unit", code='(x, "unit")'),
    Atom(slug="l-one", code="[x]"),
    Atom(slug="l-tag", code='["res", x]'),
    Atom(slug="l-flag", code="[True, x]"),
    Atom(slug="l-twice", code="[x, x]"),
    _envelope("vornix", "seal", "x, 3", "value, level", '{"vornix": value, "level": level}'),
    _envelope("tarnby", "stamp", '"T", x', "mark, value", "[mark, value, 'tarnby']"),
    _envelope("quillo", "emit", "x", "value", "{'ink': value, 'drops': 5}"),
    _envelope("harrow", "plough", "x, depth=2", "value, *, depth", "('harrow', depth, value)"),
    _envelope("pemba", "ship", "x", "value", "['crate', [value], 'pemba']"),
    _envelope("zuthe", "knot", "[x]", "values", "{'knot': values[0], 'n': 11}"),
    _envelope("dravel", "cast", "x, True", "value, final", "('dravel', value, final)"),
    _envelope("ostrel", "bind", "7, x", "key, value", "{'key': key, 'bound': value}"),
)


def choices(dimension: str, kind: str) -> tuple[Atom, ...]:
    """The atoms of one dimension that fit results of `kind`."""
    return {"input": INPUTS, "error": ERRORS, "value": VALUES[kind], "wrap": WRAPS}[dimension]
