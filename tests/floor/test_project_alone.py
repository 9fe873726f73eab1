"""The repository speaks of the project alone: no machine's path in a record, no word about who lent which machine."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if not (ROOT / ".git").exists():  # a copy, as tools/mutants.py makes
    pytest.skip("not a git checkout: only there it is known what is tracked", allow_module_level=True)
PATH = re.compile(r"(?<![\w.~/])/(?:tmp|root|home|work|mnt|Users)/\w")
WORDS = re.compile(r"\b(?:leases?|leased|lenders?|lent machine|machine was lent)\b", re.I)
# A seal or a digest is over these, so they stay as they were written: docs/decisions.md, "Records".
SEALED = {
    "results/corpus-0.5b/mbpp-config.toml",
    "results/crossfit-0.5b-harmless/config.toml",
    "results/crossfit-0.5b-wide-harmless-again/config.toml",
    "results/crossfit-0.5b-wide-harmless/config.toml",
    "results/crossfit-0.5b-wide/config.toml",
    "results/crossfit-0.5b/config.toml",
    "results/phase1-0.5b/config.toml",
    "results/phase1-0.5b/report.html",
    "results/phase1-0.5b/treatments.jsonl",
}


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """Every tracked text file, by its path."""
    said = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return dict(read(ROOT, [name for name in said.split("\0") if name]))


def read(root: Path, names: list[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        if (root / name).is_file():
            data = (root / name).read_bytes()
            if b"\0" not in data[:8192]:
                yield name, data.decode("utf-8", errors="replace")


def holding(pattern: re.Pattern[str], texts: dict[str, str]) -> set[str]:
    return {name for name, text in texts.items() if pattern.search(text)}


def test_no_record_holds_a_machines_path_but_those_under_seal(texts: dict[str, str]) -> None:
    records = {n: t for n, t in texts.items() if n.startswith("results/") and not n.endswith(".md")}
    assert len(records) > 80
    assert holding(PATH, records) == SEALED


def test_no_text_speaks_of_lent_machines(texts: dict[str, str]) -> None:
    prose = {
        n: t for n, t in texts.items() if not n.startswith("results/") and n != "tests/floor/test_project_alone.py"
    }
    words = {"src/rune/benchmarks/api_words.txt", "tests/tokenizer_corpus.txt"}  # lists of words, not about anything
    assert len(prose) > 300
    assert holding(WORDS, prose) - words == set()


def test_a_path_and_a_word_are_found_and_what_only_looks_like_them_is_not() -> None:
    texts = {
        "a": 'folder = "/tmp/runs"', "b": "see https://example.org/tmp/x", "c": "results/work/x", "d": "/work, 16 MB",
        "e": "the lease ended", "f": "the release ended", "g": "lent packages: numpy",
    }  # fmt: skip
    assert holding(PATH, texts) == {"a"}
    assert holding(WORDS, texts) == {"e"}
