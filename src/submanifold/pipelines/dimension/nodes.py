"""Nodes of the dimension pipeline."""

from typing import Any

import numpy as np
import pandas as pd

from submanifold.common.device import choose_device
from submanifold.data.splits import Groups, groups_of
from submanifold.evaluation import dimension
from submanifold.evaluation.metrics import format_interval
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
    """Estimate intrinsic dimensions of the data and the model, and recommend a dimension."""
    model = model.to(choose_device(device))
    return {
        "estimates": dimension.intrinsic_dimensions(train),
        "spectrum": dimension.spectrum_dimension(model, test, groups_of(groups, "test")),
        "advice": dimension.advise(metrics["curve"], baselines, model.dim),
    }


def write_page(
    found: dict[str, Any], metrics: dict[str, Any], dataset: str, method: str
) -> dict[str, Any]:
    """Write the page with the error by dimension, the estimates and the advice."""
    from submanifold.plots.dimensions import dimension_curves  # matplotlib is slow to import

    curve, spectrum = metrics["curve"], found["spectrum"]
    figure = dimension_curves(curve, metrics["dims"][-1])
    about = f"of {spectrum['directions']} directions, those that change an image by a grey level"
    names = {**dimension.ESTIMATORS, "spectrum of JᵀJ": about}
    values = [*found["estimates"].values(), spectrum]
    dimensions = [format_interval(each, ".1f") for each in values]
    smallest = ["none" if dim is None else str(dim) for dim in curve["smallest"].values()]
    page = render(
        "dimension.html",
        dataset=dataset,
        method=method,
        advice=found["advice"]["sentence"],
        table=pd.DataFrame({"estimate": names.keys(), "of": names.values(),
                            "dimension": dimensions}),
        smallest=pd.DataFrame({"PSNR, dB": curve["smallest"].keys(), "smallest d": smallest}),
        curve=figure,
        spectrum=spectrum,
    )  # fmt: skip
    return {"page": page, "curve": figure}
