"""What Phase 4 left open: is reconstruction asked for something that would serve? Plan: README.md, "The ceiling".

    cd studies/phase4
    python ceiling.py draw --data DATA --lessons FOLDER --corpus CORPUS --out OUT   there
    python ceiling.py tell --data DATA --lessons FOLDER --corpus CORPUS --out OUT   here: the numbers

The generators write two of the seven modules that fine-tuning changes. Here fine-tuned LoRAs are cut to those two,
LoRAs are fine-tuned on those two alone, and the generator reconstructs the latter: by ΔW, and by what ΔW does to the
inputs that the modules meet. Lane, updates and withheld functions are phase4.py's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import phase4
import scaled
import torch
import updates
import updates_oracle
from phase4 import CommonStart
from scaled import Lane
from torch import Tensor
from updates_oracle import Job

from rune import config, console
from rune.adapters.factors import Adapters, Factors, inner, select, to_dtype
from rune.hypernet import loop, losses, outer_products, side_by_side
from rune.hypernet.loop import Step
from rune.hypernet.outer_products import MODULES
from rune.hypernet.settings import Schedule
from rune.runs import store

# Shapes: Y layers · N adapters · R rank · T tokens · I inputs · O outputs

FILE = "ceiling"
DOSES = (10, 20)  # steps on the two modules alone, all at the teachers' rate; the last one's are reconstructed
TRAIN = 600  # generated updates whose LoRAs are reconstructed
TRAININGS = ("reconstruction", "weighted")  # in this order, should time end
TOKENS = 1024  # of a layer, which stand for the inputs that it meets
WHOLE, CUT = "fine-tuned", "cut to two"
CONTRASTS = (
    *((arm, f"{arm}_wrong") for arm in (WHOLE, CUT, *(f"two alone, {n} steps" for n in DOSES), *TRAININGS)),
    *((arm, WHOLE) for arm in (CUT, *(f"two alone, {n} steps" for n in DOSES))),
    *((arm, f"two alone, {DOSES[-1]} steps") for arm in TRAININGS),
    ("weighted", "reconstruction"),
)  # fmt: skip


def main() -> int:
    args = scaled.arguments(__doc__, ("draw", "judge", "tell"))
    if args.smoke:
        globals().update(TRAIN=6, TOKENS=16)
    scaled.FILES = (FILE,)
    {"draw": draw, "judge": scaled.judge, "tell": tell}[args.do](args)
    return 0


# --------------------------------------------------------------------------- there


def draw(args: Any) -> None:
    lane = Lane(args)
    withheld = lane.all.withheld
    shown = withheld[: 3 if args.smoke else phase4.SHOWN]
    whole = lane.teachers("ceiling", shown)
    if not lane.finished("ceiling cut"):
        lane.sample(f"{FILE}.jsonl", [("vanilla", j.case.problem, "", None) for j in shown], scaled.CHOICE_DRAWS)
        lane.draw_with_wrong(FILE, WHOLE, shown, whole, scaled.CHOICE_DRAWS)
        lane.rest()
        cut = {key: {m: made[m] for m in MODULES} for key, made in whole.items()}
        lane.draw_with_wrong(FILE, CUT, shown, cut, scaled.CHOICE_DRAWS)
        lane.finish("ceiling cut")
    made: dict[str, Adapters] = {}
    for steps in DOSES:
        if lane.finished(f"ceiling {steps}") and steps != DOSES[-1]:
            continue
        made = alone(lane, shown, steps)
        lane.draw_with_wrong(FILE, f"two alone, {steps} steps", shown, made, scaled.CHOICE_DRAWS)
        lane.finish(f"ceiling {steps}")
    lane.rest()
    if lane.left() < 150:
        lane.done("ceiling ends before reconstruction")
        return
    train = lane.all.generated[:TRAIN]
    made |= alone(lane, [*withheld[len(shown) :], *train], DOSES[-1])
    lane.done("ceiling teachers")
    goals = [made[j.key] for j in withheld]
    near = {j.key: phase4.nearest(j, train).key for j in withheld}
    references(lane, [made[j.key] for j in train], goals, [made[near[j.key]] for j in withheld])
    for name in TRAININGS:
        if lane.finished(f"ceiling {name}") or lane.left() < 40:
            continue
        model, seen_YIT = teach(lane, name, train, made)
        written = lane.written(model, withheld)
        some = [written[j.key] for j in withheld]
        record = {
            "plain": errors(some, goals),
            "weighted": errors([seen(x, seen_YIT) for x in some], [seen(x, seen_YIT) for x in goals]),
        }
        store.write_json(args.out / f"ceiling-{name}.json", record)
        lane.draw_with_wrong(FILE, name, shown, written, scaled.CHOICE_DRAWS)
        lane.rest()
        lane.finish(f"ceiling {name}")
    lane.done("ceiling end")


def alone(lane: Lane, jobs: Sequence[Job], steps: int) -> dict[str, Adapters]:
    """LoRAs on the two modules alone, from the corpus' common start."""
    count = 1 if lane.args.smoke else steps
    schedule = Schedule(steps=count, learning_rate=scaled.RATE, checkpoint_every=steps)
    made: dict[str, Adapters] = {}
    for start in range(0, len(jobs), scaled.TOGETHER):
        some = jobs[start : start + scaled.TOGETHER]
        lessons = [side_by_side.Lesson(j.key, tuple(map(lane.encode, j.lessons))) for j in some]
        whole, _ = side_by_side.train(
            lane.base, lessons, schedule, rank=updates_oracle.RANK, alpha=updates_oracle.ALPHA,
            rows=updates_oracle.ROWS, seed=scaled.SEED, start="common", modules=MODULES,
        )  # fmt: skip
        whole = to_dtype(whole, lane.dtype)
        made |= {job.key: select(whole, slice(n, n + 1)) for n, job in enumerate(some)}
    return made


