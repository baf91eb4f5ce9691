"""Manifolds of every dimension: the metric, drawn dimensions, and a wanted error."""

import math

import pytest
import torch

from submanifold.common.errors import UserError
from submanifold.flows import Affine, RealNVP
from submanifold.geometry.volume import log_volume
from submanifold.losses.objective import (
    DUAL_RATE,
    LARGEST_FACTOR,
    LARGEST_WEIGHT,
    ForwardPass,
    Huber,
    Likelihood,
    Objective,
    Squared,
    Target,
)
from submanifold.models import Hierarchy, Model, Stage, manifold_log_prob


def moved(module, size=0.1):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            weight += size * torch.randn(weight.shape, generator=generator)
    return module


def stage(dim, d, kind=RealNVP, eigenvalues=None):
    torch.manual_seed(0)
    made = moved(Stage(kind(dim), d))
    if eigenvalues is not None:
        rotation = made.add_rotation()
        rotation.fit(torch.linalg.qr(torch.randn(dim, dim)).Q, eigenvalues)
    return made


def test_a_model_of_another_dimension_shares_weights_and_density():
    model = Hierarchy([stage(8, 6), stage(6, 3)])
    x = torch.randn(5, 8)
    other = model.at_dim(5)
    assert other.dims == [8, 6, 5]
    assert torch.allclose(other.log_prob(x), model.log_prob(x), atol=1e-5)
    u, _v = model.encode(x)
    nested, _ = other.encode(x)
    assert torch.equal(nested[:, :3], u)
    before = other.log_prob(x)
    moved(model)
    assert not torch.equal(other.log_prob(x), before)
    with pytest.raises(UserError, match="dim=7"):
        model.at_dim(7)


def bent(dim=4):
    ordered = stage(8, dim, eigenvalues=torch.logspace(0, -2, 8))
    return Hierarchy([ordered]), Hierarchy([ordered, stage(dim, dim)])


@pytest.mark.parametrize("dim", [1, 3, 4, 6, 8])
def test_a_flow_on_the_code_leaves_every_manifold_and_all_have_its_density(dim):
    alone, model = bent()
    x = torch.randn(50, 8)
    at = model.at_dim(dim)
    assert model.max_dim == 8
    assert torch.allclose(at.project(x), alone.at_dim(dim).project(x), atol=1e-4)
    assert torch.allclose(at.project(x, steps=3), alone.at_dim(dim).project(x, steps=3), atol=1e-3)
    u, v, log_prob = at(x)
    assert (u.shape, v.shape) == ((50, dim), (50, 8 - dim))
    assert torch.allclose(at.decode(u, v), x, atol=1e-4)
    assert torch.allclose(log_prob, model.log_prob(x), atol=1e-5)
    assert not torch.allclose(log_prob, alone.log_prob(x), atol=0.1)


@pytest.mark.parametrize("dim", [2, 3, 5])
def test_a_slice_orders_the_off_manifold_parts_of_several_outer_stages(dim):
    ordered = stage(6, 4, eigenvalues=torch.logspace(0, -2, 6))
    model = Hierarchy([stage(10, 9), stage(9, 6), ordered, stage(4, 4)])
    x = torch.randn(20, 10)
    at = model.at_dim(dim)
    u, v = at.encode(x)
    assert torch.allclose(at.decode(u, v), x, atol=1e-4)
    _, whole = model.encode(x)
    assert torch.equal(v[:, -4:], whole[:, -4:])


def test_a_slices_samples_have_the_scale_of_the_off_manifold_density():
    """Beyond the whole's dimension, coordinates are N(0, sigma_v^2): those of a larger manifold."""
    _, model = bent()
    model.stages[0].off_manifold_scale = 0.3
    at = model.at_dim(6)
    samples = at.sample(50, 0.9, torch.Generator().manual_seed(0))
    drawn = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    u = at.encode(samples)[0]
    assert torch.allclose(u[:, 4:], 0.3 * 0.9 * drawn[:, 4:], atol=1e-4)
    code = model.encode(samples)[0]
    assert torch.allclose(code, 0.9 * drawn[:, :4], atol=1e-3)


