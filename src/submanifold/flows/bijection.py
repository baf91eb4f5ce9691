"""The interface that every flow has, and the composition of flows."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Bijection(nn.Module):
    r"""An invertible, differentiable map with a tractable Jacobian determinant.

    A density moves through it by the change of variables

    .. math:: \log p_X(x) = \log p_Z(f(x)) + \log|\det J_f(x)|.

    Subclasses define :meth:`forward` and :meth:`inverse`. The log-determinant is in nats, has shape
    (batch,) and keeps the latent's precision, whatever the autocast.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x of shape (batch, ...) to (z, log|det J| of shape (batch,))."""
        raise NotImplementedError

    def inverse(self, z: Tensor) -> Tensor:
        """Map z back to x."""
        raise NotImplementedError

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Call :meth:`forward`; written out for its type."""
        return super().__call__(x)


class Flow(Bijection):
    """A bijection from events of a fixed shape to flat latents, which can be rebuilt by name.

    The first argument of its constructor says what it acts on: the shape of an image, or the count
    of a vector's numbers. The others, with their types and defaults, are its settings.

    Attributes:
        axes: How many axes an event may have: 3 for images, 1 for vectors.
        event_shape: The shape of one event, such as (3, 32, 32) or (500,).
        config: The arguments that rebuild it: ``type(flow)(**flow.config)``.
    """

    axes: ClassVar[tuple[int, ...]]
    event_shape: tuple[int, ...]
    config: dict[str, Any]

    @property
    def latent_dim(self) -> int:
        """The count of its latents."""
        return math.prod(self.event_shape)


class Injection(Flow):
    r"""An injective map g from d numbers to events, with a left inverse, in a bijection's place.

    :meth:`inverse` is g, whose image is a manifold of dimension d, and :meth:`forward` the left
    inverse e, :math:`e(g(u)) = u`, or what is trained to be one. There is a density on the manifold
    alone, with respect to its own volume, and none on all of space:

    .. math:: \log p_M(g(u)) = \log p_U(u) - \tfrac12 \log\det J_g^T J_g

    The second term, at u = e(x), is what :meth:`forward` returns as the log-determinant; it is not
    a number where ``has_volume`` is False.

    The first two arguments of its constructor are ``event_shape`` and ``dim``, the others, with
    their types and defaults, its settings.

    Attributes:
        dim: d.
        has_volume: Whether the second term has a closed form.
    """

    has_volume: ClassVar[bool]
    dim: int

    @property
    def latent_dim(self) -> int:
        """The manifold's dimension, d."""
        return self.dim


class Compose(Bijection):
    r"""The composition :math:`f_n \circ \dots \circ f_1`; log-determinants add up."""

    def __init__(self, bijections: Iterable[Bijection]):
        super().__init__()
        self.bijections: Sequence[Bijection] = nn.ModuleList(bijections)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the bijections in order."""
        log_det = x.new_zeros(len(x))
        for bijection in self.bijections:
            x, ld = bijection(x)
            log_det = log_det + ld
        return x, log_det

    def inverse(self, z: Tensor) -> Tensor:
        """Undo the bijections in the opposite order."""
        for bijection in reversed(self.bijections):
            z = bijection.inverse(z)
        return z


@contextmanager
def full_precision(x: Tensor) -> Iterator[None]:
    """Keep what happens inside in x's own precision under an outer autocast.

    An error in a latent or a log-determinant is an error of the density, where one in a coupling
    net only makes a slightly different net.
    """
    with torch.autocast(x.device.type, enabled=False):
        yield
