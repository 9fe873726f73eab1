"""MBPP, MBPP+, HumanEval+ and puzzles: official bytes, official order, and tests that ask for data alone."""

from __future__ import annotations

import json
import math
import shutil
from ast import literal_eval
from collections import Counter
from pathlib import Path

import pytest

from rune.benchmarks import _evalplus, humaneval, humaneval_plus, mbpp, mbpp_plus, puzzles
from rune.benchmarks.formats import data
from rune.errors import ContaminationError, DataError
from rune.sandbox import fork
from rune.sandbox.protocol import codec
from rune.types import Outcome, Problem, Program, Sandbox, Split


@pytest.fixture(scope="module")
def sandbox():  # type: ignore[no-untyped-def]
    box = fork.build(fork.Config(cpu_seconds=8.0, wall_seconds=30.0))
    yield box
    box.close()


def outcomes(sandbox: Sandbox, problems: list[Problem], codes: list[str]) -> Counter[str]:
    programs = [
        Program(key=str(i), code=c, test=p.test, entry_point=p.entry_point, prelude=p.prelude)
        for i, (p, c) in enumerate(zip(problems, codes, strict=True))
    ]
    return Counter(e.outcome.value for e in sandbox.judge(programs))


def full(data_dir: Path) -> list[Problem]:
    return mbpp.build(mbpp.Config(path=str(data_dir))).problems()


def test_every_mbpp_reference_passes_through_the_sandbox(data_dir: Path, sandbox: Sandbox) -> None:
    problems = full(data_dir)
    slow = {"Mbpp/123"}  # 3 to 6 seconds of CPU time: see the `slow` test of the whole sets
    quick = [p for p in problems[::3] if p.task_id not in slow]
    named = [
        p for p in problems if p.task_id in {"Mbpp/56", "Mbpp/126", "Mbpp/367", "Mbpp/596", "Mbpp/601", "Mbpp/927"}
    ]
    chosen = [*quick, *named]
    assert outcomes(sandbox, chosen, [p.reference for p in chosen]) == {"passed": len(chosen)}


def test_stubs_of_mbpp_fail(data_dir: Path, sandbox: Sandbox) -> None:
    chosen = full(data_dir)[::10]
    stubs = [f"def {p.entry_point}(*a, **k):\n    return None\n" for p in chosen]
    assert outcomes(sandbox, chosen, stubs)["passed"] == 0


def test_mbpp_is_split_by_its_published_ids(data_dir: Path) -> None:
    problems = full(data_dir)
    assert len(problems) == 974
    held_out = {int(p.task_id.partition("/")[2]) for p in problems if p.split is Split.HELD_OUT}
    assert held_out == set(range(11, 511))
    assert not any("\r" in p.reference + p.test + p.prompt for p in problems)


def test_sanitized_mbpp_has_427_tasks_and_imports_what_its_tests_need(data_dir: Path, sandbox: Sandbox) -> None:
    problems = mbpp.build(mbpp.Config(variant="sanitized", path=str(data_dir))).problems()
    assert len(problems) == 427
    needing = [p for p in problems if "import math" in p.test]
    assert len(needing) >= 10
    assert outcomes(sandbox, needing, [p.reference for p in needing]) == {"passed": len(needing)}


def test_a_test_may_name_its_function_like_ours(data_dir: Path) -> None:
    problem = next(p for p in full(data_dir) if p.task_id == "Mbpp/56")
    assert problem.entry_point == "check"
    assert problem.test.count("assert candidate(") == 3
    assert mbpp.ask_candidate('assert f("é", check_x) == "f"', "f") == 'assert candidate("é", check_x) == "f"'


def test_the_prompt_shows_the_text_and_one_test(data_dir: Path) -> None:
    problem = next(p for p in full(data_dir) if p.task_id == "Mbpp/2")
    assert problem.prompt.startswith('"""\nWrite a function to find the similar elements')
    assert problem.prompt.count("assert similar_elements") == 1


def test_near_duplicates_name_training_tasks_only(data_dir: Path) -> None:
    pairs = mbpp.near_duplicates(str(data_dir))
    assert len(pairs) == 69
    for evaluation, training in pairs.items():
        assert 11 <= int(evaluation.partition("/")[2]) <= 510
        assert all(mbpp.split_of(int(t.partition("/")[2])) is Split.TRAIN for t in training)


def test_mbpp_plus_crosses_mbpps_split(data_dir: Path) -> None:
    problems = mbpp_plus.build(mbpp_plus.Config(path=str(data_dir))).problems()
    assert Counter(p.split for p in problems) == {Split.HELD_OUT: 224, Split.TRAIN: 154}
    assert not any("numpy" in p.test for p in problems)


