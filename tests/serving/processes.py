"""`rune serve` and `rune watch` in processes of their own, to be killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rune.types import ModelRef
from tests.serving.world import PATIENCE


class ServerProcess:
    """`rune serve` over `root`/registry; its log is `root`/log.jsonl, its temporary files lie in `root`/tmp."""

    def __init__(
        self, model: ModelRef, hypernet: Path, root: Path, *settings: str, registry: Path | None = None
    ) -> None:
        """`registry`: one that other servers have too."""
        root.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "rune", "serve", "--model", model.path, "--port", "0"]
        command += ["--registry", str(registry or root / "registry"), "--checkpoint", str(hypernet)]
        for setting in ("model.served_name=tiny", "engine.settings={window=512}", *settings):
            command += ["--set", setting]
        (root / "tmp").mkdir(exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(root / "tmp")}
        self.log = (root / "log.jsonl").open("ab")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, env=environment)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().decode().strip()
        assert self.url.startswith("http://127.0.0.1:"), (root / "log.jsonl").read_text(encoding="utf-8")[-2000:]

    def end(self, number: int) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self.log.close()
        return code
