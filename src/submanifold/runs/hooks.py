"""Kedro hooks: checks of a run and of its files, its record and its MLflow run.

Every Kedro command imports this module, so torch is imported in the functions that use it.
"""

import atexit
import json
import logging
import os
import platform
import signal
import threading
import time
from collections import defaultdict
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
from mlflow.exceptions import MlflowException
from requests import RequestException

from submanifold.common.errors import UserError, error_prefix, unexpected
from submanifold.common.files import checksum_path, is_alive, is_unchanged, locked, write_checksum
from submanifold.config.loader import ExperimentConfigLoader
from submanifold.inference.records import write_record
from submanifold.runs.tracking import Pruned, failure, log_history, observer

if TYPE_CHECKING:
    from submanifold.config.schema import Experiment

log = logging.getLogger(__name__)

SELECTIONS = (
    "from_nodes",
    "to_nodes",
    "node_names",
    "from_inputs",
    "to_outputs",
    "tags",
    "namespaces",
)
"""Options of ``kedro run`` that select a part of a pipeline."""
MEASUREMENTS = {"metrics", "truth", "ood_metrics", "dimension_metrics"}
"""Entries of the catalog whose numbers are metrics of MLflow."""


class FileHooks:
    """Keeps a checksum next to each file; Kedro's datasets write in place and check nothing.

    While a file is written, its process is noted in place of the checksum. A file whose writing was
    interrupted, or that has changed, is deleted before a run that writes it.
    """

    @hook_impl
    def after_catalog_created(self, catalog: CatalogProtocol) -> None:
        self._catalog = catalog

    @hook_impl(tryfirst=True)
    def before_pipeline_run(self, pipeline: Pipeline) -> None:
        for path in filter(None, map(self._path, pipeline.all_outputs())):
            if path.exists() and not is_unchanged(path):
                note = checksum_path(path).read_text()
                if not (note.isdigit() and is_alive(int(note))):
                    log.warning("%s is damaged; it is written again", path)
                    path.unlink()

    @hook_impl
    def before_dataset_saved(self, dataset_name: str) -> None:
        if path := self._path(dataset_name):
            path.parent.mkdir(parents=True, exist_ok=True)
            checksum_path(path).write_text(str(os.getpid()))

    @hook_impl
    def after_dataset_saved(self, dataset_name: str) -> None:
        if path := self._path(dataset_name):
            write_checksum(path)

    @hook_impl
    def before_dataset_loaded(self, dataset_name: str) -> None:
        path = self._path(dataset_name)
        if path and path.exists() and not is_unchanged(path):
            fix = "Delete the file and repeat the command, which computes it again"
            raise unexpected(path, "the content that was written", "another", fix)

    def _path(self, name: str) -> Path | None:
        dataset = None if name.startswith("params:") else self._catalog.get(name)
        path = getattr(dataset, "_filepath", None)
        return None if path is None or getattr(dataset, "CHECKS_FILE", False) else Path(path)


