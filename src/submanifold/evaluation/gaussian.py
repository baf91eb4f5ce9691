"""A Gaussian with the covariance of training data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import scipy  # submodules load on first use
import torch
from torch import Tensor

from submanifold.evaluation.baselines import MOST_FITTED, fit_pca, pca_batches

RANK = 1024  # axes of a Gaussian in the file of a model
SMALLEST_SCALE = 1e-4  # smallest standard deviation of a coordinate, relative to the largest


@dataclass(frozen=True)
class Gaussian:
    r"""A normal density N(m, C) of events, :math:`C = B (U (\Lambda - r) U^T + r I) B^T`.

    :math:`B^{-1}` standardizes coordinates: those of vectors, and of images the coefficients of
    their cosine transform after a rotation of the channels. There the covariance of training events
    is shrunk toward the identity, for images toward a nearly stationary covariance, which needs few
    images. The axes U have shrunk eigenvalues, all others the eigenvalue r.
    """

    mean: Tensor  # m, in the shape of an event
    channels: Tensor  # orthogonal matrix (channels, channels) of images; (0, 0) for vectors
    scale: Tensor  # standard deviations of the coordinates, in the shape of an event
    axes: Tensor  # U, (D, k)
    eigenvalues: Tensor  # those of the axes, and r, (k + 1,)

    @classmethod
    def fit(cls, train: np.ndarray, valid: np.ndarray, rank: int = RANK) -> "Gaussian":
        """Fit at most 16,384 uint8 images or float vectors (N, ...), and ``rank`` axes."""
        batches = pca_batches(train[:: math.ceil(len(train) / MOST_FITTED)])
        dim = math.prod(train.shape[1:])
        rank = min(rank, dim)
        zero = torch.zeros(train.shape[1:], dtype=torch.double)
        mean = sum((batch.double().sum(0) for batch in batches), zero) / len(batches)
        channels = torch.zeros(0, 0, dtype=torch.double)
        if mean.ndim == 3:
            centered = (batch.double() - mean for batch in batches)
            moments = torch.stack([torch.einsum("nchw,ndhw->cd", x, x) for x in centered])
            channels = torch.linalg.eigh(moments.sum(0)).eigenvectors
        unscaled = cls(mean, channels, torch.ones_like(mean), axes=zero[:0], eigenvalues=zero[:0])
        squares = (unscaled.standardize(x.double() - mean).square().sum(0) for x in batches)
        scale = (sum(squares, zero.flatten()) / len(batches)).sqrt().view_as(mean)
        scale = scale.clamp_min(max(float(scale.max()), 1e-12) * SMALLEST_SCALE)
        standard, held_out = replace(unscaled, scale=scale), pca_batches(valid)
        batches.transform = held_out.transform = lambda x: standard.standardize(x.double() - mean)
        pca = fit_pca(batches, dim, min(rank, len(batches) - 1)).shrink(held_out)
        axes, variances = pca.axes[:, :rank], pca.shrunk_variances()
        rest = variances[min(axes.shape[1], dim - 1) :].mean()
        eigenvalues = torch.cat([variances[: axes.shape[1]], rest[None]])
        return replace(standard, axes=axes, eigenvalues=eigenvalues)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Gaussian":
        """Invert :meth:`to_tensors`."""
        precise = {name: tensor.double() for name, tensor in tensors.items()}
        # half precision is not enough for orthogonal axes, which the precision assumes
        return cls(**{**precise, "axes": torch.linalg.qr(precise["axes"]).Q})

    def to_tensors(self) -> dict[str, Tensor]:
        """Return tensors by name: the axes in half precision, the others in single precision."""
        tensors = {field.name: getattr(self, field.name).float() for field in fields(self)}
        return {**tensors, "axes": self.axes.half()}

    def to(self, like: Tensor) -> "Gaussian":
        """Return it with the dtype and on the device of a tensor."""
        return Gaussian(*(getattr(self, field.name).to(like) for field in fields(self)))

    def standardize(self, deviations: Tensor) -> Tensor:
        r"""Compute :math:`B^{-1} v` of deviations v from the mean, (batch, ...); (batch, D)."""
        return (self._transform(deviations) / self.scale).flatten(1)

    def covariance_product(self, v: Tensor) -> Tensor:
        """Compute C v, in the shape of v (batch, ...)."""
        c = (self._transform(v) * self.scale).flatten(1)  # B^T v
        rest, leading = self.eigenvalues[-1], self.eigenvalues[:-1]
        return self._inverse(rest * c + c @ self.axes * (leading - rest) @ self.axes.T)

    def precision_product(self, v: Tensor) -> Tensor:
        r"""Compute :math:`v^T C^{-1} v`, (batch,)."""
        c = self.standardize(v)
        rest, leading = self.eigenvalues[-1], self.eigenvalues[:-1]
        along = (c @ self.axes).square()
        return c.square().sum(1) / rest + (along * (1 / leading - 1 / rest)).sum(1)

    def draw(self, standard: Tensor) -> Tensor:
        """Map standard normal numbers (batch, D) to deviations from the mean with covariance C."""
        root = self.eigenvalues.sqrt()
        along = standard @ self.axes * (root[:-1] - root[-1])
        return self._inverse(root[-1] * standard + along @ self.axes.T)

    def _inverse(self, c: Tensor) -> Tensor:
        """Compute B c, in the shape of events, for coordinates (batch, D)."""
        x = c.view(-1, *self.mean.shape) * self.scale
        if len(self.channels):
            columns, rows = self._cosines
            x = torch.einsum("dc,ndhw->nchw", self.channels.T, columns.T @ x @ rows)
        return x

    def _transform(self, x: Tensor) -> Tensor:
        """Compute the coordinates of events before they are divided by their scale."""
        if len(self.channels):
            columns, rows = self._cosines
            x = columns @ torch.einsum("cd,nchw->ndhw", self.channels, x) @ rows.T
        return x

    @cached_property
    def _cosines(self) -> list[Tensor]:
        sides = self.mean.shape[1:]
        matrices = (scipy.fft.dct(np.eye(side), norm="ortho", axis=0) for side in sides)
        return [torch.from_numpy(matrix).to(self.mean) for matrix in matrices]
