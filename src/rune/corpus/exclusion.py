"""The one exclusion list: what may never be in a training corpus, enforced where one is written and where it is read.

Against a set of evaluation tasks a trajectory is refused for
* its id: the task itself, under any of its names (HumanEval = HumanEval+ = HumanEvalFix; MBPP = MBPP+);
* its benchmark: HumanEval+, HumanEvalFix and MBPP ids 11–510 are evaluation only, whatever is held out;
* a listed near-duplicate of an evaluation task (`near_duplicates`, for MBPP);
* a program with the syntax tree of the reference, names and docstrings aside (trees of 24 nodes or more: two
  independent people write `return a + b`);
* half of the reference's 10-token shingles in one program, or half of the prompt's in its prompt. Within
  HumanEval the nearest unrelated pairs share 0.34 of a prompt and less of a solution.

Tasks of one *domain* (`Problem.domain`: a library, an API update, a private convention) share prompts and plain code
on purpose, so their texts are not compared. Where domains are what a split keeps whole (`by="domain"`, see
`kept_apart`), none may stand on both sides, and no two updates of one library function may either; where tasks are, a
domain may, and only the task itself must not.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rune.benchmarks import mbpp
from rune.benchmarks.scorers.updates import function_of
from rune.corpus import overlap
from rune.errors import ContaminationError
from rune.types import Problem, Split, Trajectory

GRAM = 10  # tokens in a shingle
SHARE = 0.5  # of the evaluation task's shingles
TREE_SIZE = 24  # nodes; smaller trees coincide by chance
LEAST_SHINGLES = 16  # of a reference; shorter ones are judged by their tree alone

_FAMILIES = {
    "humaneval": "HumanEval",
    "humanevalplus": "HumanEval",
    "humanevalfix": "HumanEval",
    "humanevalpack": "HumanEval",
    "python": "HumanEval",  # HumanEvalPack numbers its Python tasks "Python/0"
    "mbpp": "Mbpp",
    "mbppplus": "Mbpp",
}
_EVALUATION_ONLY = {"humanevalplus", "humanevalfix", "humanevalpack"}


def canonical_id(task_id: str) -> str:
    """One name for one task: "HumanEvalFix/3", "humaneval_plus/3" and "Python/3" are "HumanEval/3"."""
    name, slash, number = task_id.partition("/")
    family = _FAMILIES.get(_plain(name))
    return f"{family}/{number}" if slash and family else task_id


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower().replace("+", "plus"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `decontaminate` did, for the record."""

    examined: int
    kept: int
    dropped: Mapping[str, int] = field(default_factory=dict)  # reason → trajectories
    items: tuple[str, ...] = ()  # "task_id: reason", each dropped one


class Exclusion:
    """Knows a set of evaluation tasks and says of a trajectory why it must stay out."""

    def __init__(
        self,
        problems: Iterable[Problem],
        near_duplicates: Mapping[str, Sequence[str]] | None = None,
        *,
        by: str = "domain",
    ) -> None:
        """`near_duplicates`: evaluation task id → training task ids that are too like it. `by`: "domain" or "task"."""
        self._problems = list(problems)
        self._ids = {canonical_id(p.task_id) for p in self._problems}
        apart = by == "domain"
        self._domains = {p.domain for p in self._problems if p.domain and apart}
        self._functions = {function_of(p.benchmark, p.domain): p.domain for p in self._problems if apart}
        self._functions.pop("", None)
        self._problems = [p for p in self._problems if not p.domain]
        self._near = {canonical_id(t): e for e in self._ids for t in (near_duplicates or {}).get(e, ())}
        self._trees: dict[str, str] = {}
        solutions, self._owners = [], []
        for problem in self._problems:
            tree = overlap.shape(problem.reference) if problem.reference else None
            if tree and tree.size >= TREE_SIZE:
                self._trees.setdefault(tree.digest, problem.task_id)
            shingles = code_shingles(problem.reference)
            if len(shingles) >= LEAST_SHINGLES:
                solutions.append(shingles)
                self._owners.append(problem.task_id)
        self._solutions = solutions
        self._prompts = [overlap.shingles(p.prompt, GRAM) for p in self._problems]
        self._by_solution, self._by_prompt = _holders(solutions), _holders(self._prompts)

    def why(self, trajectory: Trajectory) -> str:
        """ "reason: detail", or "" if it may train."""
        if reason := self._by_name(trajectory):
            return reason
        for code in {a.code for a in trajectory.attempts} | {trajectory.solution}:
            if not code.strip():
                continue
            tree = overlap.shape(code)
            if tree and tree.digest in self._trees and tree.size >= TREE_SIZE:
                return f"same program: the reference of {self._trees[tree.digest]}"
            number, share = _most_contained(code_shingles(code), self._solutions, self._by_solution)
            if share >= SHARE:
                return f"shared code: {share:.0%} of the reference of {self._owners[number]}"
        number, share = _most_contained(overlap.shingles(trajectory.prompt, GRAM), self._prompts, self._by_prompt)
        if share >= SHARE and len(self._prompts[number]) > 1:
            return f"shared prompt: {share:.0%} of {self._problems[number].task_id}"
        return ""

    def _by_name(self, trajectory: Trajectory) -> str:
        task = canonical_id(trajectory.task_id)
        if task in self._ids:
            return f"evaluation task: {task} is held out"
        if task in self._near:
            return f"near-duplicate: listed as too like {self._near[task]}"
        if trajectory.domain and trajectory.domain in self._domains:
            return f"held-out domain: {trajectory.domain}"
        function = function_of(trajectory.benchmark, trajectory.domain)
        if function in self._functions:
            return f"held-out function: {function} is changed by {self._functions[function]}"
        names = {_plain(trajectory.benchmark), _plain(trajectory.task_id.partition("/")[0])}
        if names & _EVALUATION_ONLY:
            return "evaluation only: this benchmark is never trained on"
        family, _, number = task.partition("/")
        if family == "Mbpp" and number.isdigit() and int(number) in mbpp.EVALUATION:
            return "evaluation only: MBPP ids 11–510 are never trained on"
        return ""


