"""The GPU's kernels in Triton's interpreter: they equal plain torch, alone and in the whole loop."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.engines.engine_helpers import World

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def interpreted(script: str, *arguments: str) -> str:
    """Run in a process of its own: Triton reads its switch when it is imported."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments], capture_output=True, text=True, timeout=300,
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


@pytest.mark.check
def test_the_start_up_check_passes_in_single_and_half_precision_with_one_launch_and_with_two(world: World) -> None:
    """Half stands in for bfloat16, which the interpreter multiplies as if its bits were integers (triton 3.9)."""
    script = """
        import sys, torch
        from rune.engines.local import kernels as _kernels
        from rune.engines.local import lora_kernels as _lora_kernels
        from rune.models import loader
        from rune.engines.local.network import Network
        from rune.types import ModelRef
        model = ModelRef(name="tiny", path=sys.argv[1], digest="", source="local")
        for dtype in ("float32", "float16"):
            network = Network(loader.load(model, device="cpu", dtype=dtype))
            for single in (True, False):  # 64 inputs at a time: several turns of the loop, several shares
                _lora_kernels.TILINGS = {
                    kind: _lora_kernels.Tiling(single, 64, 128, 4) for kind in _lora_kernels.TILINGS
                }
                _lora_kernels.check(network)
            network.silu_mul = _kernels.silu_mul
        print("equal")
        """
    assert "equal" in interpreted(script, world.model.path)


@pytest.mark.check
def test_attention_silu_and_chunk_masses_equal_plain_torch_in_single_and_half_precision(world: World) -> None:
    script = """
        import sys
        from rune.engines.local import kernels as _kernels
        from rune.models import loader
        from rune.engines.local.network import Network
        from rune.types import ModelRef
        model = ModelRef(name="tiny", path=sys.argv[1], digest="", source="local")
        for dtype in ("float32", "float16"):
            network = Network(loader.load(model, device="cpu", dtype=dtype))
            for paged in (False, True):
                _kernels.check(network, paged=paged)
        print("equal")
        """
    assert "equal" in interpreted(script, world.model.path)


@pytest.mark.check
def test_a_ragged_mixed_batch_draws_the_texts_of_the_plain_path(world: World) -> None:
    """Adapters of ranks 4 and 8 with 1, 3 and 18 rows (two blocks) and the base, coming and going; dead places too."""
    script = """
        import sys
        import torch
        from tests.engines.engine_helpers import PROMPTS, torch_engine
        from rune.adapters import peft as _lora
        from rune.engines.local import batch
        from rune.engines.local import lora_kernels as _lora_kernels
        from rune.types import AdapterRef, ModelRef, Request, Sampling
        batch.stepped = lambda count: -(-count // 5) * 5
        path, *folders = sys.argv[1:]
        model = ModelRef(name="tiny", path=path, digest="", source="local")

        def texts(kernels):
            engine = torch_engine(model, max_rows=24)
            engine.decoder.device._lora_kernels = kernels
            worn = [None]
            for i, folder in enumerate(folders):
                loaded = _lora.read_peft(folder)
                worn.append(engine.put_adapter(str(i), _lora.Adapter(pairs=loaded.pairs, scale=loaded.scale)))
            sampling = Sampling(temperature=1.0, max_new_tokens=6)
            requests = [
                Request(key=f"{i}{j}", prompt=PROMPTS[i % 3], sampling=sampling, seed=7 * i, n=n, adapter=worn[j])
                for i, (n, j) in enumerate([(18, 1), (3, 2), (1, 2), (2, 0), (1, 1), (3, 0)])
            ]
            blocks, dead = [], []
            launch = engine.decoder.device.launch

            def looked_at(layout):
                blocks.append(layout.blocks)
                dead.append(None in layout.rows and any(rows == 0 for _, rows, _ in layout.blocks))
                return launch(layout)

            engine.decoder.device.launch = looked_at
            found = {(c.key, c.draw): c.text for c in engine.complete(requests)}
            assert all(map(bool, blocks)) == (kernels is not None)
            assert any(dead) == (kernels is not None)
            assert len({found["01", 0], found["30", 0]}) == 2
            return found

        assert texts(_lora_kernels) == texts(None)
        print("equal")
        """
    assert "equal" in interpreted(script, world.model.path, *(str(world.folder(ref)) for ref in world.adapters))


@pytest.mark.check
def test_the_step_through_a_table_draws_the_texts_of_the_plain_path_where_rows_wait(world: World) -> None:
    script = """
        import sys
        from tests.engines.engine_helpers import PROMPTS, torch_engine
        from rune.engines.local import kernels as _kernels
        from rune.types import ModelRef, Request, Sampling
        model = ModelRef(name="tiny", path=sys.argv[1], digest="", source="local")

        def texts(kernels):
            engine = torch_engine(model, max_rows=8, kv_layout="paged" if kernels else "static")
            device, opens = engine.decoder.device, engine.decoder.open
            device._kernels = kernels
            device.asynchronous = kernels is not None  # a burst behind, as on a GPU
            if kernels:
                engine.decoder.open = lambda rows, **how: opens(rows, **{**how, "blocks": 4})
            sampling = Sampling(temperature=1.0, max_new_tokens=60)
            requests = [
                Request(key=str(i), prompt=PROMPTS[i % 2], sampling=sampling, seed=7 * i) for i in range(3)
            ]
            found = {(c.key, c.draw): c.text for c in engine.complete(requests)}
            assert bool(engine.stats.preemptions) == (kernels is not None)
            return found

        assert texts(_kernels) == texts(None)
        print("equal")
        """
    assert "equal" in interpreted(script, world.model.path)
