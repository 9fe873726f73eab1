"""Opens a report in headless Chromium as a person would: desktop and phone, light and dark, and on paper.

    python tests/report/browser.py report.html [--out artifacts]
    python tests/report/browser.py results/phase1-0.5b         # the run's report as today's code writes it, from a copy

Writes screenshots and a PDF, and exits 1 on a console error, a request to the network, sideways scrolling of
the page, text below WCAG AA contrast, a missing heading or a plot without a name. Needs Chromium, ChromeDriver
and selenium (`apt-get install chromium chromium-driver`, `pip install selenium`).
"""

from __future__ import annotations

import argparse
import base64
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

VIEWS = {"desktop": (1280, 900), "phone": (390, 844)}
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--force-color-profile=srgb",
)  # fmt: skip

# Every visible text (SVG too) against the first opaque background behind it.
CONTRAST = """
const luminance = ([r, g, b]) => {
  const f = v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; };
  return .2126 * f(r) + .7152 * f(g) + .0722 * f(b);
};
const parse = text => { const m = text.match(/[\\d.]+/g); return m ? m.map(Number) : [0, 0, 0, 0]; };
const behind = el => {
  for (let e = el; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > .99) return c;
  }
  return [255, 255, 255];
};
const bad = new Set();
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode, el = node.parentElement;
  if (!node.data.trim() || !el.checkVisibility() || ['STYLE', 'SCRIPT', 'TITLE'].includes(el.tagName)) continue;
  const style = getComputedStyle(el), svg = el.closest('svg');
  const ink = parse(svg ? style.fill : style.color), paper = behind(svg ? svg.parentElement : el);
  const [a, b] = [luminance(ink), luminance(paper)].sort((x, y) => y - x);
  const ratio = (a + .05) / (b + .05);
  const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
  if (ratio < (large ? 3 : 4.5)) bad.add(`${node.data.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
}
return [...bad];
"""
OVERFLOW = """
const wide = document.documentElement.clientWidth;
const out = [];
if (document.documentElement.scrollWidth > wide) {
  for (const el of document.querySelectorAll('body *')) {
    if (el.closest('.scroll, pre, svg') && !el.matches('.scroll, pre, svg')) continue;
    if (el.checkVisibility() && el.getBoundingClientRect().right > wide + 1) out.push(el.tagName + '.' + el.className);
  }
  out.push(`page is ${document.documentElement.scrollWidth} wide, window ${wide}`);
}
return out;
"""
STRUCTURE = """
const out = [];
if (document.querySelectorAll('h1').length !== 1) out.push('needs one h1');
for (const svg of document.querySelectorAll('svg')) if (!svg.getAttribute('aria-label')) out.push('svg without a name');
const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
const twice = ids.filter((id, i) => ids.indexOf(id) !== i);
if (twice.length) out.push('ids used twice: ' + [...new Set(twice)].slice(0, 3));
for (const a of document.querySelectorAll('a[href^="#"]'))
  if (!document.getElementById(a.getAttribute('href').slice(1))) out.push('dead link ' + a.getAttribute('href'));
const away = performance.getEntriesByType('resource').filter(e => /^https?:/.test(e.name)).map(e => e.name);
if (away.length) out.push('network: ' + away[0]);
return out;
"""


def driver(profile: str) -> Any:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def look(browser: Any, view: str, scheme: str) -> None:
    """From here on pages are shown in one of VIEWS, "light" or "dark"."""
    width, height = VIEWS[view]
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": view == "phone"},
    )
    feature = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": feature})


def check(page: Path, out: Path, *, name: str = "report") -> list[str]:
    """Everything wrong with the page, one line each. Screenshots go to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    problems = []
    with tempfile.TemporaryDirectory() as profile:
        browser = driver(profile)
        try:
            for view in VIEWS:
                for scheme in ("light", "dark"):
                    look(browser, view, scheme)
                    browser.get(page.resolve().as_uri())
                    where = f"{view}, {scheme}"
                    _shoot(browser, out / f"{name}-{view}-{scheme}.png")
                    script = "document.querySelectorAll('details').forEach((d, i) => d.open = i < 12)"
                    browser.execute_script(script)
                    for what, code in (("contrast", CONTRAST), ("overflow", OVERFLOW), ("structure", STRUCTURE)):
                        problems += [f"{where}: {what}: {found}" for found in browser.execute_script(code)[:8]]
                    problems += [f"{where}: console: {e['message']}" for e in browser.get_log("browser")]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
            pdf = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"]
            (out / f"{name}.pdf").write_bytes(base64.b64decode(pdf))
        finally:
            browser.quit()
    return problems


def text_of(url: str, *, waiting_for: str, shot: Path, seconds: float = 60) -> str:
    """All text of a page that builds itself by script, once `waiting_for` stands in it (or time is up)."""
    shot.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        browser = driver(profile)
        try:
            browser.set_window_size(1280, 900)
            browser.get(url)
            end = time.monotonic() + seconds
            text = ""
            while waiting_for not in text and time.monotonic() < end:
                time.sleep(0.5)
                text = browser.execute_script("return document.body.innerText")
            browser.save_screenshot(str(shot))
            return text
        finally:
            browser.quit()


def _shoot(browser: Any, path: Path) -> None:
    """The whole page, at most 9,000 pixels of it."""
    size = browser.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
    clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 9000), "scale": 1}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    path.write_bytes(base64.b64decode(shot["data"]))


def rendered(run: Path, scratch: Path) -> Path:
    """The report of a decided run folder, written anew on a copy."""
    from rune.runs.store import RunDir
    from rune.stages import report

    copy = scratch / run.name
    shutil.copytree(run, copy)
    return report.run(RunDir.open(copy), report.Config())


def main() -> int:
    parser = argparse.ArgumentParser(description="Check a report in headless Chromium.")
    parser.add_argument("page", type=Path, help="report.html, or a run folder with decision.json")
    parser.add_argument("--out", type=Path, default=Path("artifacts"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        page = rendered(args.page, Path(scratch)) if args.page.is_dir() else args.page
        problems = check(page, args.out)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(problems)} problems; screenshots in {args.out}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
