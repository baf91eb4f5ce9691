"""Comparison of restorations with the baselines on test images, whose observations are simulated.

The noise of the observations has a fixed seed, so that all methods restore the same ones.
"""

import importlib.util
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import scipy  # submodules load on first use
import torch
from torch import Tensor
from torch.nn import functional as F

from submanifold.data.arrays import context_of_array
from submanifold.evaluation.baselines import fit_gaussian
from submanifold.evaluation.intervals import mean_interval
from submanifold.evaluation.reconstruction import evenly_spaced, psnr
from submanifold.evaluation.samples import stored
from submanifold.flows import conditioning
from submanifold.inverse import baselines
from submanifold.inverse.baselines import Restorer
from submanifold.inverse.gaussian import Gaussian
from submanifold.inverse.linear import GaussianPosterior
from submanifold.inverse.operators import Denoise, Task
from submanifold.inverse.restoration import Restoration, as_pixels, restore
from submanifold.models import Model

log = logging.getLogger(__name__)

OURS, MODE = "restore", "mode"
METHODS = {
    OURS: "posterior mean with the model's density as the prior",
    MODE: "mode of the same posterior in the model's latents, for noise below 0.04",
    "lmmse": "best linear estimator for the covariance of the training images, shrunk toward a "
    "nearly stationary one",
    "scaled_lmmse": "the same with the most likely contrast of each image",
    "pca": "least squares in the span of principal components",
    "total_variation": "least squares with a penalty on the total variation",
    "wavelets": "least squares with a penalty on wavelet coefficients (sym4, cycle spinning)",
    "lasso": "least squares with a penalty on the coefficients of a discrete cosine transform",
    "bm3d": "block matching and 3D filtering, of denoising only",
}
"""Methods by name, with a description."""
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
"""Methods by name, as they are shown."""
PACKAGES = {"wavelets": "pywt", "bm3d": "bm3d"}
"""Packages of the extra ``restore`` that methods need."""
SMALLEST_FOR_BM3D = 16
"""Smallest side of the images on which bm3d does not crash."""
VALID, SHOWN = 16, 8
"""Validation images on which parameters are chosen, and images of a page."""
LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Levels of the posterior's intervals whose coverage is measured."""
LEVEL = 0.9


class Baselines:
    """Baselines, fitted to training images, with parameters chosen on validation images.

    Args:
        train: Training images, uint8 (N, channels, height, width).
        valid: Validation images.
    """

    def __init__(self, train: np.ndarray, valid: np.ndarray) -> None:
        pca, _ = fit_gaussian(train, valid)
        gaussian = Gaussian.fit(train, valid, rank=None).to(torch.empty(0))
        self.gaussian = replace(gaussian, mean=gaussian.mean + 0.5)
        self.pca = replace(pca, mean=pca.mean + 0.5)  # pixels in [0, 1]
        self.valid = as_pixels(evenly_spaced(valid, VALID))
        self.shape = tuple(train.shape[1:])
        missing = [name for name, package in PACKAGES.items()
                   if importlib.util.find_spec(package) is None]  # fmt: skip
        self.skipped = set(missing)
        if missing:
            log.warning("skipped %s: pip install 'submanifold[restore]'", " and ".join(missing))

    def restorers(self, task: Task) -> dict[str, tuple[Restorer, float | None]]:
        """Return each method, and its parameter that has the largest PSNR on validation images."""
        observed = task.observe(self.valid, torch.Generator().manual_seed(1))
        fit = partial(self._choose, observed)
        size = len(observed[0].flatten())
        dims = [dim for dim in baselines.DIMS if dim <= min(size, self.pca.axes.shape[1])]
        components = baselines.principal_components(self.pca, task, self.shape)
        linear = self._denoiser.at_noise(task.noise) if task.kind == "denoise" else (
            GaussianPosterior(self.gaussian, task.operator, task.noise))  # fmt: skip

        def scaled(y: Tensor) -> Tensor:
            return linear.scaled(y.flatten(1)).estimate(y.flatten(1))

        found = {"lmmse": (lambda y: linear.estimate(y.flatten(1)), None),
                 "scaled_lmmse": (scaled, None),
                 "pca": fit(components, dims or [1])}  # fmt: skip
        regularizers = {"total_variation": baselines.total_variation,
                        "wavelets": baselines.wavelet_sparsity,
                        "lasso": baselines.cosine_sparsity}  # fmt: skip
        for name, regularizer in regularizers.items():
            if name not in self.skipped:
                build = partial(baselines.regularized, regularizer, task, self.shape)
                found[name] = fit(build, baselines.WEIGHTS)
        is_large = min(self.shape[1:]) >= SMALLEST_FOR_BM3D
        if task.kind == "denoise" and is_large and "bm3d" not in self.skipped:
            found["bm3d"] = baselines.bm3d(task.noise), None
        return found

    @cached_property
    def _denoiser(self) -> GaussianPosterior:
        """The linear estimator of images with noise; its decomposition serves all noises."""
        return GaussianPosterior(self.gaussian, Denoise(), noise=1.0)

    def _choose(
        self, observed: Tensor, build: Callable[[Any], Restorer], values: Iterable[float]
    ) -> tuple[Restorer, float]:
        def score(value: float) -> float:
            restored = build(value)(observed).clamp(0, 1).nan_to_num(0.0)
            return float(image_psnr(restored, self.valid).mean())

        best = max(values, key=score)
        return build(best), best


