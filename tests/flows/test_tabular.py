"""Data-dependent initialization and noise conditioning of flows of tables."""

import pytest
import torch

from strategies import perturb
from submanifold.flows import QuantileSpline, Tabular, initialize, make_conditional
from submanifold.flows.tabular import LARGEST_MIXED
from submanifold.models import Stage


def skewed(rows):
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(0)).exp() - 1


def test_splines_start_at_the_quantiles_of_the_data():
    x = skewed(4000)
    spline = QuantileSpline(3, 16)
    initialize(spline, x)
    z, log_det = spline(x)
    quantiles = torch.tensor([0.02, 0.1, 0.5, 0.9, 0.98])
    found = torch.quantile(z, quantiles, dim=0)
    expected = torch.special.ndtri(quantiles)[:, None].expand(-1, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.08)
    # z is log(1 + x), whose derivative is 1 / (1 + x)
    assert (log_det + (1 + x).log().sum(1)).mean().abs() < 0.05


def test_splines_are_linear_beyond_the_outermost_rows():
    spline = QuantileSpline(3, 16)
    initialize(spline, skewed(4000))
    ordered = skewed(4000).sort(0).values
    outer = spline(torch.stack([ordered[2], ordered[-3]]))[0]  # of 2 / 4000 of the rows
    torch.testing.assert_close(outer.abs(), torch.full((2, 3), 3.29), rtol=0, atol=0.05)
    for ends in (ordered[0] - torch.tensor([[1.0], [2.0]]), ordered[-1] + torch.ones(2, 1)):
        x = ends.clone().requires_grad_()
        z, log_det = spline(x)
        (slopes,) = torch.autograd.grad(z.sum(), x)
        torch.testing.assert_close(slopes.log().sum(1), log_det)
        torch.testing.assert_close(spline(x + 1)[0] - z, slopes.expand_as(z), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(spline.inverse(z), x, rtol=1e-3, atol=1e-3)


def test_flows_of_many_columns_have_no_square_matrices():
    dim = LARGEST_MIXED + 1
    flow = Tabular(dim, couplings=2, hidden=8)
    assert all(w.shape != (dim, dim) for w in flow.parameters())
    x = torch.randn(4, dim)
    torch.testing.assert_close(flow.inverse(flow(x)[0]), x, rtol=1e-4, atol=1e-4)


def test_the_density_of_one_column_has_a_shape_that_depends_on_the_context():
    """Couplings of one column are affine: without the spline z would be affine in x."""
    torch.manual_seed(0)
    flow = make_conditional(Tabular(1, couplings=2, hidden=8, bins=0), columns=1)
    torch.nn.init.normal_(flow.bijections[-1].weight)
    x = torch.linspace(-2, 2, 50)[:, None]
    powers = x ** torch.arange(2)
    residuals = []
    for c in (-1.0, 1.0):
        z = flow(x, flow.embed(torch.full((50, 1), c)))[0]
        residuals.append((z - powers @ torch.linalg.lstsq(powers, z).solution).detach())
    assert residuals[0].std() > 0.01
    assert (residuals[0] - residuals[1]).std() > 0.01


@pytest.mark.parametrize("distance", [10.0, 100.0, 1000.0])
def test_far_from_the_data_the_inverse_and_the_log_determinant_are_exact(distance):
    torch.manual_seed(0)
    stage = Stage(perturb(Tabular(4, couplings=6, hidden=16), 1.0), 2)
    initialize(stage.flows[0], torch.randn(2000, 4))
    stage.add_rotation().fit(torch.linalg.qr(torch.randn(4, 4)).Q, torch.ones(4))
    stage.double()
    x = distance * torch.nn.functional.normalize(torch.randn(20, 4)).double()
    u, v, log_det = stage(x)
    assert (stage.decode(u, v) - x).norm(dim=1).max() < 1e-3 * distance
    of_row = torch.func.vmap(torch.func.jacrev(lambda row: torch.cat(stage(row[None])[:2], 1)[0]))
    jacobians = torch.stack([of_row(row[None])[0] for row in x])
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobians).logabsdet)
