"""Evaluation of a model: all metrics of the table, and the diagnostics that accompany them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from submanifold.common.errors import UserError
from submanifold.common.progress import track
from submanifold.data.batches import Batches
from submanifold.data.splits import Groups, groups_of
from submanifold.data.synthetic import Manifold
from submanifold.evaluation.baselines import pca_error
from submanifold.evaluation.intervals import GroupPair, mean_interval
from submanifold.evaluation.likelihood import BATCH_SIZE, per_event, to_bits_per_dim
from submanifold.evaluation.metrics import compute_metrics
from submanifold.evaluation.model_metrics import NO_DENSITY, ModelEvaluation
from submanifold.evaluation.reconstruction import error_curve, reconstruction, squared_errors
from submanifold.evaluation.sample_metrics import (
    MIN_IMAGES,
    Features,
    SampleComparison,
    random_subset,
)
from submanifold.evaluation.truth import TruthComparison
from submanifold.models import Model
from submanifold.models.diagnostics import LARGEST_INVERSE_ERROR, inverse_error

FID_ON_CPU = (
    "not measured: on a CPU, Inception features take 0.1 s per image; set "
    "evaluation.inception_weights to download, or to the path of the weights file"
)

MAX_REFERENCE = 5000
"""Images that the PCA of pixel features is fitted to."""

Metrics = dict[str, Any]


def measure(
    model: Model,
    test: np.ndarray,
    baselines: Mapping[str, Any],
    input_noise: float,
    dequantizations: int,
    device: torch.device,
    groups: np.ndarray | None = None,
) -> Metrics:
    """Evaluate density and reconstruction on test data; the model is moved to the device.

    For the arguments, see :class:`~submanifold.evaluation.model_metrics.ModelEvaluation`. Several
    processes (:mod:`submanifold.common.distributed`) split the data.

    Returns:
        Metrics by name (:data:`~submanifold.evaluation.metrics.METRICS`), ``dims``,
        ``inverse_error``, ``overflows``, ``baselines``; for images the ``curve`` of
        :func:`~submanifold.evaluation.reconstruction.error_curve`; for points ``thickness`` and
        ``neighbour_correlation``, signs of manifold overfitting.
    """
    evaluation = ModelEvaluation(
        model.to(device), test, baselines, input_noise, dequantizations, device, groups
    )  # fmt: skip
    pca, gaussian = pca_error(baselines, model.dim), baselines.get("gaussian")
    return {
        **compute_metrics(evaluation),
        **({"curve": error_curve(model, test, baselines, device)} if evaluation.of_images else {}),
        **evaluation.overfitting,
        "overflows": evaluation.reconstruction["overflows"],
        "dims": model.dims,
        "inverse_error": inverse_error(model, next(iter(evaluation.batches))),
        "baselines": {"pca": pca, "gaussian": gaussian},
    }


def against_truth(model: Model, truth: Manifold, test: np.ndarray, samples: np.ndarray) -> Metrics:
    """Compare a model of synthetic data with the known manifold and density.

    Returns:
        Metrics by name, the ``noise`` of the data, and in nats: ``true_nll``, ``manifold_nll`` on
        the learned manifold and ``manifold_entropy``, its true value; only those that exist.
    """
    comparison = TruthComparison(model, truth, test, samples)
    found = compute_metrics(comparison)
    found |= {"manifold_entropy": truth.manifold_entropy, "noise": truth.noise}
    if comparison.manifold_log_prob is not None:
        found["manifold_nll"] = mean_interval(-comparison.manifold_log_prob)
    if comparison.has_densities:
        found["true_nll"] = mean_interval(-truth.log_prob(test))
    return found


def sample_quality(
    train: np.ndarray,
    test: np.ndarray,
    samples: np.ndarray,
    weights: str,
    device: torch.device,
    groups: Groups | None = None,
) -> Metrics:
    """Compare samples, and as a reference training images, with test images.

    FID uses all images. KID, precision and recall use equal numbers of samples and test images: the
    first samples or a fixed random subset of the test images. All images are uint8 (n, channels,
    height, width). `weights` is ``auto`` (Inception on a GPU only), ``download`` or a path.

    Returns:
        ``fid``, ``kid``, ``precision``, ``recall`` and ``sliced_wasserstein``, each with interval
        and counts or the reason ``why`` it is missing; ``features``: "inception" or a number of
        principal components of pixels; and ``training_images``: the same five for a random subset
        of the training images, or None if these are fewer than the compared samples.

    Raises:
        UserError: `weights` is not the path of the standard file.
    """
    count = min(len(test), len(samples))
    order = np.random.default_rng(0).permutation(len(train))  # neighbors can share a photograph
    drawn = order[: len(samples)]
    of_train, of_test = (groups_of(groups, part) for part in ("train", "test"))
    fakes = [samples]
    pairs: list[GroupPair] = [(of_test, None)]
    if len(train) >= count:
        fakes.append(train[drawn])
        pairs.append((of_test, None if of_train is None else of_train[drawn]))
    inception: Sequence[Any] = [""] * len(fakes)
    features: Sequence[Any] = [None] * len(fakes)
    subset, name = np.arange(0), "none"
    if count >= MIN_IMAGES:
        # PCA is fitted to other images than those compared, if there are enough
        start = count if len(train) >= 2 * count else 0
        reference = train[order[start : start + MAX_REFERENCE]]
        subset = random_subset(len(test), count)
        inception, features, name = _features(reference, test, fakes, subset, weights, device)
    found, *others = [
        compute_metrics(SampleComparison(test, *each, subset))
        for each in zip(fakes, pairs, inception, features, strict=True)
    ]
    return found | {"features": name, "training_images": others[0] if others else None}


def _features(
    reference: np.ndarray,
    test: np.ndarray,
    fakes: list[np.ndarray],
    subset: np.ndarray,
    weights: str,
    device: torch.device,
) -> tuple[Sequence[Any], Sequence[Features], str]:
    """Compute Inception features or the reason they are missing, features, and their name."""
    # torch-fidelity and scikit-learn take seconds to import
    from submanifold.evaluation.features import (
        MissingWeightsError,
        inception_features,
        pixel_features,
    )

    count = len(subset)
    inception: Sequence[Any]
    try:
        if weights == "auto" and device.type == "cpu":
            raise MissingWeightsError(FID_ON_CPU)
        path = None if weights in ("auto", "download") else weights
        real, *of_fakes = inception_features([test, *fakes], path, device)
        inception = [(real, each) for each in of_fakes]
        real, name = real[subset], "inception"
    except MissingWeightsError as error:
        inception = [str(error)] * len(fakes)
        real, *of_fakes = pixel_features(reference, test[subset], *(x[:count] for x in fakes))
        name = f"{real.shape[1]} principal components of pixels"
    return inception, [(real, each[:count]) for each in of_fakes], name


def objectives(model: Model, events: np.ndarray, device: torch.device) -> tuple[float, float]:
    """Compute bits per dimension and squared error, the objectives of a search.

    Raises:
        UserError: The model has no density on all of space.
    """
    if not model.has_density:
        raise UserError(f"Bits per dimension as an objective: {NO_DENSITY}.")
    batches = Batches(events, BATCH_SIZE, device=device)
    log_prob = per_event(model.log_prob, track(batches, "bits per dimension", len(batches)))
    errors = squared_errors(model.project, track(batches, "projecting", len(batches)))
    mse = reconstruction(errors, of_images=not batches.is_continuous)["mse"]
    return float(to_bits_per_dim(log_prob, events).mean()), mse["value"]


def warnings(metrics: Metrics, histories: Mapping[str, Any]) -> list[str]:
    """Collect the warnings of trainings and of the evaluation."""
    found = [
        f"{name}: {text}"
        for name, history in sorted(histories.items(), key=lambda item: (len(item[0]), item[0]))
        for text in history["warnings"].values()
    ]
    if not metrics["inverse_error"] <= LARGEST_INVERSE_ERROR:
        found.append(
            "The inverse is inaccurate: on test data, decode(encode(x)) differs from x by up to "
            f"{metrics['inverse_error']:.2g} standard deviations of the data. Samples and "
            "projections do not belong to the reported density"
        )
    return found
