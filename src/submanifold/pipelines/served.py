"""A trained model as one of MLflow's, to be loaded by ``mlflow.pyfunc`` or served over HTTP."""

import warnings
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

import submanifold
from submanifold.errors import UserError
from submanifold.manifold import Model
from submanifold.uses.scoring import (
    encode_pictures,
    project_pictures,
    sample_pictures,
    score_pictures,
)

TASKS = ("score", "encode", "project", "sample")
PARAMS = {"task": "score", "nearest": False, "count": 64, "temperature": 1.0, "seed": 0}
REQUIREMENTS = (
    "lmdb", "mlflow", "numpy", "pandas", "pillow", "pooch", "pydantic", "rich", "safetensors",
    "scipy", "torch",
)  # fmt: skip


class Served:
    """What MLflow calls: uint8 images (N, channels, height, width) and the ``params`` of a task.

    - ``score``: a table as of :func:`submanifold.uses.scoring.score_pictures`.
    - ``encode``: arrays ``u`` (N, d) and ``v`` (N, D - d).
    - ``project``: images as those given.
    - ``sample``: ``count`` images at a ``temperature``, from a ``seed``; those given are not used.
    """

    def __init__(self, model: Model):
        self.model = model

    def predict(self, images: Any, params: dict[str, Any] | None = None) -> Any:
        """Do a task.

        Raises:
            UserError: The task is unknown, or the images have not the model's shape.
        """
        chosen = {**PARAMS, **(params or {})}
        if chosen["task"] not in TASKS:
            raise UserError(f"task={chosen['task']} is not known. Allowed: {', '.join(TASKS)}.")
        if chosen["task"] == "sample":
            return sample_pictures(
                self.model, chosen["count"], chosen["temperature"], chosen["seed"]
            )
        array = np.asarray(images).astype(np.uint8)
        if array.shape[1:] != tuple(self.model.event_shape):
            raise UserError(
                f"The images have the shape {array.shape[1:]}, but the model was trained on "
                f"{tuple(self.model.event_shape)}. submanifold.uses.Pictures makes them alike."
            )
        if chosen["task"] == "score":
            return score_pictures(self.model, array, chosen["nearest"])
        if chosen["task"] == "project":
            return project_pictures(self.model, array, chosen["nearest"])[0]
        u, v = encode_pictures(self.model, array, chosen["nearest"])
        return {"u": u, "v": v}


def _load_pyfunc(path: str) -> Served:
    """Load what :func:`log_model` has logged; MLflow calls it."""
    return Served(Model.load(path))


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
            pip_requirements=list(REQUIREMENTS),
            registered_model_name=register,
        )


_TYPES = {str: "string", bool: "boolean", int: "long", float: "double"}
