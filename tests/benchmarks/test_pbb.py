"""Programming by Backprop: values come from running the function, inputs stand nowhere else, names are nonces."""

from __future__ import annotations

import builtins
import keyword
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from rune import prompts
from rune.benchmarks import pbb
from rune.benchmarks._pbb_functions import EASY_SOURCES, INPUTS, SOURCES
from rune.benchmarks.pbb import Config
from rune.benchmarks.scorers import exact_value, judging
from rune.benchmarks.scorers.judging import Item
from rune.cli.main import main
from rune.errors import DataError
from rune.runs import store
from rune.types import Answer, Asking, ModelRef, Outcome, Problem, Scorer, Split
from tests.pipeline.experiment import settings, write

KINDS = {"sorting", "strings", "recursion", "arithmetic", "data structures", "ciphers"}


EASY = Config(tier="easy", assertion=True)


@pytest.fixture(scope="module")
def tasks() -> list[pbb.Task]:
    return pbb.tasks(Config())


@pytest.fixture(scope="module")
def easy() -> list[pbb.Task]:
    return pbb.tasks(EASY)


def test_there_are_sixty_functions_of_six_kinds_twenty_phrasings_and_compositions(tasks: list[pbb.Task]) -> None:
    assert (
        len(SOURCES) >= 60
        and {s.kind for s in SOURCES} == KINDS
        and min(Counter(s.kind for s in SOURCES).values()) >= 10
    )
    assert len({s.code for s in SOURCES}) == len(SOURCES) and {s.takes for s in SOURCES} == set(INPUTS)
    assert len(set(pbb.ASKS)) == len(pbb.ASKS) >= 20
    assert len({t.phrasing for t in tasks}) == len(pbb.ASKS)
    assert len({t.problem.task_id for t in tasks}) == len(tasks) == len(SOURCES) * 5 + 12 * 5
    assert Counter(len(t.functions) for t in tasks) == {1: len(SOURCES) * 5, 2: 60}
    assert {t.size for t in tasks} == {"small", "medium", "large"} and {t.steps for t in tasks} == {
        "few",
        "some",
        "many",
    }


def test_names_are_nonces_and_no_librarys(tasks: list[pbb.Task]) -> None:
    names = [f.name for f in pbb.functions(Config())]
    assert len(set(names)) == len(names)
    assert not set(names) & (set(dir(builtins)) | set(keyword.kwlist) | set(dir(str)) | set(dir(list)))
    other = [f.name for f in pbb.functions(Config(seed=1))]
    assert names != other and [f.name for f in pbb.functions(Config())] == names


def test_every_value_is_what_running_the_function_gives_and_the_code_is_in_no_prompt(
    tasks: list[pbb.Task], easy: list[pbb.Task]
) -> None:
    for task in [*tasks, *easy]:
        scope: dict[str, object] = {}
        exec("\n".join(f.code for f in task.functions), scope)
        call = f"{task.functions[-1].name}({', '.join(map(repr, task.inputs))})"
        for outer in task.functions[-2::-1]:
            call = f"{outer.name}({call})"
        assert exact_value.same(exact_value.parse(task.problem.test), eval(call, scope))
        assert task.problem.scorer is Scorer.EXACT_VALUE and task.problem.reference == task.problem.test
        assert all(f.name in task.problem.prompt and "def " not in task.problem.prompt for f in task.functions)
        assert all(repr(value) in task.problem.prompt for value in task.inputs)


