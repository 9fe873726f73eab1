"""docs/examples/agent.py, as a person would run it: its first session changes the answer to its second question."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rune.adapters.registry.records import place
from rune.serving.watching import Here, Watcher
from rune.types import ModelRef
from tests.serving.world import PATIENCE, configured, running

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "agent.py"


def test_the_agent_of_the_example_is_answered_by_what_it_learned(
    tiny_model: ModelRef, hypernet: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()

    def agent(check: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(EXAMPLE), "Write f(x), which adds 1.", "--check", check]
        environment = {**os.environ, "RUNE_URL": served.url}
        return subprocess.run(
            command, cwd=work, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE
        )

    with running(configured(tiny_model, tmp_path, hypernet, max_tokens=24)) as served:
        memory = served.service.memory
        first = agent("test -e tried || { touch tried; echo not yet; false; }")
        assert first.returncode == 0, first.stderr
        assert first.stdout.splitlines() == ["tiny: not yet", "tiny: passed"]
        watcher = Watcher(work / "sessions", Here(memory, place("shop")), still_seconds=0)
        (taken,) = watcher.poll()
        watcher.close()
        assert taken.made is not None, taken.why
        second = agent("false")
        assert second.returncode == 1, second.stderr
        assert second.stdout.splitlines() == [f"tiny:{taken.made.id}: failed"] * 3
