"""Training curves in MLflow, under the same names for all methods."""

import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import mlflow
from mlflow.entities import Metric

if TYPE_CHECKING:
    from submanifold.training.phases import Log
    from submanifold.training.trainer import Row

log = logging.getLogger(__name__)

CURVES = ("train.loss", "train.bits_per_dim", "train.mse", "valid.bits_per_dim", "valid.mse")
SECONDS = 1.0  # between rows of training losses; a request takes milliseconds


class Pruned(Exception):  # noqa: N818
    """Raised by an observer to end a training; its MLflow run gets the status KILLED."""


@dataclass(frozen=True)
class Observer:
    """Callbacks of the code that starts runs, such as a hyperparameter search.

    ``on_run`` is called with the id of each MLflow run that begins, which gets the ``tags``;
    ``on_log`` with the phase, the step and the values; it may raise :class:`Pruned`.
    """

    tags: Mapping[str, str] = field(default_factory=dict)
    on_run: Callable[[str], object] = bool
    on_log: "Log | None" = None


observer: ContextVar[Observer] = ContextVar("observer", default=Observer())  # noqa: B039  frozen


def log_callback(first_step: int, first_stage: int) -> "Log | None":
    """Return the callback of a training for the active MLflow run and the observer, if any.

    ``first_step`` is the number of steps of the phases before, whose curves it continues.
    """
    on_log, last = observer.get().on_log, -math.inf
    if mlflow.active_run() is None:
        return on_log

    def callback(phase: str, step: int, values: "Row") -> None:
        nonlocal last
        curves = {_curve(name, first_stage): values[name] for name in CURVES if name in values}
        now = time.monotonic()
        if curves and (now - last >= SECONDS or any(name.startswith("valid") for name in curves)):
            last = now
            try:
                mlflow.log_metrics(curves, first_step + step)
            except Exception as error:  # the training continues; history.json has all rows
                _, reason = failure(mlflow.get_tracking_uri(), error)
                log.warning("MLflow has not received the losses of step %d (%s)", step, reason)
        if on_log:
            on_log(phase, step, values)

    return callback


def _curve(name: str, first_stage: int) -> str:
    """Name of a curve in MLflow: losses on a code are not comparable with those on the data."""
    return name if first_stage == 1 else name.replace(".", ".code_")


def log_history(history: Mapping[str, Any], first_step: int, run_id: str) -> None:
    """Log the curves of a phase that is not trained again, after those of the phases before."""
    now = round(1000 * time.time())
    metrics = [
        Metric(_curve(f"{kind}.{name}", history["stages"][0]), value, now,
               first_step + int(row["step"]))
        for kind in ("train", "valid")
        for row in history[kind]
        for name, value in row.items()
        if f"{kind}.{name}" in CURVES
    ]  # fmt: skip
    for first in range(0, len(metrics), 1000):  # MLflow's limit
        mlflow.MlflowClient().log_batch(run_id, metrics[first : first + 1000])


def failure(uri: str, error: Exception) -> tuple[str, str]:
    """Return the address of a tracking URI and the reason of an error, without credentials.

    The address is the scheme and the host, or all of a local one. A reason with any other word of
    the URI is replaced by the kind of the error: libraries read passwords with / or # as hosts.
    """
    match = re.fullmatch(r"([\w+.-]+://)(?:[^/?#]*@)?([^@/?#]*)(?:[/?#][^@]*)?", uri)
    is_local = not re.search("[@?#]|://[^/]", uri)
    address = uri if is_local else match[1] + match[2] if match else "***"
    words, shown = re.findall(r"\w+", f"{uri} {unquote(uri)}".lower()), address.lower()
    reason = str(error).partition("\n")[0]
    is_secret = any(word in reason.lower() for word in words if word not in shown)
    return address, type(error).__name__ if is_secret else reason
