"""Nodes of the comparison pipeline."""

import io
import json
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Run
from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR
from PIL import Image

from submanifold.errors import UserError
from submanifold.pages import render
from submanifold.pipelines.tracking import identity

NONE = "–"
SHOWN, IN_A_ROW = 32, 8
SAMPLE_PIXELS = 64
LARGEST_FIGURE = 1000

MEASURED = {
    "bits_per_dim": ("BPD", "{:.3f}"),
    "mse": ("MSE", "{:.5f}"),
    "stage_1_mse": ("MSE, stage 1 alone", "{:.5f}"),
    "sliced_wasserstein": ("sliced Wasserstein", "{:.0f}"),
    "fid": ("FID", "{:.1f}"),
    "kid": ("KID", "{:.4f}"),
    "precision": ("precision", "{:.2f}"),
    "recall": ("recall", "{:.2f}"),
    "divergence": ("nats above the truth", "{:.4f}"),
    "projection_distance": ("projection to the true one", "{:.4f}"),
    "sample_distance": ("sample to the manifold", "{:.4f}"),
    "parameters": ("parameters", "{:,.0f}"),
    "seconds.training": ("training (s)", "{:,.0f}"),
}
"""Columns of numbers: how the page calls them and writes them."""

NO_SETTING = re.compile(r"dataset|method|seed|stage_\d+\.dim|keys\..*|sweep")
"""Parameters that have a column of their own, or do not say what the model is."""

Row = dict[Hashable, Any]


def collect_runs(dataset: str) -> pd.DataFrame:
    """Find the finished training runs of a dataset in MLflow, the newest of each experiment.

    Returns:
        A row for each run; columns of what no run has are left out.

    Raises:
        UserError: There is no such run.
    """
    found = _finished_trainings()
    newest: dict[tuple[str, ...], Run] = {}
    for run in found:
        if run.data.params["dataset"] == dataset:
            newest.setdefault(identity(run), run)
    if not newest:
        raise UserError(_nothing_found(dataset, {run.data.params["dataset"] for run in found}))
    table = pd.DataFrame([_row(run) for run in newest.values()])
    settings = pd.DataFrame([run.data.params for run in newest.values()])
    table["differs"] = _differences(settings.assign(features=table["features"]))
    table = table.dropna(axis="columns", how="all")
    return table.sort_values(["method", "dims", "seed", "started"])


def write_comparison(table: pd.DataFrame, dataset: str) -> str:
    """Put the runs in one sortable table, with the samples of each seed side by side."""
    rows = table.fillna({"differs": ""}).to_dict("records")
    pictures = {row["run_id"]: _picture(row["run_id"]) for row in rows}
    return render(
        "comparison.html",
        dataset=dataset,
        synthetic="sample_distance" in table,
        labels=[label for name, (label, _) in MEASURED.items() if name in table],
        rows=[{**row, "cells": _cells(row)} for row in rows],
        seeds=sorted(set(table["seed"])),
        features=sorted(set(table["features"].dropna())) if "features" in table else [],
        pictures={run: png for run, png in pictures.items() if png is not None},
    )


def _finished_trainings() -> list[Run]:
    """All of this experiment, the newest first: the runs that counted a model's parameters."""
    return mlflow.search_runs(
        [_experiment_id()],
        "attributes.status = 'FINISHED' and metrics.`test.parameters` > 0",
        order_by=["attributes.start_time DESC"],
        output_format="list",
    )


def _experiment_id() -> str:
    run = mlflow.active_run()
    if run is None:
        raise UserError(
            "The comparison looks for runs in the MLflow experiment of its own run, but MLflow is "
            "turned off. Change tracking.disable_tracking in conf/<env>/mlflow.yml."
        )
    return run.info.experiment_id


def _nothing_found(dataset: str, others: set[str]) -> str:
    experiment = mlflow.get_experiment(_experiment_id()).name
    there = f" There are runs of: {', '.join(sorted(others))}." if others else ""
    return (
        f"dataset={dataset} has no finished training run in the MLflow experiment {experiment} of "
        f"{mlflow.get_tracking_uri()}.{there} Make one with kedro run --pipeline=hierarchical "
        f"--params=dataset={dataset}, or give another dataset."
    )


