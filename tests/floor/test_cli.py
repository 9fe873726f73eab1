"""The command line's door: quick, quiet, and one line for every mistake."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rune.cli import main

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "numpy", "scipy", "transformers", "peft", "mlflow", "matplotlib", "vllm", "ray", "fastapi", "uvicorn")


def _loaded(statement: str) -> set[str]:
    """Which heavy packages a fresh interpreter has loaded after `statement`."""
    code = f"import sys\n{statement}\nprint(*[m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


def test_help_loads_neither_torch_nor_numpy() -> None:
    assert _loaded("from rune.cli.main import main; main(['--help'])") == set()


def test_the_check_above_can_fail() -> None:
    assert "numpy" in _loaded("import numpy")


@pytest.mark.parametrize("verb", sorted(main.VERBS))
def test_every_verb_in_the_help_is_there_and_explains_itself_without_torch(verb: str) -> None:
    module = importlib.import_module(f"rune.cli.{verb}")
    assert callable(module.configure) and callable(module.run)
    statement = f"from rune.cli.main import main\ntry: main([{verb!r}, '--help'])\nexcept SystemExit: pass"
    assert not {"torch", "fastapi", "uvicorn"} & _loaded(statement)


def test_no_verb_is_left_out_of_the_help() -> None:
    folder = Path(main.__file__).parent
    files = {f.stem for f in folder.glob("*.py") if not f.stem.startswith("_")} - {"main"}
    assert files == set(main.VERBS)


def test_the_gate_module_decides_without_torch() -> None:
    assert "torch" not in _loaded("import rune.stages.gate, rune.stages.report")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["scor"], "rune: no verb named 'scor'; did you mean 'score'? Available: "),
        (["show"], "rune show: "),
        (["show", "nowhere"], "rune: nowhere: no run folder"),
        (["gate", "nowhere"], "rune: nowhere: no run folder"),
        (["run", "nowhere.toml"], "rune: nowhere.toml: cannot read the config"),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_exit_code_2(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main.main(args)
    except SystemExit as stop:
        code = int(str(stop.code))
    found = capsys.readouterr()
    assert code == 2
    assert found.err.startswith(message) and found.err.count("\n") == 1
    assert found.out == ""


def test_an_interrupted_verb_says_so_and_exits_with_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("rune.cli.show"), "run", interrupted)
    assert main.main(["show", "x"]) == 130
    assert "kept" in capsys.readouterr().err


def test_a_closed_pipe_is_no_error() -> None:
    script = "from rune.cli.main import entry; import sys; sys.argv = ['rune', '--help']; entry()"
    done = subprocess.run(
        f"{sys.executable} -c \"{script}\" | head -c 1", shell=True, capture_output=True, text=True, check=True
    )  # fmt: skip
    assert "Traceback" not in done.stderr


LIGHT = {
    "power": "configs/phase1-0.5b.toml --simulations 20",
    "preregister": "configs/phase1-0.5b.toml",
    "show": "{run}",
    "gate": "{run}",
    "leakage": "{run}",
    "report": "{run}",
}


@pytest.mark.parametrize("verb", sorted(LIGHT))
def test_verbs_that_plan_or_look_load_neither_torch_nor_transformers(verb: str, tmp_path: Path) -> None:
    run = shutil.copytree(ROOT / "results" / "phase1-0.5b", tmp_path / "run")
    args = [verb, *LIGHT[verb].format(run=run).split()]
    statement = (
        f"import os; os.chdir({str(ROOT)!r})\nfrom rune.cli.main import main\nassert main({args!r}) in (0, 1, 10)"
    )
    assert not _loaded(statement) & {"torch", "transformers"}


def test_the_check_of_light_verbs_can_fail(tmp_path: Path) -> None:
    statement = "import rune.study.config, torch\nfrom rune.cli.main import main\nmain(['show', '.'])"
    assert "torch" in _loaded(statement)
