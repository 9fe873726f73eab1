"""Real-looking generated updates: does a generator of outer products carry a real update if it is trained on real
programs? Plan, rule and predictions: README.md.

    cd studies/updates-real-looking
    python real_looking.py corpus --data DATA --lessons FOLDER --out CORPUS                     here
    python real_looking.py draw --data DATA --lessons FOLDER --corpus CORPUS --out OUT --worker N    there, several
    python real_looking.py judge --data DATA --corpus CORPUS --out OUT --follow                 there, beside it
    python real_looking.py tell --data DATA --lessons FOLDER --corpus CORPUS --out OUT          here

FOLDER holds real-*.jsonl of results/updates-exploration/records.tar.xz. Workers, training and draws: adapter_lane.py;
parts of the real updates and scoring are those of the studies before.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

for beside in ("", "updates-exploration", "updates-oracle", "updates-distilled", "updates-scaled"):
    sys.path.insert(0, str(Path(__file__).parents[1] / beside))

import adapter_lane as lanes
import distilled
import numpy as np
import programs
import scaled
import updates
import updates_oracle
from adapter_lane import Ask, Job, Lane, Recipe, Variant
from distilled import choose
from programs import Made, Source

from rune import console, prompts
from rune.benchmarks import families, humaneval, mbpp
from rune.benchmarks.scorers import judging
from rune.benchmarks.scorers.judging import Item
from rune.benchmarks.scorers.updates import names_function
from rune.corpus import exclusion
from rune.runs import store
from rune.types import Outcome, Problem, Split, Trajectory

SEED = 24  # of what is made and drawn here; parts of the real updates are those of the studies before
# Updates that are trained on, by source; conventions by what is to ship alone.
COUNTS = {"old": 700, "looking": 1000, "renamed": 600, "conventions": 300}
LARGER_COUNTS = {"old": 300, "looking": 500, "renamed": 300, "conventions": 200}  # on the other size
# Of a step's twelve examples: real ones, then those of each source, by how many sources there are.
SHARES = {1: (1, 11), 2: (1, 5, 6), 3: (1, 3, 4, 4), 4: (1, 2, 3, 3, 3)}
DOSE, COMPARED = 4, 10  # gradient steps of teachers and of the oracle; the dose of the studies before
WITHHELD_FUNCTIONS = 6  # of MBPP's groups: no real-looking update of these is trained on
SHOWN = 40  # withheld updates that are drawn on, one task each
DRAWS, CHOICE_DRAWS = 5, 3
HARM_DRAWS = 1
RECIPE = Recipe(seed=SEED, dose=DOSE, rounds=3.0, reserve=200.0)
LARGER_RECIPE = dataclasses.replace(RECIPE, together=4, block=16)  # its LoRAs and adapters are larger
EVERY = ("old", "looking", "renamed")
WIDE: dict[str, Any] = {"tokens": 128, "cost": 1.2}  # a pass
VARIANTS = (
    Variant("four of 128 all", EVERY, SEED, **WIDE), Variant("four all", EVERY, SEED),
    Variant("four old", ("old",), SEED),
    Variant("four of 128 all and conventions", (*EVERY, "conventions"), SEED, **WIDE),
    Variant("one of 256 all", EVERY, SEED, passes=1, tokens=256, cost=0.6),
    Variant("four looking", ("looking",), SEED),
    Variant("two gradient all", EVERY, SEED, passes=2, gradient=True, cost=1.3),
    Variant("four renamed", ("renamed",), SEED), Variant("two all", EVERY, SEED, passes=2, cost=0.7),
    Variant("four of 128 all again", EVERY, SEED + 1, **WIDE),
)  # fmt: skip
LARGER = (VARIANTS[0], VARIANTS[3], VARIANTS[1])
# The rule chooses among these.
FORWARD = tuple(v.name for v in VARIANTS if not v.gradient and v.seed == SEED and "conventions" not in v.sources)
PARTS = ("held", "validation", "looking", "withheld", "combinations", "habits", "humaneval")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("corpus", "draw", "judge", "tell"))
    lanes.options(parser)
    parser.add_argument("--lessons", type=Path, help="real-*.jsonl of the exploration")
    parser.add_argument("--larger", action="store_true", help="the other size: fewer updates, its own variants")
    args = parser.parse_args()
    if args.smoke:
        updates_oracle.MAX_TOKENS = 4000  # a tiny model's tokens are short
        scaled.GENERATED = scaled.WITHHELD = 4
        small = dict.fromkeys(COUNTS, 4)
        few = dataclasses.replace(
            RECIPE, dose=2, text_tokens=4000, example_tokens=4000, together=4, block=4, slice=1, reserve=5.0
        )
        globals().update(COUNTS=small, LARGER_COUNTS=small, SHOWN=2, DOSE=2, COMPARED=3, RECIPE=few, LARGER_RECIPE=few)
    else:
        scaled.GENERATED, scaled.WITHHELD = COUNTS["old"], SHOWN
    {"corpus": corpus, "draw": draw, "judge": judge, "tell": tell}[args.do](args)
    return 0


# --------------------------------------------------------------------------- what is trained on


def corpus(args: argparse.Namespace) -> None:
    """Generated updates of the study before (once), real-looking ones, the withheld of them, renamed real ones."""
    if not (args.out / "open.jsonl").exists():
        scaled.corpus(args)
    parts = distilled.parts_of(updates._benchmark(args, fold=0).problems(), updates._read_real(args.lessons))
    evaluated = {updates._function(c.problem.domain) for c in (*parts.validation, *parts.held)}
    evaluated |= {
        updates._function(p.domain) for p in store.read_jsonl(args.out / "problems.jsonl", Problem)
    }  # the withheld functions of the old grammar
    tasks = mbpp.build(mbpp.Config(path=str(args.data / "mbpp"))).problems()
    with_tests = list(programs.of_mbpp(tasks))
    others = [*programs.of_libraries(), *programs.of_arena([c.own for c in parts.train])]
    rng = random.Random(f"real-looking/{SEED}")
    apart = {f: g for f, g in programs.groups(with_tests).items() if _may_be_withheld(f, g, parts)}
    apart = {f: apart[f] for f in sorted(rng.sample(sorted(apart), WITHHELD_FUNCTIONS))}
    kept = _verified(programs.updates_of(rng, apart, 4 * SHOWN, "looking_withheld"), "withheld")
    rng.shuffle(kept)
    kept = kept[:SHOWN]
    seen = {m.lesson.source.partition(",")[0] for made in kept for m in made}
    pool = programs.groups([s for s in (*with_tests, *others) if s.name not in seen])
    pool = {f: g for f, g in pool.items() if f not in evaluated and f not in apart}
    made = _verified(programs.updates_of(rng, pool, round(1.25 * COUNTS["looking"]), "looking"), "looking")
    real = updates._benchmark(args, fold=0).updates()
    by_update: dict[str, list[Trajectory]] = defaultdict(list)
    for case in parts.train:
        by_update[case.problem.domain].append(case.own)
    again: list[list[Made]] = []
    for _ in range(60):
        for domain in sorted(by_update):
            some = programs.renamed(rng, real[domain], by_update[domain], "renamed")
            again += [some] if some else []
    rng.shuffle(again)
    for name, found in (("looking", made), ("renamed", again), ("looking_withheld", kept)):
        store.write_jsonl(args.out / f"{name}.jsonl", [m.lesson for some in found for m in some])
        functions = {updates._function(some[0].lesson.domain) for some in found}
        sources = {m.lesson.source for some in found for m in some}
        console.out(f"{name}: {len(found)} updates of {len(functions)} functions, {len(sources)} programs")
    store.write_jsonl(args.out / "looking_problems.jsonl", [some[0].problem for some in kept])
    conventions(args.out)


def conventions(out: Path) -> None:
    """Private conventions of four tasks each. Withheld: new combinations of known habits, and those with a new one."""
    count = COUNTS["conventions"] + SHOWN
    made = families.generate(families.Config(seed=SEED, families=count + SHOWN, held_out=SHOWN, tasks=4, split="atom"))
    names = list(dict.fromkeys(p.domain for p in made if p.split is Split.TRAIN))
    sides = {
        "conventions": names[: COUNTS["conventions"]], "combinations_withheld": names[COUNTS["conventions"] :],
        "habits_withheld": sorted({p.domain for p in made if p.split is Split.HELD_OUT}),
    }  # fmt: skip
    for name, domains in sides.items():
        some = [p for p in made if p.domain in domains]
        store.write_jsonl(out / f"{name}.jsonl", families.trajectories(some, None, seed=SEED))
        if name != "conventions":
            store.write_jsonl(out / f"{name.replace('withheld', 'problems')}.jsonl", some)


def _may_be_withheld(function: str, group: Sequence[Source], parts: distilled.Parts) -> bool:
    real = {updates._function(c.problem.domain) for some in parts for c in some}
    return function not in real | {"builtins.len", "builtins.range"} and len(group) >= programs.TASKS + 1


def _verified(found: Sequence[list[Made]], what: str) -> list[list[Made]]:
    """Those whose programs with tests pass with the update and do not without it."""
    problems = [m.problem for made in found for m in made if m.problem is not None]
    sandbox = updates._sandbox()
    right = {e.key for e in judging.judge(sandbox, (Item(p.task_id, p, p.reference) for p in problems))
             if e.outcome is Outcome.PASSED}  # fmt: skip
    sandbox.close()
    kept = [made for made in found if all(m.problem is None or m.problem.task_id in right for m in made)]
    tested = sum(any(m.problem for m in made) for made in found)
    console.out(f"{what}: {len(right)} of {len(problems)} programs with tests count; {len(kept)} of {len(found)} "
                f"updates are kept, {tested} have such a program")  # fmt: skip
    return kept


# --------------------------------------------------------------------------- who learns from whom


def jobs_of(lessons: Sequence[Trajectory], problems: Sequence[Problem], seed: str) -> list[Job]:
    """An update each: its first task, the others its lessons; shuffled, so that the first so many are any."""
    by_update: dict[str, list[Trajectory]] = defaultdict(list)
    for lesson in lessons:
        by_update[lesson.domain].append(lesson)
    known = {p.task_id: p for p in problems}
    found = []
    for name in lanes.shuffled(by_update, seed):
        own, *siblings = by_update[name]
        problem = known.get(own.task_id) or Problem(
            task_id=own.task_id, benchmark=own.benchmark, prompt=own.prompt, entry_point="", test="",
            reference=own.solution, category=own.category, domain=own.domain,
        )  # fmt: skip
        found.append(Job(problem, own, tuple(siblings)))
    return found


def real_jobs(lane: Lane, cases: Sequence[updates.Case]) -> list[Job]:
    """Of each real update up to three tasks, as in the studies before."""
    some = [j for j in updates_oracle.jobs_of(cases, lane.base) if j.arm == "oracle"]
    if lane.args.smoke:
        some = some[:: max(1, len(some) // 3)]
    return [_job(j) for j in some]


def _job(job: updates_oracle.Job) -> Job:
    return Job(job.case.problem, job.case.own, job.lessons)


def function(job: Job) -> str:
    return updates._function(job.problem.domain)


def strangers(jobs: Sequence[Job]) -> dict[str, str]:
    """Task → its wrong donor's: a task of another function, of the same package where there is one."""
    found = {}
    for job in jobs:
        far = [j for j in jobs if function(j) != function(job)]
        near = [j for j in far if j.problem.category == job.problem.category]
        found[job.key] = random.Random(f"{scaled.SEED}/{job.key}").choice(near or far).key
    return found


