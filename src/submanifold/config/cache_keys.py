"""Cache keys: what each artifact depends on, hashed into the names of its files."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from submanifold.common.errors import error_prefix
from submanifold.common.source_hash import source_hash
from submanifold.config.project import RAW_FOLDER
from submanifold.config.schema import Experiment, effective

PACKAGE = Path(__file__).parents[1]
DATA = ("data",)
TRAINING = ("common", "flows", "geometry", "losses", "models", "training")
MEASURES = ("evaluation",)
REPORTS = ("inference", "plots")
PIPELINES = {"run": ("evaluation", "reporting"), "ood_run": ("ood",)}
"""Of a user's own pipelines no result depends."""


def artifact_keys(experiment: Experiment, project: Path) -> dict[str, str]:
    """Hash what each artifact depends on, and the code that computes it, as names for files.

    A phase depends on the data, the seed, the number of charts, and the phases up to this one with
    the stages that they train; with a time budget on the ``schedule`` rather than on the measured
    steps. ``run`` also depends on the evaluation. The location of files, logging, the device and
    the number of threads do not matter.
    """
    dataset, data, model = experiment.dataset, experiment.data, experiment.model
    with error_prefix("data"):
        digest = _digest(*_sources(DATA), data.fingerprint(project / RAW_FOLDER), data.content)
    keys = {"data": f"{dataset}-{digest}"}
    keys["baselines"] = f"{dataset}-{_digest(*_sources(MEASURES), digest)}"
    training = _sources(TRAINING)
    stages = [stage.model_dump(mode="json") for stage in model.stages]
    phases = {name: effective(phase) for name, phase in experiment.phases.items()}
    schedule = _digest(*training, experiment.minutes, digest, model.charts, stages, phases)
    keys["schedule"] = f"{dataset}-schedule-{schedule}"
    budget = [] if experiment.minutes is None else [schedule]
    digest = _digest(*training, digest, experiment.seed, model.charts, *budget)
    for name, source in experiment.sources.items():
        trained = [stages[n - 1] for n in experiment.phases[name].stages]
        digest = _digest(digest, trained, phases[name])
        keys[name] = f"{dataset}-{name}-{digest}"
        if source is not None:
            keys[f"{name}.u"] = f"{keys[source.phase]}-u{source.through}"
    digest = _digest(*_sources(MEASURES), digest)
    keys["model"] = f"{dataset}-{experiment.method}-{digest}"
    if experiment.ood_data is not None:
        with error_prefix("ood"):
            content = experiment.ood_data.fingerprint(project / RAW_FOLDER)
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(str(experiment.ood)).name)
        parts = [content, experiment.ood_data.content]
        if experiment.data.kind == "table":  # standardized like the training data
            parts.append(keys["data"])
        keys["ood_data"] = f"{name}-{_digest(*_sources(DATA), *parts)}"
        run_digest = _digest(*_reports("ood_run"), digest, keys["ood_data"])
        keys["ood_run"] = f"{dataset}-{name}-{run_digest}"
    evaluation = experiment.evaluation.model_dump(mode="json", exclude_none=True)
    digest = _digest(*_reports("run"), digest, evaluation)
    keys["run"] = f"{dataset}-{experiment.method}-{digest}"
    return keys


def _reports(key: str) -> list[str]:
    return _sources((*REPORTS, *(f"pipelines/{name}" for name in PIPELINES[key])))


def _sources(names: tuple[str, ...]) -> list[str]:
    return [source_hash(PACKAGE / name) for name in names]


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]
