"""Signs of an unreliable density: an inaccurate inverse, and manifold overfitting."""

import torch
from torch import Tensor

from submanifold.flows.context import Context
from submanifold.models.model import Model

LARGEST_INVERSE_ERROR = 0.01
THIN, SMOOTH = 0.1, 0.5


@torch.no_grad()
def inverse_error(model: Model, x: Tensor, context: Context | None = None) -> float:
    """Compute the largest error of x after encoding and decoding, in standard deviations of x.

    Above :data:`LARGEST_INVERSE_ERROR`, samples and projections are not those of the density. The
    error is NaN if the inverse overflows, and 0 for models that are not invertible.
    """
    if not model.has_density:
        return 0.0
    u, v = model.encode(x, context=context)
    return ((model.decode(u, v, context) - x).abs().max() / x.std()).item()


@torch.no_grad()
def neighbour_correlation(u: Tensor, v: Tensor) -> float:
    r"""Compute the rank correlation of coordinates v (n, D - d) between nearest neighbours in u.

    It is :math:`\sum_i r_i \cdot r_{j(i)} / \sum_i |r_i|^2`, with r the centred ranks of each
    coordinate of v and :math:`j(i)` the nearest neighbour of i in u (n, d). It is near 0 for noise,
    and tends to 1 with denser points for the misfit of a flow, a smooth function of u.
    """
    distances = torch.cdist(u, u)
    distances.fill_diagonal_(torch.inf)
    ranks = v.argsort(0).argsort(0).double()
    ranks -= ranks.mean(0)
    return ((ranks * ranks[distances.argmin(1)]).sum() / ranks.square().sum()).item()


@torch.no_grad()
def manifold_overfitting(
    model: Model, x: Tensor, context: Context | None = None
) -> tuple[float, float]:
    """Measure two signs of manifold overfitting on continuous data x (:ref:`theory-5`, case 10).

    Noise-free data on a manifold have no density on R^D: a flow increases its likelihood without
    bound by making the manifold thinner (Loaiza-Ganem et al. 2022). The distance from the manifold
    is then small, and it is the misfit of the flow instead of noise. The signs are the median
    distance of x from its projection in units of the standard deviation of x, and
    :func:`neighbour_correlation`; 0, 0 if d = D.
    """
    u, v = model.encode(x, context=context)
    if v.shape[1] == 0:
        return 0.0, 0.0
    distances = (x - model.decode(u, context=context)).flatten(1).norm(dim=1)
    return (distances.median() / x.std()).item(), neighbour_correlation(u, v)


def is_overfitted(thickness: float, correlation: float) -> bool:
    """Whether the results of :func:`manifold_overfitting` indicate overfitting."""
    return thickness < THIN and correlation > SMOOTH