def _row(run: Run) -> Row:
    metrics, params = run.data.metrics, run.data.params
    path = _artifact(run.info.run_id, "metrics.json")
    described = json.loads(path.read_text()) if path else {"dims": [NONE]}
    row: Row = {
        "method": params["method"],
        "dims": " → ".join(map(str, described["dims"])),
        "seed": int(params["seed"]),
    }
    for name in MEASURED:
        for end in ("", "low", "high"):
            row[f"{name}_{end}".rstrip("_")] = metrics.get(f"test.{name}.{end}".rstrip("."), np.nan)
    return {
        **row,
        "features": described.get("features"),
        "started": pd.Timestamp(run.info.start_time, unit="ms").isoformat(" ", "seconds"),
        "key": params["keys.run"],
        "run_id": run.info.run_id,
    }


def _differences(settings: pd.DataFrame) -> list[str]:
    """Name the settings of each run that another run has with another value.

    One that is not there has its default value. Those of a stage that the other run does not have
    are no difference: the dimensions say it.
    """
    values = settings.map(_as_number, na_action="ignore")
    varying = []
    for name in sorted(map(str, values)):
        group = name.split(".")[0]
        peers = values[values.filter(regex=rf"^{group}(\.|$)").notna().any(axis="columns")]
        among = peers if group.startswith("stage_") else values
        if not NO_SETTING.fullmatch(name) and among[name].nunique(dropna=False) > 1:
            varying.append(name)
    return [
        "; ".join(f"{name}={value}" for name, value in row.dropna().items())
        for _, row in values[varying].iterrows()
    ]


def _as_number(text: str) -> str:
    """Write 300, 300.0 and 3e2, which are equal settings, in one way."""
    try:
        return repr(float(text)).removesuffix(".0")
    except ValueError:
        return text


def _cells(row: Row) -> list[dict[str, Any]]:
    """Write a row's numbers, each with its interval and with the value to sort by."""
    cells = []
    for name, (_, form) in MEASURED.items():
        if name in row:
            value, low, high = (row.get(f"{name}{end}", np.nan) for end in ("", "_low", "_high"))
            cells.append(
                {
                    "value": "" if np.isnan(value) else value,
                    "text": NONE if np.isnan(value) else form.format(value),
                    "interval": ""
                    if np.isnan(low) or np.isnan(high)
                    else f"[{form.format(low)}, {form.format(high)}]",
                }
            )
    return cells


def _picture(run_id: str) -> bytes | None:
    """Show the first samples of a run, or the learned manifold where samples are no images."""
    path = _artifact(run_id, "samples.npy")
    samples = np.load(path, mmap_mode="r") if path else None
    if samples is not None and samples.ndim == 4:
        return _as_png(_tile(samples[:SHOWN]))
    path = _artifact(run_id, "manifold.png")
    if path is None:
        return None
    figure = Image.open(path)
    figure.thumbnail((LARGEST_FIGURE, LARGEST_FIGURE))
    return _as_png(figure)


def _tile(images: np.ndarray) -> Image.Image:
    """Lay out images in rows, small ones enlarged, with a line around each."""
    scale = max(1, SAMPLE_PIXELS // images.shape[-1])
    framed = np.pad(
        images.repeat(scale, axis=2).repeat(scale, axis=3),
        ((0, -len(images) % IN_A_ROW), (0, 0), (2, 2), (2, 2)),
        constant_values=255,
    )
    _, channels, height, width = framed.shape
    rows = framed.reshape(-1, IN_A_ROW, channels, height, width).transpose(0, 3, 1, 4, 2)
    grid = rows.reshape(-1, IN_A_ROW * width, channels)
    return Image.fromarray(grid[..., 0] if channels == 1 else grid)


def _as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png", optimize=True)
    return buffer.getvalue()


def _artifact(run_id: str, name: str) -> Path | None:
    if name not in {each.path for each in mlflow.MlflowClient().list_artifacts(run_id)}:
        return None
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)  # it writes over Kedro's log
    return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name))
