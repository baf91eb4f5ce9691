"""A stage: one bijection and the dimension of the manifold it finds."""

import math

import torch
from torch import Tensor, nn

from submanifold.errors import UserError
from submanifold.flows import Flow


class Stage(nn.Module):
    r"""A flow f on R^D and a dimension d: :math:`f(h) = (u, v)`, u on the manifold, v off it.

    The manifold is the set of all :math:`f^{-1}(u, 0)`; projecting onto it drops v
    (paper, section 4.1; method.md 1).

    Args:
        flow: The bijection, from events to D flat latents.
        dim: Dimension d of the manifold, 1 <= d <= D.
        off_manifold_scale: Standard deviation sigma_v of the density of v; 1 but in DNF.

    Raises:
        UserError: The dimension does not fit.
    """

    def __init__(self, flow: Flow, dim: int, off_manifold_scale: float = 1.0):
        super().__init__()
        self.flow = flow
        self.dim = dim
        self.off_manifold_scale = off_manifold_scale
        self.event_dim = math.prod(flow.event_shape)
        if not 1 <= dim <= self.event_dim:
            raise UserError(
                f"A manifold of dimension {dim} in a space of {self.event_dim} is not possible. "
                f"Allowed: 1 to {self.event_dim}. Change stage_<n>.dim."
            )

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map events (batch, ...) to u (batch, d), v (batch, D - d) and log|det J_f| (batch,)."""
        z, log_det = self.flow(h)
        return z[:, : self.dim], z[:, self.dim :], log_det

    def encode(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates (u, v) of h on and off the manifold."""
        u, v, _ = self(h)
        return u, v

    def decode(self, u: Tensor, v: Tensor | None = None) -> Tensor:
        """Invert (u, v); without v the point on the manifold, v = 0."""
        if v is None:
            v = u.new_zeros(len(u), self.event_dim - self.dim)
        return self.flow.inverse(torch.cat([u, v], 1))

    def project(self, h: Tensor) -> Tensor:
        r"""Drop the off-manifold part: :math:`f^{-1}(f_u(h), 0)`."""
        return self.decode(self.encode(h)[0])

    def off_manifold_log_prob(self, v: Tensor) -> Tensor:
        """Log-density of v under N(0, sigma_v^2 I) in nats, shape (batch,)."""
        return standard_normal_log_prob(v / self.off_manifold_scale) - v.shape[1] * math.log(
            self.off_manifold_scale
        )


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """Log-density of N(0, I) in nats, summed over all but the first axis."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)
