"""A hierarchy's manifold of another dimension, with the density of the whole."""

from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor
from typing_extensions import Self

from submanifold.common.errors import UserError
from submanifold.models.hierarchy import Hierarchy, HierarchyConfig
from submanifold.models.model import Model
from submanifold.models.stage import Stage


class Slice(Model):
    r"""Another dimension of a hierarchy whose last stages bend the coordinates of its manifold.

    The stages up to the one that makes the manifold map x to :math:`(z, v)`, and those after it
    :math:`z = (z_1, \dots, z_k)` to a standard normal code. The manifold of dimension d is that of
    :math:`(z_1, \dots, z_d)`, with further ones of :math:`v` where d > k. The density on all of
    space is the hierarchy's for every d, and samples are of it: z is decoded from the code, and
    what is beyond d is dropped. The coordinates u are :math:`z_1, \dots, z_d`, in the order of the
    rotation, and not the first of the hierarchy's code.

    Args:
        whole: The hierarchy.
        dim: d, 1 to :attr:`Hierarchy.largest_dim`.

    Raises:
        UserError: d is not in that range.

    Example:
        >>> hierarchy = Hierarchy([Stage(RealNVP(8), dim=4), Stage(RealNVP(4), dim=4)])
        >>> smaller = hierarchy.at_dim(2)
        >>> smaller.encode(torch.randn(3, 8))[0].shape, smaller.sample(5).shape
        (torch.Size([3, 2]), torch.Size([5, 8]))
    """

    kind = "slice"

    def __init__(self, whole: Hierarchy, dim: int):
        super().__init__()
        self.whole, self.dim, self.event_shape = whole, dim, whole.event_shape
        _ = self._straight  # which refuses a dimension that does not fit

    @property
    def _straight(self) -> Hierarchy:
        *outside, last = self.whole.stages[: self.whole.making]
        return Hierarchy([*outside, Stage(last.flows, self.dim, last.off_manifold_scale)])

    @property
    def code_dims(self) -> tuple[int, int]:
        """See :attr:`Model.code_dims`."""
        return self._straight.code_dims

    @property
    def has_density(self) -> bool:
        """Whether the whole has one."""
        return self.whole.has_density

    @property
    def eigenvalues(self) -> Tensor | None:
        """See :attr:`Model.eigenvalues`."""
        return self._straight.eigenvalues

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode x and return the whole's log-density; see :meth:`Model.forward`."""
        on, off, log_prob = self.whole.encoded(x)
        made = self.whole.making - 1
        z = torch.cat([on[made], off[made]], 1)
        v = torch.cat([z[:, self.dim :], *off[:made][::-1]], 1)
        return z[:, : self.dim], v, log_prob

    def decode(self, u: Tensor, v: Tensor | None = None) -> Tensor:
        """Invert (u, v); without v the point on the manifold."""
        return self._straight.decode(u, v)

    def code_log_prob(self, u: Tensor) -> Tensor:
        """See :meth:`Model.code_log_prob`.

        Raises:
            UserError: The dimension is less than the hierarchy's: a marginal of its density, which
                is not known.
        """
        if self.dim < self.whole.dim:
            raise UserError(
                f"The density on the manifold of dimension {self.dim} is a marginal of that of "
                f"dimension {self.whole.dim}, and not known. Ask for {self.whole.dim} or more."
            )
        self._check_coordinates(u)
        z, rest = u[:, : self.whole.dim], u[:, self.whole.dim :]
        return self._code.log_prob(z) + self._made.off_manifold_log_prob(rest)

    def sample(
        self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw n events on the manifold: see :class:`Model`, and above."""
        weight, known = next(self.parameters()), self.whole.dim
        drawn = torch.randn(n, max(known, self.dim), generator=generator, dtype=weight.dtype)
        drawn = temperature * drawn.to(weight.device)
        with torch.no_grad():
            z = self._code.decode(drawn[:, :known])
            rest = self._made.off_manifold_scale * drawn[:, known:]
            return self.decode(torch.cat([z, rest], 1)[:, : self.dim])

    @property
    def _code(self) -> Hierarchy:
        return self.whole.part(self.whole.making + 1)

    @property
    def _made(self) -> Stage:
        return self.whole.stages[self.whole.making - 1]

    @property
    def config(self) -> dict[str, Any]:
        """The dimension, and the hierarchy."""
        return {"dim": self.dim, **self.whole.config}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build an untrained slice of an architecture."""
        checked = SliceConfig(**config)
        return cls(Hierarchy.from_config({"stages": checked.stages}), checked.dim)


class SliceConfig(HierarchyConfig):
    """What :attr:`Slice.config` is."""

    dim: PositiveInt