def compare(
    model: Model,
    fitted: Baselines,
    images: np.ndarray,
    task: Task,
    groups: np.ndarray | None = None,
    dim: int | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Restore simulated observations of images by all methods.

    Args:
        model: A model of images.
        fitted: The baselines.
        images: Test images, uint8 (N, channels, height, width).
        task: The inverse problem.
        groups: Groups (N,) of images that depend on each other.
        dim: See :func:`.restore`.

    Returns:
        Measures and images. The measures are ``psnr`` by method, and the ``gain``, its difference
        from that of the ``best`` baseline, of the posterior mean and the mode, in dB; the
        ``coverage`` by the posterior's intervals by level; the mean ``acceptance`` rate, and the
        median ``r_hat``; the ``parameters`` of the baselines; ``task`` and ``noise``. PSNR, gain
        and coverage have 95% intervals over images. The images are uint8, the first ones:
        ``original``, ``observation``, a picture for each method, and ``std``, four times the
        posterior standard deviation.
    """
    x = as_pixels(images)
    y = task.observe(x, torch.Generator().manual_seed(2))
    with torch.no_grad():
        restorers = fitted.restorers(task)
        found = {name: restorer(y).clamp(0, 1) for name, (restorer, _) in restorers.items()}
    posterior = restore_by_label(model, y, task, context_of_array(images), dim)
    ours = {OURS: posterior.image, **({} if posterior.mode is None else {MODE: posterior.mode})}
    found = ours | found
    ratings = {name: image_psnr(image, x) for name, image in found.items()}
    best = max(restorers, key=lambda name: ratings[name].mean())
    measures = {
        "task": task.name,
        "noise": task.noise,
        "psnr": {name: mean_interval(each, groups) for name, each in ratings.items()},
        "best": best,
        "gain": {name: mean_interval(ratings[name] - ratings[best], groups) for name in ours},
        "coverage": {f"{level:g}": mean_interval(coverage(posterior, x, level), groups)
                     for level in LEVELS},
        "acceptance": float(posterior.acceptance.mean()),
        "r_hat": float(posterior.r_hat.median()),
        "parameters": {
            name: value for name, (_, value) in restorers.items() if value is not None
        },
    }  # fmt: skip
    shown = {"original": x, "observation": observed_picture(task, y, x.shape[1:]), **found,
             "std": 4 * posterior.std}  # fmt: skip
    return measures, {name: stored(each[:SHOWN] - 0.5) for name, each in shown.items()}


def restore_by_label(
    model: Model, y: Tensor, task: Task, labels: np.ndarray | None = None, dim: int | None = None
) -> Restoration:
    """Call :func:`.restore` for observations (N, ...), and for each label (N,) if there are some.

    The result is in the order of the observations.
    """
    groups = [np.arange(len(y))]
    if labels is not None:
        groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    parts = []
    for rows in groups:
        generator = torch.Generator().manual_seed(0)
        context = None if labels is None else torch.from_numpy(labels[rows[:1]])
        with conditioning(model, context):
            parts.append(restore(model, y[rows], task.operator, task.noise, dim=dim,
                                 generator=generator))  # fmt: skip
    order = torch.from_numpy(np.argsort(np.concatenate(groups)))

    def joined(name: str) -> Tensor | None:
        tensors = [getattr(part, name).cpu() for part in parts if getattr(part, name) is not None]
        axis = 1 if name == "samples" else 0
        return torch.cat(tensors, axis).index_select(axis, order) if tensors else None

    return Restoration(*(joined(name) for name in Restoration._fields))  # type: ignore[arg-type]


def coverage(posterior: Restoration, x: Tensor, level: float = LEVEL) -> np.ndarray:
    """Share of the pixels of each image x inside the posterior's interval of a level, (batch,).

    The interval is that of a normal distribution with the posterior mean and standard deviation.
    """
    half_width = float(scipy.stats.norm.ppf((1 + level) / 2)) * posterior.std.cpu()
    return ((posterior.image.cpu() - x).abs() <= half_width).flatten(1).double().mean(1).numpy()


def image_psnr(image: Tensor, x: Tensor) -> np.ndarray:
    """Peak signal-to-noise ratio of each image, (batch,), in dB."""
    return np.asarray(psnr((image - x).square().flatten(1).mean(1).double().numpy()))


def observed_picture(task: Task, y: Tensor, shape: Sequence[int]) -> Tensor:
    """Show observations as pictures (batch, *shape): enlarged, or back-projected by A^T."""
    if y.ndim == 4:
        return F.interpolate(y, list(shape[1:])).clamp(0, 1)
    return baselines.adjoint_of(task.operator, shape)(y).clamp(0, 1)
