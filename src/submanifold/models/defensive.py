"""A wide normal distribution that makes the density of a model finite and sensible everywhere."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from submanifold.flows.context import Context

WIDENING = 4.0  #: Factor of the covariance of the training events.
MAX_EVENTS = 100_000  #: Training events that determine mean and covariance.
MATRIX_ELEMENTS = 2**22  # of the covariances that are factorized at once


class DefensiveComponent(nn.Module):
    r"""The normal component of a defensive mixture (Hesterberg 1995) with the flow's density.

    .. math:: p(x) = (1 - \epsilon)\, p_{\text{flow}}(x) + \epsilon\, N(x; \mu, 4 S)

    is normalized and finite everywhere. Far from the training data, where the flow's density is
    arbitrary, it ranks events by their Mahalanobis distance. Where the flow's log-density is not a
    number, it counts as -inf. mu and S are mean and Ledoit-Wolf covariance of training events.

    The component depends on no context but for the mask of missing values: in a blank, which is
    filled with noise of N(0, 1), it is N(0, 1) too, so that the density of the observed values is
    their marginal. It acts on densities and on samples from R^D. Coordinates, projections and
    samples of manifolds of fewer dimensions are those of the flow.

    Args:
        dim: D, the number of coordinates of an event.
        weight: epsilon, from 0 to 1.
        maskable: Coordinates that may be missing, in the order of the mask, with which the context
            starts.

    Example:
        >>> component = DefensiveComponent.fit(np.random.default_rng(0).normal(size=(100, 2)))
        >>> x = torch.tensor([[0.0, 0.0], [1e3, 0.0], [2e3, 0.0]])
        >>> component.mix(torch.tensor([-1.0, -torch.inf, torch.nan]), x).diff() < 0
        tensor([True, True])
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int, weight: float, maskable: Sequence[int] = ()):
        super().__init__()
        self.dim, self.weight, self.maskable = dim, weight, list(maskable)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.eye(dim))

    @classmethod
    def fit(
        cls, events: np.ndarray, weight: float = 0.01, maskable: Sequence[int] = ()
    ) -> "DefensiveComponent":
        """Fit mean and covariance to training events (N, D), of which the first are used."""
        from sklearn.covariance import ledoit_wolf  # loads slowly

        x = np.asarray(events[:MAX_EVENTS], np.float64)
        covariance = WIDENING * ledoit_wolf(x)[0]
        component = cls(x.shape[1], weight, maskable)
        component.mean.copy_(torch.from_numpy(x.mean(0)))
        component.scale.copy_(torch.linalg.cholesky(torch.from_numpy(covariance)))
        return component

    def mix(self, log_prob: Tensor, x: Tensor, context: Context | None = None) -> Tensor:
        """Return the mixture's log-density of x (batch, D), given that of the flow, (batch,)."""
        flow = torch.where(log_prob.isfinite(), log_prob, -torch.inf).double()
        weights = x.new_tensor([1 - self.weight, self.weight], dtype=torch.float64).log()
        mixed = torch.logaddexp(weights[0] + flow, weights[1] + self.log_prob(x, context))
        return mixed.to(log_prob.dtype)

    def log_prob(self, x: Tensor, context: Context | None = None) -> Tensor:
        """Compute the component's log-density of x (batch, D), float64 (batch,)."""
        x, scale = x.double(), self.scale.double()
        offsets, diagonal = x - self.mean.double(), scale.diagonal()
        z = torch.linalg.solve_triangular(scale, offsets.T, upper=False).T
        log_prob = _standard_normal(z) - diagonal.log().sum()
        if not self.maskable or context is None or context.values is None:
            return log_prob
        blank = torch.zeros_like(x, dtype=torch.bool)
        blank[:, self.maskable] = context.values[:, : len(self.maskable)] > 0.5
        rows = blank.any(1).nonzero()[:, 0]
        if not len(rows):
            return log_prob
        chunks = rows.split(max(1, MATRIX_ELEMENTS // self.dim**2))
        marginal = torch.cat([self._marginal(x[chunk], blank[chunk]) for chunk in chunks])
        return log_prob.index_copy(0, rows, marginal)

    def _marginal(self, x: Tensor, blank: Tensor) -> Tensor:
        """Log-density of rows whose blanks are independent N(0, 1), (rows,)."""
        covariance = self.scale.double() @ self.scale.double().T
        observed = ~blank[:, :, None] & ~blank[:, None, :]
        identity = torch.eye(self.dim, dtype=x.dtype, device=x.device)
        scale = torch.linalg.cholesky(torch.where(observed, covariance, identity))
        offsets = x - self.mean.double().where(~blank, 0.0)
        z = torch.linalg.solve_triangular(scale, offsets[:, :, None], upper=False)[:, :, 0]
        return _standard_normal(z) - scale.diagonal(dim1=1, dim2=2).log().sum(1)

    @torch.no_grad()
    def replace(
        self, events: Tensor, temperature: float, generator: torch.Generator | None
    ) -> Tensor:
        """Replace samples of the flow (n, D) by the component's, each with probability epsilon."""
        options: Any = {"generator": generator, "dtype": self.mean.dtype}
        noise = torch.randn(len(events), self.dim, **options).to(events)
        chosen = torch.rand(len(events), **options).to(events.device) < self.weight
        drawn = self.mean + temperature * noise @ self.scale.T
        return torch.where(chosen[:, None], drawn, events)


def _standard_normal(z: Tensor) -> Tensor:
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
