"""Nodes of the reporting pipeline."""

import base64
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from submanifold.figures import as_png, image_grid, rejection_rows, training_curves
from submanifold.manifold import Hierarchy

PAPER_FLOW = {"shape": [3, 32, 32], "levels": 3, "steps": 32, "width": 512}
NONE = "–"


def make_table(
    metrics: dict[str, Any], hierarchy: Hierarchy, dataset: str, method: str
) -> pd.DataFrame:
    """Lay out the metrics, the baselines and the paper's figures as rows of text."""
    dims = metrics["dims"]
    rows = [
        {
            "model": f"{method}, {' → '.join(map(str, dims))}",
            "BPD": _plain(metrics["bits_per_dim"], "{:.3f}"),
            "MSE": _plain(metrics["mse"], "{:.5f}"),
            "PSNR (dB)": _plain(metrics["psnr"], "{:.2f}"),
            "MSE, stage 1 alone": _plain(metrics["stage_1_mse"], "{:.5f}"),
            "sliced Wasserstein": _plain(metrics["sliced_wasserstein"], "{:.0f}"),
            "FID": _plain(metrics["fid"], "{:.1f}"),
            "parameters": f"{metrics['parameters']:,}",
            "training (s)": f"{metrics['seconds']['training']:.0f}",
        }
    ]
    baselines = metrics["baselines"]
    pca = baselines["pca"]
    rows.append(
        {"model": f"PCA, d = {dims[-1]}", "MSE": _plain(pca.get("mse"), "{:.5f}")}
        if "mse" in pca
        else {"model": "PCA", "MSE": pca["why"]}
    )
    if baselines["gaussian"]:
        bits = _plain(baselines["gaussian"]["bits_per_dim"], "{:.3f}")
        rows.append({"model": "Gaussian, full covariance", "BPD": bits})
    floor = _plain(metrics["sliced_wasserstein_of_training_images"], "{:.0f}")
    rows.append({"model": "training images", "sliced Wasserstein": floor})
    rows += _paper_rows(dataset, method, dims, hierarchy)
    return pd.DataFrame(rows, columns=list(rows[0])).fillna(NONE)


def write_report(
    metrics: dict[str, Any],
    table: pd.DataFrame,
    manifest: dict[str, Any],
    hierarchy: Hierarchy,
    samples: np.ndarray,
    samples_cool: np.ndarray,
    test: np.ndarray,
    projections: np.ndarray,
    dataset: str,
    method: str,
    *histories: dict[str, Any],
) -> tuple[str, Figure, Figure, Figure, Figure]:
    """Draw the figures, and put them with the table on one self-contained HTML page.

    Returns:
        The page, and the figures: samples at temperature 1 and 0.7, rejection maps, curves.
    """
    figures = (
        image_grid(samples[:64], columns=16, title="Samples at temperature 1"),
        image_grid(samples_cool[:64], columns=16, title="Samples at temperature 0.7"),
        rejection_rows(np.asarray(test[: len(projections)]), projections),
        training_curves({history["name"]: history for history in histories}),
    )
    names = ("samples", "samples_cool", "rejection", "curves")
    pictures = {
        name: base64.b64encode(as_png(figure)).decode()
        for name, figure in zip(names, figures, strict=True)
    }
    template = files("submanifold.pipelines.reporting").joinpath("report.html").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(template).render(
        dataset=dataset,
        method=method,
        metrics=metrics,
        table=table,
        manifest=manifest,
        stages=hierarchy.describe()["stages"],
        histories=histories,
        pictures=pictures,
    )
    return page, *figures


def _plain(measured: dict[str, Any] | None, form: str) -> str:
    if measured is None or measured.get("value") is None:
        return (measured or {}).get("why", NONE).split(":")[0]
    text = form.format(measured["value"])
    if measured.get("low") is None:
        return text
    return f"{text} [{form.format(measured['low'])}, {form.format(measured['high'])}]"


def _paper_rows(
    dataset: str, method: str, dims: list[int], hierarchy: Hierarchy
) -> list[dict[str, Any]]:
    """Give the paper's figures where data, method and dimensions are the paper's."""
    path = files("submanifold.pipelines.reporting").joinpath("paper.csv")
    with path.open(encoding="utf-8") as file:
        results = pd.read_csv(file)
    same = results[
        (results["dataset"] == dataset)
        & (results["method"] == method.replace("-star", "*"))
        & (results["stage_dims"] == "-".join(map(str, dims)))
    ]
    if same.empty:
        return []
    found = {
        each["metric"]: f"{each['value']:g}"
        + ("" if np.isnan(each["spread"]) else f" ± {each['spread']:g}")
        for each in same.to_dict("records")
    }
    note = "" if hierarchy.stages[0].flow.config == PAPER_FLOW else ", 3 x 32 steps of width 512"
    names = {"bpd": "BPD", "mse": "MSE", "fid": "FID", "parameters": "parameters"}
    row = {label: found[name] for name, label in names.items() if name in found}
    return [{"model": f"paper, table {same['table'].iloc[0]}{note}", **row}]
