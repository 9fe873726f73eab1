"""Which trajectories an adapter is made from and which solutions it is trained on: pairs, drawn anew each step.

A step is a function of (seed, step) alone, so a resumed run sees the very same batches. Three kinds of pair:
*recall* (the target's own trajectory is in the set), *family* (only siblings of the target), *retrieved* (the nearest
trajectories of other tasks, as at evaluation). Beside the right solutions a group carries contrast rows.

What a neighbour's trajectory is worth shows only on a task whose solution the static part has not learned: where it
has, a retrieved pair has nothing left to teach. So some tasks can be spared from phase A for retrieved pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rune.errors import DataError
from rune.hypernet.base import Base, Text
from rune.hypernet.settings import PairMix
from rune.types import Trajectory


class Group(NamedTuple):
    """One adapter's share of a step; all are trajectory numbers in the corpus."""

    sources: tuple[int, ...]
    targets: tuple[int, ...]  # solutions to learn
    wrongs: tuple[
        int | None, ...
    ]  # for the first targets: same prompt, another lesson's solution; None if there is none


class UnsolvedTask(NamedTuple):
    """A task that nothing has learned: what an adapter of its neighbours must leave alone."""

    sources: tuple[int, ...]
    text: Text  # the prompt and an attempt


class Corpus:
    """Solved trajectories are targets; solved and exhausted ones are sources."""

    def __init__(
        self,
        base: Base,
        trajectories: Sequence[Trajectory],
        *,
        max_tokens: int,
        retrieved: Mapping[str, Sequence[str]] | None = None,
        spared: Collection[str] = (),
        read: Collection[str] = (),
    ) -> None:
        """`retrieved`: trajectory_id → ids of its nearest trajectories of other tasks (needed for retrieved pairs).

        `spared`: the only tasks that retrieved pairs are about; empty: all. `read`: the only benchmarks whose
        trajectories are sources; empty: all. The others are targets alone.
        """
        self.trajectories = tuple(trajectories)
        self.readable = tuple(i for i, t in enumerate(self.trajectories) if not read or t.benchmark in read)
        self._readable = frozenset(self.readable)
        if not self.readable:
            raise DataError(
                f"pairs.read names {', '.join(sorted(read))}, and the corpus has no trajectory of it; it has: "
                f"{', '.join(sorted({t.benchmark for t in self.trajectories}))}"
            )
        self.texts: dict[int, Text] = {}
        self._unsolved: dict[int, Text] = {}  # the last attempts at tasks that nobody solved
        self.too_long = 0
        solved = {t.task_id for t in self.trajectories if t.solved}
        for i, trajectory in enumerate(self.trajectories):
            if not trajectory.solved:
                if trajectory.attempts and trajectory.task_id not in solved:
                    text = base.encode(trajectory.prompt, trajectory.attempts[-1].code, answer=trajectory.answer)
                    if len(text.ids) <= max_tokens:
                        self._unsolved[i] = text
                continue
            text = base.encode(trajectory.prompt, trajectory.solution, answer=trajectory.answer)
            if len(text.ids) > max_tokens:
                self.too_long += 1
            else:
                self.texts[i] = text
        if not self.texts:
            raise DataError(
                f"none of {len(trajectories)} trajectories has a solution of at most {max_tokens} tokens; "
                "collect more, or raise max_tokens"
            )
        self._number = {t.trajectory_id: i for i, t in enumerate(self.trajectories)}
        self._retrieved = retrieved or {}
        self._family: dict[str, list[int]] = defaultdict(list)
        self._prompt: dict[str, list[int]] = defaultdict(list)
        for i, trajectory in enumerate(self.trajectories):
            self._family[self.domain_key(i)].append(i)
            if i in self.texts:
                self._prompt[trajectory.prompt].append(i)
        self._solved = np.array(sorted(self.texts))
        self._by_benchmark = self._sorted_by_benchmark(sorted(self.texts))
        kept = [i for i in sorted(self.texts) if self.trajectories[i].task_id in spared] if spared else []
        if spared and not kept:
            raise DataError(f"none of the {len(spared)} tasks spared for retrieved pairs has a solution; spare more")
        self._spared = np.array(kept, dtype=int)
        self._spared_by_benchmark = self._sorted_by_benchmark(kept)

    def _sorted_by_benchmark(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        found: dict[str, list[int]] = defaultdict(list)
        for i in numbers:
            found[self.trajectories[i].benchmark].append(i)
        return {name: np.array(some) for name, some in found.items()}

    def domain_key(self, number: int) -> str:
        """What a trajectory teaches: its domain, or its task where there is none."""
        trajectory = self.trajectories[number]
        return trajectory.domain or trajectory.task_id

    def solutions(self, rng: np.random.Generator, count: int, shares: Mapping[str, float]) -> list[int]:
        """Targets for the static LoRA; without repeats while there are enough."""
        if not shares:
            return [int(i) for i in rng.choice(self._solved, size=count, replace=count > len(self._solved))]
        names, weights = self._shared(shares)
        found: list[int] = []
        for name, number in zip(names, rng.multinomial(count, weights), strict=True):
            pool = self._by_benchmark[name]
            found += [int(i) for i in rng.choice(pool, size=number, replace=number > len(pool))]
        return found

    def _shared(self, shares: Mapping[str, float]) -> tuple[list[str], np.ndarray]:
        """Benchmarks and their normalised shares. Raises DataError for one without a solution to train on."""
        names = [name for name, share in shares.items() if share > 0]
        missing = [name for name in names if name not in self._by_benchmark]
        if missing:
            raise DataError(
                f"shares name the benchmark '{missing[0]}', but the corpus has no solution of it to train on; "
                f"it has: {', '.join(sorted(self._by_benchmark))}"
            )
        weights = np.array([shares[name] for name in names])
        return names, weights / weights.sum()

    def _first(self, rng: np.random.Generator, shares: Mapping[str, float], *, spared: bool) -> int:
        """`spared`: one of the spared tasks, by their benchmarks' shares among themselves."""
        pools = self._spared_by_benchmark if spared else self._by_benchmark
        if spared:
            shares = {name: share for name, share in shares.items() if name in pools and share > 0}
        if not shares:
            return int(rng.choice(self._spared if spared else self._solved))
        names, weights = self._shared(shares)
        return int(rng.choice(pools[names[rng.choice(len(names), p=weights)]]))

    def groups(
        self, rng: np.random.Generator, mix: PairMix, *, count: int, targets: int, contrasts: int
    ) -> list[Group]:
        """`count` groups of different lessons while there are enough of them."""
        kinds = rng.choice(3, size=count, p=np.array([mix.recall, mix.family, mix.retrieved]) / _total(mix))
        groups: list[Group] = []
        taken: set[str] = set()
        for kind in kinds:
            for _ in range(50):
                first = self._first(rng, mix.shares, spared=kind == 2 and len(self._spared) > 0)
                if self.domain_key(first) not in taken:
                    break
            taken.add(self.domain_key(first))
            groups.append(self._group(rng, first, ("recall", "family", "retrieved")[kind], mix, targets, contrasts))
        return groups

    def unsolved_tasks(self, rng: np.random.Generator, count: int, *, max_sources: int) -> list[UnsolvedTask]:
        """Tasks that no trajectory solved, so that nothing has learned them, each with its nearest trajectories.

        What a held-out task is at evaluation. Raises DataError if the corpus has none.
        """
        known = [i for i in self._unsolved if self._near(i)]
        if not known:
            raise DataError(
                "kl_static needs tasks that no trajectory solved and neighbours for them; keep exhausted trajectories "
                "and retrieved pairs, or set train.hypernet.weights.kl_static=0"
            )
        chosen = rng.choice(known, size=count, replace=count > len(known))
        sizes = rng.integers(1, max_sources + 1, size=count)
        return [
            UnsolvedTask(tuple(self._near(int(i))[:n]), self._unsolved[int(i)])
            for i, n in zip(chosen, sizes, strict=True)
        ]

    def _group(
        self, rng: np.random.Generator, first: int, kind: str, mix: PairMix, targets: int, contrasts: int
    ) -> Group:
        family = self._family[self.domain_key(first)]
        task = self.trajectories[first].task_id
        size = mix.max_sources if mix.exact_sources else int(rng.integers(1, mix.max_sources + 1))
        siblings = [i for i in family if i in self._readable and self.trajectories[i].task_id != task]
        if kind == "recall" and first not in self._readable:
            kind = "family"
        if kind == "family" and not siblings:
            kind = "retrieved" if self._near(first) else "recall"
            if kind == "recall" and first not in self._readable:
                raise DataError(
                    f"nothing can be read for {task}: pairs.read leaves out its benchmark "
                    f"({self.trajectories[first].benchmark}) and every other trajectory of its domain; add one"
                )
        elif kind == "retrieved" and self.trajectories[first].domain and siblings:
            kind = "family"  # a private convention cannot be learned from strangers
        if kind == "recall":
            sources = [first, *_draw(rng, siblings, size - 1)]
            # The other targets' own trajectories are in the set as well, as far as it reaches.
            others = [i for i in sources if i != first and i in self.texts]
        elif kind == "family":
            sources = _draw(rng, siblings, size)
            shown = {self.trajectories[i].task_id for i in sources}
            others = [i for i in family if i in self.texts and self.trajectories[i].task_id not in {*shown, task}]
        else:
            near = self._near(first)
            if not near:
                raise DataError(
                    f"no trajectory of another task resembles {task}; retrieved pairs need at least two tasks"
                )
            sources = near[:size]
            others = [i for i in family if i in self.texts and i != first and self.trajectories[i].task_id == task]
        chosen = [first, *_draw(rng, others, targets - 1)]
        chosen = [chosen[i % len(chosen)] for i in range(targets)]
        wrongs = tuple(self._wrong(rng, i) for i in chosen[:contrasts])
        return Group(tuple(sources), tuple(chosen), wrongs)

    def _near(self, number: int) -> list[int]:
        task = self.trajectories[number].task_id
        near = [self._number[i] for i in self._retrieved.get(self.trajectories[number].trajectory_id, ())]
        return [i for i in near if i in self._readable and self.trajectories[i].task_id != task]

    def _wrong(self, rng: np.random.Generator, number: int) -> int | None:
        mine = self.trajectories[number]
        same = [
            i
            for i in self._prompt[mine.prompt]
            if self.domain_key(i) != self.domain_key(number)
            and self.trajectories[i].solution.strip() != mine.solution.strip()
        ]
        return int(rng.choice(same)) if same else None


def _draw(rng: np.random.Generator, items: Sequence[int], count: int) -> list[int]:
    picked = rng.permutation(len(items))[: max(count, 0)]
    return [items[i] for i in picked]


def _total(mix: PairMix) -> float:
    return mix.recall + mix.family + mix.retrieved
