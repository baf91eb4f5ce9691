"""A stage: a bijection and the dimension of the manifold it finds."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from submanifold.common.errors import UserError
from submanifold.common.settings import Settings
from submanifold.flows import FLOWS, Bijection, Compose, Flow, Injection, Rotation
from submanifold.flows.build import rebuild_flow
from submanifold.flows.rotation import LARGEST_MATRIX


class Stage(nn.Module):
    r"""A flow f on R^D and a dimension d: :math:`f(h) = (u, v)`, u on the manifold, v off it.

    The manifold is the set of all :math:`f^{-1}(u, 0)`; projecting onto it drops v
    (paper, section 4.1; method.md 1). An :class:`Injection` in the bijection's place makes no more
    than d numbers, all of them on the manifold.

    Args:
        flow: The bijection, from events to D flat latents; or several, each acting on what the one
            before makes.
        dim: Dimension d of the manifold, 1 <= d <= D.
        off_manifold_scale: Standard deviation sigma_v of the density of v; 1 but in DNF.
        noise: Standard deviation of the normal noise on what it acts on, over which the density of
            a hierarchy is a mean (:class:`Hierarchy`); 0 but in noisy injective flows.

    Attributes:
        event_shape: Shape of one event h.
        event_dim: D.
        latent_dim: The count of latents, D unless there is an injection.

    Raises:
        UserError: The dimension does not fit, or one flow does not act on what another makes.

    Example:
        >>> stage = Stage([RealNVP(8), Affine(8)], dim=3)
        >>> u, v, log_det = stage(torch.randn(5, 8))
        >>> u.shape, v.shape, stage.decode(u).shape
        (torch.Size([5, 3]), torch.Size([5, 5]), torch.Size([5, 8]))
    """

    def __init__(
        self,
        flow: Flow | Sequence[Flow],
        dim: int,
        off_manifold_scale: float = 1.0,
        noise: float = 0.0,
    ):
        super().__init__()
        flows = [flow] if isinstance(flow, Flow) else list(flow)
        for outer, inner in pairwise(flows):
            if inner.event_shape != (outer.latent_dim,):
                raise UserError(
                    f"flow: a flow acts on events of shape {inner.event_shape}, but the one before "
                    f"it makes {outer.latent_dim} numbers."
                )
        self.flow: Bijection = flows[0] if len(flows) == 1 else Compose(flows)
        self.dim = dim
        self.off_manifold_scale = off_manifold_scale
        self.noise = noise
        self.event_shape = flows[0].event_shape
        self.event_dim = math.prod(self.event_shape)
        self.latent_dim = flows[-1].latent_dim
        check_dim(dim, self.latent_dim)

    @property
    def flows(self) -> list[Flow]:
        """The bijections, in the order that events pass them."""
        # a RealNVP is composed too, but one flow
        return list(self.flow.bijections) if type(self.flow) is Compose else [self.flow]  # type: ignore[arg-type, list-item]

    @property
    def rotation(self) -> Rotation | None:
        """The rotation of its latents, if it has one."""
        last = self.flows[-1]
        return last if isinstance(last, Rotation) else None

    @property
    def has_density(self) -> bool:
        """Whether what it makes has a density on all of its events' space."""
        return not any(isinstance(flow, Injection) for flow in self.flows)

    @property
    def has_volume(self) -> bool:
        """Whether the log-determinant is known: not of every injection."""
        return all(flow.has_volume for flow in self.flows if isinstance(flow, Injection))

    @property
    def only_bends(self) -> bool:
        """Whether it keeps all coordinates of its events, in no order."""
        return self.dim == self.event_dim and self.rotation is None

    def add_rotation(self) -> Rotation:
        """Append a rotation, which is the identity until it is fitted.

        It is of all latents, or of the first d where a D x D matrix would be too large.
        """
        leading = None if self.latent_dim <= LARGEST_MATRIX else self.dim
        weight = next(self.parameters())
        rotation = Rotation(self.latent_dim, leading).to(weight.device, weight.dtype)
        self.flow = Compose([*self.flows, rotation])
        return rotation

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map events (batch, ...) to u (batch, d), v (batch, D - d) and log|det J_f| (batch,)."""
        z, log_det = self.flow(h)
        return z[:, : self.dim], z[:, self.dim :], log_det

    def decode(self, u: Tensor, v: Tensor | None = None) -> Tensor:
        """Invert (u, v); without v the point on the manifold, v = 0."""
        if v is None and self.rotation is not None:
            return self.flow.inverse(u)  # which need not multiply zeros
        if v is None:
            v = u.new_zeros(len(u), self.latent_dim - self.dim)
        return self.flow.inverse(torch.cat([u, v], 1))

    def off_manifold_log_prob(self, v: Tensor) -> Tensor:
        """Log-density of v under N(0, sigma_v^2 I) in nats, shape (batch,)."""
        return standard_normal_log_prob(v / self.off_manifold_scale) - v.shape[1] * math.log(
            self.off_manifold_scale
        )

    def describe(self) -> dict[str, Any]:
        """The arguments that rebuild it (:meth:`rebuild`), JSON-able."""
        names = {flow: name for name, flow in FLOWS.items()}
        return {
            "bijections": [{"type": names[type(flow)], **flow.config} for flow in self.flows],
            "dim": self.dim,
            "off_manifold_scale": self.off_manifold_scale,
            **({"noise": self.noise} if self.noise else {}),
        }

    @classmethod
    def rebuild(cls, **config: Any) -> "Stage":
        """Build an untrained stage from what :meth:`describe` returns.

        Raises:
            UserError: There is no such stage.
            ValidationError: The arguments are others.
        """
        config = StageConfig(**config).model_dump()
        return cls([rebuild_flow(each) for each in config.pop("bijections")], **config)


class StageConfig(Settings):
    """What :meth:`Stage.describe` returns."""

    bijections: list[dict[str, Any]] = Field(min_length=1)
    dim: PositiveInt
    off_manifold_scale: PositiveFloat
    noise: NonNegativeFloat = 0.0


def check_dim(dim: int, count: int) -> None:
    """Refuse a dimension that does not fit into so many numbers."""
    if not 1 <= dim <= count:
        raise UserError(f"dim={dim}, but the flow acts on {count} numbers. Allowed: 1 to {count}.")


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """Log-density of N(0, I) in nats, summed over all but the first axis."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)
