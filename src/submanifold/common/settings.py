"""Typed settings, and error messages for settings that fail validation."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from submanifold.common.errors import UserError, did_you_mean

MAX_NAME_BYTES = 100  # file names contain several names and a key, and are limited to 255 bytes


class Settings(BaseModel):
    """Base class of settings: frozen, without unknown names, infinities or booleans as numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _reject_booleans(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, Mapping) else ():
            has_boolean = any(isinstance(each, bool) for each in _as_list(value))
            field = cls.model_fields.get(name)
            if has_boolean and field and bool not in _member_types(field.annotation):
                raise ValueError(f"{name}={value} cannot be used: expected no boolean")
        return values


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _check_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w. +-]*(?<![. ])", name) or len(name.encode()) > MAX_NAME_BYTES:
        raise PydanticCustomError(
            "name",
            "expected a file name of letters, digits, spaces and _ + - . that begins with a "
            "letter, digit or _, does not end with . or a space, and has at most "
            f"{MAX_NAME_BYTES} bytes",
        )
    return name


Name = Annotated[str, AfterValidator(_check_name)]
"""A name chosen by the user that becomes part of file names."""

Model = TypeVar("Model", bound=BaseModel)


def read_settings(
    model: type[Model], mapping: Mapping[str, Any], where: str, fix: str = ""
) -> Model:
    """Validate a group of settings.

    Args:
        model: The settings' class.
        mapping: The values.
        where: Name of the group, such as ``stage_1``; empty at the top level.
        fix: How to change the values, by default with ``--params``.

    Raises:
        UserError: One message for all invalid settings, with the allowed values.
    """
    try:
        return model.model_validate(dict(mapping))
    except ValidationError as error:
        problems = "; ".join(_explain(problem, model, where) for problem in error.errors())
        group = f"{where}." if where else ""
        fix = fix or (
            f"Change it with --params={group}<name>=<value>, or in conf/local/parameters.yml."
        )
        raise UserError(f"{problems}{'' if problems.endswith('?') else '.'} {fix}") from None


def _explain(problem: Any, model: type[BaseModel], where: str) -> str:
    path = [part for part in problem["loc"] if isinstance(part, str)]
    names, known, tags = _locate(model, path)
    name, context = ".".join([where, *names]).removeprefix("."), problem.get("ctx", {})
    match problem["type"]:
        case "extra_forbidden":
            hint = did_you_mean(names[-1], known)
            return f"{name} is not a setting; known: {', '.join(known)}.{hint}".removesuffix(".")
        case "missing":
            return f"{name} is missing"
        case "literal_error":
            return f"{name}={problem['input']} is not known; known: {context['expected']}"
        case "union_tag_invalid" | "union_tag_not_found":
            tag = f"={context['tag']} is not known" if "tag" in context else " is missing"
            return f"{name}.{context['discriminator'][1:-1]}{tag}; known: {', '.join(tags)}"
        case "value_error":  # its message begins with the name of a setting
            return f"{name}.{context['error']}".removeprefix(".")
    return f"{name}={problem['input']} cannot be used: {problem['msg']}"


def _locate(model: Any, path: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the path without tags of unions, the names known there, and the tags of a union."""
    names: list[str] = []
    known: list[str] = []
    members: list[Any] = [model]
    for part in path:
        if names and (tagged := [each for each in members if part in _tags(each)]):
            members = tagged  # pydantic: flow.glow.width; the user: flow.width
            continue
        models = [each for each in members if hasattr(each, "model_fields")]
        fields: dict[str, Any] = models[0].model_fields if models else {}
        names, known = [*names, part], list(fields)
        members = _member_types(fields[part].annotation if part in fields else None)
    return names, known, [repr(tag) for each in members for tag in _tags(each)]


def _member_types(annotation: Any) -> list[Any]:
    """Return a type and the types nested in it, such as those of a union in a list."""
    return [annotation, *(each for arg in get_args(annotation) for each in _member_types(arg))]


def _tags(member: Any) -> tuple[Any, ...]:
    """Return the values of the field that discriminates a class within a union."""
    fields = getattr(member, "model_fields", {})
    field = fields.get("type") or fields.get("penalty")
    return get_args(field.annotation) if field is not None else ()
