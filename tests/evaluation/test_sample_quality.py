"""Sample quality with a stand-in for the networks: the means of channels."""

import json

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kernel_poly, mmd2

from submanifold.data import Events
from submanifold.evaluation import features as module
from submanifold.evaluation.sample_quality import (
    frechet_distance,
    kernel_distance,
    precision,
    recall,
    sample_quality,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ON_FEATURES = {"kid": kernel_distance, "precision": precision, "recall": recall}


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)


def shuffled(count):
    return np.random.default_rng(0).permutation(count)


def channel_means(*sets):
    return [of_set.mean(axis=(2, 3)) for of_set in sets]


@pytest.fixture
def networks(monkeypatch):
    """Replace the networks and record the calls."""
    calls = []

    def inception(sets, weights, device):
        calls.append(("Inception", *map(len, sets), weights, device))
        return channel_means(*sets)

    def efficientnet(sets, device):
        calls.append(("EfficientNet-Lite0", *map(len, sets), device))
        return channel_means(*sets)

    monkeypatch.setattr(module, "inception_features", inception)
    monkeypatch.setattr(module, "efficientnet_features", efficientnet)
    return calls


@pytest.mark.parametrize(
    ("weights", "device", "network", "arguments"),
    [
        ("download", CPU, "Inception", ("download", CPU)),
        ("some.pth", GPU, "Inception", ("some.pth", GPU)),
        (None, GPU, "EfficientNet-Lite0", (GPU,)),
    ],
)
def test_all_metrics_use_one_pass_of_one_network(weights, device, network, arguments, networks):
    test, samples, train = images(40), images(40, seed=1), images(50, seed=2)
    quality = sample_quality(train, test, samples, weights, device)
    assert networks == [(network, 40, 40, 40, *arguments)]
    features = channel_means(test, samples)
    frechet = "fid" if weights else "frechet_distance"
    assert set(quality) == {frechet, *ON_FEATURES, "features", "training_images"}
    assert quality["features"] == network
    assert quality[frechet] == frechet_distance(*features)
    scale = 1 if weights else np.sqrt(np.mean(features[0] ** 2))
    for name, distance in ON_FEATURES.items():
        assert quality[name] == distance(*(x / scale for x in features))
    reference = sample_quality(train, test, train[shuffled(50)[:40]], weights, device)
    names = {frechet, *ON_FEATURES}
    assert quality["training_images"] == {name: reference[name] for name in names}


@pytest.mark.parametrize(("n_test", "n_samples"), [(100, 30), (30, 100)])
@pytest.mark.parametrize("weights", [None, "download"])
def test_all_metrics_except_fid_compare_equal_numbers(n_test, n_samples, weights, networks):
    # sorted by brightness, so that the first test images are not typical
    test = np.sort(images(n_test).reshape(n_test, -1), axis=0).reshape(n_test, 3, 8, 8)
    train, samples = images(50, seed=2), images(n_samples, seed=1)
    quality = sample_quality(train, test, samples, weights, CPU)
    subset = np.random.default_rng(0).choice(n_test, min(n_test, 30), replace=False)
    features = channel_means(test[np.sort(subset)], samples[:30])
    if weights:
        assert (quality["fid"]["n_real"], quality["fid"]["n_fake"]) == (n_test, n_samples)
    else:
        assert quality["frechet_distance"] == frechet_distance(*features)
        features = [x / np.sqrt(np.mean(features[0] ** 2)) for x in features]
    for name, distance in ON_FEATURES.items():
        assert quality[name] == distance(*features)
    assert quality["training_images"]["kid"]["n_fake"] == 30


def test_efficientnet_replaces_inception_without_its_weights(networks, monkeypatch):
    def missing(*_):
        raise module.MissingWeightsError("not measured: no connection")

    monkeypatch.setattr(module, "inception_features", missing)
    splits = images(50, seed=2), images(40), images(40, seed=1)
    quality = sample_quality(*splits, "download", CPU)
    assert quality.pop("fid") == {"value": None, "why": "not measured: no connection"}
    assert quality == sample_quality(*splits, None, CPU)


@pytest.mark.parametrize("count", [1, 3, 4, 9])
@pytest.mark.parametrize(("weights", "frechet"), [(None, "frechet_distance"), ("download", "fid")])
def test_fewer_than_four_images_are_not_measured(count, weights, frechet, networks):
    quality = sample_quality(images(count, seed=2), images(count), images(20, seed=1), weights, CPU)
    for metric in (frechet, "kid", "precision", "recall"):
        assert (quality[metric]["value"] is None) == (count < 4)
        assert ("why" in quality[metric]) == (count < 4)
    assert set(quality) == {frechet, *ON_FEATURES, "features", "training_images"}
    assert json.loads(json.dumps(quality)) == quality


# ---- distances of features


def normal(count, size=8, seed=0):
    return np.random.default_rng(seed).standard_normal((count, size))


def values(real, fake):
    return precision(real, fake)["value"], recall(real, fake)["value"]


