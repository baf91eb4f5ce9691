"""Processes that work as one: each takes its share of the rows, and all have what all have found.

Every function does nothing where there is one process alone.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def size() -> int:
    """Count the processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if size() > 1 else 0


def share(rows: Tensor) -> Tensor:
    """This process's rows of a batch, of which every process has as many."""
    each = len(rows) // size()
    return rows[rank() * each :][:each]


def drawn(draw: Callable[[int], Tensor], rows: int) -> Tensor:
    """This process's rows of what one process alone would draw for the rows of all."""
    return draw(rows * size())[rank() * rows :][:rows]


def average(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over processes, which is the same on all of them."""
    if size() == 1:
        return
    flat = torch.cat([each.detach().reshape(-1) for each in tensors])  # one message, not many
    dist.all_reduce(flat)
    flat /= size()
    parts = flat.split([each.numel() for each in tensors])
    for each, part in zip(tensors, parts, strict=True):
        each.detach().copy_(part.view(each.shape))


def wait() -> None:
    """Wait for all."""
    if size() > 1:
        dist.barrier()
