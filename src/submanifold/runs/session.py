"""Run a pipeline in this process, as ``kedro run`` does in its own."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kedro.framework.session import KedroSession

from submanifold.config.project import conf_source, configure
from submanifold.runs.runner import RankRunner


def run_pipeline(
    project: Path,
    pipeline: str,
    params: Mapping[str, Any],
    env: str | None = None,
    to_outputs: Sequence[str] | None = None,
) -> None:
    """Compute the missing outputs of a pipeline.

    Args:
        project: Folder of the project.
        pipeline: Name of the pipeline.
        params: Runtime parameters, as ``--params``, nested.
        env: Environment.
        to_outputs: The last outputs to compute; None is all.

    Raises:
        UserError: The parameters, the data or this machine do not fit.
    """
    with _session(project, env, params) as session:
        session.run(
            pipeline_names=[pipeline], runner=RankRunner(), to_outputs=to_outputs,
            only_missing_outputs=True,
        )  # fmt: skip


def connect_mlflow(project: Path, env: str | None = None) -> None:
    """Use the tracking URI and the experiment of a project's mlflow.yml."""
    with _session(project, env, {}) as session:
        session.load_context()


def _session(project: Path, env: str | None, params: Mapping[str, Any]) -> Any:
    configure(project)  # another session may have loaded the pipelines of its method
    changes = copy.deepcopy(dict(params))
    conf = str(conf_source(project))
    return KedroSession.create(project, env=env, runtime_params=changes, conf_source=conf)
