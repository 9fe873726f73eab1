"""There: begin a cross-fitted run whose loop need not run again, since [collect] is another's.

python3 tools/gpu/begin.py ATTEMPTS CONFIG [a.b=c …]      prints the run's folder
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from rune import store
from rune.stages import crossfit, pipeline


def main() -> int:
    attempts, config, *sets = sys.argv[1:]
    settings = pipeline.load(Path(config), sets)
    folder = crossfit.begin(settings, resume=True)
    if not (folder / "attempts.jsonl").exists():
        shutil.copy(attempts, folder / "attempts.jsonl")
    problems = crossfit.tasks(settings)
    store.write_jsonl(folder / "problems.jsonl", problems)
    with folder.lock():
        crossfit.gather(folder, settings, problems)
    print(folder.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
