"""The interface of a model: a manifold and a density."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from submanifold.common.device import choose_device, choose_precision
from submanifold.common.errors import UserError
from submanifold.flows.bijection import Context
from submanifold.flows.conditional import embedding_of
from submanifold.flows.softflow import is_noise_conditional
from submanifold.geometry.nearest import Nearest, gauss_newton, nearest_point
from submanifold.models.io import FORMAT, GAUSSIAN, describe, load_model, save_tensors
from submanifold.models.stage import standard_normal_log_prob

GRADIENTS, NEAREST_GRADIENTS = 4, 16
"""Gradients of the default and of the nearest projection."""
FEW, GAUSS_NEWTON_STEPS = 8, 12
"""Largest dimension of nearest projections by Gauss-Newton steps, and number of these steps."""

ProjectionKind = Literal["encoder", "default", "nearest"]
Values = TypeVar("Values")


def bits_per_dim(log_prob: Values, dim: int, bits: int = 0) -> Values:
    r"""Compute :math:`b - \log p(x) / (D \log 2)`, the negative log-density in bits per dimension.

    Args:
        log_prob: Log-densities in nats per event, a tensor or an array.
        dim: D, the number of elements of an event.
        bits: b, the number of bits to which the elements were quantized, if they are scaled to an
            interval of length 1. The result is an upper bound on the bits that encode them.
    """
    return bits - log_prob / (dim * math.log(2))  # type: ignore[operator, return-value]


class Model(nn.Module, ABC):
    """A manifold of dimension d in R^D, and an exact density on R^D or on the manifold.

    Subclasses define ``kind``, by which they are registered, and the abstract members; attributes
    have the names of the constructor's arguments, from which files are rebuilt. The methods
    of a conditional model need the ``context`` of each event: classes (batch,), or standardized
    variables (batch, columns), to which :func:`.with_noise_scale` appends a noise scale. Images are
    floats (batch, channels, height, width) in [-0.5, 0.5), as :func:`submanifold.data.dequantize`
    returns them; vectors are (batch, D). All methods raise :class:`UserError` for tensors of a
    wrong shape or dtype, and for a missing or superfluous context. A model has no other state than
    its weights, so that threads can share it.

    Args:
        event_shape: Shape of one event.
        dim: Dimension d of the manifold.
        dims: Dimensions from the data space to the manifold; (D, d) by default.
        code_dims: Number of columns of u and of v; (d, D - d) by default.
        has_density: Whether the density is on R^D; otherwise it is on the manifold.

    Attributes:
        kind: Name of the class in model files.
        event_dim: D, the number of elements of an event.
        notes: JSON-serializable notes, such as on the training.
        data: JSON-serializable description of the training data, for preprocessing other images:
            ``size``, ``channels``, ``crop``, ``value_range`` and ``bits``. Empty if unknown.
        calibration: JSON-serializable quantiles of anomaly scores on held-out data
            (:class:`submanifold.evaluation.calibration.Calibration`). Without a calibration it is
            empty or contains the reason as ``why``.
        gaussian: Tensors of a Gaussian with the covariance of the training data, for restoration
            (:class:`submanifold.evaluation.gaussian.Gaussian`). Empty without one.
    """

    kinds: ClassVar[dict[str, type["Model"]]] = {}
    kind: ClassVar[str]

    def __init_subclass__(cls) -> None:
        """Register the class for :meth:`load`."""
        Model.kinds[cls.kind] = cls

    def __init__(
        self,
        event_shape: tuple[int, ...],
        dim: int,
        dims: Sequence[int] | None = None,
        code_dims: tuple[int, int] | None = None,
        has_density: bool = True,
    ) -> None:
        super().__init__()
        self.event_shape, self.event_dim, self.dim = event_shape, math.prod(event_shape), dim
        self.dims = [self.event_dim, dim] if dims is None else list(dims)
        self.code_dims = (dim, self.event_dim - dim) if code_dims is None else code_dims
        self.has_density = has_density
        self.notes: dict[str, Any] = {}
        self.data: dict[str, Any] = {}
        self.calibration: dict[str, Any] = {}
        self.gaussian: dict[str, Tensor] = {}

    def __call__(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor, Tensor]:
        """Call :meth:`forward`, after a check of the context."""
        self._check_context(context)
        return super().__call__(x, context)

    @abstractmethod
    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor, Tensor]:
        """Encode x (batch, *event_shape) and compute its log-density in one pass.

        Returns:
            u (batch, d) on the manifold, v (batch, D - d) off the manifold, and log p(x) (batch,)
            in nats. Behind an injection, v lacks the coordinates off its image, and the density is
            that on the manifold at the projection of x, or NaN if unknown.
        """

    def decode(self, u: Tensor, v: Tensor | None = None, context: Context = None) -> Tensor:
        """Map (u, v) to events; v = 0, a point on the manifold, by default (Alg. 2)."""
        self._check_context(context)
        return self._decode(u, v, context)

    @abstractmethod
    def _decode(self, u: Tensor, v: Tensor | None, context: Context) -> Tensor:
        """Compute :meth:`decode`."""

    @property
    def eigenvalues(self) -> Tensor | None:
        """An estimate of the diagonal of E[J^T J] of the decoder, (d,); None if unknown."""
        return None

    def log_prob(self, x: Tensor, context: Context = None) -> Tensor:
        """Compute the exact log-density of x in nats, (batch,), if there is one on R^D."""
        if not self.has_density:
            raise UserError(
                "log_prob: expected a model with a density on R^D, got one with an injection and a "
                "density on the manifold. Use submanifold.models.manifold_density."
            )
        return self(x, context)[2]

    def coordinates(self, u: Tensor) -> Tensor:
        """Return the continuous coordinates among the columns of u, (batch, d)."""
        return u

    def overlap(self, u: Tensor, context: Context = None) -> Tensor:
        """Log of the factor by which charts change the density at u, (batch,): 0 without charts."""
        return u.new_zeros(u.shape[0])

    def code_log_prob(self, u: Tensor, context: Context = None) -> Tensor:
        """Log-density of codes of samples: that on the manifold plus the log volume, (batch,)."""
        self._check_coordinates(u)
        return standard_normal_log_prob(self.coordinates(u)) + self.overlap(u, context)

    def bits_per_dim(self, x: Tensor, bits: int | None = None, context: Context = None) -> Tensor:
        """Compute :func:`bits_per_dim` of x, (batch,); see :meth:`to_bits_per_dim`."""
        return self.to_bits_per_dim(self.log_prob(x, context), bits)

    def to_bits_per_dim(self, log_prob: Tensor, bits: int | None = None) -> Tensor:
        """Convert nats per event to bits per dimension, of the manifold if the density is on it.

        ``bits`` is the number of bits to which elements were quantized, by default 8 for images and
        0 for vectors.
        """
        if not self.has_density:
            return bits_per_dim(log_prob, self.dim)
        if bits is None:
            bits = 8 if len(self.event_shape) == 3 else 0
        return bits_per_dim(log_prob, self.event_dim, bits)

    def encode(
        self, x: Tensor, projection: ProjectionKind = "encoder", context: Context = None
    ) -> tuple[Tensor, Tensor]:
        """Map x to coordinates (u, v) that decode to x; ``project(x)`` has another u.

        Args:
            x: Events, (batch, *event_shape).
            projection: Which coordinates u on the manifold: those of the ``encoder``, or those of
                the ``default`` or the ``nearest`` projection (:meth:`project`), with which (u, v)
                does not decode to x.
            context: See the class.

        Returns:
            u (batch, d) on the manifold, and the encoder's v (batch, D - d) off it.
        """
        u, v, _ = self(x, context)
        if projection == "encoder":
            return u, v
        return self._project(x, projection == "nearest", context).u, v

    def encoder_projection(self, x: Tensor, context: Context = None) -> Tensor:
        """Encode x and decode u with v = 0, the projection of the paper (section 4.1).

        It is differentiable, and fast, but not the nearest point of the manifold. For samples and
        other points of the manifold, all projections are equal.
        """
        return self.decode(self.encode(x, context=context)[0], context=context)

    def project(self, x: Tensor, nearest: bool = False, context: Context = None) -> Tensor:
        """Project x onto the manifold, in the shape of x; not ``decode(encode(x)[0])``.

        The default projection improves the :meth:`encoder_projection` by four gradients
        (:func:`submanifold.geometry.nearest.nearest_point`). It takes about three times as
        long where bfloat16 is fast, and five times otherwise (docs/evidence/performance.md).
        With ``nearest``, sixteen gradients search the nearest projection, in about 16 times the
        time of the encoder projection; up to d = 8 Gauss-Newton steps find it. The squared error is
        never larger than that of the encoder projection, but may be that of a local minimum.

        Gradients of the default projection of images are in bfloat16 where the hardware is faster,
        errors in float32. The result has no derivative.
        """
        self._check_context(context)
        return self._project(x, nearest, context).image

    def sample(
        self,
        n: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        context: Context = None,
    ) -> Tensor:
        """Draw n events on the manifold: u ~ N(0, temperature^2 I), v = 0 (Alg. 1 and 2).

        The generator is on the CPU, so that all devices draw the same.
        """
        with torch.no_grad():
            codes = self._draw_codes(n, temperature, generator, context)
            return self.decode(codes.to(next(self.parameters()).device), context=context)

    def _draw_codes(
        self, n: int, temperature: float, generator: torch.Generator | None, context: Context
    ) -> Tensor:
        weight = next(self.parameters())
        return temperature * torch.randn(n, self.dim, generator=generator, dtype=weight.dtype)

    def describe(self) -> dict[str, Any]:
        """Summarize kind, architecture, number of parameters, notes and data, JSON-serializable."""
        parameters = sum(p.numel() for p in self.parameters())
        return {"model": self.kind, **describe(self), "parameters": parameters,
                "notes": self.notes, "data": self.data}  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write the model to a safetensors file, atomically."""
        header = {
            "format": FORMAT,
            "model": self.kind,
            "config": describe(self),
            "notes": self.notes,
            "data": self.data,
            "calibration": self.calibration,
        }
        gaussian = {f"{GAUSSIAN}{name}": tensor for name, tensor in self.gaussian.items()}
        tensors = {name: tensor.detach().cpu().contiguous()
                   for name, tensor in (self.state_dict() | gaussian).items()}  # fmt: skip
        save_tensors(tensors, Path(path), header)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Load a model that :meth:`save` wrote, in evaluation mode.

        Raises:
            UserError: The device does not exist, or the file does not exist, is damaged, or holds
                another kind of model or an architecture that this version does not have.
        """
        target = choose_device(str(device))
        model = load_model(Path(path), Model.kinds)
        if not isinstance(model, cls):
            raise UserError(f"{path}: expected a {cls.kind}, got a {model.kind}. Use Model.load.")
        return model.to(target).eval()

    @torch.no_grad()
    def _project(self, x: Tensor, nearest: bool, context: Context) -> Nearest:
        u = self._coordinates_of(x, context)

        def decode(u: Tensor, context: Context = None) -> Tensor:
            return self._decode(u, None, context)

        if nearest and self.dim <= FEW:
            return gauss_newton(decode, x, u, GAUSS_NEWTON_STEPS, context)
        gradients, precision = NEAREST_GRADIENTS if nearest else GRADIENTS, None
        if not nearest and len(self.event_shape) == 3:
            precision = choose_precision("auto", u)
        return nearest_point(decode, x, u, gradients, self.eigenvalues, precision, context)

    def _coordinates_of(self, x: Tensor, context: Context) -> Tensor:
        return self.forward(x, context)[0]

    def _check_context(self, context: Context) -> None:
        """Raise :class:`UserError` for a context, or columns of it, that no flow would use."""
        if context is None or is_noise_conditional(self):
            return  # flows check the rest
        embedding = embedding_of(self)
        if embedding is None:
            raise UserError(
                f"context: expected none for an unconditional model, got {context.dtype} of shape "
                f"{tuple(context.shape)}. Omit it, or train a model with data.condition."
            )
        embedding(context)

    def _check_coordinates(self, u: Tensor, v: Tensor | None = None) -> None:
        self._check("u", u, self.code_dims[:1])
        if v is not None:
            self._check("v", v, self.code_dims[1:])

    def _check_events(self, x: Tensor) -> None:
        self._check("x", x, self.event_shape)

    def _check(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        """Raise :class:`UserError` for a wrong shape or dtype, without reading values."""
        weight = next(self.parameters(), None)
        dtype = tensor.dtype if weight is None else weight.dtype  # a flow may have no weights
        if tensor.shape[1:] == shape and tensor.dtype == dtype:
            return
        fix = ""
        if tensor.dtype != dtype:
            fix = f"Convert it with torch.as_tensor({name}, dtype={dtype})."
        if tensor.dtype == torch.uint8:
            fix = f"Convert bytes with submanifold.data.dequantize({name})."
        raise UserError(
            f"{name}: expected {dtype} of shape ({', '.join(map(str, ['batch', *shape]))}), got "
            f"{tensor.dtype} of shape {tuple(tensor.shape)}. {fix}".rstrip()
        )
