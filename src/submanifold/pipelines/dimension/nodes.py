"""Nodes of the dimension pipeline."""

from typing import Any

import numpy as np
import pandas as pd

from submanifold.common.device import choose_device
from submanifold.data.groups import Groups, groups_of
from submanifold.evaluation.dimension import (
    ESTIMATORS,
    advise,
    intrinsic_dimensions,
    spectrum_dimension,
)
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
        "estimates": intrinsic_dimensions(train),
        "spectrum": spectrum_dimension(model, test, groups_of(groups, "test")),
        "advice": advise(metrics["curve"], baselines, model.dim),
    }


def write_page(
    found: dict[str, Any], metrics: dict[str, Any], dataset: str, method: str
) -> dict[str, Any]:
    """Write the page with the error by dimension, the estimates and the advice."""
    from submanifold.plots.dimensions import dimension_curves  # matplotlib is slow to import
    from submanifold.plots.images import as_png

    figure = dimension_curves(metrics["curve"], metrics["dims"][-1])
    spectrum, estimates = found["spectrum"], found["estimates"]
    about = f"of {spectrum['directions']} directions, those that change an image by a grey level"
    rows = [(name, text, estimates[name]) for name, text in ESTIMATORS.items()]
    rows.append(("spectrum of JᵀJ", about, spectrum))
    table = pd.DataFrame(
        [(name, text, format_interval(each, ".1f")) for name, text, each in rows],
        columns=["estimate", "of", "dimension"],
    )
    smallest = [
        (psnr, "none" if dim is None else str(dim))
        for psnr, dim in metrics["curve"]["smallest"].items()
    ]
    page = render(
        "dimension.html",
        dataset=dataset,
        method=method,
        advice=found["advice"]["sentence"],
        table=table,
        smallest=pd.DataFrame(smallest, columns=["PSNR, dB", "smallest d"]),
        curve=as_png(figure),
        spectrum=spectrum,
    )
    return {"page": page, "curve": figure}
