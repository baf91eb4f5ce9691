"""Export of models by torch.export."""

import pytest
import torch

from strategies import perturb
from submanifold.flows import Glow, RealNVP, Tabular
from submanifold.models import Hierarchy, Stage
from submanifold.models.export import export_method


def images():
    stage = Stage(Glow((3, 4, 4), 1, 1, 4), 20)
    stage.add_rotation()
    code_flow = RealNVP(20, couplings=1, hidden=8)
    return Hierarchy([stage, Stage(code_flow, 20)]), torch.rand(9, 3, 4, 4) - 0.5


def vectors():
    stage = Stage(Tabular(12, couplings=1, hidden=8), 9)
    stage.add_rotation()
    return Hierarchy([stage]), torch.randn(9, 12)


def without_rotation():
    return perturb(Hierarchy([Stage(RealNVP(6, 2, 8), 3)]).double()), torch.randn(9, 6).double()


@pytest.mark.parametrize("name", ["log_prob", "encode", "encoder_projection", "project"])
@pytest.mark.parametrize("build", [images, vectors, without_rotation])
def test_methods_are_exported_for_any_batch_size(build, name):
    torch.manual_seed(0)
    model, x = build()
    exported = export_method(model.eval(), name).module()
    tolerance = 1e-9 if x.dtype == torch.float64 else 1e-4
    for count in (1, 9):
        expected = getattr(model, name)(x[:count])
        torch.testing.assert_close(exported(x[:count]), expected, rtol=tolerance, atol=tolerance)
