"""Benchmarks judged by their own references → JSON: how many pass here, which do not, and why.

    python bench/references.py code_update_arena --data ../shared/data --out results/references-code-update-arena.json
    python bench/references.py private_library   --data ../shared/data --out results/references-private-library.json
    python bench/references.py api_updates --updates 1000              --out results/references-api-updates.json

code_update_arena: with the update and without it (0 may pass without). private_library: private names and, as
sanity, the public twins. api_updates: references count, old habits fail, no update's reference passes under
another's of its function.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

from rune import console, plugins
from rune.benchmarks import api_updates, code_update_arena, private_library
from rune.benchmarks.scorers import execution, execution_with_and_without, judging
from rune.benchmarks.scorers.judging import Item
from rune.runs import store
from rune.types import Execution, Outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=("code_update_arena", "private_library", "api_updates"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=1000, help="api_updates: how many are generated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()
    module = plugins.load("sandbox", "fork")
    # Some tests build arrays of 800 MB; importing sympy on a busy machine takes seconds.
    lent = {"packages": code_update_arena.LENT} if args.benchmark == "code_update_arena" else {}
    limits = module.Config(workers=args.workers, cpu_seconds=30.0, wall_seconds=60.0, memory_mb=4096, **lent)
    sandbox = module.build(limits)
    found = {"code_update_arena": _arena, "private_library": _libraries, "api_updates": _generated}[args.benchmark](
        args, sandbox
    )
    sandbox.close()
    store.write_json(args.out, {"benchmark": args.benchmark, "environment": _environment(sandbox), **found})
    brief = {k: v.get("pass") if isinstance(v, dict) else v for k, v in found.items() if k not in ("left_out", "kinds")}
    console.out(str(brief))
    return 0


def _environment(sandbox: Any) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("numpy", "scipy", "sympy", "pandas", "pytest"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions | {"lent": " ".join(sandbox.limits.packages)}


def _why(found: Execution) -> str:
    last = found.error.strip().splitlines()[-1] if found.error.strip() else found.error_kind
    return f"{found.error_kind}: {last}"[:160]


def _arena(args: argparse.Namespace, sandbox: Any) -> dict[str, Any]:
    problems = code_update_arena.build(code_update_arena.Config(path=str(args.data))).problems()
    found = list(judging.judge(sandbox, (Item(p.task_id, p, p.reference) for p in problems)))
    without = (execution_with_and_without.without(p) for p in problems)
    alone = list(execution.judge(sandbox, (Item(p.task_id, p, p.reference) for p in without)))
    left = {e.key: _why(e) for e in sorted(found, key=lambda e: e.key) if e.outcome is not Outcome.PASSED}
    return {
        "tasks": len(problems),
        "updates": len({p.domain for p in problems}),
        "pass_with_update": sum(map(execution_with_and_without.passes_with, found)),
        "pass_without_update": sum(e.outcome is Outcome.PASSED for e in alone),
        "count": sum(e.outcome is Outcome.PASSED for e in found),
        "left_out": left,
    }


def _libraries(args: argparse.Namespace, sandbox: Any) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for library in ("beatnum", "monkey", "numpy", "pandas"):
        part = private_library.build(private_library.Config(library=library, path=str(args.data)))
        problems = part.problems()
        found = list(private_library.judge(sandbox, ((p.task_id, p, p.reference) for p in problems), part.names()))
        failed = {f.key: _why(f) for f in sorted(found, key=lambda f: f.key) if f.outcome is not Outcome.PASSED}
        result[library] = {"tasks": len(problems), "pass": len(problems) - len(failed), "left_out": failed}
    return result


def _generated(args: argparse.Namespace, sandbox: Any) -> dict[str, Any]:
    tasks = api_updates.generate(api_updates.Config(seed=args.seed, updates=args.updates))
    kinds = Counter(t.update.domain.split(":")[1] for t in tasks)
    return {"seed": args.seed, "tasks": len(tasks), "kinds": dict(kinds), **api_updates.verify(tasks, sandbox)}


if __name__ == "__main__":
    sys.exit(main())
