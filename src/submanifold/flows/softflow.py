"""SoftFlow (Kim et al. 2020): flows conditioned on the scale of the noise in their input."""

from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from submanifold.flows.bijection import Flow
from submanifold.flows.conditional import ConditionalLayer
from submanifold.flows.coupling import Coupling
from submanifold.flows.glow import Glow
from submanifold.flows.realnvp import RealNVP


def is_noise_conditional(model: nn.Module) -> bool:
    """Whether a flow or a model depends on the noise scale."""
    return any(isinstance(flow, Flow) and flow.takes_noise_scale for flow in model.modules())


def with_noise_scale(context: Tensor | None, scale: Tensor | None) -> Tensor | None:
    """Append the noise scale of each event, (batch,), to the context of a model (:meth:`.embed`).

    Example:
        >>> with_noise_scale(torch.tensor([2, 0]), torch.tensor([0.5, 1.0]))
        tensor([[2.0000, 0.5000],
                [0.0000, 1.0000]])
    """
    if context is None or scale is None:
        return context if scale is None else scale[:, None]
    columns = context[:, None] if context.ndim == 1 else context
    return torch.cat([columns.to(scale.dtype), scale[:, None]], 1)


class SoftRealNVP(RealNVP):
    r"""Noise-conditional :class:`RealNVP`, with its arguments.

    Data on a manifold have no density, but :math:`x + s\,\sigma\,\epsilon` has one for every s > 0.
    The flow is trained with s ~ U(0, 1) (Kim et al. 2020, section 3) and samples with s = 0, its
    value without a context.

    Example:
        >>> flow = SoftRealNVP(4)
        >>> z, log_det = flow(torch.randn(3, 4), torch.rand(3, 1))
    """

    takes_noise_scale = True

    @wraps(RealNVP.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        _condition_on_noise(self)


class SoftGlow(Glow):
    """Noise-conditional :class:`Glow`, with its arguments; see :class:`SoftRealNVP`."""

    takes_noise_scale = True

    @wraps(Glow.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        _condition_on_noise(self)


def _condition_on_noise(flow: nn.Module) -> None:
    for coupling in [module for module in flow.modules() if isinstance(module, Coupling)]:
        coupling.net[2] = ConditionalLayer(coupling.net[2])  # type: ignore[index, operator]
