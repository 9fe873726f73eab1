"""Three small git repositories: one to be mended, one with pytest and history, one whose dependency is missing."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

UNITTEST = "python -m unittest -v"
PRICES = (
    '"""Prices in cents."""\n\n\ndef with_tax(cents, percent):\n    return cents + cents * percent\n\n\n'
    "def total(items):\n    return sum(items)\n"
)
SHOP = {
    "shop/__init__.py": "",
    "shop/prices.py": PRICES,
    "shop/names.py": "def clean(name):\n    return name.strip()\n",
    "tests/__init__.py": "",
    "tests/test_prices.py": (
        "import unittest\n\nfrom shop import prices\n\n\nclass Prices(unittest.TestCase):\n"
        "    def test_tax(self):\n        self.assertEqual(prices.with_tax(200, 10), 220)\n\n"
        "    def test_total(self):\n        self.assertEqual(prices.total([1, 2]), 3)\n"
    ),
}
ISSUE = "with_tax(200, 10) should be 220, and is 2200."
WRONG = "shop/prices.py\n<<<<<<< SEARCH\n    return cents + cents * percent\n=======\n    return cents\n>>>>>>> REPLACE"
RIGHT = (
    "shop/prices.py\n<<<<<<< SEARCH\n    return cents + cents * percent\n=======\n"
    "    return cents + cents * percent // 100\n>>>>>>> REPLACE"
)
BREAKS = f"{RIGHT}\nshop/prices.py\n<<<<<<< SEARCH\n    return sum(items)\n=======\n    return 0\n>>>>>>> REPLACE"
NEEDY = {
    "needy.py": "import a_package_that_nobody_has\n\n\ndef f():\n    return 1\n",
    "test_needy.py": (
        "import unittest\n\nfrom needy import f\n\n\nclass T(unittest.TestCase):\n"
        "    def test_f(self):\n        self.assertEqual(f(), 2)\n"
    ),
}
CALC = {
    "calc.py": "def add(a, b):\n    return a - b\n\n\ndef neg(a):\n    return -a\n",
    "test_calc.py": (
        "from calc import add, neg\n\n\ndef test_neg():\n    assert neg(2) == -2\n\n\n"
        "def test_none():\n    assert add(0, 0) == 0\n"
    ),
}


def make(folder: Path, files: Mapping[str, str]) -> Path:
    """A git repository with one commit."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    git(folder, "init", "-q")
    commit(folder)
    return folder


def commit(folder: Path) -> str:
    git(folder, "add", "-A")
    git(folder, "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-q", "-m", "work")
    return git(folder, "rev-parse", "HEAD").strip()


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True).stdout
