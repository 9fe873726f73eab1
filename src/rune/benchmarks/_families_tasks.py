"""The plain tasks that families dress in their conventions: short functions a small model can write.

Each is one expression over `data` (which a family may encode) and at most one plain number. `kind` is the type
of the result, because a convention for numbers means nothing for a list.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

Kind = Literal["number", "list", "text"]
Subject = Literal["nums", "words", "text", "n", "prices"]

WORDS = [
    *("amber", "basil", "Cedar", "delta", "Ember", "fjord", "Garnet", "hazel", "Indigo", "juniper", "Karst"),
    *("lemon", "Maple", "nectar", "Onyx", "pepper", "Quartz", "raven", "Saffron", "thistle", "Umber"),
    *("velvet", "Willow", "xenon", "Yarrow", "zephyr"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A plain function. `code` gives the result from the arguments; `says` is its docstring, conventions apart."""

    name: str
    kind: Kind
    subject: Subject  # what `data`, the first argument, is
    says: str
    code: str
    number: tuple[int, int] | None = None  # range of a second argument k, if it takes one

    @property
    def arguments(self) -> str:
        return "data, k" if self.number else "data"

    def run(self, *args: Any) -> Any:
        """The plain result, before any convention."""
        return _compiled(self.arguments, self.code)(*args)

    def draw(self, rng: random.Random) -> tuple[Any, ...]:
        """Arguments at random, the subject never empty."""
        extra = (rng.randint(*self.number),) if self.number else ()
        return (_DRAW[self.subject](rng), *extra)


@cache
def _compiled(arguments: str, code: str) -> Any:
    return eval(f"lambda {arguments}: {code}")  # our own text, from the table below


def _nums(rng: random.Random) -> list[int]:
    return [rng.randint(-6, 30) for _ in range(rng.randint(4, 6))]


def _words(rng: random.Random) -> list[str]:
    return rng.sample(WORDS, rng.randint(3, 5))


def _text(rng: random.Random) -> str:
    words = _words(rng)[:3]
    return " ".join([words[0], words[1] + rng.choice(string.digits), words[2]])


def _n(rng: random.Random) -> int:
    return rng.randint(12, 180)


def _prices(rng: random.Random) -> dict[str, int]:
    values = rng.sample(range(2, 40), 4)
    return dict(zip(rng.sample(WORDS, 4), values, strict=True))


_DRAW: dict[str, Any] = {"nums": _nums, "words": _words, "text": _text, "n": _n, "prices": _prices}
IS: dict[str, str] = {
    "nums": "a list of integers",
    "words": "a list of words",
    "text": "a string",
    "n": "a positive integer",
    "prices": "a dict of integers",
}
EMPTY: dict[str, Any] = {"nums": [], "words": [], "text": "", "n": 0, "prices": {}}


def _t(kind: Kind, subject: Subject, name: str, says: str, code: str, number: tuple[int, int] | None = None) -> Task:
    return Task(name=name, kind=kind, subject=subject, says=says, code=code, number=number)


