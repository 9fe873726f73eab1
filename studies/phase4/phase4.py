"""Phase 4: does a hypernetwork learn the fine-tuned adapters themselves? Plan, predictions and rule: README.md.

    cd studies/phase4
    python phase4.py draw --data DATA --lessons FOLDER --corpus CORPUS --out OUT   there, after the scaled study
    python phase4.py tell --data DATA --lessons FOLDER --corpus CORPUS --out OUT   here: the numbers

The corpus are the scaled study's fine-tuned LoRAs (OUT/teachers; made here if they are not there), one an update.
Withheld are the updates of 14 functions. Everything between adapters is counted on ΔW, through Gram matrices.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

for beside in ("updates-exploration", "updates-oracle", "updates-distilled", "updates-scaled"):
    sys.path.insert(0, str(Path(__file__).parents[1] / beside))

import distilled
import numpy as np
import scaled
import torch
import updates
import updates_oracle
from scaled import Lane
from torch import Tensor
from updates_oracle import Job

from rune import config, console
from rune.adapters.factors import Adapters, Factors, inner, squared_norm
from rune.corpus import overlap
from rune.hypernet import loop, losses, outer_products, side_by_side
from rune.hypernet.loop import Step
from rune.hypernet.outer_products import MODULES, Observed, OuterProducts
from rune.hypernet.settings import Schedule
from rune.runs import store
from rune.types import Problem, Trajectory

# Shapes: N adapters · Y layers · R rank · K tokens of a set · I inputs · O outputs

TRAININGS = ("reconstruction", "both", "end to end")  # in this order, should time end
STEPS = 200
SHOWN = 40  # withheld updates that are drawn on
MEAN_RANK = 64  # of the mean adapter as it is drawn
WEIGHT = 1.0  # of the reconstruction error beside the KL, in "both"
CONTRASTS = (
    *((arm, f"{arm}_wrong") for arm in ("fine-tuned", *TRAININGS, "free")),
    *((arm, "vanilla") for arm in ("fine-tuned", "mean", "nearest", *TRAININGS, "free")),
    *((arm, "mean") for arm in (*TRAININGS, "free")),
)  # fmt: skip


def main() -> int:
    args = scaled.arguments(__doc__, ("draw", "tell"))
    {"draw": draw, "tell": tell}[args.do](args)
    return 0


class CommonStart(OuterProducts):
    """Outer products as a LoRA whose A is the corpus' initial one: B = Σ e ⊗ (A k), what a first gradient step writes.

    Fine-tuned LoRAs of a common start have their ΔW within the rows of an A near to it, which no other ΔW can meet.
    """

    def __init__(self, layout: Any, start_YRI: Mapping[str, Tensor]) -> None:
        super().__init__(layout)
        for module in MODULES:
            self.register_buffer(f"start_{module}", start_YRI[module])

    def forward(self, seen: Observed, number: int = 0) -> dict[str, Factors]:
        """Of the start's rank R."""
        made = {}
        for module, (keys_YNKI, error_YNKO) in super().forward(seen, number).items():
            start_YRI = getattr(self, f"start_{module}")
            size = start_YRI.square().sum((1, 2), keepdim=True) / start_YRI.shape[-1]  # a projection keeps this share
            read_YNKR = torch.einsum("ynki,yri->ynkr", keys_YNKI.float(), start_YRI / size)
            up_YNRO = torch.einsum("ynkr,ynko->ynro", read_YNKR, error_YNKO.float())
            down_YNRI = start_YRI[:, None].expand(-1, up_YNRO.shape[1], -1, -1)
            made[module] = Factors(down_YNRI.to(keys_YNKI.dtype), up_YNRO.to(keys_YNKI.dtype))
        return made


@torch.no_grad()
def best_steps(model: CommonStart, seen: Observed, goal: Adapters) -> None:
    """Begin where no other size of each layer's step leaves a smaller error, ⟨ΔW, ΔW*⟩ / ‖ΔW‖²."""
    made = _float(model(seen))
    for module, wanted in _float(goal).items():
        share_Y = inner(made[module], wanted).sum(1) / inner(made[module], made[module]).sum(1)
        model.log_gain_SY[module] += share_Y.clamp(min=1e-3).log()


