"""Score, encode, project, sample, and interpolate events with a trained model.

Events are images, uint8 (N, channels, height, width) in the format of the training images, or
vectors, float32 (N, D). All functions raise a :class:`~submanifold.common.errors.UserError` for
arguments that are out of range, do not fit the model, or do not fit in memory.
"""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from submanifold.common.errors import UserError
from submanifold.common.processes import check_memory
from submanifold.common.progress import ProgressBar, track
from submanifold.data.batches import as_input, context_tensor, fixed_batches
from submanifold.evaluation.calibration import COMBINATION, Calibration
from submanifold.evaluation.likelihood import to_bits_per_dim
from submanifold.evaluation.samples import stored
from submanifold.evaluation.scores import QUICK, SCORE_BATCH_SIZE, score, score_batch
from submanifold.flows import conditioning
from submanifold.inference.training_events import hash_events
from submanifold.models import Model

if TYPE_CHECKING:
    import pandas as pd

MAX_TEMPERATURE = 10.0


def load_calibration(model: Model, alpha: float | None = None) -> Calibration:
    """Return the calibration of a model's p-values.

    Args:
        model: The model.
        alpha: False-positive rate that the calibration must support.

    Raises:
        UserError: The model has no calibration, or one on too few images for ``alpha``.
    """
    if "groups" not in model.calibration:
        reason = model.calibration.get("why") or (
            "Its file was written by an earlier version or by a single phase. Run the experiment "
            "again: trained phases are reused, and hierarchy.safetensors gets a calibration."
        )
        raise UserError(f"The model has no calibration of p-values. {reason}")
    calibration = Calibration.from_dict(model.calibration)
    least = calibration.smallest_p_value
    if alpha is not None and alpha < least:
        unit = "rows" if "table" in model.data else "images"
        raise UserError(
            f"--alpha: expected at least 1/{calibration.groups + 1:,} ({least:.3%}), the smallest "
            f"p-value of a calibration on {calibration.basis}, got {alpha:.3%}. Use a larger "
            f"value, or train with more validation {unit} (data.counts.valid)."
        )
    return calibration


def score_events(
    model: Model, events: np.ndarray, exact: bool = False, batch_size: int = SCORE_BATCH_SIZE
) -> "pd.DataFrame":
    """Score events: densities, distances from the manifold, and p-values.

    Args:
        model: A calibrated model.
        events: The events.
        exact: Whether to compute the nearest projections as well, which takes longer.
        batch_size: Number of events per batch.

    Returns:
        One row per event. If the model has a density on the whole space: ``log_prob`` (nats),
        ``bits_per_dim``, ``log_prob_off_manifold`` (nats, of v under N(0, I)), and ``complexity``
        (bits) of images. Always: ``log_prob_on_manifold`` (nats, of u under N(0, I)),
        ``encoder_mse``, ``nearest_mse`` if ``exact`` (pixels in [0, 1], or squared units of
        vectors), ``anomaly_score``, and ``p_value``, the fraction of held-out training-like events
        that score at least as high.
    """
    import pandas as pd

    _check_events(model, events)
    scores = score(model, events, _score_names(exact), batch_size)
    return pd.DataFrame(_columns(model, load_calibration(model), events, scores))


