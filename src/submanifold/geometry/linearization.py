"""Derivatives of a decoder by automatic differentiation: Jacobians and products with them.

A decoder is a function from coordinates (batch, d) to events (batch, *event_shape) that maps each
point of the batch independently of the others. With a context, it receives that of its points as
the keyword argument ``context``.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.autograd import forward_ad

from submanifold.flows.context import Context

_lock = threading.Lock()
_threads: set[int] = set()  # threads inside dual_level


class Linearization:
    r"""Products with the Jacobian :math:`J = \partial g(u)` of a decoder g at points u (batch, d).

    The Jacobian itself is never formed; ``image`` is g(u).

    Example:
        >>> at = Linearization(lambda u: u**2, torch.tensor([[1.0, 3.0]]))
        >>> at.jvp(torch.ones(1, 2)), at.vjp(torch.ones(1, 2))
        (tensor([[2., 6.]]), tensor([[2., 6.]]))
    """

    def __init__(self, decode: Callable[[Tensor], Tensor], u: Tensor):
        self.decode = decode
        self.u = u.detach().requires_grad_()
        with torch.enable_grad():
            self._image = decode(self.u)
        self.image = self._image.detach()

    def jvp(self, directions: Tensor) -> Tensor:
        """Compute J p, in the shape of the image, for one direction p (batch, d) at each point."""
        with torch.no_grad():
            return jvp(self.decode, self.u.detach(), directions)

    def vjp(self, weights: Tensor) -> Tensor:
        """Compute J^T w, (batch, d), for weights w in the shape of the image."""
        (gradient,) = torch.autograd.grad(self._image, self.u, weights, retain_graph=True)
        return gradient


def jvp(decode: Callable[[Tensor], Tensor], u: Tensor, directions: Tensor) -> Tensor:
    """Compute J p at points u for directions p, both (batch, d), in the shape of the image.

    The result is differentiable with respect to u and the decoder's weights. It is several times
    faster than :func:`torch.func.jvp`, which wraps tensors and thereby bypasses fused kernels.
    """
    with dual_level():
        image, tangent = forward_ad.unpack_dual(decode(forward_ad.make_dual(u, directions)))
        return torch.zeros_like(image) if tangent is None else tangent


def jacobian(
    decode: Callable[..., Tensor],
    u: Tensor,
    directions: Tensor | None = None,
    batch_size: int | None = None,
    context: Context | None = None,
) -> Tensor:
    r"""Compute the Jacobian of a decoder, or its products with k directions, by forward mode.

    At points u (batch, d) and directions (batch, k, d), by default the coordinate axes, it is
    (batch, D, k), D the number of elements of an event, and differentiable with respect to u and
    the decoder's weights. ``batch_size`` is the largest number of points that are decoded at once.

    Example:
        >>> jacobian(lambda u: torch.cat([u, u**2], 1), torch.tensor([[3.0]]))
        tensor([[[1.],
                 [6.]]])
    """
    batch, dim = u.shape
    if directions is None:
        directions = torch.eye(dim, device=u.device).expand(batch, -1, -1)
    count = directions.shape[1] if batch_size is None else max(1, batch_size // max(1, batch))
    columns = []
    with torch.autocast(u.device.type, enabled=False):
        for chosen in directions.to(u.dtype).transpose(0, 1).split(count):
            at, of_all = u.repeat(len(chosen), 1), chosen.flatten(0, 1)
            tangents = jvp(bind_context(decode, repeat(context, len(at))), at, of_all)
            columns.append(tangents.flatten(1).unflatten(0, (len(chosen), batch)))
    return torch.cat(columns).permute(1, 2, 0)


def repeat(context: Context | None, count: int) -> Context | None:
    """Repeat the context of a batch for ``count`` events, copies of the batch."""
    if context is None or not len(context):
        return context
    return context.repeat(count // len(context))


def bind_context(
    decode: Callable[..., Tensor], context: Context | None, rows: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """Bind a decoder to the context, or to some of its rows, if there is one."""
    if context is None:
        return decode
    return partial(decode, context=context if rows is None else context.rows(rows))


@contextmanager
def dual_level() -> Iterator[None]:
    """Enter torch's level of forward-mode differentiation, which all threads share.

    Leaving it deletes the tangents of all threads, so the first thread enters it and the last one
    leaves it. A thread that is already inside raises RuntimeError: torch does not nest levels.
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
