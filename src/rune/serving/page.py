"""The page at `/`: adapters with lineage and fitness, a place to drop a session, base against adapter, the queue.

One file without a build step. It asks this server alone, with the key that a person types in; the browser is told to
run nothing else (Content-Security-Policy: hashes of the page's own script and style).
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

from fastapi import FastAPI
from fastapi.responses import HTMLResponse


def add_page(app: FastAPI) -> None:
    html = resources.files("rune.serving").joinpath("page.html").read_text(encoding="utf-8")
    headers = {
        "content-security-policy": (
            f"default-src 'none'; connect-src 'self'; img-src data:; script-src {_hash(html, 'script')}; "
            f"style-src {_hash(html, 'style')}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)


def _hash(html: str, tag: str) -> str:
    """What is between <tag> and </tag>, as a source of a policy."""
    (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"
