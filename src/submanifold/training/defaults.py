"""The default methods of images and of tables, which are those of conf/base/parameters.yml."""

from collections.abc import Mapping, Sequence
from typing import Any

from submanifold.models import ModelSettings
from submanifold.training.phases import PhaseSettings
from submanifold.training.rotation import RotationSettings

Method = tuple[ModelSettings, dict[str, PhaseSettings | RotationSettings]]
"""A model, and the phases that train it by name, in order."""


def image_method(dim: int = 500) -> Method:
    """Return the method ``density-first`` with a manifold of dimension ``dim``.

    It trains the density; orders its latents by their contribution to the squared error; adds a
    small penalty on the error at random dimensions, in the last part of one learning-rate schedule;
    orders the latents again; and trains the flow on the first ``dim`` of them, for samples.
    """
    glow = {"type": "glow", "levels": 3, "steps": [8, 4, 2], "width": 64}
    realnvp = {"type": "realnvp", "couplings": 6, "hidden": 512}
    penalty = {"penalty": "mse", "weight": 40.0, "random_dim": 5.0}
    return _method([{"flow": glow, "dim": dim}, {"flow": realnvp, "dim": None}], {
        "density": {
            "stages": [1],
            "training": {"steps": 2800, "span": [0, 7 / 9], "cooldown_fraction": 0.47},
        },
        "rotation": {"rotate": 1, "probes": 4000},
        "reconstruction": {
            "stages": [1], "reconstruction": penalty,
            "training": {
                "steps": 800, "span": [7 / 9, 1], "cooldown_fraction": 0.47, "warmup": 10,
            },
        },
        "rotation_2": {"rotate": 1},
        "code_flow": {
            "stages": [2],
            "training": {
                "steps": 200, "batch_size": 64, "learning_rate": 0.0005, "muon_lr": None,
                "validate_every": 50,
            },
        },
    })  # fmt: skip


def table_method(dim: int) -> Method:
    """Return the method ``noise-conditional`` with a manifold of dimension ``dim``.

    It trains one flow at all noise scales, and orders its latents and penalizes the error as
    :func:`image_method` does.
    """
    noise = {"input_noise": 1.0, "input_noise_min": 0.01}
    penalty = {"penalty": "mse", "weight": 0.1, "space": "image", "random_dim": 4.0}
    training = {
        "batch_size": 512, "learning_rate": 0.002, "clip": 5.0, "validate_every": 100,
        "precision": "float32",
    }  # fmt: skip
    cooldown = {"steps": 300, "lr_scale": 0.5, "warmup": 10, "cooldown_fraction": 1.0}
    return _method([{"flow": {"type": "tabular"}, "dim": dim}], {
        "density": {
            "stages": [1], **noise,
            "training": {**training, "steps": 600, "cooldown_fraction": 0.6},
        },
        "rotation": {"rotate": 1, "probes": 2000},
        "reconstruction": {
            "stages": [1], **noise, "reconstruction": penalty,
            "training": {**training, **cooldown},
        },
        "rotation_2": {"rotate": 1, "probes": 2000},
    })  # fmt: skip


def _method(stages: Sequence[Any], phases: Mapping[str, Mapping[str, Any]]) -> Method:
    return ModelSettings.model_validate({"stages": stages}), {
        name: (RotationSettings if "rotate" in phase else PhaseSettings).model_validate(phase)
        for name, phase in phases.items()
    }
