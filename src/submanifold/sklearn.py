"""A scikit-learn estimator: density, manifold and anomaly scores of tables, vectors and images."""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from numbers import Integral, Real
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    OutlierMixin,
    TransformerMixin,
)
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from submanifold.common.device import choose_device
from submanifold.common.errors import UserError
from submanifold.common.progress import hidden_progress
from submanifold.data.settings import ImageSettings, Scale
from submanifold.data.tables import Preprocessor
from submanifold.evaluation.calibration import calibrate
from submanifold.evaluation.scores import NOISE_SCALE
from submanifold.flows import context_of
from submanifold.inference.predictor import Predictor
from submanifold.models import Model
from submanifold.training import PhaseSettings, image_method, table_method, train_phases
from submanifold.training.cost import fit_budget, with_steps
from submanifold.training.defaults import Method

HELD_OUT = 0.1
"""Fraction of the rows that validates the training and calibrates the scores."""
MIN_ROWS = 20
"""With fewer rows all of them train the model and validate it."""
FALSE_ALARM_RATE = 0.05


class ManifoldFlow(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, OutlierMixin, BaseEstimator
):  # fmt: skip
    r"""A normalizing flow with nested manifolds: density, coordinates, projection and outliers.

    The model is a bijection between a row x and coordinates (u, v). It gives the exact
    log-density of x; the ``n_components`` coordinates u on the manifold, in order of their
    contribution to the data, as nonlinear principal components; and the projection of x onto the
    manifold, v = 0. Model and training are the default methods of the pipelines.

    Rows are a table (n, columns) of numbers, an array or a DataFrame; or images
    (n, channels, height, width), uint8, with one or three channels and equal sides. Columns are
    standardized; integers and other quantized columns are dequantized by uniform noise over their
    step, which the row determines; constant columns are ignored. Encode categories before, for
    example by :class:`sklearn.preprocessing.OneHotEncoder`, and fill missing values.

    A tenth of the rows validates the training and calibrates the scores.

    Args:
        n_components: Dimension d of the manifold; None is half of the columns, or of images the
            500 or half of the pixels; and at most half of the training rows.
        minutes: Time of training, to which the steps are scaled by measurement.
        steps: Steps of training, of all phases together; None uses those of the method.
        contamination: Fraction of the training rows that :meth:`predict` calls outliers. ``auto``
            chooses the threshold such that about 5% of new rows like the training rows are.
        scale: ``standard`` (mean 0 and variance 1) or ``none``.
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
        "minutes": [Interval(Real, 0, None, closed="neither"), None],
        "steps": [Interval(Integral, 1, None, closed="left"), None],
        "contamination": [Interval(Real, 0, 0.5, closed="right"), StrOptions({"auto"})],
        "scale": [StrOptions({"standard", "none"})],
        "random_state": ["random_state"],
        "device": [str],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        n_components: int | None = None,
        *,
        minutes: float | None = None,
        steps: int | None = None,
        contamination: float | str = "auto",
        scale: Scale = "standard",
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.minutes = minutes
        self.steps = steps
        self.contamination = contamination
        self.scale = scale
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803
        """Train the model.

        X are rows, see the class; y is ignored. A parameter or data that cannot be used raise a
        ValueError.
        """
        self._validate_params()
        if self.minutes is not None and self.steps is not None:
            raise UserError(
                f"minutes: expected None with steps={self.steps}, got {self.minutes}. Omit either."
            )
        device = choose_device(self.device)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        rows = events = self._validated(X, reset=True)
        self.preprocessor_ = None
        if rows.ndim == 2:
            names = getattr(self, "feature_names_in_", [f"x{n}" for n in range(rows.shape[1])])
            table = pd.DataFrame(rows, columns=list(names))
            self.preprocessor_ = Preprocessor.fit(table, scale=self.scale)
            if not self.preprocessor_.varying:
                raise UserError("X: expected a column with several values, got constant columns.")
            events = self.preprocessor_.transform(table, salt=np.arange(len(rows)))
        order = np.random.default_rng(seed).permutation(len(rows))
        count = round(HELD_OUT * len(rows))
        held_out, train = (order, order) if len(rows) < MIN_ROWS else (order[:count], order[count:])
        valid = events[held_out]
        model_settings, phases = self._method(events.shape[1:], len(train), device)
        # torch's global generator is the user's
        with (
            hidden_progress(not self.verbose),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            TemporaryDirectory() as folder,
        ):
            model = train_phases(
                phases, model_settings, events[train], valid, seed, device, Path(folder)
            )
            if self.preprocessor_ is None:
                form = {"channels": rows.shape[1], "size": rows.shape[2]}
                model.data = ImageSettings.model_validate(form).facts
            else:
                model.data = {"table": self.preprocessor_.to_dict()}
            model.calibration = calibrate(model, valid, device)
        self.model_, self.noise_scale_ = model.cpu(), model.calibration[NOISE_SCALE]
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
        return self._log_prob(self._validated(X))

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
        rows = self._validated(X)
        u, _ = self._predictor.encode(rows, "default" if self.preprocessor_ is None else "nearest")
        single = getattr(rows, "dtype", None) == np.float32
        return u.astype(np.float32 if single else np.float64)

    def inverse_transform(self, X: Any) -> np.ndarray:  # noqa: N803
        """Map coordinates u (n, n_components) to rows on the manifold, in the units of the data."""
        return np.asarray(self._predictor.decode(check_array(X, dtype=np.float64)))

    def project(self, X: Any, nearest: bool | None = None) -> np.ndarray:  # noqa: N803
        """Project rows onto the manifold: the points of the manifold that are nearest to them.

        Distances are in standardized units, and rows of the result in the units of the data.
        ``nearest`` computes the nearest projection (:meth:`.Model.project`), which is slower. None
        does it for tables, so that the result is ``inverse_transform(transform(X))``.
        """
        nearest = self.preprocessor_ is not None if nearest is None else nearest
        return np.asarray(self._predictor.project(self._validated(X), nearest)[0])

    def sample(self, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """Draw rows on the manifold, in the units of the data."""
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        return np.asarray(self._predictor.sample(n_samples, seed=seed))

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
        if is_point or context_of(model):
            kind = "one of points" if is_point else "a conditional one"
            raise UserError(
                f"{path}: expected a model of a table or of images, got {kind}. Use "
                "submanifold.models.Model.load."
            )
        notes, predictor = model.notes.get("estimator", {}), Predictor(model)
        flow = cls(**{"n_components": model.dim, **notes.get("parameters", {}), "device": device})
        flow.model_, flow.preprocessor_ = model, predictor.preprocessor
        flow.n_features_in_ = model.event_dim
        if flow.preprocessor_ is not None:
            names = flow.preprocessor_.inputs
            flow.n_features_in_ = len(names)
            if notes.get("named", True):
                flow.feature_names_in_ = np.array(names, object)
        flow.noise_scale_ = notes.get("noise_scale", model.calibration.get(NOISE_SCALE))
        flow.offset_ = notes["offset"] if notes else predictor.threshold(FALSE_ALARM_RATE)
        return flow

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

    def _validated(self, X: Any, reset: bool = False) -> Any:  # noqa: N803
        """Check rows as scikit-learn does: an array (n, columns), or images."""
        if not reset:
            check_is_fitted(self)
        if reset and getattr(X, "ndim", 0) == 4:
            images = np.asarray(X)
            is_square = images.shape[1] in (1, 3) and images.shape[2] == images.shape[3]
            if images.dtype != np.uint8 or not is_square or len(images) < 2:
                raise UserError(
                    "X: expected at least 2 images, uint8 (n, 1 or 3 channels, size, size), or a "
                    f"table, got {images.dtype} {images.shape}."
                )
            self.n_features_in_ = int(np.prod(images.shape[1:]))
            if hasattr(self, "feature_names_in_"):
                del self.feature_names_in_
            return images
        if not reset:
            known = self.preprocessor_
            if known is None or (known.categories and isinstance(X, pd.DataFrame)):
                return X  # images, or rows for a pipeline's model, which the predictor checks
        return validate_data(self, X, reset=reset, ensure_min_samples=2 if reset else 1)

    @property
    def _predictor(self) -> Predictor:
        check_is_fitted(self)
        return _predictor(self.model_, choose_device(self.device))

    def _log_prob(self, rows: Any) -> np.ndarray:
        return self._predictor.log_prob(rows, self.noise_scale_)

    def _method(self, shape: tuple[int, ...], count: int, device: torch.device) -> Method:
        """Return the model and its phases, with the dimension and steps that were asked for."""
        size, dim = int(np.prod(shape)), self.n_components
        if dim is not None and dim > size:
            raise UserError(
                f"n_components: expected at most {size}, the number of columns that vary, got "
                f"{dim}. Decrease it."
            )
        half = max(1, min(size, count) // 2)
        if self.preprocessor_ is None:
            model, phases = image_method(dim or min(500, half))
        else:
            model, phases = table_method(dim or half)
        if self.minutes is not None:
            steps = fit_budget(60 * self.minutes, model, phases, shape, device)
            return model, {name: with_steps(phases[name], steps[name]) for name in steps}
        if self.steps is None:
            return model, phases
        usual = {name: phase.training.steps for name, phase in phases.items()
                 if isinstance(phase, PhaseSettings)}  # fmt: skip
        factor = self.steps / sum(usual.values())
        return model, phases | {
            name: with_steps(phases[name], max(1, round(factor * count)))
            for name, count in usual.items()
        }

    def _set_offset(self, rows: np.ndarray, held_out: np.ndarray) -> None:
        """Set the threshold of outliers, and note it in the model's file."""
        if self.contamination == "auto":
            scores = np.sort(self._log_prob(held_out))
            threshold = float(scores[max(int(FALSE_ALARM_RATE * (len(scores) + 1)), 1) - 1])
        else:
            share = 100 * float(self.contamination)
            threshold = float(np.percentile(self._log_prob(rows), share))
        # below the row of that score, whose score varies by rounding
        self.offset_: float | None = threshold - 1e-9 * max(1.0, abs(threshold))
        parameters = {name: value for name, value in self.get_params().items()
                      if name != "device" and _is_json(value)}  # fmt: skip
        self.model_.notes["estimator"] = {
            "parameters": parameters, "offset": self.offset_, "noise_scale": self.noise_scale_,
            "named": hasattr(self, "feature_names_in_"),
        }  # fmt: skip


@lru_cache(maxsize=4)
def _predictor(model: Model, device: torch.device) -> Predictor:
    """Copy a model to a device, for rows in double precision: results depend on no batch size."""
    copied = copy.deepcopy(model).to(device)
    return Predictor(copied.double() if "table" in model.data else copied)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
        return True
    except TypeError:
        return False