def references(lane: Lane, known: Sequence[Adapters], goals: Sequence[Adapters], near: Sequence[Adapters]) -> None:
    """Errors of the mean of all training adapters, of the nearest by text, and of nothing (which is 1)."""
    across = phase4.gram(known, goals).double().mean(0).cpu().numpy()
    inside = float(phase4.gram(known, known).double().mean())
    goal = torch.diagonal(phase4.gram(goals, goals)).double().cpu().numpy()
    found = {"mean": phase4._errors(across, np.full(len(goal), inside), goal), "nearest by text": errors(near, goals)}
    products = phase4.gram(goals, goals).double().cpu().numpy()
    functions = [updates._function(j.case.problem.domain) for j in lane.all.withheld]
    size = np.sqrt(np.diag(products))
    cosine = products / (size[:, None] * size[None])
    same = np.equal.outer(np.array(functions), np.array(functions))
    np.fill_diagonal(cosine, np.nan)
    found["cosine within a function"] = float(np.nanmean(cosine[same]))
    found["cosine between functions"] = float(np.nanmean(cosine[~same]))
    store.write_json(lane.args.out / "ceiling-references.json", {"train": len(known), "withheld": len(goals), **found})


def errors(made: Sequence[Adapters], goals: Sequence[Adapters]) -> dict[str, list[float]]:
    """‖ΔW − ΔW*‖² / ‖ΔW*‖² and the cosine of each pair."""
    rows = []
    for one, wanted in zip(made, goals, strict=True):
        a, b = phase4._float(one), phase4._float(wanted)
        rows.append([sum(float(inner(x[m], y[m]).sum()) for m in y) for x, y in ((a, b), (a, a), (b, b))])
    return phase4._errors(*np.array(rows).T)


def seen(some: Adapters, seen_YIT: dict[str, Tensor]) -> dict[str, Factors]:
    """ΔW as it acts on T inputs of each layer: ‖·‖² of it is Σ_t ‖ΔW x_t‖²."""
    return {m: Factors(f.down_YNRI.float() @ seen_YIT[m][:, None], f.up_YNRO.float()) for m, f in some.items()}


