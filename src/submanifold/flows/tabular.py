"""Noise-conditional flows of tables: splines of the columns, linear maps and affine couplings."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from submanifold.flows import spline
from submanifold.flows.bijection import Bijection, Compose, DataInitialized, Flow, full_precision
from submanifold.flows.conditional import ConditionalLayer, context_of, noise_scale_of, values_of
from submanifold.flows.context import Context
from submanifold.flows.coupling import MAX_SHIFT, Coupling, mlp
from submanifold.flows.linear import ActNorm, Linear

# columns above which there are no splines, which are slow, and no learned matrices, whose
# determinants take cubic time
LARGEST_MIXED = 256
ENOUGH_ROWS = 1500  # below which splines at the quantiles would overfit
SMALLEST_TAIL = 2e-4  # probability beyond the outer knots
SMALLEST_BIN = 1e-3  # width of a bin in standard deviations
CONTEXT_BINS = 8  # of the spline that depends on a context


class QuantileSpline(DataInitialized, Bijection):
    r"""Monotonic rational-quadratic spline of each coordinate, linear beyond the outer knots.

    In a bin from :math:`(x_0, y_0)` to :math:`(x_1, y_1)` with derivatives :math:`\delta_0,
    \delta_1` at its ends, :math:`s = (y_1 - y_0) / (x_1 - x_0)` and
    :math:`\xi = (x - x_0) / (x_1 - x_0)`,

    .. math:: z = y_0 + (y_1 - y_0) \frac{s \xi^2 + \delta_0 \xi (1 - \xi)}
              {s + (\delta_0 + \delta_1 - 2 s)\, \xi (1 - \xi)}

    (Gregory & Delbourgo 1982; Durkan et al. 2019). It starts as the identity. Data-dependent
    initialization maps the quantiles of the data to those of the normal distribution, but leaves
    the identity if there are fewer than 1,500 rows, to which the splines would overfit.
    """

    def __init__(self, dim: int, bins: int):
        super().__init__()
        width = 6.0 / bins
        self.starts = nn.Parameter(torch.full((dim, 2), -3.0))
        self.log_widths = nn.Parameter(torch.full((dim, bins), width).log())
        self.log_heights = nn.Parameter(torch.full((dim, bins), width).log())
        self.log_slopes = nn.Parameter(torch.zeros(dim, bins + 1))

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        with full_precision(x):
            z, log_derivative = spline.transform(x, self._knots(x, context))
            return z, log_derivative.sum(1)

    def inverse(self, z: Tensor, context: Context | None = None) -> Tensor:
        with full_precision(z):
            return spline.invert(z, self._knots(z, context))

    def initialize_from(self, x: Tensor) -> None:
        if len(x) < ENOUGH_ROWS:
            return
        x = x.double()
        tail = max(2 / len(x), SMALLEST_TAIL)
        end = -torch.special.ndtri(torch.tensor(tail, dtype=x.dtype)).item()
        bins = self.log_widths.shape[1]
        normal = torch.linspace(-end, end, bins + 1, dtype=x.dtype, device=x.device)
        # without torch.quantile, which refuses large inputs
        ranks = torch.special.ndtr(normal) * (len(x) - 1)
        ordered = x.sort(0).values
        below = ordered[ranks.long()]
        above = ordered[(ranks.long() + 1).clamp_max(len(x) - 1)]
        knots = torch.lerp(below, above, ranks.frac()[:, None]).T
        smallest = SMALLEST_BIN * x.std(0, correction=0).clamp_min(1e-6)
        widths = knots.diff(dim=1).maximum(smallest[:, None])
        log_slopes = (normal.diff() / widths).log()
        self.starts.copy_(torch.stack([knots[:, 0], torch.full_like(knots[:, 0], -end)], 1))
        self.log_widths.copy_(widths.log())
        self.log_heights.copy_(normal.diff().log().expand_as(widths))
        padded = F.pad(log_slopes, (1, 1), mode="replicate")
        self.log_slopes.copy_((padded[:, 1:] + padded[:, :-1]) / 2)

    def _knots(self, x: Tensor, context: Context | None = None) -> spline.Knots:
        return spline.knots_of(*self._spline_parameters(x, context))

    def _spline_parameters(self, x: Tensor, context: Context | None) -> Iterable[Tensor]:
        return self.starts, self.log_widths, self.log_heights, self.log_slopes


class NoiseFeatures(ConditionalLayer):
    r"""Append r = 2 s - 1 and :math:`r^2 - 1` to vectors; s is the noise scale, by default 0."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def forward(self, a: Tensor, context: Context | None) -> Tensor:
        scale = noise_scale_of(context, a)
        r = 2 * scale - 1
        return torch.cat([a, r, r.square() - 1], 1)


