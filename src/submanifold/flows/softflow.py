"""SoftFlow (Kim et al. 2020): flows conditioned on the scale of the noise in their input."""

from functools import wraps
from typing import Any

from torch import nn

from submanifold.flows.bijection import Flow
from submanifold.flows.conditional import ConditionalLayer
from submanifold.flows.coupling import Coupling
from submanifold.flows.glow import Glow
from submanifold.flows.realnvp import RealNVP


def is_noise_conditional(model: nn.Module) -> bool:
    """Whether a flow or a model depends on the noise scale."""
    return any(isinstance(flow, Flow) and flow.takes_noise_scale for flow in model.modules())


class SoftRealNVP(RealNVP):
    r"""Noise-conditional :class:`RealNVP`, with its arguments.

    Data on a manifold have no density, but :math:`x + s\,\sigma\,\epsilon` has one for every s > 0.
    The flow is trained with s ~ U(0, 1) (Kim et al. 2020, section 3) and samples with s = 0, its
    value without a context.

    Example:
        >>> from submanifold.flows import Context
        >>> flow = SoftRealNVP(4)
        >>> z, log_det = flow(torch.randn(3, 4), Context(noise_scale=torch.rand(3)))
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
