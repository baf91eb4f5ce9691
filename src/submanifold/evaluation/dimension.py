"""Choice of the manifold's dimension: estimators without a model, a model's spectrum, advice."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from submanifold.common.errors import import_extra
from submanifold.common.progress import ProgressBar, track
from submanifold.data.batches import Batches
from submanifold.evaluation.baselines import FULL
from submanifold.evaluation.intervals import Interval, mean_interval, student_interval
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
"""Estimators of scikit-dimension, with its default settings."""
CORRECTED = "corrected TwoNN"
ESTIMATOR_IMAGES, HALVES = 2000, 5
REFERENCES, GROWTH = 3, 1.2  # data sets of each dimension, and the ratio of successive dimensions
SPECTRUM_IMAGES, DIRECTIONS, SPECTRUM_BATCH_SIZE = 64, 256, 32
ENOUGH = {
    "30 dB": "reach a PSNR of 30 dB (of the mean squared error)",
    "explained variance 0.9": "explain 90% of the variance",
}
"""Goals of a reconstruction, of images and of vectors: with a PSNR of 30 dB, an image is hard to
distinguish from the original."""


def intrinsic_dimensions(images: np.ndarray) -> dict[str, Interval]:
    """Estimate the intrinsic dimension of images or rows (N, ...), at most 2,000, without a model.

    Equal images count once: the logarithm of a distance of 0 would make MLE's estimate 0.
    The 95% interval is by the delete-half jackknife (Shao & Wu 1989), whose standard error is the
    standard deviation over random halves. It does not cover the bias of an estimator. A bootstrap
    would repeat images, at distance 0. Of TwoNN there is a second estimate, by :func:`correct`.
    """
    skdim = import_extra("skdim", "dimension")  # slow to import
    chosen = images[:ESTIMATOR_IMAGES]
    flat = np.unique(chosen.reshape(len(chosen), -1), axis=0) / 256
    rng = np.random.default_rng(0)
    halves = [flat[rng.permutation(len(flat))[: len(flat) // 2]] for _ in range(HALVES)]
    estimates: dict[str, Interval] = {}
    with (
        np.errstate(divide="ignore", invalid="ignore"),  # TLE skips what it divides by 0
        ProgressBar("intrinsic dimensions", "estimates", len(ESTIMATORS)) as bar,
    ):
        for name in ESTIMATORS:
            estimator = getattr(skdim.id, name)
            value, *of_halves = (float(estimator().fit(x).dimension_) for x in (flat, *halves))
            interval = student_interval(value, float(np.std(of_halves, ddof=1)), HALVES)
            estimates[name] = interval | {"low": max(interval["low"], 0.0), "n": len(flat)}
            bar.update(1)
        estimates[CORRECTED] = correct(estimates["TwoNN"], flat.shape[1])
    return estimates


def correct(two_nn: Interval, event_dim: int) -> Interval:
    """Find the dimension of normal data that have, with as many points, the same TwoNN.

    TwoNN is too small in many dimensions: distances between n points determine at most 2 log10(n)
    (Eckmann & Ruelle 1992, eq. 8). Normal data of known dimension have the same bias, as uniform
    data on spheres have in DANCo (Ceruti et al. 2014).
    """
    skdim = import_extra("skdim", "dimension")
    rng, dims, estimates = np.random.default_rng(0), [0], [0.0]
    while estimates[-1] < two_nn["high"] and dims[-1] < event_dim:
        dims.append(min(max(dims[-1] + 1, round(GROWTH * dims[-1])), event_dim))
        normal = rng.normal(size=(REFERENCES, two_nn["n"], dims[-1]))
        points = np.pad(normal, ((0, 0), (0, 0), (0, 1)))  # the estimator needs two columns
        estimates.append(np.mean([skdim.id.TwoNN().fit(each).dimension_ for each in points]))
    estimates = np.maximum.accumulate(estimates).tolist()
    ends = {end: float(np.interp(two_nn[end], estimates, dims)) for end in ("value", "low", "high")}
    return {**two_nn, **ends}


def spectrum_dimension(
    model: Model, test: np.ndarray, groups: np.ndarray | None = None
) -> Interval:
    """Average :func:`~submanifold.evaluation.scores.local_dimension` over 64 test images.

    The ``directions`` are at most 256 leading latents, of a hierarchy also off the manifold.
    """
    device = next(model.parameters()).device
    batches = Batches(test[:SPECTRUM_IMAGES], SPECTRUM_BATCH_SIZE, device=device)
    dimensions = []
    for x, context in track(batches, "spectra", len(batches)):
        u, v = (part.detach() for part in model.encode(x, context=context))
        eigenvalues = leading_spectrum(model, u, DIRECTIONS, v, context)
        dimensions.append(local_dimension(eigenvalues, model.event_shape))
    interval = mean_interval(torch.cat(dimensions).cpu().numpy(), groups)
    return {**interval, "directions": eigenvalues.shape[1]}


SPECTRUM = "spectrum of JᵀJ"


def advise(curve: Mapping[str, Any], baselines: Mapping[str, Any], dim: int) -> dict[str, Any]:
    """Recommend the smallest ``dim`` that reaches the goal, and ``pca_dim`` of equal error."""
    goal = next(name for name in ENOUGH if name in curve["goals"])
    best, enough = curve["smallest"][goal], curve["goals"][goal]
    if best is None:
        return {"dim": None, "pca_dim": None, "sentence": (
            f"No dimension has encoder projections of test data that {ENOUGH[goal]}. "
            "Train longer, or increase the weight of the reconstruction term."
        )}  # fmt: skip
    # interpolate in log-log space; errors with all dimensions can be 0
    errors = np.log(np.maximum(curve["mse"], np.finfo(float).tiny))
    error = np.exp(np.interp(np.log(best), np.log(curve["dims"]), errors))
    pca_dim = pca_dim_of(baselines, error)
    sentence = f"d = {best} is the smallest dimension whose encoder projections of test data "
    sentence += f"{ENOUGH[goal]}."
    nearest = [d for d, mse in zip(curve["nearest_dims"], curve["nearest_mse"], strict=True)
               if mse is not None and mse <= enough and d < best]  # fmt: skip
    if nearest:
        sentence += f" For nearest projections, d = {nearest[0]} suffices."
    if pca_dim is not None:
        amount = {-1: "fewer dimensions, ", 0: "", 1: "more dimensions, "}[np.sign(pca_dim - best)]
        sentence += f" PCA reaches the same error with {amount}d = {pca_dim}."
    if best == dim:
        sentence += " The model has this dimension."
    return {"dim": best, "pca_dim": pca_dim, "sentence": sentence}


def pca_dim_of(baselines: Mapping[str, Any], error: float) -> int | None:
    """Return how many principal components reach an error of :func:`.error_curve`, or None."""
    reached = np.array(baselines["subsets"][str(FULL.curve)]["pca_mse"]) <= error
    return int(np.argmax(reached)) if reached.any() else None
