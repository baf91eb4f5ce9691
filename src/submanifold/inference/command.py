"""Commands that apply a trained model to images or tables.

They import NumPy and torch when they run.
"""

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from submanifold.common.errors import UserError, import_extra, printable, unexpected
from submanifold.common.files import expand_user
from submanifold.inference.outputs import (
    FOLDER,
    TABLES,
    check_output,
    default_output,
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

MAX_SHEET = 32  #: Number of restorations on a sheet.
MAX_PNG = 10_000  #: Number of images in a PNG file.
MAX_TRAINING = 0.1  #: Share of training images or rows among inputs without a message.
RESTORED = re.compile(r"\d{5}-.*\.png|sheet\.png|restorations\.csv")  #: Files of restorations.
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


def out_option(text: str, default: str | None = None) -> Callable[[Any], Any]:
    """Add the option of the path of an output."""
    return click.option(
        "--out", type=ExpandedPath(path_type=Path), default=default, help=text, show_default=True
    )


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
    _echo(out)


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
        _write_arrays(out, {"names": np.array(read.names), "u": u, "v": v})


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
        _write_arrays(out, {"names": np.array(read.names), **arrays})
    else:
        with output("--out", out) as folder:
            pairs = zip(read.names, read.events, projections, strict=True)
            for number, (name, *pair) in enumerate(pairs):
                difference = np.clip(pair[0].astype(int) - pair[1] + 128, 0, 255).astype(np.uint8)
                content = as_sheet(np.stack([*pair, difference]), 3)
                (folder / _picture(number, name)).write_bytes(content)
        _echo(out)


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
        _echo(out)
    else:
        _write_arrays(out, {"samples": samples})


@click.command()
@model_argument
@click.argument("pictures", nargs=-1, required=True, type=ExpandedPath())
@click.option(
    "--task",
    required=True,
    help="denoise:0.1 (standard deviation of the noise), "
    "inpaint:mask.png (black pixels are missing) or inpaint:12 (a square hole), "
    "superresolve:4 (factor), deblur:1.5 (standard deviation of the kernel, pixels), or "
    "sense:600 (number of random measurements).",
)
@click.option(
    "--noise",
    type=float,
    help="Standard deviation of the noise of the observations, "
    "pixels in [0, 1].  [default: 0.01, or that of denoise]",
)
@click.option(
    "--simulate",
    is_flag=True,
    help="PICTURES are clean: make the observations from them, and measure the errors.",
)
@click.option(
    "--iterations", type=click.IntRange(3), help="Iterations of the sampler.  [default: 30]"
)
@dim_option
@label_option
@out_option("Folder of PNG files and restorations.csv.", "restorations")
@device_option
def restore(
    model: str,
    pictures: tuple[str, ...],
    task: str,
    noise: float | None,
    simulate: bool,
    iterations: int | None,
    dim: int | None,
    label: int | None,
    out: Path,
    device: str,
) -> None:
    """Restore PICTURES: denoise, inpaint, superresolve or deblur them, with the model as the prior.

    PICTURES are the observations, in the size of the model's images, or smaller by the factor of
    superresolve. With --simulate they are clean images of any size.

    Writes the restorations (posterior means), maps of their errors (four times the posterior
    standard deviations), and sheet.png: observation, restoration and map of the first 32 in rows.
    """
    predictor = load_predictor(model, device)
    check_output("--out", out, (FOLDER,), [model_path(model)], RESTORED)
    import numpy as np
    import pandas as pd
    import torch
    from PIL import Image

    from submanifold.common.processes import check_memory
    from submanifold.evaluation.reconstruction import psnr
    from submanifold.evaluation.samples import stored
    from submanifold.inference.inputs import read_images
    from submanifold.inverse.operators import Inpaint, Sense, parse
    from submanifold.inverse.restoration import CHAINS, CONVERGED, ITERATIONS, LEVEL, coverage

    if not predictor.is_image or "size" not in predictor.model.data:
        raise UserError("MODEL: expected a model of images, got another one. Use another model.")
    try:
        problem = parse(task, predictor.model.event_shape, noise)
    except UserError as error:
        raise UserError(f"--{error}") from error
    iterations = iterations or ITERATIONS
    if not simulate and isinstance(problem.operator, Sense):
        expected = "--simulate, because random measurements are not pictures. Add --simulate"
        raise UserError(f"--task={task}: expected {expected}.")
    form, hint = predictor.model.data, None
    if not simulate:  # pictures in the size of the observations
        channels, side, _ = predictor.model.event_shape
        size = side // getattr(problem.operator, "factor", 1)
        form = {"size": size, "channels": channels, "crop": "square"}
        hint = (
            f"The model knows only images of {side} x {side} pixels. Restore crops of {size} x "
            f"{size} pixels, or add --simulate: it makes observations from clean pictures of "
            "any size."
        )
    read = read_images(pictures, form, hint)
    size = 4 * (CHAINS * iterations + 4) * predictor.model.event_dim
    check_memory("PICTURES", len(read.names), size)
    x = (torch.from_numpy(read.events).float() + 0.5) / 256
    if simulate:
        y = problem.observe(x, torch.Generator().manual_seed(1))
    else:
        y = problem.operator(x) if isinstance(problem.operator, Inpaint) else x
    restored = predictor.restore(
        y, problem.operator, problem.noise, dim=dim, iterations=iterations, label=label
    )
    residual = (problem.operator(restored.image) - y).flatten(1).square().mean(1).sqrt()
    table = pd.DataFrame(
        {
            "picture": read.names,
            "std": restored.std.flatten(1).square().mean(1).sqrt(),
            "residual": residual / problem.noise,
            "acceptance": restored.acceptance,
            "r_hat": restored.r_hat,
            "converged": restored.r_hat <= CONVERGED,
        }
    )
    if simulate:
        errors = (restored.image - x).square().flatten(1).mean(1).double().numpy()
        table = table.assign(psnr=psnr(errors), coverage=coverage(restored, x))
    drawn = (problem.draw(y, restored.image), restored.image, 4 * restored.std)
    shown = [stored(images - 0.5) for images in drawn if images is not None]
    sheet = np.stack([images[:MAX_SHEET] for images in shown], 1)
    with output("--out", out, RESTORED) as folder:
        for end, images in zip(("", "-std"), shown[-2:], strict=True):
            for number, (name, image) in enumerate(zip(read.names, images, strict=True)):
                picture = Image.fromarray(image.transpose(1, 2, 0).squeeze())
                picture.save(folder / _picture(number, name, end))
        content = as_sheet(sheet.reshape(-1, *sheet.shape[2:]), sheet.shape[1])
        (folder / "sheet.png").write_bytes(content)
        table.to_csv(folder / "restorations.csv", index=False)
    if simulate:
        click.echo(
            f"PSNR {table['psnr'].mean():.2f} dB; {table['coverage'].mean():.1%} of the "
            f"pixels are inside the posterior's intervals of {LEVEL:.0%}"
        )
    _echo(out)


COMMANDS = [calibrate, encode, project, sample, restore]


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
    _echo(path)


def _write_arrays(path: Path, arrays: "dict[str, np.ndarray]") -> None:
    import numpy as np

    with output("--out", path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    _echo(path)


def as_sheet(images: "np.ndarray", columns: int) -> bytes:
    """Draw images on a sheet, as a PNG."""
    from submanifold.plots.images import as_png, sample_sheet

    return as_png(sample_sheet(images, columns))


def _picture(number: int, name: str, end: str = "") -> str:
    """Return the name of the file of a picture."""
    return f"{number:05d}-{Path(name).stem[:MAX_STEM]}{end}.png"


def _echo(path: Path) -> None:
    click.echo(printable(str(path)))
