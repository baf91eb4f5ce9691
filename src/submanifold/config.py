"""From conf/ to one experiment: the chosen tables, typed settings, and a key for each artifact."""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from kedro.config import OmegaConfigLoader
from kedro.framework.cli.utils import KedroCliError
from omegaconf import OmegaConf
from pydantic import Field

from submanifold.data.images import DataSettings, fingerprint
from submanifold.errors import UserError
from submanifold.manifold import StageSettings, build_hierarchy
from submanifold.training.trainer import TrainingSettings
from submanifold.validation import Settings, read_settings

RECIPE = 1
"""Raise it when the same settings would no longer give the same artifacts."""

RAW = Path("data/01_raw")


class EvaluationSettings(Settings):
    """What is measured on the test images."""

    samples: int = Field(gt=1, description="samples for the distances between distributions")
    inception_weights: str


class ExperimentSettings(Settings):
    """The parameters that are single values."""

    dataset: str
    method: str
    schedule: Literal["hierarchical", "joint"]
    seed: int = Field(ge=0)
    device: str


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
            config = super().__getitem__(key)
            if key == "parameters":
                return choose(config)
            if key == "catalog":
                return expand(config, self.artifacts)
        except UserError as error:
            raise KedroCliError(str(error)) from error
        return config

    @cached_property
    def artifacts(self) -> dict[str, str]:
        """Key of each artifact: ``data``, ``stage_<n>``, ``model`` and ``run``."""
        return artifact_keys(self["parameters"], Path(self._project))

    @property
    def _project(self) -> str:
        return str(Path(self.conf_source).resolve().parent)

    def _parameter(self, name: str) -> Any:
        return self["parameters"][name]


def choose(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Turn tables and choices into the parameters of one experiment, all of them checked.

    What ``data`` and ``stage_<n>`` hold in an environment's file or on the command line is laid
    over the chosen rows; a ``stage_<n>`` beyond the method's last adds a stage to it.

    Raises:
        UserError: A name is unknown, or a value cannot work.
    """
    given = dict(parameters)
    datasets, methods = given.pop("datasets"), given.pop("methods")
    defaults, training = given.pop("stage_defaults"), given.pop("training")
    dataset, method = given.get("dataset"), given.get("method")
    data = _merge(_row(datasets, dataset, "dataset"), given.pop("data", {}))
    stages = dict(_row(methods, method, "method"))
    schedule = given.pop("schedule", stages.pop("schedule", "hierarchical"))
    for name in [name for name in given if name.startswith("stage_")]:
        stages = _merge(stages, {name: given.pop(name)})
    if sorted(stages) != [f"stage_{n}" for n in range(1, len(stages) + 1)]:
        raise UserError(
            f"Stages have to be numbered from 1 without a gap, but these are set: "
            f"{', '.join(sorted(stages))}. Change stage_<n> on the command line or in conf/."
        )
    for name in sorted(stages):
        kind = stages[name].get("flow", {}).get("type", "realnvp")
        row = _row(defaults, kind, f"{name}.flow.type")
        stages[name] = _merge(_merge({"training": training}, row), stages[name])
    evaluation = given.pop("evaluation")
    experiment = read_settings(ExperimentSettings, {**given, "schedule": schedule}, "parameters")
    chosen = {**experiment.model_dump(), "data": data, "evaluation": evaluation}
    chosen |= {name: stages[name] for name in sorted(stages)}
    check(chosen)
    return chosen


def check(parameters: Mapping[str, Any]) -> None:
    """Build everything that the parameters describe, on no device, to find what cannot work.

    Raises:
        UserError: Naming the parameter.
    """
    data = read_settings(DataSettings, parameters["data"], "data")
    read_settings(EvaluationSettings, parameters["evaluation"], "evaluation")
    stages = []
    for name, settings in stage_settings(parameters).items():
        rest = {key: value for key, value in settings.items() if key != "training"}
        stages.append(read_settings(StageSettings, rest, name))
        read_settings(TrainingSettings, settings["training"], f"{name}.training")
    with torch.device("meta"):
        build_hierarchy(stages, (data.channels, data.size, data.size))


def stage_settings(parameters: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The stages among the parameters, ``stage_1`` first."""
    return {name: parameters[name] for name in sorted(parameters) if name.startswith("stage_")}


def artifact_keys(parameters: Mapping[str, Any], project: Path) -> dict[str, str]:
    """Hash what each artifact depends on, as readable names for files.

    Data: the source's fingerprint and the data settings. Stage n: the data, the seed, and stages 1
    to n. Not: the device, the place of the files, logging.
    """
    dataset, method = parameters["dataset"], parameters["method"]
    data = read_settings(DataSettings, parameters["data"], "data")
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
    keys["run"] = f"{dataset}-{method}-{_digest(digest, parameters['evaluation'])}"
    return keys


def expand(catalog: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """Write out the entries named ``stage_{n}.<name>`` for every stage there is a key for."""
    written: dict[str, Any] = {}
    for name, entry in catalog.items():
        if "{n}" not in name:
            written[name] = entry
            continue
        stages = sorted(key for key in keys if key.startswith("stage_"))
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


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]
