"""Repositories as a source: read by git alone, mended by checked edits, judged by their own tests without network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rune.benchmarks import repositories
from rune.benchmarks.formats import checkout
from rune.benchmarks.scorers import judging, repository
from rune.benchmarks.scorers.judging import Item
from rune.errors import DataError, SandboxError
from rune.sandbox import fork, subprocess
from rune.sandbox.judging.pool import Pool
from rune.types import Answer, Command, Finished, Outcome, Problem, Scorer
from tests.benchmarks.repositories import (
    BREAKS,
    CALC,
    ISSUE,
    NEEDY,
    PRICES,
    RIGHT,
    SHOP,
    UNITTEST,
    WRONG,
    commit,
    git,
    make,
)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Pool]:
    with fork.build(fork.Config(workers=2)) as pool:
        yield pool


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("repositories") / "shop", SHOP)


def one(path: Path, **settings: Any) -> Problem:
    chosen = {"test_command": UNITTEST, "seconds": 60.0, **settings}
    (found,) = repositories.build(repositories.Config(path=str(path), **chosen)).problems()
    return found


def judged(sandbox: Pool, problem: Problem, *answers: str) -> list[Any]:
    found = {e.key: e for e in judging.judge(sandbox, [Item(str(i), problem, a) for i, a in enumerate(answers)])}
    return [found[str(i)] for i in range(len(answers))]


def test_a_task_shows_the_issue_and_the_files_nearest_to_it_and_never_a_test(shop: Path) -> None:
    problem = one(shop, issue=ISSUE)
    assert problem.task_id == f"shop@{git(shop, 'rev-parse', 'HEAD')[:10]}" and problem.domain == "shop"
    assert problem.scorer is Scorer.REPOSITORY and problem.scorer.answer is Answer.EDITS
    assert problem.prompt.startswith(ISSUE) and "=== shop/prices.py\n" in problem.prompt
    assert problem.prompt.index("shop/prices.py") < problem.prompt.index("shop/names.py")
    assert "assertEqual" not in problem.prompt
    short = one(shop, issue="clean() of names.py strips too little", max_chars=200)
    assert "=== shop/names.py" in short.prompt and "=== shop/prices.py" in short.prompt
    assert one(shop).prompt.startswith(f"The command `{UNITTEST}` fails.")


def test_what_has_no_room_is_named_and_a_file_too_long_is_shown_around_what_the_issue_names() -> None:
    long = "\n".join(f"line_{i} = {i}" for i in range(400)) + "\ndef needle():\n    pass\n"
    text = repositories.shown({"a.py": long, "b.py": "x = 1\n" * 90}, "the needle is wrong", max_chars=600)
    assert "=== a.py (parts of it)" in text and "def needle():" in text and "lines …" in text
    assert "Not shown: b.py" in text and len(text) < 900


def test_an_answer_counts_if_what_failed_passes_and_what_passed_still_does(sandbox: Pool, shop: Path) -> None:
    problem = one(shop, issue=ISSUE)
    right, wrong, breaks = judged(sandbox, problem, RIGHT, WRONG, BREAKS)
    assert right.outcome is Outcome.PASSED
    assert wrong.outcome is Outcome.FAILED and wrong.error_kind == "WrongAnswer"
    assert "still failing: test_tax (tests.test_prices.Prices)" in wrong.error and "200 != 220" in wrong.error
    assert breaks.outcome is Outcome.FAILED
    assert "failing now, and not before: test_total (tests.test_prices.Prices)" in breaks.error
    assert repository.baseline(sandbox, problem) == repository.Baseline(
        ("test_tax (tests.test_prices.Prices)",), ("test_total (tests.test_prices.Prices)",)
    )


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("I would change the tax.", "there is no complete block"),
        (RIGHT.replace("cents + cents * percent\n=", "cents\n="), "stands nowhere in the file"),
        (RIGHT.replace("shop/prices.py", "shop/taxes.py"), "there is no such file"),
        (RIGHT.replace("shop/prices.py", "../prices.py"), "outside of the repository"),
        (RIGHT.replace("shop/prices.py", "tests/test_prices.py"), "is one of the tests"),
        ("conftest.py\n<<<<<<< SEARCH\n=======\nx = 1\n>>>>>>> REPLACE", "decides how they run"),
    ],
)
def test_edits_that_do_not_fit_fail_with_words_for_the_model_and_run_nothing(
    sandbox: Pool, shop: Path, answer: str, words: str
) -> None:
    problem = one(shop, issue=ISSUE)
    repository.baseline(sandbox, problem)

    class Nothing:
        def run(self, commands: Any) -> Iterator[Any]:
            raise AssertionError("a test ran")

    (found,) = judging.judge(Nothing(), [Item("a", problem, answer)])  # type: ignore[arg-type]
    assert found.outcome is Outcome.FAILED and found.error_kind == "BadEdit" and words in found.error


def test_the_scorer_proves_itself_on_an_instance_in_swe_benchs_form(sandbox: Pool, tmp_path: Path) -> None:
    """The gold patch passes, stubs and forgeries fail; the failing test comes with the instance, by pytest."""
    calc = make(tmp_path / "clones" / "me__calc", CALC)
    base = git(calc, "rev-parse", "HEAD").strip()
    (calc / "calc.py").write_text(CALC["calc.py"].replace("a - b", "a + b"))
    patch = git(calc, "diff")
    git(calc, "checkout", "-q", "--", ".")
    (calc / "test_calc.py").write_text(CALC["test_calc.py"] + "\n\ndef test_add():\n    assert add(1, 2) == 3\n")
    test_patch = git(calc, "diff")
    git(calc, "checkout", "-q", "--", ".")
    record = {
        "instance_id": "me__calc-1", "repo": "me/calc", "base_commit": base, "problem_statement": "add subtracts",
        "patch": patch, "test_patch": test_patch, "FAIL_TO_PASS": json.dumps(["test_calc.py::test_add"]),
        "PASS_TO_PASS": ["test_calc.py::test_neg", "test_calc.py::test_none"],
    }  # fmt: skip
    (tmp_path / "instances.jsonl").write_text(json.dumps(record) + "\n")
    config = repositories.Config(
        path=str(tmp_path / "instances.jsonl"),
        clones=str(tmp_path / "clones"),
        test_command="python -m pytest -rA -p no:cacheprovider",
    )
    (problem,) = repositories.build(config).problems()
    assert problem.task_id == "me__calc-1" and problem.domain == "me/calc"
    assert problem.reference.startswith("calc.py\n<<<<<<< SEARCH\n") and "test_add" not in problem.prompt
    trials = judging.trials([problem], forged=1)
    found = judged(sandbox, problem, *(t.code for t in trials))
    assert [e.outcome is Outcome.PASSED for e in found] == [t.passes for t in trials] == [True] + [False] * 4
    assert repository.baseline(sandbox, problem).failing == ("test_calc.py::test_add",)
    with pytest.raises(DataError, match="there is no instance 'none'; name one of its instance_ids"):
        repositories.build(repositories.Config(path=config.path, clones=config.clones, only=("none",))).problems()


def test_swe_bench_lite_is_read_and_says_how_to_get_a_repository(data_dir: Path, tmp_path: Path) -> None:
    config = repositories.Config(
        only=("psf__requests-863",), path=str(data_dir / "swebench_lite" / "swebench_lite.jsonl")
    )
    with pytest.raises(
        DataError, match=r"no clone of psf/requests in clones \(not set\); run `git clone https://github.com/psf"
    ):
        repositories.build(config).problems()


class TestOneLine:
    """What cannot be a task is one line: what was found, what to do."""

    def refused(self, sandbox: Pool, words: str, path: Path, **settings: Any) -> None:
        with pytest.raises(DataError, match=words):
            judged(sandbox, one(path, **settings), RIGHT)

    def test_a_folder_that_is_no_repository_and_a_commit_that_is_not_there(
        self, sandbox: Pool, shop: Path, tmp_path: Path
    ) -> None:
        self.refused(sandbox, "no git repository; run `git init`", tmp_path)
        self.refused(
            sandbox, r"nothing: no such file or folder; benchmark.settings.path is a git", tmp_path / "nothing"
        )
        self.refused(sandbox, "there is no commit 'abcdef0'", shop, commit="abcdef0")

    def test_a_dirty_work_tree_unless_a_commit_is_named(self, sandbox: Pool, tmp_path: Path) -> None:
        dirty = make(tmp_path / "dirty", SHOP)
        (dirty / "shop" / "names.py").write_text("broken (\n")
        (dirty / "new.py").write_text("x = 1\n")
        self.refused(sandbox, r"the work tree is dirty \(shop/names.py, new.py\); commit or stash it", dirty)
        named = one(dirty, commit="HEAD")
        assert judged(sandbox, named, RIGHT)[0].outcome is Outcome.PASSED  # what is committed counts
        assert (dirty / "shop" / "names.py").read_text() == "broken (\n"

    def test_a_repository_without_tests(self, sandbox: Pool, tmp_path: Path) -> None:
        bare = make(tmp_path / "bare", {"a.py": "x = 1\n"})
        self.refused(sandbox, "finds no tests; give a repository with tests", bare)

    def test_a_dependency_that_is_not_there(self, sandbox: Pool, tmp_path: Path) -> None:
        words = "cannot run here: No module named 'a_package_that_nobody_has'; install it for this Python, or name"
        self.refused(sandbox, words, make(tmp_path / "needy", NEEDY))

    def test_a_command_that_needs_the_network(self, sandbox: Pool, shop: Path) -> None:
        command = "python -c \"import urllib.request as u; u.urlopen('http://example.org', timeout=5)\""
        self.refused(
            sandbox,
            r"needs the network \(.*\), and there is none; name a command that runs",
            shop,
            test_command=command,
        )

    def test_a_command_that_is_not_there_or_does_not_end(self, sandbox: Pool, shop: Path) -> None:
        self.refused(
            sandbox, "cannot be started: no-such-program: No such file", shop, test_command="no-such-program -x"
        )
        slow = 'python -c "import time; time.sleep(60)"'
        self.refused(
            sandbox, "does not end within 1 s; name fewer tests, or raise seconds", shop, test_command=slow, seconds=1.0
        )

    def test_nothing_to_mend(self, sandbox: Pool, tmp_path: Path) -> None:
        fine = make(
            tmp_path / "fine",
            {**SHOP, "shop/prices.py": PRICES.replace("cents * percent", "cents * percent // 100")},
        )
        self.refused(sandbox, "nothing is to be mended: all 2 tests pass without any edit", fine)

    def test_swe_benchs_own_evaluation_of_a_repository_that_is_no_instance(self, shop: Path) -> None:
        with pytest.raises(DataError, match="evaluate = 'swebench' is for SWE-bench's instances; leave it out"):
            one(shop, evaluate="swebench")

    def test_a_sandbox_without_walls(self, shop: Path) -> None:
        with (
            subprocess.build(subprocess.Config(workers=1, allow_weak=True)) as weak,
            pytest.raises(
                SandboxError, match=r"no walls to run a repository's tests behind; use --set score\.backend=fork"
            ),
        ):
            judged(weak, one(shop, issue="x"), RIGHT)


def test_a_command_sees_neither_network_nor_home_nor_the_machines_files_and_leaves_nothing(
    sandbox: Pool, shop: Path, tmp_path: Path
) -> None:
    archive = checkout.archive(shop, git(shop, "rev-parse", "HEAD").strip(), tmp_path)
    look = (
        "import os, socket; print(sorted(os.listdir('.')), os.getuid() > 0, os.path.exists('/proc/1'), "
        f"os.path.exists({str(tmp_path)!r})); open('left', 'w').write('x'); s = socket.socket(); s.settimeout(2); "
        "print(s.connect_ex(('127.0.0.1', 9)))"
    )
    command = Command(
        key="look", argv=("python", "-c", look), archive=str(archive), files={"extra/x.py": ""}, seconds=30
    )
    first, again = sandbox.run([command, command])
    assert first.code == again.code == 0, first.output
    assert first.output.splitlines()[0] == "['extra', 'shop', 'tests'] True False False"
    assert again.output.splitlines()[0] == first.output.splitlines()[0]
    assert int(first.output.splitlines()[1]) != 0
    assert not (shop / "left").exists()


def test_a_report_of_pytest_and_of_unittest_is_read_test_by_test() -> None:
    pytests = (
        "PASSED a.py::test_x[1 - 2]\nFAILED a.py::test_y - assert 1 == 2\nERROR b.py - ImportError: x\nXFAIL a.py::z\n"
    )
    done = {"key": "a", "code": 1, "timed_out": False, "wall_seconds": 0.0}
    assert repository.results(Finished(output=pytests, **done)) == {  # type: ignore[arg-type]
        "a.py::test_x[1 - 2]": True, "a.py::test_y": False, "b.py": False, "a.py::z": True,
    }  # fmt: skip
    units = "test_a (t.T.test_a) ... ok\ntest_b (t.T)\nWhat it does. ... FAIL\ntest_c (t.T) ... ERROR\n"
    units += "FAILED (failures=1)\n"
    assert repository.results(Finished(output=units, **done)) == {  # type: ignore[arg-type]
        "test_a (t.T)": True, "test_b (t.T)": False, "test_c (t.T)": False,
    }  # fmt: skip
    assert repository.results(Finished(output="whatever", **done)) == {repository.WHOLE: False}  # type: ignore[arg-type]


def test_two_commits_of_a_repository_are_two_tasks(tmp_path: Path) -> None:
    shop = make(tmp_path / "shop", SHOP)
    first = one(shop).task_id
    (shop / "shop" / "names.py").write_text("def clean(name):\n    return name\n")
    commit(shop)
    assert one(shop).task_id != first and one(shop, commit="HEAD~1").task_id == first
    shutil.rmtree(shop)
