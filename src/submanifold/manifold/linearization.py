"""A decoder's derivative at a point, as products with it, by automatic differentiation."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad


class Linearization:
    r"""The derivative :math:`J = \partial g(u)` of a decoder at points u, never as a matrix.

    Args:
        decode: The decoder g, of which each event depends on its own u alone.
        u: Points, (batch, d).

    Attributes:
        image: g(u).

    Example:
        >>> at = Linearization(lambda u: u**2, torch.tensor([[1.0, 3.0]]))
        >>> at.push(torch.ones(1, 2)), at.pull(torch.ones(1, 2))
        (tensor([[2., 6.]]), tensor([[2., 6.]]))
    """

    def __init__(self, decode: Callable[[Tensor], Tensor], u: Tensor):
        self.decode = decode
        self.u = u.detach().requires_grad_()
        with torch.enable_grad():
            self._image = decode(self.u)
        self.image = self._image.detach()

    @torch.no_grad()
    def push(self, directions: Tensor) -> Tensor:
        """J p for one direction p (batch, d) at each point, in the shape of the image."""
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(self.u.detach(), directions)
            tangent = forward_ad.unpack_dual(self.decode(dual)).tangent
            return torch.zeros_like(self.image) if tangent is None else tangent

    def pull(self, weights: Tensor) -> Tensor:
        """J^T w, (batch, d), for weights w in the shape of the image."""
        (gradient,) = torch.autograd.grad(self._image, self.u, weights, retain_graph=True)
        return gradient
