"""The project's pipelines."""

import os
from collections.abc import Collection, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from click import ClickException
from kedro.pipeline import Pipeline
from kedro.utils import find_kedro_project

from submanifold.common.errors import UserError
from submanifold.pipelines import compare, data, dimension, ood, study, sweep, training

ABOUT: ContextVar[tuple[Any, ...] | None] = ContextVar("about", default=None)
"""The phases and the kind of data of the run for which Kedro loads this registry."""


def register_pipelines(
    trained: Sequence[tuple[int, ...]] | None = None,
    synthetic: bool = False,
    rotations: Collection[int] = (),
    with_ood: bool = False,
) -> dict[str, Pipeline]:
    """Name the pipelines, for the phases and the kind of data that a hook finds in parameters.

    Without a hook, as Kedro-Viz asks for them, they are those of the parameters in conf/.
    """
    if trained is None:
        return register_pipelines(*(ABOUT.get() or _configured()))
    phases = training.create_pipeline(trained, synthetic, rotations)
    images = {} if synthetic else {
        "ood": training.create_training(trained, synthetic, rotations)
        + (ood.create_pipeline() if with_ood else Pipeline([])),
        "dimension": phases + dimension.create_pipeline(),
    }  # fmt: skip
    return {
        "data": data.create_pipeline(synthetic),
        "hierarchical": phases,
        "joint": phases,
        "compare": compare.create_pipeline(),
        "sweep": sweep.create_pipeline(),
        "study": study.create_pipeline(),
        **images,
        "__default__": phases,
    }


def _configured() -> tuple[Any, ...]:
    """The phases and the kind of data in the project's configuration, or those of two stages."""
    from submanifold.config.loader import ExperimentConfigLoader
    from submanifold.settings import CONFIG_LOADER_ARGS

    project = find_kedro_project(Path.cwd())
    try:
        place, env = str(Path(project or ".") / "conf"), os.environ.get("KEDRO_ENV")
        experiment = ExperimentConfigLoader(place, env=env, **CONFIG_LOADER_ARGS).experiment
    except (UserError, ClickException, OSError):  # a run says what is wrong
        return ((1,), (2,)), False
    return experiment.trained, experiment.synthetic, experiment.rotations
