"""Ours and PEFT beside a vLLM that replays CUDA graphs, on one GPU, against what was predicted, for the page.

.venv/bin/python studies/generation-speed/with_graphs.py results/bench-generate-h200-vllm-graphs
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from beside_vllm import extra, profile, rate

from rune.runs import store

PAGE = Path(__file__).with_name("README.md")
RESULTS = Path(__file__).resolve().parents[2] / "results"
# Ours, served, on H200s: where the records lie, and whether the engine had its prefix cache then.
SERVED_BEFORE = {
    "bench-generate-h200/served": False,
    "bench-generate-h200-vllm": False,
    "bench-generate-h200-vllm-start": True,
    "bench-generate-h200-vllm-graphs/other-machine": True,
}


class Predicted(NamedTuple):
    """A guess before the run, and the range it may lie in."""

    guess: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.guess:g} ({self.low:g} to {self.high:g})"

    def verdict(self, found: float) -> str:
        return "kept" if self.low <= found <= self.high else "missed"


# Ours over vLLM in tokens/s: adapters in a batch, and registered behind a server.
BATCH = {"none": Predicted(2.0, 1.2, 3), "8": Predicted(2.0, 1.1, 3.2), "164": Predicted(2.2, 1.2, 4)}
SERVED = {
    1: Predicted(0.8, 0.5, 1.4),
    10: Predicted(0.9, 0.5, 1.5),
    100: Predicted(1.0, 0.6, 1.8),
    1000: Predicted(1.3, 0.7, 3),
}
# vLLM with other room over vLLM with room for 164, in tokens/s.
ROOM = {
    ("vllm_164", "room-512"): Predicted(0.95, 0.8, 1.0),
    ("vllm_session_1000", "room-512"): Predicted(1.3, 1.0, 2.0),
    ("vllm_8", "room-8"): Predicted(1.05, 1.0, 1.2),
}
UNSEEDED = 0.05  # without seeds vLLM is at most so much faster
LOAD_SECONDS = 0.15  # of registering one adapter, at most
STEPPED_SERVED = 42_000  # tokens/s with 10 registered, at least, with rows and blocks in steps
STEPPED_BATCH = 0.03  # and a batch's second run at most so much slower than `bench-generate-h200-vllm`'s
EQUAL = {"float32": 95 / 96, "bfloat16": 85 / 96}  # texts with the prefix cache that are as without


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=Path)
    args = parser.parse_args()
    store.replace_block(PAGE, "graphs", came_out(args.bench))
    print(PAGE)
    return 0


def came_out(bench: Path) -> str:
    """The page's lines of what was measured."""
    parts = {path.stem: store.read_json(path) for path in sorted(bench.glob("*.json"))}
    parts.pop("bench-generate", None)
    lines = [*in_a_batch(parts), "", *served(parts), "", *beside(parts), *texts(parts), *stepped(parts)]
    lines += ["", *over_time(parts)]
    if "profile" in parts:
        lines += ["", *profile(parts)]
    return "\n".join(lines)


