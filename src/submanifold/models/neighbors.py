"""Distances from events to their nearest neighbors among rows of the training."""

from typing import Self

import torch
from torch import Tensor, nn

NEAREST = 3  #: Rows whose mean distance is that of an event.


class Neighbors(nn.Module):
    r"""Rows of the training in folds, and the distances of other events to the nearest of them.

    The distance of an event is the mean of those to the three nearest rows outside a fold, and over
    the folds. That of a row of fold k is to rows outside fold k alone, so that events and rows are
    compared with rows that were chosen without them, and no row is its own neighbor.

    Args:
        count: Number of rows.
        dim: D, the number of coordinates of a row.
        folds: Number of folds.

    Example:
        >>> rows, fold = torch.arange(8.0)[:, None], torch.tensor([0, 1]).repeat(4)
        >>> neighbors = Neighbors(8, dim=1, folds=2).set(rows, fold)
        >>> neighbors.distance(torch.tensor([[8.0]]))  # of 7, 5, 3 and of 6, 4, 2
        tensor([3.5000], dtype=torch.float64)
        >>> neighbors.distance(rows[:1], fold=0)  # of 1, 3, 5
        tensor([3.], dtype=torch.float64)
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
        # products of matrices would round small distances
        mode = "donot_use_mm_for_euclid_dist"
        distances = torch.cdist(x.double(), self.rows.double(), compute_mode=mode)
        means = []
        for number in folds:
            outside = distances[:, self.fold != number]
            means.append(outside.topk(min(NEAREST, outside.shape[1]), largest=False)[0].mean(1))
        return torch.stack(means).mean(0).nan_to_num(torch.inf, torch.inf)
