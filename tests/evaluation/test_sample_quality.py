"""What the evaluation measures of samples, with and without the Inception weights."""

import json

import numpy as np
import pytest
import torch

from submanifold.evaluation import frechet
from submanifold.evaluation import sample_quality as module
from submanifold.evaluation.precision_recall import (
    kernel_distance,
    pixel_features,
    precision_recall,
    some_rows,
)
from submanifold.evaluation.sample_quality import sample_quality
from submanifold.evaluation.sliced_wasserstein import sliced_wasserstein

CPU, GPU = torch.device("cpu"), torch.device("cuda")
MEASURES = {"fid", "kid", "precision", "recall", "sliced_wasserstein"}
NAMES = MEASURES | {"features", "training_images"}


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)


def shuffled(count):
    return np.random.default_rng(0).permutation(count)


@pytest.fixture
def inception(monkeypatch):
    """Stands in for the network: the images' means by channel, and a record of the calls."""
    calls = []

    def features(sets, weights, device):
        calls.append((*map(len, sets), weights, device))
        return [images.mean(axis=(2, 3)) for images in sets]

    monkeypatch.setattr(module, "inception_features", features)
    return calls


@pytest.fixture
def no_weights(monkeypatch):
    def refuse(*args):
        raise frechet.MissingWeightsError("not measured: no network")

    monkeypatch.setattr(module, "inception_features", refuse)


@pytest.mark.parametrize(
    ("weights", "device", "path"),
    [("auto", GPU, None), ("download", CPU, None), ("some.pth", CPU, "some.pth")],
)
def test_all_four_come_from_one_pass_of_inception(weights, device, path, inception):
    test, samples = images(40), images(40, seed=1)
    train = images(50, seed=2)
    found = sample_quality(train, test, samples, weights, device)
    assert inception == [(40, 40, 40, path, device)]
    features = test.mean(axis=(2, 3)), samples.mean(axis=(2, 3))
    assert set(found) == NAMES
    assert found["features"] == "inception"
    assert found["fid"] == frechet.frechet_distance_with_interval(*features)
    assert found["kid"] == kernel_distance(*features)
    assert {name: found[name] for name in ("precision", "recall")} == precision_recall(*features)
    assert found["sliced_wasserstein"] == sliced_wasserstein(test, samples)
    floor = sample_quality(train, test, train[shuffled(50)[:40]], weights, device)
    assert found["training_images"] == {name: floor[name] for name in MEASURES}


@pytest.mark.parametrize("weights", ["auto", "download"])
def test_intervals_are_over_groups_where_images_have_some(weights, inception):
    test, samples, train = images(60), images(40, seed=1), images(90, seed=2)
    groups = {"test": [n % 17 for n in range(60)], "train": [n % 23 for n in range(90)]}
    found = sample_quality(train, test, samples, weights, CPU, groups)
    rows, copies = some_rows(60, 40), shuffled(90)[:40]
    for compared, fake, of_fake in (
        (found, samples, None), (found["training_images"], train[copies], copies % 23),
    ):  # fmt: skip
        of_both = rows % 17, of_fake
        if weights == "download":
            features = test.mean(axis=(2, 3)), fake.mean(axis=(2, 3))
            fid = frechet.frechet_distance_with_interval(
                *features, groups=(np.arange(60) % 17, of_fake)
            )
            assert compared["fid"] == fid
            features = features[0][rows], features[1]
        else:
            axes = train[shuffled(90)[40:]]
            features = pixel_features(axes, test[rows], fake)
        assert compared["kid"] == kernel_distance(*features, groups=of_both)
        both = precision_recall(*features, groups=of_both)
        assert {name: compared[name] for name in both} == both
        assert compared["recall"]["groups"] == len(set(rows % 17))
        assert compared["sliced_wasserstein"] == sliced_wasserstein(
            test, fake, groups=(np.arange(60) % 17, of_fake)
        )
    assert found["training_images"]["precision"]["groups"] == len(set(copies % 23))


