"""A session goes in, an adapter comes out, and the next request wears it: registered, redacted, found again."""

from __future__ import annotations

import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rune.adapters import peft
from rune.adapters.folders import Folders
from rune.adapters.registry.registry import Registry
from rune.cli.main import main
from rune.corpus import reading
from rune.engines import torch as torch_engine
from rune.errors import ConfigError
from rune.serving.server import Service
from rune.types import ModelRef, Request, Sampling
from tests.corpus.samples import SAMPLES
from tests.serving.world import Running, configured, running, trajectory

ASK: dict[str, Any] = {"prompt": "def f(x):\n", "max_tokens": 12, "temperature": 0}
SECRET = "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789"


def text(served: Running, model: str, **changes: Any) -> str:
    answer = served.http.post("/v1/completions", json={"model": model, **ASK, **changes})
    assert answer.status_code == 200, answer.text
    found: str = answer.json()["choices"][0]["text"]
    return found


def learn(served: Running, data: bytes, query: str = "") -> dict[str, Any]:
    answer = served.http.post(f"/v1/trajectories?{query}", content=data)
    assert answer.status_code in (200, 201), answer.text
    found: dict[str, Any] = {**answer.json(), "status": answer.status_code}
    return found


def test_the_next_request_wears_what_rune_adapt_makes_of_the_same_file(
    served: Running, tiny_model: ModelRef, hypernet: Path, tmp_path: Path
) -> None:
    made = learn(served, trajectory(11), "project=shop&domain=new")
    (tmp_path / "t.jsonl").write_bytes(trajectory(11))
    command = ["adapt", "--trajectory", str(tmp_path / "t.jsonl"), "-o", str(tmp_path / "a")]
    assert main([*command, "--checkpoint", str(hypernet), "--model", tiny_model.path]) == 0
    engine = torch_engine.build(torch_engine.Config(), model=tiny_model, device="cpu", dtype="float32")
    ref = engine.put_adapter("a", peft.read_peft(tmp_path / "a"))
    sampling = Sampling(temperature=0, max_new_tokens=12)
    (expected,) = engine.complete([Request(key="", prompt=ASK["prompt"], sampling=sampling, seed=0, adapter=ref)])
    assert text(served, made["id"]) == expected.text != text(served, "tiny")
    assert text(served, "tiny", metadata={"project": "shop", "domain": "new"}) == expected.text
    assert made["resident"] is False and served.http.get(f"/v1/adapters/{made['id']}").json()["resident"] is True


def test_the_same_file_again_is_the_same_adapter_and_another_is_another(served: Running) -> None:
    first, again, other = (learn(served, trajectory(n), "project=twice") for n in (12, 12, 13))
    assert (first["status"], again["status"], other["status"]) == (201, 200, 201)
    assert first["id"] == again["id"] != other["id"]
    packed = learn(served, gzip.compress(trajectory(12)), "project=twice")
    assert packed["id"] == first["id"]


def test_all_trajectories_of_a_file_make_one_adapter(served: Running) -> None:
    made = learn(served, trajectory(14) + trajectory(15), "project=several")
    assert made["trajectories"] == ["t14", "t15"]
    assert served.http.get(f"/v1/adapters/{made['id']}").json()["trajectories"] == ["t14", "t15"]


def test_one_adapter_has_one_place_in_a_project(served: Running) -> None:
    learn(served, trajectory(16), "project=once&domain=a")
    answer = served.http.post("/v1/trajectories?project=once&domain=b", content=trajectory(16))
    assert answer.status_code == 409 and answer.json()["error"]["code"] == "adapter_exists"
    assert learn(served, trajectory(16), "project=elsewhere&domain=b")["status"] == 201


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_every_format_that_is_imported_is_taken(served: Running, name: str) -> None:
    sample = SAMPLES[name][0]
    values = sample.record if sample.lines else [sample.record]
    data = "".join(json.dumps(value) + "\n" for value in values).encode()
    made = learn(served, data, f"project=format-{name}")
    assert made["trajectories"] and made["rank"] == 4 and made["project"] == f"format-{name}"


