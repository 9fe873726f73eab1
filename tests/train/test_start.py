"""Training that goes on from a checkpoint, and what may not come in by that door."""

from __future__ import annotations

import pytest

from rune.benchmarks import _exclusion
from rune.errors import ContaminationError
from rune.types import Problem


def test_a_checkpoint_trained_on_a_held_out_task_starts_no_run() -> None:
    held_out = [Problem(task_id="HumanEval/7", benchmark="humaneval", prompt="", entry_point="f", test="")]
    _exclusion.check_ids(["HumanEval/8", "Mbpp/600"], held_out, where="x")
    with pytest.raises(ContaminationError, match="trained on HumanEvalFix/7, which is held out"):
        _exclusion.check_ids(["HumanEval/8", "HumanEvalFix/7"], held_out, where="x")
