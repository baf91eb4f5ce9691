"""Anomaly scores of events under a model; larger values are more anomalous."""

import io
import math
from collections.abc import Collection, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from submanifold.common import distributed
from submanifold.common.progress import track
from submanifold.data.batches import fixed_batches
from submanifold.data.events import Events, EventsLike, as_events
from submanifold.data.tables import Preprocessor
from submanifold.data.tables.preprocessor import UNKNOWN_NATS
from submanifold.evaluation.likelihood import log_prob, redraw, table_of
from submanifold.evaluation.masks import fit_mask, mask_log_prob
from submanifold.flows import is_noise_conditional
from submanifold.flows.context import Context, context_array
from submanifold.geometry.linearization import jacobian
from submanifold.models import Model
from submanifold.models.stage import standard_normal_log_prob

SCORES = {
    "density": "-log p(x), nats",
    "on_manifold": "-log N(u; 0, I), nats",
    "off_manifold": "half the squared norm of v, nats",
    "encoder_distance": "mean squared error of the encoder projection",
    "nearest_distance": "mean squared error of the nearest projection",
    "smoothed_density": "-log p(x) of noise-conditional models at their best noise scale, nats, "
    "the mean over models of folds, less its mean increase by each missing value",
    "neighbor_distance": "mean distance from three training rows outside a fold, mean over the "
    "folds of cross-calibrated tables, standardized columns and their normal scores, less the "
    "effect of missing values",
    "complexity": "-log2 p(x) minus the bits of the image as a PNG",
    "manifold_density": "-log density on the manifold of the leading coordinates, nats",
    "dimension": "minus the local dimension, from the spectrum of J^T J",
    "mask": "-log p(which values are missing | the observed ones), nats",
    "typicality": "distance of log p(x) from its median over normal data, nats",
}
"""Descriptions by name; ``typicality`` is added by a calibration."""
QUICK: tuple[str, ...] = (
    "density",
    "on_manifold",
    "off_manifold",
    "encoder_distance",
    "complexity",
    "smoothed_density",
    "neighbor_distance",
)
SMOOTHED_DENSITY, NEIGHBOR_DISTANCE = "smoothed_density", "neighbor_distance"
MASK = "mask"  # a score, and the key of its weights in the calibration
NOISE_SCALES = 9  # noise scales among which best_noise_scale chooses, evenly spaced from 0 to 1
GREY_LEVEL, SMALL_CHANGE = 1 / 256, 0.1  # changes of an image and of a row that count as one half
LEADING = 64
SCORE_BATCH_SIZE = 64
SCALE_BATCH_SIZE = 1024
NOISE_SCALE = "noise_scale"  # key in the calibration of a noise-conditional model
# keys in the calibration of a table with missing values
MISSING_OFFSETS, NEIGHBOR_OFFSETS = "missing_offsets", "neighbor_offsets"
RIDGE = 0.1  # of the fit of these offsets, about a tenth of a row


def score(
    model: Model, events: EventsLike, names: Collection[str] = QUICK
) -> dict[str, np.ndarray]:
    """Score uint8 images (N, channels, height, width) or float vectors (N, D), by name.

    The noise of the dequantization depends on the image only: an event has the same scores whatever
    is scored with it, within rounding errors.
    """
    events, columns, table = as_events(events), list[str](), table_of(model)
    device, rows = next(model.parameters()).device, []

    def score_rows(numbers: Tensor, x: Tensor, context: Context | None) -> Tensor:
        by_name = score_batch(model, x, events.x[numbers.cpu().numpy()], names, context, table)
        columns[:] = by_name
        return torch.stack([*by_name.values()], 1)

    numbers = torch.arange(len(events), device=device).split(SCORE_BATCH_SIZE)
    batches = track(fixed_batches(events, SCORE_BATCH_SIZE, device), "scoring", len(events))
    for (x, context), of_batch in zip(batches, numbers, strict=True):
        rows.append(distributed.map_shards(score_rows, of_batch, x, context))
    scores = dict(zip(columns, torch.cat(rows).cpu().numpy().T, strict=True))
    return scores if events.changes is None else with_changes(scores, events.changes, model)


