"""Searches: sweeps of one parameter, and Optuna studies of several."""

from pathlib import Path
from typing import Any

from submanifold.pipelines.study.nodes import import_optuna


def search(*args: Any, **options: Any) -> Path:
    """Call :func:`submanifold.studies.search.workers.search`, which needs Optuna.

    Raises:
        UserError: Optuna is not installed.
    """
    import_optuna()
    from submanifold.studies.search import workers

    return workers.search(*args, **options)
