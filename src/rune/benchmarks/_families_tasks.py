"""The plain tasks that families dress in their conventions: short functions a small model can write.

Each is one expression over a first argument (the *subject*, which a family may encode) and at most one plain
number. `kind` is the type of the result, because a convention for numbers means nothing for a list.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

Kind = Literal["number", "list", "text"]

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
    subject: Literal["nums", "words", "text", "n", "prices"]
    says: str
    code: str
    number: tuple[int, int] | None = None  # range of a second argument k, if it takes one

    @property
    def arguments(self) -> str:
        return self.subject + (", k" if self.number else "")

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
EMPTY: dict[str, Any] = {"nums": [], "words": [], "text": "", "n": 0, "prices": {}}


def _t(kind: Kind, subject: Any, name: str, says: str, code: str, number: tuple[int, int] | None = None) -> Task:
    return Task(name=name, kind=kind, subject=subject, says=says, code=code, number=number)


TASKS: tuple[Task, ...] = (
    # ---- numbers
    _t("number", "nums", "sum_squares", "Return the sum of the squares of nums.", "sum(x * x for x in nums)"),
    _t("number", "nums", "count_even", "Return how many of nums are even.", "sum(1 for x in nums if x % 2 == 0)"),
    _t("number", "nums", "spread", "Return the largest of nums minus the smallest.", "max(nums) - min(nums)"),
    _t("number", "nums", "sum_positive", "Return the sum of the positive nums.", "sum(x for x in nums if x > 0)"),
    _t("number", "nums", "sum_even", "Return the sum of the even nums.", "sum(x for x in nums if x % 2 == 0)"),
    _t("number", "nums", "sum_abs", "Return the sum of the absolute values of nums.", "sum(abs(x) for x in nums)"),
    _t("number", "nums", "ends_sum", "Return the first of nums plus the last.", "nums[0] + nums[-1]"),
    _t("number", "nums", "smallest", "Return the smallest of nums.", "min(nums)"),
    _t(
        "number",
        "nums",
        "count_above",
        "Return how many of nums are greater than k.",
        "sum(1 for x in nums if x > k)",
        (3, 12),
    ),
    _t("number", "nums", "sum_times", "Return the sum of nums multiplied by k.", "sum(nums) * k", (2, 9)),
    _t("number", "words", "total_letters", "Return the total length of all words.", "sum(len(w) for w in words)"),
    _t("number", "words", "longest_length", "Return the length of the longest word.", "max(len(w) for w in words)"),
    _t("number", "words", "count_words", "Return the number of words.", "len(words)"),
    _t(
        "number",
        "words",
        "count_longer",
        "Return how many words have more than k letters.",
        "sum(1 for w in words if len(w) > k)",
        (4, 5),
    ),
    _t("number", "text", "count_letter_e", "Return how often the letter 'e' occurs in text.", "text.count('e')"),
    _t(
        "number",
        "text",
        "count_vowels",
        "Return the number of vowels (aeiou) in text, ignoring case.",
        "sum(1 for c in text.lower() if c in 'aeiou')",
    ),
    _t("number", "text", "count_chars", "Return the number of characters in text.", "len(text)"),
    _t("number", "text", "count_spaces", "Return the number of spaces in text.", "text.count(' ')"),
    _t("number", "n", "digit_sum", "Return the sum of the decimal digits of n.", "sum(int(d) for d in str(n))"),
    _t("number", "n", "sum_to", "Return the sum of the integers from 1 to n.", "n * (n + 1) // 2"),
    _t("number", "n", "square_plus", "Return the square of n plus k.", "n * n + k", (2, 9)),
    _t("number", "prices", "total_price", "Return the sum of the values of the dict prices.", "sum(prices.values())"),
    _t("number", "prices", "top_price", "Return the largest value in the dict prices.", "max(prices.values())"),
    # ---- lists
    _t("list", "nums", "squares", "Return a list of the squares of nums.", "[x * x for x in nums]"),
    _t("list", "nums", "only_even", "Return a list of the even nums.", "[x for x in nums if x % 2 == 0]"),
    _t("list", "nums", "only_positive", "Return a list of the positive nums.", "[x for x in nums if x > 0]"),
    _t("list", "nums", "add_to_each", "Return a list of nums with k added to each.", "[x + k for x in nums]", (2, 9)),
    _t("list", "nums", "times_each", "Return a list of nums, each multiplied by k.", "[x * k for x in nums]", (2, 5)),
    _t("list", "nums", "below", "Return a list of the nums smaller than k.", "[x for x in nums if x < k]", (15, 25)),
    _t("list", "nums", "absolutes", "Return a list of the absolute values of nums.", "[abs(x) for x in nums]"),
    _t("list", "nums", "negated", "Return a list of nums, each negated.", "[-x for x in nums]"),
    _t("list", "nums", "first_k", "Return a list of the first k nums.", "nums[:k]", (2, 3)),
    _t("list", "words", "word_lengths", "Return a list of the lengths of the words.", "[len(w) for w in words]"),
    _t("list", "words", "first_letters", "Return a list of the first letter of each word.", "[w[0] for w in words]"),
    _t("list", "words", "last_letters", "Return a list of the last letter of each word.", "[w[-1] for w in words]"),
    _t("list", "words", "lower_words", "Return a list of the words in lower case.", "[w.lower() for w in words]"),
    _t("list", "words", "doubled_words", "Return a list of the words, each repeated twice.", "[w + w for w in words]"),
    _t(
        "list",
        "words",
        "long_words",
        "Return a list of the words with more than k letters.",
        "[w for w in words if len(w) > k]",
        (3, 4),
    ),
    _t("list", "text", "split_words", "Return a list of the words in text.", "text.split()"),
    _t("list", "text", "word_sizes", "Return a list of the word lengths in text.", "[len(w) for w in text.split()]"),
    _t("list", "n", "digits", "Return a list of the decimal digits of n as integers.", "[int(d) for d in str(n)]"),
    _t("list", "n", "divisors", "Return a list of the divisors of n.", "[d for d in range(1, n + 1) if n % d == 0]"),
    _t("list", "prices", "price_list", "Return a list of the values of the dict prices.", "list(prices.values())"),
    _t("list", "prices", "item_names", "Return a list of the keys of the dict prices.", "list(prices)"),
    # ---- text
    _t("text", "text", "no_spaces", "Return text without its spaces.", "text.replace(' ', '')"),
    _t("text", "text", "dashed", "Return text with each space replaced by '-'.", "text.replace(' ', '-')"),
    _t("text", "text", "first_word", "Return the first word of text.", "text.split()[0]"),
    _t("text", "text", "last_word", "Return the last word of text.", "text.split()[-1]"),
    _t("text", "text", "repeat", "Return text repeated k times.", "text * k", (2, 3)),
    _t("text", "text", "first_chars", "Return the first k characters of text.", "text[:k]", (4, 9)),
    _t(
        "text",
        "text",
        "no_vowels",
        "Return text without the letters aeiou.",
        "''.join(c for c in text if c not in 'aeiou')",
    ),
    _t("text", "text", "no_digits", "Return text without its digits.", "''.join(c for c in text if not c.isdigit())"),
    _t("text", "words", "join_words", "Return the words joined by single spaces.", "' '.join(words)"),
    _t("text", "words", "join_plus", "Return the words joined by '+'.", "'+'.join(words)"),
    _t(
        "text",
        "words",
        "initials",
        "Return the first letters of the words as one string.",
        "''.join(w[0] for w in words)",
    ),
    _t("text", "words", "longest_word", "Return the longest word, the first one if several.", "max(words, key=len)"),
    _t("text", "words", "last_of", "Return the last of the words.", "words[-1]"),
    _t("text", "nums", "join_nums", "Return nums as one string, joined by commas.", "','.join(str(x) for x in nums)"),
    _t("text", "n", "spell_digits", "Return the digits of n joined by '-'.", "'-'.join(str(n))"),
    _t("text", "n", "binary_text", "Return n in binary as a string, without prefix.", "bin(n)[2:]"),
    _t(
        "text",
        "prices",
        "cheapest",
        "Return the key of the dict prices with the smallest value.",
        "min(prices, key=prices.get)",
    ),
    _t("text", "prices", "key_string", "Return the keys of the dict prices joined by spaces.", "' '.join(prices)"),
)
BY_NAME = {task.name: task for task in TASKS}
