"""Orthogonal maps: Householder reflections, rotations of latents, and the cosine transform."""

import math
from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from submanifold.flows.bijection import Bijection, DataInitialized, Flow, full_precision
from submanifold.flows.context import Context

LARGEST_MATRIX = 4096  # rows of the largest matrix of which all axes are chosen


def random_orthonormal(rows: int, columns: int) -> Tensor:
    """Draw a (rows, columns) matrix with orthonormal columns."""
    if torch.empty(0).is_meta:
        return torch.empty(rows, columns)
    normal = torch.randn(rows, columns)
    return torch.linalg.householder_product(*torch.geqrf(normal))


class Reflections(Bijection):
    r"""Learned orthogonal matrix, a product of Householder reflections applied one by one.

    .. math:: z = H_n \cdots H_1 x, \qquad H_i = I - 2\, v_i v_i^T / |v_i|^2

    x is (batch, dim). The ``count`` vectors :math:`v_i` start at random (Meng et al. 2020).
    """

    def __init__(self, dim: int, count: int):
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(count, dim))

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        return self._reflect(x, self.vectors), x.new_zeros(x.shape[0])

    def inverse(self, z: Tensor, context: Context | None = None) -> Tensor:
        return self._reflect(z, self.vectors.flip(0))

    def _reflect(self, x: Tensor, vectors: Tensor) -> Tensor:
        with full_precision(x):
            for v in F.normalize(vectors, dim=1):
                x = x - 2 * (x @ v)[:, None] * v
            return x


class BlockReflections(Reflections):
    r""":class:`Reflections` applied at once, which is faster for hundreds of them.

    .. math:: H_n \cdots H_1 = I - V^T S^{-T} V, \qquad
              S_{ij} = v_i^T v_j \;(i < j), \quad S_{ii} = \tfrac12 |v_i|^2

    The rows of V are the :math:`v_i`, and S is upper triangular (Joffrain et al. 2006,
    "Accumulating Householder transformations, revisited").
    """

    def _reflect(self, x: Tensor, vectors: Tensor) -> Tensor:
        with full_precision(x):
            products = vectors @ vectors.T
            triangle = products.triu(1) + 0.5 * products.diagonal().diag()
            inner = torch.linalg.solve_triangular(triangle, x @ vectors.T, upper=True, left=False)
            return x - inner @ vectors


class PrincipalReflections(DataInitialized, BlockReflections):
    """Reflections onto principal axes.

    Data-dependent initialization makes the first ``count`` outputs the principal components of x,
    largest first, up to their signs.
    """

    def initialize_from(self, x: Tensor) -> None:
        # axes that a small batch leaves open are random
        count, dim = self.vectors.shape
        axes = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:count]
        others = torch.randn(count - len(axes), dim, dtype=x.dtype, device=x.device)
        vectors, _ = _householder_vectors(torch.cat([axes, others]).T)
        # training turns long vectors more slowly: use the length of random ones
        self.vectors.copy_(dim**0.5 * F.normalize(vectors.T, dim=1))


