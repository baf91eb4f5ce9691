"""What each artifact depends on, hashed into the names of its files."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch

from submanifold.common.errors import error_prefix
from submanifold.config.experiment import Experiment
from submanifold.data.sources import fingerprint

RECIPE = 5
"""Raise it when the same settings would no longer give the same artifacts."""
VOLUME_RECIPE = 1
"""The same, of phases with a term of the manifold's volume."""
MODEL_RECIPE = 3
"""Raise it when the finished model's file would hold something else of the same phases."""
EVALUATION_RECIPE = 10
"""Raise it when the same model would no longer give the same metrics and pages."""
OOD_RECIPE = 5
"""Raise it when the same model would no longer give the same scores of the same ood."""

OF_VOLUME = {"manifold_likelihood", "non_orthogonality", "off_diagonal"}
RAW = Path("data/01_raw")


def artifact_keys(experiment: Experiment, project: Path) -> dict[str, str]:
    """Hash what each artifact depends on, as readable names for files.

    - ``data``: the source's fingerprint and the data settings.
    - ``phase_<n>``: the data, the seed, the phases 1 to n, the stages that they train, and how many
      charts there are.
    - ``phase_<n>.u``, where phase n does not begin at the data: what it is trained on.
    - ``model``, ``run``: all phases; the evaluation too.
    - ``ood``, ``ood_run``, where there are any: their data; the model too.

    Not: the place of the files, logging, the device. The device decides whether FID is measured
    where ``evaluation.inception_weights`` is ``auto``; ``run`` depends on that alone.
    """
    settings = experiment.parameters()
    with error_prefix("data"):
        content = fingerprint(experiment.data, project / RAW)
    digest = _digest(RECIPE, content, experiment.data.content)
    keys = {"data": f"{experiment.dataset}-{digest}"}
    digest = _digest(digest, experiment.seed)
    if experiment.model.charts > 1:
        digest = _digest(digest, experiment.model.charts)
    for number, (stages, source) in enumerate(
        zip(experiment.trained, experiment.sources, strict=True), start=1
    ):
        name = f"phase_{number}"
        digest = _digest(digest, [settings[f"stage_{n}"] for n in stages], settings[name])
        if OF_VOLUME & settings[name].keys():
            digest = _digest(VOLUME_RECIPE, digest)
        keys[name] = f"{experiment.dataset}-{name}-{digest}"
        if source is not None:
            keys[f"{name}.u"] = f"{keys[f'phase_{source.phase}']}-u{source.through}"
    digest = _digest(MODEL_RECIPE, digest)
    keys["model"] = f"{experiment.dataset}-{experiment.method}-{digest}"
    if experiment.ood_data is not None:
        with error_prefix("ood"):
            others = fingerprint(experiment.ood_data, project / RAW)
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(str(experiment.ood)).name)
        keys["ood_data"] = f"{name}-{_digest(RECIPE, others, experiment.ood_data.content)}"
        keys["ood_run"] = (
            f"{experiment.dataset}-{name}-{_digest(OOD_RECIPE, digest, keys['ood_data'])}"
        )
    evaluation = dict(settings["evaluation"])
    if evaluation.get("inception_weights") == "auto" and _on_gpu(experiment.device):
        evaluation["inception_weights"] = "download"  # on a CPU, auto measures no FID
    digest = _digest(EVALUATION_RECIPE, digest, evaluation)
    keys["run"] = f"{experiment.dataset}-{experiment.method}-{digest}"
    return keys


def _on_gpu(device: str) -> bool:
    return device != "cpu" and torch.cuda.is_available()


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]
