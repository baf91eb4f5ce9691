import pytest
import torch

from submanifold.flows import Context, SoftRealNVP
from submanifold.losses import InputNoise, Loss, draws, encode
from submanifold.models import Hierarchy, Stage


def test_trained_flow_has_the_density_of_each_noise_scale():
    """Points on a line: at the scale s, the density off the line is N(0, (0.1 s)^2)."""
    torch.manual_seed(0)
    flow = SoftRealNVP(2, couplings=6, hidden=32, mixing=True)
    model = Hierarchy([Stage(flow, 2)])
    optimizer = torch.optim.Adam(model.parameters(), 0.005)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        x = torch.randn(256, 1, generator=generator) * torch.tensor([[1.0, 0.0]])
        loss = Loss()(encode(model, x, draws(x, generator), InputNoise(0.1)))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    stds = {}
    for scale in (0.2, 1.0):
        with torch.no_grad():
            u = torch.randn(4000, 2, generator=generator)
            drawn = model.decode(u, context=Context(noise_scale=torch.full((4000,), scale)))
        stds[scale] = drawn[:, 1].std().item()
    assert stds[1.0] == pytest.approx(0.1, rel=0.2)
    assert stds[0.2] < 0.05
