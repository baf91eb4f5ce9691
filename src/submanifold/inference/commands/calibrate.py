"""Command ``calibrate``."""

from pathlib import Path

import click

from submanifold.common.errors import unexpected
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


@click.command()
@model_argument
@click.argument("inputs", nargs=-1, required=True, type=ExpandedPath())
@label_option
@out_option("Model file with the new calibration.  [default: calibrated.safetensors]")
@device_option
def calibrate(
    model: str, inputs: tuple[str, ...], label: int | None, out: Path | None, device: str
) -> None:
    """Calibrate the p-values of MODEL on normal INPUTS that it was not trained on.

    Writes a copy of the model, for the other commands. MODEL keeps its calibration.
    """
    predictor = load_predictor(model, device)
    out = out or default_output("calibrated", ".safetensors")
    check_path("--out", out, (".safetensors",), predictor, model, inputs)
    from submanifold.evaluation.calibration import MIN_IMAGES
    from submanifold.evaluation.calibration import calibrate as fit
    from submanifold.inference.predictor import Predictor

    read = read_inputs(predictor, inputs)
    unit = "rows" if predictor.is_table else "images"
    if len(read.names) < MIN_IMAGES:
        raise unexpected("INPUTS", f"at least {MIN_IMAGES} {unit}", len(read.names), "Add more")
    if (share := training_share_of(predictor, read, label)) > MAX_TRAINING:
        expected = f"{unit} that the model was not trained on"
        raise unexpected("INPUTS", expected, f"about {share:.0%} of these", "Use others")
    fitted, before = predictor.model, predictor.model.calibration
    fitted.calibration = fit(fitted, predictor.events(read.events, label), predictor.device)
    fitted.calibration["training"] = before.get("training", [])
    least = Predictor(fitted).calibrated().smallest_p_value
    fitted.save(out)
    click.echo(f"calibrated on {len(read.names):,} {unit}; the smallest p-value is {least:.3%}")
    echo_path(out)
