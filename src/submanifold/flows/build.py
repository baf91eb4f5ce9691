"""Flows by name: their settings, read off their constructors, and how they are built."""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_type_hints

from pydantic import Field, create_model

from submanifold.errors import UserError
from submanifold.flows.autoencoder import Autoencoder
from submanifold.flows.bijection import Flow, Injection
from submanifold.flows.conformal import Conformal
from submanifold.flows.gaussianization import Gaussianization
from submanifold.flows.glow import Glow
from submanifold.flows.jet import Jet
from submanifold.flows.linear import Affine
from submanifold.flows.realnvp import RealNVP
from submanifold.flows.rotation import Rotation
from submanifold.flows.softflow import SoftGlow, SoftRealNVP
from submanifold.flows.trumpet import Trumpet
from submanifold.validation import Settings

CHOSEN: dict[str, type[Flow]] = {
    "glow": Glow, "jet": Jet, "realnvp": RealNVP, "affine": Affine,
    "gaussianization": Gaussianization, "conformal": Conformal,
    "soft_glow": SoftGlow, "soft_realnvp": SoftRealNVP, "trumpet": Trumpet,
    "autoencoder": Autoencoder,
}  # fmt: skip
"""Flows that a user can choose."""
FLOWS: dict[str, type[Flow]] = {**CHOSEN, "rotation": Rotation}
"""All flows that a stage may consist of; a phase adds the rotation."""


def settings_of(name: str) -> type[Settings]:
    """Make the settings of a flow from its constructor: all but what it acts on, and makes."""
    _, *rest = inspect.signature(FLOWS[name]).parameters.values()
    if issubclass(FLOWS[name], Injection):
        del rest[0]
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


def build_flow(settings: FlowSettings, event_shape: Sequence[int], dim: int) -> Flow:
    """Build the flow of some :data:`FlowSettings` for events of a shape.

    Args:
        settings: Its type and its own settings.
        event_shape: Of what it acts on.
        dim: The dimension of the manifold, for flows that have no other latents.

    Raises:
        UserError: It acts on events of another kind.
    """
    options = settings.model_dump()
    name = options.pop("type")
    flow = FLOWS[name]
    if len(event_shape) not in flow.axes:
        fitting = " or ".join(each for each in CHOSEN if len(event_shape) in CHOSEN[each].axes)
        raise UserError(
            f"type={name} acts on {'images' if 3 in flow.axes else 'vectors'}, not on events of "
            f"shape {tuple(event_shape)}. Allowed here: {fitting}."
        )
    if issubclass(flow, Injection):
        return flow(tuple(event_shape), dim, **options)
    return flow(event_shape if len(event_shape) > 1 else event_shape[0], **options)
