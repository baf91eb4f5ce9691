"""Nodes of the study pipeline."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from submanifold.common.errors import UserError
from submanifold.common.extras import import_extra
from submanifold.common.files import locked
from submanifold.plots.pages import render

if TYPE_CHECKING:  # an optional dependency that takes half a second to import
    from optuna import Study
    from optuna.trial import FrozenTrial

TIMEOUT = 60.0
"""Seconds to wait for the lock of the database."""
FEWEST_TRIALS = 10
"""Complete trials below which parameters have no importance."""
BEFORE = ("trial", "state", "front", "bpd", "mse", "test_bpd", "test_mse")
AFTER = ("seconds", "why", "run")
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
        ``mse`` on validation data, ``test_bpd`` and ``test_mse``, the parameters, ``seconds``,
        ``why`` it has no values, and ``run``, the MLflow run ID.

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
    """Write the HTML page: the plot, the importance of the parameters, and the table."""
    found = _find(study, path)
    base = found.user_attrs["base"]
    counts = table["state"].value_counts()
    config = {"displaylogo": False, "responsive": True}
    shown = table.sort_values(["front", "state", "bpd"], ascending=[False, True, True])
    return render(
        "study.html",
        study=study,
        search=found.user_attrs["search"],
        about={name: base[name] for name in ("dataset", "method", "seed") if name in base},
        counts={state: int(counts[state]) for state in STATES.values() if state in counts},
        plot=figure.to_html(full_html=False, include_plotlyjs=True, config=config),
        importances=importances(found),
        names=_parameters(table),
        rows=shown.astype(object).where(shown.notna(), None).to_dict("records"),
    )


def importances(study: "Study") -> dict[str, tuple[float, float]]:
    """Importance of each parameter (PED-ANOVA) for bits per dimension and for squared error.

    Returns:
        Fractions that sum to 1 over the parameters; empty for fewer than 10 complete trials.
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    if sum(trial.state.name == "COMPLETE" for trial in trials_of(study)) < FEWEST_TRIALS:
        return {}

    def shares(number: int) -> dict[str, float]:
        evaluator = PedAnovaImportanceEvaluator()
        with warnings.catch_warnings():  # a reminder that smaller values are better
            warnings.simplefilter("ignore")
            return get_param_importances(
                study, evaluator=evaluator, target=lambda trial: trial.values[number]
            )

    bits, errors = shares(0), shares(1)
    return {name: (share, errors.get(name, 0.0)) for name, share in bits.items()}


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
        **dict(zip(("test_bpd", "test_mse"), attributes.get("test", [None, None]), strict=True)),
        # a CSV file cannot contain None
        **{name: "none" if value is None else value for name, value in params.items()},
        "seconds": trial.duration.total_seconds() if trial.duration else None,
        "why": attributes.get("why", DIED if trial.state.name == "FAIL" else None),
        "run": attributes.get("run"),
    }


def _parameters(table: pd.DataFrame) -> list[str]:
    return [str(name) for name in table if name not in (*BEFORE, *AFTER)]
