"""Nodes of the evaluation pipeline."""

import time
from typing import Any

import numpy as np
import pandas as pd
import torch

from submanifold.common.device import choose_device
from submanifold.config.schema import EvaluationSettings
from submanifold.data.batches import Batches
from submanifold.data.events import Events
from submanifold.data.settings import SyntheticSettings
from submanifold.evaluation import events, illustrations
from submanifold.evaluation import samples as sampling
from submanifold.evaluation.baselines import MEASURED
from submanifold.evaluation.measure import measure, warnings
from submanifold.evaluation.sample_quality import sample_quality
from submanifold.evaluation.truth import against_truth
from submanifold.flows import context_of
from submanifold.models import Hierarchy, Model

PROJECTIONS = 16  # test images whose projections the report shows
SHOWN = 8  # of them, the last ones, at several dimensions and with all kinds of projections
CANDIDATES = 256  # test images, for an interpolation from the first to the last one of its class
INTERPOLATED = 9  # images of an interpolation


def draw_samples(
    hierarchy: Model, test: Events, evaluation: EvaluationSettings, seed: int, device: str
) -> dict[str, Events]:
    """Sample at temperatures 1 and 0.7, conditional models with contexts of test data."""
    model = hierarchy.to(choose_device(device))
    return sampling.draw_samples(model, evaluation.samples, seed, test)


def measure_events(
    hierarchy: Model,
    train: Events,
    valid: Events,
    test: Events,
    evaluation: EvaluationSettings,
    device: str,
) -> pd.DataFrame:
    """Measure events of each split; see :func:`submanifold.evaluation.events.measure_events`."""
    splits = {"train": train, "valid": valid, "test": test}
    most = MEASURED if evaluation.brief else None
    return events.measure_events(hierarchy.to(choose_device(device)), splits, most)


def evaluate(
    hierarchy: Model,
    scored_events: pd.DataFrame,
    train: Events,
    test: Events,
    samples: Events,
    baselines: dict[str, Any],
    histories: dict[str, Any],
    input_noise: float,
    evaluation: EvaluationSettings,
    device: str,
) -> tuple[dict[str, Any], np.ndarray]:
    """Evaluate the model and its samples, and project the first test images or vectors."""
    started, on = time.monotonic(), choose_device(device)
    rows = events.of_split(scored_events, "test")
    draws = 1 if evaluation.brief else evaluation.dequantizations or 1
    if evaluation.brief:
        baselines = baselines | baselines["measured"]
    measured, volumes = test[rows["number"].to_numpy()], evaluation.volumes
    metrics = measure(hierarchy, rows, measured, baselines, input_noise, draws, on, volumes)
    if test.x.dtype == np.uint8:
        weights = evaluation.inception_weights
        metrics |= sample_quality(train, test, samples.x, weights, on)
    metrics["counts"] = {"train": len(train), "test": len(rows), "samples": len(samples)}
    if test.groups is not None:
        metrics["counts"]["test_groups"] = rows["group"].nunique()
    metrics["warnings"] = warnings(metrics, histories)
    training = sum(history["seconds"] for history in histories.values())
    metrics["seconds"] = {"training": training, "evaluation": time.monotonic() - started}
    with torch.no_grad():
        batches = Batches(test[:PROJECTIONS], PROJECTIONS, device=on)
        projected = hierarchy.to(on).encoder_projection(*next(iter(batches)))
    return metrics, sampling.stored(projected)


def illustrate(
    hierarchy: Model,
    train: Events,
    test: Events,
    samples: Events,
    pca: np.ndarray,
    device: str,
) -> dict[str, np.ndarray]:
    """Compute the images of the report: projections, neighbors of samples, and paths."""
    model = hierarchy.to(choose_device(device))
    shown = test[:PROJECTIONS]
    ends = shown[[0, -1]]
    if (labels := test[:CANDIDATES].context) is not None:  # of one class
        ends = test[np.flatnonzero(labels == labels[0])[[0, -1]]]
    originals = shown[-SHOWN:]
    shown_images = illustrations.project_all(model, originals, pca)
    if isinstance(model, Hierarchy):
        by_dim = illustrations.project_by_dim(model, originals, pca)
        shown_images |= {f"by_dim_{name}": images for name, images in by_dim.items()}
    if classes := context_of(model).get("classes"):
        shown_images["by_class"] = illustrations.sample_by_class(model, classes)
    compared = np.concatenate([samples.x[:PROJECTIONS], shown.x])
    neighbors = train.x[illustrations.nearest_images(compared, train.x)]
    count = len(samples[:PROJECTIONS])
    return {
        **shown_images,
        "originals": originals.x,
        "sample_neighbors": neighbors[:count],
        "test_neighbors": neighbors[count:],
        "interpolation": illustrations.interpolate(model, ends, INTERPOLATED),
        "traversal": illustrations.traverse(model, test),
    }


def compare_with_truth(
    hierarchy: Model, test: Events, samples: Events, data: SyntheticSettings, device: str
) -> dict[str, Any]:
    """Compare the model with the manifold of synthetic data; see :func:`against_truth`."""
    return against_truth(hierarchy.to(choose_device(device)), data.manifold, test.x, samples.x)
