"""What int8 costs: adapters of one checkpoint as it is and as int8, and the programs written under both, on a CPU.

    python bench/hypernet_precision.py [--tasks 24] [--out results/bench-hypernet-int8-cpu.json]

The tasks are held-out private conventions of the shipped 0.5B checkpoint's own run, one a convention, each adapter from
three siblings' trajectories. Per module type: ‖ΔW − ΔW'‖ / ‖ΔW‖ over all layers and adapters, and the same of what
differs between adapters (ΔW less their mean), which is where the trajectory is. Then one greedy program a task and
precision, judged by the task's tests in the sandbox.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "studies" / "reader-layers"))

from reader_layers import CHECKPOINT, SETTINGS, Case, cases, machines

from rune import console
from rune.adapters.factors import Factors, LoraTargets, inner
from rune.adapters.store import FolderStore
from rune.hypernet import checkpoint, export
from rune.runs import store
from rune.stages import sample, score
from rune.types import Outcome, Sample, Treatment, Verdict

ARMS = ("as it is", "int8")
Made = list[dict[str, Factors]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("results/bench-hypernet-int8-cpu.json"))
    args = parser.parse_args()
    some = list({case.problem.domain: case for case in reversed(cases())}.values())[: args.tasks]
    with tempfile.TemporaryDirectory() as work:
        small = checkpoint.compress(CHECKPOINT, Path(work) / "int8", "int8")
        found = drawn(some, Path(work))
    passed = {arm: sum(o is Outcome.PASSED for o in found["outcomes"][arm]) for arm in ARMS}
    store.write_json(args.out, {
        "checkpoint": store.sha256_file(CHECKPOINT / checkpoint.WEIGHTS),
        "numbers": small.numbers, "megabytes": {"as it is": small.before / 1e6, "int8": small.after / 1e6},
        "weights_relative_error": small.error, "tasks": len(some), "passed": passed,
        "same_program": found["same"], "torch": torch.__version__, "relative_error": found["errors"],
    })  # fmt: skip
    console.out(args.out.read_text(encoding="utf-8"))
    return 0


def drawn(some: list[Case], work: Path) -> dict[str, Any]:
    """Adapters, their distances, and the verdicts on what was written under them."""
    machine = machines(work)
    context = machine.context(SETTINGS["seed"])
    model = context.model()
    adapters = FolderStore(work / "adapters", model, dtype=context.dtype)
    made, treatments = {}, []
    for arm, place in zip(ARMS, (CHECKPOINT, work / "int8"), strict=True):
        generator = export.AdapterGenerator(place, model, device=context.device, dtype=context.dtype)
        made[arm] = list(generator.iter_generate([case.siblings for case in some], strength=1.0))
        for case, one in zip(some, made[arm], strict=True):
            ref = adapters.put(arm.replace(" ", "_"), case.problem.task_id.replace("/", "_"), one, generator.layout)
            treatments.append(Treatment(task_id=case.problem.task_id, condition=arm, adapter=ref))
    errors = distances(made, generator.layout)
    made.clear()
    console.note(
        f"‖ΔW − ΔW'‖ / ‖ΔW‖ {errors['all']['delta_w']:.4f}, of what differs {errors['all']['what_differs']:.4f}"
    )
    folder = store.RunDir(work)
    store.write_jsonl(folder / "problems.jsonl", [case.problem for case in some])
    store.write_jsonl(folder / "treatments.jsonl", treatments)
    greedy = sample.Config(
        n=1, temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=SETTINGS["max_new_tokens"]
    )  # fmt: skip
    sample.run(folder, greedy, context)
    score.run(folder, score.Config(), context)
    outcomes: dict[str, list[Outcome]] = defaultdict(list)
    for verdict in store.read_jsonl(folder / "verdicts.jsonl", Verdict):
        outcomes[verdict.condition].append(verdict.outcome)
    programs: dict[str, set[str]] = defaultdict(set)
    for one in store.read_jsonl(folder / "samples.jsonl", Sample):
        programs[one.task_id].add(one.program)
    machine.close()
    return {"outcomes": outcomes, "errors": errors, "same": sum(len(p) == 1 for p in programs.values())}


def distances(made: dict[str, Made], layout: LoraTargets) -> dict[str, dict[str, float]]:
    """Module type → relative error of ΔW, and of ΔW less the mean of all adapters; "all" over all modules."""
    sums: dict[str, torch.Tensor] = {}
    for module in layout.sizes:
        exact, small = ([one[module] for one in made[arm]] for arm in ARMS)
        whole = torch.stack([inner(a, a).sum() for a in exact]).sum()
        off = torch.stack([_squared(a, b) for a, b in zip(exact, small, strict=True)]).sum()
        mean, mean_small = _mean(exact), _mean(small)
        apart = torch.stack([_squared(a, mean) for a in exact]).sum()
        # ‖(a − ā) − (b − b̄)‖² summed over adapters is Σ‖a − b‖² − N ‖ā − b̄‖².
        apart_off = off - len(exact) * _squared(mean, mean_small)
        sums[module] = torch.stack([off, whole, apart_off, apart])
    sums["all"] = torch.stack(list(sums.values())).sum(0)
    return {
        module: {"delta_w": float((a / b).sqrt()), "what_differs": float((c / d).sqrt())}
        for module, (a, b, c, d) in sums.items()
    }


def _squared(one: Factors, other: Factors) -> torch.Tensor:
    """‖ΔW − ΔW'‖²_F over all layers."""
    one, other = (Factors(*(t.double() for t in f)) for f in (one, other))
    return (inner(one, one) - 2 * inner(one, other) + inner(other, other)).sum()


def _mean(adapters: list[Factors]) -> Factors:
    """The mean ΔW, ranks side by side."""
    down = torch.cat([f.down_YNRI for f in adapters], 2)
    return Factors(down, torch.cat([f.up_YNRO for f in adapters], 2) / len(adapters))


if __name__ == "__main__":
    sys.exit(main())
