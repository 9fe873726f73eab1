"""The third part of the page: a hypernetwork trained for Programming by Backprop.

    python studies/pbb/hypernet.py RUN --corpus runs/pbb-hypernet/train.jsonl --before BEFORE --out results/pbb-hypernet

Writes result.json, result.md and the page's block. `--before`: the run of `configs/pbb-easy-0.5b.toml`, whose arm
`tuned` answered the same tasks. Design, predictions and rule: README.md beside this file.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pbb import FORMS, LEVEL, OVER, PAGE, RESAMPLES, SHOWN, Scores, by_arm, code_of, contrast, form, right, scored, span

from rune import config
from rune.analysis import stats
from rune.benchmarks import _pbb_drawn, pbb
from rune.benchmarks.scorers import exact_value
from rune.runs import store
from rune.runs.store import RunDir
from rune.study.folders import Experiment, reopen
from rune.types import Outcome, Sample, Split, Trajectory, Treatment, Verdict

ARMS = ("vanilla", "teacher", "static", "hypernet", "wrong_trajectory", "hypernet_mean")
BEFORE = "tuned"
BLOCK = "pbb-hypernet"
PREDICTED = {  # in points, lowest and highest
    "vanilla": (2, 4), "teacher": (34, 39), "static": (2, 12), "hypernet": (5, 30),
    "hypernet - wrong_trajectory": (2, 25), "hypernet - hypernet_mean": (1, 24), "hypernet - static": (1, 24),
    "hypernet - vanilla": (2, 27), "hypernet - teacher": (-33, -6), "wrong_trajectory - vanilla": (-3, 6),
    "hypernet - wrong_trajectory, compositions": (-3, 6),
    "hypernet - wrong_trajectory, a form that trains": (4, 45),
    "hypernet - wrong_trajectory, a form that does not": (1, 22),
    f"hypernet - {BEFORE}": (0, 26),
}  # fmt: skip
CONTRASTS = [tuple(what.split(" - ")) for what in PREDICTED if " - " in what and "," not in what]
EASIER, HARDER = ("strings", "data structures"), ("arithmetic", "recursion")
RULE = (("hypernet", "wrong_trajectory"), ("hypernet", "hypernet_mean"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    found = told(args.run.resolve(), args.corpus, args.before.resolve())
    args.out.mkdir(parents=True, exist_ok=True)
    store.write_json(args.out / "result.json", {"level": LEVEL, "resamples": RESAMPLES, **found})
    text = came_out(found)
    store.write_atomic(args.out / "result.md", f"# A hypernetwork trained for Programming by Backprop\n\n{text}\n")
    store.replace_block(PAGE, BLOCK, text)
    print(args.out / "result.md")
    return 0


def passes(
    run: Path, names: Sequence[str], arms: Sequence[str]
) -> tuple[dict[str, Scores], dict[int, dict[str, float]]]:
    """Each arm's passes by task and seed; and pass@1 by seed, in points."""
    found = by_arm(arms)
    for place in reopen(run).places():
        for verdict in store.read_jsonl(place.folder / "verdicts.jsonl", Verdict):
            if verdict.condition in found:
                passed = verdict.outcome is Outcome.PASSED
                found[verdict.condition][place.cell.seed][verdict.task_id].append(passed)
    scores = {arm: scored(by_seed, names) for arm, by_seed in found.items()}
    seeds = sorted(found[arms[0]])
    return scores, {
        seed: {arm: 100 * float(s.passed_TS[:, at].mean() / s.n) for arm, s in scores.items()}
        for at, seed in enumerate(seeds)
    }


def forms_that_train(corpus: Path) -> set[str]:
    lessons = [t for t in store.read_jsonl(corpus, Trajectory) if t.benchmark == pbb.NAME and t.category != "cruxeval"]
    return {_pbb_drawn.form(t.solution.replace(t.domain, "NAME")) for t in lessons}


def kind(text: str) -> str:
    """What kind of value a literal is: int, str, list, dict."""
    return type(exact_value.parse(text)).__name__


