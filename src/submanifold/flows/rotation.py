"""An orthogonal map of flat latents: the freedom that a normal density leaves (method.md 6)."""

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor

from submanifold.flows.bijection import Flow, full_precision

LARGEST_MATRIX = 12288


class Rotation(Flow):
    r"""Latents along other axes, :math:`z' = Q z` with :math:`Q Q^T = I`.

    :math:`|\det Q| = 1` and N(0, I) looks alike along all axes, so that a flow with standard normal
    latents has the same density before and after (method.md 6). It starts as the identity, is set
    by :meth:`fit`, and is not trained.

    The matrix is whole, or a product of Householder reflections that chooses the first few axes:

    .. math:: Q^T = H_1 \cdots H_k = I - V T V^T

    with V (D, k) and T (k, k) upper triangular (Schreiber & Van Loan 1989), and no D x D matrix.

    Args:
        dim: Number of coordinates, D.
        directions: k, the axes that can be chosen; None is all of them, by a whole matrix.

    Attributes:
        eigenvalues: What each latent contributes to the squared error, (D,): an estimate of the
        diagonal
            of :math:`\mathrm{E}[J^T J]`, J the derivative of what decodes the latents. They are not
            negative, and the largest come first up to the sampling error; 1 before a fit.

    Example:
        >>> rotation = Rotation(4, directions=1)
        >>> rotation.fit(torch.full((4, 1), 0.5), eigenvalues=torch.ones(4))
        >>> rotation(torch.ones(1, 4))[0].abs().round(decimals=4) + 0.0
        tensor([[2., 0., 0., 0.]])
    """

    axes = (1,)

    eigenvalues: Tensor
    matrix: Tensor
    reflectors: Tensor
    triangle: Tensor

    def __init__(self, dim: int, directions: PositiveInt | None = None):
        super().__init__()
        self.event_shape, self.config = (dim,), {"dim": dim, "directions": directions}
        self.directions = dim if directions is None else directions
        self.whole = directions is None
        self.register_buffer("eigenvalues", torch.ones(dim))
        if self.whole:
            # not torch.eye, which loads sympy on the meta device
            self.register_buffer("matrix", torch.zeros(dim, dim).fill_diagonal_(1.0))
        else:
            self.register_buffer("reflectors", torch.zeros(dim, self.directions))
            self.register_buffer("triangle", torch.zeros(self.directions, self.directions))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate (batch, D); the log-determinant is zero."""
        with full_precision(x):
            z = x @ self.matrix.T if self.whole else self._reflect(x, self.triangle)
            return z, x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        """Rotate back (batch, D), or the first few latents, if the others are zero."""
        with full_precision(z):
            if self.whole:
                return z @ self.matrix[: z.shape[1]]
            z = F.pad(z, (0, len(self.eigenvalues) - z.shape[1]))
            return self._reflect(z, self.triangle.T)

    @torch.no_grad()
    def fit(self, axes: Tensor, eigenvalues: Tensor) -> None:
        """Make the columns of ``axes`` (D, k), orthonormal, the first axes, each up to its sign."""
        self.eigenvalues.copy_(eigenvalues)
        if self.whole:
            # eigenvectors are orthonormal to four digits in float32; this squares the error
            rows = axes.T
            self.matrix.copy_(1.5 * rows - 0.5 * (rows @ axes) @ rows)
            return
        packed, scales = torch.geqrf(axes.contiguous())
        v = packed.tril(-1)
        v.diagonal().fill_(1)
        above = (v.T @ v).triu(1)
        eye = torch.eye(self.directions, dtype=v.dtype, device=v.device)
        triangle = torch.linalg.solve_triangular(
            eye + scales[:, None] * above, scales.diag(), upper=True, unitriangular=True
        )
        self.reflectors.copy_(v)
        self.triangle.copy_(triangle)

    def _reflect(self, x: Tensor, triangle: Tensor) -> Tensor:
        return x - ((x @ self.reflectors) @ triangle) @ self.reflectors.T


def tail_sums(eigenvalues: Tensor) -> Tensor:
    """Sum the eigenvalues that keeping the first d latents leaves out, for d from 0 to D."""
    return F.pad(eigenvalues.flip(0).cumsum(0).flip(0), (0, 1))
