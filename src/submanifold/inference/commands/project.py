"""Command ``project``."""

from pathlib import Path

import click

from submanifold.inference.commands.options import (
    as_sheet,
    check_path,
    dim_option,
    echo_path,
    input_options,
    load_predictor,
    out_option,
    picture_name,
    read_inputs,
    write_arrays,
    write_rows,
)
from submanifold.inference.outputs import FOLDER, TABLES, default_output, output, unused


@click.command()
@input_options
@dim_option
@out_option(
    "Folder of PNG files, or .npz file of originals and projections; for rows, CSV or Parquet file "
    "of projections.  [default: projections; for rows projections.csv]"
)
def project(
    model: str,
    inputs: tuple[str, ...],
    out: Path | None,
    nearest: bool,
    dim: int | None,
    label: int | None,
    device: str,
) -> None:
    """Project INPUTS onto the manifold.

    Writes originals, projections and differences of images, or projections of rows in the units of
    the table.
    """
    predictor = load_predictor(model, device, dim)
    import numpy as np

    if out is None:
        is_table = predictor.is_table
        out = default_output("projections", ".csv") if is_table else Path("projections")
    suffixes = TABLES if predictor.is_table else (FOLDER, ".npz")
    check_path("--out", out, suffixes, predictor, model, inputs)
    read = read_inputs(predictor, inputs)
    projections, errors = predictor.project(read.events, nearest, label=label)
    unit = "standardized columns" if predictor.is_table else "pixels in [0, 1]"
    click.echo(f"mean squared error {errors.mean():.6f}, {unit}")
    if predictor.is_table:
        write_rows(out, projections.assign(**{unused("mse", projections): errors}), read)
    elif out.suffix != FOLDER:
        arrays = {"originals": read.events, "projections": projections, "mse": errors}
        write_arrays(out, {"names": np.array(read.names), **arrays})
    else:
        with output("--out", out) as folder:
            pairs = zip(read.names, read.events, projections, strict=True)
            for number, (name, *pair) in enumerate(pairs):
                difference = np.clip(pair[0].astype(int) - pair[1] + 128, 0, 255).astype(np.uint8)
                content = as_sheet(np.stack([*pair, difference]), 3)
                (folder / picture_name(number, name)).write_bytes(content)
        echo_path(out)
