"""One experiment at several values of a parameter."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from submanifold.pipelines.sweep.nodes import sweep_name, tag_run
from submanifold.reproduction.experiments import Experiment, open_session, run_all


def sweep(
    parameter: str,
    values: Sequence[Any],
    params: Mapping[str, Any],
    project: Path,
    env: str | None = None,
) -> Path:
    """Run an experiment at each value, and plot them all; killed and called again it goes on.

    Args:
        parameter: Such as ``stage_1.delta``, ``stage_2.dim`` or ``seed``.
        values: To try. Those of earlier sweeps of the parameter stay in the plot.
        params: Of the experiment, nested.
        project: Folder of the project.
        env: Environment of the configuration.

    Returns:
        The interactive plot, an HTML page.

    Raises:
        ClickException: The parameter, or one of the values, cannot be used.
    """
    base = Experiment("sweep", params, project, env)
    dataset, method = base.parameters["dataset"], base.parameters["method"]
    name = sweep_name(dataset, method, parameter)
    experiments = {value: base.changed(parameter, value) for value in values}
    run_all(experiments)
    for experiment in experiments.values():
        tag_run(experiment.key, name)
    last = experiments[values[-1]].changed("sweep", parameter)
    with open_session(project, env, last.params) as session:
        session.run(pipeline_names=["sweep"])
    folder = project / "data/08_reporting/sweeps"
    page = folder / f"{name}.html"
    last.load("sweep_figure").write_html(page, include_plotlyjs=True)
    return page
