"""Kedro hooks: checks of a run, its record, its lock and its MLflow run.

Every Kedro command imports this module, so torch and MLflow are imported in the functions that use
them.
"""

import atexit
import json
import logging
import os
import signal
import threading
import time
from collections import defaultdict
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, cast
from uuid import uuid4

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Node, Pipeline

from submanifold.common.errors import UserError
from submanifold.common.files import DISK, locked
from submanifold.config.loader import ExperimentConfigLoader
from submanifold.inference.records import FOLDER, write_record
from submanifold.runs.checks import check_experiment, check_inputs, is_kept, select_missing

if TYPE_CHECKING:
    from kedro_mlflow.framework.hooks.mlflow_hook import MlflowHook

log = logging.getLogger(__name__)

MEASUREMENTS = {"metrics", "truth", "ood_metrics"}
PAGES = ("report", "ood_report")


class RunHooks:
    """Refuses runs that cannot succeed, records the others, and adds to kedro-mlflow's hook.

    - MLflow is connected when a run starts, which may create its database, and not before.
    - A run holds a lock, whose name is in its record and a tag in MLflow. An interrupted run is
      KILLED, also after SIGTERM; the next one marks those that could not do so themselves.
    - A run of which all outputs and a finished MLflow run exist, and every rank but the first, have
      no MLflow run. One of some nodes is nested in that of the whole pipeline.
    - Metrics and curves are logged although Kedro skips their nodes; the model once.
    """

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        self._context = context
        self._loader = cast(ExperimentConfigLoader, context.config_loader)
        from kedro_mlflow.config.kedro_mlflow_config import KedroMlflowConfig

        config = KedroMlflowConfig.model_validate(self._loader["mlflow"])
        context.__setattr__("mlflow", config)  # read by `kedro mlflow ui`
        # for notebooks: MLflow reads it when it is used
        os.environ["MLFLOW_TRACKING_URI"] = config.server.mlflow_tracking_uri

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol
    ) -> None:
        from submanifold.runs import tracking

        loader, outputs = self._loader, pipeline.all_outputs()
        loader.validate()
        _ = loader.run_name  # a UserError if another run has it
        is_first_rank = int(os.environ.get("RANK", 0)) == 0
        if is_first_rank:
            self._mlflow: MlflowHook = tracking.connect(self._context)
            self._mlflow.after_catalog_created(catalog, {}, {}, {}, "", {})
        self._seconds: dict[str, float] = defaultdict(float)
        self._computed: set[str] = set()
        self._is_mlflow_enabled = False
        check_experiment(loader.experiment, run_params["pipeline_names"] or [])
        for output, part in (("x_train", "data"), ("x_ood", "ood")):
            if output in outputs:
                loader.check_images(part)
        if not is_first_rank:
            return
        missing = select_missing(pipeline, catalog)
        check_inputs(missing if run_params["only_missing_outputs"] else pipeline, catalog)
        computes = missing.nodes or not run_params["only_missing_outputs"]
        lock, self._held = f".{uuid4().hex}.lock", ExitStack()
        if computes or loader.experiment.register_as or not tracking.is_recorded(loader):
            self._is_mlflow_enabled = True
            self._held.enter_context(locked(loader.project / FOLDER, "this run", lock))
        if "hierarchy" in outputs:
            with nullcontext() if missing.nodes else suppress(OSError):  # may be read-only
                record = replace(loader.record(), lock=lock)
                record = write_record(loader.project, record, loader.experiment.name)
                if missing.nodes:
                    log.info("Run %s: if interrupted, the same command continues it", record.name)
        if self._is_mlflow_enabled:
            self._start_run(run_params, pipeline, catalog, lock)

    def _start_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol, lock: str
    ) -> None:
        import mlflow

        from submanifold.runs import tracking

        loader, outputs = self._loader, pipeline.all_outputs()
        is_part = "hierarchy" not in outputs or outputs.isdisjoint(PAGES)
        self._mlflow.mlflow_config.tracking.run.name = loader.run_name + (
            " (part)" if is_part else ""
        )
        # at the exit no interrupted call of MLflow locks its database any more
        atexit.register(self._end_run, "KILLED")
        if threading.current_thread() is threading.main_thread():
            handler = signal.signal(signal.SIGTERM, _exit) or signal.SIG_DFL
            self._held.callback(signal.signal, signal.SIGTERM, handler)
        with tracking.required(loader):
            tracking.end_killed_runs(loader.project)
            tags = tracking.tags(loader, is_part) | {tracking.LOCK: lock}
            # MLflow creates the run with these tags: it may be killed before it could set them
            context = os.environ.get("MLFLOW_RUN_CONTEXT")
            os.environ["MLFLOW_RUN_CONTEXT"] = json.dumps(json.loads(context or "{}") | tags)
            try:
                self._mlflow.before_pipeline_run(run_params, pipeline, catalog)
            finally:
                del os.environ["MLFLOW_RUN_CONTEXT"]
                if context is not None:
                    os.environ["MLFLOW_RUN_CONTEXT"] = context
            mlflow.set_tags(tags)  # also of a run that an orchestrator created
            tracking.log_parameters(loader)
            if not is_part:
                tracking.nest_parts(self._mlflow.run_id, loader.artifact_keys["model"])
        tracking.observer.get().on_run(self._mlflow.run_id)

    def _end_run(self, status: str | None = None) -> None:
        atexit.unregister(self._end_run)
        if status:
            import mlflow

            mlflow.end_run(status)
        self._held.close()

    @hook_impl
    def before_node_run(self) -> None:
        self._node_started = time.monotonic()

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        self._seconds[node.namespace or node.name] += time.monotonic() - self._node_started
        self._computed.update(node.outputs)

    @hook_impl(trylast=True)
    def after_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol
    ) -> None:
        outputs = pipeline.all_outputs()
        if self._is_mlflow_enabled:
            from mlflow.exceptions import MlflowException

            from submanifold.runs import tracking

            with tracking.required(self._loader, MlflowException):
                self._log_results(outputs, catalog)
                self._mlflow.after_pipeline_run(run_params, pipeline, catalog)
            self._end_run()
        for name in sorted(pipeline.outputs()):
            if not is_kept(name, catalog):
                log.warning("%s: computed, but not kept. Add it to conf/base/catalog.yml.", name)
        for name in sorted(outputs.intersection(PAGES)):
            log.info("The %s is %s", name.replace("_", " "), self._loader.path(name))
        if self._seconds:
            parts = (f"{part} {seconds:.0f} s" for part, seconds in self._seconds.items())
            log.info("Duration of the parts: %s", ", ".join(parts))

    def _log_results(self, outputs: set[str], catalog: CatalogProtocol) -> None:
        from submanifold.runs import tracking
        from submanifold.runs.pyfunc import log_model

        experiment, step = self._loader.experiment, 0
        for history in (f"{name}.history" for name in experiment.trainings):
            if history in outputs and catalog.exists(history):
                content = catalog.load(history)
                if history not in self._computed:
                    tracking.log_history(content, step, self._mlflow.run_id)
                step += content["steps"]
        for name in MEASUREMENTS & outputs:
            tracking.log_results(catalog.load(name))
        register = experiment.register_as
        if "hierarchy" in self._computed or (register and "hierarchy" in outputs):
            log_model(self._loader.path("hierarchy"), register)

    @hook_impl(trylast=True)
    def on_pipeline_error(
        self,
        error: Exception,
        run_params: dict[str, Any],
        pipeline: Pipeline,
        catalog: CatalogProtocol,
    ) -> None:
        """End the run as FAILED or pruned (KILLED); show a user's mistake without a traceback."""
        import mlflow

        from submanifold.runs import tracking

        if self._is_mlflow_enabled:
            self._end_run("KILLED" if isinstance(error, tracking.Pruned) else "FAILED")
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OSError) and hasattr(
                cause, "request"
            ):  # of requests, with the URL
                cause = UserError(tracking.failure(mlflow.get_tracking_uri(), cause)[1])
            is_of_disk = isinstance(cause, OSError) and cause.errno in DISK
            if isinstance(cause, UserError) or is_of_disk:
                raise UserError(str(cause)) from error
            cause = cause.__cause__


def _exit(number: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + number)
