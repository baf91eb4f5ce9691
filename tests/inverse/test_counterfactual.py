"""Counterfactuals: closed form for linear maps, and decisions on curved manifolds."""

import pytest
import torch

from submanifold.common.errors import UserError
from submanifold.data import Batches
from submanifold.flows import Affine, RealNVP, initialize
from submanifold.inverse import counterfactual
from submanifold.models import Hierarchy, Stage
from submanifold.training import fit_rotation


def test_counterfactual_of_a_linear_model_is_the_projection_onto_the_hyperplane():
    model = Hierarchy([Stage(RealNVP(4), dim=4)])  # initialized to the identity
    normal, x = torch.tensor([1.0, 2.0, 0.0, -1.0]), torch.randn(5, 4)
    x = x + 2 * normal
    found = counterfactual(model, x, lambda x: x @ normal, margin=0.5)
    length = (x @ normal + 0.5) / (normal @ normal)
    assert found.found.all()
    torch.testing.assert_close(found.image, x - length[:, None] * normal, atol=5e-3, rtol=0)


def test_distance_is_that_of_events():
    torch.manual_seed(0)
    data = torch.randn(1000, 2) * torch.tensor([10.0, 0.1])
    model = Hierarchy([Stage(Affine(2), dim=2)])
    initialize(model, data)
    fit_rotation(model, Batches(data.numpy(), 100))
    x = torch.tensor([[1.0, 0.05]])
    found = counterfactual(model, x, lambda x: x.sum(1))
    # in latent units the cheapest change is of the first coordinate alone
    torch.testing.assert_close(found.image, torch.tensor([[0.475, -0.475]]), atol=0.02, rtol=0)


def test_decision_changes_on_the_manifold_of_a_random_flow():
    torch.manual_seed(0)
    model = Hierarchy([Stage(RealNVP(6, hidden=16), dim=3)])
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    x = model.decode(torch.randn(20, 3)).detach()

    def decision(x):
        return x.square().sum(1) - 0.5

    found = counterfactual(model, x, decision)
    assert found.found.all()
    assert (decision(found.image) <= 0).all()
    torch.testing.assert_close(model.decode(found.u), found.image)
    kept = decision(found.start) <= 0
    torch.testing.assert_close(found.image[kept], found.start[kept])


def test_constant_decision_is_not_changed():
    model = Hierarchy([Stage(RealNVP(4), dim=2)])
    found = counterfactual(model, torch.randn(2, 4), lambda x: 0 * x.sum(1) + 1)
    assert not found.found.any()
    assert torch.equal(found.image, found.start)


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_decision_needs_one_value_for_each_event(shape):
    model = Hierarchy([Stage(RealNVP(4), dim=2)])
    with pytest.raises(UserError, match="decision: expected"):
        counterfactual(model, torch.randn(3, 4), lambda x: x.new_zeros(shape))