class Study:
    """What all parts read: jobs to learn from by source, jobs to draw on by part."""

    def __init__(self, args: argparse.Namespace) -> None:
        recipe = LARGER_RECIPE if args.larger else RECIPE
        self.variants = LARGER if args.larger else VARIANTS
        lane = self.lane = Lane(args, recipe)
        parts = distilled.parts_of(updates._benchmark(args, fold=0).problems(), updates._read_real(args.lessons))
        old = store.read_jsonl(args.corpus / "open.jsonl", Trajectory)
        train, withheld = scaled.generated_jobs(old, store.read_jsonl(args.corpus / "problems.jsonl", Problem))
        counts = LARGER_COUNTS if args.larger else COUNTS
        self.sources = {"old": [_job(j) for j in train[: counts["old"]]]}
        for name in ("looking", "renamed", "conventions"):
            found = jobs_of(store.read_jsonl(args.corpus / f"{name}.jsonl", Trajectory), (), f"{name}/{SEED}")
            self.sources[name] = lane.fitting(found[: round(1.1 * counts[name])])[: counts[name]]
        apart = {}
        for name in ("looking", "combinations", "habits"):
            lessons = store.read_jsonl(args.corpus / f"{name}_withheld.jsonl", Trajectory)
            problems = store.read_jsonl(args.corpus / f"{name}_problems.jsonl", Problem)
            apart[name] = jobs_of(lessons, problems, "shown")[:SHOWN]
        self.shown = {
            "held": real_jobs(lane, parts.held), "validation": real_jobs(lane, parts.validation),
            "withheld": [_job(j) for j in withheld[:SHOWN]], **apart,
        }  # fmt: skip
        self.real = real_jobs(lane, parts.train)
        learned = [*self.real, *(j for some in self.sources.values() for j in some)]
        trained = [c.own for c in parts.train] + [t for j in learned for t in (j.own, *j.lessons)]
        exclusion.check_corpus(trained, [j.problem for some in self.shown.values() for j in some])
        functions = {updates._function(t.domain) for t in trained}
        shown = {function(j) for some in self.shown.values() for j in some}
        if functions & shown:
            raise ValueError(f"trained on and drawn on: {sorted(functions & shown)}")

    def mixture(self, variant: Variant) -> lanes.Examples:
        pools = [self.real, *(self.sources[s] for s in variant.sources)]
        if self.lane.args.smoke:
            return lanes.mixture(self.lane, pools, [1] * len(pools))
        return lanes.mixture(self.lane, pools, SHARES[len(variant.sources)])

    def show(self, part: str, label: str, made: Mapping[str, Any], *, wrong: bool = True) -> None:
        """Draw adapters on a part, into a file of this label alone; with `wrong` each also under its stranger's."""
        jobs = self.shown[part]
        whose = {(label, j.key): j.key for j in jobs}
        asks = [Ask(label, j.problem) for j in jobs]
        if wrong:
            whose |= {(f"{label}_wrong", key): donor for key, donor in strangers(jobs).items()}
            asks = [a for j in jobs for a in (Ask(label, j.problem), Ask(f"{label}_wrong", j.problem))]
        self.lane.show(f"{part}.{label}", asks, made, whose, draws_of(part))


