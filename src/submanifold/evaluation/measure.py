"""Metrics of a model's density and reconstruction on test data, and warnings."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from submanifold.common.progress import track
from submanifold.data.batches import Batches
from submanifold.data.events import Events
from submanifold.evaluation.baselines import evenly_spaced, pca_error
from submanifold.evaluation.events import group_numbers, summarize
from submanifold.evaluation.intervals import ENDS, mean_interval, proportion_interval
from submanifold.evaluation.likelihood import (
    BATCH_SIZE,
    dequantized_log_probs,
    importance_log_prob,
    noisy_log_prob,
    table_of,
    to_bits_per_dim,
)
from submanifold.evaluation.reconstruction import error_curve, reconstruction
from submanifold.flows import context_of
from submanifold.flows.context import Context
from submanifold.models import Model, classify, diagnostics, manifold_density

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
    rows: pd.DataFrame,
    test: Events,
    baselines: Mapping[str, Any],
    input_noise: float,
    dequantizations: int,
    device: torch.device,
    volumes: int = 0,
) -> Metrics:
    """Evaluate density and reconstruction on test data; the model is moved to the device.

    ``rows`` of :func:`.measure_events` are those of the ``test`` events. ``input_noise`` is the
    standard deviation of the noise that the density was trained with, and ``volumes`` the number of
    images whose density on the manifold is measured.
    """
    batches = Batches(test, BATCH_SIZE, device=device)
    x, context = next(iter(batches))
    model, groups = model.to(device), group_numbers(rows)
    metrics = density(model, rows, test, batches, input_noise)
    if not batches.is_continuous:
        if dequantizations > 1 and model.has_density:
            log_probs = dequantized_log_probs(model, test, dequantizations, device)
            bits = to_bits_per_dim(importance_log_prob(log_probs), test.x)
            bound = mean_interval(bits, groups) | {"draws": dequantizations}
            metrics["bits_per_dim_importance"] = bound
        if volumes:
            of_few = None if context is None else context.rows(slice(volumes))
            metrics |= volume(model, x[:volumes], groups, of_few)
        if "classes" in context_of(model):
            metrics |= classification(model, test, device, groups)
    metrics |= reconstructions(rows, of_images=not batches.is_continuous)
    nearest = rows["nearest_distance"].dropna().to_numpy() if "nearest_distance" in rows else None
    metrics["curve"] = error_curve(model, test, baselines, device, nearest)
    return metrics | {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dims": model.dims,
        "inverse_error": diagnostics.inverse_error(model, x, context),
        "baselines": {
            "pca": pca_error(baselines, model.dim),
            "pca_subset": pca_error(baselines["projected"], model.dim),
            "gaussian": gaussian_density(model, test, baselines["gaussian"]),
        },
    }


def gaussian_density(model: Model, test: Events, gaussian: Metrics) -> Metrics:
    """Add ``nll`` in the units of a table to the bits per dimension of the Gaussian."""
    if (table := table_of(model)) is None:
        return gaussian
    contexts, bits = test.context, gaussian["bits_per_dim"]
    # of the density of complete rows, less the entropy of the noise of missing values
    missing = table.missing(contexts, len(test)).sum(1).mean()
    noise = missing * (1 + math.log(2 * math.pi)) / 2
    constant = float(table.log_dets(test.x, contexts).mean() + noise)
    scale = model.event_dim * math.log(2)
    return {
        **gaussian,
        "nll": {end: x and x * scale - constant for end, x in bits.items() if end in ENDS},
    }


def density(
    model: Model, rows: pd.DataFrame, test: Events, batches: Batches, input_noise: float
) -> Metrics:
    """Average bits per dimension, and look for signs of manifold overfitting of vectors."""
    metrics: Metrics = {}
    names = [name for name in ("bits_per_dim", "nll") if name in rows]
    if not model.has_density:
        return {name: {"value": None, "why": NO_DENSITY} for name in names}
    is_overfitted = False
    if batches.is_continuous:
        x, contexts = torch.cat([x for x, _ in batches])[:OVERFITTING_EVENTS], batches.contexts
        context = None if contexts is None else contexts.rows(slice(OVERFITTING_EVENTS))
        thickness, correlation = diagnostics.manifold_overfitting(model, x, context)
        metrics = {"thickness": thickness, "neighbour_correlation": correlation}
        is_overfitted = diagnostics.is_overfitted(thickness, correlation)
    for name in names:
        overfitted = {"value": None, "why": OVERFITTED}
        metrics[name] = overfitted if is_overfitted else summarize(rows, name)
    if input_noise > 0:
        bits = to_bits_per_dim(noisy_log_prob(model, batches, input_noise), test.x)
        metrics["bits_per_dim_noisy"] = mean_interval(bits, group_numbers(rows))
    return metrics


def reconstructions(rows: pd.DataFrame, of_images: bool) -> Metrics:
    """Summarize errors of encoder projections, of all kinds on the same events, and of stage 1."""

    def summary(column: str, of: pd.DataFrame) -> Metrics:
        return reconstruction(of[column].to_numpy(), of_images, group_numbers(of))

    metrics = summary("encoder_distance", rows)
    projected = rows[rows["nearest_distance"].notna()] if "nearest_distance" in rows else rows
    for kind, name in (("encoder", "encoder"), ("default", "projection"), ("nearest", "nearest")):
        if f"{kind}_distance" in rows:
            of_kind = summary(f"{kind}_distance", projected)
            metrics |= {f"{name}_{k}": x for k, x in of_kind.items() if k in ("mse", "psnr")}
    first = "stage_1_distance" if "stage_1_distance" in rows else "encoder_distance"
    return metrics | {"stage_1_mse": summary(first, rows)["mse"]}


def volume(
    model: Model, images: Tensor, groups: np.ndarray | None, context: Context | None = None
) -> Metrics:
    """Compute the density on the manifold and, where it is exact, its non-orthogonality."""
    generator = torch.Generator().manual_seed(0)
    result = manifold_density(model, images, generator=generator, context=context)
    nll = mean_interval(-result.log_prob.double().cpu().numpy(), groups)
    metrics: Metrics = {"manifold_nll": nll}
    values = result.non_orthogonality.double().cpu().numpy()
    if np.isfinite(values).all():
        metrics["non_orthogonality"] = mean_interval(values, groups)
    return metrics


def classification(
    model: Model, images: Events, device: torch.device, groups: np.ndarray | None
) -> Metrics:
    """Evaluate the Bayes classifier of a class-conditional model, for equal class frequencies."""
    if not model.has_density:
        return {}
    chosen = evenly_spaced(np.arange(len(images)), CLASSIFIED_IMAGES)
    batches = Batches(images[chosen].x, BATCH_SIZE, device=device)
    tracked = track(batches, "classifying", len(batches))
    probabilities = torch.cat([classify(model, x).cpu() for x, _ in tracked]).numpy()
    is_right = probabilities.argmax(1) == images[chosen].context
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
