from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from torch_fidelity.metric_kid import kernel_poly, mmd2

from submanifold.evaluation.precision_recall import (
    kernel_distance,
    pixel_features,
    precision_recall,
    some_rows,
)


def normal(count, size=8, seed=0):
    return np.random.default_rng(seed).standard_normal((count, size))


def images(count, seed=0):
    """Plain colours with noise: three large axes and 189 small ones."""
    rng = np.random.default_rng(seed)
    colours = rng.uniform(50, 200, (count, 3, 1, 1))
    return (colours + rng.normal(0, 3, (count, 3, 8, 8))).round().astype(np.uint8)


def values(real, fake, **kwargs):
    found = precision_recall(real, fake, **kwargs)
    return found["precision"]["value"], found["recall"]["value"]


def test_points_on_a_line_are_counted_by_hand():
    real = np.array([[0.0], [1.0], [3.0], [7.0]])  # radii 1, 1, 2, 4: [-1, 11] is covered
    fake = np.array([[-1.5], [-1.25], [-1.0], [11.0], [11.5]])  # [-1.75, -0.75], [10.5, 12]
    assert values(real, fake, neighbours=1) == (2 / 5, 0)
    assert values(fake, real, neighbours=1) == (0, 2 / 5)
    # the second neighbours are 3, 2, 3, 6 away: everything is covered
    assert values(real, fake, neighbours=2)[0] == 1


def test_equal_sets_have_precision_and_recall_one():
    assert values(normal(100), normal(100)[::-1]) == (1, 1)
    constant = np.full((10, 4), 0.1)
    assert values(constant, constant) == (1, 1)


def test_a_collapsed_set_is_precise_and_recalls_little():
    real = normal(500)
    few = real[:5].repeat(100, axis=0) + 1e-3 * normal(500, seed=1)
    precision, recall = values(real, few)
    assert precision == 1
    assert recall < 0.05


def test_half_the_modes_are_half_the_recall():
    modes = 100 * np.repeat([0, 1], 200)[:, None]
    precision, recall = values(normal(400) + modes, normal(400, seed=1))
    _, recall_of_all = values(normal(400) + modes, normal(400, seed=1) + modes)
    assert recall == pytest.approx(recall_of_all / 2, abs=0.06)
    assert precision > 0.7


def test_fakes_far_away_have_neither():
    found = precision_recall(normal(200), 50 + normal(300, seed=1))
    assert found["precision"] == pytest.approx(
        {"value": 0, "low": 0, "high": 0.0126, "n_real": 200, "n_fake": 300}, abs=1e-4
    )
    assert found["recall"]["value"] == 0
    # of fewer images less is known, and none of them exclude a share above zero
    assert found["recall"]["high"] == pytest.approx(0.0188, abs=1e-4)


def test_too_wide_a_distribution_loses_precision_and_too_narrow_a_one_recall():
    real, fake = normal(500), normal(500, seed=1)
    same = precision_recall(real, fake)
    wide, narrow = precision_recall(real, 2 * fake), precision_recall(real, fake / 2)
    assert wide["precision"]["high"] < same["precision"]["low"]
    assert narrow["recall"]["high"] < same["recall"]["low"]
    assert wide["recall"]["value"] > same["recall"]["value"]
    assert narrow["precision"]["value"] > same["precision"]["value"]


@pytest.mark.parametrize("counts", [(200, 200), (50, 1300)])
def test_precision_and_recall_agree_with_torch_fidelity(counts):
    prc = pytest.importorskip("torch_fidelity.metric_prc", reason="new in 0.4")
    real, fake = normal(counts[0], 40), 0.9 * normal(counts[1], 40, seed=1) + 0.1
    expected = prc.calculate_precision_recall_full(torch.from_numpy(fake), torch.from_numpy(real))
    assert values(real, fake) == pytest.approx(expected, abs=1e-6)


