"""A small local HTTP server that answers as the Hugging Face hub does: metadata, files, ranges, broken lines."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rune.models.hub import git_blob_id

LARGE = 50_000  # bytes; larger files are "LFS" and state a sha256


class HubServer:
    """Serves one repository from a folder. `tamper` changes what is sent, not what is stated."""

    commit = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self, repo: str, folder: Path) -> None:
        self.repo, self.folder = repo, folder
        self.break_after: int | None = None  # bytes of a large file after which the line drops
        self.stays_down = True
        self.asked: list[str] = []  # names of the files whose content was asked for
        self._tampered: set[str] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                outer._answer(self, body=False)

            def do_GET(self) -> None:
                outer._answer(self, body=True)

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def tamper(self, name: str) -> None:
        self._tampered.add(name)

    def _sibling(self, path: Path) -> dict[str, Any]:
        data = path.read_bytes()
        entry: dict[str, Any] = {"rfilename": path.name, "size": len(data), "blobId": git_blob_id(data)}
        if len(data) > LARGE:
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry

    def _tree_entry(self, path: Path) -> dict[str, Any]:
        stated = self._sibling(path)
        entry = {"type": "file", "path": path.name, "size": stated["size"], "oid": stated["blobId"]}
        if "lfs" in stated:
            entry["lfs"] = {"oid": stated["lfs"]["sha256"], "size": stated["size"], "pointerSize": 134}
        return entry

    def _answer(self, handler: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = handler.path.partition("?")[0]
        if path.startswith(f"/api/models/{self.repo}/tree/"):
            tree = [self._tree_entry(p) for p in sorted(self.folder.iterdir()) if p.is_file()]
            return self._send(handler, 200, json.dumps(tree).encode(), {"Content-Type": "application/json"}, body=body)
        if path.startswith(f"/api/models/{self.repo}"):
            siblings = [self._sibling(p) for p in sorted(self.folder.iterdir()) if p.is_file()]
            info = {"id": self.repo, "modelId": self.repo, "sha": self.commit, "siblings": siblings}
            return self._send(handler, 200, json.dumps(info).encode(), {"Content-Type": "application/json"}, body=body)
        match = re.fullmatch(rf"/{self.repo}/resolve/{self.commit}/([\w.]+)", path)
        if not match or not (self.folder / match[1]).is_file():
            return self._send(handler, 404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)
        file = self.folder / match[1]
        entry, data = self._sibling(file), file.read_bytes()
        etag = entry["lfs"]["sha256"] if "lfs" in entry else entry["blobId"]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": self.commit, "Accept-Ranges": "bytes"}
        if file.name in self._tampered:
            data = data[:-2] + b"##"
        status, start = 200, 0
        if found := re.match(r"bytes=(\d+)-", handler.headers.get("Range", "")):
            start = int(found[1])
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if body:
            self.asked.append(file.name)
        return self._send(handler, status, data[start:], headers, body=body, large="lfs" in entry)

    def _send(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        data: bytes,
        headers: dict[str, str],
        *,
        body: bool,
        large: bool = False,
    ) -> None:
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if not body:
            return
        if large and self.break_after is not None:
            handler.wfile.write(data[: self.break_after])
            handler.close_connection = True
            self.break_after = 0 if self.stays_down else None
            return
        handler.wfile.write(data)
