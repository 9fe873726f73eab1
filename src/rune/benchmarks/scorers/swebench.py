"""SWE-bench's own evaluation: its package runs an instance's tests in Docker, in an image that it pulls.

The package is an optional extra, of version 5, which evaluates with fields of the instance (NEEDED) that records of
SWE-bench's first form do not hold. It is run as a program on one prediction at a time, in a folder of its own.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rune.errors import DataError, SandboxError
from rune.types import Execution, FailureKind, Outcome

MODEL = "rune"  # who made the predictions
VERSION = 5
NEEDED = ("image", "version", "eval_script", "eval_type", "log_parser")
SECONDS = 1800  # the package's own limit for the tests of one instance
MOST_SECONDS = 2 * SECONDS + 1800  # of the whole program: an image may have to be pulled before
UNAPPLIED, TIMED_OUT = ">>>>> Patch Apply Failed", "Test timed out after"  # what the package's log says
_ADVICE = "or leave evaluate out, so that the tests run in Rune's own sandbox"


def demand() -> None:
    """Raises DataError where the package is not there, or is another version, or no Docker daemon answers."""
    wanted = f"run `pip install 'rune-lora[swebench]'`, {_ADVICE}"
    try:
        found = importlib.metadata.version("swebench")
    except importlib.metadata.PackageNotFoundError:
        raise DataError(f"evaluate = 'swebench' needs the swebench package, and it is not here; {wanted}") from None
    if found.partition(".")[0] != str(VERSION):
        raise DataError(f"evaluate = 'swebench' needs swebench {VERSION}, found {found}; {wanted}")
    import docker  # a dependency of the package

    try:
        docker.from_env(timeout=10).ping()
    except (docker.errors.DockerException, OSError) as error:
        raise DataError(
            f"evaluate = 'swebench' needs Docker, and no Docker daemon answers here ({_line(str(error))}); start one, "
            f"or say where it is in DOCKER_HOST, {_ADVICE}"
        ) from None


def check(instance: Mapping[str, Any], where: str) -> None:
    """Raises DataError for a record without a field that the package needs."""
    missing = next((name for name in NEEDED if not instance.get(name)), "")
    if missing:
        raise DataError(
            f"{where}: field '{missing}' is missing, and swebench {VERSION} evaluates with it; take the record from "
            f"a data set made for it (SWE-bench/SWE-bench_Lite on the hub), {_ADVICE}"
        )


def judge(key: str, instance: Mapping[str, Any], patch: str) -> Execution:
    """One patch of one instance. Raises DataError as `demand` does, SandboxError if the package could not judge it."""
    demand()
    name, run = str(instance["instance_id"]), f"{MODEL}-{uuid.uuid4().hex[:12]}"  # it names the container as well
    with tempfile.TemporaryDirectory() as place:
        command = prepared(Path(place), instance, patch, run)
        try:
            done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=MOST_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise SandboxError(f"{name}: swebench did not end within {MOST_SECONDS} s", key=key) from None
        return ended(key, name, folder(Path(place), name, run), done.stderr.strip() or done.stdout.strip())


def prepared(place: Path, instance: Mapping[str, Any], patch: str, run: str) -> list[str]:
    """Writes the instance and the prediction as the package reads them; the command that evaluates them there."""
    (place / "data.json").write_text(json.dumps([dict(instance)]), encoding="utf-8")
    prediction = {"instance_id": str(instance["instance_id"]), "model_name_or_path": MODEL, "model_patch": patch}
    (place / "predictions.jsonl").write_text(json.dumps(prediction) + "\n", encoding="utf-8")
    options = {
        "--dataset_name": "data.json", "--predictions_path": "predictions.jsonl", "--run_id": run,
        "--max_workers": "1", "--timeout": str(SECONDS),
    }  # fmt: skip
    return [sys.executable, "-m", "swebench.harness.run_evaluation", *(w for pair in options.items() for w in pair)]


def folder(place: Path, name: str, run: str) -> Path:
    """Where the package leaves what it found about an instance."""
    return place / "logs" / "run_evaluation" / run / MODEL / name


def ended(key: str, name: str, found: Path, said: str) -> Execution:
    """From the package's folder of an instance: its report, or why there is none. `said`: what the program printed.

    Raises SandboxError where neither tells what the patch is worth.
    """
    if (found / "report.json").is_file():
        return verdict(key, name, json.loads((found / "report.json").read_text(encoding="utf-8")))
    log = found / "run_instance.log"
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    if UNAPPLIED in text:
        return _failed(key, FailureKind.BAD_EDIT, "the patch does not apply")
    if TIMED_OUT in text:
        error = f"the tests did not end within {SECONDS} s"
        return replace(_failed(key, FailureKind.TIMEOUT, error), outcome=Outcome.TIMED_OUT, settled=False)
    raise SandboxError(f"{name}: swebench wrote no report ({_line(said)})", key=key)


def verdict(key: str, name: str, report: Mapping[str, Any]) -> Execution:
    """What a report says of one instance. Raises SandboxError where the environment failed, not the patch."""
    found = report[name]
    if found["resolved"]:
        return Execution(key=key, outcome=Outcome.PASSED)
    if found.get("infra_failure"):
        reason = found.get("infra_failure_reason", "no reason given")
        raise SandboxError(f"{name}: swebench's environment failed, not the patch ({reason})", key=key)
    if not found.get("patch_exists", True):
        return _failed(key, FailureKind.BAD_EDIT, "there is no patch")
    tests = found.get("tests_status")
    if tests is None:  # the patch was applied, or there would be no report
        return _failed(key, FailureKind.WRONG_ANSWER, "the tests left no result that can be read")
    failing = [t for group in ("FAIL_TO_PASS", "PASS_TO_PASS") for t in tests.get(group, {}).get("failure", ())]
    return _failed(key, FailureKind.WRONG_ANSWER, f"failing: {', '.join(failing[:5])}")


def _failed(key: str, kind: FailureKind, error: str) -> Execution:
    return Execution(key=key, outcome=Outcome.FAILED, error_kind=kind, error=error)


def _line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")[:300]
