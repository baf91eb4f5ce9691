"""What a user can say about a stage: ``stage_<n>`` of the parameters."""

import math
from collections.abc import Sequence

from pydantic import Field

from submanifold.errors import named
from submanifold.flows import FlowSettings, build_flow
from submanifold.manifold.stage import Stage
from submanifold.validation import Settings


class StageSettings(Settings):
    """What one stage is (method.md 1).

    Attributes:
        flow: The bijection.
        then: Further bijections, each of what the one before makes.
        dim: Dimension of the manifold; None keeps all coordinates, a density without a manifold.
        off_manifold_scale: sigma_v.
    """

    flow: FlowSettings
    then: tuple[FlowSettings, ...] = ()
    dim: int | None = Field(gt=0)
    off_manifold_scale: float = Field(default=1.0, gt=0)

    def dim_in(self, event_shape: Sequence[int]) -> int:
        """The dimension of the manifold among events of a shape."""
        return math.prod(event_shape) if self.dim is None else self.dim

    def build(self, event_shape: Sequence[int]) -> Stage:
        """Build the untrained stage for events of this shape.

        Raises:
            UserError: The dimension is larger than the space it is in, or a flow does not fit.
        """
        with named("flow"):
            flows = [build_flow(self.flow, event_shape)]
        with named("then"):
            flows += [build_flow(each, (math.prod(event_shape),)) for each in self.then]
        return Stage(flows, self.dim_in(event_shape), self.off_manifold_scale)


class ModelSettings(Settings):
    """The stages of a hierarchy, outermost first."""

    stages: tuple[StageSettings, ...] = Field(min_length=1)

    def build(
        self, event_shape: Sequence[int], first: int = 1, last: int | None = None
    ) -> list[Stage]:
        """Build the untrained stages from number ``first`` to ``last``, all by default.

        Raises:
            UserError: As in :meth:`StageSettings.build`, the stage named.
        """
        stages = []
        for number, settings in enumerate(self.stages[:last], start=1):
            with named(f"stage_{number}"):
                if number >= first:
                    stages.append(settings.build(event_shape))
                event_shape = (settings.dim_in(event_shape),)
        return stages
