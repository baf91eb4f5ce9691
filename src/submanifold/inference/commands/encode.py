"""Command ``encode``."""

from pathlib import Path

import click

from submanifold.inference.commands.options import (
    check_path,
    input_options,
    load_predictor,
    out_option,
    read_inputs,
    write_arrays,
    write_rows,
)
from submanifold.inference.outputs import TABLES, default_output


@click.command()
@input_options
@out_option(
    "File of the arrays names, u and v, or CSV or Parquet file of the columns u0, ..., v0, ...  "
    "[default: codes.npz; for rows codes.csv]"
)
def encode(
    model: str,
    inputs: tuple[str, ...],
    out: Path | None,
    nearest: bool,
    label: int | None,
    device: str,
) -> None:
    """Write the coordinates of INPUTS on the manifold (u) and off the manifold (v)."""
    predictor = load_predictor(model, device)
    import numpy as np

    from submanifold.inference.predictor import code_frame

    out = out or default_output("codes", ".csv" if predictor.is_table else ".npz")
    check_path("--out", out, (".npz", *TABLES), predictor, model, inputs)
    read = read_inputs(predictor, inputs)
    u, v = predictor.encode(read.events, "nearest" if nearest else "encoder", label=label)
    if out.suffix.lower() in TABLES:
        write_rows(out, code_frame(u, v), read)
    else:
        write_arrays(out, {"names": np.array(read.names), "u": u, "v": v})
