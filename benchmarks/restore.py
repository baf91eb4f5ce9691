"""Restorations compared with other methods, on test images.

    pip install bm3d pywavelets
    python -m benchmarks.restore photos=MODEL:FOLDER celeba=MODEL:FOLDER ...

MODEL is a hierarchy.safetensors file, and FOLDER has the train.npy, valid.npy, test.npy and, if
images depend on each other, groups.json of its data, such as data/03_primary/photos-468160c18a.
Prints the tables of docs/evidence/restore.md: PSNR of 256 evenly spaced test images and its 95%
interval, the gain over the best baseline, and the coverage of the posterior's 90% intervals. The
observations are simulated; all methods restore the same ones. bm3d is licensed for non-commercial
use only; wavelets and BM3D are left out if their packages are missing.

Each finished task is kept, and a repeated command continues after it.
"""

import argparse
import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.results import kept
from submanifold.data.arrays import read_sidecar
from submanifold.data.splits import groups_of
from submanifold.evaluation.baselines import PCA, evenly_spaced, fit_gaussian
from submanifold.evaluation.gaussian import Gaussian
from submanifold.evaluation.intervals import mean_interval
from submanifold.evaluation.metrics import format_interval
from submanifold.evaluation.reconstruction import psnr
from submanifold.inverse import Denoise, Task, parse, restore
from submanifold.inverse.linear import GaussianPosterior, matrix_of
from submanifold.inverse.operators import Operator
from submanifold.inverse.restoration import LEVEL, coverage
from submanifold.models import Model

TASKS = ("denoise:0.05", "denoise:0.1", "denoise:0.2", "inpaint:12", "superresolve:4", "sense:600")
OURS, MODE = "restore", "mode"
FOLDER = Path("data/08_reporting/restore")
LABELS = {
    OURS: "submanifold",
    MODE: "submanifold, mode",
    "lmmse": "LMMSE",
    "scaled_lmmse": "LMMSE, scaled",
    "pca": "PCA",
    "total_variation": "total variation",
    "wavelets": "wavelets",
    "lasso": "lasso (DCT)",
    "bm3d": "BM3D",
}
ITERATIONS, DUAL_ITERATIONS, POWER_ITERATIONS = 100, 30, 20
WEIGHTS = tuple(np.geomspace(0.02, 10, 9).tolist())  # of regularizers, relative to the noise
DIMS = tuple(round(2 ** (exponent / 2)) for exponent in range(4, 23))
WAVELET, LEVELS, SHIFTS = "sym4", 3, (0, 1, 2, 3)
VALID = 16  # images on which parameters are chosen
SMALLEST_FOR_BM3D = 16  # side of images, below which bm3d crashes

Restorer = Callable[[Tensor], Tensor]  # from observations to images


def adjoint_of(operator: Operator, shape: Sequence[int]) -> Restorer:
    def adjoint(y: Tensor) -> Tensor:
        with torch.enable_grad():
            x = torch.zeros(len(y), *shape, requires_grad=True)
            return torch.autograd.grad(operator(x), x, y)[0]

    return adjoint


def principal_components(pca: PCA, task: Task, shape: Sequence[int], dim: int) -> Restorer:
    """Least squares in the span of the first principal components."""
    matrix, axes = matrix_of(task.operator, shape, torch.empty(0)).double(), pca.axes[:, :dim]

    def restorer(y: Tensor) -> Tensor:
        right = (y.flatten(1).double() - matrix @ pca.mean).T
        coordinates = torch.linalg.lstsq(matrix @ axes, right).solution
        return (pca.mean + (axes @ coordinates).T).view(-1, *shape).to(y)

    return restorer


def regularized(
    prox: Callable[[Tensor, float], Tensor], task: Task, shape: Sequence[int], weight: float
) -> Restorer:
    r"""Minimize :math:`|A x - y|^2 / 2 + w \sigma R(x)` by FISTA (Beck & Teboulle 2009)."""
    adjoint = adjoint_of(task.operator, shape)
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    for _ in range(POWER_ITERATIONS):
        x = adjoint(task.operator(x / x.norm()))
    lipschitz = 1.05 * float(x.norm())

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


