"""Nodes of the evaluation pipeline."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from submanifold.data.batches import Batches
from submanifold.data.dequantize import quantize
from submanifold.evaluation.intervals import mean_interval
from submanifold.evaluation.likelihood import per_event
from submanifold.evaluation.reconstruction import reconstruction, squared_errors
from submanifold.evaluation.sliced_wasserstein import sliced_wasserstein
from submanifold.manifold import PCA, Hierarchy
from submanifold.progress import track
from submanifold.training.trainer import choose_device

BATCH = 256
COOL = 0.7
LARGEST_COVARIANCE = 6144
FID_ON_CPU = (
    "not measured: on a CPU the Inception features take 0.1 s an image; set "
    "evaluation.inception_weights to download, or to the path of the weights file"
)

Metrics = dict[str, Any]


def fit_baselines(
    train: np.ndarray, valid: np.ndarray, test: np.ndarray, folder: Path
) -> dict[str, Any]:
    """Fit PCA and the full-covariance Gaussian to the training images, and test them.

    Returns:
        ``pca_mse``: mean squared error on the test images with the first d axes, for d from 0 to
        D, and ``pca_mse_half_width`` of its 95% interval; ``gaussian``: bits per dimension;
        or ``why`` they were not fitted.
    """
    done = folder / "baselines.json"
    if done.exists():
        return json.loads(done.read_text())
    dim = int(np.prod(train.shape[1:]))
    if dim > LARGEST_COVARIANCE:
        return {"why": f"not fitted: a covariance of {dim:,} dimensions takes too long"}
    pca = PCA.fit(Batches(train, 1024)).shrink(Batches(valid, 1024))
    bits = per_event(lambda x: 8 - pca.log_prob(x) / (dim * np.log(2)), Batches(test, 1024))
    mse, half_width = pca.error_curve(Batches(test, 1024))
    return {
        "pca_mse": mse.tolist(),
        "pca_mse_half_width": half_width.tolist(),
        "gaussian": {"bits_per_dim": mean_interval(bits), "shrinkage": pca.shrinkage},
        "n_train": len(train),
    }


def draw_samples(
    hierarchy: Hierarchy, evaluation: dict[str, Any], seed: int, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """Sample from the learned manifold at temperature 1 and 0.7, as uint8 images."""
    hierarchy = hierarchy.to(choose_device(device))

    def sample(n: int, temperature: float) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed)
        counts = [min(BATCH, n - start) for start in range(0, n, BATCH)]
        drawn = [quantize(hierarchy.sample(c, temperature, generator)).cpu() for c in counts]
        return torch.cat(drawn).numpy()

    return sample(evaluation["samples"], 1.0), sample(64, COOL)


def evaluate(
    hierarchy: Hierarchy,
    train: np.ndarray,
    test: np.ndarray,
    samples: np.ndarray,
    baselines: dict[str, Any],
    evaluation: dict[str, Any],
    device: str,
    *histories: dict[str, Any],
) -> tuple[Metrics, np.ndarray]:
    """Measure the hierarchy and its baselines on the test images.

    Returns:
        The metrics, and the projections of the first 16 test images as uint8.
    """
    started = time.monotonic()
    place = choose_device(device)
    hierarchy = hierarchy.to(place)
    batches = Batches(test, BATCH, device=place)
    outer = Hierarchy(hierarchy.stages[:1])
    errors = squared_errors(hierarchy.project, track(batches, "projecting", len(test)))
    through_all = reconstruction(errors)
    metrics: Metrics = {
        "dims": [hierarchy.event_dim, *(stage.dim for stage in hierarchy.stages)],
        "parameters": sum(p.numel() for p in hierarchy.parameters()),
        "counts": {"train": len(train), "test": len(test), "samples": len(samples)},
        "bits_per_dim": mean_interval(
            per_event(hierarchy.bits_per_dim, track(batches, "bits per dimension", len(test)))
        ),
        **through_all,
        "stage_1_mse": through_all["mse"]
        if len(hierarchy.stages) == 1
        else reconstruction(squared_errors(outer.project, batches))["mse"],
        "sliced_wasserstein": sliced_wasserstein(test, samples[: len(test)]),
        "sliced_wasserstein_of_training_images": sliced_wasserstein(
            test, np.asarray(train[: len(test)])
        ),
        "fid": _fid(test, samples, evaluation["inception_weights"], place),
        "baselines": {"pca": _pca(baselines, hierarchy), "gaussian": baselines.get("gaussian")},
        "seconds": {
            "training": sum(history["seconds"] for history in histories),
            "evaluation": time.monotonic() - started,
        },
    }
    first = next(iter(Batches(test[:16], 16, device=place)))
    with torch.no_grad():
        projections = quantize(hierarchy.project(first)).cpu().numpy()
    return metrics, projections


def _pca(baselines: dict[str, Any], hierarchy: Hierarchy) -> dict[str, Any]:
    if "why" in baselines:
        return {"why": baselines["why"]}
    mse, half = (baselines[key][hierarchy.dim] for key in ("pca_mse", "pca_mse_half_width"))
    return {"dim": hierarchy.dim, "mse": {"value": mse, "low": mse - half, "high": mse + half}}


def _fid(
    test: np.ndarray, samples: np.ndarray, weights: str, device: torch.device
) -> dict[str, Any]:
    # it brings torch-fidelity along, which takes a second to import
    from submanifold.evaluation.frechet import frechet_inception_distance

    if weights == "auto" and device.type == "cpu":
        return {"value": None, "why": FID_ON_CPU}
    path = None if weights in ("auto", "download") else weights
    return frechet_inception_distance(test, samples, path, device)
