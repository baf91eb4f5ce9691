"""Latents of a model: coordinates with a standard normal density."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from submanifold.common.errors import UserError
from submanifold.flows.conditional import MISSING, ContextModule, is_conditional
from submanifold.inverse.gaussian import Gaussian
from submanifold.models import Hierarchy, Model, Slice


@dataclass(frozen=True)
class Latents:
    """Coordinates z (batch, dim) of events x, with the density N(0, I).

    Attributes:
        dim: Number of coordinates.
        decode: Map from z to x, pixels in [0, 1] of images, or vectors.
        encode: Map from x to z; its inverse, or the encoder of a manifold.
        log_prob: Log-density of x in nats, (batch,); None if z are coordinates of a manifold.
        gaussian: A Gaussian of x with the covariance of the training data, if the model has one.
    """

    dim: int
    decode: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor], Tensor]
    log_prob: Callable[[Tensor], Tensor] | None
    gaussian: Gaussian | None = None


def latents_of(model: Model, dim: int | None = None) -> Latents:
    """Return the latents of a model, before the flow on the coordinates if there is one.

    Args:
        model: A hierarchy or a slice of one.
        dim: Dimension of a manifold, whose coordinates are the latents; by default all of space.

    Raises:
        UserError: The model has charts, a missing context, no density on all of space, or not the
            dimension.
    """
    if isinstance(model, Slice):
        model = model.hierarchy
    if not isinstance(model, Hierarchy):
        raise UserError(
            f"model: expected a hierarchy, got a {model.kind}. Use one of its charts, "
            "or train with charts=1."
        )
    conditions = [each.condition for each in model.modules() if isinstance(each, ContextModule)]
    if is_conditional(model) and all(each is None for each in conditions):
        raise UserError(MISSING)
    manifold = model.part(1, model.manifold_stage)
    shift = 0.5 if len(model.event_shape) == 3 else 0.0
    gaussian = None
    if model.gaussian:
        fitted = Gaussian.from_tensors(model.gaussian)
        gaussian = replace(fitted, mean=fitted.mean + shift).to(next(model.parameters()))

    if dim is not None:
        at = manifold.at_dim(dim)
        return Latents(
            dim, lambda z: at.decode(z) + shift, lambda x: at.encode(x - shift)[0][:, :dim],
            None, gaussian,
        )  # fmt: skip
    if not model.has_density:
        raise UserError(
            "dim: expected the dimension of the manifold for a model without a density on all of "
            f"space, got None. Use dim={model.dim}."
        )
    d = manifold.dim
    scale = F.pad(manifold.off_manifold_scales, (d, 0), value=1.0)

    def decode(z: Tensor) -> Tensor:
        z = z * scale
        return manifold.decode(z[:, :d], z[:, d:]) + shift

    def encode(x: Tensor) -> Tensor:
        return torch.cat(manifold.encode(x - shift), 1) / scale

    def log_prob(x: Tensor) -> Tensor:
        return manifold.log_prob(x - shift)

    return Latents(len(scale), decode, encode, log_prob, gaussian)