@given(st.integers(0, 1000), st.integers(4, 30), st.integers(4, 30), st.integers(1, 3))
def test_the_sets_exchange_their_roles_and_their_frame_does_not_matter(seed, n, m, neighbours):
    rng = np.random.default_rng(seed)
    real, fake = rng.standard_normal((n, 3)), 1.5 * rng.standard_normal((m, 3))
    precision, recall = values(real, fake, neighbours=neighbours)
    assert values(fake, real, neighbours=neighbours) == (recall, precision)
    rotation = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    moved = [7 * x[rng.permutation(len(x))] @ rotation + 1 for x in (real, fake)]
    assert values(*moved, neighbours=neighbours) == (precision, recall)


def test_an_interval_covers_the_mean_of_other_samples_about_as_often_as_documented():
    found = [
        precision_recall(normal(200, seed=seed), 1.2 * normal(200, seed=seed + 1000))
        for seed in range(100)
    ]
    for name in ("precision", "recall"):
        mean = np.mean([each[name]["value"] for each in found])
        covered = np.mean([each[name]["low"] < mean < each[name]["high"] for each in found])
        assert 0.78 < covered < 1


def kernel(a, b):
    return (a @ b / len(a) + 1) ** 3


def loop(x, y):
    def mean(a, b, pairs):
        return np.mean([kernel(a[i], b[j]) for i, j in pairs])

    n, m = range(len(x)), range(len(y))
    within_x = mean(x, x, [(i, j) for i, j in product(n, n) if i != j])
    within_y = mean(y, y, [(i, j) for i, j in product(m, m) if i != j])
    return within_x + within_y - 2 * mean(x, y, list(product(n, m)))


@given(st.integers(0, 1000), st.integers(2, 12), st.integers(2, 12), st.integers(1, 5))
def test_the_kernel_distance_is_the_double_loop(seed, n, m, size):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, size)), rng.uniform(-1, 2, (m, size))
    found = kernel_distance(x, y)
    assert found["value"] == pytest.approx(loop(x, y), abs=1e-10)
    assert (found["n_real"], found["n_fake"]) == (n, m)
    assert (found["low"] is None) == (min(n, m) < 10)


def test_the_kernel_distance_agrees_with_torch_fidelity_in_chunks_too():
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
def test_the_kernel_distance_of_shifted_gaussians_is_the_closed_form_on_average(shift):
    zero, mean = np.zeros(6), np.full(6, shift)
    expected = expected_kernel(zero, zero) + expected_kernel(mean, mean)
    expected -= 2 * expected_kernel(zero, mean)
    found = [
        kernel_distance(normal(50, 6, seed), normal(80, 6, seed + 1000) + mean)
        for seed in range(200)
    ]
    drawn = np.array([each["value"] for each in found])
    assert drawn.mean() == pytest.approx(expected, abs=3 * drawn.std() / np.sqrt(200))
    covered = np.mean([each["low"] < expected < each["high"] for each in found])
    assert covered > 0.88
    if shift == 0:
        assert expected == 0
        assert (drawn < 0).mean() > 0.3  # not cut at zero, where it would be biased
        assert all(each["low"] < each["value"] < each["high"] for each in found)


def test_equal_sets_are_below_zero_by_what_the_diagonal_weighs():
    x = normal(400)
    own = np.mean([kernel(a, a) for a in x])
    other = ((x @ x.T / 8 + 1) ** 3).mean()
    # mean over i != j is (n other - own) / (n - 1)
    assert kernel_distance(x, x)["value"] == pytest.approx(2 * (other - own) / 399)


def test_the_seed_decides_the_interval_alone():
    x, y = normal(50), normal(50, seed=1)
    first, again, other = (kernel_distance(x, y, seed) for seed in (0, 0, 1))
    assert first == again
    assert first["value"] == other["value"]
    assert first["high"] != other["high"]


def test_too_few_features():
    assert values(normal(4), normal(5, seed=1))
    with pytest.raises(ValueError, match="more than 3 features of each kind, not 4, 3"):
        precision_recall(normal(4), normal(3))
    with pytest.raises(ValueError, match="two features of each kind, not 1, 9"):
        kernel_distance(normal(1), normal(9))


