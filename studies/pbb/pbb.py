"""Programming by Backprop: the trajectories that its runs import, and what came out of them.

    python studies/pbb/pbb.py corpus --out runs/pbb        train.jsonl, given.jsonl, for configs/pbb-*.toml;
                                                            --drawn N: N functions of a grammar and CRUXEval's as well
    python studies/pbb/pbb.py ceiling RUN                  whether `teacher` got far enough for the question
    python studies/pbb/pbb.py tell RUN … --out results/pbb  result.json, result.md: by kind, size and steps as well,
                                                            and "What came out" on the page

An answer counts as it was taken and judged in the run. Beside it stands what `prompts.value` takes from the same
completions today, and what they consist of.

Question, design, predictions and rule: README.md beside this file. Intervals are paired and over functions: each draw
of the bootstrap takes whole functions (or compositions), with all their tasks, seeds and draws. Where all functions
agree, as where nothing passes, the interval is that of a share of functions not yet seen (`stats.task_interval`).
Runs of several seeds have a second interval, over functions and trainings (`stats.mean_interval`).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rune import config, prompts
from rune.analysis import stats
from rune.benchmarks import _pbb_training, pbb, pbb_cruxeval
from rune.benchmarks.scorers import exact_value
from rune.runs import store
from rune.runs.store import RunDir
from rune.study.folders import reopen
from rune.types import Answer, Outcome, Sample, Split, Verdict

ARMS = ("vanilla", "teacher", "tuned", "tuned_wrong", "tuned_mean")
CONTRASTS = (
    ("tuned", "tuned_wrong"), ("tuned", "tuned_mean"), ("tuned", "vanilla"), ("tuned_wrong", "vanilla"),
    ("tuned_mean", "vanilla"), ("teacher", "vanilla"), ("tuned", "teacher"),
)  # fmt: skip
RESAMPLES, LEVEL = 10_000, 0.95
OVER = "over functions and, behind the slash where there are several seeds, over functions and trainings"
PAGE = Path(__file__).with_name("README.md")
CONFIGS = Path(__file__).parents[2] / "configs"


class Part(NamedTuple):
    """One part of the page: its runs, and what → run → lowest and highest that was predicted, in points."""

    block: str  # of the page
    runs: tuple[str, ...]
    predicted: Mapping[str, tuple[tuple[float, float], ...]]
    closer: bool = False  # whether `tuned` gets far enough to be looked at by kind, function and answer


PARTS = {
    "first": Part(
        "pbb",
        ("pbb-0.5b", "pbb-0.5b-reason", "pbb-1.5b", "pbb-1.5b-reason"),
        {
            "vanilla": ((1, 8), (1, 9), (3, 12), (2, 12)),
            "teacher": ((10, 30), (10, 32), (22, 45), (25, 52)),
            "tuned": ((2, 10), (1, 9), (4, 15), (3, 15)),
            "tuned - tuned_wrong": ((-1.5, 3), (-2, 3), (-1, 5), (-2, 6)),
            "tuned_wrong - vanilla": ((-3, 2), (-4, 2), (-4, 3), (-5, 3)),
            "tuned_mean - vanilla": ((-3, 3), (-4, 3), (-3, 3), (-4, 3)),
            "tuned - tuned_wrong, compositions": ((-3, 3),) * 4,
        },
    ),
    "easy": Part(
        "pbb-easy",
        ("pbb-easy-0.5b", "pbb-easy-1.5b"),
        {
            "vanilla": ((1, 10), (2, 13)),
            "teacher": ((35, 75), (60, 90)),
            "tuned": ((4, 25), (8, 40)),
            "tuned - tuned_wrong": ((0, 14), (3, 28)),
            "tuned_wrong - vanilla": ((-2, 8), (-3, 9)),
            "tuned_mean - vanilla": ((-2, 8), (-3, 9)),
            "tuned - tuned_wrong, compositions": ((-6, 10), (-5, 16)),
        },
        closer=True,
    ),
}
CEILING = 10.0  # a `teacher` below it: nothing about weights follows
SHOWN = re.compile(r"^assert .* == (.*)$", re.MULTILINE)  # the values that a trajectory's test shows
CONSTANT = re.compile(r"return (s \+ '\w+'|'\w+' \+ s)\n")  # functions that put a constant to a string
FORMS = ("a value", "states a value", "the call", "the question", "other")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    one = verbs.add_parser("corpus")
    one.add_argument("--config", type=Path, default=CONFIGS / "pbb-0.5b.toml")
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--drawn", type=int, default=0, help="functions of the grammar that train beside its own")
    one.add_argument("--pairs", type=int, default=8, help="execution pairs of each training function, with --drawn")
    one.set_defaults(do=corpus)
    three = verbs.add_parser("ceiling")
    three.add_argument("run", type=Path)
    three.set_defaults(do=ceiling)
    two = verbs.add_parser("tell")
    two.add_argument("runs", type=Path, nargs="+")
    two.add_argument("--part", choices=PARTS, default="first")
    two.add_argument("--out", type=Path, required=True)
    two.set_defaults(do=tell)
    args = parser.parse_args()
    args.do(args)
    return 0


def corpus(args: argparse.Namespace) -> None:
    """What training functions show (for `collect.imports`), and what every task is given (`collect.shown`)."""
    from rune.study.config import load

    settings = load(args.config).settings
    if settings.benchmark.name == pbb_cruxeval.NAME:
        of_others(args.out, config.build(pbb_cruxeval.Config, settings.benchmark.settings, where="benchmark.settings"))
        return
    part = config.build(pbb.Config, settings.benchmark.settings, where="benchmark.settings")
    train = {f.name for f in pbb.functions(part) if f.split is Split.TRAIN}
    args.out.mkdir(parents=True, exist_ok=True)
    given = pbb.given(part)
    store.write_jsonl(args.out / "given.jsonl", given)
    trains = [t for t in given if t.domain in train]
    if args.drawn:
        trains = _pbb_training.own(part, pairs=args.pairs)
        trains += _pbb_training.drawn(part, count=args.drawn, pairs=args.pairs)
        trains += _pbb_training.renamed(part, pairs=args.pairs)
        train = {t.domain for t in trains}
    store.write_jsonl(args.out / "train.jsonl", trains)
    print(f"{args.out}: {len(given)} trajectories given; {len(trains)} of {len(train)} functions that train")


def of_others(out: Path, part: pbb_cruxeval.Config) -> None:
    """The same for CRUXEval's functions."""
    given = pbb_cruxeval.trajectories(part)
    trains = {p.domain for p in pbb_cruxeval.build(part).problems() if p.split is Split.TRAIN}
    store.write_jsonl(out / "given.jsonl", given)
    store.write_jsonl(out / "train.jsonl", [t for t in given if t.domain in trains])
    print(f"{out}: {len(given)} trajectories given, of {len(trains)} functions that train")


