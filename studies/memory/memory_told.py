"""The memory study's numbers: result.json, result.md and figure.svg from OUT's registry, draws and verdicts; and
adapters.csv, the tracker's specified columns of every adapter that was measured."""

from __future__ import annotations

import math
import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import memory_effects
import memory_limits
import numpy as np
import scipy.stats

from rune import console
from rune.adapters.registry import operations
from rune.adapters.registry.records import Entry, Fitness, Level, Operation, Status
from rune.adapters.registry.registry import Registry, View
from rune.analysis import stats
from rune.benchmarks import api_updates
from rune.reporting import memory_tracking, tracking
from rune.runs import store
from rune.study import fitness
from rune.study.evolution import weak
from rune.types import Outcome, Problem, Split, Trajectory, Verdict

ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
RESAMPLES = 10_000
WEAK = 0.45  # φ; an adapter whose whole interval lies below is to be forgotten
MARGIN = 10.0  # points that a merge may lose of a parent's rate
LEAST = 10  # releases, for a test to be told
CLAIM = ("vanilla", "newest of the release")
PAIRS = (  # arms that are told against each other
    ("updated", "consolidated"), ("learned sum of the lessons", "mean of the lessons"),
    ("all in one, rank 64", "all in one, rank 8"),
    ("all in one, equal dose, rank 64", "all in one, equal dose, rank 8"),
    ("all in one, rank 8", "all in one, equal dose, rank 8"),
    ("updated", "all in one, equal dose, rank 8"),
)  # fmt: skip
DOSES = ("all in one, rank", "all in one, equal dose, rank")  # how the arms of one dose begin; two ranks each

Interval = tuple[float, float, float]  # mean, low, high


class Measured(NamedTuple):
    """What the evolution drew: adapter → task → (passes, draws), and which tasks are whose."""

    passes: dict[str, dict[str, tuple[int, int]]]
    inside: dict[str, list[str]]  # release → its scored tasks
    outside: list[str]
    protocol: str = ""


def tell(out: Path) -> None:
    registry = Registry(out / "registry")
    entries = {e.id: e for e in registry.page(View(status=None), limit=1_000_000)}
    done = operations.listed(registry)
    measured = measured_of(out)
    begun = tested(out)
    drawn = begun if begun and len(begun.tasks) >= LEAST else None
    result: dict[str, Any] = {
        "evolution": evolution(entries, done),
        "by release": by_release_done(entries, done),
        "scored tasks": scored_tasks(out, entries, done, measured),
        "test": test(out, drawn) if drawn else None,
        "test, cut off": cut_off(begun) if begun and begun.tasks and not drawn else None,
        "harm": harm(entries, measured),
        "HumanEval by arm": elsewhere(drawn) if drawn else {},
        "HumanEval, bare, crossfit-0.5b": bare_before(measured.outside),
        "harm, 40 tasks": harm_by_arm(out) if drawn else None,
        "limits": limits(out, drawn, entries, measured) if drawn else None,
        "merges": merges(entries, done),
        "alike": alike(done),
        "alpha": alphas(drawn, entries, done, measured),
    }
    by_alpha, decided = (
        {alpha: row.pop(name) for alpha, row in result["alpha"].items()} for name in ("fittest", "decided")
    )
    arms = means_of(drawn) if drawn else {}
    result["effects"] = memory_effects.effects(entries, done, arms, by_alpha, decided)
    parts = sorted((out.parent / "done").glob("*"))
    result["seconds"] = {part.name: int(part.read_text()) for part in parts if part.stat().st_size}
    store.write_json(out / "result.json", result)
    store.write_atomic(out / "result.md", table(result))
    figure(out / "figure.svg", result)
    rows = memory_tracking.rows(registry, "releases", measured.protocol)
    store.write_atomic(out / "adapters.csv", tracking.csv_of([row.columns for row in rows]))
    console.out(table(result))


