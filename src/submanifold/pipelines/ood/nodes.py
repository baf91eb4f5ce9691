"""Nodes of the ood pipeline; scikit-learn and matplotlib are imported when they are used."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from submanifold.common.device import choose_device
from submanifold.common.errors import error_prefix
from submanifold.data.prepare import prepare, read_groups
from submanifold.data.settings import ImageSettings
from submanifold.data.splits import Groups, groups_of
from submanifold.evaluation.likelihood import to_bits_per_dim
from submanifold.evaluation.metrics import format_interval
from submanifold.models import Model
from submanifold.plots.pages import render

SHEET_IMAGES = 48


def gather_ood(data: ImageSettings, folder: Path, raw_folder: Path) -> dict[str, Any]:
    """Load images of another source, test images first; none of them were used in training.

    Returns:
        ``images``, at most as many as are scored, and their ``groups`` as ``{"ood": [...]}``.
    """
    from submanifold.evaluation.ood import MAX_IMAGES

    with error_prefix("ood"):
        train, valid, test, _ = prepare(data, folder, raw_folder)
    images = np.concatenate([split[:MAX_IMAGES] for split in (test, valid, train)])[:MAX_IMAGES]
    if not (groups := read_groups(folder)):
        return {"images": images, "groups": {}}
    numbers = [n for split in ("test", "valid", "train") for n in groups[split][:MAX_IMAGES]]
    return {"images": images, "groups": {"ood": numbers[:MAX_IMAGES]}}


def score_ood(
    model: Model,
    train: np.ndarray,
    valid: np.ndarray,
    test: np.ndarray,
    ood: np.ndarray,
    groups: Groups,
    ood_groups: Groups,
    device: str,
) -> pd.DataFrame:
    """Score test images and OOD images, see :func:`submanifold.evaluation.ood.score_parts`.

    The column ``group`` has the groups of images, if there are any.
    """
    from submanifold.evaluation.ood import add_groups, score_parts

    model = model.to(choose_device(device))
    scored = score_parts(model, train, valid, test, ood, groups=groups_of(groups, "valid"))
    return add_groups(scored, groups_of(groups, "test"), groups_of(ood_groups, "ood"))


def measure(scored: pd.DataFrame) -> dict[str, Any]:
    """Measure how well each score separates test images from OOD images."""
    from submanifold.evaluation.ood import measure_ood

    return measure_ood(scored)


def write_page(
    scored: pd.DataFrame,
    measured: dict[str, Any],
    test: np.ndarray,
    ood: np.ndarray,
    dataset: str,
    ood_name: str,
    method: str,
) -> dict[str, Any]:
    """Write the page with curves, histograms, and the most and the least anomalous images."""
    from submanifold.evaluation.ood import MEASURES, NORMAL, OOD, describe_scores, roc
    from submanifold.plots.images import sample_sheet
    from submanifold.plots.ood import density_and_distance, roc_curves, score_histograms

    descriptions = describe_scores(measured["scores"])
    parts = {part: scored[scored["part"] == part] for part in (NORMAL, OOD)}
    by_score = {
        name: {part: rows[name].to_numpy() for part, rows in parts.items()} for name in descriptions
    }
    if "density" in by_score:
        density = {part: to_bits_per_dim(-x, test) for part, x in by_score["density"].items()}
        label = "bits per dimension"
    else:
        density, label = by_score["on_manifold"], "-log N(u; 0, I), nats"
    points = {part: (density[part], by_score["encoder_distance"][part]) for part in parts}
    figures = {
        "roc": roc_curves({name: roc(**values) for name, values in by_score.items()}),
        "histograms": score_histograms(by_score),
        "scatter": density_and_distance(points, label),
    }
    table = pd.DataFrame({"score": descriptions.keys(), "description": descriptions.values()})
    for key, column in MEASURES.items():
        values = (measured["scores"][name][key] for name in descriptions)
        table[column] = [format_interval(value, ".4f") for value in values]

    def sheet(images: np.ndarray, scores: np.ndarray) -> Image.Image:
        order = np.argsort(scores, kind="stable")[:SHEET_IMAGES]
        return sample_sheet(np.asarray(images)[order], columns=16)

    scores = by_score["combination"]
    sheets = {
        f"{dataset}: most anomalous": sheet(test, -scores[NORMAL]),
        f"{ood_name}: most anomalous": sheet(ood, -scores[OOD]),
        f"{ood_name}: least anomalous": sheet(ood, scores[OOD]),
    }
    page = render(
        "ood.html",
        dataset=dataset,
        ood=ood_name,
        method=method,
        table=table,
        counts=measured["counts"],
        groups=measured.get("groups"),
        sheets=sheets,
        pictures=figures,
    )
    return {"page": page, **figures}
