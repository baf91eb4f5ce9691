"""Cache keys: what each artifact depends on, hashed into the names of its files."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from submanifold.common.errors import error_prefix
from submanifold.config.project import RAW_FOLDER
from submanifold.config.schema import Experiment, effective

# Versions of the code that computes artifacts. Raise one when results change: its artifacts, and
# all that depend on them, are then computed again. A test holds the syntax trees of the packages of
# each, and fails if they change.
DATA = 3
TRAINING = 3
EVALUATION = 2
REPORT = 2


def artifact_keys(experiment: Experiment, project: Path) -> dict[str, str]:
    """Hash what each artifact depends on, settings and versions, as names for files.

    A phase depends on the data, the seed, the number of charts, and the phases up to this one with
    the stages that they train; with a time budget on the ``schedule`` rather than on the measured
    steps. ``run`` also depends on the evaluation, and ``report`` on ``run``. The location of files,
    logging, the device and the number of threads do not matter.
    """
    dataset, data, model = experiment.dataset, experiment.data, experiment.model
    with error_prefix("data"):
        digest = _digest(DATA, data.fingerprint(project / RAW_FOLDER), data.content)
    keys = {"data": f"{dataset}-{digest}"}
    keys["baselines"] = f"{dataset}-{_digest(EVALUATION, digest)}"
    stages = [stage.model_dump(mode="json") for stage in model.stages]
    phases = {name: effective(phase) for name, phase in experiment.phases.items()}
    schedule = _digest(TRAINING, experiment.minutes, digest, model.charts, stages, phases)
    keys["schedule"] = f"{dataset}-schedule-{schedule}"
    budget = [] if experiment.minutes is None else [schedule]
    digest = _digest(TRAINING, digest, experiment.seed, model.charts, *budget)
    for name, source in experiment.sources.items():
        trained = [stages[n - 1] for n in experiment.phases[name].stages]
        digest = _digest(digest, trained, phases[name])
        keys[name] = f"{dataset}-{name}-{digest}"
        if source is not None:
            keys[f"{name}.u"] = f"{keys[source.phase]}-u{source.through}"
    folds = [] if experiment.calibration == "split" else [experiment.calibration]
    digest = _digest(EVALUATION, digest, *folds)
    keys["model"] = f"{dataset}-{experiment.method}-{digest}"
    if experiment.ood_data is not None:
        keys |= _ood_keys(experiment, project, keys["data"], digest)
    evaluation = experiment.evaluation.model_dump(mode="json", exclude_none=True)
    digest = _digest(digest, evaluation)
    keys["run"] = f"{dataset}-{experiment.method}-{digest}"
    keys["report"] = f"{dataset}-{experiment.method}-{_digest(REPORT, digest)}"
    return keys


def _ood_keys(experiment: Experiment, project: Path, data: str, model: str) -> dict[str, str]:
    settings = experiment.ood_data
    assert settings is not None
    with error_prefix("ood"):
        parts: list[Any] = [settings.fingerprint(project / RAW_FOLDER), settings.content]
    if experiment.data.kind == "table":  # standardized like the training data
        parts.append(data)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(str(experiment.ood)).name)
    ood_data = f"{name}-{_digest(DATA, *parts)}"
    run = _digest(model, ood_data)
    return {
        "ood_data": ood_data,
        "ood_run": f"{experiment.dataset}-{name}-{run}",
        "ood_report": f"{experiment.dataset}-{name}-{_digest(REPORT, run)}",
    }


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]
