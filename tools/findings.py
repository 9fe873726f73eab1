"""What was found, for README's first screen, from the committed results: no number there is typed by hand.

    .venv/bin/python tools/findings.py            writes them between README's markers
    .venv/bin/python tools/findings.py --check    exits 1 if README says something else

`findings`: the gate on all 164 tasks, two corpora and two temperatures (results/crossfit-0.5b, crossfit-0.5b-wide).
`sound`: the same on the folds that a fault did not touch (results/reader-layers). `families`: private conventions
(results/hypernet-0.5b, families-atom-0.5b). `updates`: real API updates (results/updates-exploration), and `oracle`:
what a fine-tuned LoRA does there, and more passes of a hypernetwork (results/updates-oracle, updates-scaled). `pbb`:
values of a function that was only read (results/pbb-hypernet). `memory`: an evolution over fine-tuned adapters, and
merges of two (results/memory). `remember`: a session goes in, an answer changes
(results/bench-remember-cpu.json).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rune import console
from rune.analysis.evidence import points, span
from rune.errors import DataError
from rune.models import identity
from rune.reporting.tables import Table, markdown
from rune.runs import store
from rune.runs.store import RunDir
from rune.study import reading
from rune.types import Decision

ROOT = Path(__file__).resolve().parents[1]
RUNS = {"crossfit-0.5b": "HumanEval", "crossfit-0.5b-wide": "HumanEval, MBPP, private conventions"}
ARMS = ("vanilla", "hypernet", "wrong_trajectory", "static", "lora")
HEADER = (
    *("learned from", "temperature", "bare model", "right trajectory", "wrong trajectory"),
    *("constant part alone", "fine-tuned LoRA", "right − bare, points", "gate"),
)


def blocks(root: Path = ROOT) -> dict[str, str]:
    """Marker → what stands between it in README. Raises DataError if a result is missing, or no table can hold it."""
    return {
        "findings": gate(root),
        "sound": sound(root),
        "families": conventions(root),
        "updates": updates(root),
        "oracle": oracle(root),
        "pbb": evaluated(root),
        "memory": memory(root),
        "remember": remember(root),
    }


def gate(root: Path) -> str:
    """One row a corpus and temperature. Raises DataError for another design or weights than the caption says."""
    rows, captions = [], []
    for name, corpus in RUNS.items():
        folder = RunDir.open(root / "results" / name)
        result = reading.result(folder)
        if result is None:
            raise DataError(f"{folder.path}: no result.json; run `rune gate {folder.path}`")
        captions.append(_caption(result, folder.manifest()))
        rows += [_row(corpus, found) for found in result["variants"].values()]
    if len(set(captions)) != 1:
        raise DataError(f"results that stand in one table must be of one design: {'; '.join(captions)}")
    where = " and ".join(f"[{name}](results/{name}/result.md)" for name in RUNS)
    return f"{markdown(Table('', HEADER, tuple(rows)))}\n\n{captions[0]}; all of it in {where}."


def _row(corpus: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    decision = store.decode(Decision, found["pooled"]["decision"], where="result.json")
    arms = {a.condition: f"{100 * a.pass_at_1:.1f}" for a in decision.arms}
    gain = decision.contrasts[0]
    return (
        corpus,
        f"{found['settings']['sample.temperature']:g}",
        *(arms[arm] for arm in ARMS),
        f"{points(gain.points)} {span(gain.interval)}",
        f"**{'passed' if decision.passed else 'failed'}**",
    )


def _caption(result: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    model = result["model"]
    if not model.get("weights") and not identity.known(model["sha256"]):
        raise DataError(
            f"weights with sha256 {model['sha256']} are not known here; say in rune.models.registry what they are"
        )
    first = next(iter(result["variants"].values()))["pooled"]["decision"]
    tasks, draws = len(first["details"]["tasks"]), first["details"]["n"]
    over = store.decode(Decision, first, where="result.json").contrasts[0].interval.over
    return (
        f"pass@1 in %, {tasks} HumanEval tasks, each held out once, {draws} draws a task ({len(result['seeds'])} "
        f"training seeds), 95 % intervals over {over}; `{model['name']}`, {identity.words(model, manifest['dtype'])}"
    )


def conventions(root: Path) -> str:
    """pass@1 of the arms that matter on held-out private conventions, and right − wrong."""
    result = store.read_json(root / "results" / "hypernet-0.5b" / "result.json")
    arms = {name: f"{100 * arm['pass_at_1']:.1f}" for name, arm in result["arms"].items()}
    key = result["contrasts"]["sibling − wrong"]
    low, high = key["interval"]["low"], key["interval"]["high"]
    return (
        f"bare model {arms['vanilla']} %, constant part alone {arms['static']}, wrong trajectory {arms['wrong']}, "
        f"**siblings' trajectories {arms['sibling']}**, the same in context {arms['teacher_sibling']} "
        f"({result['tasks']} tasks × {result['draws']} draws; right − wrong {points(key['points'])} points "
        f"[{points(low)}, {points(high)}]). {new_habits(root)}"
    )


def new_habits(root: Path) -> str:
    """What is not carried: a habit that no training convention shows."""
    folder = root / "results" / "families-atom-0.5b"
    decision = store.decode(Decision, store.read_json(folder / "decision.json"), where="decision.json")
    arms = {a.condition: f"{100 * a.pass_at_1:.1f}" for a in decision.arms}
    habits = store.read_json(folder / "habits.json")["arms"]
    known, new = habits["hypernet"]["known"], habits["hypernet"]["new"]
    return (
        f"**A habit that no training convention shows is not carried**: where each convention has one, siblings' "
        f"trajectories {arms['hypernet']}, in context {arms['teacher']}. Of the known habits of these conventions "
        f"{known[0]:.1f} % of {known[1]:,} are written, of the new ones {new[0]:.1f} % of {new[1]:,} (in context "
        f"{habits['teacher']['known'][0]:.1f} and {habits['teacher']['new'][0]:.1f}): the adapter recognises, it does "
        "not copy ([study](studies/private-conventions/README.md))."
    )


def updates(root: Path) -> str:
    """UPass of the arms that matter on held-out API updates, adapters of the mixed recipe."""
    result = store.read_json(root / "results" / "updates-exploration" / "result.json")["mixture"]["used"]
    arms = {name: f"{share:.1f}" for name, share in result["arms"].items()}
    right_wrong, low, high = result["contrasts"]["sibling − wrong"]
    return (
        f"bare model {arms['vanilla']} %, constant part alone {arms['static']}, wrong trajectory {arms['wrong']}, "
        f"siblings' trajectories {arms['sibling']}, one sibling's in context **{arms['context_sibling1']}** "
        f"({result['tasks']} tasks, solved by using the update; right − wrong adapter {points(right_wrong)} points "
        f"[{points(low)}, {points(high)}])."
    )


def sound(root: Path) -> str:
    """The effect of crossfit-0.5b on the folds whose adapters were made from the layers they had learned from."""
    found = store.read_json(root / "results" / "reader-layers" / "result.json")["crossfit"]
    folds = found["t0.8"]["as named"]["folds"]
    misread = found["t0.8"]["misread"]["folds"]
    gains, past = (
        " and ".join(f"{_span(found[f't{heat}']['as named'][name])} at {heat}" for heat in ("0.8", "0.2"))
        for name in ("gain", "right − wrong")
    )
    return (
        "The two rows learned from HumanEval alone are to be run again. The hypernetwork reads a trajectory from some "
        f"layers of the base model, and in {misread} of their {folds + misread} folds it was given other layers than "
        "it was trained on ([reader-layers](studies/reader-layers/README.md)). "
        f"On the {folds} sound folds the effect is {gains}, right − wrong {past}, over tasks."
    )


def oracle(root: Path) -> str:
    """Whether a LoRA of this size can carry an update at all: one fine-tuned on the update's siblings."""
    found = store.read_json(root / "results" / "updates-oracle" / "result.json")["used"]
    scaled = store.read_json(root / "results" / "updates-scaled" / "result.json")
    generated, real = scaled["withheld"]["used"], scaled["held"]["used"]["contrasts"]
    level = scaled["held"]["used"]["arms"]
    passes, steps = generated["arms"]["four passes"], generated["arms"]["tuned 10"]
    larger = store.read_json(root / "results" / "updates-distilled" / "1.5b" / "result.json")["held"]["used"]
    larger = larger["contrasts"]
    return (
        f"A LoRA of the same size *fine-tuned* on an update's siblings carries it: {found['arms']['oracle']:.1f} % of "
        f"{found['tasks']} tasks, {_span(found['contrasts']['oracle − wrong'])} points over another update's LoRA "
        "([study](studies/updates-oracle/README.md), [result](results/updates-oracle/result.md)). No adapter that is "
        "written in passes is shown to be ahead of another update's *and* of the bare model on real updates. "
        f"In a second study, of {scaled['held']['used']['tasks']} tasks, where the bare model solves "
        f"{level['vanilla']:.1f} %, one forward pass solves {level['generated']:.1f}, "
        f"{_span(real['generated − generated_wrong'])} points over another update's adapter; two passes with true "
        f"gradients solve {level['stepped']:.1f}, {_span(real['stepped − stepped_wrong'])} over it and "
        f"{_span(real['stepped − vanilla'])} over the bare model; the fine-tuned LoRA solves {level['oracle']:.1f}, "
        f"{_span(real['oracle − oracle_wrong'])} and {_span(real['oracle − vanilla'])}. On the 1.5B one pass was "
        f"{_span(larger['generated − generated_wrong'])} over another update's and "
        f"{_span(larger['generated − vanilla'])} over the bare model, to be confirmed "
        "([study](studies/updates-distilled/README.md)). On *generated* updates of functions that training never saw, "
        "four forward passes solve "
        f"{passes:.1f} %, fine-tuning {steps:.1f}, another update's adapter "
        f"{generated['arms']['four passes_wrong']:.1f} ([study](studies/updates-scaled/README.md), "
        "[result](results/updates-scaled/result.md))."
    )


