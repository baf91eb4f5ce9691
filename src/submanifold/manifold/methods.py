"""A method is nothing but settings: they are validated here, and a hierarchy is built from them."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from submanifold.errors import UserError
from submanifold.flows import Affine, Flow, Glow, RealNVP
from submanifold.manifold.hierarchy import Hierarchy
from submanifold.manifold.objective import LikelihoodUnit, Objective, Penalty
from submanifold.manifold.stage import Stage
from submanifold.validation import Settings


class GlowSettings(Settings):
    """A Glow on images: ``levels`` x ``steps`` flow steps, coupling nets of ``width`` channels."""

    type: Literal["glow"]
    levels: int = Field(gt=0)
    steps: int = Field(gt=0)
    width: int = Field(gt=0)

    def build(self, event_shape: Sequence[int]) -> Flow:
        """Build it for events (channels, height, width)."""
        if len(event_shape) != 3:
            raise UserError(
                f"A glow acts on images, not on events of shape {tuple(event_shape)}. Set "
                "stage_<n>.flow.type to realnvp."
            )
        return Glow(event_shape, self.levels, self.steps, self.width)


class RealNVPSettings(Settings):
    """A RealNVP on vectors.

    ``hidden`` null means twice the number of coordinates; ``mixing`` is for raw data of few
    dimensions.
    """

    type: Literal["realnvp"]
    couplings: int = Field(gt=0)
    hidden: int | None = Field(default=None, gt=0)
    mixing: bool = False

    def build(self, event_shape: Sequence[int]) -> Flow:
        """Build it for events (dim,)."""
        dim = _vector_dim(event_shape, self.type)
        return RealNVP(dim, self.couplings, self.hidden, self.mixing)


class AffineSettings(Settings):
    """An affine map of vectors: the Gaussian, or principal components."""

    type: Literal["affine"]

    def build(self, event_shape: Sequence[int]) -> Flow:
        """Build it for events (dim,)."""
        return Affine(_vector_dim(event_shape, self.type))


class StageSettings(Settings):
    """What one stage is, and what it is penalised with (method.md 1).

    ``dim`` null keeps all coordinates: a density without a manifold.
    """

    flow: Annotated[GlowSettings | RealNVPSettings | AffineSettings, Field(discriminator="type")]
    dim: int | None = Field(gt=0)
    penalty: Penalty
    penalty_weight: float = Field(ge=0)
    penalty_space: Literal["latent", "image"]
    delta: float = Field(gt=0)
    likelihood_weight: float = Field(ge=0)
    likelihood_unit: LikelihoodUnit = "bits_per_dim"
    pixel_range: float = Field(default=1.0, gt=0)
    off_manifold_scale: float = Field(default=1.0, gt=0)
    input_noise: float = Field(default=0.0, ge=0)
    off_manifold_penalty: float = Field(default=0.0, ge=0)

    def build(self, event_shape: Sequence[int]) -> Stage:
        """Build the untrained stage for events of this shape."""
        dim = math.prod(event_shape) if self.dim is None else self.dim
        return Stage(self.flow.build(event_shape), dim, self.off_manifold_scale)

    def objective(self, outer: Sequence[Stage] = ()) -> Objective:
        """Build Alg. 1's loss; ``outer`` are the frozen stages before this one."""
        in_image_space = self.penalty_space == "image" and len(outer) > 0
        return Objective(
            penalty=self.penalty,
            penalty_weight=self.penalty_weight,
            delta=self.delta,
            likelihood_weight=self.likelihood_weight,
            likelihood_unit=self.likelihood_unit,
            pixel_range=self.pixel_range,
            input_noise=self.input_noise,
            off_manifold_penalty=self.off_manifold_penalty,
            outer=Hierarchy(outer).requires_grad_(False) if in_image_space else None,
        )


def build_hierarchy(stages: Sequence[StageSettings], event_shape: Sequence[int]) -> Hierarchy:
    """Build the untrained hierarchy of these stages.

    Raises:
        UserError: A dimension is larger than the space it is in, or a flow does not fit its input.
    """
    built: list[Stage] = []
    for number, settings in enumerate(stages, start=1):
        try:
            built.append(settings.build(event_shape))
        except UserError as error:
            raise UserError(f"stage_{number}: {error}") from error
        event_shape = (built[-1].dim,)
    return Hierarchy(built)


def _vector_dim(event_shape: Sequence[int], flow: str) -> int:
    if len(event_shape) != 1:
        raise UserError(
            f"A {flow} acts on vectors, not on events of shape {tuple(event_shape)}. Set "
            "stage_<n>.flow.type to glow."
        )
    return event_shape[0]
