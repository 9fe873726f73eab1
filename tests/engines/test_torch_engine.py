"""The decoding loop: equal to generate(), independent of its batch, and calm when something breaks."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from rune.adapters import peft
from rune.adapters.folders import Folders
from rune.engines import torch as engines
from rune.engines.local.batch import BatchPlan, Span, spans
from rune.engines.local.kv_cache import Cache
from rune.engines.local.torch_engine import TorchEngine
from rune.errors import AdapterError, EngineError
from rune.models import identity
from rune.types import Completion, Request, Sampling
from tests.engines.engine_helpers import PROMPTS, World, random_adapter, torch_engine

GREEDY = Sampling(temperature=0.0, max_new_tokens=24)
DRAWN = Sampling(temperature=1.0, max_new_tokens=20)


def answers(engine: TorchEngine, requests: list[Request]) -> dict[tuple[str, int], Completion]:
    return {(completion.key, completion.draw): completion for completion in engine.complete(requests)}


def many(world: World, sampling: Sampling) -> list[Request]:
    wearers = [None, *world.adapters]
    return [
        Request(key=f"{i}/{j}/{k}", prompt=prompt * (1 + k), sampling=sampling, seed=31 * i + k, n=3, adapter=wearer)
        for i, prompt in enumerate(PROMPTS)
        for j, wearer in enumerate(wearers)
        for k in range(2)
    ]


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_greedy_text_equals_generate(world: World, family: str, tmp_path: Path) -> None:
    model = world.model
    if family == "llama":
        model = llama(world, tmp_path)
    engine = torch_engine(model)
    reference = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32)
    found = answers(engine, [Request(key=p, prompt=p, sampling=GREEDY, seed=0) for p in PROMPTS])
    for prompt in PROMPTS:
        ids = engine.tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        out = reference.generate(**ids, do_sample=False, max_new_tokens=24, pad_token_id=0)
        expected = engine.tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert found[prompt, 0].text == expected


def test_greedy_text_under_an_adapter_is_the_adapted_models_own_from_the_prompts_first_token_on(world: World) -> None:
    """Rows of the base and of two adapters share their prompts in one batch; each is read under what its row wears."""
    engine, wearers = torch_engine(world), [None, *world.adapters]
    reference = AutoModelForCausalLM.from_pretrained(world.model.path, dtype=torch.float32)
    hooks = peft.LoraHooks(reference)
    short = replace(GREEDY, max_new_tokens=8)
    found = answers(
        engine,
        [
            Request(key=f"{i} {prompt}", prompt=prompt, sampling=short, seed=0, adapter=wearer)
            for prompt in PROMPTS
            for i, wearer in enumerate(wearers)
        ],
    )
    texts = set()
    for i, wearer in enumerate(wearers):
        stacked = {} if wearer is None else peft.stack([peft.read_peft(world.folder(wearer))])
        for prompt in PROMPTS:
            ids = engine.tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
            with torch.no_grad(), hooks.using(stacked):
                out = reference.generate(**ids, do_sample=False, max_new_tokens=8, pad_token_id=0)
            expected = engine.tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
            assert found[f"{i} {prompt}", 0].text == expected
            texts.add(expected)
    assert len(texts) == len(wearers) * len(PROMPTS)


def llama(world: World, folder: Path):  # type: ignore[no-untyped-def]
    import shutil

    from transformers import LlamaConfig, LlamaForCausalLM

    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(world.model.path) / name, folder / name)
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=600, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=8, initializer_range=0.08, tie_word_embeddings=False, attention_bias=False,
        eos_token_id=2, max_position_embeddings=512,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return replace(world.model, name="tiny-llama", path=str(folder), digest="llama")


def test_text_does_not_depend_on_the_batch(world: World) -> None:
    """One row at a time, a few with constant coming and going, and all at once."""
    requests = many(world, DRAWN)
    expected = answers(torch_engine(world, max_rows=64), requests)
    for max_rows, burst in ((1, 1), (5, 3), (7, 1)):
        assert answers(torch_engine(world, max_rows=max_rows, burst=burst), requests) == expected


def test_a_long_prompt_makes_no_other_row_look_far_back_and_changes_no_text(world: World) -> None:
    """In any order of rows, worn and bare; each step's attention is cut where lengths jump."""
    lengths = [1, 2, 40, 3, 60, 2, 1, 50]
    requests = [
        Request(key=str(i), prompt=PROMPTS[2] * n, sampling=DRAWN, seed=i, adapter=[None, *world.adapters][i % 3])
        for i, n in enumerate(lengths)
    ]
    alone = {key: c for r in requests for key, c in answers(torch_engine(world), [r]).items()}
    for order in (requests, requests[::-1], sorted(requests, key=lambda r: len(r.prompt))):
        engine = torch_engine(world)
        longest = max(len(engine.tokenizer(r.prompt)["input_ids"]) for r in requests)
        looked: list[int] = []  # positions, of all rows of one step
        forward = engine.decoder.device._forward

        def watched(layout: BatchPlan, looks: tuple[Span, ...]) -> None:
            assert [look.first for look in looks] == [0, *(look.last for look in looks[:-1])]
            assert looks[-1].last == len(layout.rows)
            looked.append(sum((last - first) * window for first, last, window in looks))  # noqa: B023
            forward(layout, looks)  # noqa: B023

        engine.decoder.device._forward = watched  # type: ignore[method-assign]
        assert answers(engine, order) == alone
        assert max(looked) < 0.75 * len(requests) * longest


