"""Affine couplings: on halves of the channels (Glow) and on masked vectors (RealNVP)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from submanifold.common.errors import UserError
from submanifold.flows import fast
from submanifold.flows.bijection import Bijection

LOG_SCALE_LIMIT = 2.0


def bounded_log_scale(raw: Tensor) -> Tensor:
    """Squash a net's output into +-2, so that a deep inverse does not blow up rounding errors."""
    return LOG_SCALE_LIMIT * torch.tanh(raw / LOG_SCALE_LIMIT)


def starting_at_zero(*layers: nn.Module) -> nn.Sequential:
    """Chain layers to a net whose output is zero until it has learned."""
    nn.init.zeros_(layers[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(layers[-1].bias)  # type: ignore[arg-type]
    return nn.Sequential(*layers)


class Coupling(Bijection):
    """What couplings share: a net that says how to scale and shift one part given the other.

    Attributes:
        recompute: Whether the gradient computes the net's hidden layers again, to save memory.
        can_checkpoint: Whether it could.
    """

    can_checkpoint = True

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.recompute = False

    def outputs(self, a: Tensor) -> Tensor:
        """Run the net."""
        return self.net(a)

    def scale_and_shift(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Log-scale and shift, in the precision of a, whatever that of the net."""
        if self.recompute and torch.is_grad_enabled():
            out = checkpoint(self.outputs, a, use_reentrant=False)
        else:
            out = self.outputs(a)
        raw, shift = out.to(a.dtype).chunk(2, dim=1)
        return bounded_log_scale(raw), shift


def set_activation_checkpointing(flow: nn.Module, recompute: bool) -> None:
    """Set :attr:`Coupling.recompute` of every coupling in the flow.

    Raises:
        UserError: It is to be set, and one of them cannot.
    """
    for module in flow.modules():
        if isinstance(module, Coupling):
            if recompute and not module.can_checkpoint:
                raise UserError(
                    "training.activation_checkpointing=true cannot be used with flows that are "
                    "told the noise's "
                    "scale. Leave it out, or choose glow or realnvp."
                )
            module.recompute = recompute


class AffineCoupling(Coupling):
    r"""One half of the channels scales and shifts the other.

    .. math:: z_a = x_a, \qquad z_b = x_b\, e^{s(x_a)} + t(x_a)

    (Kingma & Dhariwal 2018, section 3.3.) The net's output starts at zero, so the coupling starts
    as the identity. :mod:`submanifold.flows.fast` computes the same where it can.

    Args:
        net: Maps (batch, channels / 2, h, w) to (batch, channels, h, w): raw log-scales, shifts.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Transform the second half of the channels."""
        if fast.applies(x, self.net):
            return fast.couple(x, self.net, inverse=False, recompute=self.recompute)
        a, b = x.chunk(2, dim=1)
        log_scale, shift = self.scale_and_shift(a)
        return torch.cat([a, b * log_scale.exp() + shift], 1), log_scale.flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        """Restore the second half of the channels."""
        if fast.applies(z, self.net):
            return fast.couple(z, self.net, inverse=True, recompute=self.recompute)[0]
        a, b = z.chunk(2, dim=1)
        log_scale, shift = self.scale_and_shift(a)
        return torch.cat([a, (b - shift) * (-log_scale).exp()], 1)


class MaskedAffineCoupling(Coupling):
    r"""The coordinates under the mask scale and shift the others.

    .. math:: z = m \odot x + (1 - m) \odot (x\, e^{s(m \odot x)} + t(m \odot x))

    (Dinh et al. 2017, eq. 9.) The net has weights for all coordinates; those for what the mask
    hides, and for outputs that it drops, do nothing and are not multiplied.

    Args:
        mask: For each coordinate whether it passes unchanged.
        net: Maps (batch, dim) to (batch, 2 dim), raw log-scales and shifts; its first and its last
            layer are linear.
    """

    given: Tensor
    free: Tensor

    def __init__(self, mask: Sequence[bool], net: nn.Sequential):
        super().__init__(net)
        for name, kept in (("given", True), ("free", False)):
            where = [index for index, each in enumerate(mask) if each == kept]
            self.register_buffer(name, torch.tensor(where, dtype=torch.long), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Transform the unmasked coordinates of (batch, dim)."""
        log_scale, shift = self.scale_and_shift(x.index_select(1, self.given))
        moved = x.index_select(1, self.free) * log_scale.exp() + shift
        return x.index_copy(1, self.free, moved), log_scale.sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        """Restore the unmasked coordinates."""
        log_scale, shift = self.scale_and_shift(z.index_select(1, self.given))
        moved = (z.index_select(1, self.free) - shift) * (-log_scale).exp()
        return z.index_copy(1, self.free, moved)

    def outputs(self, a: Tensor) -> Tensor:
        """Run the net on the given coordinates, for the free ones."""
        first, *middle, last = self.net.children()
        rows = torch.cat([self.free, self.free + len(self.given) + len(self.free)])
        h = F.linear(a, first.weight.index_select(1, self.given), first.bias)  # type: ignore
        weight, bias = (each.index_select(0, rows) for each in last.parameters())
        return F.linear(nn.Sequential(*middle)(h), weight, bias)