def total_variation(x: Tensor, weight: float) -> Tensor:
    """Proximal operator of the isotropic total variation of each channel, by its dual problem."""

    def adjoint_differences(dual: Tensor) -> Tensor:
        vertical = F.pad(dual[0, ..., :-1, :], (0, 0, 1, 1))
        horizontal = F.pad(dual[1, ..., :-1], (1, 1))
        return -vertical.diff(dim=-2) - horizontal.diff(dim=-1)

    dual = momentum = x.new_zeros(2, *x.shape)
    t = 1.0
    for _ in range(DUAL_ITERATIONS):
        rest = x - weight * adjoint_differences(momentum)
        slopes = [F.pad(rest.diff(dim=-2), (0, 0, 0, 1)), F.pad(rest.diff(dim=-1), (0, 1))]
        new = momentum + torch.stack(slopes) / (8 * weight)
        new = new / new.square().sum(0).sqrt().clamp_min(1)
        t_new = (1 + math.sqrt(1 + 4 * t * t)) / 2
        momentum = new + (t - 1) / t_new * (new - dual)
        dual, t = new, t_new
    return x - weight * adjoint_differences(dual)


def shrink(values: np.ndarray, weight: float) -> np.ndarray:
    return np.sign(values) * np.maximum(np.abs(values) - weight, 0)


def cosine_sparsity(x: Tensor, weight: float) -> Tensor:
    """Proximal operator of the 1-norm of the orthonormal discrete cosine transform: the lasso."""
    axes = (-2, -1)
    coefficients = scipy.fft.dctn(x.numpy(), axes=axes, norm="ortho")
    return torch.from_numpy(scipy.fft.idctn(shrink(coefficients, weight), axes=axes, norm="ortho"))


def wavelet_sparsity(x: Tensor, weight: float) -> Tensor:
    """Shrink the details of a wavelet transform with cycle spinning (Coifman & Donoho 1995).

    It is a denoiser in the place of a proximal operator (Venkatakrishnan et al. 2013).
    """
    import pywt

    axes, margin = (-2, -1), min(x.shape[2:]) // 2
    reflected = F.pad(x, (margin,) * 4, mode="reflect").numpy()
    total = np.zeros_like(reflected)
    levels = min(LEVELS, pywt.dwtn_max_level(reflected.shape[2:], WAVELET))
    for shift in SHIFTS:
        shifted = np.roll(reflected, (shift, shift), axes)
        coarse, *details = pywt.wavedec2(shifted, WAVELET, "periodization", levels, axes)
        shrunk = [tuple(shrink(values, weight) for values in level) for level in details]
        smoothed = pywt.waverec2([coarse, *shrunk], WAVELET, "periodization", axes)
        total += np.roll(smoothed, (-shift, -shift), axes)
    return torch.from_numpy(total / len(SHIFTS)).to(x)[..., margin:-margin, margin:-margin]


def bm3d(y: Tensor, noise: float) -> Tensor:
    """Block-matching and 3D filtering (Dabov et al. 2007)."""
    from bm3d import bm3d, bm3d_rgb

    pictures = y.permute(0, 2, 3, 1).numpy().astype(float)
    denoise = bm3d_rgb if y.shape[1] == 3 else bm3d
    filtered = [denoise(picture, noise).reshape(picture.shape) for picture in pictures]
    return torch.from_numpy(np.stack(filtered)).permute(0, 3, 1, 2).to(y)


def as_pixels(images: np.ndarray) -> Tensor:
    return (torch.from_numpy(np.array(images)).float() + 0.5) / 256


def image_psnr(image: Tensor, x: Tensor) -> np.ndarray:
    return np.asarray(psnr((image - x).square().flatten(1).mean(1).double().numpy()))


class Baselines:
    """Baselines, fitted to training images, with parameters chosen on validation images."""

    def __init__(self, train: np.ndarray, valid: np.ndarray) -> None:
        pca, _ = fit_gaussian(train, valid)
        gaussian = Gaussian.fit(train, valid, rank=train[0].size).to(torch.empty(0))
        self.gaussian = replace(gaussian, mean=gaussian.mean + 0.5)
        self.pca = replace(pca, mean=pca.mean + 0.5)  # pixels in [0, 1]
        self.valid, self.shape = as_pixels(evenly_spaced(valid, VALID)), train.shape[1:]

    def restorers(self, task: Task) -> dict[str, tuple[Restorer, float | None]]:
        """Each method, and its parameter that has the largest PSNR on validation images."""
        observed = task.observe(self.valid, torch.Generator().manual_seed(1))

        def choose(build: Callable[[Any], Restorer], values: Sequence[float]) -> Any:
            def score(value: float) -> float:
                restored = build(value)(observed).clamp(0, 1).nan_to_num(0.0)
                return float(image_psnr(restored, self.valid).mean())

            best = max(values, key=score)
            return build(best), best

        linear = GaussianPosterior(self.gaussian, task.operator, task.noise)
        most = min(observed[0].numel(), self.pca.axes.shape[1])
        components = partial(principal_components, self.pca, task, self.shape)
        restorers: dict[str, Any] = {
            "lmmse": (lambda y: linear.estimate(y.flatten(1)), None),
            "scaled_lmmse": (lambda y: linear.scaled(y.flatten(1)).estimate(y.flatten(1)), None),
            "pca": choose(components, [dim for dim in DIMS if dim <= most] or [1]),
        }
        regularizers = {"total_variation": total_variation, "lasso": cosine_sparsity}
        if importlib.util.find_spec("pywt"):
            regularizers["wavelets"] = wavelet_sparsity
        for name, prox in regularizers.items():
            restorers[name] = choose(partial(regularized, prox, task, self.shape), WEIGHTS)
        is_large = min(self.shape[1:]) >= SMALLEST_FOR_BM3D
        if isinstance(task.operator, Denoise) and is_large and importlib.util.find_spec("bm3d"):
            restorers["bm3d"] = partial(bm3d, noise=task.noise), None
        return restorers


