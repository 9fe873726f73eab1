"""The architecture, checked: arrows point down, and heavy packages wait at the door."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "rune"
HEAVY = {"torch", "transformers", "peft", "vllm", "mlflow", "ray", "matplotlib", "safetensors"}
MAY_LOAD = ("hypernet/", "encoders/", "adapters/", "engines/local/", "models/loader")
WEB = {"fastapi", "starlette", "uvicorn", "prometheus_client", "pydantic"}  # of the server alone
PURE = ("types.py", "errors.py", "config.py", "prompts.py", "analysis/stats.py")


def _top_level_imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def test_an_arrow_may_only_point_down() -> None:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


def _imports(root: str) -> dict[str, set[str]]:
    """Module → modules that it imports, within functions too."""
    graph = grimp.build_graph(root, exclude_type_checking_imports=True, cache_dir=None)
    return {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}


def _first_cycle(imports: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other in a ring, [] if there are none.

    Left out is what a part does by design: it has the settings, which load nothing, and builds from a module beside it
    that needs those settings: `engines.torch` and `engines.local.torch_engine`, `encoders.X` and `encoders._X`.
    """
    acyclic = {module: targets - {_part_of(module)} for module, targets in imports.items()}
    try:
        TopologicalSorter(acyclic).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def _part_of(module: str) -> str:
    return {"rune.engines.local.torch_engine": "rune.engines.torch"}.get(module, module.replace("._", "."))


def test_no_modules_import_each_other_in_a_ring_not_even_within_functions() -> None:
    assert _first_cycle(_imports("rune")) == []


def test_a_ring_within_functions_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "ring"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text("from ring import two\n")
    (package / "two.py").write_text("def f():\n    from ring import three\n")
    (package / "three.py").write_text("def f():\n    from ring import one\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert set(_first_cycle(_imports("ring"))) == {"ring.one", "ring.two", "ring.three"}


def test_heavy_packages_are_imported_at_the_top_only_where_they_belong() -> None:
    strays = {
        f"{name}: {', '.join(sorted(heavy))}"
        for file in sorted(SOURCE.rglob("*.py"))
        if not (name := file.relative_to(SOURCE).as_posix()).startswith(MAY_LOAD)
        and (heavy := _top_level_imports(file) & HEAVY)
    }
    assert not strays


def test_web_packages_are_imported_by_the_server_alone() -> None:
    users = {
        file.relative_to(SOURCE).as_posix()
        for file in sorted(SOURCE.rglob("*.py"))
        if any(isinstance(node, ast.Import | ast.ImportFrom) and _names(node) & WEB for node in ast.walk(_tree(file)))
    }
    assert users and all(name.startswith("serving/") for name in users), users
    assert not users & {"serving/settings.py", "serving/keys.py"}  # read by verbs that start no server


def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _names(node: ast.Import | ast.ImportFrom) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    return {(node.module or "").partition(".")[0]}


def test_the_check_above_can_fail(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("from torch import nn\nimport numpy.linalg\n\ndef f():\n    import ray\n")
    assert _top_level_imports(file) == {"torch", "numpy"}


def test_init_files_are_empty_but_the_top_one() -> None:
    assert not [f for f in SOURCE.rglob("__init__.py") if f.parent != SOURCE and f.read_text().strip()]


def test_pure_modules_touch_no_file_clock_or_global_chance() -> None:
    forbidden = {"os", "pathlib", "time", "random", "tempfile", "subprocess", "socket", "datetime"}
    touched = {name: _top_level_imports(SOURCE / name) & forbidden for name in PURE}
    assert not any(touched.values()), touched


STAGES = {"collect", "train", "adapt", "sample", "score", "gate", "report"}


def _stage_calls(text: str) -> set[str]:
    """Stages that a file runs: `collect.run(…)`, where `collect` comes from rune.stages."""
    tree = ast.parse(text)
    imported = {
        (alias.asname or alias.name): alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in ("rune.stages", "rune.analysis")
        for alias in node.names
        if alias.name in STAGES
    }
    return {
        imported[node.func.value.id]
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("run", "over")
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in imported
    }


def test_one_place_calls_the_stages() -> None:
    """The executor calls those of a cell; the decision over cells and its page are made in `combine`, for it.

    `measuring` draws and judges under adapters of the registry, outside of any experiment, through the same two stages.
    """
    found = {
        file.relative_to(SOURCE).as_posix(): calls
        for file in sorted(SOURCE.rglob("*.py"))
        if (calls := _stage_calls(file.read_text()))
    }
    assert found == {
        "study/executor.py": {"collect", "train", "adapt", "sample", "score"},
        "study/combine.py": {"gate", "report"},
        "study/measuring.py": {"sample", "score"},
    }


def test_the_check_of_one_place_can_fail() -> None:
    assert _stage_calls("from rune.stages import train as t\n\ndef f():\n    t.run(1)\n") == {"train"}
    assert _stage_calls("from rune.stages import train\ntrain.fit()\n") == set()
