"""A stage: a flow and the dimension of the manifold in its latent space."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from submanifold.common.errors import UserError, unexpected
from submanifold.flows import Flow, Injection, Rotation
from submanifold.flows.context import Context
from submanifold.flows.orthogonal import LARGEST_MATRIX

LEADING = 2  #: Axes of a rotation of many latents, as a multiple of d.


class Stage(nn.Module):
    r"""A flow f on R^D and a dimension d, :math:`f(h) = (u, v)`: u on the manifold, v off it.

    The manifold is the set of all :math:`f^{-1}(u, 0)`. Projecting onto it sets v to 0 (paper,
    section 4.1; :ref:`theory-1`). An :class:`Injection` has only d latents, all of them on the
    manifold.

    Args:
        flows: The flow, from events to D flat latents; or several, each acting on the latents of
            the one before.
        dim: Dimension d of the manifold, 1 <= d <= D.
        off_manifold_scale: Standard deviation sigma_v of the density of v.
        noise: Standard deviation of the normal noise that is added to h in the density of a
            :class:`Hierarchy`; 0 except in noisy injective flows.
        ordered: Whether it was trained so that its first latents are a manifold for every number
            of them, without a rotation (:ref:`theory-6-4`).

    Attributes:
        latent_dim: Number of latents: D, or less behind an injection.
        has_density: Whether the stage defines a density on all of its event space.
        has_volume: Whether the log-determinant is known, which it is not for all injections.

    Example:
        >>> stage = Stage([RealNVP(8), Affine(8)], dim=3)
        >>> u, v, log_det = stage(torch.randn(5, 8))
        >>> u.shape, v.shape, stage.decode(u).shape
        (torch.Size([5, 3]), torch.Size([5, 5]), torch.Size([5, 8]))
    """

    parts: ClassVar[dict[str, Any]] = {"flows": Flow}
    """Classes of the members of arguments that are lists, for files."""

    def __init__(
        self,
        flows: Flow | Sequence[Flow],
        dim: int,
        off_manifold_scale: float = 1.0,
        noise: float = 0.0,
        ordered: bool = False,
    ):
        super().__init__()
        flows = [flows] if isinstance(flows, nn.Module) else list(flows)
        for flow in flows:
            if not isinstance(flow, Flow):
                expected = "instances of submanifold.flows.Flow"
                raise unexpected("flows", expected, type(flow).__name__, "Derive it from Flow")
        self.flows: Sequence[Flow] = nn.ModuleList(flows)  # type: ignore[assignment]
        self.dim, self.off_manifold_scale, self.noise = dim, off_manifold_scale, noise
        self.ordered = ordered
        self.event_shape, self.latent_dim = flows[0].event_shape, flows[-1].latent_dim
        self.event_dim = math.prod(self.event_shape)
        check_dim(dim, self.latent_dim)
        injections = [flow for flow in flows if isinstance(flow, Injection)]
        self.has_density = not injections
        self.has_volume = all(flow.has_volume for flow in injections)

    @property
    def rotation(self) -> Rotation | None:
        """The rotation of the latents, if there is one."""
        last = self.flows[-1]
        return last if isinstance(last, Rotation) else None

    @property
    def is_reparametrization(self) -> bool:
        """Whether the manifold of all its latents is that of the stage before."""
        return self.dim == self.event_dim and self.rotation is None

    def add_rotation(self) -> Rotation:
        """Append a rotation, first the identity, of all latents, or to 2 d axes if D is large."""
        leading = LEADING * self.dim
        is_dense = self.latent_dim <= max(LARGEST_MATRIX, 2 * leading)
        rotation = Rotation(self.latent_dim, None if is_dense else leading)
        self.flows.append(rotation.to(next(self.parameters())))  # type: ignore[attr-defined]
        return rotation

    def forward(self, h: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Map events (batch, ...) to u (batch, d), v (batch, D - d) and log|det J_f| (batch,)."""
        z, log_det = self.transform(h, context)
        return z[:, : self.dim], z[:, self.dim :], log_det

    def transform(self, h: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """Apply the flows, with the context of a model (:meth:`.Flow.embed`)."""
        log_det = h.new_zeros(h.shape[0])
        for flow in self.flows:
            h, ld = flow(h, flow.embed(context))
            log_det = log_det + ld
        return h, log_det

    def inverse(self, z: Tensor, context: Context | None = None) -> Tensor:
        """Apply the inverses of the flows."""
        for flow in reversed(self.flows):
            z = flow.inverse(z, flow.embed(context))
        return z

    def coordinates(self, h: Tensor, count: int, context: Context | None = None) -> Tensor:
        """Compute the first latents only, (batch, count), without products of a rotation for v."""
        if self.rotation is None:
            return self.transform(h, context)[0][:, :count]
        for flow in self.flows[:-1]:
            h = flow(h, flow.embed(context))[0]
        return self.rotation.leading(h, count)

    def decode(self, u: Tensor, v: Tensor | None = None, context: Context | None = None) -> Tensor:
        """Map latents (u, v) to events; v = 0, a point on the manifold, by default."""
        if v is None and self.rotation is None:  # a rotation saves the products with zeros
            v = u.new_zeros(u.shape[0], self.latent_dim - u.shape[1])
        return self.inverse(u if v is None else torch.cat([u, v], 1), context)

    def off_manifold_log_prob(self, v: Tensor) -> Tensor:
        """Compute the log-density of v under N(0, sigma_v^2 I) in nats, (batch,)."""
        scale = self.off_manifold_scale
        return standard_normal_log_prob(v / scale) - v.shape[1] * math.log(scale)


def check_dim(dim: int, latent_dim: int) -> None:
    """Raise :class:`UserError` unless the dimension is between 1 and the number of latents."""
    if not 1 <= dim <= latent_dim:
        raise UserError(f"dim: expected 1 to {latent_dim}, the latents of the flow, got {dim}.")


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """Compute the log-density of N(0, I) in nats, summed over all axes but the first."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)
