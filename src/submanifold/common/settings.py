"""Typed settings, and error messages for settings that fail validation."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ValidationError, ValidationInfo, model_validator

from submanifold.common.errors import UserError, did_you_mean, list_names


class Settings(BaseModel):
    """Base class of settings: frozen, without unknown names or infinities."""

    model_config = {"extra": "forbid", "frozen": True, "allow_inf_nan": False}

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, values: Any, info: ValidationInfo) -> Any:
        if isinstance(values, Mapping) and info.context is not None:
            unknown = values.keys() - cls.model_fields
            info.context.update({name: [*cls.model_fields] for name in unknown})  # for the message
        return values


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Write nested parameters with dots: ``{"stage_1": {"dim": 5}}`` as ``{"stage_1.dim": 5}``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat


def parse_yaml(text: str) -> Any:
    """Read YAML as Kedro does, in which 1e-3 is a number."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.create(text))


def _check_name(name: str) -> str:
    # file names contain several names and a key, and are limited to 255 bytes
    if not re.fullmatch(r"\w[\w. +-]*(?<![. ])", name) or len(name.encode()) > 100:
        raise AssertionError(
            "expected a file name of at most 100 bytes, of letters, digits, spaces and _ + - . "
            "that begins with a letter, digit or _, and does not end with . or a space"
        )
    return name


Name = Annotated[str, AfterValidator(_check_name)]
"""A name chosen by the user that becomes part of file names."""

Model = TypeVar("Model", bound=BaseModel)


def read_settings(
    model: type[Model], mapping: Mapping[str, Any], where: str, fix: str = ""
) -> Model:
    """Validate a group of settings, such as ``stage_1`` (``where``; empty at the top level).

    A UserError has one message for all invalid settings, with the allowed values and the ``fix``.
    """
    known: dict[str, list[str]] = {}
    try:
        return model.model_validate(dict(mapping), context=known)
    except ValidationError as error:
        text = "; ".join(_explain(problem, mapping, where, known) for problem in error.errors())
        usual = f"Change it with --params={where and f'{where}.'}<name>=<value>."
        raise UserError(f"{text}{'' if text.endswith('?') else '.'} {fix or usual}") from None


def _explain(problem: Any, mapping: Any, where: str, known: Mapping[str, list[str]]) -> str:
    name, last = _name(problem, mapping, where), problem["loc"][-1:]
    match problem["type"]:
        case "extra_forbidden":
            names = known[last[0]]
            hint = did_you_mean(last[0], names)
            return (
                f"{name} is not a setting; known: {list_names(names, last[0])}{hint and '.' + hint}"
            )
        case "missing":
            return f"{name} is missing"
        case "union_tag_invalid":
            tag = problem["ctx"]
            kind = tag["discriminator"].strip("'")
            names = re.findall(r"'(.*?)'", tag["expected_tags"])
            listed = list_names(names, tag["tag"])
            return f"{name}.{kind}={tag['tag']} is not known; known: {listed}"
        case "value_error":  # its message begins with the name of a setting
            return f"{name}.{problem['ctx']['error']}".removeprefix(".")
    reason = problem["msg"].removeprefix("Assertion failed, ")  # by pydantic
    return f"{name}={problem['input']} cannot be used: {reason}"


def _name(problem: Any, values: Any, where: str) -> str:
    """Return a setting's name: pydantic has flow.glow.width, the user flow.width."""
    names = [where] if where else []
    for part in problem["loc"]:
        is_missing = problem["type"] == "missing" and part == problem["loc"][-1]
        if isinstance(values, Mapping) and (part in values or is_missing):
            names.append(part)
            values = values.get(part)
        elif isinstance(values, list | tuple):
            values = values[part]
    return ".".join(names)
