"""MLflow's pyfunc flavor of a trained model, to be loaded or served over HTTP."""

import json
import logging
import shutil
import signal
import threading
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, infer_signature
from mlflow.protos import databricks_pb2 as codes
from mlflow.types import ColSpec, Schema

import submanifold
from submanifold.common.errors import UserError
from submanifold.common.files import printable
from submanifold.common.progress import cancellation_check
from submanifold.data.tables import Preprocessor
from submanifold.flows import context_of, is_conditional, is_noise_conditional
from submanifold.inference import scoring, tables
from submanifold.inference.inputs import given_label, is_table
from submanifold.models import Model

log = logging.getLogger(__name__)

TASKS = ("score", "encode", "project", "sample")
PARAMS = {"task": "score", "exact": False, "count": 64, "temperature": 1.0, "seed": 0}
LIMITS: dict[str, Any] = {"max_rows": 1024, "max_seconds": 60.0}
"""Default limits of a request; MLflow's server times out after 60 seconds."""
REQUIREMENTS = [
    "filelock", "lmdb", "mlflow", "numpy", "pandas", "pillow", "pooch", "pyarrow", "pydantic",
    "safetensors", "scipy", "torch", "tqdm",
]  # fmt: skip


class RequestError(MlflowException):
    """A rejected request. The response contains the reason, but not the inputs of the request."""

    def serialize_as_json(self) -> str:
        """Return the body of the response; MLflow's server adds the request to ``self.message``."""
        return json.dumps({"error_code": self.error_code, "message": printable(str(self))})


class ServedModel:
    """The Python model that MLflow calls.

    The inputs are uint8 images (N, channels, height, width), or a DataFrame with the columns of the
    table on which the model was trained.

    The parameter ``task`` selects the result; with ``exact``, scores contain ``nearest_mse``, and u
    and projections are those of the nearest projection:

    - ``score``: the table of :func:`submanifold.inference.scoring.score_events`, of rows that of
      :func:`submanifold.inference.tables.score_table`.
    - ``encode``: arrays ``u`` (N, d) and ``v`` (N, D - d), of rows one table of their columns.
    - ``project``: default projections of the images or rows.
    - ``sample``: ``count`` samples at a ``temperature`` from a ``seed``; the inputs are ignored.

    Of a model that is conditional on the label, ``label`` is that of all images. A model that is
    conditional on columns finds them in the inputs; there are ``count`` samples, 1 by default, for
    each row, which needs no other columns.

    Args:
        model: The model.
        max_rows: Maximum number of images, rows or samples of a request.
        max_seconds: Time after which a request is canceled, between two batches.
    """

    def __init__(self, model: Model, max_rows: int, max_seconds: float) -> None:
        self.model, self.max_rows, self.max_seconds = model, max_rows, max_seconds
        self._lock = threading.Lock()

    def predict(self, inputs: Any, params: dict[str, Any] | None = None) -> Any:
        """Run a task.

        Raises:
            RequestError: The request is invalid (HTTP status 400), took too long (504), was
                canceled because the server is shutting down (503), or failed (500).
        """
        deadline = time.monotonic() + self.max_seconds

        def check() -> None:
            if _is_shutting_down():
                raise RequestError("The server is shutting down.", codes.TEMPORARILY_UNAVAILABLE)
            if time.monotonic() > deadline:
                reason = f"The request was canceled after max_seconds={self.max_seconds:g}."
                raise RequestError(reason, codes.DEADLINE_EXCEEDED)

        try:
            with cancellation_check(check):
                return self._run(inputs, _defaults(self.model) | (params or {}))
        except UserError as error:
            raise RequestError(str(error), codes.INVALID_PARAMETER_VALUE) from error
        except RequestError:
            raise
        except Exception as error:
            log.exception("A request failed.")
            reason = "The model failed. See the server's log."
            raise RequestError(reason, codes.INTERNAL_ERROR) from error

    def _run(self, inputs: Any, params: dict[str, Any]) -> Any:
        task, count = params["task"], params["count"]
        if task not in TASKS:
            raise UserError(f"task: expected one of {', '.join(TASKS)}, got {task}.")
        of_table = is_table(self.model)
        inputs = inputs if of_table else np.asarray(inputs)
        given = ("rows" if of_table else "images", len(inputs))
        if task == "sample":
            name, rows = "count", count * (len(inputs) if _has_columns(self.model) else 1)
        else:
            name, rows = given
        if rows > self.max_rows:
            raise UserError(
                f"{name}: expected at most max_rows={self.max_rows}, got {rows}. Send several "
                "requests."
            )
        # a context or noise scale is a state of the model, which the threads of a server share
        has_state = is_conditional(self.model) or is_noise_conditional(self.model)
        lock = self._lock if has_state else nullcontext()
        with lock, given_label(self.model, params.get("label")):
            return self._compute(inputs, params, of_table)

    def _compute(self, inputs: Any, params: dict[str, Any], of_table: bool) -> Any:
        if of_table:
            return self._run_table(inputs, params)
        task, count, exact = params["task"], params["count"], params["exact"]
        if task == "sample":
            return scoring.sample_events(self.model, count, params["temperature"], params["seed"])
        if task == "score":
            return scoring.score_events(self.model, inputs, exact)
        if task == "project":
            return scoring.project_events(self.model, inputs, exact)[0]
        u, v = scoring.encode_events(self.model, inputs, exact)
        return {"u": u, "v": v}

    def _run_table(self, table: Any, params: dict[str, Any]) -> pd.DataFrame:
        task, exact = params["task"], params["exact"]
        if task == "sample":
            condition = table if _has_columns(self.model) else None
            return tables.sample_table(
                self.model, params["count"], params["temperature"], params["seed"], condition
            )
        if task == "score":
            return tables.score_table(self.model, table, exact)
        if task == "project":
            return tables.project_table(self.model, table, exact)[0]
        return tables.encode_table(self.model, table, exact)


