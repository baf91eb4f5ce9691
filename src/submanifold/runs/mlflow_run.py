"""The MLflow run of a pipeline, from its start to its end."""

import atexit
import contextlib
import os
import signal
import socket
import threading
import types
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlflow
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from submanifold.common.files import is_alive
from submanifold.config.loader import ExperimentConfigLoader
from submanifold.config.schema import flatten
from submanifold.runs.entries import SUMMARIES, kind_of, path_of
from submanifold.runs.store import is_store_failure, required
from submanifold.runs.tracking import (
    JOB,
    Curves,
    Pruned,
    curves_of,
    observer,
    run_of_job,
    warn_once,
)
from submanifold.training.phases import replay

OPTIONS = {"from_inputs": "from-inputs", "from_nodes": "from-nodes", "to_nodes": "to-nodes",
           "node_names": "nodes", "pipeline_names": "pipeline", "tags": "tags"}  # fmt: skip
"""Options of ``kedro run`` by the name of the parameter."""


class MlflowRun:
    """An active run of MLflow, whose store and experiment are set (:func:`.connect`).

    A scheduler's job, whose name is in SUBMANIFOLD_JOB, has one run for all of its commands.

    Args:
        loader: The configuration.
        run_params: Kedro's description of the command.
        params: Parameters to log.

    Raises:
        UserError: MLflow cannot be used.
    """

    def __init__(
        self,
        loader: ExperimentConfigLoader,
        run_params: Mapping[str, Any],
        params: Mapping[str, Any],
    ) -> None:
        self._experiment, names = loader.experiment, run_params["pipeline_names"]
        job = None if names in SUMMARIES else os.environ.get("SUBMANIFOLD_JOB")
        name = f"{self._experiment.dataset}-{names[0]}" if names in SUMMARIES else loader.run_name
        with required(), _ended():
            of_job = run_of_job(job, params["keys.run"], _experiment_id(loader)) if job else None
            run = mlflow.start_run(of_job, run_name=name)
            self.id = run.info.run_id
            curves_of.cache_clear()  # an earlier command of the same job has closed its curves
            tags = {key: value for key, value in run_params.items() if value}
            tags["kedro_command"] = _command(run_params)
            tags |= {"submanifold.host": socket.gethostname(), "submanifold.pid": str(os.getpid())}
            tags |= {JOB: job} if job else {}
            if (by := observer.get()) is not None:
                tags |= by.tags
                by.on_run(self.id)
            mlflow.set_tags(tags)
            _close_orphans(run.info.experiment_id)
            # MLflow does not accept other values for a job that continues, such as its device
            existing = run.data.params
            mlflow.log_params({k: v for k, v in params.items() if k not in existing})
        # exit handlers run in reverse order: before MLflow's
        atexit.register(self._close_interrupted)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _exit_on_signal)

    def complete(
        self, pipeline: Pipeline, catalog: CatalogProtocol, computed: Collection[str]
    ) -> None:
        """Log the outputs of a pipeline, and end the run; continue with a warning if this fails.

        Args:
            pipeline: The pipeline.
            catalog: Its datasets.
            computed: Names of the outputs that this run has computed; the others existed.
        """
        atexit.unregister(self._close_interrupted)
        with _optional():
            curves = curves_of(self.id)
            try:
                self._log_outputs(pipeline, catalog, computed, curves)
            finally:
                curves.close()
            mlflow.end_run()

    def fail(self, error: Exception) -> None:
        """End the run with the status FAILED, or KILLED if the training was pruned."""
        atexit.unregister(self._close_interrupted)
        with _optional():
            curves_of(self.id).close()
            if isinstance(error, Pruned):
                mlflow.set_tag("submanifold.pruned", str(error))
            mlflow.end_run("KILLED" if isinstance(error, Pruned) else "FAILED")

    def _log_outputs(
        self, pipeline: Pipeline, catalog: CatalogProtocol, computed: Collection[str],
        curves: Curves,
    ) -> None:  # fmt: skip
        kinds = {name: kind_of(catalog, name) for name in sorted(pipeline.all_outputs())}
        for name, kind in kinds.items():
            if kind is None or not catalog.exists(name):
                continue
            if kind == "history":
                history = catalog.load(name)
                values = {f"{history['name']}.{k}": history[k] for k in ("seconds", "best_step")}
                mlflow.log_metrics(values)
                if name not in computed:
                    replay(history, curves.log)
                continue
            mlflow.log_artifact(str(path_of(catalog, name)))
            if kind == "metrics":
                metrics = catalog.load(name)
                mlflow.log_metrics(_numbers(metrics))
                _log_curve(metrics.get("curve"), curves)
            if kind == "model" and self._experiment.kind != "points":
                from submanifold.runs.served import log_model

                log_model(path_of(catalog, name), self._experiment.register_as)

    def _close_interrupted(self) -> None:
        if mlflow.active_run() is not None:
            curves_of(self.id).close()
            with _optional():
                mlflow.end_run("KILLED")


def _experiment_id(loader: ExperimentConfigLoader) -> str:
    experiment = mlflow.get_experiment_by_name(loader["mlflow"]["experiment"])
    assert experiment is not None
    return experiment.experiment_id


@contextmanager
def _ended() -> Iterator[None]:
    """End the active runs if anything fails."""
    try:
        yield
    except BaseException:
        _end_runs()
        raise


@contextmanager
def _optional() -> Iterator[None]:
    """Continue with a warning if MLflow fails."""
    try:
        yield
    except Exception as error:
        if not is_store_failure(error):
            raise
        warn_once(error)
        _end_runs()


def _end_runs() -> None:
    """End all active MLflow runs of this process, even if MLflow cannot be reached."""
    while mlflow.active_run() is not None:
        with contextlib.suppress(Exception):
            mlflow.end_run("FAILED")


def _command(run_params: Mapping[str, Any]) -> str:
    given = {OPTIONS[name]: value for name, value in run_params.items() if name in OPTIONS}
    return " ".join(["kedro run", *(f"--{k}={','.join(v)}" for k, v in given.items() if v)])


def _exit_on_signal(number: int, frame: types.FrameType | None) -> None:
    raise SystemExit(128 + number)


def _close_orphans(experiment_id: str) -> None:
    """Mark RUNNING runs of this machine whose process was killed as KILLED."""
    running = mlflow.search_runs(
        [experiment_id],
        f"attributes.status = 'RUNNING' and tags.`submanifold.host` = '{socket.gethostname()}'",
        output_format="list",
    )
    for run in running:
        if not is_alive(int(run.data.tags["submanifold.pid"])):
            mlflow.MlflowClient().set_terminated(run.info.run_id, "KILLED")


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """Return all numbers in nested metrics under dotted names, without the suffix ``.value``."""
    flat = {name.removesuffix(".value"): value for name, value in flatten(metrics).items()}
    return {f"test.{k}": v for k, v in flat.items() if isinstance(v, int | float)}


def _log_curve(curve: dict[str, Any] | None, curves: Curves) -> None:
    """Log the projection error by dimension; the dimension is the step."""
    if curve is None:
        return
    for name, dims in ("mse", "dims"), ("pca_mse", "dims"), ("nearest_mse", "nearest_dims"):
        for dim, value in zip(curve[dims], curve[name], strict=True):
            if value is not None:
                curves.log("test.by_dimension", dim, {name: value})
