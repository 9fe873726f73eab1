"""One quiet run of the mended engine beside vLLM and PEFT, and behind HTTP, against what was predicted, for the page.

.venv/bin/python studies/generation-speed/quiet.py results/bench-generate-h200-quiet

The folder holds what `tools/gpu/side-by-side.sh` left in bench/ (one file a part) and in serve/ (serve-beside.json).
A part that is not there is told as not measured; nothing is judged without it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from with_graphs import PAGE, Predicted

from rune.runs import store

COUNTS = (0, 1, 10, 100, 1000)
ASKED_OF_NONE, AIMED_OF_NONE = 0.6, 0.75  # tokens/s with 1,000 registered over those without: asked, and aimed at
LEAST = {10: 30_000, 1000: 23_000}  # tokens/s of ours, registered: at least
OF_UNCACHED = 0.9  # of what ours serves without its prefix cache, at least
FIRST_TOKEN_MS = 900  # of 95 of 100 with 1,000, at most
VLLM_1000 = 0.7  # of ours, at most
AGAIN = 0.1  # ours measured again differs by at most so much
BATCH = {"none": Predicted(4.0, 2.0, 6.0), "8": Predicted(4.0, 2.0, 6.0), "164": Predicted(4.5, 2.5, 7.0)}
HTTP = {  # requests/s over vLLM's own server
    ("torch", 0): Predicted(0.7, 0.4, 1.2), ("torch", 8): Predicted(0.8, 0.4, 1.3),
    ("torch", 164): Predicted(1.0, 0.5, 1.8), ("rune-vllm", 164): Predicted(0.5, 0.2, 0.9),
}  # fmt: skip
HTTP_FIRST = Predicted(1.0, 0.4, 2.5)  # first token, p95: rune over torch to vLLM's server, 164 adapters
EQUAL_TEXTS = 11 / 12  # greedy texts of `rune serve` over vLLM that are vLLM's own, at least

Parts = Mapping[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=Path)
    args = parser.parse_args()
    parts = {path.stem: store.read_json(path) for path in sorted(args.bench.glob("*.json"))}
    store.replace_block(PAGE, "quiet", came_out(parts))
    print(PAGE)
    return 0


def came_out(parts: Parts) -> str:
    """The page's lines of what was measured."""
    behind = parts.get("serve-beside", {})
    return "\n".join([*served(parts), "", *in_a_batch(parts), "", *judged(parts), "", *http(behind), *checked(behind)])


