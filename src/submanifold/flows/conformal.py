"""Conformal embedding flows (Ross & Cresswell 2021)."""

import math
from collections.abc import Sequence
from copy import deepcopy

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from submanifold.common.errors import UserError
from submanifold.flows.bijection import Bijection, Compose, Injection, full_precision
from submanifold.flows.context import Context
from submanifold.flows.linear import Similarity
from submanifold.flows.orthogonal import BlockReflections, PrincipalReflections
from submanifold.flows.reshape import Squeeze


class SpecialConformal(Bijection):
    r"""Special conformal transformation: an inversion, a translation and an inversion.

    .. math:: z = \frac{x - \langle x, x\rangle\, w}
                       {1 - 2 \langle w, x\rangle + \langle w, w\rangle \langle x, x\rangle},
              \qquad \langle a, b\rangle = \tfrac1n \sum_i a_i b_i

    (Ross & Cresswell 2021, with b = w / n.) It maps planes to spheres. :math:`\log|\det J|` is -n
    times the logarithm of the denominator, the inverse has -w, and w starts at 0.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        return self._transform(x, self.weight)

    def inverse(self, z: Tensor, context: Context | None = None) -> Tensor:
        return self._transform(z, -self.weight)[0]

    def _transform(self, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        square = x.square().mean(1, keepdim=True)
        denominator = 1 - 2 * (x * w).mean(1, keepdim=True) + w.square().mean() * square
        # 0 at the point that maps to infinity; rounding errors can make it negative
        denominator = denominator.clamp_min(torch.finfo(x.dtype).eps)
        return (x - square * w) / denominator, -len(w) * denominator[:, 0].log()


class ConditionalOrthogonal(Bijection):
    r"""One orthogonal matrix for short vectors and another for long ones, at each position.

    .. math:: z_i = \begin{cases} Q_1 x_i & |x_i|^2 < n \\ Q_2 x_i & \text{otherwise} \end{cases}

    (Ross & Cresswell 2021, with n for their 1, the number of channels.) Both matrices, products of
    ``count`` reflections, keep the length, by which the inverse chooses the matrix. They are equal
    at the start; once they differ, the map is discontinuous.
    """

    def __init__(self, channels: int, count: int):
        super().__init__()
        self.short = BlockReflections(channels, count)
        self.long = deepcopy(self.short)

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        return self._rotate(x, inverse=False), x.new_zeros(x.shape[0])

    def inverse(self, z: Tensor, context: Context | None = None) -> Tensor:
        return self._rotate(z, inverse=True)

    def _rotate(self, x: Tensor, inverse: bool) -> Tensor:
        last = x.movedim(1, -1)
        vectors = last.flatten(0, -2)
        matrices = self.short, self.long
        short, long = (q.inverse(vectors) if inverse else q(vectors)[0] for q in matrices)
        rotated = torch.where(vectors.square().mean(1, keepdim=True) < 1, short, long)
        return rotated.view(last.shape).movedim(-1, 1)


class Conformal(Injection):
    r"""Embedding g that scales lengths equally in all directions.

    .. math:: J_g^T J_g = \lambda(u)^2 I, \qquad
              -\tfrac12 \log\det J_g^T J_g = -d \log\lambda(u)

    (Ross & Cresswell 2021.) g pads u with zeros and applies an orthogonal matrix, a
    :class:`SpecialConformal` map and layers of :class:`ConditionalOrthogonal` maps, with a
    :class:`Similarity` wherever the scale matters. On images each layer squeezes, as long as height
    and width are even, and acts as a 1x1 convolution.

    The manifold consists of pieces of planes or spheres (Liouville's theorem). Data-dependent
    initialization makes it the plane of the first d principal components.

    Args:
        event_shape: Shape of an image or of a vector.
        dim: Dimension d of the manifold.
        layers: Number of conditional orthogonal maps.
        reflections: Reflections of each of their matrices; None is the number of channels.

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
        size = math.prod(event_shape)
        if dim > size:
            expected = f"at most {size} for events of shape {self.event_shape}"
            raise UserError(f"dim: expected {expected}, got {dim}")
        channels, *sides = event_shape
        bijections: list[Bijection] = []
        for _ in range(layers):
            if sides and all(side % 2 == 0 for side in sides):
                bijections.append(Squeeze())
                channels, sides = 4 * channels, [side // 2 for side in sides]
            rotation = ConditionalOrthogonal(channels, min(reflections or channels, channels))
            bijections += [Similarity(channels), rotation]
        self.inner_shape = (channels, *sides)
        self.layers = Compose(bijections)
        self.norm = Similarity(size)
        self.special_conformal = SpecialConformal(size)
        self.axes_of_plane = PrincipalReflections(size, dim)
        self.latent_norm = Similarity(dim)

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """Map events to latents (batch, d), and -d log lambda at them."""
        with full_precision(x):
            h, layers = self.layers(x)
            h, norm = self.norm(h.flatten(1))
            rotated, _ = self.axes_of_plane(self.special_conformal(h)[0])
            u, latent_norm = self.latent_norm(rotated[:, : self.dim])
            # the scale of the other maps is constant, this one depends on the point of the manifold
            projection = self.special_conformal.inverse(self._plane(u))
            _, special_conformal = self.special_conformal(projection)
            share = self.dim / math.prod(self.event_shape)
            return u, share * (layers + norm + special_conformal) + latent_norm

    def inverse(self, z: Tensor, context: Context | None = None) -> Tensor:
        with full_precision(z):
            h = self.norm.inverse(self.special_conformal.inverse(self._plane(z)))
            return self.layers.inverse(h.unflatten(1, self.inner_shape))

    def _plane(self, u: Tensor) -> Tensor:
        """Embed latents in the plane that the special conformal map bends."""
        zeros = math.prod(self.event_shape) - self.dim
        return self.axes_of_plane.inverse(F.pad(self.latent_norm.inverse(u), (0, zeros)))
