"""vanilla, rag and teacher: text before the task, from the same hits, never an adapter."""

from __future__ import annotations

from pathlib import Path

import pytest

from rune import plugins, prompts
from rune.conditions.shared.arm_inputs import ArmInputs
from rune.retrievers import bm25
from rune.types import Attempt, Hit, ModelRef, Outcome, Problem, Trajectory, Treatment
from tests.conditions.keep import no_adapters


def problem(task_id: str, prompt: str) -> Problem:
    return Problem(task_id=task_id, benchmark="test", prompt=prompt, entry_point="f", test="def check(c): pass")


def trajectory(name: str, prompt: str, *, error: str = "boom", solution: str = "def f(): return 1") -> Trajectory:
    failed = Attempt(code=f"def f(): return 0  # {name}", outcome=Outcome.FAILED, error_kind="WrongAnswer", error=error)
    passed = Attempt(code=solution, outcome=Outcome.PASSED)
    return Trajectory(
        trajectory_id=name,
        task_id=f"train/{name}",
        benchmark="test",
        prompt=prompt,
        attempts=(failed, passed),
        solution=solution,
    )


CORPUS = [
    trajectory("primes", "Return all prime numbers below a limit, using a sieve."),
    trajectory("anagram", "Tell whether two words are anagrams of each other."),
    trajectory("matrix", "Transpose a matrix of integers given as nested lists."),
]


@pytest.fixture
def arm_inputs(tmp_path: Path) -> ArmInputs:
    retriever = bm25.build(bm25.Config(), CORPUS)
    tasks = {"HumanEval/1": "Count the prime numbers below n.", "HumanEval/2": "Group words that are anagrams."}
    return ArmInputs(
        model=ModelRef(name="none", path="", digest="", source="local"),
        device="cpu",
        dtype="float32",
        seed=0,
        trajectories=tuple(CORPUS),
        hits={k: tuple(retriever.retrieve(v, top_k=1)) for k, v in tasks.items()},
        checkpoints=tmp_path,
        keep=no_adapters,
        adapters=tmp_path,
    )


def treat(name: str, arm_inputs: ArmInputs, **settings: object) -> list[Treatment]:
    module = plugins.load("conditions", name)
    done: list[Treatment] = []
    problems = [problem(k, "") for k in arm_inputs.hits]
    module.build(module.Config(**settings), arm_inputs).treat(problems, done.append)
    assert [t.task_id for t in done] == list(arm_inputs.hits)
    assert all(t.condition == name and t.adapter is None for t in done)
    return done


def test_vanilla_adds_nothing(arm_inputs: ArmInputs) -> None:
    assert all(t.context == "" and t.trajectory_ids == () for t in treat("vanilla", arm_inputs))


def test_rag_shows_the_retrieved_trajectory_and_says_which(arm_inputs: ArmInputs) -> None:
    first, second = treat("rag", arm_inputs)
    assert first.trajectory_ids == ("primes",) and "sieve" in first.context
    assert second.trajectory_ids == ("anagram",) and "anagrams" in second.context


def test_rag_without_any_hit_is_the_bare_prompt(arm_inputs: ArmInputs) -> None:
    empty = ArmInputs(**{**{f: getattr(arm_inputs, f) for f in arm_inputs.__slots__}, "hits": {"HumanEval/1": ()}})
    assert treat("rag", empty)[0].context == ""


def test_rag_cuts_long_pieces_and_says_how_much_is_missing(arm_inputs: ArmInputs) -> None:
    long = trajectory("long", "x " * 4000)
    hits = {"HumanEval/1": (Hit(trajectory=long, snippet=prompts.render_trajectory(long), score=1.0),)}
    cut = ArmInputs(**{**{f: getattr(arm_inputs, f) for f in arm_inputs.__slots__}, "hits": hits})
    (treatment,) = treat("rag", cut, max_chars=500)
    assert len(treatment.context) < 800 and "characters left out" in treatment.context


def test_teacher_sees_the_failure_the_error_and_the_correction(arm_inputs: ArmInputs) -> None:
    first = treat("teacher", arm_inputs)[0]
    for part in ("return 0  # primes", "boom", "def f(): return 1"):
        assert part in first.context


def test_retrieval_is_deterministic_and_breaks_ties_by_id() -> None:
    twins = [trajectory("b", "same words here"), trajectory("a", "same words here")]
    for corpus in (twins, twins[::-1]):
        found = bm25.build(bm25.Config(), corpus).retrieve("same words", top_k=2)
        assert [hit.trajectory.trajectory_id for hit in found] == ["a", "b"]


def test_retrieval_from_nothing_finds_nothing() -> None:
    assert bm25.build(bm25.Config(), []).retrieve("anything", top_k=3) == []


def test_every_line_of_a_trajectory_is_in_some_chunk() -> None:
    lines = [f"line {i}" for i in range(101)]
    pieces = bm25.chunks("\n".join(lines), 40, 10)
    assert set("\n".join(pieces).split("\n")) == set(lines)
    assert all(len(p.split("\n")) <= 40 for p in pieces)
    assert bm25.chunks("", 40, 10) == [""]


def test_identifiers_come_apart_into_words() -> None:
    assert bm25.words("has_closeElements XMLParser v2") == ["has", "close", "elements", "xml", "parser", "2"]


@pytest.mark.parametrize(("size", "overlap"), [(1, 0), (2, 1), (3, 0), (3, 2), (5, 1)])
def test_chunks_share_so_many_lines_and_none_is_made_twice(size: int, overlap: int) -> None:
    for count in range(1, 12):
        lines = [f"line {i}" for i in range(count)]
        pieces = [p.split("\n") for p in bm25.chunks("\n".join(lines), size, overlap)]
        step = size - overlap
        assert pieces[0] == lines[:size] and pieces[-1][-1] == lines[-1]
        assert all(piece == lines[i * step : i * step + size] for i, piece in enumerate(pieces))
        assert all(len(piece) > overlap for piece in pieces) or len(pieces) == 1
        assert len(pieces) == max(1, -(-(count - overlap) // step))
