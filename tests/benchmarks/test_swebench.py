"""SWE-bench's own package: what it is asked, what its reports say, and one line where it cannot run.

Without a Docker daemon nothing is evaluated. The reports in swebench_reports.json were made by `get_eval_report` of
swebench 5.0.2 from logs of pytest; the tests that import the package run where it is installed.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rune.benchmarks import repositories
from rune.benchmarks.scorers import swebench
from rune.errors import DataError, SandboxError
from rune.types import Outcome

REPORTS = json.loads(Path(__file__).with_name("swebench_reports.json").read_text(encoding="utf-8"))
NAME = "me__calc-1"
INSTANCE: dict[str, Any] = {
    "instance_id": NAME, "repo": "me/calc", "version": "1.0", "base_commit": "0" * 40, "problem_statement": "x",
    "image": "swebench/sweb.eval.x86_64.me_1776_calc-1:latest", "log_parser": "parse_log_pytest",
    "FAIL_TO_PASS": '["test_calc.py::test_add"]', "PASS_TO_PASS": '["test_calc.py::test_neg"]',
    "eval_type": "pass_and_fail",
    "eval_script": "#!/bin/bash\n: '>>>>> Start Test Output'\npytest -rA\n: '>>>>> End Test Output'\n",
}  # fmt: skip
PATCH = "diff --git a/calc.py b/calc.py\n--- a/calc.py\n+++ b/calc.py\n@@ -1 +1 @@\n-a\n+b\n"


def test_a_report_is_a_verdict() -> None:
    found = {what: swebench.verdict("k", NAME, report) for what, report in REPORTS.items() if what != "environment"}
    assert {what: (e.outcome, str(e.error_kind), e.error) for what, e in found.items()} == {
        "resolved": (Outcome.PASSED, "", ""),
        "failing": (Outcome.FAILED, "WrongAnswer", "failing: test_calc.py::test_add"),
        "broken": (Outcome.FAILED, "WrongAnswer", "failing: test_calc.py::test_neg"),
        "unreadable": (Outcome.FAILED, "WrongAnswer", "the tests left no result that can be read"),
        "no patch": (Outcome.FAILED, "BadEdit", "there is no patch"),
    }
    with pytest.raises(SandboxError, match=r"environment failed, not the patch \(network_unreachable\)"):
        swebench.verdict("k", NAME, REPORTS["environment"])


def test_without_a_report_the_packages_log_says_why(tmp_path: Path) -> None:
    found = swebench.folder(tmp_path, NAME, "run")
    found.mkdir(parents=True)
    log = found / "run_instance.log"
    log.write_text(f"Error in evaluation for {NAME}: >>>>> Patch Apply Failed:\nerror: calc.py: patch does not apply\n")
    assert swebench.ended("k", NAME, found, "").error_kind == "BadEdit"
    log.write_text("Test timed out after 1800 seconds.\n")
    late = swebench.ended("k", NAME, found, "")
    assert (late.outcome, late.error_kind, late.settled) == (Outcome.TIMED_OUT, "Timeout", False)
    log.write_text("Image not found locally, attempting to pull...\n")
    with pytest.raises(SandboxError, match=rf"{NAME}: swebench wrote no report \(docker.errors.X: no\)"):
        swebench.ended("k", NAME, found, "Traceback\n  a line\ndocker.errors.X: no\n")
    (found / "report.json").write_text(json.dumps(REPORTS["resolved"]))
    assert swebench.ended("k", NAME, found, "").outcome is Outcome.PASSED


class TestOneLine:
    @pytest.fixture(autouse=True)
    def _the_package_is_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.version = "5.0.2"
        monkeypatch.setattr(importlib.metadata, "version", lambda name: self.found(name))

        class DockerException(Exception):
            pass

        def from_env(timeout: int) -> Any:
            raise DockerException("Error while fetching server API version: No such file or directory")

        fake = SimpleNamespace(from_env=from_env, errors=SimpleNamespace(DockerException=DockerException))
        monkeypatch.setitem(sys.modules, "docker", fake)  # type: ignore[arg-type]

    def found(self, name: str) -> str:
        assert name == "swebench"
        if not self.version:
            raise importlib.metadata.PackageNotFoundError(name)
        return self.version

    def refused(self, words: str) -> None:
        with pytest.raises(DataError, match=words) as caught:
            swebench.demand()
        assert "\n" not in str(caught.value) and "or leave evaluate out" in str(caught.value)

    def test_no_package_another_version_and_no_daemon(self) -> None:
        self.refused(r"needs Docker, and no Docker daemon answers here \(Error while fetching .*\); start one, or say")
        self.version = "4.1.0"
        self.refused(r"needs swebench 5, found 4\.1\.0; run `pip install 'rune-lora\[swebench\]'`")
        self.version = ""
        self.refused(r"needs the swebench package, and it is not here; run `pip install 'rune-lora\[swebench\]'`")

    def test_a_record_of_the_first_form(self, tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(swebench, "demand", lambda: None)
        config = repositories.Config(
            only=("psf__requests-863",), path=str(data_dir / "swebench_lite" / "swebench_lite.jsonl"),
            evaluate="swebench",
        )  # fmt: skip
        with pytest.raises(DataError, match="field 'image' is missing, and swebench 5 evaluates with it; take the"):
            repositories.build(config).problems()
        swebench.check(INSTANCE, "here")


class TestThePackage:
    """Its own functions, as far as they need no daemon."""

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("swebench")

    def test_it_reads_the_instance_and_the_prediction_that_are_written_for_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from swebench.harness import run_evaluation, utils

        command = swebench.prepared(tmp_path, INSTANCE, PATCH, "run")
        assert command[1:3] == ["-m", "swebench.harness.run_evaluation"]
        options = dict(zip(command[3::2], command[4::2], strict=True))
        monkeypatch.chdir(tmp_path)
        read = utils.get_predictions_from_file(options["--predictions_path"], options["--dataset_name"], "test")
        assert read == [{"instance_id": NAME, "model_name_or_path": swebench.MODEL, "model_patch": PATCH}]
        predictions = {one["instance_id"]: one for one in read}
        asked = options["--dataset_name"], "test", None, predictions, "run", False
        wanted = run_evaluation.get_dataset_from_preds(*asked)
        (spec,) = map(utils.make_test_spec, wanted)
        assert spec.instance_id == NAME and spec.FAIL_TO_PASS == ["test_calc.py::test_add"]
        # It looks for an earlier report where its verdict is looked for.
        done = swebench.folder(Path(), NAME, "run")
        done.mkdir(parents=True)
        (done / run_evaluation.LOG_REPORT).write_text("{}")
        assert run_evaluation.get_dataset_from_preds(*asked) == []

    def test_its_reports_are_of_the_committed_form(self, tmp_path: Path) -> None:
        from swebench.harness import constants, grading, utils

        log = tmp_path / "log"
        lines = ["FAILED test_calc.py::test_add - assert -1 == 3", "PASSED test_calc.py::test_neg"]
        log.write_text("\n".join([constants.START_TEST_OUTPUT, *lines, constants.END_TEST_OUTPUT]))
        prediction = {"instance_id": NAME, "model_name_or_path": "rune", "model_patch": PATCH}
        made = grading.get_eval_report(utils.make_test_spec(INSTANCE), prediction, str(log), include_tests_status=True)
        assert made == REPORTS["failing"]
        assert constants.APPLY_PATCH_FAIL == swebench.UNAPPLIED

    def test_without_a_daemon_it_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
        with pytest.raises(DataError, match="no Docker daemon answers here"):
            swebench.judge("k", INSTANCE, PATCH)