def teach(
    lane: Lane, name: str, train: Sequence[Job], made: dict[str, Adapters]
) -> tuple[CommonStart, dict[str, Tensor]]:
    """The generator on ΔW, or on what ΔW does to inputs; and those inputs."""
    every = lane.base.layout(MODULES)
    start = side_by_side.first_down(every, updates_oracle.RANK, scaled.SEED, "common")
    with torch.random.fork_rng():
        torch.manual_seed(config.derive_seed(scaled.SEED, "outer products"))
        model = CommonStart(every, start).to(lane.base.device)
    by_key = {j.key: [lane.encode(t) for t in j.lessons] for j in train}
    keys = list(by_key)
    few = keys[: 4 if lane.args.smoke else 48]
    observed = outer_products.observe(lane.base, [by_key[k] for k in few], tokens=phase4.distilled.RANK)
    model.calibrate(lane.base, observed)
    seen_YIT = {}
    for module, keys_YNKI in observed.keys_YNRI.items():
        real_YTI = keys_YNKI[:, observed.mask_NR]
        chosen = torch.randperm(real_YTI.shape[1], generator=torch.Generator().manual_seed(scaled.SEED))[:TOKENS]
        seen_YIT[module] = real_YTI[:, chosen.to(real_YTI.device)].float().transpose(1, 2) / len(chosen) ** 0.5

    def view(some: Adapters) -> dict[str, Factors]:
        return seen(some, seen_YIT) if name == "weighted" else phase4._float(some)

    with torch.no_grad():
        written, wanted = view(model(observed)), view(scaled.join([made[k] for k in few]))
        for module in MODULES:
            share_Y = inner(written[module], wanted[module]).sum(1) / inner(written[module], written[module]).sum(1)
            model.log_gain_SY[module] += share_Y.clamp(min=1e-3).log()

    def take(step: int) -> Step:
        rng = np.random.default_rng([config.derive_seed(scaled.SEED, "reconstruction"), step])
        some = [keys[int(n)] for n in rng.choice(len(keys), size=4 if lane.args.smoke else 24, replace=False)]
        there = outer_products.write(lane.base, model, [by_key[k] for k in some], tokens=phase4.distilled.RANK)
        error = losses.reconstruction(view(there), view(scaled.join([made[k] for k in some])))
        return Step(error, {"reconstruction": error}, sum(len(t.ids) for k in some for t in by_key[k]))

    folder = lane.args.out / f"ceiling-{name}"
    steps = 3 if lane.args.smoke else phase4.STEPS
    schedule = Schedule(steps=steps, learning_rate=phase4.distilled.RATE, checkpoint_every=1000)
    rates = phase4.distilled.rates(model)
    loop.fit(model, rates, schedule, take, folder=folder, metrics=folder / "metrics.jsonl", phase=name)
    return model.eval(), seen_YIT


# --------------------------------------------------------------------------- here


def tell(args: Any) -> None:
    """Judge the rest; ceiling.json, ceiling.md."""
    out = args.out
    args.follow = False
    scaled.judge(args)
    verdicts = [v for _, v in store.read_lines(out / f"{FILE}_verdicts.jsonl")]
    arms = {v["arm"] for v in verdicts}
    pairs = [pair for pair in CONTRASTS if set(pair) <= arms]
    result: dict[str, Any] = {m: updates._numbers(verdicts, m, pairs) for m in ("used", "plain")}
    if (out / "ceiling-references.json").exists():
        result["references"] = store.read_json(out / "ceiling-references.json")
    result["errors"] = {n: store.read_json(p) for n in TRAININGS if (p := out / f"ceiling-{n}.json").exists()}
    store.write_json(out / "ceiling.json", result)
    store.write_atomic(out / "ceiling.md", table(result))
    console.out(table(result))


def table(result: dict[str, Any]) -> str:
    used, plain = result["used"], result["plain"]
    lines = [f"{used['tasks']} tasks of withheld generated updates, 3 draws, T = {updates.TEMPERATURE}.", ""]
    lines += ["| arm | UPass | plain pass |", "|---|---:|---:|"]
    lines += [f"| {arm} | {value:.1f} | {plain['arms'][arm]:.1f} |" for arm, value in used["arms"].items()]
    lines += ["", "| contrast, points | UPass, 95 % over updates |", "|---|---:|"]
    lines += [f"| {n} | {p:+.1f} [{lo:+.1f}, {hi:+.1f}] |" for n, (p, lo, hi) in used["contrasts"].items()]
    rows = []
    if "references" in result:
        one = result["references"]
        rows += [(n, one[n], None) for n in ("mean", "nearest by text")]
    rows += [(n, one["plain"], one["weighted"]) for n, one in result["errors"].items()]
    if rows:
        lines += ["", "| ‖ΔW − ΔW*‖² / ‖ΔW*‖², withheld | error | cosine | error by inputs | cosine by inputs |"]
        lines.append("|---|---:|---:|---:|---:|")
        for name, flat, weighted in rows:
            cells = [
                f"{np.mean(some[k]):.3f}" if some else "–" for some in (flat, weighted) for k in ("error", "cosine")
            ]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        near = [result["references"][f"cosine {w}"] for w in ("within a function", "between functions")]
        lines += ["", f"Cosine of two fine-tuned: {near[0]:.3f} within a function, {near[1]:.3f} between functions."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
