"""A wheel, unpacked away from the checkout, scores, knows the configs by name and finds the trained hypernetwork."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_wheel_works_from_an_empty_folder(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), "."]
    subprocess.run(build, cwd=ROOT, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)

    def rune(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(site), "RUNE_CACHE": str(tmp_path / "cache")}
        command = [sys.executable, "-m", "rune", *arguments]
        return subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, timeout=300)

    from_wheel = rune("doctor")
    assert from_wheel.returncode == 0, from_wheel.stderr
    (empty / "s.jsonl").write_text('{"task_id": "HumanEval/0", "completion": "    return False\\n"}\n')
    scored = rune("score", "s.jsonl", "--benchmark", "humaneval", "--k", "1", "--ignore_incomplete")
    assert "pass@1" in scored.stdout, scored.stderr
    known = rune("power", "phase1-demo")
    assert known.returncode == 0, known.stderr
    unknown = rune("power", "phase1-dem")
    assert unknown.returncode == 2 and "phase1-demo" in unknown.stderr
    code = (
        "from rune import shipped\nfor one in shipped.hypernets():\n    print(one.folder)\n"
        "    assert (one.folder / 'model.safetensors').is_file()"
    )
    place = subprocess.run(
        [sys.executable, "-c", code], cwd=empty, env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = place.stdout.split()
    assert found and all(Path(folder).is_relative_to(site) for folder in found)
