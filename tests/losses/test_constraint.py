"""A target for the projection error, reached by dual ascent."""

import math

import pytest
import torch

from strategies import perturb
from submanifold.flows import RealNVP
from submanifold.losses import Objective
from submanifold.losses.constraint import DUAL_LR, LARGEST_FACTOR, Target
from submanifold.losses.terms import Huber, Likelihood, Squared
from submanifold.models import Hierarchy, Stage


def stage(dim, d, eigenvalues=None):
    torch.manual_seed(0)
    made = perturb(Stage(RealNVP(dim), d))
    if eigenvalues is not None:
        made.add_rotation().fit(torch.linalg.qr(torch.randn(dim, dim)).Q, eigenvalues)
    return made


def with_target(target, weight=2.0, outer=None, **changes):
    kind = Huber if "delta" in changes else Squared
    penalty = kind(weight=weight, target=target, **changes)
    return Objective({"likelihood": Likelihood(), "reconstruction": penalty}, outer=outer)


def log_weight(objective):
    return objective.constraints.state_dict()["reconstruction"]


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize(
    "penalty",
    [{}, {"pixel_range": 256.0}, {"delta": 0.1}, {"delta": 25.6, "pixel_range": 256.0},
     {"random_dim": 2.0}, {"space": "metric"}, {"space": "image"}],
    ids=str,
)  # fmt: skip
def test_the_target_bounds_the_images_squared_error_for_every_penalty(penalty, inner):
    """At half the target log lambda falls by half the rate."""
    first = stage(8, 6, torch.logspace(0, -3, 8))
    second = stage(6, 3, torch.logspace(0, -2, 6))
    outer, model, h = None, Hierarchy([first]), torch.randn(20, 8)
    if inner:
        outer, model, h = model, Hierarchy([second]), first(h)[0].detach()
    decode = outer.decode if inner else lambda x: x
    error = (decode(h) - decode(model.encoder_projection(h))).square().mean().item()
    objective = with_target(Target(mse=2 * error), outer=outer, **penalty)
    values = objective(model, h, torch.Generator().manual_seed(0))
    assert values["reconstruction_weight"].item() == pytest.approx(2.0)
    assert values["image_mse"].item() == pytest.approx(error, rel=1e-5)
    before = log_weight(objective)
    objective.constraints.step(values)
    assert log_weight(objective) - before == pytest.approx(-DUAL_LR / 2, rel=1e-3)
    again = objective(model, h, training=False)
    assert again["reconstruction_weight"].log().item() == pytest.approx(log_weight(objective))


@pytest.mark.parametrize(
    ("error", "change"),
    [(math.nan, DUAL_LR), (math.inf, DUAL_LR), (1.5, DUAL_LR / 2), (0.0, -DUAL_LR)],
)
def test_one_step_moves_log_lambda_by_at_most_the_rate(error, change):
    objective = with_target(Target(mse=1.0))
    objective.constraints.step({"image_mse": torch.tensor(error)})
    assert log_weight(objective) - math.log(2.0) == pytest.approx(change)


@pytest.mark.parametrize(("error", "factor"), [(1e9, LARGEST_FACTOR), (0.0, 1 / LARGEST_FACTOR)])
def test_lambda_stays_within_a_factor_of_its_start(error, factor):
    objective = with_target(Target(mse=1.0))
    for _ in range(300):
        objective.constraints.step({"image_mse": torch.tensor(error)})
    assert log_weight(objective) == pytest.approx(math.log(2 * factor))


def test_a_restored_state_continues_where_it_was():
    one, other = with_target(Target(psnr=20.0)), with_target(Target(psnr=20.0))
    one.constraints.step({"image_mse": torch.tensor(1.0)})
    other.constraints.load_state_dict(one.constraints.state_dict())
    for each in (one, other):
        each.constraints.step({"image_mse": torch.tensor(1.0)})
    assert log_weight(one) == log_weight(other) > math.log(2.0)


def row(likelihood, error, weight):
    part = error * weight
    return {"loss": likelihood + part, "likelihood": likelihood, "reconstruction": part,
            "image_mse": error}  # fmt: skip


def test_validations_are_ranked_by_excess_then_by_the_loss_of_other_terms():
    from_best = [row(3.0, 0.10, 9.0), row(4.0, 0.05, 1.0), row(2.0, 0.11, 1.0),
                 row(1.0, 0.50, 0.1), row(0.0, 0.90, 0.1), row(math.nan, 0.05, 1.0)]  # fmt: skip
    shuffled = [from_best[i] for i in (3, 0, 5, 2, 4, 1)]
    assert sorted(shuffled, key=with_target(Target(mse=0.1)).constraints.rank) == from_best
    by_loss = with_target(None).constraints.rank
    assert min(from_best[:5], key=by_loss) == from_best[4]


def test_a_target_in_decibels_is_a_mean_squared_error():
    assert Target(psnr=30.0).error == pytest.approx(1e-3)
    assert Target(mse=0.2).error == 0.2


def test_an_error_within_the_tolerance_reaches_the_target():
    excesses = [Target(mse=0.5).excess({"image_mse": 0.5 * (1 + e)}) for e in (-0.9, 0.01, 0.1)]
    assert excesses == pytest.approx([0, 0, 0.1])
