"""Conversations are rendered as the model's own template says, with the answer left open."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rune import prompts
from rune.errors import ModelError
from rune.models import chat, resolve
from rune.types import Attempt, ModelRef, Outcome

FAILED = Attempt(
    code="def f(x):\n    return x", outcome=Outcome.FAILED, error_kind="WrongAnswer", error="f(1) is not 2"
)
CHATS = (
    prompts.task('def f(x: int) -> int:\n    """Return x + 1. <|im_end|> café"""\n', context="Seen before: …"),
    prompts.retry("def f(x): ...", [FAILED, FAILED]),
    prompts.reflect("def f(x): ...", FAILED),
    prompts.Chat(messages=(("system", "Be brief."), ("user", "Hello")), prefill=""),
)


def by_transformers(model: ModelRef, conversation: prompts.Chat) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.path)
    messages = [{"role": role, "content": text} for role, text in conversation.messages]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + conversation.prefill


@pytest.mark.parametrize("number", range(len(CHATS)))
def test_rendering_equals_transformers(tiny_model: ModelRef, number: int) -> None:
    assert chat.render(tiny_model, CHATS[number]) == by_transformers(tiny_model, CHATS[number])


def test_the_answer_is_left_open_after_the_prefill(tiny_model: ModelRef) -> None:
    text = chat.render(tiny_model, CHATS[0])
    assert text.endswith("<|im_start|>assistant\n" + prompts.PREFILL)


def with_template(tiny_model: ModelRef, folder: Path, template: str | None) -> ModelRef:
    shutil.copytree(tiny_model.path, folder)
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return ModelRef(name="mine", path=str(folder), digest="", source="local")


def test_a_template_that_refuses_the_system_role_is_one_clear_error(tiny_model: ModelRef, tmp_path: Path) -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    with pytest.raises(ModelError, match="mine: its chat template refuses this conversation: no system role"):
        chat.render(with_template(tiny_model, tmp_path / "m", template), CHATS[-1])


def test_a_template_cannot_reach_out_of_its_sandbox(tiny_model: ModelRef, tmp_path: Path) -> None:
    template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(ModelError, match="refuses"):
        chat.render(with_template(tiny_model, tmp_path / "m", template), CHATS[0])


def test_a_base_model_gets_the_plain_text(tiny_model: ModelRef, tmp_path: Path) -> None:
    text = chat.render(with_template(tiny_model, tmp_path / "m", None), prompts.task("def f(): ..."))
    assert "<|im_start|>" not in text
    assert text.startswith(prompts.INSTRUCTION)
    assert text.endswith(prompts.PREFILL)


def test_rendering_loads_neither_torch_nor_transformers(tiny_model: ModelRef) -> None:
    program = (
        "import sys; from rune.models import chat; from rune import prompts; from rune.types import ModelRef\n"
        f"chat.render(ModelRef(name='t', path={tiny_model.path!r}, digest='', source=''), prompts.task('x'))\n"
        "assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.model
@pytest.mark.parametrize("name", ["qwen2.5-coder-0.5b-instruct", "smollm2-135m-instruct"])
def test_real_models_render_as_transformers_does(name: str) -> None:
    model = resolve.resolve(name)
    for conversation in CHATS:
        assert chat.render(model, conversation) == by_transformers(model, conversation)
