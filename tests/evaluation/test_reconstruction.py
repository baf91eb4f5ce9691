import numpy as np
import pytest
import torch

from submanifold.evaluation.likelihood import per_event
from submanifold.evaluation.reconstruction import psnr, reconstruction, squared_errors
from submanifold.losses.objective import Target


def test_the_error_is_the_mean_over_the_coordinates_of_each_event():
    x = torch.zeros(5, 3, 2, 2)
    x[1, 0, 0, 0] = 0.6
    x[2] = 0.5
    errors = squared_errors(torch.zeros_like, [x[:2], x[2:]])
    assert errors.dtype == np.float64
    assert errors == pytest.approx([0, 0.36 / 12, 0.25, 0, 0])


def test_values_are_gathered_in_order_and_carry_no_gradient():
    weight = torch.ones(1, requires_grad=True)
    values = per_event(lambda x: weight * x, [torch.tensor([1.0, 2.0]), torch.tensor([3.0])])
    assert values.tolist() == [1, 2, 3]


def test_the_psnr_is_that_of_the_mean_squared_error():
    result = reconstruction(np.array([0.01, 0.001, 0.004]))
    mse, found = result["mse"], result["psnr"]
    assert mse["value"] == pytest.approx(0.005)
    assert found["value"] == pytest.approx(-10 * np.log10(0.005))
    assert found["low"] == pytest.approx(-10 * np.log10(mse["high"]))
    assert found["high"] == pytest.approx(-10 * np.log10(mse["low"]))
    assert found["low"] < found["value"] < found["high"]
    assert mse["n"] == found["n"] == result["psnr_per_image"]["n"] == 3
    assert result["psnr_per_image"]["value"] == pytest.approx((20 + 30 - 10 * np.log10(0.004)) / 3)
    assert result["overflows"] == 0


def test_a_target_in_decibels_is_the_reported_psnr():
    assert psnr(Target(psnr=27.3).error) == pytest.approx(27.3)


def test_no_images_have_no_psnr():
    result = reconstruction(np.zeros(0))
    assert result["psnr"] == {"value": None, "low": None, "high": None, "n": 0}


def test_an_image_that_overflows_counts_as_the_most_that_two_images_differ_by():
    result = reconstruction(np.array([0.1, np.nan, 0.3, np.inf, 477.0, 1.0]))
    assert result["mse"]["value"] == pytest.approx((0.1 + 0.3 + 4) / 6)
    assert result["mse"]["n"] == 6
    assert result["overflows"] == 3


def test_points_that_overflow_are_counted_and_left_out():
    result = reconstruction(np.array([0.1, np.nan, 5.3, np.inf]), of_images=False)
    assert result["mse"]["value"] == pytest.approx(2.7)
    assert result["mse"]["n"] == 2
    assert result["overflows"] == 2


def test_points_that_all_overflow_give_no_value():
    result = reconstruction(np.full(3, np.nan), of_images=False)
    assert result["mse"]["value"] is None
    assert result.keys() == {"mse", "overflows"}  # PSNR is of pixels
    assert result["overflows"] == 3


def test_a_perfect_projection_has_a_finite_psnr():
    result = reconstruction(np.zeros(3))
    assert result["psnr"]["value"] == result["psnr_per_image"]["value"] == pytest.approx(120)
