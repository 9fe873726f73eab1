"""What counts, for each scorer: what passes, what must not, and what the other path says of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from rune import plugins, prompts
from rune.benchmarks import cruxeval
from rune.benchmarks.scorers import exact_value, execution, judging
from rune.benchmarks.scorers import execution_with_and_without as with_and_without
from rune.benchmarks.scorers.judging import Item
from rune.errors import DataError, SandboxError
from rune.sandbox.judging.verdict_cache import Cached
from rune.scoring import audit
from rune.stages import score
from rune.types import Answer, Execution, FailureKind, Outcome, Problem, Sandbox, Scorer, Split

CHANGE = "import json\njson.dumps = lambda value, **options: 'new ' + repr(value)\n"
UPDATED = Problem(
    task_id="json/0",
    benchmark="x",
    prompt="Write told(x), which gives x as json.dumps does now.\n",
    entry_point="told",
    test="def check(candidate):\n    assert candidate(3) == 'new 3'\n",
    reference="import json\n\ndef told(x):\n    return json.dumps(x)\n",
    prelude=with_and_without.prelude(CHANGE),
    domain="json.dumps",
    scorer=Scorer.EXECUTION_WITH_AND_WITHOUT,
)
VALUE = Problem(
    task_id="value/0",
    benchmark="x",
    prompt="What is f(2)?\n",
    entry_point="",
    test="[{'a': (1, 2.0)}, {3}]",
    reference="[{'a': (1, 2.0)}, {3}]",
    scorer=Scorer.EXACT_VALUE,
)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    module = plugins.load("sandbox", "fork")
    found = module.build(module.Config(workers=1))
    yield found
    found.close()


class Unasked:
    """A sandbox that nothing may reach."""

    def judge(self, programs: object) -> Iterator[Execution]:
        raise AssertionError("an exact value is read, not executed")

    def close(self) -> None: ...


def outcomes(sandbox: Sandbox, problem: Problem, codes: dict[str, str]) -> dict[str, str]:
    found = judging.judge(sandbox, [Item(k, problem, code) for k, code in codes.items()])
    return {e.key: e.error_kind.value for e in found}


def test_every_scorer_is_a_file_with_what_judging_asks_of_it() -> None:
    for scorer in Scorer:
        module = judging.of(scorer)
        assert all(callable(getattr(module, name)) for name in ("judge", "trials", "checks"))
    assert [s.measure() for s in Scorer] == ["pass@1", "UPass@1", "pass@1", "pass@1"]
    assert Scorer.EXECUTION_WITH_AND_WITHOUT.measure(10) == "UPass@10"
    assert [s.answer for s in Scorer] == [Answer.PROGRAM, Answer.PROGRAM, Answer.VALUE, Answer.EDITS]


# --------------------------------------------------------------------------- with and without


_BY_HAND = "def told(x):\n    return 'new ' + repr(x)\n"
CHEATS = {
    "brings the change": f"{CHANGE}\n{UPDATED.reference}",
    "puts another in its place": f"import json\njson.dumps = lambda x: f'new {{x}}'\n{UPDATED.reference}",
    "by hand": _BY_HAND,
    "takes what it finds and goes by hand": f"import json\nfound = json.dumps(3)\n{_BY_HAND}",
}


def test_a_program_that_touches_the_change_or_does_without_it_never_counts(sandbox: Sandbox) -> None:
    found = outcomes(sandbox, UPDATED, {"uses it": UPDATED.reference, **CHEATS})
    assert found == {"uses it": "", **dict.fromkeys(CHEATS, "NotNeeded")}


def test_stubs_and_forgeries_of_execution_fail_here_too_and_copies_of_the_change_do_not_count(sandbox: Sandbox) -> None:
    own = len(execution.STUBS) + len(execution.CHEATS) + len(with_and_without.CHEATS)
    assert score.self_check(sandbox, [UPDATED]) == 1 + own


def test_a_task_that_can_be_solved_without_its_change_is_found_before_anything_is_scored(sandbox: Sandbox) -> None:
    idle = dataclasses.replace(UPDATED, prelude=with_and_without.prelude("import json\n"), reference=CHEATS["by hand"])
    with pytest.raises(SandboxError, match=r"the reference solution of json/0 fails \(NotNeeded: check: it passes"):
        score.self_check(sandbox, [idle])


def test_a_task_without_a_change_has_no_verdict(sandbox: Sandbox) -> None:
    plain = dataclasses.replace(UPDATED, prelude="")
    by_hand = Item("k", plain, CHEATS["by hand"])
    with pytest.raises(DataError, match="json/0: field 'prelude' installs no change"):
        list(judging.judge(sandbox, [by_hand]))


def test_no_name_tells_a_program_in_which_environment_it_is(sandbox: Sandbox) -> None:
    """What the prelude leaves behind is the same with the change and without it."""
    names = "SEEN = sorted(globals())\n\ndef told(x):\n    return SEEN\n"
    seen = []
    for problem in (UPDATED, with_and_without.without(UPDATED)):
        test = "def check(candidate):\n    raise ValueError(repr(candidate(0)))\n"
        strange = dataclasses.replace(problem, test=test, scorer=Scorer.EXECUTION)
        (found,) = judging.judge(sandbox, [Item("k", strange, names)])
        seen.append(found.error)
    assert "__builtins__" in seen[0] and seen[0] == seen[1]


def test_both_runs_of_a_program_are_cached_by_themselves(sandbox: Sandbox, tmp_path: Path) -> None:
    codes = {"uses": UPDATED.reference, "by hand": CHEATS["by hand"], "wrong": "def told(x):\n    return x\n"}
    for hits in (0, 5):  # two runs of each that passes with the change, one of the third

        class Open:
            judge = staticmethod(sandbox.judge)

            def close(self) -> None: ...

        cached = Cached(Open(), tmp_path, backend="fork", settings={})
        found = outcomes(cached, UPDATED, codes)
        cached.close()
        assert found == {"uses": "", "by hand": "NotNeeded", "wrong": "WrongAnswer"}
        assert cached.hits == hits


# --------------------------------------------------------------------------- exact values


@pytest.mark.parametrize(
    ("answer", "expected", "kind"),
    [
        ("[1, 2]", "[1, 2]", ""),
        (" [1,\n 2,]  # two", "[1, 2]", ""),
        ("{'b': 2, 'a': 1}", "{'a': 1, 'b': 2}", ""),
        ("{2, 1}", "{1, 2}", ""),
        ("set()", "set()", ""),
        ("-0.5", "-.5", ""),
        ("'\\x41'", "'A'", ""),
        ("(1, 2)", "[1, 2]", "WrongAnswer"),
        ("True", "1", "WrongAnswer"),
        ("1.0", "1", "WrongAnswer"),
        ("[[True]]", "[[1]]", "WrongAnswer"),
        ("{1: True}", "{1: 1}", "WrongAnswer"),
        ("{True}", "{1}", "WrongAnswer"),
        ("b'a'", "'a'", "WrongAnswer"),
        ("1 + 1", "2", "BadValue"),
        ("int(2)", "2", "BadValue"),
        ("f'a'", "'a'", "BadValue"),
        ("x", "'x'", "BadValue"),
        ("", "None", "BadValue"),
        ("[1, 2", "[1, 2]", "BadValue"),
        ("{[]: 1}", "1", "BadValue"),
        ("-" * 90_000 + "1", "1", "BadValue"),
        ("[" * 90_000, "1", "BadValue"),
        ("9" * 90_000, "1", "BadValue"),
        ("\0", "1", "BadValue"),
        (" " * 100_001 + "1", "1", "BadValue"),
    ],
)
def test_an_answer_counts_if_it_is_the_value_itself(answer: str, expected: str, kind: str) -> None:
    problem = dataclasses.replace(VALUE, test=expected)
    assert outcomes(Unasked(), problem, {"k": answer}) == {"k": kind}


def test_no_answer_is_ever_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    texts = [
        f"open({str(mark)!r}, 'w').write('x') and {VALUE.test}",
        f"[{VALUE.test}, open({str(mark)!r}, 'w')][0]",
        f"open({str(mark)!r}, 'w')\n{VALUE.test}",
        f"(lambda: [open({str(mark)!r}, 'w'), {VALUE.test}][1])()",
    ]
    found = outcomes(Unasked(), VALUE, {str(i): text for i, text in enumerate(texts)})
    assert set(found.values()) == {"BadValue"} and len(found) == len(texts)
    assert not mark.exists()


def test_a_sound_value_scorer_passes_references_and_fails_what_only_computes_the_value() -> None:
    own = len(exact_value.STUBS) + len(exact_value.CHEATS)
    assert score.self_check(Unasked(), [VALUE]) == 1 + own
    other = dataclasses.replace(VALUE, reference="[]")
    with pytest.raises(SandboxError, match=r"the reference answer of value/0 fails \(WrongAnswer"):
        score.self_check(Unasked(), [other])


def test_an_expected_value_that_is_none_is_the_tasks_fault() -> None:
    broken = dataclasses.replace(VALUE, test="f(2)")
    with pytest.raises(SandboxError, match="value/0: the expected value is no Python literal"):
        outcomes(Unasked(), broken, {"k": "4"})


def test_who_tries_again_is_not_told_the_value() -> None:
    (found,) = judging.judge(Unasked(), [Item("k", dataclasses.replace(VALUE, test="'secret'"), "'guess'")])
    assert found.outcome is Outcome.FAILED and "secret" not in found.error


# --------------------------------------------------------------------------- how a value is asked for and taken


@pytest.mark.parametrize(
    ("completion", "taken"),
    [
        ("[1, 2]\n```\nThis is because ...", "[1, 2]"),
        ("[1,\n 2]\n```", "[1,\n 2]"),
        ("so it is\n```\nthus:\n```python\n[3]\n```\n", "[3]"),
        ("<think>\nmaybe 3\n</think>\n4\n```", "4"),
        ("f(2)\n```", "f(2)"),
        ("'```'\n```", "'```'"),
    ],
)
def test_the_answer_is_the_literal_before_the_fence_or_the_first_fenced_one(completion: str, taken: str) -> None:
    assert prompts.extract(completion, prompt="q", entry_point="", answer=Answer.VALUE) == taken


def test_a_question_for_a_value_says_so_in_every_turn() -> None:
    chat = prompts.task("What is f(2)?", "a note", Answer.VALUE)
    assert "Python literal" in chat.messages[0][1] and chat.messages[0][1].startswith("a note\n\n")
    assert chat.prefill.endswith("```python\n") and "script" not in chat.prefill
    failed = next(judging.judge(Unasked(), [Item("k", VALUE, "3")]))
    from rune.types import Attempt

    attempt = Attempt(code="3", outcome=failed.outcome, error_kind=failed.label, error=failed.error)
    again = prompts.retry("What is f(2)?", [attempt], answer=Answer.VALUE)
    assert again.messages[1] == ("assistant", f"{chat.prefill}3\n```") and again.prefill == chat.prefill
    assert all("script" not in text.lower() for _, text in again.messages)
    assert "\nassert " in prompts.stop("q") and "\nassert " not in prompts.stop("q", Answer.VALUE)


# --------------------------------------------------------------------------- the other path


def _pass(problem: Problem, code: str) -> audit.Pass:
    return audit.Pass("vanilla draw 0", code, problem)


def test_the_audit_confirms_passes_of_every_scorer() -> None:
    passes = [_pass(UPDATED, UPDATED.reference), _pass(VALUE, VALUE.reference), _pass(VALUE, f" {VALUE.test} # so")]
    report = audit.run(passes, None, seed=0, config=score.Config(settings={"workers": 1}))
    assert (report.audited, report.agree, report.unexplained) == (3, 3, 0)


def test_the_audit_finds_a_pass_that_does_not_need_the_change_and_a_value_that_is_another() -> None:
    idle = _pass(UPDATED, CHEATS["by hand"])
    other = _pass(VALUE, "[{'a': (1, 2.5)}, {3}]")
    report = audit.run([idle, other], None, seed=0, config=score.Config(settings={"workers": 1}))
    assert (report.agree, report.unexplained) == (0, 2)
    found = {d.task_id: d for d in report.disagreements}
    assert found["json/0"].second is Outcome.PASSED and "without what has changed" in found["json/0"].why
    assert found["value/0"].second is Outcome.FAILED


# --------------------------------------------------------------------------- CRUXEval


def test_every_reference_of_cruxeval_counts_and_no_forgery(data_dir: Path) -> None:
    problems = cruxeval.build(cruxeval.Config(path=str(data_dir))).problems()
    assert len(problems) == 600 and {p.scorer for p in problems} == {Scorer.EXACT_VALUE}
    trials = score.self_check(Unasked(), problems)
    assert trials == 600 * (1 + len(exact_value.STUBS)) + score.CHEATED_TASKS * len(exact_value.CHEATS)
    assert all(p.test not in p.prompt.partition("f(")[0] and p.split is Split.TRAIN for p in problems)


def test_the_kinds_of_failure_are_the_scorers_words() -> None:
    assert FailureKind("NotNeeded") is FailureKind.NOT_NEEDED
