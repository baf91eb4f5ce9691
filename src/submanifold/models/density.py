"""The density on the manifold with respect to its own volume."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from submanifold.geometry.linearization import jacobian, select
from submanifold.geometry.volume import (
    POINTS_PER_DECODING,
    estimate_log_volume,
    jacobian_log_volume,
)
from submanifold.models.mixture import Mixture
from submanifold.models.model import Model


class ManifoldDensity(NamedTuple):
    r"""Density and metric of a manifold at the projections of events, each (batch,).

    Attributes:
        log_prob: Log-density with respect to the manifold's volume, in nats.
        error: Its standard error; 0 where it is exact.
        non_orthogonality: :math:`\tfrac12 \sum_i \log (J^T J)_{ii} - \tfrac12 \log\det J^T J`, in
            bits per coordinate: 0 where the columns of J are orthogonal (Cunningham et al. 2022).
            NaN where the volume is estimated.
    """

    log_prob: Tensor
    error: Tensor
    non_orthogonality: Tensor


@torch.no_grad()
def manifold_density(
    model: Model,
    x: Tensor,
    exact_up_to: int = 600,
    generator: torch.Generator | None = None,
    context: Tensor | None = None,
) -> ManifoldDensity:
    r"""Compute the log-density of the projection of x with respect to the manifold's volume.

    .. math:: \log p_M(g(u)) = \log p(u) - \tfrac12 \log\det J^T J, \qquad J = \partial g(u)

    It is the density of samples, with the decoder g and p(u) by :meth:`Model.code_log_prob`. It
    cannot be compared with :meth:`Model.log_prob`, nor between manifolds of different dimension,
    because it is per d-dimensional volume.

    Args:
        model: The model.
        x: Events, (batch, *event_shape).
        exact_up_to: Largest dimension d at which the volume is exact; it is estimated above.
        generator: Source of the estimate's probes, on the CPU.
        context: See :class:`Model`.
    """
    error, unknown = x.new_zeros(x.shape[0]), x.new_full(x.shape[:1], torch.nan)
    if isinstance(model, Mixture):
        return _on_charts(model, x, exact_up_to, generator, context)
    if model.dim == model.event_dim:  # the manifold is the entire space
        return ManifoldDensity(model.log_prob(x, context), error, unknown)
    u = model.encode(x, context=context)[0]
    log_prob = model.code_log_prob(u, context)
    if model.dim > exact_up_to:
        decode = select(model.decode, context)
        volume, error = estimate_log_volume(decode, u, generator=generator)
        return ManifoldDensity(log_prob - volume, error, unknown)
    columns = jacobian(model.decode, u, None, POINTS_PER_DECODING, context).double()
    volume = jacobian_log_volume(columns)
    excess = (columns.square().sum(1).log().sum(1) / 2 - volume) / (model.dim * math.log(2))
    return ManifoldDensity(log_prob - volume.to(u.dtype), error, excess.to(u.dtype))


def _on_charts(
    mixture: Mixture,
    x: Tensor,
    exact_up_to: int,
    generator: torch.Generator | None,
    context: Tensor | None,
) -> ManifoldDensity:
    r"""On the responsible chart k, :math:`\pi_k\, p_M^k(y) / r_k(y)` at y = g_k(u).

    See :meth:`Mixture.overlap`.
    """
    u = mixture.encode(x, context=context)[0]
    index = u[:, -1].long()
    density = ManifoldDensity(*(torch.full_like(x.flatten(1)[:, 0], torch.nan) for _ in range(3)))
    for k, chart in enumerate(mixture.charts):
        members = index == k
        if not members.any():
            continue
        of_members = None if context is None else context[members]
        on_chart = manifold_density(chart, x[members], exact_up_to, generator, of_members)
        for values, new in zip(density, on_chart, strict=True):
            values[members] = new
    return density._replace(log_prob=density.log_prob + mixture.overlap(u, context))
