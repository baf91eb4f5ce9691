import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn import decomposition

from submanifold.data import Events
from submanifold.evaluation import baselines
from submanifold.evaluation.baselines import PCA, fit_baselines, pca_error, pca_projection
from submanifold.evaluation.intervals import MIN_GROUPS, mean_interval


def correlated(n, seed=0, dim=6):
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).standard_normal((dim, dim)) * np.linspace(2, 0.1, dim)
    return torch.from_numpy(rng.standard_normal((n, dim)) @ mixing.T + np.arange(dim))


def gaussian_bits(train, test, shrinkage):
    covariance = np.cov(train.T, bias=True)
    mixed = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / 6 * np.eye(6)
    nats = multivariate_normal(train.mean(0), mixed).logpdf(test).mean()
    return pytest.approx(-nats / (6 * math.log(2)), rel=1e-6)


def test_error_curve_of_groups_agrees_with_the_bootstrap_over_groups():
    rng = np.random.default_rng(0)
    pca, groups = PCA.fit(correlated(100).numpy()), rng.permutation(np.repeat(np.arange(60), 5))
    x = correlated(300, seed=1) + 2 * correlated(60, seed=2)[groups]
    errors = pca.squared_errors(x).numpy()
    mean, half = pca.error_curve(x.split(128), groups)
    np.testing.assert_allclose(mean, errors.mean(0))
    for dim in range(6):
        interval = mean_interval(errors[:, dim], groups)
        assert float(half[dim]) == pytest.approx((interval["high"] - interval["low"]) / 2, rel=0.12)
    assert half[0] > 1.5 * pca.error_curve([x])[1][0]
    torch.testing.assert_close(
        pca.error_curve([x], np.arange(300))[1], pca.error_curve([x])[1], rtol=0.01, atol=1e-9
    )
    assert pca.error_curve([x], groups % (MIN_GROUPS - 1))[1] is None


def test_fewer_events_than_dimensions_have_one_axis_less_than_events():
    train, valid, test = (correlated(n, seed).numpy() for seed, n in enumerate((4, 9, 70)))
    found, axes = fit_baselines(*map(Events, (train, valid, test)))
    assert (len(found["pca_mse"]), len(axes)) == (4, 4)
    assert pca_error(found, 4) == {"dim": 4, "why": "only the 3 leading axes are fitted"}
    assert pca_projection(axes, torch.tensor(test), 4) is None
    gaussian = found["gaussian"]
    expected = gaussian_bits(train, test, gaussian["shrinkage"])
    assert gaussian["bits_per_dim"]["value"] == expected


def test_baselines_are_fitted_to_training_data_shrunk_on_validation_data_and_tested():
    train, valid, test = (correlated(n, seed=n).float().numpy() for n in (10, 200, 300))
    found, axes = fit_baselines(*map(Events, (train, valid, test + 1)))
    pca = PCA.fit(train).shrink(valid)
    assert pca.shrinkage > 0
    assert found["gaussian"]["shrinkage"] == pytest.approx(pca.shrinkage)
    assert found["gaussian"]["bits_per_dim"]["n"] == 300
    np.testing.assert_allclose(axes[0], train.mean(0), rtol=1e-2, atol=1e-2)
    errors = pca.squared_errors(torch.from_numpy(test + 1)).mean(0)
    np.testing.assert_allclose(found["pca_mse"], errors, rtol=1e-5, atol=1e-9)
    assert found["n_train"] == 10


def test_baselines_of_vectors_agree_with_scikit_learn_and_scipy():
    train, valid, test = (correlated(n, seed).numpy() for seed, n in enumerate((500, 9, 70)))
    found, axes = fit_baselines(*map(Events, (train, valid, test)))
    for dim in range(1, 7):
        theirs = decomposition.PCA(dim).fit(train)
        projected = theirs.inverse_transform(theirs.transform(test))
        from_file = pca_projection(axes, torch.tensor(test), dim)
        np.testing.assert_allclose(from_file, projected, atol=0.02)  # half precision
        errors = np.square(test - projected).mean(1)
        error = pca_error(found, dim)
        assert error["dim"] == dim
        assert error["mse"]["value"] == pytest.approx(errors.mean(), rel=1e-6, abs=1e-12)
        assert pca_error(found["measured"], dim) == error  # of all, which are fewer
        half = error["mse"]["high"] - error["mse"]["value"]
        assert half == pytest.approx(1.96 * errors.std(ddof=1) / math.sqrt(70), rel=1e-4, abs=1e-12)
    bits = found["gaussian"]["bits_per_dim"]
    assert bits["value"] == gaussian_bits(train, test, found["gaussian"]["shrinkage"])
    assert (bits["n"], found["n_train"]) == (70, 500)


def test_leading_axes_agree_with_all_axes(monkeypatch):
    """Those of events with many coordinates."""
    x, new = correlated(500), correlated(50, seed=1)
    full = PCA.fit(x.numpy())
    monkeypatch.setattr(baselines, "LARGEST_COVARIANCE", 5)
    monkeypatch.setattr(baselines, "LEADING", 2)
    leading = PCA.fit(x.numpy())
    assert leading.axes.shape == (6, 2)
    torch.testing.assert_close(leading.variances[:2], full.variances[:2], rtol=1e-4, atol=0)
    rest = full.variances[2:].mean().expand(4)
    torch.testing.assert_close(leading.variances[2:], rest, rtol=1e-3, atol=0)
    torch.testing.assert_close(
        leading.squared_errors(new), full.squared_errors(new)[:, :3], rtol=1e-3, atol=1e-4
    )
    torch.testing.assert_close(leading.project(new, 2), full.project(new, 2), rtol=0, atol=0.02)


def test_hotelling_statistic_of_normal_data_is_chi_squared():
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([5.0, 2.0, 1.0, 0.1])
    x = scale * torch.randn(20_000, 4, generator=generator)
    pca = PCA.fit(x.numpy())
    assert (pca.explaining(0.8), pca.explaining(0.9), pca.explaining(0.999)) == (1, 2, 3)
    found = pca.hotelling(x, 3)
    assert found.mean().item() == pytest.approx(3, rel=0.02)
    assert found.var().item() == pytest.approx(6, rel=0.05)
