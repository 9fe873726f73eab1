"""A few hundred damaged files of every format through the command; the long run is `python tests/corpus/fuzz.py`."""

from __future__ import annotations

from tests.corpus import fuzz


def test_a_damaged_file_is_one_line_or_a_right_result() -> None:
    found = fuzz.campaign(300, 0)
    assert found["distinct"] >= 290
    assert found["read"] > 50 and found["refused"] > 50  # both sides are tried
