"""The table of metrics: what is measured of a model, and how every page and table writes it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

NONE = "–"


@dataclass(frozen=True)
class Metric:
    """A row of the table; what is measured has a ``value``, mostly with its ``low`` and ``high``.

    Attributes:
        name: In metrics.json or truth.json, and with ``test.`` before it in MLflow.
        label: Heads its column.
        form: How a value is written, as in :func:`format`.
        unit: Of a value; empty for a share, a count, or a distance without one.
        better: Which way, or None where neither is.
        column: In files of results, and in the paper's; the name itself when empty.
        compared: Whether runs are compared by it, and not only their own reports show it.
    """

    name: str
    label: str
    form: str
    unit: str = ""
    better: Literal["lower", "higher"] | None = "lower"
    column: str = ""
    compared: bool = True

    def read(self, metrics: Mapping[str, Any]) -> Any:
        """Find it in metrics, nested as in metrics.json; None where it is not."""
        found: Any = metrics
        for part in self.name.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        return found

    def write(self, measured: Any, signed: bool = False, label: bool = False) -> str:
        """Write a value and its interval, ``3.740 [3.720, 3.761]``.

        Args:
            measured: A number, or ``value``, ``low`` and ``high``. Where the value is None or NaN
                the text is a dash, or the beginning of ``why`` there is none.
            signed: Write a plus too, as of a difference.
            label: Write the label behind the value.
        """
        found = measured if isinstance(measured, Mapping) else {"value": measured}
        if is_missing(found.get("value")):
            return str(found.get("why", NONE)).split(":")[0]
        form = f"+{self.form}" if signed else self.form
        text = format(found["value"], form) + (f" {self.label}" if label else "")
        if is_missing(found.get("low")) or is_missing(found.get("high")):
            return text
        return f"{text} [{found['low']:{form}}, {found['high']:{form}}]"


def is_missing(value: Any) -> bool:
    """Whether there is no number: None, or NaN."""
    return value is None or pd.isna(value)


BITS, PIXELS = "bits per dimension", "squared, on [0, 1] or in the data's own unit"
DISTANCE = "the data's own unit"

METRICS = {
    metric.name: metric
    for metric in (
        Metric("bits_per_dim", "BPD", ".3f", BITS, column="bpd"),
        Metric("bits_per_dim_importance", "BPD, several draws", ".3f", BITS, compared=False),
        Metric("bits_per_dim_noisy", "BPD, with DNF's noise", ".3f", BITS, compared=False),
        Metric("nll", "NLL (nats)", ".4f", "nats", compared=False),
        Metric("divergence", "nats above the truth", ".4f", "nats"),
        Metric("manifold_nll", "NLL on the manifold", ".4f", "nats", better=None, compared=False),
        Metric("manifold_divergence", "… above the truth", ".4f", "nats", None, compared=False),
        Metric(
            "non_orthogonality",
            "non_orthogonality of the metric",
            ".3f",
            "bits a coordinate",
            compared=False,
        ),
        Metric("mse", "MSE", ".5f", PIXELS),
        Metric("nearest_mse", "MSE, nearest point", ".5f", PIXELS),
        Metric("psnr", "PSNR (dB)", ".2f", "dB", better="higher", compared=False),
        Metric("psnr_per_image", "mean image PSNR (dB)", ".2f", "dB", "higher", compared=False),
        Metric("nearest_psnr", "PSNR, nearest point (dB)", ".2f", "dB", "higher", compared=False),
        Metric("stage_1_mse", "MSE, stage 1 alone", ".5f", PIXELS),
        Metric("baselines.pca.mse", "MSE of PCA", ".5f", PIXELS, better=None, column="pca_mse"),
        Metric("sliced_wasserstein", "sliced Wasserstein", ".0f", "thousandths of a spread"),
        Metric("fid", "FID", ".1f"),
        Metric("kid", "KID", ".4f"),
        Metric("precision", "precision", ".2f", better="higher"),
        Metric("recall", "recall", ".2f", better="higher"),
        Metric("projection_distance", "projection to the true one", ".4f", DISTANCE),
        Metric("sample_distance", "sample to the manifold", ".4f", DISTANCE),
        Metric("parameters", "parameters", ",.0f", better=None),
        Metric("seconds.training", "training (s)", ",.0f", "s", better=None),
    )
}
"""By name, in the order of columns."""

COMPARED = {metric.column or name: metric for name, metric in METRICS.items() if metric.compared}
"""What runs are compared by, by the name of the column in files of results."""