def kept_apart(problems: Iterable[Problem]) -> str:
    """What a split keeps whole, from the tasks themselves: "task" if a domain stands on both sides, else "domain"."""
    sides: dict[Split, set[str]] = {Split.TRAIN: set(), Split.HELD_OUT: set()}
    for problem in problems:
        if problem.domain:
            sides[problem.split].add(problem.domain)
    return "task" if sides[Split.TRAIN] & sides[Split.HELD_OUT] else "domain"


def check_corpus(
    trajectories: Iterable[Trajectory],
    held_out: Iterable[Problem],
    *,
    near_duplicates: Mapping[str, Sequence[str]] | None = None,
    where: str = "corpus",
    by: str = "domain",
) -> None:
    """Raises ContaminationError for the first trajectory that must not train; `where` is the file it came from."""
    exclusion = Exclusion(held_out, near_duplicates, by=by)
    for number, trajectory in enumerate(trajectories, start=1):
        if reason := exclusion.why(trajectory):
            raise ContaminationError(
                f"{where}:{number}: field 'task_id' {trajectory.task_id!r}, trajectory {trajectory.trajectory_id}: "
                f"{reason}; remove it"
            )


def check_ids(task_ids: Iterable[str], held_out: Iterable[Problem], *, where: str) -> None:
    """The same by name alone, where nothing else is left: what a checkpoint was trained on."""
    forbidden = {canonical_id(p.task_id) for p in held_out}
    for task_id in task_ids:
        if canonical_id(task_id) in forbidden:
            raise ContaminationError(f"{where}: was trained on {task_id}, which is held out here; train from scratch")


def check_domains(domains: Mapping[str, Iterable[str]], held_out: Iterable[Problem], *, where: str) -> None:
    """The same by domain: `domains` are benchmark → domains that a checkpoint was trained on.

    Another update of a function that a held-out update changes is no less forbidden than the update itself.
    """
    held = [p for p in held_out if p.domain]
    forbidden = {p.domain for p in held}
    functions = {function_of(p.benchmark, p.domain) for p in held} - {""}
    for benchmark, names in domains.items():
        for name in names:
            if name in forbidden or function_of(benchmark, name) in functions:
                raise ContaminationError(
                    f"{where}: was trained on tasks of {name}, which is held out here, or changes what is; "
                    "train from scratch"
                )


def domains_of(trajectories: Iterable[Trajectory]) -> dict[str, list[str]]:
    """Benchmark → its domains among the trajectories, sorted."""
    found: dict[str, set[str]] = {}
    for trajectory in trajectories:
        if trajectory.domain:
            found.setdefault(trajectory.benchmark, set()).add(trajectory.domain)
    return {benchmark: sorted(names) for benchmark, names in sorted(found.items())}


