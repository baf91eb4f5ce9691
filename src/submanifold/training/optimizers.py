"""Optimizers: Adam, and Muon for the matrices of coupling networks."""

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from submanifold.flows import Coupling, MaskedAffineCoupling

MOMENTUM, WEIGHT_DECAY = 0.95, 0.3
LARGEST_VECTOR_MATRIX = 128
ITERATIONS, QUINTIC = 3, (3.4445, -4.7750, 2.0315)


def optimizers_for(model: nn.Module, lr: float, muon_lr: float | None) -> list[Optimizer]:
    """Create Adam, or Muon for the weights of :func:`matrices_of` and Adam for the others."""
    weights = list(model.parameters())
    fused = weights[0].dtype == torch.float32 and weights[0].device.type in ("cpu", "cuda")
    if muon_lr is None:
        return [Adam(weights, lr, fused=fused)]
    matrices = matrices_of(model)
    chosen = {id(weight) for weight in matrices}
    rest = [weight for weight in weights if id(weight) not in chosen]
    optimizers: list[Optimizer] = [Muon(matrices, muon_lr)] if matrices else []
    if rest:
        # Muon averages over 20 steps; a second moment over 1,000 would lag behind it
        optimizers.append(Adam(rest, lr, betas=(0.9, 0.95), fused=fused))
    return optimizers


def matrices_of(model: nn.Module) -> list[Tensor]:
    """Weights of the linear layers and convolutions in the model's coupling networks.

    Orthogonalizing large matrices of couplings of vectors would dominate the time of a step.
    """
    matrices: list[Tensor] = []
    for coupling in (module for module in model.modules() if isinstance(module, Coupling)):
        is_of_vectors = isinstance(coupling, MaskedAffineCoupling)
        largest = LARGEST_VECTOR_MATRIX if is_of_vectors else math.inf
        layers = [m for m in coupling.net.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        matrices += [layer.weight for layer in layers if min(layer.weight.shape) <= largest]
    return matrices


class Muon(Optimizer):
    r"""Momentum whose matrix is replaced by the nearest one with orthonormal rows or columns.

    .. math:: B \leftarrow \mu B + G, \qquad
              W \leftarrow W - \eta \sqrt{\max(1, m / n)}\; \mathrm{orth}(G + \mu B)

    for W of m rows and n columns (Jordan et al. 2024). All directions move by equal lengths,
    however small their gradients. A convolution is a matrix of outputs x (inputs and kernel).
    Before, a convolution is multiplied by :math:`1 - 0.3\, \eta` (decoupled weight decay, which
    halves the steps of the default: docs/evidence/performance.md). Matrices of couplings of vectors
    are not, where it makes densities of small tables worse. Unlike :class:`torch.optim.Muon`, which
    takes 2D weights one by one, it orthogonalizes all matrices of equal shape in one batch.

    Args:
        weights: Matrices or convolutions.
        lr: eta, the length of the step in every direction.
    """

    def __init__(self, weights: Iterable[Tensor], lr: float):
        by_shape: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for weight in weights:
            by_shape[len(weight), weight[0].numel()].append(weight)
        super().__init__([{"params": group} for group in by_shape.values()], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the weights that have a gradient."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
            gradients = [weight.grad for weight in weights]
            momenta = [self.state[weight]["momentum"] for weight in weights]
            torch._foreach_mul_(momenta, MOMENTUM)
            torch._foreach_add_(momenta, gradients)
            ahead = torch._foreach_add(gradients, momenta, alpha=MOMENTUM)
            in_order = [weight.movedim(1, -1) for weight in ahead]  # of their memory
            stacked = torch.stack([weight.flatten(1) for weight in in_order])
            rows, columns = stacked.shape[1:]
            length = group["lr"] * math.sqrt(max(1, rows / columns))
            # kernels of two sizes can have equal matrices
            pairs = zip(orthogonalize(stacked), in_order, strict=True)
            steps = [step.view(weight.shape).movedim(-1, 1) for step, weight in pairs]
            convolutions = [weight for weight in weights if weight.ndim > 2]
            if convolutions:
                torch._foreach_mul_(convolutions, 1 - WEIGHT_DECAY * group["lr"])
            torch._foreach_add_(weights, steps, alpha=-length)


def orthogonalize(matrices: Tensor) -> Tensor:
    r"""Bring the singular values of matrices (n, rows, columns) near 1 by Newton-Schulz iteration.

    .. math:: X \leftarrow a X + (b\, XX^T + c\, (XX^T)^2)\, X

    with the coefficients of Jordan et al. (2024), which raise small singular values fastest. The
    polynomials are computed on the smaller of both sides, for the Gram matrix, and applied once.
    Singular values of at least 1/55 of the Frobenius norm end between 0.68 and 1.21, smaller ones
    at 38 to 41 times their fraction of the norm.
    """
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    tall = x.shape[1] > x.shape[2]
    gram = x.mT @ x if tall else x @ x.mT
    one, (a, b, c) = torch.eye(gram.shape[1], dtype=x.dtype, device=x.device), QUINTIC
    product = polynomial = torch.baddbmm(b * gram + a * one, gram, gram, alpha=c)
    for _ in range(ITERATIONS - 1):
        gram = polynomial @ gram @ polynomial
        polynomial = torch.baddbmm(b * gram + a * one, gram, gram, alpha=c)
        product = polynomial @ product
    return x @ product if tall else product @ x
