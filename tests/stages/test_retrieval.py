"""Which trajectories a task is given: by its prompt alone, of different tasks, the same for every arm."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from rune import config, plugins
from rune.conditions.shared.arm_inputs import ArmInputs
from rune.corpus import nearest as _retrieval
from rune.errors import ConfigError, DataError
from rune.retrievers import bm25
from rune.runs import store
from rune.stages import train
from rune.stages.context import Context
from rune.study import config as study
from rune.study import executor
from rune.types import Attempt, ModelRef, Outcome, Problem, Split, Trajectory, Treatment
from tests.conditions.keep import no_adapters
from tests.stages.test_crossfit_decide import settings

TOPICS = {
    "primes": "Return all prime numbers below a limit, using a sieve.",
    "anagram": "Tell whether two words are anagrams of each other.",
    "matrix": "Transpose a matrix of integers given as nested lists.",
    "stack": "Evaluate a postfix expression with a stack.",
}


def tried(name: str, task: str, prompt: str, *, solved: bool = True, domain: str = "") -> Trajectory:
    attempts = (Attempt(code=f"def f():\n    return {name!r}\n", outcome=Outcome.FAILED, error=f"error of {name}"),)
    return Trajectory(
        trajectory_id=name, task_id=task, benchmark="t", prompt=prompt, attempts=attempts,
        solution=f"def f():\n    return 1  # {name}\n" if solved else "", domain=domain,
    )  # fmt: skip


# Two trajectories of each task, as `keep_per_task = 2` leaves them.
CORPUS = [tried(f"{topic} {i}", f"train/{topic}", text) for topic, text in TOPICS.items() for i in (1, 2)]
ASKED = Problem(
    task_id="T/1", benchmark="t", prompt="List the prime numbers below n.", entry_point="f",
    test="def check(candidate): assert candidate(9)", reference="def f(n): ...", split=Split.HELD_OUT,
)  # fmt: skip


def names(hits: Any) -> list[str]:
    return [hit.trajectory.trajectory_id for hit in hits]


def nearest(corpus: list[Trajectory], query: str = ASKED.prompt, **more: Any) -> list[str]:
    given: dict[str, Any] = {"ranked": len(corpus), "count": 2, "per_task": 1, **more}
    return names(_retrieval.nearest(bm25.build(bm25.Config(), corpus), query, **given))


# --------------------------------------------------------------------------- at most so many of one task


def test_two_trajectories_are_of_two_tasks_and_the_best_of_each() -> None:
    both = nearest(CORPUS, per_task=0)
    assert both == ["primes 1", "primes 2"]  # what the ranking alone gives
    one = nearest(CORPUS)
    assert one[0] == "primes 1" and not one[1].startswith("primes")
    assert nearest(CORPUS, count=3, per_task=2)[:2] == both and nearest(CORPUS, count=3, per_task=2)[2] not in both


def test_every_task_has_its_turn_before_the_hits_run_out() -> None:
    found = nearest(CORPUS, count=9)
    assert sorted(name.split()[0] for name in found) == sorted(TOPICS)
    assert len(nearest(CORPUS, count=9, per_task=2)) == len(CORPUS)


def test_a_task_under_another_benchmarks_name_is_the_same_task() -> None:
    twice = [tried("a", "HumanEval/3", TOPICS["primes"]), tried("b", "Python/3", TOPICS["primes"]), *CORPUS[2:]]
    found = nearest(twice)
    assert found[0] == "a" and found[1] not in ("a", "b")
    assert "b" not in nearest(twice, count=9, without="HumanEvalFix/3")


def test_hits_come_best_first_and_no_more_than_asked_for() -> None:
    hits = _retrieval.nearest(bm25.build(bm25.Config(), CORPUS), ASKED.prompt, ranked=len(CORPUS), count=3, per_task=1)
    assert len(hits) == 3 and [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
    assert "prime numbers" in hits[0].snippet  # the piece that matched


# --------------------------------------------------------------------------- the ranking


def long(name: str, *words: str) -> Trajectory:
    """Its program has a hundred lines, `words` in the middle of them."""
    lines = [f"    x{i} = {i}" for i in range(50)]
    code = "\n".join(["def f():", *lines, f"    # {' '.join(words)}", *lines])
    return dataclasses.replace(tried(name, f"train/{name}", "Do something."), solution=code)


def test_a_trajectory_is_as_near_as_its_best_piece_and_shows_that_one() -> None:
    corpus = [long("a"), long("b", "zebra", "stripes"), long("c", "zebra")]
    hits = bm25.build(bm25.Config(), corpus).retrieve("zebra stripes", top_k=3)
    assert names(hits) == ["b", "c", "a"] and hits[0].score > hits[1].score > hits[2].score
    assert "zebra stripes" in hits[0].snippet and "zebra" in hits[1].snippet


def test_neighbouring_pieces_share_lines_so_that_no_error_is_cut_from_its_code() -> None:
    lines = [str(i) for i in range(100)]
    pieces = [piece.split("\n") for piece in bm25.chunks("\n".join(lines), 40, 10)]
    assert [(p[0], p[-1]) for p in pieces] == [("0", "39"), ("30", "69"), ("60", "99")]
    assert bm25.chunks("", 40, 10) == [""]


def test_k1_and_b_are_the_settings() -> None:
    """Without `b` a long piece is as good as a short one; without `k1` saying a word thrice is no better than once."""
    short, wordy = tried("short", "train/s", "zebra"), tried("wordy", "train/w", "zebra " + "other words " * 30)
    thrice = tried("thrice", "train/t", "zebra zebra zebra")

    def scores(corpus: list[Trajectory], **settings: float) -> dict[str, float]:
        hits = bm25.build(bm25.Config(**settings), corpus).retrieve("zebra", top_k=9)  # type: ignore[arg-type]
        return {hit.trajectory.trajectory_id: hit.score for hit in hits}

    assert scores([short, wordy])["short"] > scores([short, wordy])["wordy"]
    even = scores([short, wordy], b=0.0)
    assert even["short"] == pytest.approx(even["wordy"])
    assert scores([short, thrice])["thrice"] > scores([short, thrice])["short"]
    once = scores([short, thrice], k1=0.0)
    assert once["short"] == pytest.approx(once["thrice"])


# --------------------------------------------------------------------------- the workshop


def rule(**retrieve: Any) -> study.RunConfig:
    raw = {k: v for k, v in settings().items() if k not in ("crossfit", "benchmark")}
    raw["retrieve"] |= {"top_k": 2, **retrieve}
    return config.build(study.RunConfig, raw)


def arm_inputs(root: Path, corpus: list[Trajectory], *problems: Problem, **retrieve: Any) -> ArmInputs:
    folder = store.RunDir(root)
    store.write_jsonl(folder / "problems.jsonl", problems or [ASKED])
    store.write_jsonl(folder / "trajectories.jsonl", corpus)

    def none() -> Any:
        raise AssertionError("neither engine nor sandbox is needed")

    context = Context(
        seed=3, model=lambda: ModelRef(name="none", path="", digest="", source="local"), device="cpu", dtype="float32",
        engine=none, sandbox=none, cache=root,
    )  # fmt: skip
    return executor.arm_inputs(folder, rule(**retrieve), context, no_adapters)


def test_a_run_gives_every_task_trajectories_of_different_tasks_unless_told_otherwise(tmp_path: Path) -> None:
    assert rule().retrieve.per_task == 1 and rule().train.per_task == 1
    hits = arm_inputs(tmp_path, CORPUS).hits["T/1"]
    assert names(hits)[0] == "primes 1" and len({h.trajectory.task_id for h in hits}) == 2
    assert names(arm_inputs(tmp_path, CORPUS, per_task=0).hits["T/1"]) == ["primes 1", "primes 2"]  # as runs before had
    with pytest.raises(ConfigError, match=r"\[retrieve\] per_task must be 0 \(no limit\) or more, found -1"):
        rule(per_task=-1)


def test_top_k_is_how_many_a_task_is_given(tmp_path: Path) -> None:
    for k in (1, 2, 4):
        assert len(arm_inputs(tmp_path, CORPUS, top_k=k).hits["T/1"]) == k
    assert len(arm_inputs(tmp_path, CORPUS, top_k=9).hits["T/1"]) == len(TOPICS)


def test_a_task_is_looked_for_by_its_prompt_alone(tmp_path: Path) -> None:
    """Its test, reference, name and category say "matrix" as often as they like."""
    loud = " ".join([TOPICS["matrix"]] * 9)
    told = dataclasses.replace(ASKED, test=loud, reference=loud, category=loud, entry_point="transpose_matrix")
    assert names(arm_inputs(tmp_path, CORPUS, told).hits["T/1"]) == names(
        arm_inputs(tmp_path, CORPUS, ASKED).hits["T/1"]
    )
    asks = dataclasses.replace(ASKED, prompt=TOPICS["matrix"])
    assert names(arm_inputs(tmp_path, CORPUS, asks).hits["T/1"])[0] == "matrix 1"


def test_only_held_out_tasks_are_given_anything_and_each_its_own(tmp_path: Path) -> None:
    other = dataclasses.replace(ASKED, task_id="T/2", prompt="Are these words anagrams?")
    training = dataclasses.replace(ASKED, task_id="T/3", split=Split.TRAIN)
    found = arm_inputs(tmp_path, CORPUS, training, other, ASKED)
    assert set(found.hits) == {"T/1", "T/2"}
    assert (names(found.hits["T/1"])[0], names(found.hits["T/2"])[0]) == ("primes 1", "anagram 1")
    assert found.trajectories == tuple(CORPUS) and found.seed == 3
    assert [t.trajectory_id for t in found.retrieved("T/2")] == names(found.hits["T/2"])


def test_only_solved_trajectories_are_found_but_the_corpus_is_whole(tmp_path: Path) -> None:
    corpus = [tried("exhausted", "train/x", ASKED.prompt, solved=False), *CORPUS]
    found = arm_inputs(tmp_path, corpus, top_k=9)
    assert all(h.trajectory.solved for h in found.hits["T/1"]) and found.trajectories == tuple(corpus)


def test_a_private_convention_is_found_by_tasks_of_families_only(tmp_path: Path) -> None:
    corpus = [tried("lesson", "fam/1", ASKED.prompt, domain="fam"), *CORPUS]
    assert "lesson" not in names(arm_inputs(tmp_path, corpus, top_k=9).hits["T/1"])
    inside = dataclasses.replace(ASKED, domain="other")
    assert names(arm_inputs(tmp_path, corpus, inside).hits["T/1"])[0] == "lesson"


def test_a_run_without_trajectories_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no trajectories; run `rune collect"):
        arm_inputs(tmp_path, [])


def test_a_wrong_setting_of_the_retriever_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[retrieve.settings\] unknown key 'k9'"):
        arm_inputs(tmp_path, CORPUS, settings={"k9": 1})


def test_the_documented_defaults_are_the_defaults() -> None:
    assert bm25.Config() == bm25.Config(chunk_lines=40, overlap_lines=10, k1=1.5, b=0.75)
    assert plugins.load("conditions", "rag").Config().max_chars == 2400
    assert rule().retrieve.retriever == rule().train.retriever == "bm25"


# --------------------------------------------------------------------------- the arms that show text


@pytest.mark.parametrize("arm", ["rag", "teacher"])
def test_a_text_arm_shows_all_that_its_task_was_given_best_first_and_names_it(tmp_path: Path, arm: str) -> None:
    other = dataclasses.replace(ASKED, task_id="T/2", prompt="Are these words anagrams?")
    shop = arm_inputs(tmp_path, CORPUS, ASKED, other)
    module, done = plugins.load("conditions", arm), []
    module.build(module.Config(), shop).treat([other, ASKED], done.append)
    made: dict[str, Treatment] = {t.task_id: t for t in done}
    assert list(made) == ["T/2", "T/1"]
    for task_id, treatment in made.items():
        given = shop.retrieved(task_id)
        assert treatment.trajectory_ids == tuple(t.trajectory_id for t in given) and len(given) == 2
        places = [treatment.context.find(t.prompt) for t in given]
        assert 0 <= places[0] < places[1]
        for one in CORPUS:
            if one.prompt not in {t.prompt for t in given}:
                assert one.prompt not in treatment.context


# --------------------------------------------------------------------------- retrieved pairs in training


def plan(**changes: Any) -> train.Config:
    return dataclasses.replace(rule().train, **changes)


def test_retrieved_pairs_are_found_as_at_evaluation_and_never_of_the_target_itself() -> None:
    lesson = tried("lesson", "fam/1", ASKED.prompt, domain="fam")
    exhausted = tried("exhausted", "train/primes", TOPICS["primes"], solved=False)
    corpus = [*CORPUS, lesson, exhausted]
    by_id = {t.trajectory_id: t for t in corpus}
    near = train.neighbours(corpus, plan(neighbours=3))
    assert set(near) == set(by_id) - {"lesson"}  # what nobody solved has neighbours, a family's has siblings
    for one, found in near.items():
        tasks = [by_id[i].task_id for i in found]
        assert len(found) == 3 == len(set(tasks)) and by_id[one].task_id not in tasks
        assert all(by_id[i].solved for i in found)
    twice = train.neighbours(corpus, plan(neighbours=6, per_task=0))
    assert all(len(found) == 6 and len({by_id[i].task_id for i in found}) == 3 for found in twice.values())
    assert [len(found) for found in train.neighbours(corpus, plan(neighbours=1)).values()] == [1] * len(near)


def test_without_a_solved_task_outside_families_there_are_no_neighbours() -> None:
    assert train.neighbours([tried("a", "t/1", "x", solved=False), tried("b", "f/1", "x", domain="f")], plan()) == {}
    with pytest.raises(ValueError, match="per_task must be 0"):
        plan(per_task=-1)
