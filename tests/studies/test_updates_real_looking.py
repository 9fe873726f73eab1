"""The real-looking study: calls rewritten in real programs, updates that count, renamed real ones, the rule."""

from __future__ import annotations

import ast
import importlib
import random
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rune.benchmarks.scorers import execution_with_and_without
from rune.benchmarks.scorers.updates import Update, restored
from rune.types import Problem, Trajectory

STUDIES = Path(__file__).parents[2] / "studies"
PROGRAMS = {  # entry point: program, test
    "up": ("import math\n\n\ndef up(x):\n    # whole steps\n    return math.ceil(x)\n", "assert candidate(1.2) == 2"),
    "each": (
        "import math\n\n\ndef each(xs):\n    return [math.ceil(x) for x in xs]\n",
        "assert candidate([0.5]) == [1]",
    ),
    "most": ("import math\n\n\ndef most(xs):\n    return math.ceil(max(xs))\n", "assert candidate([1, 2.5]) == 3"),
    "half": (
        "import math\n\n\ndef half(n):\n    return math.ceil(\n        n / 2\n    )\n",
        "assert candidate(3) == 2",
    ),
    "twice": ("import math\n\n\ndef twice(x):\n    return math.ceil(math.ceil(x) / 2)\n", "assert candidate(2.1) == 2"),
}


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STUDIES / "updates-real-looking"))
    return importlib.import_module("programs")


@pytest.fixture
def study(programs: ModuleType) -> ModuleType:
    return importlib.import_module("real_looking")


def sources(programs: ModuleType, texts: dict[str, tuple[str, str]]) -> list[Any]:
    return [
        programs.Source(name, f"Do it.\n\nThe function's signature:\ndef {name}(...):\n", code, Problem(
            task_id=name, benchmark="x", prompt="", entry_point=name, reference=code,
            test=f"def check(candidate):\n    {test}\n",
        ))
        for name, (code, test) in texts.items()
    ]  # fmt: skip


def passes(problem: Problem, code: str) -> bool:
    scope: dict[str, Any] = {"__name__": "program"}
    with restored(["math.ceil"]):
        try:
            exec(problem.prelude, scope)
            exec(code, scope)
            exec(problem.test, scope)
            scope["check"](scope[problem.entry_point])
        except Exception:
            return False
    return True


def test_a_call_is_rewritten_in_place_and_everything_else_stays(programs: ModuleType) -> None:
    head = "import numpy as np\n\n\ndef f(a):  # é, np.max(a)\n"
    code = head + "    return np.max(\n        np.max(a, axis=0) + max(1, 2)\n    )\n"
    found = programs.rewrite(code, "numpy.max", "", lambda c: c._replace(keywords=(*c.keywords, "way=3")).text())
    assert found == head + "    return np.max(np.max(a, axis=0, way=3) + max(1, 2), way=3)\n"
    renamed = programs.rewrite(code, "numpy.max", "top", lambda c: c._replace(function="np.top").text())
    assert renamed.count("np.top(") == 2 and "max(1, 2)" in renamed
    assert programs.rewrite(code, "builtins.max", "", lambda c: "7").count("7") == 1


def test_only_what_is_called_and_nothing_else_counts_as_a_function(programs: ModuleType) -> None:
    code = "import os.path\nimport re as r\n\n\ndef f(x, len):\n"
    code += "    return len(x), map(abs, x), r.search('a', x), os.path.join(x)\n"
    assert programs.functions(code) == {"builtins.map", "re.search", "os.path.join"}  # len is bound, abs is not called
    assert programs.functions("def f(:") == set()


