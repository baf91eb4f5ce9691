"""Kedro hooks: checks before a run, and its MLflow run.

Every Kedro command imports this module, so torch is imported in the functions that use it.
"""

import atexit
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import mlflow
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Node, Pipeline
from kedro_mlflow.framework.hooks.mlflow_hook import MlflowHook

from submanifold.common.errors import UserError, error_prefix
from submanifold.common.files import WriteError, locked
from submanifold.config.loader import ExperimentConfigLoader
from submanifold.inference.records import write_record

if TYPE_CHECKING:
    from submanifold.config.schema import Experiment

log = logging.getLogger(__name__)

JOB = "submanifold.job"
"""Tag of a run whose pipeline a scheduler runs in several commands."""
MEASUREMENTS = {"metrics", "truth", "ood_metrics", "dimension_metrics"}
"""Entries of the catalog whose numbers are metrics of MLflow."""


class ExperimentHooks:
    """Refuses commands that cannot succeed, and records the run."""

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: KedroContext) -> None:
        """Check the parameters."""
        self._loader = cast(ExperimentConfigLoader, context.config_loader)
        _ = self._loader.run_name

    @hook_impl(tryfirst=True)
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol
    ) -> None:
        """Check the data and this machine, and record the run."""
        experiment = self._loader.experiment
        _check_pipelines(experiment, run_params["pipeline_names"] or [])
        _prepare_machine(experiment)
        for output, part in (("x_train", "data"), ("x_ood", "ood")):
            if output in pipeline.all_outputs():
                self._loader.check_images(part)
        if "hierarchy" in pipeline.all_outputs() and _is_first_rank():
            is_finished = all(map(catalog.exists, pipeline.all_outputs()))  # may be read-only
            with suppress(WriteError) if is_finished else nullcontext():
                write_record(self._loader.project, self._loader.record())

    @hook_impl(trylast=True)
    def after_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Log the paths of the pages (``*.html``)."""
        for name in sorted(pipeline.all_outputs()):
            if (path := Path(catalog[name]._filepath)).suffix == ".html":
                log.info("The %s is %s", name.replace("_", " "), path)

    @hook_impl(trylast=True)
    def on_pipeline_error(self, error: Exception) -> None:
        """Show a user's mistake without a traceback."""
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, UserError):
                raise UserError(str(cause)) from error
            cause = cause.__cause__


