"""Nodes of the reporting pipeline."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from submanifold.data.settings import SyntheticSettings
from submanifold.evaluation.truth import picture
from submanifold.figures import (
    DensityGrid,
    as_png,
    image_grid,
    manifold_figure,
    rejection_rows,
    training_curves,
)
from submanifold.manifold import Hierarchy
from submanifold.pages import render
from submanifold.validation import read_settings

PAPER_FLOW = {"shape": [3, 32, 32], "levels": 3, "steps": 32, "width": 512}
NONE = "–"
DRAWN = 4000


def make_table(
    metrics: dict[str, Any], hierarchy: Hierarchy, dataset: str, method: str
) -> pd.DataFrame:
    """Lay out the metrics, the baselines and the paper's figures as rows of text."""
    dims = metrics["dims"]
    rows = [
        {
            "model": _name(method, metrics),
            "BPD": _plain(metrics["bits_per_dim"], "{:.3f}"),
            "BPD, {} draws".format(metrics["bits_per_dim_importance"]["draws"]): _plain(
                metrics["bits_per_dim_importance"], "{:.3f}"
            ),
            "NLL on the manifold (nats)": _plain(metrics["manifold_nll"], "{:.0f}"),
            "MSE": _plain(metrics["mse"], "{:.5f}"),
            "PSNR (dB)": _plain(metrics["psnr"], "{:.2f}"),
            "MSE, stage 1 alone": _plain(metrics["stage_1_mse"], "{:.5f}"),
            **_quality(metrics, metrics["features"]),
            **_size(metrics),
        },
        *_baseline_rows(metrics),
    ]
    if metrics["training_images"]:
        floor = _quality(metrics["training_images"], metrics["features"])
        rows.append({"model": "training images", **floor})
    rows += _paper_rows(dataset, method, dims, hierarchy)
    return _table(rows)


def make_truth_table(metrics: dict[str, Any], truth: dict[str, Any], method: str) -> pd.DataFrame:
    """Lay out the metrics of points with a known density beside the true values."""
    why = {"why": "none without noise"}
    rows = [
        {
            "model": _name(method, metrics),
            "NLL (nats)": _plain(truth.get("nll", why), "{:.4f}"),
            "above the truth": _plain(truth.get("divergence", why), "{:.4f}"),
            "BPD": _plain(metrics["bits_per_dim"], "{:.4f}"),
            "NLL on the manifold": _plain(truth.get("manifold_nll"), "{:.4f}"),
            "MSE": _plain(metrics["mse"], "{:.6f}"),
            "projection to the true one": _plain(truth["projection_distance"], "{:.4f}"),
            "sample to the manifold": _plain(truth["sample_distance"], "{:.4f}"),
            **_size(metrics),
        },
        {
            "model": f"truth, noise {truth['noise']:g}",
            "NLL (nats)": _plain(truth.get("true_nll", why), "{:.4f}"),
            "NLL on the manifold": f"{truth['manifold_entropy']:.4f}",
        },
        *_baseline_rows(metrics),
    ]
    return _table(rows)


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
        The page, and the figures: curves, samples at temperature 1 and 0.7, rejection maps.
    """
    figures = {
        "curves": training_curves({history["name"]: history for history in histories}),
        "samples": image_grid(samples[:64], columns=16, title="Samples at temperature 1"),
        "samples_cool": image_grid(
            samples_cool[:64], columns=16, title="Samples at temperature 0.7"
        ),
        "rejection": rejection_rows(np.asarray(test[: len(projections)]), projections),
    }
    page = _page(metrics, None, table, manifest, hierarchy, figures, dataset, method, histories)
    return page, *figures.values()  # type: ignore[return-value]


def write_truth_report(
    metrics: dict[str, Any],
    truth: dict[str, Any],
    table: pd.DataFrame,
    manifest: dict[str, Any],
    hierarchy: Hierarchy,
    samples: np.ndarray,
    test: np.ndarray,
    data: dict[str, Any],
    dataset: str,
    method: str,
    *histories: dict[str, Any],
) -> tuple[str, Figure, Figure]:
    """Draw the learned manifold and density beside the true ones, and the page around them.

    Returns:
        The page, and the figures: curves and manifold.
    """
    manifold = read_settings(SyntheticSettings, data, "data").manifold
    points, grid = picture(hierarchy, manifold, test[:DRAWN], samples)
    figures = {
        "curves": training_curves({history["name"]: history for history in histories}),
        "manifold": manifold_figure(**points, grid=DensityGrid(*grid) if grid else None),
    }
    page = _page(metrics, truth, table, manifest, hierarchy, figures, dataset, method, histories)
    return page, *figures.values()  # type: ignore[return-value]


def paper_results() -> pd.DataFrame:
    """Read the paper's figures: what table, dataset, method, stage_dims, metric; value, spread."""
    path = files("submanifold.pipelines.reporting").joinpath("paper.csv")
    with path.open(encoding="utf-8") as file:
        return pd.read_csv(file)


def _page(
    metrics: dict[str, Any],
    truth: dict[str, Any] | None,
    table: pd.DataFrame,
    manifest: dict[str, Any],
    hierarchy: Hierarchy,
    figures: dict[str, Figure],
    dataset: str,
    method: str,
    histories: Sequence[dict[str, Any]],
) -> str:
    return render(
        "report.html",
        dataset=dataset,
        method=method,
        metrics=metrics,
        truth=truth,
        table=table,
        manifest=manifest,
        stages=hierarchy.describe()["stages"],
        histories=histories,
        pictures={name: as_png(figure) for name, figure in figures.items()},
    )


def _name(method: str, metrics: dict[str, Any]) -> str:
    return f"{method}, {' → '.join(map(str, metrics['dims']))}"


def _size(metrics: dict[str, Any]) -> dict[str, str]:
    return {
        "parameters": f"{metrics['parameters']:,}",
        "training (s)": f"{metrics['seconds']['training']:.0f}",
    }


def _quality(measured: dict[str, Any], features: str) -> dict[str, str]:
    features = "Inception" if features == "inception" else "pixels"
    return {
        "sliced Wasserstein": _plain(measured["sliced_wasserstein"], "{:.0f}"),
        "FID": _plain(measured["fid"], "{:.1f}"),
        f"precision ({features})": _plain(measured["precision"], "{:.2f}"),
        f"recall ({features})": _plain(measured["recall"], "{:.2f}"),
        f"KID ({features})": _plain(measured["kid"], "{:.4f}"),
    }


def _baseline_rows(metrics: dict[str, Any]) -> list[dict[str, str]]:
    pca, gaussian = metrics["baselines"]["pca"], metrics["baselines"]["gaussian"]
    rows = [
        {"model": f"PCA, d = {metrics['dims'][-1]}", "MSE": _plain(pca.get("mse"), "{:.5f}")}
        if "mse" in pca
        else {"model": "PCA", "MSE": pca["why"]}
    ]
    if gaussian:
        bits = _plain(gaussian["bits_per_dim"], "{:.3f}")
        rows.append({"model": "Gaussian, full covariance", "BPD": bits})
    return rows


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(rows[0])).fillna(NONE)


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
    results = paper_results()
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
