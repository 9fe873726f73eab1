"""The sealed study of real updates: five trainings, five folds, what the choice rule picked. Plan and rule: README.md.

    cd studies/updates-sealed
    python sealed.py corpus --data DATA --lessons FOLDER --updates CORPUS --out CORPUS5     here, once
    python sealed.py seal --corpus CORPUS5 --out .                                          here; then commit seal.json
    python sealed.py draw --data DATA --lessons FOLDER --corpus CORPUS5 --out OUT --worker N --workers W     there
    python sealed.py judge --data DATA --out OUT --follow                                   there, beside it
    python sealed.py tell --data DATA --lessons FOLDER --out OUT                            here

FOLDER holds real-*.jsonl of results/updates-exploration/records.tar.xz, `--updates` is what updates-real-looking's
`corpus` wrote. `corpus` refuses until results/updates-real-looking/result.json says what was chosen.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
for beside in (
    HERE.parent,
    *(HERE.parent / n for n in ("updates-exploration", "updates-oracle", "updates-distilled", "updates-scaled")),
    HERE.parent / "updates-real-looking",
):
    sys.path.insert(0, str(beside))

import adapter_lane as lanes
import distilled
import numpy as np
import programs
import real_looking
import torch
import updates
import updates_oracle
from adapter_lane import Ask, Job, Lane, Recipe, Table, Variant, interval

from rune import console, prompts
from rune.adapters.factors import Adapters, Factors
from rune.benchmarks import code_update_arena
from rune.benchmarks.scorers.updates import names_function
from rune.corpus import exclusion
from rune.errors import DataError
from rune.hypernet import losses
from rune.runs import store
from rune.types import Problem, Sample, Trajectory

SEED = 40  # of teachers, examples, draws
TRAININGS = (41, 42, 43, 44, 45)
FOLDS = 5
DRAWS = 5
GENERATED = {"old": 500, "looking": 700, "renamed": 400}  # jobs that are trained on, of the sources that were chosen
ROUNDS = 60  # tries at a renamed update of each real one
FILES = ("looking.jsonl", "old.jsonl", "renamed.jsonl", "recipe.json")
CHOICE = HERE.parents[1] / "results" / "updates-real-looking" / "result.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("corpus", "seal", "draw", "judge", "tell"))
    lanes.options(parser)
    parser.add_argument("--lessons", type=Path, help="real-*.jsonl of the exploration")
    parser.add_argument("--updates", type=Path, help="corpus: what updates-real-looking's corpus wrote")
    parser.add_argument("--choice", type=Path, default=CHOICE, help="corpus: the result that says what was chosen")
    args = parser.parse_args()
    if args.smoke:
        updates_oracle.MAX_TOKENS = 4000  # a tiny model's tokens are short
        globals().update(GENERATED=dict.fromkeys(GENERATED, 4), TRAININGS=TRAININGS[:2], FOLDS=2)
    try:
        {"corpus": corpus, "seal": seal, "draw": draw, "judge": judge, "tell": tell}[args.do](args)
    except DataError as error:
        print(f"sealed: {error}", file=sys.stderr)
        return 2
    return 0


# --------------------------------------------------------------------------- what is trained on


def corpus(args: argparse.Namespace) -> None:
    """Generated updates of all functions (each fold leaves out those of its own), and the recipe that was chosen."""
    if not args.choice.exists():
        raise DataError(f"no {args.choice}; run updates-real-looking first: its rule chooses the recipe")
    chosen = store.read_json(args.choice)["choice"]["chosen"]
    recipe = next(v for v in real_looking.VARIANTS if v.name == chosen)
    store.write_json(args.out / "recipe.json", {
        "chosen": chosen, "sources": recipe.sources, "passes": recipe.passes, "tokens": recipe.tokens,
        "cost": recipe.cost,
    })  # fmt: skip
    for name, file in (("looking", "looking"), ("old", "open")):
        store.write_jsonl(args.out / f"{name}.jsonl", store.read_jsonl(args.updates / f"{file}.jsonl", Trajectory))
    real = benchmark(args, 0).updates()
    by_update: dict[str, list[Trajectory]] = defaultdict(list)
    for lesson in updates._read_real(args.lessons):
        by_update[lesson.domain].append(lesson)
    rng = random.Random(f"renamed/{SEED}")
    made = [m for _ in range(ROUNDS) for d in sorted(by_update)
            for m in programs.renamed(rng, real[d], by_update[d], "renamed")]  # fmt: skip
    store.write_jsonl(args.out / "renamed.jsonl", [m.lesson for m in made])
    console.out(f"{chosen}; {len({m.lesson.domain for m in made})} renamed updates of {len(by_update)} real ones")


def benchmark(args: argparse.Namespace, fold: int) -> code_update_arena.CodeUpdateArena:
    return code_update_arena.build(code_update_arena.Config(path=str(args.data), folds=FOLDS, fold=fold))


def digests(corpus: Path) -> dict[str, str]:
    """sha256 of what decides: the plan, the programs, the corpus."""
    root = HERE.parent
    files = {f"studies/{p.relative_to(root)}": p for p in (
        HERE / "README.md", HERE / "sealed.py", root / "adapter_lane.py",
    )}  # fmt: skip
    files |= {f"corpus/{name}": corpus / name for name in FILES}
    return {name: store.sha256_file(path) for name, path in files.items()}


def seal(args: argparse.Namespace) -> None:
    store.write_json(args.out / "seal.json", digests(args.corpus))


# --------------------------------------------------------------------------- the lane


class Study:
    """What all parts read: tasks by fold, texts by source, the chosen recipe."""

    def __init__(self, args: argparse.Namespace) -> None:
        known, now = args.out / "seal.json", digests(args.corpus)
        if known.exists() and store.read_json(known) != now:
            raise DataError(f"{known}: begun with another plan, program or corpus; start in a new folder")
        store.write_json(known, now)
        self.chosen = store.read_json(args.corpus / "recipe.json")
        rounds = len(TRAININGS) * FOLDS / args.workers
        small = (
            {
                "text_tokens": 4000,
                "example_tokens": 4000,
                "together": 4,
                "block": 4,
                "dose": 2,
                "slice": 1,
                "reserve": 5.0,
            }
            if args.smoke
            else {}
        )
        self.recipe = Recipe(seed=SEED, rounds=rounds, **{"reserve": 60.0, **small})
        self.lane = Lane(args, self.recipe)
        lessons = updates._read_real(args.lessons)
        self.generated = {name: self._jobs(args, name, count) for name, count in GENERATED.items()
                          if name in self.chosen["sources"]}  # fmt: skip
        self.held: dict[int, list[Job]] = {}
        self.real: dict[int, list[Job]] = {}
        self.problems: dict[str, Problem] = {}
        for fold in range(FOLDS):
            problems = benchmark(args, fold).problems()
            self.problems |= {p.task_id: p for p in problems}
            for side, split in ((self.held, "held_out"), (self.real, "train")):
                cases = updates._cases([p for p in problems if p.split == split], lessons)
                side[fold] = [Job(j.case.problem, j.case.own, j.lessons)
                              for j in updates_oracle.jobs_of(cases, self.lane.base) if j.arm == "oracle"]  # fmt: skip
            if args.smoke:
                self.held[fold], self.real[fold] = self.held[fold][::40], self.real[fold][::60]
            pools = self.pools(fold)
            trained = [t for jobs in pools for j in jobs for t in (j.own, *j.lessons)]
            exclusion.check_corpus(trained, [j.problem for j in self.held[fold]])
            inside = {function(t) for t in trained} & {function(j.own) for j in self.held[fold]}
            if inside:
                raise ValueError(f"fold {fold}: trained on and held out: {sorted(inside)}")

    def _jobs(self, args: argparse.Namespace, name: str, count: int) -> list[Job]:
        texts = store.read_jsonl(args.corpus / f"{name}.jsonl", Trajectory)
        found = real_looking.jobs_of(texts, (), f"{name}/{SEED}")
        return self.lane.fitting(found[: round(1.2 * count)])[:count]

    def pools(self, fold: int) -> list[list[Job]]:
        """Real training updates of a fold, then the generated ones of each source that change none of its functions."""
        out = {function(j.own) for j in self.held[fold]}
        return [self.real[fold], *([j for j in some if function(j.own) not in out] for some in self.generated.values())]

    def shares(self) -> Sequence[int]:
        """Of a step's twelve examples: real ones, then those of each source, as in updates-real-looking."""
        if self.lane.args.smoke:
            return [1] * (1 + len(self.generated))
        return real_looking.SHARES[len(self.generated)]

    def wrong(self, fold: int) -> dict[str, str]:
        """Task → its wrong donor's: a task of another function, of the same package where there is one."""
        jobs, found = self.held[fold], {}
        for job in jobs:
            far = [j for j in jobs if function(j.own) != function(job.own)]
            near = [j for j in far if j.problem.category == job.problem.category]
            found[job.key] = random.Random(f"{SEED}/{job.key}").choice(near or far).key
        return found


