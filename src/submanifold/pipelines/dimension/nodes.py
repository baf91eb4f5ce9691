"""Nodes of the dimension pipeline."""

from typing import Any

import numpy as np
import pandas as pd

from submanifold.common.device import choose_device
from submanifold.data.groups import Groups, groups_of
from submanifold.evaluation.metrics import Metric
from submanifold.models import Model
from submanifold.plots.pages import render


def estimate(
    model: Model,
    metrics: dict[str, Any],
    baselines: dict[str, Any],
    train: np.ndarray,
    test: np.ndarray,
    groups: Groups,
    device: str,
) -> dict[str, Any]:
    """Estimate intrinsic dimensions, without a model and by its spectrum; recommend one."""
    from submanifold.evaluation import dimension as of

    return {
        "estimates": of.intrinsic_dimensions(train),
        "spectrum": of.spectrum_dimension(
            model.to(choose_device(device)), test, groups_of(groups, "test")
        ),
        "advice": of.advise(metrics["curve"], baselines, model.dim),
    }


def write_page(
    found: dict[str, Any], metrics: dict[str, Any], dataset: str, method: str
) -> dict[str, Any]:
    """Draw the error by dimension, and put the estimates and the advice beside it."""
    from submanifold.evaluation.dimension import ESTIMATORS
    from submanifold.plots.dimensions import dimension_curves
    from submanifold.plots.images import as_png

    figure = dimension_curves(metrics["curve"], metrics["dims"][-1])
    rows = [
        {"estimate": name, "of": text, "dimension": _write(found["estimates"][name])}
        for name, text in ESTIMATORS.items()
    ]
    spectrum = found["spectrum"]
    about = f"directions, of {spectrum['directions']}, that move an image by a grey level and more"
    rows.append({"estimate": "spectrum of JᵀJ", "of": about, "dimension": _write(spectrum)})
    smallest = pd.DataFrame([
        {"PSNR, dB": psnr, "smallest d": "none" if dim is None else str(dim)}
        for psnr, dim in metrics["curve"]["smallest"].items()
    ])  # fmt: skip
    page = render(
        "dimension.html", dataset=dataset, method=method, advice=found["advice"]["sentence"],
        table=pd.DataFrame(rows), smallest=smallest, curve=as_png(figure), spectrum=spectrum,
    )  # fmt: skip
    return {"page": page, "curve": figure}


def _write(measured: dict[str, Any]) -> str:
    return Metric("", "", ".1f").write(measured)
