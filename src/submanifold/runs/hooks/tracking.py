"""Opens, completes and closes the MLflow run of a pipeline."""

from typing import TYPE_CHECKING, Any, cast

from click import ClickException
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Node, Pipeline

from submanifold.common.errors import UserError
from submanifold.config.loader import ExperimentConfigLoader
from submanifold.runs.entries import SUMMARIES, log_pages

if TYPE_CHECKING:
    from submanifold.runs.mlflow_run import MlflowRun


class TrackingHooks:
    """Logs the parameters, metrics, artifacts and status of a run.

    Failures of MLflow end a run before its first node; later the run continues without MLflow.
    """

    def __init__(self) -> None:
        self._run: MlflowRun | None = None
        self._computed: set[str] = set()

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Store the configuration."""
        self._loader = cast(ExperimentConfigLoader, context.config_loader)

    @hook_impl(trylast=True)
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline) -> None:
        """Start the MLflow run, and log the parameters."""
        from submanifold.runs.mlflow_run import MlflowRun

        self._computed = set()
        try:
            self._run = MlflowRun(self._loader, run_params, self._params(run_params, pipeline))
        except UserError as error:
            raise ClickException(str(error)) from error

    def _params(self, run_params: dict[str, Any], pipeline: Pipeline) -> dict[str, Any]:
        from submanifold.config.schema import flatten

        params = flatten(self._loader.experiment.parameters())
        if run_params["pipeline_names"] in SUMMARIES:
            return {k: v for k, v in params.items() if f"params:{k}" in pipeline.inputs()}
        keys = {f"keys.{name}": key for name, key in self._loader.artifact_keys.items()}
        return params | keys

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """Store the names of the computed outputs; the others existed."""
        self._computed.update(node.outputs)

    @hook_impl(tryfirst=True)
    def after_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Log the metrics and artifacts of the run, including those of skipped nodes."""
        try:
            if self._run is not None:
                self._run.complete(pipeline, catalog, self._computed)
        finally:
            self._run = None
            log_pages(pipeline, catalog)

    @hook_impl(trylast=True)
    def on_pipeline_error(self, error: Exception) -> None:
        """Close the MLflow run, and show a user's mistake without a traceback."""
        if self._run is not None:
            self._run.fail(error)
            self._run = None
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, UserError):
                raise ClickException(str(cause)) from error
            cause = cause.__cause__
