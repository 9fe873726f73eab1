"""Folder names of adapters: one task's adapter never stands where another's is looked for."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from rune.conditions._adapters import key

NAMES = st.text(alphabet="aA1_/.- é\\:", min_size=1, max_size=6)


def test_a_benchmarks_ids_read_as_they_are() -> None:
    assert key("HumanEval/3") == "HumanEval_3"
    assert key("Mbpp/601") == "Mbpp_601"


@given(st.lists(st.lists(NAMES, min_size=1, max_size=2).map(tuple), min_size=2, max_size=12, unique=True))
def test_no_two_tasks_or_sets_share_a_folder(names: list[tuple[str, ...]]) -> None:
    folders = [key(*name) for name in names]
    assert len(set(folders)) == len(names)


@given(st.lists(st.text(min_size=1, max_size=300), min_size=1, max_size=3))
def test_a_folder_name_is_one_plain_part_of_a_path(name: list[str]) -> None:
    folder = key(*name)
    assert re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", folder) and folder not in (".", "..")


def test_names_that_were_one_folder_before() -> None:
    assert len({key("a/1"), key("a_1"), key("a 1"), key("a:1"), key("a", "1"), key("a/1/")}) == 6