def decontaminate(
    trajectories: Sequence[Trajectory],
    evaluation: Iterable[Problem],
    *,
    near_duplicates: Mapping[str, Sequence[str]] | None = None,
    by: str = "domain",
) -> tuple[list[Trajectory], Report]:
    """What may train, each thing once, in order; and how many were dropped for which reason."""
    exclusion = Exclusion(evaluation, near_duplicates, by=by)
    kept: list[Trajectory] = []
    dropped: Counter[str] = Counter()
    items: list[str] = []
    seen: dict[object, str] = {}
    for trajectory in trajectories:
        reason = exclusion.why(trajectory) or _duplicate(trajectory, seen)
        if reason:
            dropped[reason.partition(":")[0]] += 1
            items.append(f"{trajectory.task_id}: {reason}")
        else:
            kept.append(trajectory)
    return kept, Report(examined=len(trajectories), kept=len(kept), dropped=dict(dropped), items=tuple(items))


def _duplicate(trajectory: Trajectory, seen: dict[object, str]) -> str:
    """The same work twice, or another task with the same prompt or solution. Several tries at one task are fine."""
    task = canonical_id(trajectory.task_id)
    tree = overlap.shape(trajectory.solution) if trajectory.solution else None
    whole = (task, tuple(a.code for a in trajectory.attempts))
    prompt = tuple(overlap.tokens(trajectory.prompt))
    shape = tree.digest if tree and tree.size >= TREE_SIZE else None
    if whole in seen:
        return "duplicate: the same attempts"
    if trajectory.domain:
        seen[whole] = task
        return ""
    if seen.get(("prompt", prompt), task) != task:
        return f"duplicate: the prompt of {seen['prompt', prompt]}"
    if shape and seen.get(("tree", shape), task) != task:
        return f"duplicate: the solution of {seen['tree', shape]}"
    seen[whole] = task
    seen["prompt", prompt] = task
    if shape:
        seen["tree", shape] = task
    return ""


def relatives(problems: Sequence[Problem], *, by: str = "domain") -> list[list[int]]:
    """Groups of tasks too alike to stand on two sides of a split: indices, one group a task or more, in order.

    With `by="domain"` a domain's tasks are one group.
    """
    leader = list(range(len(problems)))

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    def join(i: int, j: int) -> None:
        a, b = sorted((find(i), find(j)))
        leader[b] = a

    nothing: frozenset[tuple[str, ...]] = frozenset()
    codes = [nothing if p.domain else code_shingles(p.reference) for p in problems]
    prompts = [nothing if p.domain else overlap.shingles(p.prompt, GRAM) for p in problems]
    first: dict[object, int] = {}
    for i, problem in enumerate(problems):
        tree = overlap.shape(problem.reference) if problem.reference and not problem.domain else None
        keys: list[object] = [("id", canonical_id(problem.task_id))]
        if by == "domain":
            keys += [("domain", problem.domain)] if problem.domain else []
            function = function_of(problem.benchmark, problem.domain)
            keys += [("function", function)] if function else []
        keys += [("tree", tree.digest)] if tree and tree.size >= TREE_SIZE else []
        for key in keys:
            join(first.setdefault(key, i), i)
    for sets, least in ((codes, LEAST_SHINGLES), (prompts, 2)):
        index = overlap.Index(sets)
        for i, part in enumerate(sets):
            if len(part) >= least:
                for j, share in index.containments(part).items():
                    if share >= SHARE:
                        join(i, j)
    groups: dict[int, list[int]] = {}
    for i in range(len(problems)):
        groups.setdefault(find(i), []).append(i)
    return list(groups.values())


def code_shingles(code: str) -> frozenset[tuple[str, ...]]:
    """Shingles of a program without comments, docstrings and layout; of its raw text if it does not parse."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return overlap.shingles(code, GRAM)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            node.body = body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
    return overlap.shingles(ast.unparse(tree), GRAM)


def _holders(sets: Sequence[frozenset[tuple[str, ...]]]) -> dict[tuple[str, ...], list[int]]:
    holders: dict[tuple[str, ...], list[int]] = {}
    for number, item in enumerate(sets):
        for shingle in item:
            holders.setdefault(shingle, []).append(number)
    return holders


def _most_contained(
    whole: frozenset[tuple[str, ...]],
    parts: Sequence[frozenset[tuple[str, ...]]],
    holders: Mapping[tuple[str, ...], Sequence[int]],
) -> tuple[int, float]:
    """(which part, share of it that `whole` contains), the largest; (-1, 0.0) if none."""
    counts: Counter[int] = Counter(n for shingle in whole for n in holders.get(shingle, ()))
    return overlap.best({n: count / len(parts[n]) for n, count in counts.items()})
