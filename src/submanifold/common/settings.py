"""Settings as typed models, and one clear message for everything that is wrong with them."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from submanifold.common.errors import UserError


class Settings(BaseModel):
    """Settings with no room for a misspelt name, for infinity, or for true where 1 is meant."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, Mapping) else ():
            field = cls.model_fields.get(name)
            given = value if isinstance(value, list | tuple) else [value]
            if (
                field
                and any(isinstance(each, bool) for each in given)
                and (bool not in _members(field.annotation))
            ):
                raise ValueError(f"{name}={value} cannot be used: it is neither true nor false")
        return values


def _check_name(name: str) -> str:
    """Refuse what is not one component of a path on every system, nor a name of MLflow's."""
    if not re.fullmatch(r"\w[\w. +-]*(?<![. ])", name) or len(name.encode()) > LONGEST_NAME:
        raise PydanticCustomError(
            "name",
            "it names files, so that it may have letters, digits and _ + - . and spaces, begins "
            "with one of the first three, does not end with a dot or a space, and has at most "
            f"{LONGEST_NAME} bytes",
        )
    return name


LONGEST_NAME = 100
"""Bytes, so that the file names that have several, and a key, stay below 255."""
Name = Annotated[str, AfterValidator(_check_name)]
"""A name that a user gives to something that is kept in files."""

Model = TypeVar("Model", bound=BaseModel)


def read_settings(model: type[Model], mapping: Mapping[str, Any], where: str) -> Model:
    """Validate what the user gave under a parameter's name, such as ``stage_1``.

    Raises:
        UserError: Naming every setting that cannot work, what it may be, and where to change it.
    """
    try:
        return model.model_validate(dict(mapping))
    except ValidationError as error:
        problems = "; ".join(_explain(problem, model, where) for problem in error.errors())
        group = f"{where}." if where else ""
        raise UserError(
            f"{problems}. Change it in conf/base/parameters.yml, or with "
            f"kedro run --params={group}<name>=<value>."
        ) from None


def _explain(problem: Any, model: type[BaseModel], where: str) -> str:
    path = [part for part in problem["loc"] if isinstance(part, str)]
    names, known, tags = _locate(model, path)
    name, kind = ".".join([where, *names]).removeprefix("."), problem["type"]
    if kind == "extra_forbidden":
        return f"{name} is not a setting; known: {', '.join(known)}"
    if kind == "missing":
        return f"{name} is missing"
    if kind == "literal_error":
        return f"{name}={problem['input']} is not known; known: {problem['ctx']['expected']}"
    if kind.startswith("union_tag"):
        name += "." + problem["ctx"]["discriminator"].strip("'")
        wrong = (
            f"={problem['ctx']['tag']} is not known" if "tag" in problem["ctx"] else " is missing"
        )
        return f"{name}{wrong}; known: {', '.join(tags)}"
    if kind == "value_error":
        prefix = ".".join([where, *names]).removeprefix(".")
        return f"{prefix}.{problem['ctx']['error']}".removeprefix(".")
    return f"{name}={problem['input']} cannot be used: {problem['msg']}"


def _locate(model: Any, path: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Names on a path, without tags of unions; what the last could be; its tags if a union."""
    names: list[str] = []
    known: list[str] = []
    members: list[Any] = [model]
    for part in path:
        if names and (tagged := [each for each in members if part in _tags(each)]):
            members = tagged  # pydantic writes flow.glow.width, the user flow.width
            continue
        models = [each for each in members if hasattr(each, "model_fields")]
        fields: dict[str, Any] = models[0].model_fields if models else {}
        names, known = [*names, part], list(fields)
        members = _members(fields[part].annotation if part in fields else None)
    return names, known, [repr(tag) for each in members for tag in _tags(each)]


def _members(annotation: Any) -> list[Any]:
    """A type and all that it is made of, such as those of a union in a list."""
    return [annotation, *(member for each in get_args(annotation) for member in _members(each))]


def _tags(member: Any) -> tuple[Any, ...]:
    fields = getattr(member, "model_fields", {})
    field = fields.get("type") or fields.get("penalty")
    return getattr(field.annotation, "__args__", ()) if field is not None else ()
