"""A generator of outer products, as studies/adapter_lane.py leaves it, as a checkpoint that every verb of Rune takes.

    .venv/bin/python tools/ship_outer_products.py OUT/VARIANT/model.safetensors results/hypernet-1.5b \
        --model qwen2.5-coder-1.5b-instruct --tokens 64 --trained-on CORPUS/*.jsonl [--result OUT/result.md]

Passes and the correction's rank are those of the weights (as float or as the lane's int8); what a training chose beside
them is told. `--trained-on`: the files of trajectories that it learned from, every one of them: a run that holds one of
their tasks or domains out refuses the checkpoint. What ships needs its line in results/hypernets.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from safetensors import SafetensorError
from safetensors.torch import load_file

from rune import console
from rune.corpus import exclusion
from rune.errors import DataError, RuneError
from rune.hypernet import base as bases
from rune.hypernet import checkpoint, precision
from rune.hypernet.outer_products import MODULES, OuterProducts
from rune.hypernet.settings import OuterProductsConfig, Precision
from rune.models import resolve
from rune.runs import store
from rune.types import Trajectory


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", required=True, help="the base model that it was trained with")
    parser.add_argument("--tokens", type=int, required=True, help="that a pass keeps of a set")
    parser.add_argument("--gradient", action="store_true", help="it was trained with true gradients")
    parser.add_argument("--rank", type=int, default=OuterProductsConfig().rank, help="of the adapters handed out")
    parser.add_argument("--trained-on", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--result", type=Path, help="what it was measured to do: adapters' cards quote it")
    parser.add_argument("--precision", choices=get_args(Precision), default="int8")
    args = parser.parse_args(argv)
    try:
        ship(args)
    except RuneError as error:
        console.warn(str(error))
        return 2
    return 0


def ship(args: argparse.Namespace) -> None:
    """Raises DataError for weights that are none of a generator of this base model."""
    learned = [t for path in args.trained_on for t in store.read_jsonl(path, Trajectory)]
    model = resolve.resolve(args.model, sources=resolve.SOURCES, cache=resolve.default_cache())
    base = bases.load(model, device="cpu", dtype="float32")
    layout = base.layout(MODULES)
    base.hooks.remove()
    try:
        state = precision.unpacked(load_file(args.weights))
        passes = state[f"log_gain_SY.{MODULES[0]}"].shape[0]
        read = state.get(f"read_YWK.{MODULES[0]}")
        settings = OuterProductsConfig(
            passes=passes, tokens=args.tokens, correction=0 if read is None else read.shape[-1],
            gradient=args.gradient, rank=args.rank,
        )  # fmt: skip
        module = OuterProducts(layout, correction=settings.correction, passes=passes, gradient=args.gradient)
        module.load_state_dict(state)
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise DataError(f"{args.weights}: no generator of {model.name} ({str(error).splitlines()[0]})") from None
    checkpoint.save_outer_products(
        args.output, module, layout, settings, model, trained_on=sorted({t.task_id for t in learned}),
        domains=exclusion.domains_of(learned), precision=args.precision,
    )  # fmt: skip
    if args.result is not None:
        store.write_atomic(args.output / "result.md", args.result.read_bytes())
    size = (args.output / checkpoint.WEIGHTS).stat().st_size / 1e6
    sums = {f"shipped/{n}": store.sha256_file(args.output / n) for n in (checkpoint.WEIGHTS, checkpoint.SETTINGS)}
    about = {"made_by": "tools/ship_outer_products.py", "from": store.sha256_file(args.weights), "sha256": sums}
    store.write_json(args.output / "manifest.json", about)
    console.out(f"{args.output}: {passes} passes of {args.tokens} tokens, {size:.1f} MB as {args.precision}")


if __name__ == "__main__":
    sys.exit(main())
