"""The table of metrics: their names, labels, units and formats.

To add a metric, return it from :func:`~submanifold.evaluation.measure.measure`,
:func:`~submanifold.evaluation.sample_quality.sample_quality` or
:func:`~submanifold.evaluation.truth.against_truth`, and add an entry to :data:`METRICS`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from submanifold.evaluation.intervals import ENDS

NONE = "–"
PROJECTION_ERRORS = {
    "default": "projection_mse",
    "encoder": "encoder_mse",
    "nearest": "nearest_mse",
}
"""Names of the mean squared errors of the projections, all of the same test data."""
SUBSET = " (subset)"
"""End of the labels of metrics of at most 512 evenly spaced test images or points."""
MAX_DECIMALS = 6
COMPARED_WITH_TEST = ("fid", "kid")
"""Distances of images from the test images whose ideal value is zero."""


@dataclass(frozen=True)
class Metric:
    """An entry of the table.

    Attributes:
        name: Name in metrics.json or truth.json, with dots between nested keys.
        label: Column heading.
        format: Format specification of values without an interval.
        unit: Unit of values; empty for fractions and counts.
        better: Direction of improvement, or None.
        column: Name in files of results; by default `name`.
        compared: Whether comparisons of runs show the metric.
        help: Definition in one or two sentences, for tooltips and the reference.
    """

    name: str
    label: str
    format: str
    unit: str = ""
    better: Literal["lower", "higher"] | None = "lower"
    column: str = ""
    compared: bool = True
    help: str = ""

    def read(self, metrics: Mapping[str, Any]) -> Any:
        """Look up the metric in the nested mapping of metrics.json, or None."""
        value: Any = metrics
        for key in self.name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def write(self, measured: Any, signed: bool = False, label: bool = False) -> str:
        """Format a value as :func:`format_interval`, optionally with the label."""
        return format_interval(measured, self.format, signed, self.label if label else "")


def format_interval(measured: Any, spec: str, signed: bool = False, label: str = "") -> str:
    """Format a number, or a mapping with ``value``, ``low`` and ``high``.

    The half-width of the interval has two significant digits, as the Guide to the Expression of
    Uncertainty in Measurement (7.2.6) recommends; the format specification applies to values
    without an interval. A missing value is a dash or the reason ``why`` up to its colon.

    Example:
        >>> format_interval({"value": 3.7411, "low": 3.72, "high": 3.761}, ".3f", label="BPD")
        '3.741 BPD [3.720, 3.761]'
        >>> format_interval({"value": 0.6139, "low": -0.41, "high": 1.63}, ".4f")
        '0.6 [-0.4, 1.6]'
    """
    interval = measured if isinstance(measured, Mapping) else {"value": measured}
    ends: list[Any] = [interval.get(end) for end in ENDS]
    value, low, high = ends
    if is_missing(value):
        return str(interval.get("why", NONE)).split(":")[0]
    sign, spec = "+" if signed or spec.startswith("+") else "", spec.removeprefix("+")
    has_interval = not (is_missing(low) or is_missing(high))
    if has_interval and 0 < (half_width := (high - low) / 2) < math.inf:
        decimals = max(0, 1 - int(f"{half_width:.1e}".partition("e")[2]))
        comma = "," if "," in spec else ""
        spec = f"{comma}.{decimals}f" if decimals <= MAX_DECIMALS else ".1e"
    text = f"{_format(value, sign + spec)} {label}".rstrip()
    if has_interval:
        text += f" [{_format(low, sign + spec)}, {_format(high, sign + spec)}]"
    return text


def _format(value: float, spec: str) -> str:
    """Format a number; zero has no negative sign."""
    text = format(value, spec)
    return text if float(text.replace(",", "")) else format(0.0, spec)


def format_percent(measured: Mapping[str, Any]) -> str:
    """Format a fraction with ``value``, ``low`` and ``high`` in percent.

    Example:
        >>> format_percent({"value": 0.9824, "low": 0.966, "high": 0.992})
        '98.2% [96.6%, 99.2%]'
    """
    scaled = {end: 100 * measured[end] for end in ENDS if not is_missing(measured.get(end))}
    return re.sub(r"\d(?=[],]|$| \[)", r"\g<0>%", format_interval(scaled, ".1f"))


def events_of(metrics: Mapping[str, Any]) -> str:
    """Return what the metrics of a model are of: ``images``, ``rows`` of a table, or ``points``."""
    if metrics.get("curve", {}).get("variance") is None:
        return "images"
    return "rows" if "nll" in metrics else "points"


def training_images_reach(metrics: Mapping[str, Any], name: str) -> str | None:
    """Return a remark on a distance of :data:`COMPARED_WITH_TEST`, or None.

    If training images have at least half the distance of the samples from the test images, the
    distance says more about the split and about noise than about the samples.
    """
    samples, training = metrics.get(name), (metrics.get("training_images") or {}).get(name)
    if not samples or not training or is_missing(samples["value"]) or is_missing(training["value"]):
        return None
    if training["value"] < samples["value"] / 2:
        return None
    written = METRICS[name].write(training).partition(" [")[0]
    return f"says little here: training images themselves have {written}"


def is_missing(value: Any) -> bool:
    """Return whether a value is None or NaN."""
    return value is None or pd.isna(value)


BITS, NATS, DECIBELS = "bits per dimension", "nats", "dB"
SQUARED_ERROR = "squared pixels in [0, 1], or the squared unit of the data"
DISTANCE = "the unit of the data"

_METRICS = (
    Metric("bits_per_dim", "BPD", ".3f", BITS, column="bpd",
           help="Bits per dimension: the exact negative log-density, in bits per coordinate, "
           "including the part off the manifold. The coordinates are dequantized pixels in each "
           "channel, for which the value is an upper bound of the bits that code them, or the "
           "standardized columns of a table. Lower is better."),
    Metric("bits_per_dim_importance", "BPD, importance-weighted bound", ".3f", BITS, compared=False,
           help="The average of the density over several dequantizations, a tighter bound of the "
           "bits per dimension."),
    Metric("bits_per_dim_noisy", "BPD, noisy input", ".3f", BITS, compared=False,
           help="Bits per dimension of data with the largest Gaussian noise of the training, for "
           "denoising and noise-conditional normalizing flows."),
    Metric("nll", "NLL (nats)", ".3f", NATS, compared=False,
           help="Mean negative log-density in nats, of test points, or of test rows in the units "
           "of the table."),
    Metric("divergence", "KL from the truth (nats)", ".4f", NATS,
           help="Estimate of KL(true density || learned density): the difference of both negative "
           "log-densities at the same test points."),
    Metric("manifold_nll", "NLL on the manifold", ".4f", NATS, better=None, compared=False,
           help="Negative log-density with respect to the volume of the manifold, where samples "
           "lie. Not comparable with the density on all of space, or between manifolds."),
    Metric("manifold_divergence", "KL on the manifold (nats)", ".4f", NATS, better=None,
           compared=False,
           help="Difference of the log-densities of the true and of the learned manifold at the "
           "test points. The manifolds differ, so it is not a divergence and may be negative."),
    Metric("non_orthogonality", "non-orthogonality", ".3f", "bits per coordinate", compared=False,
           help="0 if the coordinates on the manifold are orthogonal: log2 of the ratio between "
           "the product of the lengths of the Jacobian's columns and their volume, per "
           "coordinate."),
    Metric("mse", "MSE, encoder projection", ".5f", SQUARED_ERROR,
           help="Mean squared error of encoder projections: encode, set all coordinates off the "
           "manifold to zero, decode."),
    Metric("psnr", "PSNR, encoder projection, dB", ".2f", DECIBELS, better="higher", compared=False,
           help="Peak signal-to-noise ratio of encoder projections, -10 log10 of the mean squared "
           "error. Higher is better."),
    Metric("psnr_per_image", "mean image PSNR, dB", ".2f", DECIBELS, better="higher",
           compared=False, help="Mean over the PSNRs of the images. Larger than the PSNR of the "
           "mean squared error if errors differ between images."),
    Metric("stage_1_mse", "MSE, stage 1 alone", ".5f", SQUARED_ERROR,
           help="Mean squared error of the projection onto the manifold of the first stage, before "
           "later stages reduce the dimension."),
    Metric("baselines.pca.mse", "MSE of PCA", ".5f", SQUARED_ERROR, better=None, column="pca_mse",
           help="Mean squared error of the projection onto as many principal components of the "
           "training data as the manifold has dimensions."),
    Metric("encoder_mse", f"MSE, encoder projection{SUBSET}", ".5f", SQUARED_ERROR,
           help="Mean squared error of encoder projections of the images whose default and nearest "
           "projections are computed."),
    Metric("projection_mse", f"MSE, default projection{SUBSET}", ".5f", SQUARED_ERROR,
           help="Mean squared error of default projections, which four gradients move from the "
           "encoder projection towards the nearest point of the manifold."),
    Metric("nearest_mse", f"MSE, nearest projection{SUBSET}", ".5f", SQUARED_ERROR,
           help="Mean squared error of projections that 16 gradients move towards the nearest "
           "point of the manifold. An upper bound of the distance from the manifold."),
    Metric("baselines.pca_subset.mse", f"MSE of PCA{SUBSET}", ".5f", SQUARED_ERROR, better=None,
           column="pca_subset_mse", help="Mean squared error of PCA on the images whose default "
           "and nearest projections are computed."),
    Metric("encoder_psnr", f"PSNR, encoder projection, dB{SUBSET}", ".2f", DECIBELS,
           better="higher", compared=False,
           help="Peak signal-to-noise ratio of encoder projections of the same images."),
    Metric("projection_psnr", f"PSNR, default projection, dB{SUBSET}", ".2f", DECIBELS,
           better="higher", compared=False,
           help="Peak signal-to-noise ratio of default projections."),
    Metric("nearest_psnr", f"PSNR, nearest projection, dB{SUBSET}", ".2f", DECIBELS,
           better="higher", compared=False,
           help="Peak signal-to-noise ratio of nearest projections."),
    Metric("fid", "FID", ".1f",
           help="Fréchet distance between Gaussians fitted to Inception features of samples and of "
           "test images. Compare only values with equal numbers of images."),
    Metric("kid", "KID", ".4f",
           help="Squared maximum mean discrepancy of a cubic kernel between features of samples "
           "and of test images. Zero on average for equal distributions, so it may be negative."),
    Metric("precision", "precision", ".2f", better="higher",
           help="Quality: the fraction of samples that are at most as far from a test image as "
           "that image's third nearest neighbor among the test images."),
    Metric("recall", "recall", ".2f", better="higher",
           help="Diversity: the fraction of test images that are at most as far from a sample as "
           "that sample's third nearest neighbor among the samples."),
    Metric("projection_distance", "distance from the true projection", ".4f", DISTANCE,
           help="Mean distance between the projections of a test point onto the learned and onto "
           "the true manifold."),
    Metric("sample_distance", "distance of samples from the true manifold", ".4f", DISTANCE,
           help="Mean distance of samples from the true manifold."),
    Metric("accuracy", "accuracy", ".3f", better="higher", compared=False,
           help="Fraction of test images whose label has the largest probability by Bayes' "
           "theorem, of a model that is conditional on the label."),
    Metric("calibration_error", "calibration error", ".3f", compared=False,
           help="Expected calibration error of these probabilities: the mean difference between "
           "accuracy and confidence over 15 bins of the confidence."),
    Metric("parameters", "parameters", ",.0f", better=None, help="Number of trained weights."),
    Metric("seconds.training", "training (s)", ",.0f", "s", better=None,
           help="Duration of all phases of training."),
)  # fmt: skip

METRICS = {metric.name: metric for metric in _METRICS}
"""Metrics by name, in the order of columns."""

COMPARED = {metric.column or name: metric for name, metric in METRICS.items() if metric.compared}
"""Metrics that comparisons of runs show, by their column in files of results."""


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of the table's metrics, of AUROCs and of dimensions, without intervals."""
    values = {name: metric.read(metrics) for name, metric in METRICS.items()}
    values |= {f"auroc.{name}": score["auroc"] for name, score in metrics.get("scores", {}).items()}
    values |= {f"dimension.{name}": x for name, x in metrics.get("estimates", {}).items()}
    values = {name: x.get("value") if isinstance(x, Mapping) else x for name, x in values.items()}
    return {name: float(value) for name, value in values.items() if not is_missing(value)}
