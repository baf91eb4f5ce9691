r"""The posterior of events, given observations of them: its mode, and what samples of it need.

In latents z with the density N(0, I), which a decoder g maps to events, the negative log-density of
the posterior given :math:`y = A(x) + \sigma \epsilon` is, up to a constant,

.. math:: U(z) = \frac{|A(g(z)) - y|^2}{2 \sigma^2} + \frac{|z|^2}{2}

without a determinant: decoded samples of z are samples of the posterior of x.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from submanifold.common.errors import UserError, unexpected
from submanifold.evaluation.gaussian import Gaussian
from submanifold.geometry.linearization import Linearization, jvp
from submanifold.geometry.solvers import conjugate_gradients, damped_steps
from submanifold.inverse.operators import Operator
from submanifold.models import Hierarchy, Model

GAUSS_NEWTON_STEPS, CG_STEPS = 12, 10
SMALLEST_DECREASE = 0.005  # relative, of U, below which the search for the mode ends
LARGEST_CURVATURE = 1e8
PROBES, ESTIMATES = 8, 3  # random probes of an estimate of the metric, and estimates in a mean
BLOCK = 32  # neighboring coordinates that share a scale


@dataclass(frozen=True)
class Latents:
    """Coordinates z (batch, dim) of events x, with the density N(0, I)."""

    dim: int
    decode: Callable[[Tensor], Tensor]  # from z to x, pixels in [0, 1] of images, or vectors
    encode: Callable[[Tensor], Tensor]  # its inverse, or the encoder of a manifold
    log_prob: Callable[[Tensor], Tensor] | None = None  # of x; None on a manifold
    gaussian: Gaussian | None = None  # of x, with the covariance of the training data


def latents_of(model: Model, dim: int | None = None, context: Tensor | None = None) -> Latents:
    """Return the latents of a model, before the flow on the coordinates if there is one.

    With ``dim``, they are the coordinates of the manifold; otherwise those of all of space. All
    events have one context (1, ...).
    """
    if not isinstance(model, Hierarchy):
        raise UserError(f"model: expected a hierarchy, got a {model.kind}. Train with charts=1.")
    manifold = Hierarchy(model.stages[: model.manifold_stage])
    shift = 0.5 if len(model.event_shape) == 3 else 0.0
    context = None if context is None else context.to(next(model.parameters()).device)

    def rows(x: Tensor) -> Tensor | None:
        return None if context is None else context.repeat_interleave(len(x), 0)

    if dim is not None:
        at = manifold.at_dim(dim)
        return Latents(
            dim,
            lambda z: at.decode(z, context=rows(z)) + shift,
            lambda x: at.encode(x - shift, context=rows(x))[0],
        )
    if not model.has_density:
        expected = "the dimension of the manifold for a model without a density on all of space"
        raise unexpected("dim", expected, "None", f"Use dim={model.dim}")
    gaussian = None
    if model.gaussian:
        gaussian = Gaussian.from_tensors(model.gaussian)
        gaussian = replace(gaussian, mean=gaussian.mean + shift).to(next(model.parameters()))
    scales = manifold.off_manifold_scales
    scale = torch.cat([scales.new_ones(manifold.dim), scales])

    def decode(z: Tensor) -> Tensor:
        u, v = (z * scale).tensor_split([manifold.dim], 1)
        return manifold.decode(u, v, rows(z)) + shift

    return Latents(
        len(scale),
        decode,
        lambda x: torch.cat(manifold.encode(x - shift, context=rows(x)), 1) / scale,
        lambda x: manifold.log_prob(x - shift, rows(x)),
        gaussian,
    )


@dataclass(eq=False)
class Posterior:
    r"""The posterior of a batch of events, in latents z (batch, n), or in the events themselves.

    With ``gaussian``, the posterior of a Gaussian, it is in events, with the energy
    :math:`|A(x) - y|^2 / 2 \sigma^2 - \log p(x)`. With little noise it is sampled faster than that
    in latents: the first term, the stiff one, is quadratic for a linear operator, so that the
    Gaussian's posterior is a good metric.

    All functions accept k copies of the batch of observations y (batch, m), one after the other.
    The generator is on the CPU.
    """

    latents: Latents
    operator: Operator
    y: Tensor
    noise: float
    generator: torch.Generator | None = None
    gaussian: Any = None
    _estimates: list[Tensor] = field(default_factory=list)

    def decode(self, z: Tensor) -> Tensor:
        """Return events, (batch, ...)."""
        return self.latents.decode(z) if self.gaussian is None else z

    def observe(self, z: Tensor) -> Tensor:
        """Compute A(g(z)), (batch, m)."""
        return self.operator(self.decode(z)).flatten(1)

    def energy(self, z: Tensor) -> Tensor:
        """Compute U, (batch,), infinite where it is not finite."""
        return self._energy(z).nan_to_num(nan=torch.inf)

    def gradient(self, z: Tensor) -> Tensor:
        """Compute the gradient of U, in the shape of z."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self._energy(z).sum(), z)
        return gradient.nan_to_num(0.0, 0.0, 0.0)

    def metric(self, z: Tensor) -> Any:
        """Return the Gaussian's posterior, or a diagonal metric of chains that are at z.

        The latter averages the curvature at z and up to two estimates before. The events of a batch
        share the relative curvature of blocks, so samples depend slightly on the other events.
        """
        if self.gaussian is not None:
            return self.gaussian
        curvature = self.curvature(z).view(-1, len(self.y), z.shape[1])
        self._estimates = [*self._estimates, curvature.mean(0)][-ESTIMATES:]
        precision = _smooth(torch.stack(self._estimates).mean(0))
        return _DiagonalMetric(precision.repeat(len(curvature), 1), self.generator)

    def curvature(self, z: Tensor) -> Tensor:
        r"""Estimate the diagonal of :math:`J^T A^T A J / \sigma^2` by random probes, (batch, n)."""
        at, squares = Linearization(self.observe, z), torch.zeros_like(z)
        for _ in range(PROBES):
            product = at.vjp(draw_normal(at.image.shape, self.generator, self.y))
            squares += product.square().nan_to_num(0.0, 0.0).clamp_max(LARGEST_CURVATURE)
        return squares / (PROBES * self.noise**2)

    def mode(self, z: Tensor) -> Tensor:
        """Reduce U by Gauss-Newton steps, which are halved up to four times until U decreases."""
        step = self._gauss_newton_step
        return damped_steps(self.energy, step, z, GAUSS_NEWTON_STEPS, SMALLEST_DECREASE)

    def _gauss_newton_step(self, z: Tensor) -> Tensor:
        """Solve (J^T A^T A J / sigma^2 + I) p = -grad U by preconditioned conjugate gradients."""
        at = Linearization(self.observe, z)
        right = at.vjp(self._residual(at.image) / self.noise) - z
        scale = 1 / _smooth(self.curvature(z))

        def multiply(p: Tensor) -> Tensor:
            return at.vjp(at.jvp(p)) / self.noise**2 + p

        return conjugate_gradients(multiply, right, scale, CG_STEPS).nan_to_num(0.0, 0.0, 0.0)

    def _residual(self, observed: Tensor) -> Tensor:
        """Compute y - A(g(z)) in units of the noise, (k * batch, m)."""
        return (self.y.repeat(len(observed) // len(self.y), 1) - observed) / self.noise

    def _energy(self, z: Tensor) -> Tensor:
        squares = self._residual(self.observe(z)).square().sum(1) / 2
        if self.gaussian is None:
            return squares + z.square().sum(1) / 2
        return squares - self.latents.log_prob(z)  # type: ignore[misc]


@dataclass(frozen=True)
class _DiagonalMetric:
    """A diagonal covariance of latents with precisions (chains * batch, n)."""

    precision: Tensor
    generator: torch.Generator | None

    def draw(self, count: int) -> Tensor:
        first = self.precision[:count]
        return draw_normal(first.shape, self.generator, first) / first.sqrt()

    def covariance_product(self, v: Tensor) -> Tensor:
        return v / self.precision

    def precision_product(self, v: Tensor) -> Tensor:
        return (v.square() * self.precision).sum(1)


def is_affine(operator: Operator, like: Tensor) -> bool:
    """Return whether an operator on events like those given, (1, ...), is affine."""
    first, second = draw_normal((2, *like.shape), torch.Generator().manual_seed(0), like)
    mean = operator((first + second) / 2)
    return torch.allclose(mean, (operator(first) + operator(second)) / 2, rtol=1e-3, atol=1e-4)


def has_forward_mode(operator: Operator, x: Tensor) -> bool:
    """Return whether an operator has derivatives by forward mode, which the mode needs."""
    try:
        jvp(operator, x, torch.zeros_like(x))
    except (NotImplementedError, RuntimeError):
        return False
    return True


def _smooth(curvature: Tensor) -> Tensor:
    """Replace curvatures (batch, n) by their mean times scales of blocks; add the prior's, 1."""
    pooled = curvature.mean(0).clamp_min(1e-12)
    blocks = (curvature / pooled).split(BLOCK, 1)
    scales = [block.mean(1, keepdim=True).expand_as(block) for block in blocks]
    return 1 + pooled * torch.cat(scales, 1)


def draw_normal(shape: tuple[int, ...], generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Draw standard normal numbers with the dtype and on the device of a tensor."""
    return torch.randn(shape, generator=generator, dtype=like.dtype).to(like.device)
