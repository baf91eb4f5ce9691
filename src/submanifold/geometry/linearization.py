"""A decoder's derivative at a point, as products with it, by automatic differentiation."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

_lock = threading.Lock()
_threads: set[int] = set()  # those inside dual_level


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

    def push(self, directions: Tensor) -> Tensor:
        """J p for one direction p (batch, d) at each point, in the shape of the image."""
        return push(self.decode, self.u.detach(), directions)

    def pull(self, weights: Tensor) -> Tensor:
        """J^T w, (batch, d), for weights w in the shape of the image."""
        (gradient,) = torch.autograd.grad(self._image, self.u, weights, retain_graph=True)
        return gradient


@torch.no_grad()
def push(decode: Callable[[Tensor], Tensor], u: Tensor, directions: Tensor) -> Tensor:
    """J p at points u for directions p, both (batch, d), in the shape of the image.

    Several times as fast as :func:`torch.func.jvp`, whose tensors take other ways through torch.
    """
    with dual_level():
        image = decode(forward_ad.make_dual(u, directions))
        value, tangent = forward_ad.unpack_dual(image)
        return torch.zeros_like(value) if tangent is None else tangent


@contextmanager
def dual_level() -> Iterator[None]:
    """Enter torch's level of forward differentiation, which threads share.

    A process has one such level, and leaving it deletes all tangents, so that with
    :func:`torch.autograd.forward_ad.dual_level` a second thread raises or loses its tangents. The
    level has no other effect on a thread: tensors carry the tangents. Therefore the first thread
    enters it and the last one leaves it. No thread waits for another, as with a lock around the
    computation.

    Raises:
        RuntimeError: This thread is inside already: torch has no nested levels.
    """
    thread = threading.get_ident()
    with _lock:
        if thread in _threads or not _threads:
            forward_ad.enter_dual_level()
        _threads.add(thread)
    try:
        yield
    finally:
        with _lock:
            _threads.remove(thread)
            if not _threads:
                forward_ad.exit_dual_level()
