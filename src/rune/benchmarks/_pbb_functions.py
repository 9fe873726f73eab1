"""The functions of `pbb`: algorithms of our own, none a library's under its usual name; NAME stands for a nonce.

Two tiers: `full`, several steps on inputs of some size, and `easy`, one expression or one recursive step on short
inputs, for models that cannot follow the others even with the code before them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple


class Source(NamedTuple):
    """One function before it has a name."""

    kind: str  # sorting, strings, recursion, arithmetic, data structures, ciphers
    takes: str  # a key of its tier's inputs
    code: str  # defines NAME


class Tier(NamedTuple):
    """Functions of one difficulty, and what they are called with."""

    sources: tuple[Source, ...]
    inputs: dict[str, Callable[[random.Random], list[Any]]]
    sizes: tuple[tuple[int, str], ...]  # characters of the input's text, from which on
    steps: tuple[tuple[int, str], ...]  # lines executed, from which on


def _ints(rng: random.Random) -> list[Any]:
    return [[rng.randint(-9, 20) for _ in range(rng.randint(4, 8))]]


def _text(rng: random.Random) -> list[Any]:
    return ["".join(rng.choice("abcdeghiklmnoprstuz") for _ in range(rng.randint(4, 9)))]


def _words(rng: random.Random) -> list[Any]:
    return [["".join(rng.choice("abdegiklmorst") for _ in range(rng.randint(2, 6))) for _ in range(rng.randint(3, 5))]]


INPUTS: dict[str, Callable[[random.Random], list[Any]]] = {
    "ints": _ints,
    "number": lambda rng: [rng.randint(2, 60)],
    "numbers": lambda rng: [rng.randint(2, 40), rng.randint(2, 12)],
    "text": _text,
    "text and number": lambda rng: [*_text(rng), rng.randint(2, 6)],
    "words": _words,
    "ints and number": lambda rng: [*_ints(rng), rng.randint(1, 5)],
}


def _make(kind: str, takes: str, *bodies: str) -> list[Source]:
    """`bodies`: the lines of a function of these parameters, indented by four."""
    parameters = {
        "ints": "xs",
        "number": "n",
        "numbers": "a, b",
        "text": "s",
        "text and number": "s, k",
        "words": "ws",
        "ints and number": "xs, k",
    }[takes]
    return [Source(kind, takes, f"def NAME({parameters}):\n{body.strip(chr(10))}\n") for body in bodies]


SOURCES: tuple[Source, ...] = (
    *_make(
        "sorting",
        "ints",
        "    odd = sorted(x for x in xs if x % 2)\n    even = sorted((x for x in xs if x % 2 == 0), reverse=True)\n"
        "    return odd + even",
        "    return sorted(xs, key=lambda x: (abs(x - 5), x))",
        "    out = []\n    rest = sorted(xs)\n    while rest:\n        out.append(rest.pop())\n        if rest:\n"
        "            out.append(rest.pop(0))\n    return out",
        "    return sorted(xs, key=lambda x: (x % 3, -x))",
        "    xs = list(xs)\n    for i in range(len(xs) - 1):\n        if xs[i] > xs[i + 1]:\n"
        "            xs[i], xs[i + 1] = xs[i + 1], xs[i]\n    return xs",
        "    seen = []\n    for x in xs:\n        if x not in seen:\n            seen.append(x)\n"
        "    return sorted(seen, key=lambda x: -xs.count(x) * 100 + x)",
    ),
    *_make(
        "sorting",
        "words",
        "    return sorted(ws, key=lambda w: (w[-1], w))",
        "    return sorted(ws, key=lambda w: (-len(w), w[::-1]))",
        "    return sorted(ws, key=lambda w: (sum(w.count(v) for v in 'aeiou'), w))",
    ),
    *_make(
        "sorting",
        "ints and number",
        "    head, tail = xs[:k], xs[k:]\n    return sorted(tail) + sorted(head, reverse=True)",
        "    return [sorted(xs[i:i + k])[0] for i in range(0, len(xs), k)]",
    ),
    *_make(
        "strings",
        "text",
        "    return ''.join(s[i] for i in range(len(s) - 1, -1, -2))",
        "    half = len(s) // 2\n    return s[half:].upper() + s[:half]",
        "    out = ''\n    for i, c in enumerate(s):\n        out += c * (i % 3 + 1)\n    return out",
        "    return ''.join(c.upper() if c in 'aeiou' else c for c in s[1:] + s[:1])",
        "    out = []\n    for c in s:\n        if out and out[-1][0] == c:\n            out[-1] += c\n        else:\n"
        "            out.append(c)\n    return '-'.join(out)",
        "    return s[::2] + '.' + s[1::2][::-1]",
        "    first = min(s)\n    return s.replace(first, first + first)[:10]",
        "    return ''.join(sorted(set(s), key=lambda c: (-s.count(c), c)))",
    ),
    *_make(
        "strings",
        "words",
        "    return '+'.join(w[0] + str(len(w)) for w in ws)",
        "    return ''.join(w[i % len(w)] for i, w in enumerate(ws))",
    ),
    *_make(
        "strings",
        "text and number",
        "    return '/'.join(s[i:i + k] for i in range(0, len(s), k))[::-1]",
        "    return ''.join(c for i, c in enumerate(s) if i % k != 1)",
    ),
    *_make(
        "recursion",
        "number",
        "    return 1 if n < 3 else NAME(n - 2) + n % 5",
        "    return str(n) if n < 4 else NAME(n // 4) + str(n % 4)",
        "    return 0 if n == 0 else n % 10 + 2 * NAME(n // 10)",
        "    return [n] if n < 2 else NAME(n // 2) + [n % 7]",
        "    return n if n < 5 else NAME(n - 3) - NAME(n // 5)",
    ),
    *_make(
        "recursion",
        "ints",
        "    if len(xs) < 2:\n        return list(xs)\n    return [xs[-1]] + NAME(xs[1:-1]) + [xs[0]]",
        "    if not xs:\n        return 0\n    return xs[0] - NAME(xs[1:])",
        "    if len(xs) == 1:\n        return xs[0]\n    half = len(xs) // 2\n"
        "    return max(NAME(xs[:half]), NAME(xs[half:]) + 1)",
        "    if len(xs) < 2:\n        return len(xs)\n    return 1 + NAME([x for x in xs[1:] if x > xs[0]])",
    ),
    *_make(
        "recursion",
        "text",
        "    if len(s) < 2:\n        return s\n    return NAME(s[len(s) // 2:]) + s[0]",
        "    if not s:\n        return ''\n    return NAME(s[2:]) + s[:2]",
    ),
    *_make(
        "arithmetic",
        "numbers",
        "    return a * b - (a + b) * (a % b)",
        "    total = 0\n    while a > 0:\n        total += a % b\n        a = a // b + (1 if a % b == 3 else 0)\n"
        "        if total > 90:\n            break\n    return total",
        "    while a > b:\n        a, b = a - b, b + 1\n    return a * 10 + b",
        "    return sum(i * i for i in range(1, a) if i % b == 1)",
        "    steps = 0\n    while a != 1 and steps < b:\n        a = a // 2 if a % 2 == 0 else 3 * a + 1\n"
        "        steps += 1\n    return a",
    ),
    *_make(
        "arithmetic",
        "number",
        "    return sum(d for d in range(1, n + 1) if n % d == 0) - 2 * n",
        "    out = []\n    p = 2\n    while n > 1:\n        while n % p == 0:\n            out.append(p)\n"
        "            n //= p\n        p += 1\n    return out",
        "    a, b = 1, 2\n    for _ in range(n % 9):\n        a, b = b, (a + 2 * b) % 50\n    return a",
        "    return int(str(n * n)[::-1]) % 97",
        "    return sum(int(c) ** 2 for c in bin(n)[2:]) * 7 - n",
    ),
    *_make(
        "data structures",
        "ints",
        "    stack = []\n    for x in xs:\n        while stack and stack[-1] < x:\n            stack.pop()\n"
        "        stack.append(x)\n    return stack",
        "    groups = {}\n    for x in xs:\n        groups.setdefault(x % 4, []).append(x)\n"
        "    return {k: max(v) for k, v in groups.items()}",
        "    queue = list(xs)\n    out = []\n    while queue:\n        out.append(queue.pop(0))\n        if queue:\n"
        "            queue.append(queue.pop(0))\n    return out",
        "    best = {}\n    for i, x in enumerate(xs):\n        best[x] = i\n    return sorted(best.values())",
        "    pairs = []\n    for a, b in zip(xs, xs[1:]):\n        pairs.append((min(a, b), b - a))\n    return pairs",
        "    low, high = set(), set()\n    for x in xs:\n        (high if x > 6 else low).add(x)\n"
        "    return sorted(low), len(high)",
    ),
    *_make(
        "data structures",
        "words",
        "    index = {}\n    for w in ws:\n        index.setdefault(len(w), []).append(w)\n"
        "    return [index[k][-1] for k in sorted(index)]",
        "    links = {a[0]: b for a, b in zip(ws, ws[1:])}\n    return links",
        "    count = {}\n    for w in ws:\n        for c in set(w):\n            count[c] = count.get(c, 0) + 1\n"
        "    return sorted(c for c in count if count[c] > 1)",
    ),
    *_make(
        "data structures",
        "ints and number",
        "    window = []\n    out = []\n    for x in xs:\n        window.append(x)\n        if len(window) > k:\n"
        "            window.pop(0)\n        out.append(sum(window))\n    return out",
    ),
    *_make(
        "ciphers",
        "text and number",
        "    return ''.join(chr((ord(c) - 97 + k) % 26 + 97) for c in s)[::-1]",
        "    return ''.join(chr((ord(c) - 97 + k * i) % 26 + 97) for i, c in enumerate(s))",
        "    rows = [s[i::k] for i in range(k)]\n    return '|'.join(rows)",
        "    return ''.join(chr(219 - ord(c)) if i % k == 0 else c for i, c in enumerate(s))",
        "    key = k\n    out = ''\n    for c in s:\n        key = (key + ord(c)) % 26\n        out += chr(97 + key)\n"
        "    return out",
    ),
    *_make(
        "ciphers",
        "text",
        "    return [ord(c) - 96 if c in 'aeiou' else 96 - ord(c) for c in s]",
        "    return ''.join(s[(3 * i + 1) % len(s)] for i in range(len(s)))",
        "    table = 'qazwsxedcrfvtgbyhnujmikolp'\n    return ''.join(table[ord(c) - 97] for c in s)",
        "    return sum((i + 1) * (ord(c) - 96) for i, c in enumerate(s)) % 101",
        "    out = ''\n    for a, b in zip(s, s[1:] + s[:1]):\n"
        "        out += chr(97 + (ord(a) + ord(b)) % 26)\n    return out",
    ),
)


def _letters(rng: random.Random, least: int, most: int) -> str:
    return "".join(rng.choice("abdegiklmorst") for _ in range(rng.randint(least, most)))


def _digits(rng: random.Random) -> list[int]:
    return [rng.randint(1, 9) for _ in range(3)]


EASY_INPUTS: dict[str, Callable[[random.Random], list[Any]]] = {
    "ints": lambda rng: [_digits(rng)],
    "number": lambda rng: [rng.randint(2, 20)],
    "numbers": lambda rng: [rng.randint(2, 9), rng.randint(2, 9)],
    "text": lambda rng: [_letters(rng, 3, 5)],
    "text and number": lambda rng: [_letters(rng, 3, 5), rng.randint(1, 3)],
    "words": lambda rng: [[_letters(rng, 2, 3) for _ in range(rng.randint(2, 3))]],
    "ints and number": lambda rng: [_digits(rng), rng.randint(1, 5)],
}
EASY_SOURCES: tuple[Source, ...] = (
    *_make(
        "sorting",
        "ints",
        "    return sorted(xs, reverse=True)",
        "    return [min(xs), max(xs)]",
        "    return max(xs) - min(xs)",
        "    return sorted(xs) + [0]",
        "    return min(xs) + 10",
        "    return [max(xs)] + xs",
        "    return sorted(xs)[1]",
    ),
    *_make(
        "sorting",
        "words",
        "    return sorted(ws)",
        "    return sorted(ws)[0]",
        "    return sorted(ws)[-1] + 'x'",
    ),
    *_make("sorting", "ints and number", "    return sorted(xs + [k])"),
    *_make(
        "strings",
        "text",
        "    return s + 'ka'",
        "    return 'mo' + s",
        "    return s[0] + s",
        "    return s[-1]",
        "    return s[:2]",
        "    return s[1:]",
        "    return s.upper()",
        "    return len(s) + 5",
        "    return s[0] + '-' + s[-1]",
    ),
    *_make("strings", "words", "    return ws[0] + ws[1]", "    return '-'.join(ws)"),
    *_make("strings", "text and number", "    return s + str(k)"),
    *_make(
        "recursion",
        "number",
        "    return 0 if n < 2 else 1 + NAME(n - 2)",
        "    return n if n < 5 else NAME(n - 5)",
        "    return 1 if n < 2 else 2 + NAME(n - 1)",
        "    return [n] if n < 10 else [n] + NAME(n - 10)",
        "    return 'a' if n < 6 else 'b' + NAME(n - 6)",
    ),
    *_make(
        "recursion",
        "text",
        "    return '' if not s else NAME(s[1:]) + s[0]",
        "    return s if len(s) < 3 else NAME(s[1:])",
        "    return 0 if not s else 1 + NAME(s[1:])",
    ),
    *_make(
        "recursion",
        "ints",
        "    return 0 if not xs else xs[0] + NAME(xs[1:])",
        "    return [] if not xs else NAME(xs[1:]) + [xs[0]]",
        "    return xs[0] if len(xs) < 2 else NAME(xs[1:])",
    ),
    *_make(
        "arithmetic",
        "number",
        "    return n + 7",
        "    return n * 3",
        "    return n - 4",
        "    return 50 - n",
        "    return n * 10 + 1",
        "    return n + n",
        "    return n // 2",
        "    return n + 3 if n < 10 else n + 30",
    ),
    *_make(
        "arithmetic",
        "numbers",
        "    return a + b + 1",
        "    return a * b",
        "    return a * 10 + b",
        "    return max(a, b) - 1",
    ),
    *_make(
        "data structures",
        "ints",
        "    return {'low': min(xs), 'high': max(xs)}",
        "    return xs[1:] + xs[:1]",
        "    return xs + [len(xs)]",
        "    return xs[0] + xs[-1]",
        "    return [xs[0], xs[-1]]",
        "    return xs[1:]",
    ),
    *_make(
        "data structures",
        "words",
        "    return {ws[0]: len(ws)}",
        "    return [w[0] for w in ws]",
        "    return ws[::-1]",
    ),
    *_make(
        "data structures",
        "ints and number",
        "    return {k: xs[0]}",
        "    return xs + [k]",
    ),
    *_make(
        "ciphers",
        "text",
        "    return s.replace(s[0], 'z')",
        "    return s[::-1]",
        "    return s[1:] + s[0]",
        "    return s[-1] + s[:-1]",
        "    return '.'.join(s)",
        "    return ''.join(c + 'i' for c in s)",
        "    return s[0] + 'u' + s[1:]",
        "    return [c for c in s]",
    ),
    *_make(
        "ciphers",
        "text and number",
        "    return s[k:] + s[:k]",
        "    return str(k) + s + str(k)",
        "    return s * (k + 1)",
    ),
)
TIERS = {
    "full": Tier(
        SOURCES,
        INPUTS,
        sizes=((0, "small"), (18, "medium"), (30, "large")),
        steps=((0, "few"), (12, "some"), (40, "many")),
    ),
    "easy": Tier(
        EASY_SOURCES,
        EASY_INPUTS,
        sizes=((0, "small"), (6, "medium"), (9, "large")),
        steps=((0, "few"), (2, "some"), (5, "many")),
    ),
}
