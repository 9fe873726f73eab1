"""The exclusion list: held-out tasks and their relatives are refused under every disguise, honest work is not."""

from __future__ import annotations

import ast
from dataclasses import replace

import pytest

from rune.benchmarks import humaneval
from rune.corpus import exclusion as _exclusion
from rune.corpus import splits
from rune.errors import ContaminationError
from rune.types import Attempt, Outcome, Problem, Split, Trajectory


@pytest.fixture(scope="module")
def marked() -> list[Problem]:
    return splits.split(humaneval.build(humaneval.Config()).problems(), held_out=25, seed=0)


@pytest.fixture(scope="module")
def held_out(marked: list[Problem]) -> list[Problem]:
    return [p for p in marked if p.split is Split.HELD_OUT]


def trajectory(problem: Problem, code: str = "", **changes: str) -> Trajectory:
    code = code or problem.reference
    record = Trajectory(
        trajectory_id="t1",
        task_id=problem.task_id,
        benchmark=problem.benchmark,
        prompt=problem.prompt,
        attempts=(Attempt(code=code, outcome=Outcome.PASSED),),
        solution=code,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


OTHER = {"task_id": "mine/1", "benchmark": "mine", "prompt": "Do something else entirely."}


def test_the_training_side_of_the_split_passes(marked: list[Problem], held_out: list[Problem]) -> None:
    train = [trajectory(p) for p in marked if p.split is Split.TRAIN]
    _exclusion.check_corpus(train, held_out)
    kept, report = _exclusion.decontaminate(train, held_out)
    assert (len(kept), report.dropped) == (139, {})


def test_a_held_out_task_is_refused_with_file_line_and_field(marked: list[Problem], held_out: list[Problem]) -> None:
    good = next(trajectory(p) for p in marked if p.split is Split.TRAIN)
    with pytest.raises(ContaminationError, match=r"corpus\.jsonl:2: field 'task_id' 'HumanEval/\d+'.* is held out"):
        _exclusion.check_corpus([good, trajectory(held_out[0])], held_out, where="corpus.jsonl")


@pytest.mark.parametrize("name", ["HumanEvalFix/{}", "humaneval_plus/{}", "HumanEval+/{}", "Python/{}"])
def test_a_held_out_task_under_another_benchmarks_name_is_refused(name: str, held_out: list[Problem]) -> None:
    number = held_out[3].task_id.partition("/")[2]
    disguised = trajectory(held_out[3], "x = 1", **{**OTHER, "task_id": name.format(number)})
    assert "is held out" in _exclusion.Exclusion(held_out).why(disguised)


def test_evaluation_benchmarks_are_refused_even_where_nothing_is_held_out(marked: list[Problem]) -> None:
    exclusion = _exclusion.Exclusion([])
    for task, benchmark in (("HumanEvalFix/0", "mine"), ("HumanEval/5", "humaneval_plus"), ("Mbpp/11", "mbpp")):
        named = {**OTHER, "task_id": task, "benchmark": benchmark}
        assert "evaluation only" in exclusion.why(trajectory(marked[0], "x = 1", **named))
    for task in ("Mbpp/10", "Mbpp/511", "Mbpp/974"):
        assert exclusion.why(trajectory(marked[0], "x = 1", **{**OTHER, "task_id": task})) == ""


class _Rename(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.copy_location(ast.Name(f"{node.id}_", node.ctx), node) if node.id in self.own else node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.arg = f"{node.arg}_"
        return node

    def __init__(self, own: set[str]) -> None:
        self.own = own


def test_a_reference_with_other_names_is_refused(held_out: list[Problem]) -> None:
    exclusion = _exclusion.Exclusion(held_out)
    long = [p for p in held_out if len(p.reference) - len(p.prompt) > 150]
    assert len(long) >= 5
    for problem in long:
        tree = ast.parse(problem.reference)
        own = {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
        own |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        renamed = ast.unparse(_Rename(own).visit(tree))
        assert exclusion.why(trajectory(problem, renamed, **OTHER)).startswith("same program"), problem.task_id


def test_a_reference_inside_a_longer_program_is_refused(held_out: list[Problem]) -> None:
    problem = max(held_out, key=lambda p: len(p.reference) - len(p.prompt))
    helper = "import os\n\n\ndef helper(a, b):\n    return a if a > b else b\n"
    wrapped = f"{helper}\n\n{problem.reference}\n\nprint(helper(1, 2))\n"
    assert _exclusion.Exclusion(held_out).why(trajectory(problem, wrapped, **OTHER)).startswith("shared code")


def test_a_failed_attempt_counts_as_much_as_a_solution(held_out: list[Problem]) -> None:
    problem = max(held_out, key=lambda p: len(p.reference) - len(p.prompt))
    attempts = (Attempt(code=problem.reference, outcome=Outcome.FAILED, error="x"),)
    hidden = replace(trajectory(problem, "x = 1", **OTHER), attempts=attempts, solution="")
    assert _exclusion.Exclusion(held_out).why(hidden)


def test_a_held_out_prompt_is_refused_whatever_the_code(held_out: list[Problem]) -> None:
    problem = held_out[5]
    copied = trajectory(problem, "x = 1", **{**OTHER, "prompt": f"Please write this.\n{problem.prompt}"})
    assert _exclusion.Exclusion(held_out).why(copied).startswith("shared prompt")


def test_trivial_programs_that_coincide_are_no_contamination(held_out: list[Problem]) -> None:
    short = "def add(x, y):\n    return x + y\n"
    problem = replace(held_out[0], reference=short, prompt="def add(x, y): ...", task_id="HumanEval/53")
    assert _exclusion.Exclusion([problem]).why(trajectory(problem, short, **OTHER)) == ""


def test_listed_near_duplicates_are_refused(held_out: list[Problem]) -> None:
    evaluation = replace(held_out[0], task_id="Mbpp/28")
    exclusion = _exclusion.Exclusion([evaluation], {"Mbpp/28": ["Mbpp/926"]})
    assert "too like Mbpp/28" in exclusion.why(trajectory(held_out[1], "x = 1", **{**OTHER, "task_id": "Mbpp/926"}))


def test_domains_are_kept_apart_by_domain_not_by_text(held_out: list[Problem]) -> None:
    prompt = "Follow the house conventions. " + " ".join(f"word{i}" for i in range(40))
    code = "def f(x):\n" + "".join(f"    x = x + {i}\n" for i in range(20)) + "    return x\n"
    inside = replace(held_out[0], task_id="fam/1", domain="a", prompt=prompt, reference=code)
    exclusion = _exclusion.Exclusion([inside])
    sibling = replace(trajectory(inside), task_id="fam/2", domain="a")
    stranger = replace(trajectory(inside), task_id="fam/9", domain="b")
    assert exclusion.why(sibling) == "held-out domain: a"
    assert exclusion.why(stranger) == ""


def test_decontamination_reports_what_it_dropped_and_why(marked: list[Problem], held_out: list[Problem]) -> None:
    train = [p for p in marked if p.split is Split.TRAIN]
    first = trajectory(max(train, key=lambda p: len(p.reference)))
    again = replace(first, trajectory_id="t2")
    copy = replace(first, trajectory_id="t3", task_id="mine/2", prompt="Another prompt.")
    leak = trajectory(held_out[0])
    other = trajectory(train[0])
    kept, report = _exclusion.decontaminate([first, again, copy, leak, other], held_out)
    assert kept == [first, other]
    assert report.dropped == {"duplicate": 2, "evaluation task": 1}
    assert (report.examined, report.kept, len(report.items)) == (5, 2, 3)


def test_several_tries_at_one_task_are_no_duplicates(marked: list[Problem], held_out: list[Problem]) -> None:
    problem = next(p for p in marked if p.split is Split.TRAIN)
    tries = [trajectory(problem, f"{problem.reference}\n# try\nx = {i}\n") for i in range(3)]
    assert len(_exclusion.decontaminate(tries, held_out)[0]) == 3
