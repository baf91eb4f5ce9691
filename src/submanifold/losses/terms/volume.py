"""Terms that depend on the volume element and the metric J^T J of the manifold."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from submanifold.flows.bijection import full_precision
from submanifold.geometry.linearization import Linearization
from submanifold.geometry.volume import estimate_log_volume, jacobian_log_volume
from submanifold.losses.forward_pass import ForwardPass
from submanifold.losses.terms.term import Term
from submanifold.models.stage import standard_normal_log_prob

CG_ITERATIONS = 100
CG_TOLERANCE = 1e-3
PROBES = 2  #: Probes of each event's volume in a validation, which averages over events.


class _VolumeTerm(Term):
    """A term of the Jacobian of the decoder.

    Attributes:
        exact_up_to: Largest dimension d for which the full Jacobian is computed; above it gradients
            are estimated, and validations estimate the volume.
    """

    about_volume: ClassVar[bool] = True

    exact_up_to: int = Field(default=64, ge=1)

    def _columns(self, batch: ForwardPass) -> Tensor:
        """All columns of the Jacobian, or ``exact_up_to`` random ones per event, (batch, D, k)."""
        dim = batch.u.shape[1]
        if dim <= self.exact_up_to:
            return batch.jacobian()
        chosen = batch.draw(torch.rand, dim).argsort(1)[:, : self.exact_up_to]
        return batch.jacobian(F.one_hot(chosen, dim))

    def _log_volume(self, batch: ForwardPass, jacobians: Tensor | None = None) -> Tensor:
        """Log-volume in nats, (batch,), or an estimate; in training zeros with its gradient."""
        if batch.u.shape[1] <= self.exact_up_to:
            return jacobian_log_volume(self._columns(batch) if jacobians is None else jacobians)
        if batch.training:
            return log_volume_gradient(batch)
        probes = torch.Generator().manual_seed(0)  # the same in all validations
        with full_precision(batch.u):
            return estimate_log_volume(batch.decode, batch.u, PROBES, generator=probes)[0]


class ManifoldLikelihood(_VolumeTerm):
    r"""Negative log-density on the manifold, of rectangular flows (Caterini et al. 2021).

    .. math:: -\log p_M = -\log N(u; 0, I) + \tfrac12 \log\det J^T J

    in bits per dimension of the manifold. Above ``exact_up_to`` values of training steps omit the
    volume, and validations estimate it (:func:`.estimate_log_volume`).
    """

    def __call__(self, batch: ForwardPass) -> Tensor:
        nats = self._log_volume(batch) - standard_normal_log_prob(batch.u)
        return nats.mean() / (batch.u.shape[1] * math.log(2))


class NonOrthogonality(_VolumeTerm):
    r"""How far the metric is from a diagonal one (Cunningham et al. 2022).

    .. math:: \tfrac12 \sum_i \log (J^T J)_{ii} - \tfrac12 \log\det J^T J \;\ge\; 0

    in bits per coordinate, 0 if and only if the columns of J are orthogonal (Hadamard). Above
    ``exact_up_to`` the first sum is over that many random coordinates, and the second term as in
    :class:`ManifoldLikelihood`.
    """

    def __call__(self, batch: ForwardPass) -> Tensor:
        jacobians = self._columns(batch)
        volume = self._log_volume(batch, jacobians)
        lengths = 0.5 * jacobians.square().sum(1).log().mean(1)
        return (lengths - volume / batch.u.shape[1]).mean() / math.log(2)


class OffDiagonal(_VolumeTerm):
    r"""Mean absolute off-diagonal entry of the metric (Flouris & Konukoglu 2023).

    .. math:: \frac{1}{d (d - 1)} \sum_{i \ne j} |(J^T J)_{ij}|

    Above ``exact_up_to`` the mean is over that many random coordinates.
    """

    def __call__(self, batch: ForwardPass) -> Tensor:
        jacobians = self._columns(batch)
        metric = jacobians.mT @ jacobians
        count = metric.shape[1]
        off = metric.abs().sum((1, 2)) - metric.diagonal(dim1=1, dim2=2).abs().sum(1)
        return off.mean() / max(1, count * (count - 1))


def log_volume_gradient(batch: ForwardPass) -> Tensor:
    r"""Zeros (batch,) whose gradient is an unbiased estimate of the log-volume's.

    .. math:: \nabla \tfrac12 \log\det A = \tfrac12 \operatorname{E}_\epsilon
              \big[(A^{-1}\epsilon)^T (\nabla A)\, \epsilon\big], \qquad A = J^T J,\;
              \epsilon \sim N(0, I)

    with :math:`A^{-1}\epsilon` by conjugate gradients (Caterini et al. 2021).
    """
    u = batch.u
    noise = batch.draw(torch.randn, u.shape[1], dtype=u.dtype)
    with full_precision(u):
        solved = conjugate_gradients(Linearization(batch.decode, u), noise)
    products = batch.jacobian(torch.stack([solved, noise], 1))
    product = 0.5 * (products[:, :, 0] * products[:, :, 1]).sum(1)
    return product - product.detach()


@torch.no_grad()
def conjugate_gradients(at: Linearization, b: Tensor) -> Tensor:
    """Solve J^T J x = b approximately, both (batch, d) (Nocedal & Wright 2006, algorithm 5.2).

    Each system of the batch has its own step lengths, and stops where the norm of its residual is
    below :data:`CG_TOLERANCE` times that of b.
    """
    x, residual, direction = torch.zeros_like(b), b, b
    squared_norm = b.square().sum(1, keepdim=True)
    converged = CG_TOLERANCE**2 * squared_norm
    tiny = torch.finfo(b.dtype).tiny
    for _ in range(min(CG_ITERATIONS, b.shape[1])):
        image = at.jvp(direction)
        curvature = image.flatten(1).square().sum(1, keepdim=True)
        step = squared_norm / curvature.clamp_min(tiny)
        step = torch.where(squared_norm > converged, step, 0.0)
        x = x + step * direction
        residual = residual - step * at.vjp(image)
        previous, squared_norm = squared_norm, residual.square().sum(1, keepdim=True)
        direction = residual + squared_norm / previous.clamp_min(tiny) * direction
    return x
