"""A scikit-learn estimator: density, manifold and anomaly scores of tables, vectors and images."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
import yaml
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    OutlierMixin,
    TransformerMixin,
)
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from submanifold.common.device import choose_device
from submanifold.common.errors import UserError
from submanifold.common.progress import hidden_progress
from submanifold.common.settings import read_settings
from submanifold.config.merge import entry, manifold_stages
from submanifold.config.project import PACKAGED_CONF
from submanifold.config.resolve import resolve
from submanifold.config.schema import Experiment
from submanifold.data.batches import fixed_batches
from submanifold.data.settings import Scale, TableSettings
from submanifold.data.tables import Preprocessor
from submanifold.data.tables.scan import Scan
from submanifold.evaluation.calibration import Calibration, calibrate
from submanifold.evaluation.samples import stored
from submanifold.evaluation.scores import (
    NOISE_SCALE,
    SMOOTHED_DENSITY,
    log_prob_at,
)
from submanifold.flows import is_conditional
from submanifold.models import Model
from submanifold.training.cost import fit_budget, with_steps
from submanifold.training.phases import train_phases

HELD_OUT = 0.1
"""Fraction of the rows that validates the training and calibrates the scores."""
MIN_ROWS = 20
"""With fewer rows all of them train the model and validate it."""
FALSE_ALARM_RATE = 0.05
ROW_BATCH, IMAGE_BATCH = 4096, 64


class ManifoldFlow(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, OutlierMixin, BaseEstimator
):  # fmt: skip
    r"""A normalizing flow with nested manifolds: density, coordinates, projection and outliers.

    The model is a bijection between a row x and coordinates (u, v). It gives the exact
    log-density of x; the ``n_components`` coordinates u on the manifold, in order of their
    contribution to the data, as nonlinear principal components; and the projection of x onto the
    manifold, v = 0. Model and training are those of the pipelines, from the same configuration.

    Rows are a table (n, columns) of numbers, an array or a DataFrame; or images
    (n, channels, height, width), uint8, with one or three channels and equal sides. Columns are
    standardized; integers and other quantized columns are dequantized by uniform noise over their
    step, which the row determines; constant columns are ignored. Encode categories before, for
    example by :class:`sklearn.preprocessing.OneHotEncoder`, and fill missing values.

    A tenth of the rows validates the training and calibrates the scores.

    Args:
        n_components: Dimension d of the manifold; None is half of the columns, or of images the
            method's default and at most half of the pixels; and at most half of the training rows.
        method: Name of a method of the configuration; None is the default for tables or images.
        minutes: Time of training, to which the steps are scaled by measurement.
        steps: Steps of training, of all phases together; None uses those of the method.
        contamination: Fraction of the training rows that :meth:`predict` calls outliers. ``auto``
            chooses the threshold such that about 5% of new rows like the training rows are.
        scale: ``standard`` (mean 0 and variance 1), ``quantile`` (each column normal) or ``none``.
        random_state: Seed. An integer makes results repeatable on the same machine.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<n>``.
        verbose: 1 shows the progress of training.

    Attributes:
        model_: The :class:`.Model`, on the CPU. It works in standardized units.
        preprocessor_: The :class:`.Preprocessor` of tables; None for images.
        noise_scale_: Noise scale of the density, from 0 (the smallest of the training) to 1; None
            if the model is not noise-conditional.
        offset_: Log-density below which rows are outliers.
        n_features_in_: Number of columns, or of pixels and channels.
        feature_names_in_: Names of the columns of a DataFrame.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X = load_iris().data
        >>> flow = ManifoldFlow(n_components=2, steps=50, random_state=0).fit(X)
        >>> flow.transform(X).shape, flow.project(X).shape, flow.score_samples(X).shape
        ((150, 2), (150, 4), (150,))
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "method": [str, None],
        "minutes": [Interval(Real, 0, None, closed="neither"), None],
        "steps": [Interval(Integral, 1, None, closed="left"), None],
        "contamination": [Interval(Real, 0, 0.5, closed="right"), StrOptions({"auto"})],
        "scale": [StrOptions({"standard", "quantile", "none"})],
        "random_state": ["random_state"],
        "device": [str],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        n_components: int | None = None,
        *,
        method: str | None = None,
        minutes: float | None = None,
        steps: int | None = None,
        contamination: float | str = "auto",
        scale: Scale = "standard",
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.method = method
        self.minutes = minutes
        self.steps = steps
        self.contamination = contamination
        self.scale = scale
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803
        """Train the model.

        Args:
            X: Rows, see the class.
            y: Ignored.

        Raises:
            ValueError: A parameter or the data cannot be used.
        """
        self._validate_params()
        if self.minutes is not None and self.steps is not None:
            raise UserError(
                f"minutes: expected None with steps={self.steps}, got {self.minutes}. Omit either."
            )
        device = choose_device(self.device)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        rows = self._validated(X, reset=True)
        self.preprocessor_ = None
        if rows.ndim == 2:
            table = self._table(rows)
            self.preprocessor_ = Preprocessor.fit(table, scale=self.scale)
            if not self.preprocessor_.varying:
                raise UserError("X: expected a column with several values, got constant columns.")
            events = self.preprocessor_.transform(table, salt=np.arange(len(rows)))
        else:
            events = rows
        order = np.random.default_rng(seed).permutation(len(rows))
        held_out = order if len(rows) < MIN_ROWS else order[: round(HELD_OUT * len(rows))]
        train = order if len(rows) < MIN_ROWS else order[len(held_out) :]
        train, valid, shape = events[train], events[held_out], events.shape[1:]
        experiment = self._experiment(shape, {"train": len(train), "valid": len(valid)})
        # torch's global generator is the user's
        devices = [device] if device.type == "cuda" else []
        with (
            hidden_progress(not self.verbose),
            torch.random.fork_rng(devices),
            TemporaryDirectory() as folder,
        ):
            self.model_ = train_phases(
                self._phases(experiment, shape, device),
                experiment.model,
                train,
                valid,
                seed,
                device,
                Path(folder),
            )
            self.model_.data = experiment.data.facts
            calibrated = copy.deepcopy(self.model_)
            self.model_.calibration = calibrate(calibrated, valid, device)
            self.noise_scale_ = calibrated.calibration[NOISE_SCALE]
        self._set_offset(rows, rows[held_out])
        return self

    def score_samples(self, X: Any) -> np.ndarray:  # noqa: N803
        """Compute the log-density of rows, (n,) in nats.

        It is that of the dequantized rows in the units of X: its integral over all rows is one. Of
        images it is the log-density of bytes plus uniform noise in [0, 1).

        Noise-conditional models, the default of tables, smooth it: it is the density of rows with
        normal noise of the scale that fits held-out rows best (``noise_scale_``), like the
        bandwidth of a kernel density estimate.
        """
        return self._score(self._checked(X))

    def score(self, X: Any, y: Any = None) -> float:  # noqa: N803
        """Compute the mean of :meth:`score_samples`; larger is better."""
        return float(self.score_samples(X).mean())

    def decision_function(self, X: Any) -> np.ndarray:  # noqa: N803
        """Compute the log-density minus ``offset_``, (n,); it is negative for outliers."""
        scores = self.score_samples(X)
        if self.offset_ is None:
            raise UserError(
                "offset_: expected a threshold, got none: the model has no calibration of its "
                "log-density. Set offset_ to the log-density below which rows are outliers."
            )
        return scores - self.offset_

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return 1 for inliers and -1 for outliers, (n,)."""
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def transform(self, X: Any) -> np.ndarray:  # noqa: N803
        """Compute the coordinates of :meth:`project` on the manifold, (n, n_components).

        They are in the order of their contribution to the data.
        """
        rows = self._checked(X)
        exact = self.preprocessor_ is not None
        u = self._apply(lambda model, x: model.encode(x, exact)[0], rows).numpy()
        single = getattr(rows, "dtype", None) == np.float32
        return u.astype(np.float32 if single else np.float64)

    def inverse_transform(self, X: Any) -> np.ndarray:  # noqa: N803
        """Map coordinates u (n, n_components) to rows on the manifold, in the units of the data."""
        check_is_fitted(self)
        u = check_array(X, dtype=np.float32 if self.preprocessor_ is None else np.float64)
        return self._rows(self._batched(lambda model, u: model.decode(u), u))

    def project(self, X: Any, exact: bool | None = None) -> np.ndarray:  # noqa: N803
        """Project rows onto the manifold: the points of the manifold that are nearest to them.

        Distances are in standardized units, and rows of the result in the units of the data.

        Args:
            X: Rows, see the class.
            exact: Whether to compute the nearest projection (:meth:`.Model.project`), which is
                slower. None does it for tables, so that the result is
                ``inverse_transform(transform(X))``.
        """
        rows = self._checked(X)
        exact = self.preprocessor_ is not None if exact is None else exact
        return self._rows(self._apply(lambda model, x: model.project(x, exact), rows))

    def sample(self, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """Draw rows on the manifold, in the units of the data."""
        check_is_fitted(self)
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        model = self._model()
        return self._rows(model.sample(n_samples, 1.0, torch.Generator().manual_seed(seed)))

    def save(self, path: str | Path) -> None:
        """Write the model to a file, which :meth:`load` and the command line read."""
        check_is_fitted(self)
        self.model_.save(path)

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> Self:
        """Open the file of :meth:`save`, or the model of a pipeline.

        Parameters and ``offset_`` of the estimator are restored, except a ``random_state`` that is
        no integer. For models of a pipeline the threshold is that of ``contamination="auto"``.

        Raises:
            UserError: It is not a model of a table or of images.
        """
        model = Model.load(path, "cpu")
        is_point = len(model.event_shape) != 3 and "table" not in model.data
        if is_point or is_conditional(model):
            kind = "one of points" if is_point else "a conditional one"
            raise UserError(
                f"{path}: expected a model of a table or of images, got {kind}. Use "
                "submanifold.models.Model.load."
            )
        notes = model.notes.get("estimator", {})
        found = cls(**{"n_components": model.dim, **notes.get("parameters", {}), "device": device})
        found.model_ = model
        found.preprocessor_ = None
        if "table" in model.data:
            found.preprocessor_ = Preprocessor.from_dict(model.data["table"])
            names = found.preprocessor_.inputs
            found.n_features_in_ = len(names)
            if notes.get("named", True):
                found.feature_names_in_ = np.array(names, object)
        else:
            found.n_features_in_ = model.event_dim
        found.noise_scale_ = notes.get("noise_scale", model.calibration.get(NOISE_SCALE))
        found.offset_ = notes["offset"] if notes else found._calibrated_offset()
        return found

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return manifoldflow0, manifoldflow1, ...; the names of the columns are not used."""
        return super().get_feature_names_out(input_features)

    @property
    def _n_features_out(self) -> int:
        return self.model_.code_dims[0]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _validated(self, X: Any, reset: bool) -> Any:  # noqa: N803
        """Check rows as scikit-learn does: an array (n, columns), or images."""
        if getattr(X, "ndim", 0) == 4:
            return self._validated_images(np.asarray(X), reset)
        if not reset and self.preprocessor_ is None:
            shape = ", ".join(map(str, self.model_.event_shape))
            raise UserError(f"X: expected images, uint8 (n, {shape}), got {type(X).__name__}.")
        known = {} if reset or self.preprocessor_ is None else self.preprocessor_.categories
        if known and isinstance(X, pd.DataFrame):
            return X  # of a pipeline's model; the preprocessor checks it
        return validate_data(self, X, reset=reset, ensure_min_samples=2 if reset else 1)

    def _validated_images(self, images: np.ndarray, reset: bool) -> np.ndarray:
        expected = "(n, 1 or 3 channels, size, size)"
        fits = images.shape[1] in (1, 3) and images.shape[2] == images.shape[3]
        if not reset:
            if self.preprocessor_ is not None:
                raise UserError(f"X: expected a table (n, columns), got shape {images.shape}.")
            shape = self.model_.event_shape
            expected, fits = f"(n, {', '.join(map(str, shape))})", images.shape[1:] == shape
        least = 2 if reset else 1
        if images.dtype != np.uint8 or not fits or len(images) < least:
            raise UserError(
                f"X: expected at least {least} images, uint8 {expected}, or a table, got "
                f"{images.dtype} {images.shape}."
            )
        if reset:
            self.n_features_in_ = int(np.prod(images.shape[1:]))
            if hasattr(self, "feature_names_in_"):
                del self.feature_names_in_
        return images

    def _checked(self, X: Any) -> Any:  # noqa: N803
        check_is_fitted(self)
        return self._validated(X, reset=False)

    def _table(self, rows: Any) -> pd.DataFrame:
        if isinstance(rows, pd.DataFrame):
            return rows
        names = getattr(self, "feature_names_in_", [f"x{n}" for n in range(rows.shape[1])])
        return pd.DataFrame(rows, columns=list(names))

    def _experiment(self, shape: tuple[int, ...], counts: dict[str, int]) -> Experiment:
        """Select the model and its training from the configuration."""
        parameters = {**_parameters(), "method": self.method or "auto"}
        data = None
        if self.preprocessor_ is None:
            parameters |= {"dataset": "photos", "data": {"size": shape[1], "channels": shape[0]}}
        else:
            parameters["dataset"] = "table"
            settings = {"source": "table", "path": "X", "scale": self.scale}
            data = read_settings(TableSettings, settings, "data")
            data._scan = Scan(self.preprocessor_, counts, None, 0, {}, [])
        datasets, methods = parameters["datasets"], parameters["methods"]
        dataset = entry(datasets, parameters["dataset"], "dataset")
        method = entry(methods, self.method or dataset["method"], "method")
        stages, dim = manifold_stages(method, dataset)
        if stages:
            dim = self._dim(shape, dim, counts["train"])
            parameters |= {name: {"dim": dim} for name in stages}
        elif self.n_components is not None:
            raise UserError(
                f"n_components: expected None with method={method['name']}, whose density is on "
                f"all of space, got {self.n_components}. Omit it, or choose another method."
            )
        return resolve(parameters, data=data)

    def _dim(self, shape: tuple[int, ...], usual: Any, count: int) -> int:
        """Return the dimension of the manifold."""
        size = int(np.prod(shape))
        if self.n_components is None:
            half = max(1, min(size, count) // 2)
            return min(usual, half) if isinstance(usual, int) else half
        if self.n_components > size:
            raise UserError(
                f"n_components: expected at most {size}, the number of columns that vary, got "
                f"{self.n_components}. Decrease it."
            )
        return int(self.n_components)

    def _phases(self, experiment: Experiment, shape: tuple[int, ...], device: torch.device) -> Any:
        """Return the phases, with the steps that the parameters ask for."""
        phases = experiment.phases
        counts: dict[str, int] = {}
        if self.minutes is not None:
            counts = fit_budget(60 * self.minutes, experiment.model, phases, shape, device)
        elif self.steps is not None:
            usual = {name: phase.training.steps for name, phase in experiment.trainings.items()}
            factor = self.steps / sum(usual.values())
            counts = {name: max(1, round(factor * count)) for name, count in usual.items()}
        return {name: with_steps(phase, counts[name]) if name in counts else phase
                for name, phase in phases.items()}  # fmt: skip

    def _score(self, rows: Any) -> np.ndarray:
        """Compute the log-density of checked rows."""
        scale = self.noise_scale_

        def log_prob_of(model: Model, x: Tensor) -> Tensor:
            return model.log_prob(x) if scale is None else log_prob_at(model, x, scale)

        log_prob = self._apply(log_prob_of, rows).double().numpy()
        log_prob[np.isnan(log_prob)] = -np.inf  # rows beyond the range of floats
        if self.preprocessor_ is None:
            return log_prob - self.model_.event_dim * np.log(256)
        return log_prob + self.preprocessor_.log_det(self._table(rows))

    def _set_offset(self, rows: np.ndarray, held_out: np.ndarray) -> None:
        """Set the threshold of outliers, and note it in the model's file."""
        if self.contamination == "auto":
            scores = np.sort(self._score(held_out))
            allowed = int(FALSE_ALARM_RATE * (len(scores) + 1))
            threshold = float(scores[max(allowed, 1) - 1])
        else:
            share = 100 * float(self.contamination)
            threshold = float(np.percentile(self._score(rows), share))
        # below the row of that score, whose score varies by rounding
        self.offset_: float | None = threshold - 1e-9 * max(1.0, abs(threshold))
        parameters = {name: value for name, value in self.get_params().items()
                      if name != "device" and _is_json(value)}  # fmt: skip
        self.model_.notes["estimator"] = {
            "parameters": parameters, "offset": self.offset_, "noise_scale": self.noise_scale_,
            "named": hasattr(self, "feature_names_in_"),
        }  # fmt: skip

    def _calibrated_offset(self) -> float | None:
        """Return the threshold of a pipeline's model; None without one."""
        model, preprocessor = self.model_, self.preprocessor_
        name = "density" if self.noise_scale_ is None else SMOOTHED_DENSITY
        if name not in model.calibration.get("quantiles", {}):
            return None
        calibration = Calibration.from_dict(model.calibration)
        in_model_units = -calibration.threshold(name, FALSE_ALARM_RATE)
        if preprocessor is None:
            return in_model_units - model.event_dim * np.log(256)
        if any(column.knots is not None for column in preprocessor.varying):
            return None  # the log-determinant depends on the row
        return in_model_units + float(preprocessor.log_det_at(np.zeros((1, model.event_dim)))[0])

    def _model(self) -> Model:
        """Return a copy of the model on the device, for vectors in double precision.

        Results in single precision depend on the size of the batch.
        """
        model = copy.deepcopy(self.model_).to(choose_device(self.device))
        return model.double() if self.preprocessor_ is not None else model

    def _apply(self, function: Callable[[Model, Tensor], Tensor], rows: Any) -> Tensor:
        """Apply a function of the model to batches of rows."""
        if self.preprocessor_ is None:
            return self._batched(function, rows)
        events = self.preprocessor_.transform(self._table(rows))
        return self._batched(function, events.astype(np.float64))

    def _batched(self, function: Callable[[Model, Tensor], Tensor], events: np.ndarray) -> Tensor:
        model = self._model()
        device = next(model.parameters()).device
        size = IMAGE_BATCH if self.preprocessor_ is None else ROW_BATCH
        with torch.no_grad():
            batches = fixed_batches(events, size, device)
            return torch.cat([function(model, x).cpu() for x in batches])

    def _rows(self, x: Tensor) -> np.ndarray:
        """Convert events of the model to rows in the units of the data."""
        if self.preprocessor_ is None:
            return stored(x)
        return self.preprocessor_.inverse_transform(x.cpu().numpy()).to_numpy()


@cache
def _parameters() -> dict[str, Any]:
    """Read the configuration that is installed with the package."""
    text = (PACKAGED_CONF / "base" / "parameters.yml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
        return True
    except TypeError:
        return False
