"""SWE-bench's own evaluation: its package makes an environment for each instance in Docker and runs the tests there."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rune.errors import DataError, SandboxError
from rune.types import Execution, FailureKind, Outcome

RUN = "rune"
SECONDS = 3600


def demand() -> None:
    """Raises DataError where Docker or the package is not there."""
    advice = "or give clones and leave evaluate out, so that the tests run in Rune's own sandbox"
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        raise DataError(f"evaluate = 'swebench' needs Docker, and no Docker answers here; start it, {advice}")
    if importlib.util.find_spec("swebench") is None:
        raise DataError(f"evaluate = 'swebench' needs the swebench package; run `pip install swebench`, {advice}")


def judge(key: str, instance: Mapping[str, Any], patch: str) -> Execution:
    """One patch of one instance. Raises DataError as `demand` does, SandboxError if no report was written."""
    demand()
    name = str(instance["instance_id"])
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        (root / "data.json").write_text(json.dumps([dict(instance)]), encoding="utf-8")
        prediction = {"instance_id": name, "model_name_or_path": RUN, "model_patch": patch}
        (root / "predictions.jsonl").write_text(json.dumps(prediction) + "\n", encoding="utf-8")
        options = {"--dataset_name": "data.json", "--predictions_path": "predictions.jsonl", "--run_id": RUN}
        command = [sys.executable, "-m", "swebench.harness.run_evaluation", "--max_workers", "1"]
        command += [word for pair in options.items() for word in pair]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=SECONDS, check=False)
        report = root / "logs" / "run_evaluation" / RUN / RUN / name / "report.json"
        if not report.is_file():
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise SandboxError(f"{name}: swebench wrote no report ({''.join(said)[:300]})", key=key)
        return verdict(key, name, json.loads(report.read_text(encoding="utf-8")))


def verdict(key: str, name: str, report: Mapping[str, Any]) -> Execution:
    """What a report says of one instance."""
    found = report[name]
    if found["resolved"]:
        return Execution(key=key, outcome=Outcome.PASSED)
    tests = found.get("tests_status", {})
    failing = [t for group in ("FAIL_TO_PASS", "PASS_TO_PASS") for t in tests.get(group, {}).get("failure", ())]
    applied = found.get("patch_successfully_applied", True)
    error = f"failing: {', '.join(failing[:5])}" if applied else "the patch does not apply"
    kind = FailureKind.WRONG_ANSWER if applied else FailureKind.BAD_EDIT
    return Execution(key=key, outcome=Outcome.FAILED, error_kind=kind, error=error)
