"""From conf/ to one experiment: the chosen tables, typed settings, and a key for each artifact."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from click import ClickException
from kedro.config import OmegaConfigLoader
from omegaconf import OmegaConf
from pydantic import Field

from submanifold.data.images import fingerprint
from submanifold.data.settings import ImageSettings, read_data_settings
from submanifold.errors import UserError
from submanifold.manifold import StageSettings, build_hierarchy
from submanifold.training.trainer import TrainingSettings
from submanifold.validation import Settings, read_settings

RECIPE = 1
"""Raise it when the same settings would no longer give the same artifacts."""
EVALUATION_RECIPE = 2
"""Raise it when the same model would no longer give the same figures and pages."""

RAW = Path("data/01_raw")
SMALLEST = 7


class EvaluationSettings(Settings):
    """What is measured on the test images."""

    samples: int = Field(gt=1, description="samples for the distances between distributions")
    dequantizations: int = Field(gt=0, description="noise draws for the importance bound on BPD")
    inception_weights: str


class ExperimentSettings(Settings):
    """The parameters that are single values."""

    dataset: str
    method: str
    schedule: Literal["hierarchical", "joint"]
    seed: int = Field(ge=0)
    device: str
    sweep: str | None = None


class ExperimentConfigLoader(OmegaConfigLoader):
    """Kedro's loader, whose parameters are one experiment and whose paths carry its keys.

    - The tables ``datasets``, ``methods`` and ``stage_defaults`` are replaced by the rows that
      ``dataset`` and ``method`` choose (:func:`choose`).
    - ``${key:data}``, ``${key:model}`` and ``${key:run}`` are hashes of all that an artifact
      depends on, so that a changed setting means another path, and a setting changed back finds
      its artifacts again; ``${parameter:name}`` is a parameter's value.
    - A catalog entry named ``stage_{n}.<name>`` stands for one entry of every stage, ``{n}`` for
      its number and ``{key}`` for its key.
    """

    def __getitem__(self, key: str) -> dict[str, Any]:
        """Load one kind of configuration."""
        if key in self or key == "globals":
            return super().__getitem__(key)
        OmegaConf.register_new_resolver("key", lambda name: self.artifacts[name], replace=True)
        OmegaConf.register_new_resolver("parameter", self._parameter, replace=True)
        OmegaConf.register_new_resolver("project_path", lambda: self._project, replace=True)
        try:
            if key == "parameters":
                return deepcopy(self._chosen)
            keys = self.artifacts  # first, since a resolver would wrap the user's mistake
            config = super().__getitem__(key)
            return expand(config, keys) if key == "catalog" else config
        except UserError as error:
            raise ClickException(str(error)) from error

    @cached_property
    def _chosen(self) -> dict[str, Any]:
        return choose(super().__getitem__("parameters"))

    @cached_property
    def artifacts(self) -> dict[str, str]:
        """Key of each artifact: ``data``, ``stage_<n>``, ``model`` and ``run``."""
        return artifact_keys(self._chosen, Path(self._project))

    @property
    def _project(self) -> str:
        return str(Path(self.conf_source).resolve().parent)

    def _parameter(self, name: str) -> Any:
        return self._chosen[name]


def choose(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Turn tables and choices into the parameters of one experiment, all of them checked.

    A dataset's row may say what the method's stages are on it, such as their dimensions. What
    ``data`` and ``stage_<n>`` hold in an environment's file or on the command line is laid over the
    chosen rows; a ``stage_<n>`` beyond the method's last adds a stage to it.

    Raises:
        UserError: A name is unknown, or a value cannot work.
    """
    # Kedro leaves these out of every other configuration, where they serve YAML's anchors
    given = {name: value for name, value in parameters.items() if not name.startswith("_")}
    datasets, methods = given.pop("datasets"), given.pop("methods")
    defaults, training = given.pop("stage_defaults"), given.pop("training")
    groups = [name for name in given if name.startswith("stage_")]
    for name in [*groups, "data", "evaluation"]:
        _check_group(name, given.get(name, {}))
    _check_group("training", training)
    dataset, method = given.get("dataset"), given.get("method")
    data = _row(datasets, dataset, "dataset")
    stages = _row(methods, method, "method")
    schedule = given.pop("schedule", stages.pop("schedule", "hierarchical"))
    for name in [name for name in data if name.startswith("stage_")]:
        own = data.pop(name)
        if name in stages:  # a dataset's second stage is for the methods that have one
            stages = _merge(stages, {name: own})
    data = _merge(data, given.pop("data", {}), "data")
    for name in groups:
        stages = _merge(stages, {name: given.pop(name)})
    numbered = [f"stage_{n}" for n in range(1, len(stages) + 1)]
    if set(stages) != set(numbered):
        raise UserError(
            f"Stages have to be numbered from 1 without a gap, but these are set: "
            f"{', '.join(sorted(stages))}. Change stage_<n> on the command line or in conf/."
        )
    for name in numbered:
        _check_group(f"{name}.flow", stages[name].get("flow", {}))
        kind = stages[name].get("flow", {}).get("type", "realnvp")
        row = _row(defaults, kind, f"{name}.flow.type")
        stages[name] = _merge(_merge({"training": training}, row), stages[name], name)
    evaluation = given.pop("evaluation")
    experiment = read_settings(ExperimentSettings, {**given, "schedule": schedule}, "parameters")
    chosen = {**experiment.model_dump(), "data": data, "evaluation": evaluation}
    chosen |= {name: stages[name] for name in numbered}
    check(chosen)
    return chosen


