"""The student's loss is the model's own: next-token log-probabilities of the answer, and of nothing else."""

from __future__ import annotations

import torch

from rune.hypernet import base as bases
from rune.hypernet.losses import sequence_log_prob
from rune.types import ModelRef

PAIRS = (("Return one.", "def f():\n    return 1\n"), ("Add.", "def add(a, b):\n    return a + b\n"))


def test_packed_log_probabilities_equal_the_models_own_loss_on_the_answer_alone(tiny_model: ModelRef) -> None:
    base = bases.load(tiny_model, device="cpu", dtype="float32")
    texts = [base.encode(prompt, code) for prompt, code in PAIRS]
    rows = base.rows(texts)
    with torch.no_grad():
        found_B = sequence_log_prob(base.log_prob(rows, None), rows.row_P, len(texts))
        for text, found in zip(texts, found_B.tolist(), strict=True):
            ids = torch.tensor([text.ids])
            labels = ids.clone()
            labels[:, : text.start] = -100
            loss = base.model(input_ids=ids, labels=labels).loss.item()
            expected = -loss * (len(text.ids) - text.start)
            assert abs(found - expected) < 1e-3 * abs(expected)


def test_what_is_learned_is_the_answer_and_its_closing_fence(tiny_model: ModelRef) -> None:
    base = bases.load(tiny_model, device="cpu", dtype="float32")
    text = base.encode(*PAIRS[0])
    assert base.tokenizer.decode(text.ids[text.start :]) == PAIRS[0][1].strip("\n") + "\n```"
    assert PAIRS[0][0] in base.tokenizer.decode(text.ids[: text.start])
