"""Relative links in the repository's Markdown lead to something; README's first table is what the results say."""

from __future__ import annotations

import re
import runpy
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(\s*<?([^()\s>]+(?:\([^()\s]*\)[^()\s>]*)*)>?(?:\s+\"[^\"]*\")?\s*\)")
FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.S | re.M)
CODE = re.compile(r"`[^`\n]*`")


def pages(root: Path) -> list[Path]:
    """The Markdown files under version control."""
    said = subprocess.run(
        ["git", "ls-files", "-z", "*.md"], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    return [root / name for name in said.split("\0") if name and (root / name).is_file()]


def slug(heading: str) -> str:
    """A heading's anchor as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def broken(page: Path, root: Path) -> Iterator[str]:
    """Links of a page whose file, or whose heading, is not there."""
    text = CODE.sub("", FENCE.sub("", page.read_text(encoding="utf-8")))
    for link in LINK.findall(text):
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        there = page.parent / path if path else page
        if not there.exists() or root.resolve() not in (there.resolve(), *there.resolve().parents):
            yield f"{page.relative_to(root)}: {link}"
        elif anchor and there.suffix == ".md":
            headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", there.read_text(encoding="utf-8")), re.M)
            if anchor not in map(slug, headings):
                yield f"{page.relative_to(root)}: {link}"


def test_every_relative_link_leads_to_something() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    found = pages(ROOT)
    assert len(found) > 30
    assert [line for page in found for line in broken(page, ROOT)] == []


def test_a_link_to_nothing_is_found_and_a_good_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "there.md").write_text("# A heading, *here*\n```\n# none\n```\n")
    page = tmp_path / "README.md"
    page.write_text(
        "[a](docs/there.md) [b](docs/there.md#a-heading-here) [c](https://example.org/none) `[d](none.md)`\n"
        "```\n[e](none.md)\n```\n[f](gone.md) [g](docs/there.md#none) ![h](gone.png) [i](../../etc/hostname)\n"
    )
    assert list(broken(page, tmp_path)) == [
        f"README.md: {link}" for link in ("gone.md", "docs/there.md#none", "gone.png", "../../etc/hostname")
    ]


def test_readmes_first_table_is_what_the_committed_results_say() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "findings.py"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    between = text.split("<!-- rune:findings:begin -->\n")[1].split("\n<!-- rune:findings:end -->")[0]
    assert between == tool["block"]()
    assert len([line for line in between.splitlines() if line.startswith("| ")]) == 1 + 4
