"""The page at `/` in headless Chromium, as a person uses it: by mouse and by keys, wide and narrow, light and dark."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rune.serving import keys
from rune.types import ModelRef
from tests.report import browser as browsers
from tests.serving.world import PATIENCE, Running, configured, running, trajectory

needs_chromium = pytest.mark.skipif(
    not shutil.which("chromium") or not shutil.which("chromedriver"), reason="needs chromium and chromium-driver"
)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    made = browsers.driver(str(tmp_path / "profile"))
    yield made
    made.quit()


def seen(browser: Any, script: str) -> Any:
    """What a script returns as soon as it is something."""
    ends = time.monotonic() + PATIENCE
    while not (found := browser.execute_script(script)):
        assert time.monotonic() < ends, (script, browser.execute_script("return document.body.innerText"))
        time.sleep(0.05)
    return found


def text(browser: Any, name: str, waiting_for: str) -> str:
    """An element's text, once this stands in it."""
    return str(seen(browser, f"const t = document.getElementById('{name}').innerText; "
                             f"return t.includes({waiting_for!r}) ? t : ''"))  # fmt: skip


def test_the_page_runs_nothing_but_its_own_and_asks_nobody_else(served: Running) -> None:
    answer = served.http.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and policy.count("'sha256-") == 2
    assert "http" not in answer.text.replace("<!doctype html>", "")
    assert "/" not in served.http.get("/openapi.json").json()["paths"]


def test_lineage_says_what_a_client_may_see(served: Running) -> None:
    found = served.http.get("/v1/adapters/sums").json()
    assert found["parents"] == [] and found["trajectories"] == ["t1"] and found["fitness_interval"] is None


@needs_chromium
@pytest.mark.check
def test_a_person_compares_and_teaches(served: Running, browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.get(served.url)
    assert "sums" in text(browser, "list", "shop/sums")
    assert "resident" in text(browser, "live", "in host memory")

    # By keys alone: the question, the adapter, the answers of both.
    browser.execute_script("document.getElementById('prompt').focus()")
    browser.switch_to.active_element.send_keys("add two numbers", Keys.TAB)
    assert browser.switch_to.active_element.get_attribute("id") == "adapter"
    browser.switch_to.active_element.send_keys("sums", Keys.TAB, Keys.TAB)
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    ask = {"messages": [{"role": "user", "content": "add two numbers"}], "temperature": 0, "max_tokens": 200}
    for box, model in (("left", "tiny"), ("right", "sums")):
        answer = served.http.post("/v1/chat/completions", json={"model": model, **ask}).json()
        expected = answer["choices"][0]["message"]["content"]
        script = "return document.getElementById(arguments[0]).textContent === arguments[1]"
        ends = time.monotonic() + PATIENCE
        while not browser.execute_script(script, box, expected):
            assert time.monotonic() < ends, (box, expected)
            time.sleep(0.05)
    assert browser.execute_script(
        "return document.getElementById('left').textContent !== document.getElementById('right').textContent"
    )

    (tmp_path / "session.jsonl").write_bytes(trajectory(77, secret="<img src=x onerror=alert(1)>"))
    browser.find_element("id", "file").send_keys(str(tmp_path / "session.jsonl"))
    browser.find_element("id", "alias").send_keys("seventy")
    browser.find_element("css selector", "#learn button").click()
    assert "seventy (default)" in text(browser, "learned", "Learned in")
    assert "seventy" in text(browser, "list", "seventy")
    button = browser.find_element("css selector", "button[aria-label='lineage of seventy']")
    button.send_keys(Keys.ENTER)
    assert "trajectories: t77" in text(browser, "list", "trajectories: t77")
    assert button.get_attribute("aria-expanded") == "true"

    (tmp_path / "bad.jsonl").write_text("{")
    browser.find_element("id", "file").send_keys(str(tmp_path / "bad.jsonl"))
    browser.find_element("css selector", "#learn button").click()
    assert "not valid JSON" in text(browser, "learned", "not valid JSON")
    assert [e for e in browser.get_log("browser") if "400" not in e["message"]] == []


@needs_chromium
@pytest.mark.check
def test_it_is_legible_wide_and_narrow_light_and_dark(served: Running, browser: Any) -> None:
    for view in browsers.VIEWS:
        for scheme in ("light", "dark"):
            browsers.look(browser, view, scheme)
            browser.get(served.url)
            text(browser, "list", "shop/sums")
            found = [one for code in (browsers.CONTRAST, browsers.OVERFLOW) for one in browser.execute_script(code)]
            found += [one for one in browser.execute_script(browsers.STRUCTURE) if f"network: {served.url}" not in one]
            found += browser.execute_script(
                "return [...document.querySelectorAll('input, select, textarea')].filter(e => !e.labels.length)"
                ".map(e => 'without a label: ' + e.id)"
            )
            assert found == [], (view, scheme)


@needs_chromium
@pytest.mark.check
def test_with_keys_it_asks_for_one_and_shows_what_the_key_may_see(
    tiny_model: ModelRef, hypernet: Path, tmp_path: Path, browser: Any
) -> None:
    config = configured(tiny_model, tmp_path, hypernet)
    key = keys.add(config.keys, "team", ["shop"])
    with running(config) as served:
        assert httpx.get(served.url).status_code == 200
        made = served.http.post(
            "/v1/trajectories", content=trajectory(1), headers={"authorization": f"Bearer {key}"}
        ).json()
        browser.get(served.url)
        assert "no API key" in text(browser, "fault", "no API key")
        browser.find_element("id", "key").send_keys(key)
        browser.find_element("css selector", "#lock button").click()
        assert made["id"][:12] in text(browser, "list", "shop")
        assert not browser.find_element("id", "fault").is_displayed()
