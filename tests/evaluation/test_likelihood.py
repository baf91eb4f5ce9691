import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import log_ndtr

from strategies import affine, perturb
from submanifold.data.batches import Batches
from submanifold.data.tables import Preprocessor
from submanifold.evaluation.likelihood import (
    dequantized_log_probs,
    importance_log_prob,
    log_prob,
    noisy_log_prob,
)
from submanifold.flows import Affine, Context, RealNVP, SoftRealNVP, make_conditional
from submanifold.models import Hierarchy, Stage


def test_importance_weighted_bound_converges_to_the_exact_probability():
    """The density of a pixel is normal and as narrow as its bin, so its probability is known."""
    scale, pixel = 0.5 / 256, 128
    hierarchy = Hierarchy([Stage(affine(torch.tensor([[1 / scale]])), 1)]).double()
    low, high = (edge / 256 / scale for edge in (pixel - 128, pixel - 127))
    exact = math.log(math.exp(log_ndtr(high)) - math.exp(log_ndtr(low)))
    noise = torch.rand(4000, 64, generator=torch.Generator().manual_seed(0)).double()
    x = ((pixel + noise) / 256 - 0.5).reshape(-1, 1)
    with torch.no_grad():
        log_probs = hierarchy.log_prob(x).reshape(4000, 64).T.numpy() - math.log(256)
    bounds = {k: importance_log_prob(log_probs[:k]) for k in (1, 2, 8, 64)}
    means = [bound.mean() for bound in bounds.values()]
    assert means == sorted(means)
    # E log p by the integral of -z^2 / 2 over z in [0, 2]
    one = -0.5 * math.log(2 * math.pi) - math.log(scale * 256) - (8 / 3) / (2 * 2)
    error = {k: 4 * bound.std() / math.sqrt(4000) for k, bound in bounds.items()}
    assert means[0] == pytest.approx(one, abs=error[1])
    # the gap is half the relative variance of the mean of 64 densities
    missing = np.exp(log_probs).var() / np.exp(log_probs).mean() ** 2 / 128
    assert means[-1] == pytest.approx(exact - missing, abs=error[64] + missing**2)
    assert exact - means[0] > 20 * (exact - means[-1]) > 0


def test_draws_have_independent_noise_and_do_not_depend_on_their_number():
    images = np.arange(600, dtype=np.uint8).reshape(600, 1, 1, 1).repeat(9, axis=1)
    total = SimpleNamespace(log_prob=lambda x: x.flatten(1).mean(1))
    draws = dequantized_log_probs(total, images, 3, "cpu")
    assert draws.shape == (3, 600)
    noise = 256 * (draws + 0.5) - np.arange(600) % 256
    assert ((noise > 0) & (noise < 1)).all()
    correlation = np.corrcoef(noise)[np.triu_indices(3, 1)]
    assert np.abs(correlation).max() < 4 / math.sqrt(600)
    assert np.array_equal(dequantized_log_probs(total, images, 2, "cpu"), draws[:2])


@pytest.mark.parametrize("input_noise", [0.0, 0.5, 3.0])
def test_noise_costs_half_its_variance_under_a_standard_normal(input_noise):
    normal = Hierarchy([Stage(Affine(8), 8)])
    with torch.no_grad():
        batches = Batches(np.zeros((3000, 8), np.float32), 512)
        lost = normal.log_prob(torch.zeros(1, 8)).item() - noisy_log_prob(
            normal, batches, input_noise
        )
    assert lost.shape == (3000,)
    error = 4 * input_noise**2 / math.sqrt(3000 * 2) * math.sqrt(8)
    assert lost.mean() == pytest.approx(8 * input_noise**2 / 2, abs=error + 1e-6)


def test_a_noise_conditional_model_receives_the_scale_of_its_training():
    """The scale is 1, that of the largest noise, not 0 as for clean data."""
    torch.manual_seed(0)
    model = perturb(Hierarchy([Stage(SoftRealNVP(4, 2), 4)]), 0.5).double()
    rows = torch.randn(10, 4).double()

    def of_scale(scale):
        context = None if scale is None else Context(noise_scale=rows.new_full((10,), scale))
        return model.log_prob(rows, context).detach()

    found = noisy_log_prob(model, Batches(rows.numpy(), 3), 0.0)
    assert found == pytest.approx(of_scale(1.0).numpy(), rel=1e-12)
    for other in (None, 0.0, 0.5):
        assert (of_scale(other) - of_scale(1.0)).abs().max() > 0.01


def test_the_density_of_a_row_is_the_probability_of_its_cell():
    """Of a normal distribution, rounded to multiples of 0.8, the probabilities are known."""
    rows = np.round(np.random.default_rng(0).standard_normal((2000, 3)) / 0.8) * 0.8
    table = Preprocessor.fit(rows)
    model = Hierarchy([Stage(Affine(3), 3)])  # a standard normal density in standard units
    x = torch.from_numpy(table.transform(rows, salt=np.arange(2000)).x)
    low, high = (
        np.array(
            [
                (np.rint((rows[:, j] - c.low) / 0.8) + end - c.offset) / c.scale
                for j, c in enumerate(table.columns)
            ]
        )
        for end in (0, 1)
    )
    exact = np.log((stats.norm.cdf(high) - stats.norm.cdf(low)) / 0.8).sum(0)
    log_dets = table.log_dets(x.numpy(), None)
    with torch.no_grad():
        of_one = model.log_prob(x).numpy() + log_dets - exact
        of_draws = log_prob(model, x, table=table).numpy() + log_dets - exact
    assert abs(of_draws.mean()) < 0.02
    assert of_draws.std() < 0.45 * of_one.std()


def test_draws_of_a_row_have_its_context():
    rows = np.random.default_rng(0).integers(0, 5, (6, 3)).astype(float)
    table = Preprocessor.fit(rows)
    x = torch.from_numpy(table.transform(rows, salt=np.arange(6)).x)
    torch.manual_seed(0)
    model = perturb(Hierarchy([Stage(make_conditional(RealNVP(x.shape[1]), columns=2), 2)]), 0.5)
    context = 3 * torch.randn(6, 2)
    with torch.no_grad():
        of_rows = [log_prob(model, x[n : n + 1], context[n : n + 1], table) for n in range(6)]
        torch.testing.assert_close(log_prob(model, x, context, table), torch.cat(of_rows))
        assert (log_prob(model, x, context.flip(0), table) - torch.cat(of_rows)).abs().max() > 0.1


def test_a_density_that_is_no_number_is_zero():
    model = Hierarchy([Stage(Affine(3), 3)])
    x = torch.tensor([[0.0, 0.0, torch.nan], [0.0, 0.0, 0.0]])
    assert log_prob(model, x).isneginf().tolist() == [True, False]
