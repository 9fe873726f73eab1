"""The study of private libraries: names that go back, what is kept out, whose lessons are whose, intervals by hand."""

from __future__ import annotations

import ast
import importlib
import random
import re
from pathlib import Path
from types import ModuleType

import pytest

from rune.benchmarks import private_library
from rune.types import Problem

STUDIES = Path(__file__).parents[2] / "studies"
ASKED = '"""\nWrite a function to do it.\nassert f([1]) == 1\n"""'
PROGRAMS = [
    ("a", ASKED, "import os\n\n\ndef a(x):\n    y = os.fspath(x).lower()\n    return y.isdigit()\n"),
    ("b", ASKED, "def b(x):\n    return [c.lower() for c in x if c.isdigit()]\n"),
    ("c", ASKED, "def c(x):\n    # é.isdigit\n    kept = 'é' + x.isdigit(\n    )\n    return kept.lower()\n"),
    ("d", ASKED, "def d(x, os=1):\n    return x.isdigit(os=2) + x.title().lower()\n"),
    ("e", ASKED, "import os\n\n\ndef e(x):\n    return os.sep + str(x).isdigit().title()\n"),
    ("f", ASKED, "import numpy as np\n\n\ndef f(x):\n    return np.array(x).isdigit()\n"),
    ("g", "As pandas does it.", "def g(x):\n    return x.isdigit()\n"),
]


@pytest.fixture
def lanes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module("adapter_lane")


@pytest.fixture
def renaming(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STUDIES / "private-libraries"))
    return importlib.import_module("renaming")


@pytest.fixture
def study(renaming: ModuleType, lanes: ModuleType) -> ModuleType:
    return importlib.import_module("private_libraries")


def test_names_go_back_character_by_character_and_only_dotted_ones_and_modules_change(renaming: ModuleType) -> None:
    attribute, module = {"isdigit": "counted_by", "lower": "sunk"}, {"os": "harbour"}
    for _, _, code in PROGRAMS[:5]:
        new = renaming.renamed(code, attribute, module)
        assert renaming.restored(new, attribute, module) == code and new != code
        assert not {"isdigit", "lower"} & set(renaming.attributes(new))
    first = renaming.renamed(PROGRAMS[0][2], attribute, module)
    assert first == "import harbour\n\n\ndef a(x):\n    y = harbour.fspath(x).sunk()\n    return y.counted_by()\n"
    keyword_argument = renaming.renamed(PROGRAMS[3][2], attribute, module)
    assert "counted_by(os=2)" in keyword_argument and "# é.isdigit" in renaming.renamed(PROGRAMS[2][2], attribute, {})


def test_no_program_that_names_what_is_held_out_is_a_source(renaming: ModuleType) -> None:
    assert [s.name for s in renaming.sources(PROGRAMS)] == ["a", "b", "c", "d", "e"]
    assert renaming.sources(PROGRAMS)[0].asked == "Write a function to do it."


def test_no_held_out_name_is_renamed_or_given_and_each_target_has_lessons_with_its_names(renaming: ModuleType) -> None:
    found = renaming.sources(PROGRAMS)
    made = renaming.libraries(random.Random(1), found, 30, {"lower", "title"}, "libraries")
    assert len(made) == 20  # one anchor in twenty rounds
    code = {s.name: s.code for s in found}
    for some in made:
        for one in some:
            for text in (one.own.solution, *(t.solution for t in one.siblings)):
                assert "isdigit" not in renaming.attributes(text)
            whole = code.get(one.own.source.partition(",")[0], "")
            if len(one.own.solution.splitlines()) > len(whole.splitlines()):  # not cut off: the comment is one more
                kept = {"lower", "title"} & set(renaming.attributes(whole))
                assert kept == {"lower", "title"} & set(renaming.attributes(one.own.solution))
            assert one.own.solution.startswith(one.own.prompt) and len(one.own.solution) > len(one.own.prompt)
            assert one.own not in one.siblings and len(one.siblings) == 3
            ast.parse(one.own.solution)
    known = {m.own.task_id.rpartition("/")[0] for some in made for m in some}
    assert len(known) == len(made)


