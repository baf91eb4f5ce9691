"""What MLflow shows of a run: few metrics and parameters at a glance, and all others below.

MLflow sorts its sections of charts by name: ``core`` is the first. Curves and all other metrics are
in the section ``detail``, all other parameters in the artifact ``parameters.json``.
"""

import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import mlflow
from kedro.framework.context import KedroContext
from kedro_mlflow.config.kedro_mlflow_config import KedroMlflowConfig
from kedro_mlflow.framework.hooks.mlflow_hook import MlflowHook
from mlflow.entities import Metric, Run
from mlflow.utils.file_utils import local_file_uri_to_path

from submanifold.common.errors import UserError, unexpected
from submanifold.common.files import locked
from submanifold.config.loader import ExperimentConfigLoader

if TYPE_CHECKING:
    from submanifold.training.phases import Log
    from submanifold.training.trainer import Row

log = logging.getLogger(__name__)

CURVES = ("train.loss", "train.bits_per_dim", "train.mse", "valid.bits_per_dim", "valid.mse")
HEADLINES = {
    "bits_per_dim": "core/BPD",
    "projection_psnr": "core/PSNR",
    "kid": "core/KID",
    "precision": "core/precision",
    "recall": "core/recall",
}
"""Names in MLflow of the metrics that its view "Results" and its first section of charts show."""
INVALID = re.compile(r"[^\w. :-]")  # in MLflow's names of parameters
PARAMETERS = re.compile(
    r"dataset|method|seed|charts|training\.minutes|data\.size|stage_\d+\.(dim|flow\.type)"
    r"|\w+\.training\.(steps|batch_size|learning_rate)"
    r"|\w+\.reconstruction\.(weight|penalty|random_dim)"
)
"""Names of the parameters of MLflow, besides those that the user has set."""
KEYS = {"model", "run", "ood_run"}  # artifacts whose keys are tags of their run
PART = "submanifold.part"  # tag of a run of some nodes
SECONDS = 1.0  # between rows of training losses; a request takes milliseconds


def log_callback(first_step: int, first_stage: int) -> "Log | None":
    """Return the callback of a training for the active MLflow run, if there is one.

    ``first_step`` is the number of steps of the phases before, whose curves it continues.
    """
    if mlflow.active_run() is None:
        return None
    last = -math.inf

    def callback(phase: str, step: int, values: "Row") -> None:
        nonlocal last
        curves = {_curve(name, first_stage): values[name] for name in CURVES if name in values}
        now = time.monotonic()
        if curves and (now - last >= SECONDS or any("valid." in name for name in curves)):
            last = now
            try:
                mlflow.log_metrics(curves, first_step + step)
            except Exception as error:  # the training continues; history.json has all rows
                why = reason(mlflow.get_tracking_uri(), error)
                log.warning("MLflow has not received the losses of step %d (%s)", step, why)

    return callback


def _curve(name: str, first_stage: int) -> str:
    """Name of a curve in MLflow: losses on a code are not comparable with those on the data."""
    return f"detail/{name if first_stage == 1 else name.replace('.', '.code_')}"


def log_history(history: Mapping[str, Any], first_step: int, run_id: str) -> None:
    """Log the curves of a phase that is not trained again, after those of the phases before."""
    now = round(1000 * time.time())
    metrics = [
        Metric(
            _curve(f"{kind}.{name}", history["stages"][0]),
            value,
            now,
            first_step + int(row["step"]),
        )
        for kind in ("train", "valid")
        for row in history[kind]
        for name, value in row.items()
        if f"{kind}.{name}" in CURVES
    ]
    for first in range(0, len(metrics), 1000):  # MLflow's limit
        mlflow.MlflowClient().log_batch(run_id, metrics[first : first + 1000])


def tags(loader: ExperimentConfigLoader, is_part: bool) -> dict[str, str]:
    """Return the tags of a run; one of some nodes is nested in that of the whole experiment."""
    experiment = loader.experiment
    chosen = {
        "dataset": experiment.data_name,
        "method": experiment.method,
        "seed": str(experiment.seed),
    }
    if is_part:
        chosen[PART] = "true"
        model = loader.artifact_keys["model"]
        whole = [run.info.run_id for run in runs_of(model) if PART not in run.data.tags]
        if whole:
            chosen["mlflow.parentRunId"] = whole[0]
    return chosen


def key_tags(loader: ExperimentConfigLoader) -> dict[str, str]:
    """Return the tags by which :func:`runs_of` finds a run, which are set when all is logged."""
    keys = loader.artifact_keys
    return {f"keys.{name}": keys[name] for name in KEYS & keys.keys()}


def runs_of(key: str) -> list[Run]:
    """Return the runs of a model that ended well, also of some nodes; the newest first."""
    query = f"tags.`keys.model` = '{key}'"
    runs: list[Run] = mlflow.search_runs(filter_string=query, output_format="list")
    return runs


