"""One predictor: a trained model, the preprocessing of its inputs, and its calibration."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from submanifold.common.errors import UserError, unexpected
from submanifold.common.processes import check_memory
from submanifold.common.progress import ProgressBar, track
from submanifold.common.threads import tuned
from submanifold.data.batches import as_input, to_context
from submanifold.data.events import Events, as_events
from submanifold.data.images import crop_and_resize
from submanifold.data.tables import Preprocessor
from submanifold.data.tables.columns import named
from submanifold.data.tables.preprocessor import UNKNOWN_NATS, as_frame, events_of
from submanifold.evaluation.attribution import explain
from submanifold.evaluation.calibration import COMBINATION, Calibration
from submanifold.evaluation.discoveries import select
from submanifold.evaluation.likelihood import log_prob, to_bits_per_dim
from submanifold.evaluation.samples import stored
from submanifold.evaluation.scores import (
    MASK,
    QUICK,
    SMOOTHED_DENSITY,
    score_batch,
    with_changes,
)
from submanifold.flows import context_of, is_noise_conditional
from submanifold.flows.context import Context, context_array
from submanifold.models import Model
from submanifold.models.model import ProjectionKind

MAX_TEMPERATURE, MAX_SAMPLES = 10.0, 10_000_000
IMAGE_BATCH, ROW_BATCH, SAMPLE_BATCH = 128, 4096, 64

Label = int | np.ndarray | None  #: A label from 0 for all events, or one for each (N,).


@dataclass(frozen=True)
class Predictor:
    """Applies a trained model to images, rows of a table or vectors, in the user's units.

    Images are uint8 (N, channels, size, size) in the format of the training images; or of any size
    as files are decoded, (N, height, width) or (N, height, width, channels), uint8 or floats in
    [0, 1], which are cropped and resized like the training images. Results are uint8 (N, channels,
    size, size).

    Rows are a DataFrame with the columns of the training table in any order, or an array
    (N, columns) with all of them in their order, and results are of the same type, in the units of
    the table. A model that is conditional on columns finds them in the same table; its densities
    and coordinates are those of the other columns. Models of other vectors take float32 (N, D).

    A predictor does not change, so that threads can share it. All methods raise a
    :class:`.UserError` for arguments that are out of range, do not fit the model, or do not fit in
    memory. The ``label`` is that of all images, or an array (N,), for a model that is conditional
    on it. ``nearest`` projections take longer (:meth:`.Model.project`).

    Args:
        model: The model, with its ``data`` and ``calibration``.
        batch_size: Events in a batch; by default 128 images or 4,096 rows or vectors.

    Example:
        >>> from submanifold.flows import RealNVP
        >>> from submanifold.models import Hierarchy, Stage
        >>> table = pd.DataFrame({"age": [31, 45, 45, 27], "weight": [70.5, 81.2, 64.9, 59.0]})
        >>> model = Hierarchy([Stage(RealNVP(2), dim=1)])
        >>> model = model.with_facts(data={"table": Preprocessor.fit(table).to_dict()})
        >>> predictor = Predictor(model)  # of a file: Predictor.load("hierarchy.safetensors")
        >>> predictor.log_prob(table).shape, predictor.encode(table)[0].shape
        ((4,), (4, 1))
        >>> projected, squared_errors = predictor.project(table)
        >>> list(projected), list(predictor.sample(3))
        (['age', 'weight'], ['age', 'weight'])
    """

    model: Model
    batch_size: int | None = None

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> Self:
        """Read a model file onto ``auto``, ``cpu``, ``cuda`` or ``cuda:<n>``.

        A UserError names a file whose model, data or calibration cannot be used.
        """
        predictor = cls(Model.load(path, device))
        try:
            predictor._check()
        except Exception as error:  # forged data raise any
            reason = " ".join(str(error).split()).removesuffix(".")
            fix = "Pass a file written by Model.save, such as the hierarchy.safetensors of a run"
            raise unexpected(path, "data and a calibration of its model", reason, fix) from error
        return predictor

    def _check(self) -> None:
        """Raise an error if the model's data or calibration are not those of such a model."""
        data, model = self.model.data, self.model
        Calibration.of(model)
        if self.is_table and self.preprocessor is not None:
            size, sizes = model.event_dim, context_of(model)
            columns, mask = sizes.get("columns", 0), sizes.get("mask", 0)
            if len(self.preprocessor.varying) != size:
                raise ValueError(f"data.table: expected {size} columns that vary")
            self.preprocessor.inverse_transform(np.zeros((1, size)))
            self.preprocessor.draw_missing(1, 0)
            given = 0 if self.condition is None else self.condition.indicator_count
            if (len(self.preprocessor.maskable), given) != (mask, columns - mask):
                raise ValueError(
                    f"data: expected a context of {columns} columns and a mask of {mask}"
                )
        if self.is_image and "size" in data:
            size, shape = data["size"], tuple(model.event_shape)
            if (data["channels"], size, size) != shape:
                raise ValueError(f"data.size: expected that of images {shape}, got {size}")
            if data.get("crop", "square") not in ("square", "celeba"):
                raise ValueError("data.crop: expected square or celeba")
            margin = data.get("margin", 0)
            if not isinstance(margin, int) or not 0 <= 2 * margin < size:
                raise ValueError("data.margin: expected less than half of the size")

    @cached_property
    def preprocessor(self) -> Preprocessor | None:
        """The preprocessor of the columns that the model describes; None without a table."""
        return Preprocessor.from_dict(self.model.data["table"]) if self.is_table else None

    @cached_property
    def condition(self) -> Preprocessor | None:
        """The preprocessor of the columns that the model is conditional on, if any."""
        has_columns = self.is_table and "condition" in self.model.data
        return Preprocessor.from_dict(self.model.data["condition"]) if has_columns else None

    @cached_property
    def columns(self) -> Preprocessor:
        """The preprocessor of all columns: those that the model describes, and the condition."""
        if self.preprocessor is None:
            kind = "images" if "size" in self.model.data else "points"
            raise UserError(f"model: expected a model of a table, got one of {kind}.")
        condition = () if self.condition is None else self.condition.columns
        return Preprocessor(self.preprocessor.columns + condition, self.preprocessor.ignored)

    @property
    def is_conditional(self) -> bool:
        """Whether the density is given a label or other columns."""
        return self.condition is not None or "classes" in context_of(self.model)

    @cached_property
    def _exact_model(self) -> Model:
        """The model of vectors in float64: far from the data float32 does not invert it."""
        return self.model if self.is_image else copy.deepcopy(self.model).double()

    @cached_property
    def calibration(self) -> Calibration | None:
        """The calibration of the p-values, if there is one."""
        return Calibration.of(self.model)

    @property
    def is_table(self) -> bool:
        """Whether the model was trained on a table."""
        return "table" in self.model.data

    @property
    def is_image(self) -> bool:
        """Whether events are images."""
        return len(self.model.event_shape) == 3

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    def calibrated(self, rate: float | None = None, name: str = "alpha") -> Calibration:
        """Return the calibration; raise a UserError without one that supports a rate."""
        if self.calibration is None:
            reason = self.model.calibration.get("why") or (
                "Use model.with_facts(calibration=calibrate(model, events, device)), or the model "
                "at the end of a run."
            )
            raise UserError(f"model: expected a calibration of p-values, got none. {reason}")
        least = self.calibration.smallest_p_value
        if rate is not None and not rate < 1:
            raise unexpected(name, "a rate below 1, such as 0.05 for 5%", rate)
        if rate is not None and rate < least:
            smallest = f"{least:.3%}"
            if not self.calibration.infinite_share:
                smallest = f"1/{self.calibration.groups + 1:,} ({smallest})"
            raise UserError(
                f"{name}: expected at least {smallest}, the smallest p-value of a calibration on "
                f"{self.calibration.basis}, got {rate:.3%}. "
                f"Use a larger value, or train with more {'rows' if self.is_table else 'images'}."
            )
        return self.calibration

    def score(
        self, x: Any, nearest: bool = False, *, alpha: float | None = None, label: Label = None
    ) -> pd.DataFrame:
        """Compute densities, distances from the manifold, and p-values.

        Returns:
            One row per event. If the model has a density on the whole space: ``log_prob`` (nats, in
            the units of the table, or of pixels in [0, 1]), ``bits_per_dim`` except of tables,
            ``off_manifold_log_prob`` (nats, of v under N(0, I)), and ``complexity`` (bits) of
            images. Always: ``code_log_prob`` (nats, of u under N(0, I)), ``encoder_mse``,
            ``nearest_mse`` if ``nearest`` (of pixels in [0, 1] or standardized columns),
            ``anomaly_score``, and ``p_value``, the fraction of held-out training-like events that
            score at least as high. Of rows with missing values they are those of the others; if the
            training rows have missing values, ``log_prob_mask`` (nats, of which values are missing,
            given the others) and its ``p_value_mask``. With columns of categories
            ``unknown_category``: rows with a category that the training data do not have get the
            smallest p-value, and the density of the rarest category times 1e-6. With a
            false-positive rate ``alpha`` also ``ood``: whether the p-value is at most alpha.
            Densities beyond the range of floats are zero.
        """
        calibration, model = self.calibrated(alpha), self.model
        names = (*QUICK, MASK, *(["nearest_distance"] if nearest else []))

        def score(x: Tensor, context: Context | None, events: Events, rows: Any) -> pd.DataFrame:
            tensors = score_batch(model, x, events.x, names, context, self.preprocessor)
            # numbers near the largest float become NaN
            scores = {k: v.nan_to_num(np.inf, np.inf).cpu().numpy() for k, v in tensors.items()}
            penalties = self._penalties(rows)
            for name in {"density", SMOOTHED_DENSITY} & scores.keys():
                scores[name] = scores[name] + penalties
            if events.changes is not None:
                scores = with_changes(scores, events.changes, model)
            scores = calibration.complete(scores)
            columns = {}
            if model.has_density:
                columns["log_prob"] = -scores["density"]
                if self.is_table:
                    columns["log_prob"] += self._log_det(x, context)
                else:
                    columns["bits_per_dim"] = to_bits_per_dim(-scores["density"], events.x)
                constant = (model.event_dim - model.dim) / 2 * np.log(2 * np.pi)
                columns["off_manifold_log_prob"] = -scores["off_manifold"] - constant
                if "complexity" in scores:
                    columns["complexity"] = scores["complexity"]
            columns["code_log_prob"] = -scores["on_manifold"]
            columns["encoder_mse"] = scores["encoder_distance"]
            columns["p_value"] = calibration.p_values(COMBINATION, scores[COMBINATION])
            columns["anomaly_score"] = scores[COMBINATION]
            if MASK in scores:
                columns["log_prob_mask"] = -scores[MASK]
                columns["p_value_mask"] = calibration.p_values(MASK, scores[MASK])
            if nearest:
                columns["nearest_mse"] = scores["nearest_distance"]
            frame = pd.DataFrame(columns)
            if self.is_table and self.columns.categorical:
                unknown = self.columns.unknown(rows).any(axis=1).to_numpy()
                frame["unknown_category"] = unknown
                frame.loc[unknown, "p_value"] = calibration.smallest_p_value
                largest = calibration.quantiles[COMBINATION][-1]
                frame.loc[unknown, "anomaly_score"] = frame["anomaly_score"].clip(lower=largest)
            if alpha is not None:
                frame["ood"] = frame["p_value"] <= alpha
            return frame

        scores = pd.concat(self._apply(score, x, label, "scoring"), ignore_index=True)
        return scores.set_axis(x.index) if isinstance(x, pd.DataFrame) else scores

    def select(self, p_values: np.ndarray, fdr: float) -> np.ndarray:
        """Select anomalous events (N,) by their p-values, with a false discovery rate ``fdr``.

        On average at most this fraction of the selected events is normal
        (:func:`submanifold.evaluation.discoveries.select`); a false-alarm rate ``alpha`` is the
        fraction of the normal events that is flagged.
        """
        self.calibrated(fdr, "fdr")
        return select(p_values, fdr)

    def explain(self, x: Any, *, label: Label = None) -> pd.DataFrame:
        """Find the three columns that contribute most to the anomaly of rows, largest first.

        A contribution is by how much the log-density (nats) would increase if the column had its
        ``usual`` value and the others stayed as they are; without a density, by how much the
        squared distance from the manifold would decrease.

        Returns:
            Three entries per row, with its label as the index: ``column``, ``value``,
            ``contribution`` and ``usual``; values are text, or "missing".
        """
        columns, quantiles = self.columns, np.array(self.calibrated().column_quantiles)
        rows = self._checked(x, label)
        if not len(quantiles):
            fix = "Write a new file with `submanifold calibrate`, or train it again"
            raise unexpected("model", "quantiles of its columns", "a file without them", fix)
        table = rows.reindex(columns=list(columns.inputs))
        explained = explain(self.model, self._standardized(rows), quantiles, table)
        index = x.index if isinstance(x, pd.DataFrame) else rows.index
        return explained.set_axis(index[explained.pop("number")])

    def log_prob(
        self, x: Any, noise_scale: float | None = None, *, label: Label = None
    ) -> np.ndarray:
        """Compute log-densities in the units of x, (N,) in nats; -inf beyond the range of floats.

        It is the density of the dequantized values: of images that of bytes plus uniform noise in
        [0, 1), and of rows with missing values that of the others. A noise-conditional model
        smooths it at a ``noise_scale`` from 0 (the smallest of the training) to 1.
        """
        if noise_scale is not None and not is_noise_conditional(self.model):
            expected = "None for a model without noise scales"
            raise unexpected("noise_scale", expected, noise_scale, "Omit it")

        def log_prob_of(x: Tensor, context: Context | None, _: Events, rows: Any) -> np.ndarray:
            nats = log_prob(self.model, x, context, self.preprocessor, noise_scale)
            log_probs = nats.double().cpu().numpy() + self._log_det(x, context)
            return log_probs - self._penalties(rows)

        return np.concatenate(self._apply(log_prob_of, x, label, "scoring"))

    def _log_det(self, x: Tensor, context: Context | None) -> Any:
        if self.preprocessor is None:
            return -self.model.event_dim * np.log(256) if self.is_image else 0.0
        return self.preprocessor.log_dets(x.double().cpu().numpy(), context_array(context))

    def _penalties(self, rows: Any) -> Any:
        """Return the nats that unknown categories of rows subtract from their log-densities."""
        if self.preprocessor is None:
            return 0.0
        unknown = self.preprocessor.unknown(_select(rows, self.preprocessor))
        return UNKNOWN_NATS * unknown.sum(axis=1).to_numpy()

    def encode(
        self, x: Any, projection: ProjectionKind = "encoder", *, label: Label = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compute the coordinates on the manifold, u (N, d), and off it, v (N, D - d).

        By default (u, v) decodes to x; otherwise u is that of the ``default`` or the ``nearest``
        projection. Those of vectors and tables are float64.
        """
        model = self._exact_model

        def encode(x: Tensor, context: Context | None, *_: Any) -> tuple[np.ndarray, ...]:
            return tuple(code.cpu().numpy() for code in model.encode(x, projection, context))

        u, v = zip(*self._apply(encode, x, label, "encoding", model), strict=True)
        return np.concatenate(u), np.concatenate(v)

    def decode(self, u: np.ndarray) -> Any:
        """Map coordinates u (N, d) of an unconditional model to points of the manifold.

        Of tables these are rows without missing values.
        """
        if self.is_conditional:
            fix = "Use Model.decode with a context"
            raise unexpected("model", "an unconditional one", "a conditional one", fix)
        model = self._exact_model
        codes = torch.from_numpy(np.array(u)).to(next(model.parameters())).split(self.size)
        mask = 0 if self.preprocessor is None else len(self.preprocessor.maskable)
        points = []
        with torch.no_grad():
            for of_batch in codes:
                context = of_batch.new_zeros(len(of_batch), mask) if mask else None
                points.append(stored(model.decode(of_batch, context=context)))
        return self._in_units(np.concatenate(points))

    def project(
        self, x: Any, nearest: bool = False, *, label: Label = None
    ) -> tuple[Any, np.ndarray]:
        """Project onto the manifold: by a few gradients, or to the nearest point.

        Returns projections in the type and units of x, without a condition, and their mean squared
        errors (N,), of pixels in [0, 1] or standardized columns. Missing values stay missing.
        """
        model = self._exact_model

        def project(x: Tensor, context: Context | None, *_: Any) -> tuple[Any, np.ndarray]:
            projected = model.project(x, nearest, context)
            errors = (x - projected).square().flatten(1).mean(1)
            in_units = self._in_units(stored(projected), context_array(context))
            return in_units, errors.cpu().numpy()

        parts, of_batches = zip(*self._apply(project, x, label, "projecting", model), strict=True)
        errors = np.concatenate(of_batches)
        if not self.is_table:
            return np.concatenate(parts), errors
        frame = pd.concat(parts, ignore_index=True)
        if isinstance(x, pd.DataFrame):
            return frame.set_axis(x.index), errors
        return frame.to_numpy(), errors

    def sample(
        self,
        count: int = 1,
        temperature: float = 1.0,
        seed: int = 0,
        *,
        label: Label = None,
        condition: Any = None,
    ) -> Any:
        """Draw samples on the manifold: images, a DataFrame of rows, or vectors.

        A conditional model draws ``count`` samples for each of the labels, or for each row of a
        table with the columns of the ``condition``, which precede those of the samples. Values are
        missing where they are in random training rows, and those of quantized columns are in the
        range of the training rows: what the density has beyond is moved to its ends.
        """
        if not 1 <= count <= MAX_SAMPLES:
            raise UserError(f"count: expected 1 to {MAX_SAMPLES:,}, got {count:,}.")
        if not 0 <= temperature <= MAX_TEMPERATURE:
            raise UserError(f"temperature: expected 0 to {MAX_TEMPERATURE:g}, got {temperature}.")
        given, rows = self._context(label, condition)
        total = count * (1 if given is None else len(given))
        check_memory("count", total, 8 * self.model.event_dim)  # concatenation copies
        generator, samples = _generator(seed), []
        context = None if given is None else given.repeat(count, axis=0)
        if self.preprocessor is not None:
            mask = self.preprocessor.draw_missing(total, seed)
            parts = [part for part in (mask, context) if part is not None]
            context = np.concatenate(parts, axis=1) if parts else None
        with ProgressBar("sampling", "samples", total) as progress:
            for start in range(0, total, SAMPLE_BATCH):
                size, of_batch = min(SAMPLE_BATCH, total - start), None
                if context is not None:
                    of_batch = torch.from_numpy(context[start : start + size]).to(self.device)
                samples.append(stored(self.model.sample(size, temperature, generator, of_batch)))
                progress.update(size)
        events = np.concatenate(samples)
        if self.preprocessor is None:
            return events
        drawn = self.preprocessor.inverse_transform(events, context, clip=True)
        if rows is None:
            return drawn
        rows = rows.iloc[np.arange(len(rows)).repeat(count)]
        return pd.concat([rows, drawn.set_axis(rows.index)], axis=1)

    def events(self, x: Any, label: Label = None) -> Events:
        """Return what the model describes: uint8 images, or standardized vectors.

        Those of a conditional model have their context.
        """
        return self._standardized(self._checked(x, label))

    @property
    def size(self) -> int:
        """The number of events in a batch."""
        return self.batch_size or (IMAGE_BATCH if self.is_image else ROW_BATCH)

    def _apply(
        self,
        function: Callable[..., Any],
        x: Any,
        label: Label,
        description: str,
        model: Model | None = None,
    ) -> list[Any]:
        """Apply a function to x, context, events before dequantization, and rows of each batch.

        Tensors have the device and the precision of the model.
        """
        checked, weight = self._checked(x, label), next((model or self.model).parameters())

        def batches() -> Iterator[Any]:
            for start in range(0, len(checked), self.size):
                rows = checked[start : start + self.size]
                events = self._standardized(rows)
                context = to_context(events, weight.device, weight.dtype)
                yield as_input(events.x).to(weight), context, events, rows

        prepared = tuned(batches()) if weight.device.type == "cpu" else batches()
        with torch.no_grad():
            return [function(*batch) for batch in track(prepared, description, len(checked))]

    def _checked(self, x: Any, label: Label) -> Any:
        """Return rows with the known columns, or images or vectors with their labels as context."""
        if self.is_table:
            self._labels(label, len(x))
            if self.condition is not None and not isinstance(x, pd.DataFrame):
                expected = "a DataFrame, whose names tell the condition"
                raise unexpected("table", expected, type(x).__name__, "Name the columns")
            rows = self.columns.check_names(as_frame(x, self.columns.inputs)).reset_index(drop=True)
            if rows.empty:
                raise UserError("table: expected at least one row, got none.")
            return rows
        shape, dtype = self.model.event_shape, np.dtype(np.uint8 if self.is_image else np.float32)
        try:
            given = as_events(x if isinstance(x, Events) else np.atleast_1d(np.asarray(x)))
        except ValueError:
            fix = "Bring images to one size with submanifold.data.load_pictures"
            raise unexpected("events", "one shape", "events of several shapes", fix) from None
        events, fix = given.x, "Convert vectors with astype(numpy.float32)"
        if self.is_image:
            events = self._images(events)
            fix = "Or pass images (N, height, width, channels), uint8 or floats in [0, 1]"
        if events.dtype != dtype or events.shape[1:] != shape or not len(events):
            expected = f"{dtype} of shape (N, {', '.join(map(str, shape))}) with N at least 1"
            raise unexpected("events", expected, f"{events.dtype} of shape {events.shape}", fix)
        is_given = label is None and given.context is not None
        return Events(events, given.context if is_given else self._labels(label, len(events)))

    def _images(self, images: np.ndarray) -> np.ndarray:
        """Convert images as files are decoded to the format of the training images."""
        is_single = images.shape[2:] in ((3,), (4,)) or images.shape == self.model.event_shape
        if is_single:
            got = f"one of shape {images.shape}"
            raise unexpected("events", "images (N, ...)", got, "Pass image[None]")
        if images.dtype.kind == "f" and images.size and 0 <= images.min() <= images.max() <= 1:
            images = np.rint(255 * images).astype(np.uint8)
        is_last = images.shape[3:] in ((1,), (3,), (4,)) and images.shape[1] > 4
        is_decoded = images.dtype == np.uint8 and images.size and (images.ndim == 3 or is_last)
        fits = images.shape[1:] == self.model.event_shape
        if fits or not is_decoded or "size" not in self.model.data:
            return images
        form = {
            name: self.model.data[name]
            for name in ("size", "channels", "crop", "margin")
            if name in self.model.data
        }
        squeezed = images[..., 0] if images.shape[3:] == (1,) else images
        return np.stack([crop_and_resize(image, **form) for image in squeezed])

    def _standardized(self, rows: Any) -> Events:
        if self.preprocessor is None:
            return rows
        return events_of(self.preprocessor, self.condition, rows)

    def _in_units(self, events: np.ndarray, context: np.ndarray | None = None) -> Any:
        """Convert events to the user's units, rows with the mask of a context."""
        if self.preprocessor is None:
            return events
        return self.preprocessor.inverse_transform(events, context)

    def _labels(self, label: Label, count: int) -> np.ndarray | None:
        """Return the label of each of the events; None for a model without labels."""
        classes = context_of(self.model).get("classes")
        if classes is None:
            if label is None:
                return None
            expected = "none for a model that is not conditional on a label"
            raise unexpected("label", expected, label, "Omit it")
        labels = np.asarray(label)
        fits = labels.dtype.kind in "iu" and labels.shape in ((), (count,))
        if not fits or labels.min(initial=0) < 0 or labels.max(initial=0) >= classes:
            got = "none" if label is None else label
            expected = f"a label from 0 to {classes - 1}, on which the density is conditional"
            raise unexpected("label", expected, got, "Set it")
        return np.full(count, labels, np.int64)

    def _context(self, label: Label, condition: Any) -> tuple[np.ndarray | None, Any]:
        """Return the contexts (n, ...) of labels or of rows of the condition, and these rows."""
        if self.condition is None or self.preprocessor is None:
            if condition is not None:
                raise UserError("condition: expected none for this model, got one. Omit it.")
            return self._labels(label, np.asarray(label).size), None
        self._labels(label, 1)
        if condition is None:
            names = named(self.condition.features)
            expected = f"a table with the columns that the density is conditional on ({names})"
            raise unexpected("condition", expected, "none", "Pass this table")
        rows = as_frame(condition, self.condition.inputs)
        rows = rows.drop(columns=[*self.preprocessor.inputs], errors="ignore")
        return self.condition.indicators(rows), _select(rows, self.condition)


def code_frame(u: np.ndarray, v: np.ndarray) -> pd.DataFrame:
    """Return coordinates u (N, d) and v (N, D - d) as columns ``u0``, ..., ``v0``, ..."""
    names = [f"u{n}" for n in range(u.shape[1])] + [f"v{n}" for n in range(v.shape[1])]
    return pd.DataFrame(np.concatenate([u, v], 1), columns=names)


def _generator(seed: int) -> torch.Generator:
    if not 0 <= seed < 2**32:  # torch's generator on the CPU ignores higher bits
        raise unexpected("seed", "0 to 4294967295", seed)
    return torch.Generator().manual_seed(seed)


def _select(table: pd.DataFrame, preprocessor: Preprocessor) -> pd.DataFrame:
    return table.loc[:, table.columns.map(str).isin(preprocessor.inputs)]
