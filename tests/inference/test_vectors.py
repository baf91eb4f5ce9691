"""Models of vectors have the scores, codes and projections that models of images have."""

import numpy as np
import pytest
import torch

from strategies import perturb
from submanifold.common.errors import UserError
from submanifold.evaluation.calibration import calibrate
from submanifold.flows import RealNVP
from submanifold.inference.scoring import (
    encode_events,
    interpolate_events,
    project_events,
    sample_events,
    score_events,
)
from submanifold.models import Hierarchy, Stage


def points(count, seed):
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = perturb(Hierarchy([Stage(RealNVP(4), dim=2)]), 0.2).eval()
    model.calibration = calibrate(model, points(200, 0), torch.device("cpu"))
    return model


def test_scores_of_vectors_agree_with_the_model(model):
    events = points(40, 1)
    table, x = score_events(model, events, exact=True), torch.from_numpy(events)
    log_prob = model.log_prob(x).detach().numpy()
    np.testing.assert_allclose(table["log_prob"], log_prob, rtol=1e-5)
    np.testing.assert_allclose(table["bits_per_dim"], -log_prob / (4 * np.log(2)), rtol=1e-5)
    errors = (x - model.encoder_projection(x)).square().mean(1).detach().numpy()
    np.testing.assert_allclose(table["encoder_mse"], errors, rtol=1e-4)
    assert (table["nearest_mse"] <= table["encoder_mse"] * (1 + 1e-5)).all()
    assert "complexity" not in table
    assert table["p_value"].between(1 / 201, 1).all()


def test_far_vectors_have_the_smallest_p_value(model):
    found = score_events(model, points(8, 2) + 20)
    assert found["p_value"].tolist() == pytest.approx([1 / 201] * 8)


def test_a_vector_has_the_same_scores_in_any_batch(model):
    events = points(9, 3)
    whole, single = score_events(model, events), score_events(model, events[4:5])
    np.testing.assert_allclose(whole.iloc[4], single.iloc[0], rtol=1e-5)


def test_codes_projections_samples_and_paths_are_vectors(model):
    events = points(6, 4)
    u, v = encode_events(model, events)
    decoded = model.decode(torch.from_numpy(u), torch.from_numpy(v)).detach().numpy()
    np.testing.assert_allclose(decoded, events, atol=1e-5)
    projections, errors = project_events(model, events)
    np.testing.assert_allclose(np.square(events - projections).mean(1), errors, rtol=1e-4)
    assert sample_events(model, 5, 1.0, 0).shape == (5, 4)
    assert interpolate_events(model, events[:2], 3).shape == (3, 4)


@pytest.mark.parametrize("wrong", [
    np.zeros((2, 4)), np.zeros((2, 5), np.float32), np.zeros((0, 4), np.float32),
    np.zeros((2, 1, 8, 8), np.uint8),
])  # fmt: skip
def test_other_events_are_rejected(model, wrong):
    with pytest.raises(UserError, match=r"events: expected float32 of shape \(N, 4\)"):
        score_events(model, wrong)
