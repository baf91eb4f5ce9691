"""Restoration without a flow, for linear operators: PCA, sparsity, total variation, BM3D.

All but BM3D use the training images or have a parameter that is chosen on validation images.
Images are (batch, channels, height, width), pixels in [0, 1].
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import scipy  # submodules load on first use
import torch
from torch import Tensor
from torch.nn import functional as F

from submanifold.evaluation.baselines import PCA
from submanifold.inverse.operators import Operator, Task

ITERATIONS = 100
"""Iterations of FISTA."""
DUAL_ITERATIONS = 30
"""Iterations of the proximal operator of total variation."""
POWER_ITERATIONS = 20
WEIGHTS = tuple(np.geomspace(0.02, 10, 9).tolist())
"""Weights of regularizers that are tried, relative to the noise."""
DIMS = tuple(round(2 ** (exponent / 2)) for exponent in range(4, 23))
"""Numbers of principal components that are tried."""
WAVELET, LEVELS = "sym4", 3
SHIFTS = ((0, 0), (1, 1), (2, 2), (3, 3))
BASIS_BATCH = 256

Restorer = Callable[[Tensor], Tensor]
"""A function of observations that returns images."""


def matrix_of(operator: Operator, shape: Sequence[int], like: Tensor | None = None) -> Tensor:
    """Return the matrix (observations, D) of an affine operator on events of a shape.

    Args:
        operator: The operator.
        shape: Shape of an event, of D elements.
        like: A tensor with the dtype and device of events; single precision on the CPU by default.

    Example:
        >>> matrix_of(lambda x: x.mean(1) + 3, (2, 1, 1)).tolist()
        [[0.5, 0.5]]
    """
    basis = torch.eye(math.prod(shape))
    basis = basis if like is None else basis.to(like)
    offset = operator(torch.zeros_like(basis[:1]).view(1, *shape)).flatten(1)
    images = (operator(each.view(-1, *shape)).flatten(1) for each in basis.split(BASIS_BATCH))
    return torch.cat([image - offset for image in images]).T.contiguous()


def adjoint_of(operator: Operator, shape: Sequence[int]) -> Restorer:
    """Return the adjoint A^T of a linear operator on images of a shape.

    Example:
        >>> adjoint_of(lambda x: x.mean(1), (2, 1, 1))(torch.ones(1, 1, 1)).flatten().tolist()
        [0.5, 0.5]
    """

    def adjoint(y: Tensor) -> Tensor:
        with torch.enable_grad():
            x = torch.zeros(len(y), *shape, requires_grad=True)
            (found,) = torch.autograd.grad(operator(x), x, y)
        return found

    return adjoint


def principal_components(pca: PCA, task: Task, shape: Sequence[int]) -> Callable[[int], Restorer]:
    """Return a function of d: least squares in the span of the first d principal components.

    d is at most the number of elements of an observation.
    """
    matrix = matrix_of(task.operator, shape).double()
    offset = matrix @ pca.mean
    axes = pca.axes[:, : len(matrix)]
    q, r = torch.linalg.qr(matrix @ axes)  # its leading columns are those for any d

    def build(dim: int) -> Restorer:
        def restorer(y: Tensor) -> Tensor:
            right = q[:, :dim].T @ (y.flatten(1).double() - offset).T
            coordinates = torch.linalg.solve_triangular(r[:dim, :dim], right, upper=True)
            return (pca.mean + (axes[:, :dim] @ coordinates).T).view(-1, *shape).to(y)

        return restorer

    return build


def regularized(
    prox: Callable[[Tensor, float], Tensor], task: Task, shape: Sequence[int], weight: float
) -> Restorer:
    r"""Minimize :math:`|A x - y|^2 / 2 + w \sigma R(x)` by FISTA (Beck & Teboulle 2009).

    Args:
        prox: Proximal operator of R: a function of images and of a weight.
        task: The operator A, and the noise sigma.
        shape: Shape of an image.
        weight: w.
    """
    adjoint = adjoint_of(task.operator, shape)
    lipschitz = _squared_norm(task.operator, adjoint, shape)

    def restorer(y: Tensor) -> Tensor:
        x = momentum = torch.full((len(y), *shape), 0.5)
        t = 1.0
        for _ in range(ITERATIONS):
            gradient = adjoint(task.operator(momentum) - y)
            new = prox(momentum - gradient / lipschitz, weight * task.noise / lipschitz)
            t_new = (1 + math.sqrt(1 + 4 * t * t)) / 2
            momentum = new + (t - 1) / t_new * (new - x)
            x, t = new, t_new
        return x

    return restorer


def _squared_norm(operator: Operator, adjoint: Restorer, shape: Sequence[int]) -> float:
    """Largest eigenvalue of A^T A by power iteration, with a margin of 5%."""
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    for _ in range(POWER_ITERATIONS):
        x = adjoint(operator(x / x.norm()))
    return 1.05 * float(x.norm())


def total_variation(x: Tensor, weight: float) -> Tensor:
    """Proximal operator of the isotropic total variation of each channel.

    It is :func:`skimage.restoration.denoise_tv_chambolle` for a batch, by accelerated projected
    gradients on the dual problem (Beck & Teboulle 2009, "Fast gradient-based algorithms").
    """
    dual = momentum = x.new_zeros(2, *x.shape)
    t = 1.0
    for _ in range(DUAL_ITERATIONS):
        new = momentum + _differences(x - weight * _adjoint_differences(momentum)) / (8 * weight)
        new = new / new.square().sum(0).sqrt().clamp_min(1)
        t_new = (1 + math.sqrt(1 + 4 * t * t)) / 2
        momentum = new + (t - 1) / t_new * (new - dual)
        dual, t = new, t_new
    return x - weight * _adjoint_differences(dual)


def _differences(x: Tensor) -> Tensor:
    """Forward differences along both axes, 0 at the border, (2, *x.shape)."""
    found = x.new_zeros(2, *x.shape)
    found[0, ..., :-1, :] = x.diff(dim=-2)
    found[1, ..., :-1] = x.diff(dim=-1)
    return found


def _adjoint_differences(dual: Tensor) -> Tensor:
    """The adjoint of :func:`_differences`."""
    vertical, horizontal = dual[0, ..., :-1, :], dual[1, ..., :-1]
    found = torch.zeros_like(dual[0])
    found[..., :-1, :] -= vertical
    found[..., 1:, :] += vertical
    found[..., :-1] -= horizontal
    found[..., 1:] += horizontal
    return found


def cosine_sparsity(x: Tensor, weight: float) -> Tensor:
    """Proximal operator of the 1-norm of the orthonormal discrete cosine transform: the lasso."""
    axes = (-2, -1)
    coefficients = scipy.fft.dctn(x.numpy(), axes=axes, norm="ortho")
    return torch.from_numpy(scipy.fft.idctn(_shrink(coefficients, weight), axes=axes, norm="ortho"))


def wavelet_sparsity(x: Tensor, weight: float) -> Tensor:
    """Shrink the details of a wavelet transform of reflected images, with cycle spinning.

    It is the mean over :data:`SHIFTS` (Coifman & Donoho 1995), and thus a denoiser in the place of
    a proximal operator: "plug and play" (Venkatakrishnan et al. 2013).
    """
    import pywt

    axes, margin = (-2, -1), min(x.shape[2:]) // 2
    reflected = F.pad(x, (margin,) * 4, mode="reflect").numpy()
    total = np.zeros_like(reflected)
    levels = min(LEVELS, pywt.dwtn_max_level(reflected.shape[2:], WAVELET))
    for shift in SHIFTS:
        shifted = np.roll(reflected, shift, axes)
        coarse, *details = pywt.wavedec2(shifted, WAVELET, "periodization", levels, axes)
        shrunk = [tuple(_shrink(each, weight) for each in level) for level in details]
        found = pywt.waverec2([coarse, *shrunk], WAVELET, "periodization", axes)
        total += np.roll(found, [-each for each in shift], axes)
    return torch.from_numpy(total / len(SHIFTS)).to(x)[..., margin:-margin, margin:-margin]


def _shrink(values: np.ndarray, weight: float) -> np.ndarray:
    return np.sign(values) * np.maximum(np.abs(values) - weight, 0)


def bm3d(noise: float) -> Restorer:
    """Block-matching and 3D filtering (Dabov et al. 2007) of noisy images, by the package bm3d."""
    from bm3d import bm3d as denoise
    from bm3d import bm3d_rgb as denoise_rgb

    def restorer(y: Tensor) -> Tensor:
        pictures = y.permute(0, 2, 3, 1).numpy().astype(float)
        filtered = [
            denoise_rgb(each, noise)
            if each.shape[2] == 3
            else denoise(each, noise).reshape(each.shape)
            for each in pictures
        ]
        return torch.from_numpy(np.stack(filtered)).permute(0, 3, 1, 2).to(y)

    return restorer
