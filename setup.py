"""What pyproject.toml cannot say: a wheel carries the configs, the shipped hypernetworks and the demo's trajectories.

In a checkout they lie where people look for them, `configs/` and `results/`; in a wheel under `rune/_shipped/`, with
the same paths below. `rune/shipped.py` knows both places.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
SHIPPED = (
    "configs/*.toml",
    "results/hypernets.json",
    *(
        f"results/{one['folder']}/{name}"
        for one in json.loads((ROOT / "results/hypernets.json").read_text()).values()
        for name in ("manifest.json", "model.safetensors", "settings.json")
    ),
    "results/phase1-0.5b/trajectories.jsonl",
    "configs/*.jsonl",
)


class BuildWithData(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for pattern in SHIPPED:
            found = sorted(ROOT.glob(pattern))
            if not found:
                raise FileNotFoundError(f"{pattern}: to be shipped in the wheel, and not there")
            for path in found:
                target = Path(self.build_lib, "rune", "_shipped", path.relative_to(ROOT))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


setup(cmdclass={"build_py": BuildWithData})
