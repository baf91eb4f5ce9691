import numpy as np
import pytest
import torch

from submanifold.evaluation.samples import draw_samples, stored
from submanifold.flows import Affine
from submanifold.models import Hierarchy, Stage


@pytest.fixture(scope="module")
def model():
    return Hierarchy([Stage(Affine(40), 40)])  # a rotation


@pytest.fixture(scope="module")
def samples(model):
    return draw_samples(model, 600, seed=3)


def test_samples_are_as_wide_as_their_temperature(samples):
    assert {name: each.shape for name, each in samples.items()} == {
        "samples": (600, 40),
        "samples_cool": (64, 40),
    }
    # the standard error of the deviation of n numbers is 1 / sqrt(2 n)
    assert samples["samples"].std() == pytest.approx(1, abs=4 / np.sqrt(2 * 600 * 40))
    assert samples["samples_cool"].std() == pytest.approx(0.7, abs=4 * 0.7 / np.sqrt(2 * 64 * 40))


def test_no_sample_is_there_twice_and_a_seed_gives_them_again(model, samples):
    assert len(np.unique(samples["samples"], axis=0)) == 600
    assert np.array_equal(draw_samples(model, 600, seed=3)["samples"], samples["samples"])
    assert not np.array_equal(draw_samples(model, 600, seed=4)["samples"], samples["samples"])


def test_images_are_stored_as_bytes_and_vectors_as_they_are():
    images = torch.tensor([-0.5, 0.0, 0.499, 2.0]).view(1, 1, 2, 2)
    assert stored(images).tolist() == [[[[0, 128], [255, 255]]]]
    vectors = torch.tensor([[-0.5, 2.0]])
    assert stored(vectors).tolist() == [[-0.5, 2.0]]