def with_changes(
    scores: dict[str, np.ndarray], changes: np.ndarray, model: Model
) -> dict[str, np.ndarray]:
    """Add to scores (N,) by name what values cost that differ from columns of one value.

    Each of the ``changes`` (N,) has its distance in ``neighbor_distance``
    (:meth:`.Neighbors.with_changes`), of models without neighbors a density of 1e-6 in
    ``smoothed_density``, like an unknown category.
    """
    changed = dict(scores)
    if model.neighbors is None and SMOOTHED_DENSITY in scores:
        changed[SMOOTHED_DENSITY] = scores[SMOOTHED_DENSITY] + UNKNOWN_NATS * changes
    elif model.neighbors is not None and NEIGHBOR_DISTANCE in scores:
        changed[NEIGHBOR_DISTANCE] = model.neighbors.with_changes(
            scores[NEIGHBOR_DISTANCE], changes
        )
    return changed


def score_batch(
    model: Model,
    x: Tensor,
    events: np.ndarray,
    names: Collection[str],
    context: Context | None = None,
    table: Preprocessor | None = None,
) -> dict[str, Tensor]:
    """Score a batch x (batch, ...), which is also given before its dequantization, by name.

    ``density`` and ``complexity`` are missing for models without a density on all of space,
    ``complexity`` for vectors, ``smoothed_density`` for models that are not noise-conditional,
    ``neighbor_distance`` for models without :class:`.Neighbors`, and ``mask`` for tables without
    missing values in the training rows.
    Errors of vectors are in the units of the model's input. ``table`` is that of
    :func:`.likelihood.log_prob`.
    """
    scores: dict[str, Tensor] = {}
    draws = None if table is None else redraw(table, x, context)
    with torch.no_grad():
        u, v, of_x = model(x, context)
        scores["on_manifold"] = -standard_normal_log_prob(model.coordinates(u))
        scores["off_manifold"] = v.square().sum(1) / 2
        if model.has_density:
            density = log_prob(model, x, context, draws=draws) if draws else of_x
            scores["density"] = -density.nan_to_num(-math.inf, math.inf, -math.inf)
        if SMOOTHED_DENSITY in names and model.has_density and is_noise_conditional(model):
            scale = model.calibration.get(NOISE_SCALE) or 0.0
            of_members = [log_prob(each, x, context, None, scale, draws) for each in model.members]
            smoothed = -torch.stack(of_members).mean(0)
            if table is not None and (offsets := model.calibration.get(MISSING_OFFSETS)):
                smoothed = without_offsets(smoothed, offsets, missing_values(table, x, context))
            scores[SMOOTHED_DENSITY] = smoothed
        if "encoder_distance" in names:
            projection = model.decode(u, context=context)
            scores["encoder_distance"] = (x - projection).square().flatten(1).mean(1)
    if NEIGHBOR_DISTANCE in names and table is not None and model.neighbors is not None:
        places = table.without_noise(x.cpu().numpy(), context_array(context))
        distance = model.neighbors.distance(torch.from_numpy(places).to(x))
        if offsets := model.calibration.get(NEIGHBOR_OFFSETS):
            distance = without_offsets(distance, offsets, missing_values(table, x, context))
        scores[NEIGHBOR_DISTANCE] = distance
    if MASK in names and table is not None and (weights := model.calibration.get(MASK)):
        of_batch = missing_values(table, x, context)
        log_probs = mask_log_prob(np.array(weights), x.cpu().numpy(), of_batch, table.maskable)
        scores[MASK] = -torch.from_numpy(log_probs).to(x.device)
    if "nearest_distance" in names:
        nearest = model.project(x, nearest=True, context=context)
        scores["nearest_distance"] = (x - nearest).square().flatten(1).mean(1)
    if "complexity" in names and model.has_density and events.dtype == np.uint8:
        bits = model.event_dim * model.to_bits_per_dim(of_x.double())
        scores["complexity"] = bits - torch.tensor(png_bits(events), device=bits.device)
    if "manifold_density" in names or "dimension" in names:
        scores |= _from_spectrum(model, u, context)
    chosen = [name for name in SCORES if name in names and name in scores]
    return {name: scores[name].double().detach() for name in chosen}


def _from_spectrum(model: Model, u: Tensor, context: Context | None) -> dict[str, Tensor]:
    """Score latents u (batch, d) by the leading eigenvalues of the decoder's metric there."""
    eigenvalues = leading_spectrum(model, u, context=context)
    volume = eigenvalues.clamp_min(1e-12).log().sum(1) / 2
    leading = model.coordinates(u)[:, : eigenvalues.shape[1]]
    code_log_prob = standard_normal_log_prob(leading) + model.overlap(u, context)
    return {
        "manifold_density": volume - code_log_prob,
        "dimension": -local_dimension(eigenvalues, model.event_shape),
    }