class ContextSpline(QuantileSpline):
    r"""Spline of each coordinate whose knots depend on the context and on the noise scale.

    The parameters of :class:`QuantileSpline` are shifted by a linear function of the embedding of
    the context, (size,), and of the :class:`NoiseFeatures`. It starts as the identity.
    """

    def __init__(self, dim: int, bins: int, size: int):
        super().__init__(dim, bins)
        self.noise = NoiseFeatures()
        self.weight = nn.Parameter(torch.zeros(dim * (3 * bins + 3), size + 2))

    def initialize_from(self, x: Tensor) -> None:
        """Keep the identity."""

    def _spline_parameters(self, x: Tensor, context: Context | None) -> Iterable[Tensor]:
        parameters = [*super()._spline_parameters(x, context)]
        sizes = [parameter.shape[1] for parameter in parameters]
        raw = F.linear(self.noise(values_of(context, x), context), self.weight)
        shifts = MAX_SHIFT * torch.tanh(raw / MAX_SHIFT)
        shifts = shifts.unflatten(1, (len(self.starts), sum(sizes)))
        return map(torch.add, parameters, shifts.split(sizes, 2))


class NoiseConditionalCoupling(Coupling):
    """Affine coupling of halves of vectors, whose net also receives the noise scale.

    With ``swap`` the first half is transformed, instead of the second one.
    """

    def __init__(self, dim: int, hidden: int, swap: bool):
        free = (dim + 1) // 2
        layers = NoiseFeatures(), *mlp(dim - free + 2, hidden, 2 * free, nn.SiLU)
        super().__init__(nn.Sequential(*layers))
        self.swap, self.sizes = swap, [free, dim - free] if swap else [dim - free, free]

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.split(self.sizes, 1)
        return (second, first) if self.swap else (first, second)

    def join(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([b, a] if self.swap else [a, b], 1)


class Tabular(Compose, Flow):
    r"""Noise-conditional flow of tables: a spline of each column, linear maps, affine couplings.

    The first layer maps the quantiles of each column to those of the normal distribution, and the
    second one whitens; then couplings and learned linear maps alternate. So data-dependent
    initialization already fits a Gaussian copula. The noise scale (:class:`.Context`) is an
    input of the coupling nets.

    Above 256 columns there are no splines and no learned matrices. Couplings transform both halves
    in turn. Given a context, but for a mask, the last layer is a spline whose knots depend on it.

    Args:
        dim: Number of columns.
        couplings: Number of couplings.
        hidden: Width of the two hidden layers of a coupling net.
        bins: Bins of each spline; without splines if it is 0.

    Example:
        >>> flow = Tabular(4)
        >>> z, log_det = flow(torch.randn(3, 4))
        >>> z.shape, log_det.shape
        (torch.Size([3, 4]), torch.Size([3]))
    """

    axes = (1,)
    takes_noise_scale = True

    def __init__(
        self,
        dim: int,
        couplings: PositiveInt = 6,
        hidden: PositiveInt = 64,
        bins: NonNegativeInt = 32,
    ):
        mixes = dim <= LARGEST_MIXED
        layers: list[Bijection] = [QuantileSpline(dim, bins)] if bins and mixes else []
        for index in range(couplings):
            layers.append(Linear(dim, whiten=index == 0) if mixes else ActNorm(dim))
            layers.append(NoiseConditionalCoupling(dim, hidden, swap=index % 2 == 1))
        layers.append(Linear(dim) if mixes else ActNorm(dim))
        super().__init__(layers)
        self.event_shape = (dim,)

    def add_context(self, size: int) -> None:
        super().add_context(size)
        (dim,) = self.event_shape
        # couplings of one column are affine: without a spline that depends on the context, its
        # density would be a Gaussian of a transformed column
        if dim <= LARGEST_MIXED and size > (context_of(self).get("mask") or 0):
            self.bijections.append(ContextSpline(dim, CONTEXT_BINS, size))  # type: ignore[attr-defined]
