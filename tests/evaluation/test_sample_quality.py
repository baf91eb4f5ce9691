"""Sample quality with a stand-in for Inception: the means of channels."""

import json

import numpy as np
import pytest
import torch

from submanifold.evaluation import features as module
from submanifold.evaluation.features import pixel_features
from submanifold.evaluation.sample_quality import (
    frechet_distance,
    kernel_distance,
    precision,
    random_subset,
    recall,
    sample_quality,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ON_FEATURES = {"kid": kernel_distance, "precision": precision, "recall": recall}
MEASURES = {"fid", *ON_FEATURES}
NAMES = MEASURES | {"features", "training_images"}


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)


def shuffled(count):
    return np.random.default_rng(0).permutation(count)


def channel_means(*sets):
    return [each.mean(axis=(2, 3)) for each in sets]


@pytest.fixture
def inception(monkeypatch):
    """Replace the network and record the calls."""
    calls = []

    def features(sets, weights, device):
        calls.append((*map(len, sets), weights, device))
        return channel_means(*sets)

    monkeypatch.setattr(module, "inception_features", features)
    return calls


@pytest.mark.parametrize(
    ("weights", "device", "path"),
    [("auto", GPU, None), ("download", CPU, None), ("some.pth", CPU, "some.pth")],
)
def test_all_metrics_on_features_use_one_pass_of_inception(weights, device, path, inception):
    test, samples, train = images(40), images(40, seed=1), images(50, seed=2)
    found = sample_quality(train, test, samples, weights, device)
    assert inception == [(40, 40, 40, path, device)]
    features = channel_means(test, samples)
    assert set(found) == NAMES
    assert found["features"] == "inception"
    assert found["fid"] == frechet_distance(*features)
    for name, distance in ON_FEATURES.items():
        assert found[name] == distance(*features)
    reference = sample_quality(train, test, train[shuffled(50)[:40]], weights, device)
    assert found["training_images"] == {name: reference[name] for name in MEASURES}


def test_pca_of_pixels_is_fitted_to_training_images_that_are_not_compared(monkeypatch):
    compared, pixels = [], module.pixel_features

    def features(reference, *images):
        compared.append((reference, *images))
        return pixels(reference, *images)

    monkeypatch.setattr(module, "pixel_features", features)
    test, samples, train = images(40), images(30, seed=1), images(90, seed=2)
    sample_quality(train, test, samples, "auto", CPU)
    ((reference, *others),) = compared
    rows = [{image.tobytes() for image in each} for each in (reference, *others)]
    assert rows[0] == {image.tobytes() for image in train} - rows[3]
    assert (rows[1] <= {image.tobytes() for image in test}, len(rows[1])) == (True, 30)
    assert rows[2] == {image.tobytes() for image in samples}
    assert (rows[3] < {image.tobytes() for image in train}, len(rows[3])) == (True, 30)


@pytest.mark.parametrize(("n_test", "n_samples"), [(100, 30), (30, 100)])
@pytest.mark.parametrize("weights", ["auto", "download"])
def test_all_metrics_except_fid_compare_equal_numbers(n_test, n_samples, weights, inception):
    # sorted by brightness, so that the first test images are not typical
    test = np.sort(images(n_test).reshape(n_test, -1), axis=0).reshape(n_test, 3, 8, 8)
    train, samples = images(50, seed=2), images(n_samples, seed=1)
    found = sample_quality(train, test, samples, weights, CPU)
    drawn = test[random_subset(n_test, 30)], samples[:30]
    if weights == "download":
        assert (found["fid"]["n_real"], found["fid"]["n_fake"]) == (n_test, n_samples)
        features = channel_means(*drawn)
    else:
        features = pixel_features(train[shuffled(50)], *drawn)
    for name, distance in ON_FEATURES.items():
        assert found[name] == distance(*features)
    assert found["training_images"]["kid"]["n_fake"] == 30


def test_pixel_features_replace_inception_on_a_cpu(inception):
    found = sample_quality(images(70, seed=2), images(70), images(70, seed=1), "auto", CPU)
    assert inception == []
    assert found["fid"]["value"] is None
    assert "on a CPU" in found["fid"]["why"]
    assert found["features"] == "64 principal components of pixels"


@pytest.mark.parametrize("count", [1, 3, 4, 9])
@pytest.mark.parametrize("weights", ["auto", "download"])
def test_fewer_than_four_images_are_not_measured(count, weights, inception):
    found = sample_quality(images(count, seed=2), images(count), images(20, seed=1), weights, CPU)
    assert set(found) == NAMES
    for name in ("kid", "precision", "recall"):
        assert (found[name]["value"] is None) == (count < 4)
        assert ("why" in found[name]) == (count < 4)
    assert json.loads(json.dumps(found)) == found
