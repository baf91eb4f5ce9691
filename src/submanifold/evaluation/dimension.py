"""How many dimensions images need: estimates that use no model, a model's spectrum, and advice."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy  # whose parts load where they are used
import torch

from submanifold.common.progress import ProgressBar, track
from submanifold.data.batches import Batches
from submanifold.evaluation.intervals import mean_interval
from submanifold.evaluation.scores import leading_spectrum, local_dimension
from submanifold.models import Model

ESTIMATORS = {
    "TwoNN": "ratio of the two nearest distances (Facco et al. 2017)",
    "MLE": "maximum likelihood of distances (Levina & Bickel 2004)",
    "MOM": "method of moments (Amsaleg et al. 2018)",
    "TLE": "tight localities (Amsaleg et al. 2019)",
    "CorrInt": "correlation integral (Grassberger & Procaccia 1983)",
    "lPCA": "eigenvalues of the covariance (Fukunaga & Olsen 1971)",
}
"""Of scikit-dimension, whose defaults are used."""
IMAGES, PARTS = 2000, 5
SPECTRA, DIRECTIONS, BATCH = 64, 256, 32
PSNR = 30
"""Decibels above which a reconstruction is hard to tell from the image."""


def intrinsic_dimensions(images: np.ndarray) -> dict[str, dict[str, Any]]:
    r"""Estimate the dimension of the set that images (N, ...) lie on, without a model.

    The 95% interval is the value plus or minus Student's t times the standard error by the
    delete-half jackknife (Shao & Wu 1989): the standard deviation over random halves of the images,
    since :math:`\operatorname{Var}(\theta_{n/2} \mid \text{images}) \approx
    (2/n - 1/n)\,\sigma^2 = \operatorname{Var}(\theta_n)`. It does not cover the bias of an
    estimator, which depends on the number of images; a bootstrap would repeat images, which then
    have neighbours at distance 0.

    Returns:
        For each of :data:`ESTIMATORS` ``value``, of the first ``n`` images (at most 2,000), with
        its ``low`` and ``high``.
    """
    import skdim  # which compiles when it is imported

    flat = images[:IMAGES].reshape(min(IMAGES, len(images)), -1) / 256
    rng = np.random.default_rng(0)
    halves = [flat[rng.permutation(len(flat))[: len(flat) // 2]] for _ in range(PARTS)]
    found: dict[str, dict[str, Any]] = {}
    # images that are equal have a distance of 0, whose logarithm the estimators leave out
    with (
        np.errstate(divide="ignore", invalid="ignore"),
        ProgressBar("intrinsic dimensions", "estimates", len(ESTIMATORS)) as meter,
    ):
        for name in ESTIMATORS:
            value, *parts = (
                float(getattr(skdim.id, name)().fit(each).dimension_) for each in (flat, *halves)
            )
            half_width = scipy.stats.t.ppf(0.975, PARTS - 1) * np.std(parts, ddof=1)
            low, high = max(value - half_width, 0.0), value + half_width
            found[name] = {"value": value, "low": low, "high": high, "n": len(flat)}
            meter.update(1)
    return found


def spectrum_dimension(
    model: Model, test: np.ndarray, groups: np.ndarray | None = None
) -> dict[str, Any]:
    """Count the directions along which the manifold at an image moves it visibly.

    See :func:`submanifold.evaluation.scores.local_dimension`; of 64 images, and at most 256
    directions. The groups are those of :func:`~submanifold.evaluation.intervals.mean_interval`.

    Returns:
        The mean over images, with its interval, and the count of ``directions``.
    """
    batches = Batches(test[:SPECTRA], BATCH, device=next(model.parameters()).device)
    dimensions = []
    for x in track(batches, "spectra", len(batches)):
        eigenvalues = leading_spectrum(model, model.encode(x)[0].detach(), DIRECTIONS)
        dimensions.append(local_dimension(eigenvalues, model.event_dim))
    found = mean_interval(torch.cat(dimensions).cpu().numpy(), groups)
    return {**found, "directions": min(model.dim, DIRECTIONS)}


def advise(curve: Mapping[str, Any], baselines: Mapping[str, Any], own: int) -> dict[str, Any]:
    """Recommend a dimension: the smallest whose PSNR (of the mean squared error) is 30 dB.

    Args:
        curve: What :func:`submanifold.evaluation.curve.error_curve` returned.
        baselines: What :func:`submanifold.evaluation.baselines.fit_baselines` returned.
        own: The model's own dimension.

    Returns:
        ``dim``, None if no dimension reaches it; ``pca_dim``, that at which PCA's error is as
        small, None where it is not known; and the ``sentence``.
    """
    dim = curve["smallest"][str(PSNR)]
    if dim is None:
        return {"dim": None, "pca_dim": None, "sentence": (
            f"No manifold of this model reaches a PSNR of {PSNR} dB (of the mean squared error) on "
            "test images, not even that of all its coordinates: train it longer, or with a larger "
            "weight of the reconstruction."
        )}  # fmt: skip
    # errors fall about as powers of d, and those of all coordinates may be 0
    errors = np.log(np.maximum(curve["mse"], np.finfo(float).tiny))
    error = np.exp(np.interp(np.log(dim), np.log(curve["dims"]), errors))
    pca = np.array(baselines.get("pca_mse", []))
    pca_dim = int(np.argmax(pca <= error)) if len(pca) and (pca <= error).any() else None
    beside = "" if pca_dim is None else f"; PCA has as small an error at d = {pca_dim}"
    change = "as it is" if dim == own else f"--params=stage_1.dim={dim}"
    return {"dim": dim, "pca_dim": pca_dim, "sentence": (
        f"Keep d = {dim} ({change}): the smallest manifold whose projections of test images reach "
        f"a PSNR of {PSNR} dB (of the mean squared error){beside}."
    )}  # fmt: skip