def check(parameters: Mapping[str, Any]) -> None:
    """Build everything that the parameters describe, on no device, to find what cannot work.

    Raises:
        UserError: Naming the parameter.
    """
    data = read_data_settings(parameters["data"])
    if isinstance(data, ImageSettings) and data.size < SMALLEST:
        raise UserError(
            f"data.size={data.size} is too small: images are compared by patches of {SMALLEST} "
            f"pixels. Allowed: {SMALLEST} or more. Change it with --params=data.size=32."
        )
    read_settings(EvaluationSettings, parameters["evaluation"], "evaluation")
    stages = []
    for name, settings in stage_settings(parameters).items():
        rest = {key: value for key, value in settings.items() if key != "training"}
        stages.append(read_settings(StageSettings, rest, name))
        read_settings(TrainingSettings, settings["training"], f"{name}.training")
    with torch.device("meta"):
        build_hierarchy(stages, data.event_shape)


def stage_settings(parameters: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The stages among the parameters, ``stage_1`` first."""
    names = _in_order(name for name in parameters if name.startswith("stage_"))
    return {name: parameters[name] for name in names}


def artifact_keys(parameters: Mapping[str, Any], project: Path) -> dict[str, str]:
    """Hash what each artifact depends on, as readable names for files.

    Data: the source's fingerprint and the data settings. Stage n: the data, the seed, and stages 1
    to n. Not: the device, the place of the files, logging.
    """
    dataset, method = parameters["dataset"], parameters["method"]
    data = read_data_settings(parameters["data"])
    source = fingerprint(data, project / RAW)
    where = {"path", "url", "hash"}
    digest = _digest(RECIPE, source, data.model_dump(mode="json", exclude=where))
    keys = {"data": f"{dataset}-{digest}"}
    digest = _digest(digest, parameters["seed"])
    for name, settings in stage_settings(parameters).items():
        digest = _digest(digest, settings)
        keys[name] = f"{dataset}-{name}-{digest}"
    digest = _digest(digest, parameters["schedule"])
    keys["model"] = f"{dataset}-{method}-{digest}"
    digest = _digest(EVALUATION_RECIPE, digest, parameters["evaluation"])
    keys["run"] = f"{dataset}-{method}-{digest}"
    return keys


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Write nested parameters with dots: ``{"stage_1": {"dim": 5}}`` as ``{"stage_1.dim": 5}``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat


def expand(catalog: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """Write out the entries named ``stage_{n}.<name>`` for every stage there is a key for."""
    written: dict[str, Any] = {}
    for name, entry in catalog.items():
        if "{n}" not in name:
            written[name] = entry
            continue
        stages = _in_order(key for key in keys if key.startswith("stage_"))
        for n, stage in enumerate(stages, start=1):
            text = json.dumps(entry).replace("{n}", str(n)).replace("{key}", keys[stage])
            written[name.replace("{n}", str(n))] = json.loads(text)
    return written


def _row(table: Mapping[str, Any], name: Any, what: str) -> dict[str, Any]:
    if name not in table:
        raise UserError(
            f"{what}={name} is not known. Known: {', '.join(table)}. Change it with "
            f"--params={what}=<name>, or add a row in conf/local/parameters.yml."
        )
    return dict(table[name] or {})


def _in_order(stages: Iterable[str]) -> list[str]:
    return sorted(stages, key=lambda name: (len(name), name))  # stage_10 after stage_9


def _check_group(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise UserError(
            f"{name}={value} cannot be used: {name} is a group of settings. Set one of them: "
            f"--params={name}.<name>=<value>."
        )


def _merge(base: Mapping[str, Any], over: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if isinstance(merged.get(key), Mapping):
            name = f"{where}.{key}".removeprefix(".")
            _check_group(name, value)
            merged[key] = _merge(merged[key], value, name)
        else:
            merged[key] = value
    return merged


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]
