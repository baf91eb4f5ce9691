"""What a user can say about a stage: ``stage_<n>`` of the parameters."""

import math
from collections.abc import Sequence

from pydantic import Field
from torch import nn

from submanifold.common.errors import error_prefix
from submanifold.common.settings import Settings
from submanifold.flows import FlowSettings, build_flow
from submanifold.models.hierarchy import Hierarchy
from submanifold.models.mixture import Mixture
from submanifold.models.model import Model
from submanifold.models.stage import Stage, check_dim


class StageSettings(Settings):
    """What one stage is (method.md 1).

    Attributes:
        flow: The bijection.
        then: Further bijections, each of what the one before makes.
        dim: Dimension of the manifold; None keeps all coordinates, a density without a manifold.
        off_manifold_scale: sigma_v.
        noise: Standard deviation of the noise on what the stage acts on; 0 but in noisy injective
            flows.
    """

    flow: FlowSettings
    then: tuple[FlowSettings, ...] = ()
    dim: int | None = Field(gt=0)
    off_manifold_scale: float = Field(default=1.0, gt=0)
    noise: float = Field(default=0.0, ge=0)

    def dim_in(self, event_shape: Sequence[int]) -> int:
        """The dimension of the manifold among events of a shape."""
        return math.prod(event_shape) if self.dim is None else self.dim

    def build(self, event_shape: Sequence[int]) -> Stage:
        """Build the untrained stage for events of this shape.

        Raises:
            UserError: The dimension is larger than the space it is in, or a flow does not fit.
        """
        dim = self.dim_in(event_shape)
        check_dim(dim, math.prod(event_shape))  # which a flow that makes no more would not say
        with error_prefix("flow"):
            flows = [build_flow(self.flow, event_shape, dim)]
        with error_prefix("then"):
            flows += [build_flow(each, (flows[0].latent_dim,), dim) for each in self.then]
        return Stage(flows, dim, self.off_manifold_scale, self.noise)


class ModelSettings(Settings):
    """The stages of a hierarchy, outermost first, or of each of several.

    Attributes:
        stages: What each stage is.
        charts: How many hierarchies there are; more than one are a mixture.
    """

    stages: tuple[StageSettings, ...] = Field(min_length=1)
    charts: int = Field(default=1, ge=1)

    def build(
        self, event_shape: Sequence[int], first: int = 1, last: int | None = None
    ) -> list[Stage]:
        """Build the untrained stages from number ``first`` to ``last``, all by default.

        Raises:
            UserError: As in :meth:`StageSettings.build`, the stage named.
        """
        stages = []
        for number, settings in enumerate(self.stages[:last], start=1):
            with error_prefix(f"stage_{number}"):
                if number >= first:
                    stages.append(settings.build(event_shape))
                event_shape = (settings.dim_in(event_shape),)
        return stages

    def extend(
        self, before: Model | None, event_shape: Sequence[int], last: int | None = None
    ) -> tuple[Model, list[nn.Module]]:
        """Build a model, untrained but for what there is of it.

        Args:
            before: What there is: a hierarchy of the first stages, or the mixture; None is nothing.
            event_shape: The shape of the model's events, where nothing is there.
            last: Number of the stage up to which it is built, all by default.

        Returns:
            The model, and those parts of it that are new.
        """
        if self.charts > 1:
            if before is not None:
                return before, []
            mixture = Mixture([Hierarchy(self.build(event_shape)) for _ in range(self.charts)])
            return mixture, [mixture]
        stages: list[Stage] = []
        if isinstance(before, Hierarchy):
            stages, event_shape = list(before.stages), before.event_shape
        fresh = self.build(event_shape, len(stages) + 1, last)
        return Hierarchy([*stages, *fresh]), list(fresh)
