"""Nodes of the study pipeline."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import scipy  # submodules load on first use

from submanifold.common.errors import UserError
from submanifold.common.extras import import_extra
from submanifold.common.files import locked
from submanifold.data.settings import TABLES
from submanifold.data.synthetic import MANIFOLDS
from submanifold.evaluation.metrics import COMPARED, NONE
from submanifold.pipelines.conclusions import interval
from submanifold.pipelines.usage import model_command, run_of_model
from submanifold.plots.pages import render

if TYPE_CHECKING:  # an optional dependency that takes half a second to import
    from optuna import Study
    from optuna.trial import FrozenTrial

TIMEOUT = 60.0
"""Seconds to wait for the lock of the database."""
FEWEST_TRIALS = 10
"""Complete trials below which effects of parameters are not measured."""
TEST = tuple(f"test_{name}{end}" for name in ("bpd", "mse") for end in ("", "_low", "_high"))
BEFORE = ("trial", "state", "front", "bpd", "mse", *TEST)
AFTER = ("seconds", "why", "run", "model")
"""Columns of the table before and after those of the parameters."""
DIED = "its process died"
STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running",
          "WAITING": "waiting"}  # fmt: skip
"""Words for Optuna's states, in the order of the page."""


def open_study(path: Path, name: str) -> "Study":
    """Open or create an Optuna study of bits per dimension and squared error."""
    optuna = import_extra("optuna", "search")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with locked(path.parent, path.name):  # two processes cannot create the tables at once
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": TIMEOUT}}
        )
        return optuna.create_study(
            study_name=name, storage=storage, directions=["minimize"] * 2, load_if_exists=True
        )


def trials_of(study: "Study") -> list["FrozenTrial"]:
    """Return the trials by number, without those that were repeated."""
    trials = study.get_trials(deepcopy=False)
    repeated = {trial.user_attrs.get("retry_of") for trial in trials}
    return [trial for trial in trials if trial.number not in repeated]


def collect_study(study: str | None, path: Path) -> pd.DataFrame:
    """Collect the trials of a study.

    Returns:
        Columns ``trial``, ``state``, ``front`` (whether it is on the Pareto front), ``bpd`` and
        ``mse`` on validation data, ``test_bpd`` and ``test_mse`` with ``_low`` and ``_high``, the
        parameters, ``seconds``, ``why`` it has no values, ``run``, the MLflow run ID, and
        ``model``, the key of the model.

    Raises:
        UserError: The study does not exist.
    """
    found = _find(study, path)
    front = {trial.number for trial in found.best_trials}
    names = list(found.user_attrs["search"])
    rows = [_row(trial, names) | {"front": trial.number in front} for trial in trials_of(found)]
    return pd.DataFrame(rows, columns=[*BEFORE, *names, *AFTER])


def draw_study(table: pd.DataFrame) -> go.Figure:
    """Plot bits per dimension against squared error, with the Pareto front."""
    from submanifold.plots.trials import study_figure

    return study_figure(table, _parameters(table))


def write_study(study: str, path: Path, table: pd.DataFrame, figure: go.Figure) -> str:
    """Write the HTML page: a conclusion, the plot, the effects of parameters, and the table."""
    from submanifold.plots.trials import as_html

    found = _find(study, path)
    base = found.user_attrs["base"]
    counts = table["state"].value_counts()
    shown = table.sort_values(["front", "state", "bpd"], ascending=[False, True, True])
    return render(
        "study.html",
        study=study,
        search=found.user_attrs["search"],
        about={name: base[name] for name in ("dataset", "method", "seed") if name in base},
        counts={state: int(counts[state]) for state in STATES.values() if state in counts},
        conclusion=conclusion(table),
        plot=as_html(figure),
        effects=effects(table),
        names=_parameters(table),
        metrics={column: COMPARED[column] for column in ("bpd", "mse")},
        rows=[
            {**row, "cells": [COMPARED[column].write(interval(pd.Series(row), f"test_{column}"))
                              for column in ("bpd", "mse")]}
            for row in shown.astype(object).where(shown.notna(), None).to_dict("records")
        ],
        usage=_usage(study, found.user_attrs, table, path.parents[4]),
    )  # fmt: skip


