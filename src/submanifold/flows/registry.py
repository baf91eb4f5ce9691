"""Registry of flows: their settings, read from their constructors, and construction by name."""

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_type_hints

from pydantic import Field, create_model

from submanifold.common.errors import UserError
from submanifold.common.settings import Settings
from submanifold.flows.autoencoder import Autoencoder
from submanifold.flows.bijection import Flow, Injection
from submanifold.flows.conditional import make_conditional
from submanifold.flows.conformal import Conformal
from submanifold.flows.gaussianization import Gaussianization
from submanifold.flows.glow import Glow
from submanifold.flows.jet import Jet
from submanifold.flows.linear import Affine
from submanifold.flows.orthogonal import Rotation
from submanifold.flows.realnvp import RealNVP
from submanifold.flows.softflow import SoftGlow, SoftRealNVP
from submanifold.flows.tabular import Tabular
from submanifold.flows.trumpet import Trumpet
from submanifold.flows.zuko import Zuko

FLOWS: dict[str, type[Flow]] = {
    "glow": Glow,
    "jet": Jet,
    "realnvp": RealNVP,
    "affine": Affine,
    "gaussianization": Gaussianization,
    "tabular": Tabular,
    "zuko": Zuko,
    "conformal": Conformal,
    "soft_glow": SoftGlow,
    "soft_realnvp": SoftRealNVP,
    "trumpet": Trumpet,
    "autoencoder": Autoencoder,
    "rotation": Rotation,
}
"""Flows by name. Registering a flow here makes its name and its arguments settings."""
SELECTABLE = {name: flow for name, flow in FLOWS.items() if flow is not Rotation}
"""Flows that a stage can be configured with; a rotation is added by its own training phase."""


def _settings_of(name: str, skip: int = 0) -> type[Settings]:
    """Create a settings class from a flow's constructor, without its first ``skip`` arguments."""
    hints = get_type_hints(FLOWS[name].__init__, include_extras=True)
    parameters = list(inspect.signature(FLOWS[name]).parameters.values())[skip:]
    fields: dict[str, Any] = {"type": (Literal[name], ...)}
    for each in parameters:
        default = ... if each.default is each.empty else each.default
        fields[each.name] = hints[each.name], default
    return create_model(f"{FLOWS[name].__name__}Settings", __base__=Settings, **fields)


if TYPE_CHECKING:
    FlowSettings = Settings
else:
    members = [
        _settings_of(name, 1 + issubclass(SELECTABLE[name], Injection)) for name in SELECTABLE
    ]
    FlowSettings = Annotated[Union[tuple(members)], Field(discriminator="type")]  # noqa: UP007
    """Settings of a flow, distinguished by ``type``."""


def build_flow(settings: FlowSettings, event_shape: Sequence[int], dim: int) -> Flow:
    """Build a flow from its settings for events of a shape; ``dim`` is that of injections.

    Raises:
        UserError: The flow does not accept events of this shape.
    """
    arguments = settings.model_dump()
    name = arguments.pop("type")
    if len(event_shape) not in FLOWS[name].axes:
        allowed = [each for each in SELECTABLE if len(event_shape) in SELECTABLE[each].axes]
        raise UserError(
            f"type: expected one of {', '.join(allowed)} for events of shape {tuple(event_shape)}, "
            f"got {name}. Choose one of them."
        )
    if issubclass(FLOWS[name], Injection):
        return FLOWS[name](tuple(event_shape), dim, **arguments)
    return FLOWS[name](event_shape if len(event_shape) > 1 else event_shape[0], **arguments)


def rebuild_flow(config: Mapping[str, Any]) -> Flow:
    """Build an untrained flow from its :attr:`Flow.config` and its name as ``type``.

    Raises:
        UserError: The name is unknown, or the flow does not accept events of this shape.
        ValidationError: The other arguments are invalid.
    """
    name = config.get("type")
    if not isinstance(name, str) or name not in FLOWS:
        raise UserError(f"type: expected one of {', '.join(FLOWS)}, got {name}")
    context = config.get("context")
    own = {key: value for key, value in config.items() if key != "context"}
    arguments = _settings_of(name)(**own).model_dump(exclude={"type"})
    events = next(iter(arguments.values()))
    shape = [events] if isinstance(events, int) else events
    if len(shape) not in FLOWS[name].axes or min(shape) < 1:
        raise UserError(f"type={name}: expected another event shape, got {tuple(shape)}")
    flow = FLOWS[name](**arguments)
    if context is None:
        return flow
    if not isinstance(context, dict) or not context.keys() <= {"classes", "columns"}:
        raise UserError(f"context: expected classes or columns, got {context}")
    return make_conditional(flow, **context)
