"""A message that names a setting or a flag names one that is accepted there."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from rune import plugins
from rune.cli import main as cli
from rune.study import config as study

SOURCE = Path(study.__file__).parents[1]
SECTION = re.compile(r"\[([a-z][a-z_.]*)\] ([a-z_]+)\b(?= ?[=,;:)'\n]| must| is\b|$)")
DOTTED = re.compile(r"--set ([a-z_]+(?:\.[a-z_]+)+)=")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z_-]+")
OF_OTHERS = {"--served-model-name"}  # vLLM's server, which a message tells the user to start


class Mention(typing.NamedTuple):
    place: str
    text: str
    told: bool  # in a raise, or in a call of the console: said to the user for sure


def mentions(source: str, name: str) -> Iterator[Mention]:
    """Every text of a program that is shown to somebody: constants and the fixed parts of f-strings, no docstrings."""
    tree = ast.parse(source)
    silent = {
        id(body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and (body := node.body)
        and isinstance(body[0], ast.Expr)
    }
    told = {id(inner) for node in ast.walk(tree) if _speaks(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(p.value) if isinstance(p, ast.Constant) else "\0" for p in node.values)
            silent |= {id(p) for p in node.values}
            yield Mention(f"{name}:{node.lineno}", text, id(node) in told)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent:
            yield Mention(f"{name}:{node.lineno}", node.value, id(node) in told)


def _speaks(node: ast.AST) -> bool:
    return isinstance(node, ast.Raise) or (
        isinstance(node, ast.Call)
        and ast.unparse(node.func).startswith(("console.", "print", "RuneError", "DataError"))
    )


def everything() -> list[Mention]:
    return [
        mention
        for path in sorted(SOURCE.rglob("*.py"))
        for mention in mentions(path.read_text(encoding="utf-8"), str(path.relative_to(SOURCE)))
    ]


def accepted(cls: type, path: str = "") -> Iterator[str]:
    """Dotted names of all settings of a config class."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name = f"{path}.{field.name}" if path else field.name
        yield name
        for hint in (hints[field.name], *typing.get_args(hints[field.name])):
            if isinstance(hint, type) and dataclasses.is_dataclass(hint):
                yield from accepted(hint, name)


def settings() -> set[str]:
    found = set(accepted(study.RunConfig))
    parts = {
        "engines": "engine.settings",
        "benchmarks": "benchmark.settings",
        "sandbox": "score.settings",
        "retrievers": "retrieve.settings",
        "encoders": "train.hypernet.encoder_settings",
    }
    for folder, section in parts.items():
        for name in plugins.available(folder):
            found |= set(accepted(plugins.load(folder, name).Config, section))
    return found


def flags() -> set[str]:
    found: set[str] = {"--help", "--version"}
    for verb in cli.VERBS:
        parser = argparse.ArgumentParser()
        importlib.import_module(f"rune.cli.{verb}").configure(parser)
        found |= _options(parser)
    return found


def _options(parser: argparse.ArgumentParser) -> set[str]:
    found = {option for action in parser._actions for option in action.option_strings}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                found |= _options(inner)
    return found


def wrong_settings(texts: list[Mention], known: set[str]) -> list[str]:
    sections = {name.partition(".")[0] for name in known}
    found = []
    for place, text, _ in texts:
        named = [f"{m[1]}.{m[2]}" for m in SECTION.finditer(text) if m[1].partition(".")[0] in sections]
        named += [m[1] for m in DOTTED.finditer(text)]
        found += [f"{place}: {name}" for name in named if name not in known]
    return found


def wrong_flags(texts: list[Mention], known: set[str]) -> list[str]:
    return [f"{place}: {flag}" for place, text, _ in texts for flag in FLAG.findall(text) if flag not in known]


def test_every_setting_in_a_message_is_one_that_a_config_takes() -> None:
    texts = everything()
    assert len(texts) > 1000
    assert not wrong_settings(texts, settings())


def test_every_flag_in_a_message_is_one_that_a_verb_takes() -> None:
    told = [mention for mention in everything() if mention.told]
    assert sum(len(FLAG.findall(mention.text)) for mention in told) > 50
    assert not wrong_flags(told, flags() | OF_OTHERS)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("'[gate] treshold = 3; add --set sample.n=5'", ["x.py:1: gate.treshold"]),
        ("'set --set sample.m=5'", ["x.py:1: sample.m"]),
        ("f'[design] folds = {3} is too many'", []),
        ("f'[sample] n = {3}, add --set sample.n={2}'", []),
        ("f'[train.hypernet] ranks = {3}'", ["x.py:1: train.hypernet.ranks"]),
    ],
)
def test_a_setting_that_is_not_accepted_is_found(text: str, found: list[str]) -> None:
    assert wrong_settings(list(mentions(f"raise E({text})", "x.py")), settings()) == found


def test_a_flag_that_is_not_accepted_is_found() -> None:
    texts = list(mentions("raise E('pass --skip-brokn, or --skip-broken')", "x.py"))
    assert wrong_flags(texts, flags()) == ["x.py:1: --skip-brokn"]
