"""problems + treatments → samples.jsonl: n completions for every arm and task.

Nothing here knows which arm it serves: a treatment is text before the task and/or an adapter. Draw i of a
task has the same seed in every arm, and all arms go to the engine in one list, so that batches mix them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from rune import console, prompts
from rune.config import ADDED, derive_seed
from rune.errors import DataError
from rune.models import chat
from rune.runs import store
from rune.stages.context import Context
from rune.types import Engine, Problem, Request, Sample, Sampling, Treatment


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of `[sample]`."""

    n: int  # completions a task and arm
    temperature: float  # 0.8 for pass@k, 0.2 for pass@1; 0 is greedy
    max_new_tokens: int
    top_p: float
    top_k: int
    quantize: Literal["", "none", "nf4"] = field(
        default="", metadata=ADDED
    )  # of the base under the adapters; "": [model]'s

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n must be at least 1, found {self.n}")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError("needs temperature >= 0, 0 < top_p <= 1 and top_k >= 0")


def run(folder: store.RunDir, config: Config, context: Context) -> int:
    """Draw what is missing; returns how many samples were drawn now. Raises DataError without treatments."""
    problems = {p.task_id: p for p in store.read_jsonl(folder / "problems.jsonl", Problem)}
    treatments = store.read_jsonl(folder / "treatments.jsonl", Treatment)
    if not treatments:
        raise DataError(f"{folder / 'treatments.jsonl'}: no treatments; run `rune adapt {folder.path}` first")
    path = folder / "samples.jsonl"
    if path.exists():
        store.repair(path)
    have = {(s.condition, s.task_id, s.draw) for s in store.read_jsonl(path, Sample)}
    requests, meaning = _requests(problems, treatments, config, context, have)
    if not requests:
        return 0
    left = sum(request.n for request in requests)
    done = len(treatments) * config.n - left
    tokens, started = 0, time.monotonic()
    engine = context.engine()

    def pulse() -> dict[str, object]:
        return pace(engine, tokens, time.monotonic() - started)

    with (
        store.Appender(path) as log,
        console.Progress("sample", done + left, unit="sample", initial=done, pulse=pulse) as bar,
    ):
        for completion in engine.complete(requests):
            treatment, first = meaning[completion.key]
            problem = problems[treatment.task_id]
            sample = Sample(
                task_id=problem.task_id,
                condition=treatment.condition,
                draw=first + completion.draw,
                seed=completion.seed,
                completion=completion.text,
                program=prompts.extract(
                    completion.text,
                    prompt=problem.prompt,
                    entry_point=problem.entry_point,
                    answer=problem.scorer.answer,
                ),
                num_tokens=completion.num_tokens,
                finish_reason=completion.finish_reason,
            )
            log.write(sample)
            tokens += completion.num_tokens
            bar.advance(1, **pulse())
    return left


def pace(engine: Engine, tokens: int, seconds: float) -> dict[str, object]:
    """What stands behind the bar and its ETA: tokens per second of what is done, rows where the engine counts them."""
    shown: dict[str, object] = {"tok/s": f"{tokens / seconds:.0f}" if seconds > 0 else "?"}
    stats = getattr(engine, "stats", None)  # no part of the protocol: servers do not tell
    for label, name in (
        ("alive", "rows_alive"),
        ("waiting", "rows_waiting"),
        ("steps", "steps"),
        ("read", "prompt_tokens"),
    ):
        count = getattr(stats, name, None)
        if count is not None:
            shown[label] = str(count)
    return shown


def _requests(
    problems: dict[str, Problem],
    treatments: Sequence[Treatment],
    config: Config,
    context: Context,
    have: set[tuple[str, str, int]],
) -> tuple[list[Request], dict[str, tuple[Treatment, int]]]:
    """One request per run of missing draws, tasks outermost so that arms are interleaved."""
    model = context.model()
    sampling = Sampling(
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        top_p=config.top_p,
        top_k=config.top_k,
    )
    order = {task_id: i for i, task_id in enumerate(problems)}
    requests: list[Request] = []
    meaning: dict[str, tuple[Treatment, int]] = {}
    for treatment in sorted(treatments, key=lambda t: order[t.task_id]):
        missing = [d for d in range(config.n) if (treatment.condition, treatment.task_id, d) not in have]
        if not missing:
            continue
        task, answer = problems[treatment.task_id].prompt, problems[treatment.task_id].scorer.answer
        prompt = chat.render(model, prompts.task(task, treatment.context, answer))
        seed = derive_seed(context.seed, "sample", treatment.task_id)
        for first, count in _runs(missing):
            key = f"{treatment.condition}\t{treatment.task_id}\t{first}"
            meaning[key] = (treatment, first)
            requests.append(
                Request(
                    key=key,
                    prompt=prompt,
                    sampling=replace(sampling, stop=prompts.stop(task, answer)),
                    seed=seed + first,
                    n=count,
                    adapter=treatment.adapter,
                )
            )
    return requests, meaning


def _runs(draws: Sequence[int]) -> list[tuple[int, int]]:
    """[0, 1, 3] → [(0, 2), (3, 1)]: (first, length) of each run of consecutive numbers."""
    runs: list[tuple[int, int]] = []
    for draw in draws:
        if runs and runs[-1][0] + runs[-1][1] == draw:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((draw, 1))
    return runs
