"""What a hypernetwork for `pbb` trains on: never a held-out function, under whatever name, and its pairs hold."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from rune.benchmarks import _pbb_drawn, _pbb_renamed, pbb, pbb_cruxeval
from rune.benchmarks import _pbb_training as training
from rune.benchmarks.scorers import exact_value
from rune.config import digest
from rune.corpus import exclusion
from rune.errors import ContaminationError, DataError
from rune.types import Answer, Split, Trajectory

CONFIG = pbb.Config(tier="easy", functions=64, held_out=44, compositions=12, assertion=True)


@pytest.fixture(scope="module")
def drawn() -> list[Trajectory]:
    return training.drawn(CONFIG, count=40, pairs=3)


@pytest.fixture(scope="module")
def own() -> list[Trajectory]:
    return training.own(CONFIG, pairs=3)


def call_in(prompt: str) -> str:
    last = prompt.splitlines()[-1]
    assert last.startswith("assert ") and last.endswith(" ==")
    return last.removeprefix("assert ").removesuffix(" ==")


def test_every_pair_is_what_running_the_function_gives_on_an_input_that_its_trajectory_does_not_show(
    drawn: list[Trajectory], own: list[Trajectory]
) -> None:
    lessons = {t.domain: t for t in (*drawn, *own) if t.benchmark == pbb.NAME}
    pairs = [t for t in (*drawn, *own) if t.benchmark == training.PAIRS]
    assert len(pairs) == 3 * len(lessons) and len({t.trajectory_id for t in (*drawn, *own)}) == 4 * len(lessons)
    for pair in pairs:
        lesson, call = lessons[pair.domain], call_in(pair.prompt)
        scope: dict[str, object] = {}
        exec(lesson.solution + lesson.prompt.partition("\n")[2], scope)  # its asserts hold
        assert exact_value.same(exact_value.parse(pair.solution), eval(call, scope))
        assert call not in lesson.prompt and "def " not in pair.prompt
        assert pair.answer is Answer.VALUE and lesson.answer is Answer.PROGRAM
    assert training.drawn(CONFIG, count=5, pairs=3) == drawn[:20] != training.drawn(CONFIG, count=5, pairs=3, seed=1)


def test_no_held_out_function_trains(drawn: list[Trajectory], own: list[Trajectory]) -> None:
    held = [one for one in pbb.functions(CONFIG) if one.split is Split.HELD_OUT]
    names = {one.name for one in held}
    assert not names & {t.domain for t in (*drawn, *own)} and len(names) == 44
    tasks = [t.problem for t in pbb.tasks(CONFIG) if t.problem.split is Split.HELD_OUT]
    exclusion.check_corpus([*drawn, *own], tasks)
    given = {t.domain: t for t in pbb.given(CONFIG)}
    with pytest.raises(ContaminationError, match="held-out domain"):  # it would notice
        exclusion.check_corpus([*drawn, given[held[0].name]], tasks)
    forms = {_pbb_drawn.form(t.solution.replace(t.domain, "NAME")) for t in (*drawn, *own) if t.benchmark == pbb.NAME}
    apart = {_pbb_drawn.form(one.source.code) for one in training.apart(CONFIG)}
    assert 15 <= len(apart) <= 22 and not forms & apart


def test_a_function_that_computes_what_a_held_out_one_or_a_composition_does_is_not_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = next(one for one in pbb.functions(CONFIG) if "return xs[1:]\n" in one.source.code)
    pair = next(used for used in training.held_out(CONFIG) if len(used) == 2)
    assert held.split is Split.HELD_OUT
    body = held.source.code.replace("xs[1:]", "[x for x in xs][1:]")  # written otherwise
    same = held.source._replace(code=body)
    inside, outside = (one.source.code for one in reversed(pair))
    nested = "\n    ".join(inside.replace("NAME", "inner").strip().split("\n"))
    second = "\n    ".join(outside.replace("NAME", "outer").strip().split("\n"))
    head, parameters = inside.partition("\n")[0], inside.partition("(")[2].partition(")")[0]
    both = pair[1].source._replace(code=f"{head}\n    {nested}\n    {second}\n    return outer(inner({parameters}))\n")
    other = held.source._replace(code=held.source.code.replace("xs[1:]", "xs[1:] + [9]"))
    monkeypatch.setattr(_pbb_drawn, "draw", lambda rng: rng.choice((same, both, other)))
    made = training.drawn(CONFIG, count=1, pairs=2)
    assert "xs[1:] + [9]" in made[0].solution
    with pytest.raises(DataError, match="1 of 2 training functions in 40 draws; ask for fewer"):
        training.drawn(CONFIG, count=2, pairs=2)


def test_forms_are_told_apart_by_all_but_their_constants() -> None:
    form = _pbb_drawn.form
    assert form("def NAME(n):\n    return n + 7\n") == form("def NAME(n):\n    return n + 3\n")
    assert len({form(f"def NAME(n):\n    return {e}\n") for e in ("n + 7", "7 + n", "n - 7", "n + 'a'", "n")}) == 5


def test_cruxevals_functions_are_renamed_and_one_that_is_held_out_is_left_out(
    tmp_path: Path,
) -> None:
    held = next(one for one in pbb.functions(CONFIG) if "return xs[1:]\n" in one.source.code)
    inputs = [[3, 1, 2], [7, 7], [5, 6, 8, 9], [1], [2, 3]]
    codes = {
        "sample_0": "def f(array):\n    return array[:1] * f.__code__.co_argcount",  # its name stands there otherwise
        "sample_1": "def f(array):\n    if not array:\n        return []\n    return [array[0]] + f(array[2:])",
        "sample_2": "def f(array):\n    return array[1:]",  # a held-out function
    }
    values = {"sample_0": lambda xs: xs[:1], "sample_1": lambda xs: xs[::2], "sample_2": lambda xs: xs[1:]}
    folder = tmp_path / "cruxeval"
    folder.mkdir()
    records, extra = [], []
    for name, code in codes.items():
        first, *more = [{"input": repr(xs), "output": repr(values[name](xs))} for xs in inputs]
        records.append({"id": name, "code": code, **first})
        extra.append({"id": name, "extra": more})
    (folder / "cruxeval.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (folder / _pbb_renamed.EXTRA).write_text("".join(json.dumps(r) + "\n" for r in extra))
    made = training.renamed(CONFIG, pairs=2, path=str(folder), verify=False)
    assert {t.category for t in made} == {"cruxeval"} and len({t.domain for t in made}) == 1
    lesson, *pairs = made
    assert len(pairs) == 1 and held.name != lesson.domain  # [1] → [1] repeats its input: four are known, three shown
    assert ast.parse(lesson.solution) and f"+ {lesson.domain}(array[2:])" in lesson.solution
    assert pairs[0].prompt.endswith(f"assert {lesson.domain}([2, 3]) ==") and pairs[0].solution == "[2]"
    assert digest(made) == digest(training.renamed(CONFIG, pairs=2, path=str(folder), verify=False))
    with pytest.raises(DataError, match="is not the official file's"):
        training.renamed(CONFIG, pairs=2, path=str(folder))
    with pytest.raises(DataError, match=r"cruxeval\.jsonl"):
        training.renamed(CONFIG, pairs=2, path=str(tmp_path / "nothing"))


def test_cruxevals_functions_are_asked_for_on_inputs_that_their_trajectories_do_not_show(data_dir: Path) -> None:
    config = pbb_cruxeval.Config(path=str(data_dir / "cruxeval" / "cruxeval.jsonl"), functions=60, held_out=20)
    problems = pbb_cruxeval.build(config).problems()
    asked = pbb_cruxeval.build(config).asked()
    assert asked == {problem.task_id: [call_in(problem.prompt)] for problem in problems}
    given = {t.domain: t for t in pbb_cruxeval.trajectories(config)}
    assert len(given) == 60 == len({p.domain for p in problems}) and len({p.task_id for p in problems}) == len(problems)
    assert len({p.domain for p in problems if p.split is Split.HELD_OUT}) == 20
    for problem in problems:
        lesson, call = given[problem.domain], call_in(problem.prompt)
        assert call not in lesson.prompt and lesson.solution not in problem.prompt and "def " not in problem.prompt
        assert lesson.solution.startswith((f"def {problem.domain}(", "import ", "from ")) or "\ndef" in lesson.solution
        assert problem.scorer.answer is Answer.VALUE and exact_value.parse(problem.test) == exact_value.parse(
            problem.reference
        )
    known = [one for one in pbb_cruxeval.functions(config) if one.name == problems[0].domain]
    scope: dict[str, object] = {}
    exec(known[0].code, scope)  # the values are the function's
    assert all(repr(eval(call, scope)) == value for call, value in known[0].calls())
    words = pbb_cruxeval.build(
        pbb_cruxeval.Config(path=config.path, functions=60, held_out=20, assertion=False)
    ).problems()
    assert "assert" not in words[0].prompt
    with pytest.raises(DataError, match=r"500 functions wanted, .* are short enough; ask for fewer"):
        pbb_cruxeval.functions(pbb_cruxeval.Config(path=config.path, functions=500))
    with pytest.raises(DataError, match="from the hub has one input a function"):
        pbb_cruxeval.functions(pbb_cruxeval.Config(path="hub"))


def test_cruxeval_alone_has_too_few_inputs(data_dir: Path, tmp_path: Path) -> None:
    alone = tmp_path / "cruxeval.jsonl"
    alone.write_bytes((data_dir / "cruxeval" / "cruxeval.jsonl").read_bytes())
    with pytest.raises(DataError, match=r"extra_inputs\.jsonl: no such file, and CRUXEval alone has one input a"):
        pbb_cruxeval.functions(pbb_cruxeval.Config(path=str(alone)))
