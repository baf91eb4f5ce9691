"""Base classes of flows, their composition, and data-dependent initialization."""

import inspect
import math
from collections.abc import Iterable, Sequence
from functools import wraps
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from submanifold.common.errors import UserError, unexpected
from submanifold.flows.context import Context, ContextLike, as_context


class Bijection(nn.Module):
    r"""Invertible, differentiable map f with a tractable Jacobian determinant.

    .. math:: \log p_X(x) = \log p_Z(f(x)) + \log|\det J_f(x)|

    Subclasses implement :meth:`forward` and :meth:`inverse`. The log-determinant is in nats and has
    the dtype of x, also under autocast. The context has a row for each event, as :meth:`Flow.embed`
    returns it; most bijections do not depend on it.
    """

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """Map x of shape (batch, ...) to (z, log|det J| of shape (batch,))."""
        raise NotImplementedError

    def inverse(self, z: Tensor, context: Context | None = None) -> Tensor:
        """Map z back to x."""
        raise NotImplementedError


class Flow(Bijection):
    """Bijection from events of a fixed shape to flat latents, which is built by its name.

    The first argument of the constructor is the shape of an image, or the number of coordinates of
    a vector. The other arguments, with their annotations and defaults, are the flow's settings
    (:mod:`submanifold.flows.registry`), and all of them its entry in a model file.

    Attributes:
        axes: Allowed numbers of axes of an event: 3 for images, 1 for vectors.
        event_shape: Shape of an event: (channels, height, width), or (D,).
        arguments: The arguments of the constructor, with its defaults, as JSON.
        takes_noise_scale: Whether the flow depends on the scale of the noise in its input.
    """

    axes: ClassVar[tuple[int, ...]]
    takes_noise_scale: ClassVar[bool] = False
    event_shape: tuple[int, ...]
    arguments: dict[str, Any]

    def __init_subclass__(cls) -> None:
        """Let the constructor record its arguments."""
        super().__init_subclass__()
        constructor = cls.__init__
        signature = inspect.signature(constructor)

        @wraps(constructor)
        def record(self: Flow, *args: Any, **settings: Any) -> None:
            if type(self) is cls:
                bound = signature.bind(self, *args, **settings)
                bound.apply_defaults()
                _, *pairs = bound.arguments.items()
                self.arguments = {
                    name: list(value) if isinstance(value, tuple) else value
                    for name, value in pairs
                }
            constructor(self, *args, **settings)

        cls.__init__ = record  # type: ignore[method-assign, assignment]

    @property
    def latent_dim(self) -> int:
        """Number of latents."""
        return math.prod(self.event_shape)

    def embed(self, context: ContextLike) -> Context | None:
        """Map the context of a model to that of this flow's layers; None if they need none.

        That of layers is the embedding of the values (:func:`.make_conditional`), floats
        (batch, size), and the noise scale, by default 0, as the flow needs.
        """
        embedding: Any = getattr(self, "embedding", None)
        context = as_context(context)
        if context is None or not (embedding or self.takes_noise_scale):
            return None
        values, scale = context.values, None
        if embedding:
            values = embedding(values)
        elif values is not None:
            expected = "a noise scale alone, for an unconditional flow"
            raise unexpected("context", expected, f"values {_described(values)}", "Omit them")
        if self.takes_noise_scale:
            scale = context.noise_scale
            if scale is None:
                scale = torch.zeros(len(context), device=context.values.device)  # type: ignore[union-attr]
            _check_noise_scale(scale)
        return Context(values, scale)

    def add_context(self, size: int) -> None:
        """Add inputs for an embedding of ``size`` numbers (:func:`.make_conditional`)."""
        parts: list[Any] = [
            module
            for module in self.modules()
            if module is not self and hasattr(module, "add_context")
        ]
        if not parts:
            raise UserError(
                f"flow: expected a flow that can depend on a context, got "
                f"{type(self).__name__.lower()}. Use glow, realnvp, affine, gaussianization, "
                "tabular, zuko, trumpet or autoencoder, or omit data.condition."
            )
        for module in parts:
            module.add_context(size)


