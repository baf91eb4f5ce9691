"""The density on the manifold itself, which is another quantity than the density on all of R^D."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from submanifold.geometry.linearization import Linearization, push
from submanifold.models.mixture import Mixture
from submanifold.models.model import Model

BATCH = 64


class OnManifold(NamedTuple):
    r"""What is known of a manifold at the projections of events, each (batch,).

    Attributes:
        log_prob: Log-density with respect to the manifold's own volume, in nats.
        error: Standard error of it, 0 where it is exact.
        non_orthogonality: :math:`\tfrac12 \sum_i \log (J^T J)_{ii} - \tfrac12 \log\det J^T J`, in
        bits for
            each coordinate: 0 where they meet at right angles (Cunningham et al. 2022). Not a
            number where the volume is estimated.
    """

    log_prob: Tensor
    error: Tensor
    non_orthogonality: Tensor


def manifold_log_prob(
    hierarchy: Model,
    x: Tensor,
    exact_up_to: int = 600,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The log-density and its standard error alone of :func:`on_manifold`."""
    return on_manifold(hierarchy, x, exact_up_to, generator)[:2]


@torch.no_grad()
def on_manifold(
    hierarchy: Model,
    x: Tensor,
    exact_up_to: int = 600,
    generator: torch.Generator | None = None,
) -> OnManifold:
    r"""Log-density of the projection of x with respect to the manifold's own volume.

    .. math:: \log p_M(g(u)) = \log p(u) - \tfrac12 \log\det J^T J, \qquad J = \partial g(u)

    with the decoder g and the coordinates u of x (:meth:`Model.code_log_prob`). It is the density
    of what :meth:`Model.sample` draws. Its unit is d-dimensional volume, so it cannot be compared
    with :meth:`Model.log_prob`, nor between manifolds of different dimension.

    Args:
        hierarchy: The model whose innermost manifold it is.
        x: Events, (batch, *event_shape).
        exact_up_to: Largest dimension d at which the volume is exact, not estimated.
        generator: Of the estimate's probes, on the CPU.

    Returns:
        log p_M, its standard error, and the non_orthogonality of the metric.
    """
    if isinstance(hierarchy, Mixture):
        return _on_charts(hierarchy, x, exact_up_to, generator)
    error, unknown = x.new_zeros(len(x)), x.new_full((len(x),), torch.nan)
    if hierarchy.dim == hierarchy.event_dim:  # the manifold is the whole space
        return OnManifold(hierarchy.log_prob(x), error, unknown)
    u = hierarchy.encode(x)[0]
    if hierarchy.dim <= exact_up_to:
        triangle = _triangle(hierarchy, u)
        logs = _log_diagonal(triangle)
        lengths = triangle.square().sum(1).log().sum(1) / 2
        non_orthogonality = ((lengths - logs) / (hierarchy.dim * math.log(2))).to(u.dtype)
        volume = logs.to(u.dtype)
    else:
        volume, error = estimate_log_volume(hierarchy, u, generator=generator)
        non_orthogonality = unknown
    return OnManifold(hierarchy.code_log_prob(u) - volume, error, non_orthogonality)


def _on_charts(
    mixture: Mixture, x: Tensor, exact_up_to: int, generator: torch.Generator | None
) -> OnManifold:
    r"""On the chart k that is responsible for x, :math:`\pi_k\, p_M^k(y) / r_k(y)` at y = g_k(u).

    See :meth:`Mixture.overlap`.
    """
    u = mixture.encode(x)[0]
    number = u[:, -1].long()
    found = OnManifold(*(torch.full_like(x.flatten(1)[:, 0], torch.nan) for _ in range(3)))
    for k, chart in enumerate(mixture.charts):
        own = number == k
        if not own.any():
            continue
        for values, of_chart in zip(
            found, on_manifold(chart, x[own], exact_up_to, generator), strict=True
        ):
            values[own] = of_chart
    return found._replace(log_prob=found.log_prob + mixture.overlap(u))


@torch.no_grad()
def log_volume(hierarchy: Model, u: Tensor) -> Tensor:
    r"""Exact :math:`\tfrac12 \log\det J^T J` of the decoder at u, by d forward derivatives.

    With J = QR it is :math:`\sum_i \log|R_{ii}|`, whose rounding errors grow with the condition of
    J, not with its square. The derivatives have the decoder's precision, all else is double.

    Args:
        hierarchy: The model whose decoder it is.
        u: Coordinates on the manifold, (batch, d). The Jacobians take batch D d doubles, twice.

    Returns:
        Log of the factor by which the decoder scales volumes, in nats, (batch,).
    """
    return _log_diagonal(_triangle(hierarchy, u)).to(u.dtype)


