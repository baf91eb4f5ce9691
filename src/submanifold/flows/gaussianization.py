"""Gaussianization flows (Meng et al. 2020) on vectors."""

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from submanifold.flows.bijection import Bijection, Compose, DataInitialized, Flow, full_precision
from submanifold.flows.conditional import ContextAffine
from submanifold.flows.context import Context
from submanifold.flows.orthogonal import Reflections

NEWTON_STEPS = 24
MIN_LOG_CDF = -700.0  # smaller probabilities underflow in double precision


class MixtureOfLogistics(DataInitialized, Bijection):
    r"""Gaussianization of each coordinate by the distribution function of a logistic mixture.

    .. math:: z_i = \Phi^{-1}(F_i(x_i)), \qquad
              F_i(t) = \sum_k \pi_{ik}\, \sigma\!\left(\frac{t - \mu_{ik}}{s_{ik}}\right)

    :math:`\Phi` is the standard normal distribution function (Meng et al. 2020). The inverse is
    computed by safeguarded Newton steps on the log-odds, between the smallest and the largest of
    the components' quantiles; its first derivatives are those of the implicit function.

    It starts near the identity. Data-dependent initialization centres the components at quantiles.
    """

    def __init__(self, dim: int, components: int):
        super().__init__()
        means = torch.linspace(-1.0, 1.0, components) if components > 1 else torch.zeros(1)
        self.means = nn.Parameter(means.repeat(dim, 1))
        self.log_scales = nn.Parameter(torch.full((dim, components), -0.75))
        self.logits = nn.Parameter(torch.zeros(dim, components))

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        with full_precision(x):
            log_cdf, log_sf, log_density = self._distribution(x.double())
            smaller = torch.minimum(log_cdf, log_sf).clamp_min(MIN_LOG_CDF)
            z = torch.special.ndtri(smaller.exp()) * torch.where(log_cdf < log_sf, 1.0, -1.0)
            log_det = log_density + 0.5 * (z.square() + torch.log(2 * z.new_tensor(torch.pi)))
            return z.to(x.dtype), log_det.sum(1).to(x.dtype)

    def inverse(self, z: Tensor, context: Context | None = None) -> Tensor:
        with full_precision(z):
            normal = z.double()
            log_odds = torch.special.log_ndtr(normal) - torch.special.log_ndtr(-normal)
            x, slope = self._quantiles(log_odds.detach())
            log_cdf, log_sf, _ = self._distribution(x)
            return (x + (log_odds - (log_cdf - log_sf)) / slope).to(z.dtype)

    def initialize_from(self, x: Tensor) -> None:
        count = self.means.shape[1]
        probabilities = (torch.arange(count, device=x.device) + 0.5) / count
        means = torch.quantile(x.double(), probabilities.double(), dim=0).T
        std = x.double().std(0, correction=0).clamp_min(1e-6)[:, None]
        gaps = means.diff(dim=1)
        # the smaller of two gaps: the larger one may be a region of low density
        gaps = torch.minimum(
            F.pad(gaps, (1, 0), value=torch.inf), F.pad(gaps, (0, 1), value=torch.inf)
        ).minimum(std)
        self.means.copy_(means)
        self.log_scales.copy_(torch.maximum(0.7 * gaps, 0.2 * std / count).log())
        self.logits.zero_()

    def _distribution(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logarithms of distribution function, survival function and density, each (batch, dim)."""
        weights = self.logits.double().log_softmax(1)
        log_scales = self.log_scales.double()
        y = (x[:, :, None] - self.means.double()) * (-log_scales).exp()
        log_cdfs, log_sfs = weights + F.logsigmoid(y), weights + F.logsigmoid(-y)
        log_densities = log_cdfs + F.logsigmoid(-y) - log_scales
        return log_cdfs.logsumexp(2), log_sfs.logsumexp(2), log_densities.logsumexp(2)

    @torch.no_grad()
    def _quantiles(self, log_odds: Tensor) -> tuple[Tensor, Tensor]:
        """Quantiles at the log-odds, and the derivative of the log-odds there."""
        quantiles = self.means.double() + self.log_scales.double().exp() * log_odds[:, :, None]
        low, high = quantiles.amin(2), quantiles.amax(2)
        x = 0.5 * (low + high)
        slope = torch.ones_like(x)
        for _ in range(NEWTON_STEPS):
            log_cdf, log_sf, log_density = self._distribution(x)
            residual = log_cdf - log_sf - log_odds
            low, high = torch.where(residual < 0, x, low), torch.where(residual > 0, x, high)
            slope = (log_density - log_cdf - log_sf).exp()
            step = x - residual / slope
            x = torch.where((step >= low) & (step <= high), step, 0.5 * (low + high))
        return x, slope


class Gaussianization(Compose, Flow):
    """Layers of an orthogonal map and a Gaussianization of each coordinate.

    Each layer brings the density nearer to N(0, I) (Chen & Gopinath 2000), so that data-dependent
    initialization already fits a density (Meng et al. 2020).

    Args:
        dim: Number of coordinates.
        layers: Pairs of :class:`Reflections` and :class:`MixtureOfLogistics`.
        components: Components of each mixture.
        reflections: Reflections of each orthogonal map; None is ``dim``.

    Example:
        >>> flow = Gaussianization(3, layers=2)
        >>> z, log_det = flow(torch.randn(5, 3))
        >>> z.shape, log_det.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    axes = (1,)

    def add_context(self, size: int) -> None:
        """Scale and shift the coordinates before each mixture (:meth:`.Flow.add_context`)."""
        (dim,) = self.event_shape
        self.bijections = nn.ModuleList(  # type: ignore[assignment]
            layer
            for pair in zip(self.bijections[::2], self.bijections[1::2], strict=True)
            for layer in (pair[0], ContextAffine(dim, size), pair[1])
        )

    def __init__(
        self,
        dim: int,
        layers: PositiveInt = 6,
        components: PositiveInt = 8,
        reflections: PositiveInt | None = None,
    ):
        super().__init__(
            layer
            for _ in range(layers)
            for layer in (Reflections(dim, reflections or dim), MixtureOfLogistics(dim, components))
        )
        self.event_shape = (dim,)