def function(lesson: Trajectory) -> str:
    return updates._function(lesson.domain)


def variants(chosen: dict[str, Any]) -> list[Variant]:
    """Seed by seed, so that those that come to an end are whole."""
    return [
        Variant(
            f"fold {fold} seed {seed}", tuple(chosen["sources"]), seed, chosen["passes"], chosen["tokens"],
            cost=chosen["cost"],
        )
        for seed in TRAININGS for fold in range(FOLDS)
    ]  # fmt: skip


def draw(args: argparse.Namespace) -> None:
    """Teachers by all workers, then arms without training by one of them, trainings by whoever is free."""
    study = Study(args)
    lane = study.lane
    real = {j.key: j for jobs in study.real.values() for j in jobs}
    teachers = lane.teachers({"real": list(real.values()), **study.generated})

    def part(variant: Variant) -> None:
        fold = int(variant.name.split()[1])
        jobs = study.held[fold]
        drawn = lanes.mixture(lane, study.pools(fold), study.shares())
        model = lanes.trained(lane, variant, drawn, teachers)
        made = lanes.Written(lane, model, {j.key: j.lessons for j in jobs}, variant.tokens)
        show(study, variant.name, fold, f"@{variant.seed}", made, "written")
        donors(study, variant.name, jobs, made)
        if variant.seed == TRAININGS[0]:
            own = lanes.Written(lane, model, {f"own/{j.key}": (j.own,) for j in jobs}, variant.tokens)
            arm = f"own@{variant.seed}"
            asks = [Ask(arm, j.problem) for j in jobs]
            lane.show(variant.name, asks, own, {(arm, j.key): f"own/{j.key}" for j in jobs}, DRAWS)
            harm(study, variant.name, made)
        lane.rest()
        lane.done(f"draw {variant.name}")

    lanes.attempt(lane, "without", lambda: without(study))
    lanes.in_turn(lane, variants(study.chosen), part)
    lane.done("end")


