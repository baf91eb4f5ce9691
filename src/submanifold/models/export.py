"""Export of functions of a model as graphs without Python, by torch.export."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from submanifold.models.model import Model

EXAMPLES = 97  #: Events of an example, a size of no other axis: torch takes equal ones for one.


def export_method(model: Model, method: str) -> ExportedProgram:
    """Export a method of events x (batch, *event_shape) of a model that needs no context.

    The method is ``log_prob``, ``encode``, ``encoder_projection``, or ``project``.

    Example:
        >>> from submanifold.flows import RealNVP
        >>> from submanifold.models import Hierarchy, Stage
        >>> program = export_method(Hierarchy([Stage(RealNVP(2), dim=1)]), "log_prob")
        >>> program.module()(torch.zeros(5, 2)).shape
        torch.Size([5])
    """
    x = torch.zeros(EXAMPLES, *model.event_shape).to(next(model.parameters()))
    return export_function(lambda x: getattr(model, method)(x), x)


def export_function(function: Callable[..., Any], *examples: Tensor) -> ExportedProgram:
    """Export a function of tensors, (EXAMPLES, ...) or numbers, for any batch size.

    The graph has the weights and the gradients that the function computes, no Python, and only
    operators that ONNX has, too. What does not depend on the arguments, such as inverses of
    matrices, is computed once.
    """
    from torch._decomp import decomposition_table
    from torch.fx.experimental.const_fold import split_const_subgraphs
    from torch.fx.experimental.proxy_tensor import make_fx  # imports sympy

    aten = torch.ops.aten
    table: dict[Any, Any] = {
        op: f for op, f in decomposition_table.items() if "backward" in str(op)
    }
    table[aten.convolution_backward.default] = _convolution_backward
    table[aten._linalg_solve_ex.default] = _solve
    table[aten.searchsorted.Tensor] = lambda ordered, values, **_: (
        ordered[..., None, :] <= values[..., None]
    ).sum(-1)
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # of the constants
        # torch.export itself does not trace gradients (pytorch issue 146719)
        graph = make_fx(function, table, "symbolic", _allow_non_fake_inputs=True)(*examples)
        folded = split_const_subgraphs(graph)
        folded.run_folding()
        batch = Dim("batch")
        shapes = tuple({0: batch} if example.ndim else None for example in examples)
        return torch.export.export(folded, examples, dynamic_shapes=shapes)


def _convolution_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    mask: Any,
) -> tuple[Tensor | None, ...]:
    options = stride, padding, dilation, not transposed, output_padding, groups
    return torch.convolution(gradient, weight, None, *options), None, None


def _solve(a: Tensor, b: Tensor, **_: Any) -> tuple[Tensor, ...]:
    """Solve positive definite systems (batch, n, n) of few equations by elimination."""
    rows = [*torch.cat([a, b], 2).unbind(1)]
    for i in range(len(rows)):
        pivot = rows[i] / rows[i][:, i : i + 1]
        rows = [pivot if j == i else row - row[:, i : i + 1] * pivot for j, row in enumerate(rows)]
    return torch.stack(rows, 1)[:, :, a.shape[2] :], a, a, a