class TrackingHooks(MlflowHook):
    """kedro-mlflow's hook, and what it does not do.

    - A run of which all outputs exist, and every rank but the first, have no MLflow run.
    - Parameters are those of the experiment, flattened, also of nodes that are skipped; the plugin
      would log a typed parameter as one string.
    - Metrics of the tables, and curves of phases that are not trained again, are logged although
      Kedro skips their nodes. The model is logged once with a signature.
    - An interrupted run is KILLED, rather than FINISHED or RUNNING.
    - A scheduler's job, whose name is in SUBMANIFOLD_JOB, has one run for all of its commands.
    """

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Connect the first rank to MLflow."""
        self._loader = cast(ExperimentConfigLoader, context.config_loader)
        if not _is_first_rank():
            return
        data = self._loader.project / "data"
        with _required(self._loader), locked(data, "the database of MLflow"):  # which may be new
            super().after_context_created(context)

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol
    ) -> None:
        """Start the MLflow run, and log its parameters, tags and data."""
        from submanifold.config.schema import flatten
        from submanifold.runs.tracking import observer

        self._is_mlflow_enabled = _is_first_rank() and not (
            run_params["only_missing_outputs"]
            and all(map(catalog.exists, pipeline.all_outputs()))
            and self._loader.experiment.register_as is None
        )
        if not self._is_mlflow_enabled:
            return
        self._computed: set[str] = set()
        experiment, keys = self._loader.experiment, self._loader.artifact_keys
        run = self.mlflow_config.tracking.run
        run.name = self._loader.run_name
        tags = {"dataset": experiment.data_name, "method": experiment.method}
        tags |= {"seed": str(experiment.seed), **observer.get().tags}
        if job := os.environ.get("SUBMANIFOLD_JOB"):
            tags[JOB] = job
            run.id = _run_of_job(job, keys["run"])
        with _required(self._loader):
            super().before_pipeline_run(run_params, pipeline, catalog)
            mlflow.set_tags(tags)
        params = flatten(experiment.parameters())
        params |= {f"keys.{name}": key for name, key in keys.items()}
        logged = mlflow.get_run(self.run_id).data.params  # of an earlier command of the job
        mlflow.log_params({k: str(v)[:500] for k, v in params.items() if k not in logged})
        _log_dataset(experiment, keys["data"])
        observer.get().on_run(self.run_id)
        atexit.register(_kill_run)  # exit handlers run in reverse order: before MLflow's
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _exit)

    @hook_impl
    def before_node_run(self) -> None:
        """Log no parameters of nodes: all were logged at the start."""

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """Store the names of the computed outputs; the others existed."""
        if self._is_mlflow_enabled:
            self._computed.update(node.outputs)

    @hook_impl
    def after_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol
    ) -> None:
        """Log what Kedro skipped, the metrics and the model, and end the run."""
        if not self._is_mlflow_enabled:
            return
        from submanifold.evaluation.metrics import numbers
        from submanifold.runs.pyfunc import log_model
        from submanifold.runs.tracking import log_history

        experiment, outputs = self._loader.experiment, pipeline.all_outputs()
        step, start = 0, time.time()
        for name in experiment.trainings:
            if f"{name}.history" not in outputs or not catalog.exists(f"{name}.history"):
                continue
            history = catalog.load(f"{name}.history")
            if f"{name}.history" not in self._computed:
                log_history(history, step, start)
            step, start = step + history["steps"], start + history["seconds"]
        for name in MEASUREMENTS & outputs:
            values = numbers(catalog.load(name))
            mlflow.log_metrics({f"test.{key}": value for key, value in values.items()})
        register = experiment.register_as
        if "hierarchy" in self._computed or (register and "hierarchy" in outputs):
            log_model(Path(catalog["hierarchy"]._filepath), register)
        atexit.unregister(_kill_run)
        super().after_pipeline_run(run_params, pipeline, catalog)

    @hook_impl
    def on_pipeline_error(
        self, error: Exception, run_params: dict[str, Any], pipeline: Pipeline,
        catalog: CatalogProtocol,
    ) -> None:  # fmt: skip
        """End the run as FAILED, or as KILLED if the training was pruned."""
        from submanifold.runs.tracking import Pruned

        if self._is_mlflow_enabled:
            atexit.unregister(_kill_run)
            mlflow.end_run("KILLED" if isinstance(error, Pruned) else "FAILED")


@contextmanager
def _required(loader: ExperimentConfigLoader) -> Iterator[None]:
    """Report in one line that MLflow cannot be used."""
    try:
        yield
    except Exception as error:
        reason = str(error).partition("\n")[0]
        uri = str(loader["mlflow"]["server"]["mlflow_tracking_uri"])
        uri = re.sub(r"(?<=://)([^/@\s]*?):[^/@\s]*@", r"\1:***@", uri)
        raise UserError(
            f"mlflow.yml: expected a tracking URI that can be used, got {uri} ({reason}). Start "
            "its server, free its database or its disk, or change MLFLOW_TRACKING_URI or "
            "server.mlflow_tracking_uri in conf/base/mlflow.yml."
        ) from error


def _is_first_rank() -> bool:
    return int(os.environ.get("RANK", 0)) == 0


def _check_pipelines(experiment: "Experiment", names: list[str]) -> None:
    """Refuse pipelines that need other data, and several ranks for conditional models."""
    if experiment.is_conditional and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(
            "torchrun: expected one process with data.condition, got "
            f"{os.environ['WORLD_SIZE']}. Use submanifold run."
        )
    if experiment.kind == "synthetic" and (wrong := {"ood", "dimension"} & {*names}):
        raise UserError(
            f"--pipeline={wrong.pop()}: expected images or a table, got "
            f"dataset={experiment.dataset}. Choose another dataset with --params=dataset=<name>."
        )
    if experiment.ood is None and "ood" in names:
        raise UserError(
            "--pipeline=ood needs --params=ood=<dataset>: a name in conf/base/parameters.yml, or a "
            "folder or zip of images, such as ood=mnist; for a table, another table."
        )


def _prepare_machine(experiment: "Experiment") -> None:
    from submanifold.common.device import choose_device

    choose_device(experiment.device)
    weights = experiment.evaluation.inception_weights
    if weights not in (None, "auto", "download"):
        from submanifold.evaluation.features import check_weights

        with error_prefix("evaluation"):
            check_weights(weights)


def _run_of_job(job: str, key: str) -> str | None:
    """Return the id of the MLflow run of a scheduler's job, if it has one."""
    runs = mlflow.search_runs(
        filter_string=f"tags.`{JOB}` = '{job}' and params.`keys.run` = '{key}'",
        output_format="list",
    )
    return runs[0].info.run_id if runs else None


def _log_dataset(experiment: "Experiment", key: str) -> None:
    """Log the name and the hash of the data as an input of the run."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    source = CodeDatasetSource({"dataset": experiment.dataset, "key": key})
    digest = key.rpartition("-")[2]
    dataset = MetaDataset(source, experiment.data_name, digest)  # type: ignore[abstract]
    mlflow.log_input(dataset, context="training")


def _kill_run() -> None:
    if mlflow.active_run() is not None:
        mlflow.end_run("KILLED")


def _exit(number: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + number)
