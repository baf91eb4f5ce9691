"""A manifold, and a density that is the mean of models of the folds of a cross-validation."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from submanifold.common.errors import unexpected
from submanifold.flows.context import Context, ContextLike
from submanifold.geometry.nearest import Nearest
from submanifold.models.hierarchy import Hierarchy
from submanifold.models.model import Model, ProjectionKind
from submanifold.models.neighbors import Neighbors


class CrossFitted(Model):
    r"""A manifold with the density of K models, each trained without one fold of the data.

    .. math:: p(x) = \frac1K \sum_k p_k(x)

    is exact and normalized on R^D. No model k has seen the events of fold k, so that their scores
    under it calibrate p-values: all events do, and none of them twice (cross-conformal prediction:
    Vovk 2015). Coordinates, projections and samples are those of the manifold.

    Args:
        manifold: The model of coordinates, projections and samples.
        folds: The models of the density, in the order of the folds.
        neighbors: Rows of the folds, whose distance is a score of tables.

    Example:
        >>> build = lambda: Hierarchy([Stage(RealNVP(3), dim=2)])
        >>> model = CrossFitted(build(), [build() for _ in range(5)])
        >>> u, v, log_prob = model(torch.randn(4, 3))
        >>> u.shape, v.shape, log_prob.shape
        (torch.Size([4, 2]), torch.Size([4, 1]), torch.Size([4]))
    """

    kind = "cross_fitted"
    parts: ClassVar[dict[str, Any]] = {
        "manifold": Hierarchy,
        "folds": Hierarchy,
        "neighbors": Neighbors,
    }

    def __init__(
        self,
        manifold: Hierarchy,
        folds: Sequence[Hierarchy],
        neighbors: Neighbors | None = None,
    ):
        if any(fold.event_shape != manifold.event_shape or not fold.has_density for fold in folds):
            expected = f"models with a density of events of shape {manifold.event_shape}"
            raise unexpected("folds", expected, "another model")
        super().__init__(manifold.event_shape, manifold.dim, True, neighbors=neighbors)
        self.manifold = manifold
        self.folds: Sequence[Hierarchy] = torch.nn.ModuleList(folds)  # type: ignore[assignment]

    @property
    def members(self) -> Sequence[Model]:
        return self.folds

    @property
    def dims(self) -> list[int]:
        return self.manifold.dims

    @property
    def code_dims(self) -> tuple[int, int]:
        return self.manifold.code_dims

    @property
    def eigenvalues(self) -> Tensor | None:
        return self.manifold.eigenvalues

    def at_dim(self, dim: int) -> Model:
        """Return the view of the manifold of another dimension, see :meth:`.Hierarchy.at_dim`."""
        return self if dim == self.dim else self.manifold.at_dim(dim)

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor, Tensor]:
        u, v, _ = self.manifold(x, context)
        return u, v, self.log_prob(x, context)

    def log_prob(self, x: Tensor, context: ContextLike = None) -> Tensor:
        log_probs = torch.stack([fold.log_prob(x, context) for fold in self.folds])
        return log_probs.logsumexp(0) - math.log(len(self.folds))

    def encode(
        self, x: Tensor, projection: ProjectionKind = "encoder", context: ContextLike = None
    ) -> tuple[Tensor, Tensor]:
        return self.manifold.encode(x, projection, context)

    def code_log_prob(self, u: Tensor, context: Context | None = None) -> Tensor:
        return self.manifold.code_log_prob(u, context)

    def _coordinates_of(self, x: Tensor, context: Context | None) -> Tensor:
        return self.manifold._coordinates_of(x, context)

    def _decode(self, u: Tensor, v: Tensor | None = None, context: Context | None = None) -> Tensor:
        return self.manifold._decode(u, v, context)

    def _project(self, x: Tensor, nearest: bool, context: Context | None) -> Nearest:
        return self.manifold._project(x, nearest, context)

    def _draw_codes(
        self, n: int, temperature: float, generator: torch.Generator | None, context: Context | None
    ) -> Tensor:
        return self.manifold._draw_codes(n, temperature, generator, context)