TASKS: tuple[Task, ...] = (
    # ---- numbers
    _t(
        "number",
        "nums",
        "sum_squares",
        "Return the sum of the squares of the numbers in data.",
        "sum(x * x for x in data)",
    ),
    _t(
        "number",
        "nums",
        "count_even",
        "Return how many numbers in data are even.",
        "sum(1 for x in data if x % 2 == 0)",
    ),
    _t("number", "nums", "spread", "Return the largest number in data minus the smallest.", "max(data) - min(data)"),
    _t(
        "number",
        "nums",
        "sum_positive",
        "Return the sum of the positive numbers in data.",
        "sum(x for x in data if x > 0)",
    ),
    _t(
        "number",
        "nums",
        "sum_even",
        "Return the sum of the even numbers in data.",
        "sum(x for x in data if x % 2 == 0)",
    ),
    _t(
        "number",
        "nums",
        "sum_abs",
        "Return the sum of the absolute values of the numbers in data.",
        "sum(abs(x) for x in data)",
    ),
    _t("number", "nums", "ends_sum", "Return the first number in data plus the last.", "data[0] + data[-1]"),
    _t("number", "nums", "smallest", "Return the smallest number in data.", "min(data)"),
    _t(
        "number",
        "nums",
        "count_above",
        "Return how many numbers in data are greater than k.",
        "sum(1 for x in data if x > k)",
        (3, 12),
    ),
    _t("number", "nums", "sum_times", "Return the sum of data multiplied by k.", "sum(data) * k", (2, 9)),
    _t(
        "number", "words", "total_letters", "Return the total length of all words in data.", "sum(len(w) for w in data)"
    ),
    _t(
        "number",
        "words",
        "longest_length",
        "Return the length of the longest word in data.",
        "max(len(w) for w in data)",
    ),
    _t("number", "words", "count_words", "Return the number of words in data.", "len(data)"),
    _t(
        "number",
        "words",
        "count_longer",
        "Return how many words in data have more than k letters.",
        "sum(1 for w in data if len(w) > k)",
        (4, 5),
    ),
    _t("number", "text", "count_letter_e", "Return how often the letter 'e' occurs in data.", 'data.count("e")'),
    _t(
        "number",
        "text",
        "count_vowels",
        "Return the number of lower-case vowels (aeiou) in data.",
        'sum(1 for c in data if c in "aeiou")',
    ),
    _t("number", "text", "count_chars", "Return the number of characters in data.", "len(data)"),
    _t("number", "text", "count_spaces", "Return the number of spaces in data.", 'data.count(" ")'),
    _t("number", "n", "digit_sum", "Return the sum of the decimal digits of data.", "sum(int(d) for d in str(data))"),
    _t("number", "n", "sum_to", "Return the sum of the integers from 1 to data.", "data * (data + 1) // 2"),
    _t("number", "n", "square_plus", "Return the square of data plus k.", "data * data + k", (2, 9)),
    _t("number", "prices", "total_price", "Return the sum of the values of data.", "sum(data.values())"),
    _t("number", "prices", "top_price", "Return the largest value in data.", "max(data.values())"),
    # ---- lists
    _t("list", "nums", "squares", "Return a list of the squares of the numbers in data.", "[x * x for x in data]"),
    _t("list", "nums", "only_even", "Return a list of the even numbers in data.", "[x for x in data if x % 2 == 0]"),
    _t("list", "nums", "only_positive", "Return a list of the positive numbers in data.", "[x for x in data if x > 0]"),
    _t(
        "list",
        "nums",
        "add_to_each",
        "Return a list of the numbers in data with k added to each.",
        "[x + k for x in data]",
        (2, 9),
    ),
    _t(
        "list",
        "nums",
        "times_each",
        "Return a list of the numbers in data, each multiplied by k.",
        "[x * k for x in data]",
        (2, 5),
    ),
    _t(
        "list",
        "nums",
        "below",
        "Return a list of the numbers in data that are smaller than k.",
        "[x for x in data if x < k]",
        (15, 25),
    ),
    _t(
        "list",
        "nums",
        "absolutes",
        "Return a list of the absolute values of the numbers in data.",
        "[abs(x) for x in data]",
    ),
    _t("list", "nums", "negated", "Return a list of the numbers in data, each negated.", "[-x for x in data]"),
    _t("list", "nums", "first_k", "Return a list of the first k numbers in data.", "data[:k]", (2, 3)),
    _t("list", "words", "word_lengths", "Return a list of the lengths of the words in data.", "[len(w) for w in data]"),
    _t(
        "list",
        "words",
        "first_letters",
        "Return a list of the first letter of each word in data.",
        "[w[0] for w in data]",
    ),
    _t(
        "list",
        "words",
        "last_letters",
        "Return a list of the last letter of each word in data.",
        "[w[-1] for w in data]",
    ),
    _t(
        "list", "words", "lower_words", "Return a list of the words in data in lower case.", "[w.lower() for w in data]"
    ),
    _t(
        "list",
        "words",
        "doubled_words",
        "Return a list of the words in data, each repeated twice (w + w).",
        "[w + w for w in data]",
    ),
    _t(
        "list",
        "words",
        "long_words",
        "Return a list of the words in data with more than k letters.",
        "[w for w in data if len(w) > k]",
        (3, 4),
    ),
    _t("list", "text", "split_words", "Return a list of the words in data.", "data.split()"),
    _t(
        "list",
        "text",
        "word_sizes",
        "Return a list of the lengths of the words in data.",
        "[len(w) for w in data.split()]",
    ),
    _t(
        "list", "n", "digits", "Return a list of the decimal digits of data as integers.", "[int(d) for d in str(data)]"
    ),
    _t(
        "list",
        "n",
        "divisors",
        "Return a list of the divisors of data.",
        "[d for d in range(1, data + 1) if data % d == 0]",
    ),
    _t("list", "prices", "price_list", "Return a list of the values of data.", "list(data.values())"),
    _t("list", "prices", "item_names", "Return a list of the keys of data.", "list(data)"),
    # ---- text
    _t("text", "text", "no_spaces", "Return data without its spaces.", 'data.replace(" ", "")'),
    _t("text", "text", "dashed", "Return data with each space replaced by '-'.", 'data.replace(" ", "-")'),
    _t("text", "text", "first_word", "Return the first word of data.", "data.split()[0]"),
    _t("text", "text", "last_word", "Return the last word of data.", "data.split()[-1]"),
    _t("text", "text", "repeat", "Return data repeated k times.", "data * k", (2, 3)),
    _t("text", "text", "first_chars", "Return the first k characters of data.", "data[:k]", (4, 9)),
    _t("text", "text", "no_letter_e", "Return data without the letter 'e'.", 'data.replace("e", "")'),
    _t("text", "text", "no_digits", "Return data without its digits.", '"".join(c for c in data if not c.isdigit())'),
    _t("text", "words", "join_words", "Return the words in data joined by spaces.", '" ".join(data)'),
    _t("text", "words", "join_plus", "Return the words in data joined by '+'.", '"+".join(data)'),
    _t(
        "text",
        "words",
        "initials",
        "Return the first letters of the words in data as one string.",
        '"".join(w[0] for w in data)',
    ),
    _t("text", "words", "first_of", "Return the first word in data.", "data[0]"),
    _t("text", "words", "last_of", "Return the last word in data.", "data[-1]"),
    _t(
        "text",
        "nums",
        "join_nums",
        "Return the numbers in data as one string, joined by commas.",
        '",".join(str(x) for x in data)',
    ),
    _t("text", "n", "decimal_text", "Return data as a decimal string.", "str(data)"),
    _t("text", "n", "binary_text", "Return data in binary as a string, without prefix.", "bin(data)[2:]"),
    _t("text", "prices", "first_key", "Return the first key of data.", "list(data)[0]"),
    _t("text", "prices", "key_string", "Return the keys of data joined by spaces.", '" ".join(data)'),
)
BY_NAME = {task.name: task for task in TASKS}