def ceiling(args: argparse.Namespace) -> None:
    """The page's rule before any LoRA is trained: exit code 1 if `teacher` is below CEILING in this run."""
    found: dict[str, list[bool]] = defaultdict(list)
    for place in reopen(args.run.resolve()).places():
        for verdict in store.read_jsonl(place.folder / "verdicts.jsonl", Verdict):
            found[verdict.condition].append(verdict.outcome is Outcome.PASSED)
    for arm, passed in sorted(found.items()):
        print(f"{arm}: {100 * np.mean(passed):.1f} of {len(passed)} draws")
    sys.exit(int(100 * np.mean(found["teacher"]) < CEILING))


# --------------------------------------------------------------------------- what came out


class Scores(NamedTuple):
    """Passes of one arm, T tasks × S seeds, each of `n` draws."""

    passed_TS: np.ndarray
    n: int

    @property
    def share_T(self) -> np.ndarray:
        """Of all draws of all seeds."""
        return self.passed_TS.sum(axis=1) / (self.n * self.passed_TS.shape[1])

    @property
    def draws(self) -> int:
        return self.n * self.passed_TS.size


Found = Mapping[int, Mapping[str, Sequence[bool]]]  # seed → task → whether each draw passed


def scored(found: Found, names: Sequence[str]) -> Scores:
    """One arm's passes, tasks as in `names`, seeds in order. ValueError if a task has not as many draws as others."""
    seeds = sorted(found)
    counts = {len(found[seed][name]) for seed in seeds for name in names}
    if len(counts) != 1:
        raise ValueError(f"tasks with {sorted(counts)} draws; finish the run first: `rune run FOLDER --resume`")
    return Scores(np.array([[sum(found[seed][name]) for seed in seeds] for name in names]), counts.pop())