def served(parts: Parts) -> list[str]:
    lines = [
        "| registered | ours, tokens/s | of none | first token, ms: p50 | p95 | again, tokens/s | vLLM, tokens/s "
        "| first token, ms: p50 | p95 | ours over vLLM |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for count in COUNTS:
        ours, theirs = parts.get(f"session_{count}"), parts.get(f"vllm_session_{count}")
        cells = [
            f"{count:,}", rate(ours), share(ours, parts.get("session_0")), *first(ours),
            rate(parts.get(f"session_{count}-again")), rate(theirs) + (" (cut)" if theirs and "note" in theirs else ""),
            *first(theirs), share(ours, theirs),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def in_a_batch(parts: Parts) -> list[str]:
    lines = [
        "| adapters in a batch | ours, tokens/s | again | vLLM | vLLM, no seeds | ours over vLLM | predicted | |",
        "|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for name, predicted in BATCH.items():
        ours, theirs = parts.get(f"ours_{name}"), parts.get(f"vllm_{name}")
        verdict = predicted.verdict(ours["rate"] / theirs["rate"]) if ours and theirs else "not judged"
        cells = [
            "0" if name == "none" else name, rate(ours), rate(parts.get(f"ours_{name}-again")), rate(theirs),
            rate(theirs and theirs["unseeded"]), share(ours, theirs), str(predicted), verdict,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def judged(parts: Parts) -> list[str]:
    """What was asked and what was predicted, one line each; of what was measured."""
    lines = []
    none, most = parts.get("session_0"), parts.get("session_1000")
    if none and most:
        found, p95 = most["rate"] / none["rate"], most["first_token_ms"]["p95"]
        asked, aimed = ("reached" if found >= least else "missed" for least in (ASKED_OF_NONE, AIMED_OF_NONE))
        lines.append(
            f"- **With 1,000 adapters {100 * found:.0f} % of the tokens/s with none; 60 % were asked: {asked}; "
            f"75 % aimed at: {aimed}.** First token of 95 of 100 after {p95:.0f} ms, at most {FIRST_TOKEN_MS} "
            f"predicted: {kept(p95 <= FIRST_TOKEN_MS)}."
        )
    ours, theirs = parts.get("ours_164"), parts.get("vllm_164")
    if ours and theirs:
        seeded, unseeded = ours["rate"] / theirs["rate"], ours["rate"] / theirs["unseeded"]["rate"]
        lines.append(
            f"- **Ours over vLLM with 164 adapters on the experiment's own load: {seeded:.2f}** ({unseeded:.2f} where "
            f"vLLM draws without seeds); at least 1 asked: {'reached' if min(seeded, unseeded) >= 1 else 'missed'}."
        )
    for count, least in LEAST.items():
        if found := parts.get(f"session_{count}"):
            lines.append(
                f"- Ours with {count:,}: {found['rate']:,.0f} tokens/s, at least {least:,} predicted: "
                f"{kept(found['rate'] >= least)}."
            )
    for count in COUNTS:
        with_it, without = parts.get(f"session_{count}"), parts.get(f"session_{count}-no-prefix")
        if with_it and without:
            found = with_it["rate"] / without["rate"]
            lines.append(
                f"- With the prefix cache over without, {count:,} registered: {found:.2f}, at least {OF_UNCACHED} "
                f"predicted: {kept(found >= OF_UNCACHED)}."
            )
    if most and (theirs := parts.get("vllm_session_1000")):
        found = theirs["rate"] / most["rate"]
        lines.append(
            f"- vLLM with 1,000 over ours: {found:.2f}, at most {VLLM_1000} predicted: {kept(found <= VLLM_1000)}."
        )
    apart = [
        abs(parts[f"{name}-again"]["rate"] / parts[name]["rate"] - 1)
        for name in ("session_0", "session_1000", "ours_none", "ours_164")
        if name in parts and f"{name}-again" in parts
    ]
    if apart:
        lines.append(
            f"- Ours measured again differs by at most {100 * max(apart):.0f} %, {100 * AGAIN:.0f} predicted: "
            f"{kept(max(apart) <= AGAIN)}."
        )
    if (swap := parts.get("peft_swap")) and (ten := parts.get("session_10")):
        lines.append(
            f"- PEFT's swapping: {swap['rate']:.1f} tokens/s ({swap['swap_ms']:.0f} ms a swap; vLLM started beside "
            f"it); ours served with 10 is {ten['rate'] / swap['rate']:,.0f} times as fast."
        )
    return lines or ["- Nothing to judge yet."]


def http(behind: Parts) -> list[str]:
    """The three servers, by number of adapters."""
    parts = behind.get("parts", {})
    lines = [
        "| behind HTTP, adapters | server | requests/s | tokens/s | first token, ms: p50 | p95 | whole answer, ms: p50 "
        "| p95 | requests/s over vLLM's | predicted | |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    names = {"torch": "`rune serve`, torch", "vllm": "vLLM's own", "rune-vllm": "`rune serve`, vLLM"}
    for count in sorted({part["adapters"] for part in parts.values() if "requests_per_second" in part}):
        for system, told in names.items():
            if (part := parts.get(f"{system}-{count}")) is None:
                continue
            vllm, predicted = parts.get(f"vllm-{count}"), HTTP.get((system, count))
            over = part["requests_per_second"] / vllm["requests_per_second"] if vllm and system != "vllm" else None
            cells = [
                f"{count}", told, f"{part['requests_per_second']:.1f}", f"{part['tokens_per_second']:,.0f}",
                *first(part), *percentiles(part["whole_ms"]), "–" if over is None else f"{over:.2f}",
                str(predicted or "–"), predicted.verdict(over) if predicted and over is not None else "",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return lines if len(lines) > 2 else ["Behind HTTP nothing was measured."]


def checked(behind: Parts) -> list[str]:
    parts = behind.get("parts", {})
    lines = [""]
    ours, theirs = parts.get("torch-164"), parts.get("vllm-164")
    if ours and theirs:
        found = ours["first_token_ms"]["p95"] / theirs["first_token_ms"]["p95"]
        lines.append(
            f"- First token, p95, with 164 adapters, `rune serve` over torch to vLLM's own: {found:.2f}, predicted "
            f"{HTTP_FIRST}: {HTTP_FIRST.verdict(found)}."
        )
    if texts := parts.get("texts"):
        for pair, equal in texts["equal_greedy_texts"].items():
            judge = f", at least {EQUAL_TEXTS:.2f} predicted: {kept(equal >= EQUAL_TEXTS)}"
            lines.append(f"- Equal greedy texts, {pair}: {equal:.2f}{judge if pair == 'vllm and rune-vllm' else ''}.")
    checks = {name: parts[f"check-{name}"] for name in ("torch", "vllm", "rune-vllm") if f"check-{name}" in parts}
    lines += [
        f"- {name}: adapters change {100 * check['adapters_change_text']:.0f} % of the texts; streams say the same in "
        f"{100 * check['stream_equals_whole']:.0f} %; n = 3 gives {check['n']}; an unknown adapter is "
        f"{check['unknown_adapter']}."
        for name, check in checks.items()
    ]
    for system, told in behind.get("systems", {}).items():
        if told["failed"]:
            lines.append(f"- {system} was not measured to its end: {told['failed']}.")
    return lines


def rate(part: Any) -> str:
    return f"{part['rate']:,.0f}" if part else "–"


def share(one: Any, other: Any) -> str:
    return f"{one['rate'] / other['rate']:.2f}" if one and other else "–"


def first(part: Any) -> Sequence[str]:
    return percentiles(part["first_token_ms"] if part else {})


def percentiles(found: Mapping[str, float]) -> Sequence[str]:
    return [f"{found[name]:.0f}" if name in found else "–" for name in ("p50", "p95")]


def kept(good: bool) -> str:
    return "kept" if good else "missed"


if __name__ == "__main__":
    sys.exit(main())
