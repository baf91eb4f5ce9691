r"""The posterior of events, given observations of them: its mode and samples.

In latents z with the density N(0, I), which a decoder g maps to events, the negative log-density of
the posterior given :math:`y = A(x) + \sigma \epsilon` is, up to a constant,

.. math:: U(z) = \frac{|A(g(z)) - y|^2}{2 \sigma^2} + \frac{|z|^2}{2}

without a determinant: decoded samples of z are samples of the posterior of x.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from submanifold.geometry.linearization import Linearization, jvp
from submanifold.inverse.latents import Latents
from submanifold.inverse.linear import GaussianPosterior

GAUSS_NEWTON_STEPS, CG_STEPS, HALVINGS = 12, 10, 4
SMALLEST_DECREASE = 0.005
"""Relative decrease of U below which the search for the mode ends."""
LARGEST_CURVATURE = 1e8
PROBES, BLOCK = 8, 32
"""Random probes of an estimate of the metric, and neighboring coordinates that share a scale."""
ESTIMATES = 3
"""Number of estimates of the metric that are averaged."""
COARSE_NOISE = 0.04
"""Noise from which on the mode is not used, and samples are drawn in latents.

With much noise the mode in latents is a worse restoration than the linear estimate. With little
noise a sampler in images is faster (docs/evidence/restore.md).
"""


class Posterior:
    """The posterior of a batch of events in latents z (batch, n).

    All functions of z accept k copies of the batch, one after the other, (k * batch, n).

    Args:
        latents: Latents of the model.
        operator: The operator A.
        y: Observations, (batch, ...).
        noise: Standard deviation of their noise.
        generator: Generator on the CPU.
    """

    def __init__(
        self,
        latents: Latents,
        operator: Callable[[Tensor], Tensor],
        y: Tensor,
        noise: float,
        generator: torch.Generator | None = None,
    ) -> None:
        self.latents, self.operator, self.noise = latents, operator, noise
        self.y, self.generator = y.flatten(1), generator
        self._estimates: list[Tensor] = []

    def decode(self, z: Tensor) -> Tensor:
        """Compute g(z), (batch, ...)."""
        return self.latents.decode(z)

    def observe(self, z: Tensor) -> Tensor:
        """Compute A(g(z)), (batch, m)."""
        return self.operator(self.latents.decode(z)).flatten(1)

    @torch.no_grad()
    def energy(self, z: Tensor) -> Tensor:
        """Compute U(z), (batch,), infinite where it is not finite."""
        residual = self._residual(self.observe(z))
        return ((residual.square().sum(1) + z.square().sum(1)) / 2).nan_to_num(nan=torch.inf)

    def gradient(self, z: Tensor) -> Tensor:
        """Compute the gradient of U, (batch, n)."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            residual = self._residual(self.observe(z))
            (gradient,) = torch.autograd.grad(residual.square().sum() / 2, z)
        return (gradient + z).detach().nan_to_num(0.0, 0.0, 0.0)

    def curvature(self, z: Tensor) -> Tensor:
        r"""Estimate the diagonal of :math:`J^T A^T A J / \sigma^2` by random probes, (batch, n)."""
        at, squares = Linearization(self.observe, z), torch.zeros_like(z)
        for _ in range(PROBES):
            product = at.vjp(self.draw(at.image.shape))
            squares += product.square().nan_to_num(0.0, 0.0).clamp_max(LARGEST_CURVATURE)
        return squares / (PROBES * self.noise**2)

    def metric(self, z: Tensor) -> "DiagonalMetric":
        """Return the inverse of the mean of the curvature at z and of up to two estimates before.

        The events of a batch share the relative curvature of blocks of coordinates, so that samples
        depend slightly on the other events.
        """
        curvature = self.curvature(z).view(-1, len(self.y), z.shape[1])
        self._estimates = [*self._estimates, curvature.mean(0)][-ESTIMATES:]
        precision = _smooth(torch.stack(self._estimates).mean(0))
        return DiagonalMetric(precision.repeat(len(curvature), 1), self.generator)

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """Draw standard normal numbers."""
        return _draw(shape, self.generator, self.y)

    def _residual(self, observed: Tensor) -> Tensor:
        """Compute y - A(g(z)) in units of the noise, (k * batch, m)."""
        return (self.y.repeat(len(observed) // len(self.y), 1) - observed) / self.noise

    @torch.no_grad()
    def mode(self, z: Tensor) -> Tensor:
        """Reduce U by Gauss-Newton steps, each by preconditioned conjugate gradients.

        A step is halved, at most four times, until U decreases.
        """
        energy = self.energy(z)
        moving = torch.ones_like(energy, dtype=torch.bool)
        for _ in range(GAUSS_NEWTON_STEPS):
            step, start, previous = self._gauss_newton_step(z), z, energy
            for _ in range(1 + HALVINGS):
                tried = start + step
                tried_energy = self.energy(tried)
                better = moving & (tried_energy < energy)
                z = torch.where(better[:, None], tried, z)
                energy = torch.where(better, tried_energy, energy)
                searching = moving & (energy >= previous)
                step = torch.where(searching[:, None], step / 2, 0.0)
                if not searching.any():
                    break
            moving = moving & (energy < (1 - SMALLEST_DECREASE) * previous)
            if not moving.any():
                break
        return z

    def _gauss_newton_step(self, z: Tensor) -> Tensor:
        """Solve (J^T A^T A J / sigma^2 + I) p = -grad U approximately."""
        at = Linearization(self.observe, z)
        right = at.vjp(self._residual(at.image) / self.noise) - z
        scale = 1 / _smooth(self.curvature(z))
        step, direction = torch.zeros_like(right), scale * right
        product = (right * direction).sum(1, keepdim=True)
        for _ in range(CG_STEPS):
            curved = at.vjp(at.jvp(direction)) / self.noise**2 + direction
            length = product / (direction * curved).sum(1, keepdim=True)
            step, right = step + length * direction, right - length * curved
            scaled = scale * right
            new = (right * scaled).sum(1, keepdim=True)
            direction, product = scaled + new / product * direction, new
        return step.nan_to_num(0.0, 0.0, 0.0)


class DiagonalMetric:
    """A diagonal covariance of latents with given precisions (chains * batch, n)."""

    def __init__(self, precision: Tensor, generator: torch.Generator | None) -> None:
        self.precision, self.generator = precision, generator

    def draw(self, count: int) -> Tensor:
        """Draw velocities of the first chains, (count, n)."""
        shape = (count, self.precision.shape[1])
        return _draw(shape, self.generator, self.precision) / self.precision[:count].sqrt()

    def covariance_product(self, v: Tensor) -> Tensor:
        """Multiply v (chains * batch, n) by the covariance."""
        return v / self.precision

    def precision_product(self, v: Tensor) -> Tensor:
        """Compute the squared norm of v, (chains * batch,)."""
        return (v.square() * self.precision).sum(1)


class EventPosterior:
    r"""The posterior in events x.

    Its energy, the negative log-density up to a constant, is

    .. math:: U(x) = \frac{|A(x) - y|^2}{2 \sigma^2} - \log p(x)

    With little noise it is sampled faster than that in latents: the first term, the stiff one, is
    quadratic for a linear operator, so that the posterior of a Gaussian is a good metric.

    Args:
        latents: Latents of a model with a density on all of space.
        operator: The operator A.
        y: Observations, (batch, ...).
        gaussian: The posterior of a Gaussian with this operator.
    """

    def __init__(
        self,
        latents: Latents,
        operator: Callable[[Tensor], Tensor],
        y: Tensor,
        gaussian: GaussianPosterior,
    ) -> None:
        self.latents, self.operator, self.gaussian = latents, operator, gaussian
        self.y, self.generator = y.flatten(1), gaussian.generator

    def decode(self, x: Tensor) -> Tensor:
        """Return x."""
        return x

    @torch.no_grad()
    def energy(self, x: Tensor) -> Tensor:
        """Compute U(x), (chains * batch,), infinite where it is not finite."""
        return self._energy(x).nan_to_num(nan=torch.inf)

    def gradient(self, x: Tensor) -> Tensor:
        """Compute the gradient of U, in the shape of x."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self._energy(x).sum(), x)
        return gradient.nan_to_num(0.0, 0.0, 0.0)

    def metric(self, x: Tensor) -> GaussianPosterior:
        """Return the posterior of the Gaussian."""
        return self.gaussian

    def _energy(self, x: Tensor) -> Tensor:
        observed = self.operator(x).flatten(1)
        y = self.y.repeat(len(observed) // len(self.y), 1)
        residual = (y - observed) / self.gaussian.noise
        return residual.square().sum(1) / 2 - self.latents.log_prob(x)  # type: ignore[misc]


def is_affine(operator: Callable[[Tensor], Tensor], like: Tensor) -> bool:
    """Return whether an operator on events like those given, (1, ...), is affine."""
    first, second = _draw((2, *like.shape), torch.Generator().manual_seed(0), like)
    mean = operator((first + second) / 2)
    return torch.allclose(mean, (operator(first) + operator(second)) / 2, rtol=1e-3, atol=1e-4)


def has_forward_mode(operator: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Return whether an operator has derivatives by forward mode, which the mode needs."""
    try:
        jvp(operator, x, torch.zeros_like(x))
    except (NotImplementedError, RuntimeError):
        return False
    return True


def _smooth(curvature: Tensor) -> Tensor:
    """Smooth estimates (batch, n) of the curvature, and add that of the prior, 1.

    They become the mean of the batch times scales of blocks.
    """
    pooled = curvature.mean(0).clamp_min(1e-12)
    blocks = (curvature / pooled).split(BLOCK, 1)
    scales = [each.mean(1, keepdim=True).expand_as(each) for each in blocks]
    return 1 + pooled * torch.cat(scales, 1)


def _draw(shape: tuple[int, ...], generator: torch.Generator | None, like: Tensor) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=like.dtype).to(like.device)