def by_arm(arms: Sequence[str] = ARMS) -> dict[str, dict[int, dict[str, list[bool]]]]:
    """Nothing yet: arm → seed → task → whether each draw passed."""
    return {arm: defaultdict(lambda: defaultdict(list)) for arm in arms}


def tell(args: argparse.Namespace) -> None:
    by_name = {run.resolve().name.rpartition("-")[0]: run.resolve() for run in args.runs}
    part = PARTS[args.part]
    found = {name: one(by_name[name]) for name in part.runs if name in by_name}
    args.out.mkdir(parents=True, exist_ok=True)
    store.write_json(args.out / "result.json", {"level": LEVEL, "resamples": RESAMPLES, "runs": found})
    store.write_atomic(args.out / "result.md", page(found))
    store.replace_block(PAGE, part.block, came_out(found, part))
    print(args.out / "result.md")


def one(run: Path) -> dict[str, Any]:
    """All figures of one run."""
    experiment = reopen(run)
    part = config.build(pbb.Config, experiment.settings.benchmark.settings, where="benchmark.settings")
    asked = {t.problem.task_id: t for t in pbb.tasks(part) if t.problem.split is Split.HELD_OUT}
    passed, now = by_arm(), by_arm()
    seconds: dict[str, float] = defaultdict(float)
    forms: dict[str, Counter[str]] = {arm: Counter() for arm in ARMS}
    read = {t.domain: t for t in pbb.given(part)}
    shown: dict[str, Counter[str]] = {arm: Counter() for arm in ARMS}
    for place in experiment.places():
        for sample in store.read_jsonl(place.folder / "samples.jsonl", Sample):
            problem = asked[sample.task_id].problem
            answer = prompts.extract(sample.completion, prompt=problem.prompt, entry_point="", answer=Answer.VALUE)
            now[sample.condition][place.cell.seed][sample.task_id].append(right(answer, problem.test))
            forms[sample.condition][form(sample, answer, asked[sample.task_id])] += 1
            forms[sample.condition]["cut"] += sample.finish_reason == "length"
            given = read[problem.domain]
            if any(right(answer, value) for value in SHOWN.findall(given.prompt)):
                shown[sample.condition]["a shown value"] += 1
                shown[sample.condition]["a shown value, right"] += right(answer, problem.test)
            shown[sample.condition]["its own code"] += code_of(answer, given.solution)
        for verdict in store.read_jsonl(place.folder / "verdicts.jsonl", Verdict):
            passed[verdict.condition][place.cell.seed][verdict.task_id].append(verdict.outcome is Outcome.PASSED)
        for stage, told in place.folder.manifest().get("stages", {}).items():
            seconds[stage] += float(told.get("seconds", 0.0))
    tasks = [asked[name] for name in sorted(asked)]
    names = [t.problem.task_id for t in tasks]
    scores = {arm: scored(found, names) for arm, found in passed.items()}
    again = {arm: scored(found, names) for arm, found in now.items()}
    domains = [t.problem.domain for t in tasks]
    manifest = RunDir.open(run).told()
    never = scores["vanilla"].share_T == 0
    all_T = np.ones(len(tasks), bool)
    gives = most(scores, domains)
    is_most = np.array([domain == gives for domain in domains])
    constant = np.array([bool(CONSTANT.search(read[d].solution)) for d in domains])
    classes: dict[str, Callable[[pbb.Task], str]] = {
        "functions": lambda t: "one function" if len(t.functions) == 1 else "composition",
        "kind": lambda t: t.problem.category,
        "input size": lambda t: t.size,
        "steps executed": lambda t: t.steps,
    }
    return {
        "model": manifest.get("model"),
        "device": manifest.get("device") or RunDir.open(experiment.places()[0].folder.path).told().get("device"),
        "reason": part.reason,
        "seeds": list(experiment.settings.design.seeds),
        "tasks": len(tasks),
        "functions": len(set(domains)),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "arms": {arm: {"pass_at_1": 100 * float(s.share_T.mean()), "draws": s.draws} for arm, s in scores.items()},
        "contrasts": contrasts(scores, domains, all_T),
        "floor_never_answers": {"tasks": int(never.sum()), "contrasts": contrasts(scores, domains, never)},
        "gives_most": {
            "function": gives,
            "solution": read[gives].solution,
            "passed": {arm: int(s.passed_TS[is_most].sum()) for arm, s in scores.items()},
            "contrasts": contrasts(scores, domains, ~is_most),
        },
        "functions_that_pass": functions_that_pass(scores, domains),
        "constant_put_to_a_string": {
            "tasks": int(constant.sum()),
            "tuned - tuned_wrong": contrast(scores, domains, constant, "tuned", "tuned_wrong"),
        },
        "answers_of_what_was_read": {arm: dict(sorted(count.items())) for arm, count in shown.items()},
        "passed": {arm: int(s.passed_TS.sum()) for arm, s in scores.items()},
        "taken_today": {
            "passed": {arm: int(s.passed_TS.sum()) for arm, s in again.items()},
            "arms": {arm: 100 * float(s.share_T.mean()) for arm, s in again.items()},
            "contrasts": contrasts(again, domains, all_T),
        },
        "answers": {arm: {name: count[name] for name in (*FORMS, "cut")} for arm, count in forms.items()},
        "by": {
            name: {
                label: {
                    "tasks": int(member.sum()),
                    "arms": {arm: 100 * float(s.share_T[member].mean()) for arm, s in scores.items()},
                    "tuned - tuned_wrong": contrast(scores, domains, member, "tuned", "tuned_wrong"),
                }
                for label in sorted({of(t) for t in tasks})
                for member in (np.array([of(t) == label for t in tasks]),)
            }
            for name, of in classes.items()
        },
    }  # fmt: skip


