"""Sliced Wasserstein distance on a Laplacian pyramid: sample quality without a trained network.

Karras et al., "Progressive Growing of GANs", ICLR 2018, section 5
(https://arxiv.org/abs/1710.10196). Values cannot be compared with a FID.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import scipy  # submodules load on first use
from numpy.lib.stride_tricks import sliding_window_view

from submanifold.common.errors import UserError
from submanifold.evaluation.intervals import GroupPair, jackknife_interval, jackknife_subsets

PATCH = 7
COARSEST = 16
BLUR = np.array([1, 4, 6, 4, 1], dtype=np.float32) / 16
"""Binomial filter of Burt and Adelson, 1983."""


def sliced_wasserstein(
    real: np.ndarray,
    fake: np.ndarray,
    patches: int = 16,
    directions: int = 128,
    repeats: int = 4,
    groups: GroupPair = (None, None),
) -> dict[str, Any]:
    r"""Compute the sliced Wasserstein distance between the patches of two sets of images.

    On each level of a Laplacian pyramid, the 7 x 7 patches of uint8 images (n, channels, height,
    width) are projected onto random unit directions. The value is the Wasserstein-1 distance,
    averaged over directions and levels, in thousandths of the standard deviation of real patches.
    Two samples of one distribution have a distance of :math:`O(1/\sqrt{N})`: compare values of
    equal numbers only. Unlike in the paper, the real patches normalize both sets, so that a wrong
    brightness or contrast counts, and patch positions are the same in every image.

    Returns:
        ``value``, ``low`` and ``high`` of its 95% jackknife interval (None for fewer than 10 images
        or groups), ``n_real``, ``n_fake``, and ``levels``: values by the shorter side in pixels.

    Raises:
        UserError: An image is smaller than 7 pixels on one side.
    """
    if min(real.shape[2:]) < PATCH:
        raise UserError(
            f"images: expected at least {PATCH} x {PATCH} pixels for the sliced Wasserstein "
            f"distance, got {real.shape[2]} x {real.shape[3]}. Increase data.size."
        )
    rng = np.random.default_rng(0)
    subsets = jackknife_subsets(len(real), len(fake), rng, groups)
    levels = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # sorting dominates, one core per draw
        for pair in zip(laplacian_pyramid(real), laplacian_pyramid(fake), strict=True):
            draw = partial(_draw_distances, *pair, subsets, patches, directions)
            draws = list(pool.map(draw, rng.spawn(repeats)))
            levels[str(min(pair[0].shape[2:]))] = 1e3 * np.mean(draws, axis=0)
    value, *left_out = np.mean(list(levels.values()), axis=0).tolist()
    return {
        **jackknife_interval(value, left_out),
        "n_real": len(real),
        "n_fake": len(fake),
        "levels": {side: float(distances[0]) for side, distances in levels.items()},
    }


def laplacian_pyramid(images: np.ndarray) -> list[np.ndarray]:
    """Split images (n, channels, height, width) into float32 bands of detail, finest first.

    Each level has half the size of the previous one; the last is the blurred image with at least 16
    pixels on its shorter side.
    """
    levels = []
    coarse = np.asarray(images, dtype=np.float32)
    while (min(coarse.shape[2:]) + 1) // 2 >= COARSEST:
        fine, coarse = coarse, _blur(coarse)[..., ::2, ::2]
        upsampled = np.zeros_like(fine)
        upsampled[..., ::2, ::2] = 4 * coarse  # three of four pixels are zero
        levels.append(fine - _blur(upsampled))
    return [*levels, coarse]


def wasserstein_1d(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    r"""Compute the Wasserstein-1 distance :math:`\int_0^1 |F^{-1} - G^{-1}| dq` on the last axis.

    From (..., n) and (..., m) to (...). It is exact for equal sizes; otherwise both quantile
    functions are evaluated at the midpoints of the smaller sample's steps.
    """
    count = min(a.shape[-1], b.shape[-1])
    middle = (np.arange(count) + 0.5) / count
    a, b = (np.sort(x, axis=-1)[..., (middle * x.shape[-1]).astype(np.int64)] for x in (a, b))
    return np.abs(a - b).mean(axis=-1, dtype=np.float64)


def _blur(images: np.ndarray) -> np.ndarray:
    for axis in (2, 3):
        images = scipy.ndimage.correlate1d(images, BLUR, axis, mode="mirror")
    return images


def _draw_distances(
    real: np.ndarray,
    fake: np.ndarray,
    subsets: list[tuple[np.ndarray, np.ndarray]],
    patches: int,
    directions: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the distances of one level's images and of each subset for random projections."""
    rows, columns = (side - PATCH + 1 for side in real.shape[2:])
    positions = rng.choice(rows * columns, size=min(patches, rows * columns), replace=False)
    axes = rng.standard_normal((real.shape[1] * PATCH**2, directions)).astype(np.float32)
    axes /= np.linalg.norm(axes, axis=0)

    real, fake = _patches(real, positions), _patches(fake, positions)
    # float64, because float32 sums of millions of pixel values lose several digits
    mean = real.mean(axis=(0, 1, 3), keepdims=True, dtype=np.float64).astype(np.float32)
    std = real.std(axis=(0, 1, 3), keepdims=True, dtype=np.float64).astype(np.float32)
    std[std < 1e-3] = 1  # a constant channel with rounding errors stays in pixel values

    def project(x: np.ndarray) -> np.ndarray:
        """Return (directions, n, patches); sorting contiguous memory is fast."""
        flat = ((x - mean) / std).reshape(-1, len(axes))
        return (axes.T @ flat.T).reshape(directions, len(x), -1)

    real, fake = project(real), project(fake)
    pairs = [(real, fake), *((real[:, i], fake[:, j]) for i, j in subsets)]
    return np.array([
        wasserstein_1d(a.reshape(directions, -1), b.reshape(directions, -1)).mean()
        for a, b in pairs
    ])  # fmt: skip


def _patches(level: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Cut the patches at these positions out of images, (n, patches, channels, 49)."""
    windows = sliding_window_view(level, (PATCH, PATCH), axis=(2, 3))
    row, column = np.unravel_index(positions, windows.shape[2:4])
    cut = windows[:, :, row, column].swapaxes(1, 2)
    return cut.reshape(len(level), len(positions), level.shape[1], PATCH**2)