def test_what_is_deleted_answers_nobody_and_comes_back_when_it_is_learned_again(served: Running) -> None:
    made = learn(served, trajectory(17), "project=gone&alias=lesson17")
    before = text(served, "lesson17")
    assert served.http.delete("/v1/adapters/lesson17").json() == {
        "id": made["id"],
        "object": "adapter",
        "deleted": True,
    }
    for name in ("lesson17", made["id"], f"tiny:{made['id'][:10]}"):
        assert served.http.post("/v1/completions", json={"model": name, **ASK}).status_code == 404
    assert served.http.delete("/v1/adapters/lesson17").status_code == 404
    assert made["id"] not in served.http.get("/v1/models").text
    assert served.http.get("/v1/adapters?project=gone").json()["total"] == 0
    answer = served.http.post("/v1/completions", json={"model": "tiny", "metadata": {"project": "gone"}, **ASK})
    assert answer.status_code == 404
    assert learn(served, trajectory(17), "project=gone")["id"] == made["id"]
    assert text(served, "lesson17") == before


def test_adapters_are_listed_a_page_at_a_time(served: Running) -> None:
    made = [learn(served, trajectory(n), "project=pages")["id"] for n in range(20, 25)]
    found: list[str] = []
    after: int | None = 0
    while after is not None:
        page = served.http.get(f"/v1/adapters?project=pages&limit=2&after={after}").json()
        assert page["total"] == 5 and len(page["data"]) <= 2
        found += [adapter["id"] for adapter in page["data"]]
        after = page["next_after"]
    assert found == made


def test_secrets_are_gone_before_anything_is_kept_and_an_answer_says_how_many(
    tiny_model: ModelRef, hypernet: Path, tmp_path: Path
) -> None:
    config = configured(tiny_model, tmp_path, hypernet, trajectories=str(tmp_path / "kept"))
    with running(config) as served:
        made = learn(served, trajectory(18, secret=SECRET))
        assert made["notes"] == ["redacted: 2 × API key or token"] or "API key or token" in made["notes"][0]
        plain = learn(served, trajectory(18, secret="[redacted key]"))
        log = served.log.getvalue()
    assert made["delta_w_norm"] == plain["delta_w_norm"]  # the hypernetwork never saw it
    (kept, *_) = sorted((tmp_path / "kept").iterdir())
    assert kept.stem == made["id"] and "redacted key" in kept.read_text(encoding="utf-8")
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert SECRET.encode() not in everything and SECRET not in log


