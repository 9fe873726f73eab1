"""Could the adapters have seen the answers? Every held-out task against everything that trained or was retrieved.

Signals, per held-out task: its id in the corpus; its prompt's n-grams in a training prompt; its reference
solution's n-grams, or its normalised syntax tree, in training code; its function's name. A task is suspicious
by id, prompt, solution or tree (the name alone is only shown: `add` is not a leak). Then: the effect without
the suspicious tasks; whether tasks nearer to the corpus gained more (permutation test); and what swapping the
two arms' labels task by task gives by luck (placebo).

Not covered: what the base model saw in its own pre-training, which both arms share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from rune.analysis import stats
from rune.corpus import overlap
from rune.types import Problem, Trajectory, Treatment

GRAM = 8  # tokens in a shingle
PROMPT_LIMIT = 0.5  # share of the held-out prompt's shingles in one training prompt
SOLUTION_LIMIT = 0.6  # share of the reference's shingles in one training program
TREE_SIZE = 24  # smaller trees (return a + b) coincide by chance
_COMMON = 0.05  # shingles in more than this share of prompts are the benchmark's frame, not its content
_SHUFFLES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One held-out task and the training item nearest to it."""

    task_id: str
    nearest: str  # task id of that item
    similarity: float  # the larger of the two shares below, 0..1; 1 for the same tree or id
    prompt_share: float
    solution_share: float
    same_tree: bool
    same_name: bool
    same_id: bool
    in_context: bool  # its own tests or reference stand in a treatment's context
    suspicious: bool
    why: str


class Finding(NamedTuple):
    """What the gate needs to know of a check."""

    status: str  # "clean" or "suspicious"
    effect_without: float | None  # points, on the tasks that are not suspicious; None if none is left


class Item(NamedTuple):
    """A training item: where it comes from, what it asks, every program in it."""

    task_id: str
    prompt: str
    programs: tuple[str, ...]
    domain: str = ""


def rows(
    held_out: Sequence[Problem],
    corpus: Sequence[Trajectory],
    treatments: Sequence[Treatment],
    *,
    shown: Sequence[Trajectory] = (),
    compared: Sequence[Trajectory] | None = None,
) -> list[Row]:
    """One row for each held-out task, against the corpus and contexts of its own run or fold.

    `shown`: what tasks may be given and nothing trained on; of its own trajectory a task may not be given any.
    `compared`: the part of the corpus whose texts are looked at; None for all of it.
    """
    items = [_item(t) for t in (corpus if compared is None else compared)]
    return _forbidden_sources(examine(held_out, items, _contexts(treatments)), treatments, corpus, shown)


def assess(rows: Sequence[Row], items: int, treated: Sequence[int], base: Sequence[int], n: int) -> dict[str, Any]:
    """What rows mean for the effect, JSON-ready. `items`: how many training items were looked through.

    `treated` and `base`: passes of `n` draws in the gated arm and the baseline, in the order of the rows.
    """
    return {
        "status": "suspicious" if any(r.suspicious for r in rows) else "clean",
        "items": items,
        "tasks": len(rows),
        "suspicious": [r.task_id for r in rows if r.suspicious],
        "rows": rows,
        **consequences(rows, treated, base, n),
        "limits": {"gram": GRAM, "prompt": PROMPT_LIMIT, "solution": SOLUTION_LIMIT, "tree": TREE_SIZE},
    }


def finding(found: Mapping[str, Any]) -> Finding:
    return Finding(found["status"], found["effect_without"])


class _Corpus:
    """Training items, indexed once for all held-out tasks."""

    def __init__(self, items: Sequence[Item], frame: frozenset[tuple[str, ...]]) -> None:
        self.items, self.frame = items, frame
        self.ids = {item.task_id: number for number, item in enumerate(items)}
        self.prompts = overlap.Index(overlap.shingles(i.prompt, GRAM) - frame for i in items)
        programs = [(number, code) for number, item in enumerate(items) for code in item.programs]
        self.owner = [number for number, _ in programs]
        self.code = overlap.Index(overlap.shingles(code, GRAM) for _, code in programs)
        self.trees: dict[str, int] = {}
        self.names: dict[str, int] = {}
        for number, code in programs:
            tree = overlap.shape(code)
            if tree and tree.size >= TREE_SIZE:
                self.trees.setdefault(tree.digest, number)
            for name in overlap.functions(code):
                self.names.setdefault(name, number)

    def row(self, problem: Problem, shown: bool, same_domain: bool) -> Row:
        by_prompt, prompt_share = overlap.best(
            self.prompts.containments(overlap.shingles(problem.prompt, GRAM) - self.frame)
        )
        by_code, solution_share = overlap.best(self.code.containments(overlap.shingles(_body(problem), GRAM)))
        tree = overlap.shape(problem.reference)
        by_tree = self.trees.get(tree.digest, -1) if tree else -1
        by_id = self.ids.get(problem.task_id, -1)
        by_share = by_prompt if prompt_share >= solution_share else self.owner[by_code] if by_code >= 0 else -1
        near = next((i for i in (by_id, by_tree, by_share) if i >= 0), -1)
        why = _why(by_id >= 0, by_tree >= 0, prompt_share, solution_share, shown, same_domain)
        return Row(
            task_id=problem.task_id,
            nearest=self.items[near].task_id if near >= 0 else "",
            similarity=max(prompt_share, solution_share, float(by_tree >= 0), float(by_id >= 0)),
            prompt_share=prompt_share,
            solution_share=solution_share,
            same_tree=by_tree >= 0,
            same_name=problem.entry_point in self.names,
            same_id=by_id >= 0,
            in_context=shown,
            suspicious=bool(why),
            why=why,
        )