@pytest.mark.parametrize("counts", [(30, 30), (30, 200), (300, 200)])
def test_frechet_distance_agrees_with_torch_fidelity(counts):
    a, b = normal(counts[0], 64), 0.3 + normal(counts[1], 64, seed=1) ** 2
    statistics = [fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(a, b)["value"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("count", [30, 300])
def test_frechet_distance_of_repeated_features_is_twice_as_large(count):
    a, b = normal(count, 20), 0.3 + 2 * normal(count, 20, seed=1)
    repeated = frechet_distance(np.hstack([a, a]), np.hstack([b, b]))  # singular covariances
    single = frechet_distance(a, b)
    for name in ("value", "low", "high"):
        assert repeated[name] == pytest.approx(2 * single[name], rel=1e-6)


def test_frechet_interval_contains_the_value_and_needs_ten_images():
    found = frechet_distance(normal(30), normal(40, seed=1))
    assert 0 <= found["low"] < found["value"] < found["high"]
    assert (found["n_real"], found["n_fake"]) == (30, 40)
    assert frechet_distance(normal(9), normal(40))["low"] is None


def test_precision_and_recall_of_points_on_a_line():
    real = np.array([[0.0], [1.0], [3.0], [7.0]])  # radii 7, 6, 4, 7: [-7, 14] is covered
    fake = np.array([[13.0], [14.0], [15.0], [16.0], [17.0]])  # radii 3, 2, 2, 2, 3: [10, 20]
    assert values(real, fake) == (2 / 5, 0)
    assert values(fake, real) == (0, 2 / 5)


def test_distant_samples_have_zero_precision_and_recall_with_exact_intervals():
    real, fake = normal(200), 50 + normal(300, seed=1)
    assert precision(real, fake) == pytest.approx(
        {"value": 0, "low": 0, "high": 0.0122, "n_real": 200, "n_fake": 300}, abs=1e-4
    )
    assert recall(real, fake) == pytest.approx(
        {"value": 0, "low": 0, "high": 0.0183, "n_real": 200, "n_fake": 300}, abs=1e-4
    )


def test_kernel_distance_in_chunks_agrees_with_torch_fidelity():
    x, y = normal(1500, 20), normal(1500, 20, seed=1) ** 2
    cubic = {"kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1}
    expected = mmd2(*(kernel_poly(a, b, **cubic) for a, b in ((x, x), (x, y), (y, y))))
    assert kernel_distance(x, y)["value"] == pytest.approx(expected, rel=1e-10)


def expected_kernel(mean_x, mean_y):
    """E (x.y / f + 1)^3 of independent x ~ N(mean_x, I), y ~ N(mean_y, I), from E (x.y)^n."""
    size, dot = len(mean_x), mean_x @ mean_y
    square_x, square_y = mean_x @ mean_x, mean_y @ mean_y
    second = size + square_x + square_y + dot**2
    third = dot**3 + 3 * dot * square_x + 3 * dot * (size + square_y + 2)
    return third / size**3 + 3 * second / size**2 + 3 * dot / size + 1


@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0])
def test_kernel_distance_of_shifted_gaussians_is_unbiased(shift):
    zero, mean = np.zeros(6), np.full(6, shift)
    expected = expected_kernel(zero, zero) + expected_kernel(mean, mean)
    expected -= 2 * expected_kernel(zero, mean)
    found = [
        kernel_distance(normal(50, 6, seed), normal(80, 6, seed + 1000) + mean)
        for seed in range(100)
    ]
    drawn = np.array([each["value"] for each in found])
    assert drawn.mean() == pytest.approx(expected, abs=3 * drawn.std() / np.sqrt(100))
    assert np.mean([each["low"] < expected < each["high"] for each in found]) > 0.88
    if shift == 0:
        assert (drawn < 0).mean() > 0.3  # not clipped at zero, which would add a bias


@pytest.mark.parametrize("weights", [None, "download"])
def test_groups_are_those_of_the_compared_images(networks, weights):
    train, test, samples = images(90), images(60, seed=1), images(40, seed=2)
    of_train, of_test = np.arange(90) // 3, 100 + np.arange(60) // 2
    grouped = Events(train, groups=of_train), Events(test, groups=of_test)
    quality = sample_quality(*grouped, samples, weights, CPU)
    drawn = shuffled(90)[:40]
    subset = np.sort(np.random.default_rng(0).choice(60, 40, replace=False))
    compared = slice(None) if weights else subset
    frechet = "fid" if weights else "frechet_distance"
    for metrics, fake, of_fake in (
        (quality, samples, None),
        (quality["training_images"], train[drawn], of_train[drawn]),
    ):
        real, made = channel_means(test, fake)
        assert metrics[frechet] == frechet_distance(
            real[compared], made, (of_test[compared], of_fake)
        )
        scale = 1 if weights else np.sqrt(np.mean(real[subset] ** 2))
        for name, distance in ON_FEATURES.items():
            expected = distance(real[subset] / scale, made / scale, (of_test[subset], of_fake))
            assert metrics[name] == expected
