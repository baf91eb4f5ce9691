"""The density on the manifold with respect to its own volume."""

from typing import NamedTuple

import torch
from torch import Tensor

from submanifold.flows.context import ContextLike, as_context
from submanifold.geometry import volume as volumes
from submanifold.geometry.linearization import bind_context, jacobian
from submanifold.models.mixture import Mixture
from submanifold.models.model import Model


class ManifoldDensity(NamedTuple):
    r"""Density and metric of a manifold at the projections of events, each (batch,).

    Attributes:
        log_prob: Log-density with respect to the manifold's volume, in nats.
        error: Its standard error; 0 where it is exact.
        non_orthogonality: How far the metric is from a diagonal one, in bits per coordinate
            (:func:`.non_orthogonality`); NaN where the volume is estimated.
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
    context: ContextLike = None,
) -> ManifoldDensity:
    r"""Compute the log-density of the projection of x with respect to the manifold's volume.

    .. math:: \log p_M(g(u)) = \log p(u) - \tfrac12 \log\det J^T J, \qquad J = \partial g(u)

    It is the density of samples, with the decoder g and p(u) by :meth:`Model.code_log_prob`. It
    cannot be compared with :meth:`Model.log_prob`, nor between manifolds of different dimension,
    because it is per d-dimensional volume. In a :class:`Mixture` it is
    :math:`\pi_k\, p_M^k(y) / r_k(y)` with the responsible chart k (:meth:`Mixture.overlap`).

    Events x are (batch, *event_shape), with the context of :class:`Model`. The volume is exact up
    to the dimension ``exact_up_to``; above, it is estimated with probes of the generator, on the
    CPU.
    """
    context = as_context(context)
    error, unknown = x.new_zeros(x.shape[0]), x.new_full(x.shape[:1], torch.nan)
    is_injective = isinstance(model, Mixture) or not model.has_density
    if model.dim == model.event_dim and not is_injective:  # the manifold is R^D
        return ManifoldDensity(model.log_prob(x, context), error, unknown)
    u = model.encode(x, context=context)[0]
    if isinstance(model, Mixture):
        log_prob, excess = unknown, unknown.clone()
        for k, chart in enumerate(model.charts):
            if (rows := u[:, -1] == k).any():
                row_context = None if context is None else context.rows(rows)
                density = manifold_density(chart, x[rows], exact_up_to, generator, row_context)
                log_prob[rows], error[rows], excess[rows] = density
        return ManifoldDensity(log_prob + model.overlap(u, context), error, excess)
    log_prob = model.code_log_prob(u, context)
    if model.dim > exact_up_to:
        decode = bind_context(model.decode, context)
        volume, error = volumes.estimate_log_volume(decode, u, generator=generator)
        return ManifoldDensity(log_prob - volume, error, unknown)
    columns = jacobian(model.decode, u, None, volumes.POINTS_PER_DECODING, context).double()
    volume = volumes.jacobian_log_volume(columns)
    excess = volumes.non_orthogonality(columns, volume, model.dim)
    return ManifoldDensity(log_prob - volume.to(u.dtype), error, excess.to(u.dtype))