@torch.no_grad()
def best_noise_scale(model: Model, events: EventsLike) -> float:
    """Find the noise scale, in [0, 1], at which held-out events have the largest density.

    Like the bandwidth of a kernel density estimate it smooths more, the fewer the training data
    are. The tenth of the events (N, ...) with the lowest density is left out, so that anomalies
    among them do not determine the scale.
    """
    device = next(model.parameters()).device
    means = {}
    for scale in np.linspace(0, 1, NOISE_SCALES).tolist():
        batches = fixed_batches(events, SCALE_BATCH_SIZE, device)
        log_probs = [log_prob(model, x, c, noise_scale=scale) for x, c in batches]
        kept = torch.cat(log_probs).double().sort().values[len(events) // 10 :]
        means[scale] = kept.mean().item()
    return max(means, key=means.__getitem__)


def missing_values(table: Preprocessor, x: Tensor, context: Context | None) -> np.ndarray:
    """Return the mask of missing values (batch, columns with missing values)."""
    return table.missing(context_array(context), len(x))


def mask_weights(model: Model, events: Events) -> list[list[float]]:
    """Fit the density of the mask of training rows (N, D), see :func:`.fit_mask`."""
    table = table_of(model)
    if table is None or not len(table.maskable):
        return []
    missing = table.missing(events.context, len(events))
    return fit_mask(events.x, missing, table.maskable).tolist()


def missing_offsets(model: Model, events: Events) -> list[float]:
    """Fit the mean increase of ``smoothed_density`` by a missing value of each column, nats.

    A row with missing values is rarer than one without, and has fewer numbers to describe; neither
    makes it an anomaly. Huber regression on the finite scores of training rows (N, D).
    """
    table = table_of(model)
    if table is None:
        return []
    is_missing = table.missing(events.context, len(events))
    if not is_missing.any():
        return []
    calibration = {NOISE_SCALE: model.calibration.get(NOISE_SCALE)}
    without_offsets = model.with_facts(calibration=calibration)
    values = score(without_offsets, events, (SMOOTHED_DENSITY,))[SMOOTHED_DENSITY]
    return fit_missing_offsets(is_missing, values)


def fit_missing_offsets(is_missing: np.ndarray, values: np.ndarray) -> list[float]:
    """Regress the finite ones of scores (N,) on missing columns (N, columns): (columns,)."""
    is_finite = np.isfinite(values)
    if not is_missing.any() or not is_finite.any():
        return []
    from sklearn.linear_model import HuberRegressor  # loads in half a second

    fitted = HuberRegressor(alpha=RIDGE).fit(is_missing[is_finite], values[is_finite])
    return fitted.coef_.tolist()


def without_offsets(values: Tensor, offsets: Sequence[float], missing: np.ndarray) -> Tensor:
    """Subtract offsets (columns,) of missing values (batch, columns) from scores (batch,)."""
    return values - torch.from_numpy(missing).to(values) @ values.new_tensor(offsets)


def leading_spectrum(
    model: Model, u: Tensor, count: int = LEADING, context: Context | None = None
) -> Tensor:
    """Compute eigenvalues (batch, min(d, count)) of J^T J at u for the leading coordinates.

    J is the derivative of the decoder. The coordinates of a rotated model are sorted by importance,
    behind a flow on the code only roughly.
    """
    axes = torch.eye(u.shape[1], device=u.device)[: min(count, model.coordinates(u).shape[1])]

    def decode(u: Tensor, context: Context | None = None) -> Tensor:
        return model.decode(u, context=context)

    with torch.no_grad():
        directions = axes.expand(len(u), -1, -1)
        columns = jacobian(decode, u, directions, len(u), context).double()
    return torch.linalg.eigvalsh(columns.mT @ columns).clamp_min(0)


def local_dimension(eigenvalues: Tensor, event_shape: Sequence[int]) -> Tensor:
    r"""Count the directions in which an event changes visibly, with soft weights.

    .. math:: \sum_i \frac{\lambda_i}{\lambda_i + D \tau^2}

    for eigenvalues (batch, d) of J^T J and a change :math:`\tau`, one grey level of images: a
    direction that changes the event by :math:`\tau` (root mean square) counts as one half.
    """
    change = GREY_LEVEL if len(event_shape) == 3 else SMALL_CHANGE
    return (eigenvalues / (eigenvalues + math.prod(event_shape) * change**2)).sum(1)


def png_bits(images: np.ndarray) -> np.ndarray:
    """Return the bits of uint8 images (N, channels, height, width) as PNGs (Serrà et al. 2020)."""
    bits = np.zeros(len(images))
    for number, image in enumerate(images):
        buffer = io.BytesIO()
        pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        Image.fromarray(pixels).save(buffer, "png", optimize=True)
        bits[number] = 8 * buffer.tell()
    return bits
