"""Reproducible batches of images or vectors, and dequantization."""

import hashlib
import math
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from submanifold.common.errors import unexpected
from submanifold.common.threads import tuned
from submanifold.data.events import Events, EventsLike, as_events
from submanifold.flows.context import Context, context_array

DEVICE_BYTES = 4 * 2**30
SUMS, CHUNK = 16, 4096  # numbers of a summary, and rows that are summarized at once

Batch = tuple[Tensor, Context | None]
"""Events (batch, ...), and the context of each; None if they have none."""
Redraw = Callable[[np.ndarray, np.ndarray | None, int], np.ndarray]


class Batches:
    """Batches of events on a device; uint8 images are dequantized.

    The batch of a training step and its noise depend only on (seed, step), so that a resumed run
    gets the same batches without a stored random state. A generator on the device, which the caller
    passes, is seeded for each batch; all other random numbers that belong to it are drawn from it.

    Args:
        events: (N, ...) uint8 images or float vectors, an array or with a context
            (:class:`.Events`). A memory map is read on demand.
        batch_size: Items in a batch, at most N.
        seed: Seed of the order and of the noise.
        device: Device of the batches. Arrays up to 4 GiB are copied to it once.
        redraw: Replaces vectors, given their contexts, by others with the same meaning and other
            noise, which a seed determines (:meth:`.Preprocessor.redraw`); by default vectors stay
            as they are.

    Example:
        >>> batches = Batches(np.zeros((10, 3), np.float32), batch_size=4)
        >>> batches.at(step=0)[0].shape, [len(x) for x, context in batches]
        (torch.Size([4, 3]), [4, 4, 2])
    """

    def __init__(
        self,
        events: EventsLike,
        batch_size: int,
        seed: int = 0,
        device: str | torch.device = "cpu",
        redraw: Redraw | None = None,
    ):
        if not len(events):
            raise unexpected("events", "at least one row", "none")
        self.device = torch.device(device)
        self.events, self.seed, self.redraw = as_events(events), seed, redraw
        self.batch_size = min(batch_size, len(events))
        self.steps_per_epoch = len(events) // self.batch_size
        self.rows = torch.from_numpy(self.events.x)
        if self.rows.nbytes <= DEVICE_BYTES:
            self.rows = self.rows.to(self.device)
        self.contexts = to_context(self.events, self.device)
        self._order, self._epoch = torch.empty(0, dtype=torch.long), -1

    def __len__(self) -> int:
        """Number of items N."""
        return len(self.rows)

    @property
    def is_continuous(self) -> bool:
        """Whether items are float vectors, which are not dequantized."""
        return self.rows.dtype != torch.uint8

    @property
    def identity(self) -> dict[str, object]:
        """What distinguishes these batches from others: seed, number, items and contexts."""
        context = self.events.context
        return {
            "seed": self.seed,
            "rows": len(self),
            "data": summarize(self.events.x),
            "context": None if context is None else summarize(context),
        }

    def __iter__(self) -> Iterator[Batch]:
        return self.in_order()

    def in_order(self, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Iterate over all items in order, with the same noise each time."""
        generator = generator or torch.Generator(self.device)

        def batch(start: int) -> Batch:
            rows = slice(start, start + self.batch_size)
            context = None if self.contexts is None else self.contexts.rows(rows)
            return self._prepare(self.rows[rows], context, generator, salt=-1 - start), context

        return tuned(map(batch, range(0, len(self), self.batch_size)), self.device)

    def at(self, step: int, generator: torch.Generator | None = None) -> Batch:
        """Shuffled batch of a training step, (batch_size, ...)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            shuffle = torch.Generator().manual_seed(_mix(self.seed, epoch))
            order = torch.randperm(len(self), generator=shuffle)
            self._order = order.to(self.rows.device, non_blocking=True)
            self._epoch = epoch
        chosen = self._order[position * self.batch_size :][: self.batch_size]
        context = None if self.contexts is None else self.contexts.rows(chosen.to(self.device))
        generator = generator or torch.Generator(self.device)
        return self._prepare(self.rows[chosen], context, generator, salt=step), context

    def _prepare(
        self, rows: Tensor, context: Context | None, generator: torch.Generator, salt: int
    ) -> Tensor:
        if rows.device != self.device:
            rows = rows.pin_memory().to(self.device, non_blocking=True)
        generator.manual_seed(_mix(self.seed, salt))
        if not self.is_continuous:
            return dequantize(rows, generator)
        if self.redraw is None:
            return rows
        drawn = self.redraw(rows.cpu().numpy(), context_array(context), _mix(self.seed, salt))
        return torch.from_numpy(drawn).to(self.device)


def summarize(array: np.ndarray) -> str | list[float]:
    """Summarize all numbers of an array (N, ...): a hash of integers, random sums of floats.

    The floats are added with random signs, so that each of them changes every sum, and rounding
    errors change the sums as little as the floats. Those that are not finite count as 0.
    """
    chunks = (np.asarray(array[start : start + CHUNK]) for start in range(0, len(array), CHUNK))
    if not np.issubdtype(array.dtype, np.floating):
        digest = hashlib.sha256()
        for chunk in chunks:
            digest.update(np.ascontiguousarray(chunk).data)
        return digest.hexdigest()
    rng = np.random.default_rng(0)
    of_columns = rng.choice([-1.0, 1.0], (math.prod(array.shape[1:]), SUMS))
    sums = np.zeros(SUMS)
    for chunk in chunks:
        numbers = np.nan_to_num(chunk.reshape(len(chunk), -1), nan=0.0, posinf=0.0, neginf=0.0)
        sums += (rng.choice([-1.0, 1.0], (len(chunk), SUMS)) * (numbers @ of_columns)).sum(0)
    return sums.tolist()


def dequantize(pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Add uniform noise to each byte: x = (pixel + U[0, 1)) / 256 - 0.5.

    From uint8 pixels of any shape, and a generator on their device, it computes float32 values in
    [-0.5, 0.5).
    """
    noise = torch.rand(pixels.shape, generator=generator, device=pixels.device)
    return add_noise(pixels, noise)


def as_input(events: np.ndarray) -> Tensor:
    """Convert events to floats: vectors as they are, images with noise that each one determines."""
    x = torch.from_numpy(np.array(events))
    if events.dtype != np.uint8:
        return x
    noise = torch.zeros(x.shape)
    for row, image in zip(noise, events, strict=True):
        rng = np.random.default_rng(zlib.crc32(image.tobytes()))
        row.copy_(torch.from_numpy(rng.random(image.shape, dtype=np.float32)))
    return add_noise(x, noise)


def fixed_batches(
    events: EventsLike, batch_size: int, device: str | torch.device = "cpu"
) -> Iterator[Batch]:
    """Iterate over events (N, ...) in order, as :func:`as_input` converts them."""
    events = as_events(events)

    def batch(start: int) -> Batch:
        part = events[start : start + batch_size]
        return as_input(part.x).to(device), to_context(part, device)

    return tuned(map(batch, range(0, len(events), batch_size)), device)


def to_context(
    events: Events, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Context | None:
    """Copy the context of events to a device, columns with a dtype; None if they have none."""
    if events.context is None:
        return None
    values = torch.from_numpy(np.array(events.context))
    return Context(values.to(device, dtype if values.is_floating_point() else values.dtype))


def add_noise(pixels: Tensor, noise: Tensor) -> Tensor:
    """Compute (pixel + noise) / 256 - 0.5; noise is in [0, 1)."""
    # the largest byte plus the largest noise rounds up to 0.5 in float32
    return ((pixels.float() + noise) / 256 - 0.5).clamp_max(0.5 - 2**-25)


def quantize(x: Tensor) -> Tensor:
    """Convert values in [-0.5, 0.5) to uint8 pixels; values outside are clipped."""
    return ((x + 0.5) * 256).floor().clamp(0, 255).to(torch.uint8)


def _mix(seed: int, salt: int) -> int:
    """Hash (seed, salt) to a 63-bit seed, so that neighbouring seeds give independent streams."""
    words = np.random.SeedSequence([seed, abs(salt), salt < 0]).generate_state(1, np.uint64)
    return int(words[0] >> 1)
