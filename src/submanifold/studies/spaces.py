"""What a study searches: one experiment, and what several of its parameters may be."""

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
from submanifold.studies.experiments import Experiment

RANGE = re.compile(r"(log:)?(.+?)\.\.(.+)")


@dataclass(frozen=True)
class Search:
    """What a study searches, and how.

    Attributes:
        name: Of the study.
        spaces: How each parameter is searched, as on the command line.
        params: What all trials have, as on the command line of `kedro run`, nested.
        project: Folder of the project.
        env: Environment of the configuration.
        trials: How many the study is to have, those of earlier calls counted.
        sampler: Of :data:`~submanifold.studies.studies.SAMPLERS`.
        prune: Whether trainings that do worse than others end early
            (:func:`~submanifold.studies.studies.is_dominated`).
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
    def base(self) -> Experiment:
        """The experiment without what is searched."""
        return Experiment(self.name, self.params, self.project, self.env)

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The spaces as Optuna's; a UserError for what is none."""
        return {name: read_space(name, text) for name, text in self.spaces.items()}

    def experiment(self, chosen: Mapping[str, Any]) -> Experiment:
        """The experiment of a trial."""
        experiment = self.base
        for name, value in chosen.items():
            is_list = isinstance(value, str) and value.startswith("[")
            experiment = experiment.changed(name, json.loads(value) if is_list else value)
        return experiment


def read_spaces(texts: Sequence[str]) -> dict[str, str]:
    """Read how parameters are searched, each ``<name>=<space>`` (:func:`read_space`).

    Raises:
        UserError: One has no space, or one that cannot be read, or stands there twice.
    """
    spaces: dict[str, str] = {}
    for text in texts:
        name, sign, space = (part.strip() for part in text.partition("="))
        if not (name and sign and space):
            raise UserError(
                f"{text!r} does not say what to search. Write <parameter>=<low>..<high>, "
                "=log:<low>..<high> or =<value>,<value>."
            )
        if name in spaces:
            raise UserError(f"{name} is searched twice. Leave one of them out.")
        read_space(name, space)
        spaces[name] = space
    return spaces


def read_space(name: str, text: str) -> BaseDistribution:
    """Read what a parameter may be.

    - ``50..500``: whole numbers, the ends among them; ``0.1..0.5``: any numbers. One end with a
      point or an exponent makes it these.
    - ``log:0.1..100``: the same, evenly on a logarithmic scale.
    - ``PR-M,PR-D`` or ``[8,4],[4,2]``: one of these values, as in a file of YAML.

    Raises:
        UserError: It is none of these.
    """
    said, allowed = f"{name}={text} cannot be searched", "Allowed: 50..500, log:0.1..100, or a,b,c."
    if (found := RANGE.fullmatch(text)) is not None:
        low, high = map(_number, found.groups()[1:])
        if low is None or high is None:
            raise UserError(f"{said}: the ends of a range are numbers. {allowed}")
        if not low < high:
            raise UserError(f"{said}: {found[2]} is not below {found[3]}. {allowed}")
        if found[1] and not low > 0:
            raise UserError(f"{said}: a logarithmic scale begins above 0. {allowed}")
        whole = isinstance(low, int) and isinstance(high, int)
        kind: Any = IntDistribution if whole else FloatDistribution
        return kind(low, high, log=bool(found[1]))
    try:
        values = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError as error:
        raise UserError(f"{said}: it cannot be read as YAML. {allowed}") from error
    if text.startswith("log:") or any(isinstance(value, dict) for value in values):
        raise UserError(f"{said}: it is neither a range nor values. {allowed}")
    if len(values) < 2:
        raise UserError(f"{said}: it is one value, to be given with --params. {allowed}")
    plain = [json.dumps(value) if isinstance(value, list) else value for value in values]
    return CategoricalDistribution(plain)


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        return number if math.isfinite(number) else None
    return None