def wrong_of_a_kind(
    experiment: Experiment, scores: Mapping[str, Scores], tasks: Sequence[pbb.Task], given: Mapping[str, Trajectory]
) -> dict[str, Any]:
    """`hypernet` and `wrong_trajectory` where the wrong function gives the same kind of value: asked afterwards.

    A task counts in the seeds in which that is so; the interval is over functions. `given`: by the trajectory's id.
    """
    shown = {name: {kind(value) for value in SHOWN.findall(t.prompt)} for name, t in given.items()}
    wrong: dict[int, dict[str, set[str]]] = {}  # seed → task → kinds
    for place in experiment.places():
        for one in store.read_jsonl(place.folder / "treatments.jsonl", Treatment):
            if one.condition == "wrong_trajectory":
                kinds = {name for read in one.trajectory_ids for name in shown[read]}
                wrong.setdefault(place.cell.seed, {})[one.task_id] = kinds
    alike_TS = np.array(
        [[kind(t.problem.test) in wrong[seed][t.problem.task_id] for seed in sorted(wrong)] for t in tasks]
    )
    some_T = alike_TS.any(axis=1)
    share_T = {
        arm: (s.passed_TS / s.n * alike_TS).sum(axis=1)[some_T] / alike_TS.sum(axis=1)[some_T]
        for arm, s in scores.items()
        if arm in RULE[0]
    }
    labels = [t.problem.domain for t, is_in in zip(tasks, some_T, strict=True) if is_in]
    difference_T = 100 * (share_T["hypernet"] - share_T["wrong_trajectory"])
    weights_RT = stats.task_weights(len(set(labels)), RESAMPLES, 0)
    found = stats.mean_interval(difference_T[:, None], labels, weights_RT, level=LEVEL, low=-100.0, high=100.0)
    return {
        "tasks": int(some_T.sum()),
        "functions": len(set(labels)),
        "arms": {arm: 100 * float(share.mean()) for arm, share in share_T.items()},
        "hypernet - wrong_trajectory": {
            "points": float(difference_T.mean()), "low": found.low, "high": found.high,
        },
    }  # fmt: skip


def body(code: str) -> str:
    """The last line of a function, as it is told."""
    return code.strip().splitlines()[-1].strip()