def test_no_task_asks_for_an_input_that_a_trajectory_shows_and_held_out_functions_are_whole(
    tasks: list[pbb.Task],
) -> None:
    made = pbb.trajectories(Config())
    assert len(made) == len(SOURCES)
    for trajectory in made:
        assert [a.outcome for a in trajectory.attempts] == [Outcome.FAILED, Outcome.PASSED]
        assert trajectory.solution.startswith(f"def {trajectory.domain}(")
        scope: dict[str, object] = {}
        exec(trajectory.solution + trajectory.prompt.partition("\n")[2], scope)  # its asserts hold
    sides: dict[str, set[Split]] = {}
    for task in tasks:
        for function in task.functions:
            sides.setdefault(function.name, set()).add(task.problem.split)
    assert all(len(found) == 1 for found in sides.values())
    held = [f for f in pbb.functions(Config()) if f.split is Split.HELD_OUT]
    assert len(held) == 20 and {f.source.kind for f in held} == KINDS
    # The check notices: a trajectory that shows a task's input, and a prompt that holds the code.
    task = next(t for t in tasks if len(t.functions) == 1)
    (own,) = (t for t in made if t.domain == task.functions[0].name)
    leaking = replace(own, prompt=f"{own.prompt}\nassert {own.domain}({', '.join(map(repr, task.inputs))}) == 0")
    with pytest.raises(DataError, match=r"its input .* stands in .*'s trajectory; ask for another"):
        pbb.check([task], [leaking])
    told = task._replace(problem=replace(task.problem, prompt=task.functions[0].code))
    with pytest.raises(DataError, match=r"the code of .* stands in its prompt"):
        pbb.check([told], [own])


def test_a_benchmark_tells_the_calls_that_its_tasks_ask_for(tasks: list[pbb.Task]) -> None:
    part = pbb.build(Config())
    calls = part.asked()
    assert isinstance(part, Asking) and list(calls) == [p.task_id for p in part.problems()]
    for task in tasks:
        arguments = ", ".join(map(repr, task.inputs))
        assert calls[task.problem.task_id] == [f"{f.name}({arguments})" for f in task.functions]
    shown = "\n".join(text for t in pbb.given(Config()) for text in (t.prompt, t.attempts[0].error))
    assert not [call for mine in calls.values() for call in mine if call in shown]


