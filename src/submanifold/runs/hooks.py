"""What happens around a run: checks, messages a user can act on, and MLflow's bookkeeping.

Every command of Kedro's imports this module, so torch and MLflow load where a run needs them.
"""

import atexit
import contextlib
import logging
import os
import signal
import socket
import threading
import types
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from click import ClickException
from click.exceptions import Exit
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.framework.project import pipelines
from kedro.io import CatalogProtocol
from kedro.pipeline import Node, Pipeline

from submanifold.common.errors import UserError, error_prefix
from submanifold.common.files import is_alive
from submanifold.config.loader import ExperimentConfigLoader

if TYPE_CHECKING:
    from submanifold.runs.tracking import Curves

log = logging.getLogger(__name__)

START_RETRIES, END_RETRIES = 2, 4  # some seconds; MLflow's own count takes four minutes

ARTIFACTS = (
    "report",
    "metrics",
    "truth",
    "metrics_table",
    "samples",
    "samples_figure",
    "samples_cool_figure",
    "rejection_figure",
    "dimensions_figure",
    "manifold_figure",
    "curves_figure",
    "hierarchy",
    "manifest",
    "comparison",
    "comparison_table",
    "sweep_table",
    "sweep_figure",
    "study_table",
    "study_figure",
    "study_page",
    "ood_report",
    "ood_metrics",
    "ood_scores",
    "dimension_report",
    "dimension_metrics",
)


