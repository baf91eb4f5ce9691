"""MLflow's pyfunc flavor of a trained model, to be loaded or served over HTTP."""

import base64
import json
import logging
import shutil
import warnings
from collections.abc import Mapping
from importlib.metadata import requires
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, infer_signature
from mlflow.protos import databricks_pb2 as codes
from mlflow.types import ColSpec, Schema
from pydantic import Field

import submanifold
from submanifold.common.errors import UserError, printable, unexpected
from submanifold.common.settings import Settings, read_settings
from submanifold.data.images import decode
from submanifold.data.tables import Preprocessor
from submanifold.flows import context_of
from submanifold.inference.predictor import MAX_TEMPERATURE, Predictor, code_frame
from submanifold.models import Model

log = logging.getLogger(__name__)


NO_LABEL = -1


class Params(Settings):
    """The parameters of a request; the ``label`` is that of all images."""

    task: Literal["score", "encode", "project", "sample"] = "score"
    nearest: bool = False
    count: int = Field(default=64, ge=1, le=10_000)
    temperature: float = Field(default=1.0, ge=0, le=MAX_TEMPERATURE)
    seed: int = Field(default=0, ge=0, lt=2**63)
    label: int | None = None


class RequestError(MlflowException):
    """A rejected request. The response contains the reason, but not the inputs of the request."""

    def serialize_as_json(self) -> str:
        """Return the body of the response; MLflow's server adds the request to ``self.message``."""
        return json.dumps({"error_code": self.error_code, "message": printable(str(self))})


class ServedModel:
    """The Python model that MLflow calls: a :class:`.Predictor` of images or a DataFrame.

    Images are the contents of files in base64, which are prepared like the training images, or
    pixels: integers from 0 to 255, or floats in [0, 1]; JSON distinguishes 1 and 1.0. The
    parameter ``task`` selects the method, and ``nearest`` the nearest projection and its error.
    ``encode`` returns arrays ``u`` and ``v``, of rows one table; ``sample`` ignores the inputs,
    except the columns of a condition. Missing values and infinities are None, null in JSON.
    """

    def __init__(self, model: Model) -> None:
        self.predictor = Predictor(model)

    def predict(self, inputs: Any, params: dict[str, Any] | None = None) -> Any:
        """Run a task; a :class:`RequestError` if it is invalid (status 400) or failed (500)."""
        try:
            chosen = _defaults(self.predictor) | (params or {})
            settings = read_settings(Params, chosen, "", "Change it in params.")
            return _without_infinities(self._run(inputs, settings))
        except UserError as error:
            raise RequestError(str(error), codes.INVALID_PARAMETER_VALUE) from error
        except Exception as error:
            log.exception("A request failed.")
            reason = "The model failed. See the server's log."
            raise RequestError(reason, codes.INTERNAL_ERROR) from error

    def _run(self, inputs: Any, params: Params) -> Any:
        predictor, nearest = self.predictor, params.nearest
        label = None if params.label == NO_LABEL else params.label
        if not predictor.is_table and params.task != "sample":
            inputs = _as_array(inputs)
            if predictor.is_image and inputs.dtype.kind == "U":
                inputs = _decode_all(inputs, predictor.model.data)
            if inputs.dtype.kind in "iu" and ((inputs >= 0) & (inputs < 256)).all():  # of JSON
                inputs = inputs.astype(np.uint8)
        match params.task:
            case "score":
                return predictor.score(inputs, nearest, label=label)
            case "encode":
                u, v = predictor.encode(inputs, "nearest" if nearest else "encoder", label=label)
                is_table = predictor.is_table
                return code_frame(u, v).set_axis(inputs.index) if is_table else {"u": u, "v": v}
            case "project":
                return predictor.project(inputs, nearest, label=label)[0]
        condition = inputs if predictor.condition else None
        return predictor.sample(
            params.count, params.temperature, params.seed, label=label, condition=condition
        )


def _without_infinities(result: Any) -> Any:
    """Return results with None in place of NaN and infinities, which JSON does not have."""
    if isinstance(result, dict):
        return {name: _without_infinities(values) for name, values in result.items()}
    if isinstance(result, pd.DataFrame):
        return result.apply(_without_infinities)
    is_value = np.isfinite(result) if result.dtype.kind == "f" else ~pd.isna(result)
    if np.all(is_value):
        return result
    if isinstance(result, pd.Series):
        return result.astype(object).where(is_value, None)
    return np.where(is_value, result.astype(object), None)


