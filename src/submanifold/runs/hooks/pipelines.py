"""Adapts the pipelines to the parameters, and checks a command before it runs."""

import logging
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

from click import ClickException
from click.exceptions import Exit
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.framework.project import pipelines
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from submanifold.common.errors import UserError, error_prefix
from submanifold.common.imports import without_garbage_collection
from submanifold.config.loader import ExperimentConfigLoader, current_experiment
from submanifold.inference.records import write_record
from submanifold.runs.entries import SUMMARIES, log_pages, path_of

if TYPE_CHECKING:
    from submanifold.config.schema import Experiment

log = logging.getLogger(__name__)


class ExperimentHooks:
    """Loads the pipelines of an experiment, and rejects commands that cannot succeed."""

    def __init__(self) -> None:
        self._threads = ExitStack()

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: KedroContext) -> None:
        """Load the pipelines."""
        loader = cast(ExperimentConfigLoader, context.config_loader)
        self._context, self._loader = context, loader
        try:
            experiment, _ = loader.experiment, loader.run_name
        except UserError as error:
            raise ClickException(str(error)) from error
        self._experiment = experiment
        token = current_experiment.set(experiment)
        try:
            pipelines.configure("submanifold.pipeline_registry")
            with without_garbage_collection():
                dict(pipelines)  # loads them
        finally:
            current_experiment.reset(token)

    @hook_impl(tryfirst=True)
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol
    ) -> None:
        """Check the command, the data and this machine."""
        experiment = self._experiment
        _check_catalog(pipeline, catalog)
        names = run_params["pipeline_names"]
        _check_command(experiment, names or ["__default__"])
        if names not in SUMMARIES and _is_complete_and_read_only(pipeline, catalog):
            log.info("All outputs exist and are read-only: nothing to do")
            log_pages(pipeline, catalog)
            raise Exit(0)
        try:
            if names not in SUMMARIES:
                self._prepare_machine()
                _check_images(experiment, pipeline, catalog)
            self._connect()
            if names in SUMMARIES:
                return
            if experiment.launch.machines > 1:
                from submanifold.runs.launch import job_board

                job_board(experiment.launch, self._context.project_path)  # until the process ends
            if "hierarchy" in pipeline.all_outputs():
                write_record(self._loader.project, self._loader.record())
        except UserError as error:
            raise ClickException(str(error)) from error

    @hook_impl
    def after_pipeline_run(self) -> None:
        """Restore the number of threads."""
        self._threads.close()

    on_pipeline_error = after_pipeline_run

    def _prepare_machine(self) -> None:
        from submanifold.common.device import choose_device
        from submanifold.common.threads import use_threads

        self._threads.enter_context(use_threads(self._experiment.threads))
        choose_device(self._experiment.device)
        weights = self._experiment.evaluation.inception_weights
        if weights not in (None, "auto", "download"):
            from submanifold.evaluation.features import check_weights

            with error_prefix("evaluation"):
                check_weights(weights)

    def _connect(self) -> None:
        from submanifold.runs.store import check_writable, connect

        settings = self._loader["mlflow"]
        connect(settings)
        check_writable(settings["uri"])


def _check_command(experiment: "Experiment", names: list[str]) -> None:
    for parameter in ("sweep", "study", "ood"):
        value = getattr(experiment, parameter)
        if value is not None and parameter not in names:
            raise ClickException(
                f"{parameter}={value} would have no effect: only --pipeline={parameter} uses it. "
                "Leave it out, or run that pipeline."
            )
    if experiment.kind == "points" and (wrong := {"ood", "dimension"} & {*names}):
        raise ClickException(
            f"--pipeline={wrong.pop()} needs images or a table, and dataset={experiment.dataset} "
            "consists of points. Choose another dataset with --params=dataset=<name>."
        )
    if experiment.kind != "images" and "restore" in names:
        raise ClickException(
            f"--pipeline=restore needs images, got dataset={experiment.dataset}. Choose a dataset "
            "of images with --params=dataset=<name>."
        )
    if (charts := experiment.model.charts) > 1 and "restore" in names:
        raise ClickException(
            f"--pipeline=restore needs a model without charts, got charts={charts}. Set "
            "--params=charts=1."
        )
    if experiment.ood is None and "ood" in names:
        raise ClickException(
            "--pipeline=ood needs --params=ood=<dataset>: a name in conf/base/parameters.yml, or a "
            "folder or zip of images, such as ood=mnist; for a table, another table."
        )
    for name in ["hierarchical" if name == "__default__" else name for name in names]:
        if name in ("hierarchical", "joint") and name != experiment.pipeline:
            raise ClickException(
                f"--pipeline={name} does not train method={experiment.method}. Use "
                f"--pipeline={experiment.pipeline}, or another method in conf/base/parameters.yml."
            )


def _check_catalog(pipeline: Pipeline, catalog: CatalogProtocol) -> None:
    """Check that every dataset of a pipeline has an entry in the catalog."""
    datasets = (name for name in pipeline.datasets() if not name.startswith("params:"))
    if missing := sorted(name for name in datasets if name not in catalog):
        raise ClickException(
            f"conf/base/catalog.yml: expected an entry for every dataset, got none for "
            f"{', '.join(missing[:3])}{f' and {len(missing) - 3} more' if missing[3:] else ''}. "
            "Restore the file."
        )


def _check_images(experiment: "Experiment", pipeline: Pipeline, catalog: CatalogProtocol) -> None:
    from submanifold.data.prepare import check
    from submanifold.data.settings import ImageSettings

    checks = (
        ("data", "x_train", "data_folder", experiment.data, True),
        ("ood", "x_ood", "ood_folder", experiment.ood_data, False),
    )
    for prefix, output, folder, settings, trained_on in checks:
        if output in pipeline.all_outputs() and isinstance(settings, ImageSettings):
            with error_prefix(prefix):
                raw_folder = path_of(catalog, "raw_folder")
                check(settings, path_of(catalog, folder), raw_folder, trained_on)


def _is_complete_and_read_only(pipeline: Pipeline, catalog: CatalogProtocol) -> bool:
    folders = {path_of(catalog, name).parent for name in pipeline.all_outputs()}
    read_only = any(each.exists() and not os.access(each, os.W_OK) for each in folders)
    return read_only and all(map(catalog.exists, pipeline.outputs()))