def test_a_task_that_ends_in_a_statement_asks_for_a_renamed_name(renaming: ModuleType) -> None:
    source = renaming.sources(PROGRAMS)[0]
    changed = {"isdigit": "counted_by"}
    made = renaming.Renamed(source, renaming.renamed(source.code, changed, {}), frozenset(changed))
    seen = {renaming.task(random.Random(n), made, changed) for n in range(20)}
    given = "import os\n\n\ndef a(x):\n    # Write a function to do it.\n    y = os.fspath(x).lower()\n    return"
    assert (given, f"{given} y.counted_by()\n") in seen and len(seen) == 2


def test_wrong_lessons_show_no_name_that_a_task_needs_and_none_is_its_own(study: ModuleType, data_dir: Path) -> None:
    part = private_library.build(private_library.Config(library="monkey", path=str(data_dir)))
    problems = {p.task_id: p for p in part.problems()}
    found = study._held(list(problems.values()), part, {"beatnum/0", "beatnum/4"})
    assert len(found) == len(problems)
    for task, one in found.items():
        assert task not in one["near"] + one["wrong"] and len(set(one["near"])) == 8 and len(one["wrong"]) == 3
        for other in one["wrong"]:
            assert not set(one["needs"]) & set(re.findall(r"\w+", problems[other].reference))
        assert one["other"].startswith("beatnum/")
        if one["shown"]["near"]:
            assert one["needs"]
            shown = " ".join(problems[t].reference for t in one["near"][:3])
            assert set(one["needs"]) <= set(re.findall(r"\w+", shown))
    needs = found["monkey/1"]["needs"]
    assert needs == ["incontain"]  # kf[kf[col_name].incontain(values)]


def test_the_given_beginning_ends_where_the_next_token_begins(study: ModuleType) -> None:
    def of(prompt: str) -> str:
        return str(study.begun(Problem(task_id="t", benchmark="b", prompt=prompt, entry_point="", test="")))

    assert of("\nimport beatnum as bn\nc = ") == "import beatnum as bn\nc ="
    assert of("def f(kf):\n    # do it \n") == "def f(kf):\n    # do it \n"


def test_contrasts_are_paired_by_task_and_training_and_an_arm_without_training_meets_all(lanes: ModuleType) -> None:
    rows = [{"arm": "bare", "task": t, "hit": False} for t in ("a", "b")]
    for seed, hits in (("1", {"a": 1, "b": 0}), ("2", {"a": 1, "b": 1})):
        rows += [{"arm": f"made@{seed}", "task": t, "hit": bool(h)} for t, h in hits.items()]
        rows += [{"arm": f"wrong@{seed}", "task": t, "hit": seed == "2" and t == "b"} for t in hits]
    table = lanes.Table(rows, "hit")
    assert table.share("made") == 75.0 and table.trainings("made") == 2 and table.trainings("bare") == 0
    points, low, high = table.contrast("made", "bare")
    assert points == 75.0 and low < 75.0 < high
    assert table.contrast("made", "wrong")[0] == 50.0 and table.contrast("made", "absent") is None
    rows.append({"arm": "made@1", "task": "c", "hit": True})  # one training alone was drawn on it
    assert lanes.Table(rows, "hit").share("made") == 75.0


def test_eight_bits_keep_each_channel_within_half_a_step(lanes: ModuleType) -> None:
    import torch

    torch.manual_seed(0)
    state = {"read.o_proj": torch.randn(2, 6, 3) * torch.tensor([1.0, 100.0, 1e-3]), "gain": torch.tensor([0.5, 0.25])}
    state["read.o_proj"][0, :, 2] = 0.0
    stored = lanes.eight_bits(state)
    assert stored["read.o_proj"].dtype is torch.int8 and stored["gain"].dtype is torch.float16
    again = lanes.from_eight_bits(stored)
    assert set(again) == set(state) and torch.equal(again["gain"], state["gain"])
    step = state["read.o_proj"].abs().amax(1, keepdim=True) / 127
    assert ((again["read.o_proj"] - state["read.o_proj"]).abs() <= step * 0.5001).all()
    assert not torch.equal(again["read.o_proj"], state["read.o_proj"])