def memory(root: Path) -> str:
    """The evolved memory against none, the newest adapter and one LoRA of all lessons; what a merge keeps."""
    found = store.read_json(root / "results" / "memory" / "result.json")
    test, svd = found["test"], found["merges"]["svd, 0.5 each"]
    arms, leads = test["arms"], test["selected less"]
    one = "all in one, equal dose, rank 8"
    parent, merge = svd["that parent"][0], svd["merge on a parent's tasks"][0]
    return (
        f"Of {found['evolution']['adapters']['of one lesson']} fine-tuned adapters in {test['releases']} made-up "
        "releases of a library, measured, consolidated and updated, the selected one solves "
        f"**{arms['selected'][0]:.1f} %** of {test['tasks']} unseen tasks: {_span(leads['vanilla'])} points against no "
        f"memory, {_span(leads['newest of the release'])} against the newest, and **{_span(leads[one])} against "
        f"one LoRA** of the same rank, of all lessons, each seen as often. That one solves {arms[one][0]:.1f} %, and "
        f"{found['HumanEval by arm'][one]:.1f} % of six HumanEval tasks, where the bare model solves "
        f"{found['HumanEval by arm']['vanilla']:.1f}. The mean of two releases' adapters solves {merge:.1f} % of "
        f"each one's own tasks, that one {parent:.1f} ([study](studies/memory/README.md), "
        "[result](results/memory/result.md))."
    )


