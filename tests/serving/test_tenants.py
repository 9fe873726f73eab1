"""API keys: whose adapters are there, and that somebody else's are not, whatever is asked and wherever one looks."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from rune.adapters.registry.registry import Registry
from rune.cli.main import main
from rune.errors import ConfigError, DataError
from rune.serving import keys, server
from rune.serving.keys import Keys
from rune.types import ModelRef
from tests.serving.world import Running, configured, running, trajectory, until

ASK = {"prompt": "def f():\n", "max_tokens": 8, "temperature": 0}


@dataclass
class Tenants:
    """A server with two tenants, one of two projects, and one admin."""

    served: Running
    tokens: dict[str, str]
    adapters: dict[str, dict[str, Any]]  # tenant → what it was told of its adapter

    def ask(self, who: str, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.tokens[who]}"} if who else {}
        return self.served.http.request(method, path, headers=headers, **options)


@pytest.fixture(scope="module")
def tenants(tiny_model: ModelRef, hypernet: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    root = tmp_path_factory.mktemp("tenants")
    config = configured(tiny_model, root, hypernet, max_draws_per_key=4)
    tokens = {
        "anna": keys.add(config.keys, "anna", ["oak"]),
        "ben": keys.add(config.keys, "ben", ["elm"]),
        "cleo": keys.add(config.keys, "cleo", ["oak", "elm", "fir"]),
        "root": keys.add(config.keys, "root", [], admin=True),
    }
    with running(config) as served:
        tenants = Tenants(served, tokens, {})
        for who in ("anna", "ben"):  # the same trajectory, the same alias
            answer = tenants.ask(who, "POST", "/v1/trajectories?alias=lesson&domain=d", content=trajectory(3))
            assert answer.status_code == 201, answer.text
            tenants.adapters[who] = answer.json()
        yield tenants


def test_the_same_trajectory_of_two_tenants_is_two_adapters_and_the_second_learns_of_nothing(tenants: Tenants) -> None:
    anna, ben = tenants.adapters["anna"], tenants.adapters["ben"]
    assert anna["id"] != ben["id"] and anna["delta_w_norm"] == ben["delta_w_norm"]
    assert (anna["project"], ben["project"]) == ("oak", "elm")
    assert anna["trajectories"] == ben["trajectories"] == ["t3"]
    registry = Registry(tenants.served.service.config.registry)
    assert registry.verify() == []


def test_what_one_tenant_asked_is_read_again_for_another(tenants: Tenants) -> None:
    """How fast an answer comes must not tell what others ask."""
    body = {"model": "tiny", "prompt": "def f(x):\n    return x + 1\n" * 12, "max_tokens": 1}

    def hits() -> float:
        return tenants.served.metric("rune_prefix_hit_tokens_total", tenants.tokens["root"])

    for who in ("anna", "ben", "cleo"):
        assert tenants.ask(who, "POST", "/v1/completions", json=body).status_code == 200
    before = hits()
    tenants.ask("anna", "POST", "/v1/completions", json=body)
    assert before == 0 < hits()
    before, path = hits(), tenants.served.service.config.keys
    for project in ("yew", "ash"):  # a name that is given again is somebody else's
        tenants.tokens["dora"] = keys.add(path, "dora", [project])
        assert tenants.ask("dora", "POST", "/v1/completions", json=body).status_code == 200
        keys.revoke(path, "dora")
    assert hits() == before


def test_each_lists_its_own_and_the_admin_all(tenants: Tenants) -> None:
    def listed(who: str) -> set[str]:
        found = tenants.ask(who, "GET", "/v1/adapters").json()
        assert found["total"] == len(found["data"])
        models = tenants.ask(who, "GET", "/v1/models").json()["data"]
        assert {m["root"] for m in models} - {"tiny"} == {a["id"] for a in found["data"]}
        return {adapter["id"] for adapter in found["data"]}

    anna, ben = tenants.adapters["anna"]["id"], tenants.adapters["ben"]["id"]
    assert listed("anna") == {anna} and listed("ben") == {ben}
    assert listed("cleo") == listed("root") == {anna, ben}


def test_an_alias_that_two_have_means_each_ones_own(tenants: Tenants) -> None:
    for who in ("anna", "ben"):
        answer = tenants.ask(who, "POST", "/v1/completions", json={"model": "lesson", **ASK})
        assert answer.json()["model"] == f"tiny:{tenants.adapters[who]['id']}"
    for who in ("cleo", "root"):  # who sees both must say which
        answer = tenants.ask(who, "POST", "/v1/completions", json={"model": "lesson", **ASK})
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "ambiguous_model"
        answer = tenants.ask(who, "POST", "/v1/completions", json={"model": "elm/lesson", **ASK})
        assert answer.json()["model"] == f"tiny:{tenants.adapters['ben']['id']}"


@pytest.mark.parametrize("form", ["{id}", "{id:.12}", "tiny:{id}", "oak/lesson", "tiny:oak/lesson"])
def test_somebody_elses_adapter_is_answered_as_one_that_is_not_there(tenants: Tenants, form: str) -> None:
    theirs = form.format(id=tenants.adapters["anna"]["id"])
    nobodys = form.replace("oak/lesson", "ash/nolesson").format(id="0123456789abcdef" * 4)
    for method, path in (("POST", "/v1/completions"), ("GET", "/v1/adapters/"), ("DELETE", "/v1/adapters/"),
                         ("GET", "/v1/models/")):  # fmt: skip
        answers = []
        for name in (theirs, nobodys):
            if method == "POST":
                answers.append(tenants.ask("ben", method, path, json={"model": name, **ASK}))
            else:
                answers.append(tenants.ask("ben", method, path + name))
        assert [a.status_code for a in answers] == [404, 404]
        there, not_there = (a.text for a in answers)
        assert there.replace(theirs.removeprefix("tiny:"), "X") == not_there.replace(nobodys.removeprefix("tiny:"), "X")
    assert tenants.ask("anna", "GET", f"/v1/adapters/{tenants.adapters['anna']['id']}").status_code == 200


def test_looking_up_what_is_somebody_elses_asks_the_database_the_same(tenants: Tenants) -> None:
    """The time of a 404 must not tell: the same queries, which find nothing, whether it is there or not."""
    import sqlalchemy as sa

    registry = tenants.served.service.memory.registry
    asked: list[str] = []
    sa.event.listen(
        registry.database._engine, "before_cursor_execute", lambda c, cursor, text, *rest: asked.append(text)
    )

    def queries(name: str) -> list[str]:
        asked.clear()
        tenants.ask("ben", "GET", f"/v1/adapters/{name}")
        return [text for text in asked if text.startswith("SELECT")]

    def selections(project: str) -> list[str]:
        asked.clear()
        body = {"model": "tiny", "metadata": {"project": project, "domain": "d"}, **ASK}
        assert tenants.ask("ben", "POST", "/v1/completions", json=body).status_code == 404
        return [text for text in asked if text.startswith("SELECT")]

    theirs, nobodys = tenants.adapters["anna"]["id"], "0123456789abcdef" * 4
    assert queries(theirs) == queries(nobodys) != []
    assert queries("oak/lesson") == queries("ash/lesson") != []
    assert selections("oak") == selections("ash") != []


def test_metadata_chooses_among_ones_own(tenants: Tenants) -> None:
    def chosen(who: str, **metadata: str) -> httpx.Response:
        return tenants.ask(who, "POST", "/v1/completions", json={"model": "tiny", "metadata": metadata, **ASK})

    assert chosen("ben", domain="d").json()["model"] == f"tiny:{tenants.adapters['ben']['id']}"
    assert chosen("cleo", project="oak", domain="d").json()["model"] == f"tiny:{tenants.adapters['anna']['id']}"
    for project in ("oak", "ash"):
        found = chosen("ben", project=project, domain="d")
        assert found.status_code == 404 and found.json()["error"]["code"] == "adapter_not_found"


def test_a_project_is_entered_with_its_own_key_only(tenants: Tenants) -> None:
    for project in ("oak", "ash"):  # there or not
        answer = tenants.ask("ben", "POST", f"/v1/trajectories?project={project}", content=trajectory(4))
        assert answer.status_code == 403 and answer.json()["error"]["code"] == "not_your_project"
    answer = tenants.ask("cleo", "POST", "/v1/trajectories", content=trajectory(4))
    assert answer.status_code == 400 and "say which: project=NAME" in answer.json()["error"]["message"]


def test_without_a_key_or_with_a_wrong_one_nothing_is_told(tenants: Tenants) -> None:
    good = tenants.tokens["anna"]
    wrong = (good[:-1] + ("A" if good[-1] != "A" else "B"), good[:17] + "-" + "A" * 43, "x")
    for token in wrong:
        headers = {"authorization": f"Bearer {token}"}
        for path in ("/v1/models", "/v1/adapters", "/metrics"):
            answer = tenants.served.http.get(path, headers=headers)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/v1/models", "/nowhere", "/metrics"):
        assert tenants.ask("", "GET", path).status_code == 401
    assert tenants.served.http.get("/v1/models", headers={"authorization": f"Basic {good}"}).status_code == 401
    assert (
        tenants.served.http.get("/healthz").status_code == 200 and tenants.served.http.get("/readyz").status_code == 200
    )


def test_metrics_and_logs_name_no_tenants_adapter_project_or_text(tenants: Tenants) -> None:
    tenants.ask("anna", "POST", "/v1/completions", json={"model": "lesson", "prompt": "my-own-words", "max_tokens": 4})
    assert tenants.ask("anna", "GET", "/metrics").status_code == 403
    shown = tenants.ask("root", "GET", "/metrics").text
    for word in ("oak", "elm", "anna", "ben", "lesson", tenants.adapters["anna"]["id"][:8]):
        assert word not in shown
    for name in ("rune_requests_total", "rune_first_token_seconds_bucket", "rune_tokens_total", "rune_draws",
                 "rune_adapters_resident", "rune_adapter_loads_total", "rune_adapter_load_seconds_total",
                 "rune_learn_seconds_count", "rune_engine_waiting_draws"):  # fmt: skip
        assert name in shown
    assert tenants.served.metric('rune_tokens_total{kind="completion",wears="adapter"}', tenants.tokens["root"]) > 0
    log = tenants.served.log.getvalue()
    assert "my-own-words" not in log and "rule 3" not in log and tenants.tokens["anna"] not in log
    until(lambda: any(line.get("key") == "anna" and line.get("completion_tokens") for line in tenants.served.lines()))


def test_what_lies_on_the_servers_disk_is_the_admins_business(tenants: Tenants, tmp_path: Path) -> None:
    for path, body in (("load", {"lora_name": "a", "lora_path": str(tmp_path)}), ("unload", {"lora_name": "lesson"})):
        answer = tenants.ask("anna", "POST", f"/v1/{path}_lora_adapter", json=body)
        assert answer.status_code == 403


def test_a_key_has_its_own_share_of_the_draws(tenants: Tenants) -> None:
    answer = tenants.ask("anna", "POST", "/v1/completions", json={"model": "tiny", **ASK, "n": 5})
    assert answer.status_code == 400 and "at most 4" in answer.json()["error"]["message"]


def test_a_revoked_key_is_refused_at_once_and_the_last_one_opens_no_door(tiny_model: ModelRef, tmp_path: Path) -> None:
    config = configured(tiny_model, tmp_path, None)
    token = keys.add(config.keys, "one", ["p"])
    with running(config) as served:
        headers = {"authorization": f"Bearer {token}"}
        assert served.http.get("/v1/models", headers=headers).status_code == 200
        second = keys.add(config.keys, "two", ["p"])
        assert served.http.get("/v1/models", headers={"authorization": f"Bearer {second}"}).status_code == 200
        keys.revoke(config.keys, "one")
        keys.revoke(config.keys, "two")
        assert served.http.get("/v1/models", headers=headers).status_code == 401
        assert served.http.get("/v1/models").status_code == 401
        config.keys.unlink()
        assert served.http.get("/v1/models").status_code == 401
        config.keys.write_text("not a file of keys", encoding="utf-8")
        assert served.http.get("/v1/models", headers=headers).status_code == 401


def test_keys_are_kept_as_hashes_in_a_file_of_their_owner(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "keys.json"
    token = keys.add(path, "anna", ["oak", "oak"])
    text = path.read_text(encoding="utf-8")
    assert token not in text and token.rpartition("-")[2] not in text and '"oak"' in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = Keys(path)
    client = found.find(token)
    assert client == keys.Client(name="anna", projects=("oak",), key=token.split("-")[1]) and found.required
    assert found.find(token.upper()) is None and found.find("") is None
    assert not Keys(tmp_path / "none.json").required


def test_a_bad_key_file_or_name_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    for text in ("[]", "{}", '{"version": 2, "keys": []}', '{"version": 1, "keys": [{"id": 1}]}', "no"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError) as caught:
            Keys(path)
        assert "\n" not in str(caught.value)
    path.unlink()
    for name, projects, admin in (("", ["p"], False), ("a", [], False), ("a", ["p"], True), ("a", [" "], False)):
        with pytest.raises(ConfigError):
            keys.add(path, name, projects, admin=admin)
    keys.add(path, "a", ["p"])
    with pytest.raises(ConfigError, match="there is a key named 'a'"):
        keys.add(path, "a", ["q"])
    with pytest.raises(ConfigError, match="no key named 'b'; there are: a"):
        keys.revoke(path, "b")


def test_keys_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "keys.json")
    assert main(["keys", "add", "team", "--project", "shop", "--keys", path]) == 0
    token = capsys.readouterr().out.strip()
    assert Keys(Path(path)).find(token) is not None
    assert main(["keys", "list", "--keys", path]) == 0
    shown = capsys.readouterr().out
    assert "team" in shown and "shop" in shown and token not in shown
    assert main(["keys", "revoke", "team", "--keys", path]) == 0
    assert json.loads(Path(path).read_text(encoding="utf-8"))["keys"] == []
    capsys.readouterr()
    assert main(["keys", "add", "team", "--keys", path]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::", "example.org", ""])
def test_other_machines_are_not_let_in_without_keys(tiny_model: ModelRef, tmp_path: Path, host: str) -> None:
    config = configured(tiny_model, tmp_path, None, host=host)
    with pytest.raises(ConfigError, match=r"there are no API keys in .*; make one: `rune keys add"):
        server.check_reach(config, Keys(config.keys))
    keys.add(config.keys, "a", ["p"])
    server.check_reach(config, Keys(config.keys))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "::1", "[::1]"])
def test_this_machine_needs_no_key(tiny_model: ModelRef, tmp_path: Path, host: str) -> None:
    config = configured(tiny_model, tmp_path, None, host=host)
    server.check_reach(config, Keys(config.keys))