def own_metrics(runs: Sequence[Run]) -> dict[str, float]:
    """Return the newest values of metrics that nodes of the user have logged."""
    values = dict(pair for run in reversed(runs) for pair in run.data.metrics.items())
    return {
        name: value
        for name, value in values.items()
        if not name.startswith("detail/") and name not in HEADLINES.values()
    }


def is_recorded(loader: ExperimentConfigLoader) -> bool:
    """Whether MLflow has a run with all results of these artifacts."""
    tags = {name: key for name, key in key_tags(loader).items() if name != "keys.model"}
    query = " and ".join(f"tags.`{name}` = '{key}'" for name, key in tags.items())
    return bool(mlflow.search_runs(filter_string=query, max_results=1, output_format="list"))


def log_parameters(loader: ExperimentConfigLoader) -> None:
    """Log the parameters and the data of an experiment to the active run."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    from submanifold.common.settings import flatten

    experiment, keys = loader.experiment, loader.artifact_keys
    mlflow.log_dict({**experiment.parameters(), "keys": keys}, "parameters.json")
    chosen = flatten(loader.runtime_params or {})
    mlflow.log_params(
        {
            INVALID.sub("_", name): str(value)[:500]
            for name, value in flatten(experiment.parameters()).items()
            if value is not None and (name in chosen or PARAMETERS.fullmatch(name))
        }
    )
    source = CodeDatasetSource({"dataset": experiment.dataset, "key": keys["data"]})
    digest = keys["data"].rpartition("-")[2]
    data = MetaDataset(source, experiment.data_name, digest)  # type: ignore[abstract]
    mlflow.log_input(data, context="training")


def log_results(metrics: Mapping[str, Any]) -> None:
    """Log the numbers of a file of metrics; those of baselines, which are no results, as tags."""
    from submanifold.evaluation.metrics import numbers

    values = numbers(metrics)
    baselines = {name: value for name, value in values.items() if name.startswith("baselines.")}
    mlflow.set_tags(baselines)
    mlflow.log_metrics(
        {
            HEADLINES.get(name, f"detail/{name}"): value
            for name, value in values.items()
            if name not in baselines
        }
    )


def connect(context: KedroContext) -> MlflowHook:
    """Connect MLflow as ``mlflow.yml`` says, whose database may be new."""
    loader, hook = cast(ExperimentConfigLoader, context.config_loader), MlflowHook()
    with (
        required(loader),
        few_retries(),
        locked(loader.project / "data", "MLflow's database"),
    ):
        hook.after_context_created(context)
        check_artifacts(loader.project, hook.mlflow_config)
    return hook


def check_artifacts(project: Path, settings: KedroMlflowConfig) -> None:
    """Raise a UserError if the project's database writes artifacts to another folder.

    MLflow keeps the absolute path, also in a copy of the project, which would write into the
    original.
    """
    database, experiment = project / "data/mlflow.db", settings.tracking.experiment
    expected = experiment.create_experiment_kwargs.artifact_location
    if expected is None or settings.server.mlflow_tracking_uri != f"sqlite:///{database}":
        return
    created = mlflow.get_experiment_by_name(experiment.name)
    location = expected if created is None else created.artifact_location
    paths = [local_file_uri_to_path(uri) for uri in (expected, location)]
    if Path(paths[0]).resolve() != Path(paths[1]).resolve():
        fix = "The project was copied or moved: rename this file, and a run begins a new one"
        raise unexpected(str(database), f"artifacts in {paths[0]}", paths[1], fix)


@contextmanager
def few_retries() -> Iterator[None]:
    """Wait seconds for a server, not the minutes of MLflow, unless the user has set how long."""
    patience = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    chosen = {name: value for name, value in patience.items() if name not in os.environ}
    os.environ.update(chosen)
    try:
        yield
    finally:
        for name in chosen:
            del os.environ[name]


@contextmanager
def required(loader: ExperimentConfigLoader, errors: Any = Exception) -> Iterator[None]:
    """Raise a UserError about the tracking URI if MLflow cannot be used."""
    try:
        yield
    except UserError:
        raise
    except errors as error:
        uri = str(loader["mlflow"]["server"]["mlflow_tracking_uri"])
        got = "one with credentials" if has_credentials(uri) else uri
        fix = "Start its server, free its database or its disk, or change MLFLOW_TRACKING_URI"
        expected = "a tracking URI that can be used"
        raise unexpected("mlflow.yml", expected, f"{got} ({reason(uri, error)})", fix) from None


def reason(uri: str, error: Exception) -> str:
    """Return the reason of an error, or only its kind if the tracking URI may have a password."""
    return type(error).__name__ if has_credentials(uri) else str(error).partition("\n")[0]


def has_credentials(uri: str) -> bool:
    """Whether a tracking URI may have a password or a token."""
    return not {"@", "?", "#"}.isdisjoint(uri)
