"""Export of a model with its preprocessing and calibration, for programs without this package."""

import copy
import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from submanifold.common.errors import import_extra, unexpected
from submanifold.data.batches import add_noise, quantize
from submanifold.data.tables import Preprocessor
from submanifold.data.tables.columns import MISSING, SNAP, TAIL, Column
from submanifold.data.tables.preprocessor import (
    HASH_STEPS,
    LOG_2_PI,
    MAX_HASHED,
    UNKNOWN_NATS,
    mix,
    uniform,
)
from submanifold.evaluation.calibration import COMBINATION, HUGE
from submanifold.evaluation.likelihood import ROW_DRAWS, Draws
from submanifold.evaluation.scores import SMOOTHED_DENSITY, score_batch
from submanifold.flows import Flow, context_of
from submanifold.inference.outputs import output
from submanifold.inference.predictor import Predictor
from submanifold.models.export import EXAMPLES, export_function
from submanifold.models.mixture import Mixture
from submanifold.models.model import bits_per_dim

log = logging.getLogger(__name__)

OUTPUTS = ("log_prob", "anomaly_score", "p_value", "is_ood", "u", "projection")
SUFFIXES = (".onnx", ".pt2")


def export(predictor: Predictor, path: str | Path) -> None:
    """Write a model as one graph without Python: ``.onnx``, or ``.pt2`` of torch.export.

    Its inputs are ``images``, uint8 (batch, channels, size, size), and ``png_bits``, int64
    (batch,), the bits of each as an optimized PNG; or ``rows``, float64 (batch, columns), the
    columns of the training table that are not ignored, with numbers of categories, seconds since
    1970 for dates, and NaN for missing values; and
    ``alpha``, float64. Its outputs, :data:`OUTPUTS`, are those of :meth:`.Predictor.score`, the
    encoder's u, and the default projection. The noise that dequantizes images is another one, which
    they determine, too. The entry ``submanifold`` of the metadata, or the extra file
    ``submanifold.json``, has the format of the images, or columns and their categories, as JSON.

    Raises:
        UserError: There is no calibration, or the model depends on a context, has charts or no
            density, or operators that cannot be exported; or the extra ``export`` is missing.
    """
    path = Path(path)
    is_onnx = path.suffix.lower() == ".onnx"
    predictor = replace(predictor, model=copy.deepcopy(predictor.model).requires_grad_(False))
    model, calibration, table = predictor.model, predictor.calibrated(), predictor.preprocessor
    if is_onnx:
        import_extra("onnxscript", "export")
    unsupported = {
        "a condition": bool(context_of(model)),
        "charts": isinstance(model, Mixture),
        "no density on all of space": not model.has_density,
        "points": table is None and not predictor.is_image,
    }
    if names := [name for name, applies in unsupported.items() if applies]:
        expected = "one hierarchy with a density of images or of a table, to export it"
        raise unexpected("MODEL", expected, f"one with {' and '.join(names)}", "Use another model")
    alpha = torch.tensor(0.05, dtype=torch.float64)
    if table is None:
        images = torch.zeros(EXAMPLES, *model.event_shape, dtype=torch.uint8)
        inputs, about = {"images": images, "alpha": alpha}, model.data
    else:
        columns = {column.name: column.names for column in table_columns(table)}
        rows = torch.zeros(EXAMPLES, len(columns), dtype=torch.float64)
        inputs, about = {"rows": rows, "alpha": alpha}, {"columns": columns}
    if "complexity" in calibration.combined:
        inputs["png_bits"] = torch.zeros(EXAMPLES, dtype=torch.int64)
    try:
        log.info("Tracing the model, which takes one to a few minutes")
        program = export_function(scorer(predictor), *inputs.values())
        if is_onnx:
            log.info("Converting the graph to ONNX")
            # onnxruntime optimizes, too, and torch's optimizer drops nodes that are used
            with warnings.catch_warnings(action="ignore"):  # about torch's own code
                graph: Any = torch.onnx.export(
                    program,
                    dynamo=True,
                    verbose=False,
                    optimize=False,
                    input_names=[*inputs],
                    output_names=OUTPUTS,
                )
            graph.model.metadata_props["submanifold"] = json.dumps(about)
    except Exception as error:  # torch raises nearly anything
        flows = {type(part).__name__ for part in model.modules() if isinstance(part, Flow)}
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        got = f"an error for one of {', '.join(flows)} ({reason})"
        raise unexpected("MODEL", "a model that torch can export", got) from error
    with output("FILE", path) as partial:
        if is_onnx:
            graph.save(partial)
        else:
            files = {"submanifold.json": json.dumps(about)}
            with partial.open("wb") as file:  # of a path, torch wants the suffix
                torch.export.save(program, file, extra_files=files)


