"""Linear algebra with operators that are given as functions."""

from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def conjugate_gradients(
    multiply: Callable[[Tensor], Tensor],
    transpose: Callable[[Tensor], Tensor],
    b: Tensor,
    iterations: int,
    tolerance: float,
) -> Tensor:
    r"""Solve :math:`J^T J x = b` approximately for a batch of matrices J, from x = 0.

    With :math:`b = J^T y` the solution is the least-squares solution of :math:`J x = y`
    (Nocedal & Wright 2006, algorithm 5.2). Each system of the batch has its own step lengths and
    stops on its own.

    Args:
        multiply: Computes J p, (batch, ...), for p (batch, d).
        transpose: Computes J^T w, (batch, d), for w in the shape of J p.
        b: Right-hand sides, (batch, d).
        iterations: Maximum number of iterations; d of them are exact without rounding errors.
        tolerance: A system stops when the norm of its residual is below this fraction of \|b\|.

    Returns:
        x, (batch, d).

    Example:
        >>> matrix, b = torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([[4.0, 6.0]])
        >>> conjugate_gradients(lambda p: p @ matrix.T, lambda w: w @ matrix, b, 2, 1e-6)
        tensor([[-1.0000,  4.0000]])
    """
    x, residual, direction = torch.zeros_like(b), b, b
    squared_norm = b.square().sum(1, keepdim=True)
    converged = tolerance**2 * squared_norm
    tiny = torch.finfo(b.dtype).tiny
    for _ in range(min(iterations, b.shape[1])):
        image = multiply(direction)
        curvature = image.flatten(1).square().sum(1, keepdim=True)
        step = squared_norm / curvature.clamp_min(tiny)
        step = torch.where(squared_norm > converged, step, 0.0)
        x = x + step * direction
        residual = residual - step * transpose(image)
        previous, squared_norm = squared_norm, residual.square().sum(1, keepdim=True)
        direction = residual + squared_norm / previous.clamp_min(tiny) * direction
    return x
