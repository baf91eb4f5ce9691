"""Export of a model's methods by torch.export."""

from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from submanifold.models.model import Model

EXAMPLES = 97
"""Events of the example: a size that no other axis has, because torch takes equal sizes for one."""


def export_method(model: Model, method: str) -> ExportedProgram:
    """Export a method of events x (batch, *event_shape) for any batch size.

    The graph holds the weights and the gradients that ``project`` computes, and no Python. The
    method is ``log_prob``, ``encode``, ``encoder_projection``, or ``project`` of a model that needs
    no context.

    Example:
        >>> from submanifold.flows import RealNVP
        >>> from submanifold.models import Hierarchy, Stage
        >>> program = export_method(Hierarchy([Stage(RealNVP(2), dim=1)]), "log_prob")
        >>> program.module()(torch.zeros(5, 2)).shape
        torch.Size([5])
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # imports sympy

    def call(x: Tensor) -> Any:
        return getattr(model, method)(x)

    x = torch.zeros(EXAMPLES, *model.event_shape).to(next(model.parameters()))
    with torch.no_grad():
        # torch.export itself does not trace gradients (pytorch issue 146719)
        graph = make_fx(call, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x)
        return torch.export.export(graph, (x,), dynamic_shapes=({0: Dim("batch")},))
