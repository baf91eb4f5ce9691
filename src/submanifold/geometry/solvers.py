"""Solvers of batches of least-squares problems: conjugate gradients, and damped steps."""

from collections.abc import Callable

import torch
from torch import Tensor

HALVINGS = 4  # at most, of a step
ITERATIONS = 100  # at most, of conjugate gradients


@torch.no_grad()
def conjugate_gradients(
    multiply: Callable[[Tensor], Tensor],
    b: Tensor,
    tolerance: float = 0.0,
) -> Tensor:
    """Solve A x = b approximately for symmetric positive A, x and b (batch, n).

    ``multiply`` computes A p (Nocedal & Wright 2006, algorithm 5.2). Each system of the batch has
    its own step lengths, and stops where its residual is below ``tolerance`` times b in norm.
    """
    x, residual, direction = torch.zeros_like(b), b, b
    product = (b * direction).sum(1, keepdim=True)
    converged, tiny = tolerance**2 * product, torch.finfo(b.dtype).tiny
    for _ in range(min(ITERATIONS, b.shape[1])):
        image = multiply(direction)
        length = product / (direction * image).sum(1, keepdim=True).clamp_min(tiny)
        length = torch.where(product > converged, length, 0.0)
        x, residual = x + length * direction, residual - length * image
        previous, product = product, residual.square().sum(1, keepdim=True)
        direction = residual + product / previous.clamp_min(tiny) * direction
    return x


@torch.no_grad()
def damped_steps(
    energy: Callable[[Tensor, Tensor], Tensor],
    step: Callable[[Tensor, Tensor], Tensor],
    z: Tensor,
    steps: int,
) -> Tensor:
    """Reduce energies (batch,) over z (batch, n) by steps, such as those of Gauss and Newton.

    ``energy(z, rows)`` and ``step(z, rows)`` are those of points z of the events ``rows``. Each
    event's step is halved, at most :data:`HALVINGS` times, until its energy decreases. Its search
    ends where no step decreases it.
    """
    z, rows = z.clone(), torch.arange(len(z), device=z.device)
    lowest = energy(z, rows)
    for _ in range(steps):
        start, previous = z[rows], lowest[rows]
        move = step(start, rows)
        trying = torch.arange(len(rows), device=z.device)
        for halving in range(1 + HALVINGS):
            tried, events = start[trying] + move[trying] / 2**halving, rows[trying]
            tried_energy = energy(tried, events)
            better = tried_energy < lowest[events]
            z[events[better]] = tried[better]
            lowest[events[better]] = tried_energy[better]
            trying = trying[~better]
            if not len(trying):
                break
        rows = rows[lowest[rows] < previous]
        if not len(rows):
            break
    return z
