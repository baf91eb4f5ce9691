"""Sweeps: one experiment at several values of one parameter."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from submanifold.config.cache_keys import comparison_key
from submanifold.pipelines.sweep.nodes import sweep_name, tag_run
from submanifold.studies.experiments import CachedRun, run_all


def sweep(
    parameter: str,
    values: Sequence[Any],
    params: Mapping[str, Any],
    project: Path,
    env: str | None = None,
) -> Path:
    """Run an experiment at each value of a parameter, and plot all results.

    Finished runs are reused, and earlier values of the same sweep stay in the plot.

    Returns:
        Path of the page.
    """
    base = CachedRun("sweep", params, project, env)
    name = sweep_name(comparison_key(base.settings), base.settings.method, parameter)
    changed = [base.changed(parameter, value) for value in values]
    runs = {run.key: run for run in changed}
    run_all(runs.values())
    for key in runs:
        tag_run(key, name)
    last = changed[-1].changed("sweep", parameter)
    with last.session() as session:
        session.run(pipeline_names=["sweep"])
    return project / "data/08_reporting/sweeps" / f"{name}.html"
