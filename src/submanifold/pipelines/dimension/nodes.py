"""Nodes of the dimension pipeline."""

from pathlib import Path
from typing import Any

import numpy as np

from submanifold.common.device import choose_device
from submanifold.data.splits import Groups, groups_of
from submanifold.evaluation import dimension
from submanifold.evaluation.metrics import format_interval
from submanifold.models import Model
from submanifold.plots.pages import render
from submanifold.runs.information import information, model_command


def estimate(
    model: Model, metrics: dict[str, Any], baselines: dict[str, Any], train: np.ndarray,
    test: np.ndarray, groups: Groups, device: str,
) -> dict[str, Any]:  # fmt: skip
    """Estimate intrinsic dimensions of the data and the model, and recommend a dimension."""
    model = model.to(choose_device(device))
    return {
        "estimates": dimension.intrinsic_dimensions(train),
        "spectrum": dimension.spectrum_dimension(model, test, groups_of(groups, "test")),
        "advice": dimension.advise(metrics["curve"], baselines, model.dim),
    }


def write_page(
    found: dict[str, Any], metrics: dict[str, Any], baselines: dict[str, Any], dataset: str,
    method: str, model_file: str,
) -> dict[str, Any]:  # fmt: skip
    """Write the page with the advice, the error by dimension and the estimates."""
    from submanifold.plots.curves import dimension_curves  # matplotlib is slow to import

    run = information(Path(model_file))
    curve, spectrum, advice = metrics["curve"], found["spectrum"], found["advice"]
    of_images = curve["variance"] is None
    events, change, unit = "images", "an image by a grey level", "pixels in [0, 1]"
    if not of_images:
        change, unit = "a row by a tenth of a standard deviation", "standardized columns"
        events = "rows"
    figure = dimension_curves(curve, metrics["dims"][-1], advised=advice["dim"], unit=unit)
    about = f"of {spectrum['directions']} directions, those that change {change}"
    corrected = f"normal data of as many {events} with the same TwoNN"
    names = {dimension.CORRECTED: corrected, **dimension.ESTIMATORS, dimension.SPECTRUM: about}
    estimates = {**found["estimates"], dimension.SPECTRUM: spectrum}
    pca = [dimension.pca_dim_of(baselines, error) for error in curve["goals"].values()]
    page = render(
        "dimension.html",
        dataset=dataset, method=method, advice=advice, spectrum=spectrum, events=events,
        curve=figure, count=curve["n"], run=run,
        intrinsic=format_interval(estimates[dimension.CORRECTED], ".1f"),
        estimates=[(name, format_interval(estimates[name], ".1f"), names[name]) for name in names],
        smallest=[*zip(curve["smallest"], curve["smallest"].values(), pca, strict=True)],
        project=model_command(run, "project", "PICTURES" if of_images else "TABLE"),
    )  # fmt: skip
    return {"page": page, "curve": figure}
