"""Nodes of the ood pipeline."""

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from submanifold.common.device import choose_device
from submanifold.common.errors import error_prefix
from submanifold.data.groups import Groups, groups_of
from submanifold.data.prepare import prepare, read_groups
from submanifold.data.settings import ImageSettings
from submanifold.evaluation.metrics import Metric
from submanifold.models import Model
from submanifold.plots.pages import render

SHOWN = 48
SHARE = Metric("", "", ".4f")


def gather_ood(data: ImageSettings, folder: Path, raw_folder: Path) -> dict[str, Any]:
    """Take images of another source, test images first: the model has seen none of them.

    Returns:
        ``images``, and the ``groups`` of those that have some, as ``{"ood": [...]}``.
    """
    from submanifold.evaluation.ood import MOST

    with error_prefix("ood"):
        train, valid, test, _ = prepare(data, folder, raw_folder)
    images = np.concatenate([test[:MOST], valid[:MOST], train[:MOST]])[:MOST]
    known = read_groups(folder)
    of_parts = chain(*(known[part][:MOST] for part in ("test", "valid", "train") if known))
    return {"images": images, "groups": {"ood": list(of_parts)[:MOST]} if known else {}}


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
    """Score test images and others; see :func:`submanifold.evaluation.ood.score_kinds`.

    The groups of either kind are in the column ``group``, where images of one of them have some.
    """
    # scikit-learn takes seconds to import
    from submanifold.evaluation.ood import score_kinds, with_groups

    model, of_valid = model.to(choose_device(device)), groups_of(groups, "valid")
    scored = score_kinds(model, train, valid, test, ood, groups=of_valid)
    return with_groups(scored, groups_of(groups, "test"), groups_of(ood_groups, "ood"))


def measure(scored: pd.DataFrame) -> dict[str, Any]:
    """Measure how well each score tells them apart."""
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
    """Draw curves, histograms, density against distance, and the strangest and missed images."""
    from submanifold.evaluation.likelihood import to_bits_per_dim
    from submanifold.evaluation.ood import MEASURES, roc, titles
    from submanifold.plots.images import as_png, sample_sheet
    from submanifold.plots.ood import density_and_distance, roc_curves, score_histograms

    what = titles(measured["scores"])
    kinds = {part: scored[scored["part"] == part] for part in ("normal", "ood")}
    by_score = {
        name: {part: each[name].to_numpy() for part, each in kinds.items()} for name in what
    }
    has_density = "density" in by_score  # where there is none, nats on the manifold stand in
    density = {
        part: to_bits_per_dim(-each["density"].to_numpy(), test)
        if has_density
        else each["on_manifold"].to_numpy()
        for part, each in kinds.items()
    }
    figures = {
        "roc": roc_curves({name: roc(**values) for name, values in by_score.items()}),
        "histograms": score_histograms(by_score),
        "scatter": density_and_distance(
            {part: (density[part], each["encoder_distance"].to_numpy())
             for part, each in kinds.items()},
            "bits per dimension" if has_density else "-log N(u; 0, I), nats",
        ),
    }  # fmt: skip
    table = pd.DataFrame([
        {"score": name, "what it is": text, **{
            label: SHARE.write(measured["scores"][name][measure])
            for measure, label in MEASURES.items()
        }}
        for name, text in what.items()
    ])  # fmt: skip
    images = {"normal": test, "ood": ood}

    def sheet(part: str, largest: bool) -> bytes:
        values = kinds[part]["combination"].to_numpy() * (1 if largest else -1)
        order = np.argsort(-values, kind="stable")[:SHOWN]
        return as_png(sample_sheet(np.asarray(images[part])[order], columns=16))

    sheets = {
        f"{dataset}: the strangest of the normal images": sheet("normal", True),
        f"{ood_name}: the strangest": sheet("ood", True),
        f"{ood_name}: those that look most usual": sheet("ood", False),
    }
    page = render(
        "ood.html", dataset=dataset, ood=ood_name, method=method, table=table,
        counts=measured["counts"], groups=measured.get("groups"), sheets=sheets,
        pictures={name: as_png(figure) for name, figure in figures.items()},
    )  # fmt: skip
    return {"page": page, **figures}