def told(run: Path, corpus: Path, before: Path) -> dict[str, Any]:
    """All figures."""
    experiment = reopen(run)
    settings = config.build(pbb.Config, experiment.settings.benchmark.settings, where="benchmark.settings")
    asked = {t.problem.task_id: t for t in pbb.tasks(settings) if t.problem.split is Split.HELD_OUT}
    names = sorted(asked)
    tasks = [asked[name] for name in names]
    domains = [t.problem.domain for t in tasks]
    scores, by_seed = passes(run, names, ARMS)
    scores |= passes(before, names, (BEFORE,))[0]
    trains = forms_that_train(corpus)
    given = {t.domain: t for t in pbb.given(settings)}
    answers: dict[str, Counter[str]] = {arm: Counter() for arm in ARMS}
    for place in experiment.places():
        for sample in store.read_jsonl(place.folder / "samples.jsonl", Sample):
            task, count = asked[sample.task_id], answers[sample.condition]
            lesson = given[task.problem.domain]
            count[form(sample, sample.program, task)] += 1
            count["cut"] += sample.finish_reason == "length"
            count["its own code"] += code_of(sample.program, lesson.solution)
            if any(right(sample.program, value) for value in SHOWN.findall(lesson.prompt)):
                count["a shown value"] += 1
                count["a shown value, right"] += right(sample.program, task.problem.test)

    def form_of(task: pbb.Task) -> str:
        if len(task.functions) > 1:
            return "composition"
        return "trains" if _pbb_drawn.form(task.functions[0].source.code) in trains else "does not train"

    classes: dict[str, Callable[[pbb.Task], str]] = {
        "functions": lambda t: "one function" if len(t.functions) == 1 else "composition",
        "form": form_of,
        "kind": lambda t: t.problem.category,
        "input size": lambda t: t.size,
        "steps executed": lambda t: t.steps,
        "value": lambda t: kind(t.problem.test),  # asked afterwards
    }
    owed: dict[str, float] = defaultdict(float)
    for domain, value in zip(domains, scores["hypernet"].share_T - scores["wrong_trajectory"].share_T, strict=True):
        owed[domain] += float(value)
    best = max(sorted(owed), key=lambda domain: owed[domain])
    subsets = {
        "all tasks": np.ones(len(tasks), bool),
        "that `vanilla` never answers": scores["vanilla"].share_T == 0,
        "that `static` never answers": scores["static"].share_T == 0,
        "without its best function": np.array([domain != best for domain in domains]),
        "of a form that does not train": np.array([form_of(t) == "does not train" for t in tasks]),
    }
    manifest = RunDir.open(run).told()
    first = experiment.places()[0].folder
    return {
        "model": manifest.get("model"),
        "device": manifest.get("device") or RunDir.open(first.path).told().get("device"),
        "seeds": list(experiment.settings.design.seeds),
        "training_steps": experiment.settings.train.hypernet.schedule.steps,
        "tasks": len(tasks),
        "functions": len(set(domains)),
        "functions_of_a_form_that_trains": len({t.functions for t in tasks if form_of(t) == "trains"}),
        "arms": {arm: {"pass_at_1": 100 * float(s.share_T.mean()), "draws": s.draws} for arm, s in scores.items()},
        "by_seed": by_seed,
        "subsets": {
            name: {
                "tasks": int(member.sum()),
                "contrasts": {f"{a} - {b}": contrast(scores, domains, member, a, b) for a, b in CONTRASTS},
            }
            for name, member in subsets.items()
        },
        "best_function": {
            "solution": given[best].solution,
            "arms": {
                arm: 100 * float(s.share_T[np.array([d == best for d in domains])].mean()) for arm, s in scores.items()
            },
        },
        "by_function": {
            domain: {
                "returns": " after ".join(body(f.source.code) for f in task.functions),
                "form": form_of(task),
                "arms": {
                    arm: 100 * float(s.share_T[np.array([d == domain for d in domains])].mean())
                    for arm, s in scores.items()
                },
            }
            for domain, task in {t.problem.domain: t for t in tasks}.items()
        },
        "wrong_of_a_kind": wrong_of_a_kind(
            experiment, scores, tasks, {t.trajectory_id: t for t in pbb.given(settings)}
        ),
        "functions_that_pass": {
            arm: len({d for d, v in zip(domains, s.share_T, strict=True) if v > 0}) for arm, s in scores.items()
        },
        "answers": {arm: dict(sorted(count.items())) for arm, count in answers.items()},
        "by": {
            name: {
                label: {
                    "tasks": int(member.sum()),
                    "arms": {arm: 100 * float(s.share_T[member].mean()) for arm, s in scores.items()},
                    "hypernet - wrong_trajectory": contrast(scores, domains, member, "hypernet", "wrong_trajectory"),
                }
                for label in sorted({of(t) for t in tasks})
                for member in (np.array([of(t) == label for t in tasks]),)
            }
            for name, of in classes.items()
        },
    }


def measured(found: Mapping[str, Any], what: str) -> tuple[float, str]:
    """The figure of a prediction, and how it is written."""
    arm, _, where = what.partition(", ")
    if where:
        place = {
            "compositions": ("functions", "composition"), "a form that trains": ("form", "trains"),
            "a form that does not": ("form", "does not train"),
        }[where]  # fmt: skip
        one = found["by"][place[0]][place[1]]["hypernet - wrong_trajectory"]
        return one["points"], span(one)
    if " - " in what:
        one = found["subsets"]["all tasks"]["contrasts"][what]
        return one["points"], span(one)
    value = found["arms"][arm]["pass_at_1"]
    return value, f"{value:.1f}"


def in_words(by: Mapping[str, Any]) -> list[str]:
    """The two predictions that are sentences: it falls with the lines executed, and which kinds are easier."""
    few, some, many = (by["steps executed"][label]["arms"]["hypernet"] for label in ("few", "some", "many"))
    kinds = {label: by["kind"][label]["arms"]["hypernet"] for label in (*EASIER, *HARDER)}
    apart = min(kinds[label] for label in EASIER) > max(kinds[label] for label in HARDER)
    told = ", ".join(f"{label} {value:.1f}" for label, value in kinds.items())
    return [
        f"`hypernet` falls with the lines executed: few {few:.1f}, some {some:.1f}, many {many:.1f}: "
        f"{'kept' if few > some > many else 'missed'}. {' and '.join(EASIER)} are easier than {' and '.join(HARDER)}: "
        f"{told}: {'kept' if apart else 'missed'}."
    ]