def scorer(predictor: Predictor) -> Callable[..., tuple[Tensor, ...]]:
    """Return :func:`export`'s function of events, alpha, and ``png_bits`` if they are a score."""
    model, calibration = predictor.model, predictor.calibrated()
    read, write = _images(model.event_dim) if predictor.is_image else _rows(predictor.columns)
    names = {*calibration.combined, "density"}
    combine, p_values = calibration.combination(), calibration.p_values_of(COMBINATION)
    largest = float(calibration.quantiles[COMBINATION][-1])

    def score(*inputs: Tensor) -> tuple[Tensor, ...]:
        events, alpha, *png_bits = inputs
        x, log_det, unknown, draws = read(events)
        scores = score_batch(model, x, np.empty(0), names, draws=draws)
        if png_bits:
            bits = model.event_dim * bits_per_dim(-scores["density"], model.event_dim, 8)
            scores["complexity"] = bits - png_bits[0]
        for name in {"density", SMOOTHED_DENSITY} & scores.keys():
            scores[name] = scores[name] + UNKNOWN_NATS * unknown
        combination, log_prob = combine(scores), log_det - scores["density"]
        combination = torch.where(unknown > 0, combination.clamp_min(largest), combination)
        p = p_values(torch.where(unknown > 0, HUGE, combination))
        u = model.encode(x)[0]
        return log_prob, combination, p, p <= alpha, u, write(model.project(x))

    return score


def _images(dim: int) -> tuple[Callable[..., Any], ...]:
    factors = np.random.default_rng(0).integers(2**31, size=dim)
    weights, known = torch.from_numpy(factors), torch.tensor(0)

    def read(images: Tensor) -> tuple[Any, ...]:
        state = (images.flatten(1).long() * weights).sum(1)
        noise = uniform(state, dim).float().view(images.shape)
        return add_noise(images.int(), noise), 0.0, known, None

    return read, quantize