def draws_of(part: str) -> int:
    return DRAWS if part == "held" else CHOICE_DRAWS


# --------------------------------------------------------------------------- the lane


def draw(args: argparse.Namespace) -> None:
    """Teachers by all workers; arms without a generator by one; then variants, the next one to whoever is free."""
    study = Study(args)
    lane = study.lane
    teachers = lane.teachers({"real": study.real, **study.sources})

    def part(variant: Variant) -> None:
        model = lanes.trained(lane, variant, study.mixture(variant), teachers)
        parts = ("held", "looking", "withheld") if args.larger else ("validation", "looking", "held", "withheld")
        for name in (*parts, "combinations", "habits") if "conventions" in variant.sources else parts:
            jobs = study.shown[name]
            made = lanes.Written(lane, model, {j.key: j.lessons for j in jobs}, variant.tokens)
            study.show(name, variant.name, made)
            if name == "held" and variant is study.variants[0]:
                own = lanes.Written(lane, model, {j.key: (j.own,) for j in jobs}, variant.tokens)
                study.show(name, f"{variant.name} own", own, wrong=False)
                harm(lane, variant.name, made)
        lane.rest()
        lane.done(f"draw {variant.name}")

    lanes.in_turn(lane, study.variants[:1], part)
    lanes.attempt(lane, "controls", lambda: controls(study))
    lanes.in_turn(lane, study.variants[1:], part)
    lane.done("end")