def test_spans_are_the_cheapest_cut() -> None:
    assert spans([]) == []
    assert spans([64] * 40) == [Span(0, 40, 64)]
    assert spans([256] * 40 + [1536] * 10) == [Span(0, 40, 256), Span(40, 50, 1536)]
    assert spans([256, 1536, 256], call_cost=10) == [Span(0, 1, 256), Span(1, 2, 1536), Span(2, 3, 256)]
    assert spans([256, 1536, 256], call_cost=10**6) == [Span(0, 3, 1536)]
    rng = random.Random(0)
    for _ in range(50):
        lengths = [64 * rng.randint(1, 9) for _ in range(7)]

        def cost(cut: tuple[int, ...], lengths: list[int] = lengths) -> int:
            ends = [0, *cut, 7]
            return sum((b - a) * max(lengths[a:b]) + 200 for a, b in itertools.pairwise(ends))

        every = [cut for size in range(7) for cut in itertools.combinations(range(1, 7), size)]
        found = spans(lengths, call_cost=200)
        assert cost(tuple(span.last for span in found[:-1])) == min(map(cost, every))
        assert all(max(lengths[first:last]) == window for first, last, window in found)


def test_draws_of_one_prompt_differ_and_prompts_are_read_once(world: World) -> None:
    engine = torch_engine(world)
    requests = [Request(key="x", prompt=PROMPTS[0], sampling=DRAWN, seed=0, n=16)]
    assert len({completion.text for completion in engine.complete(requests)}) > 8
    assert engine.stats.prompt_tokens == len(engine.tokenizer(PROMPTS[0])["input_ids"])


def test_a_call_on_a_cpu_gives_its_memory_back_and_a_second_one_draws_the_same(world: World) -> None:
    """Also when the caller goes away in the middle: training that runs between two calls needs the room."""
    engine = torch_engine(world)
    requests = many(world, DRAWN)
    first = answers(engine, requests)
    assert not engine.decoder.device.ready
    unfinished = engine.complete(requests)
    next(unfinished)
    assert engine.decoder.device.ready
    unfinished.close()  # type: ignore[attr-defined]
    assert not engine.decoder.device.ready
    assert answers(engine, requests[:4]) == {k: c for k, c in first.items() if k[0] in {r.key for r in requests[:4]}}


def test_a_position_takes_memory_when_it_is_first_written(world: World) -> None:
    """Short rows beside a long one: 4,096 positions are planned for each of 64 rows, 64 of them used."""
    network, process = torch_engine(world).network, psutil.Process()
    before = process.memory_info().rss
    cache = Cache(network, 64, 4096)
    for tensor_LRVSD in (cache.keys_LRVSD, cache.values_LRVSD):
        assert not tensor_LRVSD.any()
        tensor_LRVSD[:, :, :, :64] = 1.0
    assert process.memory_info().rss - before < Cache.row_bytes(network, 64 * 4096) / 8


def test_samplings_of_all_kinds_share_a_batch(world: World) -> None:
    kinds = [GREEDY, DRAWN, replace(DRAWN, top_k=5), replace(DRAWN, top_p=0.5), replace(DRAWN, top_k=9, top_p=0.7)]
    requests = [Request(key=str(i), prompt=PROMPTS[0], sampling=kind, seed=3, n=2) for i, kind in enumerate(kinds)]
    together = answers(torch_engine(world), requests)
    for request in requests:
        for key, completion in answers(torch_engine(world), [request]).items():
            assert together[key] == completion