def _rows(preprocessor: Preprocessor) -> tuple[Callable[..., Any], ...]:
    """Return :class:`.Preprocessor` as functions of tensors: rows to vectors, and back."""
    columns = preprocessor.varying

    def numbers(value: Callable[..., float]) -> Tensor:
        return torch.tensor([*map(value, columns)], dtype=torch.float64)

    names = [column.name for column in table_columns(preprocessor)]
    places = torch.tensor([names.index(column.name) for column in columns])
    origin, offset = numbers(lambda c: c.origin), numbers(lambda c: c.offset)
    scale, step = numbers(lambda c: c.scale), numbers(lambda c: c.step or 0)
    fill = numbers(lambda c: c.names.index(MISSING) if c.missing == "category" else np.nan)
    is_category = numbers(lambda c: c.kind == "categorical") > 0
    is_flag = numbers(lambda c: c.is_flag) > 0
    is_noise = numbers(lambda c: c.missing == "noise") > 0
    log_scale, may_be_missing = scale.log(), torch.tensor([*preprocessor.missing_codes]).long()
    snap = numbers(lambda c: 0 if c.levels or not c.step else SNAP * c.step)
    last, unit = numbers(lambda c: c.high), numbers(lambda c: c.step or 1)

    def read(rows: Tensor) -> tuple[Any, ...]:
        values = rows.index_select(1, places)
        is_missing = values.isnan()
        values = torch.where(is_flag, is_missing.double(), values)
        values = torch.where(is_missing & ~is_flag, fill, values)
        missing_number = is_missing & is_noise
        is_unknown = is_category & ~((values >= 0) & (values <= last) & (values == values.floor()))
        values = torch.where(is_unknown, last, values)
        snapped = values - origin
        on_grid = (snapped / unit).round() * unit
        snapped = torch.where((snapped - on_grid).abs() < snap, on_grid, snapped)
        standard = ((snapped - offset) / scale).clamp(-MAX_HASHED, MAX_HASHED)
        standard = torch.where(missing_number, 0.0, standard)
        hashed = (HASH_STEPS * standard).round().long().unbind(1)

        def dequantize(salt: int) -> tuple[Tensor, Tensor]:
            state = torch.full_like(hashed[0], salt)
            for column in hashed:
                state = mix(state ^ column)
            noise, other_noise = uniform(state, 2 * len(columns)).chunk(2, 1)
            normal = (-2 * noise.log()).sqrt() * (2 * torch.pi * other_noise).cos()
            shifted = snapped + step * noise
            ends = shifted, last + 1 - shifted
            left, right = (end.clamp(2.0**-40, TAIL) for end in ends)
            moved = left - right + TAIL * ((right / TAIL).log() - (left / TAIL).log())
            shifted = torch.where(is_category, shifted - moved, shifted)
            ends = shifted, last + 1 - shifted
            tails = sum((1 - end / TAIL).clamp_min(0) for end in ends)
            x = torch.where(missing_number, normal, (shifted - offset) / scale).float()
            log_weights = torch.where(is_category, tails, 0.0)
            log_weights += torch.where(missing_number, (normal.square() + LOG_2_PI) / 2, 0.0)
            return x, log_weights.sum(1)

        draws = None
        if any(column.step for column in columns):
            salts = range(-1, -1 - ROW_DRAWS, -1)
            drawn, log_weights = map(torch.stack, zip(*map(dequantize, salts), strict=True))
            draws = Draws(drawn, log_weights, is_missing[:, may_be_missing])
        log_det = preprocessor.log_det + torch.where(missing_number, log_scale, 0.0).sum(1)
        return dequantize(0)[0], log_det, is_unknown.sum(1), draws

    def write(x: Tensor) -> Tensor:
        shifted = x.double() * scale + offset
        cells = torch.where(step > 0, (shifted / unit).floor() * unit, shifted)
        cells = torch.where(is_category, cells.clamp_min(0.0).minimum(last), cells)
        by_name: dict[str, Tensor] = {}
        for column, values, rounded in zip(
            columns, shifted.unbind(1), (cells + origin).unbind(1), strict=True
        ):
            by_name[column.feature] = rounded
            if column.levels:
                levels = torch.tensor(column.levels, dtype=torch.float64)
                index = (levels - column.origin <= values[:, None]).sum(1) - 1
                by_name[column.name] = levels[index.clamp_min(0)]
        zeros = torch.zeros_like(shifted[:, 0])
        outputs = []
        for column in table_columns(preprocessor):
            values = by_name.get(column.name, zeros + column.origin)
            flag = by_name.get(f"{column.name}={MISSING}", zeros)
            if column.missing == "category":
                flag = values == column.names.index(MISSING)
            outputs.append(torch.where(flag > 0, torch.nan, values))
        return torch.stack(outputs, 1)

    return read, write


def table_columns(preprocessor: Preprocessor) -> list[Column]:
    """Return the columns of the inputs, in their order: those of the table without ignored ones."""
    return [
        column for column in preprocessor.columns if column.kind != "ignored" and not column.is_flag
    ]
