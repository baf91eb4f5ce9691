"""How good samples are, by every measure there is, and what training images reach by the same."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from submanifold.data.groups import Groups, groups_of
from submanifold.evaluation.frechet import (
    MissingWeightsError,
    frechet_distance_with_interval,
    inception_features,
)
from submanifold.evaluation.intervals import GroupsOfBoth
from submanifold.evaluation.precision_recall import (
    LARGEST_REFERENCE,
    kernel_distance,
    pixel_features,
    precision_recall,
    some_rows,
)
from submanifold.evaluation.sliced_wasserstein import sliced_wasserstein

FEWEST = 4  # an image and its three nearest neighbours
TOO_FEW = f"not measured: there are fewer than {FEWEST} test images or samples"
FID_ON_CPU = (
    "not measured: on a CPU the Inception features take 0.1 s an image; set "
    "evaluation.inception_weights to download, or to the path of the weights file"
)


def sample_quality(
    train: np.ndarray,
    test: np.ndarray,
    samples: np.ndarray,
    weights: str,
    device: torch.device,
    groups: Groups | None = None,
) -> dict[str, Any]:
    """Compare samples with test images; and training images in their place, known by heart.

    FID is of all images. KID, precision and recall are of as many test images as samples: the
    first samples, or a random choice of the test images. Random choices are always the same.

    All images are uint8 of shape (n, channels, height, width). The weights are "auto" for Inception
    on a GPU only, "download", or the path of its weights, a UserError if it is no such file. The
    groups are those of ``train`` and ``test`` images, where these are not independent of each
    other: all intervals are over groups.

    Returns:
        ``fid``, ``kid``, ``precision``, ``recall`` and ``sliced_wasserstein``, each a value with
        its interval and counts or ``why`` there is none; ``features``: what KID, precision and
        recall are measured on, "inception" or a number of principal components of pixels; and
        ``training_images``: the same five of a random choice of the training images, or None where
        these are fewer than the samples that are compared.
    """
    count = min(len(test), len(samples))
    order = np.random.default_rng(0).permutation(len(train))  # neighbours may be of one photograph
    compared = [samples] if len(train) < count else [samples, train[order[: len(samples)]]]
    of_train, of_test = (groups_of(groups, part) for part in ("train", "test"))
    of_copies = None if of_train is None else of_train[order[: len(samples)]]
    grouped = [(of_test, None), (of_test, of_copies)]
    if count < FEWEST:
        none = {"value": None, "why": TOO_FEW}
        measured = [dict.fromkeys(("fid", "kid", "precision", "recall"), none) for _ in compared]
        features = "none"
    else:
        # other images than those compared, which would be flattered by axes of their own
        others = order[count if len(train) >= 2 * count else 0 :][:LARGEST_REFERENCE]
        measured, features = _by_features(
            train[others], test, compared, count, weights, device, grouped
        )
    for each, images, both in zip(measured, compared, grouped, strict=False):
        each["sliced_wasserstein"] = sliced_wasserstein(test, images[: len(test)], groups=both)
    floor = measured[1] if len(measured) > 1 else None
    return measured[0] | {"features": features, "training_images": floor}


def _by_features(
    reference: np.ndarray,
    test: np.ndarray,
    compared: Sequence[np.ndarray],
    count: int,
    weights: str,
    device: torch.device,
    grouped: Sequence[GroupsOfBoth],
) -> tuple[list[dict[str, Any]], str]:
    """FID, KID, precision and recall of each set that is compared, and what they are taken on."""
    rows = some_rows(len(test), count)
    try:
        if weights == "auto" and device.type == "cpu":
            raise MissingWeightsError(FID_ON_CPU)
        path = None if weights in ("auto", "download") else weights
        real, *fakes = inception_features([test, *compared], path, device)
        fids = [
            frechet_distance_with_interval(real, fake, groups=both)
            for fake, both in zip(fakes, grouped, strict=False)
        ]
        features, real = "inception", real[rows]
    except MissingWeightsError as error:
        real, *fakes = pixel_features(reference, test[rows], *(x[:count] for x in compared))
        fids = [{"value": None, "why": str(error)} for _ in fakes]
        features = f"{real.shape[1]} principal components of pixels"
    measured = []
    for fid, fake, (of_test, of_fake) in zip(fids, fakes, grouped, strict=False):
        pair = real, fake[:count]
        both = None if of_test is None else of_test[rows], of_fake
        kid = kernel_distance(*pair, groups=both)
        measured.append({"fid": fid, "kid": kid, **precision_recall(*pair, groups=both)})
    return measured, features
