"""Projections onto a manifold by nonlinear conjugate gradients or Gauss-Newton steps."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from submanifold.common.device import autocast
from submanifold.flows.context import Context
from submanifold.geometry.linearization import Linearization, jacobian, select
from submanifold.geometry.solvers import damped_steps

FIRST_LENGTH = 0.06  # of steps with eigenvalues; 0.03 to 0.1 have equal errors after three
GROWTH = 1.5, 1.1  # of the optimal length after the first and after later gradients
MEMORY = 6  # previous moves that are recombined
REGULARIZATION = 1e-6
FAILED, SHORTER = 4.0, 0.1  # ratio of errors above which a step failed; it is shortened by
RESTART_FACTOR = 10.0
ROUNDING = 0.97, 1e-3  # relative and absolute margin for RMSE in bfloat16, in units of pixels


class Nearest(NamedTuple):
    """Points of a manifold that are near to events: coordinates (batch, d), and events."""

    u: Tensor
    image: Tensor


@torch.no_grad()
def nearest_point(
    decode: Callable[..., Tensor],
    x: Tensor,
    u: Tensor,
    gradients: int,
    eigenvalues: Tensor | None = None,
    precision: torch.dtype | None = None,
    context: Context | None = None,
) -> Nearest:
    r"""Reduce :math:`|x - g(u)|^2` over u by nonlinear conjugate gradients (:ref:`theory-6-2`).

    Each iteration decodes a point and computes one gradient :math:`J^T r` there. The decoded images
    also give the optimal length of the last step, and the best combination of the last six moves,
    as if images changed linearly in between (Anderson 1965; Washio & Oosterlee 1997); r is the
    residual that remains. So products :math:`J p` are not needed. The next direction is that of
    Fletcher & Reeves (1964), and its length is the optimal one of the last step times a constant.
    Each event has its own lengths. The distance is never larger than that of the given u.

    Args:
        decode: The decoder g, (batch, d) to (batch, *event_shape).
        x: Events, (batch, *event_shape).
        u: Starting points, (batch, d), such as the encoder's coordinates. Points whose squared
            error is more than ten times that of u = 0 are replaced by 0, if it is also larger
            than ten times the squared norm of x.
        gradients: Number of gradients.
        eigenvalues: Approximate diagonal of :math:`J^T J`, (d,), not negative, as a preconditioner:
            the eigenvalues of a rotation (:ref:`theory-6-1`).
        precision: Precision of gradients; that of x by default. Errors are compared in that of x.
        context: Context of each event, which the decoder receives as ``context``.
    """
    target, start, decode_all = x.flatten(1), u, select(decode, context)
    precision = precision or x.dtype
    scale = u.new_ones(u.shape[1])
    if eigenvalues is not None:
        scale = 1 / eigenvalues.clamp_min(eigenvalues.max() * 1e-6)

    def linearize(u: Tensor) -> tuple[Linearization, Tensor, Tensor]:
        with autocast(x.device, precision):
            at = Linearization(decode_all, u)
        return at, at.image.to(x).flatten(1), _squared_error(x, at.image)

    def is_smaller(error: Tensor, other: Tensor) -> Tensor:
        rounded = precision != x.dtype
        return _is_smaller(error, other, target.shape[1] if rounded else None)

    at, image, start_error = linearize(u)
    error = start_error
    lost = _is_lost(decode_all, x, u, error)
    if lost.any():
        u = torch.where(lost[:, None], 0.0, u)
        at, image, error = linearize(u)
    best, best_error, tried = u, error, u.clone()
    point = direction = torch.zeros_like(u)
    squared_norm = length = u.new_zeros(u.shape[0], 1)
    failed = torch.zeros_like(lost)[:, None]
    # as many moves as coordinates would explain residuals off a curved manifold
    memory = max(1, min(MEMORY, u.shape[1] - 1))
    moves: list[Tensor] = []
    changes: list[Tensor] = []
    for iteration in range(gradients):
        new_point, residual, growth = u, target - image, u.new_ones(u.shape[0], 1)
        if iteration:
            weights = _least_squares(torch.stack(changes, 1), residual)
            new_point = u + _combine(moves, weights)
            residual = residual - _combine(changes, weights)
            growth = (1 + weights[:, -1:]).clamp(0.1, 10.0) * GROWTH[iteration > 1]
        with autocast(x.device, precision):
            gradient = at.vjp(residual.view_as(x).to(at.image))
        new_norm = (gradient * scale * gradient).sum(1, keepdim=True)
        ratio = (new_norm / squared_norm).nan_to_num(0.0, 0.0).clamp_max(1.0)
        new_direction = scale * gradient + ratio * direction
        if iteration:
            new_length = length * growth
        elif eigenvalues is None:
            new_length = _optimal_length(at, new_direction, new_norm)
        else:
            new_length = torch.full_like(length, FIRST_LENGTH)
        del at  # its memory is reused by the next one, which saves page faults
        point = torch.where(failed, point, new_point)
        direction = torch.where(failed, direction, new_direction)
        squared_norm = torch.where(failed, squared_norm, new_norm)
        length = torch.where(failed, SHORTER * length, new_length)
        tried = point + length * direction
        if iteration == gradients - 1:
            break
        at, tried_image, tried_error = linearize(tried)  # noqa: RUF059  for the next gradient
        failed = ~(tried_error < FAILED * best_error)[:, None]
        moves = [*moves, torch.where(failed, 0.0, tried - u)][-memory:]
        changes = [*changes, torch.where(failed, 0.0, tried_image - image)][-memory:]
        u, image = torch.where(failed, u, tried), torch.where(failed, image, tried_image)
        better = tried_error < best_error
        best = torch.where(better[:, None], tried, best)
        best_error = torch.where(better, tried_error, best_error)
    images = decode_all(tried)
    error = _squared_error(x, images)
    doubtful = ~is_smaller(error, start_error) | (error > best_error)
    if doubtful.any():
        rows = doubtful.nonzero()[:, 0]
        others = torch.where(is_smaller(best_error, start_error)[:, None], best, start)[rows]
        other_images = select(decode, context, rows)(others)
        nearer = _squared_error(x[rows], other_images) <= error[rows]
        replaced = rows[nearer]
        tried[replaced], images[replaced] = others[nearer], other_images[nearer]
    return Nearest(tried, images)


def _is_smaller(error: Tensor, other: Tensor, rounded_size: int | None) -> Tensor:
    """Whether an error is smaller, by more than rounding errors of images of a size if given."""
    if rounded_size is None:
        return error < other
    relative, absolute = ROUNDING
    return error.sqrt() < relative * other.sqrt() - absolute * rounded_size**0.5


def _optimal_length(at: Linearization, direction: Tensor, squared_norm: Tensor) -> Tensor:
    """Compute the length of a first step (batch, 1) if images changed linearly."""
    change = at.jvp(direction).flatten(1)  # tangents do not support autocast
    return (squared_norm / change.square().sum(1, keepdim=True)).nan_to_num(0.0, 0.0)


@torch.no_grad()
def gauss_newton(
    decode: Callable[..., Tensor],
    x: Tensor,
    u: Tensor,
    steps: int,
    context: Context | None = None,
) -> Nearest:
    """Reduce the distance by Gauss-Newton steps with all columns of J, for few coordinates.

    Arguments and results are those of :func:`nearest_point`; steps are :func:`.damped_steps`.
    """
    every = torch.arange(len(x), device=x.device)

    def error(u: Tensor, rows: Tensor) -> Tensor:
        return _squared_error(x[rows], select(decode, context, rows)(u))

    def step(u: Tensor, rows: Tensor) -> Tensor:
        chosen = None if context is None else context.rows(rows)
        columns = jacobian(decode, u, context=chosen).mT
        return _least_squares(columns, (x[rows] - select(decode, context, rows)(u)).flatten(1))

    decode_all = select(decode, context)
    lost = _is_lost(decode_all, x, u, error(u, every))
    u = damped_steps(error, step, torch.where(lost[:, None], 0.0, u), steps)
    return Nearest(u, decode_all(u))


def _is_lost(decode: Callable[[Tensor], Tensor], x: Tensor, u: Tensor, error: Tensor) -> Tensor:
    """Whether points are so far from their events that u = 0 is a better start.

    A nearly singular decoder can put the encoder's point where no step helps.
    """
    lost = error > RESTART_FACTOR * x.flatten(1).square().sum(1)
    if lost.any():
        lost &= error > RESTART_FACTOR * _squared_error(x, decode(torch.zeros_like(u)))
    return lost


def _least_squares(columns: Tensor, target: Tensor) -> Tensor:
    """Compute the weights (batch, n) of vectors (batch, n, m) whose sum is nearest to targets."""
    gram = (columns @ columns.mT).double()
    is_diagonal = torch.eye(gram.shape[1], dtype=torch.bool, device=gram.device)
    tiny = torch.finfo(gram.dtype).tiny  # vectors can be 0, such as changes of failed steps
    gram = torch.where(is_diagonal, gram * (1 + REGULARIZATION) + tiny, gram)
    products = (columns @ target[:, :, None]).double()
    return torch.linalg.solve_ex(gram, products)[0][:, :, 0].to(target.dtype)


def _combine(vectors: list[Tensor], weights: Tensor) -> Tensor:
    """Add vectors (batch, m) with weights (batch, n)."""
    total = weights[:, :1] * vectors[0]
    for vector, weight in zip(vectors[1:], weights.T[1:], strict=True):
        total = torch.addcmul(total, weight[:, None], vector)
    return total


def _squared_error(x: Tensor, image: Tensor) -> Tensor:
    """Squared distance of each event from its image, infinite where that is not finite."""
    return (x - image).flatten(1).square().sum(1).nan_to_num(nan=torch.inf)