def show(study: Study, file: str, fold: int, mark: str, made: Mapping[str, Adapters], label: str) -> None:
    """Draw adapters on a fold's tasks, each its own and its wrong donor's."""
    wrong = study.wrong(fold)
    for arm, whose in ((label, {key: key for key in wrong}), (f"{label}_wrong", wrong)):
        asks = [Ask(f"{arm}{mark}", j.problem) for j in study.held[fold]]
        study.lane.show(file, asks, made, {(f"{arm}{mark}", key): donor for key, donor in whose.items()}, DRAWS)


def without(study: Study) -> None:
    """Bare, in context, fine-tuned."""
    lane = study.lane
    most = 200 if lane.args.smoke else None  # a tiny model's window is small
    for fold, jobs in study.held.items():
        asks = []
        for j in jobs:
            shown = [prompts.render_trajectory(t)[:most] for t in j.lessons]
            asks += [Ask("vanilla", j.problem), Ask("context_sibling1", j.problem, shown[0])]
            asks.append(Ask("context_siblings", j.problem, "\n\n".join(shown)))
            asks.append(Ask("context_own", j.problem, prompts.render_trajectory(j.own)[:most]))
        lane.draw(f"without {fold}", asks, DRAWS)
    lane.rest()
    lane.done("without")
    for fold, jobs in study.held.items():
        made = lane.tune(jobs, study.recipe.dose, f"held {fold}")
        show(study, f"tuned {fold}", fold, "", made, "tuned")
        lane.rest()
    lane.done("tuned")


def harm(study: Study, name: str, made: Mapping[str, Adapters]) -> None:
    """HumanEval under adapters of random held-out updates of the fold; a fifth of the tasks each."""
    fold = int(name.split()[1])
    problems = real_looking._humaneval(study.lane.args)[fold::FOLDS][: 2 if study.lane.args.smoke else None]
    keys = random.Random(f"harm/{SEED}/{fold}").choices(sorted(made), k=len(problems))
    arm = f"written@{TRAININGS[0]}"
    study.lane.draw(f"humaneval {fold}", [Ask("vanilla", p) for p in problems], 1)
    whose = {(arm, p.task_id): key for p, key in zip(problems, keys, strict=True)}
    study.lane.show(f"humaneval {fold}", [Ask(arm, p) for p in problems], made, whose, 1)


