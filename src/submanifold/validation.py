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
    names, known, tags = _locate(model, path)
    name, kind = ".".join([where, *names]), problem["type"]
    if kind == "extra_forbidden":
        return f"{name} is not a setting; known: {', '.join(known)}"
    if kind == "missing":
        return f"{name} is missing"
    if kind == "literal_error":
        return f"{name}={problem['input']} is not known; known: {problem['ctx']['expected']}"
    if kind == "union_tag_invalid":
        return f"{name}.type={problem['ctx']['tag']} is not known; known: {', '.join(tags)}"
    if kind == "union_tag_not_found":
        return f"{name}.type is missing; known: {', '.join(tags)}"
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    return f"{name}={problem['input']} cannot be used: {problem['msg']}"


def _locate(model: Any, path: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Follow a path into nested models.

    Returns:
        The names on the path without the tags that pydantic puts after a union's name
        (flow.glow.width is written flow.width), the names allowed where the last one stands, and
        the tags that it may have.
    """
    names: list[str] = []
    known: list[str] = []
    members: list[Any] = [model]
    for part in path:
        if names and any(part in _tags(member) for member in members):
            members = [member for member in members if part in _tags(member)]
            continue
        fields: dict[str, Any] = next(
            (member.model_fields for member in members if hasattr(member, "model_fields")), {}
        )
        names, known = [*names, part], list(fields)
        inner = fields[part].annotation if part in fields else None
        members = [inner, *getattr(inner, "__args__", ())]
    return names, known, [repr(tag) for member in members for tag in _tags(member)]


def _tags(member: Any) -> tuple[Any, ...]:
    field = getattr(member, "model_fields", {}).get("type")
    return getattr(field.annotation, "__args__", ()) if field is not None else ()
