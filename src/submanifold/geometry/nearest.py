"""Nearest projection onto a manifold by Gauss-Newton steps."""

from collections.abc import Callable

import torch
from torch import Tensor

from submanifold.common.linalg import conjugate_gradients
from submanifold.geometry.linearization import Linearization

CG_ITERATIONS = 8
HALVINGS = 4
RESTART_FACTOR = 10.0


@torch.no_grad()
def nearest_point(
    decode: Callable[[Tensor], Tensor],
    x: Tensor,
    u: Tensor,
    steps: int,
    eigenvalues: Tensor | None = None,
) -> Tensor:
    r"""Reduce :math:`|x - g(u)|^2` over u by Gauss-Newton steps (:ref:`theory-6-2`).

    .. math:: u \leftarrow u + s\,\delta, \qquad J^T J\, \delta = J^T (x - g(u))

    Linear systems are solved approximately by conjugate gradients (Nocedal & Wright 2006, sections
    10.3 and 7.1). Each event has its own step length s, the first of 1, 1/2, 1/4, ... that
    satisfies Armijo's rule with a quarter of the predicted decrease. The distance never increases.
    After three steps the squared error was on average 1.07 times that after 40 steps (24 validation
    images of CelebA, nested-then-flow, d = 500).

    Args:
        decode: The decoder g, (batch, d) to (batch, *event_shape).
        x: Events, (batch, *event_shape).
        u: Starting points, (batch, d), such as the encoder's coordinates. Points whose squared
            error is more than ten times that of u = 0 are replaced by 0.
        steps: Number of Gauss-Newton steps.
        eigenvalues: Approximate diagonal of :math:`J^T J`, (d,), not negative, as a preconditioner:
            the eigenvalues of a rotation (:ref:`theory-6-1`). It reduces the iterations to a third.

    Returns:
        Coordinates of the nearest point that was tried, (batch, d).
    """
    scale = (
        u.new_ones(u.shape[1])
        if eigenvalues is None
        else eigenvalues.clamp_min(eigenvalues.max() * 1e-6).rsqrt()
    )
    error = _squared_error(decode, x, u)
    if steps:
        # a nearly singular decoder can put the encoder's point where no step helps
        error_at_zero = _squared_error(decode, x, torch.zeros_like(u[:1]))
        restart = error > RESTART_FACTOR * error_at_zero
        u = torch.where(restart[:, None], torch.zeros_like(u), u)
        error = torch.where(restart, error_at_zero, error)
    for _ in range(steps):
        at = Linearization(decode, u)
        gradient = scale * at.vjp(x - at.image)
        solution = conjugate_gradients(
            lambda p, at=at: at.jvp(scale * p),  # type: ignore[misc]
            lambda w, at=at: scale * at.vjp(w),  # type: ignore[misc]
            gradient,
            CG_ITERATIONS,
            torch.finfo(u.dtype).eps ** 0.5,
        )
        slope = (solution * gradient).sum(1)
        start, previous_error, length = u, error, torch.ones_like(slope)
        for _ in range(1 + HALVINGS):
            candidate = start + length[:, None] * scale * solution
            candidate_error = _squared_error(decode, x, candidate)
            better = candidate_error < error
            u = torch.where(better[:, None], candidate, u)
            error = torch.where(better, candidate_error, error)
            accepted = error <= previous_error - length * slope / 2
            if accepted.all():
                break
            length = torch.where(accepted, length, length / 2)
    return u


def _squared_error(decode: Callable[[Tensor], Tensor], x: Tensor, u: Tensor) -> Tensor:
    """Squared distance of each event from its point, infinite where that is not finite."""
    return (x - decode(u)).flatten(1).square().sum(1).nan_to_num(nan=torch.inf)
