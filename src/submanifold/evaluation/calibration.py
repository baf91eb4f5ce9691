"""Conformal calibration of anomaly scores on normal events: p-values and a combined score."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import scipy  # submodules load on first use; scipy.stats takes half a second
import torch
from pydantic import Field, PlainSerializer, PlainValidator, model_validator

from submanifold.common.errors import UserError, unexpected
from submanifold.common.settings import Settings, read_settings
from submanifold.data.events import Events, EventsLike, as_events
from submanifold.evaluation.attribution import column_quantiles
from submanifold.evaluation.intervals import false_alarm_range, proportion_interval
from submanifold.evaluation.likelihood import table_of
from submanifold.evaluation.scores import (
    MASK,
    MISSING_OFFSETS,
    NEIGHBOR_DISTANCE,
    NEIGHBOR_OFFSETS,
    NOISE_SCALE,
    QUICK,
    SMOOTHED_DENSITY,
    best_noise_scale,
    fit_missing_offsets,
    mask_weights,
    missing_offsets,
    score,
)
from submanifold.flows import is_noise_conditional
from submanifold.models import CrossFitted, Model

log = logging.getLogger(__name__)

COMBINATION = "combination"
SUMMED = SMOOTHED_DENSITY, NEIGHBOR_DISTANCE  # scores whose combination is a sum
MAX_DEVIATIONS = 8.0
RIDGE = 0.03
TINY, HUGE = 1e-12, 1e30
ROUNDING = 1e-6  # relative; scores of an event in batches of different sizes differ by it
SMALLEST_WIDTH = 1e-3  # relative, of scores of which most are equal
DECIMALS = 3  # of the combination, whose rounding errors are larger where scores are equal
LEVELS = np.concatenate([[0.0], 1 / (1 + np.exp(np.linspace(9, -9, 361))), [1.0]])
FALSE_ALARM_RATES = (0.1, 0.05, 0.01, 0.001)
FOLDS = 10
MAX_TRAINING = 10_000  # training rows that determine the scores of missing values
MIN_IMAGES = 20
"""Nine of ten folds have 18, more than two for each score, and the smallest p-value is below 5%."""


def _read_array(numbers: Any) -> np.ndarray:
    """Convert nested lists to an array, with NaN for None."""
    return np.array(numbers, float)


def _list_numbers(array: np.ndarray) -> Any:
    """Invert :func:`_read_array`, without rounding: rounded quantiles would break ties."""
    numbers = array.astype(object)
    numbers[~np.isfinite(array)] = None
    return numbers.tolist()


Array = Annotated[np.ndarray, PlainValidator(_read_array), PlainSerializer(_list_numbers)]
Scores = Mapping[str, Array]  # scores (N,) by name


def calibrate(
    model: Model,
    events: EventsLike,
    device: torch.device,
    train: EventsLike | None = None,
) -> dict[str, Any]:
    """Fit a :class:`Calibration` to the quick scores of validation data, (N, ...).

    Events without finite scores count as the most anomalous. The result is a JSON-able dict, or the
    reason ``why`` there are too few events with finite scores. Training events ``train`` determine
    :func:`.missing_offsets` and :func:`.mask_weights`, which otherwise stay as they are.
    """
    model, events = model.to(device), as_events(events)
    combined, scale, offsets = QUICK, None, model.calibration.get(MISSING_OFFSETS, [])
    mask = model.calibration.get(MASK, [])
    if train is not None:
        mask = mask_weights(model, as_events(train[:MAX_TRAINING]))
    if is_noise_conditional(model) and model.has_density and len(events):
        combined, scale = SUMMED, best_noise_scale(model, events)
        if train is not None:
            at_scale = model.with_facts(calibration={NOISE_SCALE: scale})
            offsets = missing_offsets(at_scale, as_events(train[:MAX_TRAINING]))
    optional = {MISSING_OFFSETS: offsets, MASK: mask}
    scored_with = {NOISE_SCALE: scale} | {name: value for name, value in optional.items() if value}
    scores = score(model.with_facts(calibration=scored_with), events, (*QUICK, MASK))
    return _fitted(scores, combined, events, scored_with)


def _fitted(
    scores: Scores,
    combined: Sequence[str],
    events: Events,
    scored_with: Mapping[str, Any],
) -> dict[str, Any]:
    """Fit a calibration to the scores of events, or say why that is not possible."""
    kind = "images" if events.x.dtype == np.uint8 else "rows"
    is_finite = _has_finite_scores(scores)
    if count := int((~is_finite).sum()):
        text = "%d of %d validation %s have no finite scores; they count as the most anomalous"
        log.warning(text, count, len(events), kind)
    names = events.rows if events.groups is None else None
    try:
        fitted = Calibration.fit(scores, combined, events.groups, kind, names)
    except UserError as error:
        return {**scored_with, "why": str(error)}
    quantiles = column_quantiles(events.x[is_finite]).tolist() if events.x.ndim == 2 else []
    return fitted.model_copy(update={**scored_with, "column_quantiles": quantiles}).to_dict()


def cross_calibrate(
    model: CrossFitted, events: Events, fold: np.ndarray, device: torch.device
) -> dict[str, Any]:
    """Fit a :class:`Calibration` to the scores of all events (N, D) that trained a model.

    Each is scored by the model of its fold, from ``fold`` (N,), which has not seen it; a new event
    by the mean over the models. Results are those of :func:`calibrate`.
    """
    model, of_folds = model.to(device), [fold == number for number in range(len(model.folds))]
    table = table_of(model)
    has_missing = table is not None and len(table.maskable) > 0
    smoothed, mask = np.zeros(len(events)), np.zeros(len(events))
    scales = [
        best_noise_scale(member, events[held_out])
        for member, held_out in zip(model.folds, of_folds, strict=True)
    ]
    scale = float(np.mean(scales))
    for member, held_out in zip(model.folds, of_folds, strict=True):
        calibration = {NOISE_SCALE: scale, MASK: mask_weights(model, events[~held_out])}
        of_fold = member.with_facts(data=model.data, calibration=calibration)
        of_held_out = replace(events[held_out], changes=None)  # changes count as distances
        scores = score(of_fold, of_held_out, (SMOOTHED_DENSITY, MASK))
        smoothed[held_out] = scores[SMOOTHED_DENSITY]
        mask[held_out] = scores.get(MASK, 0.0)
    scored_with: dict[str, Any] = {NOISE_SCALE: scale}
    scores = {SMOOTHED_DENSITY: smoothed}
    if table is not None and model.neighbors is not None:
        places = torch.from_numpy(table.without_noise(events.x, events.context)).to(device)
        distances = np.zeros(len(events))
        for number, held_out in enumerate(of_folds):
            distance = model.neighbors.distance(places[torch.from_numpy(held_out)], number)
            distances[held_out] = distance.cpu().numpy()
        if events.changes is not None:
            distances = model.neighbors.with_changes(distances, events.changes)
        scores[NEIGHBOR_DISTANCE] = distances
    if table is not None and has_missing:
        is_missing = table.missing(events.context, len(events)).astype(float)
        offsets = {SMOOTHED_DENSITY: MISSING_OFFSETS, NEIGHBOR_DISTANCE: NEIGHBOR_OFFSETS}
        for name, values in scores.items():
            fitted = fit_missing_offsets(is_missing, values)
            scored_with[offsets[name]] = fitted
            scores[name] = values - is_missing @ np.array(fitted)
        scored_with[MASK] = mask_weights(model, events)
        scores[MASK] = mask
    return _fitted(scores, SUMMED, events, scored_with)


def false_alarms(
    p_values: np.ndarray,
    calibrated: int,
    groups: np.ndarray | None = None,
    smallest_p_value: float = 0.0,
) -> list[dict[str, Any]]:
    """Compare promised with observed rates of false alarms, of at least 1 / (calibrated + 1).

    The p-values (N,) are of normal images that neither trained nor calibrated the model; groups of
    them have equal weights, as those that are ``calibrated``. Rates below the
    ``smallest_p_value`` of the calibration, at which no event is flagged, are left out.
    """
    rows = []
    for rate in FALSE_ALARM_RATES:
        if rate >= max(smallest_p_value, 1 / (calibrated + 1)):
            alarms = p_values <= rate
            observed = proportion_interval(alarms, groups)
            low, high = false_alarm_range(rate, observed.get("groups", len(alarms)), calibrated)
            rows.append(
                {
                    "rate": rate,
                    "flagged": int(alarms.sum()),
                    "observed": observed,
                    "expected": {"low": low, "high": high},
                }
            )
    return rows


class Calibration(Settings):
    r"""Quantiles of the scores of normal images, which turn scores into p-values.

    The p-value of a score is the fraction of normal images, including the new one, that score at
    least as high. With :math:`z_i = \Phi^{-1}(1 - p_i)`, scores are combined to

    .. math:: (z - \bar z)^T C^{-1} (z - \bar z)

    with mean and covariance over the normal images, so that a score that is too small given the
    others is anomalous, too (compare Morningstar et al. 2021). Outside the range of normal scores,
    z is extrapolated by standard deviations up to 8. A single score is its own combination, and
    that of :data:`SUMMED` scores is

    .. math:: \sum_i \operatorname{asinh}\frac{s_i - \operatorname{median} s_i}{q_i}

    with the distance q of their quartiles over the normal images.

    Combination and typicality of the normal images are cross-fitted in ten folds, and new images
    are compared with the pooled values (cross-conformal prediction: Vovk 2015), so that about a
    fraction alpha of normal images has a p-value of at most alpha. Groups of images, such as
    patches of one photograph, are in one fold and have equal weights, and p-values count groups
    (hierarchical conformal prediction: Lee, Barber & Willett 2023).

    Normal images without a finite score count as more anomalous than all others, so that p-values
    of finite scores include them, and their own p-value is the smallest.

    The scores of rows of a table that belong to no groups are kept with the names of the rows, so
    that anomalies among them can be set aside (:meth:`without`).
    """

    count: int = Field(ge=1, le=2**53)  # of images
    groups: int = Field(ge=1, le=2**53)  # by default each image is one
    median: float | None  # negative median of the density in nats, if there is one
    combined: tuple[str, ...] = Field(min_length=1)  # names of scores
    quantiles: Scores  # at LEVELS, including those of the combination
    mean: Array  # of z, (scores,)
    precision: Array  # inverse of C, (scores, scores)
    noise_scale: float | None = Field(default=None, ge=0, le=1)  # of smoothed_density, if a score
    missing_offsets: Sequence[float] = ()  # of smoothed_density by column with missing values
    neighbor_offsets: Sequence[float] = ()  # of neighbor_distance
    mask: Sequence[Sequence[float]] = ()  # weights of the score of this name
    events: Literal["images", "rows"] = "images"  # what is scored, in messages
    training: Sequence[int] = ()  # hashes of training events
    column_quantiles: Sequence[Sequence[float]] = ()  # of rows, (levels, D), to explain others
    # the share of images without finite scores; quantiles are of the others
    infinite_share: float = Field(default=0.0, ge=0, lt=1)
    rows: Sequence[str] = ()  # names in the table
    scores: Scores = Field(default_factory=dict)  # of these rows

    @model_validator(mode="after")
    def _check_shapes(self) -> "Calibration":
        size = len(self.combined)
        is_sorted = all(
            values.shape == LEVELS.shape and (np.diff(values) >= 0).all()
            for values in self.quantiles.values()
        )
        fits = {
            "groups": self.groups <= self.count,
            "quantiles": is_sorted and {*self.combined, COMBINATION} <= self.quantiles.keys(),
            "mean": self.mean.shape == (size,) and np.isfinite(self.mean).all(),
            "precision": self.precision.shape == (size, size) and np.isfinite(self.precision).all(),
            "scores": not self.rows or {*self.combined} <= self.scores.keys(),
            "rows": all(len(values) == len(self.rows) for values in self.scores.values()),
            "column_quantiles": len({len(row) for row in self.column_quantiles}) <= 1,
        }
        if wrong := [name for name, is_right in fits.items() if not is_right]:
            raise ValueError(f"{wrong[0]}: expected values of Calibration.to_dict, got others")
        return self

    @classmethod
    def fit(
        cls,
        scores: Scores,
        combined: Sequence[str],
        groups: np.ndarray | None = None,
        events: str = "images",
        rows: Sequence[Any] | np.ndarray | None = None,
    ) -> "Calibration":
        """Fit to scores (N,) by name of normal images that the model was not trained on.

        Those of the `combined` names are combined. ``rows`` are names in a table, (N,). Fewer than
        20 events with finite scores, or nearly all of one group, raise a :class:`UserError`.
        """
        combined = tuple(name for name in combined if name in scores)
        numbers = np.arange(len(scores[combined[0]])) if groups is None else groups
        _, group, sizes = np.unique(numbers, return_inverse=True, return_counts=True)
        fold = np.random.default_rng(0).permutation(len(sizes))[group] % FOLDS
        is_finite, count = _has_finite_scores(scores), len(numbers)
        empty = cls.model_construct(
            count=count, groups=len(sizes), median=None, combined=combined, events=events
        )
        finite_in_folds = np.bincount(fold[is_finite], minlength=FOLDS)
        if finite_in_folds.sum() - finite_in_folds.max() < MIN_IMAGES * (1 - 1 / FOLDS):
            expected = f"at least {MIN_IMAGES}, of which nine tenths are outside any one group"
            cross = "set calibration=cross, " if events == "rows" else ""
            fix = (
                f"Increase data.counts.valid, use more data, {cross}or calibrate on others "
                "(`submanifold calibrate`)"
            )
            got = empty.basis
            if not is_finite.all():
                got += f", {(~is_finite).sum():,} of them without finite scores"
            raise unexpected(f"Validation {events} for a calibration", expected, got, fix)
        weights = 1 / sizes[group]
        infinite_share = float(weights[~is_finite].sum() / weights.sum())
        if rows is not None:
            names = [str(row) for row in rows]
            empty = empty.model_copy(update={"rows": names, "scores": scores})
        scores = {name: values[is_finite] for name, values in scores.items()}
        fold, weights = fold[is_finite], weights[is_finite]
        held_out: dict[str, np.ndarray] = {}
        for number in np.unique(fold):
            is_left = fold == number
            kept, left = ({k: v[rows] for k, v in scores.items()} for rows in (~is_left, is_left))
            for name, values in empty._fit(kept, weights[~is_left]).complete(left).items():
                held_out.setdefault(name, np.zeros(len(fold)))[is_left] = values
        about_all = {
            "count": count,
            "quantiles": _quantiles(held_out, weights),
            "infinite_share": infinite_share,
        }
        return empty._fit(scores, weights).model_copy(update=about_all)

    def _fit(self, scores: Scores, weights: np.ndarray) -> "Calibration":
        """Fit what :meth:`complete` needs to the scores (N,) of images with weights (N,)."""
        median = -float(np.median(scores["density"])) if "density" in scores else None
        quantiles = _quantiles(scores, weights)
        about = {"count": len(weights), "median": median, "quantiles": quantiles}
        fitted = self.model_copy(update=about)
        z = fitted._normal_scores(scores)
        covariance = np.atleast_2d(np.cov(z.T, aweights=weights)) + RIDGE * np.eye(z.shape[1])
        mean = np.average(z, axis=0, weights=weights)
        return fitted.model_copy(update={"mean": mean, "precision": np.linalg.inv(covariance)})

    @property
    def basis(self) -> str:
        """The numbers of events and groups, as text."""
        in_groups = "" if self.groups == self.count else f" in {self.groups:,} groups"
        return f"{self.count:,} {self.events}{in_groups}"

    @property
    def smallest_p_value(self) -> float:
        """The smallest possible p-value, that of events without a finite score."""
        return (1 + self.groups * self.infinite_share) / (self.groups + 1)

    def most_anomalous(self, count: int) -> list[str]:
        """Return the names of the normal rows with the highest scores, if they are known."""
        if not self.scores:
            return []
        order = np.argsort(-_finite(self.complete(self.scores)[COMBINATION]), kind="stable")
        return [self.rows[number] for number in order[:count]]

    def without(self, rows: Collection[str]) -> "Calibration":
        """Return the calibration on the other rows; a UserError if these are too few."""
        kept = ~np.isin(self.rows, [*rows])
        scores = {name: values[kept] for name, values in self.scores.items()}
        names = np.array(self.rows)[kept]
        fitted = Calibration.fit(scores, self.combined, None, self.events, names)
        kept_fields = {
            "noise_scale",
            "missing_offsets",
            "neighbor_offsets",
            "mask",
            "training",
            "column_quantiles",
        }
        return fitted.model_copy(update={name: getattr(self, name) for name in kept_fields})

    def complete(self, scores: Scores) -> dict[str, np.ndarray]:
        """Add the ``combination`` and, if there is a ``density``, the ``typicality``."""
        complete = dict(scores)
        if self.median is not None:
            complete["typicality"] = np.abs(scores["density"] + self.median)
        return {**complete, COMBINATION: self._combine(complete)}

    def _combine(self, scores: Scores) -> np.ndarray:
        """Combine scores (N,) by name to one, (N,)."""
        if len(self.combined) == 1:
            return np.array(scores[self.combined[0]], float)
        if self.combined == SUMMED:
            return self._sum(scores)
        z = self._normal_scores(scores) - self.mean
        return ((z @ self.precision) * z).sum(1).round(DECIMALS)

    def _sum(self, scores: Scores) -> np.ndarray:
        """Sum scores (N,) by name, on a common scale that is logarithmic far away, (N,)."""
        total = np.zeros(len(scores[self.combined[0]]))
        for name in self.combined:
            quartiles = np.interp([0.25, 0.5, 0.75], LEVELS, self.quantiles[name])
            low, middle, high = quartiles.tolist()
            width = max(high - low, SMALLEST_WIDTH * abs(middle), TINY)
            total += np.arcsinh((_finite(scores[name]) - middle) / width)
        return total

    def p_values(self, name: str, values: np.ndarray) -> np.ndarray:
        """Return the p-values, (N,) between the smallest and 1, of values (N,) of a score."""
        finite = _finite(values)
        # negated, so that normal scores that equal a value count as at least as high
        normal, shares = -self.quantiles[name][::-1], 1 - LEVELS[::-1]
        above_finite = np.interp(ROUNDING * np.abs(finite) - finite, normal, shares)
        above = self.infinite_share + (1 - self.infinite_share) * above_finite
        return (1 + self.groups * above) / (self.groups + 1)

    def threshold(self, name: str, alpha: float) -> float:
        """Return the value of a score above which p-values are below `alpha`, or its largest."""
        above = (alpha * (self.groups + 1) - 1) / self.groups
        above_finite = (above - self.infinite_share) / (1 - self.infinite_share)
        value = float(np.interp(1 - above_finite, LEVELS, self.quantiles[name]))
        return value + ROUNDING * abs(value)

    def _normal_scores(self, scores: Scores) -> np.ndarray:
        """Compute z of the combined scores, (N, scores), from scores (N,) by name."""
        half = 0.5 / (self.count * (1 - self.infinite_share))
        normal = scipy.special.ndtri(LEVELS.clip(half, 1 - half))
        columns = []
        for name in self.combined:
            quantiles, values = self.quantiles[name], _finite(scores[name])
            low, middle, high = np.interp([0.159, 0.5, 0.841], LEVELS, quantiles)
            width = max((high - low) / 2, SMALLEST_WIDTH * abs(middle), TINY)
            rounding = ROUNDING * np.abs(values)
            ends = (np.interp(values + sign * rounding, quantiles, normal) for sign in (-1, 1))
            z = sum(ends) / 2  # the middle of equal ones
            columns.append(z + (values - values.clip(*quantiles[[0, -1]])) / width)
        return np.stack(columns, 1).clip(-MAX_DEVIATIONS, MAX_DEVIATIONS)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict."""
        return self.model_dump(mode="json")

    @classmethod
    def of(cls, model: Model) -> "Calibration | None":
        """Return the calibration of a model; None without one, or with the reason ``why``."""
        return cls.from_dict(model.calibration) if "groups" in model.calibration else None

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Calibration":
        """Invert :meth:`to_dict`; a UserError if another description is given."""
        fix = "Write it again with `submanifold calibrate`, or train the model again."
        return read_settings(cls, stored, "calibration", fix)


def _has_finite_scores(scores: Scores) -> np.ndarray:
    """Return whether all scores (N,) of each event are finite: booleans (N,)."""
    return np.all([np.isfinite(values) for values in scores.values()], axis=0)


def _quantiles(scores: Scores, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return weighted quantiles at :data:`LEVELS`; with equal weights they are NumPy's."""
    quantiles = {}
    for name, values in scores.items():
        order = np.argsort(values)
        middles = np.cumsum(weights[order]) - weights[order] / 2
        levels = (middles - middles[0]) / (middles[-1] - middles[0])
        quantiles[name] = np.interp(LEVELS, levels, _finite(values[order]))
    return quantiles


def _finite(values: np.ndarray) -> np.ndarray:
    finite = np.nan_to_num(np.asarray(values, float), nan=HUGE, posinf=HUGE, neginf=-HUGE)
    return finite.clip(-HUGE, HUGE)
