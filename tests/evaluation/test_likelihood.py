import math

import numpy as np
import pytest
import torch
from scipy.special import log_ndtr

from submanifold.data.batches import Batches
from submanifold.evaluation.likelihood import importance_log_prob, per_event
from submanifold.flows import Affine
from submanifold.manifold import Hierarchy, Stage


def test_values_come_in_the_order_of_the_events_and_in_double_precision():
    rows = np.arange(10, dtype=np.float32)[:, None]
    values = per_event(lambda x: x.square().sum(1), Batches(rows, 3))
    assert values.tolist() == [i**2 for i in range(10)]
    assert values.dtype == np.float64


def test_the_importance_bound_is_the_mean_of_densities_and_not_of_their_logarithms():
    log_probs = np.log([[1.0, 4.0], [3.0, 4.0]])
    assert importance_log_prob(log_probs) == pytest.approx(np.log([2.0, 4.0]))
    # densities of images underflow
    assert importance_log_prob(log_probs - 5000) == pytest.approx(np.log([2.0, 4.0]) - 5000)
    assert importance_log_prob(log_probs[:1]) == pytest.approx(log_probs[0])


def test_more_draws_bound_the_bits_of_a_pixel_more_tightly_and_in_the_end_exactly():
    """A normal density of a pixel as narrow as its bin: its probability is known exactly."""
    scale, pixel = 0.5 / 256, 128
    flow = Affine(1)
    with torch.no_grad():
        flow.weight.fill_(1 / scale)
    hierarchy = Hierarchy([Stage(flow, 1)]).double()
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
    # what is missing is half of the relative variance of the mean of 64 densities
    missing = np.exp(log_probs).var() / np.exp(log_probs).mean() ** 2 / 128
    assert means[-1] == pytest.approx(exact - missing, abs=error[64] + missing**2)
    assert exact - means[0] > 20 * (exact - means[-1]) > 0