class RunHooks(MlflowHook):
    """Refuses runs that cannot succeed, records the others, and adds to kedro-mlflow's hook.

    - A run of which all outputs and a finished MLflow run exist, and every rank but the first, have
      none.
    - Parameters are those of the experiment, flattened, also of nodes that are skipped; the plugin
      would log a typed parameter as one string.
    - Metrics of the tables, and curves of phases that are not trained again, are logged although
      Kedro skips their nodes. The model is logged once with a signature.
    - An interrupted run is KILLED, rather than FINISHED or RUNNING; SIGTERM interrupts it, too. The
      next run on the machine marks one that could not do so itself.
    - The name of a run of some nodes ends with ``(part)``.
    """

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        self._loader = cast(ExperimentConfigLoader, context.config_loader)
        _ = self._loader.run_name
        self._is_first_rank = int(os.environ.get("RANK", 0)) == 0
        if self._is_first_rank:
            data = self._loader.project / "data"
            with _required(self._loader), locked(data, "the database of MLflow"):  # may be new
                super().after_context_created(context)

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol
    ) -> None:
        loader, outputs = self._loader, pipeline.all_outputs()
        self._seconds: dict[str, float] = defaultdict(float)
        _check(loader.experiment, run_params["pipeline_names"] or [])
        for output, part in (("x_train", "data"), ("x_ood", "ood")):
            if output in outputs:
                loader.check_images(part)
        is_finished = self._is_first_rank and all(map(catalog.exists, outputs))
        if "hierarchy" in outputs and self._is_first_rank:
            with suppress(OSError) if is_finished else nullcontext():  # may be read-only
                record = write_record(loader.project, loader.record(), loader.experiment.name)
                if not is_finished:
                    log.info("Run %s: if interrupted, the same command continues it", record.name)
        is_skipped = is_finished and run_params["only_missing_outputs"] and self._is_recorded()
        is_registered = loader.experiment.register_as is not None
        self._is_mlflow_enabled = self._is_first_rank and (not is_skipped or is_registered)
        if self._is_mlflow_enabled:
            self._start_run(run_params, pipeline, catalog)

    def _is_recorded(self) -> bool:
        """Whether MLflow has a finished run of these artifacts: one may be killed at its end."""
        keys = self._loader.artifact_keys
        query = "attributes.status = 'FINISHED'"
        for name in {"run", "ood_run"} & keys.keys():
            query += f" and params.`keys.{name}` = '{keys[name]}'"
        return bool(mlflow.search_runs(filter_string=query, max_results=1, output_format="list"))

    def _start_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol
    ) -> None:
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.meta_dataset import MetaDataset

        from submanifold.config.schema import flatten

        experiment = self._loader.experiment
        self._computed: set[str] = set()
        part = " (part)" if any(run_params.get(option) for option in SELECTIONS) else ""
        self.mlflow_config.tracking.run.name = self._loader.run_name + part
        tags = {"dataset": experiment.data_name, "method": experiment.method,
                "process": f"{platform.node()}:{os.getpid()}", "seed": str(experiment.seed),
                **observer.get().tags}  # fmt: skip
        # MLflow creates the run with these tags: it may be killed before it could set them
        context = json.loads(os.environ.get("MLFLOW_RUN_CONTEXT", "{}")) | tags
        os.environ["MLFLOW_RUN_CONTEXT"] = json.dumps(context)
        params = experiment.parameters() | {"keys": self._loader.artifact_keys}
        key = self._loader.artifact_keys["data"]
        source = CodeDatasetSource({"dataset": experiment.dataset, "key": key})
        digest = key.rpartition("-")[2]
        data = MetaDataset(source, experiment.data_name, digest)  # type: ignore[abstract]
        # at the exit no interrupted call of MLflow locks its database any more
        atexit.register(mlflow.end_run, "KILLED")
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _exit)
        with _required(self._loader):
            _end_killed_runs()
            super().before_pipeline_run(run_params, pipeline, catalog)
            mlflow.set_tags(tags)  # also of a run that an orchestrator created
            mlflow.log_params({name: str(value)[:500] for name, value in flatten(params).items()})
            mlflow.log_input(data, context="training")
        observer.get().on_run(self.run_id)

    @hook_impl
    def before_node_run(self) -> None:
        """Log no parameters of nodes: all were logged at the start."""
        self._node_started = time.monotonic()

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        seconds = time.monotonic() - self._node_started
        self._seconds[node.namespace or node.name] += seconds
        if self._is_mlflow_enabled:
            self._computed.update(node.outputs)

    @hook_impl(trylast=True)
    def after_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol
    ) -> None:
        if self._is_mlflow_enabled:
            with _required(self._loader, MlflowException):
                self._log_results(pipeline.all_outputs(), catalog)
                atexit.unregister(mlflow.end_run)
                super().after_pipeline_run(run_params, pipeline, catalog)
        for name in sorted(pipeline.all_outputs()):
            if (path := Path(catalog[name]._filepath)).suffix == ".html":
                log.info("The %s is %s", name.replace("_", " "), path)
        if self._seconds:
            parts = (f"{part} {seconds:.0f} s" for part, seconds in self._seconds.items())
            log.info("Duration of the parts: %s", ", ".join(parts))

    def _log_results(self, outputs: set[str], catalog: CatalogProtocol) -> None:
        from submanifold.evaluation.metrics import numbers
        from submanifold.runs.pyfunc import log_model

        experiment, step = self._loader.experiment, 0
        for history in (f"{name}.history" for name in experiment.trainings):
            if history in outputs and catalog.exists(history):
                content = catalog.load(history)
                if history not in self._computed:
                    log_history(content, step, self.run_id)
                step += content["steps"]
        for name in MEASUREMENTS & outputs:
            values = numbers(catalog.load(name))
            mlflow.log_metrics({f"test.{key}": value for key, value in values.items()})
        register = experiment.register_as
        if "hierarchy" in self._computed or (register and "hierarchy" in outputs):
            log_model(Path(catalog["hierarchy"]._filepath), register)

    @hook_impl(trylast=True)
    def on_pipeline_error(
        self, error: Exception, run_params: dict[str, Any], pipeline: Pipeline,
        catalog: CatalogProtocol,
    ) -> None:  # fmt: skip
        """End the run as FAILED or pruned (KILLED); show a user's mistake without a traceback."""
        if self._is_mlflow_enabled:
            atexit.unregister(mlflow.end_run)
            mlflow.end_run("KILLED" if isinstance(error, Pruned) else "FAILED")
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, RequestException):  # it has the URL
                cause = OSError(failure(mlflow.get_tracking_uri(), cause)[1])
            if isinstance(cause, UserError | OSError):  # such as a full disk
                raise UserError(str(cause)) from error
            cause = cause.__cause__