def came_out(found: Mapping[str, Any]) -> str:
    """What the page says: predictions, the rule, what stands beside it, classes and answers."""
    lines = [f"Intervals: {LEVEL:.0%}, paired, {OVER}.", ""]
    lines += ["| points | predicted | measured | |", "|---|---:|---:|---|"]
    kept = 0
    for what, (low, high) in PREDICTED.items():
        value, text = measured(found, what)
        holds = low <= round(value, 1) <= high
        kept += holds
        lines.append(f"| {what.replace(' - ', ' − ')} | {low} to {high} | {text} | {'kept' if holds else 'missed'} |")
    every = found["subsets"]["all tasks"]["contrasts"]
    ruling = [every[f"{a} - {b}"] for a, b in RULE]
    there = all(one["low"] > 0 for one in ruling)
    said = f"By the rule: **the effect is {'' if there else 'not '}there.**"
    if there and all("and_trainings" in one for one in ruling):
        wide = all(one["and_trainings"]["low"] > 0 for one in ruling)
        said += f" With trainings in the intervals it is {'there as well' if wide else 'not shown'}."
    lines += ["", f"{kept} of {len(PREDICTED)} predictions kept. {said}", "", *in_words(found["by"]), ""]
    lines += [
        "| beside the rule | tasks | − `wrong_trajectory` | − `hypernet_mean` | − `static` |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, one in found["subsets"].items():
        cells = [span(one["contrasts"][f"hypernet - {b}"]) for b in ("wrong_trajectory", "hypernet_mean", "static")]
        lines.append(f"| tasks {name} | {one['tasks']} | {' | '.join(cells)} |".replace("tasks all tasks", "all tasks"))
    shown = (*ARMS, BEFORE)
    lines += ["", f"| points | tasks | {' | '.join(f'`{a}`' for a in shown)} | `hypernet` − `wrong_trajectory` |"]
    lines.append(f"|---|---:|{'---:|' * (len(shown) + 1)}")
    for by, classes in found["by"].items():
        for label, one in classes.items():
            values = " | ".join(f"{one['arms'][arm]:.1f}" for arm in shown)
            lines.append(f"| {by}: {label} | {one['tasks']} | {values} | {span(one['hypernet - wrong_trajectory'])} |")
    for seed, arms in found["by_seed"].items():
        values = " | ".join(f"{arms[arm]:.1f}" if arm in arms else "" for arm in shown)
        lines.append(f"| seed {seed} | {found['tasks']} | {values} | |")
    lines += ["", f"| answers, % of draws | {' | '.join(f'`{arm}`' for arm in ARMS)} |", f"|---|{'---:|' * len(ARMS)}"]
    for name in (*FORMS, "cut", "its own code", "a shown value", "a shown value, right"):
        shares = [100 * found["answers"][arm].get(name, 0) / found["arms"][arm]["draws"] for arm in ARMS]
        lines.append(f"| {name} | {' | '.join(f'{share:.1f}' for share in shares)} |")
    passing = ", ".join(f"`{arm}` {count}" for arm, count in found["functions_that_pass"].items())
    best = found["best_function"]
    alike = found["wrong_of_a_kind"]
    lines += [
        "", "Asked afterwards: where the wrong function gives the same kind of value as the right one "
        f"({alike['tasks']} tasks of {alike['functions']} functions and compositions), `hypernet` has "
        f"{alike['arms']['hypernet']:.1f}, `wrong_trajectory` {alike['arms']['wrong_trajectory']:.1f}: "
        f"{span(alike['hypernet - wrong_trajectory'])}.",
    ]  # fmt: skip
    lines += [
        "", f"Functions and compositions that an arm passes anything of, of {found['functions']}: {passing}.",
        f"Its best function is `{body(best['solution'])}`: "
        + ", ".join(f"`{arm}` {value:.0f}" for arm, value in best["arms"].items()) + ".",
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
