"""What of a trajectory the hypernetwork is shown: which lines are the fix, what is left out, what is hidden."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rune.encoders.shared.token_features import Ending, Kind
from rune.hypernet import base as bases
from rune.hypernet import features
from rune.hypernet.features import Features, FeatureTable, Reader
from rune.types import Attempt, ModelRef, Outcome, Trajectory

FIRST = "def f(xs):\n    total = 0\n    for x in xs:\n        total += x\n    return None"
SECOND = "def f(xs):\n    best = 0\n    for x in xs:\n        best = x\n    return best"
SOLUTION = (
    "def f(xs):\n    if not xs:\n        return None\n    total = 0\n    for x in xs:\n        total += x\n"
    "    return total / len(xs)"
)
FIXED = ["    if not xs:", "    return total / len(xs)"]  # "return None" only moved in


def failed(code: str, **changes: object) -> Attempt:
    values = {"outcome": Outcome.FAILED, "error_kind": "WrongAnswer", "error": "f([]) returned 0", **changes}
    return Attempt(code=code, **values)  # type: ignore[arg-type]


TRAJECTORY = Trajectory(
    trajectory_id="t",
    task_id="T/1",
    benchmark="T",
    prompt="Average of xs.",
    attempts=(failed(FIRST), failed(SECOND), Attempt(code=SOLUTION, outcome=Outcome.PASSED)),
    solution=SOLUTION,
)


@pytest.fixture(scope="module")
def base(tiny_model: ModelRef) -> bases.Base:
    return bases.load(tiny_model, device="cpu", dtype="float32")


def reader(base: bases.Base, folder: Path | None = None, taps: tuple[int, ...] = (0, 1)) -> Reader:
    return Reader(base.model, base.tokenizer, taps=taps, digest="d", folder=folder)


def lines(trajectory: Trajectory, kind: Kind) -> list[str]:
    """The solution's lines of one kind, heading apart."""
    step = features.steps_of(trajectory)[-1]
    return [text.rstrip("\n") for text, tag in step.pieces[1:] if tag is kind]


# --------------------------------------------------------------------------- the fix


def test_lines_that_a_failed_attempt_had_are_no_fix_however_deep_they_stand() -> None:
    """Indented lines that did not change, lines of any failed attempt, and lines that moved to another depth."""
    assert lines(TRAJECTORY, Kind.FIX) == FIXED
    assert lines(TRAJECTORY, Kind.SOLUTION) == [line for line in SOLUTION.split("\n") if line not in FIXED]


def test_what_an_earlier_attempt_had_right_is_no_fix_though_the_last_one_lost_it() -> None:
    """`total` stands in the first attempt only."""
    last_only = replace(TRAJECTORY, attempts=TRAJECTORY.attempts[1:])
    assert "    total = 0" in lines(last_only, Kind.FIX) and "    total = 0" not in lines(TRAJECTORY, Kind.FIX)


def test_a_first_try_has_no_fix_and_the_passing_attempt_makes_none_disappear() -> None:
    assert lines(replace(TRAJECTORY, attempts=TRAJECTORY.attempts[-1:]), Kind.FIX) == []
    assert lines(replace(TRAJECTORY, attempts=TRAJECTORY.attempts[:-1]), Kind.FIX) == FIXED


def test_the_tokens_tagged_as_fix_are_those_of_the_fixed_lines(base: bases.Base) -> None:
    tokens = features.tokenise(base.tokenizer, features.steps_of(TRAJECTORY)[-1])
    tagged = [i for i, k in zip(tokens.ids, tokens.kinds, strict=True) if k == Kind.FIX]
    assert base.tokenizer.decode(tagged).split() == " ".join(FIXED).split()


# --------------------------------------------------------------------------- steps


def test_each_failed_attempt_is_a_step_with_its_code_its_error_and_its_ending() -> None:
    slow = failed("while 1: pass", outcome=Outcome.TIMED_OUT, error_kind="Timeout", error="no answer after 3 s")
    steps = features.steps_of(replace(TRAJECTORY, attempts=(failed(FIRST), slow, TRAJECTORY.attempts[-1])))
    texts = ["".join(text for text, _ in step.pieces) for step in steps]
    assert [step.ending for step in steps] == [Ending.NONE, Ending.FAILED, Ending.TIMED_OUT, Ending.PASSED]
    assert texts[0] == "Task:\nAverage of xs."
    assert texts[1] == f"Attempt:\n{FIRST}\nError (WrongAnswer):\nf([]) returned 0"
    assert texts[2] == "Attempt:\nwhile 1: pass\nError (Timeout):\nno answer after 3 s"
    assert texts[3] == f"Solution:\n{SOLUTION}\n"
    errors = ["".join(text for text, kind in step.pieces if kind is Kind.ERROR) for step in steps]
    assert errors == ["", "\nError (WrongAnswer):\nf([]) returned 0", "\nError (Timeout):\nno answer after 3 s", ""]


