"""One of many writers that are killed: brings adapters in and notes down which of them it was told are there.

Loads no torch, so that a new one is at work at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

from rune.adapters.registry import operations
from rune.adapters.registry.records import Draft, MadeFrom, Place, Source
from rune.adapters.registry.registry import Registry

NAME = "base_model.model.model.layers.0.self_attn.q_proj"


def files(number: int) -> tuple[bytes, bytes]:
    """A config and the weights of a rank-1 adapter whose numbers are `number`; big enough to be torn by a kill."""
    width = 20_000
    numbers = struct.pack(f"<{width}f", *[float(number)] * width)
    header = json.dumps(
        {
            "__metadata__": {"base_model": "b" * 64, "format": "pt", "scale": "1.0"},
            f"{NAME}.lora_A.weight": {"dtype": "F32", "shape": [1, width], "data_offsets": [0, len(numbers)]},
            f"{NAME}.lora_B.weight": {
                "dtype": "F32",
                "shape": [width, 1],
                "data_offsets": [len(numbers), 2 * len(numbers)],
            },
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1.0, "use_rslora": False}
    return json.dumps(config).encode(), len(header).to_bytes(8, "little") + header + 2 * numbers


def draft(number: int, weights: bytes) -> Draft:
    return Draft(
        id=hashlib.sha256(weights).hexdigest(),
        base="b" * 64,
        base_name="",
        place=Place(project="shop", domain=f"domain {number % 7}"),
        rank=1,
        modules=("q_proj",),
        parameters=40_000,
        size=len(weights),
        delta_w_norm=1.0,
        made_from=MadeFrom(sources=(Source(trajectory_id=f"t{number}"),), how="writer"),
    )


def write(folder: str, acknowledged: str, first: int, step: int) -> None:
    """Adapters first, first + step, …, and now and then one that all writers bring in; until killed.

    A line is noted down after the registry has said that the adapter, or the operation, is there.
    """
    registry = Registry(Path(folder), create=True)
    note = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    number = first
    while True:
        shared = number % 3 == 0
        config, weights = files(-number // 30 if shared else number)
        ready = draft(-number // 30 if shared else number, weights)
        registry.insert(ready, config, weights)
        os.write(note, f"adapter {ready.id}\n".encode())
        if shared:
            done = operations.commit(
                registry, kind="forget", inputs=[ready.id], arguments={"shared": True}, numbers={}, archive=[ready.id]
            )
            os.write(note, f"operation {done.key}\n".encode())
        number += step
