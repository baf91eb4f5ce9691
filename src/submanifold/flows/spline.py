"""Monotonic rational-quadratic splines of coordinates, linear beyond the outer knots."""

import torch
from torch import Tensor

Knots = tuple[Tensor, Tensor, Tensor]
"""Positions, values and derivatives at the knots, each ([batch,] dim, bins + 1)."""


def knots_of(starts: Tensor, log_widths: Tensor, log_heights: Tensor, log_slopes: Tensor) -> Knots:
    """Compute knots from the first one, (..., 2), and logarithms, (..., bins) and bins + 1."""
    xs, ys = (
        torch.cat([start[..., None], start[..., None] + lengths.exp().cumsum(-1)], -1)
        for start, lengths in zip(starts.unbind(-1), (log_widths, log_heights), strict=True)
    )
    return xs, ys, log_slopes.exp()


def transform(x: Tensor, knots: Knots) -> tuple[Tensor, Tensor]:
    """Apply splines to x (batch, dim); returns z and its log-derivatives, (batch, dim)."""
    x0, x1, y0, y1, d0, d1, slope = _bins_of(x, knots, axis=0)
    xi = ((x - x0) / (x1 - x0)).clamp(0, 1)
    rest = xi * (1 - xi)
    divisor = slope + (d0 + d1 - 2 * slope) * rest
    z = y0 + (y1 - y0) * (slope * xi.square() + d0 * rest) / divisor
    derivative = d1 * xi.square() + 2 * slope * rest + d0 * (1 - xi).square()
    log_derivative = derivative.log() + 2 * (slope / divisor).log()
    # beyond the outer knots; 0 inside of the bins
    return z + d0 * (x - x0).clamp_max(0) + d1 * (x - x1).clamp_min(0), log_derivative


def invert(z: Tensor, knots: Knots) -> Tensor:
    """Apply the inverses of splines to z (batch, dim)."""
    x0, x1, y0, y1, d0, d1, slope = _bins_of(z, knots, axis=1)
    y = ((z - y0) / (y1 - y0)).clamp(0, 1)
    excess = y * (d0 + d1 - 2 * slope)
    a, b, c = slope - d0 + excess, d0 - excess, -slope * y
    root = (b.square() - 4 * a * c).clamp_min(torch.finfo(z.dtype).tiny).sqrt()
    x = x0 + (x1 - x0) * (-2 * c / (b + root))
    return x + (z - y0).clamp_max(0) / d0 + (z - y1).clamp_min(0) / d1


def _bins_of(x: Tensor, knots: Knots, axis: int) -> tuple[Tensor, ...]:
    """Knots at both ends of the bins of x, or of values x if axis is 1, and mean slopes."""
    inner = knots[axis].detach()[..., 1:-1].contiguous()
    if inner.ndim == 2:
        bins = torch.searchsorted(inner, x.detach().T.contiguous(), right=True).T
    else:
        bins = torch.searchsorted(inner, x.detach()[..., None].contiguous(), right=True)[..., 0]
    ends = torch.stack([bins, bins + 1], 2)
    (x0, x1), (y0, y1), (d0, d1) = (
        values.expand(x.shape[0], -1, -1).gather(2, ends).unbind(2) for values in knots
    )
    return x0, x1, y0, y1, d0, d1, (y1 - y0) / (x1 - x0)
