"""Command ``calibrate``."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from submanifold.common.errors import list_names, unexpected
from submanifold.inference.commands.options import (
    MAX_TRAINING,
    ExpandedPath,
    check_path,
    device_option,
    echo_path,
    label_option,
    load_predictor,
    model_argument,
    out_option,
    read_inputs,
    training_share_of,
)
from submanifold.inference.outputs import default_output

if TYPE_CHECKING:
    from submanifold.evaluation.calibration import Calibration
    from submanifold.inference.predictor import Predictor


@click.command()
@model_argument
@click.argument("inputs", nargs=-1, type=ExpandedPath())
@click.option(
    "--without",
    metavar="ROWS",
    help="Instead of INPUTS: rows of MODEL's own calibration that are anomalies, with commas, "
    "which are set aside. `score --fdr` names them.",
)
@label_option
@out_option("Model file with the new calibration.  [default: calibrated.safetensors]")
@device_option
def calibrate(
    model: str,
    inputs: tuple[str, ...],
    without: str | None,
    label: int | None,
    out: Path | None,
    device: str,
) -> None:
    """Calibrate the p-values of MODEL on normal INPUTS that it was not trained on.

    With --without, leave anomalies out of the calibration of MODEL, that of a table.

    Writes a copy of the model, for the other commands. MODEL keeps its calibration.
    """
    predictor = load_predictor(model, device)
    out = out or default_output("calibrated", ".safetensors")
    check_path("--out", out, (".safetensors",), predictor, model, inputs)
    if bool(inputs) == (without is not None):
        expected, got = "either these or --without", "both" if inputs else "neither"
        raise unexpected("INPUTS", expected, got, "Omit one" if inputs else "Add one")
    unit = "rows" if predictor.is_table else "images"
    from submanifold.inference.predictor import Predictor

    before = predictor.model
    if without is None:
        fitted = _fit(predictor, inputs, label, unit)
    else:
        fitted = _without(predictor, without.split(",")).to_dict()
    training = before.calibration.get("training", [])
    calibrated = before.with_facts(calibration={**fitted, "training": training})
    calibration = Predictor(calibrated).calibrated()
    calibrated.save(out)
    click.echo(
        f"calibrated on {calibration.count:,} {unit}; the smallest p-value is "
        f"{calibration.smallest_p_value:.3%}"
    )
    echo_path(out)


def _fit(
    predictor: "Predictor", inputs: tuple[str, ...], label: int | None, unit: str
) -> dict[str, Any]:
    import numpy as np

    from submanifold.evaluation.calibration import MIN_IMAGES, calibrate

    read = read_inputs(predictor, inputs)
    if len(read.names) < MIN_IMAGES:
        raise unexpected("INPUTS", f"at least {MIN_IMAGES} {unit}", len(read.names), "Add more")
    if (share := training_share_of(predictor, read, label)) > MAX_TRAINING:
        expected = f"{unit} that the model was not trained on"
        raise unexpected("INPUTS", expected, f"about {share:.0%} of these", "Use others")
    events = predictor.events(read.events, label)
    if predictor.is_table:
        # rows with unknown categories count as the most anomalous
        is_unknown = predictor.columns.unknown(read.events).any(axis=1).to_numpy()
        x = np.where(is_unknown[:, None], np.nan, events.x).astype(np.float32)
        events = replace(events, x=x, rows=np.array(read.names))
    return calibrate(predictor.model, events, predictor.device)


def _without(predictor: "Predictor", rows: list[str]) -> "Calibration":
    calibration = predictor.calibrated()
    if not calibration.rows:
        expected = "none for a model whose calibration has no names of rows"
        raise unexpected("--without", expected, list_names(rows), "Omit it, and pass INPUTS")
    if unknown := sorted({*rows} - {*calibration.rows}):
        fix = "Copy them from `submanifold score --fdr`"
        expected = "rows of the table that calibrate MODEL"
        raise unexpected("--without", expected, list_names(unknown), fix)
    return calibration.without(rows)
