"""Nodes of the evaluation pipeline."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from submanifold.data.batches import Batches
from submanifold.data.dequantize import quantize
from submanifold.data.settings import SyntheticSettings
from submanifold.evaluation.intervals import mean_interval
from submanifold.evaluation.likelihood import importance_log_prob, per_event
from submanifold.evaluation.reconstruction import reconstruction, squared_errors
from submanifold.evaluation.truth import compare_with_truth
from submanifold.manifold import PCA, Hierarchy, manifold_log_prob
from submanifold.manifold.diagnostics import (
    LARGEST_INVERSE_ERROR,
    inverse_error,
    is_overfitted,
    manifold_overfitting,
)
from submanifold.progress import track
from submanifold.training.trainer import choose_device
from submanifold.validation import read_settings

BATCH = 256
COOL = 0.7
SHOWN = 16
VOLUMES = 8
MOST_NEIGHBOURS = 5000
LARGEST_COVARIANCE = 6144
OVERFITTED = (
    "not reported: what is left off the manifold is little, and a smooth function of the position "
    "on it. The data have no noise there, and their likelihood no maximum (manifold overfitting)"
)

Metrics = dict[str, Any]


def fit_baselines(
    train: np.ndarray, valid: np.ndarray, test: np.ndarray, folder: Path
) -> dict[str, Any]:
    """Fit PCA and the full-covariance Gaussian to the training data, and test them.

    Returns:
        ``pca_mse``: mean squared error on the test data with the first d axes, for d from 0 to
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
    quantised = 8 if test.dtype == np.uint8 else 0
    bits = per_event(lambda x: quantised - pca.log_prob(x) / (dim * np.log(2)), Batches(test, 1024))
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
    """Sample from the learned manifold at temperature 1 and 0.7; images as uint8."""
    hierarchy = hierarchy.to(choose_device(device))

    def sample(n: int, temperature: float) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed)
        counts = [min(BATCH, n - start) for start in range(0, n, BATCH)]
        drawn = [_stored(hierarchy.sample(c, temperature, generator)) for c in counts]
        return np.concatenate(drawn)

    return sample(evaluation["samples"], 1.0), sample(64, COOL)


def evaluate(
    hierarchy: Hierarchy,
    train: np.ndarray,
    test: np.ndarray,
    samples: np.ndarray,
    baselines: dict[str, Any],
    evaluation: dict[str, Any],
    input_noise: float,
    device: str,
    *histories: dict[str, Any],
) -> tuple[Metrics, np.ndarray]:
    """Measure the hierarchy and its baselines on the test data.

    Returns:
        The metrics, and the projections of the first 16 test images (as uint8) or points.
    """
    started = time.monotonic()
    place = choose_device(device)
    hierarchy = hierarchy.to(place)
    batches = Batches(test, BATCH, device=place)
    outer = Hierarchy(hierarchy.stages[:1])
    through_all = reconstruction(
        squared_errors(hierarchy.project, track(batches, "projecting", len(test)))
    )
    metrics: Metrics = {
        "dims": [hierarchy.event_dim, *(stage.dim for stage in hierarchy.stages)],
        "parameters": sum(p.numel() for p in hierarchy.parameters()),
        "counts": {"train": len(train), "test": len(test), "samples": len(samples)},
        **_likelihood(hierarchy, batches, evaluation["dequantizations"]),
        **_noisy_likelihood(hierarchy, batches, input_noise),
        **through_all,
        "stage_1_mse": through_all["mse"]
        if len(hierarchy.stages) == 1
        else reconstruction(squared_errors(outer.project, batches))["mse"],
        "inverse_error": inverse_error(hierarchy, next(iter(batches))),
        "baselines": {"pca": _pca(baselines, hierarchy), "gaussian": baselines.get("gaussian")},
    }
    first = next(iter(Batches(test[:SHOWN], SHOWN, device=place)))
    if test.dtype == np.uint8:
        # torch-fidelity and scikit-learn, which it brings along, take seconds to import
        from submanifold.evaluation.sample_quality import sample_quality

        metrics |= {
            **sample_quality(train, test, samples, evaluation["inception_weights"], place),
            "manifold_nll": _manifold_nll(hierarchy, first[:VOLUMES]),
        }
    else:
        del metrics["psnr"]  # it is about pixels on [0, 1]
    metrics["warnings"] = _warnings(metrics, histories)
    metrics["seconds"] = {
        "training": sum(history["seconds"] for history in histories),
        "evaluation": time.monotonic() - started,
    }
    with torch.no_grad():
        return metrics, _stored(hierarchy.project(first))