def score_event_batch(
    model: Model, calibration: Calibration, events: np.ndarray, exact: bool = False,
    hashes: list[np.ndarray] | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Score a batch of events: the columns of :func:`score_events`. Append their ``hashes``."""
    _check_events(model, events)
    device = next(model.parameters()).device
    x = as_input(events).to(device)
    with conditioning(model, context_tensor(events, device)):
        found = score_batch(model, x, events, _score_names(exact))
    scores = {name: values.cpu().numpy() for name, values in found.items()}
    if hashes is not None:
        hashes.append(hash_events(model, events))
    return _columns(model, calibration, events, scores)


def _score_names(exact: bool) -> tuple[str, ...]:
    return (*QUICK, "nearest_distance") if exact else QUICK


def _columns(
    model: Model, calibration: Calibration, events: np.ndarray, scores: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    scores = calibration.complete(scores)
    columns = {}
    if model.has_density:
        constant = (model.event_dim - model.dim) / 2 * np.log(2 * np.pi)
        columns = {
            "log_prob": -scores["density"],
            "bits_per_dim": to_bits_per_dim(-scores["density"], events),
            "log_prob_off_manifold": -scores["off_manifold"] - constant,
        }
        if "complexity" in scores:
            columns["complexity"] = scores["complexity"]
    columns |= {
        "log_prob_on_manifold": -scores["on_manifold"],
        "encoder_mse": scores["encoder_distance"],
        "p_value": calibration.p_values(COMBINATION, scores[COMBINATION]),
        "anomaly_score": scores[COMBINATION],
    }
    if "nearest_distance" in scores:
        columns["nearest_mse"] = scores["nearest_distance"]
    return columns


def encode_events(
    model: Model, events: np.ndarray, exact: bool = False, batch_size: int = SCORE_BATCH_SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates of events on the manifold, u (N, d), and off it, v (N, D - d).

    With ``exact``, u is that of the nearest projection; otherwise (u, v) decodes to the event.
    """
    _check_events(model, events)
    with torch.no_grad():
        batches = _batches(model, events, batch_size, "encoding")
        both = [model.encode(x, exact or None) for x in batches]
    u, v = (torch.cat(each).cpu().numpy() for each in zip(*both, strict=True))
    return u, v


def project_events(
    model: Model, events: np.ndarray, exact: bool = False, batch_size: int = SCORE_BATCH_SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Return the projections of events, and their mean squared errors (N,), pixels in [0, 1]."""
    _check_events(model, events)
    projections, errors = [], []
    with torch.no_grad():
        for x in _batches(model, events, batch_size, "projecting"):
            projected = model.project(x, exact)
            projections.append(stored(projected))
            errors.append((x - projected).square().flatten(1).mean(1))
    return np.concatenate(projections), torch.cat(errors).cpu().numpy()


def sample_events(
    model: Model, count: int, temperature: float, seed: int, context: np.ndarray | None = None
) -> np.ndarray:
    """Sample images (count, channels, height, width) or vectors (count, D) on the manifold.

    Given contexts (N, ...), there are ``count`` samples for each, one context after the other.
    """
    if count < 1:
        raise UserError(f"count: expected 1 or more, got {count}.")
    if not 0 <= temperature <= MAX_TEMPERATURE:
        raise UserError(f"temperature: expected 0 to {MAX_TEMPERATURE:g}, got {temperature}.")
    if not -(2**63) <= seed < 2**63:
        raise UserError(f"seed: expected an integer from -2^63 to 2^63 - 1, got {seed}.")
    total = count if context is None else count * len(context)
    check_memory("count", total, 2 * _bytes_per_sample(model))  # concatenation copies
    generator, samples = torch.Generator().manual_seed(seed), []
    device = next(model.parameters()).device
    with ProgressBar("sampling", "samples", total) as progress:
        for start in range(0, total, SCORE_BATCH_SIZE):
            size = min(SCORE_BATCH_SIZE, total - start)
            given = None
            if context is not None:
                rows = np.arange(start, start + size) // count
                given = torch.from_numpy(context[rows]).to(device)
            samples.append(stored(model.sample(size, temperature, generator, given)))
            progress.update(size)
    return np.concatenate(samples)


def interpolate_events(model: Model, events: np.ndarray, steps: int) -> np.ndarray:
    """Interpolate between two events on the manifold (:func:`interpolate_latents`).

    A conditional model decodes all points given the context of the first event.

    Returns:
        Events (steps, ...), starting and ending with the projections.
    """
    _check_events(model, events)
    check_memory("steps", steps, 2 * _bytes_per_sample(model) + 12 * model.dim)
    with torch.no_grad():
        ((first, last),) = [model.encode(x)[0] for x in _batches(model, events, 2, "encoding")]
        points = interpolate_latents(first, last, steps).split(SCORE_BATCH_SIZE)
        context = context_tensor(events[:1], first.device)
        return np.concatenate([stored(model.decode(u, context=context)) for u in points])


def interpolate_latents(a: Tensor, b: Tensor, steps: int) -> Tensor:
    r"""Interpolate from a (d,) to b (d,) along the great circle of directions.

    :math:`\|u\|^2` changes linearly, and with it :math:`\log N(u; 0, I)`, but no other density.

    Returns:
        Points (steps, d), including both ends.
    """
    weight = torch.linspace(0, 1, steps, dtype=a.dtype, device=a.device)[:, None]
    angle = torch.arccos((a @ b / (a.norm() * b.norm())).clamp(-1, 1)).clamp(1e-4, np.pi - 1e-4)
    ends = ((1 - weight) * angle).sin() * a / a.norm() + (weight * angle).sin() * b / b.norm()
    squared_norm = (1 - weight) * a.square().sum() + weight * b.square().sum()
    return F.normalize(ends, dim=1) * squared_norm.sqrt()


def _check_events(model: Model, events: np.ndarray) -> None:
    shape = tuple(model.event_shape)
    dtype = np.dtype(np.uint8 if len(shape) == 3 else np.float32)
    if events.dtype != dtype or events.shape[1:] != shape or not len(events):
        fix = "Convert vectors with astype(numpy.float32)."
        if len(shape) == 3:
            fix = "Read files with submanifold.inference.image_files.ImageFiles."
        raise UserError(
            f"events: expected {dtype} of shape (N, {', '.join(map(str, shape))}) with N at least "
            f"1, got {events.dtype} of shape {events.shape}. {fix}"
        )


def _bytes_per_sample(model: Model) -> int:
    """Return the size of a sample in an array: uint8 for images, float32 for vectors."""
    return model.event_dim * (1 if len(model.event_shape) == 3 else 4)


def _batches(model: Model, events: np.ndarray, size: int, description: str) -> Iterator[Tensor]:
    device, given = next(model.parameters()).device, partial(conditioning, model)
    batches = fixed_batches(events, size, device, given)
    return track(batches, description, len(events))
