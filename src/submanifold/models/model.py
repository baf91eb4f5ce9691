"""The interface of a model: a manifold and a density."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args

import torch
from torch import Tensor, nn

from submanifold.common.device import choose_device, choose_precision
from submanifold.common.errors import UserError, unexpected
from submanifold.flows.conditional import embedding_of
from submanifold.flows.context import Context, ContextLike, as_context
from submanifold.flows.softflow import is_noise_conditional
from submanifold.geometry.nearest import Nearest, gauss_newton, nearest_point
from submanifold.models.defensive import DefensiveComponent
from submanifold.models.io import build, describe, limited_parameters, load_tensors, save_tensors
from submanifold.models.neighbors import Neighbors

FORMAT = 4  #: Version of model files; raise it with every change of what :func:`.describe` returns.
FACTS = ("notes", "data", "calibration")  #: What the header of a file says about its model.

GRADIENTS, NEAREST_GRADIENTS = 4, 16  #: Gradients of the default and of the nearest projection.
GAUSS_NEWTON_DIM = 8  #: Up to this d, nearest projections of vectors are by Gauss-Newton steps.
GAUSS_NEWTON_STEPS = 12

ProjectionKind = Literal["encoder", "default", "nearest"]
Values = TypeVar("Values")


def bits_per_dim(log_prob: Values, dim: int, bits: int = 0) -> Values:
    r"""Compute :math:`b - \log p(x) / (D \log 2)`, the negative log-density in bits per dimension.

    Log-densities are in nats per event, a tensor or an array; D (``dim``) is the number of elements
    of an event, and b (``bits``) the number of bits to which they were quantized, if they are
    scaled to an interval of length 1. The result is an upper bound on the bits that encode them.
    """
    return bits - log_prob / (dim * math.log(2))  # type: ignore[operator, return-value]


class Model(nn.Module, ABC):
    """A manifold of dimension d in R^D, and an exact density on R^D or on the manifold.

    The methods of a conditional model need the ``context`` of each event: classes (batch,), or
    standardized variables (batch, columns), or these with a noise scale (:class:`.Context`). Images
    are floats (batch, channels, height, width) in [-0.5, 0.5), as
    :func:`submanifold.data.dequantize` returns them; vectors are (batch, D). All methods raise
    :class:`UserError` for tensors of a wrong shape or dtype, and for a missing or superfluous
    context. A model has no other state than its weights, so that threads can share it. Facts about
    it, its :attr:`data`, :attr:`calibration` and :attr:`notes`, are JSON-serializable and stored in
    its file. They do not change; :meth:`with_facts` returns a model with other ones.

    Attributes have the names of the constructor's arguments, from which files are rebuilt.

    Attributes:
        kind: Name of the class in model files.
        event_shape: Shape of one event.
        event_dim: D, the number of elements of an event.
        dim: Dimension d of the manifold.
        has_density: Whether the density is on R^D; otherwise it is on the manifold.
        defensive: The second component of a density on R^D, which bounds it far from the data, if
            any.
        neighbors: Rows of the training, whose distance is a score of cross-fitted models of tables.
    """

    kind: ClassVar[str]
    parts: ClassVar[dict[str, Any]]

    def __init__(
        self,
        event_shape: tuple[int, ...],
        dim: int,
        has_density: bool,
        defensive: DefensiveComponent | None = None,
        neighbors: Neighbors | None = None,
    ) -> None:
        super().__init__()
        self.defensive, self.neighbors = defensive, neighbors
        self.event_shape, self.event_dim = event_shape, math.prod(event_shape)
        self.dim, self.has_density = dim, has_density
        self._facts: dict[str, dict[str, Any]] = {name: {} for name in FACTS}

    def __call__(self, x: Tensor, context: ContextLike = None) -> tuple[Tensor, Tensor, Tensor]:
        """Call :meth:`forward` after a check of the context; the density is the mixture's."""
        context = self._checked_context(context)
        u, v, log_prob = super().__call__(x, context)
        if self.defensive is not None:
            log_prob = self.defensive.mix(log_prob, x, context)
        return u, v, log_prob

    @property
    def data(self) -> Mapping[str, Any]:
        """The training data, for preprocessing others; empty if unknown.

        Of images ``size``, ``channels``, ``crop``, ``value_range`` and ``bits``; of a table the
        preprocessors of its columns and of the ``condition``.
        """
        return MappingProxyType(self._facts["data"])

    @property
    def calibration(self) -> Mapping[str, Any]:
        """Quantiles of anomaly scores on held-out data, from which p-values are computed.

        See :class:`submanifold.evaluation.calibration.Calibration`. Without a calibration it is
        empty or contains the reason as ``why``.
        """
        return MappingProxyType(self._facts["calibration"])

    @property
    def notes(self) -> Mapping[str, Any]:
        """Notes, such as on the training."""
        return MappingProxyType(self._facts["notes"])

    def with_facts(
        self,
        *,
        data: Mapping[str, Any] | None = None,
        calibration: Mapping[str, Any] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return a model with the same weights and other facts; None leaves those of this one.

        Example:
            >>> model = Hierarchy([Stage(RealNVP(64), dim=4)])
            >>> described = model.with_facts(notes={"author": "A. Noether"})
            >>> described.notes["author"], dict(model.notes)
            ('A. Noether', {})
        """
        model, given = copy.copy(self), {"data": data, "calibration": calibration, "notes": notes}
        model._modules = dict(self._modules)  # so that a new module of one is none of the other
        model._facts = self._facts | {
            name: dict(fact) for name, fact in given.items() if fact is not None
        }
        return model

    @abstractmethod
    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Encode x (batch, *event_shape) and compute the flow's log-density in one pass.

        Returns:
            u (batch, d) on the manifold, v (batch, D - d) off the manifold, and log p(x) (batch,)
            in nats. Behind an injection, v lacks the coordinates off its image, and the density is
            that on the manifold at the projection of x, or NaN if unknown.
        """

    def decode(self, u: Tensor, v: Tensor | None = None, context: ContextLike = None) -> Tensor:
        """Map (u, v) to events; v = 0, a point on the manifold, by default (Alg. 2)."""
        return self._decode(u, v, self._checked_context(context))

    @abstractmethod
    def _decode(self, u: Tensor, v: Tensor | None = None, context: Context | None = None) -> Tensor:
        """Compute :meth:`decode` for a context that a caller has checked."""

    @property
    @abstractmethod
    def dims(self) -> list[int]:
        """Dimensions from the data space to the manifold, D to d."""

    @property
    @abstractmethod
    def code_dims(self) -> tuple[int, int]:
        """Number of columns of u and of v."""

    @property
    def members(self) -> Sequence["Model"]:
        """The models whose mean log-density is a score: this one."""
        return [self]

    @property
    def eigenvalues(self) -> Tensor | None:
        """An estimate of the diagonal of E[J^T J] of the decoder, (d,); None if unknown."""
        return None

    def log_prob(self, x: Tensor, context: ContextLike = None) -> Tensor:
        """Compute the exact log-density of x in nats, (batch,), if there is one on R^D."""
        if not self.has_density:
            expected = "a model with a density on R^D"
            got = "one with an injection and a density on the manifold"
            raise unexpected("log_prob", expected, got, "Use submanifold.models.manifold_density")
        return self(x, context)[2]

    def coordinates(self, u: Tensor) -> Tensor:
        """Return the continuous coordinates among the columns of u, (batch, d)."""
        return u

    def overlap(self, u: Tensor, context: Context | None = None) -> Tensor:
        """Log of the factor by which charts change the density at u, (batch,): 0 without charts."""
        return u.new_zeros(u.shape[0])

    @abstractmethod
    def code_log_prob(self, u: Tensor, context: Context | None = None) -> Tensor:
        """Log-density of codes of samples: that on the manifold plus the log volume, (batch,)."""

    def bits_per_dim(self, x: Tensor, context: ContextLike = None) -> Tensor:
        """Compute :func:`bits_per_dim` of x, (batch,); see :meth:`to_bits_per_dim`."""
        return self.to_bits_per_dim(self.log_prob(x, context))

    def to_bits_per_dim(self, log_prob: Tensor) -> Tensor:
        """Convert nats per event to bits per dimension, of the manifold if the density is on it.

        Elements of images were quantized to 8 bits, those of vectors were not.
        """
        if not self.has_density:
            return bits_per_dim(log_prob, self.dim)
        return bits_per_dim(log_prob, self.event_dim, 8 if len(self.event_shape) == 3 else 0)

    def encode(
        self, x: Tensor, projection: ProjectionKind = "encoder", context: ContextLike = None
    ) -> tuple[Tensor, Tensor]:
        """Map x to coordinates (u, v) that decode to x; ``project(x)`` has another u.

        ``projection`` chooses u (batch, d) on the manifold: that of the ``encoder``, or of the
        ``default`` or the ``nearest`` projection (:meth:`project`), with which (u, v) does not
        decode to x. v (batch, D - d) is always the encoder's.
        """
        if projection not in get_args(ProjectionKind):
            raise unexpected("projection", "encoder, default or nearest", projection)
        context = self._checked_context(context)
        u, v, _ = self(x, context)
        if projection == "encoder":
            return u, v
        return self._project(x, projection == "nearest", context).u, v

    def encoder_projection(self, x: Tensor, context: ContextLike = None) -> Tensor:
        """Encode x and decode u with v = 0, the projection of the paper (section 4.1).

        It is differentiable, and fast, but not the nearest point of the manifold. For samples and
        other points of the manifold, all projections are equal.
        """
        return self.decode(self.encode(x, context=context)[0], context=context)

    def project(self, x: Tensor, nearest: bool = False, context: ContextLike = None) -> Tensor:
        """Project x onto the manifold, in the shape of x; not ``decode(encode(x)[0])``.

        The default projection improves the :meth:`encoder_projection` by four gradients, in three
        to five times its time (:func:`submanifold.geometry.nearest.nearest_point`). With
        ``nearest``, sixteen gradients search the nearest projection, in about 16 times the time; of
        vectors up to d = 8 Gauss-Newton steps find it. The squared error is never larger than that
        of the encoder projection, but may be that of a local minimum. The result has no derivative.
        """
        return self._project(x, nearest, self._checked_context(context)).image

    def sample(
        self,
        n: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        context: ContextLike = None,
    ) -> Tensor:
        """Draw n events on the manifold: u ~ N(0, temperature^2 I), v = 0 (Alg. 1 and 2).

        If the manifold is R^D, they are draws from the density, with the :attr:`defensive`
        component. The generator is on the CPU, so that all devices draw the same.
        """
        context = self._checked_context(context)
        with torch.no_grad():
            codes = self._draw_codes(n, temperature, generator, context)
            events = self.decode(codes.to(next(self.parameters()).device), context=context)
            if self.defensive is None or self.dim < self.event_dim:
                return events
            return self.defensive.replace(events, temperature, generator)

    @abstractmethod
    def _draw_codes(
        self, n: int, temperature: float, generator: torch.Generator | None, context: Context | None
    ) -> Tensor:
        """Draw the codes of :meth:`sample`."""

    def describe(self) -> dict[str, Any]:
        """Summarize kind, architecture, number of parameters, notes and data, JSON-serializable."""
        parameters = sum(p.numel() for p in self.parameters())
        return {
            "model": self.kind,
            **describe(self),
            "parameters": parameters,
            "notes": self._facts["notes"],
            "data": self._facts["data"],
        }

    def save(self, path: str | Path) -> None:
        """Write the model to a safetensors file, atomically."""
        header = {"format": FORMAT, "model": self.kind, "config": describe(self)}
        header |= self._facts
        save_tensors(self.state_dict(), Path(path), header)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Load a model that :meth:`save` wrote, in evaluation mode.

        Raises:
            UserError: There is no such device or file, or the file is damaged, or holds another
                kind of model or an architecture that this version does not have.
        """
        target, path = choose_device(str(device)), Path(path)
        if not path.is_file():
            raise UserError(
                f"{path}: no such file. Pass a file of Model.save; `submanifold runs NAME` prints "
                "the path of a run's model."
            )
        try:
            tensors, header = load_tensors(path)
            if header.get("format") != FORMAT:
                raise ValueError(
                    f"format {header.get('format', 1)} instead of {FORMAT}: train the model again, "
                    "or use the version that wrote it"
                )
            facts = {name: dict(header[name]) for name in FACTS}
            kinds = {kind.kind: kind for kind in Model.__subclasses__()}
            shapes = {name: t.shape for name, t in tensors.items()}
            most = 10 * sum(1 + t.numel() for t in tensors.values())  # they may be registered again
            for device in ("meta", "cpu"):  # on the first they take no memory
                with torch.device(device), torch.random.fork_rng(()), limited_parameters(most):
                    model = build(kinds[header["model"]], header["config"])
                if shapes != {name: t.shape for name, t in model.state_dict().items()}:
                    raise ValueError("tensors whose names or shapes do not match the config")
        except Exception as error:  # a forged config raises any
            reason = " ".join(str(error).split()).removesuffix(".")
            fix = "Pass a file written by Model.save, such as the hierarchy.safetensors of a run"
            raise unexpected(path, "a model that this version can build", reason, fix) from error
        if not isinstance(model, cls):
            raise UserError(f"{path}: expected a {cls.kind}, got a {model.kind}. Use Model.load.")
        model.to(next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32))
        model.load_state_dict(tensors)
        return model.with_facts(**facts).to(target).eval()

    @torch.no_grad()
    def _project(self, x: Tensor, nearest: bool, context: Context | None) -> Nearest:
        u = self._coordinates_of(x, context)
        is_image = len(self.event_shape) == 3
        if nearest and self.dim <= GAUSS_NEWTON_DIM and not is_image:
            return gauss_newton(self._decode, x, u, GAUSS_NEWTON_STEPS, context)
        gradients, precision = NEAREST_GRADIENTS if nearest else GRADIENTS, None
        if not nearest and is_image:
            precision = choose_precision("auto", u)
        return nearest_point(self._decode, x, u, gradients, self.eigenvalues, precision, context)

    def _coordinates_of(self, x: Tensor, context: Context | None) -> Tensor:
        return self.forward(x, context)[0]

    def _checked_context(self, context: ContextLike) -> Context | None:
        """Return a context; raise :class:`UserError` for one, or a part, that no flow would use."""
        context = as_context(context)
        if context is None or is_noise_conditional(self):
            return context  # flows check the rest
        embedding = embedding_of(self)
        if embedding is None:
            fix = "Omit it, or train a model with data.condition"
            raise unexpected("context", "none for an unconditional model", "one", fix)
        if context.noise_scale is not None:
            fix = "Omit it, or use a noise-conditional flow"
            raise unexpected("context.noise_scale", "none for this model", "one", fix)
        embedding(context.values)
        return context

    def _check(self, **tensors: Tensor | None) -> None:
        """Raise UserError for a wrong shape or dtype of x, u or v, without reading values."""
        shapes = {"x": self.event_shape, "u": self.code_dims[:1], "v": self.code_dims[1:]}
        weight = next(self.parameters(), None)
        for name, tensor in tensors.items():
            if tensor is None:
                continue
            dtype = tensor.dtype if weight is None else weight.dtype  # a flow may have no weights
            if tensor.shape[1:] == shapes[name] and tensor.dtype == dtype:
                continue
            fix = f" Convert it with torch.as_tensor({name}, dtype={dtype})."
            if tensor.dtype == torch.uint8:
                fix = f" Convert bytes with submanifold.data.dequantize({name})."
            shape = ", ".join(map(str, ("batch", *shapes[name])))
            raise UserError(
                f"{name}: expected {dtype} of shape ({shape}), got {tensor.dtype} of shape "
                f"{tuple(tensor.shape)}.{'' if tensor.dtype == dtype else fix}"
            )
