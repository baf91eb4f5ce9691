import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import wasserstein_distance
from skimage import data as pictures

from submanifold.common.errors import UserError
from submanifold.evaluation.sliced_wasserstein import (
    laplacian_pyramid,
    sliced_wasserstein,
    wasserstein_1d,
)

QUICK = {"patches": 8, "directions": 64, "repeats": 2}


def photo_patches(count, side=32, seed=0):
    rng = np.random.default_rng(seed)
    photo = pictures.astronaut()
    corners = rng.integers(photo.shape[0] - side, size=(count, 2))
    patches = [photo[row : row + side, column : column + side] for row, column in corners]
    return np.stack(patches).transpose(0, 3, 1, 2)


def blurred(images, sigma):
    return gaussian_filter(images.astype(float), (0, 0, sigma, sigma)).round().astype(np.uint8)


@pytest.fixture(scope="module")
def halves():
    images = photo_patches(2000)
    return images[:1000], images[1000:]


def test_photographs_are_closer_to_photographs_than_to_noise_or_blur(halves):
    real, other = halves
    noise = np.random.default_rng(0).integers(0, 256, other.shape, dtype=np.uint8)
    same = sliced_wasserstein(real, other, **QUICK)
    blur = sliced_wasserstein(real, blurred(other, 1.0), **QUICK)
    assert same["value"] < blur["value"] / 3
    assert same["value"] < sliced_wasserstein(real, noise, **QUICK)["value"] / 30
    assert same["high"] < blur["low"]
    assert same["low"] < same["value"] < same["high"]
    assert (same["n_real"], same["n_fake"]) == (1000, 1000)


def test_distance_of_equal_sets_is_exactly_zero(halves):
    result = sliced_wasserstein(halves[0], halves[0], **QUICK)
    assert result["value"] == 0
    assert result["low"] == 0


def test_grey_and_rectangular_images_have_a_distance():
    grey = photo_patches(40)[:, :1]
    result = sliced_wasserstein(grey, blurred(grey, 2.0)[:, :, ::-1], **QUICK)
    assert np.isfinite(result["value"])
    oblong = grey[:, :, :20]
    assert list(sliced_wasserstein(oblong, oblong[:, :, ::-1], **QUICK)["levels"]) == ["20"]


def test_constant_images_are_compared_in_pixel_values():
    plain = np.full((20, 3, 32, 32), 77, np.uint8)
    assert sliced_wasserstein(plain, plain, **QUICK)["value"] == 0
    levels = sliced_wasserstein(plain, plain + 9, **QUICK)["levels"]
    # the mean absolute projection of a constant 9 onto random unit vectors, in thousandths
    assert levels["16"] == pytest.approx(9e3 * np.sqrt(2 / np.pi), rel=0.3)
    assert levels["32"] < 1


@pytest.mark.parametrize(
    ("side", "levels"), [(7, [7]), (16, [16]), (31, [31, 16]), (64, [64, 32, 16])]
)
def test_value_is_the_mean_over_levels(side, levels):
    images = photo_patches(10, side)
    result = sliced_wasserstein(images, images[::-1], patches=4, directions=8, repeats=1)
    assert [int(key) for key in result["levels"]] == levels
    assert result["value"] == pytest.approx(np.mean(list(result["levels"].values())), abs=1e-9)


def test_fewer_than_ten_images_have_no_interval():
    images = photo_patches(18)
    result = sliced_wasserstein(images[:9], images[9:], **QUICK)
    assert result["value"] > 0
    assert result["low"] is None
    assert result["high"] is None


def test_too_small_images_are_rejected():
    images = np.zeros((10, 3, 32, 6), np.uint8)
    with pytest.raises(UserError, match=r"at least 7 x 7 pixels .*got 32 x 6"):
        sliced_wasserstein(images, images)


@pytest.mark.parametrize("count", [500, 777, 1000, 4000])
def test_wasserstein_1d_agrees_with_scipy(count):
    rng = np.random.default_rng(count)
    a, b = rng.standard_normal(1000), 1.5 * rng.standard_normal(count) + 0.7
    tolerance = 1e-12 if count == 1000 else 0.01
    assert wasserstein_1d(a, b) == pytest.approx(wasserstein_distance(a, b), rel=tolerance)
    assert wasserstein_1d(b, a) == pytest.approx(wasserstein_1d(a, b))


@pytest.mark.parametrize("side", [16, 32, 37, 64])
def test_pyramid_of_flat_and_of_smooth_images(side):
    flat = np.full((1, 1, side, side), 77.0)
    *details, coarse = laplacian_pyramid(flat)
    assert all(np.abs(detail).max() < 1e-3 for detail in details)
    np.testing.assert_allclose(coarse, 77, rtol=1e-5)

    checkerboard = 255.0 * (np.indices((side, side)).sum(0) % 2)[None, None]
    *details, coarse = laplacian_pyramid(checkerboard)
    if details:  # all of it is detail of the finest level
        np.testing.assert_allclose(np.abs(details[0]), 127.5, rtol=1e-4)
        np.testing.assert_allclose(coarse, 127.5, rtol=1e-4)