def test_tensors_and_folders_are_the_same_adapter(world: World) -> None:
    ref = world.adapters[0]
    engine = torch_engine(world)
    in_memory = engine.put_adapter("from-the-hypernetwork", peft.read_peft(world.folder(ref)))
    assert in_memory.delta_w_norm == pytest.approx(ref.delta_w_norm)
    for wearer in (ref, in_memory):
        requests = [Request(key="x", prompt=PROMPTS[1], sampling=DRAWN, seed=4, n=2, adapter=wearer)]
        texts = [completion.text for completion in sorted(engine.complete(requests), key=lambda c: c.draw)]
        assert texts == [
            completion.text
            for completion in sorted(torch_engine(world).complete(
                [replace(requests[0], adapter=ref)]), key=lambda c: c.draw)
        ]  # fmt: skip
    engine.drop_adapter("from-the-hypernetwork")
    with pytest.raises(AdapterError, match="unknown adapter"):
        list(engine.complete(requests))


def test_a_larger_rank_or_new_modules_leave_earlier_adapters_as_they_were(world: World) -> None:
    engine = torch_engine(world)
    model = engine.network.model
    small = random_adapter(model, seed=9, rank=2)
    attention = {name: pair for name, pair in small.pairs.items() if name.endswith(("q_proj", "v_proj"))}
    ref = engine.put_adapter("small", replace(small, pairs=attention))
    request = Request(key="x", prompt=PROMPTS[2], sampling=GREEDY, seed=0, adapter=ref)
    (before,) = engine.complete([request])
    for rank in (4, 16):
        engine.put_adapter(f"rank-{rank}", random_adapter(model, seed=rank, rank=rank))
        (after,) = engine.complete([request])
        assert after.text == before.text


def test_hundreds_of_adapters_are_resident_at_once(world: World) -> None:
    engine = torch_engine(world)
    model = engine.network.model
    refs = [engine.put_adapter(str(i), random_adapter(model, seed=i, rank=2)) for i in range(200)]
    requests = [
        Request(key=str(i), prompt=PROMPTS[i % 3], sampling=GREEDY, seed=0, adapter=ref) for i, ref in enumerate(refs)
    ]
    together = answers(engine, requests)
    for i in (0, 77, 199):
        assert answers(engine, [requests[i]])[str(i), 0] == together[str(i), 0]
    assert len({completion.text for completion in together.values()}) > 150


def test_adapters_from_folders_make_room_for_others(world: World) -> None:
    engine = torch_engine(world, max_adapters=1)
    for ref in (*world.adapters, world.adapters[0]):
        (one,) = engine.complete([Request(key="x", prompt=PROMPTS[0], sampling=GREEDY, seed=0, adapter=ref)])
        assert one.num_tokens > 0
        assert list(engine.pool.slots) == [ref.adapter_id]


def test_an_adapter_of_other_shapes_is_refused(world: World, tmp_path: Path) -> None:
    wide = llama(world, tmp_path)
    other = random_adapter(torch_engine(wide).network.model, seed=1)
    with pytest.raises(AdapterError, match="another base model"):
        torch_engine(world).put_adapter("wide", other)


def test_a_tensor_with_nan_is_refused_and_leaves_the_adapter_of_that_name_as_it_was(world: World) -> None:
    engine = torch_engine(world)
    good = random_adapter(engine.network.model, seed=3)
    ref = engine.put_adapter("x", good)
    request = Request(key="x", prompt=PROMPTS[2], sampling=GREEDY, seed=0, adapter=ref)
    (before,) = engine.complete([request])
    name = "model.layers.1.mlp.up_proj"
    for wrong in (float("nan"), float("inf")):
        spoiled = good.pairs[name].b.clone()
        spoiled[0, 0] = wrong
        bad = replace(good, pairs={**good.pairs, name: good.pairs[name]._replace(b=spoiled)})
        with pytest.raises(AdapterError, match="adapter x holds NaN or infinity"):
            engine.put_adapter("x", bad)
        (after,) = engine.complete([request])
        assert after.text == before.text


