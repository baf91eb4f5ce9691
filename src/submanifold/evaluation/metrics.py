"""The table of metrics, ``metrics.yml``: their names, labels, units and formats."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from importlib.resources import files
from typing import Any, Literal

import numpy as np

from submanifold.common.settings import parse_yaml
from submanifold.evaluation.intervals import ENDS

NONE = "–"
PROJECTION_ERRORS = {
    "default": "projection_mse",
    "encoder": "encoder_mse",
    "nearest": "nearest_mse",
}
"""Names of the mean squared errors of the projections, all of the same test data."""
SUBSET = " (subset)"  # in labels of metrics of at most 512 evenly spaced test events
MAX_DECIMALS = 6
COMMAS = 10_000  # smallest number with commas: 1984 may be a year
COMPARED_WITH_TEST = "fid", "frechet_distance", "kid"  # distances of images, ideally zero


@dataclass(frozen=True)
class Metric:
    """An entry of the table."""

    name: str  # in metrics.json or truth.json, with dots between nested keys
    label: str  # column heading
    format: str  # specification for values without an interval; empty for format_value
    unit: str = ""  # empty for fractions and counts
    better: Literal["lower", "higher"] | None = "lower"  # direction of improvement
    column: str = ""  # in files of results; by default the name
    compared: bool = True  # whether comparisons of runs show it
    help: str = ""  # definition in one or two sentences, for tooltips and the reference

    def read(self, metrics: Mapping[str, Any]) -> Any:
        """Look up the metric in the nested mapping of metrics.json, or None."""
        value: Any = metrics
        for key in self.name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def unit_of(self, kind: str) -> str:
        """Return the unit for ``images``, a ``table`` or ``synthetic`` data, if no label has it."""
        of_images, _, of_data = self.unit.partition(", or ")
        of_data = "squared, of standardized columns" if kind == "table" else of_data
        unit = of_data if kind != "images" and ", or " in self.unit else of_images
        return "" if unit in self.label else unit

    def write(self, measured: Any, signed: bool = False, label: bool = False) -> str:
        """Format a value as :func:`format_interval`."""
        return format_interval(measured, self.format, signed, self.label if label else "")


def format_interval(measured: Any, spec: str, signed: bool = False, label: str = "") -> str:
    """Format a number, or a mapping with ``value``, ``low`` and ``high``, such as by ``.3f``.

    The half-width of the interval has two significant digits, as the Guide to the Expression of
    Uncertainty in Measurement (7.2.6) recommends. A missing value is a dash or the reason ``why``.
    An empty ``spec`` is that of :func:`format_value`.

    Example:
        >>> format_interval({"value": 3.7411, "low": 3.72, "high": 3.761}, ".3f", label="BPD")
        '3.741 BPD [3.720, 3.761]'
        >>> format_interval({"value": 0.6139, "low": -0.41, "high": 1.63}, ".4f")
        '0.6 [-0.4, 1.6]'
        >>> format_interval({"value": 0.9824, "low": 0.966, "high": 0.992}, ".1%")
        '98.2% [96.6%, 99.2%]'
    """
    interval = measured if isinstance(measured, Mapping) else {"value": measured}
    ends: list[Any] = [interval.get(end) for end in ENDS]
    value, low, high = ends
    if is_missing(value):
        return str(interval.get("why", NONE)).split(":")[0]
    if not spec:
        return format_value(value)
    sign, spec = "+" if signed or spec.startswith("+") else "", spec.removeprefix("+")
    has_interval = not (is_missing(low) or is_missing(high))
    scale, unit = (100, "%") if spec.endswith("%") else (1, "f")
    if has_interval and 0 < (half_width := scale * (high - low) / 2) < math.inf:
        decimals = max(0, 1 - int(f"{half_width:.1e}".partition("e")[2]))
        comma = "," if "," in spec else ""
        spec = f"{comma}.{decimals}{unit}" if decimals <= MAX_DECIMALS else ".1e"
    spec = f"{sign}z{spec}"  # z: no negative zeros
    text = f"{value:{spec}} {label}".rstrip()
    return f"{text} [{low:{spec}}, {high:{spec}}]" if has_interval else text


def format_value(value: object, digits: int = 4, comma: str = ",") -> str:
    """Format a value of a table; a number has no exponent unless it is extreme.

    The ``comma`` separates the thousands.

    Example:
        >>> [format_value(x) for x in (50_000, 1984, 236_512.7, 0.0001234, 1e-12, "Bern")]
        ['50,000', '1984', '236,500', '0.0001234', '1e-12', 'Bern']
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return str(value)
    text = str(value) if isinstance(value, int | np.integer) else f"{value:.{digits}g}"
    size = abs(float(text))
    if not (1e-6 < size < 1e15):  # or 0, or not finite
        return text
    return f"{Decimal(text):{comma if size >= COMMAS else ''}f}"


def events_of(metrics: Mapping[str, Any]) -> str:
    """Return what the metrics of a model are of: ``images``, ``rows`` of a table, or ``points``."""
    is_image = metrics.get("curve", {}).get("variance") is None
    return "images" if is_image else "rows" if "nll" in metrics else "points"


def training_images_reach(metrics: Mapping[str, Any], name: str) -> str | None:
    """Remark on a distance from test images of which training images have at least half.

    It says more about the split and about noise than about the samples.
    """
    samples, training = metrics.get(name), (metrics.get("training_images") or {}).get(name)
    values: list[Any] = [interval.get("value") for interval in (samples or {}, training or {})]
    if any(map(is_missing, values)) or values[1] < values[0] / 2:
        return None
    written = METRICS[name].write(training).partition(" [")[0]
    return f"says little here: training images themselves have {written}"


def is_missing(value: Any) -> bool:
    """Return whether a value is None or NaN."""
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))


_YAML = parse_yaml((files(__package__) / "metrics.yml").read_text(encoding="utf-8"))
METRICS = {name: Metric(name, **settings) for name, settings in _YAML.items()}
"""Metrics by name, in the order of columns."""

COMPARED = {metric.column or name: metric for name, metric in METRICS.items() if metric.compared}
"""Metrics that comparisons of runs show, by their column in files of results."""


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of the table's metrics and of AUROCs, without intervals."""
    values = {name: metric.read(metrics) for name, metric in METRICS.items()}
    values |= {f"auroc.{name}": score["auroc"] for name, score in metrics.get("scores", {}).items()}
    values = {name: x.get("value") if isinstance(x, Mapping) else x for name, x in values.items()}
    return {name: float(value) for name, value in values.items() if not is_missing(value)}
