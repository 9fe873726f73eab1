"""The bare model on all HumanEval tasks, greedy, one draw each: what a base is before anything is trained. Goes on
where it was; `rune score FILE` judges it.

    .venv/bin/python studies/crossfit/plain.py qwen2.5-coder-1.5b-instruct --out results/plain-1.5b/samples.jsonl
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rune import plugins, prompts
from rune.benchmarks import humaneval
from rune.models import chat, resolve
from rune.runs import store
from rune.types import Request, Sample, Sampling


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rows", type=int, default=64, help="that are drawn at once")
    parser.add_argument("--tasks", type=int, default=0, help="the first so many; 0: all")
    args = parser.parse_args()
    model = resolve.resolve(args.model, sources=resolve.SOURCES, cache=None)
    module = plugins.load("engines", "torch")
    engine = module.build(module.Config(max_rows=args.rows), model=model, device=args.device, dtype=args.dtype)
    problems = {p.task_id: p for p in humaneval.build(humaneval.Config()).problems()[: args.tasks or None]}
    have = {s.task_id for s in store.read_jsonl(args.out, Sample)} if args.out.exists() else set()
    requests = [
        Request(
            key=p.task_id, prompt=chat.render(model, prompts.task(p.prompt, "")), seed=0, adapter=None,
            sampling=Sampling(temperature=0.0, max_new_tokens=512, top_k=0, stop=prompts.stop(p.prompt)),
        )
        for p in problems.values() if p.task_id not in have
    ]  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    processor = time.process_time()
    with store.Appender(args.out) as log:
        for c in engine.complete(requests):
            p = problems[c.key]
            log.write(
                Sample(
                    task_id=p.task_id, condition="vanilla", draw=0, seed=0, completion=c.text, num_tokens=c.num_tokens,
                    program=prompts.extract(c.text, prompt=p.prompt, entry_point=p.entry_point),
                    finish_reason=c.finish_reason,
                )
            )  # fmt: skip
            print(f"{p.task_id}: {c.num_tokens} tokens, {time.process_time() - processor:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
