"""Batches of images or vectors: which one comes at which step depends on the seed alone."""

import mmap
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from submanifold.data.dequantize import dequantize

DEVICE_BYTES = 4 * 2**30
# A page of a map that is touched brings its neighbours along; of so much all are given back.
NEIGHBOURS, MAPPED_BYTES = 2**21, 2**28


class Batches:
    """Rows of an array, dequantised when they are bytes, as batches on a device.

    The batch of a training step and its noise are functions of (seed, step), so a run that was
    killed goes on with just the batches it would have seen; nothing about random state is stored.

    Args:
        array: (N, ...) uint8 images or float vectors. A map of a file is read as it is needed, in
            bounded memory; what was written to one of mode ``c`` is lost.
        batch_size: Rows in a batch; at most N are taken.
        seed: Of the order and of the noise.
        device: Where batches go. Small arrays are moved there whole.

    Attributes:
        generator: Seeded anew for each batch; whatever else is random about it is drawn from here.
    """

    def __init__(
        self,
        array: np.ndarray,
        batch_size: int,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ):
        self.device = torch.device(device)
        self.seed = seed
        self.batch_size = min(batch_size, len(array))
        self.steps_per_epoch = len(array) // self.batch_size
        self.rows = torch.from_numpy(array)
        if array.nbytes <= DEVICE_BYTES:
            self.rows = self.rows.to(self.device)
        self._map, self._touched = _map_of(array), 0
        self._order, self._epoch = torch.empty(0, dtype=torch.long), -1
        self.generator = torch.Generator(self.device)

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.rows)

    @property
    def is_continuous(self) -> bool:
        """Whether rows are floats, which may have no noise, and not bytes, which get it here."""
        return self.rows.dtype != torch.uint8

    def __iter__(self) -> Iterator[Tensor]:
        """Go through every row once, in order, always with the same noise."""
        for start in range(0, len(self), self.batch_size):
            yield self._prepare(self.rows[start : start + self.batch_size], salt=-1 - start)

    def at(self, step: int) -> Tensor:
        """Shuffled batch of a training step, (batch_size, ...)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            shuffle = torch.Generator().manual_seed(_mix(self.seed, epoch))
            order = torch.randperm(len(self), generator=shuffle)
            self._order = order.to(self.rows.device, non_blocking=True)
            self._epoch = epoch
        chosen = self._order[position * self.batch_size :][: self.batch_size]
        return self._prepare(self.rows[chosen], salt=step)

    def _prepare(self, rows: Tensor, salt: int) -> Tensor:
        if rows.device != self.device:
            rows = rows.pin_memory().to(self.device, non_blocking=True)  # or the copy would wait
        self.generator.manual_seed(_mix(self.seed, salt))
        self._give_back(rows)
        return rows if self.is_continuous else dequantize(rows, self.generator)

    def _give_back(self, rows: Tensor) -> None:
        """Keep what is mapped of a large file small; while there is room, the system has it."""
        self._touched += len(rows) * (NEIGHBOURS + rows[0].nbytes)
        if self._map is not None and self._touched > MAPPED_BYTES:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0


def _map_of(array: np.ndarray) -> mmap.mmap | None:
    """The file's map that holds a large array, if one does."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) and array.nbytes > MAPPED_BYTES else None


def _mix(seed: int, salt: int) -> int:
    """Spread (seed, salt) over 63 bits, so that neighbouring seeds share no stream."""
    words = np.random.SeedSequence([seed, abs(salt), salt < 0]).generate_state(1, np.uint64)
    return int(words[0] >> 1)
