"""Training curves, observers of trainings, and queries of finished runs in MLflow."""

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from mlflow.entities import Metric
from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR

from submanifold.common.errors import UserError
from submanifold.runs.store import root_cause, without_password

if TYPE_CHECKING:
    from submanifold.training.phases import Log
    from submanifold.training.trainer import Row

logger = logging.getLogger(__name__)

MAX_METRICS = 1000  # per request, MLflow's limit
SEND_INTERVAL = 1.0  # seconds between requests
RETRY_INTERVAL = 10.0  # seconds between requests after a failure
CLOSE_TIMEOUT = 60.0  # seconds that the end of a run waits for MLflow

JOB = "submanifold.job"
"""Tag of a run whose pipeline a scheduler runs in several commands."""

EVALUATED = "metrics.`test.parameters` > 0"
"""Filter for runs whose model was evaluated."""


class Pruned(Exception):  # noqa: N818
    """Raised by an observer to end a training that is worse than others.

    The MLflow run gets the tag ``submanifold.pruned`` and the status KILLED.
    """


@dataclass(frozen=True)
class Observer:
    """Callbacks of the code that starts runs, such as a hyperparameter search.

    Attributes:
        tags: Tags of the MLflow runs.
        on_run: Called with the id of each MLflow run that begins.
        on_log: Called with the phase, the step and the values; may raise :class:`Pruned`.
    """

    tags: dict[str, str]
    on_run: Callable[[str], object]
    on_log: "Log"


observer: ContextVar[Observer | None] = ContextVar("observer", default=None)
"""Observer of the runs that are started in this context."""


@contextmanager
def observed(by: Observer) -> Iterator[None]:
    """Set the observer of runs that are started inside."""
    token = observer.set(by)
    try:
        yield
    finally:
        observer.reset(token)


def watch() -> "Log | None":
    """Return the callback of trainings for the active MLflow run and the observer, if any."""
    run, by = mlflow.active_run(), observer.get()
    callbacks: list[Log] = [curves_of(run.info.run_id).log] if run is not None else []
    callbacks += [by.on_log] if by is not None else []

    def log(phase: str, step: int, values: "Row") -> None:
        for callback in callbacks:
            callback(phase, step, values)

    return log if callbacks else None


class Curves:
    """Sends metrics to an MLflow run from a background thread.

    A training never waits for MLflow, and values are kept until MLflow can be reached again.
    MLflow's own asynchronous logging discards failed requests, and blocks the exit of a process
    for many minutes if the server does not respond.
    """

    def __init__(self, run_id: str):
        self._run_id, self._client = run_id, mlflow.MlflowClient()
        self._waiting: list[Metric] = []
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def log(self, phase: str, step: int, values: "Row") -> None:
        """Queue the values of a step under the names ``<phase>.<name>``."""
        now = time.time_ns() // 10**6
        self._waiting += [
            Metric(f"{phase}.{name}", value, now, step) for name, value in values.items()
        ]
        if self._thread is None:
            self._thread = threading.Thread(target=self._send_all, daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Wait until all values are sent, for a minute at most."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT)
        if self._waiting:
            logger.warning(
                "%d values of the training curves have not reached MLflow; they are in the "
                "history.json of each phase",
                len(self._waiting),
            )

    def _send_all(self) -> None:
        while not self._closing.wait(SEND_INTERVAL) or self._waiting:
            while batch := self._waiting[:MAX_METRICS]:
                last = self._closing.is_set()
                try:
                    self._client.log_batch(self._run_id, metrics=batch)
                except Exception as error:  # the training continues after any failure
                    warn_once(error)
                    if last:
                        return
                    self._closing.wait(RETRY_INTERVAL)
                else:
                    del self._waiting[: len(batch)]


@lru_cache(maxsize=1)
def curves_of(run_id: str) -> Curves:
    """Return the curves of a run, which its phases share."""
    return Curves(run_id)


def warn_once(error: BaseException) -> None:
    """Log a warning that MLflow failed, once per cause."""
    _warn(tracking_uri(), root_cause(error))


@lru_cache(maxsize=1)
def _warn(uri: str, cause: str) -> None:
    logger.warning(
        "MLflow at %s cannot be used now (%s). The run continues; its outputs are in data/",
        uri,
        cause,
    )


def tracking_uri() -> str:
    """Return MLflow's tracking URI without its password."""
    return without_password(mlflow.get_tracking_uri())


def find_runs(where: str, experiment: str | None = None) -> pd.DataFrame:
    """Return the runs of an experiment, or of all, that match a filter; newest first.

    Returns:
        The table of :func:`mlflow.search_runs`, with columns ``run_id``, ``params.<name>``,
        ``metrics.<name>`` and others.
    """
    return mlflow.search_runs(
        [experiment] if experiment else None,
        where,
        order_by=["attributes.start_time DESC"],
        search_all_experiments=experiment is None,
    )


def run_of_job(job: str, key: str, experiment: str) -> str | None:
    """Return the id of the MLflow run of a scheduler's job.

    Args:
        job: Name of the job.
        key: Key of the run's settings.
        experiment: Id of the MLflow experiment.

    Raises:
        UserError: The name has characters that MLflow's filters do not support.
    """
    if not re.fullmatch(r"[\w.:+/@-]+", job):
        raise UserError(
            f"SUBMANIFOLD_JOB: expected letters, digits and any of _.:+/@-, got {job}. Change it "
            "in the scheduler."
        )
    runs = find_runs(f"tags.`{JOB}` = '{job}' and params.`keys.run` = '{key}'", experiment)
    return None if runs.empty else runs["run_id"].iloc[0]


def newest(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the first of all runs with equal model and evaluation settings."""
    settings = runs.filter(regex=r"^params\.(keys\.model$|evaluation\.)")
    return runs[~settings.duplicated()].reset_index(drop=True)


def measured(runs: pd.DataFrame, metrics: Mapping[str, str]) -> pd.DataFrame:
    """Return metrics of runs and their intervals; missing values are NaN.

    Args:
        runs: Table of :func:`find_runs`.
        metrics: Name of the metric by column.

    Returns:
        Columns ``<column>``, ``<column>_low`` and ``<column>_high`` for each metric.
    """
    ends = {"": "", "_low": ".low", "_high": ".high"}
    names = {f"{column}{end}": f"metrics.test.{name}{suffix}"
             for column, name in metrics.items() for end, suffix in ends.items()}  # fmt: skip
    return runs.reindex(columns=list(names.values())).set_axis(list(names), axis="columns")


def metrics_of(run_id: str) -> dict[str, Any]:
    """Return the content of a run's metrics.json, empty if it is missing."""
    path = artifact(run_id, "metrics.json")
    return json.loads(path.read_text()) if path else {}


def artifact(run_id: str, name: str) -> Path | None:
    """Download an artifact of a run; None if it is missing."""
    if name not in {each.path for each in mlflow.MlflowClient().list_artifacts(run_id)}:
        return None
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)
    return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name))
