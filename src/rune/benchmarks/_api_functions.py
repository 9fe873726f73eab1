"""The standard-library functions that `api_updates` changes, and what may be changed about their results.

No function of a package that CodeUpdateArena updates is here (math, numpy, re, itertools, sympy), nor any that the
sandbox needs to say what happened (json).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple


class Function(NamedTuple):
    """One function, the call that the tasks are about, and what it gives."""

    path: str
    subject: str  # which inputs: a key of SUBJECTS
    call: str  # the arguments, {x} the task's input
    gives: str  # number, text, list or flag: which effects fit
    says: str  # the result in words, {x} the input in words
    defaults: tuple[tuple[str, str, tuple[str, ...]], ...] = ()  # optional argument, its default, other values

    @property
    def module(self) -> str:
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]


WORDS = [
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "harbor",
    "island",
    "jasper",
    "kernel",
    "lagoon",
    "meadow",
    "nectar",
    "orchid",
    "prairie",
    "quartz",
    "river",
    "saffron",
    "timber",
    "umber",
    "valley",
    "willow",
    "xenon",
    "yarrow",
    "zephyr",
    "copper",
    "marble",
    "canyon",
    "summit",
]


def _words(rng: random.Random, low: int, high: int) -> list[str]:
    return [rng.choice(WORDS) for _ in range(rng.randint(low, high))]


SUBJECTS: dict[str, tuple[str, str, Callable[[random.Random], Any]]] = {
    # type, in words, a draw
    "numbers": ("list[int]", "a list of numbers", lambda r: [r.randint(1, 60) for _ in range(r.randint(4, 7))]),
    "repeats": ("list[int]", "a list of numbers", lambda r: [r.randint(1, 4) for _ in range(r.randint(6, 9))]),
    "ordered": ("list[int]", "a rising list of numbers", lambda r: sorted(r.sample(range(1, 40), r.randint(4, 7)))),
    "integer": ("int", "a whole number", lambda r: r.randint(-90, 90)),
    "year": ("int", "a year", lambda r: r.choice([1900, 1996, 2000, 2004, 2019, 2023, 2024, 2100])),
    "word": ("str", "a word", lambda r: r.choice(WORDS)),
    "letter": ("str", "a character", lambda r: r.choice("aBz7 -+_?éß½٣")),
    "phrase": ("str", "a phrase", lambda r: " ".join(_words(r, 3, 6))),
    "sentence": ("str", "a text", lambda r: " ".join(_words(r, 9, 16))),
    "marked": ("str", "a text", lambda r: r.choice(["<b>", "a & ", '"x" ', "1 < "]) + " ".join(_words(r, 2, 3)) + "'s"),
    "encoded": ("str", "an encoded text", lambda r: "%20".join(_words(r, 2, 4)) + r.choice(["&lt;", "&amp;", "+1"])),
    "indented": ("str", "an indented text", lambda r: "\n".join("    " + " ".join(_words(r, 2, 3)) for _ in range(3))),
    "path": ("str", "a path", lambda r: "/" + "/".join(_words(r, 2, 4)) + r.choice([".txt", ".csv", ".py", ""])),
    "winpath": ("str", "a Windows path", lambda r: "C:\\" + "\\".join(_words(r, 2, 3)) + r.choice([".txt", ".TXT"])),
    "url": ("str", "an address", lambda r: "/".join(_words(r, 2, 3)) + "?q=" + r.choice(WORDS) + " " + r.choice(WORDS)),
    "query": ("str", "a query string", lambda r: "&".join(f"{w}={r.randint(1, 9)}" for w in _words(r, 2, 4))),
    "command": ("str", "a command line", lambda r: " ".join(_words(r, 2, 3)) + " '" + " ".join(_words(r, 2, 2)) + "'"),
    "names": ("list[str]", "a list of words", lambda r: _words(r, 4, 7)),
    "paths": ("list[str]", "a list of paths", lambda r: [f"/data/{w}.txt" for w in _words(r, 2, 4)]),
    "literal": ("str", "a list written as text", lambda r: repr([r.randint(1, 50) for _ in range(r.randint(3, 6))])),
    "table": ("dict[str, int]", "a table of counts", lambda r: {w: r.randint(1, 9) for w in _words(r, 2, 4)}),
}

F = Function
FUNCTIONS = (
    F("statistics.mean", "numbers", "{x}", "number", "the mean of {x}"),
    F("statistics.fmean", "numbers", "{x}", "number", "the floating-point mean of {x}"),
    F("statistics.median", "numbers", "{x}", "number", "the median of {x}"),
    F("statistics.median_low", "numbers", "{x}", "number", "the low median of {x}"),
    F("statistics.median_high", "numbers", "{x}", "number", "the high median of {x}"),
    F("statistics.mode", "repeats", "{x}", "number", "the most common value of {x}"),
    F("statistics.pvariance", "numbers", "{x}", "number", "the population variance of {x}"),
    F("statistics.variance", "numbers", "{x}", "number", "the sample variance of {x}"),
    F("statistics.pstdev", "numbers", "{x}", "number", "the population standard deviation of {x}"),
    F("statistics.stdev", "numbers", "{x}", "number", "the sample standard deviation of {x}"),
    F("statistics.harmonic_mean", "numbers", "{x}", "number", "the harmonic mean of {x}"),
    F("statistics.multimode", "repeats", "{x}", "list", "the most common values of {x}"),
    F("statistics.quantiles", "numbers", "{x}", "list", "the cut points of {x}", (("n", "4", ("3", "5", "8", "10")),)),
    F("operator.neg", "integer", "{x}", "number", "the negative of {x}"),
    F("operator.invert", "integer", "{x}", "number", "the bitwise inverse of {x}"),
    F("operator.add", "integer", "{x}, 7", "number", "the sum of {x} and 7"),
    F("operator.sub", "integer", "{x}, 4", "number", "{x} less 4"),
    F("operator.mul", "integer", "{x}, 3", "number", "three times {x}"),
    F("operator.floordiv", "integer", "{x}, 4", "number", "how often 4 goes into {x}"),
    F("operator.mod", "integer", "{x}, 9", "number", "the remainder of {x} by 9"),
    F("operator.xor", "integer", "{x}, 21", "number", "the exclusive or of {x} and 21"),
    F("operator.countOf", "repeats", "{x}, 2", "number", "how often 2 stands in {x}"),
    F("operator.contains", "repeats", "{x}, 3", "flag", "whether 3 stands in {x}"),
    F("operator.concat", "numbers", "{x}, [0, 1]", "list", "{x} followed by 0 and 1"),
    F("operator.truth", "integer", "{x} > 0", "flag", "whether {x} is above zero"),
    F("heapq.nlargest", "numbers", "3, {x}", "list", "the three largest of {x}"),
    F("heapq.nsmallest", "numbers", "3, {x}", "list", "the three smallest of {x}"),
    F("bisect.bisect_left", "ordered", "{x}, 15", "number", "the place of 15 from the left in {x}"),
    F("bisect.bisect_right", "ordered", "{x}, 15", "number", "the place of 15 from the right in {x}"),
    F("bisect.bisect", "ordered", "{x}, 20", "number", "the place of 20 in {x}"),
    F("calendar.isleap", "year", "{x}", "flag", "whether {x} is a leap year"),
    F("calendar.leapdays", "year", "1890, {x}", "number", "the leap years from 1890 to {x}"),
    F("zlib.crc32", "word", "{x}.encode()", "number", "the CRC-32 of {x}"),
    F("zlib.adler32", "word", "{x}.encode()", "number", "the Adler-32 of {x}"),
    F("binascii.crc_hqx", "word", "{x}.encode(), 0", "number", "the CRC-CCITT of {x}"),
    F(
        "string.capwords",
        "phrase",
        "{x}",
        "text",
        "{x} with every word capitalised",
        (("sep", "None", ("'a'", "'e'", "'r'")),),
    ),
    F(
        "textwrap.fill",
        "sentence",
        "{x}",
        "text",
        "{x} as a paragraph",
        (("width", "70", ("20", "24", "30", "36", "42")),),
    ),
    F(
        "textwrap.wrap",
        "sentence",
        "{x}",
        "list",
        "the lines of {x}",
        (("width", "70", ("18", "22", "26", "32", "40")),),
    ),
    F(
        "textwrap.shorten",
        "sentence",
        "{x}, 30",
        "text",
        "{x} shortened to 30 characters",
        (("placeholder", "' [...]'", ("'…'", "' ~'", "' (more)'", "'--'")),),
    ),
    F("textwrap.indent", "indented", "{x}, '> '", "text", "{x} with a mark before every line"),
    F("textwrap.dedent", "indented", "{x}", "text", "{x} without its indentation"),
    F("inspect.cleandoc", "indented", "{x}", "text", "{x} cleaned as a docstring"),
    F("html.escape", "marked", "{x}", "text", "{x} escaped for HTML", (("quote", "True", ("False",)),)),
    F("html.unescape", "encoded", "{x}", "text", "{x} with its entities resolved"),
    F(
        "xml.sax.saxutils.escape",
        "marked",
        "{x}",
        "text",
        "{x} escaped for XML",
        (("entities", "{}", ("{'a': '@'}", "{'e': '3'}", "{' ': '_'}")),),
    ),
    F("xml.sax.saxutils.quoteattr", "marked", "{x}", "text", "{x} as an XML attribute"),
    F(
        "xml.sax.saxutils.unescape",
        "encoded",
        "{x}",
        "text",
        "{x} unescaped from XML",
        (("entities", "{}", ("{'%20': ' '}", "{'a': 'A'}")),),
    ),
    F(
        "urllib.parse.quote",
        "url",
        "{x}",
        "text",
        "{x} quoted for an address",
        (("safe", "'/'", ("''", "'?'", "' '", "'/?='")),),
    ),
    F(
        "urllib.parse.quote_plus",
        "url",
        "{x}",
        "text",
        "{x} quoted for a form",
        (("safe", "''", ("'/'", "'?'", "'='", "'/?'")),),
    ),
    F("urllib.parse.unquote", "encoded", "{x}", "text", "{x} unquoted"),
    F("urllib.parse.unquote_plus", "encoded", "{x}", "text", "{x} unquoted from a form"),
    F("urllib.parse.urlencode", "table", "{x}", "text", "{x} as a query string"),
    F("urllib.parse.parse_qsl", "query", "{x}", "list", "the pairs of {x}"),
    F("urllib.parse.urljoin", "path", "'http://site.org/home/', {x}", "text", "{x} as a full address"),
    F("posixpath.basename", "path", "{x}", "text", "the last part of {x}"),
    F("posixpath.dirname", "path", "{x}", "text", "the folder of {x}"),
    F("posixpath.normpath", "path", "{x} + '/../notes'", "text", "the path to the notes beside {x}"),
    F("posixpath.join", "path", "{x}, 'index'", "text", "{x} with index added to it"),
    F("posixpath.splitext", "path", "{x}", "list", "the root and the ending of {x}"),
    F("posixpath.split", "path", "{x}", "list", "the folder and the last part of {x}"),
    F("posixpath.relpath", "path", "{x}, '/'", "text", "{x} seen from the root"),
    F("posixpath.commonprefix", "paths", "{x}", "text", "the common beginning of {x}"),
    F("posixpath.commonpath", "paths", "{x}", "text", "the common folder of {x}"),
    F("posixpath.isabs", "path", "{x}", "flag", "whether {x} begins at the root"),
    F("ntpath.basename", "winpath", "{x}", "text", "the last part of {x}"),
    F("ntpath.dirname", "winpath", "{x}", "text", "the folder of {x}"),
    F("ntpath.splitext", "winpath", "{x}", "list", "the root and the ending of {x}"),
    F("ntpath.splitdrive", "winpath", "{x}", "list", "the drive and the rest of {x}"),
    F("ntpath.normcase", "winpath", "{x}", "text", "{x} in normal case"),
    F("glob.escape", "path", "{x} + '*'", "text", "{x} and a star, escaped for a glob"),
    F("fnmatch.filter", "names", "{x}, '*a*'", "list", "those of {x} that hold an a"),
    F("fnmatch.fnmatch", "word", "{x}, '*e*'", "flag", "whether {x} matches *e*"),
    F("fnmatch.fnmatchcase", "word", "{x}, '*r'", "flag", "whether {x} ends in r"),
    F("shlex.quote", "phrase", "{x}", "text", "{x} quoted for a shell"),
    F("shlex.split", "command", "{x}", "list", "the parts of {x}"),
    F("shlex.join", "names", "{x}", "text", "{x} as a command line"),
    F(
        "difflib.get_close_matches",
        "names",
        "'ember', {x}",
        "list",
        "those of {x} that resemble 'ember'",
        (("n", "3", ("1", "2")), ("cutoff", "0.6", ("0.1", "0.2", "0.3"))),
    ),
    F("unicodedata.name", "letter", "{x}", "text", "the Unicode name of {x}"),
    F("unicodedata.category", "letter", "{x}", "text", "the Unicode category of {x}"),
    F("unicodedata.normalize", "letter", "'NFKD', {x}", "text", "{x} decomposed"),
    F("keyword.iskeyword", "word", "{x}[:2]", "flag", "whether the first two letters of {x} are a keyword"),
    F("codecs.encode", "phrase", "{x}, 'rot13'", "text", "{x} in rot13"),
    F("ast.literal_eval", "literal", "{x}", "list", "what is written in {x}"),
    F("copy.copy", "numbers", "{x}", "list", "a copy of {x}"),
    F("copy.deepcopy", "numbers", "{x}", "list", "a deep copy of {x}"),
    F(
        "pprint.pformat",
        "names",
        "{x}",
        "text",
        "{x} printed prettily",
        (("width", "80", ("12", "20", "28")), ("indent", "1", ("2", "3", "5"))),
    ),
    F("reprlib.repr", "numbers", "{x}", "text", "a short description of {x}"),
    F("email.utils.quote", "marked", "{x}", "text", "{x} quoted for a mail header"),
    F(
        "email.utils.parseaddr",
        "word",
        "{x} + ' <' + {x} + '@site.org>'",
        "list",
        "the name and address of {x} at site.org",
    ),
    F("email.utils.formataddr", "word", "('Team', {x} + '@site.org')", "text", "the mail address of {x} in the team"),
    F("hmac.compare_digest", "word", "{x}, {x}.lower()", "flag", "whether {x} equals its lower case"),
    F("colorsys.rgb_to_yiq", "integer", "abs({x}) / 100, 0.5, 0.25", "list", "the YIQ colour of the red share {x}"),
    F("colorsys.rgb_to_hls", "integer", "abs({x}) / 100, 0.5, 0.25", "list", "the HLS colour of the red share {x}"),
    F("colorsys.rgb_to_hsv", "integer", "abs({x}) / 100, 0.5, 0.25", "list", "the HSV colour of the red share {x}"),
)


class Effect(NamedTuple):
    """What a new argument does to the result."""

    names: tuple[str, ...]  # what the argument may be called
    code: str  # the new result; {a} the argument
    values: tuple[str, ...]  # what tasks give it, as source
    means: str  # for the documentation
    asks: str  # for a task; {v} the value in words


def _choice(names: str, word: str, synonyms: str, code: str, means: str, asks: str) -> list[Effect]:
    """One effect a synonym: the argument takes a word that must be known."""
    return [
        Effect(tuple(names.split()), f"{code} if {{a}} == {synonym!r} else result", (repr(synonym),),
               f"with {synonym!r} {means}", asks)
        for synonym in synonyms.split()
    ]  # fmt: skip


E = Effect
EFFECTS: dict[str, tuple[Effect, ...]] = {
    "number": (
        E(
            ("scale", "factor", "multiplier", "times"),
            "result * {a}",
            ("2", "3", "10", "0.5"),
            "the result is multiplied by it",
            "multiplied by {v}",
        ),
        E(
            ("offset", "shift", "bias", "plus"),
            "result + {a}",
            ("1", "5", "-2", "100"),
            "it is added to the result",
            "with {v} added",
        ),
        E(
            ("digits", "places", "precision", "ndigits"),
            "round(result, {a})",
            ("1", "2", "0", "-1"),
            "the result is rounded to so many decimal places",
            "rounded to {v} decimal places",
        ),
        E(
            ("cap", "ceiling", "at_most", "upper"),
            "min(result, {a})",
            ("5", "12", "20", "25"),
            "no result is larger than it",
            "but never more than {v}",
        ),
        E(
            ("floor", "at_least", "lower", "bottom"),
            "max(result, {a})",
            ("8", "15", "25", "30"),
            "no result is smaller than it",
            "but never less than {v}",
        ),
        E(
            ("modulus", "wrap_at", "cycle", "ring"),
            "result % {a}",
            ("3", "5", "7", "11"),
            "the result is taken modulo it",
            "modulo {v}",
        ),
        E(
            ("less", "minus", "baseline", "relative_to"),
            "result - {a}",
            ("1", "4", "10", "50"),
            "it is subtracted from the result",
            "less {v}",
        ),
        E(
            ("divisor", "per", "share_of", "over"),
            "result / {a}",
            ("2", "4", "8", "100"),
            "the result is divided by it",
            "divided by {v}",
        ),
        *_choice(
            "unit measure scale_to in_unit",
            "percent",
            "percent pct hundredths",
            "result * 100",
            "the result is in hundredths",
            "in hundredths",
        ),
        *_choice(
            "output form result_type kind",
            "text",
            "text str string words",
            "str(result)",
            "the result is a string",
            "as a string",
        ),
        *_choice(
            "sign direction side",
            "negative",
            "negative minus flipped down",
            "-result",
            "the result has the opposite sign",
            "with its sign turned",
        ),
        *_choice(
            "rounding mode style",
            "whole",
            "whole int truncate integral",
            "int(result)",
            "the result is cut to a whole number",
            "cut to a whole number",
        ),
    ),
    "text": (
        E(
            ("limit", "max_length", "length", "size"),
            "result[:{a}]",
            ("3", "4", "6", "8"),
            "the result is cut to so many characters",
            "cut to its first {v} characters",
        ),
        E(
            ("prefix", "lead", "before", "head"),
            "{a} + result",
            ("'> '", "'no. '", "'# '", "'~'"),
            "it is put before the result",
            "with {v} before it",
        ),
        E(
            ("suffix", "ending", "after", "tail"),
            "result + {a}",
            ("'!'", "' (end)'", "';'", "'.'"),
            "it is put behind the result",
            "with {v} behind it",
        ),
        E(
            ("repeat", "copies", "times", "count"),
            "result * {a}",
            ("2", "3", "4"),
            "the result is repeated so often",
            "repeated {v} times",
        ),
        E(
            ("skip", "drop", "start", "offset"),
            "result[{a}:]",
            ("1", "2", "3", "5"),
            "so many characters are left out at the beginning",
            "without its first {v} characters",
        ),
        E(
            ("fill", "space", "blank", "gap"),
            "result.replace(' ', {a})",
            ("'_'", "'-'", "'.'", "'+'"),
            "it replaces every space of the result",
            "with {v} for every space",
        ),
        E(
            ("pad", "min_width", "columns", "field"),
            "result.rjust({a}, '.')",
            ("60", "70", "80"),
            "the result is filled with dots on the left to that width",
            "filled with dots on the left to {v} characters",
        ),
        E(
            ("remove", "without", "omit", "strip_out"),
            "result.replace({a}, '')",
            ("'a'", "'e'", "'r'", "'i'"),
            "it is taken out of the result",
            "without any {v}",
        ),
        *_choice(
            "case letters style casing",
            "upper",
            "upper capital big loud",
            "result.upper()",
            "the result is in upper case",
            "in upper case",
        ),
        *_choice(
            "case letters style casing",
            "swap",
            "swap inverted toggle",
            "result.swapcase()",
            "upper and lower case change places",
            "with upper and lower case exchanged",
        ),
        *_choice(
            "order direction reading",
            "reverse",
            "reverse backward mirror rtl",
            "result[::-1]",
            "the result is reversed",
            "read backwards",
        ),
        *_choice(
            "output form result_type kind",
            "list",
            "list chars split letters",
            "list(result)",
            "the result is a list of characters",
            "as a list of characters",
        ),
    ),
    "list": (
        E(
            ("limit", "count", "at_most", "first"),
            "list(result)[:{a}]",
            ("1", "2"),
            "only so many elements are kept, from the first",
            "only the first {v} of them",
        ),
        E(
            ("skip", "drop", "start", "after"),
            "list(result)[{a}:]",
            ("1", "2"),
            "so many elements are left out at the beginning",
            "without the first {v}",
        ),
        E(
            ("fill", "extra", "append", "sentinel"),
            "[*result, {a}]",
            ("0", "-1", "'end'"),
            "it is put behind the last element",
            "with {v} behind the last",
        ),
        E(
            ("sep", "joiner", "delimiter", "glue"),
            "{a}.join(str(part) for part in result)",
            ("'-'", "' | '", "';'", "'+'"),
            "the elements are joined by it into one string",
            "joined by {v} into one string",
        ),
        E(
            ("index", "pick", "item", "position"),
            "list(result)[{a}]",
            ("0", "-1"),
            "only the element at that index is returned",
            "only the one at index {v}",
        ),
        E(
            ("number_from", "start_at", "numbered", "count_from"),
            "[(n, part) for n, part in enumerate(result, {a})]",
            ("0", "1", "10"),
            "each element becomes a pair with its number, counted from it",
            "each paired with its number, counted from {v}",
        ),
        E(
            ("repeat", "copies", "times", "cycles"),
            "list(result) * {a}",
            ("2", "3"),
            "the list is repeated so often",
            "repeated {v} times",
        ),
        *_choice(
            "order direction arrange",
            "reverse",
            "reverse backward last_first flipped",
            "list(result)[::-1]",
            "the elements are in reverse order",
            "in reverse order",
        ),
        *_choice(
            "output form result_type kind",
            "count",
            "count size length number",
            "len(list(result))",
            "only their number is returned",
            "only how many they are",
        ),
        *_choice(
            "output form result_type kind",
            "text",
            "text strings words",
            "[str(part) for part in result]",
            "every element is a string",
            "each as a string",
        ),
        *_choice(
            "output form shape kind",
            "dict",
            "dict mapping lookup",
            "dict(enumerate(result))",
            "the elements stand in a dictionary under their index",
            "as a dictionary by index",
        ),
    ),
    "flag": (
        E(
            ("weight", "points", "score", "value"),
            "{a} if result else 0",
            ("1", "5", "10"),
            "it is returned for true, and 0 for false",
            "as {v} for yes and 0 for no",
        ),
        E(
            ("yes", "if_true", "positive", "label"),
            "{a} if result else 'no'",
            ("'yes'", "'good'", "'x'"),
            "it is returned for true, and 'no' for false",
            "as {v}, or else 'no'",
        ),
        E(
            ("no", "if_false", "otherwise", "negative"),
            "'yes' if result else {a}",
            ("'never'", "'bad'", "'-'"),
            "it is returned for false, and 'yes' for true",
            "as 'yes', or else {v}",
        ),
        *_choice(
            "logic mode sense test",
            "not",
            "not inverse negated opposite",
            "not result",
            "the answer is turned round",
            "turned into its opposite",
        ),
        *_choice(
            "output form result_type kind",
            "number",
            "number int bit digit",
            "int(result)",
            "the answer is 1 or 0",
            "as 1 or 0",
        ),
        *_choice(
            "output form result_type kind",
            "text",
            "text word str",
            "str(result).lower()",
            "the answer is 'true' or 'false'",
            "as 'true' or 'false'",
        ),
    ),
}
KEYS = ("value", "result", "answer", "data", "output", "payload", "content", "item", "body", "main", "core", "entry")
EXTRAS = ("'ok'", "None", "True", "0", "'exact'", "type(result).__name__", "1", "()")
ERRORS = ("ValueError", "OverflowError", "LookupError", "RuntimeError", "ArithmeticError", "TypeError")
RENAMES = (
    "compute_{n}",
    "{n}_of",
    "get_{n}",
    "{n}_value",
    "fast_{n}",
    "{n}2",
    "make_{n}",
    "new_{n}",
    "{n}_from",
    "safe_{n}",
    "to_{n}",
    "{n}_ex",
    "as_{n}",
    "do_{n}",
    "{n}_now",
    "strict_{n}",
    "{n}_one",
    "find_{n}",
)
