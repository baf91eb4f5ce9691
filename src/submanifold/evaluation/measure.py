"""All that is measured of a model on test data."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from submanifold.common.errors import UserError
from submanifold.common.progress import track
from submanifold.data.batches import Batches
from submanifold.evaluation.baselines import pca_error
from submanifold.evaluation.curve import error_curve
from submanifold.evaluation.intervals import mean_interval
from submanifold.evaluation.likelihood import (
    dequantized_log_probs,
    importance_log_prob,
    noisy_log_prob,
    per_event,
    to_bits_per_dim,
)
from submanifold.evaluation.reconstruction import reconstruction, squared_errors
from submanifold.models import Hierarchy, Model, on_manifold
from submanifold.models.diagnostics import (
    LARGEST_INVERSE_ERROR,
    inverse_error,
    is_overfitted,
    manifold_overfitting,
)
from submanifold.models.model import NEAREST_STEPS

BATCH = 256
VOLUMES = 8
MOST_NEAREST, BATCH_NEAREST = 512, 64  # a nearest point costs a hundred encodings
MOST_NEIGHBOURS = 5000
OVERFITTED = (
    "not reported: what is left off the manifold is little, and a smooth function of the position "
    "on it. The data have no noise there, and their likelihood no maximum (manifold overfitting)"
)
NO_DENSITY = (
    "none: a stage is no bijection, so that there is a density on the manifold alone and not on "
    "all of space"
)

Metrics = dict[str, Any]


def measure(
    model: Model,
    test: np.ndarray,
    baselines: Mapping[str, Any],
    input_noise: float,
    dequantizations: int,
    device: torch.device,
    groups: np.ndarray | None = None,
) -> Metrics:
    """Measure density and reconstruction beside the baselines, and what would make them worthless.

    Args:
        model: The model, which is moved to the device.
        test: Test data, uint8 images or float32 points, (N, ...).
        baselines: What :func:`submanifold.evaluation.baselines.fit_baselines` returned.
        input_noise: Standard deviation of the noise that the density was trained with.
        dequantizations: Noise draws for the importance bound, of images.
        device: Where it is computed. Several processes share the rows
        (:mod:`submanifold.common.distributed`).
        groups: Of test images, (N,), where they are not independent of each other: all intervals
            are over groups.

    Returns:
        Metrics by name (:mod:`submanifold.evaluation.metrics`), each with its interval and count.
    """
    model, batches = model.to(device), Batches(test, BATCH, device=device)
    summed = partial(reconstruction, of_images=not batches.is_continuous, groups=groups)
    whole = summed(squared_errors(model.project, track(batches, "projecting", len(test))))
    parts = {"stage_1": model.part(1, 1)} if isinstance(model, Hierarchy) else {}
    inner = {
        f"{name}_mse": summed(squared_errors(part.project, batches))["mse"]
        if len(model.dims) > 2
        else whole["mse"]
        for name, part in parts.items()
    }
    if model.dim < model.event_dim:
        some = Batches(test[:MOST_NEAREST], BATCH_NEAREST, device=device)
        shown = track(some, "nearest points", len(some))
        errors = squared_errors(lambda x: model.project(x, steps=NEAREST_STEPS), shown)
        nearest = summed(errors)
        whole |= {f"nearest_{name}": nearest[name] for name in ("mse", "psnr") if name in nearest}
    if batches.is_continuous:
        density = _density_of_points(model, batches, test)
    else:
        density = _density_of_images(model, batches, test, dequantizations, groups)
    if input_noise > 0 and model.has_density:
        noisy = to_bits_per_dim(noisy_log_prob(model, batches, input_noise), test)
        density["bits_per_dim_noisy"] = mean_interval(noisy, groups)
    if not batches.is_continuous:
        density["curve"] = error_curve(model, test, baselines, device)
    return {
        "dims": model.dims,
        "parameters": sum(p.numel() for p in model.parameters()),
        **density,
        **whole,
        **inner,
        "inverse_error": inverse_error(model, next(iter(batches))),
        "baselines": {
            "pca": pca_error(baselines, model.dim), "gaussian": baselines.get("gaussian")
        },
    }  # fmt: skip


def objectives(model: Model, events: np.ndarray, device: torch.device) -> tuple[float, float]:
    """Measure bits per dimension and squared error alone, to choose a model by.

    Args:
        model: The model, on the device.
        events: Uint8 images or float32 points, (N, ...), neither trained on nor reported.
        device: Where the model is.

    Raises:
        UserError: The model has no density on all of space.
    """
    if not model.has_density:
        raise UserError(f"Bits per dimension to choose by: {NO_DENSITY}.")
    batches = Batches(events, BATCH, device=device)
    log_prob = per_event(model.log_prob, track(batches, "bits per dimension", len(batches)))
    errors = squared_errors(model.project, track(batches, "projecting", len(batches)))
    mse = reconstruction(errors, of_images=not batches.is_continuous)["mse"]
    return float(to_bits_per_dim(log_prob, events).mean()), mse["value"]


def warnings(metrics: Metrics, histories: Mapping[str, Any]) -> list[str]:
    """What trainings and measurements have found that makes the metrics worthless."""
    found = [
        f"{name}: {text}"
        for name, history in sorted(histories.items(), key=lambda item: (len(item[0]), item[0]))
        for text in history["warnings"].values()
    ]
    if not metrics["inverse_error"] <= LARGEST_INVERSE_ERROR:
        found.append(
            f"On test data the inverse misses its input by {metrics['inverse_error']:.2g} of the "
            "data's spread: samples and projections are not those of this density"
        )
    return found


def _density_of_points(model: Model, batches: Batches, test: np.ndarray) -> Metrics:
    """Bits per dimension, unless the data have no noise and they are worthless."""
    if not model.has_density:
        return {"bits_per_dim": {"value": None, "why": NO_DENSITY}}
    some = torch.cat(list(batches))[:MOST_NEIGHBOURS]
    thickness, correlation = manifold_overfitting(model, some)
    found = {"thickness": thickness, "neighbour_correlation": correlation}
    if is_overfitted(thickness, correlation):
        return found | {"bits_per_dim": {"value": None, "why": OVERFITTED}}
    log_prob = per_event(model.log_prob, track(batches, "bits per dimension", len(batches)))
    return found | {"bits_per_dim": mean_interval(to_bits_per_dim(log_prob, test))}


def _density_of_images(
    model: Model, batches: Batches, test: np.ndarray, draws: int, groups: np.ndarray | None
) -> Metrics:
    """Bits per dimension with one dequantisation and with several, and nats on the manifold."""
    density: Metrics = {"bits_per_dim": {"value": None, "why": NO_DENSITY}}
    if model.has_density:
        log_probs = dequantized_log_probs(model, test, draws, batches.device)
        bound = to_bits_per_dim(importance_log_prob(log_probs), test)
        density = {
            "bits_per_dim": mean_interval(to_bits_per_dim(log_probs[0], test), groups),
            "bits_per_dim_importance": {**mean_interval(bound, groups), "draws": draws},
        }
    some = next(iter(batches))[:VOLUMES]  # a volume takes too long for all images
    inside = on_manifold(model, some, generator=torch.Generator().manual_seed(0))
    nll = mean_interval(-inside.log_prob.double().cpu().numpy(), groups)
    non_orthogonality = inside.non_orthogonality.double().cpu().numpy()
    return {
        **density,
        "manifold_nll": {**nll, "estimate_error": float(inside.error.mean())},
        **(
            {"non_orthogonality": mean_interval(non_orthogonality, groups)}
            if np.isfinite(non_orthogonality).all()
            else {}
        ),
    }
