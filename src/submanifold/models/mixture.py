"""A mixture of hierarchies: several charts of one manifold, and the exact density of them all."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import scipy  # whose parts load where they are used
import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from typing_extensions import Self

from submanifold.common.errors import UserError
from submanifold.models.hierarchy import Hierarchy, HierarchyConfig
from submanifold.models.model import Model


class Charted(NamedTuple):
    """What every chart makes of a batch.

    Attributes:
        u: Coordinates on each chart, (K, batch, d).
        v: Coordinates off it, (K, batch, D - d).
        joint: Log pi_k p_k(x) in nats, (K, batch).
    """

    u: Tensor
    v: Tensor
    joint: Tensor

    @property
    def responsibilities(self) -> Tensor:
        """Posterior probability of each chart, (K, batch)."""
        return self.joint.softmax(0)


class Mixture(Model):
    r"""K hierarchies :math:`p_k`, each a chart of the manifold, and one density of them together.

    .. math:: p(x) = \sum_k \pi_k\, p_k(x), \qquad r_k(x) = \pi_k\, p_k(x) / p(x)

    exact and normalised on all of R^D. One chart is a map of R^d and has no circle, no sphere and
    no torus; several overlap and close them (the paper's section 6; Kalatzis et al. 2021). An event
    is encoded and projected by the chart that is responsible for it, the one of the largest
    :math:`r_k`. The last of its d + 1 coordinates u is that chart's number, 0 to K - 1.

    Its charts start apart: each sets what it sets from data by one cluster (k-means) of the first
    batch.

    Args:
        charts: Hierarchies of one architecture.

    Attributes:
        dim: d.
        logits: Log pi, but for a constant, (K,).

    Raises:
        UserError: There is no chart, or they differ in what they act on or in dimension.

    Example:
        >>> charts = [Hierarchy([Stage(RealNVP(3), dim=2)]) for _ in range(2)]
        >>> mixture = Mixture(charts)
        >>> u, v = mixture.encode(torch.randn(5, 3))
        >>> u.shape, v.shape, mixture.decode(u).shape
        (torch.Size([5, 3]), torch.Size([5, 1]), torch.Size([5, 3]))
    """

    kind = "mixture"

    def __init__(self, charts: Sequence[Hierarchy]):
        super().__init__()
        if not charts:
            raise UserError("charts: a mixture has at least one.")
        if len({(chart.event_shape, *chart.dims) for chart in charts}) > 1:
            raise UserError("charts: all have to be of one shape and of the same dimensions.")
        self.charts: Sequence[Hierarchy] = nn.ModuleList(charts)  # type: ignore[assignment]
        self.logits = nn.Parameter(torch.zeros(len(charts)))
        self.event_shape, self.dim = charts[0].event_shape, charts[0].dim
        self.pending = False

    @property
    def dims(self) -> list[int]:
        """D, d_1, ..., d_M of every chart."""
        return self.charts[0].dims

    @property
    def code_dims(self) -> tuple[int, int]:
        """See :attr:`Model.code_dims`: d + 1 with the chart's number, and those of a chart."""
        return self.dim + 1, self.charts[0].code_dims[1]

    @property
    def has_density(self) -> bool:
        """Whether every chart has one."""
        return all(chart.has_density for chart in self.charts)

    def charted(self, x: Tensor) -> Charted:
        """Encode x (batch, ...) on every chart."""
        self._check_events(x)
        if self.pending:
            self._begin(x)
        u, v, log_prob = (torch.stack(each) for each in zip(*(c(x) for c in self.charts)))  # noqa: B905
        return Charted(u, v, self.logits.log_softmax(0)[:, None] + log_prob)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode x on its chart and return its log-density; see :meth:`Model.forward`."""
        return self.chosen(self.charted(x))

    def chosen(self, charted: Charted) -> tuple[Tensor, Tensor, Tensor]:
        """What :meth:`forward` returns, of events that are encoded on every chart."""
        number = charted.joint.argmax(0)
        u = torch.cat([_pick(charted.u, number), number[:, None].to(charted.u.dtype)], 1)
        return u, _pick(charted.v, number), charted.joint.logsumexp(0)

    def decode(self, u: Tensor, v: Tensor | None = None) -> Tensor:
        """Invert (u, v) on the chart that u says; without v the point on the manifold."""
        self._check_coordinates(u, v)
        inside = self.coordinates(u)
        decoded = torch.stack([chart.decode(inside, v) for chart in self.charts])
        return _pick(decoded, self._chart(u))

    def coordinates(self, u: Tensor) -> Tensor:
        """Leave out the number of the chart, the last of u: (batch, d)."""
        return u[:, : self.dim]

    def _chart(self, u: Tensor) -> Tensor:
        """The number of the chart of each u, (batch,)."""
        return u[:, self.dim].detach().round().long().clamp(0, len(self.charts) - 1)

    @torch.no_grad()
    def overlap(self, u: Tensor) -> Tensor:
        r""":math:`\log \pi_k - \log r_k(y)` at y = g_k(u) on the chart k of u, (batch,).

        Where charts overlap, on one manifold and of one thickness, densities on it add up as those
        on all of space do, of which :math:`r_k(y)` is the chart's share.
        """
        joint, number = self.charted(self.decode(u)).joint, self._chart(u)
        return joint.logsumexp(0) - _pick(joint, number) + self.logits.log_softmax(0)[number]

    def sample(
        self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw n events on the manifold, each from a chart drawn by pi: see :meth:`Model`."""
        shares = self.logits.detach().cpu().softmax(0)
        # which refuses to draw 0 numbers
        number = torch.multinomial(shares, max(n, 1), replacement=True, generator=generator)[:n]
        u = torch.randn(n, self.dim, generator=generator, dtype=self.logits.dtype)
        coded = torch.cat([temperature * u, number[:, None].to(u.dtype)], 1)
        with torch.no_grad():
            return self.decode(coded.to(self.logits.device))

    @torch.no_grad()
    def _begin(self, x: Tensor) -> None:
        """Set the charts from clusters of x, and pi from their sizes."""
        self.pending = False
        points = x.flatten(1).double().cpu().numpy()
        _, labels = scipy.cluster.vq.kmeans2(points, len(self.charts), minit="++", seed=0)
        members = [torch.from_numpy(labels == k).to(x.device) for k in range(len(self.charts))]
        for chart, own in zip(self.charts, members, strict=True):
            chart(x[own] if own.sum() > 1 else x)
        sizes = torch.stack([own.sum() for own in members])
        self.logits.copy_(sizes.clamp_min(1).to(self.logits).log())

    @property
    def config(self) -> dict[str, Any]:
        """How many charts there are, and what the stages of each are."""
        return {"charts": len(self.charts), **self.charts[0].config}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build an untrained mixture of an architecture."""
        checked = MixtureConfig(**config)
        stages = {"stages": checked.stages}
        return cls([Hierarchy.from_config(stages) for _ in range(checked.charts)])


class MixtureConfig(HierarchyConfig):
    """What :attr:`Mixture.config` is."""

    charts: PositiveInt


def _pick(stacked: Tensor, number: Tensor) -> Tensor:
    """Of (K, batch, ...) that of each event's own number, (batch, ...)."""
    return stacked[number, torch.arange(len(number), device=number.device)]
