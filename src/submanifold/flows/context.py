"""What the density of each event of a batch is conditional on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from submanifold.common.errors import unexpected


@dataclass(frozen=True, eq=False)
class Context:
    """The context of a batch of events, for a model or, embedded, for the layers of a flow.

    Args:
        values: Classes (batch,) or columns (batch, columns); in layers their embedding
            (batch, size). None for a model that depends on a noise scale alone.
        noise_scale: Scale of the noise in each event, (batch,) in [0, 1], which noise-conditional
            flows receive; None is 0.

    Example:
        >>> context = Context(torch.tensor([2, 0]), noise_scale=torch.tensor([0.5, 1.0]))
        >>> len(context), context.rows([1]).values, context.repeat(2).values
        (2, tensor([0]), tensor([2, 0, 2, 0]))
    """

    values: Tensor | None = None
    noise_scale: Tensor | None = None

    def __post_init__(self) -> None:
        """Raise a UserError without a part, or for parts that differ in their number of rows."""
        values, scale = self.values, self.noise_scale
        if scale is None and values is None:
            raise unexpected("context", "values or a noise scale", "none", "Omit the context")
        if scale is not None and scale.ndim != 1:
            got = f"shape {tuple(scale.shape)}"
            raise unexpected("context.noise_scale", "shape (batch,)", got, "Correct it")
        if values is not None and scale is not None and len(scale) != len(values):
            expected = f"one scale for each of {len(values)} rows of values"
            raise unexpected("context.noise_scale", expected, len(scale), "Correct it")

    def __len__(self) -> int:
        """Number of events."""
        part = self.noise_scale if self.values is None else self.values
        return 0 if part is None else len(part)

    def repeat(self, count: int) -> "Context":
        """Repeat the batch: ``count`` copies, one after the other."""
        return self.rows(torch.arange(len(self)).repeat(count))

    def rows(self, index: slice | Sequence[int] | Tensor) -> "Context":
        """Select events by a slice, a mask (batch,) or numbers (n,)."""
        parts = (self.values, self.noise_scale)
        return Context(*(None if part is None else part[index] for part in parts))


ContextLike: TypeAlias = Context | Tensor | None
"""A context, its values alone, or none."""


def as_context(context: ContextLike) -> Context | None:
    """Return a context, or its values alone as one without a noise scale."""
    return Context(context) if isinstance(context, Tensor) else context


def with_noise_scale(context: ContextLike, scale: Tensor | None) -> Context | None:
    """Add the noise scale of each event, (batch,), to a context, unless it is None."""
    context = as_context(context)
    if scale is None:
        return context
    return Context(None if context is None else context.values, scale)


def context_array(context: Context | None) -> np.ndarray | None:
    """Return the values of a context as an array; None if there are none."""
    has_values = context is not None and context.values is not None
    return context.values.detach().cpu().numpy() if has_values else None  # type: ignore[union-attr]
