"""Signs that a density cannot be trusted: an inverse that is none, and manifold overfitting."""

import torch
from torch import Tensor

from submanifold.models.model import Model

LARGEST_INVERSE_ERROR = 0.01
THIN, SMOOTH = 0.1, 0.5


@torch.no_grad()
def inverse_error(model: Model, x: Tensor) -> float:
    """Largest distance between a coordinate of x (batch, ...) and of its decoded code.

    A flow is invertible in exact arithmetic only. Above :data:`LARGEST_INVERSE_ERROR` its density
    is still that of its encoder, but samples and projections are not of the same model.

    Returns:
        In units of the standard deviation of x; not a number if the inverse overflows, and 0 for a
        model that has no density on all of space, in which nothing is inverted.
    """
    if not model.has_density:
        return 0.0
    u, v = model.encode(x)
    return ((model.decode(u, v) - x).abs().max() / x.std()).item()


@torch.no_grad()
def neighbour_correlation(u: Tensor, v: Tensor) -> float:
    r"""Rank correlation of the off-manifold coordinates of neighbours on the manifold.

    For noise, which is drawn anew for every point, it is near 0. What a flow has failed to follow
    of a curved manifold is a smooth function of the position: it goes to 1 as points get dense.
    Ranks, because a few points far off would outweigh all others.

    Args:
        u: Coordinates on the manifold, (n, d).
        v: Coordinates off it, (n, D - d).

    Returns:
        :math:`\sum_i r_i \cdot r_{j(i)} / \sum_i |r_i|^2`, r the centred ranks of each coordinate
        of v, :math:`j(i)` the nearest neighbour of i in u.
    """
    distances = torch.cdist(u, u)
    distances.fill_diagonal_(torch.inf)
    ranks = v.argsort(0).argsort(0).double()
    ranks -= ranks.mean(0)
    return ((ranks * ranks[distances.argmin(1)]).sum() / ranks.square().sum()).item()


@torch.no_grad()
def manifold_overfitting(model: Model, x: Tensor) -> tuple[float, float]:
    """Measure two signs that the likelihood runs away on data without noise (method.md 5.10).

    Data on a manifold of dimension d < D have no density on R^D: a flow raises its likelihood
    without bound by making the manifold thinner (Loaiza-Ganem et al. 2022). Then what is left off
    the manifold is little, and it is the flow's own misfit, not noise.

    Args:
        model: The model.
        x: Events of continuous data, (n, *event_shape); a thousand or more.

    Returns:
        Median distance of x from its projection in units of the standard deviation of x, and
        :func:`neighbour_correlation`; 0, 0 where d = D.
    """
    u, v = model.encode(x)
    if v.shape[1] == 0:
        return 0.0, 0.0
    distances = (x - model.decode(u)).flatten(1).norm(dim=1)
    return (distances.median() / x.std()).item(), neighbour_correlation(u, v)


def is_overfitted(thickness: float, correlation: float) -> bool:
    """Judge what :func:`manifold_overfitting` returned: thin, and smooth."""
    return thickness < THIN and correlation > SMOOTH