@torch.no_grad()
def donors(study: Study, name: str, jobs: Sequence[Job], made: Mapping[str, Adapters]) -> None:
    """OUT/donors-NAME.json: nats of one solution an update under the adapter of each update, [donor][target]."""
    lane = study.lane
    first: dict[str, Job] = {}
    for job in jobs:
        first.setdefault(job.problem.domain, job)
    chosen = list(first.values())
    rows = lane.base.rows([lane.encode(j.own) for j in chosen])
    matrix = []
    for j in chosen:
        worn = {m: Factors(*(t.to(lane.base.device, lane.dtype) for t in f)) for m, f in made[j.key].items()}
        nats = losses.sequence_log_prob(lane.base.log_prob(rows, worn), rows.row_P, len(chosen))
        matrix.append([round(v, 2) for v in nats.tolist()])
    store.write_json(lane.shared / f"donors-{name.replace(' ', '-')}.json",
                     {"targets": [j.key for j in chosen], "nats": matrix})  # fmt: skip


# --------------------------------------------------------------------------- verdicts and numbers


def judge(args: argparse.Namespace) -> None:
    problems = [*benchmark(args, 0).problems(), *real_looking._humaneval(args)]
    lanes.judge(args, lambda samples, verdicts: updates._score(problems, samples, verdicts))


CONTRASTS = (
    ("written", "written_wrong"), ("written", "vanilla"), ("written", "context_sibling1"),
    ("written", "context_siblings"), ("written", "tuned"), ("written_wrong", "vanilla"), ("own", "context_own"),
    ("tuned", "tuned_wrong"), ("tuned", "vanilla"), ("tuned", "context_sibling1"), ("context_sibling1", "vanilla"),
)  # fmt: skip


DECIDES = "written − written_wrong"


def tell(args: argparse.Namespace) -> None:
    """Judge the rest; result.json, result.md with the rule's answer."""
    committed = HERE / "seal.json"
    if not args.smoke and not (
        committed.exists() and store.read_json(committed) == store.read_json(args.out / "seal.json")
    ):
        raise DataError(
            f"{args.out}/seal.json is not the committed seal.json: another plan, program or corpus was drawn"
        )
    args.follow = False
    judge(args)
    known = {p.task_id: p for p in [*benchmark(args, 0).problems(), *real_looking._humaneval(args)]}
    rows = []
    for path in sorted(args.out.glob("verdicts/*.jsonl")):
        drawn = {(s.condition, s.task_id, s.draw): s
                 for s in store.read_jsonl(args.out / "samples" / path.name, Sample)}  # fmt: skip
        for v in lanes.lines(path):
            s = drawn[v["arm"], v["task"], v["draw"]]
            names = names_function(s.program, known[v["task"]]) is not False
            rows.append({**v, "named": v["used"] and names, "cut": s.finish_reason == "length"})
    ranks = sorted(args.out.glob("donors-*.json"))
    result = numbers(rows, ranks)
    parts = distilled.parts_of(updates._benchmark(args, fold=0).problems(), updates._read_real(args.lessons))
    chose = {c.problem.domain for c in parts.validation}
    rest = [r for r in rows if known[r["task"]].domain not in chose]
    result["without those that chose"] = numbers(rest, ranks)  # ranks are of all
    paces = args.out / "pace.json"
    result["pace"] = store.read_json(paces) if paces.exists() else {}
    store.write_json(args.out / "result.json", result)
    store.write_atomic(args.out / "result.md", page(result))
    console.out(page(result))


