"""Flows that depend on a context: the class, or real variables, of each event."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from submanifold.common.errors import UserError
from submanifold.flows.bijection import Bijection, Flow, full_precision

AnyFlow = TypeVar("AnyFlow", bound=Flow)

EMBEDDING_SIZE, HIDDEN = 32, 64
MAX_LOG_SCALE = 4.0
MISSING = (
    "context: expected one row for each event of a conditional model, got none. Pass context=..., "
    "or enter submanifold.flows.conditioning(model, context)."
)


_copies: ContextVar[int] = ContextVar("copies", default=1)


@contextmanager
def repeated_conditions(copies: int) -> Iterator[None]:
    """Repeat conditions for calls with copies of the conditioned batch, one after the other."""
    token = _copies.set(copies)
    try:
        yield
    finally:
        _copies.reset(token)


class Conditional(nn.Module):
    """Module with an input that is set before the call: the condition of each event, (batch, ...).

    One row is the condition of all events.
    """

    condition: Tensor | None = None

    def condition_of(self, x: Tensor) -> Tensor | None:
        """Return the condition of each event of x (n, ...), or None if it is not set."""
        condition = self.condition
        if condition is None or len(condition) == len(x):
            return condition
        copies = len(x) if len(condition) == 1 else _copies.get()
        if len(x) != copies * len(condition):
            raise UserError(
                f"context: expected one row for each of {len(x)} events, got {len(condition)} "
                "rows. Pass as many rows as events, or one row for all of them."
            )
        return condition.repeat(copies, *(1 for _ in condition.shape[1:]))


class ConditionalLayer(Conditional):
    r"""Linear or convolutional layer with the condition c as an input, :math:`W a + b + V c`.

    It starts as the unconditional layer, V = 0.

    Args:
        layer: The layer.
        shape: Shape of c for one event: (size,), or () for a number.
    """

    def __init__(self, layer: nn.Module, shape: tuple[int, ...]):
        super().__init__()
        self.layer = layer
        inner: Any = layer.layer if isinstance(layer, ConditionalLayer) else layer
        self.weight = nn.Parameter(torch.zeros(len(inner.weight), *shape))

    def forward(self, a: Tensor) -> Tensor:
        """Apply the layer to (batch, ...)."""
        out = self.layer(a)
        bias = self.bias_of(a)
        return out if bias is None else out + bias.view(*bias.shape, *(1 for _ in out.shape[2:]))

    def bias_of(self, a: Tensor) -> Tensor | None:
        """Compute V c of each event, (batch, outputs); None without a condition."""
        raise NotImplementedError


class ContextModule(Conditional):
    """Module whose condition is the embedding of the context."""

    def embedding_of(self, x: Tensor) -> Tensor:
        """Return the embedding for each event of x, (n, size), or raise UserError without one."""
        condition = self.condition_of(x)
        if condition is None:
            raise UserError(MISSING)
        return condition.to(x.dtype)


class ContextLayer(ContextModule, ConditionalLayer):
    """:class:`ConditionalLayer` that receives the embedding of the context."""

    def __init__(self, layer: nn.Module, size: int):
        super().__init__(layer, (size,))

    def bias_of(self, a: Tensor) -> Tensor:
        """See :meth:`ConditionalLayer.bias_of`; a missing context is an error."""
        with full_precision(a):
            return F.linear(self.embedding_of(a).to(self.weight.dtype), self.weight)


class ContextAffine(ContextModule, Bijection):
    r"""Scale and shift of vectors that depend on the context, :math:`z = x\, e^{s(c)} + t(c)`.

    Both are linear in the embedding, and log-scales are bounded. It starts as the identity.
    """

    def __init__(self, dim: int, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2 * dim, size))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Transform (batch, dim)."""
        log_scale, shift = self._scale_and_shift(x)
        return x * log_scale.exp() + shift, log_scale.sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        """Undo the transformation."""
        log_scale, shift = self._scale_and_shift(z)
        return (z - shift) * (-log_scale).exp()

    def _scale_and_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with full_precision(x):
            raw, shift = F.linear(self.embedding_of(x), self.weight).chunk(2, 1)
            return MAX_LOG_SCALE * torch.tanh(raw / MAX_LOG_SCALE), shift


class ConditionalLatents(Flow):
    r"""Flow whose context scales and shifts its latents, :math:`z = f(x)\, e^{s(c)} + t(c)`.

    f does not depend on the context, so that the density is computed for all classes with one pass
    through f, and f(x) is a mixture of normal distributions with one component for each class, as
    in Izmailov et al. (2020). Subclasses implement :meth:`latents` and :meth:`events`, which are f
    and its inverse.
    """

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.of_context: ContextAffine | None = None
        self.shares = False
        self.shared: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    def latents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute f(x) (batch, latent_dim) and its log-determinant (batch,)."""
        raise NotImplementedError

    def events(self, z: Tensor) -> Tensor:
        """Invert f."""
        raise NotImplementedError

    def add_context(self, size: int) -> None:
        """Scale and shift the latents (:meth:`.Flow.add_context`)."""
        self.of_context = ContextAffine(self.latent_dim, size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map events (batch, *event_shape) to latents (batch, latent_dim)."""
        if not self.shares:
            z, log_det = self.latents(x)
        else:
            if self.shared is None or self.shared[0] is not x:
                self.shared = x, self.latents(x)
            z, log_det = self.shared[1]
        if self.of_context is None:
            return z, log_det
        z, of_context = self.of_context(z)
        return z, log_det + of_context

    def inverse(self, z: Tensor) -> Tensor:
        """Map latents to events."""
        return self.events(z if self.of_context is None else self.of_context.inverse(z))


