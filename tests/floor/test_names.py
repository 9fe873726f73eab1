"""Names: private ones stay in their folder, retired words stay away; and both checks can fail."""

from __future__ import annotations

from tools import lint_names


def test_the_source_keeps_both_rules() -> None:
    assert lint_names.main() == 0


def test_a_private_import_from_another_folder_is_found() -> None:
    text = "from rune.conditions import _adapters\nfrom rune.sandbox.judging.pool import _lane\nimport rune.types\n"
    assert list(lint_names.private_imports(text, "rune.stages")) == [
        (1, "rune.conditions._adapters"),
        (2, "rune.sandbox.judging.pool._lane"),
    ]
    assert list(lint_names.private_imports("from rune.conditions import _adapters\n", "rune.conditions")) == []
    assert list(lint_names.private_imports("from rune import __version__\n", "rune.runs")) == []
    below = "from rune.engines.local import _session\n"
    assert list(lint_names.private_imports(below, "rune.engines")) == [(1, "rune.engines.local._session")]


def test_a_retired_word_is_found_wherever_it_names_something() -> None:
    text = "class Desk: ...\ndef f(worn): ...\nx = y.lore\n"
    assert sorted(word for _, word in lint_names.retired_words(text)) == ["Desk", "lore", "worn"]