def harm(lane: Lane, label: str, made: Mapping[str, Any]) -> None:
    """HumanEval's tasks, each under the adapter of some reported update, and bare."""
    problems = _humaneval(lane.args)[: 3 if lane.args.smoke else None]
    keys = random.Random(f"harm/{SEED}").choices(sorted(made), k=len(problems))
    file = f"humaneval.{label}"
    lane.draw(file, [Ask("vanilla", p) for p in problems], HARM_DRAWS)
    whose = {(label, p.task_id): key for p, key in zip(problems, keys, strict=True)}
    lane.show(file, [Ask(label, p) for p in problems], made, whose, HARM_DRAWS)


def controls(study: Study) -> None:
    """Bare, in context, and fine-tuned on the siblings."""
    lane = study.lane
    parts = ("held", "looking", "combinations", "habits") if lane.args.larger else PARTS[:-1]
    for part in parts:
        lane.draw(f"{part}.without", without_adapters(study.shown[part], 300 if lane.args.smoke else None),
                  draws_of(part))  # fmt: skip
    lane.rest()
    lane.done("without")
    for steps in (DOSE, COMPARED):
        for part in parts:
            study.show(part, f"tuned {steps}", lane.tune(study.shown[part], steps, f"{part} {steps}"))
            lane.rest()
        lane.done(f"tuned {steps}")
    if not lane.args.larger:
        variant = study.variants[0]
        model = lanes.fresh(lane, variant, study.mixture(variant)).eval()
        for part in ("held", "validation"):
            sets = {j.key: j.lessons for j in study.shown[part]}
            study.show(part, "untrained", lanes.Written(lane, model, sets, variant.tokens))
        lane.rest()
        lane.done("untrained")