def right(answer: str, expected: str) -> bool:
    """Whether an answer is the value, as `exact_value` compares."""
    try:
        return exact_value.same(exact_value.parse(answer), exact_value.parse(expected))
    except exact_value.NoValue:
        return False


def code_of(answer: str, solution: str) -> bool:
    """Whether an answer that is no value is a piece of the function's own code: recalled, not evaluated."""
    try:
        exact_value.parse(answer)
        return False
    except exact_value.NoValue:
        return len(answer.strip()) > 1 and answer.strip() in solution


def most(scores: Mapping[str, Scores], domains: Sequence[str]) -> str:
    """The function (or composition) to which `tuned` − `tuned_wrong` owes most."""
    owed: dict[str, float] = defaultdict(float)
    for domain, value in zip(domains, scores["tuned"].share_T - scores["tuned_wrong"].share_T, strict=True):
        owed[domain] += float(value)
    return max(sorted(owed), key=lambda domain: owed[domain])


def functions_that_pass(scores: Mapping[str, Scores], domains: Sequence[str]) -> dict[str, int]:
    """Of how many functions and compositions an arm passes anything."""
    return {arm: len({d for d, v in zip(domains, s.share_T, strict=True) if v > 0}) for arm, s in scores.items()}


def form(sample: Sample, taken: str, task: pbb.Task) -> str:
    """What an answer consists of, one of FORMS."""
    try:
        exact_value.parse(taken)
        return "a value" if taken == sample.program else "states a value"
    except exact_value.NoValue:
        pass
    text = sample.program.strip()
    if any(re.fullmatch(rf"(repr\(|print\()*{f.name}\([^\n]*\)", text) for f in task.functions):
        return "the call"
    return "the question" if task.problem.prompt.partition("\n")[0] in text else "other"


