"""Nodes of the ood pipeline; plots are imported when they are used: matplotlib loads slowly."""

from dataclasses import replace
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
    from submanifold.plots.ood import (
        density_and_distance,
        roc_curves,
        score_histograms,
        threshold_histogram,
    )
    from submanifold.plots.sheets import sheet

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
    main, run = sections.main_score(measured), information(Path(model_file))
    curves = {name: roc(**by_score[name]) for name in sections.CURVES if name in by_score}
    flagged = sections.thresholds(scored, measured)
    figures = {
        "scores": threshold_histogram(**by_score[main], thresholds=flagged),
        "roc": roc_curves(curves),
        "histograms": score_histograms(by_score),
        "scatter": density_and_distance(points, label),
    }
    names, of_images = {NORMAL: dataset, OOD: ood_name}, test.x.dtype == np.uint8
    events = {NORMAL: test, OOD: ood}

    def show(part: str, chosen: np.ndarray, p_values: np.ndarray) -> dict[str, Any]:
        if of_images:
            return {"image": sheet(events[part].x[chosen], sections.COLUMNS)}
        preprocessor = Preprocessor.from_dict(model.data["table"])
        table = preprocessor.inverse_transform(events[part][chosen])
        table.index = pd.Index(np.asarray(test.rows)[chosen] if part == NORMAL else chosen)
        return {"table": sections.show_rows(table, p_values)}

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
