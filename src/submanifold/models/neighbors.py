"""Distances from events to their nearest neighbors among rows of the training."""

import math
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

NEAREST = 3  #: Rows whose mean distance is that of an event.


class Neighbors(nn.Module):
    r"""Rows of the training in folds, and the distances of other events to the nearest of them.

    The distance of an event is the mean of those to the three nearest rows outside a fold, and over
    the folds. That of a row of fold k is to rows outside fold k alone, so that events and rows are
    compared with rows that were chosen without them, and no row is its own neighbor.

    Distances are those of the coordinates and their normal scores together
    (:func:`normal_scores`): the former are large far from the rows, the latter are equal for a
    column and its logarithm. Where all rows outside a fold have one value, another value is
    :math:`\sqrt n` away, as many standard deviations as the only other value among n.

    Args:
        count: Number of rows.
        dim: D, the number of coordinates of a row.
        folds: Number of folds.

    Example:
        >>> rows, fold = torch.arange(8.0)[:, None], torch.tensor([0, 1]).repeat(4)
        >>> neighbors = Neighbors(8, dim=1, folds=2).set(rows, fold)
        >>> neighbors.distance(torch.tensor([[8.0], [80.0]])).round(decimals=1)
        tensor([ 3.7000, 75.5000], dtype=torch.float64)
        >>> neighbors.distance(rows[:1], fold=0).round(decimals=1)  # to 1, 3 and 5
        tensor([3.2000], dtype=torch.float64)
    """

    rows: Tensor
    fold: Tensor

    def __init__(self, count: int, dim: int, folds: int):
        super().__init__()
        self.count, self.dim, self.folds = count, dim, folds
        self.register_buffer("rows", torch.zeros(count, dim))
        self.register_buffer("fold", torch.zeros(count, dtype=torch.long))

    def set(self, rows: Tensor, fold: Tensor) -> Self:
        """Set the rows (count, D), and the fold of each (count,); returns the neighbors."""
        self.rows.copy_(rows)
        self.fold.copy_(fold)
        return self

    def distance(self, x: Tensor, fold: int | None = None) -> Tensor:
        """Compute distances of x (batch, D), float64 (batch,); of events of a ``fold``, if given.

        They are infinite where x is not finite.
        """
        folds = range(self.folds) if fold is None else [fold]
        means = []
        for number in folds:
            outside = self.rows[self.fold != number].double()
            of_x = self._with_constants(x.double(), outside)
            of_x, of_rows = (
                torch.cat([each, normal_scores(each, outside)], 1) for each in (of_x, outside)
            )
            # products of matrices would round small distances
            mode = "donot_use_mm_for_euclid_dist"
            distances = torch.cdist(of_x, of_rows, compute_mode=mode)
            nearest = distances.topk(min(NEAREST, len(outside)), largest=False)[0]
            means.append(nearest.mean(1))
        return torch.stack(means).mean(0).nan_to_num(torch.inf, torch.inf)

    def _with_constants(self, x: Tensor, outside: Tensor) -> Tensor:
        """Move other values of coordinates that are constant outside a fold; 0 is a missing one."""
        differs = (outside == outside[0]).all(0) & (x != outside[0]) & (x != 0) & x.isfinite()
        return torch.where(differs, outside[0] + math.sqrt(self.count), x)

    def with_changes(self, distance: np.ndarray, changes: np.ndarray) -> np.ndarray:
        """Return distances (N,) with other columns: ``changes`` (N,) of them are constant but in x.

        Like the coordinates that are constant outside a fold, each is the deviation of the only
        other value in a column.
        """
        return np.where(changes > 0, np.hypot(distance, np.sqrt(self.count * changes)), distance)


def normal_scores(x: Tensor, rows: Tensor) -> Tensor:
    r"""Compute the normal scores of coordinates x (batch, D) among those of rows (n, D).

    They are :math:`\Phi^{-1}(r / n)` with the mid-rank r (van der Waerden 1952): the number of rows
    below, and half of those that are equal. Beyond the rows, r is 1/4 or n - 1/4.

    Example:
        >>> rows = torch.tensor([[1.0], [10.0], [100.0]])
        >>> normal_scores(torch.tensor([[0.0], [10.0], [1e9]]), rows).T
        tensor([[-1.3830,  0.0000,  1.3830]])
    """
    ordered, values, count = rows.T.contiguous().sort(1)[0], x.T.contiguous(), len(rows)
    below, not_above = (
        torch.searchsorted(ordered, values, side=side).to(x.dtype) for side in ("left", "right")
    )
    ranks = ((below + not_above) / 2).clamp(0.25, count - 0.25)
    return torch.special.ndtri(ranks / count).T
