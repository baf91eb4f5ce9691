"""Where training curves go: the active MLflow run, if there is one."""

import mlflow

from submanifold.training.trainer import Log, Row


def log_to_mlflow(prefix: str) -> Log | None:
    """Make a callback that logs values by step as ``<prefix>.<name>``, without waiting."""
    if mlflow.active_run() is None:
        return None

    def log(step: int, values: Row) -> None:
        named = {f"{prefix}.{name}": value for name, value in values.items()}
        mlflow.log_metrics(named, step=step, synchronous=False)

    return log
