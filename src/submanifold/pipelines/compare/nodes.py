"""Nodes of the comparison pipeline."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import yaml
from PIL import Image

from submanifold.common.errors import UserError
from submanifold.config.schema import own_paths
from submanifold.evaluation.metrics import COMPARED, NONE
from submanifold.pipelines.compare import sections
from submanifold.pipelines.usage import training_command
from submanifold.plots.pages import render
from submanifold.runs import tracking

SAMPLES = 32
PICTURE_SIZE = 1000
NOT_COMPARED = re.compile(r"dataset|method|seed|name|stage_\d+\.dim|keys\..*|sweep")
"""Parameters with their own column, or without effect on the model."""
FIRST = re.compile(r"stage_\d+\.flow\.type")
"""Settings that are listed before the others."""


def collect_runs(dataset: str, paths: Sequence[Path] = ()) -> pd.DataFrame:
    """Collect the finished runs of a data set, the newest of each experiment.

    Args:
        dataset: Name of the data set.
        paths: The user's files and folders, if these are the data set: other runs are left out.

    Returns:
        One row for each run. Columns without any value are left out.

    Raises:
        UserError: There are no runs.
    """
    active = mlflow.active_run()
    found = tracking.find_runs(
        f"attributes.status = 'FINISHED' and {tracking.EVALUATED}",
        active.info.experiment_id if active else None,
    )
    known = sorted(set(found.get("params.dataset", [])))
    if dataset not in known:
        raise UserError(
            f"dataset: expected one with finished runs in {tracking.tracking_uri()} "
            f"({', '.join(known) or 'there are none'}), got {dataset}. Make a run with: kedro run "
            f"--pipeline=hierarchical --params=dataset={dataset}"
        )
    found = found[found["params.dataset"] == dataset]
    if paths:
        found = found[[
            own_paths(dataset, yaml.safe_load(path)) == tuple(paths)
            for path in found["params.data.path"]
        ]]  # fmt: skip
        if found.empty:
            name = ", ".join(map(str, paths))
            raise UserError(
                f"data.path: expected the files of finished runs in {tracking.tracking_uri()}, got "
                f"{name}. Make a run with: submanifold train {shlex.quote(str(paths[0]))}"
            )
    runs = tracking.newest(found)
    contents = [tracking.metrics_of(run_id) for run_id in runs["run_id"]]
    about = pd.DataFrame({
        "name": runs["tags.mlflow.runName"],
        "method": runs["params.method"],
        "dims": [" → ".join(map(str, each.get("dims", [NONE]))) for each in contents],
        "seed": runs["params.seed"].astype(int),
        "features": [each.get("features") for each in contents],
        "started": runs["start_time"].dt.strftime("%Y-%m-%d %H:%M:%S"),
        "key": runs["params.keys.run"],
        "model": runs["params.keys.model"],
        "run_id": runs["run_id"],
        "source": runs.get("params.data.source"),
        "command": [training_command(row) for row in runs.to_dict("records")],
    })  # fmt: skip
    settings = runs.filter(like="params.").rename(columns=lambda name: name.removeprefix("params."))
    about["differs"] = differing_settings(settings.assign(features=about["features"]))
    metrics = {metric.name: metric.name for metric in COMPARED.values()}
    table = pd.concat([about, tracking.measured(runs, metrics)], axis="columns")
    return table.dropna(axis="columns", how="all").sort_values(
        ["method", "dims", "seed", "started"]
    )


def write_comparison(
    table: pd.DataFrame, dataset: str, paths: Sequence[Path], data_name: str, reporting: Path
) -> str:
    """Write the HTML page: a conclusion, a sortable table, and the samples of the runs by seed.

    Args:
        table: Result of :func:`collect_runs`.
        dataset: Name of the data set.
        paths: The user's files and folders, if these are the data set.
        data_name: Name of the data on the page.
        reporting: Folder of the reports, to which the page has links.
    """
    from submanifold.plots.comparisons import frontier

    metrics = [metric for metric in COMPARED.values() if metric.name in table]
    headlines = sections.headlines(table)
    table = sections.sort_runs(table, headlines)
    points = sections.points(table)
    best = sections.best_values(table, metrics)
    rows = []
    for _, row in table.fillna({"differs": ""}).iterrows():
        cells = [sections.cell(row, metric, best.get(metric.name)) for metric in metrics]
        report = reporting / row["key"] / "report.html"
        link = f"../{row['key']}/report.html" if report.is_file() else None
        rows.append({
            **row,
            "label": sections.label(row),
            "cells": cells,
            "link": link,
            "picture": _picture(row["run_id"]),
        })  # fmt: skip
    return render(
        "comparison.html",
        dataset=data_name,
        conclusion=sections.conclusion(table, headlines),
        events=sections.events(table),
        metrics=metrics,
        sorted_by=headlines[0].name if headlines else None,
        help={metric.label: metric.help for metric in metrics},
        rows=rows,
        seeds=sorted(set(table["seed"])),
        features=sorted(set(table["features"].dropna())) if "features" in table else [],
        tradeoff=frontier(points, (6, 4.2)) if len(points) > 1 else None,
        usage=sections.usage(table, dataset, paths, reporting.parent.parent),
    )


def differing_settings(settings: pd.DataFrame) -> list[str]:
    """List the settings of each run that differ between runs; missing ones are defaults.

    Settings of a stage or phase are compared only between runs that have it.
    """
    varying = []
    for name in sorted(map(str, settings)):
        peers, group = settings, name.split(".")[0]
        if group != name:
            columns = settings.filter(regex=rf"^{group}(\.|$)")
            peers = settings[columns.notna().any(axis="columns")]
        if not NOT_COMPARED.fullmatch(name) and peers[name].nunique(dropna=False) > 1:
            varying.append(name)
    varying.sort(key=lambda name: not FIRST.fullmatch(name))
    return [
        "; ".join(f"{name}={value}" for name, value in row.dropna().items())
        for _, row in settings[varying].iterrows()
    ]


def _picture(run_id: str) -> Image.Image | None:
    """Draw the first samples of a run, or load the figure of its points or columns."""
    from submanifold.plots.images import sample_sheet

    if path := tracking.artifact(run_id, "samples.npy"):
        samples = np.load(path, mmap_mode="r")
        if samples.ndim == 4:
            return sample_sheet(samples[:SAMPLES])
    for name in ("manifold.png", "marginals.png"):
        if path := tracking.artifact(run_id, name):
            picture = Image.open(path)
            picture.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
            return picture
    return None
