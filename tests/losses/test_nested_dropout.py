"""Projections onto manifolds of random dimension, and residuals in the image's metric."""

import math

import pytest
import torch

from strategies import perturb
from submanifold.flows import Affine, RealNVP
from submanifold.losses import Loss, draws, encode
from submanifold.losses.reconstruction import LARGEST_WEIGHT, Reconstruction
from submanifold.models import Hierarchy, Stage


def hierarchy(dim, d, eigenvalues=None):
    torch.manual_seed(0)
    stage = perturb(Stage(RealNVP(dim), d))
    if eigenvalues is not None:
        stage.add_rotation().fit(torch.linalg.qr(torch.randn(dim, dim)).Q, eigenvalues)
    return Hierarchy([stage])


def test_dimensions_are_log_uniform_and_weighted_by_first_order_errors():
    eigenvalues = torch.logspace(0, -2, 12)
    model = hierarchy(12, 4, eigenvalues)
    x = torch.randn(4000, 12)
    penalty = Reconstruction(penalty="mse", weight=1.0, random_dim=2.0)
    residuals, weight = penalty.residuals(
        encode(model, x, draws(x, torch.Generator().manual_seed(0)))
    )
    errors = residuals.square().mean(1)
    # the error at each dimension identifies the one that was drawn
    every = torch.stack(
        [(x - model.at_dim(d).encoder_projection(x)).square().mean(1) for d in range(1, 13)]
    )
    drawn = (every - errors).abs().argmin(0) + 1
    shares = torch.bincount(drawn, minlength=9)[2:].double() / len(x)
    # log-uniform on [2, 8] and rounded: dimension d comes from [d - 0.5, d + 0.5]
    edges = torch.tensor([2, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8]).double()
    expected = edges.log().diff() / math.log(4)
    assert ((shares - expected).abs() < 4 * (expected / len(x)).sqrt()).all()
    tails = eigenvalues.flip(0).cumsum(0).flip(0)
    assert torch.allclose(weight, (tails[4] / tails[drawn]).clamp(max=LARGEST_WEIGHT))


@pytest.mark.parametrize("dim", [1, 6])
def test_weights_are_finite_if_the_manifold_has_all_dimensions(dim):
    x = torch.randn(200, dim)
    penalty = Reconstruction(penalty="mse", weight=1.0, random_dim=2.0)
    weight = penalty.residuals(encode(hierarchy(dim, dim, torch.logspace(0, -1, dim)), x))[1]
    assert weight.isfinite().all()
    assert weight.max() == pytest.approx(LARGEST_WEIGHT)


def test_validation_reports_the_error_at_the_models_own_dimension():
    model, x = hierarchy(12, 4), torch.randn(20, 12)
    loss = Loss(reconstruction={"penalty": "mse", "weight": 2.0, "random_dim": 3.0})
    with torch.no_grad():
        values = loss(encode(model, x))
    expected = (x - model.encoder_projection(x)).square().mean()
    assert values["mse"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_metric_residual_has_the_images_mean_square_behind_a_linear_stage():
    """J^T J is then the same everywhere, and rotated it is diagonal."""
    outer = perturb(Stage(Affine(8), 6), 0.5)
    columns = outer.flows[0].inverse(torch.eye(8)) - outer.flows[0].inverse(torch.zeros(1, 8))
    eigenvalues, axes = torch.linalg.eigh(columns @ columns.T)
    outer.add_rotation().fit(axes.flip(1), eigenvalues.flip(0))
    outer = Hierarchy([outer])
    u = outer.encode(torch.randn(50, 8))[0].detach()
    encoding = encode(hierarchy(6, 2), u, outer=outer)
    image, metric = (
        Reconstruction(penalty="mse", weight=1.0, space=space)(encoding)
        for space in ("image", "metric")
    )
    assert metric.item() == pytest.approx(image.item(), rel=1e-3)


def test_behind_a_rotation_the_penalty_is_a_relative_error():
    torch.manual_seed(0)
    eigenvalues = torch.logspace(0, -2, 8)
    outer, axes = Stage(Affine(8), 6), torch.linalg.qr(torch.randn(8, 8)).Q
    outer.add_rotation().fit(axes, eigenvalues)
    u = eigenvalues[:6].rsqrt() * torch.randn(100_000, 6)  # so that each latent contributes as much
    settings = {"penalty": "mse", "weight": 1.0, "space": "metric", "random_dim": 6.0}
    encoding = encode(Hierarchy([Stage(RealNVP(6), 6)]), u, outer=Hierarchy([outer]))
    found = Reconstruction(**settings)(encoding).item()
    # log-uniform dimensions on [1, 6]; the identity omits 6 - d latents of mean square 1
    edges = torch.tensor([1, 1.5, 2.5, 3.5, 4.5, 5.5, 6]).double()
    shares = edges.log().diff() / math.log(6)
    tails = eigenvalues.flip(0).cumsum(0).flip(0)[1:7]
    expected = (shares * torch.arange(5, -1, -1) / tails).sum()
    assert found == pytest.approx(expected.item(), rel=0.02)