@pytest.mark.check
def test_mbpp_plus_references_pass_and_mbpps_own_sometimes_do_not(data_dir: Path, sandbox: Sandbox) -> None:
    problems = [p for p in mbpp_plus.build(mbpp_plus.Config(path=str(data_dir))).problems() if p.task_id != "Mbpp/599"]
    chosen = problems[::12]
    assert outcomes(sandbox, chosen, [p.reference for p in chosen]) == {"passed": len(chosen)}
    originals = {p.task_id: p.reference for p in full(data_dir)}
    assert outcomes(sandbox, chosen, [originals[p.task_id] for p in chosen])["failed"] > 0


@pytest.mark.parametrize("task", ["Mbpp/737", "Mbpp/787", "Mbpp/794"])
def test_mbpp_plus_checkers_that_upstream_pass_everything_are_mended(
    data_dir: Path, sandbox: Sandbox, task: str
) -> None:
    (problem,) = (p for p in mbpp_plus.build(mbpp_plus.Config(path=str(data_dir))).problems() if p.task_id == task)
    constants = [f"def {problem.entry_point}(text):\n    return {value}\n" for value in ("None", "True", "False", "7")]
    found = outcomes(sandbox, [problem] * 5, [problem.reference, *constants])
    assert found == {"passed": 1, "failed": 4}
    as_bool = problem.reference.replace("return re.search(", "return bool(re.search(") + ")"
    assert outcomes(sandbox, [problem], [as_bool]) == {"passed": 1}


def test_no_other_mbpp_plus_checker_drops_what_it_finds(data_dir: Path) -> None:
    for problem in mbpp_plus.build(mbpp_plus.Config(path=str(data_dir))).problems():
        checker = problem.test.partition("def assertion(")[2].partition("\n\n\n")[0]
        assert "assert " in checker, problem.task_id


def test_every_answer_of_mbpp_plus_255_is_small_enough_for_the_wall(data_dir: Path) -> None:
    """All combinations of n of m things; the input that asks for 130 million values is left out, and only that one."""
    (problem,) = (
        p for p in mbpp_plus.build(mbpp_plus.Config(path=str(data_dir))).problems() if p.task_id == "Mbpp/255"
    )
    inputs = literal_eval(problem.test.partition("inputs = ")[2].partition("\n")[0])
    values = sorted(math.comb(len(things) + n - 1, n) * (n + 1) for things, n in inputs if things)
    assert 6_000_000 < values[-1] <= codec.MAX_VALUES
    official = data.read(data_dir / mbpp_plus.FILE)
    (test,) = (r["test"] for r in official if str(r["task_id"]) == "255")
    assert len(inputs) == len(literal_eval(test.partition("inputs = ")[2].partition("\n")[0])) - 1


@pytest.mark.slow
def test_the_largest_answer_of_mbpp_plus_fits_through_the_wall(data_dir: Path) -> None:
    (problem,) = (
        p for p in mbpp_plus.build(mbpp_plus.Config(path=str(data_dir))).problems() if p.task_id == "Mbpp/255"
    )
    program = Program(key="r", code=problem.reference, test=problem.test, entry_point=problem.entry_point)
    with fork.build(fork.Config(workers=1, cpu_seconds=60.0, wall_seconds=120.0)) as box:
        (found,) = box.judge([program])
    assert found.outcome is Outcome.PASSED, found


@pytest.mark.check
def test_humaneval_plus_references_pass_with_number_32_mended(data_dir: Path, sandbox: Sandbox) -> None:
    problems = humaneval_plus.build(humaneval_plus.Config(path=str(data_dir))).problems()
    assert [p.task_id for p in problems] == [f"HumanEval/{i}" for i in range(164)]
    assert {p.split for p in problems} == {Split.HELD_OUT}
    chosen = [problems[i] for i in (0, 14, 32, 38, 50, 64, 83, 100, 140)]
    assert outcomes(sandbox, chosen, [p.reference for p in chosen]) == {"passed": len(chosen)}
    thirty_two = problems[32]
    wrong = thirty_two.reference + "\n\ndef find_zero(xs):\n    return 0.25\n"
    assert outcomes(sandbox, [thirty_two], [wrong]) == {"failed": 1}


@pytest.mark.check
def test_a_task_has_one_category_in_humaneval_and_humaneval_plus(data_dir: Path) -> None:
    plus = humaneval_plus.build(humaneval_plus.Config(path=str(data_dir))).problems()
    base = humaneval.build(humaneval.Config()).problems()
    assert [p.category for p in plus] == [p.category for p in base]


@pytest.mark.parametrize(
    ("out", "exp", "close"),
    [
        ([1.0, 2.0], [1.0, 2.0 + 1e-7], True),
        ([1.0, 2.0], [1.0, 2.1], False),
        ((1.0, [2.0]), [1.0, [2.0]], True),
        ([1.0], [1.0, 2.0], False),
        (float("inf"), float("inf"), True),
        (float("nan"), float("nan"), False),
        ("1.0", 1.0, False),
        (None, 1.0, False),
    ],
)
def test_the_stand_in_for_numpy_compares_like_numpy(out: object, exp: object, close: bool) -> None:
    scope: dict[str, object] = {}
    exec(_evalplus.without_numpy("import numpy as np\n"), scope)
    assert scope["np"].allclose(out, exp, rtol=1e-7, atol=1e-6) is close  # type: ignore[attr-defined]


