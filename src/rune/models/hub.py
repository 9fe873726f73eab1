"""Weights from the Hugging Face hub: safetensors, configuration and tokenizer of one commit, each file verified.

The hub's own client downloads; the hub states, for one commit, the sha256 of every large file and the git blob id of
every small one, and what arrived must match. A private mirror is used by setting HF_ENDPOINT. A download that was
stopped goes on: files that are there are not fetched again, and a line that breaks is tried again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from rune.errors import ModelError
from rune.runs import store

_WANTED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


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
    try:
        huggingface_hub.snapshot_download(
            repo, revision=info.sha, local_dir=staging, allow_patterns=wanted, endpoint=endpoint, library_name="rune"
        )
    except Exception as error:
        if not _is_network(error):
            raise
        raise ModelError(f"{repo}: download broke off ({_first_line(error)}); the same command resumes") from None
    shutil.rmtree(staging / ".cache", ignore_errors=True)  # the client's notes
    stated = {name: _verify(staging / name, files[name], repo=repo) for name in wanted}
    return {"source": "hub", "repo": repo, "commit": info.sha, "stated": stated}


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