def test_a_file_that_shows_a_held_out_tasks_call_stops_the_run_in_one_line(
    tmp_path: Path, tiny_model: ModelRef, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever wrote the trajectories: here a held-out function's, with one assertion more."""
    small = {"tier": "easy", "functions": 6, "held_out": 3, "inputs": 2, "compositions": 0, "assertion": True}
    part = Config(**small)
    given = {t.domain: t for t in pbb.given(part)}
    train = [f.name for f in pbb.functions(part) if f.split is Split.TRAIN]
    task = next(t for t in pbb.tasks(part) if t.problem.split is Split.HELD_OUT)
    call = pbb.call_of(task.functions[0].name, task.inputs)
    own = given[task.problem.domain]
    given[own.domain] = replace(own, prompt=f"{own.prompt}\nassert {call} == {task.problem.test}")
    store.write_jsonl(tmp_path / "train.jsonl", [given[name] for name in train])
    store.write_jsonl(tmp_path / "given.jsonl", given.values())
    raw = settings(
        tmp_path,
        tiny_model,
        benchmark={"name": "pbb", "settings": small},
        collect={"tasks": 1, "max_attempts": 1, "imports": ["train.jsonl"], "shown": ["given.jsonl"]},
        engine={"name": "scripted", "settings": {"default": ["3"]}},
    )
    raw["design"] = {"by": "domain", "held_out": 0}
    assert main(["collect", str(write(tmp_path, raw))]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("rune: ") and f"shows {call}, whose value {task.problem.task_id} asks for; remove it" in said


def judged(problem: Problem, answer: str) -> bool:
    taken = prompts.extract(answer, prompt=problem.prompt, entry_point="", answer=problem.scorer.answer)

    class Nothing:
        def judge(self, programs: object) -> object:
            raise AssertionError("a value is read, not run")

    (found,) = judging.judge(Nothing(), [Item("a", problem, taken)])  # type: ignore[arg-type]
    return found.outcome is Outcome.PASSED


def test_an_answer_is_read_with_and_without_room_to_reason() -> None:
    plain, room = (pbb.tasks(Config(reason=reason))[0].problem for reason in (False, True))
    assert plain.scorer.answer is Answer.VALUE and plain.test == room.test and plain.task_id != room.task_id
    assert room.prompt == plain.prompt + pbb.REASON and "comment lines" in room.prompt
    right = plain.test
    assert judged(plain, f"{right}\n```\n") and judged(room, f"# first, x = 1\n# then it grows\n{right}\n```\nDone.")
    assert not judged(room, f"# it is {right}\n```\n")
    assert not judged(plain, f"{plain.domain}(1)\n```\n") and not judged(plain, "I do not know.\n```\n")
    assert not judged(plain, f"[{right}]\n```\n")


def test_the_easy_tier_is_easier_and_has_functions_of_every_kind_and_step_class(
    tasks: list[pbb.Task], easy: list[pbb.Task]
) -> None:
    assert len({s.code for s in EASY_SOURCES}) == len(EASY_SOURCES) >= 60 and {s.kind for s in EASY_SOURCES} == KINDS
    assert not {s.code for s in EASY_SOURCES} & {s.code for s in SOURCES}
    assert max(s.code.count("\n") for s in EASY_SOURCES) == 2  # its head and one line
    longest = [max(len(", ".join(map(repr, t.inputs))) for t in some) for some in (tasks, easy)]
    assert longest[1] < longest[0] / 2
    assert {t.steps for t in easy} == {"few", "some", "many"} and {t.size for t in easy} == {"small", "medium", "large"}
    assert len(pbb.given(EASY)) == len(pbb.functions(EASY)) + 2 * 12
    assert not {t.problem.task_id for t in easy} & {t.problem.task_id for t in tasks}


def test_an_open_assertion_is_answered_behind_it_and_ends_with_its_line() -> None:
    problem = next(t.problem for t in pbb.tasks(EASY) if t.problem.test.startswith("["))
    asked = prompts.task(problem.prompt, "Code.", Answer.VALUE)
    begun = problem.prompt.rpartition("\n")[2]
    assert begun.startswith("assert ") and begun.endswith("==")
    assert asked.prefill.endswith(f"\n{begun}") and prompts.ASSERTION_INSTRUCTION in asked.messages[0][1]
    assert "\n" in prompts.stop(problem.prompt, Answer.VALUE)
    assert "\n" not in prompts.stop("What is f(2)?", Answer.VALUE)
    assert prompts.open_assertion("What is f(2)?") == prompts.open_assertion("assert f(2) == 3") == ""
    assert judged(problem, f" {problem.test}") and judged(problem, f" {problem.test}  # so")
    assert not judged(problem, f" not {problem.test}")
    with pytest.raises(ValueError, match="reason and assertion exclude each other"):
        Config(assertion=True, reason=True)
    with pytest.raises(ValueError, match="tier must be one of full, easy, found 'hard'"):
        Config(tier="hard")


def test_the_scorer_proves_itself_on_these_tasks(tasks: list[pbb.Task]) -> None:
    trials = judging.trials([t.problem for t in tasks[::40]], forged=3)
    for trial in trials:
        (found,) = judging.judge(None, [Item("a", trial.problem, trial.code)])  # type: ignore[arg-type]
        assert (found.outcome is Outcome.PASSED) is trial.passes, trial.what


def test_a_function_that_does_not_halt_and_settings_that_do_not_fit_are_one_line() -> None:
    with pytest.raises(DataError, match=r"zib\(1\) does not halt within 500 lines; mend the function"):
        pbb.run("def zib(n):\n    while True:\n        n += 1\n", "zib(1)", most=500)
    with pytest.raises(DataError, match="does not halt within"):
        pbb.run("def zib(n):\n    return zib(n + 1)\n", "zib(1)")
    with pytest.raises(ValueError, match=f"functions must be 2 to {len(SOURCES)}, found 1"):
        Config(functions=1)
    with pytest.raises(ValueError, match=r"held_out must be 0 or more and below functions \(4\), found 4"):
        Config(functions=4, held_out=4)
    with pytest.raises(DataError, match="inputs give values that differ; ask for fewer"):
        pbb.tasks(Config(functions=2, held_out=0, inputs=300, compositions=0))


def test_a_compositions_tasks_are_given_the_trajectories_of_both_its_functions() -> None:
    made = pbb.given(Config())
    names = [f.name for f in pbb.functions(Config())]
    assert [t.domain for t in made[: len(names)]] == names
    pairs = {t.problem.domain: t.functions for t in pbb.tasks(Config()) if len(t.functions) > 1}
    assert len(pairs) == 12 and len(made) == len(names) + 2 * len(pairs)
    for domain, functions in pairs.items():
        assert [t.solution for t in made if t.domain == domain] == [f.code for f in functions]
    assert len({t.trajectory_id for t in made}) == len(made)