def _end_killed_runs() -> None:
    """Mark the runs of processes that were killed on this machine."""
    here = f"attributes.status = 'RUNNING' and tags.process LIKE '{platform.node()}:%'"
    for run in mlflow.search_runs(filter_string=here, output_format="list"):
        if not is_alive(int(run.data.tags["process"].rpartition(":")[2])):
            mlflow.MlflowClient().set_terminated(run.info.run_id, "KILLED")


@contextmanager
def _required(loader: ExperimentConfigLoader, errors: Any = Exception) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except errors as error:
        address, reason = failure(str(loader["mlflow"]["server"]["mlflow_tracking_uri"]), error)
        fix = ("Start its server, free its database or its disk, or change MLFLOW_TRACKING_URI or "
               "server.mlflow_tracking_uri in conf/base/mlflow.yml")  # fmt: skip
        expected = "a tracking URI that can be used"
        raise unexpected("mlflow.yml", expected, f"{address} ({reason})", fix) from None


def _check(experiment: "Experiment", pipelines: list[str]) -> None:
    from submanifold.common.device import choose_device

    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if experiment.is_conditional and ranks > 1:
        expected = "one process with data.condition"
        raise unexpected("torchrun", expected, ranks, "Use submanifold run")
    if experiment.kind == "synthetic" and (wrong := {"ood", "dimension"} & {*pipelines}):
        fix = "Choose another with --params=dataset=<name>"
        got = f"dataset={experiment.dataset}"
        raise unexpected(f"--pipeline={wrong.pop()}", "images or a table", got, fix)
    if experiment.ood is None and "ood" in pipelines:
        expected = "a dataset, or a folder or zip of images; for a table, another table"
        raise unexpected("ood", expected, None, "Change it with --params=ood=<name or path>")
    choose_device(experiment.device)
    weights = experiment.evaluation.inception_weights
    if weights not in (None, "download"):
        from submanifold.evaluation.features import check_weights

        with error_prefix("evaluation"):
            check_weights(weights)


def _exit(number: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + number)
