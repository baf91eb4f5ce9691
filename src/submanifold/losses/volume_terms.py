"""Terms of a loss that are about the manifold's own volume and metric, J^T J."""

import math
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from submanifold.common.linalg import conjugate_gradients
from submanifold.common.settings import Settings
from submanifold.flows.bijection import full_precision
from submanifold.geometry.linearization import Linearization, jacobian
from submanifold.geometry.volume import jacobian_log_volume
from submanifold.models.stage import standard_normal_log_prob

if TYPE_CHECKING:
    from submanifold.losses.objective import ForwardPass

CG_ITERATIONS = 100
CG_TOLERANCE = 1e-3


def volume_gradient(batch: "ForwardPass") -> Tensor:
    r"""A number for each event whose gradient is, on average, that of the log-volume.

    .. math:: \nabla \tfrac12 \log\det A = \tfrac12 \operatorname{E}_\epsilon
              \big[(A^{-1}\epsilon)^T (\nabla A)\, \epsilon\big], \qquad A = J^T J,\;
              \epsilon \sim N(0, I)

    with :math:`A^{-1}\epsilon` by conjugate gradients (Caterini et al. 2021).

    Returns:
        Zeros (batch,).
    """
    u = batch.u
    if not torch.is_grad_enabled():  # validation has no use for it
        return u.new_zeros(len(u))
    noise = batch.draw(lambda count: torch.randn(
        count, u.shape[1], generator=batch.generator, device=u.device, dtype=u.dtype
    ))  # fmt: skip
    with full_precision(u):
        at = Linearization(batch.decode, u)
        solved = conjugate_gradients(at.jvp, at.vjp, noise, CG_ITERATIONS, CG_TOLERANCE)
    pushed = jacobian(batch.decode, u, torch.stack([solved, noise], 1))
    product = 0.5 * (pushed[:, :, 0] * pushed[:, :, 1]).sum(1)
    return product - product.detach()


class _OfVolume(Settings):
    """What these terms have in common.

    Attributes:
        weight: Its weight; 0 leaves it out.
        exact_up_to: Largest dimension d at which the whole Jacobian is computed; above, gradients
            are estimated.
    """

    weight: float = Field(default=0.0, ge=0)
    exact_up_to: int = Field(default=64, ge=1)

    def _is_exact(self, batch: "ForwardPass") -> bool:
        return batch.u.shape[1] <= self.exact_up_to

    def _columns(self, batch: "ForwardPass") -> Tensor:
        """The whole Jacobian, or so many random columns of it, (batch, D, k)."""
        if self._is_exact(batch):
            return jacobian(batch.decode, batch.u)
        return jacobian(batch.decode, batch.u, _axes(batch, self.exact_up_to))


class ManifoldLikelihood(_OfVolume):
    r"""Negative log-density on the manifold, of rectangular flows (Caterini et al. 2021).

    .. math:: -\log p_M = -\log N(u; 0, I) + \tfrac12 \log\det J^T J

    in bits for each dimension of the manifold. Where the volume is not exact its gradient is
    (:func:`volume_gradient`), and the value of the term leaves it out.
    """

    def __call__(self, batch: "ForwardPass") -> Tensor:
        """Mean over the batch."""
        if self._is_exact(batch):
            volume = jacobian_log_volume(jacobian(batch.decode, batch.u))
        else:
            volume = volume_gradient(batch)
        nats = volume - standard_normal_log_prob(batch.u)
        return nats.mean() / (batch.u.shape[1] * math.log(2))


class NonOrthogonality(_OfVolume):
    r"""How far the metric is from a diagonal one (Cunningham et al. 2022).

    .. math:: \tfrac12 \sum_i \log (J^T J)_{ii} - \tfrac12 \log\det J^T J \;\ge\; 0

    and 0 where the columns of J are orthogonal (Hadamard's inequality): the sum, over coordinates,
    of the mutual information between them and the rest, in bits for each. Above ``exact_up_to`` the
    first sum is over so many random coordinates, and the value of the term leaves the volume out.
    """

    def __call__(self, batch: "ForwardPass") -> Tensor:
        """Mean over the batch."""
        some = self._columns(batch)
        volume = jacobian_log_volume(some) if self._is_exact(batch) else volume_gradient(batch)
        each = 0.5 * some.square().sum(1).log().mean(1)
        return (each - volume / batch.u.shape[1]).mean() / math.log(2)


class OffDiagonal(_OfVolume):
    r"""Mean size of the metric's off-diagonal entries (Flouris & Konukoglu 2023).

    .. math:: \frac{1}{d (d - 1)} \sum_{i \ne j} |(J^T J)_{ij}|

    Its minimum has coordinates that meet at right angles, as few of them as are needed. Above
    ``exact_up_to`` the mean is over so many random coordinates.
    """

    def __call__(self, batch: "ForwardPass") -> Tensor:
        """Mean over the batch."""
        some = self._columns(batch)
        metric = some.mT @ some
        count = metric.shape[1]
        off = metric.abs().sum((1, 2)) - metric.diagonal(dim1=1, dim2=2).abs().sum(1)
        return off.mean() / max(1, count * (count - 1))


def _axes(batch: "ForwardPass", count: int) -> Tensor:
    """Some coordinate axes, other ones for each event, (batch, count, d)."""
    u = batch.u
    drawn = batch.draw(lambda rows: torch.rand(
        rows, u.shape[1], generator=batch.generator, device=u.device
    ))  # fmt: skip
    chosen = drawn.argsort(1)[:, :count]
    return torch.nn.functional.one_hot(chosen, u.shape[1])
