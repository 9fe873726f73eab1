"""`rune models`: what it prints, and bad names end with one line and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from rune.cli.main import main
from rune.types import ModelRef


def test_list_names_every_model_and_where_it_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list"]) == 0
    out = capsys.readouterr().out
    for name in ("qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-7b-instruct", "smollm2-135m-instruct"):
        assert name in out


def test_path_prints_the_folder_and_nothing_else(capsys: pytest.CaptureFixture[str], tiny_model: ModelRef) -> None:
    assert main(["models", "path", tiny_model.path]) == 0
    assert capsys.readouterr().out == f"{tiny_model.path}\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qwen2.5-coder-0.5-instruct", "did you mean 'qwen2.5-coder-0.5b-instruct'?"),
        ("./nowhere", "./nowhere: no such model folder or GGUF file"),
        ("cut.gguf", "truncated or damaged GGUF file"),
        ("smollm2-135m-instruct", "smollm2-135m-instruct is not to be had from cache"),
    ],
)
def test_bad_models_end_with_one_line_and_code_2(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(4))
    assert main(["models", "path", name, "--sources", "cache", "--cache", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
