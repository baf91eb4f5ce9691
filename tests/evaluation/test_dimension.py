import numpy as np
import pytest
import torch

from submanifold.data import dequantize
from submanifold.evaluation import dimension
from submanifold.evaluation.dimension import (
    ESTIMATORS,
    PARTS,
    advise,
    intrinsic_dimensions,
    spectrum_dimension,
)
from submanifold.flows import Glow
from submanifold.models import Hierarchy, Stage


def test_estimators_know_a_plane_of_three_dimensions():
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (1500, 3)) @ rng.normal(size=(3, 64))
    images = (points * 1000).reshape(-1, 1, 8, 8)
    found = intrinsic_dimensions(images)
    assert found.keys() == ESTIMATORS.keys()
    for name, each in found.items():
        assert each["value"] == pytest.approx(3, abs=0.6), name
        assert each["low"] <= each["value"] <= each["high"]
        assert each["n"] == 1500


class Mean:
    """An estimator whose bias depends on the number of rows, as that of dimensions does."""

    sizes: list[int]

    def fit(self, rows):
        self.sizes.append(len(rows))
        self.dimension_ = rows.mean() + 1000 / len(rows)
        return self


def test_the_interval_is_of_the_estimators_standard_error_and_contains_the_value(monkeypatch):
    import skdim

    monkeypatch.setattr(skdim.id, "TwoNN", Mean)
    monkeypatch.setattr(dimension, "ESTIMATORS", {"TwoNN": "a mean"})
    n, spread, widths = 400, 3.0, []
    for seed in range(40):
        monkeypatch.setattr(Mean, "sizes", [], raising=False)
        rows = np.random.default_rng(seed).normal(20, spread, (n, 1))
        found = intrinsic_dimensions(rows * 256)["TwoNN"]
        assert Mean.sizes == [n] + [n // 2] * PARTS
        assert found["value"] == pytest.approx(rows.mean() + 1000 / n)
        assert found["value"] == pytest.approx((found["low"] + found["high"]) / 2)
        widths.append(found["high"] - found["low"])
    # 2.776: Student's t with 4 degrees of freedom; widths are scattered by sqrt(1 / 8)
    expected = 2 * 2.776 * spread / n**0.5
    assert np.sqrt(np.mean(np.square(widths))) == pytest.approx(expected, rel=0.25)


def curve(smallest):
    return {"dims": [1, 10, 100], "mse": [0.1, 0.0015, 0.0001], "smallest": {"30": smallest}}


def test_the_advice_is_the_smallest_dimension_of_30_decibels_beside_pca():
    baselines = {"pca_mse": np.linspace(0.1, 0, 101)}
    found = advise(curve(10), baselines, 500)
    assert (found["dim"], found["pca_dim"]) == (10, 99)
    assert "Keep d = 10 (--params=stage_1.dim=10)" in found["sentence"]
    assert "d = 99" in found["sentence"]
    assert "as it is" in advise(curve(10), baselines, 10)["sentence"]


def test_the_error_between_measured_dimensions_follows_a_power_law():
    """It is 0.001 at d = 10; linear interpolation would find 0.0091, and PCA as good at 4."""
    of_powers = {"dims": [1, 100], "mse": [0.01, 0.0001], "smallest": {"30": 10}}
    baselines = {"pca_mse": [1.0, *(0.0301 / np.arange(1, 101))]}
    assert advise(of_powers, baselines, 10)["pca_dim"] == 31


def test_an_error_of_zero_at_all_coordinates_is_no_obstacle():
    found = advise({"dims": [1, 4], "mse": [0.1, 0.0], "smallest": {"30": 4}}, {}, 4)
    assert found["dim"] == 4


def test_without_a_baseline_there_is_no_comparison():
    found = advise(curve(10), {"why": "too large"}, 500)
    assert found["pca_dim"] is None
    assert "PCA" not in found["sentence"]


def test_where_no_dimension_is_enough_the_advice_is_another():
    found = advise(curve(None), {}, 500)
    assert found["dim"] is None
    assert "train it longer" in found["sentence"]


def test_the_spectrum_counts_directions_that_move_the_image():
    torch.manual_seed(0)
    model = Hierarchy([Stage(Glow((1, 8, 8), levels=2, steps=2, width=8, whiten=False), 12)])
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    with torch.no_grad():
        model(dequantize(torch.from_numpy(images)))  # noise: every direction moves it a lot
    found = spectrum_dimension(model.eval(), images)
    assert found["directions"] == 12
    assert found["value"] == pytest.approx(12, abs=0.2)
    assert found["n"] == 20
