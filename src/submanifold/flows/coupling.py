"""Affine couplings: on halves of the channels (Glow) and on masked vectors (RealNVP)."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from submanifold.flows import fast, spline
from submanifold.flows.bijection import Bijection, full_precision
from submanifold.flows.conditional import ConditionalLayer, apply
from submanifold.flows.context import Context

EDGE = 3.0  # of the bins of a spline, in standard deviations, before a net changes them
MAX_SHIFT = 3.0  # change of a parameter of a spline
MAX_LOG_SCALE = 2.0  # larger scales amplify rounding errors in the inverse of a deep flow


class Coupling(Bijection):
    """Affine coupling: a net computes scale and shift of one part of x from the other part.

    By default these are the halves of the axis 1.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input of the net, and the part to transform."""
        a, b = x.chunk(2, dim=1)
        return a, b

    def join(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return x, of which :meth:`split` returned a, with the other part b."""
        return torch.cat([a, b], 1)

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        a, b = self.split(x)
        log_scale, shift = self.scale_and_shift(a, context)
        return self.join(x, a, b * log_scale.exp() + shift), log_scale.flatten(1).sum(1)

    def inverse(self, z: Tensor, context: Context | None = None) -> Tensor:
        a, b = self.split(z)
        log_scale, shift = self.scale_and_shift(a, context)
        return self.join(z, a, (b - shift) * (-log_scale).exp())

    def add_context(self, size: int) -> None:
        """Add an input for an embedding of the context to the second layer of the net."""
        add_context(self.net, size)

    def outputs(self, a: Tensor, context: Context | None) -> Tensor:
        """Apply the net."""
        return apply(self.net, a, context)

    def scale_and_shift(self, a: Tensor, context: Context | None) -> tuple[Tensor, Tensor]:
        """Compute log-scale and shift in the dtype of a, also under autocast."""
        raw, shift = self.outputs(a, context).to(a.dtype).chunk(2, dim=1)
        return MAX_LOG_SCALE * torch.tanh(raw / MAX_LOG_SCALE), shift


class AffineCoupling(Coupling):
    r"""Coupling of the channels of images: :math:`z_a = x_a,\; z_b = x_b\, e^{s(x_a)} + t(x_a)`.

    (Kingma & Dhariwal 2018, section 3.3.) The net maps half of the channels to all of them, raw
    log-scales and shifts. :mod:`submanifold.flows.fast` computes the coupling where it can.
    """

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        if fast.supports(x, [self.net]):
            return fast.flow_steps(x, [self.net], inverse=False)
        return super().forward(x, context)

    def inverse(self, z: Tensor, context: Context | None = None) -> Tensor:
        if fast.supports(z, [self.net]):
            return fast.flow_steps(z, [self.net], inverse=True)[0]
        return super().inverse(z, context)


class MaskedAffineCoupling(Coupling):
    r"""Coupling of vectors: masked coordinates pass unchanged and transform the others.

    .. math:: z = m \odot x + (1 - m) \odot (x\, e^{s(m \odot x)} + t(m \odot x))

    (Dinh et al. 2017, eq. 9.) The net has weights for all coordinates, but products with masked
    inputs or unused outputs are not computed.

    Args:
        mask: For each coordinate whether it passes unchanged.
        net: Maps (batch, dim) to (batch, 2 dim), raw log-scales and shifts; its first and its last
            layer are linear.
    """

    def __init__(self, mask: ArrayLike, net: nn.Sequential):
        super().__init__(net)
        passes = np.asarray(mask, bool)
        self.kept = nn.Buffer(torch.tensor(np.flatnonzero(passes)), persistent=False)
        self.free = nn.Buffer(torch.tensor(np.flatnonzero(~passes)), persistent=False)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.index_select(1, self.kept), x.index_select(1, self.free)

    def join(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return x.index_copy(1, self.free, b)

    def outputs(self, a: Tensor, context: Context | None) -> Tensor:
        first, *middle, last = self.net.children()
        outputs = torch.arange(0, len(last.bias), len(self.kept) + len(self.free))  # type: ignore
        rows = (outputs.to(self.free)[:, None] + self.free).flatten()
        h = F.linear(a, first.weight.index_select(1, self.kept), first.bias)  # type: ignore
        weight, bias = (parameter.index_select(0, rows) for parameter in last.parameters())
        return F.linear(apply(nn.Sequential(*middle), h, context), weight, bias)


class MaskedSplineCoupling(MaskedAffineCoupling):
    """Coupling of vectors whose masked coordinates determine splines of the others.

    They are those of :class:`.QuantileSpline`, and start as the identity.

    Args:
        mask: For each coordinate whether it passes unchanged.
        net: Maps (batch, dim) to (batch, (3 bins + 3) dim), changes of the parameters of splines.
        bins: Bins of each spline.
    """

    def __init__(self, mask: ArrayLike, net: nn.Sequential, bins: int):
        super().__init__(mask, net)
        self.sizes = [2, bins, bins, bins + 1]

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        a, b = self.split(x)
        knots = self._knots(a, context)
        with full_precision(x):
            z, log_derivative = spline.transform(b, knots)
            return self.join(x, a, z), log_derivative.sum(1)

    def inverse(self, z: Tensor, context: Context | None = None) -> Tensor:
        a, b = self.split(z)
        knots = self._knots(a, context)
        with full_precision(z):
            return self.join(z, a, spline.invert(b, knots))

    def _knots(self, a: Tensor, context: Context | None) -> spline.Knots:
        raw = self.outputs(a, context).to(a.dtype).unflatten(1, (sum(self.sizes), -1)).mT
        changes = MAX_SHIFT * torch.tanh(raw / MAX_SHIFT)
        starts, log_widths, log_heights, log_slopes = changes.split(self.sizes, 2)
        width = math.log(2 * EDGE / self.sizes[1])
        return spline.knots_of(starts - EDGE, log_widths + width, log_heights + width, log_slopes)


def add_context(net: Any, size: int) -> None:
    """Replace the second layer of a chain of layers by a :class:`ConditionalLayer`."""
    kinds = nn.Linear, nn.Conv2d, ConditionalLayer
    second = [index for index, layer in enumerate(net) if isinstance(layer, kinds)][1]
    net[second] = ConditionalLayer(net[second], size)


def zero_initialized(*layers: nn.Module) -> nn.Sequential:
    """Chain layers to a net whose last layer, and so its output, is initialized to zero."""
    nn.init.zeros_(layers[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(layers[-1].bias)  # type: ignore[arg-type]
    return nn.Sequential(*layers)


def mlp(inputs: int, width: int, outputs: int, activation: type[nn.Module]) -> nn.Sequential:
    """Build a zero-initialized perceptron with two hidden layers."""
    hidden = nn.Linear(inputs, width), activation(), nn.Linear(width, width), activation()
    return zero_initialized(*hidden, nn.Linear(width, outputs))
