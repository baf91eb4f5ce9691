"""Operators of inverse problems, and tasks by name: ``denoise:0.1``, ``superresolve:4``, ...

An operator maps images (batch, channels, height, width) in [0, 1] to observations (batch, ...).
Any differentiable function does so that treats the images of a batch independently.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from submanifold.common.errors import UserError, did_you_mean
from submanifold.common.files import printable
from submanifold.common.processes import check_memory

Operator: TypeAlias = Callable[[Tensor], Tensor]
"""A function from images (batch, channels, height, width) to observations (batch, ...)."""

MAX_NOISE = 100
NOISE = 0.01
"""Standard deviation of the noise of all tasks but denoising, pixels in [0, 1]."""
TRUNCATION = 4.0
"""Radius of a Gaussian kernel in standard deviations."""


class Denoise:
    """The identity: an observation is an image with noise.

    Example:
        >>> Denoise()(torch.ones(1, 1, 2, 2)).shape
        torch.Size([1, 1, 2, 2])
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Return the images."""
        return x


class Inpaint:
    """Observe some of the pixels.

    Applied to a picture with a hole, it returns the observation of :func:`.restore`.

    Args:
        mask: (height, width) or (channels, height, width), True or nonzero where a pixel is
            observed.

    Example:
        >>> Inpaint(torch.tensor([[1, 0], [1, 1]]))(torch.tensor([[[[0.1, 0.2], [0.3, 0.4]]]]))
        tensor([[0.1000, 0.3000, 0.4000]])
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask.bool()

    def __call__(self, x: Tensor) -> Tensor:
        """Return the observed pixels, (batch, number of pixels)."""
        return x[:, self.mask.to(x.device).expand(x.shape[1:])]


class Superresolve:
    """Average the pixels of squares.

    Args:
        factor: Side of a square, in pixels.

    Example:
        >>> Superresolve(2)(torch.ones(1, 3, 8, 8)).shape
        torch.Size([1, 3, 4, 4])
    """

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        """Return small images, (batch, channels, height / factor, width / factor)."""
        return F.avg_pool2d(x, self.factor)


