"""MLflow: where training curves go, and which of its runs are the same."""

import mlflow
from mlflow.entities import Run

from submanifold.training.trainer import Log, Row


def log_to_mlflow(prefix: str) -> Log | None:
    """Make a callback that logs values by step as ``<prefix>.<name>``, without waiting."""
    if mlflow.active_run() is None:
        return None

    def log(step: int, values: Row) -> None:
        named = {f"{prefix}.{name}": value for name, value in values.items()}
        mlflow.log_metrics(named, step=step, synchronous=False)

    return log


def identity(run: Run) -> tuple[str, ...]:
    """What runs of equal settings share, whatever version of the program has measured them."""
    params = run.data.params
    measured = sorted(name for name in params if name.startswith("evaluation."))
    return params["keys.model"], *(f"{name}={params[name]}" for name in measured)
