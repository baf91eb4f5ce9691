"""Conformal embeddings (Ross & Cresswell 2021): manifolds whose volume is a power of a scale."""

import math
from collections.abc import Sequence
from copy import deepcopy

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from submanifold.common.errors import UserError
from submanifold.flows.bijection import Bijection, Compose, Injection, full_precision
from submanifold.flows.gaussianization import Reflections
from submanifold.flows.reshape import Squeeze


class Similarity(Bijection):
    r"""One scale for all numbers, and a shift for each channel, :math:`z = (x - b)\, e^{s}`.

    It starts as the identity; :func:`initialize` sets it from data so that each channel of z has
    mean 0, and all together have variance 1.

    Args:
        channels: Number of channels, the second axis of x: (batch, channels, ...).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.pending = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale (batch, channels, ...)."""
        if self.pending:
            self.fit(x)
        z = (x - self._shift(x)) * self.log_scale.exp()
        return z, (self.log_scale * x.shape[1:].numel()).expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        """Scale and shift back."""
        return z * (-self.log_scale).exp() + self._shift(z)

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Set shift and scale from a batch."""
        self.shift.copy_(x.mean([axis for axis in range(x.ndim) if axis != 1]))
        rms = (x - self._shift(x)).square().mean().sqrt()
        self.log_scale.copy_(-rms.clamp_min(1e-6).log())
        self.pending = False

    def _shift(self, x: Tensor) -> Tensor:
        return self.shift.view(1, -1, *(1 for _ in x.shape[2:]))


class SpecialConformal(Bijection):
    r"""An inversion, a shift, and an inversion: what makes spheres of planes.

    .. math:: z = \frac{x - \langle x, x\rangle\, w}
                       {1 - 2 \langle w, x\rangle + \langle w, w\rangle \langle x, x\rangle},
              \qquad \langle a, b\rangle = \tfrac1n \sum_i a_i b_i

    (Ross & Cresswell 2021, with w / n for their b). Lengths at x are divided by the
    denominator, so that :math:`\log|\det J|` is -n times its logarithm; the inverse is the same map
    with -w. What is sent to infinity has, like w, the mean square :math:`1/\langle w, w\rangle`.
    It starts as the identity, w = 0, and so with nothing near infinity.

    Args:
        dim: Number of coordinates, n.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Bend (batch, dim)."""
        return self._bend(x, self.weight)

    def inverse(self, z: Tensor) -> Tensor:
        """Bend back."""
        return self._bend(z, -self.weight)[0]

    def _bend(self, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        square = x.square().mean(1, keepdim=True)
        shrinking = 1 - 2 * (x * w).mean(1, keepdim=True) + w.square().mean() * square
        # no number where it is zero, and rounding may leave it below
        shrinking = shrinking.clamp_min(torch.finfo(x.dtype).eps)
        return (x - square * w) / shrinking, -len(w) * shrinking[:, 0].log()


class Orthogonal(Reflections):
    r"""Reflections, all of them at once, for there may be hundreds.

    .. math:: H_n \cdots H_1 = I - V^T S^{-T} V, \qquad
              S_{ij} = v_i^T v_j \;(i < j), \quad S_{ii} = \tfrac12 |v_i|^2

    with rows :math:`v_i` of V and S upper triangular (Joffrain et al. 2006, "Accumulating
    Householder transformations, revisited").
    """

    def _reflect(self, x: Tensor, vectors: Tensor) -> Tensor:
        with full_precision(x):
            products = vectors @ vectors.T
            triangle = products.triu(1) + 0.5 * products.diagonal().diag()
            inner = torch.linalg.solve_triangular(triangle, x @ vectors.T, upper=True, left=False)
            return x - inner @ vectors


class Principal(Orthogonal):
    """An orthogonal matrix that :func:`initialize` sets from data.

    The first coordinates of what comes out are then the principal components, largest first, as
    many of them as there are reflections.

    Args:
        dim: Number of coordinates.
        count: Number of reflections.
    """

    def __init__(self, dim: int, count: int):
        super().__init__(dim, count)
        self.pending = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Turn (batch, dim)."""
        if self.pending:
            self.fit(x)
        return super().forward(x)

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Set the first axes from a batch; those that a small one leaves open are random."""
        count, dim = self.vectors.shape
        axes = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:count]
        others = torch.randn(count - len(axes), dim, dtype=x.dtype, device=x.device)
        packed, _ = torch.geqrf(torch.cat([axes, others]).T)
        vectors = packed.tril(-1)
        vectors.diagonal().fill_(1)
        # the longer, the slower they turn in training: as long as random ones
        self.vectors.copy_(dim**0.5 * F.normalize(vectors.T, dim=1))
        self.pending = False


class ConditionalOrthogonal(Bijection):
    r"""One orthogonal matrix for short vectors and one for long ones, at every position alike.

    .. math:: z_i = \begin{cases} Q_1 x_i & |x_i|^2 < n \\ Q_2 x_i & \text{otherwise} \end{cases}

    (Ross & Cresswell 2021, but with n for their 1). Both keep the length, from which the
    inverse knows which it was; the log-determinant is 0. It jumps at that length, unless the
    matrices are the same, as they are at the start.

    Args:
        channels: n, the second axis of x: (batch, channels, ...).
        count: Reflections of each matrix.
    """

    def __init__(self, channels: int, count: int):
        super().__init__()
        self.short = Orthogonal(channels, count)
        self.long = deepcopy(self.short)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Turn the channels of (batch, channels, ...)."""
        return self._turn(x, back=False), x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        """Turn them back."""
        return self._turn(z, back=True)

    def _turn(self, x: Tensor, back: bool) -> Tensor:
        last = x.movedim(1, -1)
        rows = last.flatten(0, -2)
        matrices = self.short, self.long
        short, long = (q.inverse(rows) if back else q(rows)[0] for q in matrices)
        turned = torch.where(rows.square().mean(1, keepdim=True) < 1, short, long)
        return turned.view(last.shape).movedim(-1, 1)


class Conformal(Injection):
    r"""A manifold on which g changes all lengths at a point alike.

    .. math:: J_g^T J_g = \lambda(u)^2 I, \qquad
              -\tfrac12 \log\det J_g^T J_g = -d \log\lambda(u)

    (Ross & Cresswell 2021, "Tractable Density Estimation on Learned Manifolds with Conformal
    Embedding Flows"). It decodes by zeros after the d latents, an orthogonal matrix, a
    :class:`SpecialConformal` map, and layers of a :class:`ConditionalOrthogonal` map each, with a
    :class:`Similarity` wherever the scale matters, and encodes by undoing them and leaving out what
    the zeros were. On images each layer also halves the sides of what it turns, as long as they
    are even: it acts on patches of 2, 4, 8... pixels in the sense of a 1x1 convolution.

    In more than two dimensions all smooth conformal maps of space consist of similarities and
    inversions (Liouville's theorem). The manifold is therefore a plane or a sphere, and with layers
    it is pieces of those, cut where a vector has the length at which a layer changes matrices.
    :func:`initialize` makes a fresh one the plane of the first d principal components.

    Args:
        event_shape: (channels, height, width) of an image, or the count of a vector's numbers.
        dim: d.
        layers: Number of conditional orthogonal maps.
        reflections: Of each of their matrices; as many as its channels when None.

    Raises:
        UserError: d is more than an event has numbers.

    Example:
        >>> flow = Conformal((3, 8, 8), 5)
        >>> u, volume = flow(torch.rand(2, 3, 8, 8) - 0.5)
        >>> u.shape, volume.shape, flow.inverse(u).shape
        (torch.Size([2, 5]), torch.Size([2]), torch.Size([2, 3, 8, 8]))
    """

    axes = (1, 3)
    has_volume = True

    def __init__(
        self,
        event_shape: Sequence[int],
        dim: PositiveInt,
        layers: NonNegativeInt = 3,
        reflections: PositiveInt | None = None,
    ):
        super().__init__()
        self.event_shape, self.dim = tuple(event_shape), dim
        self.config = {"event_shape": list(event_shape), "dim": dim, "layers": layers,
                       "reflections": reflections}  # fmt: skip
        size = math.prod(event_shape)
        if dim > size:
            raise UserError(
                f"A manifold of dimension {dim} does not fit into events of shape "
                f"{self.event_shape}, which have {size} numbers. Take fewer dimensions."
            )
        channels, *sides = event_shape
        pieces: list[Bijection] = []
        for _ in range(layers):
            if sides and all(side % 2 == 0 for side in sides):
                pieces.append(Squeeze())
                channels, sides = 4 * channels, [side // 2 for side in sides]
            turn = ConditionalOrthogonal(channels, min(reflections or channels, channels))
            pieces += [Similarity(channels), turn]
        self.cut_shape = (channels, *sides)
        self.cuts = Compose(pieces)
        self.centre = Similarity(size)
        self.bend = SpecialConformal(size)
        self.turn = Principal(size, dim)
        self.scale = Similarity(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map events to (latents (batch, d), -d log lambda at them)."""
        with full_precision(x):
            cut, cuts = self.cuts(x)
            centred, centre = self.centre(cut.flatten(1))
            turned, _ = self.turn(self.bend(centred)[0])
            u, scale = self.scale(turned[:, : self.dim])
            # all others have the same scale everywhere; the bend's is needed on the manifold
            _, bend = self.bend(self.bend.inverse(self._plane(u)))
            share = self.dim / math.prod(self.event_shape)
            return u, share * (cuts + centre + bend) + scale

    def inverse(self, z: Tensor) -> Tensor:
        """Map latents (batch, d) to the events on the manifold."""
        with full_precision(z):
            centred = self.bend.inverse(self._plane(z))
            return self.cuts.inverse(self.centre.inverse(centred).unflatten(1, self.cut_shape))

    def _plane(self, u: Tensor) -> Tensor:
        """Where latents are before the bend."""
        zeros = math.prod(self.event_shape) - self.dim
        return self.turn.inverse(F.pad(self.scale.inverse(u), (0, zeros)))