def contrasts(scores: Mapping[str, Scores], domains: Sequence[str], member: np.ndarray) -> dict[str, Any]:
    return {f"{a} - {b}": contrast(scores, domains, member, a, b) for a, b in CONTRASTS}


def contrast(scores: Mapping[str, Scores], domains: Sequence[str], member: np.ndarray, a: str, b: str) -> Any:
    """Difference in points with its interval over functions, and over functions and trainings if both arms have as
    many and more than one (they are paired by seed). None where there are fewer than two functions.
    """
    difference_T = 100 * (scores[a].share_T - scores[b].share_T)[member]
    labels = [d for d, is_in in zip(domains, member, strict=True) if is_in]
    units = len(set(labels))
    if units < 2:
        return None
    weights_RT = stats.task_weights(units, RESAMPLES, 0)

    def interval(values_TS: np.ndarray) -> dict[str, float]:
        found = stats.mean_interval(values_TS, labels, weights_RT, level=LEVEL, low=-100.0, high=100.0)
        return {"low": found.low, "high": found.high}

    told = {"points": float(difference_T.mean()), **interval(difference_T[:, None])}
    one_TS, other_TS = (scores[arm].passed_TS[member] / scores[arm].n for arm in (a, b))
    if one_TS.shape != other_TS.shape or one_TS.shape[1] == 1:
        return told
    return {**told, "and_trainings": interval(100 * (one_TS - other_TS))}


def page(found: Mapping[str, Any]) -> str:
    """result.md: every figure from result.json."""
    lines = ["# Programming by Backprop", "", f"Intervals: {LEVEL:.0%}, paired, {OVER}."]
    for name, run in found.items():
        lines += [
            "", f"## {name}", "",
            f"{run['model']['name']} on {run['device']}; {run['tasks']} held-out tasks of "
            f"{run['functions']} functions and compositions; seeds {', '.join(map(str, run['seeds']))}; "
            f"{'with' if run['reason'] else 'without'} room to reason.", "",
            "| arm | pass@1 | draws |", "|---|---:|---:|",
            *(f"| {arm} | {told['pass_at_1']:.1f} | {told['draws']} |" for arm, told in run["arms"].items()), "",
            f"| contrast, points | all tasks | {run['floor_never_answers']['tasks']} that the floor never answers |",
            "|---|---:|---:|",
            *(f"| {c} | {span(told)} | {span(run['floor_never_answers']['contrasts'][c])} |"
              for c, told in run["contrasts"].items()),
        ]  # fmt: skip
        for by, classes in run["by"].items():
            lines += ["", f"| {by} | tasks | {' | '.join(ARMS)} | tuned − tuned_wrong |", f"|---|---:|{'---:|' * 6}"]
            for label, told in classes.items():
                values = " | ".join(f"{told['arms'][arm]:.1f}" for arm in ARMS)
                lines.append(f"| {label} | {told['tasks']} | {values} | {span(told['tuned - tuned_wrong'])} |")
    return "\n".join(lines) + "\n"


