"""Functions that `pbb` trains on: one expression, a choice or a recursive step, drawn from a grammar of the easy tier.

A grammar and not a list, because a hypernetwork that is to read a function it has never seen needs thousands of them.
Which of them may train is `pbb.training`'s to say.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Callable, Mapping, Sequence

from rune.benchmarks._pbb_functions import EASY_INPUTS, Source, _make

# What parameters give without any step, by type: i number, t text, l list of numbers, w list of texts.
_ATOMS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "number": {"i": ("n",)},
    "numbers": {"i": ("a", "b")},
    "text": {"t": ("s",), "i": ("len(s)",)},
    "text and number": {"t": ("s",), "i": ("k", "k", "len(s)")},
    "words": {"w": ("ws",), "t": ("ws[0]", "ws[1]", "ws[-1]"), "i": ("len(ws)",)},
    "ints": {"l": ("xs",), "i": ("xs[0]", "xs[1]", "xs[-1]", "max(xs)", "min(xs)", "sum(xs)", "len(xs)")},
    "ints and number": {"l": ("xs",), "i": ("k", "k", "xs[0]", "xs[-1]", "max(xs)", "min(xs)")},
}
# One step, by the type that it gives. c and e: constants; d: a small one; q: a text of one or two letters.
_STEPS: Mapping[str, Sequence[str]] = {
    "i": (
        "{i} + {c}", "{i} + {c}", "{i} - {c}", "{c} - {i}", "{i} * {d}", "{i} * {d}", "{i} // {d}", "{i} % {d}",
        "{i} * 10 + {d}", "{i} + {i}", "{i} * {i}", "{i} - {i}", "max({i}, {i})", "min({i}, {c})", "len({t})",
        "len({t}) + {c}", "sum({l})", "sorted({l})[1]", "{i} + {c} if {i} < {e} else {i}",
    ),
    "t": (
        "{t} + {q}", "{t} + {q}", "{q} + {t}", "{q} + {t}", "{t} + {t}", "{t}[0]", "{t}[-1]", "{t}[1:]", "{t}[:{d}]",
        "{t}[:-1]", "{t}[::-1]", "{t}[1:] + {t}[0]", "{t}.upper()", "{t} * {d}", "{t} + str({i})", "str({i}) + {t}",
        "str({i}) + {q}", "{q}.join({t})", "''.join((c + {q} for c in {t}))", "{t}.replace({t}[0], {q})",
        "{q}.join({w})", "sorted({w})[0]", "{w}[-1] + {q}", "{t}[0] + {q} + {t}[1:]",
    ),
    "l": (
        "{l} + [{i}]", "[{i}] + {l}", "{l} + [{c}]", "{l}[1:]", "{l}[:-1]", "{l}[::-1]", "{l}[1:] + {l}[:1]",
        "sorted({l})", "sorted({l}, reverse=True)", "[{i}, {i}]", "[{i}, {c}]", "[x + {c} for x in {l}]",
        "[x * {d} for x in {l}]", "[x for x in {l} if x > {d}]", "[len(w) for w in {w}]", "{l} + {l}",
    ),
    "w": (
        "{w}[::-1]", "sorted({w})", "[w[0] for w in {w}]", "[w[-1] for w in {w}]", "[w + {q} for w in {w}]",
        "{w}[1:]", "{w} + [{q}]", "{w} + {w}", "[c for c in {t}]", "[c + {q} for c in {t}]", "[{t}, {t}]",
        "[w[::-1] for w in {w}]",
    ),
    "m": ("{{t}: {i}}", "{{i}: {i}}", "{{q}: {i}}", "{{q}: {t}}", "{{q}: {i}, {q}: {i}}", "{{i}: {t}}"),
}  # fmt: skip
_RECURSIONS: Mapping[str, Sequence[str]] = {
    "number": (
        "{d} if n < {c} else {d} + NAME(n - {d})", "n if n < {c} else NAME(n - {c})",
        "0 if n < {d} else n + NAME(n - {c})", "[n] if n < {c} else [n] + NAME(n - {c})",
        "{q} if n < {c} else {q} + NAME(n - {c})", "{q} if n < {c} else NAME(n // 2) + {q}",
        "[{d}] if n < {c} else NAME(n - {c}) + [n]",
    ),
    "text": (
        "{q} if not s else NAME(s[1:]) + s[0]", "s if len(s) < {d} else NAME(s[1:])",
        "s if len(s) < {d} else NAME(s[:-1])", "{d} if not s else {d} + NAME(s[1:])",
        "{q} if not s else s[0] + {q} + NAME(s[1:])", "'' if not s else s[0] + s[0] + NAME(s[1:])",
        "[] if not s else [s[0]] + NAME(s[1:])",
    ),
    "ints": (
        "{d} if not xs else xs[0] + NAME(xs[1:])", "0 if not xs else {d} * xs[0] + NAME(xs[1:])",
        "[] if not xs else NAME(xs[1:]) + [xs[0] + {c}]", "[] if not xs else [xs[0] * {d}] + NAME(xs[1:])",
        "xs[0] if len(xs) < {d} else NAME(xs[1:])", "{d} if not xs else xs[-1] - NAME(xs[:-1])",
        "xs if len(xs) < {d} else NAME(xs[1:])", "[] if not xs else NAME(xs[1:]) + [xs[0]]",
    ),
}  # fmt: skip
RECURSIVE = 0.12  # share of the recursive steps
_LETTERS = "abdegiklmoprstuz"
_PLACE = re.compile(r"\{([a-z])\}")
_CONSTANTS: Mapping[str, Callable[[random.Random], str]] = {
    "c": lambda rng: str(rng.randint(2, 12)),
    "d": lambda rng: str(rng.randint(2, 4)),
    "e": lambda rng: str(rng.randint(5, 15)),
    "q": lambda rng: repr("".join(rng.choice(_LETTERS) for _ in range(rng.randint(1, 2)))),
}


def draw(rng: random.Random) -> Source:
    """One function; it may fail on some inputs, never halt, or give the same always: who draws it sees to that."""
    takes = rng.choice(sorted(EASY_INPUTS))
    if takes in _RECURSIONS and rng.random() < RECURSIVE * len(EASY_INPUTS) / len(_RECURSIONS):
        body = _filled(rng.choice(_RECURSIONS[takes]), rng, takes, 0)
    else:
        body = ""
        while not body:
            kind = rng.choice("iiittttllwwm")
            body = _expression(kind, rng, takes, rng.choice((1, 1, 1, 2, 2, 3)))
    (source,) = _make("drawn", takes, f"    return {ast.unparse(ast.parse(body, mode='eval'))}")
    return source


def _expression(kind: str, rng: random.Random, takes: str, depth: int) -> str:
    """Of a type, of at most so many steps; "" where the parameters give no such thing."""
    atoms = _ATOMS[takes].get(kind, ())
    if depth == 0:
        return rng.choice(atoms) if atoms else ""
    for _ in range(20):
        found = _filled(rng.choice(_STEPS[kind]), rng, takes, depth - 1)
        if found:
            return found
    return ""


def _filled(step: str, rng: random.Random, takes: str, depth: int) -> str:
    """A step with its places filled: the first by an expression of `depth` steps, the others by parameters; or ""."""
    parts = []
    for number, part in enumerate(_PLACE.split(step)):
        if number % 2 == 0 or part in _CONSTANTS:
            parts.append(_CONSTANTS[part](rng) if number % 2 else part)
            continue
        inner = _expression(part, rng, takes, depth) or _expression(part, rng, takes, 0)
        if not inner:
            return ""
        parts.append(f"({inner})")
        depth = 0
    return "".join(parts)


def form(code: str) -> str:
    """A function's syntax tree without its constants: `n + 7` and `n + 3` are of one form."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            node.value = type(node.value).__name__
    return ast.dump(tree)
