"""Stop strings are found at the token that completes them, however tokens and bursts cut the text."""

from __future__ import annotations

import random

import pytest
from transformers import AutoTokenizer

from rune.engines.local.text import Detokenizer, StopWatch, cut
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


def test_the_first_of_several_stop_strings_counts() -> None:
    assert cut("a\nclass B\ndef c", ("\ndef", "\nclass", "")) == "a"
    assert cut("nothing", ("x",)) == "nothing"