def test_pixel_features_with_all_axes_are_the_pixels_up_to_a_motion_and_a_scale():
    reference, real, fake = (images(n, seed=n)[..., :4, :1] for n in (30, 20, 25))
    found = np.concatenate(pixel_features(reference, real, fake))
    pixels = np.concatenate([real, fake]).reshape(45, 12).astype(float)
    assert found.shape == pixels.shape
    scale = np.sqrt(np.mean(reference.astype(float).var(axis=0)))
    np.testing.assert_allclose(scale * pdist(found), pdist(pixels), rtol=1e-6)


def test_pixel_features_find_the_leading_axes():
    reference, real, fake = images(400), images(200, seed=1), images(100, seed=2)
    found = np.concatenate(pixel_features(reference, real, fake, components=3))
    assert found.shape == (300, 3)
    assert np.mean(found**2) == pytest.approx(1, abs=0.15)
    colours = np.concatenate([real, fake]).mean(axis=(2, 3))
    # all that is left of the noise is its mean over 64 pixels
    fitted = np.linalg.lstsq(np.c_[found, np.ones(300)], colours, rcond=None)
    assert (np.sqrt(fitted[1] / 300) < 0.5).all()


def test_pixel_features_depend_on_the_reference_alone():
    reference, real = images(400), images(50, seed=1)
    found, itself = pixel_features(reference, real, images(9, seed=2)), pixel_features(*3 * [real])
    other = pixel_features(reference, real, real[:2] // 3)
    np.testing.assert_allclose(found[0], other[0], atol=1e-9)
    np.testing.assert_allclose(
        found[0][:5], pixel_features(reference, real[:5], real)[0], atol=1e-9
    )
    assert found[0].shape == (50, 64)
    assert itself[0].shape == (50, 49)


def test_two_sets_of_noise_are_treated_alike():
    """Axes that were fitted to the real images would give precision 1 and recall 0.03."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (3, 700, 3, 8, 8), dtype=np.uint8)
    features = pixel_features(*noise)
    precision, recall = values(*features)
    assert precision == pytest.approx(recall, abs=0.1)
    found = kernel_distance(*features)
    assert found["low"] < 0 < found["high"]


def test_pixel_features_tell_good_samples_from_bad_ones():
    reference, real, same, few = (images(n, seed=n) for n in (299, 300, 301, 3))
    noise = np.random.default_rng(0).integers(0, 256, real.shape, dtype=np.uint8)
    found = {}
    for name, fake in {"same": same, "few": few.repeat(100, axis=0), "noise": noise}.items():
        features = pixel_features(reference, real, fake, components=3)
        found[name] = (*values(*features), kernel_distance(*features)["value"])
    assert found["same"] == pytest.approx((0.95, 0.95, 0), abs=0.05)
    assert found["few"][:2] == pytest.approx((1, 0), abs=0.05)
    assert found["noise"][1] < 0.1
    assert min(found["few"][2], found["noise"][2]) > 0.2


@pytest.mark.parametrize("count", [1, 20])
def test_images_without_contrast_have_features_of_zero(count):
    plain = np.full((count, 1, 4, 4), 7, np.uint8)
    real, fake = pixel_features(plain, plain, plain)
    assert not real.any()
    assert not fake.any()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_not_images(which):
    for wrong in (images(9).astype(float), images(9)[:, :1]):
        sets = [images(9)] * 3
        sets[which] = wrong
        with pytest.raises(ValueError, match="uint8 images of one shape"):
            pixel_features(*sets)


def test_some_rows_are_all_or_a_fixed_choice_from_everywhere():
    np.testing.assert_array_equal(some_rows(7, 7), range(7))
    np.testing.assert_array_equal(some_rows(7, 100), range(7))
    rows = some_rows(1000, 100)
    assert len(set(rows.tolist())) == 100
    assert (np.diff(rows) > 0).all()
    assert rows.mean() == pytest.approx(500, abs=90)
    np.testing.assert_array_equal(some_rows(1000, 100), rows)
