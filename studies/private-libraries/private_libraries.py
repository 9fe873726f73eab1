"""BeatNum and Monkey: does an adapter written in forward passes carry a renamed library that nothing was trained on?
Plan, rule and predictions: README.md.

    cd studies/private-libraries
    python private_libraries.py corpus --data DATA --updates CORPUS --out CORPUS2    here, once
    python private_libraries.py draw --corpus CORPUS2 --out OUT --worker N           there, several
    python private_libraries.py tell --data DATA --corpus CORPUS2 --out OUT          here: judge, numbers

`--updates` is the folder that updates-real-looking's `corpus` wrote. `draw` needs the corpus alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

for beside in (Path(__file__).parents[1], Path(__file__).parents[1] / "updates-real-looking"):
    sys.path.insert(0, str(beside))

import adapter_lane as lanes
import programs
import renaming
from adapter_lane import Ask, Job, Lane, Recipe, Table, Variant, interval

from rune import config, console, plugins, prompts
from rune.adapters.factors import Adapters
from rune.benchmarks import mbpp, private_library
from rune.corpus import exclusion
from rune.retrievers import bm25
from rune.runs import store
from rune.types import Attempt, Outcome, Problem, Sample, Trajectory

SEED = 26
TRAININGS = (31, 32, 33)
LIBRARIES = ("beatnum", "monkey")
GENERATED = 320  # libraries that nobody made, up to three targets each
COUNTS = {"libraries": 900, "looking": 450, "old": 450}  # jobs that are trained on
SHARES = {"libraries": 6, "looking": 3, "old": 3}  # of a step's twelve examples
NEAR, FAR = 3, 8  # tasks of the library that an adapter is made from
FIFTHS = 5  # of a library's tasks: the arm `library` reads the four that a task is not in
LIBRARY_DOSE = (40, 5e-4)  # steps and rate of a LoRA fine-tuned on these
DRAWS = 3
RECIPE = Recipe(seed=SEED, reserve=300.0)
VARIANTS = tuple(Variant(f"training {seed}", tuple(COUNTS), seed, tokens=128) for seed in TRAININGS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("corpus", "draw", "judge", "tell"))
    lanes.options(parser)
    parser.add_argument("--updates", type=Path, help="corpus: what updates-real-looking's corpus wrote")
    args = parser.parse_args()
    if args.smoke:
        globals().update(COUNTS=dict.fromkeys(COUNTS, 4), SHARES=dict.fromkeys(COUNTS, 1), RECIPE=Recipe(
            seed=SEED, dose=2, text_tokens=4000, example_tokens=4000, together=4, block=4, slice=1, reserve=5.0,
        ))  # fmt: skip
    {"corpus": corpus, "draw": draw, "judge": judge, "tell": tell}[args.do](args)
    return 0


# --------------------------------------------------------------------------- what is trained on, who is held out


def corpus(args: argparse.Namespace) -> None:
    """libraries, looking, old (.jsonl) are trained on, held and twins held out; jobs.json: whose lessons are whose."""
    held = {name: _part(args, name) for name in LIBRARIES}
    forbidden = {n for pairs in held[LIBRARIES[0]].renames().values() for pair in pairs.items() for n in pair}
    tasks = mbpp.build(mbpp.Config(path=str(args.data / "mbpp"))).problems()
    found = renaming.sources((s.name, s.prompt, s.code) for s in (*programs.of_mbpp(tasks), *programs.of_libraries()))
    made = renaming.libraries(random.Random(f"libraries/{SEED}"), found, GENERATED, forbidden, "libraries")
    jobs: dict[str, list[list[str]]] = {
        "libraries": [[m.own.task_id, *(t.task_id for t in m.siblings)] for some in made for m in some]
    }
    texts = {t.task_id: t for some in made for m in some for t in (m.own, *m.siblings)}
    store.write_jsonl(args.out / "libraries.jsonl", [texts[k] for k in sorted(texts)])
    for name, file in (("looking", "looking"), ("old", "open")):
        kept, some = _updates(store.read_jsonl(args.updates / f"{file}.jsonl", Trajectory), COUNTS[name], name)
        store.write_jsonl(args.out / f"{name}.jsonl", kept)
        jobs[name] = some
    problems, record = [], {}
    for name in LIBRARIES:
        some = _counted(held[name])
        problems += some
        record |= _held(some, held[name], {p.task_id for n in LIBRARIES if n != name for p in _counted(held[n])})
    store.write_jsonl(args.out / "held.jsonl", problems)
    twins = [p for name in LIBRARIES for p in _part(args, private_library.LIBRARIES[name]).problems()]
    numbers = {p.task_id.partition("/")[2] + private_library.LIBRARIES[p.domain] for p in problems}
    twins = [p for p in twins if p.task_id.partition("/")[2] + p.domain in numbers]
    store.write_jsonl(args.out / "twins.jsonl", twins)
    store.write_json(args.out / "jobs.json", {"trained": jobs, "held": record})
    shown = [sum(one["shown"][by] for one in record.values()) for by in ("near", "rest")]
    console.out(f"{len(made)} libraries of {len({s for t in texts.values() for s in [t.source]})} programs; "
                f"{ {k: len(v) for k, v in jobs.items()} } jobs; {len(problems)} held-out tasks; of those that "
                f"need a name {shown[0]} find all in the {NEAR} nearest, {shown[1]} in the other fifths")  # fmt: skip


def _part(args: argparse.Namespace, library: str) -> private_library.PrivateLibrary:
    return private_library.build(private_library.Config(library=library, path=str(args.data)))  # type: ignore[arg-type]


def _counted(part: private_library.PrivateLibrary) -> list[Problem]:
    """Those whose references pass (results/references-private-library.json)."""
    root = Path(__file__).parents[2]
    known = store.read_json(root / "results" / "references-private-library.json")[part.config.library]["left_out"]
    return [p for p in part.problems() if p.task_id not in known]


def _updates(lessons: Sequence[Trajectory], count: int, seed: str) -> tuple[list[Trajectory], list[list[str]]]:
    """Updates of which no text names what is held out: trajectories, and each update's tasks, first the one asked."""
    by_update: dict[str, list[Trajectory]] = defaultdict(list)
    for lesson in lessons:
        by_update[lesson.domain].append(lesson)
    some = [
        by_update[name] for name in lanes.shuffled(by_update, f"{seed}/{SEED}")
        if not any(renaming.HELD_OUT.search(f"{t.prompt}\n{t.solution}") for t in by_update[name])
    ][: round(1.1 * count)]  # fmt: skip
    return [t for one in some for t in one], [[t.task_id for t in one] for one in some]