def examine(held_out: Sequence[Problem], items: Sequence[Item], contexts: Mapping[str, str]) -> list[Row]:
    """Every held-out task against every training item. `contexts`: task id → all text its arms were shown.

    Tasks of one benchmark with domains share prompts and plain code on purpose: between two tasks that have a domain
    it is the domain that must not be the same, and text is not compared.
    """
    prompts = [overlap.shingles(text, GRAM) for text in [i.prompt for i in items] + [p.prompt for p in held_out]]
    frame = overlap.boilerplate(prompts, share=_COMMON) if len(prompts) >= 40 else frozenset()
    everything = _Corpus(items, frame)
    apart = _Corpus([i for i in items if not i.domain], frame)
    domains = {i.domain for i in items if i.domain}
    return [
        (apart if p.domain else everything).row(p, _shown(p, contexts.get(p.task_id, "")), p.domain in domains)
        for p in held_out
    ]


def consequences(rows: Sequence[Row], treated: Sequence[int], base: Sequence[int], n: int) -> dict[str, Any]:
    """What the findings would change: the effect without suspicious tasks, similarity against gain, the placebo."""
    import numpy as np

    keep = [i for i, row in enumerate(rows) if not row.suspicious]
    gains = [t - b for t, b in zip(treated, base, strict=True)]
    without = stats.effect_points([treated[i] for i in keep], [base[i] for i in keep], n) if keep else None
    rho, p = stats.rank_correlation([r.similarity for r in rows], gains, shuffles=_SHUFFLES, seed=0)
    signs_RT = np.random.default_rng(0).choice([-1, 1], size=(_SHUFFLES, len(gains)))
    placebo_R = 100 * (signs_RT @ np.asarray(gains)) / (n * len(gains))
    effect = float(stats.effect_points(treated, base, n))
    return {
        "effect": effect,
        "effect_without": None if without is None else float(without),
        "tasks_without": len(keep),
        "similarity_gain": {"rho": rho, "p": p},
        "placebo": {
            "percentile_95": float(np.quantile(placebo_R, 0.95)),
            "at_least_effect": float((1 + (placebo_R >= effect - 1e-9).sum()) / (1 + _SHUFFLES)),
        },
    }


def _why(same_id: bool, same_tree: bool, prompt: float, solution: float, shown: bool, same_domain: bool) -> str:
    grounds = []
    if same_domain:
        grounds.append("its domain is in the corpus")
    if same_id:
        grounds.append("the task itself is in the corpus")
    if same_tree:
        grounds.append("a training program has the reference's syntax tree")
    if prompt >= PROMPT_LIMIT:
        grounds.append(f"{100 * prompt:.0f} % of its prompt stands in a training prompt")
    if solution >= SOLUTION_LIMIT:
        grounds.append(f"{100 * solution:.0f} % of its solution stands in a training program")
    if shown:
        grounds.append("its own tests or solution were shown to an arm")
    return "; ".join(grounds)


def _forbidden_sources(
    rows: list[Row],
    treatments: Sequence[Treatment],
    corpus: Sequence[Trajectory],
    shown: Sequence[Trajectory] = (),
) -> list[Row]:
    """A treatment made from a held-out task's trajectory, or from one outside of the corpus, is a leak whatever the
    texts say. What is shown may be another held-out task's: nothing trained on it."""
    owner = {t.trajectory_id: t.task_id for t in (*corpus, *shown)}
    open_to_others = {t.trajectory_id for t in shown}
    held_out = {r.task_id for r in rows}
    guilty: dict[str, str] = {}
    for treatment in treatments:
        used = treatment.trajectory_ids
        if any(owner.get(i) in held_out and i not in open_to_others for i in used):
            guilty[treatment.task_id] = "its treatment was made from a held-out task's trajectory"
        elif any(owner.get(i) == treatment.task_id for i in used):
            guilty[treatment.task_id] = "its treatment was made from its own trajectory"
        elif any(i not in owner for i in treatment.trajectory_ids):
            guilty.setdefault(treatment.task_id, "its treatment was made from a trajectory that is not in the corpus")
    return [
        replace(r, suspicious=True, why="; ".join(filter(None, (r.why, guilty[r.task_id]))))
        if r.task_id in guilty
        else r
        for r in rows
    ]


def _item(trajectory: Trajectory) -> Item:
    programs = [a.code for a in trajectory.attempts] + ([trajectory.solution] if trajectory.solution else [])
    return Item(trajectory.task_id, trajectory.prompt, tuple(dict.fromkeys(programs)), trajectory.domain)


def _contexts(treatments: Sequence[Treatment]) -> dict[str, str]:
    texts: dict[str, list[str]] = {}
    for t in treatments:
        if t.context:
            texts.setdefault(t.task_id, []).append(t.context)
    return {task: "\n".join(parts) for task, parts in texts.items()}


def _body(problem: Problem) -> str:
    """The reference without what the prompt already shows (signature, docstring, examples)."""
    return problem.reference.removeprefix(problem.prompt) or problem.reference


def _shown(problem: Problem, context: str) -> bool:
    """Most of its tests or solution in a context; all of one for a task of a domain, whose siblings share its code."""
    if not context:
        return False
    limit = 1.0 if problem.domain else SOLUTION_LIMIT
    whole = overlap.shingles(context, GRAM)
    secrets = (overlap.shingles(problem.test, GRAM), overlap.shingles(_body(problem), GRAM))
    return any(len(s) >= GRAM and overlap.containment(s, whole) >= limit for s in secrets)