def conclusion(table: pd.DataFrame) -> list[str]:
    """Return the best trials on validation data with their test values, and the Pareto front."""
    done = table[table["state"] == "complete"]
    if done.empty:
        return ["No trial is complete."]
    found = []
    for column in ("bpd", "mse"):
        row, metric = done.iloc[done[column].argmin()], COMPARED[column]
        chosen = ", ".join(f"{name}={written(row[name])}" for name in _parameters(table))
        test = metric.write(interval(row, f"test_{column}"))
        found.append(f"Trial {row['trial']} ({chosen}) has the best {metric.phrase} on validation "
                     f"data; on test data it is {test}.")  # fmt: skip
    front = int(done["front"].sum())
    if front == 1:
        found.append("No other trial is better in one of both.")
    else:
        found.append(f"{front} of {len(done)} complete trials are on the Pareto front: each has "
                     "fewer bits or a smaller error than any other.")  # fmt: skip
    return found


def written(value: Any) -> str:
    """Write the value of a parameter."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _usage(
    study: str, attributes: dict[str, Any], table: pd.DataFrame, project: Path
) -> list[tuple[str, str]]:
    found = []
    done = table[table["model"].notna() & (table["state"] == "complete")]
    dataset = attributes["base"].get("dataset")
    for column, text in {"mse": "error", "bpd": "number of bits"}.items():
        if len(done) and dataset not in MANIFOLDS:
            model = run_of_model(done.iloc[done[column].argmin()]["model"], project)
            command = model_command(model, "score", "TABLE" if dataset in TABLES else "PICTURES")
            found.append((command, f"applies the trial with the smallest {text}"))
    spaces = [f"{name}={space}" for name, space in attributes["search"].items()]
    params = ",".join(f"{name}={value}" for name, value in attributes.get("params", {}).items())
    more = ["submanifold", "sweep", f"--study={study}", f"--trials={2 * len(table)}", *spaces]
    more += [f"--params={params}"] if params else []
    return [*found, (shlex.join(more), "continues with more trials")]


def effects(table: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Return the effect of each parameter on the ranks of bits per dimension and squared error.

    Returns:
        Spearman's correlation (with its sign) of a number; for choices the square root of H / (n -
        1), H the statistic of Kruskal and Wallis. A dash where p > 5% (Bonferroni's correction).
        Parameters without effects are left out. Empty for fewer than 10 complete trials.
    """
    done = table[table["state"] == "complete"]
    names = _parameters(table)
    if len(done) < FEWEST_TRIALS:
        return {}
    level = 0.05 / (2 * len(names))
    found = {name: tuple(_effect(done[name], done[each], level) for each in ("bpd", "mse"))
             for name in names if done[name].nunique() > 1}  # fmt: skip
    return {name: (bits, mse) for name, (bits, mse) in found.items() if {bits, mse} != {NONE}}


def _effect(values: pd.Series, objective: pd.Series, level: float) -> str:
    if pd.api.types.is_numeric_dtype(values):
        correlation, p = scipy.stats.spearmanr(values, objective)
        return f"{correlation:+.2f}" if p < level else NONE
    statistic, p = scipy.stats.kruskal(*(each for _, each in objective.groupby(values.astype(str))))
    return f"{np.sqrt(statistic / (len(values) - 1)):.2f}" if p < level else NONE


def _find(study: str | None, path: Path) -> "Study":
    if study is None or not path.is_file():
        known = sorted(each.parent.name for each in path.parent.parent.glob("*/*.db"))
        raise UserError(
            f"study: expected one of {', '.join(known) or 'none'}, got {study}. Make one with: "
            "kedro sweep --study=<name> stage_1.dim=50..500"
        )
    return open_study(path, study)


def _row(trial: "FrozenTrial", names: list[str]) -> dict[str, Any]:
    attributes = trial.user_attrs
    params = {name: trial.params.get(name) for name in names}
    objectives = trial.values or [np.nan, np.nan]
    return {
        "trial": trial.number,
        "state": STATES[trial.state.name],
        **dict(zip(("bpd", "mse"), objectives, strict=True)),
        **dict(zip(TEST[::3], attributes.get("test", [None, None]), strict=True)),
        **{name: attributes.get("test_ends", {}).get(name) for name in TEST if name.count("_") > 1},
        # a CSV file cannot contain None
        **{name: "none" if value is None else value for name, value in params.items()},
        "seconds": trial.duration.total_seconds() if trial.duration else None,
        "why": attributes.get("why", DIED if trial.state.name == "FAIL" else None),
        "run": attributes.get("run"),
        "model": attributes.get("model"),
    }


def _parameters(table: pd.DataFrame) -> list[str]:
    return [str(name) for name in table if name not in (*BEFORE, *AFTER)]