def _check_noise_scale(scale: Tensor) -> None:
    """Raise :class:`UserError` for noise scales outside of [0, 1]."""
    # elsewhere the check would wait for the device
    if scale.device.type != "cpu" or not len(scale):
        return
    low, high = scale.aminmax()
    if not (low >= 0 and high <= 1):
        got = f"{low.item():g} to {high.item():g}"
        raise unexpected("context.noise_scale", "0 to 1", got, "Correct it, or omit it")


def _described(values: Tensor) -> str:
    return f"{values.dtype} of shape {tuple(values.shape)}"


class Injection(Flow):
    r"""Injective map g from d latents to events, and a left inverse e, :math:`e(g(u)) = u`.

    :meth:`inverse` is g, whose image is a d-dimensional manifold; :meth:`forward` is e, possibly
    only as far as training achieves it. The density is with respect to the manifold's volume:

    .. math:: \log p_M(g(u)) = \log p_U(u) - \tfrac12 \log\det J_g^T J_g

    The log-determinant of :meth:`forward` is the second term, at u = e(x), or NaN if ``has_volume``
    is False. The constructor's first two arguments are ``event_shape`` and ``dim``, d.
    """

    has_volume: ClassVar[bool]
    dim: int

    @property
    def latent_dim(self) -> int:
        """Dimension d of the manifold."""
        return self.dim


class Compose(Bijection):
    r"""Composition :math:`f_n \circ \dots \circ f_1`; the log-determinants add up."""

    def __init__(self, bijections: Iterable[Bijection]):
        super().__init__()
        self.bijections: Sequence[Bijection] = nn.ModuleList(bijections)  # type: ignore[assignment]

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(x.shape[0])
        for bijection in self.bijections:
            x, ld = bijection(x, context)
            log_det = log_det + ld
        return x, log_det

    def inverse(self, z: Tensor, context: Context | None = None) -> Tensor:
        for bijection in reversed(self.bijections):
            z = bijection.inverse(z, context)
        return z


class DataInitialized(nn.Module):
    """Module that can set its parameters from a batch; see :func:`initialize`."""

    uninitialized = False  #: Whether the next call initializes the module from its input.

    def initialize_from(self, x: Tensor) -> None:
        """Set the parameters from a batch x of the module's inputs."""
        raise NotImplementedError

    def __call__(self, x: Tensor, *arguments: Any, **named: Any) -> Any:
        """Call :meth:`forward`, after :meth:`initialize_from` if the module is uninitialized."""
        if self.uninitialized:
            self.uninitialized = False
            with torch.no_grad():
                self.initialize_from(x)
        return super().__call__(x, *arguments, **named)


@torch.no_grad()
def initialize(
    model: nn.Module,
    batch: Tensor,
    modules: Iterable[nn.Module] | None = None,
    context: Context | None = None,
) -> None:
    """Initialize the layers of a model, or of some of its modules, from one batch of its inputs.

    This is data-dependent initialization (Kingma & Dhariwal 2018, section 3.1).

    Example:
        >>> from submanifold.flows import ActNorm
        >>> flow = ActNorm(2)
        >>> initialize(flow, torch.tensor([[0.0, 1.0], [4.0, 1.5]]))
        >>> flow.shift.tolist(), flow.log_scale.exp().tolist()
        ([2.0, 1.25], [0.5, 4.0])
    """
    for part in [model] if modules is None else modules:
        for module in part.modules():
            if isinstance(module, DataInitialized):
                module.uninitialized = True
    model(batch) if context is None else model(batch, context)


def full_precision(x: Tensor) -> torch.autocast:
    """Disable autocast: rounding errors of latents and log-determinants change the density."""
    return torch.autocast(x.device.type, enabled=False)
