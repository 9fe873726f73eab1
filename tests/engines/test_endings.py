"""Where an answer ends: at either end token, at a stop text, at its length; and what it then says it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from transformers import AutoTokenizer, GenerationConfig

from rune.engines.local import torch_engine as engines
from rune.engines.local.batch import Row
from rune.engines.local.text import Detokenizer, StopWatch
from rune.types import Request, Sampling
from tests.engines.engine_helpers import PROMPTS, World, torch_engine

WILD = Sampling(temperature=12.0, max_new_tokens=48)  # nearly every token is as likely as any other
IM_END, END_OF_TEXT = "<|im_end|>", "<|endoftext|>"


class Loaded:
    """As far as the engine asks a model how it was told to end."""

    def __init__(self, ends: int | list[int] | None) -> None:
        self.generation_config = GenerationConfig(eos_token_id=ends)


@pytest.mark.parametrize(
    ("told", "ends"),
    [([7, 9], {7, 9, 2}), ([9, 7], {7, 9, 2}), ([2, 7], {2, 7}), (7, {7, 2}), ([7], {7, 2}), (0, {0, 2}), (None, {2})],
)
def test_every_end_token_of_the_generation_config_counts_and_the_tokenizers_own(
    world: World, told: int | list[int] | None, ends: set[int]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world.model.path)
    assert tokenizer.eos_token_id == 2
    assert engines.end_tokens(Loaded(told), tokenizer) == ends


def test_no_answer_goes_on_behind_either_end_token(world: World) -> None:
    """Drawn almost evenly from the vocabulary, some rows meet the first one and some the second."""
    engine = torch_engine(world, max_rows=256)
    ends = {engine.tokenizer.convert_tokens_to_ids(name) for name in (IM_END, END_OF_TEXT)}
    request = Request(key="x", prompt=PROMPTS[0], sampling=WILD, seed=0, n=256)
    rows = list(engine.decoder.run(engine._rows([request])))
    assert {row.tokens[-1] for row in rows if row.finish == "stop"} == ends
    assert {row.finish for row in rows} == {"stop", "length"}
    for row in rows:
        assert not ends & set(row.tokens[:-1])
        assert row.finish == ("stop" if row.tokens[-1] in ends else "length")
        assert len(row.tokens) == WILD.max_new_tokens or row.finish == "stop"
    answers = {a.draw: a for a in engine.complete([request])}
    for row in rows:
        answer = answers[row.draw]
        assert (answer.num_tokens, answer.finish_reason) == (len(row.tokens), row.finish)
        shown = [token for token in row.tokens if token not in ends]
        assert answer.text == engine.tokenizer.decode(shown, skip_special_tokens=True)
        assert IM_END not in answer.text and END_OF_TEXT not in answer.text


@pytest.mark.parametrize("burst", [1, 3, 4])
def test_bursts_that_run_past_an_end_change_no_answer(world: World, burst: int) -> None:
    request = Request(key="x", prompt=PROMPTS[1], sampling=replace(WILD, stop=("e",)), seed=3, n=40)
    expected = sorted(torch_engine(world).complete([request]), key=lambda a: a.draw)
    found = sorted(torch_engine(world, burst=burst, max_rows=7).complete([request]), key=lambda a: a.draw)
    assert found == expected
    assert {a.finish_reason for a in expected} == {"stop", "length"} or all("e" not in a.text for a in expected)


# --------------------------------------------------------------------------- one row, token by token

ENDS = frozenset({1, 2})


@pytest.fixture(scope="module")
def detokenizer(world: World) -> Detokenizer:
    return Detokenizer(AutoTokenizer.from_pretrained(world.model.path))


def row(detokenizer: Detokenizer, *, most: int = 10, stop: tuple[str, ...] = ()) -> Row:
    sampling = Sampling(temperature=1.0, max_new_tokens=most, stop=stop)
    request = Request(key="x", prompt="p", sampling=sampling, seed=0)
    return Row(request=request, draw=0, prompt=(5,), watch=StopWatch(detokenizer, stop).fresh())


def ids(detokenizer: Detokenizer, text: str) -> list[int]:
    return list(detokenizer._tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("end", sorted(ENDS))
def test_a_row_ends_at_the_first_end_token_of_a_burst_and_keeps_it(detokenizer: Detokenizer, end: int) -> None:
    one = row(detokenizer)
    assert one.take([20, 21], ENDS) == ""
    assert one.take([22, end, 23, 3 - end], ENDS) == "stop"
    assert one.tokens == [20, 21, 22, end]


def test_a_row_has_at_most_as_many_tokens_as_it_may_and_an_end_at_the_last_is_a_stop(detokenizer: Detokenizer) -> None:
    full = row(detokenizer, most=3)
    assert full.take([20, 21, 22, 1], ENDS) == "length"
    assert full.tokens == [20, 21, 22]
    ended = row(detokenizer, most=3)
    assert ended.take([20, 21], ENDS) == "" and ended.take([1, 22], ENDS) == "stop"
    assert ended.tokens == [20, 21, 1]


def test_a_stop_text_before_the_end_token_ends_the_row_and_one_behind_it_does_not(detokenizer: Detokenizer) -> None:
    word = ids(detokenizer, "self")
    before = row(detokenizer, stop=("self",))
    assert before.take([20, *word, 1], ENDS) == "stop"
    assert before.tokens == [20, *word]
    behind = row(detokenizer, stop=("self",))
    assert behind.take([20, 1, *word], ENDS) == "stop"
    assert behind.tokens == [20, 1]


def test_a_restarted_row_has_forgotten_what_it_read(detokenizer: Detokenizer) -> None:
    """Half a stop text from before a restart must not complete one after it."""
    text = "class self"
    pieces = ids(detokenizer, text)
    one = row(detokenizer, most=20, stop=(text,))
    assert one.take(pieces[:-1], ENDS) == ""
    one.restart()
    assert (one.tokens, one.done, one.finish) == ([], False, "")
    assert one.take(pieces[-1:], ENDS) == ""
