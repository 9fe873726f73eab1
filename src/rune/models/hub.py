"""Weights from the Hugging Face hub: safetensors, configuration and tokenizer of one commit, each file verified.

The hub states, for one commit, the sha256 of every large file and the git blob id of every small one; what
arrives must match. A private mirror is used by setting HF_ENDPOINT. Interrupted downloads resume.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rune import console
from rune.errors import ModelError
from rune.runs import store

_WANTED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_BLOCK = 1 << 20
_TIMEOUT = 30.0  # seconds without a byte


class Unreachable(Exception):
    """A source that does not answer or does not have the model: the next one is tried."""


def fetch(repo: str, *, revision: str, staging: Path) -> dict[str, Any]:
    """Download one model into `staging`. Returns what to record: the commit and the hashes the hub stated.

    Raises Unreachable without a network or model, ModelError for wrong bytes or pickled weights only.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        info = huggingface_hub.HfApi(endpoint=endpoint).model_info(
            repo, revision=revision, files_metadata=True, timeout=10.0
        )
    except HFValidationError:
        raise ModelError(f"'{repo}' is no hub id; expected org/name or org/name@revision") from None
    except HfHubHTTPError as error:
        raise Unreachable(f"{repo}@{revision}: {_first_line(error)}") from None
    except Exception as error:
        if not _is_network(error):
            raise
        raise Unreachable(f"no answer ({_first_line(error)})") from None

    files = {s.rfilename: s for s in info.siblings or []}
    wanted = [name for name in files if name in _WANTED or ("/" not in name and name.endswith(".safetensors"))]
    wanted += [name for name in files if name == "model.safetensors.index.json"]
    if not any(name.endswith(".safetensors") for name in wanted):
        raise ModelError(f"{repo}: no safetensors on the hub; pickled weights are never loaded")
    stated: dict[str, str] = {}
    total = sum(int(files[name].size or 0) for name in wanted)
    with console.Progress(f"{repo}@{str(info.sha)[:8]}", total, unit="B") as bar:
        for name in wanted:
            path = staging / name
            if not path.is_file():  # else an earlier call brought all of it
                url = huggingface_hub.hf_hub_url(repo, name, revision=info.sha, endpoint=endpoint)
                try:
                    _download(url, path, bar.advance)
                except (OSError, http.client.HTTPException) as error:
                    raise ModelError(
                        f"{repo}/{name}: download broke off ({_first_line(error)}); the same command resumes"
                    ) from None
            stated[name] = _verify(path, files[name], repo=repo)
    return {"source": "hub", "repo": repo, "commit": info.sha, "stated": stated}


def _download(url: str, target: Path, progress: Callable[[int], object]) -> None:
    """Fetch `url` into `target`, continuing what an earlier call left in `target.partial`. Raises OSError.

    Done here because the hub's client starts every file anew since its version 1.
    """
    partial = target.with_name(f"{target.name}.partial")
    start = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers=_headers() | ({"Range": f"bytes={start}-"} if start else {}))
    opener = urllib.request.build_opener(_Redirect)
    try:
        response = opener.open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing left to send: the last call was stopped after the last byte
            partial.replace(target)
            return
        raise
    with response:
        resumed = response.status == 206
        progress(start if resumed else 0)
        expected = response.length
        with store.writing(partial), partial.open("ab" if resumed else "wb") as file:
            while block := response.read(_BLOCK):
                file.write(block)
                progress(len(block))
        if expected is not None and partial.stat().st_size != expected + (start if resumed else 0):
            raise OSError("the connection was closed early")
    partial.replace(target)


class _Redirect(urllib.request.HTTPRedirectHandler):
    """The hub sends large files from another host, which must not be given the user's token."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None and new.host != req.host:
            new.remove_header("Authorization")
        return new


def _headers() -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers

    return build_hf_headers(library_name="rune")


def _verify(path: Path, stated: Any, *, repo: str) -> str:
    """Compare with the hub's metadata; returns "sha256:…" or "git:…". A wrong file is deleted."""
    if stated.lfs is not None:
        expected, found = f"sha256:{stated.lfs.sha256}", f"sha256:{store.sha256_file(path)}"
    elif stated.blob_id:
        expected, found = f"git:{stated.blob_id}", f"git:{git_blob_id(path.read_bytes())}"
    else:
        raise ModelError(f"{repo}/{path.name}: the hub states no hash for it; it cannot be verified")
    if found != expected:
        path.unlink()
        raise ModelError(f"{repo}/{path.name}: {found[:19]}… where the hub states {expected[:19]}…; it was deleted")
    return expected


def git_blob_id(content: bytes) -> str:
    """git's name for a file's content: sha1 over a header with its size, then the content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _is_network(error: Exception) -> bool:
    """The hub's client changes its HTTP library between versions; each brings connection errors of its own."""
    from huggingface_hub.errors import HfHubHTTPError

    library = type(error).__module__.split(".")[0]
    return isinstance(error, (HfHubHTTPError, OSError)) or library.startswith(("httpx", "httpcore", "requests"))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
