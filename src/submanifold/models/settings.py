"""Settings of a model: ``stage_<n>`` of the parameters."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from torch import nn

from submanifold.common.errors import error_prefix
from submanifold.common.settings import Settings
from submanifold.flows import Flow, FlowSettings, build_flow
from submanifold.models.hierarchy import Hierarchy
from submanifold.models.mixture import Mixture
from submanifold.models.model import Model
from submanifold.models.stage import Stage, check_dim

ContextSizes = Mapping[str, int] | None
"""The arguments of :func:`.make_conditional`; None of models that are not conditional."""

AsList = BeforeValidator(lambda flow: flow if isinstance(flow, list | tuple) else [flow])


class StageSettings(Settings):
    """Settings of one stage (:ref:`theory-1`).

    Attributes:
        flow: The flow, with its ``type`` and arguments; or a list of flows, each acting on the
            latents of the one before.
        dim: Dimension of the manifold; ``half`` is half of the coordinates, None keeps all of them.
        off_manifold_scale: Standard deviation sigma_v of the coordinates off the manifold.
        noise: Standard deviation of the noise on the events of the stage; 0 except in noisy
            injective flows.
    """

    flow: Annotated[tuple[FlowSettings, ...], AsList, Field(min_length=1)]
    dim: Annotated[int, Field(gt=0)] | Literal["half"] | None
    off_manifold_scale: float = Field(default=1.0, gt=0)
    noise: float = Field(default=0.0, ge=0)

    def manifold_dim(self, event_shape: Sequence[int]) -> int:
        """Dimension of the manifold for events of a shape."""
        count = math.prod(event_shape)
        if self.dim == "half":
            return max(1, count // 2)
        return self.dim or count

    def build(self, event_shape: Sequence[int], context: ContextSizes = None) -> Stage:
        """Build the untrained stage for events of a shape."""
        dim = self.manifold_dim(event_shape)
        check_dim(dim, math.prod(event_shape))  # an injection accepts any dimension
        flows: list[Flow] = []
        with error_prefix("flow"):
            for settings in self.flow:
                described = {**settings.model_dump(), "context": context or None}
                flows.append(build_flow(described, event_shape, dim))
                event_shape = (flows[-1].latent_dim,)
        return Stage(flows, dim, self.off_manifold_scale, self.noise)


class ModelSettings(Settings):
    """Settings of a hierarchy or a mixture of hierarchies.

    Attributes:
        stages: The stages, outermost first.
        charts: Number of hierarchies; more than one form a mixture.
    """

    stages: tuple[StageSettings, ...] = Field(min_length=1)
    charts: int = Field(default=1, ge=1)

    def sized(self, event_shape: Sequence[int]) -> "ModelSettings":
        """Return it with numbers in place of ``half``, for events of a shape."""
        stages = []
        for stage in self.stages:
            dim = None if stage.dim is None else stage.manifold_dim(event_shape)
            stages.append(stage.model_copy(update={"dim": dim}))
            event_shape = (stage.manifold_dim(event_shape),)
        return self.model_copy(update={"stages": tuple(stages)})

    def limited(self, count: int) -> "ModelSettings":
        """Return it with dimensions below ``count``, the number of training events.

        Their deviations from the mean span no more. The dimensions are numbers (:meth:`sized`).
        """
        limit, stages = max(1, count - 1), list[StageSettings]()
        for stage in self.stages:
            dim = stage.dim and min(int(stage.dim), limit)
            stages.append(stage.model_copy(update={"dim": dim}))
        return self.model_copy(update={"stages": tuple(stages)})

    def build(
        self,
        event_shape: Sequence[int],
        first: int = 1,
        last: int | None = None,
        context: ContextSizes = None,
    ) -> list[Stage]:
        """Build the untrained stages ``first`` to ``last``, counted from 1; all by default."""
        stages = []
        for number, settings in enumerate(self.stages[:last], start=1):
            with error_prefix(f"stage_{number}"):
                if number >= first:
                    stages.append(settings.build(event_shape, context))
                event_shape = (settings.manifold_dim(event_shape),)
        return stages

    def extend(
        self,
        model: Model | None,
        event_shape: Sequence[int],
        last: int | None = None,
        context: ContextSizes = None,
    ) -> tuple[Model, list[nn.Module]]:
        """Append untrained stages, up to number ``last``, to a model of the first stages, if any.

        A mixture is built at once, and is not conditional. Returns the extended model, and its
        untrained modules.
        """
        if self.charts > 1:
            if model is not None:
                return model, []
            mixture = Mixture([Hierarchy(self.build(event_shape)) for _ in range(self.charts)])
            return mixture, [mixture]
        stages = list(model.stages) if isinstance(model, Hierarchy) else []
        event_shape = event_shape if model is None else model.event_shape
        new = self.build(event_shape, len(stages) + 1, last, context)
        return Hierarchy([*stages, *new]), list(new)
