"""Cache keys: what each artifact depends on, hashed into the names of its files."""

import ast
import hashlib
import json
import re
from functools import cache
from pathlib import Path
from types import CodeType
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

RAW_FOLDER = Path("data/01_raw")


def artifact_keys(experiment: Experiment, project: Path) -> dict[str, str]:
    """Hash what each artifact depends on, as readable names for files.

    - All: the code that computes it (:func:`source_hash`).
    - ``data``: the source's fingerprint and the data settings.
    - ``baselines``: the data.
    - ``<phase>``: the data, the seed, the number of charts, and the phases up to this one with the
      stages that they train.
    - ``<phase>.u``, if the phase does not start at the data: its input.
    - ``schedule``: the time budget, the shape of the data, and all phases. With a budget, the keys
      of phases contain it rather than the measured steps.
    - ``model``, ``run``: all phases; ``run`` also the evaluation.
    - ``ood_data``, ``ood_run``, if there are out-of-distribution data: these, and for tables the
      training data; also the model.

    The location of files, logging, the device and the number of threads do not matter, except for
    ``run`` if ``evaluation.inception_weights`` is ``auto``: whether FID is measured changes it.
    """
    with error_prefix("data"):
        content = experiment.data.fingerprint(project / RAW_FOLDER)
    digest = _digest(*_sources(DATA), content, experiment.data.content)
    keys = {"data": f"{experiment.dataset}-{digest}"}
    keys["baselines"] = f"{experiment.dataset}-{_digest(*_sources(MEASURES), digest)}"
    training = _sources(TRAINING)
    stages = [stage.model_dump(mode="json") for stage in experiment.model.stages]
    phases = {name: effective(phase) for name, phase in experiment.phases.items()}
    shape, charts = experiment.data.event_shape, experiment.model.charts
    schedule = _digest(*training, experiment.minutes, shape, charts, stages, phases)
    keys["schedule"] = f"{experiment.dataset}-schedule-{schedule}"
    budget = [] if experiment.minutes is None else [schedule]
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
    """Hash the files of a package; of Python the instructions, without comments and docstrings.

    It depends on the version of Python.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.*")):
        if path.suffix == ".py":
            code = compile(_without_docstrings(ast.parse(path.read_bytes())), "", "exec")
            digest.update(f"{path.relative_to(folder).as_posix()} {_instructions(code)}".encode())
        elif path.suffix != ".pyc" and path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _without_docstrings(node: Any) -> Any:
    if ast.get_docstring(node, clean=False):
        node.body[:1] = [] if node.body[1:] else [ast.Pass(lineno=0, col_offset=0)]
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            _without_docstrings(child)
    return node


def _instructions(value: Any) -> str:
    """Write a code object or a constant without line numbers."""
    if isinstance(value, CodeType):
        names = value.co_code, value.co_names, value.co_varnames, value.co_freevars
        return f"{names} {[*map(_instructions, value.co_consts)]}"
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)


def _on_gpu(device: str) -> bool:
    return device != "cpu" and torch.cuda.is_available()


def _file_name(path: Path) -> str:
    """Return the name of a path without characters that need quotes."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", path.name)


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]
