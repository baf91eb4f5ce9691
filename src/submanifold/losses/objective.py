"""What is minimised: a sum of named terms, each a small object with a weight."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from submanifold.common import distributed
from submanifold.common.settings import Settings
from submanifold.flows import is_noise_conditional, noise_conditioning
from submanifold.flows.orthogonal import tail_sums
from submanifold.losses.volume_terms import ManifoldLikelihood, NonOrthogonality, OffDiagonal
from submanifold.models.hierarchy import Hierarchy
from submanifold.models.mixture import ChartEncoding, Mixture
from submanifold.models.model import Model

WHOLE = 0
"""The projection through all stages."""
LARGEST_WEIGHT = 10.0
LEAST_SHARE = 1e-3
DUAL_RATE = 0.02
LARGEST_FACTOR = 100.0
"""Largest factor by which dual ascent raises or lowers a weight."""
SLACK = 0.02
"""Relative excess over a target that still counts as reached, 0.1 dB: errors of batches differ."""


@dataclass
class ForwardPass:
    """A batch on its way through the stages in training, each part computed once, when asked for.

    Attributes:
        model: The stages in training.
        clean: Their input h, (batch, *event_shape): the image, or u of the stages before.
        noisy: h with the input noise, which is what the density is of.
        outer: The frozen stages before them, if there are any.
        generator: Source of what a term draws, on their device.
    """

    model: Model
    clean: Tensor
    noisy: Tensor
    outer: Hierarchy | None = None
    generator: torch.Generator | None = None
    _residuals: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)
    _nested: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)

    @cached_property
    def _trace(self) -> tuple[list[Tensor], list[Tensor], Tensor]:
        if isinstance(self.model, Hierarchy):
            return self.model.trace(self.noisy, self._normal)
        if isinstance(self.model, Mixture):
            u, v, log_prob = self.model.select_chart(self._charted)
        else:
            u, v, log_prob = self.model(self.noisy)
        return [u], [v], log_prob

    def _normal(self, h: Tensor) -> Tensor:
        return _drawn(
            lambda rows: torch.randn(
                rows, *h.shape[1:], generator=self.generator, dtype=h.dtype, device=h.device
            ),
            len(h),
        )

    @cached_property
    def _charted(self) -> ChartEncoding:
        return self.model.encode_on_charts(self.noisy)  # type: ignore[operator]

    @property
    def u(self) -> Tensor:
        """Coordinates on the innermost manifold, (batch, d)."""
        return self._trace[0][-1]

    def decode(self, u: Tensor) -> Tensor:
        """The points of the manifold, out to the outermost space."""
        inside = self.model.decode(u)
        return inside if self.outer is None else self.outer.decode(inside)

    def draw(self, draw: Callable[[int], Tensor]) -> Tensor:
        """Draw a row for each event, whoever else computes the rest of the batch."""
        return _drawn(draw, len(self.u))

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
            space: ``latent`` is that of h, ``image`` that of the outermost stage, and ``metric``
                that of h in the image's measure, to first order (method.md 6.4): coordinates times
                the roots of their eigenvalues, scaled so that the mean square is that of the image.
        """
        if self.outer is None:
            space = "latent"  # h is the image
        if (through, space) not in self._residuals:
            u = self._trace[0][through - 1]
            self._residuals[through, space] = self._missed(self._inner(through).decode(u), space)
        return self._residuals[through, space]

    @torch.no_grad()
    def image_mse(self, through: int = WHOLE) -> Tensor:
        """Mean squared error of the image at the model's own dimension, in any space of a penalty.

        Args:
            through: As in :meth:`residual`.
        """
        return self.residual(through, "image").square().mean()

    def missed(
        self, random_dim: float | None = None, through: int = WHOLE, space: str = "latent"
    ) -> tuple[Tensor, Tensor | None]:
        """What a penalty is of: residuals, and a weight for each of them, or None if all are alike.

        A mixture has one on each chart, which weighs as much as the chart is responsible, from
        :data:`LEAST_SHARE` on; with a ``random_dim`` they are those of :meth:`nested_residual`.
        """
        if isinstance(self.model, Mixture):
            u, _, _ = charted = self._charted
            shares = charted.responsibilities.detach()  # a penalty moves charts, not their borders
            # a chart may overflow at events that are another's, and no weight makes that finite
            own = shares > LEAST_SHARE
            u = torch.where(own[:, :, None], u, 0.0)
            projected = [chart.decode(at) for chart, at in zip(self.model.charts, u, strict=True)]
            missed = torch.stack([self.clean - each for each in projected])
            missed = torch.where(own.view(*own.shape, *[1] * (missed.dim() - 2)), missed, 0.0)
            return missed.flatten(0, 1), len(u) * shares.flatten()
        if random_dim is None:
            return self.residual(through, space), None
        return self.nested_residual(random_dim, through, space)

    def nested_residual(
        self, random_dim: float, through: int = WHOLE, space: str = "latent"
    ) -> tuple[Tensor, Tensor]:
        """What projections onto manifolds of other dimensions miss, one for each event.

        Dimensions are drawn log-uniformly, and the first so many latents of the last stage are kept
        (nested dropout: Rippel et al. 2014; for flows, Bekasov & Murray 2020).

        Args:
            random_dim: They go from the model's own dimension divided by it to that times it.
            through: As in :meth:`residual`.
            space: Likewise.

        Returns:
            The residual, and for each event (batch,) a weight: how much less the model's own
            dimension misses than the one drawn, to first order, and 1 without a rotation.
        """
        if (random_dim, through, space) not in self._nested:
            inner: Any = self._inner(through)
            *outside, last = inner.stages
            u, v = self._trace[0][through - 1], self._trace[1][through - 1]
            low = max(1, round(last.dim / random_dim))
            high = min(last.latent_dim, round(last.dim * random_dim))
            drawn = _drawn(
                lambda count: torch.rand(count, generator=self.generator, device=u.device), len(u)
            )
            chosen = (low * (high / low) ** drawn).round().long()
            z = torch.cat([u, v], 1)[:, :high]
            z = z * (torch.arange(high, device=u.device) < chosen[:, None])
            if high > last.dim:
                z = F.pad(z, (0, last.latent_dim - high))
                projection = last.decode(z[:, : last.dim], z[:, last.dim :])
            else:
                projection = last.decode(F.pad(z, (0, last.dim - high)))
            for stage in reversed(outside):
                projection = stage.decode(projection)
            weight = torch.ones_like(drawn)
            if last.rotation is not None:
                tail = tail_sums(last.rotation.eigenvalues)
                weight = tail[last.dim] / tail[chosen].clamp_min(tail[last.dim] / LARGEST_WEIGHT)
            self._nested[random_dim, through, space] = self._missed(projection, space), weight
        return self._nested[random_dim, through, space]

    def _inner(self, through: int) -> Model:
        return self.model.part(1, through) if through else self.model  # type: ignore[operator]

    def _missed(self, projection: Tensor, space: str) -> Tensor:
        target = self.clean
        if self.outer is not None and space == "image":
            with torch.no_grad():
                target = self.outer.decode(target)
            projection = self.outer.decode(projection)
        if self.outer is not None and space == "metric":
            eigenvalues = self.outer.eigenvalues
            if eigenvalues is None:
                raise ValueError("The stages before have no rotation, and so no metric.")
            root = (eigenvalues * len(eigenvalues) / self.outer.event_dim).sqrt()
            return root * (target - projection)
        return target - projection