def without_adapters(jobs: Sequence[Job], longest: int | None) -> list[Ask]:
    """Bare, one and all siblings in context; `longest`: so many characters of each at most, for a tiny model."""
    asks = []
    for job in jobs:
        shown = [prompts.render_trajectory(t)[:longest] for t in job.lessons]
        asks += [Ask("vanilla", job.problem), Ask("context_sibling1", job.problem, shown[0])]
        asks.append(Ask("context_siblings", job.problem, "\n\n".join(shown)))
    return asks


# --------------------------------------------------------------------------- numbers


def judge(args: argparse.Namespace) -> None:
    """Score what is drawn; with --follow whatever is drawn until OUT/end is there."""
    problems = _problems(args)
    lanes.judge(args, lambda samples, verdicts: updates._score(problems, samples, verdicts))


def _problems(args: argparse.Namespace) -> list[Problem]:
    found = [*updates._benchmark(args, fold=0).problems(), *_humaneval(args)]
    for name in ("problems", "looking_problems", "combinations_problems", "habits_problems"):
        found += store.read_jsonl(args.corpus / f"{name}.jsonl", Problem)
    return found


def _humaneval(args: argparse.Namespace) -> list[Problem]:
    folder = args.data / "humaneval"  # where it is carried; else the package's file
    return humaneval.build(humaneval.Config(path=str(folder) if folder.exists() else "")).problems()


def tell(args: argparse.Namespace) -> None:
    """Judge the rest; result.json, result.md and, with reported updates, figure.svg."""
    args.follow = False
    judge(args)
    problems = {p.task_id: p for p in _problems(args)}
    rows = {part: _rows(args.out, part, problems) for part in PARTS}
    result: dict[str, Any] = {"choice": choice(rows["validation"])} if rows["validation"] else {}
    for part in PARTS:
        if rows[part]:
            result[part] = numbers(rows[part])
    paces = args.out / "pace.json"
    result["pace"] = store.read_json(paces) if paces.exists() else {}
    result["seconds"] = {p.parent.name: store.read_json(p) for p in sorted(args.out.glob("worker-*/seconds.json"))}
    trained = LARGER if args.larger else VARIANTS
    result["losses"] = {
        v.name: lanes.first_and_last(args.out / v.name.replace(" ", "-") / "metrics.jsonl") for v in trained
    }
    store.write_json(args.out / "result.json", result)
    store.write_atomic(args.out / "result.md", table(result))
    if "held" in result:
        figure(args.out / "figure.svg", result)
    console.out(table(result))