def test_a_trajectory_that_is_being_read_is_on_no_disk(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is killed in the middle leaves nothing of it that was not redacted."""
    seen: list[bool] = []
    read = reading.read_all

    def watched(paths: list[Path]) -> reading.Imported:
        seen.extend(path.is_symlink() and path.readlink().is_relative_to("/proc/self/fd") for path in paths)
        return read(paths)

    monkeypatch.setattr(reading, "read_all", watched)
    learn(served, trajectory(60, secret=SECRET), "project=read")
    assert seen == [True]


def test_a_restarted_server_has_what_was_registered(tiny_model: ModelRef, hypernet: Path, tmp_path: Path) -> None:
    config = configured(tiny_model, tmp_path, hypernet)
    with running(config) as served:
        made = learn(served, trajectory(19), "alias=lesson")
        before = text(served, "lesson")
    with running(configured(tiny_model, tmp_path, None)) as served:
        assert text(served, "lesson") == text(served, made["id"]) == before
        answer = served.http.post("/v1/trajectories", content=trajectory(20))
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "no_hypernetwork"
    assert Registry(config.registry).verify() == []


def test_vllms_words_for_loading_and_unloading(tiny_model: ModelRef, hypernet: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(trajectory(21))
    command = ["adapt", "--trajectory", str(tmp_path / "t.jsonl"), "-o", str(tmp_path / "allowed" / "a")]
    assert main([*command, "--checkpoint", str(hypernet), "--model", tiny_model.path]) == 0
    (tmp_path / "allowed" / "link").symlink_to(tmp_path)
    (tmp_path / "allowed" / "empty").mkdir()
    with running(configured(tiny_model, tmp_path, None, folders=(str(tmp_path / "allowed"),))) as served:

        def load(path: Path | str) -> Any:
            body = {"lora_name": "mine", "lora_path": str(path)}
            return served.http.post("/v1/load_lora_adapter", json=body)

        assert load(tmp_path / "allowed" / "a").text == "Success: LoRA adapter 'mine' added successfully."
        assert load(tmp_path / "allowed" / "a").status_code == 200
        assert text(served, "mine") != text(served, "tiny")
        assert "mine" in {model["id"] for model in served.http.get("/v1/models").json()["data"]}
        for path in ("/etc", tmp_path, tmp_path / "allowed" / ".." / "registry", tmp_path / "allowed" / "link",
                     "allowed/a", "\x00", "x" * 4000, tmp_path / "allowed" / "empty"):  # fmt: skip
            assert load(path).status_code == 400, path
        assert served.http.post("/v1/unload_lora_adapter", json={"lora_name": "mine"}).status_code == 200
        assert served.http.post("/v1/completions", json={"model": "mine", **ASK}).status_code == 404


def test_runes_own_openai_engine_uses_the_server_unchanged(
    tiny_model: ModelRef, hypernet: Path, tmp_path: Path
) -> None:
    from rune.engines import openai

    (tmp_path / "t.jsonl").write_bytes(trajectory(22))
    command = ["adapt", "--trajectory", str(tmp_path / "t.jsonl"), "-o", str(tmp_path / "a")]
    assert main([*command, "--checkpoint", str(hypernet), "--model", tiny_model.path]) == 0
    ref = peft.write_peft(tmp_path / "b", peft.read_peft(tmp_path / "a"))
    adapters = Folders(tmp_path / "b")
    requests = [
        Request(key=key, prompt="class A:\n", sampling=Sampling(temperature=0, max_new_tokens=12), seed=0, adapter=a)
        for key, a in (("base", None), ("worn", ref))
    ]
    with running(configured(tiny_model, tmp_path, None, folders=(str(tmp_path),))) as served:
        engine = openai.build(
            openai.Config(url=served.url, served_name="tiny", dialect="vllm", tries=1),
            model=tiny_model, device="cpu", dtype="float32", adapters=adapters,
        )  # fmt: skip
        found = {c.key: c.text for c in engine.complete(requests)}
        engine.close()
        assert served.http.get("/v1/adapters").json()["total"] == 0  # unloaded again
    own = torch_engine.build(torch_engine.Config(), model=tiny_model, device="cpu", dtype="float32", adapters=adapters)
    assert found == {c.key: c.text for c in own.complete(requests)}


def test_many_clients_with_many_adapters_each_get_their_adapters_answer(
    tiny_model: ModelRef, hypernet: Path, tmp_path: Path
) -> None:
    """More adapters than places, more draws than rows, streams and wholes: what each hears is what it hears alone."""
    config = configured(tiny_model, tmp_path, hypernet, engine={"max_adapters": 3, "max_rows": 5})
    with running(config) as served:
        names = [learn(served, trajectory(n), f"alias=a{n}&domain=d{n % 3}")["id"] for n in range(30, 42)]
        memory = served.service.memory
        refs = [None, *(memory.ref(memory.registry.get(name)) for name in names)]
        alone = torch_engine.build(
            torch_engine.Config(), model=tiny_model, device="cpu", dtype="float32", adapters=memory.registry.objects
        )
        sampling = Sampling(temperature=0, max_new_tokens=12)
        wanted = [
            Request(
                key=ref.adapter_id if ref else "tiny", prompt=f"def g{i}(x):\n", sampling=sampling, seed=0, adapter=ref
            )
            for i in range(3)
            for ref in refs
        ]
        expected = {(r.key, r.prompt): c.text for r in wanted for c in alone.complete([r])}
        assert len(set(expected.values())) > len(expected) // 2

        def ask(request: Request) -> str:
            body = {"model": request.key, "prompt": request.prompt, "max_tokens": 12, "temperature": 0}
            if len(request.prompt) % 2 and request.key[0] in "01234567":
                with served.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
                    events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
                assert events.pop() == "[DONE]"
                return "".join(json.loads(event)["choices"][0]["text"] for event in events)
            return text(served, request.key, prompt=request.prompt)

        with ThreadPoolExecutor(12) as pool:
            found = dict(zip([(r.key, r.prompt) for r in wanted], pool.map(ask, wanted), strict=True))
        assert found == expected
        residency = served.service.engine.residency  # type: ignore[attr-defined]
        assert len(residency.resident) == 3 and residency.evictions >= 9
        assert served.metric("rune_adapters_resident") == 3 and served.metric("rune_adapter_places") == 3


def test_a_pinned_adapter_is_there_from_the_start(tiny_model: ModelRef, hypernet: Path, tmp_path: Path) -> None:
    with running(configured(tiny_model, tmp_path, hypernet)) as served:
        made = learn(served, trajectory(50), "alias=always")
    with running(configured(tiny_model, tmp_path, None, pins=("always",))) as served:
        assert served.service.engine.residency.pinned == {made["id"]}  # type: ignore[attr-defined]
        assert served.metric("rune_adapters_pinned") == 1
    with pytest.raises(ConfigError, match=r"serve.pins: no adapter 'never' of this model in .*registry"):
        Service(configured(tiny_model, tmp_path, None, pins=("never",)))
