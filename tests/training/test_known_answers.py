"""Case 1 of method.md section 5: a Gaussian, by the trainer that trains everything else."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from submanifold.data.batches import Batches
from submanifold.flows import Affine, RealNVP
from submanifold.manifold import Hierarchy, Objective, Stage
from submanifold.training.trainer import TrainingSettings, fit

EIGENVALUES = np.array([4, 2.25, 1, 0.09, 0.04, 0.0225, 0.01, 0.0025])
ENTROPY, BITS, PCA_MSE = 2.44127, 0.44025, 0.020625
TRAIN, TEST = 100_000, 20_000


def train(tmp_path, flow, dtype, weight, steps, rate, batch):
    """Excess of NLL (nats) and of MSE over their optima, each with its standard error."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((8, 8)))[0]

    def draw(n):
        return (rng.standard_normal((n, 8)) * EIGENVALUES**0.5) @ rotation.T

    train, valid, test = draw(TRAIN), draw(5000), draw(TEST)
    hierarchy = Hierarchy([Stage(flow, 3)]).to(torch.from_numpy(np.empty(0, dtype)).dtype)
    settings = TrainingSettings(
        steps=steps,
        batch_size=batch,
        learning_rate=rate,
        warmup=50,
        schedule="cosine",
        clip=10.0,
        ema=0.99,
        validate_every=steps // 4,
        precision="auto",
    )
    fit(
        hierarchy,
        Objective("mse", penalty_weight=weight),
        Batches(train.astype(dtype), batch),
        Batches(valid.astype(dtype), 5000),
        settings,
        tmp_path,
    )
    # the same samples under the true density and the true axes take the sampling error away
    x = torch.from_numpy(test.astype(dtype))
    with torch.no_grad():
        nats = -hierarchy.log_prob(x).double().numpy()
        errors = (x - hierarchy.project(x)).square().mean(1).double().numpy()
        assert hierarchy.bits_per_dim(x).double().numpy() == pytest.approx(
            nats / (8 * math.log(2)), abs=1e-5
        )
    true = -multivariate_normal(np.zeros(8), (rotation * EIGENVALUES) @ rotation.T).logpdf(test)
    optimal = np.square(test @ rotation[:, 3:]).sum(1) / 8
    return [(d.mean(), d.std() / math.sqrt(TEST)) for d in (nats - true, errors - optimal)]


def test_the_known_values_follow_from_the_eigenvalues():
    entropy = 0.5 * np.log(2 * math.pi * math.e * EIGENVALUES).sum()
    assert entropy == pytest.approx(ENTROPY, abs=1e-5)
    assert entropy / (8 * math.log(2)) == pytest.approx(BITS, abs=1e-5)
    assert EIGENVALUES[3:].sum() / 8 == pytest.approx(PCA_MSE)


@pytest.mark.parametrize(
    ("weight", "dtype", "steps", "rate"),
    [
        # its gradient towards the right rotation is a tenth of the others', and takes longer
        (0.1, np.float64, 4000, 0.4),
        (1.0, np.float32, 1000, 0.1),
        (10.0, np.float64, 1000, 0.1),
    ],
)
def test_an_affine_flow_reaches_the_entropy_and_the_error_of_pca_at_once(
    tmp_path, weight, dtype, steps, rate
):
    torch.manual_seed(0)
    nats, mse = train(tmp_path, Affine(8), dtype, weight, steps, rate, batch=1024)
    # fitting 8 means and 36 covariances to the training data costs chi^2_44 / 2n: 4 sigma
    overfit = (44 + 4 * math.sqrt(88)) / (2 * TRAIN)
    assert -4 * nats[1] < nats[0] < overfit + 4 * nats[1]
    assert nats[1] < 3e-4
    # whatever is left of the wrong rotation: half a percent of PCA's error
    assert -4 * mse[1] - 1e-7 < mse[0] < 0.005 * PCA_MSE + 4 * mse[1]
    assert mse[1] < 1e-5


def test_a_realnvp_comes_close_to_both(tmp_path):
    torch.manual_seed(0)
    flow = RealNVP(8, 8, 32)
    nats, mse = train(tmp_path, flow, np.float32, 10.0, steps=800, rate=0.005, batch=256)
    assert -4 * nats[1] < nats[0] < 0.06
    assert -4 * mse[1] < mse[0] < 0.05 * PCA_MSE
