"""A trained model as one of MLflow's, to be loaded by ``mlflow.pyfunc`` or served over HTTP."""

import json
import logging
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import (
    DEADLINE_EXCEEDED,
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    TEMPORARILY_UNAVAILABLE,
)
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

import submanifold
from submanifold.common.errors import UserError
from submanifold.common.files import printable
from submanifold.common.progress import cancellation_check
from submanifold.inference.scoring import (
    encode_pictures,
    project_pictures,
    sample_pictures,
    score_pictures,
)
from submanifold.models import Model

log = logging.getLogger(__name__)

TASKS = ("score", "encode", "project", "sample")
PARAMS = {"task": "score", "nearest": False, "count": 64, "temperature": 1.0, "seed": 0}
MAX_ROWS, MAX_SECONDS = 1024, 60.0
"""Limits of a request; 60 seconds is the default time-out of MLflow's server."""
REQUIREMENTS = (
    "lmdb", "mlflow", "numpy", "pandas", "pillow", "pooch", "pydantic", "rich", "safetensors",
    "scipy", "torch",
)  # fmt: skip


class RequestError(MlflowException):
    """A request that is refused: the server's answer is the reason, and not the images given."""

    def serialize_as_json(self) -> str:
        """The body of the answer; MLflow's server has put the images into ``self.message``."""
        return json.dumps({"error_code": self.error_code, "message": printable(str(self))})


class Served:
    """What MLflow calls: uint8 images (N, channels, height, width) and the ``params`` of a task.

    - ``score``: a table as of :func:`submanifold.inference.scoring.score_pictures`.
    - ``encode``: arrays ``u`` (N, d) and ``v`` (N, D - d).
    - ``project``: images as those given.
    - ``sample``: ``count`` images at a ``temperature``, from a ``seed``; those given are not used.

    Args:
        model: The model.
        max_rows: The most images of a request, given or sampled.
        max_seconds: After which a request is cancelled, between two batches.
    """

    def __init__(self, model: Model, max_rows: int = MAX_ROWS, max_seconds: float = MAX_SECONDS):
        self.model, self.max_rows, self.max_seconds = model, max_rows, max_seconds

    def predict(self, images: Any, params: dict[str, Any] | None = None) -> Any:
        """Do a task.

        Raises:
            RequestError: The request is not allowed (HTTP status 400), has taken too long (504), is
                cancelled as the server ends (503), or has met a defect, which is logged (500).
        """
        deadline = time.monotonic() + self.max_seconds

        def check() -> None:
            if _is_ending():
                raise RequestError("The server is ending.", TEMPORARILY_UNAVAILABLE)
            if time.monotonic() > deadline:
                why = f"The request was cancelled after max_seconds={self.max_seconds:g}."
                raise RequestError(why, DEADLINE_EXCEEDED)

        try:
            with cancellation_check(check):
                return self._predict(np.asarray(images), **{**PARAMS, **(params or {})})
        except UserError as error:
            raise RequestError(str(error), INVALID_PARAMETER_VALUE) from error
        except RequestError:
            raise
        except Exception as error:
            log.exception("A request failed.")
            raise RequestError("The model failed. See the server's log.", INTERNAL_ERROR) from error

    def _predict(
        self,
        images: np.ndarray,
        task: str,
        nearest: bool,
        count: int,
        temperature: float,
        seed: int,
    ) -> Any:
        if task not in TASKS:
            raise UserError(f"task: expected one of {', '.join(TASKS)}, got {task}.")
        rows = count if task == "sample" else len(images)
        if rows > self.max_rows:
            name = "count" if task == "sample" else "images"
            raise UserError(
                f"{name}: expected at most max_rows={self.max_rows}, got {rows}. Send several "
                "requests."
            )
        if task == "sample":
            return sample_pictures(self.model, count, temperature, seed)
        if task == "score":
            return score_pictures(self.model, images, nearest)
        if task == "project":
            return project_pictures(self.model, images, nearest)[0]
        u, v = encode_pictures(self.model, images, nearest)
        return {"u": u, "v": v}


def _is_ending() -> bool:
    """Whether MLflow's server, which is uvicorn's, has had a SIGTERM: it waits for its requests."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return getattr(server, "should_exit", False)


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> Served:
    """Load what :func:`log_model` has logged; MLflow calls it, with the limits of a request."""
    return Served(Model.load(path), **(model_config or {}))


def log_model(path: Path, register: str | None = None) -> None:
    """Log a model's file in MLflow's active run, with a signature; register it if a name is given.

    Nothing is pickled: MLflow keeps the safetensors file and this package's source.
    """
    model = Model.load(path)
    shape = (-1, *model.event_shape)
    params = [ParamSpec(name, _TYPES[type(value)], value) for name, value in PARAMS.items()]
    with warnings.catch_warnings():
        # an example would be sent through the model, and kept
        warnings.filterwarnings("ignore", ".*input example was not provided", UserWarning)
        mlflow.pyfunc.log_model(
            name="model",
            loader_module=__name__,
            data_path=str(path),
            code_paths=[str(Path(submanifold.__file__).parent)],
            signature=ModelSignature(
                inputs=Schema([TensorSpec(np.dtype(np.uint8), shape)]), params=ParamSchema(params)
            ),
            model_config={"max_rows": MAX_ROWS, "max_seconds": MAX_SECONDS},
            pip_requirements=list(REQUIREMENTS),
            registered_model_name=register,
        )


_TYPES = {str: "string", bool: "boolean", int: "long", float: "double"}
