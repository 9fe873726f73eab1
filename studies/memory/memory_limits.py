"""A limit on harm beside the pass rate, instead of a weight within φ: what would be selected, from the same passes.

Of a release's measured adapters those are left out that lose more than LIMIT points against the bare model on the tasks
outside; of the others the one with the highest pass rate on the release's scored tasks is selected, of equals the
newest; the bare model where none is left. Announced in README.md before the second run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

LIMITS = (15.0, 30.0, 100.0)  # points of pass@1; 100: no limit
BARE = ""  # instead of an adapter's id
NO_HARM = 1e-9  # rates of the same share differ by rounding


class Worth(NamedTuple):
    """An adapter's rates on its release's scored tasks and on the tasks outside, and its place in order of arrival."""

    inside: float
    outside: float
    number: int


def selected(adapters: Mapping[str, Worth], bare_outside: float, limit: float) -> str:
    """The id; BARE if no adapter is within the limit, which is in points."""
    least = bare_outside - limit / 100 - NO_HARM
    left = {digest: worth for digest, worth in adapters.items() if worth.outside >= least}
    return max(left, key=lambda digest: (left[digest].inside, left[digest].number), default=BARE)
