"""What pages say is there: links lead somewhere, modules exist, README's first screen is what the results say."""

from __future__ import annotations

import re
import runpy
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from rune.errors import DataError
from rune.models import registry
from rune.runs import store

ROOT = Path(__file__).parents[2]
if not (ROOT / ".git").exists():  # a copy without results, as tools/mutants.py makes
    pytest.skip("not a git checkout: only there is everything that pages name", allow_module_level=True)
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


TOOL = runpy.run_path(str(ROOT / "tools" / "findings.py"))


@pytest.mark.parametrize("name", ["findings", "families", "updates", "pbb", "remember"])
def test_readmes_first_screen_is_what_the_committed_results_say(name: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    between = text.split(f"<!-- rune:{name}:begin -->\n")[1].split(f"\n<!-- rune:{name}:end -->")[0]
    assert between == TOOL["blocks"]()[name]


def test_another_result_makes_another_sentence(tmp_path: Path) -> None:
    there = tmp_path / "results" / "hypernet-0.5b"
    there.mkdir(parents=True)
    text = (ROOT / "results" / "hypernet-0.5b" / "result.json").read_text(encoding="utf-8")
    (there / "result.json").write_text(text.replace("0.978125", "0.5"), encoding="utf-8")
    atom = tmp_path / "results" / "families-atom-0.5b"
    atom.mkdir()
    decision, habits = (ROOT / "results" / atom.name / name for name in ("decision.json", "habits.json"))
    (atom / decision.name).write_text(decision.read_text(encoding="utf-8").replace("0.3796875", "0.25"))
    found = store.read_json(habits)
    found["arms"]["hypernet"]["new"] = [12.5, 690]
    store.write_json(atom / habits.name, found)
    told = TOOL["conventions"](tmp_path)
    assert "siblings' trajectories 50.0" in told and "in context 25.0" in told and "new ones 12.5 % of 690" in told


def test_weights_that_the_caption_does_not_know_make_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "SPECS", ())
    with pytest.raises(DataError, match=r"say in rune\.models\.registry what they are"):
        TOOL["gate"](ROOT)


def modules(page: Path) -> Iterator[str]:
    """Python files that a page names in code, `path` or `path: name`."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for name in CODE.findall(text):
        if found := re.fullmatch(r"`([\w./-]+\.py)(?:: (\w+)(?:\.\w+)?)?`", name):
            yield ":".join(filter(None, found.groups()))


def unknown(names: Iterator[str], files: list[Path]) -> list[str]:
    """Those that are the end of no file's path, or whose file does not hold the name after the colon."""
    left = []
    for name in names:
        path, _, inside = name.partition(":")
        there = [f for f in files if f.as_posix().endswith("/" + path)]
        if not any(not inside or re.search(rf"\b{inside}\b", f.read_text(encoding="utf-8")) for f in there):
            left.append(name)
    return left


def test_every_module_that_a_page_names_is_there() -> None:
    files = [f for folder in ("src", "tests", "bench", "tools", "studies") for f in ROOT.glob(f"{folder}/**/*.py")]
    named = [(page.relative_to(ROOT).as_posix(), n) for page in pages(ROOT) for n in modules(page)]
    assert len(named) > 50
    assert [(page, n) for page, n in named if unknown(iter([n]), files)] == []


def test_a_module_that_is_gone_is_found(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "store.py").write_text("def read(): ...\n")
    page = tmp_path / "A.md"
    page.write_text("`runs/store.py: read` and `store.py`, `runs/store.py: gone`, `stats.py`\n```\n`none.py`\n```\n")
    assert unknown(modules(page), [tmp_path / "runs" / "store.py"]) == ["runs/store.py:gone", "stats.py"]