def test_a_slices_samples_have_the_density_of_the_whole():
    alone, model = bent()
    n = 4000

    def drawn(dim):
        return model.at_dim(dim).sample(n, generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        whole = alone.encode(drawn(4))[0]
        smaller = alone.at_dim(2).encode(drawn(2))[0]
        larger = alone.at_dim(6).encode(drawn(6))[0]
    assert torch.allclose(smaller, whole[:, :2], atol=1e-3)
    error = 5 * whole.std(0) / n**0.5
    assert ((larger[:, :4].mean(0) - whole.mean(0)).abs() < 2 * error).all()
    assert larger[:, 4:].std(0).tolist() == pytest.approx([1, 1], abs=0.1)
    # normal coordinates would have another mean
    assert (whole.mean(0).abs() > error).any()


def test_the_density_on_a_slice_is_that_of_its_samples():
    _, model = bent(2)
    larger = model.at_dim(3)
    u = torch.randn(5, 3, dtype=torch.float64)
    larger = larger.double()
    side = torch.linspace(-9, 9, 181, dtype=torch.float64)
    plane = torch.cartesian_prod(side, side)
    at = torch.cat([plane, u[:1, 2:].expand(len(plane), 1)], 1)
    with torch.no_grad():
        total = larger.code_log_prob(at).exp().sum() * (side[1] - side[0]) ** 2
    beside = math.exp(-0.5 * u[0, 2] ** 2) / math.sqrt(2 * math.pi)
    assert total.item() == pytest.approx(beside, rel=0.01)
    found, _ = manifold_log_prob(larger, larger.decode(u))
    volume = log_volume(larger.decode, u)
    assert torch.allclose(found, larger.code_log_prob(u) - volume, atol=1e-6)
    with pytest.raises(UserError, match="marginal"):
        model.at_dim(1).code_log_prob(u[:, :1])


def test_a_slice_is_a_model_with_a_file(tmp_path):
    _, model = bent()
    at = model.at_dim(3)
    at.save(tmp_path / "slice.safetensors")
    x = torch.randn(5, 8)
    assert torch.equal(Model.load(tmp_path / "slice.safetensors").project(x), at.project(x))
    with pytest.raises(UserError, match="dim=9"):
        model.at_dim(9)


def test_larger_manifolds_hold_more():
    model = Hierarchy([stage(8, 3)])
    x = torch.randn(200, 8)
    errors = [model.at_dim(d).rejection_map(x).square().mean().item() for d in range(1, 9)]
    assert errors[-1] < 1e-10
    assert errors[0] > errors[4] > errors[6]


def test_the_metric_is_the_images_error_behind_a_linear_stage():
    """J^T J is then the same everywhere, and rotated it is diagonal."""
    flow = Affine(8)
    outer = moved(Stage(flow, 6), 0.3)
    columns = outer.flow.inverse(torch.eye(8)) - outer.flow.inverse(torch.zeros(1, 8))
    eigenvalues, axes = torch.linalg.eigh(columns @ columns.T)
    outer.add_rotation().fit(axes.flip(1), eigenvalues.flip(0))
    outer = Hierarchy([outer])
    inner = Hierarchy([stage(6, 2)])
    u = outer.encode(torch.randn(50, 8))[0].detach()
    batch = ForwardPass(inner, u, u, outer)
    image, metric = (batch.residual(0, space).square().mean() for space in ("image", "metric"))
    assert metric.item() == pytest.approx(image.item(), rel=1e-3)


def test_the_metric_needs_a_rotated_stage():
    inner, outer = Hierarchy([stage(6, 2)]), Hierarchy([stage(8, 6)])
    u = torch.randn(3, 6)
    with pytest.raises(ValueError, match="no rotation"):
        ForwardPass(inner, u, u, outer).residual(0, "metric")


def test_each_event_draws_a_dimension():
    eigenvalues = torch.logspace(0, -2, 12)
    model = Hierarchy([stage(12, 4, eigenvalues=eigenvalues)])
    x = torch.randn(4000, 12)
    batch = ForwardPass(model, x, x, generator=torch.Generator().manual_seed(0))
    residual, weight = batch.nested_residual(2.0)
    errors = residual.square().mean(1)
    # what each would miss at each dimension tells which one it drew
    every = torch.stack([model.at_dim(d).rejection_map(x).square().mean(1) for d in range(1, 13)])
    drawn = (every - errors).abs().argmin(0) + 1
    assert set(drawn.tolist()) == set(range(2, 9))
    shares = torch.bincount(drawn, minlength=9)[2:].double() / len(x)
    # log-uniform on [2, 8] and rounded: dimension d is drawn from [d - 0.5, d + 0.5]
    edges = torch.tensor([2, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8]).double()
    expected = edges.log().diff() / math.log(4)
    assert ((shares - expected).abs() < 4 * (expected / len(x)).sqrt()).all()
    tails = eigenvalues.flip(0).cumsum(0).flip(0)
    assert torch.allclose(weight, (tails[4] / tails[drawn]).clamp(max=10))


def test_the_weight_of_a_drawn_dimension_has_a_cap():
    eigenvalues = torch.logspace(0, -8, 12)
    model = Hierarchy([stage(12, 4, eigenvalues=eigenvalues)])
    x = torch.randn(200, 12)
    _, weight = ForwardPass(model, x, x).nested_residual(2.0)
    tails = eigenvalues.flip(0).cumsum(0).flip(0)
    assert tails[4] / tails[8] > 10 * LARGEST_WEIGHT
    assert weight.max().item() == pytest.approx(LARGEST_WEIGHT)


def test_the_same_seed_draws_the_same_and_no_event_gets_a_gradient_from_another():
    model = Hierarchy([stage(12, 4)])
    x = torch.randn(6, 12)
    term = Squared(weight=1.0, random_dim=3.0)

    def value(rows):
        return term(ForwardPass(model, rows, rows, generator=torch.Generator().manual_seed(0)))

    assert torch.equal(value(x), value(x))
    assert value(x).item() > 0


def test_validation_measures_the_models_own_dimension():
    model = Hierarchy([stage(12, 4)])
    x = torch.randn(20, 12)
    objective = Objective({"reconstruction": Squared(weight=2.0, random_dim=3.0)})
    with torch.no_grad():
        values = objective(model, x, torch.Generator().manual_seed(0))
        expected = model.rejection_map(x).square().mean()
    assert values["mse"].item() == pytest.approx(expected.item(), rel=1e-5)


def wanted(error, weight=2.0, outer=None, **changes):
    kind = Huber if "delta" in changes else Squared
    penalty = kind(weight=weight, target=error, **changes)
    return Objective({"likelihood": Likelihood(), "reconstruction": penalty}, outer=outer)


def raised(objective, model, x):
    """How far a step moves log lambda."""
    values = objective(model, x, torch.Generator().manual_seed(0))
    before = values["reconstruction_weight"].log().item()
    objective.ascend(values)
    return objective.multipliers["reconstruction"].item() - before


PENALTIES = {
    "squared": {},
    "bytes": {"pixel_range": 256.0},
    "huber": {"delta": 0.1},
    "huber on bytes": {"delta": 25.6, "pixel_range": 256.0},
    "drawn dimensions": {"random_dim": 2.0},
    "metric": {"space": "metric"},
    "image": {"space": "image"},
}


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("inner", [False, True])
def test_the_target_is_the_squared_error_of_the_image_for_every_penalty(penalty, inner):
    """At half the target log lambda falls by half the rate."""
    first = stage(8, 6, eigenvalues=torch.logspace(0, -3, 8))
    second = stage(6, 3, eigenvalues=torch.logspace(0, -2, 6))
    x = torch.randn(20, 8)
    if inner:
        outer, model, h = Hierarchy([first]), Hierarchy([second]), first(x)[0].detach()
        error = (first.decode(h) - first.decode(model.project(h))).square().mean().item()
    else:
        outer, model, h = None, Hierarchy([first]), x
        error = (x - model.project(x)).square().mean().item()
    objective = wanted(Target(mse=2 * error), outer=outer, **PENALTIES[penalty])
    assert raised(objective, model, h) == pytest.approx(-DUAL_RATE / 2, rel=1e-3)
    with torch.no_grad():
        values = objective(model, h, torch.Generator().manual_seed(0))
    assert values["image_mse"].item() == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize(("mse", "factor"), [(1e-9, LARGEST_FACTOR), (1e9, 1 / LARGEST_FACTOR)])
def test_lambda_stays_within_a_factor_of_where_it_starts(mse, factor):
    model, x = Hierarchy([stage(8, 3)]), torch.randn(20, 8)
    objective = wanted(Target(mse=mse))
    values = objective(model, x)
    for _ in range(300):
        objective.ascend(values)
    assert objective.multipliers["reconstruction"].exp().item() == pytest.approx(2 * factor)


def test_an_error_that_is_not_a_number_raises_lambda():
    model, x = Hierarchy([stage(8, 3)]), torch.randn(20, 8)
    objective = wanted(Target(mse=1.0))
    values = objective(model, x)
    objective.ascend({**values, "image_mse": torch.tensor(math.nan)})
    assert objective.multipliers["reconstruction"].item() == pytest.approx(
        math.log(2.0) + DUAL_RATE
    )


@pytest.mark.parametrize(("mse", "rises"), [(1e-6, True), (1e6, False)])
def test_lambda_rises_until_the_error_is_what_was_wanted(mse, rises):
    model, x = Hierarchy([stage(8, 3)]), torch.randn(20, 8)
    objective = wanted(Target(mse=mse))
    values = objective(model, x)
    assert values["reconstruction_weight"].item() == pytest.approx(2.0)
    objective.ascend(values)
    second = objective(model, x)["reconstruction_weight"].item()
    expected = DUAL_RATE if rises else DUAL_RATE * (values["mse"].item() / mse - 1)
    assert math.log(second / 2.0) == pytest.approx(expected, rel=1e-3)
    assert values["reconstruction"].item() == pytest.approx(2 * values["mse"].item(), rel=1e-5)


def test_validation_leaves_lambda_as_it_is():
    model, x = Hierarchy([stage(8, 3)]), torch.randn(20, 8)
    objective = wanted(Target(psnr=60.0))
    with torch.no_grad():
        objective(model, x)
        assert objective(model, x)["reconstruction_weight"].item() == pytest.approx(2.0)


def test_a_wanted_psnr_is_an_error():
    assert Target(psnr=30.0).error == pytest.approx(1e-3)
    assert Target(mse=0.2).error == 0.2


def test_an_error_within_the_slack_reaches_the_target():
    excesses = [Target(mse=0.5).excess({"image_mse": 0.5 * (1 + e)}) for e in (-0.9, 0.01, 0.1)]
    assert excesses == pytest.approx([0, 0, 0.1])
