"""Command ``sample``."""

from pathlib import Path

import click

from submanifold.common.errors import unexpected
from submanifold.inference.commands.options import (
    MAX_PNG,
    ExpandedPath,
    as_sheet,
    check_path,
    device_option,
    dim_option,
    echo_path,
    label_option,
    load_predictor,
    model_argument,
    out_option,
    write_arrays,
    write_rows,
)
from submanifold.inference.outputs import TABLES, default_output, output


@click.command()
@model_argument
@click.argument("table", nargs=-1, type=ExpandedPath())
@click.option(
    "-n", "count", type=int, help="Number of samples.  [default: 64; for each row of TABLE 1]"
)
@click.option("--temperature", type=float, default=1.0, show_default=True, help="0 to 10.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@dim_option
@label_option
@out_option(
    "PNG file of all samples, or .npz file of the array samples; for rows, CSV or Parquet file.  "
    "[default: samples.png; for rows samples.csv]"
)
@device_option
def sample(
    model: str,
    table: tuple[str, ...],
    count: int | None,
    temperature: float,
    dim: int | None,
    label: int | None,
    seed: int,
    out: Path | None,
    device: str,
) -> None:
    """Draw samples from the manifold.

    A model that is conditional on columns needs a TABLE with them, and draws samples for each of
    its rows. Other models need none.
    """
    predictor = load_predictor(model, device, dim)
    if table and predictor.condition is None:
        expected = "none for a model that is not conditional on columns"
        raise unexpected("TABLE", expected, table[0], "Omit it")
    count = (64 if predictor.condition is None else 1) if count is None else count
    out = out or default_output("samples", ".csv" if predictor.is_table else ".png")
    suffixes = TABLES if predictor.is_table else (".png", ".npz")
    check_path("--out", out, suffixes, predictor, model, table)
    is_png = out.suffix.lower() == ".png"
    if is_png and (count > MAX_PNG or not predictor.is_image):
        expected = f"at most {MAX_PNG:,} images in a PNG file"
        got = f"{count:,} samples of shape {predictor.model.event_shape}"
        raise unexpected(f"--out={out}", expected, got, "Use an .npz file")
    read = None
    if table:
        from submanifold.inference.inputs import read_rows

        read = read_rows(table, predictor, only_condition=True)
    condition = read.events if read else None
    samples = predictor.sample(count, temperature, seed, label=label, condition=condition)
    if predictor.is_table:
        write_rows(out, samples, read)
    elif is_png:
        with output("--out", out) as partial:
            partial.write_bytes(as_sheet(samples, columns=8))
        echo_path(out)
    else:
        write_arrays(out, {"samples": samples})
