"""Search spaces, as they are written on the command line."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from submanifold.common.errors import UserError
from submanifold.studies.experiments import CachedRun

RANGE = re.compile(r"(log:)?(.+?)\.\.(.+)")


@dataclass(frozen=True)
class Search:
    """An experiment, and the parameters that a study searches.

    Attributes:
        name: Name of the study.
        spaces: Search space of each parameter, as on the command line.
        params: Nested runtime parameters of all trials.
        project: Folder of the Kedro project; likewise its environment ``env``.
        trials: Total number of trials, including those of earlier calls.
        sampler: One of :data:`~submanifold.studies.search.study.SAMPLERS`.
        prune: Whether dominated trainings end early
            (:func:`~submanifold.studies.search.study.is_dominated`).
    """

    name: str
    spaces: Mapping[str, str]
    params: Mapping[str, Any]
    project: Path
    env: str | None = None
    trials: int = 20
    sampler: str = "tpe"
    prune: bool = True

    @property
    def base(self) -> CachedRun:
        """The experiment without the searched parameters."""
        return CachedRun(self.name, self.params, self.project, self.env)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The search spaces as Optuna distributions."""
        return {name: read_space(name, text) for name, text in self.spaces.items()}

    def experiment(self, chosen: Mapping[str, Any]) -> CachedRun:
        """The experiment of a trial."""
        run = self.base
        for name, value in chosen.items():
            is_list = isinstance(value, str) and value.startswith("[")
            run = run.changed(name, json.loads(value) if is_list else value)
        return run


def read_spaces(texts: Sequence[str]) -> dict[str, str]:
    """Split and check arguments of the form ``<parameter>=<space>`` (:func:`read_space`).

    Raises:
        UserError: A search space is missing, invalid or given twice.
    """
    spaces: dict[str, str] = {}
    for text in texts:
        name, _, space = (part.strip() for part in text.partition("="))
        if not (name and space):
            raise UserError(f"{text}: expected <parameter>=<space>, such as stage_1.dim=50..500.")
        if name in spaces:
            raise UserError(f"{name}: expected one search space, got two. Remove one of them.")
        read_space(name, space)
        spaces[name] = space
    return spaces


def read_space(name: str, text: str) -> BaseDistribution:
    """Read the search space of a parameter.

    - ``50..500``: integers, both ends included; ``0.1..0.5``: floats. One end with a decimal point
      or an exponent makes a range of floats.
    - ``log:0.1..100``: the same on a logarithmic scale.
    - ``PR-M,PR-D`` or ``[8,4],[4,2]``: one of these YAML values.

    Raises:
        UserError: The text is none of these.
    """

    def invalid(reason: str) -> UserError:
        allowed = "50..500, log:0.1..100 or a,b,c"
        return UserError(
            f"{name}: expected a search space such as {allowed}, got {text}: {reason}."
        )

    if found := RANGE.fullmatch(text):
        is_log, low, high = bool(found[1]), _number(found[2]), _number(found[3])
        if not (math.isfinite(low) and math.isfinite(high)):
            raise invalid("the ends of a range must be finite numbers")
        if not low < high:
            raise invalid(f"{found[2]} is not less than {found[3]}")
        if is_log and not low > 0:
            raise invalid("a logarithmic range must start above 0")
        is_int = isinstance(low, int) and isinstance(high, int)
        kind: Any = IntDistribution if is_int else FloatDistribution
        return kind(low, high, log=is_log)
    try:
        values = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError as error:
        raise invalid("it is not valid YAML") from error
    if text.startswith("log:") or any(isinstance(value, dict) for value in values):
        raise invalid("it is neither a range nor a list of values")
    if len(values) < 2:
        raise invalid("it is a single value. Set it with --params")
    plain = [json.dumps(value) if isinstance(value, list) else value for value in values]
    return CategoricalDistribution(plain)


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return math.nan
