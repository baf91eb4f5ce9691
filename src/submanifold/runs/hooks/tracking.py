"""Completes the MLflow runs that kedro-mlflow opens and closes.

``metadata: {mlflow: <kind>}`` of an entry of the catalog is ``artifact``, ``page`` (an artifact
whose path is printed at the end of a run), ``metrics`` (an artifact whose numbers are logged),
``model``, or ``history`` (of a training).
"""

import atexit
import logging
import os
import signal
import socket
import threading
import types
from pathlib import Path
from typing import Any, cast

import mlflow
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Node, Pipeline

from submanifold.common.files import is_alive
from submanifold.config.loader import ExperimentConfigLoader
from submanifold.runs.hooks.faults import mlflow_optional
from submanifold.runs.tracking import JOB, Curves, Pruned, curves_of, observer

log = logging.getLogger(__name__)

SUMMARIES = (["compare"], ["sweep"], ["study"])
"""Pipelines that train nothing and summarize other runs."""


class TrackingHooks:
    """Logs the parameters, metrics, artifacts and status of a run.

    kedro-mlflow misses outputs of nodes that Kedro skips, and processes that are terminated.
    """

    def __init__(self) -> None:
        self._run_id: str | None = None
        self._computed: set[str] = set()

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Store the experiment."""
        loader = cast(ExperimentConfigLoader, context.config_loader)
        self._experiment, self._keys = loader.experiment, loader.artifact_keys

    @hook_impl(trylast=True)
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline) -> None:
        """Log the parameters, and handle SIGTERM and exits."""
        run = mlflow.active_run()
        if run is None:
            return
        self._run_id, self._computed = run.info.run_id, set()
        curves_of.cache_clear()  # an earlier command of the same job has closed its curves
        tags = {"submanifold.host": socket.gethostname(), "submanifold.pid": str(os.getpid())}
        if (by := observer.get()) is not None:
            tags |= by.tags
            by.on_run(self._run_id)
        mlflow.set_tags(tags)
        _close_orphans(run.info.experiment_id)
        self._log_params(run.data.params, run_params["pipeline_names"], pipeline)
        # exit handlers run in reverse order: before MLflow's
        atexit.register(self._close_interrupted)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _exit_on_signal)

    def _log_params(self, existing: dict[str, str], names: list[str], pipeline: Pipeline) -> None:
        from submanifold.config.schema import flatten

        params = flatten(self._experiment.parameters())
        if names in SUMMARIES:
            mlflow.set_tag("mlflow.runName", f"{self._experiment.dataset}-{names[0]}")
            params = {k: v for k, v in params.items() if f"params:{k}" in pipeline.inputs()}
        else:
            params |= {f"keys.{name}": key for name, key in self._keys.items()}
            if job := os.environ.get("SUBMANIFOLD_JOB"):
                mlflow.set_tag(JOB, job)
        # MLflow does not accept other values for a job that continues, such as its device
        mlflow.log_params({k: v for k, v in params.items() if k not in existing})

    @hook_impl(tryfirst=True)
    def before_node_run(self, inputs: dict[str, Any]) -> None:
        """Hide the parameters from kedro-mlflow, which would log them again at each node."""
        for name in [name for name in inputs if name.startswith("params:")]:
            del inputs[name]

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """Store the names of the computed outputs; the others existed."""
        self._computed.update(node.outputs)

    @hook_impl(tryfirst=True)
    def after_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Log the metrics and artifacts of the run, including those of skipped nodes."""
        run_id, self._run_id = self._run_id, None
        try:
            if run_id is not None:
                curves = curves_of(run_id)
                try:
                    self._log_outputs(_outputs_by_kind(pipeline, catalog), catalog, curves)
                finally:
                    curves.close()
        finally:
            log_pages(pipeline, catalog)

    def _log_outputs(self, kinds: dict[str, str], catalog: CatalogProtocol, curves: Curves) -> None:
        from submanifold.training.phases import replay

        for name, kind in kinds.items():
            if kind == "history":
                history = catalog.load(name)
                values = {f"{history['name']}.{k}": history[k] for k in ("seconds", "best_step")}
                mlflow.log_metrics(values)
                if name not in self._computed:
                    replay(history, curves.log)
                continue
            mlflow.log_artifact(str(path_of(catalog, name)))
            if kind == "metrics":
                metrics = catalog.load(name)
                mlflow.log_metrics(_numbers(metrics))
                _log_curve(metrics.get("curve"), curves)
            if kind == "model" and not self._experiment.synthetic:
                from submanifold.runs.served import log_model

                log_model(path_of(catalog, name), self._experiment.register_as)

    @hook_impl
    def on_pipeline_error(self, error: Exception) -> None:
        """Send the remaining values; kedro-mlflow has set the status FAILED. Pruned is KILLED."""
        run_id, self._run_id = self._run_id, None
        if run_id is None:
            return
        curves_of(run_id).close()
        if isinstance(error, Pruned):
            client = mlflow.MlflowClient()
            client.set_tag(run_id, "submanifold.pruned", str(error))
            client.set_terminated(run_id, "KILLED")

    def _close_interrupted(self) -> None:
        if self._run_id is not None and mlflow.active_run() is not None:
            curves_of(self._run_id).close()
            with mlflow_optional():
                mlflow.end_run("KILLED")


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
    from submanifold.config.schema import flatten

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


def _outputs_by_kind(pipeline: Pipeline, catalog: CatalogProtocol) -> dict[str, str]:
    """Return the kind of each output of a pipeline that exists and has one, sorted by name."""
    kinds = {name: _kind(catalog, name) for name in sorted(pipeline.all_outputs())}
    return {name: kind for name, kind in kinds.items() if kind and catalog.exists(name)}


def _kind(catalog: CatalogProtocol, name: str) -> str | None:
    return (getattr(catalog.get(name), "metadata", None) or {}).get("mlflow")


def log_pages(pipeline: Pipeline, catalog: CatalogProtocol) -> None:
    """Log the paths of the pages that a pipeline writes."""
    for name in sorted(pipeline.all_outputs()):
        if _kind(catalog, name) == "page":
            log.info("The %s is %s", name.replace("_", " "), path_of(catalog, name))


def path_of(catalog: CatalogProtocol, name: str) -> Path:
    """Return the path of an entry."""
    return Path(catalog[name]._filepath)
