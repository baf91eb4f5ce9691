"""Sliced Wasserstein distance on a Laplacian pyramid: sample quality without a trained network.

Two sets of images are compared through 7 x 7 patches, scale by scale, as in Karras et al.,
"Progressive Growing of GANs", ICLR 2018, section 5 (https://arxiv.org/abs/1710.10196). It is not
a Frechet inception distance and its numbers cannot be compared with one.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import correlate1d

from submanifold.common.errors import UserError
from submanifold.evaluation.intervals import (
    GroupsOfBoth,
    jackknife_interval,
    jackknife_subsets,
)

PATCH = 7
COARSEST = 16

# Binomial taps of Burt and Adelson, 1983, the kernel of the paper's pyramid.
_BLUR = np.array([1, 4, 6, 4, 1], dtype=np.float32) / 16


def sliced_wasserstein(
    real: np.ndarray | torch.Tensor,
    fake: np.ndarray | torch.Tensor,
    seed: int = 0,
    patches: int = 16,
    directions: int = 128,
    repeats: int = 4,
    groups: GroupsOfBoth = (None, None),
) -> dict[str, Any]:
    r"""Measure how far two sets of images are apart, in patches of every scale.

    On each level of a Laplacian pyramid the 7 x 7 patches of both sets are projected on random
    unit directions; the distance is the mean over directions of the one-dimensional Wasserstein-1
    distance, times 1000, and the value is the mean over levels. Smaller is better. Two samples of
    one distribution reach a floor that falls as :math:`1/\sqrt{N}`: compare values of equal counts.

    Unlike in the paper, the real patches normalise both sets (each by itself hides a wrong
    brightness, colour or contrast), and the positions are the same in every image, so that the
    order of the images does not matter and equal sets are exactly zero apart.

    Args:
        real: Images, uint8 of shape (n_real, channels, height, width).
        fake: Images, uint8 of shape (n_fake, channels, height, width).
        seed: Of the positions, the directions and the jackknife's sets.
        patches: Positions for each repeat; all of a level's positions if it has fewer.
        directions: Random directions for each repeat.
        repeats: How often positions and directions are drawn.
        groups: Of the real and of the fake images.

    Returns:
        `value`, its 95% interval `low`, `high` by
        :func:`~submanifold.evaluation.intervals.jackknife_interval` (None with fewer than 10 images
        on either side), the counts `n_real`, `n_fake`, and `levels`: the value of each level, keyed
        by the shorter side in pixels as a string, finest first. All are in thousandths of a real
        patch value's standard deviation.

    Raises:
        UserError: An image is smaller than 7 pixels on one side.
        ValueError: The arrays are not uint8 images of one shape.
    """
    real, fake = _as_images(real), _as_images(fake)
    if real.shape[1:] != fake.shape[1:]:
        raise ValueError(f"real and fake images differ in shape: {real.shape} and {fake.shape}")
    if min(real.shape[2:]) < PATCH:
        raise UserError(
            f"real: images of {real.shape[2]} x {real.shape[3]} are too small for the sliced"
            f" Wasserstein distance, which looks at {PATCH} x {PATCH} patches."
        )
    rng = np.random.default_rng(seed)
    subsets = jackknife_subsets(len(real), len(fake), rng, groups)
    levels = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # sorting takes the time, one core a draw
        for pair in zip(laplacian_pyramid(real), laplacian_pyramid(fake), strict=True):
            draw = partial(_one_draw, *pair, subsets, patches, directions)
            draws = list(pool.map(draw, rng.spawn(repeats)))
            levels[str(min(pair[0].shape[2:]))] = 1e3 * np.mean(draws, axis=0)
    value, *left_out = np.mean(list(levels.values()), axis=0).tolist()
    low, high = jackknife_interval(value, left_out)
    by_level = {side: float(distances[0]) for side, distances in levels.items()}
    counts = {"n_real": len(real), "n_fake": len(fake)}
    return {"value": value, "low": low, "high": high, **counts, "levels": by_level}


def laplacian_pyramid(images: np.ndarray) -> list[np.ndarray]:
    """Split images (n, channels, height, width) into bands of detail, each half the size.

    Every level (n, channels, ceil(height / 2^k), ceil(width / 2^k)), float32, finest first, is what
    blurring and halving takes away; the last, at least 16 pixels on its shorter side unless the
    images are smaller, is the blurred image itself.
    """
    levels = []
    coarse = np.asarray(images, dtype=np.float32)
    while (min(coarse.shape[2:]) + 1) // 2 >= COARSEST:
        fine, coarse = coarse, _blur(coarse)[..., ::2, ::2]
        spread = np.zeros_like(fine)
        spread[..., ::2, ::2] = 4 * coarse  # three of four pixels are zero
        levels.append(fine - _blur(spread))
    return [*levels, coarse]


def wasserstein_1d(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    r"""Wasserstein-1 distance of two samples on the line, :math:`\int_0^1 |F^{-1} - G^{-1}| dq`.

    Of (..., n) and (..., m), as (...). With equal counts this is exact: the mean distance of the
    sorted values. With unequal counts both quantile functions are read at the midpoints of the
    smaller sample's steps, an error of the order of one such step.
    """
    count = min(a.shape[-1], b.shape[-1])
    middle = (np.arange(count) + 0.5) / count
    a, b = (
        np.sort(x, axis=-1)[..., (middle * x.shape[-1]).astype(np.int64)]  # a step per value
        for x in (a, b)
    )
    return np.abs(a - b).mean(axis=-1, dtype=np.float64)


def _as_images(images: np.ndarray | torch.Tensor) -> np.ndarray:
    array = images.cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
    if array.dtype != np.uint8 or array.ndim != 4 or len(array) == 0:
        raise ValueError(
            "expected uint8 images of shape (n, channels, height, width),"
            f" not {array.dtype} of shape {array.shape}"
        )
    return array


def _blur(images: np.ndarray) -> np.ndarray:
    return correlate1d(correlate1d(images, _BLUR, axis=2, mode="mirror"), _BLUR, 3, mode="mirror")


def _one_draw(
    real: np.ndarray,
    fake: np.ndarray,
    subsets: list[tuple[np.ndarray, np.ndarray]],
    patches: int,
    directions: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Distance of one level at freshly drawn positions and directions: of all, of each subset."""
    rows, columns = (side - PATCH + 1 for side in real.shape[2:])
    positions = rng.choice(rows * columns, size=min(patches, rows * columns), replace=False)
    axes = rng.standard_normal((real.shape[1] * PATCH**2, directions)).astype(np.float32)
    axes /= np.linalg.norm(axes, axis=0)

    real, fake = _patches(real, positions), _patches(fake, positions)
    # float64, because float32 sums of millions of pixel values lose several digits.
    mean = real.mean(axis=(0, 1, 3), keepdims=True, dtype=np.float64).astype(np.float32)
    std = real.std(axis=(0, 1, 3), keepdims=True, dtype=np.float64).astype(np.float32)
    std[std < 1e-3] = 1  # only rounding varies: leave such a channel in pixel values

    def project(x: np.ndarray) -> np.ndarray:
        """Shape (directions, n, patches): sorting contiguous rows is what makes this fast."""
        flat = ((x - mean) / std).reshape(-1, len(axes))
        return (axes.T @ flat.T).reshape(directions, len(x), -1)

    real, fake = project(real), project(fake)
    parts = [(real, fake), *((real[:, i], fake[:, j]) for i, j in subsets)]
    return np.array([
        wasserstein_1d(a.reshape(directions, -1), b.reshape(directions, -1)).mean()
        for a, b in parts
    ])  # fmt: skip


def _patches(level: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Cut the patches whose corners are at these positions; shape (n, patches, channels, 49)."""
    windows = sliding_window_view(level, (PATCH, PATCH), axis=(2, 3))
    row, column = np.unravel_index(positions, windows.shape[2:4])
    cut = windows[:, :, row, column].swapaxes(1, 2)
    return cut.reshape(len(level), len(positions), level.shape[1], PATCH**2)
