r"""In which form is a value asked for so that a value comes? The ceiling's prompts, greedy, on a CPU, a few tasks.

    .venv/bin/python studies/pbb/forms.py draw qwen2.5-coder-1.5b-instruct --seconds 800 \
        --out results/pbb/forms-1.5b.jsonl
    .venv/bin/python studies/pbb/forms.py tell results/pbb/forms-*.jsonl

Exploratory: no prediction was written, and the tasks are as many as the time allows. Forms: `before` is how the runs
asked; `words` how `prompts` asks since; `assertion` and `prompt` begin the answer with the call itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

from rune import prompts
from rune.benchmarks import pbb
from rune.benchmarks.scorers import exact_value
from rune.models import chat, resolve
from rune.runs import store
from rune.types import Answer, Split, Trajectory

PAGE = Path(__file__).with_name("README.md")
PART = pbb.Config(functions=64, held_out=44, inputs=5, compositions=12, reason=False, seed=0)  # of configs/pbb-*.toml
FORMS = ("before", "words", "assertion", "prompt")
INSTRUCTION = "Please answer the following question with one Python literal in a markdown code block:"
PREFILL = "Below is the Python literal that answers the question:\n```python\n"
NEW_TOKENS = 24


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    one = verbs.add_parser("draw")
    one.add_argument("model")
    one.add_argument("--seconds", type=float, required=True)
    one.add_argument("--out", type=Path, required=True)
    one.set_defaults(do=draw)
    two = verbs.add_parser("tell")
    two.add_argument("files", type=Path, nargs="+")
    two.set_defaults(do=tell)
    args = parser.parse_args()
    args.do(args)
    return 0


def draw(args: argparse.Namespace) -> None:
    """The first task of each held-out function, in every form, until the time is over."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = resolve.resolve(args.model)
    tokenizer = AutoTokenizer.from_pretrained(found.path)
    model = AutoModelForCausalLM.from_pretrained(found.path, dtype=torch.bfloat16)
    held = [t for t in pbb.tasks(PART) if t.problem.split is Split.HELD_OUT and len(t.functions) == 1]
    shown = {t.domain: t for t in pbb.given(PART)}
    began = time.monotonic()
    with args.out.open("w", encoding="utf-8") as out:
        for task in held[:: PART.inputs]:
            for form, asked in forms(task, shown[task.problem.domain]).items():
                if time.monotonic() - began > args.seconds:
                    return
                ids = tokenizer(chat.render(found, asked), return_tensors="pt")
                with torch.no_grad():
                    row = model.generate(
                        **ids, max_new_tokens=NEW_TOKENS, do_sample=False, stop_strings=["\n"], tokenizer=tokenizer
                    )
                text = tokenizer.decode(row[0, ids.input_ids.shape[1] :], skip_special_tokens=True)
                told = {"task": task.problem.task_id, "form": form, "expected": task.problem.test, "text": text}
                out.write(json.dumps(told) + "\n")
                out.flush()


def forms(task: pbb.Task, shown: Trajectory) -> Mapping[str, prompts.Chat]:
    words = prompts.task(task.problem.prompt, prompts.render_trajectory(shown), Answer.VALUE)
    ((role, text),) = words.messages
    before = prompts.Chat(((role, text.replace(prompts.VALUE_INSTRUCTION, INSTRUCTION)),), PREFILL)
    call = f"{task.functions[0].name}({', '.join(map(repr, task.inputs))})"
    begun = (f"```python\nassert {call} == ", f"```python\n>>> {call}\n")
    others = (before._replace(prefill=prefill) for prefill in begun)
    return dict(zip(FORMS, (before, words, *others), strict=True))


def tell(args: argparse.Namespace) -> None:
    """How many answers were values, and how many of these right, by form, on the page."""
    lines = ["| model | form | answers | values | right |", "|---|---|---:|---:|---:|"]
    for path in args.files:
        count: dict[str, Counter[str]] = defaultdict(Counter)
        for _, told in store.read_lines(path):
            taken = prompts.extract(told["text"], prompt="", entry_point="", answer=Answer.VALUE)
            count[told["form"]]["answers"] += 1
            try:
                value = exact_value.parse(taken)
            except exact_value.NoValue:
                continue
            count[told["form"]]["values"] += 1
            count[told["form"]]["right"] += exact_value.same(value, exact_value.parse(told["expected"]))
        model = path.stem.removeprefix("forms-").upper()
        lines += [
            f"| {model} | {form} | {' | '.join(str(count[form][name]) for name in ('answers', 'values', 'right'))} |"
            for form in FORMS
        ]
    store.replace_block(PAGE, "forms", "\n".join(lines))
    print(PAGE)


if __name__ == "__main__":
    sys.exit(main())
