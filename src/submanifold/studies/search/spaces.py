"""Search spaces, as they are written on the command line."""

import json
import math
import re
from collections.abc import Sequence

import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from submanifold.common.errors import UserError

RANGE = re.compile(r"(log:)?(.+?)\.\.(.+)")
INTEGER = re.compile(r"[-+]?\d+")


def read_spaces(texts: Sequence[str]) -> dict[str, str]:
    """Split arguments of the form ``<parameter>=<space>`` (:func:`read_space`).

    Raises:
        UserError: A search space is missing or given twice.
    """
    spaces: dict[str, str] = {}
    for text in texts:
        name, _, space = (part.strip() for part in text.partition("="))
        if not (name and space):
            raise UserError(f"{text}: expected <parameter>=<space>, such as stage_1.dim=50..500.")
        if name in spaces:
            raise UserError(f"{name}: expected one search space, got two. Remove one of them.")
        spaces[name] = space
    return spaces


def read_space(name: str, text: str) -> BaseDistribution:
    """Read the search space of a parameter.

    - ``50..500``: integers, both ends included; ``0.1..0.5``: floats. One end with a decimal point
      or an exponent makes a range of floats.
    - ``log:0.1..100``: the same on a logarithmic scale.
    - ``PR-M,PR-D`` or ``[8,4],[4,2]``: one of these YAML values; lists are written as JSON.

    Raises:
        UserError: The text is none of these.
    """
    try:
        if found := RANGE.fullmatch(text):
            return _read_range(bool(found[1]), found[2], found[3])
        values = yaml.safe_load(f"[{text}]")
        if text.startswith("log:") or any(isinstance(value, dict) for value in values):
            raise ValueError("It is neither a range nor a list of values.")
        if len(values) < 2:
            raise ValueError("It is a single value. Set it with --params.")
    except (ValueError, yaml.YAMLError) as error:
        reason = "It is not valid YAML." if isinstance(error, yaml.YAMLError) else error
        raise UserError(
            f"{name}: expected a search space such as 50..500, log:0.1..100 or a,b,c, got {text}. "
            f"{reason}"
        ) from error
    plain = [json.dumps(value) if isinstance(value, list) else value for value in values]
    return CategoricalDistribution(plain)


def _read_range(is_log: bool, low: str, high: str) -> BaseDistribution:
    """Read a range; raise a ValueError if it is invalid."""
    if INTEGER.fullmatch(low) and INTEGER.fullmatch(high):
        return IntDistribution(int(low), int(high), log=is_log)
    if not math.isfinite(float(high) - float(low)):
        raise ValueError("The ends of a range must be finite numbers.")
    return FloatDistribution(float(low), float(high), log=is_log)
