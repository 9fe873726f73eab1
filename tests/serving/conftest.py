"""One model, one hypernetwork and one server for all tests that leave it as it was."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rune.types import ModelRef
from tests.serving.world import Running, configured, random_hypernet, running, trajectory

# As Qwen's: functions in the system message, calls and answers in marks of their own.
TOOL_TEMPLATE = """\
{%- if tools %}{{- '<|im_start|>system\\n# Tools\\n' }}
{%- for tool in tools %}{{- tool | tojson + '\\n' }}{% endfor %}
{{- '<tool_call>\\n{\\"name\\": NAME, \\"arguments\\": OBJECT}\\n</tool_call><|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
{{- '<|im_start|>' + ('user' if message.role == 'tool' else message.role) + '\\n' }}
{%- if message.role == 'tool' %}{{- '<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- else %}{{- message.content }}{% endif %}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>\\n{\\"name\\": \\"' + call.function.name + '\\", \\"arguments\\": ' }}
{{- call.function.arguments | tojson + '}\\n</tool_call>' }}
{%- endfor %}{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""


@pytest.fixture(scope="session")
def tool_model(tiny_model: ModelRef, tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    """The tiny model, with a chat template that takes functions."""
    folder = tmp_path_factory.mktemp("tool-model")
    shutil.copytree(tiny_model.path, folder, dirs_exist_ok=True)
    (folder / "chat_template.jinja").write_text(TOOL_TEMPLATE, encoding="utf-8")
    return replace(tiny_model, path=str(folder))


@pytest.fixture(scope="session")
def hypernet(tiny_model: ModelRef, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_hypernet(tmp_path_factory.mktemp("hypernet"), tiny_model)


@pytest.fixture(scope="module")  # not longer: tests of updates install changed functions of the library in this process
def served(tiny_model: ModelRef, hypernet: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server without keys and two adapters: "sums" in shop/sums, and one of the project shop."""
    with running(configured(tiny_model, tmp_path_factory.mktemp("served"), hypernet)) as served:
        for number, place in ((1, "project=shop&domain=sums&alias=sums"), (2, "project=shop&alias=shop-wide")):
            answer = served.http.post(f"/v1/trajectories?{place}", content=trajectory(number))
            assert answer.status_code == 201, answer.text
        yield served