class Rotation(Flow):
    r"""Orthogonal map of flat latents, :math:`z' = Q z` with :math:`Q Q^T = I`.

    It keeps the density of a flow with standard normal latents (:ref:`theory-6`). It starts as the
    identity, is set by :meth:`fit` and has no trained parameters. Q is a dense matrix, or, to
    choose the first k axes only, given by :math:`Q^T = I - V T V^T` with V of shape (D, k) and
    upper triangular T of shape (k, k) (Schreiber & Van Loan 1989). A conversion to double precision
    makes it orthogonal to double precision, without which the inverse of a flow is wrong far from
    the data, where the latents are large.

    Args:
        dim: Number of coordinates, D.
        directions: k; None uses a dense matrix.

    Attributes:
        eigenvalues: Estimates of the diagonal of :math:`\mathrm{E}[J^T J]`, (D,), J the Jacobian of
            the decoder: the contribution of each latent to the squared error; 1 before :meth:`fit`.

    Example:
        >>> rotation = Rotation(4, directions=1)
        >>> rotation.fit(torch.full((4, 1), 0.5), eigenvalues=torch.ones(4))
        >>> rotation(torch.ones(1, 4))[0].abs().round(decimals=4) + 0.0
        tensor([[2., 0., 0., 0.]])
    """

    axes = (1,)

    def __init__(self, dim: int, directions: PositiveInt | None = None):
        super().__init__()
        self.event_shape = (dim,)
        self.directions = dim if directions is None else directions
        self.is_dense = directions is None
        self.eigenvalues = nn.Buffer(torch.ones(dim))
        if self.is_dense:
            # torch.eye imports sympy on the meta device
            self.matrix = nn.Buffer(torch.zeros(dim, dim).fill_diagonal_(1.0))
        else:
            self.reflectors = nn.Buffer(torch.zeros(dim, self.directions))
            self.triangle = nn.Buffer(torch.zeros(self.directions, self.directions))

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        with full_precision(x):
            z = x @ self.matrix.T if self.is_dense else self._reflect(x, self.triangle)
            return z, x.new_zeros(x.shape[0])

    def leading(self, x: Tensor, count: int) -> Tensor:
        """Compute the first coordinates (batch, count) of :meth:`forward`."""
        with full_precision(x):
            return x @ self.matrix[:count].T if self.is_dense else self(x)[0][:, :count]

    def inverse(self, z: Tensor, context: Context | None = None) -> Tensor:
        """Rotate back (batch, D), or (batch, d) with d < D, whose other latents are zero."""
        with full_precision(z):
            if self.is_dense:
                return z @ self.matrix[: z.shape[1]]
            z = F.pad(z, (0, len(self.eigenvalues) - z.shape[1]))
            return self._reflect(z, self.triangle.T)

    @torch.no_grad()
    def fit(self, axes: Tensor, eigenvalues: Tensor) -> None:
        """Make the orthonormal columns of ``axes`` (D, k) the first axes, up to their signs."""
        self.eigenvalues.copy_(eigenvalues)
        if self.is_dense:
            # float32 eigenvectors are orthonormal to four digits
            self.matrix.copy_(_orthonormalized(axes.T))
            return
        v, scales = _householder_vectors(axes)
        above = (v.T @ v).triu(1)
        eye = torch.eye(self.directions, dtype=v.dtype, device=v.device)
        unit, diagonal = eye + scales[:, None] * above, scales.diag()
        triangle = torch.linalg.solve_triangular(unit, diagonal, upper=True, unitriangular=True)
        self.reflectors.copy_(v)
        self.triangle.copy_(triangle)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        was_double = self.eigenvalues.dtype == torch.float64
        super()._apply(fn, recurse)
        if self.eigenvalues.dtype == torch.float64 and not was_double:
            if self.is_dense:
                self.matrix = nn.Buffer(_orthonormalized(self.matrix))
            elif self.triangle.diagonal().all():
                # the condition for an orthogonal matrix is T^-1 + T^-T = V^T V
                products = self.reflectors.T @ self.reflectors
                half = products.triu(1) + 0.5 * products.diagonal().diag()
                self.triangle = nn.Buffer(torch.linalg.inv(half))
        return self

    def _reflect(self, x: Tensor, triangle: Tensor) -> Tensor:
        return x - ((x @ self.reflectors) @ triangle) @ self.reflectors.T


def _orthonormalized(rows: Tensor) -> Tensor:
    """Double the digits to which rows (D, D) are orthonormal, by a Newton-Schulz step."""
    return 1.5 * rows - 0.5 * (rows @ rows.T) @ rows


def tail_sums(eigenvalues: Tensor) -> Tensor:
    """Compute the squared errors (D + 1,) of keeping the first d of D latents, for all d."""
    return F.pad(eigenvalues.flip(0).cumsum(0).flip(0), (0, 1))


def dct(x: Tensor, inverse: bool = False) -> Tensor:
    """Compute the orthonormal cosine transform (DCT-II), or its inverse, along axes 1, 2 and 3.

    These become the last axes: (batch, a, b, c, ...) to (batch, ..., a, b, c).
    """
    with full_precision(x):
        for size in x.shape[1:4]:
            x = torch.tensordot(x, _cosines(size, x), ([1], [0 if inverse else 1]))
        return x


def _cosines(size: int, like: Tensor) -> Tensor:
    index = torch.arange(size, dtype=torch.float64, device=like.device)
    matrix = (math.pi / size * torch.outer(index, index + 0.5)).cos() * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.to(like.dtype)


def _householder_vectors(axes: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors (D, k) and scales (k,) of reflections whose product begins with these axes (D, k)."""
    packed, scales = torch.geqrf(axes.contiguous())
    return packed.tril(-1).fill_diagonal_(1), scales
