"""Kedro hooks: checks of a run, its record, its lock and its MLflow run.

Every Kedro command imports this module, so torch and MLflow are imported in the functions that use
them.
"""

import logging
import os
import time
from collections import defaultdict
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Node, Pipeline

from submanifold.common.errors import UserError
from submanifold.common.files import DISK, locked
from submanifold.config.loader import ExperimentConfigLoader
from submanifold.inference.records import RECORDS, write_record
from submanifold.runs.checks import check_experiment, check_inputs, is_kept, select_missing

if TYPE_CHECKING:
    from kedro_mlflow.framework.hooks.mlflow_hook import MlflowHook

log = logging.getLogger(__name__)

MEASUREMENTS = {"metrics", "truth", "ood_metrics"}
PAGES = ("report", "ood_report")


class RunHooks:
    """Refuses runs that cannot succeed, records the others, and calls kedro-mlflow's hook.

    - MLflow is connected when a run starts, which may create its database, and not before.
    - A run that computes something holds a lock, whose name is in its record.
    - A run of which all outputs and an MLflow run exist, and every rank but the first, have no
      MLflow run.
    - Metrics and curves are logged although Kedro skips their nodes; the model once.
    """

    def __init__(self) -> None:
        self._is_mlflow_enabled = False  # whether this run has an MLflow run
        self._lock = ExitStack()  # of its record

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
        self._lock.close()  # of a run that Ctrl-C has ended in this process
        check_experiment(loader.experiment, run_params["pipeline_names"] or [])
        for output, part in (("x_train", "data"), ("x_ood", "ood")):
            if output in outputs:
                loader.check_images(part)
        if not is_first_rank:
            return
        missing = select_missing(pipeline, catalog)
        check_inputs(missing if run_params["only_missing_outputs"] else pipeline, catalog)
        if "hierarchy" in outputs:
            self._record(computes=bool(missing.nodes))
        computes = missing.nodes or not run_params["only_missing_outputs"]
        if computes or loader.experiment.register_as or not tracking.is_recorded(loader):
            self._start_mlflow_run(run_params, pipeline, catalog)

    def _record(self, computes: bool) -> None:
        """Write the record of this run, which is *running* while the lock is held."""
        record, name = self._loader.record(), self._loader.experiment.name
        if not computes:
            with suppress(OSError):  # may be read-only
                write_record(self._loader.project, record, name)
            return
        record = replace(record, lock=f".{uuid4().hex}.lock")
        self._lock.enter_context(locked(self._loader.project / RECORDS, "this run", record.lock))
        record = write_record(self._loader.project, record, name)
        log.info("Run %s: if interrupted, the same command continues it", record.name)

    def _start_mlflow_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol
    ) -> None:
        import mlflow

        from submanifold.runs import tracking

        outputs = pipeline.all_outputs()
        is_part = "hierarchy" not in outputs or outputs.isdisjoint(PAGES)
        name = self._loader.run_name + (" (part)" if is_part else "")
        self._mlflow.mlflow_config.tracking.run.name = name
        self._is_mlflow_enabled = True
        with tracking.required(self._loader):
            self._mlflow.before_pipeline_run(run_params, pipeline, catalog)
            mlflow.set_tags(tracking.tags(self._loader, is_part))
            tracking.log_parameters(self._loader)

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
            import mlflow
            from mlflow.exceptions import MlflowException

            from submanifold.runs import tracking

            with tracking.required(self._loader, MlflowException):
                self._log_results(outputs, catalog)
                mlflow.set_tags(tracking.key_tags(self._loader))
                self._mlflow.after_pipeline_run(run_params, pipeline, catalog)
        self._lock.close()
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
        """End the run as FAILED; show a user's mistake without a traceback."""
        import mlflow

        from submanifold.runs import tracking

        if self._is_mlflow_enabled:
            mlflow.end_run("FAILED")
        self._lock.close()
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OSError) and hasattr(cause, "request"):  # of requests
                cause = UserError(tracking.reason(mlflow.get_tracking_uri(), cause))
            is_of_disk = isinstance(cause, OSError) and cause.errno in DISK
            if isinstance(cause, UserError) or is_of_disk:
                raise UserError(str(cause)) from error
            cause = cause.__cause__