def _held(problems: Sequence[Problem], part: private_library.PrivateLibrary, others: set[str]) -> dict[str, Any]:
    """For each task the others that its adapters are made from: the nearest to its prompt, three that show none of the
    names that it needs, and some task of the other library, whose nearest are meant."""
    lessons = {p.task_id: _lesson(p) for p in problems}
    finder = bm25.build(bm25.Config(), list(lessons.values()))
    private = set(part.names().public)
    order = lanes.shuffled(lessons, f"fifths/{SEED}")
    fifth = {task: n % FIFTHS for n, task in enumerate(order)}
    found = {}
    for p in problems:
        near = [h.trajectory.task_id for h in finder.retrieve(p.prompt, top_k=FAR + 1)]
        near = [t for t in near if t != p.task_id][:FAR]
        needed = _words(p.reference[len(p.prompt) :]) & private - _words(p.prompt)
        rng = random.Random(f"{SEED}/{p.task_id}")
        far = [t for t in sorted(lessons) if t != p.task_id and not needed & _words(lessons[t].solution)]
        rest = [t for t in order if fifth[t] != fifth[p.task_id]]
        shown = {
            arm: bool(needed) and needed <= set().union(*(_words(lessons[t].solution) for t in some))
            for arm, some in (("near", near[:NEAR]), ("rest", rest))
        }
        found[p.task_id] = {
            "near": near, "wrong": rng.sample(far, NEAR), "other": rng.choice(sorted(others)),
            "fifth": fifth[p.task_id], "needs": sorted(needed), "shown": shown,
        }  # fmt: skip
    return found


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def _lesson(p: Problem) -> Trajectory:
    attempt = Attempt(code=p.reference, outcome=Outcome.PASSED)
    return Trajectory(
        trajectory_id=config.digest([p.task_id, p.reference])[:16], task_id=p.task_id, benchmark=p.benchmark,
        prompt=p.prompt, attempts=(attempt,), solution=p.reference, category=p.category, domain=p.domain,
        source=f"{p.benchmark}:reference",
    )  # fmt: skip


