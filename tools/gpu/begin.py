"""There: begin a cross-fitted run whose loop need not run again, since [collect] is another's.

python3 tools/gpu/begin.py ATTEMPTS CONFIG [a.b=c …]      prints the run's folder
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from rune import __version__, store
from rune.stages import _provenance, crossfit, pipeline
from rune.store import RunDir


def main() -> int:
    attempts, config, *sets = sys.argv[1:]
    settings = pipeline.load(Path(config), sets)
    extra = {"rune": __version__, "environment": _provenance.environment()}
    folder = RunDir.create(
        Path(settings.run.folder), f"{settings.run.name}-crossfit", settings, extra=extra, resume=True
    )
    if "seals" not in folder.manifest():
        folder.update(seals={"config.toml": store.sha256_file(folder / "config.toml")})
    if not (folder / "attempts.jsonl").exists():
        shutil.copy(attempts, folder / "attempts.jsonl")
    problems = crossfit.tasks(settings)
    store.write_jsonl(folder / "problems.jsonl", problems)
    with folder.lock(), pipeline.machinery(settings) as context:
        crossfit.Experiment(folder, settings, context, problems, parts=crossfit._parts(settings, problems)).collect()
    print(folder.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
