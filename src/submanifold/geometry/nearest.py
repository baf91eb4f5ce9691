"""Projections onto a manifold by nonlinear conjugate gradients or Gauss-Newton steps."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from submanifold.common.device import autocast
from submanifold.flows.context import Context
from submanifold.geometry.linearization import Linearization, bind_context, jacobian
from submanifold.geometry.solvers import damped_steps

FIRST_LENGTH = 0.06  # of steps with eigenvalues; 0.03 to 0.1 have equal errors after three
GROWTH = 1.5, 1.1  # of the optimal length after the first and after later gradients
MEMORY = 6  # previous moves that are recombined
REGULARIZATION = 1e-6
FAILED, SHORTER = 4.0, 0.1  # ratio of errors above which a step failed; it is shortened by
RESTART_FACTOR = 10.0
FAR_GRADIENTS = 16  # before Gauss-Newton steps from u = 0
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
    search = _Search(bind_context(decode, context), x, u, eigenvalues, precision or x.dtype)
    for iteration in range(gradients):
        search.turn(iteration)
        if iteration < gradients - 1:
            search.move()
    found = Nearest(search.tried, search.decode(search.tried))
    error = _squared_error(x, found.image)
    is_nearer = _is_smaller(error, search.start_error, search.rounded_size)
    rows = (~is_nearer | (error > search.best_error)).nonzero()[:, 0]
    if len(rows):
        others = search.best_or_start()[rows]
        images = bind_context(decode, context, rows)(others)
        replaced = _squared_error(x[rows], images) <= error[rows]
        found.u[rows[replaced]], found.image[rows[replaced]] = others[replaced], images[replaced]
    return found


class _Search:
    """Conjugate gradients of each event, (batch, ...), which step from point to point.

    Attributes:
        u: The last points whose step did not fail, of which ``image`` is.
        best: The points with the smallest error so far, ``best_error``.
        point: The points from which a step along ``direction`` is tried.
        tried: The points where it ends.
        failed: Whether the last step failed, after which a shorter one is tried, (batch, 1).
        moves: The last moves of u.
        changes: How they changed images, (batch, D).
    """

    def __init__(
        self,
        decode: Callable[[Tensor], Tensor],
        x: Tensor,
        start: Tensor,
        eigenvalues: Tensor | None,
        precision: torch.dtype,
    ) -> None:
        self.decode, self.x, self.start, self.precision = decode, x, start, precision
        self.rounded_size = None if precision == x.dtype else x.flatten(1).shape[1]
        self.scale, self.first_length = start.new_ones(start.shape[1]), None
        if eigenvalues is not None:
            self.scale = 1 / eigenvalues.clamp_min(eigenvalues.max() * 1e-6)
            self.first_length = FIRST_LENGTH
        self.u = start
        self.image, self.start_error = self._linearize(start)
        self.best_error = self.start_error
        lost = _is_lost(decode, x, start, self.start_error)
        if lost.any():
            self.u = torch.where(lost[:, None], 0.0, start)
            self.image, self.best_error = self._linearize(self.u)
        self.best, self.tried = self.u, self.u.clone()
        self.point = self.direction = torch.zeros_like(start)
        self.squared_norm = self.length = start.new_zeros(len(start), 1)
        self.failed = torch.zeros_like(lost)[:, None]
        # as many moves as coordinates would explain residuals off a curved manifold
        memory = max(1, min(MEMORY, start.shape[1] - 1))
        self.moves, self.changes = deque[Tensor](maxlen=memory), deque[Tensor](maxlen=memory)

    def _linearize(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Decode points for the next gradient; returns images (batch, D) and squared errors."""
        with autocast(self.x.device, self.precision):
            self.at = Linearization(self.decode, u)
        image = self.at.image
        return image.to(self.x).flatten(1), _squared_error(self.x, image)

    def turn(self, iteration: int) -> None:
        """Choose the next direction and length by one gradient."""
        point, residual = self.u, self.x.flatten(1) - self.image
        if iteration:
            # the combination that leaves the smallest residual, if images were linear
            weights = _least_squares(torch.stack([*self.changes], 1), residual)
            growth = (1 + weights[:, -1:]).clamp(0.1, 10.0)  # of the last step, which is optimal
            point = point + _combine(self.moves, weights)
            residual = residual - _combine(self.changes, weights)
        with autocast(self.x.device, self.precision):
            gradient = self.at.vjp(residual.view_as(self.x).to(self.at.image))
        squared_norm = (gradient * self.scale * gradient).sum(1, keepdim=True)
        ratio = (squared_norm / self.squared_norm).nan_to_num(0.0, 0.0).clamp_max(1.0)
        direction = self.scale * gradient + ratio * self.direction
        if iteration:
            length = self.length * (growth * GROWTH[iteration > 1])
        elif self.first_length is None:
            length = _optimal_length(self.at, direction, squared_norm)
        else:
            length = torch.full_like(self.length, self.first_length)
        del self.at  # its memory is reused by the next one, which saves page faults
        self.point = torch.where(self.failed, self.point, point)
        self.direction = torch.where(self.failed, self.direction, direction)
        self.squared_norm = torch.where(self.failed, self.squared_norm, squared_norm)
        self.length = torch.where(self.failed, SHORTER * self.length, length)
        self.tried = self.point + self.length * self.direction

    def move(self) -> None:
        """Move to the points that are tried, but of events whose error becomes much larger."""
        image, error = self._linearize(self.tried)
        self.failed = ~(error < FAILED * self.best_error)[:, None]
        move = torch.where(self.failed, 0.0, self.tried - self.u)
        self.moves.append(move)
        self.changes.append(torch.where(self.failed, 0.0, image - self.image))
        self.u = torch.where(self.failed, self.u, self.tried)
        self.image = torch.where(self.failed, self.image, image)
        is_best = error < self.best_error
        self.best = torch.where(is_best[:, None], self.tried, self.best)
        self.best_error = torch.where(is_best, error, self.best_error)

    def best_or_start(self) -> Tensor:
        """Return the best points, or the start where they are not nearer but by rounding."""
        is_nearer = _is_smaller(self.best_error, self.start_error, self.rounded_size)
        return torch.where(is_nearer[:, None], self.best, self.start)


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

    Arguments and results are those of :func:`nearest_point`; steps are :func:`.damped_steps`. Far
    from the data, where they may find nothing from u = 0, gradients come first.
    """
    every = torch.arange(len(x), device=x.device)

    def error(u: Tensor, rows: Tensor) -> Tensor:
        return _squared_error(x[rows], bind_context(decode, context, rows)(u))

    def step(u: Tensor, rows: Tensor) -> Tensor:
        chosen = None if context is None else context.rows(rows)
        columns = jacobian(decode, u, context=chosen).mT
        return _least_squares(
            columns, (x[rows] - bind_context(decode, context, rows)(u)).flatten(1)
        )

    decode_all = bind_context(decode, context)
    lost = _is_lost(decode_all, x, u, error(u, every)).nonzero()[:, 0]
    if len(lost):
        of_lost = None if context is None else context.rows(lost)
        found = nearest_point(decode, x[lost], u[lost], FAR_GRADIENTS, context=of_lost)
        u = u.index_copy(0, lost, found.u)
    u = damped_steps(error, step, u, steps)
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


def _combine(vectors: Iterable[Tensor], weights: Tensor) -> Tensor:
    """Add vectors (batch, m) with weights (batch, n)."""
    first, *others = vectors
    total = weights[:, :1] * first
    for vector, weight in zip(others, weights.T[1:], strict=True):
        total = torch.addcmul(total, weight[:, None], vector)
    return total


def _squared_error(x: Tensor, image: Tensor) -> Tensor:
    """Squared distance of each event from its image, infinite where that is not finite."""
    return (x - image).flatten(1).square().sum(1).nan_to_num(nan=torch.inf)
