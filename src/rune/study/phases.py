"""The phases of the programme: which one an experiment belongs to, what it waits for, and how that is said. Pure.

Phase N begins when phase N − 1 has a decision that passed. `admission.py` verifies it; what was found stands in the
manifest under `phase`, and from there in every record and page. `--override REASON` begins without it, and the reason
goes wherever the results go, those of later phases that stand on them included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rune.reporting import words
from rune.types import Decision

TITLES: Mapping[int, str] = {
    1: "the gate, on a base that is not quantised",
    2: "QLoRA, on an NF4 base",
    3: "adapter memory: selection, composition, evolution",
    4: "ablation grid and the manifold of adapters",
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """`[phase]`: without it an experiment is of phase 1."""

    number: int = 1
    after: str = ""  # the run of the phase before whose decision opens this one
    decision: str = ""  # sha256 of its decision.json
    override: str = ""  # why this one begins without: `--override REASON`

    def __post_init__(self) -> None:
        if self.number not in TITLES:
            known = ", ".join(f"{number} ({title})" for number, title in TITLES.items())
            raise ValueError(f"there is no phase {self.number}; number is one of {known}")
        if self.override and not self.override.strip():
            raise ValueError("override is the reason in words, found only blanks")
        for name in ("after", "decision", "override"):
            if self.number == 1 and getattr(self, name):
                raise ValueError(f"{name}: phase 1 waits for nothing; leave it out, or set number")


def name(number: int) -> str:
    """ "phase 2 (QLoRA, on an NF4 base)"."""
    return f"phase {number} ({TITLES[number]})"


def marked(decision: Decision, record: Mapping[str, Any]) -> Decision:
    """A decision that says which phase it is of and what was overridden; of phase 1 it is left as it is."""
    if not record or record["number"] == 1:
        return decision
    said = words.overrides(record)
    return replace(decision, reasons=(*said, *decision.reasons), details={**decision.details, "phase": dict(record)})
