"""What the `openai` client expects of a server, as recorded from its own types: it must not notice the difference."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from rune.models import chat
from rune.prompts import Chat
from rune.types import Completion, Request, Sampling
from tests.serving.world import PATIENCE, Running

PROMPT = "def add(a, b):\n"
MESSAGES = [{"role": "user", "content": "add two numbers"}]


@pytest.fixture(scope="module")
def client(served: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
        yield client


def drawn(
    served: Running, prompt: str, *, adapter: str = "", seed: int = 0, n: int = 1, **how: object
) -> list[Completion]:
    """What the batch engine says to the same."""
    ref = None
    if adapter:
        memory = served.service.memory
        ref = memory.ref(memory.registry.resolve(f"shop/{adapter}"))
    sampling = Sampling(**{"temperature": 0.0, "max_new_tokens": 16, **how})  # type: ignore[arg-type]
    request = Request(key="", prompt=prompt, sampling=sampling, seed=seed, n=n, adapter=ref, logprobs=3)
    return sorted(served.service.engine.complete([request]), key=lambda completion: completion.draw)


def rendered(served: Running) -> str:
    return chat.render(served.service.model, Chat(messages=(("user", "add two numbers"),), prefill=""))


def test_a_completion_is_the_engines_text(client: openai.OpenAI, served: Running) -> None:
    found = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=16, temperature=0)
    (expected,) = drawn(served, PROMPT)
    assert found.object == "text_completion" and found.id.startswith("cmpl-") and found.model == "tiny"
    assert [choice.text for choice in found.choices] == [expected.text]
    assert found.choices[0].finish_reason == expected.finish_reason and found.choices[0].logprobs is None


def test_usage_counts_the_prompt_once_and_every_draw(client: openai.OpenAI, served: Running) -> None:
    found = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=5, n=3, seed=1)
    assert found.usage is not None
    draws = drawn(served, PROMPT, n=3, seed=1, temperature=1.0, max_new_tokens=5)
    assert found.usage.completion_tokens == sum(completion.num_tokens for completion in draws)
    tokenizer = served.service.engine.tokenizer  # type: ignore[attr-defined]
    assert found.usage.prompt_tokens == len(tokenizer(PROMPT)["input_ids"])
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens


def test_max_tokens_ends_an_answer_by_length(client: openai.OpenAI) -> None:
    found = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=3, temperature=0)
    assert found.choices[0].finish_reason == "length" and found.usage and found.usage.completion_tokens == 3


def test_a_chat_answers_the_models_own_template(client: openai.OpenAI, served: Running) -> None:
    found = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=16, temperature=0)
    (expected,) = drawn(served, rendered(served))
    assert found.object == "chat.completion" and found.id.startswith("chatcmpl-")
    message = found.choices[0].message
    assert (message.role, message.content, message.refusal) == ("assistant", expected.text, None)


def test_max_completion_tokens_means_the_same(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(model="tiny", messages=MESSAGES, max_completion_tokens=2, temperature=0)
    assert found.usage is not None and found.usage.completion_tokens == 2


def test_content_in_parts_is_their_text(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "add two"}, {"type": "text", "text": " numbers"}]
    one = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=8, temperature=0)
    two = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": parts}], max_tokens=8, temperature=0
    )
    assert one.choices[0].message.content == two.choices[0].message.content and one.usage == two.usage


def test_a_developer_message_is_a_system_message(client: openai.OpenAI) -> None:
    texts = [
        client.chat.completions.create(
            model="tiny", messages=[{"role": role, "content": "be brief"}, *MESSAGES], max_tokens=8, temperature=0
        )
        .choices[0]
        .message.content
        for role in ("system", "developer")
    ]
    assert texts[0] == texts[1]


def test_n_draws_have_indices_and_differ(client: openai.OpenAI, served: Running) -> None:
    found = client.completions.create(model="tiny", prompt=PROMPT, n=4, seed=7, max_tokens=16, temperature=1)
    expected = drawn(served, PROMPT, n=4, seed=7, temperature=1.0)
    assert [c.index for c in found.choices] == [0, 1, 2, 3]
    assert [c.text for c in found.choices] == [c.text for c in expected] and len({c.text for c in found.choices}) > 1


def test_several_prompts_have_the_choices_of_each_in_order(client: openai.OpenAI) -> None:
    prompts = [PROMPT, "class A:\n"]
    both = client.completions.create(model="tiny", prompt=prompts, n=2, seed=3, max_tokens=8)
    apart = [client.completions.create(model="tiny", prompt=p, n=2, seed=3, max_tokens=8) for p in prompts]
    assert [c.text for c in both.choices] == [c.text for one in apart for c in one.choices]
    assert [c.index for c in both.choices] == [0, 1, 2, 3]


def test_a_seed_repeats_and_another_does_not(client: openai.OpenAI) -> None:
    def text(seed: int | None) -> str:
        return client.completions.create(model="tiny", prompt=PROMPT, seed=seed, max_tokens=24).choices[0].text

    assert text(11) == text(11) != text(12)
    assert text(-(2**63)) == text(-(2**63)) != text(2**63 - 1)
    assert len({text(None) for _ in range(4)}) > 1


def test_stop_ends_before_the_string_as_text_and_as_list(client: openai.OpenAI, served: Running) -> None:
    (free,) = drawn(served, PROMPT, max_new_tokens=24)
    stop = free.text[len(free.text) // 2 :][:3]
    for given in (stop, [stop], ["not in there", stop]):
        found = client.completions.create(model="tiny", prompt=PROMPT, stop=given, max_tokens=24, temperature=0)
        assert found.choices[0].text == free.text[: free.text.index(stop)]
        assert found.choices[0].finish_reason == "stop"


def test_a_streamed_completion_adds_up_to_the_whole_one(client: openai.OpenAI, served: Running) -> None:
    (expected,) = drawn(served, PROMPT)
    chunks = list(client.completions.create(model="tiny", prompt=PROMPT, max_tokens=16, temperature=0, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected.text
    assert len(chunks) > 3 and len({chunk.id for chunk in chunks}) == 1
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == [expected.finish_reason]


def test_a_streamed_chat_begins_with_the_role_and_ends_with_the_reason(client: openai.OpenAI, served: Running) -> None:
    (expected,) = drawn(served, rendered(served))
    chunks = list(
        client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=16, temperature=0, stream=True)
    )
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].object == "chat.completion.chunk"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.text
    assert chunks[-1].choices[0].finish_reason == expected.finish_reason
    assert all(chunk.choices[0].finish_reason is None for chunk in chunks[:-1])


def test_streamed_draws_are_told_apart(client: openai.OpenAI) -> None:
    ask = {"model": "tiny", "prompt": PROMPT, "n": 3, "seed": 5, "max_tokens": 12}
    whole = client.completions.create(**ask)  # type: ignore[call-overload]
    texts = ["", "", ""]
    for chunk in client.completions.create(**ask, stream=True):  # type: ignore[call-overload]
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]


def test_a_stop_string_never_shows_in_a_stream(client: openai.OpenAI, served: Running) -> None:
    (free,) = drawn(served, PROMPT, max_new_tokens=24)
    stop = free.text[len(free.text) // 2 :][:3]
    chunks = list(
        client.completions.create(model="tiny", prompt=PROMPT, stop=stop, max_tokens=24, temperature=0, stream=True)
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == free.text[: free.text.index(stop)]


def test_usage_comes_last_in_a_stream_that_asks_for_it(client: openai.OpenAI) -> None:
    ask = {"model": "tiny", "messages": MESSAGES, "max_tokens": 6, "temperature": 0}
    whole = client.chat.completions.create(**ask)  # type: ignore[call-overload]
    *chunks, last = client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})  # type: ignore[call-overload]
    assert last.choices == [] and last.usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks)


def test_log_probabilities_of_a_completion_line_up_with_its_text(client: openai.OpenAI, served: Running) -> None:
    found = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=12, temperature=0, logprobs=3)
    (expected,) = drawn(served, PROMPT, max_new_tokens=12)
    logs = found.choices[0].logprobs
    assert logs is not None and logs.tokens and logs.token_logprobs and logs.top_logprobs and logs.text_offset
    assert len(logs.tokens) == len(expected.logprobs) == len(logs.text_offset)
    assert logs.token_logprobs == pytest.approx([one.logprob for one in expected.logprobs], abs=1e-4)
    for token, value, top in zip(logs.tokens, logs.token_logprobs, logs.top_logprobs, strict=True):
        assert max(top.values()) == pytest.approx(value, abs=1e-4)  # greedy: the drawn one is the likeliest
        assert "\ufffd" in token or token in top
    assert logs.text_offset[0] == 0 and logs.text_offset == sorted(logs.text_offset)


def test_log_probabilities_of_a_chat_have_bytes_and_alternatives(client: openai.OpenAI) -> None:
    ask = {"model": "tiny", "messages": MESSAGES, "max_tokens": 10, "temperature": 0}
    found = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)  # type: ignore[call-overload]
    logs = found.choices[0].logprobs
    assert logs and logs.content and {len(one.top_logprobs) for one in logs.content} == {2}
    joined = bytes(byte for one in logs.content for byte in one.bytes or ())
    assert joined.decode(errors="replace") == found.choices[0].message.content
    plain = client.chat.completions.create(**ask, logprobs=True)  # type: ignore[call-overload]
    assert plain.choices[0].logprobs.content[0].top_logprobs == []


def test_streamed_log_probabilities_are_the_whole_ones(client: openai.OpenAI) -> None:
    ask = {"model": "tiny", "messages": MESSAGES, "max_tokens": 10, "temperature": 0, "logprobs": True}
    whole = client.chat.completions.create(**ask)  # type: ignore[call-overload]
    chunks = list(client.chat.completions.create(**ask, stream=True))  # type: ignore[call-overload]
    pieces = [one for c in chunks if c.choices[0].logprobs for one in c.choices[0].logprobs.content or ()]
    assert [one.token for one in pieces] == [one.token for one in whole.choices[0].logprobs.content]


@pytest.mark.parametrize("name", ["tiny:sums", "sums", "shop/sums", "tiny:shop/sums"])
def test_an_adapter_answers_by_its_alias(client: openai.OpenAI, served: Running, name: str) -> None:
    found = client.completions.create(model=name, prompt=PROMPT, max_tokens=16, temperature=0)
    (expected,), (base,) = drawn(served, PROMPT, adapter="sums"), drawn(served, PROMPT)
    assert found.choices[0].text == expected.text != base.text
    assert found.model.startswith("tiny:") and len(found.model) == 69


def test_an_adapter_answers_by_its_id_and_by_the_beginning_of_it(client: openai.OpenAI, served: Running) -> None:
    digest = served.service.memory.registry.resolve("shop/sums").id
    texts = {
        client.completions.create(model=name, prompt=PROMPT, max_tokens=16, temperature=0).choices[0].text
        for name in (digest, digest[:8], f"tiny:{digest}", f"tiny:{digest[:12]}", "sums")
    }
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("metadata", "adapter"),
    [
        ({"project": "shop", "domain": "sums"}, "sums"),
        ({"project": "shop", "domain": "sums", "task": "t"}, "sums"),  # nothing so special: the domain's
        ({"project": "shop", "domain": "dates"}, "shop-wide"),
        ({"project": "shop"}, "shop-wide"),
        ({"ticket": "4711"}, ""),
    ],
)
def test_metadata_lets_the_registry_choose(
    client: openai.OpenAI, served: Running, metadata: dict[str, str], adapter: str
) -> None:
    found = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=16, temperature=0, metadata=metadata
    )
    assert found.choices[0].message.content == drawn(served, rendered(served), adapter=adapter)[0].text


@pytest.mark.parametrize(
    "ask",
    [
        {"model": "nobody"},
        {"model": "tiny:nobody"},
        {"model": "tiny:"},
        {"model": "0" * 64},
        {"model": "tiny", "metadata": {"project": "elsewhere"}},
        {"model": "tiny", "metadata": {"project": "elsewhere", "domain": "sums"}},
    ],
)
def test_an_unknown_adapter_is_not_found_and_never_the_base(client: openai.OpenAI, ask: dict[str, object]) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(messages=MESSAGES, max_tokens=4, **ask)  # type: ignore[call-overload]
    assert caught.value.code in ("model_not_found", "adapter_not_found") and caught.value.type == "not_found_error"


def test_models_are_the_base_and_adapters_with_their_parent(client: openai.OpenAI) -> None:
    found = {model.id: model.model_dump() for model in client.models.list()}
    assert found["tiny"]["parent"] is None and found["tiny"]["object"] == "model"
    assert found["sums"]["parent"] == "tiny" and found["shop-wide"]["parent"] == "tiny"
    assert len(found["sums"]["root"]) == 64 and found["sums"]["created"] > 0
    assert client.models.retrieve("sums").id == "sums" and client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_a_prompt_too_long_is_a_bad_request_with_openais_code(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="word " * 600, max_tokens=4)
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "prompt"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=600)
    assert caught.value.code == "context_length_exceeded" and "room for 512 tokens" in str(caught.value)


def test_what_is_not_supported_says_so_by_name(client: openai.OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    for name, value in (("tools", [tool]), ("presence_penalty", 0.5), ("logit_bias", {"5": 1}),
                        ("response_format", {"type": "json_object"})):  # fmt: skip
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=4, **{name: value})  # type: ignore[call-overload]
        assert caught.value.param == name and caught.value.code == "unsupported_parameter"


def test_what_asks_for_nothing_is_taken(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=2, presence_penalty=0, frequency_penalty=0, user="me", store=False,
        parallel_tool_calls=True, tool_choice="none", response_format={"type": "text"},
    )  # fmt: skip
    assert found.choices


def test_without_max_tokens_the_answer_ends_by_the_servers_limit(client: openai.OpenAI, served: Running) -> None:
    found = client.completions.create(model="tiny", prompt=PROMPT, temperature=0)
    assert found.usage is not None
    assert found.usage.completion_tokens <= served.service.config.serve.max_tokens
