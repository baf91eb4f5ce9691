"""Terms of the volume and the metric: exact values, and estimates of their gradients."""

import math

import pytest
import torch

from strategies import affine, perturb
from submanifold.flows import Affine, Autoencoder, RealNVP
from submanifold.geometry.linearization import Linearization
from submanifold.geometry.solvers import conjugate_gradients
from submanifold.geometry.volume import log_volume
from submanifold.losses import draws, encode
from submanifold.losses.volume import ManifoldLikelihood
from submanifold.models import Hierarchy, Stage, manifold_density

LOG_2 = math.log(2)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return perturb(Hierarchy([Stage(RealNVP(6, 3, mixing=True), 3)]).double(), 0.5)


def forward(model, seed=0):
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1)).double()
    return encode(model, x, draws(x, torch.Generator().manual_seed(seed)))


def test_the_manifold_likelihood_uses_the_volume_of_the_decoder(model):
    batch = forward(model)
    u = model.encode(batch.h)[0]
    nats = log_volume(model.decode, u) + 0.5 * (u.square() + math.log(2 * math.pi)).sum(1)
    assert ManifoldLikelihood()(batch).item() == pytest.approx(nats.mean().item() / (3 * LOG_2))


def test_non_orthogonality_of_a_linear_map_has_a_closed_form():
    axes = torch.tensor([[1.0, 1.0], [0.0, 2.0], [0.0, 0.0], [0.0, 0.0]]).double()
    basis = torch.cat([axes, torch.eye(4)[:, 2:].double()], 1)
    model = Hierarchy([Stage(affine(torch.linalg.inv(basis)), 2)]).double()
    metric = axes.T @ axes  # [[1, 1], [1, 5]]
    non_orthogonality = 0.5 * (math.log(1) + math.log(5) - torch.logdet(metric).item())
    found = manifold_density(model, torch.randn(3, 4).double()).non_orthogonality
    assert found.numpy() == pytest.approx(non_orthogonality / (2 * LOG_2))


def test_validations_contain_an_estimate_of_the_volume():
    """Without it, the model of the smallest codes would be the best one."""
    values = {}
    for scale in (0.3, 1.0, 3.0):
        model = Hierarchy([Stage(Affine(6), 5)]).double()  # a rotation at first
        torch.nn.init.constant_(model.stages[0].flows[0].norm.log_scale, math.log(scale))
        with torch.no_grad():
            values[scale] = ManifoldLikelihood(exact_up_to=4)(forward(model)).item()
            exact = ManifoldLikelihood()(forward(model)).item()
            assert values[scale] == pytest.approx(exact, abs=1e-6)
    assert min(values, key=values.get) == 1.0


@pytest.mark.parametrize("tolerance", [1e-3, 1e-10])
def test_conjugate_gradients_solve_each_system_of_a_batch(tolerance):
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(4, 9, 6, generator=generator).double()
    b = torch.randn(4, 6, generator=generator).double()
    b[1] = 0
    at = Linearization(lambda u: (matrices @ u[:, :, None])[:, :, 0], torch.zeros_like(b))
    x = conjugate_gradients(lambda p: at.vjp(at.jvp(p)), b, tolerance=tolerance)
    residual = at.vjp(at.jvp(x)) - b
    assert (residual.norm(dim=1) <= tolerance * b.norm(dim=1) + 1e-9).all()


def test_validations_estimate_the_volume_with_the_same_probes(model):
    with torch.no_grad():
        values = [ManifoldLikelihood(exact_up_to=2)(forward(model, seed)) for seed in (0, 1)]
    assert values[0] == values[1]
    exact = ManifoldLikelihood()(forward(model))
    assert values[0].item() == pytest.approx(exact.item(), abs=0.2)


def gradient(term, model, seed):
    model.zero_grad()
    term(forward(model, seed)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.fixture
def linear():
    """An autoencoder whose encoder stays the pseudoinverse of its decoder: its nets are zero."""
    torch.manual_seed(0)
    flow = Autoencoder((6,), 3, width=4).double()
    for net in (flow.encoder, flow.decoder):
        net.requires_grad_(False)
    with torch.no_grad():
        flow.linear.weight.add_(0.3 * torch.randn(6, 3))
        flow.linear.log_scale.copy_(torch.tensor([0.4, -0.2, 0.1]))
    return Hierarchy([Stage(flow, 3)]).double()


@pytest.mark.parametrize(
    ("name", "term"),
    [
        ("model", ManifoldLikelihood(exact_up_to=2)),
        ("linear", ManifoldLikelihood(gradient="encoder")),
    ],
)
def test_estimated_gradients_are_unbiased(name, term, request):
    model = request.getfixturevalue(name)
    exact = gradient(ManifoldLikelihood(), model, 0)
    drawn = torch.stack([gradient(term, model, seed) for seed in range(40)])
    error = drawn.std(0) / math.sqrt(len(drawn))
    deviations = (drawn.mean(0) - exact) / error.clamp_min(1e-12)
    moved = error > 1e-9
    assert moved.float().mean() > 0.3
    # standard normal up to few degrees of freedom: the largest of this many is below 5
    assert deviations[moved].abs().max() < 5
    assert 0.4 < deviations[moved].square().mean().sqrt() < 1.8
