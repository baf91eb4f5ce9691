"""Flows by name: their settings, read off their constructors, and how they are built."""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_type_hints

from pydantic import Field, create_model

from submanifold.errors import UserError
from submanifold.flows.bijection import Flow
from submanifold.flows.gaussianization import Gaussianization
from submanifold.flows.glow import Glow
from submanifold.flows.jet import Jet
from submanifold.flows.linear import Affine
from submanifold.flows.realnvp import RealNVP
from submanifold.flows.rotation import Rotation
from submanifold.validation import Settings

CHOSEN: dict[str, type[Flow]] = {
    "glow": Glow, "jet": Jet, "realnvp": RealNVP, "affine": Affine,
    "gaussianization": Gaussianization,
}  # fmt: skip
"""Flows that a user can choose."""
FLOWS: dict[str, type[Flow]] = {**CHOSEN, "rotation": Rotation}
"""All flows that a stage may consist of; a phase adds the rotation."""


def settings_of(name: str) -> type[Settings]:
    """Make the settings of a flow from its constructor: all arguments but the first."""
    _, *rest = inspect.signature(FLOWS[name]).parameters.values()
    hints = get_type_hints(FLOWS[name].__init__, include_extras=True)
    fields: dict[str, Any] = {"type": (Literal[name], ...)}
    fields |= {each.name: (hints[each.name], each.default) for each in rest}
    return create_model(f"{FLOWS[name].__name__}Settings", __base__=Settings, **fields)


if TYPE_CHECKING:
    FlowSettings = Settings
else:
    members = Union[tuple(settings_of(name) for name in CHOSEN)]  # noqa: UP007
    FlowSettings = Annotated[members, Field(discriminator="type")]
    """The settings of any flow; its name is their ``type``."""


def build_flow(settings: FlowSettings, event_shape: Sequence[int]) -> Flow:
    """Build the flow of some :data:`FlowSettings` for events of a shape.

    Raises:
        UserError: It acts on events of another kind.
    """
    options = settings.model_dump()
    name = options.pop("type")
    flow = FLOWS[name]
    if len(event_shape) != flow.axes:
        fitting = " or ".join(each for each in CHOSEN if CHOSEN[each].axes == len(event_shape))
        raise UserError(
            f"type={name} acts on {'images' if flow.axes == 3 else 'vectors'}, not on events of "
            f"shape {tuple(event_shape)}. Allowed here: {fitting}."
        )
    return flow(event_shape if flow.axes > 1 else event_shape[0], **options)