# --------------------------------------------------------------------------- the lane


class Study:
    """What all parts read."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.lane = Lane(args, dataclasses.replace(RECIPE, rounds=len(VARIANTS) / args.workers))
        jobs = store.read_json(args.corpus / "jobs.json")
        self.problems = {p.task_id: p for p in store.read_jsonl(args.corpus / "held.jsonl", Problem)}
        self.lessons = {task: _lesson(p) for task, p in self.problems.items()}
        self.record: dict[str, Any] = jobs["held"]
        if args.smoke:
            ends = sorted(self.record)[:2], sorted(self.record)[-2:]
            self.record = {t: {**self.record[t], "other": o[0]} for some, o in (ends, ends[::-1]) for t in some}
        self.sources: dict[str, list[Job]] = {}
        for name, count in COUNTS.items():
            texts = {t.task_id: t for t in store.read_jsonl(args.corpus / f"{name}.jsonl", Trajectory)}
            some = [Job(_asked(texts[own]), texts[own], tuple(texts[t] for t in rest))
                    for own, *rest in jobs["trained"][name]]  # fmt: skip
            some.sort(key=lambda j: config.derive_seed(SEED, "jobs", j.key))  # the first so many are any
            self.sources[name] = self.lane.fitting(some[: round(1.2 * count)])[:count]
        trained = [t for some in self.sources.values() for j in some for t in (j.own, *j.lessons)]
        exclusion.check_corpus(trained, list(self.problems.values()))
        if named := [t.task_id for t in trained if renaming.HELD_OUT.search(f"{t.prompt}\n{t.solution}")]:
            raise ValueError(f"trained on, and names what is held out: {named[0]}")

    def sets(self, arm: str) -> dict[str, tuple[Trajectory, ...]]:
        """Task → what its adapter of an arm is made from."""
        near = {t: tuple(self.lessons[n] for n in one["near"]) for t, one in self.record.items()}
        if arm == "own":
            return {t: (self.lessons[t],) for t in self.record}
        if arm == "wrong":
            return {t: tuple(self.lessons[n] for n in one["wrong"]) for t, one in self.record.items()}
        return {t: some[: FAR if arm == "eight" else NEAR] for t, some in near.items()}

    def fifths(self) -> dict[str, tuple[Trajectory, ...]]:
        """Library and fifth → the tasks of the other four."""
        found = {}
        for name in LIBRARIES:
            mine = [t for t in sorted(self.record) if self.problems[t].domain == name]
            for n in sorted({self.record[t]["fifth"] for t in mine}):
                rest = tuple(self.lessons[t] for t in mine if self.record[t]["fifth"] != n)
                found[f"{name}/{n}"] = rest or tuple(self.lessons[t] for t in mine[:1])  # a dry run has one fifth
        return found

    def show_fifths(self, file: str, label: str, made: Mapping[str, Adapters], mark: str = "") -> None:
        """Draw adapters of libraries: `label`, and as `label_other` that of the other library."""
        for arm in (label, f"{label}_other"):
            donor = {}
            for task, one in self.record.items():
                mine = self.problems[task].domain
                name = mine if arm == label else next(n for n in LIBRARIES if n != mine)
                known = sorted(k for k in made if k.startswith(f"{name}/"))
                donor[f"{arm}{mark}", task] = known[one["fifth"] % len(known)]
            self.lane.show(file, self.asks(f"{arm}{mark}"), made, donor, DRAWS)

    def asks(self, arm: str) -> list[Ask]:
        return [Ask(arm, self.problems[t], begun=begun(self.problems[t])) for t in self.record]

    def show(self, file: str, made: Mapping[str, Adapters], arms: Mapping[str, str], mark: str = "") -> None:
        """Draw adapters, `made` by SET/TASK; `arms`: arm → its set; `mark` names the training. In the arm `other` each
        task wears what was made for some task of the other library."""
        for arm, name in arms.items():
            label = f"{arm}{mark}"
            whose = {t: one["other"] if arm == "other" else t for t, one in self.record.items()}
            donor = {(label, task): f"{name}/{other}" for task, other in whose.items()}
            self.lane.show(file, self.asks(label), made, donor, DRAWS)


def _asked(own: Trajectory) -> Problem:
    return Problem(
        task_id=own.task_id, benchmark=own.benchmark, prompt=own.prompt, entry_point="", test="",
        reference=own.solution, category=own.category, domain=own.domain,
    )  # fmt: skip


def begun(problem: Problem) -> str:
    """The beginning of the program, which is given: as the benchmark means it, and so that no arm can leave it out."""
    return re.sub(r" +\Z", "", problem.prompt.lstrip("\n"))


def draw(args: argparse.Namespace) -> None:
    """Teachers by all workers; then trainings, the next one to whoever is free; arms without training by the last."""
    study = Study(args)
    lane = study.lane
    teachers = lane.teachers(study.sources)
    drawn = lanes.mixture(lane, list(study.sources.values()), [SHARES[name] for name in study.sources])

    def part(variant: Variant) -> None:
        model = lanes.trained(lane, variant, drawn, teachers)
        mark = f"@{variant.seed}"
        arms = {"sibling": "sibling", "wrong": "wrong", "other": "sibling", "eight": "eight"}
        if variant is VARIANTS[0]:
            arms["own"] = "own"
        study.show(variant.name, written(study, model, variant, set(arms.values())), arms, mark)
        lane.rest()
        whole = lanes.Written(lane, model, study.fifths(), variant.tokens)
        study.show_fifths(f"{variant.name} library", "library", whole, mark)
        lane.rest()
        lane.done(f"draw {variant.name}")

    lanes.in_turn(lane, VARIANTS[:1], part)
    lanes.attempt(lane, "without", lambda: without(study, drawn))
    lanes.in_turn(lane, VARIANTS[1:], part)
    lane.done("end")


def written(study: Study, model: Any, variant: Variant, names: Iterable[str]) -> lanes.Written:
    """SET/TASK → the adapter of that set of texts."""
    sets = {f"{name}/{task}": texts for name in names for task, texts in study.sets(name).items()}
    return lanes.Written(study.lane, model, sets, variant.tokens)


def without(study: Study, drawn: lanes.Examples) -> None:
    """Bare, in context, the public twins, fine-tuned, and the generator before training."""
    lane = study.lane
    asks = []
    for task in study.record:
        shown = [prompts.render_trajectory(study.lessons[n]) for n in study.record[task]["near"]]
        if lane.args.smoke:
            shown = [text[:100] for text in shown]
        base = Ask("vanilla", study.problems[task], begun=begun(study.problems[task]))
        asks += [base, base._replace(arm="context", context="\n\n".join(shown[:NEAR]))]
        asks.append(base._replace(arm="context_eight", context="\n\n".join(shown)))
    lane.draw("without", asks, DRAWS)
    twins = store.read_jsonl(lane.args.corpus / "twins.jsonl", Problem)
    lane.draw("twins", [Ask("public", p, begun=begun(p)) for p in twins[: 2 if lane.args.smoke else None]], DRAWS)
    lane.rest()
    lane.done("without")
    for arm, name in (("tuned", "sibling"), ("tuned_wrong", "wrong")):
        jobs = [Job(study.problems[t], study.lessons[t], some) for t, some in study.sets(name).items()]
        made = {f"{name}/{task}": one for task, one in lane.tune(jobs, RECIPE.dose, name).items()}
        study.show("tuned", made, {arm: name})
        lane.rest()
    lane.rest()
    jobs = [Job(dataclasses.replace(study.problems[some[0].task_id], task_id=name), some[0], some)
            for name, some in study.fifths().items()]  # fmt: skip
    steps, rate = LIBRARY_DOSE
    whole = lane.tune(jobs, 2 if lane.args.smoke else steps, "library", rate)
    study.show_fifths("tuned library", "tuned_library", whole)
    lane.rest()
    lane.done("tuned")
    model = lanes.fresh(lane, VARIANTS[0], drawn).eval()
    arms = {"untrained": "sibling", "untrained_wrong": "wrong"}
    study.show("untrained", written(study, model, VARIANTS[0], set(arms.values())), arms)
    lane.rest()
    lane.done("untrained")


# --------------------------------------------------------------------------- verdicts and numbers


def judge(args: argparse.Namespace) -> None:
    module = plugins.load("sandbox", "fork")
    parts = {name: _part(args, name) for name in (*LIBRARIES, *private_library.LIBRARIES.values())}
    known = {p.task_id: p for part in parts.values() for p in part.problems()}

    def score(samples: Path, verdicts: Path) -> None:
        drawn = lanes.waiting(samples, verdicts)
        if not drawn:
            return
        by_library: dict[str, list[tuple[str, Sample]]] = defaultdict(list)
        for key, sample in drawn.items():
            by_library[known[sample.task_id].domain].append((key, sample))
        sandbox = module.build(module.Config(cpu_seconds=20.0, wall_seconds=60.0, memory_mb=4096))
        with store.Appender(verdicts) as log:
            for library, some in by_library.items():
                names = parts[library].names()
                asked = [(key, known[s.task_id], s.program) for key, s in some]
                for e in list(private_library.judge(sandbox, asked, names)):  # whole, so that a cut leaves no bias
                    s = drawn[e.key]
                    log.write({
                        "arm": s.condition, "task": s.task_id, "draw": s.draw, "passed": e.outcome is Outcome.PASSED,
                        "slip": bool(names.slip(s.program)), "kind": e.label, "error": e.error[:200],
                        "tokens": s.num_tokens, "cut": s.finish_reason == "length",
                    })  # fmt: skip
        sandbox.close()

    lanes.judge(args, score)


CONTRASTS = (
    ("sibling", "vanilla"), ("sibling", "wrong"), ("sibling", "other"), ("sibling", "context"),
    ("sibling", "untrained"), ("sibling", "tuned"), ("wrong", "vanilla"), ("own", "sibling"),
    ("eight", "sibling"), ("eight", "vanilla"), ("eight", "context_eight"),
    ("library", "vanilla"), ("library", "library_other"), ("library", "sibling"), ("library", "tuned_library"),
    ("tuned", "tuned_wrong"), ("tuned", "vanilla"), ("tuned_wrong", "vanilla"),
    ("tuned_library", "tuned_library_other"), ("tuned_library", "vanilla"),
    ("untrained", "untrained_wrong"), ("context", "vanilla"), ("context_eight", "vanilla"),
)  # fmt: skip
ARMS = (
    "vanilla", "context", "context_eight", "untrained_wrong", "untrained", "other", "wrong", "sibling", "eight",
    "library_other", "library", "tuned_wrong", "tuned", "tuned_library_other", "tuned_library", "own", "public",
)  # fmt: skip


def tell(args: argparse.Namespace) -> None:
    """Judge the rest; result.json and result.md."""
    args.follow = False
    judge(args)
    record = store.read_json(args.corpus / "jobs.json")["held"]
    rows = [v for path in sorted(args.out.glob("verdicts/*.jsonl")) for v in lanes.lines(path)]
    parts = {
        "both libraries": rows,
        **{name: [r for r in rows if _library(r["task"]) == name] for name in LIBRARIES},
        **{
            title: [r for r in rows if record.get(r["task"], {}).get("shown", {}).get(by)]
            for by, title in (
                ("near", "both, tasks whose names the three nearest show"),
                ("rest", "both, tasks whose names the other fifths show"),
            )
        },
    }
    result: dict[str, Any] = {title: numbers(some) for title, some in parts.items() if some}
    paces = args.out / "pace.json"
    result["pace"] = store.read_json(paces) if paces.exists() else {}
    result["losses"] = {v.name: lanes.first_and_last(args.out / v.name.replace(" ", "-") / "metrics.jsonl")
                        for v in VARIANTS}  # fmt: skip
    result["seconds"] = {p.parent.name: store.read_json(p) for p in sorted(args.out.glob("worker-*/seconds.json"))}
    store.write_json(args.out / "result.json", result)
    store.write_atomic(args.out / "result.md", page(result, list(parts)))
    console.out(page(result, list(parts)))


def _library(task: str) -> str:
    name = task.partition("/")[0]
    return {public: private for private, public in private_library.LIBRARIES.items()}.get(name, name)


def numbers(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares and contrasts of pass@1, and what else is told of each arm."""
    table = Table(rows, "passed")
    by_arm: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_arm[row["arm"].partition("@")[0]].append(row)
    return {
        "tasks": len({r["task"] for r in rows if r["arm"] == "vanilla"}),
        "arms": {
            arm: {
                "pass": table.share(arm), "trainings": table.trainings(arm), "draws": len(by_arm[arm]),
                "slip": _percent(by_arm[arm], "slip"), "cut": _percent(by_arm[arm], "cut"),
            }
            for arm in ARMS if arm in by_arm
        },
        "contrasts": {f"{a} − {b}": found for a, b in CONTRASTS if (found := table.contrast(a, b)) is not None},
    }  # fmt: skip


