"""The list of deliberate breakages is fit to be applied: a mutant whose text is gone would prove nothing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = ROOT / "tools" / "mutants.py"
    if not path.exists():
        pytest.skip("no tools/ in this copy of the tree: it is a mutant's")
    spec = importlib.util.spec_from_file_location("mutants_tool", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_at_least_twenty_mutants_apply_to_the_tree_as_it_is(tool: ModuleType) -> None:
    mutants = tool.read(tool.LIST)
    assert len(mutants) >= 20
    for mutant in mutants:
        whole = (ROOT / mutant.file).read_text()
        compile(whole.replace(mutant.old, mutant.new), mutant.file, "exec")


@pytest.mark.parametrize("old", ["no such text", "\n"])
def test_a_mutant_whose_text_is_gone_or_not_unique_is_an_error(tool: ModuleType, old: str) -> None:
    stale = tool.Mutant(name="x", why="", file="src/rune/errors.py", old=old, new="", tests=("tests/floor",))
    with pytest.raises(ValueError, match=r"x: its old text is \d+ times in src/rune/errors\.py, expected once"):
        tool.check(stale, ROOT)


def test_a_mutant_that_names_no_test_is_an_error(tool: ModuleType) -> None:
    stray = tool.Mutant(
        name="x", why="", file="src/rune/errors.py", old="class RuneError", new="class E", tests=("tests/nowhere",)
    )
    with pytest.raises(ValueError, match="x: no test at tests/nowhere"):
        tool.check(stray, ROOT)


def test_applying_restores_the_file_whatever_happens(tool: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("x = 1\n")
    mutant = tool.Mutant(name="x", why="", file="a.py", old="1", new="2", tests=())
    with pytest.raises(KeyError), tool.applied(mutant, tmp_path):
        assert file.read_text() == "x = 2\n"
        raise KeyError
    assert file.read_text() == "x = 1\n"


@pytest.mark.check
def test_what_fails_on_the_unbroken_tree_is_tried_again_alone(tool: ModuleType, tmp_path: Path) -> None:
    """One test falls the first time only, another always: the first is no fault of the tree, the second is one."""
    tree = tmp_path / "tree"
    (tree / "tests").mkdir(parents=True)
    once = "from pathlib import Path\n\ndef test_once():\n    was = Path('seen').exists()\n    Path('seen').touch()\n"
    (tree / "tests" / "test_once.py").write_text(once + "    assert was\n")
    mutant = tool.Mutant(name="x", why="", file="", old="", new="", tests=("tests",))
    assert tool.baseline(tree, [mutant]) == ""
    (tree / "tests" / "test_never.py").write_text("def test_never():\n    assert False\n")
    assert tool.baseline(tree, [mutant]) == "tests/test_never.py::test_never (pytest ended with 1)"