def _rows(out: Path, part: str, problems: dict[str, Problem]) -> list[dict[str, Any]]:
    """Verdicts of a part, each with whether its program names the function, its tokens and how it ended.

    Arms whose draws are not all there are left out: those that end first are the short ones.
    """
    by_arm: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(out.glob(f"verdicts/{part}.*.jsonl")):
        drawn = {(s["condition"], s["task_id"], s["draw"]): s
                 for _, s in store.read_lines(out / "samples" / path.name)}  # fmt: skip
        for v in lanes.lines(path):
            one = drawn[v["arm"], v["task"], v["draw"]]
            names = names_function(one["program"], problems[v["task"]]) is not False  # None: there is none to name
            alone = part == "humaneval"  # each task is a domain of its own
            by_arm[v["arm"]].append({
                **v, "task": f"{v['task']}/0" if alone else v["task"],
                "function": v["task"] if alone else updates._function(problems[v["task"]].domain),
                "names": names, "named": v["used"] and names, "tokens": one["num_tokens"],
                "cut": one["finish_reason"] == "length",
            })  # fmt: skip
    whole = max(map(len, by_arm.values()), default=0)
    for arm in [arm for arm, rows in by_arm.items() if len(rows) < whole]:
        console.out(f"{part}: {arm} has {len(by_arm.pop(arm))} of {whole} draws and is left out")
    return [row for rows in by_arm.values() for row in rows]


