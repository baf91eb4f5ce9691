import numpy as np
import pytest
import torch

from strategies import affine, initialized_glow
from submanifold.evaluation import dimension
from submanifold.evaluation.dimension import (
    CORRECTED,
    ESTIMATORS,
    HALVES,
    advise,
    correct,
    intrinsic_dimensions,
    spectrum_dimension,
)
from submanifold.models import Hierarchy, Mixture, Stage


def test_estimators_find_a_plane_of_three_dimensions():
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (700, 3)) @ rng.normal(size=(3, 64))
    points = np.concatenate([points, points[:100]])  # equal images count once
    found = intrinsic_dimensions((points * 1000).reshape(-1, 1, 8, 8))
    assert found.keys() == {*ESTIMATORS, CORRECTED}
    for name, each in found.items():
        assert each["value"] == pytest.approx(3, abs=0.6), name
        assert each["low"] <= each["value"] <= each["high"]
        assert each["n"] == 700


class Mean:
    """An estimator whose bias depends on the number of images."""

    sizes: list[int]

    def fit(self, rows):
        self.sizes.append(len(rows))
        self.dimension_ = rows.mean() + 1000 / len(rows)
        return self


def test_interval_has_the_width_of_the_standard_error(monkeypatch):
    import skdim

    monkeypatch.setattr(skdim.id, "TwoNN", Mean)
    monkeypatch.setattr(dimension, "correct", lambda estimate, _: estimate)
    monkeypatch.setattr(dimension, "ESTIMATORS", {"TwoNN": "a mean"})
    n, std, widths = 400, 3.0, []
    for seed in range(40):
        monkeypatch.setattr(Mean, "sizes", [], raising=False)
        rows = np.random.default_rng(seed).normal(20, std, (n, 1))
        found = intrinsic_dimensions(rows * 256)["TwoNN"]
        assert Mean.sizes == [n] + [n // 2] * HALVES
        assert found["value"] == pytest.approx(rows.mean() + 1000 / n)
        assert found["value"] == pytest.approx((found["low"] + found["high"]) / 2)
        widths.append(found["high"] - found["low"])
    # 2.776: Student's t with 4 degrees of freedom; widths vary by sqrt(1 / 8)
    expected = 2 * 2.776 * std / n**0.5
    assert np.sqrt(np.mean(np.square(widths))) == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("dim", [1, 3, 12])
def test_twonn_is_corrected_for_its_bias(dim):
    """Uniform points in a ball, of which TwoNN finds 9 of 12 dimensions."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1500, dim))
    x *= rng.uniform(size=(1500, 1)) ** (1 / dim) / np.linalg.norm(x, axis=1, keepdims=True)
    corrected = intrinsic_dimensions(256 * np.pad(x, ((0, 0), (0, 20 - dim))))[CORRECTED]
    assert corrected["value"] == pytest.approx(dim, rel=0.15)
    assert corrected["low"] <= corrected["value"] <= corrected["high"]


def test_a_correction_ends_at_the_number_of_columns():
    two_nn = {"value": 8.0, "low": 7.0, "high": 9.0, "n": 100}
    assert correct(two_nn, 5)["value"] == 5.0


CURVE = {"dims": [1, 10, 100], "mse": [0.1, 0.0015, 0.0001],
         "nearest_dims": [2, 5, 99], "nearest_mse": [0.1, 0.001, 0.0]}  # fmt: skip


@pytest.mark.parametrize(("smallest", "pca_mse", "dim", "pca_dim", "texts"), [
    (10, np.linspace(0.1, 0, 101), 500, 99,
     ["d = 10 is the smallest", "d = 5 suffices", "more dimensions, d = 99"]),
    (10, np.linspace(0.1, 0, 101), 10, 99, ["The model has this dimension."]),
    (10, [0.1], 500, None, ["d = 10 is"]),
    (None, [0.1], 500, None, ["Train longer"]),
])  # fmt: skip
def test_advice_is_the_smallest_dimension_of_30_decibels(smallest, pca_mse, dim, pca_dim, texts):
    baselines = {"subsets": {"64": {"pca_mse": pca_mse}}}
    goal = {"goals": {"30 dB": 0.001}, "smallest": {"30 dB": smallest}}
    found = advise({**CURVE, **goal}, baselines, dim)
    assert (found["dim"], found["pca_dim"]) == (smallest, pca_dim)
    assert all(text in found["sentence"] for text in texts)
    assert ("PCA" in found["sentence"]) == (pca_dim is not None)


def test_spectrum_counts_directions_that_change_the_image():
    # noise: every direction changes it a lot
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    model = initialized_glow(images, 12, steps=2, whiten=False)
    found = spectrum_dimension(model, images)
    assert found["directions"] == 64
    assert found["value"] == pytest.approx(64, abs=1)
    assert found["n"] == 20


@pytest.mark.parametrize(("off_manifold_scale", "of_v"), [(1.0, 10 / 11), (0.1, 1 / 11)])
def test_spectrum_counts_directions_off_the_manifold(off_manifold_scale, of_v):
    """Normal data, of which a coordinate of variance s counts s / (s + D tau^2) = s / (s + 0.1)."""
    stages = [Stage(affine(torch.eye(dim)), d, off_manifold_scale) for dim, d in ((10, 7), (7, 5))]
    deviations = torch.tensor([1.0] * 5 + [off_manifold_scale] * 5)
    rows = (torch.randn(20, 10, generator=torch.Generator().manual_seed(0)) * deviations).numpy()
    found = spectrum_dimension(Hierarchy(stages), rows)
    assert found["directions"] == 10
    assert found["value"] == pytest.approx(5 * 10 / 11 + 5 * of_v, rel=1e-5)
    mixture = spectrum_dimension(Mixture([Hierarchy(stages)]), rows)
    assert (mixture["directions"], mixture["value"]) == (5, pytest.approx(5 * 10 / 11))
