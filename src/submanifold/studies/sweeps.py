"""One experiment at several values of a parameter."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from submanifold.common.files import atomic_write
from submanifold.pipelines.sweep.nodes import sweep_name, tag_run
from submanifold.studies.experiments import Experiment, run_all


def sweep(
    parameter: str,
    values: Sequence[Any],
    params: Mapping[str, Any],
    project: Path,
    env: str | None = None,
) -> Path:
    """Run an experiment at each value, and plot them all; killed and called again it goes on.

    The parameter is such as ``stage_1.dim``, ``phase_1.reconstruction.delta`` or ``seed``. Values
    of earlier sweeps of it stay in the plot, the interactive page that is returned.
    """
    base = Experiment("sweep", params, project, env)
    dataset, method = base.parameters["dataset"], base.parameters["method"]
    name = sweep_name(dataset, method, parameter)
    changed = [base.changed(parameter, value) for value in values]
    experiments = {experiment.key: experiment for experiment in changed}
    run_all(experiments.values())
    for key in experiments:
        tag_run(key, name)
    last = changed[-1].changed("sweep", parameter)
    with last.session() as session:
        session.run(pipeline_names=["sweep"])
    page = project / "data/08_reporting/sweeps" / f"{name}.html"
    with atomic_write(page) as partial:
        last.load("sweep_figure").write_html(partial, include_plotlyjs=True)
    return page
