"""runs/corpora/humaneval.jsonl, which configs/recipes-0.5b-2.toml imports.

The loop's chains kept in results/crossfit-0.5b, up to four a task.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

from rune.agent import loop
from rune.benchmarks import humaneval
from rune.runs import store
from rune.stages import collect

DATA = Path("runs/corpora")


def main() -> None:
    DATA.mkdir(parents=True, exist_ok=True)
    attempts = DATA / "attempts.jsonl"
    with tarfile.open("results/crossfit-0.5b/run.tar.xz") as archive:
        (name,) = [n for n in archive.getnames() if n.endswith("/attempts.jsonl")]
        found = archive.extractfile(name)
        assert found is not None
        attempts.write_bytes(found.read())
    tasks = {p.task_id: p for p in humaneval.build(humaneval.Config()).problems()}
    chains: dict[tuple[str, int], loop.Chain] = {}
    for step in store.read_jsonl(attempts, collect.Step):
        chain = chains.setdefault((step.task_id, step.chain), loop.Chain(tasks[step.task_id], step.chain))
        chain.attempts.append(step.attempt)
    attempts.unlink()
    every = [collect.to_trajectory(c, source="qwen2.5-coder-0.5b-instruct") for c in chains.values()]
    kept = collect.keep(every, limit=600, per_task=4)
    store.write_jsonl(DATA / "humaneval.jsonl", kept)
    print(f"humaneval: {len(kept)} trajectories, {sum(t.solved for t in kept)} solved")


if __name__ == "__main__":
    main()