def bootstrap(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of units that are drawn anew together, in points."""
    some = 100 * np.array(values)
    weights = stats.task_weights(len(some), RESAMPLES, 0)
    means = weights @ some / weights.sum(1)
    return float(some.mean()), float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def measured_of(out: Path) -> Measured:
    passes: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    with sqlite3.connect(out / "registry" / "registry.sqlite") as connection:
        protocols = connection.execute("select protocol, count(*) from passes group by 1 order by 2 desc").fetchall()
        rows = connection.execute(
            "select adapter, task, passes, draws from passes where protocol = ?", protocols[0][:1]
        )
        for adapter, task, count, draws in rows:
            passes[adapter][task] = (count, draws)
    inside: dict[str, list[str]] = defaultdict(list)
    for problem in store.read_jsonl(out / "corpus" / "problems.jsonl", Problem):
        if problem.split is Split.HELD_OUT:
            inside[problem.domain].append(problem.task_id)
    known = {task for tasks in inside.values() for task in tasks}
    outside = sorted({task for of in passes.values() for task in of} - known)
    return Measured(dict(passes), dict(inside), outside, protocols[0][0])


def rate(measured: Measured, adapter: str, tasks: Sequence[str]) -> float:
    known = measured.passes[adapter]
    return math.fsum(known[task][0] / known[task][1] for task in tasks) / len(tasks)


# --------------------------------------------------------------------------- what was done


def evolution(entries: Mapping[str, Entry], done: Sequence[Operation]) -> dict[str, Any]:
    """Operations by kind: how many, how many kept, how often the result is above, like and below the best input."""
    found: dict[str, dict[str, Any]] = {}
    for one in done:
        row = found.setdefault(one.kind, {"done": 0, "kept": 0, "lead": []})
        row["done"] += 1
        row["kept"] += one.kept
        if one.result and "result" in one.numbers:
            best = max(n["value"] for n in one.numbers["inputs"].values())
            row["lead"].append(one.numbers["result"]["value"] - best)
    for row in found.values():
        row["lead"] = bootstrap(row["lead"]) if row["lead"] else None
    found["adapters"] = {
        "of one lesson": sum(e.place.level is Level.TASK for e in entries.values()),
        "in all": len(entries),
        "active": sum(e.status.value == "active" for e in entries.values()),
    }
    forgotten = sum(o.kind == "forget" for o in done)
    found["forget"] = {
        "done": forgotten,
        "weak": len(weak([e for e in entries.values() if e.status is Status.ACTIVE], WEAK)),
    }
    return found


def by_release_done(entries: Mapping[str, Entry], done: Sequence[Operation]) -> dict[str, dict[str, Any]]:
    """Release → φ of its best lesson, of what was made of all and what became of it, and how many were archived."""
    found: dict[str, dict[str, Any]] = {}
    for entry in entries.values():
        if entry.place.project == "releases" and entry.place.domain:
            row = found.setdefault(entry.place.domain, {"adapters": 0, "archived": 0})
            row["adapters"] += 1
            row["archived"] += entry.status is Status.ARCHIVED
    for one in done:
        if one.kind in ("consolidate", "update"):
            values = [n["value"] for n in one.numbers["inputs"].values()]
            found[entries[one.result].place.domain][one.kind] = {
                "best input": max(values), "result": one.numbers["result"]["value"], "kept": one.kept,
            }  # fmt: skip
    return dict(sorted(found.items()))


def scored_tasks(
    out: Path, entries: Mapping[str, Entry], done: Sequence[Operation], measured: Measured
) -> dict[str, Any]:
    """UPass on the tasks that the evolution itself scored, interval over releases, in points."""
    learned = {
        t.trajectory_id: update(t.task_id) for t in store.read_jsonl(out / "corpus" / "lessons.jsonl", Trajectory)
    }
    registry = Registry(out / "registry")
    rates: dict[str, dict[str, float]] = defaultdict(dict)
    lessons: dict[str, dict[str, list[float]]] = {"own update": defaultdict(list), "the other two": defaultdict(list)}
    for entry in entries.values():
        if entry.place.level is Level.TASK:
            mine = learned[registry.sources(entry.id)[0].trajectory_id]
            for task in measured.inside[entry.place.domain]:
                which = "own update" if update(task) == mine else "the other two"
                lessons[which][entry.place.domain].append(rate(measured, entry.id, [task]))
    for which, some in lessons.items():
        rates[f"one lesson, {which}"] = {release: float(np.mean(values)) for release, values in some.items()}
    for one in done:
        if one.kind in ("consolidate", "update"):
            release = entries[one.result].place.domain
            rates[f"{one.kind}d"][release] = rate(measured, one.result, measured.inside[release])
    found: dict[str, Any] = {arm: [*bootstrap(list(of.values())), len(of)] for arm, of in rates.items()}
    found["updated less consolidated"] = paired(rates, "updated", "consolidated")
    return found


# --------------------------------------------------------------------------- the test


class Tested(NamedTuple):
    """Verdicts of the test: adapter id, or "vanilla" → task → share of draws that count."""

    rates: dict[str, dict[str, float]]
    tasks: dict[str, list[str]]  # release → its test tasks
    arms: dict[str, dict[str, str]]


def tested(out: Path) -> Tested | None:
    """The releases whose tasks were all drawn under all of their arms; None where nothing was judged."""
    folder = out / "tests"
    if not (folder / "verdicts.jsonl").exists():
        return None
    problems = store.read_jsonl(folder / "problems.jsonl", Problem)
    tasks: dict[str, list[str]] = defaultdict(list)
    for problem in problems:
        if problem.domain:  # the others are outside of every release
            tasks[problem.domain].append(problem.task_id)
    hits: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for verdict in store.read_jsonl(folder / "verdicts.jsonl", Verdict):
        hits[verdict.condition, verdict.task_id].append(verdict.outcome is Outcome.PASSED)
    rates: dict[str, dict[str, float]] = defaultdict(dict)
    for (condition, task), passed in hits.items():
        rates[condition][task] = sum(passed) / len(passed)
    arms = store.read_json(folder / "arms.json")
    if (folder / "arms-after.json").exists():
        later = store.read_json(folder / "arms-after.json")
        arms["selected before merges"] = arms["selected"]
        arms["selected"] = later["selected"]
    whole = {
        release: some for release, some in tasks.items()
        if all(task in rates[of[release] or "vanilla"] for of in arms.values() if release in of for task in some)
    }  # fmt: skip
    return Tested(dict(rates), whole, arms)


def cut_off(begun: Tested) -> dict[str, Any]:
    """UPass of each arm on the few releases that are whole: without an interval, and nothing is claimed."""
    names = sorted(begun.tasks)
    means = {arm: of for arm, of in means_of(begun).items() if of.keys() == begun.tasks.keys()}
    return {
        "releases": names, "tasks": sum(map(len, begun.tasks.values())),
        "arms": {arm: 100 * math.fsum(of.values()) / len(of) for arm, of in means.items()},
    }  # fmt: skip


def by_release(drawn: Tested, of: Mapping[str, str]) -> dict[str, float]:
    """Release → UPass under the adapter that the arm has for it."""
    found = {}
    for release, digest in of.items():
        rates = drawn.rates.get(digest or "vanilla", {})
        if release in drawn.tasks and all(task in rates for task in drawn.tasks[release]):
            found[release] = math.fsum(rates[task] for task in drawn.tasks[release]) / len(drawn.tasks[release])
    return found


def means_of(drawn: Tested) -> dict[str, dict[str, float]]:
    """Arm → release → UPass; a release's six lessons are one arm."""
    means = {arm: by_release(drawn, of) for arm, of in drawn.arms.items()}
    lessons = [of for arm, of in means.items() if arm.startswith("lesson-")]
    whole = set.intersection(*(set(of) for of in lessons)) if lessons else set()
    means["one lesson, mean of six"] = {d: math.fsum(of[d] for of in lessons) / len(lessons) for d in sorted(whole)}
    return {arm: of for arm, of in means.items() if of and not arm.startswith("lesson-")}


def test(out: Path, drawn: Tested) -> dict[str, Any]:
    means = means_of(drawn)
    reference = means["selected"]
    leads = {}
    for arm, of in means.items():
        both = sorted(of.keys() & reference.keys())
        if arm != "selected" and both:
            leads[arm] = bootstrap([reference[d] - of[d] for d in both])
    own, others = own_update(out, drawn)
    doses = [[arm for arm in means if arm.startswith(dose)] for dose in DOSES]
    best = [max(some, key=lambda a: sum(means[a].values())) for some in doses if some]
    return {
        "releases": len(reference), "tasks": sum(map(len, drawn.tasks.values())),
        "arms": {arm: [*bootstrap(list(of.values())), len(of)] for arm, of in means.items()},
        "selected less": leads, "one lesson, own update": own, "one lesson, the other two": others,
        "all in one": best, "claim": {arm: leads[arm][1] > 0 for arm in (*CLAIM, *best)},
        "pairs": {f"{one}` less `{other}": paired(means, one, other) for one, other in PAIRS},
    }  # fmt: skip


def paired(means: Mapping[str, Mapping[str, float]], one: str, other: str) -> Interval | None:
    both = sorted(means.get(one, {}).keys() & means.get(other, {}).keys())
    return bootstrap([means[one][d] - means[other][d] for d in both]) if both else None


def own_update(out: Path, drawn: Tested) -> tuple[Interval, Interval]:
    """UPass of an adapter of one lesson on its own update's test tasks, and on those of its release's other two."""
    lessons = store.read_jsonl(out / "corpus" / "lessons.jsonl", Trajectory)
    order: dict[str, list[str]] = defaultdict(list)
    for lesson in lessons:
        order[lesson.domain].append(update(lesson.task_id))
    own, others = defaultdict(list), defaultdict(list)
    for arm, of in drawn.arms.items():
        if not arm.startswith("lesson-"):
            continue
        for release, digest in of.items():
            mine = order[release][int(arm.rpartition("-")[2])]
            for task in drawn.tasks[release]:
                if task in drawn.rates.get(digest, {}):
                    (own if update(task) == mine else others)[release].append(drawn.rates[digest][task])
    return tuple(bootstrap([float(np.mean(v)) for v in some.values()]) for some in (own, others))  # type: ignore[return-value]


def update(task_id: str) -> str:
    """The update that a generated task is of."""
    return task_id.removeprefix(f"{api_updates.NAME}/").rpartition("/")[0]


# --------------------------------------------------------------------------- merges


def merges(entries: Mapping[str, Entry], done: Sequence[Operation]) -> dict[str, Any]:
    """Operator and weight → what is kept of a parent's rate on its own tasks, interval over pairs."""
    groups: dict[str, list[Operation]] = defaultdict(list)
    for one in done:
        if one.kind == "merge":
            groups[f"{one.arguments['merge']['method']}, {one.arguments['weights'][0]:g} each"].append(one)
    found: dict[str, Any] = {}
    for name, some in groups.items():
        rows = []
        for one in some:
            for parent in one.inputs:
                domain = entries[parent].place.domain
                other = next(d for d in one.numbers["domains"] if d != domain)
                rates = one.numbers["domains"]
                rows.append((rates[domain][one.result], rates[domain][parent], rates[other][parent]))
        pairs = np.array(rows).reshape(len(some), 2, 3).mean(1)
        parents = [np.mean([n["value"] for n in one.numbers["inputs"].values()]) for one in some]
        best = [max(n["value"] for n in one.numbers["inputs"].values()) for one in some]
        made = [one.numbers["result"] for one in some]
        found[name] = {
            "pairs": len(some), "kept": sum(one.kept for one in some),
            "merge on a parent's tasks": bootstrap(list(pairs[:, 0])),
            "that parent": bootstrap(list(pairs[:, 1])), "the other parent": bootstrap(list(pairs[:, 2])),
            "loss": bootstrap(list(pairs[:, 0] - pairs[:, 1])),
            "φ": float(np.mean([n["value"] for n in made])), "parents' φ": float(np.mean(parents)),
            "φ over the better parent": bootstrap([n["value"] - b for n, b in zip(made, best, strict=True)]),
            "generalization": float(np.mean([n["generalization"] for n in made])),
            "keeps its parents": bootstrap(list(pairs[:, 0] - pairs[:, 1]))[1] > -MARGIN,
        }  # fmt: skip
    return found


def alike(done: Sequence[Operation]) -> dict[str, Any]:
    """Cosine of the pairs that were merged, and whether the more alike lose less: Spearman's ρ, by operator."""
    groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for one in done:
        if one.kind == "merge":
            best = max(n["value"] for n in one.numbers["inputs"].values())
            name = f"{one.arguments['merge']['method']}, {one.arguments['weights'][0]:g} each"
            groups[name].append((one.numbers["cosine"], one.numbers["result"]["value"] - best))
    cosines = [c for c, _ in max(groups.values(), key=len, default=[])]
    return {
        "cosine": [min(cosines), float(np.median(cosines)), max(cosines)] if cosines else [],
        "φ over the better parent, Spearman": {
            name: float(scipy.stats.spearmanr(some).statistic)
            for name, some in groups.items()
            if len(some) > 2 and np.ptp(np.array(some), axis=0).all()
        },
    }


def harm(entries: Mapping[str, Entry], measured: Measured) -> dict[str, Any]:
    """HumanEval tasks under adapters of each kind: mean pass@1 over adapters."""
    groups: dict[str, list[float]] = defaultdict(list)
    for digest, entry in entries.items():
        if digest in measured.passes and all(t in measured.passes[digest] for t in measured.outside[:6]):
            kind = "of one lesson" if entry.place.level is Level.TASK else entry.how
            groups[kind].append(rate(measured, digest, measured.outside[:6]))
    return {kind: [*bootstrap(some), len(some)] for kind, some in sorted(groups.items())}


def elsewhere(drawn: Tested) -> dict[str, float]:
    """pass@1 on the HumanEval tasks of each arm's adapters, mean over adapters, in %."""
    mine = {task for tasks in drawn.tasks.values() for task in tasks}
    found = {}
    for arm, of in drawn.arms.items():
        known = [drawn.rates.get(digest or "vanilla", {}) for digest in dict.fromkeys(of.values())]
        means = [float(np.mean(some)) for rates in known if (some := [v for t, v in rates.items() if t not in mine])]
        if means and not arm.startswith("lesson-"):
            found[arm] = 100 * float(np.mean(means))
    return found


def harm_by_arm(out: Path) -> dict[str, Any] | None:
    """Arm → pass@1 on OUT/harm's HumanEval tasks, mean over its adapters, and less the bare model's; over tasks."""
    if not (out / "harm" / "verdicts.jsonl").exists():
        return None
    hits: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for verdict in store.read_jsonl(out / "harm" / "verdicts.jsonl", Verdict):
        hits[verdict.condition, verdict.task_id].append(verdict.outcome is Outcome.PASSED)
    tasks = sorted({task for _, task in hits})
    means: dict[str, dict[str, float]] = {}
    for arm, of in store.read_json(out / "tests" / "arms.json").items():
        ids = [digest or "vanilla" for digest in of.values()]  # a release each
        if all((digest, task) in hits for digest in ids for task in tasks):
            means[arm] = {task: float(np.mean([np.mean(hits[digest, task]) for digest in ids])) for task in tasks}
    return {
        arm: {"pass@1": bootstrap(list(of.values())), "less the bare model": paired(means, arm, "vanilla")}
        for arm, of in means.items()
    }


def bare_before(tasks: Sequence[str]) -> float:
    """pass@1 of the bare model on HumanEval tasks at the same temperature, 15 draws, in %: results/crossfit-0.5b."""
    result = store.read_json(Path(__file__).parents[2] / "results" / "crossfit-0.5b" / "result.json")
    told = result["variants"]["temperature-0.2"]["pooled"]["decision"]["details"]
    passed = dict(zip(told["tasks"], told["passes"]["vanilla"], strict=True))
    return 100 * sum(passed[task] for task in tasks) / (len(tasks) * told["n"])


# --------------------------------------------------------------------------- α


def alphas(
    drawn: Tested | None, entries: Mapping[str, Entry], done: Sequence[Operation], measured: Measured
) -> dict[str, Any]:
    """What each α would keep and select, from the same passes, and what its selections are worth on the test."""
    base: dict[str, str] = {}
    found: dict[str, Any] = {}
    for alpha in ALPHAS:
        held: dict[str, int] = defaultdict(int)
        for one in done:
            if one.kind in ("consolidate", "update", "merge"):
                domains = list(one.numbers["domains"])
                phi = {a: phi_of(measured, a, domains, alpha) for a in (one.result, *one.inputs)}
                best = max(phi[a].value for a in one.inputs)
                made = phi[one.result]
                held[one.kind] += made.low > best if one.kind == "merge" else made.value >= best
        chosen = {}
        for release in measured.inside:
            there = [
                e.id for e in entries.values()
                if e.place.project == "releases" and e.place.domain == release and e.id in measured.passes
            ]  # fmt: skip
            chosen[release] = max(
                there, key=lambda a: (phi_of(measured, a, [release], alpha).value, entries[a].number), default=""
            )
        base = base or chosen
        means = by_release(drawn, chosen) if drawn else {}
        decides = {release: kept(entries, done, measured, release, alpha) for release in measured.inside}
        decided = by_release(drawn, decides) if drawn else {}
        kinds = defaultdict(int)
        for digest in chosen.values():
            kinds["of one lesson" if entries[digest].place.level is Level.TASK else entries[digest].how] += 1
        found[f"{alpha:g}"] = {
            "kept": dict(held), "UPass": bootstrap(list(means.values())) if means else None,
            "nothing selected": sum(not digest for digest in decides.values()),
            "UPass, kept and selected": bootstrap(list(decided.values())) if decided else None,
            "selected otherwise than at 0.5": sum(chosen[r] != base[r] for r in chosen), "selected": dict(kinds),
            "fittest": means, "decided": decided,
        }  # fmt: skip
    return found


def kept(
    entries: Mapping[str, Entry], done: Sequence[Operation], measured: Measured, release: str, alpha: float
) -> str:
    """What `select` gives for an unseen task of the release if this α decides what is kept; "" is the bare model.

    An update was tried only where the evolution itself, at 0.7, had kept the consolidated one.
    """
    made = {one.kind: one for one in done if one.result and entries[one.result].place.domain == release}

    def phi(digest: str) -> float:
        return phi_of(measured, digest, [release], alpha).value

    whole, update_ = made["consolidate"], made.get("update")
    if phi(whole.result) < max(phi(digest) for digest in whole.inputs):
        return ""
    if update_ and phi(update_.result) >= phi(whole.result):
        return update_.result
    return whole.result


def bare_hits(out: Path) -> dict[str, list[bool]]:
    """Task → whether each draw of the bare model passed, of the evolution's own tasks; empty where none was drawn."""
    hits: dict[str, list[bool]] = defaultdict(list)
    known = out / "bare" / "verdicts.jsonl"
    for verdict in store.read_jsonl(known, Verdict) if known.exists() else ():
        hits[verdict.task_id].append(verdict.outcome is Outcome.PASSED)
    return hits


def limits(
    out: Path, drawn: Tested, entries: Mapping[str, Entry], measured: Measured
) -> dict[str, dict[str, Any]] | None:
    """What a limit on harm would select, and its worth on the test; None where the bare model was not drawn outside."""
    hits = bare_hits(out)
    if not all(task in hits for task in measured.outside):
        return None
    bare = float(np.mean([np.mean(hits[task]) for task in measured.outside]))
    reference, found = by_release(drawn, drawn.arms["selected"]), {}
    for limit in memory_limits.LIMITS:
        chosen, outside = {}, []
        for release, tasks in measured.inside.items():
            worths = {
                e.id: memory_limits.Worth(rate(measured, e.id, tasks), rate(measured, e.id, measured.outside), e.number)
                for e in entries.values()
                if e.place.project == "releases" and e.place.domain == release and e.id in measured.passes
            }
            chosen[release] = memory_limits.selected(worths, bare, limit)
            outside.append(worths[chosen[release]].outside if chosen[release] else bare)
        means = by_release(drawn, chosen)
        found[f"{limit:g}"] = {
            "nothing selected": sum(not digest for digest in chosen.values()), "UPass": bootstrap(list(means.values())),
            "less selected": paired({"limit": means, "selected": reference}, "limit", "selected"),
            "outside": 100 * float(np.mean(outside)), "outside, bare": 100 * bare,
        }  # fmt: skip
    return found


def phi_of(measured: Measured, adapter: str, domains: Sequence[str], alpha: float) -> Fitness:
    known = measured.passes[adapter]
    inside = {t: known[t] for d in domains for t in measured.inside[d]}
    outside = {t: known[t] for t in measured.outside if t in known}
    return fitness.fitness(inside, outside, alpha=alpha, protocol="", measured="")


# --------------------------------------------------------------------------- told


def points(value: Sequence[float] | None) -> str:
    return "–" if value is None else f"{value[0]:.1f} [{value[1]:.1f}, {value[2]:.1f}]"


def signed(value: Sequence[float] | None) -> str:
    return "–" if value is None else f"{value[0]:+.1f} [{value[1]:+.1f}, {value[2]:+.1f}]"


def table(result: Mapping[str, Any]) -> str:
    """Everything as Markdown."""
    there = result["evolution"]["adapters"]
    lines = ["## What was done", "",
             f"{there['of one lesson']} of one lesson; {there['in all']} in all, {there['active']} active.", "",
             "| operation | done | kept | φ over the best input, points |",
             "|---|---:|---:|---:|"]  # fmt: skip
    for kind, row in result["evolution"].items():
        if kind != "adapters":
            lines.append(f"| {kind} | {row['done']} | {row.get('kept', '–')} | {signed(row.get('lead'))} |")
    lines += ["", f"The whole interval of φ lies below {WEAK:g} for {result['evolution']['forget']['weak']} adapters."]
    arms = {arm: row for arm, row in result["scored tasks"].items() if arm != "updated less consolidated"}
    lines += ["", "| on the tasks that the evolution scored | releases | UPass |", "|---|---:|---:|"]
    lines += [f"| {arm} | {row[3]} | {points(row)} |" for arm, row in arms.items()]
    lines += ["", f"`updated` less `consolidated`: {signed(result['scored tasks']['updated less consolidated'])}."]
    lines += ["", "| release | adapters | archived | φ: best lesson | consolidated | | updated | |",
              "|---|---:|---:|---:|---:|---|---:|---|"]  # fmt: skip
    for release, row in result["by release"].items():
        made = [row.get(kind) for kind in ("consolidate", "update")]
        cells = [f"{m['result']:.3f} | {'kept' if m['kept'] else 'archived'}" if m else "– | –" for m in made]
        best = f"{made[0]['best input']:.3f}" if made[0] else "–"
        lines.append(f"| {release} | {row['adapters']} | {row['archived']} | {best} | {' | '.join(cells)} |")
    lines += ["", "## The test", "", *test_table(result["test"], result["test, cut off"])]
    lines += ["", "## Merges", "", *(merges_table(result) if result["merges"] else ["None was made."])]
    lines += ["", "## α", "", "| α | consolidations kept | updates kept | merges kept | selected otherwise than at 0.5 "
              "| of one lesson selected | UPass of the fittest of any level | releases with nothing selected "
              "| UPass, kept and selected |", "|---:|---:|---:|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for alpha, row in result["alpha"].items():
        kept = [row["kept"].get(kind, 0) for kind in ("consolidate", "update", "merge")]
        lines.append(
            f"| {alpha} | {kept[0]} | {kept[1]} | {kept[2]} | {row['selected otherwise than at 0.5']} | "
            f"{row['selected'].get('of one lesson', 0)} | {points(row['UPass'])} "
            f"| {row['nothing selected']} | {points(row['UPass, kept and selected'])} |"
        )
    if result["limits"]:
        lines += ["", "## A limit on harm beside the pass rate", "",
                  "Selected: the best on the release's scored tasks of those that lose no more than the limit on the "
                  "tasks outside. pass@1 outside is of the draws that selected.", "",
                  "| limit, points | releases with nothing selected | UPass on the test | less `selected` "
                  "| pass@1 outside | bare |", "|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
        for limit, row in result["limits"].items():
            lines.append(
                f"| {limit if float(limit) < 100 else 'none'} | {row['nothing selected']} | {points(row['UPass'])} "
                f"| {signed(row['less selected'])} | {row['outside']:.1f} | {row['outside, bare']:.1f} |"
            )
    lines += ["", "## HumanEval tasks under adapters of a kind", "", "| kind | adapters | pass@1 |", "|---|---:|---:|"]
    lines += [f"| {kind} | {row[3]} | {points(row)} |" for kind, row in result["harm"].items()]
    lines.append(f"| the bare model, of [crossfit-0.5b](../crossfit-0.5b/result.md) | – "
                 f"| {result['HumanEval, bare, crossfit-0.5b']:.1f} |")  # fmt: skip
    if result["harm, 40 tasks"]:
        lines += [
            "",
            "| 40 other HumanEval tasks; interval over tasks | pass@1 | less the bare model |",
            "|---|---:|---:|",
        ]
        for arm, row in result["harm, 40 tasks"].items():
            lines.append(f"| {arm} | {points(row['pass@1'])} | {signed(row['less the bare model'])} |")
    if result["HumanEval by arm"]:
        lines += ["", "| arm of the test | pass@1 on the same HumanEval tasks |", "|---|---:|"]
    lines += [f"| {arm} | {value:.1f} |" for arm, value in result["HumanEval by arm"].items()]
    return "\n".join(lines) + "\n"


def merges_table(result: Mapping[str, Any]) -> list[str]:
    lines = ["Rates in % on the evolution's own tasks; intervals over pairs.", "",
             "| operator | pairs | kept | on a parent's tasks: merge | that parent | the other parent | loss "
             "| φ over the better parent | HumanEval |", "|---|---:|---:|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for name, row in sorted(result["merges"].items(), key=lambda r: -r[1]["φ"]):
        cells = [points(row[k]) for k in ("merge on a parent's tasks", "that parent", "the other parent")]
        lines.append(
            f"| {name} | {row['pairs']} | {row['kept']} | " + " | ".join(cells) + f" | {signed(row['loss'])} | "
            f"{signed(row['φ over the better parent'])} | {100 * row['generalization']:.1f} |"
        )
    if result["alike"]["cosine"]:
        low, middle, high = result["alike"]["cosine"]
        lines += ["", f"Cosine of the merged pairs' ΔW: {low:.3f} to {high:.3f}, median {middle:.3f}."]
    if rho := result["alike"]["φ over the better parent, Spearman"].values():
        lines[-1] += (
            f" Spearman's ρ of it and φ over the better parent: {min(rho):+.2f} to {max(rho):+.2f} by operator."
        )
    return lines


def test_table(one: Mapping[str, Any] | None, begun: Mapping[str, Any] | None) -> list[str]:
    if one is None:
        if begun is None:
            return ["Cut off."]
        whole = f"{begun['tasks']} tasks of {', '.join(begun['releases'])}"
        lines = [f"Cut off. Whole are {whole}: too few for an interval.", "", "| arm | UPass |", "|---|---:|"]
        return lines + [f"| {arm} | {value:.1f} |" for arm, value in sorted(begun["arms"].items(), key=lambda a: -a[1])]
    lines = [f"{one['tasks']} tasks of {one['releases']} releases; intervals over releases.", "",
             "| arm | releases | UPass | `selected` less this |", "|---|---:|---:|---:|"]  # fmt: skip
    for arm, value in sorted(one["arms"].items(), key=lambda a: -a[1][0]):
        lines.append(f"| {arm} | {value[3]} | {points(value)} | {signed(one['selected less'].get(arm))} |")
    lines += ["", f"An adapter of one lesson: {points(one['one lesson, own update'])} on its own update's tasks, "
              f"{points(one['one lesson, the other two'])} on the other two updates'. "
              + "; ".join(f"`{pair}`: {signed(lead)}" for pair, lead in one["pairs"].items()) + ".", "",
              "`selected` beats, by the rule: " + "; ".join(
                  f"{arm}: {'yes' if yes else 'no'}" for arm, yes in one["claim"].items()) + "."]  # fmt: skip
    return lines


def figure(path: Path, result: Mapping[str, Any]) -> None:
    """UPass of each arm with its interval over releases, one below the other, if there was a test."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    told = result["test"]
    if not told:
        return
    arms = sorted(told["arms"].items(), key=lambda a: a[1][0])
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "memory", "axes.spines.top": False}):
        drawing = Figure(figsize=(5.2, 0.8 + 0.3 * len(arms)), layout="constrained")
        axes = drawing.subplots()
        for at, (arm, (mean, low, high, _)) in enumerate(arms):
            colour = "#1f5fbf" if arm == "selected" else "#9db8dd"
            axes.barh(at, mean, color=colour, height=0.7)
            axes.plot([low, high], [at, at], color="#333333", linewidth=1)
        axes.set_yticks(range(len(arms)), [arm for arm, _ in arms], fontsize=9)
        axes.set_xlabel("UPass in %, 95 % over releases")
        axes.spines["right"].set_visible(False)
        drawing.savefig(path, format="svg", metadata={"Date": None})
