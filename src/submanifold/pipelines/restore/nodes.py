"""Nodes of the restore pipeline."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from submanifold.common.device import choose_device
from submanifold.data.splits import Groups, groups_of
from submanifold.evaluation.metrics import format_interval, format_percent
from submanifold.evaluation.reconstruction import evenly_spaced
from submanifold.inverse.comparison import LABELS, LEVEL, METHODS, MODE, OURS, Baselines, compare
from submanifold.inverse.operators import standard_tasks
from submanifold.models import Model
from submanifold.pipelines.usage import model_command, run_facts
from submanifold.plots.pages import render

IMAGES = 32
"""Test images that are restored."""
FIGURES = ("psnr", "coverage")


def restore_images(
    model: Model,
    train: np.ndarray,
    valid: np.ndarray,
    test: np.ndarray,
    groups: Groups,
    device: str,
) -> dict[str, Any]:
    """Restore simulated observations of evenly spaced test images by all methods.

    Returns:
        The ``measured`` quality by task, and the first ``images`` by task and kind, uint8.
    """
    model = model.to(choose_device(device))
    numbers = evenly_spaced(np.arange(len(test)), IMAGES)
    grouped = groups_of(groups, "test")
    grouped = None if grouped is None else grouped[numbers]
    dim = None if model.has_density else model.dim
    fitted = Baselines(train, valid)
    measured: dict[str, Any] = {}
    images: dict[str, np.ndarray] = {}
    for task in standard_tasks(model.event_shape):
        measured[task.kind], found = compare(model, fitted, test[numbers], task, grouped, dim)
        images |= {f"{task.kind}/{name}": each for name, each in found.items()}
    return {"measured": measured, "images": images}


def write_page(
    measured: dict[str, Any],
    images: dict[str, np.ndarray],
    dataset: str,
    method: str,
    run: dict[str, Any],
) -> dict[str, Any]:
    """Write the page with the restorations, their quality, and the coverage of the posterior."""
    from submanifold.plots.restoration import posterior_coverage, restoration_psnr

    known = {name for found in measured.values() for name in found["psnr"]}
    names = {name: label for name, label in LABELS.items() if name in known}
    figures = {
        "psnr": restoration_psnr(measured, names),
        "coverage": posterior_coverage(measured),
    }
    page = render(
        "restore.html",
        dataset=dataset,
        method=method,
        conclusion=conclusion(measured),
        tasks=[
            {"name": found["task"], "noise": found["noise"],
             "rows": image_rows(found, images, kind)}
            for kind, found in measured.items()
        ],
        quality=quality_table(measured, names),
        coverage=coverage_table(measured),
        count=next(iter(measured.values()))["gain"][OURS]["n"],
        level=LEVEL,
        methods={names[name]: METHODS[name] for name in names},
        skipped=[LABELS[name] for name in LABELS if name not in known],
        pictures=figures,
        usage=usage(run, measured),
        about=run_facts(run),
    )  # fmt: skip
    return {"page": page, **figures}


def conclusion(measured: Mapping[str, Any]) -> str:
    """Return a sentence on the differences of the PSNR from that of the best baselines."""
    parts = [
        f"{found['task']} {format_interval(found['gain'][OURS], '+.2f')} dB "
        f"({LABELS[found['best']]})"
        for found in measured.values()
    ]
    return (
        "Mean difference between the PSNR of the posterior mean and that of the best baseline: "
        f"{', '.join(parts)}."
    )


def quality_table(measured: Mapping[str, Any], names: Mapping[str, str]) -> pd.DataFrame:
    """Return the PSNR of each method by task, and the gains."""
    gains = {name: f"gain of {names[name]}" for name in (OURS, MODE) if name in names}
    columns = {"method": [*names.values(), *gains.values()]}
    for found in measured.values():
        columns[found["task"]] = [
            *(format_interval(found["psnr"].get(name), ".2f") for name in names),
            *(format_interval(found["gain"].get(name), "+.2f") for name in gains),
        ]
    return pd.DataFrame(columns)


def coverage_table(measured: Mapping[str, Any]) -> pd.DataFrame:
    """Return the coverage by the posterior's intervals, the acceptance rate and R-hat, by task."""
    levels = [*next(iter(measured.values()))["coverage"]]
    return pd.DataFrame({
        "task": [found["task"] for found in measured.values()],
        **{f"{float(level):.0%}": [format_percent(found["coverage"][level])
                                   for found in measured.values()] for level in levels},
        "acceptance rate": [f"{found['acceptance']:.2f}" for found in measured.values()],
        "R-hat": [f"{found['r_hat']:.1f}" for found in measured.values()],
    })  # fmt: skip


def image_rows(
    found: Mapping[str, Any], images: Mapping[str, np.ndarray], kind: str
) -> list[dict[str, Any]]:
    """Return the rows of images of a task: name, remark and strip."""
    from submanifold.plots.strips import strip  # matplotlib is slow to import

    best = found["best"]
    rows = {
        "original": ("original", ""),
        "observation": ("observation", ""),
        OURS: ("restoration", "posterior mean"),
        best: (LABELS[best], "best baseline"),
        "std": ("error map", "posterior standard deviation; white is 0.25 and more"),
    }
    shown = {name: images[f"{kind}/{name}"] for name in rows}
    return [
        {"name": name, "text": text, "strip": strip(shown[key], len(shown[key]))}
        for key, (name, text) in rows.items()
    ]


def usage(run: Mapping[str, Any], measured: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return commands that restore a user's pictures."""
    return [
        (model_command(run, "restore", f"PICTURES --simulate --task={found['task']}"),
         f"{kind} simulated observations")
        for kind, found in measured.items()
    ]  # fmt: skip