@contextmanager
def shared_latents(model: nn.Module) -> Iterator[None]:
    """Compute f of :class:`ConditionalLatents` once for several contexts of the same tensor x."""
    flows = [each for each in model.modules() if isinstance(each, ConditionalLatents)]
    for each in flows:
        each.shares = True
    try:
        yield
    finally:
        for each in flows:
            each.shares, each.shared = False, None


class ContextEmbedding(nn.Module):
    """Embedding of a context: indicators of classes, or a perceptron of real variables.

    Args:
        classes: Number of classes; the context is (batch,) integers from 0.
        columns: Number of variables, which should be standardized; the context is (batch, columns).

    Attributes:
        size: Numbers in the embedding of one event.
    """

    def __init__(self, classes: int | None = None, columns: int | None = None):
        super().__init__()
        if (classes is None) == (columns is None) or (classes or columns or 0) < 1:
            raise UserError(
                "context: expected a positive number of classes or of columns, got "
                f"classes={classes}, columns={columns}. Set one of them."
            )
        self.classes, self.columns = classes, columns
        self.size = classes or EMBEDDING_SIZE
        if columns is not None:
            hidden = nn.Linear(columns, HIDDEN)
            self.net = nn.Sequential(hidden, nn.SiLU(), nn.Linear(HIDDEN, EMBEDDING_SIZE))

    def forward(self, context: Tensor) -> Tensor:
        """Map a context to (batch, size), or raise UserError if it is invalid."""
        if self.classes is None:
            weight = next(self.net.parameters())
            if context.shape[1:] != (self.columns,) or not context.is_floating_point():
                self._refuse(context, f"floats of shape (batch, {self.columns})")
            with full_precision(weight):
                # a sum of this many steps of the optimizer should not be a large one
                return self.net(context.to(weight)) / EMBEDDING_SIZE**0.5
        if context.ndim != 1 or context.is_floating_point() or context.dtype == torch.bool:
            self._refuse(context, "integers of shape (batch,)")
        # elsewhere the check would wait for the device
        if context.device.type == "cpu" and len(context):
            low, high = context.aminmax()
            if low < 0 or high >= self.classes:
                raise UserError(
                    f"context: expected classes from 0 to {self.classes - 1}, got "
                    f"{int(low)} to {int(high)}. Correct them."
                )
        return F.one_hot(context.long(), self.classes).float()

    def _refuse(self, context: Tensor, expected: str) -> None:
        raise UserError(
            f"context: expected {expected}, got {context.dtype} of shape {tuple(context.shape)}. "
            "Correct it."
        )


def make_conditional(flow: AnyFlow, **context: int) -> AnyFlow:
    """Make an untrained flow depend on a context, in place.

    Flows of images and affine ones scale and shift their latents; in others, networks receive an
    embedding of the context. The weights of the embedding start at 0, so that the flow starts as
    the unconditional one; flows of zuko use their own mechanism.

    Args:
        flow: The flow.
        **context: Arguments of :class:`ContextEmbedding`: ``classes`` or ``columns``.

    Raises:
        UserError: The flow cannot depend on a context.
    """
    flow.embedding = ContextEmbedding(**context)
    flow.add_context(flow.embedding.size)
    flow.config = {**flow.config, "context": context}
    return flow


def embeddings_of(model: nn.Module) -> list[tuple[nn.Module, ContextEmbedding]]:
    """Find the conditional flows of a model, and their embeddings."""
    found = ((each, getattr(each, "embedding", None)) for each in model.modules())
    return [(flow, each) for flow, each in found if isinstance(each, ContextEmbedding)]


def is_conditional(model: nn.Module) -> bool:
    """Whether a flow or a model depends on a context."""
    return bool(embeddings_of(model))


def context_of(model: nn.Module) -> dict[str, int]:
    """Return the number of ``classes`` or ``columns`` of a model's context; empty without one."""
    for _, each in embeddings_of(model):
        return {"columns": each.columns} if each.classes is None else {"classes": each.classes}  # type: ignore[dict-item]
    return {}


@contextmanager
def conditioning(model: nn.Module, context: Tensor | None) -> Iterator[None]:
    """Condition a flow or a model on the context of each event, for all calls inside.

    Args:
        model: The flow or the model.
        context: Classes (batch,), or variables (batch, columns); one row holds for all events. None
            keeps the context of an outer call.

    Raises:
        UserError: The model has no context, or another one.

    Example:
        >>> from submanifold.flows import RealNVP, make_conditional
        >>> flow = make_conditional(RealNVP(4), classes=3)
        >>> with conditioning(flow, torch.tensor([0, 2])):
        ...     z, log_det = flow(torch.randn(2, 4))
    """
    if context is None:
        yield
        return
    flows = embeddings_of(model)
    if not flows:
        raise UserError(
            f"context: expected none for an unconditional model, got {context.dtype} of shape "
            f"{tuple(context.shape)}. Omit it, or train a model with data.condition."
        )
    held = [(each, embedding(context)) for flow, embedding in flows
            for each in flow.modules() if isinstance(each, ContextModule)]  # fmt: skip
    with holding(*zip(*held, strict=True)):
        yield


@contextmanager
def holding(modules: Iterable[Conditional], conditions: Iterable[Tensor | None]) -> Iterator[None]:
    """Set the condition of modules, and restore the one before at the end."""
    before = []
    for module, condition in zip(modules, conditions, strict=True):
        before.append((module, module.condition))
        module.condition = condition
    try:
        yield
    finally:
        for module, condition in reversed(before):
            module.condition = condition
