"""Rows of a batch shared by processes that work as one, and by parts that come one after the other.

All processes call the same functions on the same data, each computes its own rows, and all have
what all have found. Every function does nothing where there is one process alone, and one part.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

_part, _parts = 0, 1


def size() -> int:
    """Count the processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if size() > 1 else 0


def share(rows: Tensor) -> Tensor:
    """This process's rows of a batch: as many as every other's, or one more or less."""
    return rows[bounds(len(rows))]


def bounds(count: int) -> slice:
    """Where this process's share of so many rows begins and ends."""
    return slice(count * rank() // size(), count * (rank() + 1) // size())


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes, (rows of all, ...), in the order of :func:`share`, on each."""
    if size() == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    most = max(int(each) for each in counts)
    filled = F.pad(rows, (*[0] * 2 * (rows.ndim - 1), 0, most - len(rows))).contiguous()
    found = [torch.empty_like(filled) for _ in counts]
    dist.all_gather(found, filled)
    return torch.cat([each[: int(count)] for each, count in zip(found, counts, strict=True)])


def by_rows(measure: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """Apply a measure that has a value for each row, (batch,) or (batch, ...), by shares."""
    if size() == 1 or len(batch) < size():
        return measure(batch)
    return gather(measure(share(batch)))


def parts() -> int:
    """Count the parts in which a process computes its share of a training batch."""
    return _parts


@contextmanager
def in_parts(count: int) -> Iterator[None]:
    """Have training batches computed in so many parts, for less memory."""
    global _parts
    before, _parts = _parts, count
    try:
        yield
    finally:
        _parts = before


def each_part(rows: Tensor) -> Iterator[Tensor]:
    """Go through the parts of this process's share of a training batch."""
    global _part
    try:
        for _part, some in enumerate(rows.chunk(_parts)):  # drawn() looks at it
            yield some
    finally:
        _part = 0


def drawn(draw: Callable[[int], Tensor], rows: int) -> Tensor:
    """This part's rows of what one process alone would draw for the rows of a training batch."""
    number = rank() * _parts + _part
    return draw(rows * size() * _parts)[number * rows :][:rows]


def average(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over processes, which is the same on all of them."""
    if size() == 1:
        return
    flat = torch.cat([each.detach().reshape(-1) for each in tensors])  # one message, not many
    dist.all_reduce(flat)
    flat /= size()
    split = flat.split([each.numel() for each in tensors])
    for each, mean in zip(tensors, split, strict=True):
        each.detach().copy_(mean.view(each.shape))


def wait() -> None:
    """Wait for all."""
    if size() > 1:
        dist.barrier()
