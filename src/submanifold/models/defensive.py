"""Second components of a density: they make it finite everywhere, and better for few events."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from submanifold.flows.context import Context

WIDENING = 4.0  #: Factor of the covariance of the training events.
SMALLEST = 1e-9  #: Variance that is added, without which equal events have no density.
MAX_EVENTS = 100_000  #: Training events that determine mean and covariance.
MATRIX_ELEMENTS = 2**22  # of the covariances that are factorized at once


class DefensiveComponent(nn.Module, ABC):
    r"""A density that is mixed with that of the flow (a defensive mixture: Hesterberg 1995).

    .. math:: p(x) = (1 - \epsilon)\, p_{\text{flow}}(x) + \epsilon\, q(x)

    is normalized, and at least :math:`\epsilon\, q(x)` where the flow's density is arbitrary, far
    from the training data. Where the flow's log-density is not a number, it counts as -inf.

    It acts on densities and on samples from R^D. Coordinates, projections and samples of manifolds
    of fewer dimensions are those of the flow.

    Args:
        weight: epsilon, from 0 to 1.
    """

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    @abstractmethod
    def log_prob(self, x: Tensor, context: Context | None = None) -> Tensor:
        """Compute log q at x (batch, *event_shape), float64 (batch,)."""

    @abstractmethod
    def draw(self, like: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
        """Draw as many events of q as ``like`` has, of its shape, dtype and device."""

    def mix(self, log_prob: Tensor, x: Tensor, context: Context | None = None) -> Tensor:
        """Return log p at x (batch, *event_shape), given that of the flow, (batch,)."""
        flow = torch.where(log_prob.isfinite(), log_prob, -torch.inf).double()
        weights = x.new_tensor([1 - self.weight, self.weight], dtype=torch.float64).log()
        mixed = torch.logaddexp(weights[0] + flow, weights[1] + self.log_prob(x, context))
        return mixed.to(log_prob.dtype)

    @torch.no_grad()
    def replace(
        self, events: Tensor, temperature: float, generator: torch.Generator | None
    ) -> Tensor:
        """Replace samples of the flow by draws from q, each with probability epsilon."""
        drawn = self.draw(events, temperature, generator)
        chosen = torch.rand(len(events), generator=generator).to(events.device) < self.weight
        return torch.where(chosen.view(-1, *[1] * (events.dim() - 1)), drawn, events)


class UniformComponent(DefensiveComponent):
    r"""The uniform distribution on [low, high]^D, which bounds the bits of any image.

    A deep affine flow amplifies what it has not seen: a single test image may otherwise have
    millions of bits per dimension. With the mixture an image of 8 bits has at most
    :math:`8 - \log_2(\epsilon) / D` of them.

    Args:
        low, high: The range of values of images.
        weight: See :class:`DefensiveComponent`.

    Example:
        >>> component = UniformComponent(-0.5, 0.5)
        >>> x = torch.zeros(2, 1, 2, 2)
        >>> component.mix(torch.tensor([3.0, -1e9]), x)
        tensor([  3.0000, -13.8155])
    """

    def __init__(self, low: float, high: float, weight: float = 1e-6):
        super().__init__(weight)
        self.low, self.high = low, high

    def log_prob(self, x: Tensor, context: Context | None = None) -> Tensor:
        """See :class:`DefensiveComponent`."""
        x = x.flatten(1)
        is_inside = ((x >= self.low) & (x <= self.high)).all(1)
        log_density = x.new_tensor(-x.shape[1] * math.log(self.high - self.low)).double()
        return torch.where(is_inside, log_density, -torch.inf)

    def draw(self, like: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
        """See :class:`DefensiveComponent`."""
        drawn = torch.rand(like.shape, generator=generator).to(like)
        return self.low + (self.high - self.low) * drawn


class NormalComponents(DefensiveComponent):
    r"""Normal distributions of vectors: a wide one, and others.

    .. math:: q(x) = \sum_k w_k\, N(x; \mu_k, S_k)

    The first component has the mean of training events and four times their Ledoit-Wolf covariance:
    far from them it ranks events by their Mahalanobis distance. Others are those of a Gaussian
    mixture, which fits few events better than a flow.

    They depend on no context but for the mask of missing values: in a blank, which is filled with
    noise of N(0, 1), they are N(0, 1) too, so that the density of the observed values is their
    marginal.

    Args:
        dim: D, the number of coordinates of an event.
        weight: See :class:`DefensiveComponent`.
        maskable: Coordinates that may be missing, in the order of the mask, with which the context
            starts.
        shares: w_k of the components, whose sum is 1.

    Example:
        >>> component = NormalComponents.fit(np.random.default_rng(0).normal(size=(100, 2)))
        >>> x = torch.tensor([[0.0, 0.0], [1e3, 0.0], [2e3, 0.0]])
        >>> component.mix(torch.tensor([-1.0, -torch.inf, torch.nan]), x).diff() < 0
        tensor([True, True])
    """

    means: Tensor
    scales: Tensor

    def __init__(
        self,
        dim: int,
        weight: float,
        maskable: Sequence[int] = (),
        shares: Sequence[float] = (1.0,),
    ):
        super().__init__(weight)
        self.dim, self.maskable = dim, list(maskable)
        self.shares = list(shares)
        self.register_buffer("means", torch.zeros(len(self.shares), dim))
        self.register_buffer("scales", torch.eye(dim).repeat(len(self.shares), 1, 1))

    @classmethod
    def fit(
        cls, events: np.ndarray, weight: float = 0.01, maskable: Sequence[int] = ()
    ) -> "NormalComponents":
        """Fit the wide component to training events (N, D), of which the first are used."""
        from sklearn.covariance import ledoit_wolf  # loads slowly

        x = np.asarray(events[:MAX_EVENTS], np.float64)
        covariance = WIDENING * ledoit_wolf(x)[0] + SMALLEST * np.eye(x.shape[1])
        return cls(x.shape[1], weight, maskable).set(x.mean(0)[None], covariance[None])

    def set(self, means: np.ndarray, covariances: np.ndarray) -> "NormalComponents":
        """Set means (K, D) and covariances (K, D, D); returns the component."""
        self.means.copy_(torch.from_numpy(means))
        self.scales.copy_(torch.linalg.cholesky(torch.from_numpy(covariances)))
        return self

    def log_prob(self, x: Tensor, context: Context | None = None) -> Tensor:
        """See :class:`DefensiveComponent`."""
        x, blank = x.double(), None
        if self.maskable and context is not None and context.values is not None:
            blank = torch.zeros_like(x, dtype=torch.bool)
            blank[:, self.maskable] = context.values[:, : len(self.maskable)] > 0.5
        means, scales = self.means.double(), self.scales.double()
        z = torch.linalg.solve_triangular(scales, x.T - means[:, :, None], upper=False)
        log_probs = _standard_normal(z) - _log_det(scales)[:, None]
        if blank is not None and (rows := blank.any(1).nonzero()[:, 0]).numel():
            chunks = rows.split(max(1, MATRIX_ELEMENTS // self.dim**2))
            for number, normal in enumerate(zip(means, scales, strict=True)):
                marginal = [_marginal(x[chunk], blank[chunk], *normal) for chunk in chunks]
                log_probs[number, rows] = torch.cat(marginal)
        log_shares = x.new_tensor(self.shares).log()
        return (log_shares[:, None] + log_probs).logsumexp(0)

    def draw(self, like: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
        """See :class:`DefensiveComponent`."""
        noise = torch.randn(like.shape, generator=generator, dtype=self.means.dtype).to(like)
        shares = torch.tensor(self.shares)
        kinds = torch.multinomial(shares, len(like), True, generator=generator).to(like.device)
        deviations = (self.scales[kinds] @ noise[:, :, None])[:, :, 0]
        return self.means[kinds] + temperature * deviations


def build_component(**arguments: Any) -> DefensiveComponent:
    """Build a component from the arguments of its constructor, as model files have them."""
    return (NormalComponents if "dim" in arguments else UniformComponent)(**arguments)


def _marginal(x: Tensor, blank: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Log-density of rows whose blanks are independent N(0, 1), (rows,)."""
    observed = ~blank[:, :, None] & ~blank[:, None, :]
    identity = torch.eye(len(mean), dtype=x.dtype, device=x.device)
    scales = torch.linalg.cholesky(torch.where(observed, scale @ scale.T, identity))
    offsets = x - mean.where(~blank, 0.0)
    z = torch.linalg.solve_triangular(scales, offsets[:, :, None], upper=False)
    return _standard_normal(z)[:, 0] - _log_det(scales)


def _standard_normal(z: Tensor) -> Tensor:
    """Log-density of columns (..., D, n), (..., n)."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-2)


def _log_det(scales: Tensor) -> Tensor:
    return scales.diagonal(dim1=-2, dim2=-1).log().sum(-1)
