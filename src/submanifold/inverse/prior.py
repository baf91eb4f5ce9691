"""A model as a prior of the library deepinv, which is an optional dependency."""

from typing import Any

import torch
from torch import Tensor

from submanifold.common.errors import import_extra
from submanifold.inverse.operators import Denoise
from submanifold.inverse.restoration import restore
from submanifold.models import Model

Base: Any = import_extra("deepinv", "deepinv").optim.Prior


class Prior(Base):
    r"""The negative log-density of a model, :math:`g(x) = -\log p(x)`, for ``deepinv.optim``.

    The model has images and a density on all of space. In place of the proximal operator is a
    denoiser ("plug and play"): the posterior mean of an image with noise of variance gamma. The
    argument ``sigma`` of samplers has no effect, because the density is not smoothed.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.explicit_prior = True

    def fn(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """Compute -log p(x) of images (batch, channels, height, width) in [0, 1], (batch,)."""
        return -self.model.log_prob(x - 0.5)

    def score(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """Compute the gradient of log p(x), in the shape of x."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(-self.fn(x).sum(), x)
        return gradient

    def grad(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """Compute the gradient of -log p(x), in the shape of x."""
        return -self.score(x)

    def prox(self, x: Tensor, *_: Any, gamma: float = 1.0, **__: Any) -> Tensor:
        """Denoise images with noise of variance gamma, in the shape of x."""
        return restore(self.model, x, Denoise(), float(gamma) ** 0.5).image
