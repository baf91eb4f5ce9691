"""What is minimised: a sum of named terms, each a small object with a weight."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from submanifold.manifold.hierarchy import Hierarchy
from submanifold.manifold.model import Model
from submanifold.validation import Settings

WHOLE = 0
"""The projection through all stages."""


@dataclass
class Pass:
    """A batch on its way through the stages in training, each part computed once, when asked for.

    Attributes:
        model: The stages in training.
        clean: Their input h, (batch, *event_shape): the image, or u of the stages before.
        noisy: h with the input noise, which is what the density is of.
        outer: The frozen stages before them, if there are any.
    """

    model: Model
    clean: Tensor
    noisy: Tensor
    outer: Hierarchy | None = None
    _residuals: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    @cached_property
    def _trace(self) -> tuple[list[Tensor], list[Tensor], Tensor]:
        if isinstance(self.model, Hierarchy):
            return self.model.trace(self.noisy)
        u, v, log_prob = self.model(self.noisy)
        return [u], [v], log_prob

    @property
    def v(self) -> Tensor:
        """All off-manifold coordinates, (batch, D - d)."""
        return torch.cat(self._trace[1], 1)

    @property
    def log_prob(self) -> Tensor:
        """Log p of the noisy h in nats, (batch,)."""
        return self._trace[2]

    def residual(self, through: int = WHOLE, space: str = "latent") -> Tensor:
        """What the projection misses: h minus its projection, or the images these decode to.

        Args:
            through: Number of stages that the projection goes through, counted from the first in
                training; :data:`WHOLE` is all.
            space: ``latent`` is that of h, ``image`` that of the outermost stage.
        """
        if (through, space) not in self._residuals:
            u = self._trace[0][through - 1]
            inner = self.model.part(1, through) if through else self.model  # type: ignore[operator]
            target, projection = self.clean, inner.decode(u)
            if space == "image" and self.outer is not None:
                with torch.no_grad():
                    target = self.outer.decode(target)
                projection = self.outer.decode(projection)
            self._residuals[through, space] = target - projection
        return self._residuals[through, space]


class Term(Protocol):
    """A named part of the loss: settings, of which one is its weight, and a function of a pass."""

    weight: float

    def __call__(self, batch: Pass) -> Tensor:
        """The term before its weight, a mean over the batch."""


class Likelihood(Settings):
    r"""Negative log-density :math:`-\log p(h)`, in bits per dimension or in nats (method.md 3.5).

    Attributes:
        weight: c; the starred methods have 0.5 in the first phase.
        unit: ``bits_per_dim``, or ``nats`` for a whole event.
    """

    weight: float = Field(default=1.0, ge=0)
    unit: Literal["bits_per_dim", "nats"] = "bits_per_dim"

    def __call__(self, batch: Pass) -> Tensor:
        """Mean over the batch."""
        if self.unit == "nats":
            return -batch.log_prob.mean()
        return batch.model.to_bits_per_dim(batch.log_prob).mean()


class NoPenalty(Settings):
    """No penalty on the projection: likelihood training alone, for which it is not computed."""

    penalty: Literal["none"] = "none"

    weight: ClassVar[float] = 0.0
    space: ClassVar[str] = "latent"
    through: ClassVar[int] = WHOLE

    def __call__(self, batch: Pass) -> Tensor:
        """Zero."""
        return batch.log_prob.new_zeros(())


class Squared(Settings):
    r"""Squared error of the projection, :math:`\frac1D \sum_i (h_i - \tilde h_i)^2`.

    With :math:`\tilde h = f^{-1}(u, 0)`. Pixels are on [0, 1] by default, so that the weight means
    the same at every image size (method.md 3.5).

    Attributes:
        weight: lambda.
        space: Whether h and its projection are compared themselves, ``latent`` (the paper), or the
            images that they decode to (method.md 3.9). The same where h is the image.
        through: Number of the phase's stages that the projection goes through; 0 is all.
        pixel_range: Width of the interval that pixels are on: 1, or 256 for those of a byte.
            Reported errors stay on [0, 1].
    """

    penalty: Literal["mse"] = "mse"
    weight: float = Field(gt=0)
    space: Literal["latent", "image"] = "latent"
    through: int = Field(default=WHOLE, ge=0)
    pixel_range: float = Field(default=1.0, gt=0)

    def __call__(self, batch: Pass) -> Tensor:
        """Mean over the batch and its coordinates."""
        return self.of(self.pixel_range * batch.residual(self.through, self.space)).mean()

    def of(self, residual: Tensor) -> Tensor:
        """Penalty at each coordinate of a residual."""
        return residual.square()


class Huber(Squared):
    """Huber's function H_delta (eq. 2) in the place of the square.

    Attributes:
        delta: Where it turns from square to linear, in the units of the residual.
    """

    penalty: Literal["huber"] = "huber"  # type: ignore[assignment]
    delta: float = Field(gt=0)

    def of(self, residual: Tensor) -> Tensor:
        """Half the square up to delta, linear beyond."""
        zeros = torch.zeros_like(residual)
        return F.huber_loss(residual, zeros, reduction="none", delta=self.delta)


Reconstruction = Annotated[NoPenalty | Squared | Huber, Field(discriminator="penalty")]


class OffManifold(Settings):
    """Mean square of what is off the manifold, which DNF's published code adds (method.md 3.10).

    Attributes:
        weight: Its weight; 0 leaves it out.
    """

    weight: float = Field(default=0.0, ge=0)

    def __call__(self, batch: Pass) -> Tensor:
        """Mean over the batch and its off-manifold coordinates."""
        return batch.v.square().mean()


TERMS: dict[str, tuple[Any, Any]] = {
    "likelihood": (Likelihood, Likelihood()),
    "reconstruction": (Reconstruction, NoPenalty()),
    "off_manifold": (OffManifold, OffManifold()),
}
"""The terms that a loss may have, by name: the settings of each, and their default."""


@dataclass(frozen=True)
class Objective:
    r"""The loss :math:`\sum_k w_k\, t_k(h)`; Alg. 1's has a likelihood and a reconstruction.

    .. math:: \ell = c\, \frac{-\log p(h)}{D \log 2}
              + \lambda\, \frac1D \sum_i r(h_i - \tilde h_i), \qquad \tilde h = f^{-1}(u, 0)

    with the signs of method.md 3.1. With input noise (the denoising flow, DNF) density and u are
    those of :math:`h + \sigma_x \epsilon`, and the reconstruction is compared with the clean h
    (method.md 3.10).

    Args:
        terms: The terms by name; those of weight 0 are left out.
        input_noise: sigma_x, in the units of h; 0 but in DNF.
        outer: The frozen stages before those in training.

    Example:
        >>> flow = Hierarchy([Stage(RealNVP(8), dim=4)])
        >>> loss = Objective({"likelihood": Likelihood(), "reconstruction": Squared(weight=10.0)})
        >>> sorted(loss(flow, torch.randn(3, 8)))
        ['bits_per_dim', 'likelihood', 'loss', 'mse', 'reconstruction']
    """

    terms: Mapping[str, Term]
    input_noise: float = 0.0
    outer: Hierarchy | None = None

    @property
    def active(self) -> dict[str, Term]:
        """The terms that the loss has."""
        return {name: term for name, term in self.terms.items() if term.weight > 0}

    def __call__(
        self, model: Model, h: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Score a batch.

        Args:
            model: The stages in training.
            h: Their input, (batch, *event_shape).
            generator: Source of the input noise, on h's device.

        Returns:
            Means over the batch: each term times its weight by name, ``loss``, their sum,
            ``bits_per_dim`` (of the noisy input, if there is noise), and, where the projection is
            computed, ``mse``, of h, or of the image where that is penalised.
        """
        noisy = h
        if self.input_noise > 0:
            drawn = torch.randn(h.shape, generator=generator, dtype=h.dtype, device=h.device)
            noisy = h + self.input_noise * drawn
        batch = Pass(model, h, noisy, self.outer)
        parts = {name: term.weight * term(batch) for name, term in self.active.items()}
        values: dict[str, Tensor] = {"loss": sum(parts.values()), **parts}  # type: ignore[dict-item]
        values["bits_per_dim"] = model.to_bits_per_dim(batch.log_prob).mean()
        # plain likelihood training has no use for a projection; validation still reports its error
        if "reconstruction" in parts or not torch.is_grad_enabled():
            term: Any = self.terms.get("reconstruction", NoPenalty())
            values["mse"] = batch.residual(term.through, term.space).square().mean()
        return values


def penalized_likelihood(
    penalty: str = "none",
    input_noise: float = 0.0,
    outer: Hierarchy | None = None,
    **settings: Any,
) -> Objective:
    """Alg. 1's objective, with likelihood in bits per dimension.

    Args:
        penalty: ``mse``, ``huber`` or ``none``.
        input_noise: See :class:`Objective`.
        outer: Likewise; the penalty then compares images.
        **settings: Those of the penalty: ``weight``, and ``delta`` of Huber's.
    """
    kind = {"none": NoPenalty, "mse": Squared, "huber": Huber}[penalty]
    if outer is not None:
        settings["space"] = "image"
    terms: dict[str, Any] = {"likelihood": Likelihood(), "reconstruction": kind(**settings)}
    return Objective(terms, input_noise, outer)
