"""Nodes of the hierarchical pipeline; the joint one trains with the same function."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from submanifold.data.arrays import write_rows
from submanifold.data.batches import Batches
from submanifold.manifold import Hierarchy, StageSettings, build_hierarchy
from submanifold.pipelines.tracking import log_to_mlflow
from submanifold.progress import track
from submanifold.training.trainer import TrainingSettings, choose_device, fit
from submanifold.validation import read_settings

VALIDATION_ROWS = 512


def train_stage(
    train: np.ndarray,
    valid: np.ndarray,
    seed: int,
    device: str,
    folder: Path,
    stage: dict[str, Any],
    *outer: Hierarchy,
) -> tuple[Hierarchy, dict[str, Any]]:
    """Train one stage with Alg. 1 on the manifold that the ``outer`` stages have learned."""
    return train_stages(train, valid, seed, device, folder, [stage], outer)


def train_stages(
    train: np.ndarray,
    valid: np.ndarray,
    seed: int,
    device: str,
    folder: Path,
    stages: Sequence[dict[str, Any]],
    outer: Sequence[Hierarchy] = (),
) -> tuple[Hierarchy, dict[str, Any]]:
    """Build the stages and train them together; a finished or half-finished training is found.

    The first of them says how: its training settings and its penalty are taken, the later ones
    only add their flow and dimension.
    """
    place = choose_device(device)
    settings = [
        read_settings(StageSettings, {k: v for k, v in stage.items() if k != "training"}, "stage")
        for stage in stages
    ]
    training = read_settings(TrainingSettings, stages[0]["training"], "training")
    torch.manual_seed(seed)
    hierarchy = build_hierarchy(settings, train.shape[1:]).to(place)
    frozen = [stage for each in outer for stage in each.to(place).stages]
    name = f"stage_{len(frozen) + 1}" if len(stages) == 1 else "joint"
    on_log = log_to_mlflow(name)
    history = fit(
        hierarchy,
        settings[0].objective(frozen),
        Batches(train, training.batch_size, seed, place),
        Batches(valid[:VALIDATION_ROWS], training.batch_size, seed, place),
        training,
        folder,
        name=name,
        on_log=on_log,
    )
    if on_log:
        on_log(training.steps, {"steps_trained": history["steps_trained"]})
    return hierarchy.cpu(), history


def project_stage(
    flow: Hierarchy,
    train: np.ndarray,
    valid: np.ndarray,
    seed: int,
    device: str,
    folder: Path,
) -> tuple[np.ndarray, np.ndarray]:
    """Encode the images of Alg. 2, line 6, as their coordinates u on the learned manifold."""
    place = choose_device(device)
    flow = flow.to(place)
    arrays = []
    for array, name in ((train, "u_train"), (valid, "u_valid")):
        batches = Batches(array, batch_size=256, seed=seed, device=place)
        shown = track(batches, f"encoding {name}", len(array))
        encoded = (flow.encode(batch)[0].cpu().numpy() for batch in shown)
        with torch.no_grad():
            arrays.append(write_rows(folder / f"{name}.npy", encoded, (len(array), flow.dim)))
    return arrays[0], arrays[1]


def assemble(*stages: Hierarchy) -> Hierarchy:
    """Put the trained stages one inside the other."""
    return Hierarchy([stage for each in stages for stage in each.stages])