def _drawn(draw: Callable[[int], Tensor], rows: int) -> Tensor:
    """Draw for a batch, of which a process has its share in training and all in validation."""
    return distributed.drawn(draw, rows) if torch.is_grad_enabled() else draw(rows)


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Of all coordinates of events (batch, ...), each event with its weight (batch,)."""
    return values.mean() if weight is None else (weight * values.flatten(1).mean(1)).mean()


class Term(Protocol):
    """A named part of the loss: settings, of which one is its weight, and a function of a pass."""

    weight: float

    def __call__(self, batch: ForwardPass) -> Tensor:
        """The term before its weight, a mean over the batch."""


class Likelihood(Settings):
    r"""Negative log-density :math:`-\log p(h)`, in bits per dimension or in nats (method.md 3.5).

    Behind an injection it is the density on the manifold, in bits for each of its dimensions.

    Attributes:
        weight: c; the starred methods have 0.5 in the first phase.
        unit: ``bits_per_dim``, or ``nats`` for a whole event.
    """

    weight: float = Field(default=1.0, ge=0)
    unit: Literal["bits_per_dim", "nats"] = "bits_per_dim"

    def __call__(self, batch: ForwardPass) -> Tensor:
        """Mean over the batch."""
        if self.unit == "nats":
            return -batch.log_prob.mean()
        return batch.model.to_bits_per_dim(batch.log_prob).mean()


class Target(Settings):
    """The error of the projection that is wanted, epsilon of Eq. 3; one of the two.

    It is the error of the image at the model's own dimension, in any ``space`` and for any
    function of the residual that is penalised.

    Attributes:
        mse: Mean squared error, of pixels on [0, 1].
        psnr: The same in dB, -10 log10 of it.
    """

    mse: float | None = Field(default=None, gt=0)
    psnr: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _is_one(self) -> "Target":
        if (self.mse is None) == (self.psnr is None):
            raise ValueError("reconstruction.target needs mse or psnr, one of them")
        return self

    @property
    def error(self) -> float:
        """As mean squared error."""
        return self.mse if self.mse is not None else 10 ** (-(self.psnr or 0.0) / 10)

    def excess(self, row: Mapping[str, float]) -> float:
        """Relative excess of a row's ``image_mse`` over the error, 0 within :data:`SLACK`."""
        excess = row["image_mse"] / self.error - 1
        return 0.0 if excess <= SLACK else excess