def came_out(found: Mapping[str, Any], part: Part) -> str:
    """What the page says of the runs: each prediction, the rule, and what the answers consist of."""
    lines = [f"Intervals: {LEVEL:.0%}, paired, {OVER}.", ""]
    lines += [f"| measured, points | {' | '.join(found)} |", f"|---|{'---:|' * len(found)}"]
    kept = 0
    for what, bounds in part.predicted.items():
        cells = []
        for name, run in found.items():
            low, high = bounds[part.runs.index(name)]
            arm, _, where = what.partition(", ")
            by = run["by"]["functions"]["composition"]
            told = by["tuned - tuned_wrong"] if where else run["contrasts"].get(arm)
            value = told["points"] if told else run["arms"][arm]["pass_at_1"]
            holds = low <= round(value, 1) <= high
            kept += holds
            cells.append(f"{span(told) if told else f'{value:.1f}'}: {'kept' if holds else 'missed'}")
        lines.append(f"| {what.replace(' - ', ' − ')} | {' | '.join(cells)} |")
    total = len(part.predicted) * len(found)
    lines += ["", f"{kept} of {total} predictions kept.", ""]
    lines += [f"| answers of `teacher`, % of draws | {' | '.join(found)} |", f"|---|{'---:|' * len(found)}"]
    lines += [
        *shares(found, "teacher", (*FORMS, "cut")),
        f"| right, of those that are or state a value | {' | '.join(of_values(r) for r in found.values())} |",
        "", f"| of `vanilla` | {' | '.join(found)} |", f"|---|{'---:|' * len(found)}", *shares(found, "vanilla", FORMS),
        "", f"| passes, as judged in the run → as taken today | {' | '.join(found)} |", f"|---|{'---:|' * len(found)}",
    ]  # fmt: skip
    for arm in ARMS:
        cells = [
            f"{r['passed'][arm]} → {r['taken_today']['passed'][arm]} of {r['arms'][arm]['draws']}"
            for r in found.values()
        ]
        lines.append(f"| `{arm}` | {' | '.join(cells)} |")
    lines += ["", "By the rule:"]
    lines += [f"- **{name}**: {verdict(run)}" for name, run in found.items()]
    falls = [f"{name} {by_steps(run)}" for name, run in found.items()]
    lines += ["", f"`teacher` by lines executed, points: {'; '.join(falls)}."]
    return "\n".join([*lines, *(closer(found) if part.closer else [])])


def closer(found: Mapping[str, Any]) -> list[str]:
    """`tuned` by kind of function, of task and of answer, and what is left of it without its best function."""
    lines = [
        "", f"| `teacher` / `tuned` / `tuned_wrong`; `tuned` − `tuned_wrong` | {' | '.join(found)} |",
        f"|---|{'---:|' * len(found)}",
    ]  # fmt: skip
    first = next(iter(found.values()))
    for by, classes in first["by"].items():
        for label in classes:
            cells = []
            for run in found.values():
                told = run["by"][by][label]
                arms = " / ".join(f"{told['arms'][arm]:.1f}" for arm in ("teacher", "tuned", "tuned_wrong"))
                cells.append(f"{arms}; {span(told['tuned - tuned_wrong'])}")
            lines.append(f"| {by}: {label} | {' | '.join(cells)} |")
    lines += ["", f"| `tuned`, closer | {' | '.join(found)} |", f"|---|{'---:|' * len(found)}"]
    rows: dict[str, Callable[[Any], str]] = {
        "− `tuned_wrong`, tasks that `vanilla` never answers": lambda r: span(never(r, "tuned - tuned_wrong")),
        "− `tuned_mean`, the same": lambda r: span(never(r, "tuned - tuned_mean")),
        "− `vanilla`, all tasks": lambda r: span(r["contrasts"]["tuned - vanilla"]),
        "its best function": lambda r: f"`{r['gives_most']['solution'].splitlines()[-1].strip()}`",
        "passes there: `tuned`, `tuned_wrong`, `vanilla`": lambda r: ", ".join(
            str(r["gives_most"]["passed"][arm]) for arm in ("tuned", "tuned_wrong", "vanilla")
        ),
        "− `tuned_wrong` without it": lambda r: span(r["gives_most"]["contrasts"]["tuned - tuned_wrong"]),
        "− `tuned_mean` without it": lambda r: span(r["gives_most"]["contrasts"]["tuned - tuned_mean"]),
        "functions that it passes anything of": lambda r: f"{r['functions_that_pass']['tuned']} of {r['functions']}",
        "answers that the trajectory shows; right": lambda r: (
            f"{of_read(r, 'a shown value')}; {of_read(r, 'a shown value, right')}"
        ),
        "answers that are a piece of the function's code": lambda r: str(of_read(r, "its own code")),
        "answers that are values, %: `tuned`, `tuned_wrong`, `tuned_mean`": lambda r: ", ".join(
            f"{100 * r['answers'][arm]['a value'] / r['arms'][arm]['draws']:.0f}"
            for arm in ("tuned", "tuned_wrong", "tuned_mean")
        ),
        "− `tuned_wrong`, a constant put to a string": lambda r: span(
            r["constant_put_to_a_string"]["tuned - tuned_wrong"]
        ),
    }
    lines += [f"| {name} | {' | '.join(of(run) for run in found.values())} |" for name, of in rows.items()]
    for name, run in found.items():
        kinds = {label: told["tuned - tuned_wrong"]["points"] for label, told in run["by"]["kind"].items()}
        low, high = min(kinds, key=lambda k: kinds[k]), max(kinds, key=lambda k: kinds[k])
        kept = high == "strings" and kinds["recursion"] == kinds[low]
        lines += [
            "",
            f"{name}: `tuned` − `tuned_wrong` largest for {high}, smallest for {low}: {'kept' if kept else 'missed'}.",
        ]
    return lines