def compare(
    model: Model, baselines: Any, images: np.ndarray, task: Task, groups: np.ndarray | None = None
) -> dict[str, Any]:
    """Restore simulated observations of images (N, channels, height, width) by all methods."""
    x = as_pixels(images)
    y = task.observe(x, torch.Generator().manual_seed(2))
    with torch.no_grad():
        restorers = baselines.restorers(task)
        baselines = {name: restorer(y).clamp(0, 1) for name, (restorer, _) in restorers.items()}
    generator = torch.Generator().manual_seed(0)
    posterior = restore(model, y, task.operator, task.noise, generator=generator)
    ours = {OURS: posterior.image, MODE: posterior.mode}
    ours = {name: image.cpu() for name, image in ours.items() if image is not None}
    ratings = {name: image_psnr(image, x) for name, image in (ours | baselines).items()}
    best = max(restorers, key=lambda name: ratings[name].mean())
    return {
        "task": task.name,
        "psnr": {name: mean_interval(values, groups) for name, values in ratings.items()},
        "best": best,
        "gain": {name: mean_interval(ratings[name] - ratings[best], groups) for name in ours},
        "coverage": mean_interval(coverage(posterior, x), groups),
        "acceptance": float(posterior.acceptance.mean()),
        "r_hat": float(posterior.r_hat.median()),
        "parameters": {name: value for name, (_, value) in restorers.items()},
    }


def measure(
    name: str, model: Model, folder: Path, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measure all tasks on one data set, or read those that are kept."""
    arrays = {
        split: np.load(folder / f"{split}.npy", mmap_mode="r")
        for split in ("train", "valid", "test")
    }
    numbers = evenly_spaced(np.arange(len(arrays["test"])), options.images)
    groups = groups_of(read_sidecar(folder, "groups"), "test")
    groups = None if groups is None else groups[numbers]
    baselines = cache(lambda: Baselines(arrays["train"], arrays["valid"]))

    def measure_one(text: str) -> dict[str, Any]:
        task = parse(text, model.event_shape)
        return compare(model, baselines(), arrays["test"][numbers], task, groups)

    names = [f"{name}-{text.replace(':', '-')}-{options.images}.json" for text in options.tasks]
    return [
        kept(FOLDER / file, partial(measure_one, text))
        for file, text in zip(names, options.tasks, strict=True)
    ]


def table(measurements: list[dict[str, Any]]) -> str:
    """Write the measures of a data set as a table, one column for each task."""
    names = [name for name in LABELS if any(name in measures["psnr"] for measures in measurements)]
    columns = {}
    for measures in measurements:
        columns[measures["task"]] = {
            **{LABELS[name]: format_interval(measures["psnr"].get(name), ".2f") for name in names},
            "gain": format_interval(measures["gain"].get(OURS), "+.2f"),
            "gain, mode": format_interval(measures["gain"].get(MODE), "+.2f"),
            f"coverage at {LEVEL:.0%}": format_interval(measures["coverage"], ".1%"),
            "acceptance rate": f"{measures['acceptance']:.2f}",
            "R-hat": f"{measures['r_hat']:.1f}",
        }
    return pd.DataFrame(columns).rename_axis("PSNR, dB").to_markdown(disable_numparse=True)


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL:FOLDER")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--images", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for argument in options.models:
        name, _, paths = argument.partition("=")
        path, _, folder = paths.partition(":")
        measurements = measure(name, Model.load(path), Path(folder), options)
        print(f"### {name}\n\n{table(measurements)}\n", flush=True)


if __name__ == "__main__":
    main()