class NoPenalty(Settings):
    """No penalty on the projection: likelihood training alone, for which it is not computed."""

    penalty: Literal["none"] = "none"

    weight: ClassVar[float] = 0.0
    space: ClassVar[str] = "latent"
    through: ClassVar[int] = WHOLE
    random_dim: ClassVar[None] = None
    target: ClassVar[None] = None

    def __call__(self, batch: ForwardPass) -> Tensor:
        """Zero."""
        return batch.log_prob.new_zeros(())


class Squared(Settings):
    r"""Squared error of the projection, :math:`\frac1D \sum_i (h_i - \tilde h_i)^2`.

    With :math:`\tilde h = f^{-1}(u, 0)`. Pixels are on [0, 1] by default, so that the weight means
    the same at every image size (method.md 3.5).

    Attributes:
        weight: lambda.
        space: Whether h and its projection are compared themselves, ``latent`` (the paper), or the
            images that they decode to (method.md 3.9), or, behind a rotated stage, these to first
            order, ``metric`` (method.md 6.4). The same where h is the image.
        through: Number of the phase's stages that the projection goes through; 0 is all.
        random_dim: Each event draws a dimension, log-uniformly from d / random_dim to d spread, so
        that one
            model serves all of them; None is the stage's own dimension d.
        target: The error that is wanted, for which lambda is found by dual ascent; ``weight`` is
            where it starts, and it changes by a factor of at most :data:`LARGEST_FACTOR`. None
            leaves lambda as it is.
        pixel_range: Width of the interval that pixels are on: 1, or 256 for those of a byte.
            Reported errors stay on [0, 1].
    """

    penalty: Literal["mse"] = "mse"
    weight: float = Field(gt=0)
    space: Literal["latent", "image", "metric"] = "latent"
    through: int = Field(default=WHOLE, ge=0)
    pixel_range: float = Field(default=1.0, gt=0)
    random_dim: float | None = Field(default=None, gt=1)
    target: Target | None = None

    def __call__(self, batch: ForwardPass) -> Tensor:
        """Mean over the batch and its coordinates.

        Errors at dimensions that were drawn count relative to the one that is expected there, so
        that none of them outweighs the others: as that of the stage's own dimension.
        """
        residual, weight = batch.missed(self.random_dim, self.through, self.space)
        return _mean(self.of(self.pixel_range * residual), weight)

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

    def __call__(self, batch: ForwardPass) -> Tensor:
        """Mean over the batch and its off-manifold coordinates."""
        return batch.v.square().mean()


TERMS: dict[str, tuple[Any, Any]] = {
    "likelihood": (Likelihood, Likelihood()),
    "reconstruction": (Reconstruction, NoPenalty()),
    "off_manifold": (OffManifold, OffManifold()),
    "manifold_likelihood": (ManifoldLikelihood, ManifoldLikelihood()),
    "non_orthogonality": (NonOrthogonality, NonOrthogonality()),
    "off_diagonal": (OffDiagonal, OffDiagonal()),
}
"""The terms that a loss may have, by name: the settings of each, and their default."""