def never(run: Mapping[str, Any], what: str) -> Any:
    return run["floor_never_answers"]["contrasts"][what]


def of_read(run: Mapping[str, Any], what: str) -> int:
    return int(run["answers_of_what_was_read"]["tuned"].get(what, 0))


def by_steps(run: Mapping[str, Any]) -> str:
    """The ceiling's points by lines executed, and whether they fall as predicted: by 10 or more, at every step."""
    few, some, many = (run["by"]["steps executed"][label]["arms"]["teacher"] for label in ("few", "some", "many"))
    kept = few > some > many and few - many >= 10
    return f"few {few:.1f}, some {some:.1f}, many {many:.1f}: {'kept' if kept else 'missed'}"


def shares(found: Mapping[str, Any], arm: str, names: Sequence[str]) -> list[str]:
    """Rows of the table of what an arm's answers consist of."""
    words = {"cut": "cut at `max_new_tokens`"}
    return [
        f"| {words.get(name, name)} | "
        + " | ".join(f"{100 * r['answers'][arm][name] / r['arms'][arm]['draws']:.1f}" for r in found.values())
        + " |"
        for name in names
    ]


def of_values(run: Mapping[str, Any]) -> str:
    """How many of the ceiling's answers that are or state a value are right, in percent."""
    values = sum(run["answers"]["teacher"][name] for name in FORMS[:2])
    return f"{100 * run['taken_today']['passed']['teacher'] / values:.1f}" if values else "–"


def verdict(run: Mapping[str, Any]) -> str:
    """The page's rule, on the answers as judged in the run and as taken today."""
    ceilings = (run["arms"]["teacher"]["pass_at_1"], run["taken_today"]["arms"]["teacher"])
    told = [(run["contrasts"]["tuned - tuned_wrong"], run["contrasts"]["tuned - tuned_mean"])]
    told.append(
        (run["taken_today"]["contrasts"]["tuned - tuned_wrong"], run["taken_today"]["contrasts"]["tuned - tuned_mean"])
    )
    there = [all(c["low"] > 0 for c in pair) for pair in told]
    said = "the effect is there" if any(there) else "the effect is not there"
    if any(there) and all("and_trainings" in c for pair in told for c in pair):
        wide = any(all(c["and_trainings"]["low"] > 0 for c in pair) for pair in told)
        said += f"; with trainings in the intervals it is {'there as well' if wide else 'not shown'}"
    if max(ceilings) < CEILING:
        said += (
            f", and `teacher` ({ceilings[0]:.1f}; {ceilings[1]:.1f} as taken today) is below {CEILING:g}: "
            "nothing about weights follows"
        )
    return f"{said}."


def span(told: Mapping[str, Any] | None) -> str:
    """Points and intervals, as OVER says."""
    if told is None:
        return "–"
    intervals = [told, *([told["and_trainings"]] if "and_trainings" in told else [])]
    return f"{told['points']:+.1f} " + " / ".join(f"[{one['low']:+.1f}, {one['high']:+.1f}]" for one in intervals)


if __name__ == "__main__":
    sys.exit(main())