@pytest.mark.parametrize(("n_test", "n_samples"), [(100, 30), (30, 100)])
@pytest.mark.parametrize("weights", ["auto", "download"])
def test_counts_are_equal_but_for_the_fid(n_test, n_samples, weights, inception):
    # sorted by brightness, so that the first of the test images are not like all of them
    test = np.sort(images(n_test).reshape(n_test, -1), axis=0).reshape(n_test, 3, 8, 8)
    train, samples = images(50, seed=2), images(n_samples, seed=1)
    found = sample_quality(train, test, samples, weights, CPU)
    test_drawn, samples_drawn = test[some_rows(n_test, 30)], samples[:30]
    for name in ("kid", "precision", "recall"):
        assert (found[name]["n_real"], found[name]["n_fake"]) == (30, 30)
    if weights == "download":
        assert (found["fid"]["n_real"], found["fid"]["n_fake"]) == (n_test, n_samples)
        features = test_drawn.mean(axis=(2, 3)), samples_drawn.mean(axis=(2, 3))
    else:
        features = pixel_features(train[shuffled(50)], test_drawn, samples_drawn)
    assert found["kid"] == kernel_distance(*features)
    assert found["training_images"]["kid"]["n_fake"] == 30


@pytest.mark.parametrize("count", [40, 79, 80])
def test_axes_are_fitted_to_images_that_are_not_compared_where_there_are_enough(count):
    train, test, samples = images(count, seed=2), images(40), images(90, seed=1)
    found = sample_quality(train, test, samples, "auto", CPU)
    mixed = train[shuffled(count)]
    axes = mixed[40:] if count == 80 else mixed
    real, fake, floor = pixel_features(axes, test, samples[:40], mixed[:40])
    assert found["kid"] == kernel_distance(real, fake)
    assert found["training_images"]["kid"] == kernel_distance(real, floor)
    assert found["training_images"]["fid"] == found["fid"]


def test_training_images_are_chosen_from_everywhere():
    def dark_then_bright(count, seed):
        half = images(count, seed=seed) // 4
        return np.concatenate([half, 255 - half])

    test, train = dark_then_bright(150, seed=0), dark_then_bright(450, seed=2)
    found = sample_quality(train, test, train[:300], "auto", CPU)  # the dark ones alone
    assert found["kid"]["low"] > 0.1
    assert found["training_images"]["kid"]["low"] < 0.01
    assert found["training_images"]["kid"]["high"] < 0.1


def test_fewer_training_images_than_are_compared_are_no_floor():
    found = sample_quality(images(39, seed=2), images(40), images(90, seed=1), "auto", CPU)
    assert found["training_images"] is None
    assert found["precision"]["value"] is not None


def test_pixels_take_the_place_of_inception_on_a_cpu(inception):
    found = sample_quality(images(70, seed=2), images(700), images(700, seed=1), "auto", CPU)
    assert inception == []
    assert found["fid"]["value"] is None
    assert "on a CPU" in found["fid"]["why"]
    assert found["features"] == "64 principal components of pixels"
    assert found["kid"]["low"] < 0 < found["kid"]["high"]
    assert min(found["precision"]["value"], found["recall"]["value"]) > 0.6


def test_pixels_take_the_place_of_inception_where_it_cannot_be_downloaded(no_weights):
    found = sample_quality(images(6, seed=2), images(50), images(50, seed=1), "download", GPU)
    assert found["fid"] == {"value": None, "why": "not measured: no network"}
    assert found["features"] == "5 principal components of pixels"
    assert found["kid"]["value"] is not None


@pytest.mark.parametrize("count", [1, 3, 4, 9])
@pytest.mark.parametrize("weights", ["auto", "download"])
def test_few_images(count, weights, inception):
    found = sample_quality(images(count, seed=2), images(count), images(20, seed=1), weights, CPU)
    assert set(found) == NAMES
    for name in ("kid", "precision", "recall"):
        assert (found[name]["value"] is None) == (count < 4)
        assert ("why" in found[name]) == (count < 4)
    assert json.loads(json.dumps(found)) == found
