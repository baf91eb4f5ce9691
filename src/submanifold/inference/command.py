"""Commands that apply a trained model to images or tables.

They import NumPy and torch when they run.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from submanifold.common.errors import UserError
from submanifold.common.files import printable
from submanifold.common.imports import without_garbage_collection
from submanifold.inference.outputs import (
    FOLDER,
    TABLES,
    TableWriter,
    check_not_input,
    check_output,
    output,
    unused,
)
from submanifold.inference.records import model_path

if TYPE_CHECKING:
    import numpy as np

    from submanifold.inference.image_files import ImageFiles
    from submanifold.inference.inputs import Inputs
    from submanifold.models import Model

MAX_SHEET = 32
"""Number of most and of least anomalous images on a sheet."""
MAX_PNG = 10_000
"""Number of images in a PNG file."""
IMAGE_BATCH, ROW_BATCH = 128, 4096
MAX_STEM = 50
"""Characters of an image's name in the name of the file of its projection."""


def _rate(ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    """Parse a false-positive rate such as 1% or 0.01."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d*\.?\d+)\s*(%?)", text.strip(), re.ASCII)
    value = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < value < 1:
        raise click.BadParameter(
            f"expected a rate between 0 and 1, such as 1% or 0.01, got {text}."
        )
    return value


model_argument = click.argument("model")
device_option = click.option("--device", default="auto", show_default=True,
                             help="auto, cpu, cuda or cuda:<n>.")  # fmt: skip
label_option = click.option("--label", type=int, metavar="LABEL", help="Label of all inputs or "
                            "samples, for a model that is conditional on it.")  # fmt: skip
dim_option = click.option("--dim", type=int, metavar="N", help="Use only the first N coordinates.")


def out_option(default: str | None, suffixes: tuple[str, ...], text: str,
               name: str = "--out") -> Callable[[Any], Any]:  # fmt: skip
    """Add the path of an output, which is checked before the command runs."""

    def check(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
        if path is not None:
            check_output(name, path, suffixes)
        return path

    return click.option(name, type=click.Path(path_type=Path), default=default, help=text,
                        show_default=True, callback=check)  # fmt: skip


def input_options(command: Any) -> Any:
    """Add the arguments and options of commands that read images or tables."""
    for decorator in (
        click.option(
            "--batch-size",
            type=click.IntRange(1, 4096),
            help=f"[default: {IMAGE_BATCH} images or {ROW_BATCH} rows]",
        ),
        device_option,
        label_option,
        click.option("--exact", is_flag=True, help="Search the nearest projection (slower)."),
        click.argument("inputs", nargs=-1, required=True, type=click.Path()),
        model_argument,
    ):
        command = decorator(command)
    return command


@click.command()
@input_options
@out_option("scores.csv", TABLES, "CSV or Parquet file of the scores.")
@out_option(None, (".png",), "PNG file of the most and the least anomalous images.", "--sheet")
@click.option("--alpha", callback=_rate, metavar="RATE", help="False-positive rate: images or rows "
              "with a p-value of at most RATE, such as 1%, are out-of-distribution.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Continue an interrupted command after the last "
              "batch in its file <out>.part.")  # fmt: skip
def score(
    model: str, inputs: tuple[str, ...], out: Path, sheet: Path | None, alpha: float | None,
    resume: bool, exact: bool, label: int | None, device: str, batch_size: int | None,
) -> None:  # fmt: skip
    """Write the densities, distances from the manifold, and p-values of INPUTS.

    The p-value is the fraction of held-out training-like images or rows that score at least as
    high. The log-density of rows is in the units of the table.
    """
    file = model_path(model)
    loaded = _load(file, device)
    from submanifold.evaluation.intervals import false_alarm_range
    from submanifold.inference.inputs import given_label, is_table
    from submanifold.inference.score_file import ScoreFile, score_files
    from submanifold.inference.scoring import load_calibration

    calibration = load_calibration(loaded, alpha)
    given = given_label(loaded, label)
    if sheet is not None and is_table(loaded):
        raise UserError("--sheet: expected none for a model of a table. Omit it.")
    files = _find(loaded, file, inputs, {"--out": out, "--sheet": sheet})
    batch_size = batch_size or _batch_size(loaded)
    stat = file.stat()
    settings = {"model": [str(file.resolve()), stat.st_size, stat.st_mtime_ns], "alpha": alpha,
                "exact": exact, "batch_size": batch_size,
                **({} if label is None else {"label": label})}  # fmt: skip
    unlisted = len(files.skipped)
    table = ScoreFile(out, files, settings, resume)
    with given:
        score_files(loaded, files, table, alpha, exact, batch_size)
    _echo_skipped(unlisted + len(files) - len(table.numbers))
    import numpy as np

    order = np.argsort(-np.array(table.scores), kind="stable")
    click.echo(f" p-value  {files.label}, the most anomalous first")
    for row in order[:5]:
        click.echo(f"{table.p_values[row]:8.4f}  {files.names[table.numbers[row]]}")
    if alpha is not None:
        count = len(table.p_values)
        low, high = false_alarm_range(alpha, count, calibration.groups)
        flagged = int((np.array(table.p_values) <= alpha).sum())
        click.echo(
            f"{flagged} of {count} {files.unit} are flagged (p-value at most {alpha:g}); "
            f"if all were like the training {files.unit}, {count * low:.0f} to {count * high:.0f} "
            "would be in 95% of cases."
        )
    if sheet is not None:
        _write_sheet(sheet, cast("ImageFiles", files), [table.numbers[row] for row in order])
    _echo(out)


@click.command()
@input_options
@out_option(
    None,
    (".npz", *TABLES),
    "File of the arrays names, u and v, or CSV or Parquet file of the columns u0, ..., v0, ...  "
    "[default: codes.npz; for rows codes.csv]",
)
def encode(
    model: str, inputs: tuple[str, ...], out: Path | None, exact: bool, label: int | None,
    device: str, batch_size: int | None,
) -> None:  # fmt: skip
    """Write the coordinates of INPUTS on the manifold (u) and off the manifold (v)."""
    file = model_path(model)
    loaded = _load(file, device)
    import numpy as np

    from submanifold.inference.inputs import given_label
    from submanifold.inference.scoring import encode_events

    given, batch_size = given_label(loaded, label), batch_size or _batch_size(loaded)
    out = _default(out, loaded, "codes.csv", "codes.npz")
    if out.suffix.lower() not in TABLES:
        codes = 8 * loaded.event_dim  # float32; concatenation copies
        names, events = _read(loaded, file, inputs, {"--out": out}, codes)
        with given:
            u, v = encode_events(loaded, events, exact, batch_size)
        return _write(out, {"names": np.array(names), "u": u, "v": v})
    from submanifold.inference.tables import code_frame, to_events

    files = _find(loaded, file, inputs, {"--out": out})
    suffix = out.suffix.lower()
    with given, output("--out", out) as partial, TableWriter(partial, suffix) as writer:
        for labels, batch in _labeled_batches(files, batch_size, "encoding"):
            frame = code_frame(*encode_events(loaded, to_events(loaded, batch), exact, batch_size))
            frame.insert(0, unused(files.label, frame), labels)
            writer.write(frame)
    return _echo(out)


@click.command()
@input_options
@dim_option
@out_option(
    None,
    (".npz", FOLDER, *TABLES),
    "Folder of PNG files, or .npz file of originals and projections; for rows, CSV or Parquet file "
    "of projections.  [default: projections; for rows projections.csv]",
)
def project(
    model: str, inputs: tuple[str, ...], out: Path | None, exact: bool, dim: int | None,
    label: int | None, device: str, batch_size: int | None,
) -> None:  # fmt: skip
    """Project INPUTS onto the manifold.

    Writes originals, projections and differences of images, or projections of rows in the units of
    the table.
    """
    file = model_path(model)
    loaded = _load(file, device, dim)
    import numpy as np

    from submanifold.inference.inputs import given_label, is_table
    from submanifold.inference.scoring import project_events

    given, batch_size = given_label(loaded, label), batch_size or _batch_size(loaded)
    out = _default(out, loaded, "projections.csv", "projections")
    _check_format(out, loaded, "a folder or an .npz file")
    if is_table(loaded):
        return _project_rows(loaded, file, inputs, out, exact, batch_size)
    names, pixels = _read(loaded, file, inputs, {"--out": out}, 2 * loaded.event_dim)
    with given:
        projections, errors = project_events(loaded, pixels, exact, batch_size)
    click.echo(f"mean squared error {errors.mean():.6f}, pixels in [0, 1]")
    if out.suffix != FOLDER:
        arrays = {"originals": pixels, "projections": projections, "mse": errors}
        return _write(out, {"names": np.array(names), **arrays})
    with output("--out", out) as folder:
        for number, (name, *pair) in enumerate(zip(names, pixels, projections, strict=True)):
            difference = np.clip(pair[0].astype(int) - pair[1] + 128, 0, 255).astype(np.uint8)
            file = folder / f"{number:05d}-{Path(name).stem[:MAX_STEM]}.png"
            file.write_bytes(_png(np.stack([*pair, difference]), columns=3))
    return _echo(out)


def _project_rows(
    model: "Model", file: Path, inputs: tuple[str, ...], out: Path, exact: bool, batch_size: int
) -> None:
    from submanifold.inference.tables import project_table

    files, total, count = _find(model, file, inputs, {"--out": out}), 0.0, 0
    with output("--out", out) as partial, TableWriter(partial, out.suffix.lower()) as writer:
        for labels, batch in _labeled_batches(files, batch_size, "projecting"):
            frame, errors = project_table(model, batch, exact)
            frame.insert(0, unused(files.label, frame), labels)
            frame[unused("mse", frame)] = errors
            writer.write(frame)
            total, count = total + float(errors.sum()), count + len(errors)
    click.echo(f"mean squared error {total / count:.6f}, standardized columns")
    _echo(out)


@click.command()
@model_argument
@click.argument("table", nargs=-1, type=click.Path())
@click.option("-n", "count", type=int, help="Number of samples.  [default: 64; for each row of "
              "TABLE 1]")  # fmt: skip
@click.option("--temperature", type=float, default=1.0, show_default=True, help="0 to 10.")
@click.option("--seed", type=int, default=0, show_default=True)
@dim_option
@label_option
@out_option(
    None,
    (".png", ".npz", *TABLES),
    "PNG file of all samples, or .npz file of the array samples; for rows, CSV or Parquet file.  "
    "[default: samples.png; for rows samples.csv]",
)
@device_option
def sample(
    model: str, table: tuple[str, ...], count: int | None, temperature: float, dim: int | None,
    label: int | None, seed: int, out: Path | None, device: str,
) -> None:  # fmt: skip
    """Draw samples from the manifold.

    A model that is conditional on columns needs a TABLE with them, and draws samples for each of
    its rows. Other models need none.
    """
    file = model_path(model)
    loaded = _load(file, device, dim)
    from submanifold.flows import context_of
    from submanifold.inference.inputs import given_label, is_table
    from submanifold.inference.scoring import sample_events

    of_columns = is_table(loaded) and "columns" in context_of(loaded)
    if table and not of_columns:
        raise UserError(
            "TABLE: expected none for a model that is not conditional on columns, got "
            f"{printable(table[0])}. Omit it."
        )
    count = (1 if of_columns else 64) if count is None else count
    given = given_label(loaded, label)
    out = _default(out, loaded, "samples.csv", "samples.png")
    _check_format(out, loaded, "a .png or .npz file")
    check_not_input("--out", out, [file])
    if is_table(loaded):
        return _sample_rows(loaded, file, table, count, temperature, seed, out)
    if out.suffix.lower() == ".png" and (count > MAX_PNG or len(loaded.event_shape) != 3):
        raise UserError(
            f"--out={printable(str(out))}: expected at most {MAX_PNG:,} images in a PNG file, got "
            f"{count:,} samples of shape {tuple(loaded.event_shape)}. Use an .npz file."
        )
    with given:
        samples = sample_events(loaded, count, temperature, seed)
    return _write(out, {"samples": samples})


def _sample_rows(
    model: "Model", file: Path, inputs: tuple[str, ...], count: int, temperature: float, seed: int,
    out: Path,
) -> None:  # fmt: skip
    from submanifold.inference.tables import sample_table

    if inputs:
        import pandas as pd

        from submanifold.inference.table_files import TableFiles

        files = TableFiles(inputs, model, only_condition=True)
        check_not_input("--out", out, [file, *files.files])
        files.check_readable(len(files))
        condition = pd.concat([batch for _, batch in files.batches(ROW_BATCH)], ignore_index=True)
        frame = sample_table(model, count, temperature, seed, condition)
        frame.insert(0, unused(files.label, frame), [files.names[row] for row in frame.index])
    else:
        frame = sample_table(model, count, temperature, seed)
    with output("--out", out) as partial, TableWriter(partial, out.suffix.lower()) as writer:
        writer.write(frame)
    _echo(out)


@click.command()
@model_argument
@click.argument("pictures", nargs=-1, required=True, type=click.Path())
@click.option("--task", required=True, help="denoise:0.1 (standard deviation of the noise), "
              "inpaint:mask.png (black pixels are missing) or inpaint:12 (a square hole), "
              "superresolve:4 (factor), deblur:1.5 (standard deviation of the kernel, pixels), or "
              "sense:600 (number of random measurements).")  # fmt: skip
@click.option("--noise", type=float, help="Standard deviation of the noise of the observations, "
              "pixels in [0, 1].  [default: 0.01, or that of denoise]")  # fmt: skip
@click.option("--simulate", is_flag=True, help="PICTURES are clean: make the observations from "
              "them, and measure the errors.")  # fmt: skip
@click.option("--iterations", type=click.IntRange(3), help="Iterations of the sampler.  "
              "[default: 30]")  # fmt: skip
@dim_option
@label_option
@out_option("restorations", (FOLDER,), "Folder of PNG files and restorations.csv.")
@device_option
def restore(
    model: str, pictures: tuple[str, ...], task: str, noise: float | None, simulate: bool,
    iterations: int | None, dim: int | None, label: int | None, out: Path, device: str,
) -> None:  # fmt: skip
    """Restore PICTURES: denoise, inpaint, superresolve or deblur them, with the model as the prior.

    PICTURES are the observations, in the size of the model's images, or smaller by the factor of
    superresolve. With --simulate they are clean images of any size.

    Writes the restorations (posterior means), and maps of their errors (four times the posterior
    standard deviations).
    """
    file = model_path(model)
    loaded = _load(file, device)
    import pandas as pd
    import torch
    from PIL import Image

    from submanifold.evaluation.samples import stored
    from submanifold.inference.inputs import given_label
    from submanifold.inverse.comparison import LEVEL, coverage, image_psnr
    from submanifold.inverse.latents import latents_of
    from submanifold.inverse.operators import parse
    from submanifold.inverse.restoration import CHAINS, ITERATIONS, Restoration, as_pixels
    from submanifold.inverse.restoration import restore as restore_observations

    if len(loaded.event_shape) != 3 or "size" not in loaded.data:
        raise UserError("MODEL: expected a model of images, got another one. Use another model.")
    problem = parse(task, loaded.event_shape, noise)
    with given_label(loaded, label):
        latents_of(loaded, dim)  # checks the arguments
    iterations = iterations or ITERATIONS
    if not simulate and problem.kind == "sense":
        raise UserError(
            f"--task={task}: expected --simulate, because random measurements are not pictures. "
            "Add --simulate."
        )
    files = _find(loaded, file, pictures, {"--out": out}) if simulate else (
        _find_observations(loaded, file, pictures, out, problem.operator))  # fmt: skip
    names, pixels = files.read(4 * (CHAINS * iterations + 4) * loaded.event_dim)
    _echo_skipped(len(files.skipped))
    x = as_pixels(pixels)
    if simulate:
        y = problem.observe(x, torch.Generator().manual_seed(1))
    else:
        y = problem.operator(x) if problem.kind == "inpaint" else x
    generator = torch.Generator().manual_seed(0)
    with given_label(loaded, label):
        restored = restore_observations(
            loaded, y, problem.operator, problem.noise, dim=dim, iterations=iterations,
            generator=generator,
        )  # fmt: skip
    restored = Restoration(*(each.cpu() for each in restored[:5]))
    residual = (problem.operator(restored.image) - y).flatten(1).square().mean(1).sqrt()
    table = pd.DataFrame({
        "picture": names,
        "std": restored.std.flatten(1).square().mean(1).sqrt(),
        "residual": residual / problem.noise,
        "acceptance": restored.acceptance,
        "r_hat": restored.r_hat,
    })  # fmt: skip
    if simulate:
        table = table.assign(psnr=image_psnr(restored.image, x), coverage=coverage(restored, x))
    with output("--out", out) as folder:
        shown = (stored(each - 0.5) for each in (restored.image, 4 * restored.std))
        for number, (name, *both) in enumerate(zip(names, *shown, strict=True)):
            for end, picture in zip(("", "-std"), both, strict=True):
                path = folder / f"{number:05d}-{Path(name).stem[:MAX_STEM]}{end}.png"
                Image.fromarray(picture.transpose(1, 2, 0).squeeze()).save(path)
        table.to_csv(folder / "restorations.csv", index=False)
    if simulate:
        click.echo(f"PSNR {table['psnr'].mean():.2f} dB; {table['coverage'].mean():.1%} of the "
                   f"pixels are inside the posterior's intervals of {LEVEL:.0%}")  # fmt: skip
    _echo(out)


@click.command()
@model_argument
def info(model: str) -> None:
    """Print the architecture, the data and the calibration of a model as JSON."""
    file = model_path(model)
    loaded = _load(file, "cpu")
    calibration = {"calibrated_on": loaded.calibration.get("count"),
                   "calibration_groups": loaded.calibration.get("groups")}  # fmt: skip
    click.echo(json.dumps({**loaded.describe(), **calibration}, indent=2))


COMMANDS = [score, encode, project, sample, restore, info]


def _load(path: Path, device: str, dim: int | None = None) -> "Model":
    with without_garbage_collection():
        from submanifold.common.device import choose_device
        from submanifold.common.threads import use_threads
        from submanifold.inference import scoring  # noqa: F401  # for the command
        from submanifold.models import Model

    click.get_current_context().with_resource(use_threads("auto"))
    model: Any = Model.load(path, choose_device(device))
    if dim is not None and not hasattr(model, "at_dim"):
        raise UserError(f"--dim: expected none for a {model.kind}, got {dim}. Omit it.")
    return model if dim is None else model.at_dim(dim)


def _find(
    model: "Model", file: Path, paths: tuple[str, ...], outputs: Mapping[str, Path | None]
) -> "Inputs":
    """Find images or rows; raise a UserError if an output would replace one or the model."""
    from submanifold.inference.inputs import find_inputs

    return find_inputs(model, file, paths, outputs)


def _find_observations(
    model: "Model", file: Path, paths: tuple[str, ...], out: Path, operator: Any
) -> "ImageFiles":
    """Find pictures in the size of the observations by an operator, which are not resized."""
    from submanifold.inference.image_files import ImageFiles
    from submanifold.inverse.operators import Superresolve

    channels, side, _ = model.event_shape
    side //= operator.factor if isinstance(operator, Superresolve) else 1
    files = ImageFiles(paths, {"size": side, "channels": channels, "crop": "square"})
    check_not_input("--out", out, [file, *files.files])
    for name, size in files.sizes():
        if size != (side, side):
            raise UserError(
                f"{name}: expected an observation of {side} x {side} pixels, got {size[0]} x "
                f"{size[1]}. Resize it, or add --simulate to restore simulated observations of "
                "pictures of any size."
            )
    return files


def _batch_size(model: "Model") -> int:
    return IMAGE_BATCH if len(model.event_shape) == 3 else ROW_BATCH


def _default(out: Path | None, model: "Model", rows: str, others: str) -> Path:
    """Return the path of an output, by default one of two names."""
    from submanifold.inference.inputs import is_table

    if out is None:
        out = Path(rows if is_table(model) else others)
        check_output("--out", out, (out.suffix,))
    return out


def _check_format(out: Path, model: "Model", others: str) -> None:
    """Refuse tables of images or points, and other formats of rows."""
    from submanifold.inference.inputs import is_table

    if is_table(model) != (out.suffix.lower() in TABLES):
        what, expected = ("rows", "a .csv or .parquet file") if is_table(model) else (
            "images or points", others)  # fmt: skip
        raise UserError(
            f"--out={printable(str(out))}: expected {expected} for {what}, got "
            f"{out.suffix or 'a folder'}. Use another path."
        )


def _labeled_batches(
    files: "Inputs", batch_size: int, description: str
) -> Iterator[tuple[list[Any], Any]]:
    """Read batches with their labels, and show the progress."""
    from submanifold.common.progress import ProgressBar

    count = 0
    with ProgressBar(description, files.unit, len(files)) as progress:
        for numbers, batch in files.batches(batch_size):
            yield [files.names[number] for number in numbers], batch
            progress.update(len(batch))
            count += len(batch)
    files.check_readable(count)
    _echo_skipped(len(files.skipped))


def _read(
    model: "Model", file: Path, paths: tuple[str, ...], outputs: Mapping[str, Path | None],
    bytes_per_image: int = 0,
) -> "tuple[list[str], np.ndarray]":  # fmt: skip
    """Read the images or rows that :func:`_find` finds."""
    files = _find(model, file, paths, outputs)
    names, pixels = files.read(bytes_per_image)
    _echo_skipped(len(files.skipped))
    return names, pixels


def _echo_skipped(count: int) -> None:
    if count:
        click.echo(f"Skipped {count} unreadable images.", err=True)


def _write(path: Path, arrays: "dict[str, np.ndarray]", columns: int = 8) -> None:
    """Write arrays to an .npz file, or the images of a single array to a PNG file."""
    import numpy as np

    with output("--out", path) as partial, partial.open("wb") as file:
        if path.suffix.lower() == ".png":
            (images,) = arrays.values()
            file.write(_png(images, columns))
        else:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    _echo(path)


def _write_sheet(path: Path, files: "ImageFiles", order: Sequence[int]) -> None:
    """Draw the first and the last images of an order of numbers."""
    import numpy as np

    count = max(1, min(MAX_SHEET, len(order) // 2))
    blank = np.full((-count % 8 + 8, *files.shape), 255, np.uint8)
    first, last = (
        np.stack([image for _, image in files.decoded(numbers)])
        for numbers in (order[:count], order[::-1][:count])
    )
    with output("--sheet", path) as partial:
        partial.write_bytes(_png(np.concatenate([first, blank, last]), columns=8))


def _png(images: "np.ndarray", columns: int) -> bytes:
    from submanifold.plots.images import as_png, sample_sheet

    return as_png(sample_sheet(images, columns))


def _echo(path: Path) -> None:
    click.echo(printable(str(path)))
