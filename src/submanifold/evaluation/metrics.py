"""The table of metrics: their names, labels, units and formats.

To add a metric, return it from :func:`~submanifold.evaluation.measure.measure`,
:func:`~submanifold.evaluation.sample_quality.sample_quality` or
:func:`~submanifold.evaluation.truth.against_truth`, and add an entry to :data:`METRICS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

NONE = "–"


@dataclass(frozen=True)
class Metric:
    """An entry of the table.

    Attributes:
        name: Name in metrics.json or truth.json, with dots between nested keys.
        label: Column heading.
        format: Format specification of values.
        unit: Unit of values; empty for fractions and counts.
        better: Direction of improvement, or None.
        column: Name in files of results; by default `name`.
        compared: Whether comparisons of runs show the metric.
    """

    name: str
    label: str
    format: str
    unit: str = ""
    better: Literal["lower", "higher"] | None = "lower"
    column: str = ""
    compared: bool = True

    def read(self, metrics: Mapping[str, Any]) -> Any:
        """Look up the metric in the nested mapping of metrics.json, or None."""
        found: Any = metrics
        for key in self.name.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    def write(self, measured: Any, signed: bool = False, label: bool = False) -> str:
        """Format a value as :func:`format_interval`, optionally with the label."""
        return format_interval(measured, self.format, signed, self.label if label else "")


def format_interval(measured: Any, spec: str, signed: bool = False, label: str = "") -> str:
    """Format a number, or a mapping with ``value``, ``low`` and ``high``.

    A missing value is a dash or the reason ``why`` up to its colon.

    Example:
        >>> format_interval({"value": 3.74, "low": 3.72, "high": 3.761}, ".3f", label="BPD")
        '3.740 BPD [3.720, 3.761]'
    """
    found = measured if isinstance(measured, Mapping) else {"value": measured}
    if is_missing(found.get("value")):
        return str(found.get("why", NONE)).split(":")[0]
    spec = f"+{spec}" if signed else spec
    text = format(found["value"], spec) + (f" {label}" if label else "")
    if is_missing(found.get("low")) or is_missing(found.get("high")):
        return text
    return f"{text} [{found['low']:{spec}}, {found['high']:{spec}}]"


def is_missing(value: Any) -> bool:
    """Return whether a value is None or NaN."""
    return value is None or pd.isna(value)


BITS, NATS, DECIBELS = "bits per dimension", "nats", "dB"
SQUARED_ERROR = "squared pixels in [0, 1], or the squared unit of the data"
DISTANCE = "the unit of the data"

_METRICS = (
    Metric("bits_per_dim", "BPD", ".3f", BITS, column="bpd"),
    Metric("bits_per_dim_importance", "BPD, importance-weighted bound", ".3f", BITS,
           compared=False),
    Metric("bits_per_dim_noisy", "BPD, with DNF's noise", ".3f", BITS, compared=False),
    Metric("nll", "NLL (nats)", ".4f", NATS, compared=False),
    Metric("divergence", "KL from the truth (nats)", ".4f", NATS),
    Metric("manifold_nll", "NLL on the manifold", ".4f", NATS, better=None, compared=False),
    Metric("manifold_divergence", "KL on the manifold (nats)", ".4f", NATS, better=None,
           compared=False),
    Metric("non_orthogonality", "non-orthogonality", ".3f", "bits per coordinate", compared=False),
    Metric("mse", "MSE", ".5f", SQUARED_ERROR),
    Metric("nearest_mse", "MSE, nearest projection", ".5f", SQUARED_ERROR),
    Metric("psnr", "PSNR (dB)", ".2f", DECIBELS, "higher", compared=False),
    Metric("psnr_per_image", "mean image PSNR (dB)", ".2f", DECIBELS, "higher", compared=False),
    Metric("nearest_psnr", "PSNR, nearest projection (dB)", ".2f", DECIBELS, "higher",
           compared=False),
    Metric("stage_1_mse", "MSE, stage 1 alone", ".5f", SQUARED_ERROR),
    Metric("baselines.pca.mse", "MSE of PCA", ".5f", SQUARED_ERROR, better=None, column="pca_mse"),
    Metric("sliced_wasserstein", "sliced Wasserstein", ".0f",
           "thousandths of a standard deviation"),
    Metric("fid", "FID", ".1f"),
    Metric("kid", "KID", ".4f"),
    Metric("precision", "precision", ".2f", better="higher"),
    Metric("recall", "recall", ".2f", better="higher"),
    Metric("projection_distance", "distance from the true projection", ".4f", DISTANCE),
    Metric("sample_distance", "distance of samples from the true manifold", ".4f", DISTANCE),
    Metric("parameters", "parameters", ",.0f", better=None),
    Metric("seconds.training", "training (s)", ",.0f", "s", better=None),
)  # fmt: skip

METRICS = {metric.name: metric for metric in _METRICS}
"""Metrics by name, in the order of columns."""

COMPARED = {metric.column or name: metric for name, metric in METRICS.items() if metric.compared}
"""Metrics that comparisons of runs show, by their column in files of results."""
