"""A mixture of hierarchies, which are the charts of one manifold."""

from collections.abc import Sequence
from typing import NamedTuple

import scipy  # its submodules are imported lazily
import torch
from torch import Tensor, nn

from submanifold.flows import DataInitialized
from submanifold.flows.context import Context
from submanifold.models.defensive import DefensiveComponent, build_component
from submanifold.models.hierarchy import Hierarchy
from submanifold.models.model import Model
from submanifold.models.stage import standard_normal_log_prob


class ChartEncoding(NamedTuple):
    """Events that are encoded by each of K charts; ``joint`` is log pi_k p_k(x), (K, batch).

    Its softmax over k are the responsibilities, the posterior probabilities of the charts.
    """

    u: Tensor
    v: Tensor
    joint: Tensor


class Mixture(DataInitialized, Model):
    r"""K hierarchies :math:`p_k`, each a chart of the manifold, with a common density.

    .. math:: p(x) = \sum_k \pi_k\, p_k(x), \qquad r_k(x) = \pi_k\, p_k(x) / p(x)

    is exact and normalized on R^D. Overlapping charts can form a circle, a sphere or a torus, which
    one map of R^d cannot (the paper's section 6; Kalatzis et al. 2021). An event is encoded by the
    chart of the largest responsibility :math:`r_k`, whose index, 0 to K - 1, is the last of the
    d + 1 columns of u. The first batch initializes each chart from one of its clusters (k-means).
    Charts have equal event shapes and dimensions. ``logits`` are log pi up to a constant, (K,).

    Example:
        >>> charts = [Hierarchy([Stage(RealNVP(3), dim=2)]) for _ in range(2)]
        >>> mixture = Mixture(charts)
        >>> u, v = mixture.encode(torch.randn(5, 3))
        >>> u.shape, v.shape, mixture.decode(u).shape
        (torch.Size([5, 3]), torch.Size([5, 1]), torch.Size([5, 3]))
    """

    kind, parts = "mixture", {"charts": Hierarchy, "defensive": build_component}

    def __init__(self, charts: Sequence[Hierarchy], defensive: DefensiveComponent | None = None):
        chart = charts[0]
        has_density = all(chart.has_density for chart in charts)
        super().__init__(chart.event_shape, chart.dim, has_density, defensive)
        self.charts: Sequence[Hierarchy] = nn.ModuleList(charts)  # type: ignore[assignment]
        self.logits = nn.Parameter(torch.zeros(len(charts)))

    @property
    def dims(self) -> list[int]:
        return self.charts[0].dims

    @property
    def code_dims(self) -> tuple[int, int]:
        return self.dim + 1, self.charts[0].code_dims[1]

    def encode_on_charts(self, x: Tensor, context: Context | None = None) -> ChartEncoding:
        """Encode x (batch, ...) by every chart."""
        self._check(x=x)
        encoded = [chart(x, context) for chart in self.charts]
        u, v, log_prob = map(torch.stack, zip(*encoded, strict=True))
        return ChartEncoding(u, v, self.logits.log_softmax(0)[:, None] + log_prob)

    def select_chart(self, encoded: ChartEncoding) -> tuple[Tensor, Tensor, Tensor]:
        """Return u and v of the responsible charts, and log p(x), as :meth:`forward`."""
        index = encoded.joint.argmax(0)
        u = torch.cat([_select(encoded.u, index), index[:, None].to(encoded.u.dtype)], 1)
        return u, _select(encoded.v, index), encoded.joint.logsumexp(0)

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor, Tensor]:
        return self.select_chart(self.encode_on_charts(x, context))

    def _decode(self, u: Tensor, v: Tensor | None = None, context: Context | None = None) -> Tensor:
        self._check(u=u, v=v)
        coordinates = self.coordinates(u)
        decoded = torch.stack([chart.decode(coordinates, v, context) for chart in self.charts])
        return _select(decoded, self._chart_index(u))

    def code_log_prob(self, u: Tensor, context: Context | None = None) -> Tensor:
        self._check(u=u)
        return standard_normal_log_prob(self.coordinates(u)) + self.overlap(u, context)

    def coordinates(self, u: Tensor) -> Tensor:
        return u[:, : self.dim]

    def _chart_index(self, u: Tensor) -> Tensor:
        return u[:, self.dim].detach().round().long().clamp(0, len(self.charts) - 1)

    @torch.no_grad()
    def overlap(self, u: Tensor, context: Context | None = None) -> Tensor:
        r"""Compute :math:`\log \pi_k - \log r_k(y)` at y = g_k(u) on the chart k of u, (batch,).

        Densities on overlapping charts add up in the same proportions as densities on R^D.
        """
        y, index = self.decode(u, context=context), self._chart_index(u)
        joint = self.encode_on_charts(y, context).joint
        return joint.logsumexp(0) - _select(joint, index) + self.logits.log_softmax(0)[index]

    def _draw_codes(
        self, n: int, temperature: float, generator: torch.Generator | None, context: Context | None
    ) -> Tensor:
        probabilities = self.logits.detach().cpu().softmax(0)
        # torch.multinomial cannot draw 0 samples
        index = torch.multinomial(probabilities, max(n, 1), replacement=True, generator=generator)
        u = torch.randn(n, self.dim, generator=generator, dtype=self.logits.dtype)
        return torch.cat([temperature * u, index[:n, None].to(u.dtype)], 1)

    def initialize_from(self, x: Tensor) -> None:
        """Initialize each chart from a cluster of x, and pi from the sizes of the clusters."""
        points = x.flatten(1).double().cpu().numpy()
        _, labels = scipy.cluster.vq.kmeans2(points, len(self.charts), minit="++", seed=0)
        members = [torch.from_numpy(labels == k).to(x.device) for k in range(len(self.charts))]
        for chart, member in zip(self.charts, members, strict=True):
            chart(x[member] if member.sum() > 1 else x)
        sizes = torch.stack([member.sum() for member in members])
        self.logits.copy_(sizes.clamp_min(1).to(self.logits).log())


def _select(stacked: Tensor, index: Tensor) -> Tensor:
    """Select from (K, batch, ...) by the index of each event, (batch, ...)."""
    return stacked[index, torch.arange(len(index), device=index.device)]