def compare(
    hierarchy: Hierarchy, test: np.ndarray, samples: np.ndarray, data: dict[str, Any], device: str
) -> Metrics:
    """Compare with the manifold that the data were drawn from; see :func:`compare_with_truth`."""
    manifold = read_settings(SyntheticSettings, data, "data").manifold
    return compare_with_truth(hierarchy.to(choose_device(device)), manifold, test, samples)


def _stored(x: torch.Tensor) -> np.ndarray:
    """Events as arrays on disk hold them: images as bytes, vectors as they are."""
    return (quantize(x) if x.ndim == 4 else x).cpu().numpy()


def _likelihood(hierarchy: Hierarchy, batches: Batches, draws: int) -> Metrics:
    """Bits per dimension: of images with one dequantisation and with several, unless worthless."""
    if batches.is_continuous:
        some = torch.cat(list(batches))[:MOST_NEIGHBOURS]
        thickness, correlation = manifold_overfitting(hierarchy, some)
        found = {"thickness": thickness, "neighbour_correlation": correlation}
        if is_overfitted(thickness, correlation):
            return found | {"bits_per_dim": {"value": None, "why": OVERFITTED}}
        bits = per_event(hierarchy.bits_per_dim, track(batches, "bits per dimension", len(batches)))
        return found | {"bits_per_dim": mean_interval(bits)}
    log_probs = []
    for seed in range(draws):
        noisy = Batches(batches.rows.numpy(), BATCH, seed, batches.device)
        title = f"bits per dimension, {seed + 1} of {draws}"
        log_probs.append(per_event(hierarchy.log_prob, track(noisy, title, len(noisy))))

    def bits_per_dim(log_prob: np.ndarray) -> dict[str, Any]:
        return mean_interval(hierarchy.to_bits_per_dim(torch.from_numpy(log_prob)).numpy())

    bound = importance_log_prob(np.stack(log_probs))
    return {
        "bits_per_dim": bits_per_dim(log_probs[0]),
        "bits_per_dim_importance": {**bits_per_dim(bound), "draws": draws},
    }


def _noisy_likelihood(hierarchy: Hierarchy, batches: Batches, input_noise: float) -> Metrics:
    """Bits per dimension of inputs with the noise that a DNF was trained with."""
    if input_noise == 0:
        return {}

    def bits_per_dim(x: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(x.shape, generator=batches.generator, device=x.device)
        return hierarchy.bits_per_dim(x + input_noise * noise)

    return {"bits_per_dim_noisy": mean_interval(per_event(bits_per_dim, batches))}


def _manifold_nll(hierarchy: Hierarchy, x: torch.Tensor) -> Metrics:
    """Negative log-density on the manifold, nats; its volume takes too long for all images."""
    log_prob, error = manifold_log_prob(hierarchy, x, generator=torch.Generator().manual_seed(0))
    return {
        **mean_interval(-log_prob.double().cpu().numpy()),
        "estimate_error": float(error.mean()),
    }


def _warnings(metrics: Metrics, histories: Sequence[dict[str, Any]]) -> list[str]:
    found = [
        f"{history['name']}: {text}"
        for history in histories
        for text in history.get("warnings", {}).values()
    ]
    if not metrics["inverse_error"] <= LARGEST_INVERSE_ERROR:
        found.append(
            f"On test data the inverse misses its input by {metrics['inverse_error']:.2g} of the "
            "data's spread: samples and projections are not those of this density"
        )
    return found


def _pca(baselines: dict[str, Any], hierarchy: Hierarchy) -> dict[str, Any]:
    if "why" in baselines:
        return {"why": baselines["why"]}
    mse, half = (baselines[key][hierarchy.dim] for key in ("pca_mse", "pca_mse_half_width"))
    return {"dim": hierarchy.dim, "mse": {"value": mse, "low": mse - half, "high": mse + half}}
