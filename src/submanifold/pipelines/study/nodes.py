"""Nodes of the study pipeline."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from submanifold.common.errors import UserError
from submanifold.common.files import locked
from submanifold.plots.pages import render

if TYPE_CHECKING:  # half a second, which most runs do without
    from optuna import Study
    from optuna.trial import FrozenTrial

WAIT = 60.0  # seconds that another process may hold the database locked
FEWEST = 10  # complete trials by which parameters are weighed
FIXED = ("trial", "state", "front", "bpd", "mse", "test_bpd", "test_mse", "seconds", "why", "run")
DIED = "its process died"
STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running",
          "WAITING": "waiting"}  # fmt: skip


def open_study(path: Path, name: str) -> "Study":
    """Open Optuna's study of bits per dimension and squared error, or make it."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with locked(path.parent, path.name):  # two that make the tables at once would fail
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": WAIT}}
        )
        return optuna.create_study(
            study_name=name, storage=storage, directions=["minimize"] * 2, load_if_exists=True
        )


def trials_of(study: "Study") -> list["FrozenTrial"]:
    """All trials by number, without those that another has taken up again."""
    trials = study.get_trials(deepcopy=False)
    again = {trial.user_attrs.get("retry_of") for trial in trials}
    return [trial for trial in trials if trial.number not in again]


def collect_study(study: str | None, path: Path) -> pd.DataFrame:
    """Put the trials of a study in a table.

    Returns:
        By number: ``trial``, its ``state``, whether it is on the Pareto ``front``, ``bpd`` and
        ``mse`` of validation data, by which the study chooses, ``test_bpd`` and ``test_mse``, the
        parameters by name, ``seconds``, ``why`` it has no values, and ``run``, MLflow's id. A
        UserError for no such study.
    """
    found = _find(study, path)
    front = {trial.number for trial in found.best_trials}
    names = list(found.user_attrs["search"])
    rows = [_row(trial, names) | {"front": trial.number in front} for trial in trials_of(found)]
    return pd.DataFrame(rows, columns=[*FIXED[:-3], *names, *FIXED[-3:]])


def draw_study(table: pd.DataFrame) -> go.Figure:
    """Plot bits per dimension against squared error, with the front."""
    from submanifold.plots.trials import study_figure

    return study_figure(table, _names(table))


def write_study(study: str, path: Path, table: pd.DataFrame, figure: go.Figure) -> str:
    """Write a page: the plot, what the parameters matter, and the table, the front first."""
    found, names = _find(study, path), _names(table)
    base = found.user_attrs["base"]
    states = [state for state in STATES.values() if state in set(table["state"])]
    config = {"displaylogo": False, "responsive": True}
    shown = table.sort_values(["front", "state", "bpd"], ascending=[False, True, True])
    return render(
        "study.html",
        study=study,
        search=found.user_attrs["search"],
        about={name: base[name] for name in ("dataset", "method", "seed") if name in base},
        counts={state: int((table["state"] == state).sum()) for state in states},
        plot=figure.to_html(full_html=False, include_plotlyjs=True, config=config),
        importances=_importances(found),
        names=names,
        rows=shown.astype(object).where(shown.notna(), None).to_dict("records"),
    )


def _find(study: str | None, path: Path) -> "Study":
    if study is None or not path.is_file():
        made = ", ".join(sorted(each.parent.name for each in path.parent.parent.glob("*/*.db")))
        raise UserError(
            f"study={study} is not known. Known: {made or 'none'}. Make one with: kedro sweep "
            "--study=<name> stage_1.dim=50..500 phase_1.reconstruction.weight=log:1.0..1000"
        )
    return open_study(path, study)


def _row(trial: "FrozenTrial", names: list[str]) -> dict[str, Any]:
    values = trial.values or [np.nan, np.nan]
    attributes = trial.user_attrs
    test_bpd, test_mse = attributes.get("test", [None, None])
    return {
        "trial": trial.number, "state": STATES[trial.state.name],
        "bpd": values[0], "mse": values[1], "test_bpd": test_bpd, "test_mse": test_mse,
        # a file of comma-separated values would be read back without a None
        **{name: "none" if (value := trial.params.get(name)) is None else value for name in names},
        "seconds": trial.duration.total_seconds() if trial.duration else None,
        "why": attributes.get("why", DIED if trial.state.name == "FAIL" else None),
        "run": attributes.get("run"),
    }  # fmt: skip


def _names(table: pd.DataFrame) -> list[str]:
    return [str(name) for name in table if name not in FIXED]


def _importances(study: "Study") -> dict[str, tuple[float, float]]:
    """Shares by parameter of what leads to few bits, and to a small error (PED-ANOVA)."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    if len(study.get_trials(deepcopy=False, states=_complete())) < FEWEST:
        return {}
    shares = []
    with warnings.catch_warnings():  # it reminds of what is meant: low values are wanted
        warnings.simplefilter("ignore")
        for number in range(2):
            evaluator = PedAnovaImportanceEvaluator()
            target = lambda trial, n=number: trial.values[n]  # noqa: E731
            shares.append(get_param_importances(study, evaluator=evaluator, target=target))
    return {name: (shares[0][name], shares[1].get(name, 0.0)) for name in shares[0]}


def _complete() -> Any:
    from optuna.trial import TrialState

    return (TrialState.COMPLETE,)
