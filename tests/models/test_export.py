"""Export of models by torch.export."""

import pytest
import torch

from submanifold.flows import Glow, RealNVP, Tabular
from submanifold.models import Hierarchy, Stage


class Method(torch.nn.Module):
    """A module whose call is a method of a model."""

    def __init__(self, model, name):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x):
        return getattr(self.model, self.name)(x)


def images():
    stage = Stage(Glow((3, 4, 4), 1, 1, 4), 20)
    stage.add_rotation()
    code_flow = RealNVP(20, couplings=1, hidden=8)
    return Hierarchy([stage, Stage(code_flow, 20)]), torch.rand(9, 3, 4, 4) - 0.5


def vectors():
    return Hierarchy([Stage(Tabular(5, couplings=1, hidden=8), 3)]), torch.randn(9, 5)


# project searches with gradients, which torch.export does not trace (pytorch issue 146719)
@pytest.mark.parametrize("name", ["log_prob", "encode", "encoder_projection"])
@pytest.mark.parametrize("build", [images, vectors])
def test_models_are_exported_for_any_batch_size(build, name):
    torch.manual_seed(0)
    model, x = build()
    method = Method(model.eval(), name)
    batch = {"x": {0: torch.export.Dim("batch", min=1, max=512)}}
    exported = torch.export.export(method, (x[:4],), dynamic_shapes=batch).module()
    for count in (1, 9):
        torch.testing.assert_close(exported(x[:count]), method(x[:count]), rtol=1e-4, atol=1e-4)
