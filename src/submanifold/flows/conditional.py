"""Flows that depend on a context: the class, or real variables, of each event."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from submanifold.common.errors import unexpected
from submanifold.flows.bijection import Bijection, Flow, full_precision
from submanifold.flows.context import Context

AnyFlow = TypeVar("AnyFlow", bound=Flow)

EMBEDDING_SIZE, HIDDEN, MASK_SCALE = 32, 64, 3.0
MAX_LOG_SCALE = 4.0


def values_of(context: Context | None, x: Tensor) -> Tensor:
    """Return the embedded values, (batch, size) in the dtype of x; UserError for other rows."""
    return _rows_of(None if context is None else context.values, x)


def noise_scale_of(context: Context | None, x: Tensor) -> Tensor:
    """Return the noise scale, (batch, 1) in the dtype of x; UserError for other rows."""
    if context is None or context.noise_scale is None:
        return x.new_zeros(x.shape[0], 1)
    return _rows_of(context.noise_scale, x)[:, None]


def _rows_of(part: Tensor | None, x: Tensor) -> Tensor:
    if part is None or part.shape[0] != x.shape[0]:
        got = "none" if part is None else f"{len(part)} rows"
        expected = f"one row for each of {len(x)} events"
        raise unexpected("context", expected, got, "Pass context=..., with as many rows as events")
    return part.to(x.dtype)


class ConditionalLayer(nn.Module):
    r"""Linear or convolutional layer with the context c as an input, :math:`W a + b + V c`.

    c is the embedding of ``size`` numbers, or, if ``size`` is None, the noise scale; without a
    context the scale is 0. At the start V = 0.
    """

    def __init__(self, layer: nn.Module, size: int | None = None):
        super().__init__()
        self.layer, self.size = layer, size
        inner: Any = layer.layer if isinstance(layer, ConditionalLayer) else layer
        shape = [] if size is None else [size]
        self.weight = nn.Parameter(torch.zeros(len(inner.weight), *shape))

    def forward(self, a: Tensor, context: Context | None) -> Tensor:
        """Apply the layer to (batch, ...)."""
        out = apply(self.layer, a, context)
        if self.size is None and context is None:
            return out
        with full_precision(a):
            if self.size is None:
                bias = noise_scale_of(context, a) * self.weight
            else:
                bias = F.linear(values_of(context, a).to(self.weight.dtype), self.weight)
        return out + bias.view(*bias.shape, *(1 for _ in out.shape[2:]))


def apply(net: Callable[..., Tensor], a: Tensor, context: Context | None) -> Tensor:
    """Apply a net, or a layer, to a; conditional layers also receive the context."""
    if isinstance(net, ConditionalLayer):
        return net(a, context)
    if not isinstance(net, nn.Sequential):
        return net(a)
    for layer in net:
        a = apply(layer, a, context)
    return a


class ContextAffine(Bijection):
    r"""Scale and shift of vectors that depend on the context, :math:`z = x\, e^{s(c)} + t(c)`.

    Both are linear in the embedding, and log-scales are bounded. It starts as the identity.
    """

    def __init__(self, dim: int, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2 * dim, size))

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._scale_and_shift(x, context)
        return x * log_scale.exp() + shift, log_scale.sum(1)

    def inverse(self, z: Tensor, context: Context | None = None) -> Tensor:
        log_scale, shift = self._scale_and_shift(z, context)
        return (z - shift) * (-log_scale).exp()

    def _scale_and_shift(self, x: Tensor, context: Context | None) -> tuple[Tensor, Tensor]:
        with full_precision(x):
            raw, shift = F.linear(values_of(context, x), self.weight).chunk(2, 1)
            return MAX_LOG_SCALE * torch.tanh(raw / MAX_LOG_SCALE), shift


class ConditionalLatents(Flow):
    r"""Flow whose context scales and shifts its latents, :math:`z = f(x)\, e^{s(c)} + t(c)`.

    f does not depend on the class, so that the density is computed for all classes with one pass
    through f (:func:`.class_log_probs`), and f(x) is a mixture of normal distributions with one
    component for each class, as in Izmailov et al. (2020). Subclasses implement :meth:`_forward`
    and :meth:`_inverse`, which are f and its inverse.
    """

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.of_context: ContextAffine | None = None

    def _forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _inverse(self, z: Tensor, context: Context | None = None) -> Tensor:
        raise NotImplementedError

    def add_context(self, size: int) -> None:
        self.of_context = ContextAffine(self.latent_dim, size)

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        z, log_det = self._forward(x, context)
        if self.of_context is None:
            return z, log_det
        z, of_context = self.of_context(z, context)
        return z, log_det + of_context

    def inverse(self, z: Tensor, context: Context | None = None) -> Tensor:
        z = z if self.of_context is None else self.of_context.inverse(z, context)
        return self._inverse(z, context)


class ContextEmbedding(nn.Module):
    """Embedding of a context: indicators of classes, or a perceptron of real variables.

    The context is integers from 0, (batch,), or standardized variables, (batch, columns); that of
    one event becomes ``size`` numbers. The first ``mask`` columns are indicators, which the
    perceptron does not receive: they are numbers of the embedding.
    """

    def __init__(self, classes: int | None = None, columns: int | None = None, mask: int = 0):
        super().__init__()
        if (classes is None) == (columns is None) or (classes or columns or 0) < 1:
            expected = "a positive number of classes or of columns"
            got = f"classes={classes}, columns={columns}"
            raise unexpected("context", expected, got, "Set one of them")
        self.classes, self.columns, self.mask = classes, columns, mask or None
        self.size = classes or mask
        if columns is not None and columns > mask:
            hidden = nn.Linear(columns - mask, HIDDEN)
            self.net = nn.Sequential(hidden, nn.SiLU(), nn.Linear(HIDDEN, EMBEDDING_SIZE))
            self.size += EMBEDDING_SIZE

    def forward(self, context: Tensor | None) -> Tensor:
        """Map the values of a context to (batch, size), or raise UserError if they are invalid."""
        if context is None:
            raise unexpected("context", "values", "a noise scale alone", "Pass Context(values)")
        is_float, expected = context.is_floating_point(), "integers of shape (batch,)"
        fits = context.ndim == 1 and not is_float and context.dtype != torch.bool
        if self.classes is None:
            expected = f"floats of shape (batch, {self.columns})"
            fits = context.shape[1:] == (self.columns,) and is_float
        if not fits:
            got = f"{context.dtype} of shape {tuple(context.shape)}"
            raise unexpected("context", expected, got, "Correct it")
        if self.classes is None:
            with full_precision(context):
                # a sum of this many steps of the optimizer should not be a large one
                mask = context[:, : self.mask or 0] / MASK_SCALE
                if not hasattr(self, "net"):
                    return mask
                others = context[:, self.mask or 0 :].to(next(self.net.parameters()))
                embedded = self.net(others) / EMBEDDING_SIZE**0.5
                return torch.cat([mask.to(embedded), embedded], 1) if self.mask else embedded
        # elsewhere the check would wait for the device
        if context.device.type == "cpu" and len(context):
            low, high = context.aminmax()
            if low < 0 or high >= self.classes:
                got = f"{int(low)} to {int(high)}"
                fix = "Correct them"
                raise unexpected("context", f"classes from 0 to {self.classes - 1}", got, fix)
        return F.one_hot(context.long(), self.classes).float()


def make_conditional(flow: AnyFlow, **context: int) -> AnyFlow:
    """Make an untrained flow depend on a context, in place; UserError if it cannot.

    Flows of images and affine ones scale and shift their latents; in others, networks receive an
    embedding of the context. The weights of the embedding start at 0, so that the flow starts as
    the unconditional one; flows of zuko use their own mechanism. ``context`` is the number of
    ``classes``, or of ``columns``, which should be standardized, and how many of these, the first
    ones, are indicators of a ``mask``.

    Example:
        >>> from submanifold.flows import RealNVP
        >>> flow = make_conditional(RealNVP(4), classes=3)
        >>> z, log_det = flow(torch.randn(2, 4), flow.embed(torch.tensor([0, 2])))
    """
    flow.embedding = ContextEmbedding(**context)
    flow.add_context(flow.embedding.size)
    return flow


def embedding_of(model: nn.Module) -> ContextEmbedding | None:
    """Return the embedding of a flow, or of the first conditional flow of a model, if any."""
    embeddings = (part for part in model.modules() if isinstance(part, ContextEmbedding))
    return next(embeddings, None)


def context_of(model: nn.Module) -> dict[str, int]:
    """Return the numbers of ``classes``, or ``columns`` and ``mask``, of a context, if any."""
    names = ("classes", "columns", "mask")
    sizes = {name: getattr(embedding_of(model), name, None) for name in names}
    return {name: size for name, size in sizes.items() if size is not None}