def gram(one: Sequence[Adapters], other: Sequence[Adapters]) -> Tensor:
    """⟨ΔW, ΔW'⟩_F over the modules that both have, of every pair [len(one), len(other)]; ranks may differ."""
    total = torch.zeros(len(one), len(other), device=next(iter(one[0].values())).down_YNRI.device)
    for module in one[0].keys() & other[0].keys():
        for layer in range(one[0][module].down_YNRI.shape[0]):
            sides = []
            for side in (0, 1):
                a = torch.cat([x[module][side][layer, 0] for x in one]).float()
                b = torch.cat([x[module][side][layer, 0] for x in other]).float()
                sides.append(a @ b.T)
            whole = sides[0] * sides[1]
            total += whole.view(len(one), len(whole) // len(one), len(other), -1).sum((1, 3))
    return total


def mean_adapter(adapters: Sequence[Adapters], rank: int) -> dict[str, Factors]:
    """Mean ΔW, cut to `rank` where that is less than its own."""
    made = {}
    for module, first in adapters[0].items():
        downs, ups = [], []
        for layer in range(first.down_YNRI.shape[0]):
            down_RI = torch.cat([x[module].down_YNRI[layer, 0] for x in adapters]).float()
            up_RO = torch.cat([x[module].up_YNRO[layer, 0] for x in adapters]).float()
            u_OK, s_K, v_IK = torch.svd_lowrank(up_RO.T @ down_RI / len(adapters), q=min(rank, *down_RI.shape))
            downs.append(v_IK.T)
            ups.append((u_OK * s_K).T)
        dtype = first.down_YNRI.dtype
        made[module] = Factors(torch.stack(downs)[:, None].to(dtype), torch.stack(ups)[:, None].to(dtype))
    return made


def gaussian(like: Adapters, seed: int) -> dict[str, Factors]:
    """Gaussian A and B of the rank of `like`, each layer's ΔW of its norm."""
    chance = torch.Generator().manual_seed(seed)
    made = {}
    for module, (down, up) in like.items():
        drawn = Factors(*(torch.randn(t.shape, generator=chance).to(t.device) for t in (down, up)))
        wanted = Factors(down.float(), up.float())
        share = (inner(wanted, wanted) / inner(drawn, drawn)).sqrt()
        made[module] = Factors(drawn.down_YNRI, drawn.up_YNRO * share[..., None, None])
    return made


def nearest(job: Job, among: Sequence[Job]) -> Job:
    """The training update whose trajectories share most with this one's: runs of three tokens, Jaccard."""

    def words(some: Job) -> frozenset[tuple[str, ...]]:
        return frozenset().union(*(overlap.shingles(t.solution, 3) for t in some.lessons))

    mine = words(job)
    return max(among, key=lambda j: len(mine & words(j)) / max(1, len(mine | words(j))))


# --------------------------------------------------------------------------- there


def draw(args: Any) -> None:
    lane = Lane(args)
    one: dict[str, Job] = {}
    for job in (*lane.all.train, *lane.all.generated):
        one.setdefault(job.case.problem.domain, job)
    train, withheld = list(one.values()), lane.all.withheld
    for part, jobs in (("train", lane.all.train), ("generated", lane.all.generated), ("withheld", withheld)):
        lane.teachers(part, jobs)
    known = [lane.made[j.key] for j in train]
    goals = [lane.made[j.key] for j in withheld]
    shown = withheld[: 3 if args.smoke else SHOWN]
    near = {j.key: nearest(j, train) for j in withheld}
    if not lane.finished("phase4 references"):
        references(lane, known, goals, [train.index(near[j.key]) for j in withheld])
        lane.sample("phase4.jsonl", [("vanilla", j.case.problem, "", None) for j in shown], scaled.CHOICE_DRAWS)
        lane.draw_with_wrong("phase4", "fine-tuned", shown, lane.made, scaled.CHOICE_DRAWS)
        worn = {j.key: lane.made[near[j.key].key] for j in shown}
        lane.draw_with_wrong("phase4", "nearest", shown, worn, scaled.CHOICE_DRAWS, wrong=False)
        lane.rest()
        mean = mean_adapter(known, MEAN_RANK)
        lane.draw_with_wrong("phase4", "mean", shown, {j.key: mean for j in shown}, scaled.CHOICE_DRAWS, wrong=False)
        lane.rest()
        lane.finish("phase4 references")
    first = scaled.CURVE[0]
    if lane.finished(first.name) and not (args.out / "phase4-free.json").exists():  # the scaled study's own generator
        model = scaled.teach(lane, first)
        generated = list(lane.written(model, withheld).values())
        store.write_json(args.out / "phase4-free.json", {"errors": errors(generated, goals), **diversity(generated)})
    for name in TRAININGS:
        if lane.finished(f"phase4 {name}") or lane.left() < 20:
            continue
        model = teach(lane, name, train)
        made = lane.written(model, withheld)
        generated = [made[j.key] for j in withheld]
        record = {"errors": errors(generated, goals), **diversity(generated)}
        store.write_json(args.out / f"phase4-{name.replace(' ', '-')}.json", record)
        lane.draw_with_wrong("phase4", name, shown, made, scaled.CHOICE_DRAWS)
        lane.rest()
        lane.finish(f"phase4 {name}")
    lane.done("phase4 end")


def errors(made: Sequence[Adapters], goals: Sequence[Adapters]) -> dict[str, Any]:
    """‖ΔW − ΔW*‖² / ‖ΔW*‖² and the cosine of each pair, over all modules and over those that the generator writes."""
    found: dict[str, Any] = {}
    for name, modules in (("all", tuple(goals[0])), ("written", MODULES)):
        cross, own, goal = [], [], []
        for one, wanted in zip(made, goals, strict=True):
            a, b = (_float({m: x[m] for m in modules if m in x}) for x in (one, wanted))
            cross.append(sum(float(inner(a[m], b[m]).sum()) for m in a))
            own.append(float(squared_norm(a)))
            goal.append(float(squared_norm(b)))
        found[name] = _errors(np.array(cross), np.array(own), np.array(goal))
    return found


def _float(some: Adapters) -> dict[str, Factors]:
    return {m: Factors(*(t.float() for t in f)) for m, f in some.items()}


def _errors(cross: Any, own: Any, goal: Any) -> dict[str, list[float]]:
    error, cosine = (own - 2 * cross + goal) / goal, cross / np.sqrt(np.maximum(own * goal, 1e-30))
    return {"error": [round(float(v), 4) for v in error], "cosine": [round(float(v), 4) for v in cosine]}


def diversity(made: Sequence[Adapters]) -> dict[str, Any]:
    """Mean cosine of two adapters' ΔW, raw and around their mean."""
    return _diversity(gram(made, made).double().cpu().numpy())


def _diversity(products: Any) -> dict[str, Any]:
    middle = products.mean(0, keepdims=True)
    centred = products - middle - middle.T + products.mean()
    found = {}
    for name, some in (("raw", products), ("centred", centred)):
        size = np.sqrt(np.diag(some))
        cosine = some / np.maximum(size[:, None] * size[None], 1e-30)
        found[f"cosine_{name}"] = float((cosine.sum() - np.trace(cosine)) / (cosine.size - len(cosine)))
    found["norm"] = float(np.sqrt(np.diag(products)).mean())
    return found


def references(lane: Lane, known: list[Any], goals: list[Any], near: Sequence[int]) -> None:
    """What a reconstruction has to beat, on every withheld adapter."""
    result: dict[str, Any] = {}
    for name, modules in (("all", tuple(goals[0])), ("written", MODULES)):
        train, wanted = ([{m: x[m] for m in modules} for x in some] for some in (known, goals))
        inside = gram(train, train).double().cpu().numpy()
        across = gram(train, wanted).double().cpu().numpy()
        goal = torch.diagonal(gram(wanted, wanted)).double().cpu().numpy()
        size = np.diag(inside)
        closest = (size[:, None] - 2 * across).argmin(0)
        columns = np.arange(len(goal))
        drawn = [gaussian(x, config.derive_seed(scaled.SEED, "gaussian", n)) for n, x in enumerate(wanted)]
        cross = np.array([sum(float(inner(d[m], x[m]).sum()) for m in d)
                          for d, x in zip(drawn, map(_float, wanted), strict=True)])  # fmt: skip
        result[name] = {
            "gaussian": _errors(cross, np.array([float(squared_norm(d)) for d in drawn]), goal),
            "mean": _errors(across.mean(0), np.full(len(goal), inside.mean()), goal),
            "nearest by text": _errors(across[near, columns], size[near], goal),
            "nearest by ΔW": _errors(across[closest, columns], size[closest], goal),
            "zero": _errors(0 * goal, 0 * goal, goal),
            "fine-tuned": _diversity(gram(wanted, wanted).double().cpu().numpy()),
        }  # fmt: skip
    store.write_json(lane.args.out / "phase4-references.json", {"corpus": len(known), "withheld": len(goals), **result})


def teach(lane: Lane, name: str, train: Sequence[Job]) -> CommonStart:
    """The generator on the corpus: by ΔW, by what the model says under it, or by both."""
    layout = lane.base.layout(MODULES)
    every = lane.base.layout(side_by_side.MODULES)
    start = side_by_side.first_down(every, updates_oracle.RANK, scaled.SEED, "common")
    drawn = scaled.examples(lane.all.train, lane.all.generated, lane)
    with torch.random.fork_rng():
        torch.manual_seed(config.derive_seed(scaled.SEED, "outer products"))
        model = CommonStart(layout, start).to(lane.base.device)
    sets = [e.sources for e in drawn(np.random.default_rng(scaled.SEED))]
    model.calibrate(lane.base, outer_products.observe(lane.base, sets, tokens=distilled.RANK))
    by_key = {j.key: [lane.encode(t) for t in j.lessons] for j in train}
    keys = list(by_key)
    if name != "end to end":
        some = keys[: 4 if lane.args.smoke else 48]
        goal = scaled.join([{m: lane.made[k][m] for m in MODULES} for k in some])
        best_steps(model, outer_products.observe(lane.base, [by_key[k] for k in some], tokens=distilled.RANK), goal)
    said = distilled.training_step(lane, model, drawn, lane.made, 1.0, "phase4")

    def reconstruct(step: int) -> Step:
        rng = np.random.default_rng([config.derive_seed(scaled.SEED, "reconstruction"), step])
        some = [keys[int(n)] for n in rng.choice(len(keys), size=4 if lane.args.smoke else 24, replace=False)]
        made = outer_products.write(lane.base, model, [by_key[k] for k in some], tokens=distilled.RANK)
        goal = scaled.join([{m: lane.made[k][m] for m in MODULES} for k in some])
        error = losses.reconstruction(_float(made), _float(goal))
        return Step(error, {"reconstruction": error}, sum(len(t.ids) for k in some for t in by_key[k]))

    def both(step: int) -> Step:
        one, other = said(step), reconstruct(step)
        return Step(one.loss + WEIGHT * other.loss, {**one.terms, **other.terms}, one.tokens + other.tokens)

    take: Callable[[int], Step] = {"reconstruction": reconstruct, "both": both, "end to end": said}[name]
    folder = lane.args.out / f"phase4-{name.replace(' ', '-')}"
    schedule = Schedule(steps=3 if lane.args.smoke else STEPS, learning_rate=distilled.RATE, checkpoint_every=1000)
    loop.fit(model, distilled.rates(model), schedule, take, folder=folder, metrics=folder / "metrics.jsonl", phase=name)
    return model.eval()


# --------------------------------------------------------------------------- here


def tell(args: Any) -> None:
    """Judge the rest; phase4.json, phase4.md."""
    out = args.out
    scaled.judge(args)
    verdicts = [v for _, v in store.read_lines(out / "phase4_verdicts.jsonl")]
    free = {scaled.CURVE[0].name: "free", f"{scaled.CURVE[0].name}_wrong": "free_wrong"}  # drawn by the scaled study
    others = [v for _, v in store.read_lines(out / "withheld_verdicts.jsonl")]
    verdicts += [{**v, "arm": free[v["arm"]]} for v in others if v["arm"] in free]
    result: dict[str, Any] = {m: updates._numbers(verdicts, m, CONTRASTS) for m in ("used", "plain")}
    reference = store.read_json(out / "phase4-references.json")
    result["corpus"], result["withheld"] = reference["corpus"], reference["withheld"]
    rows: dict[str, dict[str, Any]] = defaultdict(dict)
    for scope in ("all", "written"):
        for name in ("gaussian", "mean", "nearest by text", "nearest by ΔW", "zero"):
            rows[name][scope] = reference[scope][name]
        for name in (*TRAININGS, "free"):
            path = out / f"phase4-{name.replace(' ', '-')}.json"
            if path.exists():
                rows[name][scope] = store.read_json(path)["errors"][scope]
    result["reconstruction"] = {
        name: {f"{m} {scope}": float(np.mean(one[scope][m])) for scope in one for m in ("error", "cosine")}
        for name, one in rows.items()
    }
    result["diversity"] = {"fine-tuned": reference["written"]["fine-tuned"]}
    for name in (*TRAININGS, "free"):
        path = out / f"phase4-{name.replace(' ', '-')}.json"
        if path.exists():
            one = store.read_json(path)
            result["diversity"][name] = {k: one[k] for k in ("cosine_raw", "cosine_centred", "norm")}
    result["losses"] = {n: scaled.first_and_last(out / f"phase4-{n.replace(' ', '-')}") for n in TRAININGS}
    result["leads"] = reconstruction_leads(args, rows)
    result["verdict"] = verdict(result)
    store.write_json(out / "phase4.json", result)
    store.write_atomic(out / "phase4.md", table(result))
    console.out(table(result))


def reconstruction_leads(args: Any, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[float, float, float]]:
    """Error over the written modules less a reference's, paired by adapter, interval over the withheld functions."""
    lessons = store.read_jsonl(args.corpus / "open.jsonl", Trajectory)
    problems = store.read_jsonl(args.corpus / "problems.jsonl", Problem)
    withheld = [j.case.problem.domain for j in scaled.generated_jobs(lessons, problems)[1]]
    shaped = [
        {"arm": name, "task": f"{updates._function(domain)}/{number}", "error": value / 100}  # _numbers counts in %
        for name, one in rows.items()
        for number, (domain, value) in enumerate(zip(withheld, one["written"]["error"], strict=True))
    ]
    wanted = [(name, other) for name in (*TRAININGS, "free") for other in ("mean", "nearest by text", "zero")]
    return dict(updates._numbers(shaped, "error", wanted)["contrasts"])


def verdict(result: Mapping[str, Any]) -> dict[str, dict[str, bool]]:
    """The README's rule: an error below both references', and half of the fine-tuned UPass with right above wrong."""
    leads, used = result["leads"], result["used"]
    return {
        name: {
            "reconstructs": all(leads[f"{name} − {other}"][2] < 0 for other in ("mean", "nearest by text")),
            "serves": used["arms"][name] >= used["arms"]["fine-tuned"] / 2
            and used["contrasts"][f"{name} − {name}_wrong"][1] > 0,
        }
        for name in (*TRAININGS, "free")
        if name in used["arms"] and name in result["reconstruction"]
    }


def table(result: dict[str, Any]) -> str:
    used, plain = result["used"], result["plain"]
    lines = [
        "## Reconstruction", "",
        f"{result['corpus']} adapters trained on, {result['withheld']} withheld. ‖ΔW − ΔW*‖² / ‖ΔW*‖², mean over the "
        "withheld adapters, and the cosine of ΔW and ΔW*: over all seven modules, and over the two that are written.",
        "", "| | error, all | cosine, all | error, written | cosine, written |", "|---|---:|---:|---:|---:|",
    ]  # fmt: skip
    for name, one in result["reconstruction"].items():
        cells = [f"{one[f'{m} {s}']:.3f}" for s in ("all", "written") for m in ("error", "cosine")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "| difference of errors, written modules | 95 % over functions |", "|---|---:|"]
    lines += [f"| {n} | {p:+.3f} [{lo:+.3f}, {hi:+.3f}] |" for n, (p, lo, hi) in result["leads"].items()]
    lines += ["", "## Diversity", "", "Mean cosine of two withheld adapters' ΔW, written modules.", ""]
    lines += ["| | raw | around the mean | mean ‖ΔW‖ |", "|---|---:|---:|---:|"]
    for name, one in result["diversity"].items():
        lines.append(f"| {name} | {one['cosine_raw']:.3f} | {one['cosine_centred']:.3f} | {one['norm']:.2f} |")
    lines += ["", "## UPass on withheld updates", "", f"{used['tasks']} tasks.", ""]
    best = used["arms"].get("fine-tuned") or float("nan")
    lines += ["| arm | UPass | of fine-tuned, % | plain pass |", "|---|---:|---:|---:|"]
    for arm, value in used["arms"].items():
        lines.append(f"| {arm} | {value:.1f} | {100 * value / best:.0f} | {plain['arms'][arm]:.1f} |")
    lines += ["", "| contrast | UPass, points | 95 % over updates |", "|---|---:|---:|"]
    lines += [f"| {n} | {p:+.1f} | {lo:+.1f} … {hi:+.1f} |" for n, (p, lo, hi) in used["contrasts"].items()]
    lines += ["", "| by the rule | reconstructs | serves |", "|---|---|---|"]
    lines += [
        f"| {name} | " + " | ".join("yes" if one[what] else "no" for what in ("reconstructs", "serves")) + " |"
        for name, one in result["verdict"].items()
    ]
    lines += ["", "## Training", "", "First → last tenth of the steps.", ""]
    lines += ["| | reconstruction error | KL to the fine-tuned, nats a token |", "|---|---:|---:|"]
    for name, terms in result["losses"].items():
        pairs = [terms.get(term) for term in ("reconstruction", "kl_oracle")]
        lines.append(f"| {name} | " + " | ".join(f"{p[0]:.3f} → {p[1]:.3f}" if p else "–" for p in pairs) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
