"""BeatNum and Monkey: private names put back, public ones refused, each task under the test of its public twin."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rune import plugins
from rune.benchmarks import private_library
from rune.errors import DataError
from rune.types import Execution, Outcome, Sandbox


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    module = plugins.load("sandbox", "fork")
    box = module.build(module.Config(workers=1, cpu_seconds=10.0))
    yield box
    box.close()


@pytest.fixture(scope="module")
def beatnum(data_dir: Path) -> private_library.PrivateLibrary:
    return private_library.build(private_library.Config(library="beatnum", path=str(data_dir)))


def judged(sandbox: Sandbox, part: private_library.PrivateLibrary, code: str, number: int = 0) -> Execution:
    problem = part.problems()[number]
    (found,) = private_library.judge(sandbox, [("k", problem, code)], part.names())
    return found


def test_a_reference_passes_and_another_value_does_not(
    sandbox: Sandbox, beatnum: private_library.PrivateLibrary
) -> None:
    problem = beatnum.problems()[0]
    assert judged(sandbox, beatnum, problem.reference).outcome is Outcome.PASSED
    wrong = judged(sandbox, beatnum, problem.reference.replace("[8, 7, 2]", "[8, 7, 3]"))
    assert wrong.outcome is Outcome.FAILED


def test_the_public_name_of_something_renamed_is_wrong(
    sandbox: Sandbox, beatnum: private_library.PrivateLibrary
) -> None:
    problem = beatnum.problems()[0]
    for code in (
        problem.reference.replace("bn.numset(", "bn.array("),
        problem.reference.replace("import beatnum as bn", "import numpy as bn"),
    ):
        assert code != problem.reference
        found = judged(sandbox, beatnum, code)
        assert (found.outcome, found.raised) == (Outcome.FAILED, "AttributeError"), found


def test_a_builtin_that_shares_a_public_name_is_no_slip(beatnum: private_library.PrivateLibrary) -> None:
    names = beatnum.names()
    assert "sum" in names.public.values()
    assert names.slip("total = sum([1, 2])") == ""
    assert names.slip("total = a.sum()") == "sum"


def test_longer_names_are_put_back_first() -> None:
    names = private_library.Names({"total": "sum", "total_of": "cumsum"})
    assert names.back("a.total_of(b.total())") == "a.cumsum(b.sum())"


def test_the_public_twin_needs_no_private_names(data_dir: Path, sandbox: Sandbox) -> None:
    part = private_library.build(private_library.Config(library="numpy", path=str(data_dir)))
    problem = part.problems()[0]
    assert judged(sandbox, part, problem.reference).outcome is Outcome.PASSED


def test_prompts_are_the_private_ones_and_all_tasks_of_a_library_are_one_domain(
    beatnum: private_library.PrivateLibrary,
) -> None:
    problems = beatnum.problems()
    assert len(problems) == 101 and {p.domain for p in problems} == {"beatnum"}
    assert not [p.task_id for p in problems if "import numpy" in p.prompt]


def test_another_file_is_refused(tmp_path: Path, data_dir: Path) -> None:
    for file in (data_dir / "private_library").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "renames.json").write_text(json.dumps({"beatnum": {}}))
    with pytest.raises(DataError, match=r"renames.json: sha256"):
        private_library.build(private_library.Config(path=str(tmp_path))).problems()
    own = dataclasses.replace(private_library.Config(path=str(tmp_path)), verify=False)
    assert len(private_library.build(own).problems()) == 101
