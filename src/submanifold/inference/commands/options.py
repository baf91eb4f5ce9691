"""Arguments and options that commands share, and what they read and write.

Commands import NumPy and torch when they run.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from submanifold.common.errors import UserError, import_extra, printable, unexpected
from submanifold.common.files import expand_user
from submanifold.inference.outputs import (
    check_output,
    output,
    unused,
    without_formulas,
)
from submanifold.inference.records import model_path

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from submanifold.inference.inputs import Inputs
    from submanifold.inference.predictor import Predictor

log = logging.getLogger(__name__)

MAX_PNG = 10_000  #: Number of images in a PNG file.
MAX_TRAINING = 0.1  #: Share of training images or rows among inputs without a message.
MAX_STEM = 50  #: Characters of an image's name in the name of the file of its projection.


class ExpandedPath(click.Path):
    """A path in which ``~`` is the home folder, which shells do not expand after ``--out=``."""

    def convert(self, value: Any, *args: Any) -> Any:
        """Expand the path, then check it."""
        return super().convert(str(expand_user(value)), *args)


model_argument = click.argument("model")
device_option = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:<n>."
)
label_option = click.option(
    "--label",
    type=int,
    metavar="LABEL",
    help="Label of all inputs or samples, for a model that is conditional on it.",
)
id_option = click.option(
    "--id",
    "identifier",
    metavar="COLUMN",
    help="Column of a table that "
    "identifies its rows: no input of the model, but the first column of the "
    "scores.",
)
dim_option = click.option("--dim", type=int, metavar="N", help="Use only the first N coordinates.")


def out_option(text: str) -> Callable[[Any], Any]:
    """Add the option of the path of an output."""
    return click.option("--out", type=ExpandedPath(path_type=Path), help=text)


def input_options(command: Any) -> Any:
    """Add the arguments and options of commands that read images or tables."""
    for decorator in (
        device_option,
        label_option,
        click.option("--nearest", is_flag=True, help="Search the nearest projection (slower)."),
        click.argument("inputs", nargs=-1, required=True, type=ExpandedPath()),
        model_argument,
    ):
        command = decorator(command)
    return command


def load_predictor(name: str, device: str, dim: int | None = None) -> "Predictor":
    """Load a model by the name of a run or its path, and use threads for the command."""
    path = model_path(name)
    from submanifold.common.device import choose_device
    from submanifold.common.threads import use_threads
    from submanifold.inference.predictor import Predictor

    click.get_current_context().with_resource(use_threads("auto"))
    model: Any = Predictor.load(path, str(choose_device(device))).model
    if dim is not None and not hasattr(model, "at_dim"):
        raise UserError(f"--dim: expected none for a {model.kind}, got {dim}. Omit it.")
    return Predictor(model if dim is None else model.at_dim(dim))


def check_path(
    option: str,
    path: Path,
    suffixes: tuple[str, ...],
    predictor: "Predictor",
    model: str,
    inputs: Sequence[str] = (),
) -> None:
    """Check the path of an output, which must not replace the model or an input."""
    from submanifold.data.images import SUFFIXES

    replaces = predictor.is_table or path.suffix.lower() in SUFFIXES
    check_output(option, path, suffixes, [model_path(model), *(inputs if replaces else ())])


def read_inputs(
    predictor: "Predictor", paths: Sequence[str], identifier: str | None = None
) -> "Inputs":
    """Read the images or rows of a model from files."""
    from submanifold.inference.inputs import read_images, read_rows

    if predictor.is_table:
        return read_rows(paths, predictor, identifier=identifier)
    if "size" in predictor.model.data:
        return read_images(paths, predictor.model.data)
    fix = "Use the hierarchy.safetensors of a run on images or on a table"
    raise unexpected("MODEL", "a model of images or of a table", "one of points", fix)


def training_share_of(predictor: "Predictor", read: "Inputs", label: int | None) -> float:
    """Estimate the share of training images or rows among those that were read."""
    from submanifold.inference.training_events import MAX_EVENTS, hash_events, training_share

    known = predictor.model.calibration.get("training")
    if not known:
        return 0.0
    events = predictor.events(read.events[:MAX_EVENTS], label)
    return training_share(known, hash_events(predictor.model, events))


def write_rows(path: Path, frame: "pd.DataFrame", read: "Inputs | None") -> None:
    """Write a table, after a column of the names of the images or rows that were read."""
    if read is not None:
        frame.insert(0, unused(read.label, frame), [read.names[number] for number in frame.index])
    with output("--out", path) as partial:
        if path.suffix.lower() == ".csv":
            without_formulas(frame).to_csv(partial, index=False)
        else:
            import_extra("pyarrow", "parquet")
            frame.to_parquet(partial, index=False)
    echo_path(path)


def write_arrays(path: Path, arrays: "dict[str, np.ndarray]") -> None:
    """Write arrays to an .npz file."""
    import numpy as np

    with output("--out", path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    echo_path(path)


def as_sheet(images: "np.ndarray", columns: int) -> bytes:
    """Draw images on a sheet, as a PNG."""
    from submanifold.plots.images import as_png, sample_sheet

    return as_png(sample_sheet(images, columns))


def picture_name(number: int, name: str) -> str:
    """Return the name of the file of a picture."""
    return f"{number:05d}-{Path(name).stem[:MAX_STEM]}.png"


def echo_path(path: Path) -> None:
    """Print the path of an output."""
    click.echo(printable(str(path)))