class Deblur:
    """Convolve each channel with a kernel; images are reflected at the border.

    Args:
        kernel: Kernel with odd sides (height, width), or the standard deviation in pixels of a
            Gaussian kernel, which is truncated at four standard deviations.

    Example:
        >>> Deblur(0.5)(torch.ones(1, 3, 8, 8)).shape
        torch.Size([1, 3, 8, 8])
    """

    def __init__(self, kernel: Tensor | float) -> None:
        if not isinstance(kernel, Tensor):
            radius = max(1, round(TRUNCATION * kernel))
            weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / kernel).square())
            kernel = torch.outer(weights, weights) / weights.sum().square()
        self.kernel = kernel

    def __call__(self, x: Tensor) -> Tensor:
        """Return blurred images, in the shape of x."""
        channels, (height, width) = x.shape[1], self.kernel.shape
        padded = F.pad(x, (width // 2, width // 2, height // 2, height // 2), mode="reflect")
        weight = self.kernel.to(x).expand(channels, 1, height, width)
        return F.conv2d(padded, weight, groups=channels)


class Sense:
    """Compressed sensing: products of an image with rows of independent normal numbers.

    Args:
        count: Number of measurements m. The numbers have the variance 1/m, so that the measurements
            have about the norm of the image.
        seed: Seed of the numbers.

    Example:
        >>> Sense(5)(torch.ones(2, 3, 4, 4)).shape
        torch.Size([2, 5])
    """

    def __init__(self, count: int, seed: int = 0) -> None:
        self.count, self.seed = count, seed
        self._rows = torch.empty(count, 0, dtype=torch.double)

    def __call__(self, x: Tensor) -> Tensor:
        """Return measurements, (batch, count)."""
        flat = x.flatten(1)
        if self._rows.shape[1] != flat.shape[1]:
            # NumPy's numbers are independent of noise that torch draws with the same seed
            rng = np.random.default_rng(self.seed)
            rows = rng.standard_normal((self.count, flat.shape[1]))
            self._rows = torch.from_numpy(rows) / math.sqrt(self.count)
        return flat @ self._rows.to(flat).T


class Task(NamedTuple):
    """An inverse problem.

    Attributes:
        name: Its text, such as ``denoise:0.1``.
        operator: The operator.
        noise: Standard deviation of the noise of an observation, pixels in [0, 1].
    """

    name: str
    operator: Operator
    noise: float

    @property
    def kind(self) -> str:
        """The first part of the name, such as ``denoise``."""
        return self.name.partition(":")[0]

    def observe(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw observations y = operator(x) + noise * N(0, I) of images; generator on the CPU."""
        y = self.operator(x)
        return y + self.noise * torch.randn(y.shape, generator=generator).to(y)


TASKS = {
    "denoise": "denoise:0.1, the standard deviation of the noise",
    "inpaint": "inpaint:mask.png, whose black pixels are missing, or inpaint:12, a square hole",
    "superresolve": "superresolve:4, the factor",
    "deblur": "deblur:1.5, the standard deviation of a Gaussian kernel in pixels",
    "sense": "sense:600, the number of random measurements",
}
"""Examples of tasks, with an explanation."""


def parse(text: str, shape: tuple[int, ...], noise: float | None = None) -> Task:
    """Read a task.

    Args:
        text: One of :data:`TASKS`.
        shape: Shape of an image, (channels, height, width).
        noise: Standard deviation of the noise; by default that in the text of a denoising task, or
            :data:`NOISE`.

    Raises:
        UserError: The task is unknown, or does not fit the images.

    Example:
        >>> task = parse("superresolve:4", (3, 32, 32))
        >>> task.observe(torch.zeros(1, 3, 32, 32)).shape, task.noise
        (torch.Size([1, 3, 8, 8]), 0.01)
    """
    kind, _, value = text.partition(":")
    shown = f"task={printable(text)}"
    if kind not in TASKS:
        raise UserError(
            f"{shown}: expected one of {', '.join(TASKS)}, got {printable(kind) or 'nothing'}."
            f"{did_you_mean(kind, TASKS)} Use such as {'; '.join(TASKS.values())}."
        )
    positive = f"a number above 0 and up to {MAX_NOISE}"
    if noise is not None and not 0 < noise <= MAX_NOISE:
        raise UserError(f"noise: expected {positive}, got {noise:g}. Use such as {NOISE}.")
    if kind == "inpaint" and not value.isdecimal():
        return Task(text, Inpaint(read_mask(Path(value), shape)), noise or NOISE)
    sides = shape[1:]
    side = min(sides)
    number, expected = _number(value), "a positive integer"
    fits = number > 0 and number.is_integer()
    if kind == "denoise":
        expected, fits = positive, 0 < number <= MAX_NOISE
    elif kind == "deblur":
        largest = (side - 1) / TRUNCATION
        expected, fits = f"a number above 0 and up to {largest:g}", 0 < number <= largest
    elif kind == "inpaint":
        expected, fits = f"a side from 1 to {side - 1} pixels", fits and number < side
    elif kind == "superresolve":
        expected = f"a divisor of the sides {' and '.join(map(str, sides))}"
        fits = fits and not any(each % number for each in sides)
    if not fits:
        raise UserError(
            f"{shown}: expected {expected}, got {printable(value) or 'nothing'}. Use such as "
            f"{TASKS[kind]}."
        )
    if kind == "sense":  # normal numbers in double precision, and a copy
        check_memory(shown, int(number), 2 * 8 * math.prod(shape))
    operators: dict[str, Callable[[], Operator]] = {
        "denoise": Denoise,
        "inpaint": lambda: Inpaint(square_hole(sides, int(number))),
        "superresolve": lambda: Superresolve(int(number)),
        "deblur": lambda: Deblur(number),
        "sense": lambda: Sense(int(number)),
    }
    return Task(text, operators[kind](), noise or (number if kind == "denoise" else NOISE))


def _number(text: str) -> float:
    """Read a finite number, or return 0."""
    try:
        number = float(text)
    except ValueError:
        return 0.0
    return number if math.isfinite(number) else 0.0


def square_hole(sides: tuple[int, ...], side: int) -> Tensor:
    """Return the mask of a square hole in the centre, a bool tensor (height, width)."""
    mask = torch.ones(sides, dtype=torch.bool)
    top, left = ((each - side) // 2 for each in sides)
    mask[top : top + side, left : left + side] = False
    return mask


def read_mask(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Read a mask, a bool tensor (height, width): False where the picture is black.

    Args:
        path: An image file.
        shape: Shape of an image, (channels, height, width).

    Raises:
        UserError: The file cannot be read, or has another size or no observed pixel.
    """
    name = f"task=inpaint:{printable(str(path))}"
    try:
        with Image.open(path) as image:
            mask = torch.from_numpy(np.array(image.convert("L")) >= 128)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name}: expected a picture whose black pixels are missing, got "
            f"{printable(str(error))}. Use {TASKS['inpaint']}."
        ) from error
    if mask.shape != shape[1:]:
        expected, given = (f"{w} x {h}" for h, w in (shape[1:], mask.shape))
        raise UserError(
            f"{name}: expected {expected} pixels, the size of the model's images, got {given}. "
            "Resize the mask."
        )
    if not mask.any():
        raise UserError(f"{name}: expected pixels that are not black, got none. Draw white ones.")
    return mask


def standard_tasks(shape: tuple[int, ...]) -> list[Task]:
    """Return four tasks in proportion to the size of images (channels, height, width).

    Example:
        >>> [task.name for task in standard_tasks((3, 32, 32))]
        ['denoise:0.1', 'inpaint:12', 'superresolve:4', 'sense:600']
    """
    side = min(shape[1:])
    factor = next(n for n in (4, 2, 7, 5, 3, 1) if all(each % n == 0 for each in shape[1:]))
    names = ("denoise:0.1", f"inpaint:{3 * side // 8}", f"superresolve:{factor}",
             f"sense:{25 * math.prod(shape) // 128}")  # fmt: skip
    return [parse(name, shape) for name in names]
