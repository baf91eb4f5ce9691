"""Gaussianization flows (Meng et al. 2020) on vectors: rotations and one-dimensional maps."""

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from submanifold.flows.bijection import Bijection, Compose, Flow, full_precision

ITERATIONS = 24
LEAST_LOG = -700.0  # of a share, in double precision


class Reflections(Bijection):
    r"""A learned orthogonal matrix, the product of Householder reflections.

    .. math:: z = H_n \cdots H_1 x, \qquad H_i = I - 2\, v_i v_i^T / |v_i|^2

    (Meng et al. 2020), with log-determinant 0. It starts at random.

    Args:
        dim: Number of coordinates.
        count: n; with as many as coordinates it can be any reflection or, one fewer, rotation.
    """

    def __init__(self, dim: int, count: int):
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(count, dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Turn (batch, dim)."""
        return self._reflect(x, self.vectors), x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        """Turn back."""
        return self._reflect(z, self.vectors.flip(0))

    def _reflect(self, x: Tensor, vectors: Tensor) -> Tensor:
        with full_precision(x):
            for v in F.normalize(vectors, dim=1):
                x = x - 2 * (x @ v)[:, None] * v
            return x


class MixtureOfLogistics(Bijection):
    r"""Each coordinate on its own made normal, as if it had a mixture of logistic densities.

    .. math:: z_i = \Phi^{-1}(F_i(x_i)), \qquad
              F_i(t) = \sum_k \pi_{ik}\, \sigma\!\left(\frac{t - \mu_{ik}}{s_{ik}}\right)

    with the normal distribution function :math:`\Phi` (Meng et al. 2020). The
    log-determinant is that of the densities, :math:`\sum_i \log F_i'(x_i) - \log\phi(z_i)`. The
    inverse is found by Newton's method on the log-odds between the quantiles of the components, of
    which one lies on either side, and differentiated as an implicit function, once.

    It starts near the identity; :func:`initialize` sets it from data, with a component around each
    of as many quantiles.

    Args:
        dim: Number of coordinates.
        components: Logistics in each mixture.
    """

    def __init__(self, dim: int, components: int):
        super().__init__()
        spread = torch.linspace(-1.0, 1.0, components) if components > 1 else torch.zeros(1)
        self.means = nn.Parameter(spread.repeat(dim, 1))
        self.log_scales = nn.Parameter(torch.full((dim, components), -0.75))
        self.logits = nn.Parameter(torch.zeros(dim, components))
        self.pending = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Make (batch, dim) normal."""
        if self.pending:
            self.fit(x)
        with full_precision(x):
            below, above, log_density = self._shares(x.double())
            half = torch.minimum(below, above).clamp_min(LEAST_LOG)
            z = torch.special.ndtri(half.exp()) * torch.where(below < above, 1.0, -1.0)
            log_det = log_density + 0.5 * (z.square() + torch.log(2 * z.new_tensor(torch.pi)))
            return z.to(x.dtype), log_det.sum(1).to(x.dtype)

    def inverse(self, z: Tensor) -> Tensor:
        """Find the quantiles of normal (batch, dim)."""
        with full_precision(z):
            normal = z.double()
            odds = torch.special.log_ndtr(normal) - torch.special.log_ndtr(-normal)
            x, slope = self._quantiles(odds.detach())
            below, above, _ = self._shares(x)
            return (x + (odds - (below - above)) / slope).to(z.dtype)

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Set the mixtures from a batch: equal weights, means at quantiles, scales between them."""
        count = self.means.shape[1]
        shares = (torch.arange(count, device=x.device) + 0.5) / count
        means = torch.quantile(x.double(), shares.double(), dim=0).T
        spread = x.double().std(0, correction=0).clamp_min(1e-6)[:, None]
        gaps = means.diff(dim=1)
        # the smaller gap of two, for a larger one may be a hole of the density
        near = torch.minimum(F.pad(gaps, (1, 0), value=torch.inf),
                             F.pad(gaps, (0, 1), value=torch.inf)).minimum(spread)  # fmt: skip
        self.means.copy_(means)
        self.log_scales.copy_(torch.maximum(0.7 * near, 0.2 * spread / count).log())
        self.logits.zero_()
        self.pending = False

    def _shares(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logs of the shares of the mixtures below and above x, and of their densities at x."""
        weights = self.logits.double().log_softmax(1)
        log_scales = self.log_scales.double()
        y = (x[:, :, None] - self.means.double()) * (-log_scales).exp()
        low, high = weights + F.logsigmoid(y), weights + F.logsigmoid(-y)
        density = low + F.logsigmoid(-y) - log_scales
        return low.logsumexp(2), high.logsumexp(2), density.logsumexp(2)

    @torch.no_grad()
    def _quantiles(self, odds: Tensor) -> tuple[Tensor, Tensor]:
        """Where the mixtures have these log-odds, and the slope of the log-odds there."""
        of_each = self.means.double() + self.log_scales.double().exp() * odds[:, :, None]
        low, high = of_each.amin(2), of_each.amax(2)
        x = 0.5 * (low + high)
        slope = torch.ones_like(x)
        for _ in range(ITERATIONS):
            below, above, log_density = self._shares(x)
            missed = below - above - odds
            low, high = torch.where(missed < 0, x, low), torch.where(missed > 0, x, high)
            slope = (log_density - below - above).exp()
            step = x - missed / slope
            inside = (step >= low) & (step <= high)
            x = torch.where(inside, step, 0.5 * (low + high))
        return x, slope


class Gaussianization(Compose, Flow):
    """Layers that turn the axes and make each coordinate normal, until all of x is.

    Each layer brings a density nearer to the normal one (Chen & Gopinath 2000), so that layers set
    from data one after the other are a density before any training; then all are trained together
    (Meng et al. 2020).

    Args:
        dim: Number of coordinates.
        layers: Pairs of :class:`Reflections` and :class:`MixtureOfLogistics`.
        components: Logistics in each mixture.
        reflections: Of each orthogonal matrix; as many as coordinates when None.

    Example:
        >>> flow = Gaussianization(3, layers=2)
        >>> z, log_det = flow(torch.randn(5, 3))
        >>> z.shape, log_det.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    axes = (1,)

    def __init__(
        self,
        dim: int,
        layers: PositiveInt = 6,
        components: PositiveInt = 8,
        reflections: PositiveInt | None = None,
    ):
        made: list[Bijection] = []
        for _ in range(layers):
            made += [Reflections(dim, reflections or dim), MixtureOfLogistics(dim, components)]
        super().__init__(made)
        self.event_shape = (dim,)
        self.config = {"dim": dim, "layers": layers, "components": components,
                       "reflections": reflections}  # fmt: skip