def test_an_exhausted_trajectory_has_no_solution_step() -> None:
    steps = features.steps_of(replace(TRAJECTORY, solution="", attempts=TRAJECTORY.attempts[:2]))
    assert [step.ending for step in steps] == [Ending.NONE, Ending.FAILED, Ending.FAILED]


def test_a_token_belongs_to_the_piece_its_last_character_lies_in(base: bases.Base) -> None:
    """Pieces are tagged by characters; the text is tokenised as a whole, across their borders."""
    vocabulary = base.tokenizer.get_vocab()
    word = min(w for w in vocabulary if len(w) > 4 and w.isalpha() and w.isascii())
    assert base.tokenizer(word, add_special_tokens=False)["input_ids"] == [vocabulary[word]]
    pieces = ((word[:2], Kind.TASK), (word[2:], Kind.ATTEMPT), ("\nError", Kind.ERROR))
    tokens = features.tokenise(base.tokenizer, features._Step(pieces, Ending.FAILED))
    assert tokens.kinds[0] == Kind.ATTEMPT
    assert set(tokens.kinds[1:]) == {Kind.ERROR}


def test_of_a_step_over_the_limit_the_first_third_and_the_end_stay_with_their_tags(base: bases.Base) -> None:
    """An error stands at the end of its step: it must survive a long attempt."""
    code = "\n".join(f"value_{i} = {i}" for i in range(1500))
    step = features.steps_of(replace(TRAJECTORY, attempts=(failed(code),)))[1]
    text = "".join(piece for piece, _ in step.pieces)
    whole = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens = features.tokenise(base.tokenizer, step)
    limit, head = features.MAX_STEP_TOKENS, features.MAX_STEP_TOKENS // 3
    assert tokens.ids == whole[:head] + whole[head - limit :]
    assert tokens.cut == len(whole) - limit > 0
    error = len(base.tokenizer("\nError (WrongAnswer):\nf([]) returned 0", add_special_tokens=False)["input_ids"])
    assert tokens.kinds == [Kind.ATTEMPT] * (limit - error) + [Kind.ERROR] * error


def test_a_token_over_a_border_is_of_the_piece_that_it_ends_in() -> None:
    """A byte-pair token may hold the end of one line and the start of the next; an empty one stands where it is."""
    pieces = (("ab", Kind.SOLUTION), ("c", Kind.FIX), ("de", Kind.SOLUTION), ("", Kind.FIX))
    offsets = [(0, 1), (1, 3), (3, 3), (3, 4), (4, 5)]
    tokens = features.tokenise(
        lambda text, **_: {"input_ids": list(range(len(offsets))), "offset_mapping": offsets},
        features._Step(pieces, Ending.PASSED),
    )
    assert tokens.kinds == [Kind.SOLUTION, Kind.FIX, Kind.SOLUTION, Kind.SOLUTION, Kind.SOLUTION]


def test_what_was_cut_is_added_up_over_the_steps(base: bases.Base) -> None:
    long = replace(TRAJECTORY, prompt="x = 1\n" * 1500, attempts=(failed("y = 2\n" * 1500), TRAJECTORY.attempts[-1]))
    cuts = [features.tokenise(base.tokenizer, step).cut for step in features.steps_of(long)]
    assert cuts[0] > 0 and cuts[1] > 0
    assert reader(base).read([long])[0].cut == sum(cuts)


# --------------------------------------------------------------------------- the cache


def test_the_cache_answers_only_for_the_same_taps_base_and_text(base: bases.Base, tmp_path: Path) -> None:
    """Features of other layers, or of another ending of the same code, are read anew and not mixed up."""
    plain = reader(base).read([TRAJECTORY])[0]
    assert torch.equal(reader(base, tmp_path).read([TRAJECTORY])[0].features_TSD, plain.features_TSD)
    assert not torch.equal(plain.features_TSD, reader(base, taps=(0, 2)).read([TRAJECTORY])[0].features_TSD)
    deep = reader(base, tmp_path, taps=(0, 2)).read([TRAJECTORY])[0]
    assert torch.equal(deep.features_TSD, reader(base, taps=(0, 2)).read([TRAJECTORY])[0].features_TSD)
    slow = replace(TRAJECTORY.attempts[0], outcome=Outcome.TIMED_OUT)
    other = reader(base, tmp_path).read([replace(TRAJECTORY, attempts=(slow, *TRAJECTORY.attempts[1:]))])[0]
    assert Ending.TIMED_OUT in other.ending_T.tolist() and Ending.TIMED_OUT not in plain.ending_T.tolist()
    renamed = Reader(base.model, base.tokenizer, taps=(0, 1), digest="another base", folder=tmp_path)
    assert renamed._folder != reader(base, tmp_path)._folder


