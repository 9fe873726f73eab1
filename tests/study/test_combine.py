"""What a study's cells say together."""

from __future__ import annotations

from rune.study import combine


def test_a_mean_over_cells_is_over_those_that_have_a_value() -> None:
    assert combine._mean([1.0, None, 4.0, 7.0]) == 4.0
    assert combine._mean([-1.0, 1.0]) == 0.0
    assert combine._mean([None]) is None and combine._mean([]) is None