def log_model(path: Path, register: str | None = None) -> None:
    """Log a model file with a signature in MLflow's active run; register it if a name is given.

    MLflow stores the safetensors file and the source of this package; nothing is pickled.
    """
    model, package = Model.load(path), Path(submanifold.__file__).parent
    # conf is not needed, and in a checkout it is a link to the user's, which has credentials
    ignored = shutil.ignore_patterns("conf", "__pycache__")
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        # MLflow would run the model on an input example, and store it
        warnings.filterwarnings("ignore", ".*input example was not provided", UserWarning)
        warnings.filterwarnings("ignore", ".*integer column", UserWarning)
        mlflow.pyfunc.log_model(
            name="model",
            loader_module=__name__,
            data_path=str(path),
            code_paths=[shutil.copytree(package, f"{folder}/{package.name}", ignore=ignored)],
            signature=_signature(model),
            model_config=LIMITS,
            pip_requirements=REQUIREMENTS,
            registered_model_name=register,
        )


def _has_columns(model: Model) -> bool:
    """Return whether a model of a table is conditional on columns."""
    return tables.condition_of(model) is not None


def _defaults(model: Model) -> dict[str, Any]:
    """Return the parameters of a model that have a default."""
    return PARAMS | ({"count": 1} if _has_columns(model) else {})


def _signature(model: Model) -> ModelSignature:
    """Return MLflow's signature; for samples given columns, the other columns are optional."""
    example: np.ndarray | pd.DataFrame = np.zeros((1, *model.event_shape), np.uint8)
    condition = None
    if is_table(model):
        condition = tables.condition_of(model)
        example = _row(tables.preprocessor_of(model))
    label = {"label": 0} if "classes" in context_of(model) else {}
    found = infer_signature(example, params=_defaults(model) | label)
    if condition is not None:
        given = infer_signature(_row(condition)).inputs.inputs
        optional = [ColSpec(each.type, each.name, required=False) for each in found.inputs.inputs]
        found.inputs = Schema([*given, *optional])
    return found


def _row(preprocessor: Preprocessor) -> pd.DataFrame:
    """Return a row of the table, without its constant columns, in the types of MLflow."""
    row = preprocessor.inverse_transform(np.zeros((1, len(preprocessor.varying))))
    row = row[list(dict.fromkeys(each.name for each in preprocessor.varying))]
    wide = {"i": "int64", "u": "int64", "f": "float64"}  # MLflow converts to no narrower type
    return row.astype({name: wide[each.kind] for name, each in row.dtypes.items()
                       if each.kind in wide})  # fmt: skip


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> ServedModel:
    """Load a logged model; called by MLflow."""
    return ServedModel(Model.load(path), **LIMITS | (model_config or {}))


def _is_shutting_down() -> bool:
    """Return whether MLflow's server (uvicorn), which waits for requests, got a SIGTERM."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return getattr(server, "should_exit", False)
