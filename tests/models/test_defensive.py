"""Second components of a density: known answers, far events, files and samples."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.covariance import LedoitWolf

from strategies import affine, perturb
from submanifold.evaluation.defensive import (
    WIDE_WEIGHTS,
    best_gaussian_mixture,
    mixture_weights,
    with_defensive_component,
)
from submanifold.flows import Affine, Glow, RealNVP, Tabular, make_conditional, with_noise_scale
from submanifold.models import (
    Hierarchy,
    Mixture,
    Model,
    NormalComponents,
    Stage,
    UniformComponent,
)


def events(count=200, dim=2, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, dim)) @ rng.normal(size=(dim, dim)) + 1).astype(np.float32)


def flow_model(dim=2, manifold_dim=1, component=None):
    torch.manual_seed(0)
    model = Hierarchy([Stage(RealNVP(dim, couplings=2), manifold_dim)], defensive=component)
    return perturb(model, 0.3).double()


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("weight", [0.01, 0.1])
def test_the_density_integrates_to_one(dim, weight):
    model = flow_model(dim, component=NormalComponents.fit(events(dim=dim), weight))
    line = torch.linspace(-40, 40, 40_001 if dim == 1 else 801, dtype=torch.float64)
    grid = torch.cartesian_prod(*[line] * dim).view(-1, dim)
    with torch.no_grad():
        total = model.log_prob(grid).exp().sum() * (line[1] - line[0]) ** dim
    assert total.item() == pytest.approx(1, abs=2e-3)


def test_the_mixture_is_the_flow_or_the_normal_distribution_at_its_ends():
    x, model = torch.from_numpy(events()).double(), flow_model()
    flow = model.log_prob(x)
    model.defensive = NormalComponents.fit(events(), 0.0).double()
    torch.testing.assert_close(model.log_prob(x), flow)
    model.defensive.weight = 1.0
    fitted = LedoitWolf().fit(events())
    normal = stats.multivariate_normal(fitted.location_, 4 * fitted.covariance_)
    expected = torch.from_numpy(normal.logpdf(x.numpy()))
    torch.testing.assert_close(model.log_prob(x), expected, rtol=1e-5, atol=1e-5)
    model.defensive.weight = 0.25
    mixed = torch.logaddexp(math.log(0.75) + flow, math.log(0.25) + expected)
    torch.testing.assert_close(model.log_prob(x), mixed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [-torch.inf, torch.nan, torch.inf])
def test_far_events_are_ranked_by_their_distance_where_the_flow_overflows(value):
    component = NormalComponents.fit(events(), 0.01)
    x = component.means[0] + torch.logspace(1, 18, 18)[:, None] * torch.tensor([[1.0, -2.0]])
    mixed = component.mix(torch.full((18,), value), x)
    assert mixed.isfinite().all()
    assert (mixed.diff() < 0).all()


def test_no_image_has_more_bits_than_the_uniform_distribution_with_its_weight(tmp_path):
    torch.manual_seed(0)
    glow = Hierarchy([Stage(Glow((3, 4, 4), levels=1, steps=8, width=8), 5)])
    model = perturb(glow, 1.0).with_facts(data={"value_range": [-0.5, 0.5]})  # overflows
    images = torch.rand(50, 3, 4, 4) - 0.5
    bounded = with_defensive_component(model, images.numpy(), images.numpy(), torch.device("cpu"))
    bounded.save(tmp_path / "model")
    bounded = Model.load(tmp_path / "model")
    with torch.no_grad():
        log_probs = bounded.log_prob(images)
        assert model.log_prob(images).min() < -1000
        outside = images + 1
        torch.testing.assert_close(bounded.log_prob(outside), model.log_prob(outside))
    assert (log_probs >= math.log(1e-6) - 1e-4).all()


def test_the_uniform_component_is_a_density_and_its_samples_are_in_its_range():
    component = UniformComponent(-1.0, 3.0, weight=0.25)
    grid = torch.linspace(-6, 6, 1201, dtype=torch.float64)[:, None]
    flow = torch.distributions.Normal(0.0, 1.0).log_prob(grid[:, 0])
    assert component.mix(flow, grid).exp().sum().item() / 100 == pytest.approx(1, abs=2e-3)
    far = torch.full((10_000, 1), 9.0)
    drawn = component.replace(far, 1.0, torch.Generator().manual_seed(0))
    replaced = drawn[drawn < 9]
    assert len(replaced) / len(far) == pytest.approx(0.25, abs=0.02)
    assert -1 <= replaced.min() < -0.9
    assert 2.9 < replaced.max() <= 3


def test_a_view_and_a_file_have_the_same_density(tmp_path):
    component = NormalComponents.fit(events(dim=3), 0.05, [1])
    x = torch.from_numpy(events(dim=3))
    charts = [Hierarchy([Stage(RealNVP(3, couplings=2), 2)]) for _ in range(2)]
    for model in (flow_model(3, 2, component).float(), Mixture(charts, component)):
        model.save(tmp_path / "model")
        loaded = Model.load(tmp_path / "model")
        assert loaded.defensive.weight == 0.05
        assert torch.equal(loaded.log_prob(x), model.log_prob(x))
        if isinstance(model, Hierarchy):
            torch.testing.assert_close(model.at_dim(1).log_prob(x), model.log_prob(x))


def test_samples_of_a_model_of_all_dimensions_are_draws_from_the_mixture():
    narrow = affine(1e3 * torch.eye(2))
    component = NormalComponents.fit(events(1000), 0.1)
    model = Hierarchy([Stage(narrow, 2)], defensive=component)
    drawn = model.sample(20_000, generator=torch.Generator().manual_seed(0))
    of_component = drawn[drawn.norm(dim=1) > 0.01]
    assert len(of_component) / 20_000 == pytest.approx(0.1, abs=0.01)
    covariance = component.scales[0] @ component.scales[0].T
    torch.testing.assert_close(of_component.mean(0), component.means[0], rtol=0, atol=0.2)
    torch.testing.assert_close(of_component.T.cov(), covariance, rtol=0.1, atol=0.2)
    on_manifold = Hierarchy([Stage(narrow, 1)], defensive=component).sample(1000)
    assert on_manifold.norm(dim=1).max() < 0.01


def test_a_missing_value_has_the_marginal_of_the_observed_ones():
    parts = [NormalComponents.fit(events(dim=3, seed=seed)) for seed in (0, 7)]
    means = np.stack([part.means[0].double().numpy() for part in parts])
    scales = np.stack([part.scales[0].double().numpy() for part in parts])
    covariances = scales @ scales.transpose(0, 2, 1)
    component = NormalComponents(3, 1.0, [0, 2], [0.25, 0.75]).set(means, covariances)
    x = torch.from_numpy(events(4, 3, seed=1)).double()
    masks = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    expected = []
    for row, mask in zip(x.numpy(), masks.numpy(), strict=True):
        observed = np.array([mask[0] == 0, True, mask[1] == 0])
        densities = [
            stats.multivariate_normal(mean[observed], covariance[np.ix_(observed, observed)]).pdf(
                row[observed]
            )
            for mean, covariance in zip(means, covariances, strict=True)
        ]
        mixed = np.log(0.25 * densities[0] + 0.75 * densities[1])
        expected.append(mixed + stats.norm.logpdf(row[~observed]).sum())
    # the noise scale follows the mask
    context = with_noise_scale(masks, torch.ones(4))
    torch.testing.assert_close(
        component.log_prob(x, context), torch.tensor(expected), rtol=1e-5, atol=1e-5
    )


def test_held_out_events_choose_the_weight():
    normal = Hierarchy([Stage(Affine(2), 1)])
    train = np.random.default_rng(0).normal(size=(2000, 2)).astype(np.float32)
    outliers = np.concatenate([train[:100], 12 + train[:20]])
    device = torch.device("cpu")
    chosen = [
        with_defensive_component(normal, train, held_out, device) for held_out in (train, outliers)
    ]
    wide = [model.defensive.weight * model.defensive.shares[0] for model in chosen]
    assert wide == pytest.approx(WIDE_WEIGHTS)
    assert normal.defensive is None
    x = torch.from_numpy(outliers)
    assert chosen[1].log_prob(x).mean() > normal.log_prob(x).mean() + 5


def test_weights_are_those_that_the_events_were_drawn_with():
    rng, truth = np.random.default_rng(0), [0.62, 0.08, 0.3]
    parts = [stats.norm(-3, 1), stats.norm(0, 6), stats.norm(3, 0.5)]
    kinds = rng.choice(3, 20_000, p=truth)
    x = np.select([kinds == k for k in range(3)], [part.rvs(20_000, rng) for part in parts])
    log_probs = torch.from_numpy(np.stack([part.logpdf(x) for part in parts]))
    assert mixture_weights(log_probs).tolist() == pytest.approx(truth, abs=0.02)
    log_probs[:, 0] = -torch.inf  # an event that none explains
    assert mixture_weights(log_probs).tolist() == pytest.approx(truth, abs=0.02)


def test_many_events_have_a_mixture_of_many_components():
    centers = np.random.default_rng(0).uniform(-20, 20, (64, 2))
    rows = [
        centers[rng.integers(64, size=13_000)] + 0.05 * rng.standard_normal((13_000, 2))
        for rng in map(np.random.default_rng, (1, 2))
    ]
    component = best_gaussian_mixture(rows[0], rows[1][:2000])
    assert len(component.shares) >= 64
    entropy = math.log(64) + math.log(2 * math.pi * math.e * 0.05**2)
    held_out = component.log_prob(torch.from_numpy(rows[1][2000:])).mean().item()
    assert held_out == pytest.approx(-entropy, abs=0.1)


@pytest.mark.parametrize("unit", [1e-6, 1e8])
def test_a_gaussian_mixture_is_the_same_in_any_unit(unit):
    x = events(3000)
    x = np.concatenate([x, 2 * x[:, :1]], 1)  # nearly singular
    of_units = [best_gaussian_mixture(u * x[:2500], u * x[2500:]) for u in (np.float32(1), unit)]
    point = torch.from_numpy(x[2500:]).double()
    one, other = (part.log_prob(u * point) for part, u in zip(of_units, (1, unit), strict=True))
    torch.testing.assert_close(other + 3 * math.log(unit), one, rtol=0, atol=0.02)


def test_a_gaussian_mixture_replaces_most_of_a_flow_that_fits_worse(tmp_path):
    rng = np.random.default_rng(0)
    rows = np.where(rng.random((600, 1)) < 0.3, -4, 4) + 0.5 * rng.standard_normal((600, 1))
    train, held_out, test = np.split(rows.astype(np.float32), 3)
    device, flow = torch.device("cpu"), Hierarchy([Stage(Affine(1), 1)])
    model = with_defensive_component(flow, train, held_out, device)
    truth = np.logaddexp(
        math.log(0.3) + stats.norm.logpdf(test, -4, 0.5),
        math.log(0.7) + stats.norm.logpdf(test, 4, 0.5),
    )
    with torch.no_grad():
        assert model.log_prob(torch.from_numpy(test)).mean() > truth.mean() - 0.2
    model.save(tmp_path / "model")
    loaded = Model.load(tmp_path / "model").double()
    line = torch.linspace(-60, 60, 20_001, dtype=torch.float64)
    with torch.no_grad():
        total = loaded.log_prob(line[:, None]).exp().sum() * (line[1] - line[0])
    assert total.item() == pytest.approx(1, abs=1e-3)
    drawn = loaded.sample(20_000, generator=torch.Generator().manual_seed(0))
    counted = ((drawn[:, 0] > 3) & (drawn[:, 0] < 5)).double().mean().item()
    inside = (line > 3) & (line < 5)
    with torch.no_grad():
        expected = loaded.log_prob(line[inside, None]).exp().sum() * (line[1] - line[0])
    assert counted == pytest.approx(expected.item(), abs=0.015)


def test_a_density_given_a_context_is_normalized():
    flow = perturb(make_conditional(Tabular(1, couplings=1, hidden=4), columns=2), 0.3)
    component = NormalComponents.fit(events(dim=1), 0.1)
    model = Hierarchy([Stage(flow, 1)], defensive=component).double()
    line = torch.linspace(-60, 60, 20_001, dtype=torch.float64)
    for row in ([0.0, 1.0], [2.0, -1.0]):
        context = torch.tensor([row], dtype=torch.float64).expand(len(line), 2)
        with torch.no_grad():
            total = model.log_prob(line[:, None], context).exp().sum() * (line[1] - line[0])
        assert total.item() == pytest.approx(1, abs=2e-3)
