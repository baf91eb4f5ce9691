"""Comparison of samples, and as a reference of training images, with test images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from submanifold.data.splits import Groups, groups_of
from submanifold.evaluation.feature_distances import (
    NEIGHBORS,
    frechet_distance_with_interval,
    kernel_distance,
    precision,
    recall,
)
from submanifold.evaluation.intervals import GroupPair

MIN_IMAGES = NEIGHBORS + 1
TOO_FEW = {
    "value": None,
    "why": f"not measured: there are fewer than {MIN_IMAGES} test images or samples",
}
FID_ON_CPU = (
    "not measured: on a CPU, Inception features take 0.1 s per image; set "
    "evaluation.inception_weights to download, or to the path of the weights file"
)
MAX_REFERENCE = 5000
"""Images that the PCA of pixel features is fitted to."""
ON_FEATURES = {"kid": kernel_distance, "precision": precision, "recall": recall}

Features = tuple[np.ndarray, np.ndarray]
"""Features of real and of fake images."""


def sample_quality(
    train: np.ndarray, test: np.ndarray, samples: np.ndarray, weights: str, device: torch.device,
    groups: Groups | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Compare samples, and as a reference training images, with test images.

    FID uses all images. KID, precision and recall use equal numbers of samples and test images: the
    first samples or a fixed random subset of the test images. All images are uint8 (n, channels,
    height, width). `weights` is ``auto`` (Inception on a GPU only), ``download`` or a path.

    Returns:
        ``fid``, ``kid``, ``precision`` and ``recall``, each with interval and counts or the reason
        ``why`` it is missing; ``features``: "inception" or a number of principal components of
        pixels; and ``training_images``: the same four for a random subset of the training images,
        or None if these are fewer than the compared samples.

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
    found: list[dict[str, Any]] = [dict.fromkeys(("fid", *ON_FEATURES), TOO_FEW) for _ in fakes]
    name = "none"
    if count >= MIN_IMAGES:
        # PCA is fitted to other images than those compared, if there are enough
        start = count if len(train) >= 2 * count else 0
        reference = train[order[start : start + MAX_REFERENCE]]
        subset = random_subset(len(test), count)
        inception, features, name = _features(reference, test, fakes, subset, weights, device)
        for each, pair, all_features, some in zip(found, pairs, inception, features, strict=True):
            each["fid"] = (
                {"value": None, "why": all_features}
                if isinstance(all_features, str)
                else frechet_distance_with_interval(*all_features, groups=pair)
            )
            compared = None if of_test is None else of_test[subset], pair[1]
            for metric, distance in ON_FEATURES.items():
                each[metric] = distance(*some, groups=compared)
    return found[0] | {"features": name, "training_images": found[1] if found[1:] else None}


def random_subset(count: int, size: int) -> np.ndarray:
    """Return sorted indices of a fixed random subset; all indices if size >= count."""
    return np.sort(np.random.default_rng(0).choice(count, min(count, size), replace=False))


def _features(
    reference: np.ndarray, test: np.ndarray, fakes: list[np.ndarray], subset: np.ndarray,
    weights: str, device: torch.device,
) -> tuple[Sequence[Features | str], Sequence[Features], str]:  # fmt: skip
    """Compute Inception features or the reason they are missing, features, and their name."""
    # torch-fidelity and scikit-learn take seconds to import
    from submanifold.evaluation.features import (
        MissingWeightsError,
        inception_features,
        pixel_features,
    )

    count = len(subset)
    inception: Sequence[Features | str]
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