@pytest.mark.parametrize("function", ["math.ceil", "builtins.round"])
def test_an_update_counts_by_its_own_programs_alone(programs: ModuleType, function: str) -> None:
    texts = PROGRAMS
    if function == "builtins.round":  # a built-in function is installed in the program's namespace
        texts = {
            n: (c.replace("import math\n\n\n", "").replace("math.ceil", "round"), t) for n, (c, t) in texts.items()
        }
        texts["each"] = (texts["each"][0], "assert candidate([0.5]) == [0]")
        texts["up"] = (texts["up"][0], "assert candidate(1.2) == 1")
        texts["most"] = (texts["most"][0], "assert candidate([1, 2.6]) == 3")
        texts["twice"] = (texts["twice"][0], "assert candidate(2.1) == 1")
    group = sources(programs, texts)
    rng, kinds = random.Random(1), set()
    for _ in range(120):
        made = programs.update(rng, function, group, "test")
        if not made:
            continue
        assert len(made) == programs.TASKS
        kinds.add(made[0].lesson.domain.partition(":test-")[2].partition(":")[0])
        for lesson, problem in made:
            source = next(s.code for s in group if lesson.source.startswith(f"{s.name},"))
            assert lesson.solution == problem.reference
            if made[0].lesson.domain.partition(":test-")[2].startswith("swap"):
                continue  # where the order makes no difference the old program counts for nothing as well
            assert passes(problem, lesson.solution)
            assert not passes(execution_with_and_without.without(problem), lesson.solution)
            old = passes(problem, source)
            assert not old or passes(execution_with_and_without.without(problem), source)  # it does not count
    assert kinds >= {"rename", "argument", "asked", "first", "keywords", "return", "combined"}


def test_a_task_says_its_own_value_and_never_the_arguments_name(programs: ModuleType) -> None:
    rng = random.Random(2)
    asked = []
    while len(asked) < 10:
        made = programs.update(rng, "math.ceil", sources(programs, PROGRAMS), "test")
        if made and ":test-asked:" in made[0].lesson.domain:
            asked.append(made)
    assert len({m.lesson.prompt for made in asked for m in made}) > 10
    for made in asked:
        for lesson, _ in made:
            call = next(n for n in ast.walk(ast.parse(lesson.solution)) if isinstance(n, ast.Call) and n.keywords)
            name, value = str(call.keywords[-1].arg), ast.unparse(call.keywords[-1].value)
            assert value in lesson.prompt
            assert not re.search(rf"\b{name}\b", lesson.prompt.replace("ceil", ""))


def test_a_renamed_real_update_keeps_no_name_that_it_brought(programs: ModuleType) -> None:
    real = Update(
        domain="math.ceil:add-argument-step:0", function="math.ceil", setup="", implementation="", name="ceil",
        signature="", documentation="",
    )  # fmt: skip
    lessons = [
        Trajectory(
            trajectory_id=str(n), task_id=f"CodeUpdateArena/t/{n}", benchmark="code_update_arena", prompt="",
            attempts=(),
            solution=f"import math\n\n\ndef f{n}(x):\n    # the argument step\n    return math.ceil(x, step={n})\n",
        )
        for n in range(1, 6)
    ]  # fmt: skip
    rng, found = random.Random(3), []
    while len(found) < 20:
        if made := programs.renamed(rng, real, lessons, "renamed"):
            found.append(made)
    for made in found:
        texts = [m.lesson.solution for m in made]
        assert len(texts) == 4 and not any(re.search(r"\bstep\b", text) for text in texts)
        names = [set(re.findall(r"(\w+)=\d", text)) for text in texts]
        assert all(names) and all(one & names[0] for one in names)  # one name in all of them
    assert len({m.lesson.solution for made in found for m in made}) > 30


def test_the_rule_takes_the_best_forward_variant_by_named_programs(study: ModuleType) -> None:
    def rows(arm: str, named: int, used: int = 4) -> list[dict[str, Any]]:
        return [{"arm": arm, "task": "a/0", "used": n < used, "named": n < named} for n in range(4)]

    drawn = [*rows("four all", 1), *rows("four all_wrong", 0, 0), *rows("four old", 3), *rows("four old_wrong", 1)]
    drawn += [*rows("two gradient all", 4), *rows("two gradient all_wrong", 0), *rows("two all", 4)]
    assert study.choice(drawn) == {"chosen": "four old", "scores": {"four all": 50.0, "four old": 125.0}}
    assert study.choice([])["chosen"] is None
