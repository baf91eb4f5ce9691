"""Nested dropout: projections onto manifolds of random dimension (Rippel et al. 2014)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from submanifold.flows.orthogonal import tail_sums
from submanifold.models.hierarchy import Hierarchy

LARGEST_WEIGHT = 10.0


def nested_projection(
    model: Hierarchy, u: Tensor, v: Tensor, random_dim: float, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """Project each event onto a manifold of a random dimension, drawn log-uniformly.

    The projection keeps as many leading latents of the last stage (for flows: Bekasov & Murray
    2020).

    Args:
        model: The stages that project; the last one has d dimensions.
        u: Coordinates on its manifold, (batch, d).
        v: Off-manifold coordinates of its last stage, (batch, latent_dim - d).
        random_dim: Dimensions range from d / random_dim to d * random_dim.
        uniform: Random numbers in [0, 1), (batch,), which choose the dimensions.

    Returns:
        The projections, (batch, *event_shape), and weights (batch,): the first-order error at d
        divided by the one at the drawn dimension, at most :data:`LARGEST_WEIGHT`; 1 without a
        rotation.
    """
    *outside, last = model.stages
    low = max(1, round(last.dim / random_dim))
    high = min(last.latent_dim, round(last.dim * random_dim))
    dims = (low * (high / low) ** uniform).round().long()
    z = torch.cat([u, v], 1)[:, :high]
    z = z * (torch.arange(high, device=u.device) < dims[:, None])
    if high > last.dim:
        z = F.pad(z, (0, last.latent_dim - high))
        projection = last.decode(z[:, : last.dim], z[:, last.dim :])
    else:
        projection = last.decode(F.pad(z, (0, last.dim - high)))
    for stage in reversed(outside):
        projection = stage.decode(projection)
    weight = torch.ones_like(uniform)
    if last.rotation is not None:
        tail = tail_sums(last.rotation.eigenvalues)
        weight = tail[last.dim] / tail[dims].clamp_min(tail[last.dim] / LARGEST_WEIGHT)
    return projection, weight
