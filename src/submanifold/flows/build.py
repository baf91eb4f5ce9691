"""Flows by name: their settings, read off their constructors, and how they are built."""

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_type_hints

from pydantic import Field, create_model

from submanifold.common.errors import UserError
from submanifold.common.settings import Settings
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

CHOSEN: dict[str, type[Flow]] = {
    "glow": Glow, "jet": Jet, "realnvp": RealNVP, "affine": Affine,
    "gaussianization": Gaussianization, "conformal": Conformal,
    "soft_glow": SoftGlow, "soft_realnvp": SoftRealNVP, "trumpet": Trumpet,
    "autoencoder": Autoencoder,
}  # fmt: skip
"""Flows that a user can choose."""
FLOWS: dict[str, type[Flow]] = {**CHOSEN, "rotation": Rotation}
"""All flows that a stage may consist of; a phase adds the rotation."""


def arguments_of(name: str) -> dict[str, Any]:
    """Type and default of every argument of a flow's constructor, as pydantic has them."""
    hints = get_type_hints(FLOWS[name].__init__, include_extras=True)
    return {
        each.name: (hints[each.name], ... if each.default is each.empty else each.default)
        for each in inspect.signature(FLOWS[name]).parameters.values()
    }


def settings_of(name: str) -> type[Settings]:
    """Make the settings of a flow from its constructor: all but what it acts on, and makes."""
    given = 2 if issubclass(FLOWS[name], Injection) else 1
    fields: dict[str, Any] = {"type": (Literal[name], ...)}
    fields |= list(arguments_of(name).items())[given:]
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


def rebuild_flow(config: Mapping[str, Any]) -> Flow:
    """Build an untrained flow.

    Args:
        config: Its :attr:`Flow.config`, and its name as ``type``.

    Raises:
        UserError: There is no such flow, or it acts on events of another kind.
        ValidationError: The flow has other arguments.
    """
    name, given = config.get("type"), {key: config[key] for key in config if key != "type"}
    if not isinstance(name, str) or name not in FLOWS:
        raise UserError(f"type: expected one of {', '.join(FLOWS)}, got {name}")
    arguments = create_model(name, __base__=Settings, **arguments_of(name))(**given).model_dump()
    events = next(iter(arguments.values()))
    shape = [events] if isinstance(events, int) else events
    if len(shape) not in FLOWS[name].axes or min(shape) < 1:
        raise UserError(f"type={name} does not act on events of shape {tuple(shape)}")
    return FLOWS[name](**arguments)