def test_logprobs_equal_the_models_own(world: World) -> None:
    engine = torch_engine(world, prefill_tokens=64)
    model = AutoModelForCausalLM.from_pretrained(world.model.path, dtype=torch.float32)
    hooks = peft.LoraHooks(model)
    wearers = [None, *world.adapters]
    completions = ["    return a + b\n", "task_id: str", "# so it is"]
    found = engine.logprobs(PROMPTS, completions, wearers)
    for prompt, completion, wearer, values in zip(PROMPTS, completions, wearers, found, strict=True):
        head = engine.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        tail = engine.tokenizer(completion, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([head + tail])
        stacked = {} if wearer is None else peft.stack([peft.read_peft(world.folder(wearer))])
        with torch.no_grad(), hooks.using(stacked):
            logprobs = model(ids).logits.log_softmax(-1)[0, len(head) - 1 : -1]
        expected = logprobs.gather(1, torch.tensor(tail)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(values), expected, atol=1e-4, rtol=1e-4)


def test_bfloat16_draws_from_nearly_the_same_distribution(world: World) -> None:
    """Rounded to eight bits, under adapters and without: log-probabilities stay near float32's, and rows are drawn."""
    half = engines.build(
        engines.Config(), model=world.model, device="cpu", dtype="bfloat16", adapters=Folders(world.root)
    )
    assert half.network.dtype == half.pool.dtype == torch.bfloat16
    wearers, completions = [None, *world.adapters], ["    return a + b\n", "task_id: str", "# so it is"]
    exact = torch_engine(world).logprobs(PROMPTS, completions, wearers)
    for expected, rounded in zip(exact, half.logprobs(PROMPTS, completions, wearers), strict=True):
        torch.testing.assert_close(torch.tensor(rounded), torch.tensor(expected), atol=0.25, rtol=0.05)
    found = answers(half, many(world, DRAWN))
    assert len(found) == 54 and all(completion.num_tokens for completion in found.values())


def test_a_prompt_too_long_for_the_model_is_refused_before_anything_is_drawn(world: World) -> None:
    long = Request(key="long", prompt="word " * 5000, sampling=DRAWN, seed=0)
    with pytest.raises(EngineError, match="room for 4096"):
        list(torch_engine(world).complete([Request(key="x", prompt="a", sampling=DRAWN, seed=0), long]))


@pytest.mark.check
def test_out_of_memory_halves_the_batch_and_loses_nothing(world: World) -> None:
    """A real one, in a process whose address space ends: the same texts and numbers come out, in smaller batches."""
    script = textwrap.dedent(
        """
        import resource, sys, json
        from rune.adapters.folders import Folders
        from rune.engines.local import torch_engine as _torch
        from rune.engines import torch as engines
        from rune.types import ModelRef, Request, Sampling

        path, limited = sys.argv[1], sys.argv[2] == "limited"
        model = ModelRef(name="tiny", path=path, digest="", source="local")
        engine = engines.build(engines.Config(max_rows=512), model=model, device="cpu", dtype="float32")
        sampling = Sampling(temperature=1.0, max_new_tokens=1500)
        list(engine.complete([Request(key="x", prompt="def", sampling=sampling, seed=0)]))
        engine.decoder.release()
        if limited:
            pages = int(open("/proc/self/statm").read().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + 200 * 2**20,) * 2)
        short = Sampling(temperature=1.0, max_new_tokens=6)
        requests = [Request(key=str(i), prompt="def f", sampling=short, seed=i) for i in range(512)]
        requests.append(Request(key="long", prompt="def f" * 700, sampling=short, seed=1))
        texts = {c.key: c.text for c in engine.complete(requests)}
        scorer = _torch.TorchEngine(engines.Config(prefill_tokens=2**20), model, engine.network.model, Folders())
        passes, scored = [], scorer._logprobs
        scorer._logprobs = lambda chunk: passes.append(len(chunk)) or scored(chunk)
        found = scorer.logprobs(["def f" * 100] * 256, [f"return {i}" for i in range(256)], [None] * 256)
        sums = [round(sum(values), 3) for values in found]
        print(json.dumps([engine.stats.halvings, texts, passes, sums], sort_keys=True))
        """
    )
    outputs = []
    for limit in ("free", "limited"):
        run = subprocess.run(
            [sys.executable, "-c", script, world.model.path, limit], capture_output=True, text=True, timeout=120
        )
        assert run.returncode == 0, run.stderr[-2000:]
        outputs.append(__import__("json").loads(run.stdout.strip().splitlines()[-1]))
    (free_halvings, free_texts, free_passes, free_sums), (halvings, texts, passes, sums) = outputs
    assert free_halvings == 0 and halvings > 0
    assert texts == free_texts and len(texts) == 513
    assert free_passes == [256] and passes[:2] == [256, 128]
    assert sums == pytest.approx(free_sums, abs=2e-3) and len(sums) == 256


def test_a_four_bit_base_carries_the_same_adapters(world: World) -> None:
    """NF4 changes the base a little and the adapters not at all: each still changes the text, batch or no batch."""
    pytest.importorskip("bitsandbytes")
    four_bit = identity.carrying(identity.quantised(world.model, "nf4"), world.model)
    engine = torch_engine(replace(world, model=four_bit))
    assert engine.network.layers[0].qkv.weight is None
    reference = engine.network.model
    requests = many(world, GREEDY)
    found = answers(engine, requests)
    assert answers(engine, requests[5:6]) == {k: c for k, c in found.items() if k[0] == requests[5].key}
    ids = engine.tokenizer(PROMPTS[0], return_tensors="pt", add_special_tokens=False)
    out = reference.generate(**ids, do_sample=False, max_new_tokens=24, pad_token_id=0)
    expected = engine.tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert found["0/0/0", 0].text == expected
    assert found["0/1/0", 0].text != expected