def _percent(rows: Iterable[dict[str, Any]], what: str) -> float:
    hits = [bool(r[what]) for r in rows]
    return 100 * sum(hits) / len(hits)


def page(result: dict[str, Any], titles: Sequence[str]) -> str:
    """Everything as Markdown."""
    out: list[str] = []
    for title in titles:
        if title not in result:
            continue
        one = result[title]
        out += [f"## {title[0].upper()}{title[1:]}", "", f"{one['tasks']} tasks, T = {RECIPE.temperature}", "",
                "| arm | pass@1, % | trainings | draws | names a public name, % | cut off, % |",
                "|---|---:|---:|---:|---:|---:|"]  # fmt: skip
        for arm, a in one["arms"].items():
            cells = (f"{a['pass']:.1f}", a["trainings"] or "–", a["draws"], f"{a['slip']:.0f}", f"{a['cut']:.0f}")
            out.append(f"| {arm} | " + " | ".join(map(str, cells)) + " |")
        out += ["", "| contrast | points, 95 % over tasks and trainings |", "|---|---:|"]
        out += [f"| {name} | {interval(value)} |" for name, value in one["contrasts"].items()] + [""]
    if result["pace"]:
        out += [f"{result['pace']['steps']} steps each; {result['pace']['seconds_a_step']} s a step.", ""]
    out += [f"{name}: {json.dumps(terms)}" for name, terms in result["losses"].items() if terms]
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    sys.exit(main())
