"""Checks of a training in progress: divergence, and validations that cannot be trusted."""

import math
from collections.abc import Sequence

import torch

from submanifold.data.batches import Batches
from submanifold.models import Model, diagnostics
from submanifold.models.diagnostics import LARGEST_INVERSE_ERROR, is_overfitted

Row = dict[str, float]  #: Values by name, with their ``step``.

SCORED_LOSS = "scored_loss"  #: In the rows of validations of log-uniform noise scales.
LOG_EVERY = 10  #: Steps between rows.
LARGEST_GAP = 10.0  #: Bits per dimension, of validation data above those of training data.


def divergence(row: Row, earlier: Sequence[Row]) -> str | None:
    """Describe why a training has diverged, or return None.

    A too large learning rate can also leave a finite loss that is worse than at the start. A single
    spike, finite or not, is not divergence: one rare image can dominate a batch. ``earlier`` has
    the finite rows of the training.
    """
    if not is_finite(row):
        is_single = earlier and row["step"] - earlier[-1]["step"] <= LOG_EVERY
        return None if is_single else "not finite"
    if earlier and is_far_above(row, earlier) and is_far_above(earlier[-1], earlier):
        return f"{row['loss']:.3g}, far above the {earlier[0]['loss']:.3g} of the start"
    return None


def validation_divergence(rows: Sequence[Row]) -> str | None:
    """Describe why a training has diverged, by its validations so far, or return None.

    A single loss that is not finite is not divergence, except of the first validation; nor is a
    loss far above the start, which the training data need not have.
    """
    is_diverged = not any(math.isfinite(row["loss"]) for row in rows[-2:])
    return "not finite in a validation" if is_diverged else None


def is_finite(row: Row) -> bool:
    """Whether all values of a row are finite."""
    return all(map(math.isfinite, row.values()))


def is_far_above(row: Row, earlier: Sequence[Row]) -> bool:
    """Whether a loss is far above that of the first row."""
    start = earlier[0]["loss"] if earlier else math.inf
    return row["loss"] > start + max(1.0, abs(start))


def diagnose(model: Model, valid: Batches) -> Row:
    """Measure whether a validation can be trusted.

    For continuous data, which can lack noise, also :func:`.manifold_overfitting` is measured.
    """
    row = {"inverse_error": diagnostics.inverse_error(model, *next(iter(valid)))}
    if valid.is_continuous:
        events = torch.cat([x for x, _ in valid])
        thickness, correlation = diagnostics.manifold_overfitting(model, events, valid.contexts)
        row |= {"thickness": thickness, "neighbour_correlation": correlation}
    return row


def warnings(row: Row, trained: Row) -> dict[str, str]:
    """Warnings by kind about the results of :func:`diagnose`, with the losses of both data."""
    texts, step = {}, int(row["step"])
    if count := int(row.get("not_finite", 0)):
        texts["not_finite"] = (
            f"at step {step} the loss of {count} validation events is not finite: validations "
            "leave them out. Look for extreme values among them"
        )
    if not row["inverse_error"] <= LARGEST_INVERSE_ERROR:
        texts["inverse"] = (
            f"at step {step} the inverse differs from its input by {row['inverse_error']:.2g} "
            f"standard deviations of the data (limit {LARGEST_INVERSE_ERROR}): samples and "
            "projections do not match this density. Lower training.learning_rate, or use fewer "
            "steps or couplings"
        )
    if "thickness" in row and is_overfitted(row["thickness"], row["neighbour_correlation"]):
        texts["overfitting"] = (
            f"manifold overfitting at step {step}: the median distance from the manifold is "
            f"{row['thickness']:.2g} standard deviations of the data, and off-manifold coordinates "
            f"of neighbours correlate ({row['neighbour_correlation']:.2f}), so that the data have "
            "no noise there. Their likelihood is unbounded and bits per dimension are meaningless. "
            "Add noise with data.noise or input_noise"
        )
    name = "bits_per_dim"
    has_gap = name in trained and row[name] - trained[name] > LARGEST_GAP
    # models of several noise scales are scored at the one that fits held-out events
    if has_gap and SCORED_LOSS not in row:
        texts["memorized"] = (
            f"at step {step} validation data have {row[name]:.3g} bits per dimension and training "
            f"data {trained[name]:.3g}: the model memorizes the training data, and projections of "
            "other data diverge. Use more data, fewer steps or couplings, or more input_noise"
        )
    return texts
