"""Data parallelism: shards of a batch, and collective operations over all processes.

All processes call the same functions with the same data. Each computes its shard and receives the
combined result. Without an initialized process group every function is the identity.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """One of several contiguous parts of a batch, which differ by at most one row.

    Example:
        >>> Shard(1, 3).rows(torch.arange(6))
        tensor([2, 3])
    """

    index: int = 0
    count: int = 1

    def rows(self, batch: Any) -> Any:
        """This part of a batch: a tensor, or a context, which selects its own rows."""
        start, end = (len(batch) * n // self.count for n in (self.index, self.index + 1))
        part = slice(start, end)
        return batch[part] if isinstance(batch, Tensor) else batch.rows(part)


WHOLE_BATCH = Shard()
_alone: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Compute on this process what the others do not compute."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def world_size() -> int:
    """Number of processes; 1 inside of :func:`alone`."""
    present = dist.is_available() and dist.is_initialized() and not _alone.get()
    return dist.get_world_size() if present else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def shards(grad_accumulation_steps: int = 1) -> list[Shard]:
    """The shards of a batch that this process computes one after the other."""
    count = world_size() * grad_accumulation_steps
    first = rank() * grad_accumulation_steps
    return [Shard(first + n, count) for n in range(grad_accumulation_steps)]


def shard(batch: Any) -> Any:
    """This process's rows of a batch."""
    return Shard(rank(), world_size()).rows(batch)


def all_gather(rows: Tensor) -> Tensor:
    """Concatenate the rows of all processes, (total rows, ...), in the order of :func:`shard`."""
    if world_size() == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    largest = int(max(counts))
    padded = F.pad(rows, (*[0] * 2 * (rows.ndim - 1), 0, largest - len(rows))).contiguous()
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return torch.cat([part[: int(n)] for part, n in zip(gathered, counts, strict=True)])


def map_shards(function: Callable[..., Tensor], batch: Tensor, *others: Any) -> Tensor:
    """Apply a function that returns one row per event, (batch, ...), sharded over processes."""
    if world_size() == 1 or len(batch) < world_size():
        return function(batch, *others)
    rows = (None if other is None else shard(other) for other in others)
    return all_gather(function(shard(batch), *rows))


def average(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor in place by its mean over processes, with one all-reduce."""
    if world_size() == 1:
        return
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= world_size()
    means = flat.split([tensor.numel() for tensor in tensors])
    for tensor, mean in zip(tensors, means, strict=True):
        tensor.detach().copy_(mean.view(tensor.shape))


def barrier() -> None:
    """Wait until all processes have called this function."""
    if world_size() > 1:
        dist.barrier()
