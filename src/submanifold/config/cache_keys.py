"""Cache keys: what each artifact depends on, hashed into the names of its files."""

import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch

from submanifold.common.errors import error_prefix
from submanifold.config.schema import Experiment, effective

PACKAGE = Path(__file__).parents[1]
DATA = ("data",)
TRAINING = ("common", "flows", "geometry", "losses", "models", "training")
MEASURES = ("evaluation", "inverse")
REPORTS = ("inference", "pipelines", "plots")
"""Packages that compute the artifacts; each list is used together with those before it."""
_COMMENT_OR_STRING = re.compile(
    rb'#[^\n]*|^[ \t]*r?"""(?:\\.|[^\\])*?"""(?=[ \t]*[#\n])'  # comments, docstrings
    rb'|("""(?:\\.|[^\\])*?"""|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\')',  # other strings
    re.MULTILINE | re.DOTALL,
)

RAW_FOLDER = Path("data/01_raw")


def comparison_key(experiment: Experiment) -> str:
    """Name the data of runs that are compared: the data set, or the user's files."""
    paths = experiment.own_paths
    if not paths:
        return experiment.dataset
    return f"{_file_name(paths[0])}-{_digest(*map(str, paths))}"


def artifact_keys(experiment: Experiment, project: Path) -> dict[str, str]:
    """Hash what each artifact depends on, as readable names for files.

    - All: the code that computes it (:func:`source_hash`).
    - ``data``: the source's fingerprint and the data settings.
    - ``baselines``: the data.
    - ``<phase>``: the data, the seed, the number of charts, and the phases up to this one with the
      stages that they train.
    - ``<phase>.u``, if the phase does not start at the data: its input.
    - ``budget``, if there is a time budget: it, the shape of the data, and all phases. The keys of
      phases contain it rather than the measured steps.
    - ``model``, ``run``: all phases; ``run`` also the evaluation.
    - ``comparison``: the name of the dataset, or the paths of the user's files.
    - ``ood_data``, ``ood_run``, if there are out-of-distribution data: these, and for tables the
      training data; also the model.

    The location of files, logging, the device and the number of threads do not matter, except for
    ``run`` if ``evaluation.inception_weights`` is ``auto``: whether FID is measured changes it.
    """
    with error_prefix("data"):
        content = experiment.data.fingerprint(project / RAW_FOLDER)
    digest = _digest(*_sources(DATA), content, experiment.data.content)
    keys = {"data": f"{experiment.dataset}-{digest}", "comparison": comparison_key(experiment)}
    keys["baselines"] = f"{experiment.dataset}-{_digest(*_sources(MEASURES), digest)}"
    training = _sources(TRAINING)
    stages = [stage.model_dump(mode="json") for stage in experiment.model.stages]
    budget = []
    if experiment.minutes is not None:
        phases = {name: effective(phase) for name, phase in experiment.phases.items()}
        shape, charts = experiment.data.event_shape, experiment.model.charts
        budget = [_digest(*training, experiment.minutes, shape, charts, stages, phases)]
        keys["budget"] = f"{experiment.dataset}-budget-{budget[0]}"
    digest = _digest(*training, digest, experiment.seed, experiment.model.charts, *budget)
    for name, source in experiment.sources.items():
        phase = experiment.phases[name]
        digest = _digest(digest, [stages[n - 1] for n in phase.stages], effective(phase))
        keys[name] = f"{experiment.dataset}-{name}-{digest}"
        if source is not None:
            keys[f"{name}.u"] = f"{keys[source.phase]}-u{source.through}"
    digest = _digest(*_sources(MEASURES), digest)
    keys["model"] = f"{experiment.dataset}-{experiment.method}-{digest}"
    if experiment.ood_data is not None:
        with error_prefix("ood"):
            content = experiment.ood_data.fingerprint(project / RAW_FOLDER)
        name = _file_name(Path(str(experiment.ood)))
        parts = [content, experiment.ood_data.content]
        if experiment.kind == "table":  # standardized like the training data
            parts.append(keys["data"])
        ood_digest = _digest(*_sources(DATA), *parts)
        keys["ood_data"] = f"{name}-{ood_digest}"
        run_digest = _digest(*_sources(REPORTS), digest, keys["ood_data"])
        keys["ood_run"] = f"{experiment.dataset}-{name}-{run_digest}"
    evaluation = experiment.evaluation.model_dump(mode="json", exclude_none=True)
    if evaluation.get("inception_weights") == "auto" and _on_gpu(experiment.device):
        evaluation["inception_weights"] = "download"
    digest = _digest(*_sources(REPORTS), digest, evaluation)
    keys["run"] = f"{experiment.dataset}-{experiment.method}-{digest}"
    return keys


def _sources(names: tuple[str, ...]) -> list[str]:
    return [source_hash(PACKAGE / name) for name in names]


@cache
def source_hash(folder: Path) -> str:
    """Hash the files of a package, without comments, docstrings and empty lines of Python.

    It is that of their syntax trees, which would take ten times as long.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.*")):
        if path.suffix != ".pyc" and path.is_file():
            content = path.read_bytes()
            if path.suffix == ".py":
                content = _COMMENT_OR_STRING.sub(lambda match: match[1] or b"", content)
                content = b"\n".join(filter(None, map(bytes.rstrip, content.splitlines())))
            digest.update(f"\n{path.relative_to(folder).as_posix()}\n".encode() + content)
    return digest.hexdigest()


def _on_gpu(device: str) -> bool:
    return device != "cpu" and torch.cuda.is_available()


def _file_name(path: Path) -> str:
    """Return the name of a path without characters that need quotes."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", path.name)


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]
