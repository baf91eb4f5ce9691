"""Optimizers: Adam, and Muon for the matrices of coupling nets."""

import math
from collections import defaultdict
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from submanifold.common.device import supports_fused_optimizer
from submanifold.flows import Coupling, MaskedAffineCoupling

MOMENTUM = 0.95
ITERATIONS = 4
LARGEST_OF_VECTORS = 128
QUINTIC = 3.4445, -4.7750, 2.0315


def optimizers_for(model: nn.Module, rate: float, muon_lr: float | None) -> list[Optimizer]:
    """Adam for all weights, or Muon for those of coupling nets' layers and Adam for the rest.

    Args:
        model: What is trained.
        rate: Adam's learning rate.
        muon_lr: Muon's; None leaves it out.
    """
    weights = list(model.parameters())
    fused = supports_fused_optimizer(weights[0])
    if muon_lr is None:
        return [Adam(weights, rate, fused=fused)]
    matrices = {id(weight): weight for weight in matrices_of(model)}
    rest = [weight for weight in weights if id(weight) not in matrices]
    # Muon forgets in 20 steps; a second moment that remembers 1,000 lags behind it
    adam = partial(Adam, rest, rate, betas=(0.9, 0.95), fused=fused)
    muon = partial(Muon, matrices.values(), muon_lr)
    return [make() for make, given in ((muon, matrices), (adam, rest)) if given]


def matrices_of(model: nn.Module) -> list[Tensor]:
    """Weights of the linear layers and convolutions in the model's coupling nets.

    Not the large ones of couplings of vectors: they are multiplied once for an event, not once for
    each of its pixels, and making them orthogonal would take longer than all else.
    """
    found = []
    for coupling in (each for each in model.modules() if isinstance(each, Coupling)):
        layers = [
            each for each in coupling.net.modules() if isinstance(each, nn.Linear | nn.Conv2d)
        ]
        if isinstance(coupling, MaskedAffineCoupling):
            layers = [each for each in layers if min(each.weight.shape) <= LARGEST_OF_VECTORS]
        found += [each.weight for each in layers]
    return found


class Muon(Optimizer):
    r"""Momentum whose matrix is replaced by the nearest one with orthonormal rows or columns.

    .. math:: B \leftarrow \mu B + G, \qquad
              W \leftarrow W - \eta \sqrt{\max(1, m / n)}\; \mathrm{orth}(G + \mu B)

    for W of m rows and n columns; a convolution counts as a matrix, outputs x (inputs and kernel).
    Every direction then moves alike, however small its gradient (Jordan et al. 2024). As
    :class:`torch.optim.Muon` without weight decay, which takes one plain matrix at a time; here
    those of equal shape are orthogonalised together.

    Args:
        weights: Matrices or convolutions.
        lr: The learning rate, eta: the length of the step in every direction.
    """

    def __init__(self, weights: Iterable[Tensor], lr: float):
        by_shape: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for weight in weights:
            by_shape[len(weight), weight[0].numel()].append(weight)
        super().__init__([{"params": alike} for alike in by_shape.values()], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the weights that have a gradient."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            gradients = [weight.grad for weight in weights]
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
            momenta = [self.state[weight]["momentum"] for weight in weights]
            torch._foreach_mul_(momenta, MOMENTUM)
            torch._foreach_add_(momenta, gradients)
            ahead = torch._foreach_add(gradients, momenta, alpha=MOMENTUM)
            stacked = torch.stack([each.flatten(1) for each in ahead])
            rows, columns = stacked.shape[1:]
            length = group["lr"] * math.sqrt(max(1, rows / columns))
            steps = [
                step.view_as(weight)  # kernels of two sizes can have equal matrices
                for step, weight in zip(orthogonalize(stacked), weights, strict=True)
            ]
            torch._foreach_add_(weights, steps, alpha=-length)


def orthogonalize(matrices: Tensor) -> Tensor:
    r"""Bring the singular values near 1 by Newton-Schulz iteration.

    .. math:: X \leftarrow a X + (b\, XX^T + c\, (XX^T)^2)\, X

    (Jordan et al. 2024, with their coefficients, which raise small singular values fastest.)

    Singular values of at least 1/190 of the matrix's Frobenius norm end between 0.68 and 1.21.
    Smaller ones end at 125 to 142 times their part of the norm, which may be near 0. Random
    matrices of 64 x 128 have none of these; square ones do: 3% of the values at 64 x 64, with a
    median least value of 0.14, and 8% at 512 x 512, with 0.006.

    Args:
        matrices: (n, rows, columns).
    """
    a, b, c = QUINTIC
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