def in_a_batch(parts: Mapping[str, Any]) -> list[str]:
    lines = [
        "| adapters in a batch | ours, tokens/s | again, after vLLM | vLLM | vLLM, no seeds | ours over vLLM "
        "| predicted | |",
        "|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for name, predicted in BATCH.items():
        ours, again, vllm = (parts.get(part) for part in (f"ours_{name}", f"ours_{name}-again", f"vllm_{name}"))
        count = "0" if name == "none" else name
        if vllm is None or ours is None:
            lines.append(f"| {count} | {rate(ours)} | {rate(again)} | not reached | – | – | {predicted} | not judged |")
            continue
        found = (again or ours)["rate"] / vllm["rate"]
        lines.append(
            f"| {count} | {rate(ours)} | {rate(again)} | {rate(vllm)} | {rate(vllm['unseeded'])} | {found:.2f} "
            f"| {predicted} | {predicted.verdict(found)} |"
        )
    told = []
    if "vllm_164" in parts:
        ours = parts.get("ours_164-again", parts["ours_164"])
        for label, theirs in (
            ("with a seed for every draw", parts["vllm_164"]),
            ("without", parts["vllm_164"]["unseeded"]),
        ):
            found = ours["rate"] / theirs["rate"]
            told.append(f"{found:.2f} {label}: {'reached' if found >= 1 else 'missed'}")
        told = [f"Asked with 164 adapters: ours at least as fast. {'; '.join(told)}."]
    costs = [f"{100 * extra(parts, label):.0f} %" for label in ("", "-again") if f"ours_164{label}" in parts]
    told.append(f"164 adapters cost ours {' and '.join(costs)} more time; at most 35 % were asked.")
    if {"vllm_none", "vllm_164"} <= set(parts):
        more = parts["vllm_none"]["rate"] / parts["vllm_164"]["rate"] - 1
        told[-1] += f" They cost vLLM {100 * more:.0f} %."
    return [*lines, "", " ".join(told)]


def served(parts: Mapping[str, Any]) -> list[str]:
    lines = [
        "| registered | ours, tokens/s | first token, ms: p50 | p95 | vLLM, tokens/s | first token, ms: p50 | p95 "
        "| ours over vLLM | predicted | |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for number, predicted in SERVED.items():
        ours, vllm = parts[f"session_{number}"], parts.get(f"vllm_session_{number}")
        line = (
            f"| {number:,} | {rate(ours)} | {ours['first_token_ms']['p50']:.0f} | {ours['first_token_ms']['p95']:.0f} "
        )
        if vllm is None:
            lines.append(f"{line}| not reached | – | – | – | {predicted} | not judged |")
            continue
        found, first = ours["rate"] / vllm["rate"], vllm["first_token_ms"]
        cut = " (cut)" if "note" in vllm else ""
        lines.append(
            f"{line}| {rate(vllm)}{cut} | {first['p50']:.0f} | {first['p95']:.0f} | {found:.2f} | {predicted} "
            f"| {predicted.verdict(found)} |"
        )
    of = "0" if "session_0" in parts else "1"
    share = 100 * parts["session_1000"]["rate"] / parts[f"session_{of}"]["rate"]
    return [*lines, "", f"Ours with 1,000 registered: {share:.0f} % of the tokens/s with {of}."]


def over_time(parts: Mapping[str, Any]) -> list[str]:
    """Ours, served, in every measurement on an H200: what the prefix cache came with."""
    runs = {name: {n: store.read_json(RESULTS / name / f"session_{n}.json") for n in SERVED} for name in SERVED_BEFORE}
    runs["this one"] = {n: parts[f"session_{n}"] for n in SERVED}
    cached = {**SERVED_BEFORE, "this one": True}
    lines = [
        "| ours, served, tokens/s (first token, p95, ms) | prefix cache | 1 registered | 10 | 100 | 1,000 |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, found in runs.items():
        cells = [f"{rate(found[n])} ({found[n]['first_token_ms']['p95']:,.0f})" for n in SERVED]
        told = name.removeprefix("bench-generate-h200-vllm-graphs/").replace("other-machine", "the other machine")
        lines.append(f"| {told} | {'yes' if cached[name] else 'no'} | {' | '.join(cells)} |")
    mean = {
        has: {n: sum(runs[name][n]["rate"] for name in runs if cached[name] is has) for n in SERVED}
        for has in (False, True)
    }
    count = {has: sum(cached[name] is has for name in runs) for has in (False, True)}
    shares = ", ".join(
        f"{100 * mean[True][n] / count[True] / (mean[False][n] / count[False]):.0f} % with {n:,}" for n in SERVED
    )
    counted = store.read_json(RESULTS / "bench-generate-cpu" / "passes.json")
    passes = "; ".join(
        f"with {name} " + ", ".join(f"{told['passes a repack']:.1f} ({way})" for way, told in ways.items())
        for name, ways in counted.items()
    )
    return [
        *lines, "",
        f"Mean tokens/s with the cache over those without: {shares}. Passes that read prompts, a repack, counted on a "
        f"CPU with a tiny model and a quarter of the load: {passes}.",
    ]  # fmt: skip


def stepped(parts: Mapping[str, Any]) -> list[str]:
    """What was predicted of rows and blocks that come in steps."""
    found = parts["session_10"]["rate"]
    before = {name: store.read_json(RESULTS / "bench-generate-h200-vllm" / f"ours_{name}.json") for name in BATCH}
    more = {
        run: {
            name: parts[f"ours_{name}"]["rate"] / before[name]["rate"] - 1
            if run == "second"
            else parts[f"ours_{name}"]["first_run"]["rate"] / before[name]["first_run"]["rate"] - 1
            for name in BATCH
        }
        for run in ("first", "second")
    }
    told = {run: ", ".join(f"{100 * gain:+.1f} %" for gain in gains.values()) for run, gains in more.items()}
    kept = "kept" if min(more["second"].values()) >= -STEPPED_BATCH else "missed"
    return [
        f"- Rows and blocks in steps: served with 10 {found:,.0f} tokens/s, at least {STEPPED_SERVED:,} predicted of a "
        f"quiet machine: {'kept' if found >= STEPPED_SERVED else 'missed'}. A batch's second run with 0, 8 and 164 "
        f"adapters against `bench-generate-h200-vllm`: {told['second']}, at most {-100 * STEPPED_BATCH:+.0f} % "
        f"predicted: {kept}; its first {told['first']}, as before predicted."
    ]


def beside(parts: Mapping[str, Any]) -> list[str]:
    """Seeds, room, registering, adapters at work, first tokens, PEFT."""
    lines = []
    for (name, label), predicted in ROOM.items():
        if name in parts and f"{name}-{label}" in parts:
            found = parts[f"{name}-{label}"]["rate"] / parts[name]["rate"]
            room = label.removeprefix("room-")
            lines.append(
                f"- vLLM with room for {room} over room for 164, `{name}`: {found:.2f}, predicted {predicted}: "
                f"{predicted.verdict(found)} ({parts[f'{name}-{label}']['rate']:,.0f} tokens/s)."
            )
    gains = {
        name: parts[f"vllm_{name}"]["unseeded"]["rate"] / parts[f"vllm_{name}"]["rate"] - 1
        for name in BATCH
        if f"vllm_{name}" in parts
    }
    if gains:
        told = ", ".join(f"{100 * gain:+.0f} % ({'0' if name == 'none' else name})" for name, gain in gains.items())
        kept = "kept" if max(gains.values()) <= UNSEEDED else "missed"
        lines.append(
            f"- Without seeds vLLM's rate changes by {told}; at most {100 * UNSEEDED:+.0f} % predicted: {kept}."
        )
    loads = {name: part["load_seconds"] / part["adapters"] for name, part in parts.items() if loaded(name, part)}
    if loads:
        told = ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in sorted(loads.items()))
        kept = "kept" if max(loads.values()) <= LOAD_SECONDS else "missed"
        lines.append(
            f"- Registering an adapter with vLLM: {told}; at most {1000 * LOAD_SECONDS:.0f} predicted: {kept}."
        )
    if check := parts.get("vllm_check"):
        changed, differ, mixed = (
            check[key] for key in ("adapters_change_text", "adapters_differ", "mixed_equals_separate")
        )
        lines.append(
            f"- Adapters are at work in vLLM: of 8 greedy texts {8 * changed:.0f} change from the base to the first "
            f"strong adapter, {8 * differ:.0f} from it to the second, and mixed they are as alone in {8 * mixed:.0f}."
        )
    if "vllm_session_1000" in parts:
        ours, theirs = (parts[f"{system}session_1000"]["first_token_ms"]["p95"] for system in ("", "vllm_"))
        lines.append(
            f"- First token of 95 of 100 requests with 1,000 adapters: ours {ours:.0f} ms, vLLM's {theirs:.0f}; ours "
            f"at most vLLM's predicted: {'kept' if ours <= theirs else 'missed'}."
        )
    if swap := parts.get("peft_swap"):
        over = {name: f"{parts[name]['rate'] / swap['rate']:,.0f}" for name in ("ours_164", "session_10")}
        lines.append(
            f"- PEFT's swapping: {swap['rate']:.1f} tokens/s ({swap['tasks']} × 5 draws, {swap['swap_ms']:.0f} "
            f"ms a swap; vLLM was starting beside it); ours with 164 in a batch is {over['ours_164']} times as fast, "
            f"served with 10 {over['session_10']} times."
        )
    if mixed_batch := parts.get("peft_8"):
        lines.append(
            f"- PEFT's mixed batch of 8: {mixed_batch['rate']:,.0f} tokens/s in {mixed_batch['wall_seconds']:.0f} s, "
            f"cut at {mixed_batch['mean_tokens']:.0f} tokens a row: no ratio."
        )
    return lines


def texts(parts: Mapping[str, Any]) -> list[str]:
    """The prefix cache on this GPU."""
    found = parts.get("prefix_check")
    if found is None:
        return []
    told = []
    for dtype, least in EQUAL.items():
        share, spared = found[f"{dtype}: equal texts"], found[f"{dtype}: prompt tokens not read again"]
        told.append(
            f"{dtype} {share * found['requests']:.0f} of {found['requests']} texts equal ({100 * spared:.0f} % of the "
            f"prompts' tokens not read again), at least {96 * least:.0f} of 96 predicted: "
            f"{'kept' if share >= least else 'missed'}"
        )
    return [f"- Prefix cache on this GPU, base and two adapters mixed: {'; '.join(told)}."]


def loaded(name: str, part: Mapping[str, Any]) -> bool:
    """Whether this part is the first to register its adapters: those of fewer are there already."""
    return name in ("vllm_164", "vllm_session_1000") and "load_seconds" in part


if __name__ == "__main__":
    sys.exit(main())