def evaluated(root: Path) -> str:
    """pass@1 of the arms on values of functions that nothing trained on, and right − wrong over functions and seeds."""
    found = store.read_json(root / "results" / "pbb-hypernet" / "result.json")
    arms = {name: f"{arm['pass_at_1']:.1f}" for name, arm in found["arms"].items()}
    right_wrong = {
        name: found["subsets"][name]["contrasts"]["hypernet - wrong_trajectory"]
        for name in ("all tasks", "of a form that does not train")
    }
    every, new = (
        _span((one["points"], one["and_trainings"]["low"], one["and_trainings"]["high"]))
        for one in right_wrong.values()
    )
    alike = found["wrong_of_a_kind"]["hypernet - wrong_trajectory"]
    kind = _span((alike["points"], alike["low"], alike["high"]))
    return (
        f"bare model {arms['vanilla']} %, constant part alone {arms['static']}, another function's trajectory "
        f"{arms['wrong_trajectory']}, **its own {arms['hypernet']}**, the same in context {arms['teacher']} "
        f"({found['tasks']} tasks of {found['functions']} functions and compositions, {len(found['seeds'])} trainings; "
        f"right − wrong {every} points, over functions and trainings; {new} where no function drawn for training has "
        f"the form; where the wrong function gives the same kind of value, asked afterwards, {kind} over functions)."
    )


def remember(root: Path) -> str:
    """README's commands, each with what it gave when they were run, and what was measured over several conventions."""
    found = store.read_json(root / "results" / "bench-remember-cpu.json")
    start, define, ask, learn, again = found["commands"]
    worth = {key: "right" if found["shown"][key] == "passed" else "wrong" for key in ("before", "after")}
    lines = [
        f"{start:<72}# it knows this convention's habits, never saw them together",
        "until curl -sf localhost:8000/readyz > /dev/null; do sleep 1; done",  # the bench waits in its own way
        define,
        f"{ask:<72}# {worth['before']}",
        learn,
        f"{again:<72}# {worth['after']}",
    ]
    first, cpu, load = (found[key]["median"] for key in ("first_token_seconds", "cpu_seconds", "load"))
    took = (
        f"{found['changed_from_wrong_to_right']} of {found['conventions']} such conventions go from wrong to right. "
        f"From the start of the upload to the answer's first token: {first:.1f} s, {cpu:.1f} s of CPU time "
        f"(medians; {found['machine']['cores']} CPU cores, load {load:.0f}; {found['date']}, "
        "[bench/remember.py](bench/remember.py))."
    )
    return "\n".join(["```sh", *lines, "```", took])


def _span(effect: tuple[float, float, float]) -> str:
    """(effect, low, high) in points."""
    middle, low, high = effect
    return f"{points(middle)} [{points(low)}, {points(high)}]"


def main() -> int:
    parser = argparse.ArgumentParser(description="Write README's first table from the committed results.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if README says something else")
    args = parser.parse_args()
    readme = ROOT / "README.md"
    text, found = readme.read_text(encoding="utf-8"), blocks()
    if not args.check:
        for name, block in found.items():
            store.replace_block(readme, name, block)
        return 0
    wrong = [n for n, b in found.items() if f"<!-- rune:{n}:begin -->\n{b}\n<!-- rune:{n}:end -->" not in text]
    if wrong:
        console.warn(f"README's {', '.join(wrong)} is not what the results say; run tools/findings.py")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
