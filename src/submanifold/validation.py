"""Settings as typed models, and one clear message for everything that is wrong with them."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from submanifold.errors import UserError


class Settings(BaseModel):
    """Settings with no room for a misspelt name."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Model = TypeVar("Model", bound=BaseModel)


def read_settings(model: type[Model], mapping: Mapping[str, Any], where: str) -> Model:
    """Validate what the user gave.

    Args:
        model: The settings' class.
        mapping: Names and values.
        where: The parameter that holds them, such as ``stage_1``.

    Raises:
        UserError: Naming every setting that cannot work, what it may be, and where to change it.
    """
    try:
        return model.model_validate(dict(mapping))
    except ValidationError as error:
        problems = "; ".join(_explain(problem, model, where) for problem in error.errors())
        raise UserError(
            f"{problems}. Change it in conf/base/parameters.yml, or with "
            f"kedro run --params={where}.<name>=<value>."
        ) from None


def _explain(problem: Any, model: type[BaseModel], where: str) -> str:
    path = [part for part in problem["loc"] if isinstance(part, str)]
    name, kind = ".".join([where, *path]), problem["type"]
    if kind == "extra_forbidden":
        return f"{name} is not a setting; known: {', '.join(_siblings(model, path))}"
    if kind == "missing":
        return f"{name} is missing"
    if kind in ("literal_error", "union_tag_invalid"):
        expected = problem["ctx"].get("expected") or problem["ctx"]["expected_tags"]
        return f"{name}={problem['input']} is not known; known: {expected}"
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    return f"{name}={problem['input']} cannot be used: {problem['msg']}"


def _siblings(model: Any, path: list[str]) -> list[str]:
    """Names allowed where the last part of the path stands."""
    for part in path[:-1]:
        field = model.model_fields.get(part)
        if field is None:
            # a union's tag, such as flow.glow: the part names one of the union's models
            return []
        inner = field.annotation
        members = [inner, *getattr(inner, "__args__", ())]
        tagged = [m for m in members if path[path.index(part) + 1] in _tags(m)]
        model = (tagged or [m for m in members if hasattr(m, "model_fields")])[0]
        if tagged:
            break
    return list(model.model_fields)


def _tags(member: Any) -> tuple[Any, ...]:
    field = getattr(member, "model_fields", {}).get("type")
    return getattr(field.annotation, "__args__", ()) if field is not None else ()