def choice(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rule: of the forward variants, the highest 2 · right − wrong by programs that name the function."""
    judged = {r["arm"] for r in rows}
    arms = [(name, name, f"{name}_wrong") for name in FORWARD if {name, f"{name}_wrong"} <= judged]
    chosen, scores = choose([{**r, "used": r["named"]} for r in rows], arms) if arms else (None, {})
    return {"chosen": chosen, "scores": scores}


def numbers(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares of each arm and contrasts, intervals over updates and over functions."""
    arms = sorted({r["arm"] for r in rows})
    bases = ("vanilla", "context_sibling1", "context_siblings", f"tuned {DOSE}", f"tuned {COMPARED}")
    pairs = [(a, b) for a in arms if f"{a}_wrong" in arms for b in (f"{a}_wrong", *bases) if b in arms and b != a]
    pairs += [(a, "vanilla") for a in arms if (a.endswith("_wrong") or a.startswith("context")) and "vanilla" in arms]
    if "vanilla" in arms and len(arms) == 2:  # HumanEval
        pairs = [(next(a for a in arms if a != "vanilla"), "vanilla")]
    found: dict[str, Any] = {m: updates._numbers(rows, m, pairs) for m in ("used", "named", "plain")}
    found["updates"] = len({r["task"].rpartition("/")[0] for r in rows})
    by_function = [{**r, "task": f"{r['function'].replace('/', ' ')}/{r['task'].replace('/', ' ')}"} for r in rows]
    found["functions"] = len({r["task"].partition("/")[0] for r in by_function})
    found["over functions"] = {m: updates._numbers(by_function, m, pairs)["contrasts"] for m in ("used", "named")}
    found["of each"] = {
        a: {
            "draws": len(some), "names it": 100 * float(np.mean([r["names"] for r in some])),
            "tokens": float(np.mean([r["tokens"] for r in some])),
            "cut": 100 * float(np.mean([r["cut"] for r in some])),
        }
        for a in arms if (some := [r for r in rows if r["arm"] == a])
    }  # fmt: skip
    found["leads"] = leads(rows)
    return found


LEADS = (
    ("four of 128 all", "four all"), ("four of 128 all", "four old"), ("four of 128 all", "untrained"),
    ("four of 128 all", "one of 256 all"), ("four all", "four old"), ("four looking", "four old"),
    ("four renamed", "four old"), ("four all", "two all"), ("four all", "one of 256 all"),
    ("two gradient all", "two all"), ("four of 128 all again", "four of 128 all"),
    ("four of 128 all and conventions", "four of 128 all"), (f"tuned {DOSE}", "four of 128 all"),
    (f"tuned {COMPARED}", f"tuned {DOSE}"),
)  # fmt: skip


def leads(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Differences of right − wrong between two settings, paired by task, interval over updates."""
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    arms = {r["arm"] for r in rows}
    whole = {a for a in arms if f"{a}_wrong" in arms}
    for metric in ("used", "named"):
        by_task: dict[tuple[str, str], list[float]] = defaultdict(list)
        for r in rows:
            right = r["arm"].removesuffix("_wrong")
            if right in whole:
                by_task[right, r["task"]].append(float(r[metric]) * (1 if r["arm"] == right else -1))
        # Right and wrong have as many draws each, so twice the mean of both is right − wrong.
        shaped = [{"arm": a, "task": t, "used": 2 * float(np.mean(hits))} for (a, t), hits in by_task.items()]
        pairs = [pair for pair in LEADS if set(pair) <= whole]
        found[metric] = dict(updates._numbers(shaped, "used", pairs)["contrasts"]) if pairs else {}
    return found


TITLES = {
    "held": "Reported updates", "validation": "Validation updates", "looking": "Withheld real-looking updates",
    "withheld": "Withheld updates of the old grammar", "combinations": "Withheld private conventions of known habits",
    "habits": "Withheld private conventions with a habit that training never shows",
    "humaneval": "HumanEval, adapters of reported updates",
}  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """Everything as Markdown."""
    lines: list[str] = []
    for part, title in TITLES.items():
        if part not in result:
            continue
        one = result[part]
        used, plain, named = one["used"], one["plain"], one["named"]
        lines += [
            f"## {title}", "",
            f"{used['tasks']} tasks of {one['updates']} updates of {one['functions']} functions, "
            f"T = {updates.TEMPERATURE}", "",
            "| arm | UPass | by programs that name the function | plain pass | programs that name it, % | draws "
            "| tokens, mean | cut off, % |", "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]  # fmt: skip
        for arm, value in used["arms"].items():
            each = one["of each"][arm]
            lines.append(
                f"| {arm} | {value:.1f} | {named['arms'][arm]:.1f} | {plain['arms'][arm]:.1f} | {each['names it']:.0f} "
                f"| {each['draws']} | {each['tokens']:.0f} | {each['cut']:.0f} |"
            )
        lines += ["", "| contrast, points, 95 % over updates | UPass | UPass, over functions "
                  "| by programs that name the function | the same, over functions | plain pass |",
                  "|---|---:|---:|---:|---:|---:|"]  # fmt: skip
        for name, value in used["contrasts"].items():
            over = one["over functions"]
            cells = (value, over["used"][name], named["contrasts"][name], over["named"][name], plain["contrasts"][name])
            lines.append(f"| {name} | " + " | ".join(map(scaled._interval, cells)) + " |")
        if one["leads"]["used"]:
            lines += ["", "| lead in right − wrong, points, 95 % over updates | UPass "
                      "| by programs that name the function |", "|---|---:|---:|"]  # fmt: skip
            lines += [f"| {name} | {scaled._interval(value)} | {scaled._interval(one['leads']['named'][name])} |"
                      for name, value in one["leads"]["used"].items()]  # fmt: skip
        lines.append("")
    if result.get("choice"):
        lines += [f"Chosen on validation updates: {result['choice']['chosen']} {result['choice']['scores']}.", ""]
    if result["pace"]:
        steps, seconds = result["pace"]["steps"], result["pace"]["seconds_a_step"]
        lines += [f"{steps} steps each; {seconds} s a step of four passes.", ""]
    lines += ["| trained | KL to the fine-tuned, nats a token, first → last tenth | KL to the bare model, stranger |"]
    lines.append("|---|---:|---:|")
    for name, terms in result["losses"].items():
        if terms:
            cells = [f"{terms[t][0]:.3f} → {terms[t][1]:.3f}" for t in ("kl_teacher", "kl_foreign")]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def figure(path: Path, result: dict[str, Any]) -> None:
    """UPass by programs that name the function, reported updates: settings with their wrong donors."""
    part = {**result["held"], "used": result["held"]["named"]}
    arms = part["used"]["arms"]
    names = {"vanilla": "bare model", "context_sibling1": "one sibling in context",
             "context_siblings": "three siblings in context"}  # fmt: skip
    for label in ("untrained", *(v.name for v in VARIANTS), f"tuned {DOSE}", f"tuned {COMPARED}"):
        names |= {f"{label}_wrong": f"{label}, another update", label: f"{label}, the update's siblings"}
    names = {arm: name for arm, name in names.items() if arm in arms}
    distilled.bars(path, part, names, size=(5.2, 0.6 + 0.27 * len(names)), salt="real-looking")


if __name__ == "__main__":
    sys.exit(main())
