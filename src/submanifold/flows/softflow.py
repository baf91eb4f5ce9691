"""SoftFlow (Kim et al. 2020): flows conditioned on the scale of the noise in their input."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import Tensor, nn

from submanifold.flows.conditional import ConditionalLayer, holding
from submanifold.flows.coupling import Coupling
from submanifold.flows.glow import Glow
from submanifold.flows.realnvp import RealNVP


class NoiseConditional(ConditionalLayer):
    """:class:`.ConditionalLayer` that receives the noise scale s of each event, (batch,)."""

    def __init__(self, layer: nn.Module):
        super().__init__(layer, ())

    def bias_of(self, a: Tensor) -> Tensor | None:
        """See :meth:`.ConditionalLayer.bias_of`; without a scale it is 0."""
        scale = self.condition_of(a)
        return None if scale is None else scale[:, None] * self.weight


def is_noise_conditional(flow: nn.Module) -> bool:
    """Whether a flow depends on the noise scale."""
    return any(isinstance(each, NoiseConditional) for each in flow.modules())


@contextmanager
def noise_conditioning(flow: nn.Module, scale: Tensor | None) -> Iterator[None]:
    """Condition a flow on the noise scale s of each event, (batch,), between 0 and 1; None is 0."""
    layers = [each for each in flow.modules() if isinstance(each, NoiseConditional)]
    with holding(layers, [scale] * len(layers)):
        yield


class SoftRealNVP(RealNVP):
    r"""Noise-conditional :class:`RealNVP`, with its arguments.

    Data on a manifold have no density, but :math:`x + s\,\sigma\,\epsilon` has one for every s > 0.
    The flow is trained with s ~ U(0, 1) (Kim et al. 2020, section 3) and samples with s = 0, its
    value outside of :func:`noise_conditioning`.

    Example:
        >>> flow = SoftRealNVP(4)
        >>> with noise_conditioning(flow, torch.rand(3)):
        ...     z, log_det = flow(torch.randn(3, 4))
    """

    @wraps(RealNVP.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        _condition_on_noise(self)


class SoftGlow(Glow):
    """Noise-conditional :class:`Glow`, with its arguments; see :class:`SoftRealNVP`."""

    @wraps(Glow.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        _condition_on_noise(self)


def _condition_on_noise(flow: nn.Module) -> None:
    for coupling in [each for each in flow.modules() if isinstance(each, Coupling)]:
        coupling.net[2] = NoiseConditional(coupling.net[2])  # type: ignore[index, operator]
        coupling.supports_checkpointing = False  # the scale is reset before the backward pass
