"""Cases 3 and 4 of method.md section 5: which directions a penalty keeps, by the trainer."""

import math

import numpy as np
import pytest
import torch

from submanifold.data.batches import Batches
from submanifold.flows import Affine
from submanifold.manifold import Hierarchy, Objective, Stage
from submanifold.training.trainer import TrainingSettings, fit

EIGENVALUES = np.array([4, 2.25, 1, 0.09, 0.04, 0.0225, 0.01, 0.0025])
BITS = 0.44025
SETTINGS = TrainingSettings(
    steps=800,
    batch_size=1024,
    learning_rate=0.05,
    warmup=20,
    schedule="cosine",
    clip=10.0,
    ema=0.99,
    validate_every=200,
    precision="float32",
)


def train(hierarchy, objective, data, folder):
    batches = [Batches(part, SETTINGS.batch_size) for part in (data[5000:], data[:5000])]
    fit(hierarchy, objective, *batches, SETTINGS, folder)
    return hierarchy


# ---- case 3: a Gaussian through 8 -> 4 -> 2


@pytest.fixture(scope="module")
def rotation():
    return np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0]


@pytest.fixture(scope="module")
def x(rotation):
    draws = np.random.default_rng(1).standard_normal((60_000, 8))
    return torch.from_numpy(draws * EIGENVALUES**0.5 @ rotation.T)


@pytest.fixture(scope="module")
def stage_1(rotation):
    """The optimal first stage: whitened principal axes, the four largest on the manifold."""
    flow = Affine(8)
    with torch.no_grad():
        whitening = (rotation / EIGENVALUES**0.5).T
        flow.bijections[1].weight.copy_(torch.from_numpy(whitening))
    return Hierarchy([Stage(flow, 4)]).double().requires_grad_(False)


def train_stage_2(stage_1, x, folder, seed, **penalty):
    torch.manual_seed(seed)
    u = stage_1.encode(x)[0]
    stage_2 = Hierarchy([Stage(Affine(4), 2)]).double()
    train(stage_2, Objective("mse", 10.0, **penalty), u.numpy(), folder)
    return stage_2, Hierarchy([*stage_1.stages, *stage_2.stages]), u


@torch.no_grad()
def image_error(hierarchy, x):
    return hierarchy.rejection_map(x).square().mean().item()


def test_bits_per_dim_stay_and_the_image_penalty_finds_the_best_directions(stage_1, x, tmp_path):
    _, hierarchy, _ = train_stage_2(stage_1, x, tmp_path, 0, outer=stage_1)
    with torch.no_grad():
        bits = hierarchy.bits_per_dim(x)
    # 4 standard errors of the mean over the rows, and what overfitting 20 numbers costs
    assert bits.mean().item() == pytest.approx(BITS, abs=4 * bits.std().item() / 60_000**0.5 + 1e-3)
    assert image_error(stage_1, x) == pytest.approx(0.009375, rel=0.02)
    assert image_error(hierarchy, x) == pytest.approx(0.145625, rel=0.02)


def test_the_latent_penalty_costs_a_half_whatever_it_keeps(stage_1, x, tmp_path):
    errors = []
    for seed in range(3):
        stage_2, hierarchy, u = train_stage_2(stage_1, x, tmp_path / str(seed), seed)
        with torch.no_grad():
            latent = stage_2.rejection_map(u).square().mean().item()
            bits = hierarchy.bits_per_dim(x)
        assert latent == pytest.approx(0.5, rel=0.02)
        assert bits.mean().item() == pytest.approx(BITS, abs=4 * bits.std().item() / 245 + 1e-3)
        errors.append(image_error(hierarchy, x))
    # anything between the best and the worst pair of directions, and not the same twice
    assert 0.145625 * 0.98 < min(errors) < max(errors) < (4 + 2.25) / 8 + 0.01
    assert max(errors) - min(errors) > 0.02


def test_over_random_rotations_the_latent_penalty_drops_half_of_the_variance(stage_1, x):
    errors = []
    with torch.no_grad():
        for seed in range(400):
            torch.manual_seed(seed)
            stage_2 = Stage(Affine(4), 2).double()
            errors.append(image_error(Hierarchy([*stage_1.stages, stage_2]), x[:2000]))
    tolerance = 4 * np.std(errors) / math.sqrt(len(errors))
    assert np.mean(errors) == pytest.approx(0.468125, abs=tolerance)


# ---- case 4: the square keeps the rare large jumps, the Huber function drops them


@pytest.mark.parametrize(
    ("penalty", "kept", "penalty_sum", "square_sum"),
    [("mse", 1, 1.0, 1.0), ("huber", 0, 0.02475, 1.25)],
)
def test_the_huber_penalty_rejects_outliers_that_the_square_keeps(
    tmp_path, penalty, kept, penalty_sum, square_sum
):
    rng = np.random.default_rng(0)
    jumps = 5 * rng.choice([-1.0, 0.0, 1.0], p=[0.025, 0.95, 0.025], size=100_000)
    data = np.stack([rng.standard_normal(100_000), jumps], 1)
    torch.manual_seed(0)
    hierarchy = Hierarchy([Stage(Affine(2), 1)]).double()
    weight = 30.0 if penalty == "mse" else 300.0
    train(hierarchy, Objective(penalty, weight, delta=0.1), data, tmp_path)
    x = torch.from_numpy(data)
    with torch.no_grad():
        terms = Objective(penalty, 1.0, delta=0.1)(hierarchy, x)
        axis = hierarchy.decode(torch.tensor([[1.0], [0.0]]).double()).diff(dim=0)[0].abs()
    assert axis[kept] > 10 * axis[1 - kept]
    assert 2 * terms["penalty"].item() == pytest.approx(penalty_sum, rel=0.05)
    assert 2 * terms["mse"].item() == pytest.approx(square_sum, rel=0.05)
