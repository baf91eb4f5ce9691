"""Nodes of the ood pipeline; plots are imported when they are used: matplotlib loads slowly."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from submanifold.common.errors import error_prefix
from submanifold.data.events import Events
from submanifold.data.prepare import prepare
from submanifold.data.tables import Preprocessor
from submanifold.evaluation.calibration import Calibration
from submanifold.evaluation.likelihood import to_bits_per_dim
from submanifold.evaluation.metrics import format_interval
from submanifold.evaluation.ood import MAX_IMAGES, MAX_ROWS, NORMAL, OOD, roc
from submanifold.inference.inputs import read_rows
from submanifold.inference.predictor import Predictor
from submanifold.models import Model
from submanifold.pipelines.ood import sections
from submanifold.plots.pages import render
from submanifold.runs.information import information, model_command


def gather_images(data: Any, folder: Path, raw_folder: Path) -> Events:
    """Load images of another source, test images first, at most as many as are scored.

    ``data`` are :class:`.ImageSettings`, or None without ``ood``: Kedro checks all pipelines.
    """
    with error_prefix("ood"):
        train, valid, test, _ = prepare(data, folder, raw_folder)
    images = [split[:MAX_IMAGES] for split in (test, valid, train)]
    return Events.concatenate(images)[:MAX_IMAGES]


def gather_rows(data: Any, model: Model) -> Events:
    """Read rows of another table, at most as many as are scored, standardized as by the model."""
    with error_prefix("ood"):
        predictor = Predictor(model)
        rows = read_rows(data.path, predictor).events[:MAX_ROWS]
        events = predictor.events(rows)
        is_unknown = predictor.columns.unknown(rows).any(axis=1).to_numpy()
        x = np.where(is_unknown[:, None], np.nan, events.x)  # they have no density
        return replace(events, x=x.astype(np.float32))


def write_page(
    scored: pd.DataFrame,
    measured: dict[str, Any],
    test: Events,
    ood: Events,
    dataset: str,
    ood_name: str,
    model: Model,
    model_file: str,
) -> dict[str, Any]:
    """Write the page with rates, curves, and the images or rows that are confused."""
    main, run = sections.main_score(measured), information(Path(model_file))
    figures = _draw(scored, measured, main, test)
    names, events = {NORMAL: dataset, OOD: ood_name}, {NORMAL: test, OOD: ood}
    of_images, show = test.x.dtype == np.uint8, partial(_show, model, events)
    fitted = Calibration.of(model)
    page = render(
        "ood.html",
        dataset=dataset,
        ood=ood_name,
        main=main,
        run=run,
        write=format_interval,
        pictures=figures,
        calibration=model.calibration,
        smallest_p_value=fitted and fitted.smallest_p_value,
        counts=measured["counts"],
        auroc=format_interval(measured["scores"][main]["auroc"], ".3f"),
        events="images" if of_images else "rows",
        rows=sections.score_rows(measured),
        groups=measured.get("groups"),
        confused=sections.confused_events(scored, measured, names, show),
        score=model_command(run, "score", "PICTURES" if of_images else "TABLE"),
        alarms=measured.get("alarms", []),
    )
    return {"page": page, **figures}


def _draw(
    scored: pd.DataFrame, measured: dict[str, Any], main: str, test: Events
) -> dict[str, Any]:
    """Draw the figures of the scores of both parts."""
    from submanifold.plots.ood import (
        density_and_distance,
        roc_curves,
        score_histograms,
        threshold_histogram,
    )

    parts = {part: scored[scored["part"] == part] for part in (NORMAL, OOD)}
    by_score = {
        name: {part: rows[name].to_numpy() for part, rows in parts.items()}
        for name in measured["scores"]
    }
    if "density" in by_score:
        density = {part: to_bits_per_dim(-x, test.x) for part, x in by_score["density"].items()}
        label = "bits per dimension"
    else:
        density, label = by_score["on_manifold"], "-log N(u; 0, I), nats"
    points = {part: (density[part], by_score["encoder_distance"][part]) for part in parts}
    curves = {name: roc(**by_score[name]) for name in sections.CURVES if name in by_score}
    flagged = sections.thresholds(scored, measured)
    return {
        "scores": threshold_histogram(**by_score[main], thresholds=flagged),
        "roc": roc_curves(curves),
        "histograms": score_histograms(by_score),
        "scatter": density_and_distance(points, label),
    }


def _show(
    model: Model, events: Mapping[str, Events], part: str, chosen: np.ndarray, p_values: np.ndarray
) -> dict[str, Any]:
    """Return the picture of chosen images of a part, or the table of chosen rows."""
    from submanifold.plots.sheets import sheet

    shown = events[part][chosen]
    if shown.x.dtype == np.uint8:
        return {"image": sheet(shown.x, sections.COLUMNS)}
    table = Preprocessor.from_dict(model.data["table"]).inverse_transform(shown)
    table.index = pd.Index(chosen if part == OOD else np.asarray(shown.rows))
    return {"table": sections.show_rows(table, p_values)}
