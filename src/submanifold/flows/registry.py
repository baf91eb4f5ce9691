"""Registry of flows: their settings, read from their constructors, and construction by name."""

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_type_hints

from pydantic import Field, create_model, model_validator

from submanifold.common.errors import UserError, list_names, unexpected
from submanifold.common.settings import Settings
from submanifold.flows.autoencoder import Autoencoder
from submanifold.flows.bijection import Flow, Injection
from submanifold.flows.conditional import context_of, make_conditional
from submanifold.flows.conformal import Conformal
from submanifold.flows.gaussianization import Gaussianization
from submanifold.flows.glow import Glow
from submanifold.flows.linear import Affine
from submanifold.flows.orthogonal import Rotation
from submanifold.flows.realnvp import RealNVP
from submanifold.flows.softflow import SoftGlow, SoftRealNVP
from submanifold.flows.tabular import Tabular
from submanifold.flows.trumpet import Trumpet
from submanifold.flows.zuko import Zuko

FLOWS: dict[str, type[Flow]] = {
    "glow": Glow,
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


MAX_SIZE = 16_384  #: Largest size or number of parts among a flow's settings.


class _Selected(Settings):
    """Base class of the settings of a flow, without sizes that no memory would hold."""

    @model_validator(mode="after")
    def _check_sizes(self) -> "_Selected":
        for name, value in self:
            if isinstance(value, int) and value > MAX_SIZE:
                raise ValueError(f"{name}: expected at most {MAX_SIZE:,}, got {value:,}")
        return self


def _leading(name: str) -> list[str]:
    """Names of the first arguments, which the data and the stage determine."""
    return [*inspect.signature(FLOWS[name]).parameters][: 1 + issubclass(FLOWS[name], Injection)]


@cache
def _settings_of(name: str, is_complete: bool) -> type[Settings]:
    """Create a settings class from a flow's constructor, complete or without the leading ones."""
    hints = get_type_hints(FLOWS[name].__init__, include_extras=True)
    fields: dict[str, Any] = {"type": (Literal[name], ...)}
    for parameter in inspect.signature(FLOWS[name]).parameters.values():
        if is_complete or parameter.name not in _leading(name):
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = hints.get(parameter.name, Any), default
    base = Settings if is_complete else _Selected
    return create_model(f"{FLOWS[name].__name__}Settings", __base__=base, **fields)


if TYPE_CHECKING:
    FlowSettings = Settings
else:
    members = tuple(_settings_of(name, False) for name in SELECTABLE)
    FlowSettings = Annotated[Union[members], Field(discriminator="type")]  # noqa: UP007
    """Settings of a flow, distinguished by ``type``."""


def build_flow(
    settings: Mapping[str, Any], event_shape: Sequence[int] | None = None, dim: int | None = None
) -> Flow:
    """Build an untrained flow from what :func:`describe_flow` returned, or from its settings.

    They have the name as ``type``, the arguments of its constructor, and the ones of
    :func:`.make_conditional` as ``context``. :data:`FlowSettings` lack the shape of an event and
    the dimension of an injection. An unknown name, or a flow that does not accept events of this
    shape, raises UserError; other invalid arguments raise ValidationError.
    """
    arguments = dict(settings)
    name, context = arguments.pop("type", None), arguments.pop("context", None)
    if not isinstance(name, str) or name not in FLOWS:
        fix = f"Register a flow of yours first: submanifold.flows.FLOWS[{name!r}] = ..."
        raise unexpected("type", f"one of {list_names(FLOWS, str(name))}", name, fix)
    if event_shape is not None:
        first = event_shape[0] if FLOWS[name].axes == (1,) else list(event_shape)
        arguments |= zip(_leading(name), (first, dim), strict=False)
    checked = _settings_of(name, True).model_validate({"type": name, **arguments})
    arguments = checked.model_dump(exclude={"type"})
    shape = event_shape or arguments[_leading(name)[0]]
    shape = [shape] if isinstance(shape, int) else shape
    if len(shape) not in FLOWS[name].axes or min(shape) < 1:
        allowed = [key for key, flow in SELECTABLE.items() if len(shape) in flow.axes]
        expected = f"one of {', '.join(allowed)} for events of shape {tuple(shape)}"
        raise unexpected("type", expected, name, "Choose one of them")
    flow = FLOWS[name](**arguments)
    if context is None:
        return flow
    if not isinstance(context, dict) or not context.keys() <= {"classes", "columns", "mask"}:
        raise UserError(f"context: expected classes, columns or mask, got {context}")
    return make_conditional(flow, **context)


def describe_flow(flow: Flow) -> dict[str, Any]:
    """Return the name of a flow as ``type``, its arguments and its ``context``, as JSON."""
    name = next((name for name, registered in FLOWS.items() if type(flow) is registered), None)
    if name is None:
        kind = type(flow).__name__
        raise UserError(
            f"flow: expected a registered class, from which a saved model is built, got {kind}. "
            f'Register it before training and loading: submanifold.flows.FLOWS["<name>"] = {kind}.'
        )
    context = context_of(flow)
    return {"type": name, **flow.arguments, **({"context": context} if context else {})}