def test_puzzle_solutions_satisfy_their_puzzles(data_dir: Path, sandbox: Sandbox) -> None:
    problems = puzzles.build(puzzles.Config(path=str(data_dir))).problems()
    assert len({p.task_id for p in problems}) == len(problems) > 200
    chosen = problems[::4]
    found = outcomes(sandbox, chosen, [p.reference for p in chosen])
    assert found["passed"] >= 0.9 * len(chosen)
    assert outcomes(sandbox, chosen, ["def sol(*a):\n    return None\n"] * len(chosen))["passed"] == 0


@pytest.mark.parametrize(
    ("stated", "right", "wrong"),
    [
        ("int", "1", ["True", "1.0", "'1'", "None"]),
        ("float", "1.5", ["True", "'1.5'"]),
        ("List[int]", "[1, 2]", ["[1, True]", "(1, 2)", "['1']", "Liar()", "range(3)", "iter([1])"]),
        ("List[List[str]]", "[['a'], []]", ["[['a'], 'b']", "[[1]]"]),
        ("Dict[str, float]", "{'a': 1.5}", ["{1: 1.5}", "{'a': 'b'}"]),
        ("Tuple[int, str]", "(1, 'a')", ["(1,)", "('a', 1)", "[1, 'a']"]),
        ("Set[int]", "{1}", ["[1]", "{'a'}"]),
        ("Optional[bool]", "None", ["0", "Liar()"]),
        ("Union[int, str]", "'a'", ["1.5"]),
        ("str", "'a'", ["['a']", "b'a'"]),
    ],
)
def test_a_puzzle_s_answer_is_of_the_type_it_states(
    tmp_path: Path, sandbox: Sandbox, stated: str, right: str, wrong: list[str]
) -> None:
    record = {"name": "Any:0", "sat": f"def sat(x: {stated}, y=3):\n    return True", "module": "any.py"}
    record |= {"sol_header": "def sol(y=3):", "sol_bodies": [f"    return {right}"]}  # type: ignore[dict-item]
    (tmp_path / "puzzles.json").write_text(json.dumps([record]))
    (problem,) = puzzles.build(puzzles.Config(path=str(tmp_path), verify=False)).problems()
    liar = "class Liar:\n    __class__ = list\n    def count(self, x): return 1000\n"
    codes = [problem.reference, *(f"{liar}def sol(y=3):\n    return {value}" for value in wrong)]
    assert outcomes(sandbox, [problem] * len(codes), codes) == {"passed": 1, "failed": len(wrong)}


def test_a_puzzle_file_with_humanevals_module_is_refused(data_dir: Path, tmp_path: Path) -> None:
    records = json.loads((data_dir / puzzles.FILE).read_text())[:3]
    records[1]["module"] = "human_eval.py"
    (tmp_path / "puzzles.json").write_text(json.dumps(records))
    with pytest.raises(ContaminationError, match="comes from HumanEval"):
        puzzles.build(puzzles.Config(path=str(tmp_path), verify=False, per_problem=3)).problems()


def test_a_changed_official_file_is_refused(data_dir: Path, tmp_path: Path) -> None:
    shutil.copy(data_dir / mbpp.FILES["full"], tmp_path / "mbpp.jsonl")
    with (tmp_path / "mbpp.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(DataError, match="is not the official file's"):
        mbpp.build(mbpp.Config(path=str(tmp_path))).problems()


def test_without_data_the_error_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNE_DATA", raising=False)
    with pytest.raises(DataError, match=r"set benchmark\.settings.path or RUNE_DATA"):
        mbpp.build(mbpp.Config()).problems()


@pytest.mark.slow
def test_every_reference_of_every_set_passes(data_dir: Path) -> None:
    box = fork.build(fork.Config(cpu_seconds=60.0, wall_seconds=120.0))
    try:
        for problems in (
            full(data_dir),
            mbpp.build(mbpp.Config(variant="sanitized", path=str(data_dir))).problems(),
            mbpp_plus.build(mbpp_plus.Config(path=str(data_dir))).problems(),
            humaneval_plus.build(humaneval_plus.Config(path=str(data_dir))).problems(),
        ):
            programs = [
                Program(key=p.task_id, code=p.reference, test=p.test, entry_point=p.entry_point, prelude=p.prelude)
                for p in problems
            ]
            bad = [(e.key, e.error) for e in box.judge(programs) if e.outcome is not Outcome.PASSED]
            assert bad == []
    finally:
        box.close()


def test_a_hub_that_cannot_be_asked_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=r"google-research-datasets/mbpp: .*(pip install datasets|give a path)"):
        mbpp.build(mbpp.Config(path="hub")).problems()
