"""One training shared by several processes, joined through accelerate: `accelerate launch … -m rune train RUN`.

The frozen base model is nearly all of a step's cost, so its rows are shared out: each process takes the rows of its
groups through it. The hypernetwork, which is small, makes the adapters of all groups in every process, and the rows'
log-probabilities are gathered; so every term, contrasts between groups and statistics over the batch among them, is
what one process would have counted. Gradients are then added up. Batch, data and schedule follow from the step's number
alone: another number of processes goes on with the same training.

With several processes a value counts towards the gradient in one of three ways: `gather` (each holds a part of a list),
`add` (each holds a part of a sum), `once` (each has counted all of it).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rune.errors import ConfigError

T = TypeVar("T")


class Processes:
    """Those that share a training; alone, every method hands back what it was given."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @property
    def main(self) -> bool:
        """The one that writes."""
        return self.rank == 0

    def share(self, total: int, setting: str) -> slice:
        """Which of `total` things are this process'. Raises ConfigError if some process had none."""
        if total < self.count:
            raise ConfigError(
                f"{self.count} processes share {total} ({setting}); start at most {total}, or raise {setting}"
            )
        return slice(self.rank * total // self.count, (self.rank + 1) * total // self.count)

    def gather(self, own_P: Tensor, sizes: Sequence[int]) -> Tensor:
        """The parts of all processes in order; `sizes` are theirs."""
        return own_P if self.count == 1 else _Gathered.apply(own_P, self.rank, tuple(sizes))

    def add(self, own: Tensor) -> Tensor:
        """The sum over processes, each of which is answerable for its own part."""
        return own if self.count == 1 else own + (_sum(own.detach()) - own.detach())

    def once(self, whole: Tensor) -> Tensor:
        """A value that every process has counted; the gradients add up to one."""
        return whole if self.count == 1 else whole / self.count + whole.detach() * (1 - 1 / self.count)

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """After `backward`: the gradient of the whole step, in every process."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        summed = _sum(torch.cat([g.flatten() for g in gradients]))
        for gradient, total in zip(gradients, summed.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))

    def agree(self, value: T) -> T:
        """What the first process found."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        (agreed,) = broadcast_object_list([value])
        return agreed

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own_P: Tensor, rank: int, sizes: tuple[int, ...]) -> Tensor:
        from accelerate.utils import gather

        ctx.own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        longest = max(sizes)
        padded = own_P.new_zeros(longest)
        padded[: len(own_P)] = own_P
        every_WP = gather(padded).view(len(sizes), longest)
        return torch.cat([part[:size] for part, size in zip(every_WP, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient_P: Tensor) -> Any:
        return gradient_P[ctx.own], None, None


def _sum(tensor: Tensor) -> Tensor:
    from accelerate.utils import reduce

    total: Tensor = reduce(tensor.clone(), reduction="sum")
    return total


@functools.cache
def join(device: str) -> Processes:
    """All that were started together; on GPUs each takes the one of its own. Alone, nothing is loaded.

    Raises ConfigError where the environment speaks of others that are not to be found.
    """
    count = os.environ.get("WORLD_SIZE") or "1"  # as `accelerate launch` and `torchrun` say it
    if count == "1":
        return Processes()
    from accelerate import PartialState

    try:
        state = PartialState(cpu=device == "cpu")
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"$WORLD_SIZE is {count}, and this process does not find the others ({str(error).splitlines()[0]}); start "
            "them with `accelerate launch` or `torchrun`, or unset WORLD_SIZE to train in one"
        ) from None
    return Processes(state.process_index, state.num_processes)