def test_a_tap_is_its_layer_for_every_reader_of_one_model(base: bases.Base) -> None:
    """Readers share the model's layers: the second one, and one after the whole model ran, see what the first saw."""
    ids = torch.tensor([features.tokenise(base.tokenizer, features.steps_of(TRAJECTORY)[0]).ids])
    layers = base.model.model.layers  # type: ignore[union-attr]
    states = [base.model.get_input_embeddings()(ids)]  # type: ignore[operator]
    handles = [layer.register_forward_hook(lambda m, i, o: states.append(o)) for layer in layers]  # type: ignore[union-attr]
    with torch.no_grad():
        base.model(input_ids=ids, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    for taps in ((0, 1), (0, 2), (1, 2), (0,), (0, 1)):
        found = reader(base, taps=taps).read([TRAJECTORY])[0]
        expected = torch.stack([states[tap][0] for tap in taps], 1)
        torch.testing.assert_close(found.features_TSD[found.step_T == 0], expected, rtol=1e-4, atol=1e-5)


def test_readers_of_one_model_in_two_threads_do_not_hear_each_other(base: bases.Base) -> None:
    readers = [Reader(base.model, base.tokenizer, taps=(0, 2), digest="d", folder=None) for _ in range(2)]
    texts = [replace(TRAJECTORY, prompt=f"Add {n} to x. " * (n + 1)) for n in range(2)]
    alone = [readers[0].read([text])[0].features_TSD for text in texts]
    inner: Any = base.model
    handle = inner.model.layers[1].register_forward_pre_hook(lambda *_: time.sleep(0.02))  # both are on their way
    try:
        with ThreadPoolExecutor(2) as pool:
            beside = list(pool.map(lambda n: readers[n].read([texts[n]])[0].features_TSD, range(2)))
    finally:
        handle.remove()
    for expected, got in zip(alone, beside, strict=True):
        assert torch.equal(got, expected)


def test_features_do_not_depend_on_what_is_read_beside_them(base: bases.Base) -> None:
    """Steps of all trajectories are sorted by length and padded together; each comes back in its place."""
    several = [replace(TRAJECTORY, prompt="word " * n, trajectory_id=str(n)) for n in (40, 3, 17)]
    together = reader(base).read(several)
    for one, found in zip(several, together, strict=True):
        (alone,) = reader(base).read([one])
        torch.testing.assert_close(found.features_TSD, alone.features_TSD, rtol=1e-4, atol=1e-5)
        assert torch.equal(found.kind_T, alone.kind_T) and torch.equal(found.step_T, alone.step_T)


# --------------------------------------------------------------------------- sets


def numbered(*steps: tuple[Kind, Ending, int]) -> Features:
    """A trajectory of steps (kind, ending, tokens); every token's feature is its step's number."""
    kinds = torch.cat([torch.full((n,), int(kind)) for kind, _, n in steps])
    endings = torch.cat([torch.full((n,), int(ending)) for _, ending, n in steps])
    step = torch.cat([torch.full((n,), i) for i, (_, _, n) in enumerate(steps)])
    return Features(step[:, None, None].float() + 1, kinds, endings, step, 0)


BANK = FeatureTable(
    [
        numbered(
            (Kind.TASK, Ending.NONE, 5),
            (Kind.ATTEMPT, Ending.FAILED, 20),
            (Kind.ATTEMPT, Ending.TIMED_OUT, 30),
            (Kind.SOLUTION, Ending.PASSED, 7),
        ),
        numbered((Kind.TASK, Ending.NONE, 4), (Kind.SOLUTION, Ending.PASSED, 6)),
    ]
)


def test_a_set_is_its_trajectories_tokens_with_their_tags_and_steps_without_gaps() -> None:
    steps = BANK.batch([[0, 1], [1], []])
    assert steps.mask_BT.sum(1).tolist() == [72, 10, 0]
    assert steps.step_BT[0].tolist() == [0] * 5 + [1] * 20 + [2] * 30 + [3] * 7 + [4] * 4 + [5] * 6
    assert steps.features_BTSD[0, :62, 0, 0].tolist() == [1.0] * 5 + [2.0] * 20 + [3.0] * 30 + [4.0] * 7
    kinds = steps.kind_BT[1, :10].tolist()
    assert kinds == [Kind.TASK] * 4 + [Kind.SOLUTION] * 6
    assert steps.ending_BT[0, 25:55].unique().tolist() == [Ending.TIMED_OUT]


@pytest.mark.parametrize(
    ("limit", "tokens"),
    [(0, 62), (62, 62), (61, 42), (42, 42), (41, 12), (1, 12)],  # the first attempt goes first; never task or solution
)
def test_a_set_over_the_limit_loses_whole_attempts_and_no_more_than_it_must(limit: int, tokens: int) -> None:
    steps = BANK.batch([[0]], max_tokens=limit)
    kept = steps.kind_BT[steps.mask_BT].tolist()
    assert len(kept) == tokens
    assert kept.count(Kind.TASK) == 5 and kept.count(Kind.SOLUTION) == 7
    assert sorted(set(steps.step_BT[steps.mask_BT].tolist())) == list(range(len(set(steps.step_BT[0].tolist()))))


def test_in_training_steps_come_in_every_order_and_stay_whole() -> None:
    orders = set()
    for seed in range(60):
        steps = BANK.batch([[0]], rng=np.random.default_rng(seed))
        seen = steps.features_BTSD[0, :, 0, 0][steps.mask_BT[0]]
        order = tuple(dict.fromkeys(seen.tolist()))
        orders.add(order)
        sizes = {1.0: 5, 2.0: 20, 3.0: 30, 4.0: 7}
        assert seen.tolist() == [step for step in order for _ in range(sizes[step])]
    assert len(orders) > 12
    assert len({tuple(BANK.batch([[0]]).features_BTSD.flatten().tolist()) for _ in range(3)}) == 1


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_the_given_share_of_tokens_is_hidden_in_training_only(share: float) -> None:
    rng = np.random.default_rng(0)
    hidden = [1 - float(BANK.batch([[0]], drop=share, rng=rng).mask_BT.float().mean()) for _ in range(200)]
    assert np.mean(hidden) == pytest.approx(share, abs=0.02)
    assert len(set(hidden)) > 5
    assert bool(BANK.batch([[0]], drop=share).mask_BT.all())


# --------------------------------------------------------------------------- tokens and batches, without a model


@pytest.mark.parametrize(
    ("offsets", "kinds"),
    [
        ([(0, 3), (3, 6), (6, 8)], "AFF"),
        ([(0, 2), (2, 4), (4, 8)], "AFF"),  # what lies on both sides is of the piece of its last character
        ([(0, 3), (3, 3), (3, 5)], "AFF"),  # an empty token is of the piece that begins there
        ([(0, 2), (2, 3), (3, 4), (4, 6), (6, 7)], "AAFFF"),
        ([(5, 6), (6, 9), (9, 9)], "FFF"),  # beyond the last piece is still the last piece
        ([(1, 7)], "F"),
    ],
)
def test_a_token_is_of_the_piece_that_its_last_character_is_of(offsets: list[tuple[int, int]], kinds: str) -> None:
    step = features._Step((("abc", Kind.ATTEMPT), ("", Kind.ERROR), ("defgh", Kind.FIX)), Ending.PASSED)

    def tokenizer(text: str, *, add_special_tokens: bool, return_offsets_mapping: bool) -> dict[str, object]:
        assert (text, add_special_tokens, return_offsets_mapping) == ("abcdefgh", False, True)
        return {"input_ids": list(range(10, 10 + len(offsets))), "offset_mapping": offsets}

    found = features.tokenise(tokenizer, step)
    assert found.ids == list(range(10, 10 + len(offsets))) and found.cut == 0
    assert found.kinds == [int({"A": Kind.ATTEMPT, "F": Kind.FIX}[k]) for k in kinds]


def test_batches_are_as_large_as_their_padding_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_BATCH_TOKENS", 12)

    def batches(*lengths: int) -> list[list[int]]:
        items = [(n, 0) for n in range(len(lengths))]
        found = list(features._batches(items, list(lengths)))
        assert [item for batch in found for item in batch] == items
        return [[lengths[n] for n, _ in batch] for batch in found]

    assert batches() == [] and batches(30) == [[30]]
    assert batches(4, 4, 4, 4) == [[4, 4, 4], [4]]
    assert batches(1, 2, 3, 3, 5, 6, 6, 13, 13) == [[1, 2, 3, 3], [5, 6], [6], [13], [13]]
