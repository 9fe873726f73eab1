"""What the prompt is worth: greedy pass@1 of the bare model on all 164 HumanEval tasks, one variant after another.

    python bench/prompt.py [--model NAME] [--device cuda] [--out results/bench-prompt.json]

The arm every other arm is compared with must be as good as its authors measured it; this says how far off ours
is and what moves it. Each variant changes one thing against the prompt in `rune/prompts.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

from rune import console, prompts
from rune.benchmarks import humaneval
from rune.engines import torch as engines
from rune.models import chat, resolve
from rune.runs import store
from rune.sandbox import fork
from rune.types import ModelRef, Outcome, Problem, Program, Request, Sampling

Render = Callable[[ModelRef, Problem], str]


def ours(model: ModelRef, problem: Problem) -> str:
    """EvalPlus' instruction and fenced prefill, the template's own system message."""
    return chat.render(model, prompts.task(problem.prompt))


def no_prefill(model: ModelRef, problem: Problem) -> str:
    """The same question, the answer not begun."""
    return chat.render(model, prompts.task(problem.prompt)._replace(prefill=""))


def fence_prefill(model: ModelRef, problem: Problem) -> str:
    """Only the fence is begun, not the sentence before it."""
    return chat.render(model, prompts.task(problem.prompt)._replace(prefill="```python\n"))


def signature_prefill(model: ModelRef, problem: Problem) -> str:
    """The whole task stands in the answer already: the model continues it as code."""
    question = prompts.task(problem.prompt)
    return chat.render(model, question._replace(prefill=prompts.PREFILL + problem.prompt.rstrip() + "\n"))


def coding_system(model: ModelRef, problem: Problem) -> str:
    """A system message of our own instead of the model's."""
    question = prompts.task(problem.prompt)
    system = ("system", "You are a helpful assistant good at coding.")
    return chat.render(model, question._replace(messages=(system, *question.messages)))


def completion(model: ModelRef, problem: Problem) -> str:
    """No chat at all: HumanEval's original format."""
    return problem.prompt.rstrip() + "\n"


VARIANTS: dict[str, Render] = {
    f.__name__: f for f in (ours, no_prefill, fence_prefill, signature_prefill, coding_system, completion)
}
CONTINUES = ("signature_prefill", "completion")  # the text goes on where the task's prompt ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--tasks", type=int, default=164)
    parser.add_argument("--out", type=Path, default=Path("results/bench-prompt.json"))
    args = parser.parse_args()
    model = resolve.resolve(args.model)
    dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    engine = engines.build(engines.Config(), model=model, device=args.device, dtype=dtype)
    sandbox = fork.build(fork.Config())
    problems = humaneval.build(humaneval.Config()).problems()[: args.tasks]
    rows = []
    for name in args.variants:
        rows.append(measure(name, model, engine, sandbox, problems))
        store.write_json(
            args.out, {"model": dataclasses.asdict(model) | {"path": ""}, "dtype": dtype, "variants": rows}
        )
        console.note(f"{name}: {rows[-1]['pass_at_1']:.3f}")
    engine.close()
    sandbox.close()


def measure(name: str, model: ModelRef, engine, sandbox, problems: list[Problem]) -> dict[str, object]:  # type: ignore[no-untyped-def]
    stop = (*prompts.STOP, "\ndef ", "\nclass ", "\n#") if name == "completion" else prompts.STOP
    sampling = Sampling(temperature=0.0, max_new_tokens=512, stop=stop)
    requests = [Request(key=p.task_id, prompt=VARIANTS[name](model, p), sampling=sampling, seed=0) for p in problems]
    texts = {c.key: c for c in engine.complete(requests)}
    programs = []
    for problem in problems:
        text = texts[problem.task_id].text
        if name in CONTINUES:
            text = problem.prompt.rstrip() + "\n" + text
        elif name == "no_prefill" and "```" in text:
            text = text.split("```python\n", 1)[-1]
        code = prompts.extract(text, prompt=problem.prompt, entry_point=problem.entry_point)
        programs.append(
            Program(
                key=problem.task_id,
                code=code,
                test=problem.test,
                entry_point=problem.entry_point,
                prelude=problem.prelude,
            )
        )
    found = {e.key: e for e in sandbox.judge(programs)}
    passed = [k for k, e in found.items() if e.outcome is Outcome.PASSED]
    kinds: dict[str, int] = {}
    for execution in found.values():
        kinds[execution.label or "passed"] = kinds.get(execution.label or "passed", 0) + 1
    return {
        "variant": name,
        "what": (VARIANTS[name].__doc__ or "").strip(),
        "pass_at_1": len(passed) / len(problems),
        "passed": len(passed),
        "tasks": len(problems),
        "kinds": dict(sorted(kinds.items(), key=lambda item: -item[1])),
        "mean_tokens": sum(c.num_tokens for c in texts.values()) / len(texts),
        "failed": sorted(set(found) - set(passed)),
    }


if __name__ == "__main__":
    main()
