"""Failures of MLflow: before a run they end it with one message; later the run continues."""

import contextlib
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import mlflow
from click import ClickException
from kedro.framework.hooks import hook_impl

from submanifold.common.errors import UserError
from submanifold.runs.store import is_store_failure, unusable_message
from submanifold.runs.tracking import warn_once

RETRIES = "3"  # some seconds; MLflow's default takes minutes


class FaultHooks:
    """Handles failures of MLflow in all hooks, including those of kedro-mlflow."""

    @hook_impl(wrapper=True, tryfirst=True)
    def after_context_created(self) -> Generator[None]:
        """Raise one message if MLflow cannot be used, or cannot start a run."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", RETRIES)
        with _mlflow_required():
            return (yield)

    before_pipeline_run = after_context_created

    @hook_impl(wrapper=True, tryfirst=True)
    def after_pipeline_run(self) -> Generator[None]:
        """Continue with a warning if MLflow fails."""
        with mlflow_optional():
            return (yield)

    @hook_impl(wrapper=True, tryfirst=True)
    def on_pipeline_error(self, error: Exception) -> Generator[None]:
        """Show a user's mistake without a traceback, and never an error of MLflow after it."""
        with mlflow_optional():
            yield
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, UserError):
                raise ClickException(str(cause)) from error
            cause = cause.__cause__


@contextmanager
def _mlflow_required() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_store_failure(error):
            raise
        _end_runs()
        raise ClickException(unusable_message(mlflow.get_tracking_uri(), error)) from error


@contextmanager
def mlflow_optional() -> Iterator[None]:
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
