import numpy as np
import pytest

from submanifold.evaluation.samples import draw_samples
from submanifold.flows import Affine
from submanifold.models import Hierarchy, Stage


def test_samples_have_the_width_of_their_temperature_and_depend_on_the_seed():
    model = Hierarchy([Stage(Affine(40), 40)])  # a rotation
    samples = draw_samples(model, 600, seed=3)
    expected = {"samples": (1.0, 600), "samples_t07": (0.7, 64)}
    assert samples.keys() == expected.keys()
    for name, (width, count) in expected.items():
        assert samples[name].x.shape == (count, 40)
        # the standard error of the deviation of n numbers is 1 / sqrt(2 n)
        tolerance = 4 * width / np.sqrt(2 * count * 40)
        assert samples[name].x.std() == pytest.approx(width, abs=tolerance)
    assert len(np.unique(samples["samples"].x, axis=0)) == 600
    first = samples["samples"].x
    assert np.array_equal(draw_samples(model, 600, seed=3)["samples"].x, first)
    assert not np.array_equal(draw_samples(model, 600, seed=4)["samples"].x, first)
