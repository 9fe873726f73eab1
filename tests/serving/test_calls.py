"""Function calls: what the model is shown, and what is read from its text, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import openai
import pytest

from rune.serving import calls
from rune.serving.settings import Engine
from rune.types import ModelRef
from tests.serving.world import PATIENCE, Running, configured, running

LS = '<tool_call>\n{"name": "bash", "arguments": {"command": "ls"}}\n</tool_call>'
PWD = '<tool_call>{"name": "bash", "arguments": {"command": "pwd"}}</tool_call>'
TOOL = {"type": "function", "function": {"name": "bash", "parameters": {"type": "object"}}}
# A piece of what the model is shown → what it says. The first piece that is found answers.
ANSWERS: dict[str, list[str]] = {
    "<tool_response>\nno such file\n</tool_response><|im_end|>": ["I see."],
    "look twice": [f"First this.\n{LS}\n{PWD}"],
    "look half": ['<tool_call>{"name": "bash", "arguments": {"c": "\\ud800"}}</tool_call>'],
    "look badly": ["<tool_call>\n{'name': 'bash'}\n</tool_call>"],
    "look": [f"I look.\n{LS}"],
}


@pytest.fixture(scope="module")
def scripted(tool_model: ModelRef, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    config = configured(tool_model, tmp_path_factory.mktemp("calls"), None)
    settings = {"answers": ANSWERS, "default": ["nothing"]}
    with running(replace(config, engine=Engine(name="scripted", settings=settings))) as served:
        yield served


@pytest.fixture(scope="module")
def client(scripted: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{scripted.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
        yield client


def ask(client: openai.OpenAI, text: str, **more: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="tiny", messages=messages, **{"tools": [TOOL], **more})  # type: ignore[call-overload]


def test_a_call_is_told_as_a_call(client: openai.OpenAI) -> None:
    choice = ask(client, "look").choices[0]
    assert choice.message.content == "I look." and choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.type == "function" and call.function.name == "bash" and call.id.startswith("call_")
    assert json.loads(call.function.arguments) == {"command": "ls"}


def test_two_calls_have_two_ids_and_one_where_only_one_may_be(client: openai.OpenAI) -> None:
    both = ask(client, "look twice").choices[0].message.tool_calls
    assert [json.loads(call.function.arguments)["command"] for call in both] == ["ls", "pwd"]
    assert both[0].id != both[1].id
    one = ask(client, "look twice", parallel_tool_calls=False).choices[0]
    assert [json.loads(call.function.arguments)["command"] for call in one.message.tool_calls] == ["ls"]
    assert one.finish_reason == "tool_calls"


def test_a_streamed_call_comes_after_the_text_and_never_shows_as_text(client: openai.OpenAI) -> None:
    chunks = list(ask(client, "look twice", stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == "First this.\n"
    asking = [number for number, chunk in enumerate(chunks) if chunk.choices[0].delta.tool_calls]
    assert len(asking) == 1 and asking[0] > max(n for n, c in enumerate(chunks) if c.choices[0].delta.content)
    told = chunks[asking[0]].choices[0].delta.tool_calls
    assert [call.index for call in told] == [0, 1]
    assert [json.loads(call.function.arguments)["command"] for call in told] == ["ls", "pwd"]
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["tool_calls"]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_a_broken_call_is_text(client: openai.OpenAI, stream: bool) -> None:
    found = ask(client, "look badly", stream=stream)
    if stream:
        chunks = list(found)
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == ANSWERS["look badly"][0]
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        assert found.choices[0].message.content == ANSWERS["look badly"][0]
        assert found.choices[0].message.tool_calls is None and found.choices[0].finish_reason == "stop"


def test_half_a_character_in_a_call_is_no_fault_of_the_server(client: openai.OpenAI) -> None:
    message = ask(client, "look half").choices[0].message
    assert message.content == ANSWERS["look half"][0] and message.tool_calls is None


def test_the_answer_of_a_function_goes_back_to_the_model(client: openai.OpenAI) -> None:
    first = ask(client, "look").choices[0].message
    said = first.model_dump()  # as agents send it: with all that is empty in it
    answered = {"role": "tool", "tool_call_id": said["tool_calls"][0]["id"], "content": "no such file"}
    messages = [{"role": "user", "content": "look"}, said, answered]
    found = client.chat.completions.create(model="tiny", messages=messages, tools=[TOOL])  # type: ignore[call-overload,list-item]
    assert found.choices[0].message.content == "I see."


@pytest.mark.parametrize("more", [{"tools": openai.omit}, {"tools": []}, {"tool_choice": "none"}])
def test_where_no_function_may_be_called_nothing_is_read_as_a_call(client: openai.OpenAI, more: Any) -> None:
    message = ask(client, "look", **more).choices[0].message
    assert message.tool_calls is None and message.content == ANSWERS["look"][0]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "bash"}}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "bash", "strict": True}}]}, "tools"),
    ],
)
def test_what_nothing_could_enforce_is_refused_by_name(client: openai.OpenAI, more: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "look", **more)
    assert caught.value.param == param and caught.value.code == "unsupported_parameter"


CALLED = {"id": "c", "type": "function", "function": {"name": "bash", "arguments": "{}"}}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "x", "tool_calls": [CALLED]},
        {"role": "user", "content": "x", "tool_call_id": "c"},
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "tool_calls": [{**CALLED, "function": {"name": "bash", "arguments": "[1]"}}]},
        {"role": "assistant", "tool_calls": [{**CALLED, "function": {"name": "bash", "arguments": "{"}}]},
        {"role": "assistant", "tool_calls": [{**CALLED, "function": {"name": "bash", "arguments": "[" * 9000}}]},
        {
            "role": "assistant",
            "tool_calls": [{**CALLED, "function": {"name": "bash", "arguments": '{"c": "\\ud800"}'}}],
        },
        {"role": "assistant", "tool_calls": [{**CALLED, "function": {"name": "bash", "arguments": '{"c": NaN}'}}]},
        {"role": "assistant", "content": "x", "function_call": {"name": "bash", "arguments": "{}"}},
    ],
)
def test_a_message_that_does_not_fit_its_role_is_a_bad_request(scripted: Running, message: Any) -> None:
    body = {"model": "tiny", "messages": [message], "tools": [TOOL]}
    answer = scripted.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400 and "\n" not in answer.json()["error"]["message"], answer.text


def test_arguments_nested_as_deep_as_can_be_read_are_no_fault_of_the_server(scripted: Running) -> None:
    """What is parsed near the bottom of the stack may be too deep for the template, which stands lower on it."""
    found = set()
    for depth in range(950, 1001):
        call = {**CALLED, "function": {"name": "bash", "arguments": '{"a":' + "[" * depth + "]" * depth + "}"}}
        body = {"model": "tiny", "messages": [{"role": "assistant", "tool_calls": [call]}], "tools": [TOOL]}
        found.add(scripted.http.post("/v1/chat/completions", json=body).status_code)
    assert found <= {200, 400} and 400 in found


def test_a_model_whose_template_shows_no_tools_refuses_them(served: Running) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "look"}], "max_tokens": 2}
    answer = served.http.post("/v1/chat/completions", json={**body, "tools": [TOOL]})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "tools"
    assert served.http.post("/v1/chat/completions", json={**body, "tools": []}).status_code == 200
    before = [*body["messages"], {"role": "assistant", "tool_calls": [CALLED]}]  # type: ignore[misc]
    answer = served.http.post("/v1/chat/completions", json={**body, "messages": before})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "messages"


@pytest.mark.parametrize(
    ("text", "rest", "found"),
    [
        ("no call", "no call", []),
        (LS, "", [("bash", {"command": "ls"})]),
        (f"a\n{LS}\nb", "a\n\nb", [("bash", {"command": "ls"})]),
        (LS.removesuffix("</tool_call>"), "", [("bash", {"command": "ls"})]),  # cut off by a stop string
        ('<tool_call>{"name": "f"}</tool_call>', "", [("f", {})]),
        ('<tool_call>{"name": "f", "arguments": {"c": "a\nb"}}</tool_call>', "", [("f", {"c": "a\nb"})]),
        ('<tool_call>{"name": "f", "arguments": {"c": "ü"}}</tool_call>', "", [("f", {"c": "ü"})]),
        (f'{LS}<tool_call>{{"name": "f", "arg', None, []),  # one is torn: all of it is text
        ('<tool_call>{"name": 3}</tool_call>', None, []),
        ('<tool_call>{"name": "f", "arguments": "{}"}</tool_call>', None, []),
        ('<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>', None, []),
        ("<tool_call>" + "[" * 100_000, None, []),
        ("<tool_call>" + "9" * 100_000, None, []),
        ("<tool_call></tool_call>", None, []),
        ('<tool_call>{"name": "f", "arguments": {"x": 1e999}}</tool_call>', None, []),  # infinity, to Python
        ('<tool_call>{"name": "f", "arguments": {"c": "\\ud800"}}</tool_call>', None, []),  # half a character
        ('<tool_call>{"name": "\\ud800"}</tool_call>', None, []),
        ('<tool_call>{"name": ""}</tool_call>', None, []),  # a client could not send it back
        ('<tool_call>{"name": "f"} so</tool_call>', None, []),
        ('<tool_call>{"name": "f"}</tool_c', "", [("f", {})]),
        (
            '<tool_call>{"name": "f", "arguments": {"c": "</tool_call>"}}</tool_call>',
            "",
            [("f", {"c": "</tool_call>"})],
        ),
        ('<tool_call>{"name": "f", "arguments": {"c": "<tool_call>"}}</tool_call>', "", [("f", {"c": "<tool_call>"})]),
    ],
)
def test_an_answer_is_taken_apart_the_same_whole_and_in_pieces(text: str, rest: str | None, found: list[Any]) -> None:
    said = calls.read(text)
    assert said.text == (text if rest is None else rest)
    assert [(call.name, json.loads(call.arguments)) for call in said.calls] == found
    for size in (1, 3, 7, len(text)):
        reader = calls.CallReader()
        shown = "".join(reader.push(text[i : i + size]) for i in range(0, len(text), size))
        ended = reader.end()
        assert ended.calls == said.calls and "<tool_call" not in shown
        assert (shown + ended.text).split() == said.text.split()


def test_what_only_looks_like_the_beginning_of_a_call_is_shown_in_the_end() -> None:
    reader = calls.CallReader()
    assert reader.push("if a <") == "if a "
    assert reader.push("tool") == "" and reader.push(" b") == "<tool b"
    assert reader.push("x <tool_cal") == "x " and reader.end() == ("<tool_cal", ())
