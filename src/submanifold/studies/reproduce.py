"""Plan, run and write the targets of `kedro reproduce`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

from submanifold.common.errors import UserError, did_you_mean
from submanifold.common.progress import ProgressBar
from submanifold.config.cache_keys import RAW_FOLDER
from submanifold.data.settings import ImageSettings
from submanifold.data.sources import SOURCES
from submanifold.runs.store import connect
from submanifold.runs.train import check_images
from submanifold.studies.comparisons import beyond, ood, related
from submanifold.studies.experiments import CachedRun, run_all
from submanifold.studies.pages import Need, Target, write
from submanifold.studies.paper import figures, findings, tables
from submanifold.training.cost import phase_cost

TARGETS: dict[str, Target] = {
    **tables.TARGETS,
    **figures.TARGETS,
    "findings": findings.TARGET,
    "beyond": beyond.TARGET,
    "ood": ood.TARGET,
    "related": related.TARGET,
}

DOWNLOAD = "to download and train"
STATES = ("to train", "finished", "trained, to evaluate", DOWNLOAD)
"""States of a run without errors."""
GROUPS = {"paper": [*tables.TARGETS, *figures.TARGETS, "findings"], "all": [*TARGETS]}
"""Names that stand for several targets."""

Plan = dict[str, dict[str, list[CachedRun]]]
"""Runs by target and label, one for each seed."""


def plan(
    names: Sequence[str],
    project: Path,
    env: str | None = None,
    seeds: int = 1,
    params: Mapping[str, object] | None = None,
) -> Plan:
    """List the runs of targets.

    Args:
        names: Names of targets; ``paper`` are those of the paper, ``all`` is every target.
        project: Folder of the Kedro project.
        env: Kedro environment.
        seeds: Number of seeds of the targets that use several.
        params: Flat parameters, such as ``data.path``, that are changed in all experiments.

    Raises:
        UserError: A target does not exist.
    """
    if unknown := [name for name in names if name not in (*TARGETS, *GROUPS)]:
        raise UserError(
            f"TARGETS: expected {', '.join(TARGETS)}, paper or all, got {', '.join(unknown)}."
            f"{did_you_mean(unknown[0], TARGETS)}"
        )
    chosen = {name for given in names for name in GROUPS.get(given, [given])}

    def runs(need: Need, target: Target) -> list[CachedRun]:
        run = replace(CachedRun.from_config(need.config, project, env), evaluated=target.evaluated)
        for parameter, value in [*(params or {}).items(), *need.changes]:
            run = run.changed(parameter, value)
        return [run, *(run.changed("seed", n) for n in range(1, seeds if target.seeds else 1))]

    return {
        name: {label: runs(need, target) for label, need in target.needs.items()}
        for name, target in TARGETS.items()
        if name in chosen
    }


def state(planned: Plan, timed: bool = False) -> pd.DataFrame:
    """List the runs of a plan, their state, and the hours of training that are left.

    A training is assumed to take as long as a finished one that differs in data or seed only.

    Args:
        planned: The plan.
        timed: Whether to time a few steps of trainings that have no finished counterpart.

    Returns:
        Columns ``experiment``; ``state``, or the error that prevents the run; ``hours`` left on
        this machine, NaN if unknown; ``unknown``, the number of trainings of unknown time. A
        training that several runs share counts for the first.
    """
    every = _all_runs(planned)
    errors = {run.name: error for run in every if (error := run.error) is not None}
    by_data: dict[str, str | None] = {}
    for run in every:
        if run.name not in errors:
            key = run.configuration.artifact_keys["data"]
            if key not in by_data:
                by_data[key] = None if run.is_finished else _data_error(run)
            if (error := by_data[key]) is not None:
                errors[run.name] = error
    runs = unique(run for run in every if run.name not in errors)
    seconds: dict[str, float] = {}
    waiting: dict[str, tuple[Any, ...]] = {}
    left: dict[str, list[str]] = {key: [] for key in runs}
    counted: set[str] = set()
    for key, run in runs.items():
        settings = run.settings
        for name, phase in settings.phases.items():
            cost = settings.model, phase, settings.data.event_shape, settings.device
            kind = repr((*cost, settings.minutes))
            training = run.configuration.artifact_keys[name]
            if settings.minutes is not None:
                seconds[kind] = 60 * settings.minutes / len(settings.phases)
            if run.catalog.exists(f"{name}.history"):
                seconds[kind] = run.load(f"{name}.history")["seconds"]
            elif training not in counted:
                counted.add(training)
                left[key].append(kind)
                waiting[kind] = cost
    if timed:
        unknown = [kind for kind in waiting if kind not in seconds]
        with ProgressBar("timing", "trainings", len(unknown)) as progress:
            for kind in unknown:
                seconds[kind] = phase_cost(*waiting[kind]).seconds
                progress.update(1)
    rows = []
    for key, run in runs.items():
        kinds = [] if run.is_finished else left[key]
        to_train, finished, to_evaluate = STATES[:3]
        to_train = DOWNLOAD if _must_download(run) else to_train
        status = to_train if kinds else finished if run.is_finished else to_evaluate
        hours = sum(seconds.get(kind, math.nan) for kind in kinds) / 3600
        rows.append((run.name, status, hours, sum(kind not in seconds for kind in kinds)))
    rows += [(name, error, math.nan, 0) for name, error in errors.items()]
    return pd.DataFrame(rows, columns=["experiment", "state", "hours", "unknown"])


def _must_download(run: CachedRun) -> bool:
    data = run.settings.data
    return (
        isinstance(data, ImageSettings)
        and SOURCES[data.source].must_download(data, run.project / RAW_FOLDER)
        and not run.catalog.exists("x_train")
    )


def _data_error(run: CachedRun) -> str | None:
    try:
        check_images(run.configuration)
    except UserError as error:
        return str(error)
    return None


def _all_runs(planned: Plan) -> list[CachedRun]:
    return [run for labels in planned.values() for runs in labels.values() for run in runs]


def unique(runs: Iterable[CachedRun]) -> dict[str, CachedRun]:
    """Return runs by cache key; evaluated if one of equal runs is.

    Raises:
        ClickException: The parameters of a run are invalid.
    """
    found: dict[str, CachedRun] = {}
    for run in runs:
        if run.key not in found or run.evaluated:
            found[run.key] = run
    return found


def finished(planned: Plan, project: Path) -> Plan:
    """Keep the finished runs, and the targets that have some, need none, or have a record."""
    kept = {}
    for name, labels in planned.items():
        done = {
            label: [run for run in runs if run.error is None and run.is_finished]
            for label, runs in labels.items()
        }
        done = {label: runs for label, runs in done.items() if runs}
        if done or not labels or TARGETS[name].has_record(project):
            kept[name] = done
    return kept


def reproduce(planned: Plan, project: Path, env: str | None = None) -> list[Path]:
    """Run what is missing, write every target, and log it to MLflow; returns the HTML pages."""
    run_all(unique(_all_runs(planned)).values())
    pages = []
    for name, runs in planned.items():
        target = TARGETS[name]
        folder = project / "data/08_reporting/paper" / (env or "base") / name
        pages.append(write(name, target.title, target.content(runs, project), folder))
        with CachedRun(name, {}, project, env).session() as session:
            connect(session.load_context().config_loader["mlflow"])
        with mlflow.start_run(run_name=name):
            mlflow.set_tag("submanifold.target", name)
            mlflow.log_artifacts(str(folder))
    return pages
