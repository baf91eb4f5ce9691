"""Parts of the benchmarks that compare with other methods, against closed forms."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy
import torch

from benchmarks import restore as benchmark
from benchmarks.adbench import make_split
from calibrated import smooth_images
from submanifold.inverse import Restoration, parse

SHAPE = (2, 4, 4)


@pytest.mark.parametrize("protocol", ["semi", "unsup"])
@pytest.mark.parametrize(("anomalies", "expected"), [(3, 3), (30, 10)])
def test_a_subsample_keeps_rare_anomalies(protocol, anomalies, expected):
    """Without anomalies there is no AUROC."""
    y = np.arange(10_000) < anomalies
    for seed in range(5):
        split = make_split(np.arange(10_000.0)[:, None], y, protocol, seed, 100)
        assert split.anomaly.sum() == expected
        assert len(split.test) + (0 if split.same else len(split.train)) == 100
        assert len(np.unique(split.test)) == len(split.test)


def test_the_gain_is_over_the_baseline_with_the_largest_psnr(monkeypatch):
    images = smooth_images(4, 0)
    x = benchmark.as_pixels(images)
    restorers = {
        name: (lambda y, error=error: x + error, None)
        for name, error in (("lmmse", 0.1), ("pca", 0.05), ("lasso", 0.2))
    }
    posterior = Restoration(x + 0.02, torch.full_like(x, 0.02), *3 * [torch.ones(4)])
    monkeypatch.setattr(benchmark, "restore", lambda *_, **__: posterior)
    monkeypatch.setattr(torch.Tensor, "clamp", lambda self, *_: self)
    fitted = SimpleNamespace(restorers=lambda task: restorers)
    found = benchmark.compare(None, fitted, images, parse("denoise:0.1", x.shape[1:]))
    assert found["best"] == "pca"
    gain = 20 * math.log10(0.05 / 0.02)
    assert found["gain"]["restore"]["value"] == pytest.approx(gain, abs=1e-3)
    assert found["coverage"]["value"] == 1.0
    assert "| gain" in benchmark.table([found])


def test_lasso_meets_its_optimality_conditions(monkeypatch):
    monkeypatch.setattr(benchmark, "ITERATIONS", 2000)
    task, weight = parse("sense:20", SHAPE, noise=0.1), 0.5
    y = task.operator(torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0)))
    x = benchmark.regularized(benchmark.cosine_sparsity, task, SHAPE, weight)(y)
    gradient = benchmark.adjoint_of(task.operator, SHAPE)(task.operator(x) - y)
    coefficients, slopes = (
        scipy.fft.dctn(each.numpy(), axes=(-2, -1), norm="ortho") for each in (x, gradient)
    )
    penalty = weight * task.noise
    assert np.abs(slopes).max() < penalty + 1e-4
    used = np.abs(coefficients) > 1e-3
    assert 0 < used.mean() < 1
    np.testing.assert_allclose(slopes[used], -penalty * np.sign(coefficients[used]), atol=1e-3)