def numbers(rows: Sequence[dict[str, Any]], ranks: Sequence[Path]) -> dict[str, Any]:
    """Shares and contrasts by measure, intervals over updates and trainings; trainings that are whole count."""
    arena = [r for r in rows if not r["task"].startswith("HumanEval")]
    every = {r["task"] for r in arena if r["arm"] == "vanilla"}
    tasks: dict[str, set[str]] = defaultdict(set)
    for r in arena:
        tasks[r["arm"]].add(r["task"])
    whole = {arm for arm, some in tasks.items() if "@" not in arm or some >= every}
    arena = [r for r in arena if r["arm"] in whole]
    found: dict[str, Any] = {"tasks": len(every), "updates": len({t.rpartition("/")[0] for t in every})}
    found["trainings"] = sorted(a.partition("@")[2] for a in whole if a.startswith("written@"))
    for measure in ("used", "named", "plain"):
        table = Table(arena, measure)
        found[measure] = {
            "arms": {arm: table.share(arm) for arm in table.arms},
            "contrasts": {f"{a} − {b}": value for a, b in CONTRASTS
                          if (value := table.contrast(a, b, lambda t: t.rpartition("/")[0])) is not None},
        }  # fmt: skip
    other = Table([r for r in rows if r["task"].startswith("HumanEval")], "plain")
    found["humaneval"] = other.contrast("written", "vanilla")
    shares = [rank_shares(store.read_json(path)) for path in ranks]
    found["rank of the right donor"] = float(np.mean([s for some in shares for s in some])) if shares else None
    found["answer"] = answer(found)
    return found


def rank_shares(one: dict[str, Any]) -> list[float]:
    """Rank of each target's own donor among those of other functions, as a share; chance 0.5."""
    nats, targets = np.array(one["nats"]), one["targets"]
    functions = [updates._function(t.partition("/")[2].rpartition("/")[0]) for t in targets]
    found = []
    for t in range(len(targets)):
        others = [d for d in range(len(targets)) if functions[d] != functions[t]]
        if others:
            found.append((0.5 + sum(nats[d, t] > nats[t, t] for d in others)) / (len(others) + 1))
    return found


def answer(found: dict[str, Any]) -> dict[str, bool]:
    """The rule, point by point; a claim needs five whole trainings."""
    used = found["used"]["contrasts"]
    right = used.get(DECIDES)
    context = used.get("written − context_sibling1")
    own, shown = (found["used"]["arms"].get(a, 0.0) for a in ("own", "context_own"))
    rank, harm = found["rank of the right donor"], found["humaneval"]
    return {
        "five trainings": len(found["trainings"]) >= len(TRAININGS),
        "right − wrong at +10 or more": bool(right and right[0] >= 10),
        "its interval above 0": bool(right and right[1] > 0),
        "ahead of a sibling in context": bool(context and context[0] > 0),
        "right donor in the best quarter": rank is not None and rank <= 0.25,
        "own at 80 % of own in context": shown > 0 and own >= 0.8 * shown,
        "HumanEval not below −1": bool(harm and harm[0] >= -1),
    }


def page(result: dict[str, Any]) -> str:
    """Everything as Markdown."""
    out = [f"{result['tasks']} tasks of {result['updates']} updates, each held out once; whole trainings: "
           f"{', '.join(result['trainings']) or 'none'}; T = {updates.TEMPERATURE}", "",
           "| arm | UPass | by programs that name the function | plain pass |", "|---|---:|---:|---:|"]  # fmt: skip
    out += [f"| {arm} | " + " | ".join(f"{result[m]['arms'][arm]:.1f}" for m in ("used", "named", "plain")) + " |"
            for arm in result["used"]["arms"]]  # fmt: skip
    out += ["", "| contrast, points, 95 % over updates and trainings | UPass | by programs that name the function "
            "| plain pass |", "|---|---:|---:|---:|"]  # fmt: skip
    out += [f"| {name} | " + " | ".join(interval(result[m]["contrasts"].get(name)) for m in ("used", "named", "plain"))
            + " |" for name in result["used"]["contrasts"]]  # fmt: skip
    rank = result["rank of the right donor"]
    told = "–" if rank is None else f"{rank:.2f}"
    out += ["", f"HumanEval, written − bare: {interval(result['humaneval'])}.", "",
            f"Rank of the right donor, as a share (chance 0.5): {told}.", ""]  # fmt: skip
    rest = result["without those that chose"]
    out += [f"| the rule | all {result['updates']} updates | {rest['updates']}, without those that chose |",
            "|---|---|---|"]  # fmt: skip
    out += [f"| {what} | {'yes' if met else 'no'} | {'yes' if rest['answer'][what] else 'no'} |"
            for what, met in result["answer"].items()]  # fmt: skip
    out += [f"| right − wrong, UPass | {interval(result['used']['contrasts'].get(DECIDES))} "
            f"| {interval(rest['used']['contrasts'].get(DECIDES))} |"]  # fmt: skip
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    sys.exit(main())
