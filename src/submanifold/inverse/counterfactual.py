"""Counterfactuals: the nearest point of a manifold with another decision."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from submanifold.common.errors import UserError
from submanifold.models import Model

STEPS = 40
DAMPING, OVERSHOOT = 0.5, 1.001
"""Fraction of the way to the solution of each linearized problem, which lies a little beyond."""
SMALLEST = 1e-6
"""Smallest eigenvalue relative to the largest."""


class Counterfactual(NamedTuple):
    """Results for a batch.

    Attributes:
        image: Points of the manifold with another decision, (batch, *event_shape), in units of the
            model; the projections of x where none was found.
        start: Projections of x, the points that decide before.
        u: Coordinates of ``image``, (batch, d).
        found: Whether the decision changed, (batch,).
    """

    image: Tensor
    start: Tensor
    u: Tensor
    found: Tensor


def counterfactual(
    model: Model,
    x: Tensor,
    decision: Callable[[Tensor], Tensor],
    margin: float = 0.0,
    steps: int = STEPS,
) -> Counterfactual:
    r"""Change x on the manifold as little as possible, until a decision changes.

    The result approximately solves

    .. math:: \min_u (u - u_0)^T M (u - u_0) \quad\text{subject to}\quad s(g(u)) \le -m

    with the coordinates :math:`u_0` of the projection of x, the decoder g and the diagonal M of
    :math:`E[J^T J]`, the eigenvalues of the rotation; so the objective is to first order the
    squared distance of images. Each step solves the problem with s linearized at the current u
    (Hasofer & Lind 1974; Rackwitz & Fiessler 1978), and goes half of the way. Adversarial
    perturbations solve the same problem without the manifold.

    Args:
        model: The model; ``model.at_dim(d)`` for another dimension.
        x: Events, (batch, *event_shape), in units of the model.
        decision: Differentiable function from events to s, (batch,), each event independently; s is
            positive for the decision of x, such as the difference of two logits, or an anomaly
            score minus its threshold. Where s(x) is not positive, the result is the projection.
        margin: m, by which s must be below 0.
        steps: Number of steps.

    Raises:
        UserError: The decision does not return one number for each event.

    Example:
        >>> from submanifold.flows import RealNVP
        >>> from submanifold.models import Hierarchy, Stage
        >>> model = Hierarchy([Stage(RealNVP(4), dim=2)])
        >>> found = counterfactual(model, torch.ones(3, 4), lambda x: x.sum(1))
        >>> found.image.sum(1) <= 0
        tensor([True, True, True])
    """
    start = model.encode(x, exact=False)[0].detach()
    eigenvalues = model.eigenvalues
    if eigenvalues is None:
        scale = torch.ones_like(start)
    else:
        scale = 1 / eigenvalues.clamp_min(eigenvalues.max() * SMALLEST).expand_as(start)
    u = best = start
    shortest = torch.full_like(start[:, 0], torch.inf)
    for step in range(2 * steps):
        s, gradient = _decide(model, decision, u)
        distance = ((u - start).square() / scale).sum(1)
        better = (s <= -margin) & (distance < shortest)
        best = torch.where(better[:, None], u, best)
        shortest = torch.where(better, distance, shortest)
        found = shortest.isfinite()[:, None]
        # the second half looks for any solution, from where the first half ended
        is_nearest = step < steps
        if not is_nearest and found.all():
            break
        origin = start if is_nearest else u
        excess = s + margin + (gradient * (origin - u)).sum(1)
        direction = scale * gradient
        slope = (direction * gradient).sum(1)
        length = (excess.clamp_min(0) / slope)[:, None].nan_to_num(0.0, 0.0)
        target = origin - OVERSHOOT * length * direction
        moved = u + (DAMPING if is_nearest else 1.0) * (target - u)
        u = moved if is_nearest else torch.where(found, u, moved)
    with torch.no_grad():
        return Counterfactual(model.decode(best), model.decode(start), best, found[:, 0])


def _decide(model: Model, decision: Callable[[Tensor], Tensor], u: Tensor) -> tuple[Tensor, Tensor]:
    """Compute s(g(u)), (batch,), and its gradient, (batch, d)."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        s = decision(model.decode(u))
        if s.shape != u.shape[:1]:
            raise UserError(
                f"decision: expected one number for each event, shape ({len(u)},), got shape "
                f"{tuple(s.shape)}. Return one difference of logits or one score."
            )
        (gradient,) = torch.autograd.grad(s.sum(), u)
    return s.detach(), gradient