def _triangle(hierarchy: Model, u: Tensor) -> Tensor:
    """R of J = QR, (batch, d, d) doubles."""
    batch, dim = u.shape
    jacobian = u.new_empty(dim, batch, hierarchy.event_dim, dtype=torch.float64)
    directions = torch.eye(dim, dtype=u.dtype, device=u.device)
    # one derivative of a large batch takes far less time than many of a small one
    some = max(1, BATCH // max(1, batch))
    for along, columns in zip(directions.split(some), jacobian.split(some), strict=True):
        points, tangents = u.repeat(len(along), 1), along.repeat_interleave(batch, 0)
        columns.copy_(push(hierarchy.decode, points, tangents).reshape(columns.shape))
    return torch.linalg.qr(jacobian.permute(1, 2, 0), mode="r").R


def _log_diagonal(triangle: Tensor) -> Tensor:
    return triangle.diagonal(dim1=1, dim2=2).abs().log().sum(1)


@torch.no_grad()
def estimate_log_volume(
    hierarchy: Model,
    u: Tensor,
    probes: int = 5,
    iterations: int = 100,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Estimate what :func:`log_volume` computes by stochastic Lanczos quadrature.

    .. math:: \tfrac12 \log\det A = \tfrac12 \operatorname{tr} \log A
              = \tfrac12 \operatorname{E}_z z^T (\log A)\, z, \qquad A = J^T J

    over vectors z of random signs, and the form in z by a Gauss rule with one node an iteration
    (Ubaru, Chen & Saad 2017, SIAM J. Matrix Anal. Appl. 38): a forward and a reverse derivative.

    Truncation of the rule only ever adds, more so the worse the condition of J, and the standard
    error does not see it (docs/performance.md).

    Args:
        hierarchy: The model whose decoder it is.
        u: Coordinates on the manifold, (batch, d).
        probes: Number of z, at least 2; the standard error falls with its square root.
        iterations: Nodes of the rule, of which d make it exact.
        generator: Of the signs, drawn on the CPU so that a seed gives the same on every device.

    Returns:
        Estimate in nats (batch,), and its standard error over the probes (batch,).
    """
    at = Linearization(hierarchy.decode, u)

    def forward(v: Tensor) -> Tensor:
        return at.push(v.to(u.dtype)).flatten(1).double()

    def reverse(w: Tensor) -> Tensor:
        return at.pull(w.to(u.dtype).view_as(at.image)).double()

    bidiagonals = []
    for _ in range(probes):
        signs = 2 * torch.randint(2, u.shape, generator=generator).double() - 1
        start = signs.to(u.device) / math.sqrt(hierarchy.dim)
        bidiagonals.append(_bidiagonalize(forward, reverse, start, min(iterations, hierarchy.dim)))
    b = torch.stack(bidiagonals)
    # svd would refuse the whole batch for one event whose decoder is not finite
    broken = ~b.isfinite().flatten(2).all(2)
    svd = torch.linalg.svd(b.masked_fill(broken[:, :, None, None], 0))
    values = hierarchy.dim * (svd.Vh[..., 0].square() * svd.S.log()).sum(2)
    values = values.masked_fill(broken, torch.nan)
    error = values.std(0) / math.sqrt(probes)
    return values.mean(0).to(u.dtype), error.to(u.dtype)


def _bidiagonalize(
    push: Callable[[Tensor], Tensor], pull: Callable[[Tensor], Tensor], right: Tensor, steps: int
) -> Tensor:
    """B (batch, steps, steps) whose B^T B is the Lanczos matrix of J^T J, by Golub and Kahan."""
    # the singular values of J, not their squares: small ones keep their digits
    basis = right.new_empty(*right.shape, 0)
    left = beta = right.new_zeros(len(right), 1)
    ended = torch.zeros_like(beta, dtype=torch.bool)
    diagonal, above = [], []
    for _ in range(steps):
        basis = torch.cat([basis, right[:, :, None]], 2)
        left = push(right) - beta * left
        # past the end of an invariant subspace B goes on as the identity, whose log adds nothing
        alpha = left.norm(dim=1, keepdim=True).masked_fill(ended, 1)
        left = left / alpha
        right = pull(left) - alpha * right
        for _ in range(2):  # it is enough to orthogonalise these again (Simon & Zha 2000)
            right = right - (basis @ (basis.mT @ right[:, :, None]))[:, :, 0]
        beta = right.norm(dim=1, keepdim=True)
        ended = beta <= torch.finfo(beta.dtype).eps * alpha
        beta = beta.masked_fill(ended, 0)
        right = (right / beta).masked_fill(ended, 0)
        diagonal.append(alpha)
        above.append(beta)
    b = torch.diag_embed(torch.cat(diagonal, 1))
    return b + torch.diag_embed(torch.cat(above, 1), 1)[:, :-1, :-1]
