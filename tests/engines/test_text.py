"""Stop strings are found at the token that completes them, however tokens and bursts cut the text."""

from __future__ import annotations

import random

import pytest
from transformers import AutoTokenizer

from rune.engines.local.text import Detokenizer, StopWatch, Unfolding
from tests.engines.engine_helpers import World

TEXT = 'def f(x):\n    """Größe, naïve 名前 → 🙂"""\n    return x + 1\n\n\nclass A:\n    pass\n'


@pytest.mark.parametrize("bytewise", [True, False])
def test_a_stop_string_ends_the_row_at_the_first_token_that_completes_it(world: World, bytewise: bool) -> None:
    """Every piece of 1 to 9 characters of a text with multi-byte characters, pushed in random bursts."""
    tokenizer = AutoTokenizer.from_pretrained(world.model.path)
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.bytewise
    detokenizer.bytewise = bytewise  # SentencePiece vocabularies are decoded whole
    tokens = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    so_far = [tokenizer.decode(tokens[: count + 1]) for count in range(len(tokens))]
    rng = random.Random(0)
    for _ in range(300):
        start, length = rng.randrange(len(TEXT)), rng.randint(1, 9)
        stop = TEXT[start : start + length]
        expected = next(count for count, text in enumerate(so_far) if stop in text)
        watch = StopWatch(detokenizer, ("never in there", stop)).fresh()
        pushed, found = 0, None
        while found is None and pushed < len(tokens):
            burst = tokens[pushed : pushed + rng.randint(1, 5)]
            found = watch.push(burst)
            pushed += len(burst) if found is None else found
        assert pushed == expected
    assert StopWatch(detokenizer, ("never in there",)).push(tokens) is None


def test_bytes_of_tokens_join_to_the_tokenizers_own_text(world: World) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world.model.path)
    tokens = [*tokenizer(TEXT, add_special_tokens=False)["input_ids"], tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert Detokenizer(tokenizer).text(tokens) == TEXT


@pytest.mark.parametrize("bytewise", [True, False])
def test_what_is_shown_in_pieces_is_the_text_before_the_first_stop_string(world: World, bytewise: bool) -> None:
    """Whatever the bursts: no half character, no beginning of a stop string, and each token counted where it shows."""
    tokenizer = AutoTokenizer.from_pretrained(world.model.path)
    detokenizer = Detokenizer(tokenizer)
    detokenizer.bytewise = bytewise
    tokens = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    rng = random.Random(1)
    for _ in range(200):
        first, second = rng.randrange(len(TEXT)), rng.randrange(len(TEXT))
        stop = (TEXT[first : first + rng.randint(1, 6)], "", TEXT[second : second + 3] if rng.random() < 0.5 else "no")
        expected = TEXT[: min(place for place in (TEXT.find(s) for s in stop if s) if place >= 0)]
        unfolding, shown, pushed, count = Unfolding(detokenizer, stop), "", 0, 0
        while pushed < len(tokens):
            burst = tokens[pushed : pushed + rng.randint(1, 4)]
            pushed += len(burst)
            piece = unfolding.push(burst, last=pushed == len(tokens))
            shown, count = shown + piece.text, max(count, piece.tokens)
            assert expected.startswith(shown)
        assert shown == expected
        assert len(tokenizer.decode(tokens[:count]).rstrip("\ufffd")) >= len(expected)
        assert count == 0 or len(tokenizer.decode(tokens[: count - 1]).rstrip("\ufffd")) < len(expected)


def test_a_text_that_ends_within_a_character_ends_with_a_replacement(world: World) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world.model.path)
    detokenizer = Detokenizer(tokenizer)
    tokens = tokenizer("a🙂", add_special_tokens=False)["input_ids"][:-1]
    unfolding = Unfolding(detokenizer, ())
    assert unfolding.push(tokens).text == "a"
    assert unfolding.push([], last=True).text == "\ufffd"


def test_the_first_of_several_stop_strings_counts(world: World) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world.model.path)
    detokenizer = Detokenizer(tokenizer)

    def before(text: str, *stop: str) -> str:
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        return Unfolding(detokenizer, stop).push(tokens, last=True).text

    assert before("a\nclass B\ndef c", "\ndef", "\nclass", "") == "a"
    assert before("nothing", "x") == "nothing"
