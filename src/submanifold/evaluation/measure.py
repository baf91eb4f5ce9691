"""Metrics of a model's density and reconstruction on test data, and warnings."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from submanifold.common.progress import track
from submanifold.data.arrays import context_of_array
from submanifold.data.batches import Batches
from submanifold.data.tables import Preprocessor
from submanifold.evaluation.baselines import FULL, Extent, compared_events, evenly_spaced, pca_error
from submanifold.evaluation.intervals import ENDS, Interval, mean_interval, proportion_interval
from submanifold.evaluation.likelihood import (
    BATCH_SIZE,
    dequantized_log_probs,
    importance_log_prob,
    log_prob,
    noisy_log_prob,
    per_event,
    table_of,
    to_bits_per_dim,
)
from submanifold.evaluation.reconstruction import (
    NEAREST_BATCH_SIZE,
    error_curve,
    reconstruction,
    squared_errors,
)
from submanifold.flows import context_of
from submanifold.models import Hierarchy, Model, classify, diagnostics, manifold_density

CLASSIFIED_IMAGES, CALIBRATION_BINS = 2000, 15
OVERFITTING_EVENTS = 5000
OVERFITTED = (
    "not reported: the data are close to the manifold, and the residual is a smooth function of "
    "the position on it. Data without noise have no density on all of space, and their likelihood "
    "has no maximum (manifold overfitting)"
)
NO_DENSITY = (
    "not available: a stage is not invertible, so there is a density on the manifold but not on "
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
    extent: Extent = FULL,
    volumes: int = 0,
) -> Metrics:
    """Evaluate density and reconstruction on test data; the model is moved to the device.

    ``input_noise`` is the standard deviation of the noise that the density was trained with, and
    ``volumes`` the number of images whose density on the manifold is measured.
    """
    batches = Batches(test, BATCH_SIZE, device=device)
    x, context = next(iter(batches))
    model, table = model.to(device), table_of(model)
    metrics = density(model, test, batches, input_noise, dequantizations, groups, table)
    metrics |= reconstructions(model, test, batches, groups, extent.compared)
    if not batches.is_continuous:
        if volumes:
            of_few = None if context is None else context[:volumes]
            metrics |= volume(model, x[:volumes], groups, of_few)
        if "classes" in context_of(model):
            metrics |= classification(model, test, device, groups)
    metrics["curve"] = error_curve(model, test, baselines, device, extent)
    gaussian = baselines.get("gaussian")
    if gaussian and table is not None:
        bits = {end: gaussian["bits_per_dim"][end] for end in ENDS}
        # of the density of complete rows, less the entropy of the noise of missing values
        contexts, count = context_of_array(test), len(test)
        noise = table.missing(contexts, count).sum(1).mean() * (1 + math.log(2 * math.pi)) / 2
        constant = float(table.log_dets(contexts, count).mean() + noise)
        nats = {end: x and x * model.event_dim * math.log(2) - constant for end, x in bits.items()}
        gaussian = {**gaussian, "nll": nats}
    return metrics | {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dims": model.dims,
        "inverse_error": diagnostics.inverse_error(model, x, context),
        "baselines": {
            "pca": pca_error(baselines, model.dim),
            "pca_subset": pca_error(baselines, model.dim, extent.compared),
            "gaussian": gaussian,
        },
    }


def density(
    model: Model,
    test: np.ndarray,
    batches: Batches,
    input_noise: float,
    dequantizations: int,
    groups: np.ndarray | None,
    table: Preprocessor | None,
) -> Metrics:
    """Compute bits per dimension, and for vectors the signs of manifold overfitting."""
    metrics: Metrics = {}
    names = ("bits_per_dim",) if table is None else ("bits_per_dim", "nll")

    def interval(nats: np.ndarray) -> Interval:
        return mean_interval(to_bits_per_dim(nats, test), groups)

    if not model.has_density:
        return {name: {"value": None, "why": NO_DENSITY} for name in names}
    if batches.is_continuous:
        x, contexts = torch.cat([x for x, _ in batches])[:OVERFITTING_EVENTS], batches.contexts
        context = None if contexts is None else contexts[:OVERFITTING_EVENTS]
        thickness, correlation = diagnostics.manifold_overfitting(model, x, context)
        metrics = {"thickness": thickness, "neighbour_correlation": correlation}
        if diagnostics.is_overfitted(thickness, correlation):
            metrics |= {name: {"value": None, "why": OVERFITTED} for name in names}
        else:
            tracked = track(batches, "bits per dimension", len(test))
            nats = per_event(partial(log_prob, model, table=table), tracked)
            metrics["bits_per_dim"] = interval(nats)
            if table is not None:
                log_dets = table.log_dets(context_of_array(test), len(test))
                metrics["nll"] = mean_interval(-(nats + log_dets), groups)
    else:
        log_probs = dequantized_log_probs(model, test, dequantizations, batches.device)
        metrics["bits_per_dim"] = interval(log_probs[0])
        if dequantizations > 1:
            bound = interval(importance_log_prob(log_probs))
            metrics["bits_per_dim_importance"] = bound | {"draws": dequantizations}
    if input_noise > 0:
        metrics["bits_per_dim_noisy"] = interval(noisy_log_prob(model, batches, input_noise))
    return metrics


def reconstructions(
    model: Model, test: np.ndarray, batches: Batches, groups: np.ndarray | None, count: int
) -> Metrics:
    """Compute errors of encoder projections, of all of ``count`` events, and of stage 1."""
    summarize = partial(reconstruction, of_images=not batches.is_continuous)
    errors = squared_errors(model.encoder_projection, track(batches, "projecting", len(test)))
    metrics = summarize(errors, groups=groups)
    chosen = compared_events(len(test), count)
    compared = {"encoder": errors[chosen]}
    if model.dim < model.event_dim:
        subset = Batches(test[chosen], NEAREST_BATCH_SIZE, device=batches.device)
        for kind, name in (("projection", "default"), ("nearest", "nearest")):
            project = partial(model.project, nearest=name == "nearest")
            tracked = track(subset, f"{name} projections", len(subset))
            compared[kind] = squared_errors(project, tracked)
    of_chosen = None if groups is None else groups[chosen]
    for kind, values in compared.items():
        by_name = summarize(values, groups=of_chosen).items()
        metrics |= {f"{kind}_{name}": x for name, x in by_name if name in ("mse", "psnr")}
    if isinstance(model, Hierarchy):
        metrics["stage_1_mse"] = metrics["mse"]
        if model.stages[0].dim > model.dim:  # else later stages keep the manifold
            first = Hierarchy(model.stages[:1])
            errors = squared_errors(first.encoder_projection, batches)
            metrics["stage_1_mse"] = summarize(errors, groups=groups)["mse"]
    return metrics


def volume(
    model: Model, images: Tensor, groups: np.ndarray | None, context: Tensor | None = None
) -> Metrics:
    """Compute the density on the manifold and, where it is exact, its non-orthogonality."""
    generator = torch.Generator().manual_seed(0)
    result = manifold_density(model, images, generator=generator, context=context)
    nll = mean_interval(-result.log_prob.double().cpu().numpy(), groups)
    metrics: Metrics = {"manifold_nll": nll | {"estimate_error": float(result.error.mean())}}
    values = result.non_orthogonality.double().cpu().numpy()
    if np.isfinite(values).all():
        metrics["non_orthogonality"] = mean_interval(values, groups)
    return metrics


def classification(
    model: Model, images: np.ndarray, device: torch.device, groups: np.ndarray | None
) -> Metrics:
    """Evaluate the Bayes classifier of a class-conditional model, for equal class frequencies."""
    if not model.has_density:
        return {}
    chosen = evenly_spaced(np.arange(len(images)), CLASSIFIED_IMAGES)
    batches = Batches(np.asarray(images[chosen]), BATCH_SIZE, device=device)
    tracked = track(batches, "classifying", len(batches))
    probabilities = torch.cat([classify(model, x).cpu() for x, _ in tracked]).numpy()
    is_right = probabilities.argmax(1) == context_of_array(images[chosen])
    error = calibration_error(probabilities.max(1), is_right)
    accuracy = proportion_interval(is_right, None if groups is None else groups[chosen])
    return {"accuracy": accuracy, "calibration_error": {"value": error, "n": len(chosen)}}


def calibration_error(confidence: np.ndarray, is_right: np.ndarray) -> float:
    r"""Compute the expected calibration error (Guo et al. 2017).

    .. math:: \sum_b \frac{n_b}{n}\, |\mathrm{accuracy}_b - \mathrm{confidence}_b|

    over 15 bins b of equal width, from the probability of the predicted class, (n,), and whether it
    is right, (n,).

    Example:
        >>> calibration_error(np.array([0.9, 0.9, 0.7]), np.array([True, True, False]))
        0.3
    """
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, is_right - confidence, CALIBRATION_BINS)
    return round(float(np.abs(gaps).sum() / len(confidence)), 12)


def objective(name: str, model: Model, events: np.ndarray, device: torch.device) -> float:
    """Compute ``mse`` or ``bits_per_dim``, which are NaN without a density on all of space."""
    batches = Batches(events, BATCH_SIZE, device=device)
    progress = track(batches, "evaluating", len(batches))
    if name == "mse":
        errors = squared_errors(model.encoder_projection, progress)
        return reconstruction(errors, of_images=not batches.is_continuous)["mse"]["value"]
    if not model.has_density:
        return math.nan
    nats = per_event(partial(log_prob, model, table=table_of(model)), progress)
    return float(to_bits_per_dim(nats, events).mean())


def warnings(metrics: Metrics, histories: Mapping[str, Any]) -> list[str]:
    """Collect the warnings of trainings and of the evaluation."""
    texts = [
        f"{name}: {text}"
        for name in sorted(histories, key=lambda name: (len(name), name))
        for text in histories[name]["warnings"].values()
    ]
    if not metrics["inverse_error"] <= diagnostics.LARGEST_INVERSE_ERROR:
        texts.append(
            "The inverse is inaccurate: on test data, decode(encode(x)) differs from x by up to "
            f"{metrics['inverse_error']:.2g} standard deviations of the data. Samples and "
            "projections do not belong to the reported density"
        )
    return texts
