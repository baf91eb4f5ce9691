"""A scikit-learn estimator: density, manifold and anomaly scores of tables, vectors and images."""

import copy
import math
from dataclasses import replace
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
from submanifold.common.errors import UserError, unexpected
from submanifold.common.progress import hidden_progress
from submanifold.config.resolve import Method, default_method
from submanifold.data.events import Events
from submanifold.data.fields import Scale
from submanifold.data.settings import ImageSettings
from submanifold.data.tables import Preprocessor
from submanifold.data.tables.columns import Logarithmic
from submanifold.evaluation.calibration import COMBINATION, MIN_IMAGES, calibrate
from submanifold.evaluation.defensive import with_defensive_component
from submanifold.evaluation.scores import NOISE_SCALE, SMOOTHED_DENSITY
from submanifold.inference.predictor import Predictor
from submanifold.training import PhaseSettings, train_phases
from submanifold.training.cost import fit_budget, phase_costs, with_steps
from submanifold.training.cross_fitting import cross_fit
from submanifold.training.phases import DENSITY

STORED = int | float | str | None  #: Types of parameters in model files.
SIDE = 8  #: Factor of the sides of images, which the levels of the flow halve.
HELD_OUT = 0.1
"""Fraction of the rows that validates the training and calibrates the p-values, at least 20."""
MIN_ROWS = 2 * MIN_IMAGES
"""With fewer rows all of them, or copies up to 20, train, validate and calibrate the model."""

MANY_ROWS = 5000
"""From this number of rows on a tenth is enough for a calibration, and training costs more."""