@dataclass(frozen=True)
class Objective:
    r"""The loss :math:`\sum_k w_k\, t_k(h)`; Alg. 1's has a likelihood and a reconstruction.

    .. math:: \ell = c\, \frac{-\log p(h)}{D \log 2}
              + \lambda\, \frac1D \sum_i r(h_i - \tilde h_i), \qquad \tilde h = f^{-1}(u, 0)

    with the signs of method.md 3.1. With input noise (the denoising flow, DNF) density and u are
    those of :math:`h + \sigma_x \epsilon`, and the reconstruction is compared with the clean h
    (method.md 3.10). A flow that is told the noise's scale (SoftFlow) sees it at a random share of
    sigma_x for each event.

    Args:
        terms: The terms by name; those of weight 0 are left out.
        input_noise: sigma_x, in the units of h; 0 but in DNF.
        outer: The frozen stages before those in training.

    Attributes:
        multipliers: Log lambda of each term with a ``target``, which every training step moves,
            :math:`\log\lambda \leftarrow \log\lambda + \eta\,(e / \epsilon - 1)`: dual ascent on
            the constraint :math:`e \le \epsilon` (Eq. 3), e the mean squared error of the image.

    Example:
        >>> flow = Hierarchy([Stage(RealNVP(8), dim=4)])
        >>> loss = Objective({"likelihood": Likelihood(), "reconstruction": Squared(weight=10.0)})
        >>> sorted(loss(flow, torch.randn(3, 8)))
        ['bits_per_dim', 'likelihood', 'loss', 'mse', 'reconstruction']
    """

    terms: Mapping[str, Term]
    input_noise: float = 0.0
    outer: Hierarchy | None = None
    multipliers: dict[str, Tensor] = field(default_factory=dict)

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
            ``bits_per_dim`` (of the noisy input, if there is noise; not of a model without a
            density on all of space), and, where the projection is
            computed, ``mse``, of h, or of the image where that is penalised; in training, where
            dimensions are drawn, over these. Where lambda is found by dual ascent it is
            ``<term>_weight``, and ``image_mse`` is the error that has a target.
        """
        noisy, scale = h, None
        if self.input_noise > 0:

            def draw(count: int) -> Tensor:
                shape = (count, *h.shape[1:])
                return torch.randn(shape, generator=generator, dtype=h.dtype, device=h.device)

            noise = _drawn(draw, len(h))
            if is_noise_conditional(model):
                scale = _drawn(
                    lambda n: torch.rand(n, generator=generator, device=h.device), len(h)
                )
                noise = scale.view(-1, *(1 for _ in h.shape[1:])).to(h.dtype) * noise
            noisy = h + self.input_noise * noise
        with noise_conditioning(model, scale):
            return self._score(ForwardPass(model, h, noisy, self.outer, generator))

    def _score(self, batch: ForwardPass) -> dict[str, Tensor]:
        model = batch.model
        parts, weights = {}, {}
        for name, term in self.active.items():
            value = term(batch)
            weight: Tensor | float = term.weight
            if getattr(term, "target", None) is not None:
                log_weight = value.new_full((), math.log(term.weight))
                weight = self.multipliers.setdefault(name, log_weight).to(value.device).exp()
                weights[f"{name}_weight"] = weight
            parts[name] = weight * value
        values: dict[str, Tensor] = {"loss": sum(parts.values()), **parts, **weights}  # type: ignore[dict-item]
        if model.has_density:
            values["bits_per_dim"] = model.to_bits_per_dim(batch.log_prob).mean()
        # plain likelihood training has no use for a projection; validation still reports its error
        if "reconstruction" in parts or not torch.is_grad_enabled():
            penalty: Any = self.terms.get("reconstruction", NoPenalty())
            random_dim = penalty.random_dim if torch.is_grad_enabled() else None
            residual, shares = batch.missed(random_dim, penalty.through, penalty.space)
            values["mse"] = _mean(residual.square(), shares if random_dim is None else None)
            if penalty.target is not None:
                values["image_mse"] = batch.image_mse(penalty.through)
        return values

    @torch.no_grad()
    def ascend(self, values: Mapping[str, Tensor]) -> None:
        """Move the multipliers by the means that a training step has found."""
        for name, log_weight in self.multipliers.items():
            term: Any = self.active[name]
            error = values["image_mse"].clone()
            distributed.average([error])
            excess = (error / term.target.error - 1).nan_to_num(nan=1.0).clamp(-1, 1)
            raised = log_weight.to(error.device) + DUAL_RATE * excess
            start, most = math.log(term.weight), math.log(LARGEST_FACTOR)
            self.multipliers[name] = raised.clamp(start - most, start + most)


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
