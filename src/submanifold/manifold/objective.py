"""What a stage is trained with: the penalised likelihood of Alg. 1."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from submanifold.manifold.hierarchy import Hierarchy

Penalty = Literal["mse", "huber", "none"]
LikelihoodUnit = Literal["bits_per_dim", "nats"]


@dataclass(frozen=True)
class Objective:
    r"""Alg. 1's loss for a batch of h, with the signs of method.md 3.1.

    .. math:: \ell = c\, \frac{-\log p(h)}{D \log 2}
              + \lambda\, \frac1D \sum_i r(h_i - \tilde h_i), \qquad \tilde h = f^{-1}(u, 0)

    With input noise (the denoising flow, DNF) density and u are those of :math:`h + \sigma_x
    \epsilon`, and the penalty compares its projection with the clean h (method.md 3.10).

    By default likelihood is in bits per dimension and pixels are on [0, 1], so that lambda means
    the same at every image size; both units are settings (method.md 3.5).

    Args:
        penalty: r: ``mse`` is the square, ``huber`` is H_delta of eq. 2, ``none`` leaves it out.
        penalty_weight: lambda.
        delta: Where the Huber function turns from square to linear.
        likelihood_weight: c; the starred methods have 0.5 on stage 1.
        likelihood_unit: ``bits_per_dim``, or ``nats`` for a whole event.
        pixel_range: Width of the interval that pixels are on for the penalty and its delta: 1, or
            256 for those of a byte. Reported errors stay on [0, 1].
        input_noise: sigma_x, in the units of h; 0 but in DNF.
        off_manifold_penalty: Weight of mean(v^2), which DNF's published code adds (method.md 3.10).
        outer: The frozen stages before this one. Given, the penalty compares the decoded images of
            h and of its projection instead of h itself (method.md 3.9).
    """

    penalty: Penalty = "mse"
    penalty_weight: float = 1.0
    delta: float = 1.0
    likelihood_weight: float = 1.0
    likelihood_unit: LikelihoodUnit = "bits_per_dim"
    pixel_range: float = 1.0
    input_noise: float = 0.0
    off_manifold_penalty: float = 0.0
    outer: Hierarchy | None = None

    def __call__(
        self, hierarchy: Hierarchy, h: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Score a batch.

        Args:
            hierarchy: The stages in training; Alg. 1 has one, a joint method all of them.
            h: Their input, (batch, *event_shape).
            generator: Source of the input noise, on h's device.

        Returns:
            Means over the batch: ``loss``, ``bits_per_dim`` (of the noisy input, if there is
            noise), and, where the projection was computed, ``penalty`` and ``mse`` (of h, or of the
            image when ``outer`` is given).
        """
        noisy = h
        if self.input_noise > 0:
            drawn = torch.randn(h.shape, generator=generator, dtype=h.dtype, device=h.device)
            noisy = h + self.input_noise * drawn
        u, v, log_prob = hierarchy(noisy)
        bits_per_dim = hierarchy.to_bits_per_dim(log_prob).mean()
        in_unit = bits_per_dim if self.likelihood_unit == "bits_per_dim" else -log_prob.mean()
        terms = {"loss": self.likelihood_weight * in_unit, "bits_per_dim": bits_per_dim}
        if self.off_manifold_penalty > 0:
            terms["loss"] = terms["loss"] + self.off_manifold_penalty * v.square().mean()
        # plain likelihood training has no use for a projection; validation still reports its error
        if self.penalized or not torch.is_grad_enabled():
            residual = self._residual(h, hierarchy.decode(u))
            terms["mse"] = residual.square().mean()
            scaled = self.pixel_range * residual
            terms["penalty"] = pixel_penalty(scaled, self.penalty, self.delta).mean()
            if self.penalized:
                terms["loss"] = terms["loss"] + self.penalty_weight * terms["penalty"]
        return terms

    @property
    def penalized(self) -> bool:
        """Whether the loss has a penalty at all."""
        return self.penalty != "none" and self.penalty_weight > 0

    def _residual(self, h: Tensor, projection: Tensor) -> Tensor:
        if self.outer is None:
            return h - projection
        with torch.no_grad():
            target = self.outer.decode(h)
        return target - self.outer.decode(projection)


def pixel_penalty(residual: Tensor, penalty: Penalty, delta: float) -> Tensor:
    """Penalty at each coordinate: the square, the Huber function of eq. 2, or zero."""
    if penalty == "mse":
        return residual.square()
    if penalty == "huber":
        return F.huber_loss(residual, torch.zeros_like(residual), reduction="none", delta=delta)
    return torch.zeros_like(residual)
