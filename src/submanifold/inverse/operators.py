"""Operators of inverse problems, and tasks by name: ``denoise:0.1``, ``superresolve:4``, ...

An operator maps images (batch, channels, height, width) in [0, 1] to observations (batch, ...).
Any differentiable function does so that treats the images of a batch independently.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from submanifold.common.errors import UserError, did_you_mean, printable, unexpected

Operator: TypeAlias = Callable[[Tensor], Tensor]

NOISE = 0.01  # of all tasks but denoising, standard deviation, pixels in [0, 1]
LARGEST_NOISE = 100.0  # of denoising
TRUNCATION = 4.0  # radius of a Gaussian kernel in standard deviations
TASKS = {
    "denoise": "denoise:0.1, the standard deviation of the noise",
    "inpaint": "inpaint:mask.png, whose black pixels are missing, or inpaint:12, a square hole",
    "superresolve": "superresolve:4, the factor",
    "deblur": "deblur:1.5, the standard deviation of a Gaussian kernel in pixels",
    "sense": "sense:600, the number of random measurements",
}
"""Examples of tasks, with an explanation."""


class Denoise:
    """The identity: an observation is an image with noise."""

    def __call__(self, x: Tensor) -> Tensor:
        return x


@dataclass(eq=False)
class Inpaint:
    """Observe the pixels at which a mask is not 0, (batch, number of pixels)."""

    mask: Tensor  # (height, width) or (channels, height, width)

    def __call__(self, x: Tensor) -> Tensor:
        return x[:, self.mask.bool().to(x.device).expand(x.shape[1:])]


@dataclass(eq=False)
class Superresolve:
    """Average the pixels of squares with a side of ``factor`` pixels."""

    factor: int

    def __call__(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.factor)


class Deblur:
    """Convolve each channel with a Gaussian kernel; images are reflected at the border.

    ``std`` is the standard deviation of the kernel, in pixels.
    """

    def __init__(self, std: float) -> None:
        self.radius = max(1, round(TRUNCATION * std))
        weights = torch.exp(-0.5 * (torch.arange(-self.radius, self.radius + 1) / std).square())
        self.kernel = torch.outer(weights, weights) / weights.sum().square()

    def __call__(self, x: Tensor) -> Tensor:
        padded, channels = F.pad(x, 4 * [self.radius], mode="reflect"), x.shape[1]
        return F.conv2d(padded, self.kernel.to(x).expand(channels, 1, -1, -1), groups=channels)


class Sense:
    """Compressed sensing: products of an image with ``count`` rows of independent normal numbers.

    Their variance is 1 / count, so that the measurements have about the norm of the image.
    """

    def __init__(self, count: int, seed: int = 0) -> None:
        self.count, self.seed = count, seed
        self._rows = torch.empty(count, 0, dtype=torch.double)

    def __call__(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        if self._rows.shape[1] != flat.shape[1]:
            # NumPy's numbers are independent of noise that torch draws with the same seed
            rng = np.random.default_rng(self.seed)
            rows = rng.standard_normal((self.count, flat.shape[1]))
            self._rows = torch.from_numpy(rows) / math.sqrt(self.count)
        return flat @ self._rows.to(flat).T


class Task(NamedTuple):
    """An inverse problem: its text, operator, and standard deviation of the noise."""

    name: str
    operator: Operator
    noise: float

    def observe(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw observations y = operator(x) + noise * N(0, I) of images; generator on the CPU."""
        y = self.operator(x)
        return y + self.noise * torch.randn(y.shape, generator=generator).to(y)

    def draw(self, y: Tensor, x: Tensor) -> Tensor | None:
        """Draw observations in the shape of images x, missing pixels black; None of products."""
        if isinstance(self.operator, Inpaint):
            return torch.zeros_like(x).masked_scatter(self.operator.mask.bool().expand_as(x), y)
        return F.interpolate(y, x.shape[2:]) if y.ndim == x.ndim else None


def parse(text: str, shape: tuple[int, ...], noise: float | None = None) -> Task:
    """Read a task such as :data:`TASKS` for images of a shape (channels, height, width).

    The noise is by default 0.01; that of a denoising task is in the text.
    """
    kind, _, value = text.partition(":")
    shown = f"task={printable(text)}"
    if kind not in TASKS:
        raise UserError(
            f"{shown}: expected one of {', '.join(TASKS)}, got {printable(kind) or 'nothing'}."
            f"{did_you_mean(kind, TASKS)} Use such as {'; '.join(TASKS.values())}."
        )
    number = float(value) if value.replace(".", "", 1).isdecimal() else 0.0
    usual = number if kind == "denoise" else NOISE
    noise = usual if noise is None else noise
    if kind == "inpaint" and not value.isdecimal():
        return Task(text, Inpaint(_read_mask(Path(value), shape)), noise)
    sides, side, pixels = shape[1:], min(shape[1:]), math.prod(shape)
    is_count, largest = number > 0 and number.is_integer(), (side - 1) / TRUNCATION
    is_factor = is_count and not any(length % number for length in sides)
    rules: dict[str, tuple[str, bool, Callable[[], Operator]]] = {
        "denoise": (
            f"a number above 0 and up to {LARGEST_NOISE:g}",
            0 < number <= LARGEST_NOISE,
            Denoise,
        ),
        "inpaint": (
            f"a side from 1 to {side - 1} pixels",
            is_count and number < side,
            lambda: Inpaint(_square_hole(int(number), sides)),
        ),
        "superresolve": (
            f"a divisor of the sides {' and '.join(map(str, sides))}",
            is_factor,
            lambda: Superresolve(int(number)),
        ),
        "deblur": (
            f"a number above 0 and up to {largest:g}",
            0 < number <= largest,
            lambda: Deblur(number),
        ),
        "sense": (
            f"an integer from 1 to {pixels}, the size of an image",
            is_count and number <= pixels,
            lambda: Sense(int(number)),
        ),
    }
    expected, fits, build = rules[kind]
    if not fits:
        got = printable(value) or "nothing"
        raise unexpected(shown, expected, got, f"Use such as {TASKS[kind]}")
    if kind == "denoise" and noise != number:
        fix = f"Leave it out, or use denoise:{noise:g}"
        raise unexpected("noise", f"{number:g} as in {shown}, or none", f"{noise:g}", fix)
    return Task(text, build(), noise)


def _square_hole(side: int, sides: tuple[int, ...]) -> Tensor:
    mask = torch.ones(sides)
    top, left = ((length - side) // 2 for length in sides)
    mask[top : top + side, left : left + side] = 0
    return mask


def _read_mask(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Read a mask (height, width), False where the picture is black."""
    name = f"task=inpaint:{printable(str(path))}"
    try:
        with Image.open(path) as image:
            mask = torch.from_numpy(np.array(image.convert("L")) >= 128)
    except (OSError, ValueError) as error:
        got = printable(str(error))
        fix = f"Use {TASKS['inpaint']}"
        raise unexpected(name, "a picture whose black pixels are missing", got, fix) from error
    if mask.shape != shape[1:] or not mask.any():
        expected, size = (f"{w} x {h}" for h, w in (shape[1:], mask.shape))
        raise UserError(
            f"{name}: expected {expected} pixels, the size of the model's images, and some that "
            f"are not black, got {size} pixels, {int(mask.sum())} not black. Change the mask."
        )
    return mask
