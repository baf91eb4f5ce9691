import pytest
import torch

from strategies import perturb
from submanifold.flows import SoftGlow, SoftRealNVP
from submanifold.losses import Objective
from submanifold.losses.terms import Likelihood
from submanifold.models import Hierarchy, Stage


def flows():
    torch.manual_seed(0)
    vectors, images = SoftRealNVP(4, couplings=3, hidden=8), SoftGlow((3, 8, 8), 2, 1, 6)
    return [(vectors, torch.randn(3, 4)), (images, torch.randn(3, 3, 8, 8))]


@pytest.mark.parametrize("number", [0, 1])
def test_each_event_has_its_own_noise_scale(number):
    flow, x = flows()[number]
    perturb(flow, 0.5)
    clean = flow(x)[0]
    assert torch.equal(flow(x, torch.zeros(3, 1))[0], clean)
    noisy = flow(x, torch.tensor([[0.0], [0.5], [1.0]]))[0]
    assert torch.equal(noisy[0], clean[0])
    assert not torch.isclose(noisy[1:], clean[1:]).flatten(1).all(1).any()


def test_trained_flow_has_the_density_of_each_noise_scale():
    """Points on a line: at the scale s, the density off the line is N(0, (0.1 s)^2)."""
    torch.manual_seed(0)
    flow = SoftRealNVP(2, couplings=6, hidden=32, mixing=True)
    model = Hierarchy([Stage(flow, 2)])
    objective = Objective({"likelihood": Likelihood()}, input_noise=0.1)
    optimizer = torch.optim.Adam(model.parameters(), 0.005)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        x = torch.randn(256, 1, generator=generator) * torch.tensor([[1.0, 0.0]])
        loss = objective(model, x, generator)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    stds = {}
    for scale in (0.2, 1.0):
        with torch.no_grad():
            u = torch.randn(4000, 2, generator=generator)
            drawn = model.decode(u, context=torch.full((4000, 1), scale))
        stds[scale] = drawn[:, 1].std().item()
    assert stds[1.0] == pytest.approx(0.1, rel=0.2)
    assert stds[0.2] < 0.05
