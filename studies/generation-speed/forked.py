"""Whether a forked process can fill a large tensor, after and without arithmetic in its parent; needs two cores.

OMP_NUM_THREADS=2 .venv/bin/python studies/generation-speed/forked.py
"""

from __future__ import annotations

import multiprocessing
import sys

import torch

SECONDS = 10  # a child that has not ended by then hangs


def main() -> int:
    print(f"{torch.get_num_threads()} threads; without arithmetic before: {forked()}")
    torch.ones(2000, 2000) @ torch.ones(2000, 2000)
    print(f"after arithmetic: {forked()}")
    return 0


def forked() -> str:
    child = multiprocessing.get_context("fork").Process(target=fill)
    child.start()
    child.join(SECONDS)
    if child.exitcode is not None:
        return f"ends with {child.exitcode}"
    child.kill()
    child.join()
    return f"hangs, killed after {SECONDS} s"


def fill() -> None:
    torch.zeros((1024, 4096), dtype=torch.int32)  # vLLM's table of all tokens; enough for more than one thread


if __name__ == "__main__":
    sys.exit(main())