def log_model(path: Path, register: str | None = None) -> None:
    """Log a model file with a signature in MLflow's active run; register it if a name is given.

    MLflow stores the safetensors file and the source of this package; nothing is pickled.
    """
    package = Path(submanifold.__file__).parent
    # conf is not needed, and in a checkout it is a link to the user's, which has credentials
    ignored = shutil.ignore_patterns("conf", "__pycache__")
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        # MLflow would run the model on an input example, and store it
        warnings.filterwarnings("ignore", ".*(input example was not|integer column)", UserWarning)
        mlflow.pyfunc.log_model(
            name="model",
            loader_module=__name__,
            data_path=str(path),
            code_paths=[shutil.copytree(package, f"{folder}/{package.name}", ignore=ignored)],
            signature=_signature(Predictor.load(path, "cpu")),
            pip_requirements=[text for text in requires("submanifold") or () if ";" not in text],
            registered_model_name=register,
        )


def _as_array(inputs: Any) -> np.ndarray:
    """Convert the inputs of a request, a list, an array or a column of pandas, to an array."""
    if isinstance(inputs, pd.DataFrame) and inputs.shape[1] == 1:
        inputs = inputs.iloc[:, 0]
    expected = "images of one shape, or files in base64"
    if inputs is None or isinstance(inputs, Mapping):
        raise unexpected("inputs", expected, type(inputs).__name__)
    try:
        array = np.asarray(inputs)
        return np.array(array.tolist()) if array.dtype.kind == "O" else array
    except ValueError:
        raise unexpected("inputs", expected, "lists of different lengths") from None


def _decode_all(texts: np.ndarray, data: Mapping[str, Any]) -> np.ndarray:
    """Decode image files in base64, (N,), with the crop and the size of the training images."""
    expected = "a list of image files, such as JPEG or PNG, in base64"
    form = {key: data[key] for key in ("size", "channels", "crop", "margin") if key in data}
    if texts.ndim != 1 or "size" not in form:
        expected = expected if "size" in form else "arrays of the model's shape"
        raise unexpected("inputs", expected, f"text of shape {texts.shape}")
    images = []
    for number, text in enumerate(texts.tolist()):
        try:
            images.append(decode(base64.b64decode(text, validate=True), **form))
        except Exception as error:  # PIL's plugins raise many kinds of errors
            raise unexpected(f"inputs[{number}]", expected, error) from error
    return np.stack(images)


def _defaults(predictor: Predictor) -> dict[str, Any]:
    return Params().model_dump(exclude={"label"}) | ({"count": 1} if predictor.condition else {})


def _signature(predictor: Predictor) -> ModelSignature:
    """Return MLflow's signature; for samples given columns, the other columns are optional.

    That of images has no inputs: MLflow would cast floats to bytes, which are then black.
    """
    example: Any = None
    if predictor.preprocessor is not None:
        example = _row(predictor.preprocessor)
    elif not predictor.is_image:
        example = np.zeros((1, *predictor.model.event_shape), np.float32)
    # MLflow takes this number for a label that is missing; as none it is refused
    label = {"label": NO_LABEL} if "classes" in context_of(predictor.model) else {}
    signature = infer_signature(example, params=_defaults(predictor) | label)
    if predictor.condition is not None:
        required = infer_signature(_row(predictor.condition)).inputs.inputs
        optional = [
            ColSpec(column.type, column.name, required=False) for column in signature.inputs.inputs
        ]
        signature.inputs = Schema([*required, *optional])
    return signature


def _row(preprocessor: Preprocessor) -> pd.DataFrame:
    row = preprocessor.inverse_transform(np.zeros((1, len(preprocessor.varying))))
    row = row[[*preprocessor.features]]
    wide = {"i": "int64", "u": "int64", "f": "float64"}  # MLflow converts to no narrower type
    return row.astype(
        {name: wide[dtype.kind] for name, dtype in row.dtypes.items() if dtype.kind in wide}
    )


def _load_pyfunc(path: str) -> ServedModel:
    """Load a logged model; called by MLflow."""
    return ServedModel(Predictor.load(path, "cpu").model)
