"""The project's pipelines, for the experiment that the parameters select."""

import os

from click import ClickException
from kedro.pipeline import Pipeline

from submanifold.config.loader import LOADER_ARGS, ExperimentConfigLoader, current_experiment
from submanifold.config.project import conf_source, project_folder
from submanifold.config.schema import Experiment
from submanifold.pipelines import (
    compare,
    data,
    dimension,
    evaluation,
    ood,
    reporting,
    restore,
    study,
    sweep,
    training,
)

NAMES = (
    *("data", "hierarchical", "joint", "compare", "sweep", "study"),
    *("ood", "dimension"),  # not of points
    "restore",  # of images
)
"""All pipelines that an experiment may have."""


def register_pipelines() -> dict[str, Pipeline]:
    """Build the pipelines for the current session's experiment, or for that of conf/."""
    experiment = current_experiment.get() or _configured()
    shown = {
        "compare": compare.create_pipeline(),
        "sweep": sweep.create_pipeline(),
        "study": study.create_pipeline(),
    }
    if experiment is None:
        return {**shown, "__default__": Pipeline([])}
    trained = training.create_pipeline(experiment)
    histories = {name: f"{name}.history" for name in experiment.phases}
    full = (
        trained
        + evaluation.create_pipeline(histories, experiment.kind, experiment.is_conditional)
        + reporting.create_pipeline(histories, experiment.kind)
    )
    # a hook refuses those that need another kind of data
    more = {"ood": trained, "dimension": full, "restore": trained}
    if experiment.kind != "points":
        more["dimension"] = full + dimension.create_pipeline()
        if experiment.ood is not None:
            more["ood"] = trained + ood.create_pipeline(experiment.kind)
    if experiment.kind == "images":
        more["restore"] = trained + restore.create_pipeline()
    return {
        "data": data.create_pipeline(experiment.kind),
        "hierarchical": full,
        "joint": full,
        **shown,
        **more,
        "__default__": full,
    }


def _configured() -> Experiment | None:
    """Return the experiment of the project's configuration; None if it cannot be read."""
    try:
        conf, env = str(conf_source(project_folder())), os.environ.get("KEDRO_ENV")
        return ExperimentConfigLoader(conf, env=env, **LOADER_ARGS).experiment
    except (ValueError, ClickException, OSError):  # a run reports the error
        return None
