"""No word to a model changes unseen, nor what is taken from what it answers: every published number rests on both."""

from __future__ import annotations

import json

import pytest

from tests.floor import frozen_prompts


@pytest.mark.parametrize("part", ["said", "taken"])
def test_words_and_what_is_taken_are_the_frozen_ones(part: str) -> None:
    then = json.loads(frozen_prompts.FILE.read_text(encoding="utf-8"))[part]
    now = json.loads(json.dumps(getattr(frozen_prompts, part)()))
    assert now.keys() == then.keys()
    assert {name: now[name] for name in then if now[name] != then[name]} == {}
