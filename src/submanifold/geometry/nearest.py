"""A point of a manifold near the one that is nearest to a given point."""

from collections.abc import Callable

import torch
from torch import Tensor

from submanifold.geometry.linearization import Linearization

ITERATIONS = 8
HALVINGS = 4
FAR = 10.0


@torch.no_grad()
def nearest_point(
    decode: Callable[[Tensor], Tensor],
    x: Tensor,
    u: Tensor,
    steps: int,
    eigenvalues: Tensor | None = None,
) -> Tensor:
    r"""Reduce :math:`|x - g(u)|^2` over u by Gauss-Newton steps (method.md 6.2).

    .. math:: u \leftarrow u + s\,\delta, \qquad J^T J\, \delta = J^T (x - g(u))

    Each system is solved approximately, by conjugate gradients with products by J and J^T alone
    (Nocedal & Wright 2006, sections 10.3 and 7.1), and each event has its own step s, the first of
    1, 1/2, 1/4, ... with a quarter of the decrease that the slope promises (Armijo's rule). No
    event ends farther than it was. The squared error that is left is an upper bound on the smallest
    one: after three steps it was on average 1.07 times, at most 1.15 times, that after 40 steps (24
    validation images of CelebA, nested-then-flow, d = 500), and 1.5 times before the penalty.

    Args:
        decode: The decoder g, (batch, d) to (batch, *event_shape).
        x: Events, (batch, *event_shape).
        u: Where to start, (batch, d): the encoder's coordinates. Where their squared distance is
            ten times that of the manifold's middle, u = 0, it starts there.
        steps: Gauss-Newton steps, each of some conjugate gradient iterations.
        eigenvalues: Diagonal that :math:`J^T J` is near to, (d,), not negative: those of the
        rotation
            (method.md 6.1). With them a system takes a third of the iterations.

    Returns:
        The coordinates u of the nearest of the points that were tried, (batch, d).
    """
    scale = (
        u.new_ones(u.shape[1])
        if eigenvalues is None
        else eigenvalues.clamp_min(eigenvalues.max() * 1e-6).rsqrt()
    )
    error = _squared_error(decode, x, u)
    if steps:
        # a nearly singular decoder may throw the encoder's point far off, from where no step helps
        middle = _squared_error(decode, x, torch.zeros_like(u[:1]))
        lost = error > FAR * middle
        u = torch.where(lost[:, None], torch.zeros_like(u), u)
        error = torch.where(lost, middle, error)
    for _ in range(steps):
        at = Linearization(decode, u)
        solution, slope = _least_squares(
            lambda p, at=at: at.push(scale * p),  # type: ignore[misc]
            lambda w, at=at: scale * at.pull(w),  # type: ignore[misc]
            x - at.image,
        )
        start, before, length = u, error, torch.ones_like(slope)
        for _ in range(1 + HALVINGS):
            tried = start + length[:, None] * scale * solution
            found = _squared_error(decode, x, tried)
            better = found < error
            u = torch.where(better[:, None], tried, u)
            error = torch.where(better, found, error)
            enough = error <= before - length * slope / 2
            if enough.all():
                break
            length = torch.where(enough, length, length / 2)
    return u


def _squared_error(decode: Callable[[Tensor], Tensor], x: Tensor, u: Tensor) -> Tensor:
    """Squared distance of each event from its point, infinite where that is not finite."""
    return (x - decode(u)).flatten(1).square().sum(1).nan_to_num(nan=torch.inf)


def _least_squares(
    push: Callable[[Tensor], Tensor], pull: Callable[[Tensor], Tensor], target: Tensor
) -> tuple[Tensor, Tensor]:
    """Bring J p near to the target by conjugate gradients on the normal equations, from p = 0.

    Returns:
        p, and its product with the gradient at 0: half the slope of the squared distance along it.
    """
    residual, first = target, pull(target)
    solution, gradient, direction = torch.zeros_like(first), first, first
    size = gradient.square().sum(1, keepdim=True)
    tiny = torch.finfo(size.dtype).tiny
    enough = size * torch.finfo(size.dtype).eps
    for _ in range(min(ITERATIONS, gradient.shape[1])):
        image = push(direction)
        length = size / image.flatten(1).square().sum(1, keepdim=True).clamp_min(tiny)
        length = torch.where(size > enough, length, 0.0)
        solution = solution + length * direction
        residual = residual - length.view(-1, *[1] * (residual.ndim - 1)) * image
        gradient = pull(residual)
        before, size = size, gradient.square().sum(1, keepdim=True)
        direction = gradient + size / before.clamp_min(tiny) * direction
    return solution, (solution * first).sum(1)