class ManifoldFlow(ClassNamePrefixFeaturesOutMixin, TransformerMixin, OutlierMixin, BaseEstimator):
    r"""A normalizing flow with nested manifolds: density, coordinates, projection and outliers.

    The model is a bijection between a row x and coordinates (u, v). It gives the exact
    log-density of x; the ``n_components`` coordinates u on the manifold, in order of their
    contribution to the data, as nonlinear principal components; and the projection of x onto the
    manifold, v = 0. Model and training are the default methods of the pipelines.

    Rows are a table (n, columns), an array of numbers or a DataFrame; or images
    (n, channels, height, width), uint8, with one or three channels and equal sides, divisible by 8.
    Columns are standardized; integers and other quantized columns are dequantized by uniform noise
    over their step, which the row determines. With missing values (NaN) the density is that of the
    others, given which are missing. A DataFrame may also have text of few values, which becomes
    categories, and dates; constants are left out (``preprocessor_.description``), and other values
    there are anomalous.

    P-values compare a row with rows that did not train the model that scores them. Either all rows
    calibrate them (``cross``): the density is the mean of five models, each trained without a fifth
    of the rows, which it scores. Or a tenth of the rows, at least 20, validates the training and
    calibrates (``split``); of fewer than 40 rows all do so and train the model, so that p-values of
    new rows are too small. Copies of a row (:meth:`.Preprocessor.copies`) count as one.

    Args:
        n_components: Dimension d of the manifold; None is half of the columns, or of images the
            500 or half of the pixels; and less than the number of training rows.
        minutes: Time of training, to which the steps are scaled by measurement.
        steps: Steps of training, of all phases together; None uses those of the method.
        calibration: ``cross`` for tables of at least 20 rows, in about twice the time; ``split``;
            or ``auto``, which is ``cross`` for tables of fewer than 5,000 rows.
        alpha: False-alarm rate: the fraction of new rows like the training rows that
            :meth:`predict` calls outliers. It can be changed after :meth:`fit`.
        scale: ``standard`` (mean 0 and variance 1) or ``none``.
        random_state: Seed. An integer makes results repeatable on the same machine.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<n>``.
        verbose: 1 shows the progress of training.

    Attributes:
        model_: The :class:`.Model`, on the CPU. It works in standardized units.
        preprocessor_: The :class:`.Preprocessor` of tables; None for images.
        noise_scale_: Noise scale of the density, from 0 (the smallest of the training) to 1; None
            if the model is not noise-conditional.
        offset_: Log-density below which rows are outliers; None if it does not determine them, as
            of images, with logarithmic columns, and with cross-calibration, whose score also has a
            distance to neighbors.
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
        "calibration": [StrOptions({"auto", "cross", "split"})],
        "alpha": [Interval(Real, 0, 1, closed="neither")],
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
        calibration: str = "auto",
        alpha: float = 0.05,
        scale: Scale = "standard",
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.minutes = minutes
        self.steps = steps
        self.calibration = calibration
        self.alpha = alpha
        self.scale = scale
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803
        """Train the model.

        X are rows, see the class; y is ignored. A parameter or data that cannot be used raise a
        ValueError, and the estimator stays as it was.
        """
        before = dict(vars(self))
        try:
            return self._fit(X)
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def _fit(self, X: Any) -> Self:  # noqa: N803
        self._validate_params()
        if self.minutes is not None and self.steps is not None:
            expected = f"None with steps={self.steps}"
            raise unexpected("minutes", expected, self.minutes, "Omit either")
        device = choose_device(self.device)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        rows = self._validated(X, reset=True)
        is_cross = self._is_cross_calibrated(rows)
        order = np.random.default_rng(seed).permutation(len(rows))
        count = max(round(HELD_OUT * len(rows)), MIN_IMAGES)
        held_out, train = order[:count], order[count:]
        if len(rows) < MIN_ROWS:
            held_out, train = np.resize(order, max(len(rows), MIN_IMAGES)), order
        self._check_alpha(len(rows) if is_cross else len(held_out), 1 if is_cross else HELD_OUT)
        preprocessor, events = self._prepared(rows, np.isin(np.arange(len(rows)), train) | is_cross)
        if events.groups is not None:
            train = train[~np.isin(events.groups[train], events.groups[held_out])]
        valid, shape = events[held_out], events.x.shape[1:]
        model_settings, phases = self._method(shape, len(train), device, preprocessor is not None)
        with hidden_progress(not self.verbose), TemporaryDirectory() as folder:
            model = train_phases(
                phases, model_settings, events[train], valid, seed, device, folder, preprocessor
            )
            if preprocessor is None:
                form = {"channels": rows.shape[1], "size": rows.shape[2]}
                model = model.with_facts(data=ImageSettings.model_validate(form).facts)
            else:
                model = model.with_facts(data={"table": preprocessor.to_dict()})
            if is_cross:
                density: Any = phases[DENSITY]
                model = cross_fit(
                    model, density, model_settings, events, seed, device, folder, preprocessor
                )
            else:
                model = with_defensive_component(model, events[train], valid, device)
                calibration = calibrate(model, valid, device, train=events[train])
                model = model.with_facts(calibration=calibration)
        self.preprocessor_ = preprocessor
        self.model_ = model.with_facts(notes={**model.notes, "estimator": self._facts()}).cpu()
        self.noise_scale_ = model.calibration[NOISE_SCALE]
        return self

    def _check_alpha(self, calibrated: int, share: float) -> None:
        """Refuse an alpha below the smallest p-value of the rows that calibrate, a share of all."""
        if self.alpha < 1 / (calibrated + 1):
            raise UserError(
                f"alpha: expected at least 1/{calibrated + 1}, the smallest p-value with "
                f"{calibrated} held-out rows, got {self.alpha:g}. Increase it, or pass at least "
                f"{math.ceil((1 / self.alpha - 1) / share)} rows."
            )

    def _prepared(
        self, rows: np.ndarray, is_training: np.ndarray
    ) -> tuple[Preprocessor | None, Events]:
        """Return events of images (n, C, H, W), or of rows (n, D) with what prepared them."""
        if rows.ndim == 4:
            return None, Events(rows)
        preprocessor = Preprocessor.fit(rows, scale=self.scale, training=is_training)
        if not preprocessor.varying:
            raise UserError("X: expected a column with several values, got constant columns.")
        numbers = np.arange(len(rows))
        events = replace(preprocessor.transform(rows, salt=numbers), rows=numbers)
        copies = preprocessor.copies(events)
        count = len(np.unique(copies))
        if MIN_ROWS <= count < len(rows):
            events = replace(events, groups=copies)
        return preprocessor, events

    def _facts(self) -> dict[str, Any]:
        """Return the parameters of the estimator, which its saved model keeps."""
        parameters = {
            name: value
            for name, value in self.get_params().items()
            if name != "device" and isinstance(value, STORED)
        }
        return {"parameters": parameters, "named": hasattr(self, "feature_names_in_")}

    def score_samples(self, X: Any) -> np.ndarray:  # noqa: N803
        """Compute the log-density of rows, (n,) in nats.

        It is that of the dequantized rows in the units of X: its integral over all rows is one. Of
        images it is the log-density of bytes plus uniform noise in [0, 1).

        Noise-conditional models, the default of tables, smooth it: it is the density of rows with
        normal noise of the scale that fits held-out rows best (``noise_scale_``), like the
        bandwidth of a kernel density estimate.
        """
        return self._predictor.log_prob(self._validated(X), self.noise_scale_)

    def score(self, X: Any, y: Any = None) -> float:  # noqa: N803
        """Compute the mean of :meth:`score_samples`; larger is better."""
        return float(self.score_samples(X).mean())

    def p_values(self, X: Any) -> np.ndarray:  # noqa: N803
        """Compute the p-values of rows, (n,), those of :meth:`.Predictor.score`.

        It is the fraction of held-out rows, including the new one, that are at least as anomalous.
        """
        return self._predictor.score(self._validated(X))["p_value"].to_numpy()

    def select(self, X: Any, fdr: float) -> np.ndarray:  # noqa: N803
        """Select anomalous rows, of which at most a fraction ``fdr`` is normal on average, (n,).

        The Benjamini-Hochberg procedure with :meth:`p_values`, for many rows that are screened
        together; :meth:`predict` bounds the fraction of the normal rows that are outliers.
        """
        predictor = self._predictor
        return predictor.select(predictor.score(self._validated(X))["p_value"].to_numpy(), fdr)

    def decision_function(self, X: Any) -> np.ndarray:  # noqa: N803
        """Compute how far rows are from being outliers, (n,); it is negative for outliers.

        With ``split`` calibration of rows without missing values it is the log-density, that of
        the logarithms of logarithmic columns, minus a constant (``offset_``); of others the effect
        of a missing value on the log-density is subtracted. With cross-calibration it is a constant
        minus the sum of two scores, as in :class:`.Calibration`: minus the mean log-density of the
        five models, and the distance to :class:`.Neighbors`, at most 2,000 training rows, with
        means in place of missing values. Of images it depends on other scores, too.
        """
        predictor = self._predictor
        scores = predictor.score(self._validated(X), alpha=self.alpha)["anomaly_score"]
        threshold = predictor.calibrated().threshold(COMBINATION, self.alpha)
        return threshold - np.nan_to_num(scores, nan=np.inf, posinf=np.inf)

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return -1 for outliers, whose p-value is at most ``alpha``, and 1 for inliers, (n,)."""
        return np.where(self._predictor.score(self._validated(X), alpha=self.alpha)["ood"], -1, 1)

    @property
    def offset_(self) -> float | None:
        """The ``offset_`` of the class."""
        calibration = self._predictor.calibrated(self.alpha)
        if len(self.model_.members) > 1:
            return None  # the score has a distance, and the density is their mean
        if self.preprocessor_ is None or calibration.combined != (SMOOTHED_DENSITY,):
            return None
        columns = self.preprocessor_.varying
        if any(isinstance(column, Logarithmic) for column in columns):
            return None  # the derivatives of logarithms are no constant
        log_det = self.preprocessor_.log_dets(np.zeros((1, len(columns))), None)[0]
        return float(log_det - calibration.threshold(COMBINATION, self.alpha))

    def transform(self, X: Any) -> np.ndarray:  # noqa: N803
        """Compute the coordinates of :meth:`project` on the manifold, (n, n_components).

        They are in the order of their contribution to the data.
        """
        rows = self._validated(X)
        u, _ = self._predictor.encode(rows, "default" if self.preprocessor_ is None else "nearest")
        single = getattr(rows, "dtype", None) == np.float32
        return u.astype(np.float32 if single else np.float64)

    def inverse_transform(self, X: Any) -> Any:  # noqa: N803
        """Map coordinates u (n, n_components) to rows on the manifold, see :meth:`sample`."""
        return _rows_of(self._predictor.decode(check_array(X, dtype=np.float64)))

    def project(self, X: Any, nearest: bool | None = None) -> Any:  # noqa: N803
        """Project rows onto the manifold: the points of the manifold that are nearest to them.

        Distances are in standardized units, and rows of the result as those of :meth:`sample`.
        ``nearest`` computes the nearest projection (:meth:`.Model.project`), which is slower. None
        does it for tables, so that the result is ``inverse_transform(transform(X))``, but that
        missing values stay missing.
        """
        rows = self._validated(X)
        nearest = self.preprocessor_ is not None if nearest is None else nearest
        return _rows_of(self._predictor.project(rows, nearest)[0])

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Any:
        """Draw rows on the manifold, in the units of the data.

        They are an array; a DataFrame if the model was fitted to one with text, dates or booleans.
        """
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        return _rows_of(self._predictor.sample(n_samples, seed=seed))

    def save(self, path: str | Path) -> None:
        """Write the model to a file, which :meth:`load` and the command line read."""
        check_is_fitted(self)
        self.model_.save(path)

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> Self:
        """Open the file of :meth:`save`, or the model of a pipeline.

        Parameters of the estimator are restored, except a ``random_state`` that is no integer. A
        file of another model than that of a table or of images raises a UserError.
        """
        predictor = Predictor.load(path, "cpu")
        model = predictor.model
        is_point = len(model.event_shape) != 3 and "table" not in model.data
        if is_point or predictor.is_conditional:
            kind = "one of points" if is_point else "a conditional one"
            expected = "a model of a table or of images"
            raise unexpected(path, expected, kind, "Use submanifold.models.Model.load")
        notes = model.notes.get("estimator", {})
        flow = cls(**{"n_components": model.dim, **notes.get("parameters", {}), "device": device})
        flow.model_, flow.preprocessor_ = model, predictor.preprocessor
        flow.n_features_in_ = model.event_dim
        if flow.preprocessor_ is not None:
            names = flow.preprocessor_.inputs
            flow.n_features_in_ = len(names)
            if notes.get("named", True):
                flow.feature_names_in_ = np.array(names, object)
        flow.noise_scale_ = model.calibration.get(NOISE_SCALE)
        return flow

    @property
    def _n_features_out(self) -> int:
        return self.model_.code_dims[0]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.input_tags.allow_nan = True
        return tags

    def _validated(self, X: Any, reset: bool = False) -> Any:  # noqa: N803
        """Check rows as scikit-learn does: an array (n, columns), or images."""
        if not reset:
            check_is_fitted(self)
        if reset and getattr(X, "ndim", 0) in (3, 4):
            images = _checked_images(np.asarray(X))
            self.n_features_in_ = int(np.prod(images.shape[1:]))
            if hasattr(self, "feature_names_in_"):
                del self.feature_names_in_
            return images
        known = None if reset else self.preprocessor_
        if not reset and (known is None or (known.categorical and isinstance(X, pd.DataFrame))):
            return X  # images, or rows for a pipeline's model, which the predictor checks
        if isinstance(X, pd.DataFrame):  # whose columns the preprocessor checks
            if reset and (len(X) < 2 or not len(X.columns)):
                raise unexpected("X", "at least 2 rows of at least one column", X.shape, "Add some")
            if repeated := [*X.columns[X.columns.duplicated()].map(str)]:
                raise unexpected("X", "columns of different names", repeated, "Rename them")
            rows = validate_data(self, X, reset=reset, skip_check_array=True)
            if known is None or hasattr(self, "feature_names_in_"):
                return rows
            is_of_array = {*rows.columns.map(str)} != {*known.inputs}
            return rows.set_axis([*known.inputs], axis=1) if is_of_array else rows
        return validate_data(
            self,
            X,
            reset=reset,
            ensure_all_finite="allow-nan",
            ensure_min_samples=2 if reset else 1,
        )

    def _is_cross_calibrated(self, rows: Any) -> bool:
        is_table = rows.ndim == 2
        if self.calibration == "cross" and not (is_table and len(rows) >= MIN_IMAGES):
            expected = f"split or auto for images and for fewer than {MIN_IMAGES} rows"
            raise unexpected("calibration", expected, self.calibration, "Use auto")
        if self.calibration == "auto":
            return is_table and MIN_IMAGES <= len(rows) < MANY_ROWS
        return self.calibration == "cross"

    @property
    def _predictor(self) -> Predictor:
        """The model on the device, a copy for rows: they need double precision in any batch."""
        check_is_fitted(self)
        self._validate_params()  # they may have changed
        model, device = self.model_, choose_device(self.device)
        if "table" in model.data:
            return Predictor(copy.deepcopy(model).to(device).double())
        return Predictor(model if device.type == "cpu" else copy.deepcopy(model).to(device))

    def _method(
        self, shape: tuple[int, ...], count: int, device: torch.device, is_table: bool
    ) -> Method:
        size, dim = int(np.prod(shape)), self.n_components
        if dim is not None and (dim > size or isinstance(dim, bool)):
            expected = f"at most {size}, the number of columns that vary"
            raise unexpected("n_components", expected, dim, "Decrease it")
        half = max(1, min(size, count) // 2)
        dataset, usual_dim = ("table", half) if is_table else ("photos", min(500, half))
        model, phases = default_method(dataset, dim or usual_dim)
        steps: dict[str, int] = {}
        if self.minutes is not None:
            steps = fit_budget(60 * self.minutes, phase_costs(model, phases, shape, device))
        elif self.steps is not None:
            usual = {
                name: phase.training.steps
                for name, phase in phases.items()
                if isinstance(phase, PhaseSettings)
            }
            factor = self.steps / sum(usual.values())
            steps = {name: max(1, round(factor * count)) for name, count in usual.items()}
        return model, phases | {name: with_steps(phases[name], steps[name]) for name in steps}


def _checked_images(images: np.ndarray) -> np.ndarray:
    """Return images (n, 1 or 3 channels, size, size) that the method can train on."""
    channels, *sides = images.shape[1:]
    if images.ndim == 3:
        fix = "Add an axis of channels: X[:, None]"
    elif channels not in (1, 3) and sides[-1] in (1, 3):
        fix = "Move the channels: numpy.moveaxis(X, -1, 1)"
    elif images.dtype != np.uint8:
        fix = "Convert images in [0, 1] with (255 * X).round().astype(numpy.uint8)"
    elif len(images) < 2:
        fix = "Pass more images"
    elif channels not in (1, 3) or len({*sides}) > 1 or sides[0] % SIDE:
        fix = "Pad images with numpy.pad"
    else:
        return images
    expected = (
        "at least 2 images, uint8 (n, 1 or 3 channels, size, size) with a size divisible by "
        f"{SIDE}, or a table"
    )
    raise unexpected("X", expected, f"{images.dtype} {images.shape}", fix)


def _rows_of(rows: Any) -> Any:
    """Return rows as an array, if they have one type."""
    array = np.asarray(rows)
    return rows if array.dtype == object else array