class ExperimentHooks:
    """Fits the pipelines to the parameters, and stops what cannot work before it starts."""

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: KedroContext) -> None:
        """Rebuild the pipelines for the phases and the kind of data that the parameters have.

        And make MLflow's database before kedro-mlflow opens it.
        """
        from submanifold.pipeline_registry import ABOUT, register_pipelines
        from submanifold.runs.store import create_store

        loader = cast(ExperimentConfigLoader, context.config_loader)
        self._context = context
        try:
            self._experiment, _ = loader.experiment, loader.keys_of
            with error_prefix("mlflow"):
                self._uri = loader["mlflow"]["server"]["mlflow_tracking_uri"]
                create_store(self._uri)
        except UserError as error:
            raise ClickException(str(error)) from error
        experiment = self._experiment
        about = (
            experiment.trained, experiment.synthetic, experiment.rotations,
            experiment.ood is not None,
        )  # fmt: skip
        said = ABOUT.set(about)
        try:
            pipelines.configure(register_pipelines.__module__)
            dict(pipelines)  # loads them
        finally:
            ABOUT.reset(said)

    @hook_impl(tryfirst=True)
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol
    ) -> None:
        """Check what only this machine and this command can tell."""
        from submanifold.common.device import choose_device
        from submanifold.runs.store import check_room

        _check_catalog(pipeline, catalog)
        experiment, names = self._experiment, run_params["pipeline_names"] or ["__default__"]
        if experiment.sweep is not None and "sweep" not in names:
            raise ClickException(
                f"sweep={experiment.sweep} would have no effect: only --pipeline=sweep draws one. "
                "Give it to that one, or make a sweep with kedro sweep."
            )
        if experiment.study is not None and "study" not in names:
            raise ClickException(
                f"study={experiment.study} would have no effect: only --pipeline=study draws one. "
                "Give it to that one, or make a study with kedro sweep --study."
            )
        if experiment.ood is not None and "ood" not in names:
            raise ClickException(
                f"ood={experiment.ood} would have no effect: only --pipeline=ood "
                "looks for them. Leave it out, or run that one."
            )
        if experiment.synthetic and (wrong := {"ood", "dimension"} & {*names}):
            raise ClickException(
                f"--pipeline={wrong.pop()} is of images, but dataset={experiment.dataset} are "
                "points. Choose a dataset of images with --params=dataset=<name>."
            )
        if experiment.ood is None and "ood" in names:
            raise ClickException(
                "--pipeline=ood needs to know them: the name of a dataset in "
                "conf/base/parameters.yml, or a folder or zip of pictures. Give it with "
                "--params=ood=mnist."
            )
        if _only_shows(run_params):
            return
        for name in ["hierarchical" if name == "__default__" else name for name in names]:
            if name in ("hierarchical", "joint") and name != experiment.pipeline:
                raise ClickException(
                    f"method={experiment.method} trains its stages "
                    f"{'at once' if experiment.pipeline == 'joint' else 'phase by phase'}, "
                    f"which --pipeline={experiment.pipeline} runs, not --pipeline={name}. Change "
                    "either; the method's phases in conf/base/parameters.yml say what it trains."
                )
        if _is_finished_for_good(pipeline, catalog):
            log.info("All of it is there, and may only be read: nothing is made anew")
            _tell_pages(pipeline, catalog)
            raise Exit(0)
        weights = experiment.evaluation.inception_weights
        try:
            with error_prefix("mlflow"):
                check_room(self._uri)
            choose_device(experiment.device)
            self._check_data(pipeline, catalog)
            if weights not in (None, "auto", "download"):
                from submanifold.evaluation.frechet import given_weights

                with error_prefix("evaluation"):
                    given_weights(weights)
            self._continue_job()
            if experiment.launch.machines > 1:
                from submanifold.runs.launch import board

                board(
                    experiment.launch, self._context.project_path
                )  # others that join are let go at the end
        except UserError as error:
            raise ClickException(str(error)) from error

    def _check_data(self, pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Check images that the run will prepare."""
        from submanifold.data.preprocess import check
        from submanifold.data.settings import ImageSettings

        experiment = self._experiment
        wanted = (
            ("data", "x_train", "data_folder", experiment.data, True),
            ("ood", "x_ood", "ood_folder", experiment.ood_data, False),
        )
        for prefix, output, folder, settings, trained_on in wanted:
            if output in pipeline.all_outputs() and isinstance(settings, ImageSettings):
                with error_prefix(prefix):
                    raw_folder = _path(catalog, "raw_folder")
                    check(settings, _path(catalog, folder), raw_folder, trained_on)

    def _continue_job(self) -> None:
        """Have kedro-mlflow go on with the run that the job's earlier commands have made."""
        if job := os.environ.get("SUBMANIFOLD_JOB"):
            from submanifold.runs.tracking import run_of_job

            tracking = cast(Any, self._context).mlflow.tracking
            key = cast(ExperimentConfigLoader, self._context.config_loader).keys_of["run"]
            tracking.run.id = run_of_job(job, key, tracking.experiment._experiment.experiment_id)

    @hook_impl(trylast=True)
    def on_pipeline_error(self, error: Exception) -> None:
        """Show a mistake of the user's as a message, without a traceback."""
        _show_mistake(error)


class TrackingHooks:
    """Makes an MLflow run complete: its name, parameters, metrics, artifacts and status.

    kedro-mlflow opens and closes the run. What it leaves out, because Kedro skipped a node or the
    process was told to stop, is done here.
    """

    def __init__(self) -> None:
        self._run_id: str | None = None
        self._ran: set[str] = set()

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Keep what the run is about."""
        loader = cast(ExperimentConfigLoader, context.config_loader)
        self._experiment, self._keys = loader.experiment, loader.keys_of

    @hook_impl(trylast=True)
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline) -> None:
        """Log all parameters, and be ready for Ctrl-C and SIGTERM."""
        import mlflow

        from submanifold.config import flatten
        from submanifold.runs.tracking import JOB, curves_of, observer

        run = mlflow.active_run()
        if run is None:
            return
        self._run_id, self._ran = run.info.run_id, set()
        curves_of.cache_clear()  # those of an earlier command of its job are closed
        owner = {"host": socket.gethostname(), "pid": str(os.getpid())}
        mlflow.set_tags({f"submanifold.{name}": value for name, value in owner.items()})
        if (by := observer()) is not None:
            mlflow.set_tags(by.tags)
            by.on_run(self._run_id)
        _close_orphans(run.info.experiment_id)  # none is this, which a dead process may have begun
        if _only_shows(run_params):
            name = f"{self._experiment.dataset}-{run_params['pipeline_names'][0]}"
            mlflow.set_tag("mlflow.runName", name)
            own = flatten(self._experiment.parameters())
            mlflow.log_params(
                {name: own[name] for name in own if f"params:{name}" in pipeline.inputs()}
            )
        else:
            if job := os.environ.get("SUBMANIFOLD_JOB"):
                mlflow.set_tag(JOB, job)
            params = {
                **flatten(self._experiment.parameters()),
                **{f"keys.{name}": key for name, key in self._keys.items()},
            }
            # MLflow takes no other value, such as the device that a job goes on with
            mlflow.log_params({k: v for k, v in params.items() if k not in run.data.params})
        # registered after mlflow's own exit handler, so it runs before it
        atexit.register(self._close_interrupted)
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            signal.signal(signal.SIGTERM, _exit_on_signal)

    @hook_impl(tryfirst=True)
    def before_node_run(self, inputs: dict[str, Any]) -> None:
        """Keep the parameters from kedro-mlflow: they are logged, and no node waits for MLflow."""
        for name in [name for name in inputs if name.startswith("params:")]:
            del inputs[name]

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """Keep the names of what was computed: the rest was there already."""
        self._ran.update(node.outputs)

    @hook_impl(tryfirst=True)
    def after_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Log the metrics and artifacts of the whole run, of nodes that were skipped too."""
        if self._run_id is not None:
            from submanifold.runs.tracking import curves_of

            curves, self._run_id = curves_of(self._run_id), None
            try:
                self._log_all(pipeline.all_outputs(), catalog, curves)
            finally:
                curves.close()
                _tell_pages(pipeline, catalog)
        else:
            _tell_pages(pipeline, catalog)

    def _log_all(
        self, outputs: Collection[str], catalog: CatalogProtocol, curves: "Curves"
    ) -> None:
        import mlflow

        from submanifold.training.phases import replay

        for name in ("metrics", "truth", "ood_metrics", "dimension_metrics"):
            if _made(outputs, catalog, name):
                measured = catalog.load(name)
                mlflow.log_metrics(_numbers(measured))
                _log_curve(measured.get("curve"), curves)
        for name in sorted(outputs):
            if name.endswith("history") and catalog.exists(name):
                history = catalog.load(name)
                named = {key: history[key] for key in ("seconds", "best_step")}
                mlflow.log_metrics({f"{history['name']}.{k}": v for k, v in named.items()})
                if name not in self._ran:
                    replay(history, curves.log)
        for name in ARTIFACTS:
            if _made(outputs, catalog, name):
                mlflow.log_artifact(str(_path(catalog, name)))
        if not self._experiment.synthetic and _made(outputs, catalog, "hierarchy"):
            from submanifold.inference.served import log_model

            log_model(_path(catalog, "hierarchy"), self._experiment.register_as)

    @hook_impl
    def on_pipeline_error(self, error: Exception) -> None:
        """Send what is waiting, and leave the status to kedro-mlflow, which has set FAILED.

        What was pruned is no failure, and KILLED.
        """
        if self._run_id is not None:
            import mlflow

            from submanifold.runs.tracking import Pruned, curves_of

            curves_of(self._run_id).close()
            if isinstance(error, Pruned):
                client = mlflow.MlflowClient()
                client.set_tag(self._run_id, "submanifold.pruned", str(error))
                client.set_terminated(self._run_id, "KILLED")
        self._run_id = None

    def _close_interrupted(self) -> None:
        import mlflow

        if self._run_id is not None and mlflow.active_run() is not None:
            from submanifold.runs.tracking import curves_of

            curves_of(self._run_id).close()
            with _going_on():
                mlflow.end_run("KILLED")


class FaultHooks:
    """Stands around all that talks to MLflow, kedro-mlflow too.

    Where MLflow cannot be used, a run does not start, with one message; one that has started goes
    on, with a warning.
    """

    @hook_impl(wrapper=True, tryfirst=True)
    def after_context_created(self) -> Generator[None]:
        """Show one message where there is no MLflow."""
        with _told():
            return (yield)

    @hook_impl(wrapper=True, tryfirst=True)
    def before_pipeline_run(self) -> Generator[None]:
        """Show one message where MLflow takes no run."""
        with _told():
            return (yield)

    @hook_impl(wrapper=True, tryfirst=True)
    def after_pipeline_run(self) -> Generator[None]:
        """Keep what was made, although MLflow takes no news of it."""
        with _going_on():
            return (yield)

    @hook_impl(wrapper=True, tryfirst=True)
    def on_pipeline_error(self, error: Exception) -> Generator[None]:
        """Let the error that has ended a run be seen, not one of MLflow's after it."""
        with _going_on():
            return (yield)
        _show_mistake(error)


@contextmanager
def _told() -> Iterator[None]:
    """Show that MLflow cannot be used as a mistake of the user's."""
    try:
        with _retrying(START_RETRIES):
            yield
    except Exception as error:
        import mlflow

        from submanifold.runs.store import is_out_of_reach, out_of_reach

        if isinstance(error, UserError) or not is_out_of_reach(error):
            raise
        _end_runs()
        raise ClickException(f"mlflow.{out_of_reach(mlflow.get_tracking_uri(), error)}") from error


@contextmanager
def _going_on() -> Iterator[None]:
    """Go on, with a warning, where MLflow cannot be used."""
    try:
        with _retrying(END_RETRIES):
            yield
    except Exception as error:
        from submanifold.runs.store import is_out_of_reach
        from submanifold.runs.tracking import warn_of_loss

        if not is_out_of_reach(error):
            raise
        warn_of_loss(error)
        _end_runs()


def _end_runs() -> None:
    """End what runs of MLflow's are left, whether or not it hears of it."""
    import mlflow

    with _retrying(0):
        while mlflow.active_run() is not None:
            with contextlib.suppress(Exception):
                mlflow.end_run("FAILED")


@contextmanager
def _retrying(count: int) -> Iterator[None]:
    """Let MLflow's requests be sent again so often, where it would by itself take minutes."""
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    before = os.environ.get(name)
    os.environ[name] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _show_mistake(error: Exception) -> None:
    """Raise a mistake of the user's, if it has caused an error, as a message."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            raise ClickException(str(cause)) from error
        cause = cause.__cause__


def _only_shows(run_params: dict[str, Any]) -> bool:
    """Whether a run trains nothing, but shows others: its own parameters are not about it."""
    return run_params["pipeline_names"] in (["compare"], ["sweep"], ["study"])


def _check_catalog(pipeline: Pipeline, catalog: CatalogProtocol) -> None:
    """Raise one message where the catalog lacks a dataset: each has an entry in conf/."""
    wanted = (name for name in pipeline.datasets() if not name.startswith("params:"))
    if missing := sorted(name for name in wanted if name not in catalog):
        raise ClickException(
            f"conf/base/catalog.yml: expected an entry for every dataset, got none for "
            f"{', '.join(missing[:3])}{f' and {len(missing) - 3} more' if missing[3:] else ''}. "
            "Restore the file."
        )


def _is_finished_for_good(pipeline: Pipeline, catalog: CatalogProtocol) -> bool:
    """Whether all that a run would end with is there, and it could not be written again."""
    made = {_path(catalog, name).parent for name in pipeline.all_outputs()}
    closed = [each for each in made if each.exists() and not os.access(each, os.W_OK)]
    return bool(closed) and all(map(catalog.exists, pipeline.outputs()))


def _tell_pages(pipeline: Pipeline, catalog: CatalogProtocol) -> None:
    for name in ("report", "comparison", "study_page", "ood_report", "dimension_report"):
        if name in pipeline.all_outputs():
            log.info("The %s is %s", name.replace("_", " "), _path(catalog, name))


def _exit_on_signal(number: int, frame: types.FrameType | None) -> None:
    raise SystemExit(128 + number)


def _close_orphans(experiment_id: str) -> None:
    """Mark runs of this machine KILLED whose process is gone: SIGKILL leaves them RUNNING."""
    import mlflow

    running = mlflow.search_runs(
        [experiment_id],
        f"attributes.status = 'RUNNING' and tags.`submanifold.host` = '{socket.gethostname()}'",
        output_format="list",
    )
    for run in running:
        if not is_alive(int(run.data.tags["submanifold.pid"])):
            mlflow.MlflowClient().set_terminated(run.info.run_id, "KILLED")


def _made(outputs: Collection[str], catalog: CatalogProtocol, name: str) -> bool:
    return name in outputs and catalog.exists(name)


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """The numbers among the metrics, a measured value by its name alone."""
    from submanifold.config import flatten

    flat = flatten(metrics)
    named = {name.removesuffix(".value"): value for name, value in flat.items()}
    return {f"test.{k}": v for k, v in named.items() if isinstance(v, int | float)}


def _log_curve(curve: dict[str, Any] | None, curves: "Curves") -> None:
    """Log the error of the projection by dimension, which takes the place of the step."""
    if curve is None:
        return
    for name, dims in ("mse", "dims"), ("pca_mse", "dims"), ("nearest_mse", "nearest_dims"):
        for dim, value in zip(curve[dims], curve[name], strict=True):
            if value is not None:
                curves.add({f"test.by_dimension.{name}": value}, dim)


def _path(catalog: CatalogProtocol, name: str) -> Path:
    dataset = catalog[name]
    return Path(getattr(dataset, "_filepath", None) or dataset._path)
