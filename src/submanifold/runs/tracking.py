"""MLflow: where training curves go, which of its runs are the same, and what they have measured.

And who else looks at a training (:func:`observed`).
"""

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import Metric, Run
from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR

from submanifold.common.errors import UserError
from submanifold.runs.store import root_of, without_password
from submanifold.training.trainer import Row

logger = logging.getLogger(__name__)

MOST_METRICS = 1000  # that MLflow takes at once
RETRY = 10.0  # seconds between attempts to reach it
PATIENCE = 60.0  # seconds that the end of a run waits for it

JOB = "submanifold.job"
"""Tag of a run whose commands a scheduler has started: they are all of one job."""

EVALUATED = "metrics.`test.parameters` > 0"
"""Finds the runs whose model was evaluated: whatever else of it has no value, it is counted."""


Log = Callable[[str, int, Row], None]


class Pruned(Exception):  # noqa: N818  it is none
    """A training that its observer has ended, for it is worse than others.

    Its run of MLflow's is tagged ``submanifold.pruned`` with the message, and KILLED; what it has
    trained is kept, and found by whoever runs the same experiment.
    """


@dataclass(frozen=True)
class Observer:
    """Who has started runs, and looks at how they go.

    Attributes:
        tags: Put on their runs of MLflow's.
        on_run: Called with MLflow's id of a run that begins.
        on_log: Called as a training's callback is (:func:`submanifold.training.trainer.fit`), with
            the phase's name before the step; it may raise :class:`Pruned`.
    """

    tags: dict[str, str]
    on_run: Callable[[str], object]
    on_log: Log


_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)


@contextmanager
def observed(by: Observer) -> Iterator[None]:
    """Let runs that are started inside be observed."""
    before = _observer.set(by)
    try:
        yield
    finally:
        _observer.reset(before)


def observer() -> Observer | None:
    """Who observes, if anybody does."""
    return _observer.get()


def watch() -> Log | None:
    """Make the callback of trainings, which MLflow's run and the observer hear; None for neither.

    Values go to MLflow by step as ``<phase>.<name>``, without waiting.
    """
    run, by = mlflow.active_run(), observer()
    curves = curves_of(run.info.run_id) if run is not None else None
    if curves is None and by is None:
        return None

    def log(phase: str, step: int, values: Row) -> None:
        if curves is not None:
            curves.log(phase, step, values)
        if by is not None:
            by.on_log(phase, step, values)

    return log


class Curves:
    """Values by step on their way to a run of MLflow's, sent by a thread of their own.

    Nobody waits for MLflow: what it does not take is kept, and sent when it can be reached again.

    Args:
        run_id: The run.
    """

    def __init__(self, run_id: str):
        self._run_id, self._client = run_id, mlflow.MlflowClient()
        self._waiting: list[Metric] = []
        self._changed, self._closing = threading.Condition(), False
        self._thread: threading.Thread | None = None

    def add(self, values: Row, step: int) -> None:
        """Send values of a step, soon."""
        now = time.time_ns() // 10**6
        with self._changed:
            self._waiting += [Metric(name, value, now, step) for name, value in values.items()]
            if self._thread is None:
                self._thread = threading.Thread(target=self._send_all, daemon=True)
                self._thread.start()
            self._changed.notify()

    def log(self, phase: str, step: int, values: Row) -> None:
        """Send a phase's values of a step, as ``<phase>.<name>``."""
        self.add({f"{phase}.{name}": value for name, value in values.items()}, step)

    def close(self) -> None:
        """Wait until all is sent; what MLflow does not take in a minute is left, with a warning."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(PATIENCE)
        if self._waiting:
            logger.warning(
                "%d values of the training curves have not reached MLflow; they are in the "
                "history.json of each phase",
                len(self._waiting),
            )

    def _send_all(self) -> None:
        failed = False
        while True:
            with self._changed:
                if not failed:
                    self._changed.wait_for(lambda: self._waiting or self._closing)
                elif not self._closing:
                    self._changed.wait_for(lambda: self._closing, RETRY)
                batch, last = self._waiting[:MOST_METRICS], self._closing
            if not batch:
                return
            try:
                self._client.log_batch(self._run_id, metrics=batch)
            except Exception as error:  # whatever it is, the training goes on
                if not failed:
                    warn_of_loss(error)
                if last:
                    return
                failed = True
                continue
            failed = False
            with self._changed:
                del self._waiting[: len(batch)]


@lru_cache(maxsize=1)
def curves_of(run_id: str) -> Curves:
    """Give all phases of a run the same curves."""
    return Curves(run_id)


def warn_of_loss(error: BaseException) -> None:
    """Say, once for each reason, that a run goes on without MLflow."""
    _warn_of_loss(tracking_place(), root_of(error))


@lru_cache(maxsize=1)
def _warn_of_loss(uri: str, reason: str) -> None:
    logger.warning(
        "MLflow at %s cannot be used now (%s). The run goes on; what it makes is in data/ too",
        uri,
        reason,
    )


def find_runs(where: str, experiment: str | None = None) -> list[Run]:
    """Find runs in MLflow's store, or in one of its experiments, the newest first."""
    return mlflow.search_runs(
        [experiment] if experiment else None,
        where,
        order_by=["attributes.start_time DESC"],
        output_format="list",
        search_all_experiments=experiment is None,
    )


def run_of_job(job: str, key: str, experiment: str) -> str | None:
    """Find the run of MLflow's of a scheduler's job and an experiment, by the key of its run.

    Raises:
        UserError: The job's name has characters that MLflow cannot look for.
    """
    if not re.fullmatch(r"[\w.:+/@-]+", job):
        raise UserError(
            f"SUBMANIFOLD_JOB={job} cannot be a job's name. Allowed: letters, digits and any of "
            "_.:+/@-. Change it where the scheduler sets it."
        )
    runs = find_runs(f"tags.`{JOB}` = '{job}' and params.`keys.run` = '{key}'", experiment)
    return runs[0].info.run_id if runs else None


def tracking_place() -> str:
    """Name MLflow's database or server, as messages do."""
    return without_password(mlflow.get_tracking_uri())


def newest(runs: Sequence[Run]) -> list[Run]:
    """Keep the first of runs of equal settings, whatever version of the program measured them."""
    found: dict[tuple[str, ...], Run] = {}
    for run in runs:
        params = run.data.params
        measured = sorted(name for name in params if name.startswith("evaluation."))
        settings = (f"{name}={params[name]}" for name in measured)
        found.setdefault((params["keys.model"], *settings), run)
    return list(found.values())


def logged(run: Run, metric: str, column: str) -> dict[str, float]:
    """Find a metric of metrics.json in a run, NaN where it has none.

    Returns:
        Its value as ``<column>``, and its interval as ``<column>_low`` and ``<column>_high``.
    """
    names = {"": metric, "_low": f"{metric}.low", "_high": f"{metric}.high"}
    found = run.data.metrics
    return {f"{column}{end}": found.get(f"test.{name}", np.nan) for end, name in names.items()}


def metrics_of(run: Run) -> dict[str, Any]:
    """Read the metrics.json that a run has kept; empty where it is gone."""
    path = artifact(run.info.run_id, "metrics.json")
    return json.loads(path.read_text()) if path else {}


def artifact(run_id: str, name: str) -> Path | None:
    """Fetch a file that a run has kept, or None where there is none."""
    if name not in {each.path for each in mlflow.MlflowClient().list_artifacts(run_id)}:
        return None
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)  # it writes over Kedro's log
    return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name))
