"""Parts are files: a name is a file's name, and a wrong one says which was meant."""

from __future__ import annotations

import dataclasses

import pytest

from rune import plugins
from rune.errors import ConfigError

FOLDERS = ("engines", "encoders", "benchmarks", "conditions", "retrievers", "sandbox", "hypernet.kinds")


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_part_has_a_frozen_keyword_only_config_and_a_build(folder: str) -> None:
    names = plugins.available(folder)
    assert names and not any(name.startswith("_") for name in names)
    for name in names:
        module = plugins.load(folder, name)
        assert module.Config.__dataclass_params__.frozen, name
        assert all(field.kw_only for field in dataclasses.fields(module.Config)), name
        assert callable(module.build), name


def test_a_misspelt_part_names_the_one_that_was_meant_and_all_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no engine named 'vlm'; did you mean 'vllm'\? Available: .*torch, vllm"):
        plugins.load("engines", "vlm")


def test_a_helper_is_no_part() -> None:
    with pytest.raises(ConfigError, match="no benchmark named '_split'"):
        plugins.load("benchmarks", "_split")


def test_a_name_like_nothing_gets_the_list_alone() -> None:
    with pytest.raises(ConfigError, match=r"no sandbox backend named 'zzzz'\. Available: "):
        plugins.load("sandbox", "zzzz")
